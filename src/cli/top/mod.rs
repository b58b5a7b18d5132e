//! `top`: what running tunnels do at this moment, again and again.

mod sample;
mod screen;
mod spark;
mod view;

use std::io::{self, IsTerminal as _, Write as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use clap::Args;

use super::exit::Failure;
use super::style::Style;
use super::{signals, target};
use crate::control::client::Client;
use sample::Sample;
use screen::Screen;
use spark::History;
use view::Order;

/// How often keys and signals are looked at.
const KEY_INTERVAL: Duration = Duration::from_millis(100);

#[derive(Debug, Args)]
pub(super) struct Options {
    #[arg(value_name = "NAME", help = target::HELP)]
    name: Option<String>,
    /// Show one interval and end, as also happens where standard output is no terminal
    #[arg(long)]
    once: bool,
    /// Seconds between two looks
    #[arg(long, value_name = "SECONDS", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=3600))]
    interval: u64,
}

pub(super) fn top(options: &Options) -> Result<(), Failure> {
    let interval = Duration::from_secs(options.interval);
    let mut tunnels: Vec<Tunnel> = target::connect(options.name.as_deref())?
        .into_iter()
        .map(Tunnel::new)
        .collect::<Result<_, _>>()?;
    if options.once || !io::stdout().is_terminal() {
        std::thread::sleep(interval);
        return show_once(&mut tunnels);
    }
    show_live(&mut tunnels, interval)
}

/// One tunnel that is looked at.
struct Tunnel {
    client: Client,
    before: Sample,
    history: History,
}

impl Tunnel {
    fn new(mut client: Client) -> Result<Tunnel, Failure> {
        Ok(Tunnel {
            before: Sample::take(&mut client)?,
            client,
            history: History::default(),
        })
    }

    /// Looks again: the lines that tell of the time since the last look.
    fn look(&mut self, order: Order, style: Style) -> Result<Vec<String>, Failure> {
        let now = Sample::take(&mut self.client)?;
        let rates = now.since(&self.before);
        self.before = now;
        self.history.add(&rates);
        Ok(view::lines(&rates, &self.history, order, style))
    }
}

fn show_once(tunnels: &mut [Tunnel]) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    for (i, tunnel) in tunnels.iter_mut().enumerate() {
        if i > 0 {
            writeln!(out)?;
        }
        for line in tunnel.look(Order::Traffic, Style::of_stdout())? {
            writeln!(out, "{}", line.trim_end())?;
        }
    }
    Ok(())
}

fn show_live(tunnels: &mut [Tunnel], interval: Duration) -> Result<(), Failure> {
    let ended = Arc::new(AtomicBool::new(false));
    let end = Arc::clone(&ended);
    signals::on_end(move || end.store(true, Relaxed))?;
    let mut screen = Screen::open()?;
    let mut order = Order::Traffic;
    loop {
        let looked = Instant::now();
        let mut lines = vec![format!(
            "ringway top   q: quit   s: sort peers by {}",
            order.next().name()
        )];
        for tunnel in tunnels.iter_mut() {
            lines.push(String::new());
            lines.extend(tunnel.look(order, Style::of_stdout())?);
        }
        screen.show(&lines)?;
        while looked.elapsed() < interval {
            match screen.key(KEY_INTERVAL.min(interval.saturating_sub(looked.elapsed())))? {
                Some(b'q') => return Ok(()),
                Some(b's') => {
                    order = order.next();
                    break;
                }
                _ if ended.load(Relaxed) => return Ok(()),
                _ => {}
            }
        }
    }
}
