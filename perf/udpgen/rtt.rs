//! Round trips: a datagram carries the time it left, the server sends it back, the difference goes into a histogram.
//!
//! Datagrams leave on a schedule of their own, whether or not answers come: a tunnel that stalls is asked as often while
//! it stalls as before. What does not come back is no round trip, and is counted beside them: percentiles say little
//! without it.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hdrhistogram::Histogram;
use hdrhistogram::serialization::{Serializer, V2Serializer};
use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, recv, send};
use serde::Serialize;

use super::{echo_address, socket};

/// How long answers are waited for after the last question.
const ANSWERS_MAX: Duration = Duration::from_secs(1);
/// Round trips in nanoseconds that are told apart, to three digits.
const SHORTEST_NS: u64 = 100;
const LONGEST_NS: u64 = 10_000_000_000;

#[derive(clap::Args)]
pub(super) struct Options {
    /// Where `udpgen serve` is
    server: SocketAddr,
    /// Round trips per second
    #[arg(long, default_value_t = 1000.0, value_name = "PER_SECOND")]
    rate: f64,
    /// How long
    #[arg(long, default_value_t = 3.0)]
    seconds: f64,
    /// Seconds to wait before that: until the load that is to be there has begun
    #[arg(long, default_value_t = 0.0, value_name = "SECONDS")]
    delay: f64,
    /// Bytes of payload per datagram
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u16).range(16..=2048))]
    size: u16,
    /// Ask from this port; 0: from one that the kernel chooses
    #[arg(long, default_value_t = 0, value_name = "PORT")]
    source_port: u16,
}

/// The distribution; named as a stage of `ringway latency --json`, so that the same pictures are drawn of it.
#[derive(Serialize)]
pub(super) struct Report {
    name: &'static str,
    unit: &'static str,
    sent: u64,
    count: u64,
    lost: u64,
    mean: f64,
    p50: u64,
    p90: u64,
    p99: u64,
    p99_9: u64,
    max: u64,
    /// HdrHistogram V2, base64.
    histogram: String,
}

/// What both threads know.
struct Run {
    epoch: Instant,
    /// Tells this run's datagrams from those of another.
    id: u64,
    sent: AtomicU64,
    over: AtomicBool,
}

/// Asks as told and counts the answers.
pub(super) fn run(options: &Options) -> io::Result<Report> {
    std::thread::sleep(Duration::from_secs_f64(options.delay));
    let fd = socket::connected(echo_address(options.server), options.source_port)?;
    let run = Run {
        epoch: Instant::now(),
        id: u64::from(std::process::id()),
        sent: AtomicU64::new(0),
        over: AtomicBool::new(false),
    };
    let times = std::thread::scope(|scope| {
        let answers = scope.spawn(|| receive(&fd, &run));
        let asked = ask(&fd, &run, options);
        run.over.store(true, Relaxed);
        let times = answers.join().expect("the receiving thread does not panic");
        asked.and(times)
    })?;
    let sent = run.sent.load(Relaxed);
    let quantile = |quantile| times.value_at_quantile(quantile);
    Ok(Report {
        name: "udp_rtt",
        unit: "ns",
        sent,
        count: times.len(),
        lost: sent.saturating_sub(times.len()),
        mean: times.mean(),
        p50: quantile(0.5),
        p90: quantile(0.9),
        p99: quantile(0.99),
        p99_9: quantile(0.999),
        max: times.max(),
        histogram: encode(&times)?,
    })
}

fn ask(fd: &OwnedFd, run: &Run, options: &Options) -> io::Result<()> {
    let interval = Duration::from_secs_f64(1.0 / options.rate);
    let mut datagram = vec![0; usize::from(options.size)];
    datagram[..8].copy_from_slice(&run.id.to_le_bytes());
    let started = Instant::now();
    let mut due = Duration::ZERO;
    while due.as_secs_f64() < options.seconds {
        if let Some(early) = due.checked_sub(started.elapsed()) {
            std::thread::sleep(early);
        }
        due += interval;
        datagram[8..16].copy_from_slice(&run.now_ns().to_le_bytes());
        match send(fd.as_raw_fd(), &datagram, MsgFlags::MSG_DONTWAIT) {
            // What the kernel has no room for is a round trip that failed.
            Ok(_) | Err(Errno::EAGAIN | Errno::ENOBUFS | Errno::ECONNREFUSED) => run.sent.fetch_add(1, Relaxed),
            Err(errno) => return Err(errno.into()),
        };
    }
    Ok(())
}

fn receive(fd: &OwnedFd, run: &Run) -> io::Result<Histogram<u64>> {
    let mut times = Histogram::new_with_bounds(1, LONGEST_NS, 3).expect("the bounds are in order");
    let mut datagram = [0; 2048];
    let mut over_since: Option<Instant> = None;
    loop {
        if run.over.load(Relaxed) {
            let since = *over_since.get_or_insert_with(Instant::now);
            if times.len() >= run.sent.load(Relaxed) || since.elapsed() > ANSWERS_MAX {
                return Ok(times);
            }
        }
        let len = match recv(fd.as_raw_fd(), &mut datagram, MsgFlags::empty()) {
            Ok(len) => len,
            Err(Errno::EAGAIN | Errno::EINTR | Errno::ECONNREFUSED) => continue,
            Err(errno) => return Err(errno.into()),
        };
        let now_ns = run.now_ns();
        let mut words = datagram[..len]
            .chunks_exact(8)
            .map(|word| u64::from_le_bytes(*word.first_chunk().expect("8 bytes")));
        if let (Some(id), Some(left_ns)) = (words.next(), words.next())
            && id == run.id
        {
            times.saturating_record(now_ns.saturating_sub(left_ns).clamp(SHORTEST_NS, LONGEST_NS));
        }
    }
}

impl Run {
    fn now_ns(&self) -> u64 {
        self.epoch.elapsed().as_nanos() as u64
    }
}

fn encode(times: &Histogram<u64>) -> io::Result<String> {
    let mut bytes = Vec::new();
    V2Serializer::new()
        .serialize(times, &mut bytes)
        .map_err(|error| io::Error::other(error.to_string()))?;
    Ok(STANDARD.encode(bytes))
}
