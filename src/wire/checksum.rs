//! The Internet checksum (RFC 1071) and the ways to avoid computing all of it.
//!
//! A one's complement sum does not care in which byte order its words are added as long as the result is swapped
//! back once (RFC 1071, section 2 (B)), and carries may pile up in a wide accumulator until the end (section 2 (C)). So
//! bytes are added as native 32-bit words to 64-bit lanes, which any SIMD unit does many at a time.
//!
//! Summing while copying was measured and is slower than a plain copy and then a sum of the cache-hot bytes.

/// Words that one step of the inner loop adds, each to a lane of its own: 64 bytes, a cache line.
const LANES: usize = 16;

/// An unfinished one's complement sum of big-endian 16-bit words.
///
/// Sums add up in any order. Every run of bytes is taken to begin at an even offset of what is summed, and a
/// last odd byte counts as if a zero byte followed: add the odd-sized run last.
#[derive(Debug, Clone, Copy, Default)]
pub struct Sum(u64);

impl Sum {
    /// The sum of nothing.
    pub const ZERO: Sum = Sum(0);

    /// The sum of `bytes`.
    #[inline]
    pub fn of(bytes: &[u8]) -> Sum {
        let (words, rest) = bytes.as_chunks::<4>();
        let (strides, words) = words.as_chunks::<LANES>();
        let mut lanes = [0u64; LANES];
        for stride in strides {
            for (lane, word) in lanes.iter_mut().zip(stride) {
                *lane += u64::from(u32::from_ne_bytes(*word));
            }
        }
        let mut sum: u64 = lanes.iter().sum();
        for word in words {
            sum += u64::from(u32::from_ne_bytes(*word));
        }
        if !rest.is_empty() {
            let mut word = [0; 4];
            word[..rest.len()].copy_from_slice(rest);
            sum += u64::from(u32::from_ne_bytes(word));
        }
        Sum(u64::from(u16::from_be(Sum(sum).fold())))
    }

    /// The pseudo-header of TCP and UDP (RFC 9293, section 3.1; RFC 8200, section 8.1) but for its length word, which differs from
    /// segment to segment. `addresses` = source and destination as they lie in the IP header.
    #[inline]
    pub fn pseudo(addresses: &[u8], protocol: u8) -> Sum {
        Sum::of(addresses).word(u16::from(protocol))
    }

    /// Adds one word.
    #[inline]
    pub fn word(self, value: u16) -> Sum {
        Sum(self.0 + u64::from(value))
    }

    /// Takes one word away that was added before.
    #[inline]
    pub fn without(self, value: u16) -> Sum {
        self.word(!value)
    }

    /// Adds another sum.
    #[inline]
    pub fn plus(self, other: Sum) -> Sum {
        Sum(self.0 + other.0)
    }

    /// The sum as one word, not complemented: what a partial checksum field holds. 0 only if everything summed is 0.
    #[inline]
    pub fn fold(self) -> u16 {
        let sum = (self.0 & 0xffff_ffff) + (self.0 >> 32);
        let sum = (sum & 0xffff) + (sum >> 16);
        let sum = (sum & 0xffff) + (sum >> 16);
        ((sum & 0xffff) + (sum >> 16)) as u16
    }

    /// The complemented sum: what a checksum field holds.
    #[inline]
    pub fn checksum(self) -> u16 {
        !self.fold()
    }

    /// The checksum as UDP writes it: 0 would mean "none", so its other representation takes its place (RFC 768).
    #[inline]
    pub fn udp_checksum(self) -> u16 {
        match self.checksum() {
            0 => 0xffff,
            checksum => checksum,
        }
    }

    /// Whether the summed bytes, their checksum field among them, are intact.
    #[inline]
    pub fn is_intact(self) -> bool {
        self.fold() == 0xffff
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// RFC 1071, section 1, taken literally: one 16-bit word after the other with an end-around carry.
    fn slow_sum(bytes: &[u8]) -> u16 {
        bytes.chunks(2).fold(0u16, |sum, pair| {
            let word = u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]);
            let (sum, carry) = sum.overflowing_add(word);
            sum + u16::from(carry)
        })
    }

    #[test]
    fn the_example_of_rfc_1071_sums_as_printed_there() {
        assert_eq!(
            Sum::of(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]).fold(),
            0xddf2
        );
    }

    #[test]
    fn all_ones_of_any_length_sum_as_the_slow_twin_does() {
        let ones = vec![0xff; 65_600];
        for len in (0..300).chain([1420, 65_535, 65_600]) {
            assert_eq!(Sum::of(&ones[..len]).fold(), slow_sum(&ones[..len]), "{len} bytes");
        }
    }

    #[test]
    fn a_udp_checksum_is_never_zero() {
        assert_eq!(Sum::of(&[0xff, 0xff]).checksum(), 0);
        assert_eq!(Sum::of(&[0xff, 0xff]).udp_checksum(), 0xffff);
    }

    proptest! {
        #[test]
        fn fast_and_slow_sums_agree(bytes in proptest::collection::vec(any::<u8>(), 0..3000), skip in 0usize..9) {
            let bytes = &bytes[skip.min(bytes.len())..];
            prop_assert_eq!(Sum::of(bytes).fold(), slow_sum(bytes));
        }

        #[test]
        fn sums_of_parts_add_up_and_words_can_be_taken_away(
            bytes in proptest::collection::vec(any::<u8>(), 2..200), cut in any::<proptest::sample::Index>(), word: u16
        ) {
            let cut = cut.index(bytes.len()) & !1;
            let parts = Sum::of(&bytes[..cut]).plus(Sum::of(&bytes[cut..]));
            prop_assert_eq!(parts.fold(), slow_sum(&bytes));
            let back = parts.word(word).without(word).fold();
            // 0 and 0xffff are the same number; only an all-zero input keeps the former.
            prop_assert_eq!(back % 0xffff, slow_sum(&bytes) % 0xffff);
        }
    }
}
