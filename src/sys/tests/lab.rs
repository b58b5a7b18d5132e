//! Places to test in: network namespaces that live as long as the test's thread, and engines in them.

use crate::sys::engine::{Engine, Event, Sent, TunBuffer, UdpBuffer, Wait};
use crate::sys::plain::Plain;
use crate::sys::tun::{self, Offloads, TunDevice, TunQueue};
use crate::sys::udp::{self, UdpGroup, UdpOptions, UdpSocket};
use crate::sys::uring::Uring;
use crate::sys::wake::{self, Wake, Waker};
use std::process::Command;
use std::time::{Duration, Instant};

/// Which engine a test runs on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Uring,
    Plain,
}

pub(super) const BOTH: [Kind; 2] = [Kind::Uring, Kind::Plain];

impl Kind {
    pub(super) fn build(self, tun: TunQueue, udp: UdpSocket, wake: Wake) -> Box<dyn Engine> {
        match self {
            Kind::Uring => match Uring::new(tun, udp, wake) {
                Ok(engine) => Box::new(engine),
                Err(refused) => panic!("{}", refused.reason),
            },
            Kind::Plain => Box::new(Plain::new(tun, udp, wake).unwrap()),
        }
    }
}

/// Runs `test` once per engine that there is here, each on a thread with a fresh network namespace whose loopback is
/// up. Says so where that is not permitted.
pub(super) fn with_each_engine(test: fn(Kind)) {
    for kind in BOTH {
        match crate::sys::probe::io_uring() {
            Err(refusal) if kind == Kind::Uring => eprintln!("skipped on io_uring: {refusal}"),
            _ => in_namespace(move || test(kind)),
        }
    }
}

/// Runs `test` on a thread with a fresh network namespace whose loopback is up. Says so where that is not permitted.
pub(super) fn in_namespace(test: impl FnOnce() + Send + 'static) {
    let thread = std::thread::spawn(move || {
        if enter_fresh_namespace() {
            test();
        }
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

/// Moves the calling thread to a fresh network namespace.
pub(super) fn enter_fresh_namespace() -> bool {
    // SAFETY: takes no pointers; concerns only the calling thread.
    if unsafe { libc::unshare(libc::CLONE_NEWNET) } != 0 {
        let error = std::io::Error::last_os_error();
        eprintln!("skipped: no network namespace of its own: {error} (run as root)");
        return false;
    }
    ip("link set lo up");
    true
}

/// The `ip` tool, in the calling thread's namespace.
pub(super) fn ip(arguments: &str) {
    let output = Command::new("ip").args(arguments.split(' ')).output().unwrap();
    assert!(
        output.status.success(),
        "ip {arguments}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}

/// Waits until this thread's namespace has no interface whose name contains any of `names`. Mostly it has none at once:
/// a child that another test is just starting holds copies of all descriptors until it executes its program.
pub(super) fn wait_until_gone(names: &[&str]) {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let interfaces = std::fs::read_to_string("/proc/thread-self/net/dev").unwrap();
        if !names.iter().any(|name| interfaces.contains(name)) {
            return;
        }
        assert!(Instant::now() < deadline, "{interfaces}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// An engine with its TUN and one socket.
pub(super) struct Station {
    pub(super) engine: Box<dyn Engine>,
    pub(super) port: u16,
    pub(super) waker: Waker,
    pub(super) device: String,
}

impl Station {
    /// With a fresh TUN that is down.
    pub(super) fn new(kind: Kind) -> Station {
        Station::with(kind, UdpOptions::default())
    }

    pub(super) fn with(kind: Kind, options: UdpOptions) -> Station {
        Station::on(kind, udp::bind_group(0, 1, options).unwrap())
    }

    pub(super) fn on(kind: Kind, group: UdpGroup) -> Station {
        let TunDevice { name, mut queues, .. } = tun::create("rwt%d", 1, Offloads::ALL).unwrap();
        Station::between(kind, name, queues.remove(0), group)
    }

    /// With a queue of the TUN `name`, which is down.
    pub(super) fn of(kind: Kind, name: String, queue: TunQueue) -> Station {
        let group = udp::bind_group(0, 1, UdpOptions::default()).unwrap();
        Station::between(kind, name, queue, group)
    }

    fn between(kind: Kind, name: String, queue: TunQueue, mut group: UdpGroup) -> Station {
        let (waker, wake) = wake::pair().unwrap();
        let engine = kind.build(queue, group.sockets.remove(0), wake);
        Station {
            engine,
            port: group.port,
            waker,
            device: name,
        }
    }

    /// Gives the TUN `address` and brings it up.
    pub(super) fn up(&mut self, address: &str) {
        // Without IPv6 the interface stays silent until a test speaks.
        let quiet = format!("/proc/sys/net/ipv6/conf/{}/disable_ipv6", self.device);
        // The file does not exist on a kernel without IPv6.
        let _ = std::fs::write(quiet, "1");
        ip(&format!("addr add {address} dev {}", self.device));
        ip(&format!("link set {} up", self.device));
    }

    /// Turns until `events` satisfy `done`; panics after a few seconds.
    pub(super) fn turn_until(&mut self, events: &mut Vec<Event>, mut done: impl FnMut(&[Event]) -> bool) {
        let started = Instant::now();
        while !done(events) {
            assert!(
                started.elapsed() < Duration::from_secs(5),
                "{} events after 5 s",
                events.len()
            );
            self.engine.turn(Wait::For(Duration::from_millis(100)), events).unwrap();
        }
    }

    /// Turns until a run has left or not.
    pub(super) fn wait_sent(&mut self) -> Sent {
        let mut events = Vec::new();
        self.turn_until(&mut events, |events| {
            events.iter().any(|event| matches!(event, Event::Sent(_)))
        });
        events
            .into_iter()
            .find_map(|event| {
                if let Event::Sent(sent) = event {
                    Some(sent)
                } else {
                    None
                }
            })
            .unwrap()
    }
}

pub(super) fn as_udp(event: Event) -> Option<UdpBuffer> {
    if let Event::Udp(buffer) = event {
        Some(buffer)
    } else {
        None
    }
}

pub(super) fn as_tun(event: Event) -> Option<TunBuffer> {
    if let Event::Tun(buffer) = event {
        Some(buffer)
    } else {
        None
    }
}
