//! Two ends of a tunnel in virtual time: devices, a small data plane for each, and a network between them that loses,
//! delays, reorders and duplicates as it is told.
//!
//! ```text
//!   End 0 (192.0.2.1:1000) ── Network: loss, delay, duplicates ── End 1 (192.0.2.2:1001)
//! ```
//!
//! Whatever a test does, every step checks what must hold always: no counter sealed twice with one key, no plaintext
//! accepted twice, at most three sessions, none past its time, and no action for what does not exist.
#![allow(dead_code, unreachable_pub)] // every test program uses its own part of this

mod network;

use std::collections::{HashMap, HashSet, VecDeque};
use std::net::SocketAddr;
use std::time::Duration;

pub use network::{Flight, Flights, Network, Rng};
use ringway::crypto::Choice;
use ringway::proto::limits::REJECT_AFTER_TIME;
use ringway::proto::{
    Action, Device, DeviceConfig, Endpoint, Now, OpenError, OpenHalf, PeerConfig, PeerId, Rejected, SealHalf,
    SessionId, Suite, SuiteChoice, Time, Traffic,
};
use ringway::wire::message::DataHeader;
use x25519_dalek::{PublicKey, StaticSecret};
use zeroize::Zeroizing;

/// What one end is made from.
#[derive(Clone)]
pub struct Setup {
    pub key: [u8; 32],
    pub peer_key: [u8; 32],
    pub psk: Option<[u8; 32]>,
    pub suite: SuiteChoice,
    pub lanes: u8,
    pub keepalive: Option<Duration>,
    /// Whether it knows where the other end is.
    pub knows_endpoint: bool,
}

impl Setup {
    /// Both ends of a pair that only differ in their keys.
    pub fn pair(suite: SuiteChoice) -> [Setup; 2] {
        let setup = |key: u8, peer: u8| Setup {
            key: [key; 32],
            peer_key: public(&[peer; 32]),
            psk: None,
            suite,
            lanes: 2,
            keepalive: None,
            knows_endpoint: true,
        };
        [setup(1, 2), setup(2, 1)]
    }
}

pub fn public(key: &[u8; 32]) -> [u8; 32] {
    PublicKey::from(&StaticSecret::from(*key)).to_bytes()
}

pub fn home(end: usize) -> SocketAddr {
    SocketAddr::from(([192, 0, 2, 1 + end as u8], 1000 + end as u16))
}

/// A session as the data plane holds it.
struct Held {
    suite: Suite,
    seals: Vec<SealHalf>,
    indices: Vec<u32>,
    created: Time,
    initiator: bool,
    confirmed: bool,
}

/// What happened at an end, for tests to look at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Seen {
    Sent {
        kind: u8,
        len: usize,
    },
    Done {
        suite: Suite,
        initiator: bool,
        remote_lanes: u8,
    },
    Promoted,
    GivenUp,
    Unanswered,
    Keepalive,
    Received {
        kind: u8,
    },
    Rejected(Rejected),
    NotOpened(OpenError),
}

/// One end: a device and a data plane.
pub struct End {
    pub device: Device,
    pub peer: PeerId,
    pub address: SocketAddr,
    pub endpoint: Option<Endpoint>,
    sessions: HashMap<SessionId, Held>,
    opens: HashMap<u32, (SessionId, OpenHalf)>,
    sending: Option<SessionId>,
    waiting: VecDeque<u64>,
    /// What was seen since the last sample.
    traffic: Traffic,
    next_lane: usize,
    /// Added to the wall clock.
    pub wall_offset: i64,
    pub seen: Vec<(Time, Seen)>,
    /// Payload numbers that came out here.
    pub delivered: Vec<u64>,
    delivered_once: HashSet<u64>,
    counters: HashSet<(SessionId, u32, u64)>,
}

impl End {
    pub fn new(number: usize, setup: &Setup, seed: u64) -> End {
        let mut rng = Rng(seed ^ (number as u64 + 1) << 32);
        let config = DeviceConfig {
            private_key: StaticSecret::from(setup.key),
            lanes: setup.lanes,
            crypto: Choice::Auto,
        };
        let mut device = Device::new(config, move |bytes| rng.fill(bytes));
        let peer = device
            .add_peer(
                Time::default(),
                PeerConfig {
                    public_key: setup.peer_key,
                    preshared_key: setup.psk.map(Zeroizing::new),
                    endpoint: setup.knows_endpoint.then(|| home(1 - number)),
                    persistent_keepalive: setup.keepalive,
                    suite: setup.suite,
                },
            )
            .unwrap();
        End {
            device,
            peer,
            address: home(number),
            endpoint: None,
            sessions: HashMap::new(),
            opens: HashMap::new(),
            sending: None,
            waiting: VecDeque::new(),
            traffic: Traffic::default(),
            next_lane: 0,
            wall_offset: 0,
            seen: Vec::new(),
            delivered: Vec::new(),
            delivered_once: HashSet::new(),
            counters: HashSet::new(),
        }
    }

    pub fn now(&self, time: Time) -> Now {
        let wall = 1_700_000_000i64 + self.wall_offset;
        Now {
            mono: time,
            unix: Duration::from_secs(wall as u64) + (time - Time::default()),
        }
    }

    /// The suite that data is sealed in.
    pub fn suite(&self) -> Option<Suite> {
        self.sending.map(|session| self.sessions[&session].suite)
    }

    pub fn session_count(&self) -> usize {
        self.sessions.len()
    }

    /// How many lanes are sealed on, and how many are opened in the session that is sealed with.
    pub fn lanes(&self) -> Option<(usize, usize)> {
        let held = &self.sessions[&self.sending?];
        Some((held.seals.len(), held.indices.len()))
    }

    /// This end's indices in the session that is sealed with.
    pub fn indices(&self) -> Vec<u32> {
        self.sending
            .map(|session| self.sessions[&session].indices.clone())
            .unwrap_or_default()
    }

    /// How often `kind` was sent.
    pub fn sent(&self, kind: u8) -> usize {
        self.sent_at(kind).len()
    }

    /// When `kind` was sent.
    pub fn sent_at(&self, kind: u8) -> Vec<Time> {
        let of_kind = |seen: &Seen| matches!(seen, Seen::Sent { kind: sent, .. } if *sent == kind);
        self.seen
            .iter()
            .filter(|(_, seen)| of_kind(seen))
            .map(|&(at, _)| at)
            .collect()
    }

    pub fn saw(&self, what: &Seen) -> usize {
        self.seen.iter().filter(|(_, seen)| seen == what).count()
    }

    fn note(&mut self, time: Time, seen: Seen) {
        self.seen.push((time, seen));
    }
}

/// Both ends and what is between them.
pub struct World {
    pub time: Time,
    pub ends: [End; 2],
    pub network: Network,
    pub rng: Rng,
    flights: Flights,
    next_payload: u64,
    /// Every datagram that was sent, for replaying.
    pub wire: Vec<Flight>,
    pub keep_wire: bool,
    /// How often the data plane tells the device what it saw; `None`: at once.
    pub sampling: Option<Duration>,
    next_sample: Time,
}

impl World {
    pub fn new(setups: &[Setup; 2], seed: u64) -> World {
        let mut world = World {
            time: Time::from_nanos(1_000_000_000),
            ends: [End::new(0, &setups[0], seed), End::new(1, &setups[1], seed)],
            network: Network::GOOD,
            rng: Rng(seed),
            flights: Flights::default(),
            next_payload: 0,
            wire: Vec::new(),
            keep_wire: false,
            sampling: None,
            next_sample: Time::default(),
        };
        (0..2).for_each(|end| world.drain(end));
        world
    }

    /// A pair in `suite`, on a good network.
    pub fn pair(suite: SuiteChoice) -> World {
        World::new(&Setup::pair(suite), 7)
    }

    /// Sends a new payload from `end`; returns its number.
    pub fn send(&mut self, end: usize) -> u64 {
        let payload = self.next_payload;
        self.next_payload += 1;
        self.send_payload(end, payload);
        payload
    }

    /// Lets `span` pass.
    pub fn run(&mut self, span: Duration) {
        let end = self.time + span;
        loop {
            let timeouts = self.ends.iter().filter_map(|end| end.device.poll_timeout());
            let flight = self.flights.next_arrival();
            let sample = self.sampling.map(|_| self.next_sample);
            match timeouts.chain(flight).chain(sample).min() {
                Some(at) if at <= end => self.step(at),
                _ => break,
            }
        }
        self.time = end;
        self.check();
    }

    pub fn run_seconds(&mut self, seconds: u64) {
        self.run(Duration::from_secs(seconds));
    }

    /// Whether `payload` came out at `end`.
    pub fn delivered(&self, end: usize, payload: u64) -> bool {
        self.ends[end].delivered_once.contains(&payload)
    }

    /// Sends both ways and lets a second pass: whether both payloads arrived.
    pub fn flows(&mut self) -> [bool; 2] {
        let payloads = [self.send(0), self.send(1)];
        self.run_seconds(1);
        [self.delivered(1, payloads[0]), self.delivered(0, payloads[1])]
    }

    /// Puts `bytes` into `end`'s socket, as if `from` had sent them.
    pub fn inject(&mut self, end: usize, from: SocketAddr, bytes: &[u8]) -> Result<(), Rejected> {
        self.receive(
            end,
            Flight {
                from,
                to: self.ends[end].address,
                bytes: bytes.to_vec(),
            },
        )
    }

    /// Lets something be done to an end's device, then does what it wants.
    pub fn with_device<T>(&mut self, end: usize, act: impl FnOnce(&mut Device, PeerId, Now) -> T) -> T {
        let (time, this) = (self.time, &mut self.ends[end]);
        let now = this.now(time);
        let result = act(&mut this.device, this.peer, now);
        self.drain(end);
        result
    }

    /// Replaces an end by a new process of the same configuration.
    pub fn restart(&mut self, end: usize, setup: &Setup, seed: u64) {
        let old = &self.ends[end];
        let mut new = End::new(end, setup, seed);
        new.address = old.address;
        new.wall_offset = old.wall_offset;
        new.delivered = old.delivered.clone();
        new.delivered_once = old.delivered_once.clone();
        self.ends[end] = new;
        self.drain(end);
    }

    fn step(&mut self, at: Time) {
        self.time = self.time.max(at);
        if let Some(interval) = self.sampling.filter(|_| self.next_sample <= self.time) {
            self.next_sample = self.time + interval;
            for end in 0..2 {
                let traffic = std::mem::take(&mut self.ends[end].traffic);
                self.with_device(end, |device, peer, _| device.traffic(peer, traffic));
            }
        }
        for end in 0..2 {
            while self.ends[end].device.poll_timeout().is_some_and(|at| at <= self.time) {
                self.with_device(end, |device, _, now| device.handle_timeout(now));
            }
        }
        while let Some(flight) = self.flights.pop(self.time) {
            if let Some(end) = self.ends.iter().position(|end| end.address == flight.to) {
                let _ = self.receive(end, flight); // noted by `receive`
            }
        }
        self.check();
    }

    fn transmit(&mut self, end: usize, to: Endpoint, bytes: Vec<u8>) {
        let kind = bytes[0];
        self.ends[end].note(self.time, Seen::Sent { kind, len: bytes.len() });
        let flight = Flight {
            from: self.ends[end].address,
            to: to.remote,
            bytes,
        };
        if self.keep_wire {
            self.wire.push(flight.clone());
        }
        self.flights.send(self.time, &self.network, &mut self.rng, end, &flight);
    }

    fn send_payload(&mut self, end: usize, payload: u64) {
        if !self.seal_and_send(end, &payload.to_le_bytes()) {
            self.ends[end].waiting.push_back(payload);
            self.with_device(end, |device, peer, now| device.want_session(peer, now));
        }
    }

    /// Seals on the next lane and sends; false without a session that may.
    fn seal_and_send(&mut self, end: usize, plaintext: &[u8]) -> bool {
        let (time, this) = (self.time, &mut self.ends[end]);
        let Some((session, to)) = this.sending.zip(this.endpoint) else {
            return false;
        };
        let held = this
            .sessions
            .get_mut(&session)
            .expect("the session that is sealed with is installed");
        let lane = this.next_lane % held.seals.len();
        this.next_lane += 1;
        let mut datagram = vec![0; 16 + plaintext.len() + 16];
        datagram[16..16 + plaintext.len()].copy_from_slice(plaintext);
        let seal = &mut held.seals[lane];
        if seal.seal(time, 0, &mut datagram).is_err() {
            this.sending = None;
            return false;
        }
        let wants_rekey = seal.wants_rekey(time);
        assert!(
            time - held.created < REJECT_AFTER_TIME,
            "sealed after the session's time"
        );
        let header = DataHeader::parse(&datagram).unwrap();
        assert!(
            this.counters.insert((session, header.receiver, header.counter)),
            "a counter was used twice"
        );
        self.transmit(end, to, datagram);
        let is_data = !plaintext.is_empty();
        let sampled = self.sampling.is_some();
        if sampled {
            let traffic = &mut self.ends[end].traffic;
            traffic.any_sent = Some(time);
            traffic.data_sent = if is_data { Some(time) } else { traffic.data_sent };
        }
        self.with_device(end, |device, peer, now| {
            match is_data {
                _ if sampled => {}
                true => device.data_sent(peer, now),
                false => device.authenticated_sent(peer, now),
            }
            if wants_rekey {
                device.want_session(peer, now);
            }
        });
        true
    }

    fn flush(&mut self, end: usize) -> bool {
        let mut flushed = false;
        while let Some(payload) = self.ends[end].waiting.pop_front() {
            if !self.seal_and_send(end, &payload.to_le_bytes()) {
                self.ends[end].waiting.push_front(payload);
                break;
            }
            flushed = true;
        }
        flushed
    }

    fn receive(&mut self, end: usize, flight: Flight) -> Result<(), Rejected> {
        let from = Endpoint::new(flight.from);
        let kind = flight.bytes.first().copied().unwrap_or(0);
        if let Some(header) = DataHeader::parse(&flight.bytes) {
            self.open(end, from, header, flight.bytes);
            return Ok(());
        }
        let verdict = self.with_device(end, |device, _, now| device.handle_datagram(now, from, &flight.bytes));
        let verdict = verdict.map(drop);
        let seen = verdict.map_or_else(Seen::Rejected, |()| Seen::Received { kind });
        self.ends[end].note(self.time, seen);
        verdict
    }

    fn open(&mut self, end: usize, from: Endpoint, header: DataHeader, mut datagram: Vec<u8>) {
        let (time, this) = (self.time, &mut self.ends[end]);
        let Some((session, half)) = this.opens.get_mut(&header.receiver) else {
            return;
        };
        let session = *session;
        let range = match half.open(time, &header, &mut datagram) {
            Ok(range) => range,
            Err(error) => return this.note(time, Seen::NotOpened(error)),
        };
        let wants_rekey = half.wants_rekey(time);
        let held = this.sessions.get_mut(&session).expect("a half belongs to a session");
        assert!(
            time - held.created < REJECT_AFTER_TIME,
            "opened after the session's time"
        );
        let confirms = !held.initiator && !std::mem::replace(&mut held.confirmed, true);
        let is_data = !range.is_empty();
        if is_data {
            let payload = u64::from_le_bytes(datagram[range].try_into().unwrap());
            assert!(
                this.delivered_once.insert(payload),
                "payload {payload} was delivered twice"
            );
            this.delivered.push(payload);
        }
        let sampled = self.sampling.is_some();
        if sampled {
            this.traffic.any_received = Some(time);
            this.traffic.data_received = if is_data {
                Some(time)
            } else {
                this.traffic.data_received
            };
        }
        let moved = this.endpoint.is_none_or(|endpoint| endpoint.remote != from.remote);
        this.note(time, Seen::Received { kind: header.kind });
        self.with_device(end, |device, peer, now| {
            if moved {
                device.roamed(peer, from);
            }
            match is_data {
                _ if sampled => {}
                true => device.data_received(peer, now),
                false => device.authenticated_received(peer, now),
            }
            if confirms {
                device.confirmed(peer, session, now);
            }
            if wants_rekey {
                device.want_session(peer, now);
            }
        });
    }

    /// Does what an end's device wants.
    fn drain(&mut self, end: usize) {
        let time = self.time;
        while let Some(action) = self.ends[end].device.poll_action() {
            let this = &mut self.ends[end];
            match action {
                Action::Transmit { to, datagram, .. } => self.transmit(end, to, datagram),
                Action::Install {
                    session,
                    suite,
                    seals,
                    opens,
                    sending,
                    ..
                } => {
                    let indices: Vec<u32> = opens.iter().map(OpenHalf::local_index).collect();
                    for half in opens {
                        assert_eq!((half.session(), half.suite()), (session, suite));
                        let other = this.opens.insert(half.local_index(), (session, half));
                        assert!(other.is_none(), "two live sessions with one index");
                    }
                    let held = Held {
                        suite,
                        seals,
                        indices,
                        created: time,
                        initiator: sending,
                        confirmed: false,
                    };
                    assert!(
                        this.sessions.insert(session, held).is_none(),
                        "session numbers are unique"
                    );
                    if sending {
                        this.sending = Some(session);
                    }
                }
                Action::Promote { session, .. } => {
                    assert!(this.sessions.contains_key(&session), "promoted without being installed");
                    this.sending = Some(session);
                    this.note(time, Seen::Promoted);
                    self.flush(end);
                }
                Action::Retire { session, .. } => {
                    let held = this.sessions.remove(&session).expect("retired without being installed");
                    held.indices.iter().for_each(|index| drop(this.opens.remove(index)));
                    this.sending = this.sending.filter(|&sending| sending != session);
                }
                Action::SendKeepalive { .. } => {
                    if !self.flush(end) {
                        self.ends[end].note(time, Seen::Keepalive);
                        self.seal_and_send(end, &[]);
                    }
                }
                Action::Endpoint { endpoint, .. } => this.endpoint = Some(endpoint),
                Action::Unanswered { .. } => this.note(time, Seen::Unanswered),
                Action::HandshakeGivenUp { .. } => {
                    this.waiting.clear();
                    this.note(time, Seen::GivenUp);
                }
                Action::HandshakeDone {
                    suite,
                    initiator,
                    remote_lanes,
                    ..
                } => {
                    this.note(
                        time,
                        Seen::Done {
                            suite,
                            initiator,
                            remote_lanes,
                        },
                    );
                }
            }
        }
    }

    fn check(&self) {
        for end in &self.ends {
            assert!(end.sessions.len() <= 3, "{} sessions", end.sessions.len());
            for held in end.sessions.values() {
                let age = self.time - held.created;
                assert!(age <= REJECT_AFTER_TIME, "a session of {age:?} is still installed");
            }
            assert!(end.sending.is_none_or(|session| end.sessions.contains_key(&session)));
            assert!(end.device.poll_timeout().is_none_or(|at| at > Time::default()));
        }
    }
}
