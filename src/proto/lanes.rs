//! From the two keys of a handshake to the halves of a session.
//!
//! In the native suite each direction has as many lanes as its sender has workers; every lane has its own key, counter
//! and replay window, so no two cores share anything. A WireGuard session is one lane whose key is the handshake's.
#![forbid(unsafe_code)]

use snow::types::Hash;
use zeroize::Zeroizing;

use super::index::Base;
use super::resolver::Blake2s;
use super::session::{Key, OpenHalf, SealHalf, SessionFacts};
use super::suite::Suite;
use crate::crypto::Choice;

const LABEL: &[u8; 12] = b"ringway lane";

/// One direction of a session.
pub(super) struct Direction {
    /// The handshake's key of this direction.
    pub(super) key: Zeroizing<[u8; 32]>,
    /// The receiver's base.
    pub(super) base: Base,
    /// How many lanes its sender has; 1 in the WireGuard suite.
    pub(super) lanes: u8,
    /// The low byte of the receiver's index, where it is no lane (WireGuard suite).
    pub(super) low: u8,
}

impl Direction {
    /// The halves that seal in this direction.
    pub(super) fn seals(&self, facts: SessionFacts, crypto: Choice) -> Vec<SealHalf> {
        self.each_lane(facts.suite, crypto)
            .map(|(index, key)| SealHalf::new(facts, index, key))
            .collect()
    }

    /// The halves that open in this direction.
    pub(super) fn opens(&self, facts: SessionFacts, crypto: Choice) -> Vec<OpenHalf> {
        self.each_lane(facts.suite, crypto)
            .map(|(index, key)| OpenHalf::new(facts, index, key))
            .collect()
    }

    fn each_lane(&self, suite: Suite, crypto: Choice) -> impl Iterator<Item = (u32, Key)> + '_ {
        (0..self.lanes).map(move |lane| match suite {
            Suite::Native => (
                self.base.with(lane),
                Key::new(suite, crypto, &lane_key(&self.key, lane)),
            ),
            Suite::WireGuard => (self.base.with(self.low), Key::new(suite, crypto, &self.key)),
        })
    }
}

/// The key of a lane: the first output of Noise's HKDF (specification rev 34, section 4.3) with the direction's key as
/// chaining key, and a label and the lane's number as input key material.
pub(super) fn lane_key(direction: &[u8; 32], lane: u8) -> Zeroizing<[u8; 32]> {
    let mut input = [0; LABEL.len() + 1];
    input[..LABEL.len()].copy_from_slice(LABEL);
    input[LABEL.len()] = lane;
    let mut hash = Blake2s::default();
    let mut key = Zeroizing::new([0; 32]);
    hash.hkdf(direction, &input, 1, key.as_mut(), &mut [], &mut []);
    key
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn every_lane_and_direction_has_its_own_key() {
        let keys: HashSet<[u8; 32]> = (0..=255)
            .flat_map(|lane| [*lane_key(&[1; 32], lane), *lane_key(&[2; 32], lane)])
            .collect();
        assert_eq!(keys.len(), 512);
        assert!(!keys.contains(&[1; 32]));
    }
}
