//! What all peers of a device share when they handshake.
#![forbid(unsafe_code)]

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use zeroize::Zeroizing;

use super::action::Action;
use super::endpoint::{Endpoint, PeerId, SessionId};
use super::handshake::Agreed;
use super::identity::Identity;
use super::index::{Base, IndexTable};
use super::lanes::Direction;
use super::limits::REKEY_TIMEOUT_JITTER_MAX;
use super::noise::Means;
use super::session::{OpenHalf, SealHalf, SessionFacts};
use super::slots::{Retired, Slot};
use super::suite::Suite;
use super::time::Time;

/// A source of randomness.
pub(super) type Random = Box<dyn FnMut(&mut [u8]) + Send>;

/// The local identity, indices and randomness, and the actions that gather.
pub(super) struct Context {
    pub(super) identity: Arc<Identity>,
    pub(super) indices: IndexTable,
    pub(super) actions: VecDeque<Action>,
    pub(super) random: Random,
    /// Workers of this end, at least 1.
    pub(super) lanes: u8,
    /// The session that is made next.
    next_session: u64,
    /// The worker that gets the next WireGuard session.
    next_worker: u8,
}

/// An index of this end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct LocalIndex {
    pub(super) base: Base,
    /// In the WireGuard suite, the worker that owns the session; otherwise 0.
    low: u8,
}

impl LocalIndex {
    /// The index as handshake messages carry it.
    pub(super) fn wire(self) -> u32 {
        self.base.with(self.low)
    }
}

impl Context {
    pub(super) fn new(identity: Arc<Identity>, lanes: u8, random: Random) -> Context {
        Context {
            identity,
            indices: IndexTable::default(),
            actions: VecDeque::new(),
            random,
            lanes: lanes.max(1),
            next_session: 0,
            next_worker: 0,
        }
    }

    /// What a handshake in `suite` is computed with.
    pub(super) fn means(&self, suite: Suite) -> Means<'_> {
        Means {
            identity: &self.identity,
            suite,
        }
    }

    /// 32 random bytes.
    pub(super) fn draw_key(&mut self) -> Zeroizing<[u8; 32]> {
        let mut key = Zeroizing::new([0; 32]);
        (self.random)(key.as_mut());
        key
    }

    /// A random time of up to REKEY_TIMEOUT_JITTER_MAX.
    pub(super) fn draw_jitter(&mut self) -> Duration {
        let mut bytes = [0; 8];
        (self.random)(&mut bytes);
        REKEY_TIMEOUT_JITTER_MAX.mul_f64(u64::from_le_bytes(bytes) as f64 / u64::MAX as f64)
    }

    /// A new index of this end for a handshake with `peer`.
    pub(super) fn allocate(&mut self, peer: PeerId, suite: Suite) -> LocalIndex {
        let base = self.indices.allocate(peer, &mut self.random);
        let low = match suite {
            Suite::Native => 0,
            Suite::WireGuard => {
                self.next_worker = (self.next_worker + 1) % self.lanes;
                self.next_worker
            }
        };
        LocalIndex { base, low }
    }

    pub(super) fn transmit(&mut self, to: Endpoint, peer: Option<PeerId>, datagram: Vec<u8>) {
        self.actions.push_back(Action::Transmit { to, peer, datagram });
    }

    /// Hands a session to the workers.
    pub(super) fn install(
        &mut self,
        peer: PeerId,
        created: Time,
        (suite, initiator): (Suite, bool),
        local: LocalIndex,
        agreed: Agreed,
    ) -> Slot {
        let session = SessionId(self.next_session);
        self.next_session += 1;
        let Agreed {
            keys,
            remote,
            remote_lanes,
        } = agreed;
        let (to_seal, to_open) = match initiator {
            true => (keys.to_responder, keys.to_initiator),
            false => (keys.to_initiator, keys.to_responder),
        };
        let lanes = if suite.is_native() { self.lanes } else { 1 };
        let sealing = Direction {
            key: to_seal,
            base: Base::of(remote),
            lanes,
            low: remote.to_le_bytes()[0],
        };
        let opening = Direction {
            key: to_open,
            base: local.base,
            lanes: remote_lanes,
            low: local.low,
        };
        let facts = SessionFacts {
            suite,
            session,
            created,
            initiator,
        };
        self.actions.push_back(Action::Install {
            peer,
            session,
            suite,
            seals: sealing.seals(facts, self.identity.choice()),
            opens: opening.opens(facts, self.identity.choice()),
            sending: initiator,
        });
        Slot {
            session,
            suite,
            created,
            base: local.base,
            remote_lanes,
        }
    }

    /// Hands a session of an earlier process to the workers.
    pub(super) fn reinstall(
        &mut self,
        peer: PeerId,
        slot: &Slot,
        seals: Vec<SealHalf>,
        opens: Vec<OpenHalf>,
        sending: bool,
    ) {
        self.indices.claim(slot.base, peer);
        self.next_session = self.next_session.max(slot.session.0.saturating_add(1));
        self.actions.push_back(Action::Install {
            peer,
            session: slot.session,
            suite: slot.suite,
            seals,
            opens,
            sending,
        });
    }

    /// Takes sessions back from the workers.
    pub(super) fn retire(&mut self, peer: PeerId, retired: Retired) {
        for slot in retired.into_iter().flatten() {
            self.indices.release(slot.base);
            self.actions.push_back(Action::Retire {
                peer,
                session: slot.session,
            });
        }
    }
}
