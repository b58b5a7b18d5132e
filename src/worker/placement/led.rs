//! The connections that are led.
#![forbid(unsafe_code)]

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::LED_MAX;
use super::fading::{step, steps_since};
use crate::path::coalesce::Begins;
use crate::proto::Time;

/// A connection that is led to a worker's queue, in one word, so that it is read whole: 32 bits of the name that its place does not tell, 8 of
/// the sequence number that it began with, the queue, and the step when it began, which comes again after two hours and a half.
#[derive(Debug)]
pub(super) struct Led(AtomicU64);

impl Led {
    const STEPS: u64 = 0xffff;
    /// A little less than the three seconds after which the kernel forgets. The far end follows with its next packet but one.
    pub(super) const OVER: u64 = 22;

    pub(super) const fn nothing() -> Led {
        Led(AtomicU64::new(0))
    }

    pub(super) fn place(name: u64) -> usize {
        name as usize % LED_MAX
    }

    /// The queue of the connection `name`, while it is led; not so when it is another one's beginning.
    #[inline]
    pub(super) fn queue(&self, now: Time, name: u64, begins: Begins) -> Option<u8> {
        let word = self.0.load(Relaxed);
        let is_begun = match begins {
            Begins::Answered(seq) => seq as u8 == (word >> 24) as u8,
            Begins::No | Begins::Unknown => true,
        };
        let is_same = word >> 32 == name >> 32 && is_begun;
        (is_same && Led::is_on(word, now)).then_some((word >> 16) as u8)
    }

    /// Whether another connection can have the place without ending one.
    pub(super) fn is_free(&self, now: Time) -> bool {
        !Led::is_on(self.0.load(Relaxed), now)
    }

    fn is_on(word: u64, now: Time) -> bool {
        word != 0 && steps_since(word & Self::STEPS, now, Self::STEPS) <= Self::OVER
    }

    pub(super) fn begin(&self, now: Time, name: u64, seq: u32, queue: u8) {
        let word = name >> 32 << 32 | u64::from(seq as u8) << 24 | u64::from(queue) << 16 | step(now, Self::STEPS);
        self.0.store(word, Relaxed);
    }
}
