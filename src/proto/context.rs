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
use super::index::{Base, IndexTable, Place};
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

    /// A new index of this end for a handshake with `peer`. `remote_lanes`: how many lanes that has, where it is known already.
    pub(super) fn allocate(&mut self, peer: PeerId, suite: Suite, remote_lanes: Option<u8>) -> LocalIndex {
        // A peer with fewer lanes than there are workers here has some of them; others' peers have others. By whole sets, so
        // that what this end's worker answers on its own lane is opened by the worker of the peer that sent.
        let first = match (suite, remote_lanes) {
            (Suite::Native, Some(lanes @ 1..)) if lanes < self.lanes => {
                let sets = u32::from(self.lanes / lanes);
                lanes * (peer.0 % sets) as u8
            }
            _ => 0,
        };
        let place = Place {
            first,
            workers: self.lanes,
        };
        let base = self.indices.allocate(peer, place, &mut self.random);
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
            remote_lanes,
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

#[cfg(test)]
mod tests {
    use x25519_dalek::StaticSecret;

    use super::*;
    use crate::crypto::Choice;
    use crate::wire::message;

    /// An end with so many workers.
    fn end(lanes: u8) -> Context {
        let identity = Identity::new(&StaticSecret::from([1; 32]), Choice::Auto);
        let mut seed = 1u64;
        let random = move |bytes: &mut [u8]| {
            for byte in bytes {
                // Knuth's MMIX generator: any sequence will do.
                seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                *byte = (seed >> 56) as u8;
            }
        };
        Context::new(Arc::new(identity), lanes, Box::new(random))
    }

    #[test]
    fn peers_with_few_lanes_are_spread_over_all_workers() {
        for (lanes, expected) in [
            (1, vec![1; 8]),
            (2, vec![2; 8]),
            (3, vec![4, 4, 4, 4, 4, 4, 0, 0]),
            (8, vec![8; 8]),
        ] {
            let mut gateway = end(8);
            let mut opens = [0; 8];
            for peer in 0..8 {
                let index = gateway.allocate(PeerId(peer), Suite::Native, Some(lanes));
                for lane in 0..lanes {
                    opens[usize::from(message::owner(index.base.with(lane), 8))] += 1;
                }
            }
            assert_eq!(opens[..], expected, "{lanes} lanes each");
        }
    }

    #[test]
    fn what_a_worker_answers_comes_to_the_worker_that_sent() {
        for ours in [1, 2, 3, 4, 7, 32, 255] {
            for theirs in [1, 2, 3, 5, 8, 200] {
                let (mut here, mut there) = (end(ours), end(theirs));
                for peer in 0..20 {
                    // They have called, not yet knowing how many lanes there are here.
                    let to_them = there.allocate(PeerId(0), Suite::Native, None);
                    let to_us = here.allocate(PeerId(peer), Suite::Native, Some(theirs));
                    for lane in 0..theirs.min(ours) {
                        let worker = message::owner(to_us.base.with(lane), ours);
                        let back = message::owner(to_them.base.with(worker), theirs);
                        assert_eq!(back, lane, "{ours} workers here, {theirs} there, peer {peer}");
                    }
                }
            }
        }
    }

    #[test]
    fn wireguard_sessions_go_to_the_workers_in_turn() {
        let mut gateway = end(3);
        let worker = |index: LocalIndex| message::owner(index.wire(), 3);
        let workers: Vec<u8> = (0..6)
            .map(|_| worker(gateway.allocate(PeerId(0), Suite::WireGuard, Some(1))))
            .collect();
        assert_eq!(workers, [1, 2, 0, 1, 2, 0]);
    }
}
