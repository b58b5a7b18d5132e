//! A relay between both ends that can make their initiations cross on the wire, and counts keepalives.

use std::net::{SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crate::lab::{Lab, UNDERLAY_V4, wait_until};
use crate::pair::{A, B, PATIENCE, PORTS, Terms, ip};

/// Where a sends to, and where b does: both at b's address.
const RELAY_PORTS: [u16; 2] = [51900, 51901];
/// The type of a WireGuard initiation, the first byte of its datagram.
const INITIATION: u8 = 1;
/// The type of a data message, and the size of one that carries nothing.
const DATA: u8 = 4;
const KEEPALIVE_LEN: usize = 32;

/// Carries datagrams between both ends until it is dropped.
pub(crate) struct Relay {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

struct Shared {
    /// The socket that faces each end.
    sockets: [UdpSocket; 2],
    /// `Some` while the first initiation of either end waits for the other end's.
    held: Mutex<Option<[Option<Vec<u8>>; 2]>>,
    /// Keepalives that came from each end.
    keepalives: [AtomicU32; 2],
    stop: AtomicBool,
}

impl Relay {
    /// Starts it in b's namespace.
    pub(crate) fn start(lab: &Lab) -> Relay {
        let address = ip(UNDERLAY_V4[B]);
        let sockets = RELAY_PORTS.map(|port| {
            let socket = lab.b.enter(|| UdpSocket::bind((address, port)).expect("a free port"));
            let pause = Some(Duration::from_millis(50));
            socket.set_read_timeout(pause).expect("not zero");
            socket
        });
        let shared = Arc::new(Shared {
            sockets,
            held: Mutex::new(None),
            keepalives: Default::default(),
            stop: AtomicBool::new(false),
        });
        let threads = [A, B].map(|from| {
            let shared = Arc::clone(&shared);
            thread::spawn(move || shared.carry(from))
        });
        Relay {
            shared,
            threads: threads.into(),
        }
    }

    /// Terms on which both ends speak through it.
    pub(crate) fn terms() -> Terms {
        Terms {
            outer: [UNDERLAY_V4[B]; 2],
            ports: [RELAY_PORTS[B], RELAY_PORTS[A]],
            ..Terms::default()
        }
    }

    /// From here on the next initiations of both ends leave together.
    pub(crate) fn hold_initiations(&self) {
        *self.shared.held.lock().expect("no thread panics") = Some([None, None]);
    }

    /// How many keepalives have come from an end.
    pub(crate) fn keepalives(&self, from: usize) -> u32 {
        self.shared.keepalives[from].load(Ordering::Relaxed)
    }

    /// Waits until both have come and were let go.
    pub(crate) fn wait_until_they_crossed(&self) {
        wait_until("an initiation from either end", PATIENCE, || {
            self.shared.held.lock().expect("no thread panics").is_none()
        });
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            // It may have panicked; the test that waits for it says so.
            let _ = thread.join();
        }
    }
}

impl Shared {
    /// What comes from one end goes to the other.
    fn carry(&self, from: usize) {
        let mut buffer = vec![0; 65536];
        while !self.stop.load(Ordering::Relaxed) {
            // Time is up, or a port unreachable: nobody listens at the moment.
            let Ok((len, _)) = self.sockets[from].recv_from(&mut buffer) else {
                continue;
            };
            let datagram = &buffer[..len];
            if datagram.first() == Some(&INITIATION) && self.hold(from, datagram) {
                continue;
            }
            if datagram.first() == Some(&DATA) && len == KEEPALIVE_LEN {
                self.keepalives[from].fetch_add(1, Ordering::Relaxed);
            }
            self.send(1 - from, datagram);
        }
    }

    /// Whether the initiation has been taken; the second one lets both go.
    fn hold(&self, from: usize, initiation: &[u8]) -> bool {
        let mut held = self.held.lock().expect("no thread panics");
        let Some(initiations) = held.as_mut() else {
            return false;
        };
        initiations[from] = Some(initiation.to_vec());
        if let [Some(of_a), Some(of_b)] = initiations {
            self.send(B, of_a);
            self.send(A, of_b);
            *held = None;
        }
        true
    }

    fn send(&self, to: usize, datagram: &[u8]) {
        let address = SocketAddr::new(ip(UNDERLAY_V4[to]), PORTS[to]);
        // Lost like any other datagram.
        let _ = self.sockets[to].send_to(datagram, address);
    }
}
