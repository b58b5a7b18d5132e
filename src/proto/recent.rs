//! Which sources were turned away a moment ago, in bounded memory: a Bloom filter of two generations.
#![forbid(unsafe_code)]

use std::time::Duration;

use super::limits::{REKEY_TIMEOUT, REKEY_TIMEOUT_JITTER_MAX};
use super::time::Time;

/// A source is remembered for this long at least, and at most twice as long: an honest initiator asks again within it.
const GENERATION: Duration = Duration::from_secs(6);
/// Bits of a generation, of which a source sets two: 512 KiB. Of 50,000 forged sources per second, 300,000 in a generation,
/// about 2 in 100 are taken for one that was there before.
const BITS: usize = 1 << 22;

const _: () = assert!(GENERATION.as_millis() > REKEY_TIMEOUT.as_millis() + REKEY_TIMEOUT_JITTER_MAX.as_millis());

/// Remembers hashes. Takes its memory with the first one.
#[derive(Default)]
pub(super) struct Recent {
    /// The one that grows, and the one before.
    generations: [Vec<u64>; 2],
    began: Time,
}

impl Recent {
    /// Remembers `hash`; whether it was remembered, or by chance looks so.
    pub(super) fn insert(&mut self, now: Time, hash: u64) -> bool {
        let age = now - self.began;
        if self.generations[0].is_empty() {
            self.generations = [0, 1].map(|_| vec![0; BITS / 64]);
            self.began = now;
        } else if age >= GENERATION {
            self.generations.swap(0, 1);
            self.generations[0].fill(0);
            if age >= 2 * GENERATION {
                self.generations[1].fill(0);
            }
            self.began = now;
        }
        let places = [hash as usize % BITS, (hash >> 32) as usize % BITS];
        let is_set = |bits: &[u64], at: usize| bits[at / 64] >> (at % 64) & 1 == 1;
        let known = self
            .generations
            .iter()
            .any(|bits| places.iter().all(|&at| is_set(bits, at)));
        for at in places {
            self.generations[0][at / 64] |= 1 << (at % 64);
        }
        known
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_is_remembered_for_one_generation_and_forgotten_after_two() {
        let start = Time::from_nanos(1 << 40);
        let mut recent = Recent::default();
        assert!(!recent.insert(start, 0x0123_4567_89ab_cdef));
        assert!(recent.insert(start, 0x0123_4567_89ab_cdef));
        assert!(recent.insert(start + GENERATION, 0x0123_4567_89ab_cdef));
        assert!(!recent.insert(start + 3 * GENERATION, 0x0123_4567_89ab_cdef));
        assert!(!recent.insert(start + 3 * GENERATION, 0x0123_4567_0000_0001));
    }

    #[test]
    fn few_strangers_of_a_flood_are_taken_for_somebody_seen_before() {
        let mut recent = Recent::default();
        let now = Time::from_nanos(1 << 40);
        let hashes = (1..300_000u64).map(|number| number.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29));
        let mistaken = hashes.filter(|&hash| recent.insert(now, hash)).count();
        assert!(mistaken < 9_000, "{mistaken}");
    }
}
