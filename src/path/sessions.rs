//! The receiver indices that one worker owns, and the keys that open what is addressed to them.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

use crate::proto::{OpenHalf, PeerId, SessionId};

/// The keys of one lane. Their worker writes to it with every datagram; wherever the allocator puts it, no other worker's
/// lies on the same cache line, nor on the next one, which the CPU fetches with it.
#[repr(align(128))]
pub(super) struct Opener {
    pub(super) peer: PeerId,
    pub(super) half: OpenHalf,
    /// The number above the counter of the newest datagram that told where the peer is.
    told: u64,
}

impl Opener {
    /// Whether the datagram with this counter, which is authentic and tells where the peer is, is the newest to do so. What
    /// comes late tells where the peer was.
    pub(super) fn is_news(&mut self, counter: u64) -> bool {
        let is_news = counter >= self.told;
        if is_news {
            self.told = counter.saturating_add(1);
        }
        is_news
    }
}

/// Receiver index -> opener.
#[derive(Default)]
pub(super) struct Openers {
    by_index: HashMap<u32, Box<Opener>, BuildHasherDefault<IndexHasher>>,
    /// The indices of each peer: at most three sessions', each with the lanes that this worker owns. A session that ends
    /// is looked for here, so that its end costs the same whether there is one peer or a million.
    of_peer: HashMap<PeerId, Vec<u32>>,
}

impl Openers {
    pub(super) fn insert(&mut self, peer: PeerId, half: OpenHalf) {
        let index = half.local_index();
        // Of a session that goes on from an earlier process, only what is newer than all that came tells anything.
        let told = half.newest();
        let opener = Box::new(Opener { peer, half, told });
        if let Some(replaced) = self.by_index.insert(index, opener) {
            self.forget(replaced.peer, index);
        }
        self.of_peer.entry(peer).or_default().push(index);
    }

    pub(super) fn get_mut(&mut self, index: u32) -> Option<&mut Opener> {
        self.by_index.get_mut(&index).map(|opener| &mut **opener)
    }

    /// Every key, and whose it is.
    pub(super) fn into_halves(self) -> impl Iterator<Item = (PeerId, OpenHalf)> {
        self.by_index.into_values().map(|opener| (opener.peer, opener.half))
    }

    /// How many receiver indices lead to keys of `peer`.
    pub(super) fn count_of(&self, peer: PeerId) -> usize {
        self.of_peer.get(&peer).map_or(0, Vec::len)
    }

    /// How many receiver indices lead to keys.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.by_index.len()
    }

    pub(super) fn retire(&mut self, peer: PeerId, session: SessionId) {
        let Some(indices) = self.of_peer.get_mut(&peer) else {
            return;
        };
        let by_index = &mut self.by_index;
        indices.retain(|index| {
            let retired = by_index
                .get(index)
                .is_some_and(|opener| opener.half.session() == session);
            if retired {
                by_index.remove(index);
            }
            !retired
        });
        if indices.is_empty() {
            self.of_peer.remove(&peer);
        }
    }

    pub(super) fn retire_peer(&mut self, peer: PeerId) {
        for index in self.of_peer.remove(&peer).unwrap_or_default() {
            self.by_index.remove(&index);
        }
    }

    /// Of an index that was given to another.
    fn forget(&mut self, peer: PeerId, index: u32) {
        if let Some(indices) = self.of_peer.get_mut(&peer) {
            indices.retain(|other| *other != index);
        }
    }
}

/// Fibonacci hashing. Our own indices are random and unknown to an attacker, who can therefore not choose keys that
/// collide; SipHash would cost more than the rest of the look-up.
#[derive(Default)]
pub(super) struct IndexHasher(u64);

impl Hasher for IndexHasher {
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u32(u32::from(*byte));
        }
    }

    fn write_u32(&mut self, index: u32) {
        /// 2^64 divided by the golden ratio (Knuth, The Art of Computer Programming, volume 3, section 6.4).
        const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;
        self.0 = (self.0 ^ u64::from(index)).wrapping_mul(GOLDEN);
    }

    fn finish(&self) -> u64 {
        // The table takes its bucket from the low bits, and the product is best mixed in the high ones.
        self.0.rotate_left(32)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::proto::session::open_half;

    #[derive(Debug, Clone)]
    enum Step {
        Insert { peer: u32, session: u64, index: u32 },
        Retire { peer: u32, session: u64 },
        RetirePeer(u32),
    }

    fn step() -> impl Strategy<Value = Step> {
        // A session is one peer's: its number tells which.
        let session = (0u32..4, 0u64..3).prop_map(|(peer, nth)| (peer, u64::from(peer) * 10 + nth));
        prop_oneof![
            4 => (session.clone(), 0u32..24).prop_map(|((peer, session), index)| Step::Insert { peer, session, index }),
            2 => session.prop_map(|(peer, session)| Step::Retire { peer, session }),
            1 => (0u32..4).prop_map(Step::RetirePeer),
        ]
    }

    proptest! {
        #[test]
        fn what_is_retired_is_gone_and_all_else_is_there(steps in prop::collection::vec(step(), 0..80)) {
            let mut openers = Openers::default();
            // The slow twin: a list that is searched from end to end.
            let mut twin: Vec<(u32, u64, u32)> = Vec::new();
            for step in steps {
                match step {
                    Step::Insert { peer, session, index } => {
                        openers.insert(PeerId(peer), open_half(SessionId(session), index));
                        twin.retain(|entry| entry.2 != index);
                        twin.push((peer, session, index));
                    }
                    Step::Retire { peer, session } => {
                        openers.retire(PeerId(peer), SessionId(session));
                        twin.retain(|entry| entry.1 != session);
                    }
                    Step::RetirePeer(peer) => {
                        openers.retire_peer(PeerId(peer));
                        twin.retain(|entry| entry.0 != peer);
                    }
                }
                for index in 0..24 {
                    let found = openers.get_mut(index).map(|opener| (opener.peer.0, opener.half.session().0, index));
                    prop_assert_eq!(found, twin.iter().copied().find(|entry| entry.2 == index));
                }
                let listed: usize = openers.of_peer.values().map(Vec::len).sum();
                prop_assert_eq!((listed, openers.by_index.len()), (twin.len(), twin.len()));
            }
        }
    }
}
