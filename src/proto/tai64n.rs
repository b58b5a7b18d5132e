//! TAI64N timestamps (<https://cr.yp.to/libtai/tai64.html>): what makes an initiation newer than another one.
#![forbid(unsafe_code)]

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::limits::INITIATIONS_PER_SECOND;
use crate::wire::message::TIMESTAMP_LEN;

/// The label of 1970-01-01 00:00:10 TAI, the start of Unix time. Leap seconds since do not matter to a clock that
/// is only compared with itself.
const UNIX_START: u64 = (1 << 62) + 10;

/// Nanoseconds are rounded down to a multiple of this, so that an observer learns little about the clock: the
/// largest power of two that still tells INITIATIONS_PER_SECOND apart.
const ROUNDING_NS: u32 = 1 << (1_000_000_000 / INITIATIONS_PER_SECOND).ilog2();

/// A point in time as its 12 wire bytes: big-endian seconds and nanoseconds, so bytes compare as time does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct Tai64n([u8; TIMESTAMP_LEN]);

impl Tai64n {
    /// The timestamp of a Unix time, rounded.
    pub fn from_unix(unix: Duration) -> Tai64n {
        Tai64n::from_parts(
            UNIX_START.saturating_add(unix.as_secs()),
            unix.subsec_nanos() / ROUNDING_NS * ROUNDING_NS,
        )
    }

    /// The timestamp of a Unix time, or the one just after `last` where the clock has not moved on or went back.
    pub fn newer_than(last: Tai64n, unix: Duration) -> Tai64n {
        Tai64n::from_unix(unix).max(last.next())
    }

    /// The timestamp with these wire bytes.
    pub const fn from_bytes(bytes: [u8; TIMESTAMP_LEN]) -> Tai64n {
        Tai64n(bytes)
    }

    /// The wire bytes.
    pub const fn bytes(&self) -> [u8; TIMESTAMP_LEN] {
        self.0
    }

    /// The timestamp so much later.
    pub fn plus(self, span: Duration) -> Tai64n {
        let (seconds, nanos) = self.parts();
        // A label from a peer may have any bits.
        let nanos = u64::from(nanos) + u64::from(span.subsec_nanos());
        let seconds = seconds
            .saturating_add(span.as_secs())
            .saturating_add(nanos / 1_000_000_000);
        Tai64n::from_parts(seconds, (nanos % 1_000_000_000) as u32)
    }

    fn next(self) -> Tai64n {
        match self.parts() {
            (seconds, nanos) if nanos < 999_999_999 => Tai64n::from_parts(seconds, nanos + 1),
            (seconds, _) => Tai64n::from_parts(seconds.saturating_add(1), 0),
        }
    }

    fn parts(self) -> (u64, u32) {
        let [s0, s1, s2, s3, s4, s5, s6, s7, n0, n1, n2, n3] = self.0;
        (
            u64::from_be_bytes([s0, s1, s2, s3, s4, s5, s6, s7]),
            u32::from_be_bytes([n0, n1, n2, n3]),
        )
    }

    fn from_parts(seconds: u64, nanos: u32) -> Tai64n {
        let mut bytes = [0; TIMESTAMP_LEN];
        bytes[..8].copy_from_slice(&seconds.to_be_bytes());
        bytes[8..].copy_from_slice(&nanos.to_be_bytes());
        Tai64n(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_start_of_unix_time_has_the_label_that_every_implementation_uses() {
        let bytes = Tai64n::from_unix(Duration::ZERO).bytes();
        assert_eq!(bytes, [0x40, 0, 0, 0, 0, 0, 0, 0x0a, 0, 0, 0, 0]);
    }

    #[test]
    fn nanoseconds_are_rounded_to_hide_the_clock() {
        let at = |nanos| Tai64n::from_unix(Duration::new(100, nanos));
        assert_eq!(at(0), at((1 << 24) - 1));
        assert!(at(0) < at(1 << 24));
    }

    #[test]
    fn a_timestamp_is_newer_than_the_last_whatever_the_clock_does() {
        let mut last = Tai64n::default();
        for unix in [(50, 0), (50, 0), (50, 1), (10, 0), (49, 999_999_999), (51, 0), (51, 0)] {
            let next = Tai64n::newer_than(last, Duration::new(unix.0, unix.1));
            assert!(next > last);
            last = next;
        }
        assert_eq!(last, Tai64n::from_unix(Duration::from_secs(51)).next());
    }

    #[test]
    fn a_span_is_added_with_its_carry() {
        let sum = Tai64n::from_parts(7, 999_999_999).plus(Duration::new(2, 5));
        assert_eq!(sum, Tai64n::from_parts(10, 4));
        assert_eq!(
            Tai64n::from_parts(7, u32::MAX).plus(Duration::ZERO),
            Tai64n::from_parts(11, 294_967_295)
        );
        assert!(Tai64n::from_parts(u64::MAX, 0).plus(Duration::MAX) > Tai64n::from_parts(u64::MAX - 1, 0));
    }

    #[test]
    fn the_nanosecond_after_the_last_of_a_second_is_the_next_second() {
        assert_eq!(Tai64n::from_parts(7, 999_999_999).next(), Tai64n::from_parts(8, 0));
        assert_eq!(Tai64n::from_parts(7, u32::MAX).next(), Tai64n::from_parts(8, 0));
    }
}
