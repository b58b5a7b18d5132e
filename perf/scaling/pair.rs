//! Two hosts of several workers, joined in memory.

use std::sync::Arc;
use std::time::Duration;

use ringway::crypto::Choice;
use ringway::path::peers::NewPeer;
use ringway::path::report::Report;
use ringway::path::route::Routes;
use ringway::proto::{Action, Device, DeviceConfig, Endpoint, Now, PeerConfig, PeerId, PublicKey, StaticSecret};
use ringway::proto::{Suite, SuiteChoice, Time};
use ringway::wire::{message, vnet};
use ringway::worker::mailbox::Command;

use crate::thread::{Load, Post, Worker};

/// Bytes of TCP payload in each segment, and segments in each super-packet.
const SEGMENT: usize = 1368;
pub(crate) const SEGMENTS: usize = 45;
/// Of IPv4 and TCP headers.
const HEADERS_LEN: usize = 40;
const START: Now = Now {
    mono: Time::from_nanos(1_000_000_000),
    unix: Duration::from_secs(1_700_000_000),
};
/// Sessions before the one that carries what is counted. A worker's heap gets what the control thread made for it and the
/// worker lets go of; only after a few sessions is it what it is for the rest of the tunnel's life.
const SESSIONS_BEFORE: u32 = 2;
/// Between sessions: more than REKEY_TIMEOUT.
const SESSION_INTERVAL: Duration = Duration::from_secs(10);

/// Both hosts; host 0 sends.
pub(crate) struct Pair {
    hosts: [Host; 2],
    /// None while it is on its way.
    post: Option<Post>,
    now: Now,
}

struct Host {
    device: Device,
    peer: PeerId,
    workers: Vec<Worker>,
}

impl Pair {
    /// Two hosts of `workers` workers each with a session between them. `planted`: with counters that they share a line by.
    pub(crate) fn connect(suite: SuiteChoice, workers: u8, planted: bool) -> Pair {
        let keys = [1, 2].map(|byte| StaticSecret::from([byte; 32]));
        let hosts = [0, 1].map(|host| Host::new(host, &keys, suite, workers, planted));
        let mut pair = Pair {
            hosts,
            post: Some(Post::new()),
            now: START,
        };
        for _ in 0..=SESSIONS_BEFORE {
            pair.now.mono = pair.now.mono + SESSION_INTERVAL;
            pair.now.unix += SESSION_INTERVAL;
            pair.hosts[0].device.want_session(pair.hosts[0].peer, pair.now);
            pair.shake_hands();
            // The responder seals once the initiator has shown that it has the keys.
            pair.round(Load::Least);
            pair.shake_hands();
        }
        pair
    }

    fn shake_hands(&mut self) {
        loop {
            let sent: Vec<(usize, Vec<u8>)> = (0..2)
                .flat_map(|from| {
                    self.hosts[from]
                        .act(self.now.mono)
                        .into_iter()
                        .map(move |message| (1 - from, message))
                })
                .collect();
            if sent.is_empty() {
                return;
            }
            for (to, message) in sent {
                let accepted = self.hosts[to]
                    .device
                    .handle_datagram(self.now, endpoint(1 - to), &message);
                assert!(accepted.is_ok(), "a handshake between honest hosts: {accepted:?}");
            }
        }
    }

    /// A super-packet on every lane; how many packets that were.
    pub(crate) fn round(&mut self, load: Load) -> usize {
        (0..self.hosts[0].workers.len())
            .map(|lane| self.carry(lane, load))
            .sum()
    }

    fn carry(&mut self, lane: usize, load: Load) -> usize {
        let [sender, receiver] = &mut self.hosts;
        let empty = self.post.take().expect("the bag comes back").emptied();
        let (mut post, reports) = sender.workers[lane].send(empty, load, self.now.mono);
        sender.take(reports, self.now);
        let (runs, packets) = post.contents();
        let mut all_opened = 0;
        for run in 0..runs {
            // In the WireGuard suite one worker opens all.
            let to = usize::from(message::owner(post.receiver(run), receiver.workers.len() as u8));
            let (reports, opened);
            (post, reports, opened) = receiver.workers[to].receive(post, run, endpoint(0), self.now.mono);
            receiver.take(reports, self.now);
            all_opened += opened;
        }
        assert_eq!(all_opened, packets as u64, "all that was sent is opened");
        self.post = Some(post);
        packets
    }
}

impl Host {
    fn new(host: usize, keys: &[StaticSecret; 2], suite: SuiteChoice, workers: u8, planted: bool) -> Host {
        let mut seed = host as u64 + 1;
        let random = move |bytes: &mut [u8]| {
            for byte in bytes {
                // xorshift64 (Marsaglia 2003): any sequence will do.
                seed ^= seed << 13;
                seed ^= seed >> 7;
                seed ^= seed << 17;
                *byte = seed as u8;
            }
        };
        let config = DeviceConfig {
            private_key: keys[host].clone(),
            lanes: workers,
            crypto: Choice::Auto,
        };
        let mut device = Device::new(config, random);
        let peer = PeerConfig {
            public_key: PublicKey::from(&keys[1 - host]).to_bytes(),
            preshared_key: None,
            endpoint: Some(endpoint(1 - host).remote),
            persistent_keepalive: None,
            suite,
        };
        let peer = device.add_peer(START.mono, peer).expect("the only peer");
        let mut routes = Routes::new();
        routes.insert("10.0.0.0/8".parse().expect("a prefix"), peer);
        let table = Arc::new(routes.table());
        let shared = Arc::new(NewPeer::new(Some(endpoint(1 - host)), workers.into()));
        let start = |number| Worker::start(host, [number, workers], planted, move |load| frame(number.into(), load));
        let workers: Vec<Worker> = (0..workers).map(start).collect();
        for worker in &workers {
            worker.tell(Command::Routes(table.clone()), START.mono);
            worker.tell(Command::AddPeer(peer, shared.clone()), START.mono);
        }
        Host { device, peer, workers }
    }

    /// Does what the protocol wants done, as the daemon's control thread does (`control::turn`); the messages that it wants
    /// sent.
    fn act(&mut self, now: Time) -> Vec<Vec<u8>> {
        let mut messages = Vec::new();
        while let Some(action) = self.device.poll_action() {
            let count = self.workers.len();
            match action {
                Action::Transmit { datagram, .. } => messages.push(datagram),
                Action::Install {
                    peer,
                    suite,
                    seals,
                    opens,
                    sending,
                    ..
                } => {
                    let seals: Vec<_> = match suite {
                        Suite::Native => seals.into_iter().map(Box::new).collect(),
                        Suite::WireGuard => (0..count).map(|_| Box::new(seals[0].clone())).collect(),
                    };
                    let mut open: Vec<Vec<_>> = (0..count).map(|_| Vec::new()).collect();
                    for half in opens {
                        open[usize::from(message::owner(half.local_index(), count as u8))].push(half);
                    }
                    for (worker, open) in self.workers.iter().zip(open) {
                        if !open.is_empty() {
                            worker.tell(Command::Open(peer, open), now);
                        }
                    }
                    for (worker, seal) in self.workers.iter().zip(seals) {
                        let seal = Some(seal);
                        worker.tell(Command::Seal { peer, seal, sending }, now);
                    }
                }
                Action::Promote { peer, session } => {
                    for worker in &self.workers {
                        worker.tell(Command::Promote(peer, session), now);
                    }
                }
                Action::Retire { peer, session } => {
                    for worker in &self.workers {
                        worker.tell(Command::Retire(peer, session), now);
                    }
                }
                _ => {}
            }
        }
        messages
    }

    /// Tells the protocol what a worker reports.
    fn take(&mut self, reports: Vec<Report>, now: Now) {
        for report in reports {
            match report {
                Report::Confirmed(peer, session) => self.device.confirmed(peer, session, now),
                Report::Roamed(..) => panic!("nobody moves"),
                _ => {}
            }
        }
    }
}

fn endpoint(host: usize) -> Endpoint {
    Endpoint::new(([192, 0, 2, host as u8 + 1], 51_820).into())
}

/// A TCP super-packet of flow `flow` as the TUN hands it out.
fn frame(flow: usize, load: Load) -> Vec<u8> {
    let segments = match load {
        Load::Least => 2,
        Load::Most => SEGMENTS,
    };
    let len = HEADERS_LEN + segments * SEGMENT;
    let vnet = vnet::VnetHeader {
        flags: vnet::F_NEEDS_CSUM,
        gso_type: vnet::GSO_TCPV4,
        hdr_len: HEADERS_LEN as u16,
        gso_size: SEGMENT as u16,
        csum_start: 20,
        csum_offset: 16,
    };
    let mut ip = vec![0; len];
    ip[..10].copy_from_slice(&[0x45, 0, (len >> 8) as u8, len as u8, 0, 1, 0x40, 0, 64, 6]);
    ip[12..20].copy_from_slice(&[10, 0, 0, 1, 10, 0, 0, 2]);
    ip[20..24].copy_from_slice(&[0x10, flow as u8, 0, 80]);
    (ip[32], ip[33]) = (0x50, 0x10);
    let partial = checksum::of_pseudo_header(&ip);
    ip[36..38].copy_from_slice(&partial.to_be_bytes());
    [&vnet.bytes()[..], &ip].concat()
}

/// RFC 9293, section 3.1, as the kernel leaves it for the device to finish.
mod checksum {
    /// The sum of addresses, protocol and length of an IPv4 TCP packet.
    pub(super) fn of_pseudo_header(ip: &[u8]) -> u16 {
        let words = ip[12..20]
            .chunks(2)
            .map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1]));
        let sum: u32 = words.sum::<u32>() + 6 + (ip.len() - 20) as u32;
        let folded = (sum & 0xffff) + (sum >> 16);
        ((folded & 0xffff) + (folded >> 16)) as u16
    }
}
