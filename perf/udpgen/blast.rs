//! Sending at a rate, or as fast as the machine can, on one thread per flow.

use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Barrier;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, MultiHeaders, sendmmsg, setsockopt, sockopt};
use serde::Serialize;

use super::{control, socket};

/// Messages per sendmmsg, at most.
const BATCH_MAX: usize = 64;
/// Datagrams per super-packet: UDP_MAX_SEGMENTS was 64 before 6.9, which 63 are within for certain.
const SEGMENTS_MAX: usize = 63;
/// Bytes of the largest UDP payload over IPv4; it holds for IPv6 too.
const PAYLOAD_MAX: usize = 65_507;
/// A limited rate is made of bursts: at most as many as this per second, so each is at least half a millisecond's worth.
const BURSTS_PER_SECOND: f64 = 2000.0;

#[derive(clap::Args)]
pub(super) struct Options {
    /// Where `udpgen serve` is
    server: SocketAddr,
    /// Bytes of payload per datagram
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u16).range(1..=9000))]
    size: u16,
    /// How long
    #[arg(long, default_value_t = 3.0)]
    seconds: f64,
    /// Datagrams per second, all flows together; without it, as many as possible
    #[arg(long, value_name = "PPS")]
    rate: Option<f64>,
    /// Flows, each with a port and a thread of its own
    #[arg(long, default_value_t = 1, value_name = "N")]
    flows: usize,
    /// Send super-packets that the kernel cuts (UDP_SEGMENT)
    #[arg(long)]
    gso: bool,
    /// Send from this port, and the next ones with more flows; 0: from ports that the kernel chooses
    #[arg(long, default_value_t = 0, value_name = "PORT")]
    source_port: u16,
}

/// What was sent and what of it arrived.
#[derive(Serialize)]
pub(super) struct Report {
    size: u16,
    flows: usize,
    gso: bool,
    /// Datagrams that the kernel took.
    sent: u64,
    /// Calls that it refused, for lack of memory or of a way there.
    refused: u64,
    /// Of sending.
    seconds: f64,
    sent_pps: f64,
    /// Datagrams that the server received.
    delivered: u64,
    /// Receives that they came in: fewer where the kernel had merged some.
    receives: u64,
    loss_percent: f64,
    /// Delivered per second, between the first and the last that arrived.
    pps: f64,
    /// Of payload.
    bits_per_second: f64,
}

#[derive(Default)]
struct Sent {
    datagrams: u64,
    refused: u64,
    seconds: f64,
}

/// Sends as told, and asks the server what arrived.
pub(super) fn run(options: &Options) -> io::Result<Report> {
    let size = usize::from(options.size);
    let flows = options.flows.max(1);
    let mut server = control::Client::connect(options.server)?;
    server.count(size)?;
    let sockets = (0..flows)
        .map(|flow| {
            let source = match options.source_port {
                0 => 0,
                first => first.wrapping_add(flow as u16),
            };
            let fd = socket::connected(options.server, source)?;
            if options.gso {
                setsockopt(&fd, sockopt::UdpGsoSegment, &i32::from(options.size))?;
            }
            Ok(fd)
        })
        .collect::<io::Result<Vec<_>>>()?;
    let start = Barrier::new(flows);
    let results = std::thread::scope(|scope| {
        let threads: Vec<_> = sockets
            .iter()
            .map(|fd| {
                scope.spawn(|| {
                    start.wait();
                    send(fd, options, options.rate.map(|rate| rate / flows as f64))
                })
            })
            .collect();
        let join = |thread: std::thread::ScopedJoinHandle<'_, _>| thread.join().expect("no flow panics");
        threads.into_iter().map(join).collect::<io::Result<Vec<Sent>>>()
    })?;
    let mut all = Sent::default();
    for sent in results {
        all.datagrams += sent.datagrams;
        all.refused += sent.refused;
        all.seconds = all.seconds.max(sent.seconds);
    }
    let delivered = server.report()?;
    let per_second = |count: u64, seconds: f64| if seconds > 0.0 { count as f64 / seconds } else { 0.0 };
    let pps = per_second(delivered.datagrams, delivered.seconds);
    Ok(Report {
        size: options.size,
        flows,
        gso: options.gso,
        sent: all.datagrams,
        refused: all.refused,
        seconds: all.seconds,
        sent_pps: per_second(all.datagrams, all.seconds),
        delivered: delivered.datagrams,
        receives: delivered.receives,
        loss_percent: 100.0 * (1.0 - delivered.datagrams as f64 / all.datagrams.max(1) as f64),
        pps,
        bits_per_second: pps * size as f64 * 8.0,
    })
}

/// One flow: bursts at `rate` datagrams per second, or without a pause.
fn send(fd: &OwnedFd, options: &Options, rate: Option<f64>) -> io::Result<Sent> {
    let size = usize::from(options.size);
    let burst = rate.map_or(usize::MAX, |rate| (rate / BURSTS_PER_SECOND).ceil().max(1.0) as usize);
    let per_message = if options.gso {
        SEGMENTS_MAX.min(PAYLOAD_MAX / size).min(burst).max(1)
    } else {
        1
    };
    let batch = burst.div_ceil(per_message).clamp(1, BATCH_MAX);
    let payload = vec![0x55; per_message * size];
    let slices = vec![[IoSlice::new(&payload)]; batch];
    let nobody_else = [None::<()>; BATCH_MAX];
    let mut headers = MultiHeaders::<()>::preallocate(batch, None);

    let (started, duration) = (Instant::now(), Duration::from_secs_f64(options.seconds));
    let mut sent = Sent::default();
    loop {
        let elapsed = started.elapsed();
        if elapsed >= duration {
            sent.seconds = elapsed.as_secs_f64();
            return Ok(sent);
        }
        if let Some(rate) = rate {
            let due = Duration::from_secs_f64((sent.datagrams as f64 / rate).min(options.seconds));
            if due > elapsed {
                std::thread::sleep(due - elapsed);
                continue;
            }
        }
        match sendmmsg(
            fd.as_raw_fd(),
            &mut headers,
            &slices,
            nobody_else,
            [],
            MsgFlags::empty(),
        ) {
            Ok(results) => sent.datagrams += (results.count() * per_message) as u64,
            // ECONNREFUSED: a late answer to an earlier datagram. The others: no room at the moment.
            Err(Errno::EINTR) => {}
            Err(Errno::EAGAIN | Errno::ENOBUFS | Errno::ECONNREFUSED | Errno::ENETUNREACH | Errno::EHOSTUNREACH) => {
                sent.refused += 1;
            }
            Err(errno) => return Err(errno.into()),
        }
    }
}
