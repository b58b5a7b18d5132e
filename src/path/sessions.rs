//! The receiver indices that one worker owns, and the keys that open what is addressed to them.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

use crate::proto::{OpenHalf, PeerId, SessionId};

/// The keys of one lane.
pub(super) struct Opener {
    pub(super) peer: PeerId,
    pub(super) half: OpenHalf,
}

/// Receiver index -> opener.
#[derive(Default)]
pub(super) struct Openers {
    by_index: HashMap<u32, Box<Opener>, BuildHasherDefault<IndexHasher>>,
}

impl Openers {
    pub(super) fn insert(&mut self, peer: PeerId, half: OpenHalf) {
        self.by_index
            .insert(half.local_index(), Box::new(Opener { peer, half }));
    }

    pub(super) fn get_mut(&mut self, index: u32) -> Option<&mut Opener> {
        self.by_index.get_mut(&index).map(|opener| &mut **opener)
    }

    pub(super) fn retire(&mut self, session: SessionId) {
        self.by_index.retain(|_, opener| opener.half.session() != session);
    }

    pub(super) fn retire_peer(&mut self, peer: PeerId) {
        self.by_index.retain(|_, opener| opener.peer != peer);
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
