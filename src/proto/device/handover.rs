//! Peers with their sessions as data with which another process goes on.
//!
//! A handshake that is under way is not part of it: it begins anew at once. Nor are cookies, which come again when they are
//! needed.
#![forbid(unsafe_code)]

use std::collections::HashMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Device, Timestamps};
use crate::crypto::Choice;
use crate::proto::endpoint::{Endpoint, PeerId, SessionId};
use crate::proto::index::Base;
use crate::proto::peer::Peer;
use crate::proto::session::{OpenHalf, OpenState, SealHalf, SealState, SessionFacts};
use crate::proto::slots::{Slot, Standing};
use crate::proto::suite::Suite;
use crate::proto::time::{Now, Time};
use crate::proto::timers::{Timer, Timers};

/// What is known of a peer beside its configuration. Has its keys in it.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct PeerState {
    endpoint: Option<Endpoint>,
    remembered: Option<Suite>,
    timestamps: Timestamps,
    handshake_sent: Option<Time>,
    handshake_consumed: Option<Time>,
    last_handshake: Option<Duration>,
    keepalive_again: bool,
    unanswered_since: Time,
    timers: Vec<(Timer, Time)>,
    current_since: Time,
    /// The oldest first.
    sessions: Vec<SessionState>,
}

#[derive(Debug, Serialize, Deserialize)]
struct SessionState {
    id: SessionId,
    suite: Suite,
    created: Time,
    initiator: bool,
    standing: Standing,
    base: Base,
    remote_lanes: u8,
    /// Native: in the order of lanes.
    seals: Vec<SealState>,
    opens: Vec<OpenState>,
}

/// The halves of sessions, back from all workers.
#[derive(Debug, Default)]
pub struct Sessions(HashMap<SessionId, (Vec<SealHalf>, Vec<OpenHalf>)>);

impl Sessions {
    /// Takes a half back. Those of one session come in the order of lanes.
    pub fn add_seal(&mut self, half: SealHalf) {
        self.0.entry(half.session()).or_default().0.push(half);
    }

    /// Takes a half back.
    pub fn add_open(&mut self, half: OpenHalf) {
        self.0.entry(half.session()).or_default().1.push(half);
    }
}

impl Device {
    /// What another process needs in order to go on with a peer whose `sessions` no worker has any more; `None` if there is
    /// no such peer.
    pub fn peer_state(&self, now: Now, id: PeerId, sessions: &Sessions) -> Option<PeerState> {
        let peer = self.peers.get(id)?;
        let mut timers = peer.timers.clone();
        timers.clear(Timer::Fallback);
        if peer.attempt.is_some() {
            timers.set(Timer::Handshake, now.mono);
        }
        let states = peer.slots.each();
        Some(PeerState {
            endpoint: peer.endpoint,
            remembered: peer.remembered,
            timestamps: Timestamps {
                sent: peer.timestamp_sent,
                received: peer.timestamp_received,
            },
            handshake_sent: peer.handshake_sent,
            handshake_consumed: peer.handshake_consumed,
            last_handshake: peer.last_handshake,
            keepalive_again: peer.keepalive_again,
            unanswered_since: peer.unanswered_since,
            timers: timers.each().collect(),
            current_since: peer.slots.current_since().unwrap_or_default(),
            sessions: states
                .filter_map(|(standing, slot)| SessionState::of(standing, slot, sessions))
                .collect(),
        })
    }

    /// As [`Device::peer_state`], of a peer whose sessions workers still have, without any key: what another program can
    /// try whether it would understand.
    pub fn rehearsed_peer_state(&self, now: Now, id: PeerId) -> Option<PeerState> {
        let slots = &self.peers.get(id)?.slots;
        let mut state = self.peer_state(now, id, &Sessions::default())?;
        let blank = |(standing, slot)| SessionState {
            seals: vec![SealState::blank()],
            opens: vec![OpenState::blank()],
            ..SessionState::without_halves(standing, slot, false)
        };
        state.sessions = slots.each().map(blank).collect();
        Some(state)
    }

    /// Goes on with a peer, which has just been added, from what an earlier process told of it. False if there is no such
    /// peer.
    pub fn resume_peer(&mut self, id: PeerId, state: &PeerState) -> bool {
        let crypto = self.context.identity.choice();
        self.with_peer(id, |peer, context| {
            if let Some(endpoint) = state.endpoint {
                peer.set_endpoint(context, endpoint);
            }
            for session in &state.sessions {
                let slot = session.slot();
                let (seals, opens) = session.halves(crypto);
                context.reinstall(id, &slot, seals, opens, session.standing == Standing::Current);
                peer.slots.put_back(session.standing, slot, state.current_since);
            }
            peer.resume(state);
        })
    }
}

impl Peer {
    fn resume(&mut self, state: &PeerState) {
        self.remembered = state.remembered;
        self.timestamp_sent = self.timestamp_sent.max(state.timestamps.sent);
        self.timestamp_received = self.timestamp_received.max(state.timestamps.received);
        self.handshake_sent = state.handshake_sent;
        self.handshake_consumed = state.handshake_consumed;
        self.last_handshake = state.last_handshake;
        self.keepalive_again = state.keepalive_again;
        self.unanswered_since = state.unanswered_since;
        self.timers = Timers::default();
        for &(timer, at) in &state.timers {
            self.timers.set(timer, at);
        }
    }
}

impl SessionState {
    /// `None`: no half of it is left, so nobody could go on with it.
    fn of(standing: Standing, slot: &Slot, sessions: &Sessions) -> Option<SessionState> {
        let (seals, opens) = sessions.0.get(&slot.session)?;
        let facts = opens
            .first()
            .map(OpenHalf::facts)
            .or(seals.first().map(SealHalf::facts))?;
        // The clones of a WireGuard session's half share one counter: one of them stands for all.
        let lanes = if slot.suite.is_native() { seals.len() } else { 1 };
        Some(SessionState {
            seals: seals.iter().take(lanes).map(SealHalf::state).collect(),
            opens: opens.iter().map(OpenHalf::state).collect(),
            ..SessionState::without_halves(standing, slot, facts.initiator)
        })
    }

    fn without_halves(standing: Standing, slot: &Slot, initiator: bool) -> SessionState {
        SessionState {
            id: slot.session,
            suite: slot.suite,
            created: slot.created,
            initiator,
            standing,
            base: slot.base,
            remote_lanes: slot.remote_lanes,
            seals: Vec::new(),
            opens: Vec::new(),
        }
    }

    fn slot(&self) -> Slot {
        Slot {
            session: self.id,
            suite: self.suite,
            created: self.created,
            base: self.base,
            remote_lanes: self.remote_lanes,
        }
    }

    fn halves(&self, crypto: Choice) -> (Vec<SealHalf>, Vec<OpenHalf>) {
        let facts = SessionFacts {
            suite: self.suite,
            session: self.id,
            created: self.created,
            remote_lanes: self.remote_lanes,
            initiator: self.initiator,
        };
        let seals = self.seals.iter().map(|state| SealHalf::resume(state, facts, crypto));
        let opens = self.opens.iter().map(|state| OpenHalf::resume(state, facts, crypto));
        (seals.collect(), opens.collect())
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use x25519_dalek::StaticSecret;

    use super::*;
    use crate::proto::{Action, COUNTER_SKIP, DeviceConfig, PeerConfig, SuiteChoice};
    use crate::wire::message::{DATA_HEADER_LEN, DataHeader, TAG_LEN};

    const LANES: u8 = 2;

    /// One end with one peer, and the halves that its workers would have.
    struct End {
        device: Device,
        peer: PeerId,
        sessions: Sessions,
        sealing: Option<SessionId>,
        sent: Vec<Vec<u8>>,
    }

    fn now(seconds: u64) -> Now {
        Now {
            mono: Time::from_nanos(seconds * 1_000_000_000),
            unix: Duration::from_secs(1_700_000_000 + seconds),
        }
    }

    fn address(end: u8) -> SocketAddr {
        ([192, 0, 2, end], 51820).into()
    }

    impl End {
        fn new(me: u8, other: u8, suite: SuiteChoice) -> End {
            let secret = |end: u8| StaticSecret::from([end; 32]);
            let mut drawn = u64::from(me);
            let random = move |bytes: &mut [u8]| {
                for byte in bytes {
                    drawn = drawn.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                    *byte = (drawn >> 56) as u8;
                }
            };
            let config = DeviceConfig {
                private_key: secret(me),
                lanes: LANES,
                crypto: Choice::Auto,
            };
            let mut device = Device::new(config, random);
            let peer = PeerConfig {
                public_key: x25519_dalek::PublicKey::from(&secret(other)).to_bytes(),
                preshared_key: None,
                endpoint: Some(address(other)),
                persistent_keepalive: None,
                suite,
            };
            let peer = device.add_peer(now(1).mono, peer).unwrap();
            End {
                device,
                peer,
                sessions: Sessions::default(),
                sealing: None,
                sent: Vec::new(),
            }
        }

        fn act(&mut self) {
            while let Some(action) = self.device.poll_action() {
                match action {
                    Action::Transmit { datagram, .. } => self.sent.push(datagram),
                    Action::Install {
                        session,
                        seals,
                        opens,
                        sending,
                        ..
                    } => {
                        seals.into_iter().for_each(|half| self.sessions.add_seal(half));
                        opens.into_iter().for_each(|half| self.sessions.add_open(half));
                        self.sealing = if sending { Some(session) } else { self.sealing };
                    }
                    Action::Promote { session, .. } => self.sealing = Some(session),
                    _ => {}
                }
            }
        }

        /// Another process in its place, by way of a document.
        fn hand_over(self, me: u8, other: u8, suite: SuiteChoice, at: u64) -> End {
            let state = self.device.peer_state(now(at), self.peer, &self.sessions).unwrap();
            let json = serde_json::to_string(&state).unwrap();
            drop(self);
            let mut end = End::new(me, other, suite);
            assert!(end.device.resume_peer(end.peer, &serde_json::from_str(&json).unwrap()));
            end.act();
            end
        }

        fn seal(&mut self, lane: usize, at: u64) -> Vec<u8> {
            let mut record = [&[0; DATA_HEADER_LEN][..], b"text", &[0; TAG_LEN]].concat();
            let seals = &mut self.sessions.0.get_mut(&self.sealing.unwrap()).unwrap().0;
            seals[lane].seal(now(at).mono, 0, &mut record).unwrap();
            record
        }

        fn open(&mut self, mut record: Vec<u8>, at: u64) -> Result<(), crate::proto::OpenError> {
            let header = DataHeader::parse(&record).unwrap();
            let mut opens = self.sessions.0.values_mut().flat_map(|halves| &mut halves.1);
            let half = opens.find(|half| half.local_index() == header.receiver).unwrap();
            let session = half.session();
            half.open(now(at).mono, &header, &mut record)?;
            self.device.confirmed(self.peer, session, now(at));
            self.act();
            Ok(())
        }
    }

    /// Both ends, with a session that a has asked for.
    fn pair(suite: SuiteChoice) -> [End; 2] {
        let [mut a, mut b] = [End::new(1, 2, suite), End::new(2, 1, suite)];
        a.device.want_session(a.peer, now(2));
        a.act();
        let initiation = a.sent.pop().unwrap();
        b.device
            .handle_datagram(now(2), Endpoint::new(address(1)), &initiation)
            .unwrap();
        b.act();
        let response = b.sent.pop().unwrap();
        a.device
            .handle_datagram(now(2), Endpoint::new(address(2)), &response)
            .unwrap();
        a.act();
        [a, b]
    }

    const SUITES: [SuiteChoice; 2] = [SuiteChoice::Native, SuiteChoice::WireGuard];

    fn lanes(suite: SuiteChoice) -> std::ops::Range<usize> {
        0..if suite == SuiteChoice::Native {
            usize::from(LANES)
        } else {
            1
        }
    }

    #[test]
    fn a_session_goes_on_in_another_process_whichever_end_is_handed_over() {
        for suite in SUITES {
            let [mut a, mut b] = pair(suite);
            let old: Vec<_> = lanes(suite).map(|lane| a.seal(lane, 3)).collect();
            for record in &old {
                b.open(record.clone(), 3).unwrap();
            }
            let handshake = a.device.peer(a.peer).unwrap().last_handshake;
            let mut a = a.hand_over(1, 2, suite, 4);
            let mut b = b.hand_over(2, 1, suite, 4);
            for record in old {
                assert_eq!(b.open(record, 5), Err(crate::proto::OpenError::Replayed));
            }
            for lane in lanes(suite) {
                let record = a.seal(lane, 5);
                assert_eq!(DataHeader::parse(&record).unwrap().counter, 1 + COUNTER_SKIP);
                b.open(record, 5).unwrap();
                let record = b.seal(lane, 5);
                a.open(record, 5).unwrap();
            }
            assert_eq!(a.device.peer(a.peer).unwrap().last_handshake, handshake);
            assert!(a.sent.is_empty() && b.sent.is_empty(), "no handshake");
            // The session's age goes on too: it is renewed when it would have been.
            assert!(a.device.poll_timeout().is_some_and(|at| at > now(5).mono));
        }
    }

    #[test]
    fn a_session_that_waits_for_confirmation_still_does() {
        for suite in SUITES {
            let [mut a, b] = pair(suite);
            let mut b = b.hand_over(2, 1, suite, 3);
            assert_eq!(b.sealing, None);
            let record = a.seal(0, 4);
            b.open(record, 4).unwrap();
            assert!(b.sealing.is_some());
            let record = b.seal(0, 4);
            a.open(record, 4).unwrap();
        }
    }

    #[test]
    fn a_handshake_under_way_begins_anew_at_once() {
        let mut a = End::new(1, 2, SuiteChoice::Native);
        a.device.want_session(a.peer, now(2));
        a.act();
        assert_eq!(a.sent.len(), 1);
        let mut a = a.hand_over(1, 2, SuiteChoice::Native, 3);
        assert_eq!(a.device.poll_timeout(), Some(now(3).mono));
        a.device.handle_timeout(now(3));
        a.act();
        assert_eq!(a.sent.len(), 1);
    }

    #[test]
    fn an_old_initiation_stays_old() {
        let suite = SuiteChoice::Native;
        let mut a = End::new(1, 2, suite);
        a.device.want_session(a.peer, now(2));
        a.act();
        let initiation = a.sent.pop().unwrap();
        let mut b = End::new(2, 1, suite);
        let from = Endpoint::new(address(1));
        b.device.handle_datagram(now(2), from, &initiation).unwrap();
        b.act();
        let mut b = b.hand_over(2, 1, suite, 3);
        assert_eq!(
            b.device.handle_datagram(now(4), from, &initiation),
            Err(crate::proto::Rejected::Replayed)
        );
    }

    #[test]
    fn a_new_session_takes_no_number_of_one_that_was_handed_over() {
        let [a, _] = pair(SuiteChoice::Native);
        let old = a.sealing.unwrap();
        let mut a = a.hand_over(1, 2, SuiteChoice::Native, 3);
        let mut b = End::new(2, 1, SuiteChoice::Native);
        a.device.handle_timeout(now(200));
        a.device.want_session(a.peer, now(200));
        a.act();
        let initiation = a.sent.pop().unwrap();
        b.device
            .handle_datagram(now(200), Endpoint::new(address(1)), &initiation)
            .unwrap();
        b.act();
        let response = b.sent.pop().unwrap();
        a.device
            .handle_datagram(now(200), Endpoint::new(address(2)), &response)
            .unwrap();
        a.act();
        assert!(a.sealing.is_some_and(|new| new > old));
    }
}
