//! Time as an argument: this module's clocks are whatever the caller says they are.
#![forbid(unsafe_code)]

use std::ops::{Add, Sub};
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// A point of a monotonic clock: nanoseconds since an arbitrary start, good for 584 years.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct Time(u64);

impl Time {
    /// The point `nanos` nanoseconds after the start.
    pub const fn from_nanos(nanos: u64) -> Time {
        Time(nanos)
    }

    /// Nanoseconds since the start.
    pub const fn as_nanos(self) -> u64 {
        self.0
    }
}

/// Saturates at the end of time.
impl Add<Duration> for Time {
    type Output = Time;

    #[inline]
    fn add(self, span: Duration) -> Time {
        Time(
            self.0
                .saturating_add(u64::try_from(span.as_nanos()).unwrap_or(u64::MAX)),
        )
    }
}

/// The time since `earlier`; zero when `earlier` is in fact later (clocks of two threads are read at two moments).
impl Sub for Time {
    type Output = Duration;

    #[inline]
    fn sub(self, earlier: Time) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

/// The two clocks that a handshake needs, read together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Now {
    /// Drives every timer; never goes back.
    pub mono: Time,
    /// Since 1970-01-01 UTC, for TAI64N timestamps and "latest handshake"; may jump.
    pub unix: Duration,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arithmetic_saturates_at_both_ends() {
        let end = Time::from_nanos(u64::MAX);
        assert_eq!(end + Duration::from_secs(1), end);
        assert_eq!(Time::default() + Duration::MAX, end);
        assert_eq!(Time::from_nanos(1) - Time::from_nanos(2), Duration::ZERO);
        assert_eq!(Time::from_nanos(5) - Time::from_nanos(2), Duration::from_nanos(3));
    }
}
