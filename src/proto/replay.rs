//! The replay window: which counters of a key were seen (RFC 6479, with the window of the WireGuard paper, 5.4.6).
//!
//! A counter is checked before its record is opened and marked after it proved authentic; between the two nothing
//! else may happen to the window, which one owner guarantees.
#![forbid(unsafe_code)]

use super::limits::REPLAY_WINDOW_BITS;

const WORD_BITS: u64 = u64::BITS as u64;
const WORDS: usize = (REPLAY_WINDOW_BITS / WORD_BITS) as usize;
/// Bytes of the bitmap.
pub(super) const BITMAP_LEN: usize = (REPLAY_WINDOW_BITS / 8) as usize;
/// How far behind the newest counter a new one may be. One word less than the bitmap: words are cleared whole as the
/// window moves, so the oldest word is always partly gone.
pub const WINDOW: u64 = REPLAY_WINDOW_BITS - WORD_BITS;

const _: () = assert!(
    REPLAY_WINDOW_BITS.is_power_of_two() && WORDS >= 2,
    "positions are masked counters"
);

/// Why a counter is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ReplayError {
    /// It was seen before.
    #[error("the counter was seen before")]
    Replayed,
    /// It lies left of the window, so nobody knows.
    #[error("the counter is older than the replay window")]
    TooOld,
}

/// The windows of a session's lanes are made one after the other, by one thread, for many cores: none shares a cache line
/// with another, nor the next one, which the CPU fetches with it.
#[derive(Debug, Clone)]
#[repr(align(128))]
struct Words([u64; WORDS]);

/// The counters of one key that were seen.
#[derive(Debug, Clone)]
pub struct ReplayWindow {
    /// The number above the highest counter seen: 0 while there is none.
    edge: u64,
    /// Bit `counter % 8192` of the ring belongs to `counter` while it is within the window.
    seen: Box<Words>,
}

/// Where a counter lies.
enum Position {
    /// Left of the window.
    Left,
    /// Within the window, at this word and mask.
    Within(usize, u64),
    /// Right of everything seen.
    Right,
}

impl ReplayWindow {
    /// Nothing was seen yet.
    pub fn new() -> ReplayWindow {
        ReplayWindow {
            edge: 0,
            seen: Box::new(Words([0; WORDS])),
        }
    }

    /// A window as [`edge`](ReplayWindow::edge) and [`bitmap`](ReplayWindow::bitmap) told.
    pub(super) fn from_parts(edge: u64, bitmap: &[u8; BITMAP_LEN]) -> ReplayWindow {
        let mut words = bitmap.as_chunks().0.iter().map(|word| u64::from_le_bytes(*word));
        ReplayWindow {
            edge,
            seen: Box::new(Words(std::array::from_fn(|_| words.next().unwrap_or_default()))),
        }
    }

    /// The number above the highest counter seen; 0 while there is none.
    pub(super) fn edge(&self) -> u64 {
        self.edge
    }

    /// Bit `counter % 8192`, counted from the lowest bit of the first byte, belongs to `counter` while it is within the
    /// window.
    pub(super) fn bitmap(&self) -> [u8; BITMAP_LEN] {
        let mut bitmap = [0; BITMAP_LEN];
        for (bytes, word) in bitmap.as_chunks_mut().0.iter_mut().zip(self.seen.0.iter()) {
            *bytes = word.to_le_bytes();
        }
        bitmap
    }

    /// Whether `counter` may be accepted.
    ///
    /// # Errors
    /// [`ReplayError`] when it was seen, or may have been.
    #[inline]
    pub fn check(&self, counter: u64) -> Result<(), ReplayError> {
        match self.position(counter) {
            Position::Left => Err(ReplayError::TooOld),
            Position::Within(word, mask) if self.seen.0[word] & mask != 0 => Err(ReplayError::Replayed),
            Position::Within(..) | Position::Right => Ok(()),
        }
    }

    /// Notes that `counter`, which [`check`](ReplayWindow::check) let pass, was authentic. The highest number of all
    /// is beyond every suite's record limit and is never marked.
    #[inline]
    pub fn mark(&mut self, counter: u64) {
        match self.position(counter) {
            Position::Left => {}
            Position::Within(word, mask) => self.seen.0[word] |= mask,
            Position::Right => {
                self.clear_words_up_to(counter);
                let (word, mask) = slot(counter);
                self.seen.0[word] |= mask;
                self.edge = counter.saturating_add(1);
            }
        }
    }

    #[inline]
    fn position(&self, counter: u64) -> Position {
        if counter >= self.edge {
            return Position::Right;
        }
        if self.edge - counter > WINDOW {
            return Position::Left;
        }
        let (word, mask) = slot(counter);
        Position::Within(word, mask)
    }

    /// Empties the words that enter the window when its right edge moves to `counter`.
    #[inline]
    fn clear_words_up_to(&mut self, counter: u64) {
        // `edge` is one past the newest: the word of the newest itself keeps its bits.
        let newest_word = match self.edge {
            0 => return, // the bitmap is empty, whatever the first counter is
            edge => (edge - 1) / WORD_BITS,
        };
        let entered = (counter / WORD_BITS - newest_word).min(WORDS as u64);
        for word in newest_word + 1..=newest_word + entered {
            self.seen.0[(word % WORDS as u64) as usize] = 0;
        }
    }
}

impl Default for ReplayWindow {
    fn default() -> ReplayWindow {
        ReplayWindow::new()
    }
}

/// The word and the mask of `counter` in the ring.
#[inline]
fn slot(counter: u64) -> (usize, u64) {
    (
        (counter / WORD_BITS % WORDS as u64) as usize,
        1 << (counter % WORD_BITS),
    )
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::ReplayError::{Replayed, TooOld};
    use super::*;

    /// The slow twin: remembers every counter.
    #[derive(Default)]
    struct Oracle(BTreeSet<u64>);

    impl Oracle {
        fn check(&self, counter: u64) -> Result<(), ReplayError> {
            let edge = self.0.last().map_or(0, |newest| newest + 1);
            match () {
                () if counter.saturating_add(WINDOW) < edge => Err(TooOld),
                () if self.0.contains(&counter) => Err(Replayed),
                () => Ok(()),
            }
        }
    }

    fn receive(window: &mut ReplayWindow, counter: u64) -> Result<(), ReplayError> {
        window.check(counter)?;
        window.mark(counter);
        Ok(())
    }

    fn run(steps: impl IntoIterator<Item = (u64, Result<(), ReplayError>)>) {
        let mut window = ReplayWindow::new();
        for (counter, expected) in steps {
            assert_eq!(receive(&mut window, counter), expected, "counter {counter}");
        }
    }

    #[test]
    fn counters_at_both_edges_of_the_window() {
        const W: u64 = WINDOW;
        run([
            (0, Ok(())),
            (1, Ok(())),
            (1, Err(Replayed)),
            (9, Ok(())),
            (8, Ok(())),
            (7, Ok(())),
            (7, Err(Replayed)),
            (W, Ok(())),
            (W - 1, Ok(())),
            (W - 1, Err(Replayed)),
            (W - 2, Ok(())),
            (2, Ok(())),
            (2, Err(Replayed)),
            (W + 16, Ok(())),
            (3, Err(TooOld)),
            (W + 16, Err(Replayed)),
            (W * 4, Ok(())),
            (W * 4 - (W - 1), Ok(())),
            (10, Err(TooOld)),
            (W * 4 - W, Err(TooOld)),
            (W * 4 - (W + 1), Err(TooOld)),
            (W * 4 - (W - 2), Ok(())),
            (W * 4 + 1 - W, Err(Replayed)),
            (0, Err(TooOld)),
        ]);
    }

    #[test]
    fn the_whole_window_can_arrive_forwards() {
        run((1..WINDOW)
            .map(|c| (c, Ok(())))
            .chain([(0, Ok(())), (0, Err(Replayed))]));
    }

    #[test]
    fn the_whole_window_can_arrive_backwards() {
        run((1..=WINDOW).rev().map(|c| (c, Ok(()))).chain([(0, Err(TooOld))]));
    }

    #[test]
    fn a_gap_left_open_stays_open_until_the_window_passes_it() {
        run((2..=WINDOW + 1).rev().map(|c| (c, Ok(()))).chain([(1, Err(TooOld))]));
        run((2..=WINDOW)
            .rev()
            .map(|c| (c, Ok(())))
            .chain([(1, Ok(())), (WINDOW + 1, Ok(())), (0, Err(TooOld))]));
    }

    #[test]
    fn the_last_counters_before_the_record_limit_are_ordinary() {
        let last = super::super::limits::REJECT_AFTER_MESSAGES - 1;
        run([
            (last - WINDOW, Ok(())),
            (last, Ok(())),
            (last - WINDOW, Err(TooOld)),
            (last - WINDOW + 1, Ok(())),
            (last, Err(Replayed)),
        ]);
    }

    #[test]
    fn a_check_alone_changes_nothing() {
        let mut window = ReplayWindow::new();
        window.mark(5);
        assert_eq!(window.check(1 << 40), Ok(()));
        assert_eq!(window.check(5), Err(Replayed));
        assert_eq!(window.check(4), Ok(()));
    }

    proptest! {
        #[test]
        fn agrees_with_a_set_of_all_counters(
            start in prop_oneof![Just(0u64), 0..20_000u64, Just(u64::MAX / 2)],
            steps in prop::collection::vec(
                prop_oneof![-70i64..70, -9000i64..9000, Just(-8128i64), Just(-8127), Just(64), Just(8192), -40_000i64..40_000],
                1..400,
            ),
        ) {
            let (mut window, mut oracle) = (ReplayWindow::new(), Oracle::default());
            let mut newest = start;
            for step in steps {
                let counter = newest.saturating_add_signed(step);
                let verdict = receive(&mut window, counter);
                prop_assert_eq!(verdict, oracle.check(counter), "counter {} after {}", counter, newest);
                if verdict.is_ok() {
                    oracle.0.insert(counter);
                    newest = newest.max(counter);
                }
            }
        }
    }
}
