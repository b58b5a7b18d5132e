//! Two hosts of several workers, joined in memory.

use std::sync::Arc;
use std::time::Duration;

use ringway::crypto::Choice;
use ringway::path::coalesce::{Coalescer, Offloads};
use ringway::path::forward::Forwarder;
use ringway::path::gso::{Batches, SEND_LEN_MAX, Slots};
use ringway::path::peers::NewPeer;
use ringway::path::report::{Received, Report};
use ringway::path::route::Routes;
use ringway::proto::{Action, Device, DeviceConfig, Endpoint, Now, PeerConfig, PeerId, PublicKey, StaticSecret};
use ringway::proto::{Suite, SuiteChoice, Time};
use ringway::stats::counters::WorkerCounters;
use ringway::wire::vnet;

use crate::trace::{turn_of, turn_of_nobody};

/// Bytes of TCP payload in each segment, and segments in each super-packet.
const SEGMENT: usize = 1368;
const SEGMENTS: usize = 45;
/// Of IPv4 and TCP headers.
const HEADERS_LEN: usize = 40;
const NOW: Now = Now {
    mono: Time::from_nanos(1_000_000_000),
    unix: Duration::from_secs(1_700_000_000),
};

/// Both hosts; host 0 sends.
pub(crate) struct Pair {
    hosts: [Host; 2],
    /// The super-packet that each worker sends, and what arrives of it.
    frames: Vec<Vec<u8>>,
    wires: Vec<Vec<u8>>,
}

struct Host {
    device: Device,
    peer: PeerId,
    workers: Vec<Worker>,
}

/// On cache lines of its own, as on the stack of its thread.
#[repr(align(128))]
struct Worker {
    forwarder: Forwarder<Box<[u8]>>,
    slots: Free,
}

/// Send slots of one worker, used again and again.
struct Free(Vec<Box<[u8]>>);

impl Slots for Free {
    type Slot = Box<[u8]>;

    fn acquire(&mut self) -> Option<Box<[u8]>> {
        Some(self.0.pop().unwrap_or_else(|| vec![0; SEND_LEN_MAX].into()))
    }
}

impl Pair {
    /// Two hosts of `workers` workers each with a session between them.
    pub(crate) fn connect(suite: SuiteChoice, workers: u8) -> Pair {
        let keys = [1, 2].map(|byte| StaticSecret::from([byte; 32]));
        let hosts = [0, 1].map(|host| Host::new(host, &keys, suite, workers));
        let lanes = usize::from(workers);
        let mut pair = Pair {
            hosts,
            frames: (0..lanes).map(frame).collect(),
            wires: vec![Vec::with_capacity(SEND_LEN_MAX); lanes],
        };
        pair.hosts[0].device.want_session(pair.hosts[0].peer, NOW);
        pair.shake_hands();
        // The responder seals once the initiator has shown that it has the keys.
        pair.round();
        pair.shake_hands();
        pair
    }

    fn shake_hands(&mut self) {
        loop {
            let sent: Vec<(usize, Vec<u8>)> = (0..2)
                .flat_map(|from| {
                    self.hosts[from]
                        .act()
                        .into_iter()
                        .map(move |message| (1 - from, message))
                })
                .collect();
            if sent.is_empty() {
                return;
            }
            for (to, message) in sent {
                let accepted = self.hosts[to].device.handle_datagram(NOW, endpoint(1 - to), &message);
                assert!(accepted.is_ok(), "a handshake between honest hosts: {accepted:?}");
            }
        }
    }

    /// A super-packet on every lane.
    pub(crate) fn round(&mut self) {
        (0..self.frames.len()).for_each(|lane| {
            self.carry(lane);
        });
    }

    /// The same, traced; how many packets that were.
    pub(crate) fn counted_round(&mut self) -> usize {
        (0..self.frames.len()).map(|lane| self.carry(lane)).sum()
    }

    fn carry(&mut self, lane: usize) -> usize {
        let [sender, receiver] = &mut self.hosts;
        let from = &mut sender.workers[lane];
        turn_of(0, lane);
        from.forwarder.outbound(NOW.mono, &self.frames[lane], &mut from.slots);
        from.forwarder.finish_pass();
        turn_of_nobody();
        let mut packets = 0;
        for batch in from.forwarder.batches.drain() {
            let wire = &mut self.wires[lane];
            wire.clear();
            wire.extend_from_slice(&batch.slot[..batch.len]);
            from.slots.0.push(batch.slot);
            packets += batch.count as usize;
            // Byte 4 is the lane, by which the kernel steers; in the WireGuard suite one worker opens all.
            let to = usize::from(wire[4]) % receiver.workers.len();
            let worker = &mut receiver.workers[to];
            let received = Received {
                from: endpoint(0),
                segment: batch.segment,
                tos: 0,
                received_unix_ns: 0,
            };
            turn_of(1, to);
            worker
                .forwarder
                .inbound(NOW.mono, &received, 0, wire, &mut worker.slots);
            worker.forwarder.finish_pass();
            while let Some(group) = worker.forwarder.groups.pop() {
                worker.forwarder.recycle(group);
            }
            turn_of_nobody();
            receiver.report(to);
        }
        packets
    }
}

impl Host {
    fn new(host: usize, keys: &[StaticSecret; 2], suite: SuiteChoice, workers: u8) -> Host {
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
        let peer = device.add_peer(NOW.mono, peer).expect("the only peer");
        let mut routes = Routes::new();
        routes.insert("10.0.0.0/8".parse().expect("a prefix"), peer);
        let table = Arc::new(routes.table());
        let shared = Arc::new(NewPeer::new(Some(endpoint(1 - host)), workers.into()));
        let worker = |number| {
            let offloads = Offloads { tcp: true, udp: true };
            let counters = Arc::new(WorkerCounters::default());
            let coalescer = Coalescer::new(offloads);
            let mut forwarder = Forwarder::new(number, workers, coalescer, Batches::new(true), 1420, counters);
            forwarder.set_routes(table.clone());
            forwarder.add_peer(peer, shared.clone());
            Worker {
                forwarder,
                slots: Free(Vec::new()),
            }
        };
        Host {
            device,
            peer,
            workers: (0..workers).map(worker).collect(),
        }
    }

    /// Does what the protocol wants done; the messages that it wants sent.
    fn act(&mut self) -> Vec<Vec<u8>> {
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
                    let mut open: Vec<Vec<_>> = (0..count).map(|_| Vec::new()).collect();
                    for half in opens {
                        open[half.local_index() as usize % 256 % count].push(half);
                    }
                    let seals = match suite {
                        Suite::Native => seals,
                        Suite::WireGuard => vec![seals[0].clone(); count],
                    };
                    for ((worker, seal), open) in self.workers.iter_mut().zip(seals).zip(open) {
                        worker.forwarder.open_with(peer, open);
                        worker
                            .forwarder
                            .seal_with(NOW.mono, peer, Some(seal), sending, &mut worker.slots);
                    }
                }
                Action::Promote { peer, session } => {
                    for worker in &mut self.workers {
                        worker.forwarder.promote(NOW.mono, peer, session, &mut worker.slots);
                    }
                }
                _ => {}
            }
        }
        messages
    }

    /// Tells the protocol what a worker reports.
    fn report(&mut self, worker: usize) {
        for report in self.workers[worker].forwarder.reports.drain(..) {
            match report {
                Report::Confirmed(peer, session) => self.device.confirmed(peer, session, NOW),
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
fn frame(flow: usize) -> Vec<u8> {
    let len = HEADERS_LEN + SEGMENTS * SEGMENT;
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
