//! Which sources were turned away a moment ago, in bounded memory: a Bloom filter of two generations.
#![forbid(unsafe_code)]

use std::time::Duration;

use super::limits::{REKEY_TIMEOUT, REKEY_TIMEOUT_JITTER_MAX};
use super::time::Time;

/// A source is remembered for this long at least, and at most twice as long: an honest initiator asks again within it.
const GENERATION: Duration = Duration::from_secs(6);
/// Lines of a generation: 512 KiB. Of 50,000 forged sources per second, 300,000 in a generation, about 2 in 100 are taken for
/// one that was there before.
const LINES: usize = 1 << 13;
/// Bits that a source sets, all of them in one line.
const BITS: usize = 3;

const _: () = assert!(GENERATION.as_millis() > REKEY_TIMEOUT.as_millis() + REKEY_TIMEOUT_JITTER_MAX.as_millis());

/// A cache line: whoever looks for a source waits for memory once per generation.
#[derive(Clone, Default)]
#[repr(align(64))]
struct Line([u64; 8]);

impl Line {
    fn has_all(&self, bits: &[usize; BITS]) -> bool {
        bits.iter().all(|&bit| self.0[bit / 64] >> (bit % 64) & 1 == 1)
    }

    fn set_all(&mut self, bits: &[usize; BITS]) {
        for &bit in bits {
            self.0[bit / 64] |= 1 << (bit % 64);
        }
    }
}

/// The line of a hash, and its bits there.
fn place(hash: u64) -> (usize, [usize; BITS]) {
    let bits = [16, 25, 34].map(|shift| (hash >> shift) as usize % 512);
    (hash as usize % LINES, bits)
}

/// Remembers hashes. Takes its memory with the first one.
#[derive(Default)]
pub(super) struct Recent {
    /// The one that grows, and the one before.
    generations: [Vec<Line>; 2],
    began: Time,
}

impl Recent {
    /// Remembers `hash`; whether it was remembered, or by chance looks so.
    pub(super) fn insert(&mut self, now: Time, hash: u64) -> bool {
        let age = now - self.began;
        if self.generations[0].is_empty() {
            self.generations = [0, 1].map(|_| vec![Line::default(); LINES]);
            self.began = now;
        } else if age >= GENERATION {
            self.generations.swap(0, 1);
            self.generations[0].fill(Line::default());
            if age >= 2 * GENERATION {
                self.generations[1].fill(Line::default());
            }
            self.began = now;
        }
        let (line, bits) = place(hash);
        let known = self.contains(now, hash);
        self.generations[0][line].set_all(&bits);
        known
    }

    /// Whether `hash` is remembered, or by chance looks so.
    pub(super) fn contains(&self, now: Time, hash: u64) -> bool {
        let (line, bits) = place(hash);
        // What has grown too old since the last insert counts no more.
        let ages = (now - self.began).as_nanos() / GENERATION.as_nanos();
        let young = self.generations.iter().take(2usize.saturating_sub(ages as usize));
        young
            .filter_map(|generation| generation.get(line))
            .any(|line| line.has_all(&bits))
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
        assert!(recent.contains(start + GENERATION, 0x0123_4567_89ab_cdef));
        assert!(!recent.contains(start + 2 * GENERATION, 0x0123_4567_89ab_cdef));
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
