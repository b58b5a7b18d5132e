//! Time in steps, and amounts that fade with each.
#![forbid(unsafe_code)]

use crate::proto::Time;

/// 2^27 nanoseconds, about 0.13 s: the unit of time here, and the logarithm of that.
pub(super) const STEP: u32 = 27;
/// Workers read their clocks once per pass: what is ahead by less than this was written by one that has read it later.
const AHEAD_MAX: u64 = 8;

/// The number of a step, in as many bits as `mask` has.
pub(super) fn step(now: Time, mask: u64) -> u64 {
    (now.as_nanos() >> STEP) & mask
}

/// How many steps ago `then` was.
pub(super) fn steps_since(then: u64, now: Time, mask: u64) -> u64 {
    let ago = step(now, mask).wrapping_sub(then) & mask;
    if ago > mask - AHEAD_MAX { 0 } else { ago }
}

/// A number of bytes that loses half of itself with each step, and the step when it was written: 40 and 24 bits.
#[derive(Clone, Copy)]
pub(super) struct Fading(pub(super) u64);

impl Fading {
    pub(super) const AMOUNT_BITS: u32 = 40;
    pub(super) const AMOUNT_MAX: u64 = (1 << Self::AMOUNT_BITS) - 1;
    /// It begins anew after 26 days, and what nothing was added to since counts as fresh for a moment then.
    pub(super) const STEPS: u64 = u64::MAX >> Self::AMOUNT_BITS;

    pub(super) fn amount(self, now: Time) -> u64 {
        let steps = steps_since(self.0 >> Self::AMOUNT_BITS, now, Self::STEPS);
        (self.0 & Self::AMOUNT_MAX) >> steps.min(63)
    }

    pub(super) fn plus(self, now: Time, bytes: u64) -> Fading {
        let written = self.0 >> Self::AMOUNT_BITS;
        // Never back.
        let step = match steps_since(written, now, Self::STEPS) {
            0 => written,
            _ => step(now, Self::STEPS),
        };
        let amount = self.amount(now).saturating_add(bytes).min(Self::AMOUNT_MAX);
        Fading(step << Self::AMOUNT_BITS | amount)
    }
}
