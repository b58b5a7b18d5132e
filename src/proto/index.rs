//! The receiver indices of this end: unpredictable, and no two alive ones share their upper 24 bits.
#![forbid(unsafe_code)]

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::awaited::Awaited;
use super::endpoint::PeerId;
use crate::wire::message::MAC_LEN;

/// The low byte of an index, which is a lane or names a worker.
const LOW_BITS: u32 = 8;

/// Draws that are bent to a place. Where so many found only bases in use, the next ones take any: its datagrams are opened all the same.
const PLACED_DRAWS_MAX: u32 = 64;

/// Which of an end's workers the indices of a base count from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    /// The worker of the index whose low byte is 0.
    pub(super) first: u8,
    /// How many there are; more than `first`.
    pub(super) workers: u8,
}

impl Place {
    /// The second byte, next to `drawn`, of the indices of such a base: see [`owner`](crate::wire::message::owner).
    fn second_byte(self, drawn: u8) -> u8 {
        match drawn.checked_sub(self.first) {
            Some(above) => drawn - above % self.workers,
            None => self.first,
        }
    }
}

/// 24 random bits above a zero byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub(super) struct Base(u32);

impl Base {
    /// The base of an index.
    pub(super) fn of(index: u32) -> Base {
        Base(index >> LOW_BITS << LOW_BITS)
    }

    /// The index of this base with the low byte `low`.
    pub(super) fn with(self, low: u8) -> u32 {
        self.0 | u32::from(low)
    }
}

/// Whom an index belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Owner {
    /// The peer that was told to use it.
    pub(super) peer: PeerId,
    /// mac1 of the handshake message that told it, while a cookie reply to that may come.
    pub(super) mac1: Option<[u8; MAC_LEN]>,
    /// A message told it, so answers may come.
    announced: bool,
}

/// Every base that is in use, by a handshake under way or a session.
#[derive(Default)]
pub(super) struct IndexTable {
    owners: HashMap<Base, Owner>,
    awaited: Arc<Awaited>,
}

impl IndexTable {
    /// A base that nobody uses, and which nobody can guess; of `place` as long as that has any to spare.
    pub(super) fn allocate(&mut self, peer: PeerId, place: Place, random: &mut dyn FnMut(&mut [u8])) -> Base {
        // Ends: a peer holds at most seven bases, so even 100,000 peers leave the odds of every draw of any base above 1/2.
        for draw in 0u32.. {
            let mut bytes = [0; 4];
            random(&mut bytes);
            if draw < PLACED_DRAWS_MAX {
                bytes[1] = place.second_byte(bytes[1]);
            }
            let base = Base::of(u32::from_le_bytes(bytes));
            if let Entry::Vacant(entry) = self.owners.entry(base) {
                entry.insert(Owner {
                    peer,
                    mac1: None,
                    announced: false,
                });
                return base;
            }
        }
        unreachable!("4 billion draws of bases in use")
    }

    /// Gives `base` to the peer that an earlier process gave it to. No answer is waited for any more.
    pub(super) fn claim(&mut self, base: Base, peer: PeerId) {
        let owner = Owner {
            peer,
            mac1: None,
            announced: false,
        };
        self.owners.insert(base, owner);
    }

    /// Notes mac1 of the message that announced `base`.
    pub(super) fn announced(&mut self, base: Base, mac1: [u8; MAC_LEN]) {
        if let Some(owner) = self.owners.get_mut(&base) {
            owner.mac1 = Some(mac1);
            if !std::mem::replace(&mut owner.announced, true) {
                self.awaited.add(base.with(0));
            }
        }
    }

    /// Whom `base` belongs to.
    pub(super) fn owner(&mut self, base: Base) -> Option<&mut Owner> {
        self.owners.get_mut(&base)
    }

    /// The handshake that told `base` is done: no answer to it is waited for any more.
    pub(super) fn settled(&mut self, base: Base) {
        if let Some(owner) = self.owners.get_mut(&base) {
            owner.mac1 = None;
            if std::mem::take(&mut owner.announced) {
                self.awaited.remove(base.with(0));
            }
        }
    }

    /// Gives `base` back.
    pub(super) fn release(&mut self, base: Base) {
        if self.owners.remove(&base).is_some_and(|owner| owner.announced) {
            self.awaited.remove(base.with(0));
        }
    }

    /// The indices that answers may come to.
    pub(super) fn awaited(&self) -> &Arc<Awaited> {
        &self.awaited
    }

    /// How many bases are in use.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.owners.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::message;

    const ANYWHERE: Place = Place { first: 0, workers: 1 };

    #[test]
    fn a_base_counts_from_the_worker_that_it_was_asked_for() {
        for (first, workers) in [(0, 1), (0, 2), (1, 2), (3, 7), (30, 32), (254, 255)] {
            let place = Place { first, workers };
            for drawn in 0..=255 {
                let mut random = |bytes: &mut [u8]| bytes.fill(drawn);
                let base = IndexTable::default().allocate(PeerId(1), place, &mut random);
                for lane in [0, 1, 200] {
                    let expected = (usize::from(first) + usize::from(lane)) % usize::from(workers);
                    let owner = message::owner(base.with(lane), workers);
                    assert_eq!(usize::from(owner), expected, "{place:?}, {drawn} drawn");
                }
            }
        }
    }

    #[test]
    fn where_a_place_is_used_up_any_base_does() {
        let place = Place { first: 1, workers: 255 };
        let mut draws = 0u32;
        let mut random = move |bytes: &mut [u8]| {
            // Always the same but for the second byte.
            bytes.copy_from_slice(&[9, draws as u8, 9, 9]);
            draws += 1;
        };
        let mut table = IndexTable::default();
        let bases: Vec<Base> = (0..5).map(|_| table.allocate(PeerId(1), place, &mut random)).collect();
        assert_eq!(table.len(), 5);
        let at_their_place = bases.iter().filter(|base| message::owner(base.with(0), 255) == 1);
        assert_eq!(at_their_place.count(), 1);
    }

    #[test]
    fn bases_in_use_never_collide() {
        // A generator that draws each value thrice, with different low bytes.
        let mut draws = 0u32;
        let mut random = move |bytes: &mut [u8]| {
            bytes.copy_from_slice(&(((draws / 3) << 8) | (draws % 3)).to_le_bytes());
            draws += 1;
        };
        let mut table = IndexTable::default();
        let mut bases: Vec<Base> = (0..100)
            .map(|_| table.allocate(PeerId(1), ANYWHERE, &mut random))
            .collect();
        assert_eq!(table.len(), 100);
        bases.sort();
        bases.dedup();
        assert_eq!(bases.len(), 100);
        for base in bases {
            assert_eq!(base.with(0) & 0xff, 0);
            table.announced(base, [1; MAC_LEN]);
            table.announced(base, [2; MAC_LEN]);
            assert!(table.awaited().contains(base.with(3)));
            if base.with(0) & 0x100 != 0 {
                table.settled(base);
                table.settled(base);
            }
            table.release(base);
        }
        assert_eq!(table.len(), 0);
        assert!((0..=u16::MAX).all(|class| !table.awaited().contains(u32::from(class) << 16)));
    }

    #[test]
    fn an_index_belongs_to_its_base_whatever_its_lane() {
        let mut table = IndexTable::default();
        let base = table.allocate(PeerId(7), ANYWHERE, &mut |bytes| bytes.fill(0xab));
        assert_eq!(base.with(5), 0xabab_ab05);
        assert_eq!(table.owner(Base::of(0xabab_abff)).unwrap().peer, PeerId(7));
        assert!(table.owner(Base::of(0xabab_acff)).is_none());
    }
}
