//! A hub and its spokes in virtual time, each a [`Core`]; every step checks what must hold always.
//!
//! ```text
//!   hub 192.0.2.1    ┬── Network: loss, delay, duplicates ──┬── spoke 1 192.0.2.2   10.99.0.2
//!       10.99.0.1    │                                      ├── spoke 2 192.0.2.3   10.99.0.3
//!                                                           └── ...
//! ```

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::time::Duration;

use super::network::{Flight, Flights, Network, Rng};
use crate::config::{PrivateKey, Suite};
use crate::path::drops::Drop;
use crate::proto::{Now, PeerId, Time};
use crate::tunnel::core::{Core, Output};
use crate::tunnel::peer::Peer;
use crate::wire::checksum::Sum;
use crate::wire::message::{Body, DataHeader, HandshakeMessage};

const MTU: u16 = 1420;
const PORT: u16 = 51820;
/// Seconds since 1970, at the beginning.
const UNIX: i64 = 1_700_000_000;

/// Sessions of a peer: previous, current, next.
const SESSIONS_MAX: usize = 3;
/// Indices of a peer: its sessions', and those of a handshake in either suite.
const INDICES_MAX: usize = SESSIONS_MAX + 2;
/// Bytes that may wait for one peer's keys (`path::peer`).
const WAITING_MAX: usize = 128 * 1024;

/// What both ends of a hub's connection to a spoke are told.
#[derive(Debug, Clone, Copy)]
pub(super) struct Link {
    /// The suite that the hub may use, and the spoke.
    pub(super) suites: [Suite; 2],
    /// The spoke's persistent keepalive.
    pub(super) keepalive: Option<Duration>,
}

/// The hub (0), or a spoke.
pub(super) struct End {
    pub(super) core: Core,
    /// The hub's spokes, or the hub.
    pub(super) peers: Vec<PeerId>,
    pub(super) address: SocketAddr,
    /// Seconds that the wall clock is wrong.
    pub(super) wall_offset: i64,
    asleep_until: Option<Time>,
    /// How often a timer woke it.
    pub(super) wakes: u64,
    /// Packets and datagrams that came in or went out.
    pub(super) events: u64,
    /// Handshakes that were completed.
    pub(super) connected: u64,
    /// The latest counter that it sent by receiver index, for as long as that means the same keys.
    counters: HashMap<u32, u64>,
}

pub(super) struct World {
    pub(super) seed: u64,
    pub(super) time: Time,
    pub(super) ends: Vec<End>,
    pub(super) network: Network,
    pub(super) rng: Rng,
    links: Vec<Link>,
    flights: Flights,
    /// Numbers of packets that were sent, up to here.
    packets: u64,
    delivered: HashSet<u64>,
    /// The latest initiation to the hub: an attacker repeats it.
    pub(super) initiation: Option<Vec<u8>>,
    /// Cookie replies from the hub to spokes, and initiations from spokes that bear a cookie.
    pub(super) cookies: [u64; 2],
    /// What happens, for whoever reads of a failure.
    pub(super) chapter: String,
}

impl std::ops::Drop for World {
    fn drop(&mut self) {
        if std::thread::panicking() {
            println!(
                "seed {}, {:?}, {}, {:?}",
                self.seed, self.time, self.chapter, self.network
            );
        }
    }
}

fn key(end: usize) -> PrivateKey {
    PrivateKey::generate(|bytes| bytes.fill(end as u8 + 1))
}

pub(super) fn home(end: usize) -> SocketAddr {
    ([192, 0, 2, end as u8 + 1], PORT).into()
}

impl World {
    pub(super) fn new(links: &[Link], seed: u64) -> World {
        let mut world = World {
            seed,
            time: Time::default(),
            ends: Vec::new(),
            network: Network::GOOD,
            rng: Rng(seed),
            links: links.to_vec(),
            flights: Flights::default(),
            packets: 0,
            delivered: HashSet::new(),
            initiation: None,
            cookies: [0; 2],
            chapter: "the beginning".to_owned(),
        };
        for end in 0..=links.len() {
            let (core, peers) = world.process(end);
            world.ends.push(End {
                core,
                peers,
                address: home(end),
                wall_offset: 0,
                asleep_until: None,
                wakes: 0,
                events: 0,
                connected: 0,
                counters: HashMap::new(),
            });
        }
        (0..world.ends.len()).for_each(|end| world.settle(end));
        world
    }

    pub(super) fn spokes(&self) -> std::ops::Range<usize> {
        1..self.ends.len()
    }

    /// A process of an end that starts now.
    fn process(&mut self, end: usize) -> (Core, Vec<PeerId>) {
        let mut rng = Rng(self.rng.next());
        let mut core = Core::new(&key(end), MTU, move |bytes| rng.fill(bytes));
        let now = self.now_with(self.ends.get(end).map_or(0, |end| end.wall_offset));
        let others = if end == 0 { 1..self.links.len() + 1 } else { 0..1 };
        let peers = others.map(|other| {
            let link = self.links[end.max(other) - 1];
            let mut peer = Peer::new(key(other).public_key())
                .allowed_ip(format!("10.99.0.{}/32", other + 1).parse().expect("a network"))
                .suite(link.suites[usize::from(end != 0)]);
            if end != 0 {
                peer = peer.endpoint(home(0).to_string().parse().expect("an address"));
                if let Some(interval) = link.keepalive {
                    peer = peer.persistent_keepalive(interval);
                }
            }
            core.add_peer(now, &peer).expect("all keys differ")
        });
        let peers = peers.collect();
        (core, peers)
    }

    /// Replaces an end by a new process, which has what a daemon keeps over a restart.
    pub(super) fn restart(&mut self, end: usize) {
        let (mut core, peers) = self.process(end);
        let this = &mut self.ends[end];
        check_drops(end, &this.core);
        for (&old, &new) in this.peers.iter().zip(&peers) {
            let kept = this.core.device.timestamps(old).expect("it is a peer");
            core.device.restore_timestamps(new, kept);
        }
        (this.core, this.peers) = (core, peers);
        self.settle(end);
    }

    /// An end hears and does nothing for so long.
    pub(super) fn suspend(&mut self, end: usize, span: Duration) {
        self.ends[end].asleep_until = Some(self.time + span);
    }

    /// Waits until an end that was suspended is awake.
    pub(super) fn wake(&mut self, end: usize) {
        if let Some(until) = self.ends[end].asleep_until {
            self.run(until - self.time);
        }
    }

    /// What must hold for the day as a whole.
    pub(super) fn check_totals(&self) {
        let share = self.delivered.len() as f64 / self.packets as f64;
        assert!(
            self.packets > 10_000 && share > 0.6,
            "{} packets, {share} arrived",
            self.packets
        );
        for (at, end) in self.ends.iter().enumerate() {
            // A timer's wake-up is paid for by something that came in or went out, by one for each of the two sides.
            assert!(
                end.wakes <= 2 * end.events,
                "end {at}: {} wake-ups, {} events",
                end.wakes,
                end.events
            );
            check_drops(at, &end.core);
        }
    }

    fn now_with(&self, wall_offset: i64) -> Now {
        let wall = UNIX.saturating_add(wall_offset).unsigned_abs();
        Now {
            mono: self.time,
            unix: Duration::from_secs(wall) + (self.time - Time::default()),
        }
    }

    fn now(&self, end: usize) -> Now {
        self.now_with(self.ends[end].wall_offset)
    }

    /// Sends a packet with a new number; returns that.
    pub(super) fn send(&mut self, from: usize, to: usize) -> u64 {
        let number = self.packets;
        self.packets += 1;
        if self.ends[from].asleep_until.is_none() {
            let now = self.now(from);
            self.ends[from].events += 1;
            self.ends[from].core.handle_packet(now, &packet(from, to, number));
            self.settle(from);
        }
        number
    }

    pub(super) fn delivered(&self, number: u64) -> bool {
        self.delivered.contains(&number)
    }

    /// Lets `span` pass.
    pub(super) fn run(&mut self, span: Duration) {
        let end = self.time + span;
        loop {
            let timeouts = self.ends.iter().filter_map(|end| match end.asleep_until {
                Some(until) => Some(until),
                None => end.core.poll_timeout(),
            });
            match timeouts.chain(self.flights.next_arrival()).min() {
                Some(at) if at <= end => self.step(at),
                _ => break,
            }
        }
        self.time = end;
    }

    /// An attacker's datagram to the hub.
    pub(super) fn inject(&mut self, from: SocketAddr, mut datagram: Vec<u8>) {
        let now = self.now(0);
        self.ends[0].core.handle_datagram(now, from, 0, &mut datagram);
        self.settle(0);
    }

    fn step(&mut self, at: Time) {
        self.time = self.time.max(at);
        for end in 0..self.ends.len() {
            let this = &mut self.ends[end];
            this.asleep_until = this.asleep_until.filter(|&until| until > self.time);
            if this.asleep_until.is_none() && this.core.poll_timeout().is_some_and(|due| due <= self.time) {
                this.wakes += 1;
                let now = self.now(end);
                self.ends[end].core.handle_timeout(now);
                self.settle(end);
                let next = self.ends[end].core.poll_timeout();
                assert!(next.is_none_or(|due| due > self.time), "end {end}: due at once again");
            }
        }
        while let Some(mut flight) = self.flights.pop(self.time) {
            let Some(end) = self.ends.iter().position(|end| end.address == flight.to) else {
                continue;
            };
            if self.ends[end].asleep_until.is_none() {
                let now = self.now(end);
                self.ends[end].events += 1;
                self.ends[end]
                    .core
                    .handle_datagram(now, flight.from, 0, &mut flight.bytes);
                self.settle(end);
            }
        }
    }

    /// Takes what an end has to say, and checks it and the end.
    fn settle(&mut self, end: usize) {
        while let Some(output) = self.ends[end].core.poll_output() {
            self.ends[end].events += 1;
            match output {
                Output::Datagram { to, bytes, .. } => self.transmit(end, to, bytes),
                Output::Packet(packet) => self.deliver(end, &packet),
                Output::Connected { .. } => self.ends[end].connected += 1,
                Output::Unreachable { .. } => {}
            }
        }
        let Core {
            device,
            forwarder,
            slots,
            ..
        } = &self.ends[end].core;
        let peers = self.ends[end].peers.len();
        let held = device.held();
        assert!(held.indices <= INDICES_MAX * peers, "end {end}: {held:?}");
        assert!(held.deadlines <= peers && held.actions == 0, "end {end}: {held:?}");
        let (openers, waiting) = forwarder.held();
        assert!(openers <= SESSIONS_MAX * peers, "end {end}: {openers} keys that open");
        assert!(waiting <= WAITING_MAX * peers, "end {end}: {waiting} bytes wait");
        assert!(slots.0.len() <= 256, "end {end}: {} send slots", slots.0.len());
    }

    fn transmit(&mut self, end: usize, to: SocketAddr, bytes: Vec<u8>) {
        if let Some(header) = DataHeader::parse(&bytes) {
            let before = self.ends[end].counters.insert(header.receiver, header.counter);
            assert!(
                before.is_none_or(|before| before < header.counter),
                "end {end}: nonce used twice: {header:?}"
            );
        } else if let Some(message) = HandshakeMessage::parse(&bytes) {
            self.look_at(end, to, &message.body, &bytes);
        }
        let flight = Flight {
            from: self.ends[end].address,
            to,
            bytes,
        };
        let direction = usize::from(end != 0);
        self.flights
            .send(self.time, &self.network, &mut self.rng, direction, &flight);
    }

    fn look_at(&mut self, end: usize, to: SocketAddr, body: &Body<'_>, bytes: &[u8]) {
        match body {
            Body::Initiation { sender, macs, .. } | Body::Response { sender, macs, .. } => {
                // The index means other keys from here on.
                for other in &mut self.ends {
                    other.counters.remove(sender);
                }
                if matches!(body, Body::Initiation { .. }) && end != 0 {
                    self.cookies[1] += u64::from(macs.mac2.iter().any(|&byte| byte != 0));
                    self.initiation = Some(bytes.to_vec());
                }
            }
            Body::CookieReply { .. } => {
                self.cookies[0] += u64::from(end == 0 && self.ends.iter().any(|end| end.address == to));
            }
        }
    }

    fn deliver(&mut self, end: usize, bytes: &[u8]) {
        let from = usize::from(bytes[15]) - 1;
        let number = u64::from_be_bytes(bytes[28..36].try_into().expect("8 bytes"));
        assert!(number < self.packets, "end {end}: a packet that nobody sent");
        assert!(
            bytes == packet(from, end, number),
            "end {end}: packet {number} was changed"
        );
        assert!(self.delivered.insert(number), "end {end}: packet {number} came twice");
    }
}

/// Whatever the network does, nothing is lost for a reason that only a mistake or a forger would bring about.
fn check_drops(end: usize, core: &Core) {
    const EXPECTED: [Drop; 13] = [
        Drop::NoEndpoint,
        Drop::PendingFull,
        Drop::HandshakeFailed,
        Drop::SessionExpired,
        Drop::UnknownIndex,
        Drop::Replayed,
        Drop::TooOld,
        Drop::ExpiredSession,
        Drop::CookieDemanded,
        Drop::BadMac2,
        Drop::RateLimited,
        Drop::ReplayedHandshake,
        Drop::UnexpectedHandshake,
    ];
    let drops = core.drops();
    let is_expected = |name: &String| EXPECTED.iter().any(|reason| reason.name() == name);
    assert!(drops.keys().all(is_expected), "end {end}: {drops:?}");
}

/// A UDP packet between two ends, with a checksum that is right; its length depends on its number.
fn packet(from: usize, to: usize, number: u64) -> Vec<u8> {
    let len = 36 + (number % 97) as usize;
    let mut packet = vec![0x5a; len];
    packet[..20].fill(0);
    (packet[0], packet[8], packet[9]) = (0x45, 64, 17);
    packet[2..4].copy_from_slice(&(len as u16).to_be_bytes());
    packet[12..16].copy_from_slice(&[10, 99, 0, from as u8 + 1]);
    packet[16..20].copy_from_slice(&[10, 99, 0, to as u8 + 1]);
    let sum = Sum::of(&packet[..20]).checksum();
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
    packet[24..26].copy_from_slice(&(len as u16 - 20).to_be_bytes());
    packet[26..28].fill(0); // no checksum (RFC 768)
    packet[28..36].copy_from_slice(&number.to_be_bytes());
    packet
}
