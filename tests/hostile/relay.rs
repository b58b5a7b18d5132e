//! A man in the middle: carries the datagrams of two ends, and gives each end others on top.
//!
//! ```text
//!   a 192.0.2.1:51820 <---> 192.0.2.2:51821 [relay] 192.0.2.2:51822 <---> b 192.0.2.2:51820
//! ```
//!
//! Genuine datagrams all arrive, some later than their successors. Everything else that an end gets is counted: the end must
//! have dropped exactly as many.

use std::net::{SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{Scope, ScopedJoinHandle};
use std::time::Duration;

use nix::sys::socket::{setsockopt, sockopt};
use ringway::wire::message::{Body, HandshakeMessage, MAC_LEN, cookie_reply};

use crate::end::PORT;
use crate::forge::Random;
use crate::lab::{Lab, UNDERLAY_V4};

/// Where a believes b to be, and b a.
pub(crate) const RELAY_PORTS: [u16; 2] = [PORT + 1, PORT + 2];
/// Every so manieth data message comes with a copy: one that was changed, cut or lengthened before it, or the same after it.
const DATA_PER_TRICK: u64 = 16;
/// Every so manieth data message waits until so many others have passed.
const DATA_PER_DELAY: u64 = 50;
const DELAY: usize = 5;
/// Data messages from the beginning that come again at the end, when the replay window is far beyond them.
const KEPT: usize = 100;
/// Data messages that pass in one direction before these count as old: the replay window is 8,192 wide.
const OLD: u64 = 10_000;

/// What one direction has done.
#[derive(Default)]
pub(crate) struct Done {
    /// Genuine datagrams that went on.
    pub(crate) genuine: AtomicU64,
    /// Others.
    pub(crate) forged: AtomicU64,
}

/// Both directions: from a to b, and back.
#[derive(Default)]
pub(crate) struct Relay {
    stop: AtomicBool,
    pub(crate) done: [Done; 2],
}

/// Ends the threads also where the test panics.
pub(crate) struct StopOnDrop<'a>(&'a Relay);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.stop.store(true, Ordering::Relaxed);
    }
}

impl Relay {
    /// Carries datagrams until the returned guard is dropped.
    pub(crate) fn start<'scope>(
        &'scope self,
        scope: &'scope Scope<'scope, '_>,
        lab: &Lab,
    ) -> (StopOnDrop<'scope>, [ScopedJoinHandle<'scope, ()>; 2]) {
        let sockets = RELAY_PORTS.map(|port| lab.b.enter(|| bind((UNDERLAY_V4[1], port))));
        let ends = UNDERLAY_V4.map(|address| SocketAddr::new(address.parse().expect("an address"), PORT));
        let threads = [0, 1].map(|from| {
            let [receive, send] = [from, 1 - from].map(|side| sockets[side].try_clone().expect("a descriptor"));
            let mut direction = Direction {
                socket: send,
                to: ends[1 - from],
                done: &self.done[from],
                random: Random(from as u64 + 1),
                data: 0,
                delayed: Vec::new(),
                kept: Vec::new(),
            };
            scope.spawn(move || {
                let mut buffer = vec![0; 65_536];
                while !self.stop.load(Ordering::Relaxed) {
                    // An error is the time limit, or the answer of a port where nobody listens yet.
                    if let Ok(len) = receive.recv(&mut buffer) {
                        direction.carry(&buffer[..len]);
                    }
                }
                direction.release();
            })
        });
        (StopOnDrop(self), threads)
    }
}

fn bind(address: (&str, u16)) -> UdpSocket {
    let socket = UdpSocket::bind(address).expect("nobody else is there");
    setsockopt(&socket, sockopt::RcvBufForce, &(8 << 20)).expect("CAP_NET_ADMIN");
    socket
        .set_read_timeout(Some(Duration::from_millis(50)))
        .expect("not zero");
    socket
}

/// One way.
struct Direction<'a> {
    socket: UdpSocket,
    to: SocketAddr,
    done: &'a Done,
    random: Random,
    /// Data messages so far.
    data: u64,
    /// Those that wait, each with how many others are to pass before it.
    delayed: Vec<(usize, Vec<u8>)>,
    kept: Vec<Vec<u8>>,
}

impl Direction<'_> {
    fn carry(&mut self, datagram: &[u8]) {
        match HandshakeMessage::parse(datagram) {
            Some(message) => self.carry_handshake(datagram, &message),
            None => self.carry_data(datagram),
        }
    }

    /// First everything that is almost it, then itself, then itself again.
    fn carry_handshake(&mut self, datagram: &[u8], message: &HandshakeMessage<'_>) {
        // mac2 is not looked at while there is no load.
        let authentic = datagram.len() - MAC_LEN;
        for at in 0..authentic {
            let bit = self.random.below(8);
            self.inject(&flipped(datagram, at, bit));
        }
        let cut = 1 + self.random.below(datagram.len() - 1);
        self.inject(&datagram[..cut]);
        self.inject(&datagram[..datagram.len() - 1]);
        self.inject(&[datagram, &[0]].concat());
        self.inject(&[datagram, &[0; 60_000]].concat());
        self.pass(datagram);
        self.inject(datagram);
        if let Body::Response { receiver, .. } = message.body {
            // It waits for nothing any more, so a cookie is not taken from anybody.
            let [nonce, sealed] = [24, 32].map(|len| self.random.bytes(len));
            let forged = cookie_reply(
                message.native,
                receiver,
                &nonce.try_into().expect("24 bytes"),
                &sealed.try_into().expect("32 bytes"),
            );
            self.inject(&forged);
        }
    }

    fn carry_data(&mut self, datagram: &[u8]) {
        self.data += 1;
        if self.kept.len() < KEPT {
            self.kept.push(datagram.to_vec());
        }
        if self.data.is_multiple_of(DATA_PER_DELAY) {
            self.delayed.push((DELAY, datagram.to_vec()));
        } else if self.data.is_multiple_of(DATA_PER_TRICK) {
            self.trick(datagram);
        } else {
            self.pass(datagram);
        }
        for (left, _) in &mut self.delayed {
            *left = left.saturating_sub(1);
        }
        while let Some((0, late)) = self.delayed.first().cloned() {
            self.delayed.remove(0);
            self.pass(&late);
        }
        if self.data == OLD {
            for old in std::mem::take(&mut self.kept) {
                self.inject(&old);
            }
        }
    }

    fn trick(&mut self, datagram: &[u8]) {
        let changed = match self.random.below(4) {
            0 => {
                let [at, bit] = [datagram.len(), 8].map(|limit| self.random.below(limit));
                flipped(datagram, at, bit)
            }
            1 => datagram[..1 + self.random.below(datagram.len() - 1)].to_vec(),
            2 => {
                let more = 1 + self.random.below(3000);
                [datagram.to_vec(), self.random.bytes(more)].concat()
            }
            _ => {
                self.pass(datagram);
                return self.inject(datagram);
            }
        };
        self.inject(&changed);
        self.pass(datagram);
    }

    fn pass(&self, datagram: &[u8]) {
        if self.socket.send_to(datagram, self.to).is_ok() {
            self.done.genuine.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn inject(&self, datagram: &[u8]) {
        if self.socket.send_to(datagram, self.to).is_ok() {
            self.done.forged.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Nothing waits for ever.
    fn release(&mut self) {
        for (_, late) in std::mem::take(&mut self.delayed) {
            self.pass(&late);
        }
    }
}

fn flipped(datagram: &[u8], at: usize, bit: usize) -> Vec<u8> {
    let mut copy = datagram.to_vec();
    copy[at] ^= 1 << bit;
    copy
}
