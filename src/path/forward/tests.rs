//! Both journeys without a kernel: two hosts of several workers each, joined by a wire that the tests may bend.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use proptest::prelude::*;
use x25519_dalek::{PublicKey, StaticSecret};

use super::Forwarder;
use crate::crypto::Choice;
use crate::path::coalesce::{Coalescer, Group, Offloads, Part};
use crate::path::drops::Drop;
use crate::path::gso::{Batch, Batches, SEND_LEN_MAX, Slots};
use crate::path::peers::NewPeer;
use crate::path::report::{Handshake, Received, Report};
use crate::path::route::Routes;
use crate::path::sample::{Sample, Written};
use crate::path::segment::{Checksums, Segments};
use crate::proto::{Action, Device, DeviceConfig, Endpoint, Now, PeerConfig, PeerId, Suite, SuiteChoice, Time};
use crate::stats::counters::{CounterSnapshot, WorkerCounters};
use crate::wire::message::{self, DATA_OVERHEAD, FLAG_LANE_PORT, NATIVE_DATA};

/// Slots of plain memory, as many as are left.
struct Memory(usize);

impl Slots for Memory {
    type Slot = Vec<u8>;
    fn acquire(&mut self) -> Option<Vec<u8>> {
        self.0 = self.0.checked_sub(1)?;
        // As an earlier batch leaves it.
        Some(vec![0xaa; SEND_LEN_MAX])
    }
}

/// A datagram on the wire, with the worker's socket that will receive it.
type Datagram = (usize, Vec<u8>);

struct Host {
    device: Device,
    workers: Vec<Forwarder<Vec<u8>>>,
    counters: Vec<Arc<WorkerCounters>>,
    shared: Arc<NewPeer>,
    memory: Memory,
    peer: PeerId,
    address: SocketAddr,
    /// What came out of each worker for the TUN: IP packets, super-packets cut again.
    tun: Vec<Vec<u8>>,
    /// How many TUN writes those were.
    writes: usize,
}

struct Pair {
    hosts: [Host; 2],
    now: Now,
}

impl Pair {
    /// Two hosts that know each other; host `h` has the inner addresses 10.9.0.h and those that [`Sample`] makes.
    fn new(suites: [SuiteChoice; 2], workers: [usize; 2]) -> Pair {
        let keys = [1, 2].map(|byte| StaticSecret::from([byte; 32]));
        let publics = [
            PublicKey::from(&keys[0]).to_bytes(),
            PublicKey::from(&keys[1]).to_bytes(),
        ];
        let now = Now {
            mono: Time::from_nanos(1_000_000_000),
            unix: Duration::from_secs(1_700_000_000),
        };
        let host = |at: usize| {
            let mut seed = at as u64 + 1;
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
                private_key: keys[at].clone(),
                lanes: workers[at] as u8,
                crypto: Choice::Auto,
            };
            let mut device = Device::new(config, random);
            let address = |host: usize| SocketAddr::from(([192, 0, 2, host as u8 + 1], 51820));
            let peer = device
                .add_peer(
                    now.mono,
                    PeerConfig {
                        public_key: publics[1 - at],
                        preshared_key: None,
                        endpoint: Some(address(1 - at)),
                        persistent_keepalive: None,
                        suite: suites[at],
                    },
                )
                .expect("the only peer");
            let shared = Arc::new(NewPeer::new(
                Some(Endpoint {
                    remote: address(1 - at),
                    local: None,
                }),
                workers[at],
            ));
            let mut routes = Routes::new();
            for prefix in [
                "10.0.0.0/8",
                "2001:db8::/32",
                "fd00::/8",
                "192.168.0.0/16",
                "0.0.0.0/0",
                "::/0",
            ] {
                routes.insert(prefix.parse::<IpNet>().expect("a prefix"), peer);
            }
            let table = Arc::new(routes.table());
            let counters: Vec<_> = (0..workers[at]).map(|_| Arc::new(WorkerCounters::default())).collect();
            let forwarders = counters.iter().enumerate().map(|(number, counters)| {
                let mut forwarder = Forwarder::new(
                    number as u8,
                    workers[at] as u8,
                    Coalescer::new(Offloads { tcp: true, udp: true }),
                    Batches::new(true),
                    1420,
                    counters.clone(),
                );
                forwarder.set_routes(table.clone());
                forwarder.add_peer(peer, shared.clone());
                forwarder
            });
            Host {
                device,
                workers: forwarders.collect(),
                counters,
                shared,
                memory: Memory(usize::MAX),
                peer,
                address: address(at),
                tun: Vec::new(),
                writes: 0,
            }
        };
        Pair {
            hosts: [host(0), host(1)],
            now,
        }
    }

    /// Gives host `from`'s worker a frame from its TUN, and carries everything until the wire is silent. `bend` may
    /// change what is on the wire.
    fn send(&mut self, from: usize, worker: usize, frame: &[u8], bend: &mut dyn FnMut(&mut Vec<Datagram>)) {
        let host = &mut self.hosts[from];
        host.workers[worker].outbound(self.now.mono, frame, &mut host.memory);
        self.settle(bend);
    }

    fn settle(&mut self, bend: &mut dyn FnMut(&mut Vec<Datagram>)) {
        loop {
            let mut quiet = true;
            for from in [0, 1] {
                let mut wire = self.hosts[from].drain(self.now);
                bend(&mut wire);
                for (socket, datagram) in wire {
                    quiet = false;
                    let mut source = self.hosts[from].address;
                    if is_from_lane_port(&datagram) {
                        source.set_port(40_000);
                    }
                    self.hosts[1 - from].receive(self.now, source, socket, datagram);
                }
            }
            if quiet && self.hosts.iter_mut().all(|host| host.is_idle()) {
                return;
            }
        }
    }

    fn advance(&mut self, time: Duration) {
        self.now = Now {
            mono: self.now.mono + time,
            unix: self.now.unix + time,
        };
        for host in &mut self.hosts {
            if host.device.poll_timeout().is_some_and(|due| due <= self.now.mono) {
                host.device.handle_timeout(self.now);
            }
        }
        self.settle(&mut |_| {});
    }

    fn drops(&self, host: usize) -> CounterSnapshot {
        self.hosts[host]
            .counters
            .iter()
            .map(|counters| counters.snapshot())
            .sum()
    }
}

impl Host {
    /// What the host puts on the wire now.
    fn drain(&mut self, now: Now) -> Vec<Datagram> {
        let mut wire = Vec::new();
        self.reports(now);
        while let Some(action) = self.device.poll_action() {
            self.act(now, action, &mut wire);
        }
        for worker in 0..self.workers.len() {
            self.workers[worker].finish_pass();
            let batches: Vec<Batch<Vec<u8>>> = self.workers[worker].batches.drain().collect();
            for batch in batches {
                let datagrams = batch.slot[..batch.len].chunks(batch.segment);
                wire.extend(datagrams.map(|datagram| (usize::from(datagram[4]), datagram.to_vec())));
            }
        }
        wire
    }

    fn reports(&mut self, now: Now) {
        for worker in 0..self.workers.len() {
            for report in std::mem::take(&mut self.workers[worker].reports) {
                match report {
                    Report::Handshake(Handshake { from, datagram }) => {
                        // A refused handshake shows in what does not happen.
                        let _ = self.device.handle_datagram(now, from, &datagram);
                    }
                    Report::WantSession(peer) => self.device.want_session(peer, now),
                    Report::Confirmed(peer, session) => self.device.confirmed(peer, session, now),
                    Report::Roamed(peer, endpoint) => self.device.roamed(peer, endpoint),
                    Report::PathTooSmall(_) | Report::Rtt(..) | Report::Goodbye(_) => {}
                }
            }
        }
    }

    fn act(&mut self, now: Now, action: Action, wire: &mut Vec<Datagram>) {
        let count = self.workers.len();
        let each = self.workers.iter_mut();
        match action {
            Action::Transmit { datagram, .. } => wire.push((0, datagram)),
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
                    open[usize::from(message::owner(half.local_index(), count as u8))].push(half);
                }
                let seals: Vec<_> = match suite {
                    Suite::Native => seals,
                    Suite::WireGuard => vec![seals[0].clone(); count],
                };
                for ((worker, seal), open) in each.zip(seals).zip(open) {
                    worker.open_with(peer, open);
                    worker.seal_with(now.mono, peer, Some(seal), sending, &mut self.memory);
                }
            }
            Action::Promote { peer, session } => {
                each.for_each(|worker| worker.promote(now.mono, peer, session, &mut self.memory));
            }
            Action::Retire { peer, session } => each.for_each(|worker| worker.retire(peer, session)),
            Action::SendKeepalive { peer } => self.workers[0].send_keepalive(now.mono, peer, &mut self.memory),
            Action::Endpoint { peer, endpoint } => each.for_each(|worker| worker.set_endpoint(peer, endpoint)),
            Action::Unanswered { .. } => {}
            Action::HandshakeGivenUp { peer } => each.for_each(|worker| worker.give_up(peer)),
            Action::HandshakeDone { .. } => {}
        }
    }

    fn receive(&mut self, now: Now, from: SocketAddr, socket: usize, mut datagram: Vec<u8>) {
        let worker = socket % self.workers.len();
        let segment = datagram.len();
        self.receive_run(now, from, worker, &mut datagram, segment);
    }

    /// One receive buffer, and what it makes the worker write to the TUN.
    fn receive_run(&mut self, now: Now, from: SocketAddr, worker: usize, buffer: &mut [u8], segment: usize) {
        let received = Received {
            from: Endpoint {
                remote: from,
                local: None,
            },
            segment,
            tos: 0,
            received_unix_ns: 0,
        };
        self.workers[worker].inbound(now.mono, &received, 0, buffer, &mut self.memory);
        self.finish(worker, buffer);
        for mut handover in std::mem::take(&mut self.workers[worker].handovers) {
            let owner = usize::from(handover.owner);
            self.workers[owner].handed_over(now.mono, &mut handover, &mut self.memory);
            self.finish(owner, &[]);
        }
    }

    fn finish(&mut self, worker: usize, buffer: &[u8]) {
        self.workers[worker].finish_pass();
        for group in std::mem::take(&mut self.workers[worker].groups) {
            self.writes += 1;
            self.tun.extend(cut(&frame_of(&group, buffer)));
            self.workers[worker].recycle(group);
        }
    }

    fn is_idle(&mut self) -> bool {
        self.workers
            .iter()
            .all(|worker| worker.reports.is_empty() && worker.handovers.is_empty())
    }
}

/// The bytes that a group writes to the TUN.
fn frame_of(group: &Group, buffer: &[u8]) -> Vec<u8> {
    let mut frame = group.head().to_vec();
    for part in group.parts() {
        let from = if part.buffer == Part::OWN {
            &group.own[..]
        } else {
            buffer
        };
        frame.extend(&from[part.start as usize..][..part.len as usize]);
    }
    frame
}

/// The packets that the kernel would make of a frame, checksums finished.
fn cut(frame: &[u8]) -> Vec<Vec<u8>> {
    let mut segments = Segments::parse(frame, Checksums::Complete).expect("a frame that the kernel takes");
    let mut packets = Vec::new();
    while let Some(len) = segments.next_len() {
        let mut packet = vec![0; len];
        segments.write_next(&mut packet);
        packets.push(packet);
    }
    packets
}

const SUITES: [SuiteChoice; 2] = [SuiteChoice::Native, SuiteChoice::WireGuard];

#[test]
fn the_first_packet_waits_for_the_handshake_and_arrives() {
    for suite in SUITES {
        for workers in [[1, 1], [2, 2], [3, 1], [1, 4]] {
            let mut pair = Pair::new([suite; 2], workers);
            let sample = Sample::tcp(false, 1, vec![7; 100]);
            for worker in 0..workers[0] {
                pair.send(0, worker, &sample.frame(0).tap(plain), &mut |_| {});
            }
            assert_eq!(
                pair.hosts[1].tun,
                vec![sample.bytes(Written::Complete); workers[0]],
                "{suite:?} {workers:?}"
            );
            for worker in 0..workers[1] {
                pair.send(1, worker, &sample.frame(0).tap(plain), &mut |_| {});
            }
            assert_eq!(
                pair.hosts[0].tun,
                vec![sample.bytes(Written::Complete); workers[1]],
                "{suite:?} {workers:?}"
            );
        }
    }
}

/// Makes a frame of one that asks for no segmentation.
fn plain(frame: &mut [u8]) {
    frame[1] = 0;
}

trait Tap {
    fn tap(self, change: impl FnOnce(&mut [u8])) -> Self;
}

impl Tap for Vec<u8> {
    fn tap(mut self, change: impl FnOnce(&mut [u8])) -> Self {
        change(&mut self);
        self
    }
}

/// Whether a datagram left from its lane's own port.
fn is_from_lane_port(datagram: &[u8]) -> bool {
    datagram[0] == NATIVE_DATA && datagram[1] & FLAG_LANE_PORT != 0
}

/// A pair whose session is up, and nothing on its TUNs.
fn connected(suite: SuiteChoice, workers: [usize; 2]) -> Pair {
    let mut pair = Pair::new([suite; 2], workers);
    let sample = Sample::tcp(false, 1, vec![7; 100]);
    pair.send(0, 0, &sample.frame(0).tap(plain), &mut |_| {});
    pair.send(1, 0, &sample.frame(0).tap(plain), &mut |_| {});
    for host in &mut pair.hosts {
        assert_eq!(host.tun.len(), 1);
        host.tun.clear();
        host.writes = 0;
    }
    pair
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn super_packets_arrive_byte_for_byte(
        wireguard: bool, v6: bool, tcp: bool, len in 1usize..60_000, step in 500u16..1380, workers in 1usize..4, worker: prop::sample::Index,
    ) {
        let mut pair = connected(SUITES[usize::from(wireguard)], [workers; 2]);
        let payload: Vec<u8> = (0..len).map(|at| (at * 31 + at / 256) as u8).collect();
        let sample = if tcp { Sample::tcp(v6, 99, payload) } else { Sample::udp(v6, payload) };
        pair.send(0, worker.index(workers), &sample.frame(step), &mut |_| {});
        let expected: Vec<_> = sample.cut(step.into()).iter().map(|packet| packet.bytes(Written::Complete)).collect();
        prop_assert_eq!(&pair.hosts[1].tun, &expected);
        prop_assert_eq!(pair.drops(0).drops.len() + pair.drops(1).drops.len(), 0);
    }

    #[test]
    fn what_the_wire_does_never_makes_a_wrong_packet(
        wireguard: bool, seed: u64, flips in prop::collection::vec((any::<prop::sample::Index>(), any::<prop::sample::Index>()), 0..8),
    ) {
        let mut pair = connected(SUITES[usize::from(wireguard)], [2, 2]);
        let sample = Sample::tcp(false, 5, (0..20_000).map(|at| at as u8).collect());
        let mut sent = 0;
        let mut bend = |wire: &mut Vec<Datagram>| {
            if wire.len() < 2 {
                return;
            }
            sent += wire.len();
            // Reorder, duplicate and damage.
            let rotation = seed as usize % wire.len();
            wire.rotate_left(rotation);
            let copies: Vec<_> = wire.iter().step_by(3).cloned().collect();
            wire.extend(copies);
            for (datagram, byte) in &flips {
                let index = datagram.index(wire.len());
                let at = byte.index(wire[index].1.len());
                wire[index].1[at] ^= 0x10;
            }
        };
        pair.send(0, 0, &sample.frame(1300), &mut bend);
        let whole: Vec<_> = sample.cut(1300).iter().map(|packet| packet.bytes(Written::Complete)).collect();
        let mut seen = std::collections::HashSet::new();
        for packet in &pair.hosts[1].tun {
            prop_assert!(whole.contains(packet), "a packet that nobody sent");
            prop_assert!(seen.insert(packet.clone()), "a packet that was accepted twice");
        }
        let drops = pair.drops(1);
        let dropped: u64 = drops.drops.values().sum();
        prop_assert_eq!(dropped as usize + seen.len(), sent + sent.div_ceil(3), "every datagram is a packet or a drop: {:?}", drops.drops);
    }
}

#[test]
fn a_received_run_becomes_one_tun_write() {
    for suite in SUITES {
        let mut pair = connected(suite, [1, 1]);
        let sample = Sample::tcp(false, 5, vec![1; 30_000]);
        let now = pair.now;
        let host = &mut pair.hosts[0];
        host.workers[0].outbound(now.mono, &sample.frame(1368), &mut host.memory);
        let batch = host.workers[0].batches.drain().next().expect("one batch");
        let (mut run, segment, from) = (batch.slot[..batch.len].to_vec(), batch.segment, host.address);
        pair.hosts[1].receive_run(now, from, 0, &mut run, segment);
        assert_eq!(pair.hosts[1].writes, 1, "{suite:?}");
        assert_eq!(pair.hosts[1].tun.len(), 22);
    }
}

#[test]
fn a_datagram_at_the_wrong_worker_is_handed_over_and_counted() {
    let mut pair = connected(SuiteChoice::Native, [2, 2]);
    let sample = Sample::udp(false, vec![3; 300]);
    pair.send(0, 1, &sample.frame(0).tap(plain), &mut |wire| {
        for (socket, _) in wire {
            *socket += 1;
        }
    });
    assert_eq!(pair.hosts[1].tun, [sample.bytes(Written::Complete)]);
    assert_eq!(pair.drops(1).mis_steered, 1);
}

#[test]
fn an_inner_source_that_is_not_the_peers_is_dropped() {
    let mut pair = connected(SuiteChoice::WireGuard, [1, 1]);
    for worker in &mut pair.hosts[1].workers {
        worker.set_routes(Arc::new(Routes::new().table()));
    }
    pair.send(0, 0, &Sample::udp(true, vec![3; 300]).frame(0).tap(plain), &mut |_| {});
    assert!(pair.hosts[1].tun.is_empty());
    assert_eq!(pair.drops(1).drops.get(Drop::BadSource.name()), Some(&1));
}

#[test]
fn what_the_path_does_not_carry_whole_leaves_all_the_same_and_its_sender_is_told() {
    for suite in SUITES {
        let mut pair = connected(suite, [1, 1]);
        let peer = pair.hosts[0].peer;
        pair.hosts[0].workers[0].set_path_mtu(peer, 1220);
        let sample = Sample::tcp(false, 5, vec![1; 5000]);
        let now = pair.now;
        let host = &mut pair.hosts[0];
        host.workers[0].outbound(now.mono, &sample.frame(1368), &mut host.memory);
        let errors: Vec<_> = host.workers[0].groups.drain(..).collect();
        let [error] = &errors[..] else { panic!("one ICMP error") };
        let packet = &cut(&frame_of(error, &[]))[0];
        assert_eq!(
            (packet[9], packet[20], packet[21]),
            (1, 3, 4),
            "ICMP, unreachable, fragmentation needed"
        );
        assert_eq!(u16::from_be_bytes([packet[26], packet[27]]), 1220);
        let counts: Vec<_> = host.workers[0].batches.drain().map(|batch| batch.count).collect();
        assert_eq!(counts, [1, 1, 1, 1], "the kernel refuses runs of them");
    }
}

#[test]
fn an_ipv6_sender_is_never_told_of_less_than_1280_bytes() {
    let mut pair = connected(SuiteChoice::Native, [1, 1]);
    let (peer, now) = (pair.hosts[0].peer, pair.now);
    let host = &mut pair.hosts[0];
    host.workers[0].set_path_mtu(peer, 1220);
    for (payload, told) in [(1232, false), (1233, true)] {
        host.workers[0].outbound(
            now.mono,
            &Sample::udp(true, vec![1; payload]).frame(0).tap(plain),
            &mut host.memory,
        );
        let errors: Vec<_> = host.workers[0]
            .groups
            .drain(..)
            .map(|group| cut(&frame_of(&group, &[])))
            .collect();
        assert_eq!(errors.len(), usize::from(told), "{payload}");
        if let Some(error) = errors.first() {
            assert_eq!(
                (error[0][40], &error[0][44..48]),
                (2, &1280u32.to_be_bytes()[..]),
                "packet too big"
            );
        }
    }
}

#[test]
fn without_send_slots_the_rest_of_a_super_packet_is_dropped_and_counted() {
    let mut pair = connected(SuiteChoice::Native, [1, 1]);
    pair.hosts[0].memory = Memory(1);
    let sample = Sample::udp(false, vec![1; 64_000]);
    pair.send(0, 0, &sample.frame(500), &mut |_| {});
    let arrived = pair.hosts[1].tun.len();
    assert!(arrived > 0);
    assert_eq!(
        pair.drops(0).drops.get(Drop::NoSendSlot.name()),
        Some(&(128 - arrived as u64))
    );
}

#[test]
fn wireguard_plaintexts_are_padded_to_16_bytes_but_not_beyond_the_mtu() {
    let mut pair = connected(SuiteChoice::WireGuard, [1, 1]);
    for (payload, expected) in [(1, 32), (4, 32), (5, 48), (1391, 1420), (1392, 1420)] {
        let sample = Sample::udp(false, vec![1; payload]);
        let mut lens = Vec::new();
        pair.send(0, 0, &sample.frame(0).tap(plain), &mut |wire| {
            lens.extend(wire.iter().map(|(_, datagram)| datagram.len() - DATA_OVERHEAD));
        });
        assert_eq!(lens, [expected], "{payload}");
        assert_eq!(pair.hosts[1].tun.pop(), Some(sample.bytes(Written::Complete)));
    }
}

#[test]
fn echoes_tell_the_round_trip_to_native_peers_only() {
    for (suite, expected) in SUITES.into_iter().zip([1, 0]) {
        let mut pair = connected(suite, [1, 1]);
        let peer = pair.hosts[0].peer;
        let sent = pair.now;
        let host = &mut pair.hosts[0];
        host.workers[0].send_echo(sent.mono, peer, &mut host.memory);
        let wire = host.drain(sent);
        assert_eq!(wire.len(), expected, "{suite:?}");
        let (a, b) = (pair.hosts[0].address, pair.hosts[1].address);
        for (socket, datagram) in wire {
            pair.hosts[1].receive(sent, a, socket, datagram);
        }
        let later = Now {
            mono: sent.mono + Duration::from_millis(3),
            ..sent
        };
        for (socket, datagram) in pair.hosts[1].drain(later) {
            pair.hosts[0].receive(later, b, socket, datagram);
        }
        let rtts: Vec<_> = pair.hosts[0].workers[0]
            .reports
            .iter()
            .filter_map(|report| match report {
                Report::Rtt(_, rtt) => Some(*rtt),
                _ => None,
            })
            .collect();
        assert_eq!(rtts, vec![Duration::from_millis(3); expected]);
        assert!(pair.hosts.iter().all(|host| host.tun.is_empty()));
    }
}

#[test]
fn a_peer_that_moves_is_answered_where_it_is() {
    let mut pair = connected(SuiteChoice::Native, [2, 2]);
    let moved: SocketAddr = "198.51.100.7:999".parse().expect("an address");
    pair.hosts[0].address = moved;
    pair.send(0, 1, &Sample::udp(false, vec![1; 10]).frame(0).tap(plain), &mut |_| {});
    let now = pair.now;
    let host = &mut pair.hosts[1];
    for worker in 0..2 {
        host.workers[worker].outbound(
            now.mono,
            &Sample::udp(false, vec![1; 10]).frame(0).tap(plain),
            &mut host.memory,
        );
        let batch = host.workers[worker].batches.drain().next().expect("one batch");
        assert_eq!(batch.to.remote, moved, "worker {worker}");
    }
}

#[test]
fn traffic_outlives_many_rekeys() {
    for suite in SUITES {
        let mut pair = connected(suite, [2, 1]);
        for second in 0..600 {
            pair.advance(Duration::from_secs(1));
            for host in [0, 1] {
                let sample = Sample::udp(false, vec![second as u8; 50]);
                pair.send(host, 0, &sample.frame(0).tap(plain), &mut |_| {});
                assert_eq!(
                    pair.hosts[1 - host].tun.pop(),
                    Some(sample.bytes(Written::Complete)),
                    "{suite:?} {second}"
                );
            }
        }
        assert!(pair.hosts[0].shared.cells.snapshot().rx_packets >= 600);
        assert_eq!(pair.drops(0).drops.len() + pair.drops(1).drops.len(), 0);
    }
}

#[test]
fn congestion_marks_do_not_reorder_a_flow() {
    let mut pair = connected(SuiteChoice::Native, [1, 1]);
    let (now, mut expected) = (pair.now, Vec::new());
    for (number, ecn) in [2, 3, 2, 0, 2].into_iter().enumerate() {
        let sample = Sample {
            traffic_class: ecn,
            ..Sample::tcp(false, number as u32 * 100, vec![number as u8; 100])
        };
        let host = &mut pair.hosts[0];
        host.workers[0].outbound(now.mono, &sample.frame(0).tap(plain), &mut host.memory);
        expected.push(sample.payload);
    }
    pair.settle(&mut |_| {});
    let arrived: Vec<_> = pair.hosts[1]
        .tun
        .iter()
        .map(|packet| packet[packet.len() - 100..].to_vec())
        .collect();
    assert_eq!(arrived, expected);
}

#[test]
fn a_packet_that_no_datagram_holds_is_dropped() {
    for suite in SUITES {
        let mut pair = connected(suite, [1, 1]);
        pair.hosts[0].workers[0].set_tun_mtu(65_535);
        for (payload, arrives) in [(65_507 - 32 - 28, true), (65_507 - 32 - 28 + 1, false), (65_507, false)] {
            let sample = Sample::udp(false, vec![9; payload]);
            pair.send(0, 0, &sample.frame(0).tap(plain), &mut |_| {});
            assert_eq!(pair.hosts[1].tun.pop().is_some(), arrives, "{suite:?} {payload}");
        }
        assert_eq!(pair.drops(0).drops.get(Drop::TooBig.name()), Some(&2));
    }
}

#[test]
fn padding_stays_within_what_the_path_carries() {
    let mut pair = connected(SuiteChoice::WireGuard, [1, 1]);
    let (peer, now) = (pair.hosts[0].peer, pair.now);
    let host = &mut pair.hosts[0];
    host.workers[0].set_path_mtu(peer, 1220);
    let sample = Sample::udp(false, vec![1; 1220 - 28]);
    host.workers[0].outbound(now.mono, &sample.frame(0).tap(plain), &mut host.memory);
    let batch = host.workers[0].batches.drain().next().expect("one batch");
    assert_eq!(batch.len, 1220 + DATA_OVERHEAD);
}

#[test]
fn what_a_peer_repeats_is_reported_once() {
    let mut pair = connected(SuiteChoice::Native, [1, 1]);
    let (peer, now, from) = (pair.hosts[1].peer, pair.now, pair.hosts[1].address);
    for _ in 0..100 {
        let host = &mut pair.hosts[1];
        host.workers[0].send_goodbye(now.mono, peer, &mut host.memory);
        for (socket, datagram) in host.drain(now) {
            pair.hosts[0].receive(now, from, socket, datagram);
        }
    }
    let goodbyes = pair.hosts[0].workers[0]
        .reports
        .iter()
        .filter(|report| matches!(report, Report::Goodbye(_)));
    assert_eq!(goodbyes.count(), 1);
}

#[test]
fn keepalives_of_an_old_session_ask_for_a_new_one() {
    let mut pair = connected(SuiteChoice::WireGuard, [1, 1]);
    let peer = pair.hosts[0].peer;
    let later = Time::from_nanos(pair.now.mono.as_nanos() + 125_000_000_000);
    let host = &mut pair.hosts[0];
    host.workers[0].send_keepalive(later, peer, &mut host.memory);
    assert!(
        host.workers[0]
            .reports
            .iter()
            .any(|report| matches!(report, Report::WantSession(_)))
    );
}

/// A frame from the TUN: an IPv4 packet of `protocol` from 10.9.0.1 to `to`, without checksums.
fn v4_frame(to: SocketAddr, protocol: u8, payload: &[u8]) -> Vec<u8> {
    let std::net::IpAddr::V4(ip) = to.ip() else {
        panic!("IPv4")
    };
    let [len, udp_len] = [28 + payload.len() as u16, 8 + payload.len() as u16].map(u16::to_be_bytes);
    let [port, own_port] = [to.port(), 51820].map(u16::to_be_bytes);
    let header = [0x45, 0, len[0], len[1], 0, 0, 0, 0, 64, protocol, 0, 0, 10, 9, 0, 1];
    let udp = [own_port[0], own_port[1], port[0], port[1], udp_len[0], udp_len[1], 0, 0];
    [&[0; 10], &header[..], &ip.octets(), &udp, payload].concat()
}

#[test]
fn a_datagram_that_is_routed_back_into_the_tunnel_is_dropped_and_what_only_looks_like_one_passes() {
    for suite in SUITES {
        let mut pair = connected(suite, [2, 2]);
        let (now, to) = (pair.now, pair.hosts[1].address);
        let host = &mut pair.hosts[0];
        let sample = Sample::udp(false, vec![1; 100]);
        host.workers[1].outbound(now.mono, &sample.frame(0).tap(plain), &mut host.memory);
        let (_, sealed) = host.drain(now).pop().expect("one datagram");
        let elsewhere = SocketAddr::new(to.ip(), 9);
        let strangers = sealed.clone().tap(|datagram| datagram[6] ^= 1);
        let cases = [
            (v4_frame(to, 17, &sealed), true),
            (v4_frame(elsewhere, 17, &sealed), false),
            (v4_frame(to, 6, &sealed), false),
            (v4_frame(to, 17, &strangers), false),
            (v4_frame(to, 17, &sealed[..8]), false),
        ];
        for (at, (frame, loops)) in cases.iter().enumerate() {
            // Whichever worker's queue it comes from.
            host.workers[0].outbound(now.mono, frame, &mut host.memory);
            assert_eq!(host.drain(now).is_empty(), *loops, "{suite:?}: case {at}");
        }
        assert_eq!(pair.drops(0).drops.get(Drop::RoutingLoop.name()), Some(&1));
    }
}

#[test]
fn what_comes_late_does_not_move_a_peer_back() {
    let mut pair = connected(SuiteChoice::Native, [2, 2]);
    let (now, home) = (pair.now, pair.hosts[0].address);
    let away: SocketAddr = "198.51.100.7:999".parse().expect("an address");
    let frame = Sample::udp(false, vec![1; 10]).frame(0).tap(plain);
    let sealed = |pair: &mut Pair| {
        let host = &mut pair.hosts[0];
        host.workers[1].outbound(now.mono, &frame, &mut host.memory);
        host.drain(now).pop().expect("one datagram")
    };
    let [late, first] = [sealed(&mut pair), sealed(&mut pair)];
    let moves = |pair: &mut Pair| {
        let reports = pair.hosts[1].workers[1].reports.drain(..);
        let moved = reports.filter_map(|report| match report {
            Report::Roamed(_, endpoint) => Some(endpoint.remote),
            _ => None,
        });
        moved.collect::<Vec<_>>()
    };
    pair.hosts[1].receive(now, away, first.0, first.1);
    assert_eq!(moves(&mut pair), [away]);
    pair.hosts[1].receive(now, home, late.0, late.1);
    assert_eq!(moves(&mut pair), []);
    assert_eq!(pair.hosts[1].tun.len(), 2, "it is a packet all the same");
    // In a run it is the newest of them that tells.
    let mut run: Vec<u8> = Vec::new();
    let datagrams: Vec<_> = (0..8).map(|_| sealed(&mut pair).1).collect();
    datagrams.iter().for_each(|datagram| run.extend(datagram));
    let segment = datagrams[0].len();
    pair.hosts[1].receive_run(now, home, 1, &mut run, segment);
    assert_eq!(moves(&mut pair), [home]);
}

#[test]
fn an_address_that_was_refused_is_not_answered_from() {
    let mut pair = connected(SuiteChoice::Native, [1, 1]);
    let (now, peer, remote) = (pair.now, pair.hosts[1].peer, pair.hosts[0].address);
    let local = |host: u8| crate::proto::Local {
        address: [192, 0, 2, host].into(),
        interface: host.into(),
    };
    let frame = Sample::udp(false, vec![1; 10]).frame(0).tap(plain);
    let answers_from = |pair: &mut Pair, arrived_at| {
        let host = &mut pair.hosts[0];
        host.workers[0].outbound(now.mono, &frame, &mut host.memory);
        let (_, mut datagram) = host.drain(now).pop().expect("one datagram");
        let received = Received {
            from: Endpoint {
                remote,
                local: Some(arrived_at),
            },
            segment: datagram.len(),
            tos: 0,
            received_unix_ns: 0,
        };
        let host = &mut pair.hosts[1];
        host.workers[0].inbound(now.mono, &received, 0, &mut datagram, &mut host.memory);
        host.workers[0].outbound(now.mono, &frame, &mut host.memory);
        let batch = host.workers[0].batches.drain().next().expect("an answer");
        batch.to.local
    };
    assert_eq!(answers_from(&mut pair, local(1)), Some(local(1)));
    pair.hosts[1].workers[0].refuse_source(peer, Some(local(1)));
    assert_eq!(answers_from(&mut pair, local(1)), None);
    assert_eq!(answers_from(&mut pair, local(2)), Some(local(2)));
    assert_eq!(answers_from(&mut pair, local(1)), Some(local(2)));
    pair.hosts[1].workers[0].refuse_source(peer, None);
    assert_eq!(answers_from(&mut pair, local(1)), Some(local(1)));
}

#[test]
fn packets_for_many_silent_peers_take_a_bounded_room_and_are_counted() {
    let mut pair = Pair::new([SuiteChoice::Native; 2], [1, 1]);
    let (now, host) = (pair.now, &mut pair.hosts[0]);
    let frame = Sample::udp(false, vec![1; 60_000]).frame(0).tap(plain);
    let mut routes = Routes::new();
    for number in 0..400u32 {
        let id = PeerId(10 + number);
        host.workers[0].add_peer(id, host.shared.clone());
        // Each in turn has all addresses.
        routes.insert("0.0.0.0/0".parse().expect("a prefix"), id);
        host.workers[0].set_routes(Arc::new(routes.table()));
        host.workers[0].outbound(now.mono, &frame, &mut host.memory);
    }
    let dropped = |host: &Host| host.counters[0].dropped_so_far(Drop::PendingFull);
    let fit = (16 << 20) / frame.len() as u64;
    assert_eq!(dropped(host), 400 - fit);
    // Their room is free again when they are gone, or given up.
    host.workers[0].remove_peer(PeerId(10));
    host.workers[0].outbound(now.mono, &frame, &mut host.memory);
    host.workers[0].give_up(PeerId(11));
    host.workers[0].outbound(now.mono, &frame, &mut host.memory);
    assert_eq!(dropped(host), 400 - fit);
    host.workers[0].outbound(now.mono, &frame, &mut host.memory);
    assert_eq!(dropped(host), 400 - fit + 1);
}

mod lane_ports {
    use super::*;

    /// Packets that were sent so far, and how many of them by the lanes' own ports.
    fn sent(pair: &Pair) -> [u64; 2] {
        let counters = pair.drops(0);
        [counters.packets_out, counters.lane_port_datagrams]
    }

    /// A pair whose first host sends from its lanes' own ports.
    fn pair(suite: SuiteChoice) -> Pair {
        let mut pair = connected(suite, [2, 3]);
        pair.hosts[0].workers.iter_mut().for_each(Forwarder::use_lane_ports);
        pair
    }

    #[test]
    fn data_leaves_from_the_lanes_port_once_an_echo_came_back_and_nobody_seems_to_move() {
        let mut pair = pair(SuiteChoice::Native);
        let frame = Sample::tcp(false, 1, vec![7; 5_000]).frame(1_000);
        let [before, _] = sent(&pair);
        pair.send(0, 1, &frame, &mut |_| {});
        assert_eq!(sent(&pair), [before + 5, 0], "nobody knows yet whether it gets through");
        let mut on_wire = Vec::new();
        pair.send(0, 1, &frame, &mut |wire| {
            on_wire.extend(wire.iter().map(|(_, bytes)| is_from_lane_port(bytes)))
        });
        assert_eq!(sent(&pair), [before + 10, 5]);
        assert_eq!(on_wire, [true; 5]);
        assert_eq!(pair.hosts[1].tun.len(), 10);
        for worker in 0..3 {
            pair.send(1, worker, &frame, &mut |wire| {
                assert!(!wire.iter().any(|(_, bytes)| is_from_lane_port(bytes)))
            });
        }
        assert_eq!(pair.hosts[0].tun.len(), 15, "answers go to the shared port");
        let (peer, expected) = (pair.hosts[1].peer, pair.hosts[0].address);
        let endpoint = pair.hosts[1].device.peer(peer).expect("the only peer").endpoint;
        assert_eq!(endpoint.map(|endpoint| endpoint.remote), Some(expected));
    }

    #[test]
    fn a_firewall_that_knows_the_shared_port_only_stops_no_data() {
        let frame = Sample::tcp(false, 1, vec![7; 5_000]).frame(1_000);
        let mut firewall = |wire: &mut Vec<Datagram>| wire.retain(|(_, bytes)| !is_from_lane_port(bytes));
        let mut pair = pair(SuiteChoice::Native);
        for packets in 1..=8 {
            pair.send(0, 0, &frame, &mut firewall);
            assert_eq!(pair.hosts[1].tun.len(), packets * 5);
            pair.advance(Duration::from_millis(700));
        }
        // One that begins to drop costs what is sent until echoes are missed.
        pair.send(0, 0, &frame, &mut |_| {});
        pair.send(0, 0, &frame, &mut firewall);
        assert_eq!(pair.hosts[1].tun.len(), 45);
        for _ in 0..5 {
            pair.advance(Duration::from_millis(700));
            pair.send(0, 0, &frame, &mut firewall);
        }
        let lost = 10 * 5 + 25 - pair.hosts[1].tun.len();
        assert!((5..=25).contains(&lost), "{lost}");
        pair.send(0, 0, &frame, &mut firewall);
        assert_eq!(
            pair.hosts[1].tun.len(),
            10 * 5 + 25 - lost + 5,
            "by the shared port again"
        );
    }

    #[test]
    fn where_we_moved_is_learned_although_data_leaves_from_lane_ports() {
        let mut pair = pair(SuiteChoice::Native);
        let frame = Sample::tcp(false, 1, vec![7; 500]).frame(1_000).tap(plain);
        for _ in 0..2 {
            pair.send(0, 0, &frame, &mut |_| {});
        }
        pair.hosts[0].address.set_ip([198, 51, 100, 9].into());
        pair.advance(Duration::from_secs(1));
        pair.send(0, 0, &frame, &mut |_| {});
        let host = &pair.hosts[1];
        let endpoint = host.device.peer(host.peer).expect("the only peer").endpoint;
        assert_eq!(endpoint.map(|endpoint| endpoint.remote), Some(pair.hosts[0].address));
    }

    #[test]
    fn wireguard_sessions_have_no_lanes_and_use_the_shared_port() {
        let mut pair = pair(SuiteChoice::WireGuard);
        let frame = Sample::tcp(false, 1, vec![7; 5_000]).frame(1_000);
        for worker in [0, 1, 0, 1] {
            pair.send(0, worker, &frame, &mut |_| {});
        }
        assert_eq!(sent(&pair)[1], 0);
        assert_eq!(pair.hosts[1].tun.len(), 20);
    }
}
