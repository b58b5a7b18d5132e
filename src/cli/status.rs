//! `status`: what runs, once or again and again.

use std::io::{self, IsTerminal as _, Write as _};
use std::time::{Duration, Instant};

use clap::Args;

use super::exit::Failure;
use super::show::{self, Since};
use super::style::Style;
use super::target;
use crate::control::api::StatusReport;

/// How often `--watch` asks.
const WATCH_INTERVAL: Duration = Duration::from_secs(1);

/// Clears a terminal: cursor home, erase to the end, erase what scrolled (ECMA-48, and xterm's own for the last).
const CLEAR: &str = "\x1b[H\x1b[J\x1b[3J";

#[derive(Debug, Args)]
pub(super) struct Options {
    #[arg(value_name = "NAME", help = target::HELP)]
    name: Option<String>,
    /// Write one JSON object per tunnel, each on a line of its own
    #[arg(long)]
    json: bool,
    /// Show it again every second, until interrupted
    #[arg(long)]
    watch: bool,
}

pub(super) fn status(options: &Options) -> Result<(), Failure> {
    let mut clients = target::connect(options.name.as_deref())?;
    let clears = options.watch && !options.json && io::stdout().is_terminal();
    let mut before: Option<(Instant, Vec<StatusReport>)> = None;
    loop {
        let asked = Instant::now();
        let reports: Vec<StatusReport> = clients
            .iter_mut()
            .map(|client| client.status())
            .collect::<Result<_, _>>()?;
        let text = if options.json {
            json(&reports)?
        } else {
            let seconds = before
                .as_ref()
                .map(|(then, _)| asked.duration_since(*then).as_secs_f64());
            let earlier = before
                .iter()
                .flat_map(|(_, reports)| reports.iter().map(Some))
                .chain(std::iter::repeat(None));
            let blocks = reports.iter().zip(earlier).map(|(report, earlier)| {
                let since = earlier.zip(seconds).map(|(report, seconds)| Since { report, seconds });
                show::status(report, since, Style::of_stdout())
            });
            blocks.collect::<Vec<_>>().join("\n")
        };
        // In one piece, so that a terminal shows no half of it.
        let mut out = io::stdout().lock();
        write!(out, "{}{text}", if clears { CLEAR } else { "" })?;
        if !options.watch {
            return Ok(());
        }
        if !clears && !options.json {
            writeln!(out)?;
        }
        out.flush()?;
        drop(out);
        before = Some((asked, reports));
        std::thread::sleep(WATCH_INTERVAL.saturating_sub(asked.elapsed()));
    }
}

fn json(reports: &[StatusReport]) -> io::Result<String> {
    let mut text = String::new();
    for report in reports {
        text += &serde_json::to_string(report)?;
        text.push('\n');
    }
    Ok(text)
}
