//! Two ends that know each other, and an attacker between them who drops, repeats, delays, mutates and invents.
//!
//! The input is a list of what happens. Whatever it is: nothing panics, nothing that was changed makes a session or is
//! opened, nothing is opened twice, and what is kept is bounded.

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::ops::Range;
use std::time::Duration;

use ringway::crypto::Choice;
use ringway::proto::{
    Action, Device, DeviceConfig, Endpoint, Now, OpenHalf, PeerConfig, PeerId, PublicKey, SealHalf, SessionId,
    StaticSecret, SuiteChoice, Time, mac,
};
use ringway::wire::message::{Body, DataHeader, HandshakeMessage};

/// More steps only make an input slow.
const STEPS_MAX: usize = 200;

/// Panics when something does not hold. The first byte chooses the suites, the others are the steps.
pub(crate) fn check(data: &[u8]) {
    let Some((&suites, steps)) = data.split_first() else {
        return;
    };
    let choice = |n: u8| SuiteChoice::ALL[usize::from(n) % SuiteChoice::ALL.len()];
    let mut world = World {
        time: Time::from_nanos(1 << 40),
        ends: [End::new(0, choice(suites)), End::new(1, choice(suites >> 4))],
        wire: Vec::new(),
    };
    (0..2).for_each(|end| world.drain(end));
    let mut steps = Steps(steps);
    for _ in 0..STEPS_MAX {
        let Some(step) = steps.byte() else { return };
        world.step(usize::from(step & 1), step >> 1, &mut steps);
    }
}

/// What is left of the input.
struct Steps<'a>(&'a [u8]);

impl<'a> Steps<'a> {
    fn byte(&mut self) -> Option<u8> {
        let (&byte, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(byte)
    }

    /// A number, 0 at the end of the input.
    fn number(&mut self) -> usize {
        usize::from(self.byte().unwrap_or(0))
    }

    fn bytes(&mut self, len: usize) -> &'a [u8] {
        let (bytes, rest) = self.0.split_at(len.min(self.0.len()));
        self.0 = rest;
        bytes
    }
}

struct World {
    time: Time,
    ends: [End; 2],
    /// Everything that was sent, by whom, for the attacker to use.
    wire: Vec<(usize, Vec<u8>)>,
}

struct End {
    device: Device,
    peer: PeerId,
    address: SocketAddr,
    seals: HashMap<SessionId, Vec<SealHalf>>,
    opens: HashMap<u32, OpenHalf>,
    sending: Option<SessionId>,
    installs: usize,
    opened: HashSet<(SessionId, u32, u64)>,
}

fn public(end: usize) -> [u8; 32] {
    PublicKey::from(&secret(end)).to_bytes()
}

fn secret(end: usize) -> StaticSecret {
    StaticSecret::from([end as u8 + 1; 32])
}

fn address(end: usize) -> SocketAddr {
    SocketAddr::from(([192, 0, 2, end as u8 + 1], 1))
}

impl End {
    fn new(end: usize, suite: SuiteChoice) -> End {
        let mut state = end as u64 + 1;
        let random = move |bytes: &mut [u8]| {
            for byte in bytes {
                state = state
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1_442_695_040_888_963_407);
                *byte = (state >> 56) as u8;
            }
        };
        let config = DeviceConfig {
            private_key: secret(end),
            lanes: 2,
            crypto: Choice::AesGcm,
        };
        let mut device = Device::new(config, random);
        let peer = PeerConfig {
            public_key: public(1 - end),
            preshared_key: None,
            endpoint: Some(address(1 - end)),
            persistent_keepalive: None,
            suite,
        };
        let peer = device.add_peer(Time::default(), peer).expect("the first peer");
        End {
            device,
            peer,
            address: address(end),
            seals: HashMap::new(),
            opens: HashMap::new(),
            sending: None,
            installs: 0,
            opened: HashSet::new(),
        }
    }
}

impl World {
    fn step(&mut self, end: usize, what: u8, steps: &mut Steps<'_>) {
        let now = self.now();
        match what % 10 {
            0 => self.ends[end].device.want_session(self.ends[end].peer, now),
            1 | 2 => {
                let Some((from, datagram)) = self.pick(steps) else {
                    return;
                };
                self.deliver(1 - from, address(from), &datagram);
            }
            3 | 4 => self.mutated(steps, what % 10 == 4),
            5 => {
                let len = steps.number();
                let datagram = steps.bytes(len).to_vec();
                self.deliver(end, address(1 - end), &datagram);
            }
            6 => {
                let Some((from, mut datagram)) = self.pick(steps) else {
                    return;
                };
                datagram.truncate(steps.number());
                self.deliver(1 - from, address(from), &datagram);
            }
            7 => self.seal(end, steps.number()),
            8 => {
                self.time = self.time + Duration::from_millis(1 << (steps.number() % 19));
                for end in 0..2 {
                    let now = self.now();
                    self.ends[end].device.handle_timeout(now);
                    assert!(
                        self.ends[end].device.poll_timeout().is_none_or(|at| at > self.time),
                        "due, and not done"
                    );
                    self.drain(end);
                }
            }
            // A genuine message from elsewhere.
            _ => {
                let Some((from, datagram)) = self.pick(steps) else {
                    return;
                };
                let elsewhere = SocketAddr::from(([198, 51, 100, steps.number() as u8], 7));
                self.deliver(1 - from, elsewhere, &datagram);
            }
        }
        self.drain(end);
    }

    fn now(&self) -> Now {
        Now {
            mono: self.time,
            unix: Duration::from_nanos(self.time.as_nanos()),
        }
    }

    fn pick(&self, steps: &mut Steps<'_>) -> Option<(usize, Vec<u8>)> {
        let back = steps.number() % self.wire.len().max(1);
        self.wire.iter().rev().nth(back).cloned()
    }

    /// Changes a byte of a genuine message, and sees to it that mac1 is right if asked to.
    fn mutated(&mut self, steps: &mut Steps<'_>, with_mac1: bool) {
        let Some((from, mut datagram)) = self.pick(steps) else {
            return;
        };
        let position = steps.number() % datagram.len();
        datagram[position] ^= steps.number().max(1) as u8;
        if with_mac1 && HandshakeMessage::parse(&datagram).is_some_and(|message| has_macs(&message)) {
            datagram.truncate(datagram.len() - 32);
            mac::append(&mut datagram, &public(1 - from), None);
        }
        self.deliver(1 - from, address(from), &datagram);
    }

    fn seal(&mut self, end: usize, len: usize) {
        let this = &mut self.ends[end];
        let Some(seals) = this.sending.and_then(|session| this.seals.get_mut(&session)) else {
            return;
        };
        let lane = len % seals.len();
        let mut datagram = vec![0; 32 + len];
        if seals[lane].seal(self.time, 0, &mut datagram).is_ok() {
            this.device.data_sent(
                this.peer,
                Now {
                    mono: self.time,
                    unix: Duration::ZERO,
                },
            );
            self.wire.push((end, datagram));
        }
    }

    /// Puts a datagram into an end's socket; only genuine ones may have an effect.
    fn deliver(&mut self, end: usize, from: SocketAddr, datagram: &[u8]) {
        let now = self.now();
        // Indices are protected by mac1 only: to change them is the changer's loss.
        let authentic = self.wire.iter().any(|(_, genuine)| same_noise(genuine, datagram));
        let installs = self.ends[end].installs;
        match DataHeader::parse(datagram) {
            Some(header) => self.open(end, from, header, datagram.to_vec()),
            None => {
                let verdict = self.ends[end]
                    .device
                    .handle_datagram(now, Endpoint::new(from), datagram);
                self.drain(end);
                if !authentic {
                    assert_eq!(self.ends[end].installs, installs, "a session from {verdict:?}");
                }
            }
        }
    }

    fn open(&mut self, end: usize, from: SocketAddr, header: DataHeader, mut datagram: Vec<u8>) {
        let now = self.now();
        let genuine = self.wire.iter().any(|(_, sent)| *sent == datagram);
        let this = &mut self.ends[end];
        let Some(half) = this.opens.get_mut(&header.receiver) else {
            return;
        };
        let session = half.session();
        let Ok(range) = half.open(now.mono, &header, &mut datagram) else {
            return;
        };
        assert!(genuine, "opened what nobody sealed");
        assert!(
            this.opened.insert((session, header.receiver, header.counter)),
            "opened twice"
        );
        assert!(datagram[range].iter().all(|&byte| byte == 0), "another plaintext");
        this.device.confirmed(this.peer, session, now);
        this.device.roamed(this.peer, Endpoint::new(from));
        this.device.data_received(this.peer, now);
        self.drain(end);
    }

    fn drain(&mut self, end: usize) {
        let this = &mut self.ends[end];
        while let Some(action) = this.device.poll_action() {
            match action {
                Action::Transmit { datagram, .. } => {
                    assert!(HandshakeMessage::parse(&datagram).is_some());
                    self.wire.push((end, datagram));
                }
                Action::Install {
                    session,
                    seals,
                    opens,
                    sending,
                    ..
                } => {
                    this.installs += 1;
                    this.seals.insert(session, seals);
                    for half in opens {
                        assert!(
                            this.opens.insert(half.local_index(), half).is_none(),
                            "two owners of one index"
                        );
                    }
                    this.sending = if sending { Some(session) } else { this.sending };
                }
                Action::Promote { session, .. } => this.sending = Some(session),
                Action::Retire { session, .. } => {
                    assert!(this.seals.remove(&session).is_some(), "retired without being installed");
                    this.opens.retain(|_, half| half.session() != session);
                    this.sending = this.sending.filter(|&sending| sending != session);
                }
                Action::Endpoint { endpoint, .. } => assert_ne!(endpoint.remote, this.address, "never ourselves"),
                Action::SendKeepalive { .. }
                | Action::Unanswered { .. }
                | Action::HandshakeGivenUp { .. }
                | Action::HandshakeDone { .. } => {}
            }
        }
        assert!(this.seals.len() <= 3, "{} sessions", this.seals.len());
    }
}

fn has_macs(message: &HandshakeMessage<'_>) -> bool {
    !matches!(message.body, Body::CookieReply { .. })
}

/// Whether two messages are the same but for indices and MACs.
fn same_noise(a: &[u8], b: &[u8]) -> bool {
    let noise = |message: &[u8]| -> Option<Range<usize>> {
        match HandshakeMessage::parse(message)?.body {
            Body::Initiation { .. } => Some(8..message.len() - 32),
            Body::Response { .. } => Some(12..message.len() - 32),
            Body::CookieReply { .. } => None,
        }
    };
    let (Some(in_a), Some(in_b)) = (noise(a), noise(b)) else {
        return false;
    };
    a[0] == b[0] && a[in_a] == b[in_b]
}
