//! The far end: threads that count datagrams, one that echoes, and answers over TCP.

use std::io::{self, IoSliceMut};
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::socket::{
    MsgFlags, MultiHeaders, SockaddrLike, SockaddrStorage, recvfrom, recvmmsg, sendto, setsockopt, sockopt,
};

use super::control::{self, Delivered};
use super::{echo_address, socket};

/// Receives per recvmmsg, and bytes for each: a GRO super-packet.
const BATCH: usize = 16;
const RECEIVE_BYTES: usize = 65_536;

/// Nothing more is on its way when nothing has arrived for this long,
const QUIET: Duration = Duration::from_millis(150);
/// but no longer than this is waited for it.
const QUIET_MAX: Duration = Duration::from_secs(3);

#[derive(clap::Args)]
pub(super) struct Options {
    /// Address and port to count on; the next port echoes
    listen: SocketAddr,
    /// Threads that count, each with a socket of its own; the kernel spreads flows over them
    #[arg(long, default_value_t = 1, value_name = "N")]
    threads: usize,
}

/// What the counting threads have counted. Times are nanoseconds since `epoch`.
struct Counts {
    epoch: Instant,
    size: AtomicUsize,
    datagrams: AtomicU64,
    receives: AtomicU64,
    first_ns: AtomicU64,
    last_ns: AtomicU64,
}

/// Serves until the process is killed.
pub(super) fn run(options: &Options) -> io::Result<()> {
    let counts = Arc::new(Counts {
        epoch: Instant::now(),
        size: AtomicUsize::new(1),
        datagrams: AtomicU64::new(0),
        receives: AtomicU64::new(0),
        first_ns: AtomicU64::new(u64::MAX),
        last_ns: AtomicU64::new(0),
    });
    for _ in 0..options.threads.max(1) {
        let fd = socket::bound(options.listen)?;
        // Without UDP_GRO (before 5.0) datagrams arrive one by one.
        let _ = setsockopt(&fd, sockopt::UdpGroSegment, &true);
        let counts = Arc::clone(&counts);
        std::thread::spawn(move || ended("counting", count(&fd, &counts)));
    }
    let echo_fd = socket::bound(echo_address(options.listen))?;
    std::thread::spawn(move || ended("echoing", echo(&echo_fd)));
    // Whoever finds this listening finds everything else too.
    for stream in TcpListener::bind(options.listen)?.incoming() {
        if let Err(error) = control::answer(stream?, |size| counts.reset(size), || counts.report()) {
            eprintln!("udpgen: {error}");
        }
    }
    Ok(())
}

fn count(fd: &OwnedFd, counts: &Counts) -> io::Result<()> {
    let mut memory = vec![0; BATCH * RECEIVE_BYTES];
    let mut headers = MultiHeaders::<()>::preallocate(BATCH, None);
    loop {
        let mut slices: Vec<_> = memory
            .chunks_exact_mut(RECEIVE_BYTES)
            .map(|chunk| [IoSliceMut::new(chunk)])
            .collect();
        let received = match recvmmsg(
            fd.as_raw_fd(),
            &mut headers,
            &mut slices,
            MsgFlags::MSG_WAITFORONE,
            None,
        ) {
            Ok(received) => received,
            Err(Errno::EAGAIN | Errno::EINTR | Errno::ECONNREFUSED) => continue,
            Err(errno) => return Err(errno.into()),
        };
        let size = counts.size.load(Relaxed);
        let (mut datagrams, mut receives) = (0, 0);
        for message in received {
            // A merged run holds datagrams of equal size; its kernel-reported segment size would say the same.
            datagrams += message.bytes.div_ceil(size) as u64;
            receives += 1;
        }
        counts.add(datagrams, receives);
    }
}

fn echo(fd: &OwnedFd) -> io::Result<()> {
    let mut datagram = [0; 2048];
    loop {
        let (len, from) = match recvfrom::<SockaddrStorage>(fd.as_raw_fd(), &mut datagram) {
            Ok((len, Some(from))) if from.family().is_some() => (len, from),
            Ok(_) | Err(Errno::EAGAIN | Errno::EINTR | Errno::ECONNREFUSED) => continue,
            Err(errno) => return Err(errno.into()),
        };
        // An answer that the kernel does not take is a lost one, as on any network.
        let _ = sendto(fd.as_raw_fd(), &datagram[..len], &from, MsgFlags::MSG_DONTWAIT);
    }
}

fn ended(what: &str, result: io::Result<()>) {
    if let Err(error) = result {
        eprintln!("udpgen: {what}: {error}");
        std::process::exit(1);
    }
}

impl Counts {
    fn add(&self, datagrams: u64, receives: u64) {
        let now_ns = self.epoch.elapsed().as_nanos() as u64;
        self.datagrams.fetch_add(datagrams, Relaxed);
        self.receives.fetch_add(receives, Relaxed);
        self.first_ns.fetch_min(now_ns, Relaxed);
        self.last_ns.fetch_max(now_ns, Relaxed);
    }

    fn reset(&self, size: usize) {
        self.wait_for_quiet();
        self.size.store(size, Relaxed);
        self.datagrams.store(0, Relaxed);
        self.receives.store(0, Relaxed);
        self.first_ns.store(u64::MAX, Relaxed);
        self.last_ns.store(0, Relaxed);
    }

    fn report(&self) -> Delivered {
        self.wait_for_quiet();
        let nanoseconds = self.last_ns.load(Relaxed).saturating_sub(self.first_ns.load(Relaxed));
        Delivered {
            datagrams: self.datagrams.load(Relaxed),
            receives: self.receives.load(Relaxed),
            seconds: nanoseconds as f64 / 1e9,
        }
    }

    fn wait_for_quiet(&self) {
        let started = Instant::now();
        let mut before = self.datagrams.load(Relaxed);
        while started.elapsed() < QUIET_MAX {
            std::thread::sleep(QUIET);
            let after = self.datagrams.load(Relaxed);
            if after == before {
                return;
            }
            before = after;
        }
    }
}
