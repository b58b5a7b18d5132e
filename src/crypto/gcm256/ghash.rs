//! GHASH (NIST SP 800-38D, section 6.4) on two blocks per vector, reduced once per up to 128 blocks. `gcm512::ghash` says
//! why the order of bits is reversed and why powers of H carry the factor x.
#![forbid(unsafe_code)]

use std::arch::x86_64::*;

use crate::crypto::gcm::POLYNOMIAL;

/// Reverses the bytes of each block.
#[target_feature(enable = "avx2,vaes,vpclmulqdq,bmi2")]
#[inline]
pub(super) fn swap_bytes(blocks: __m256i) -> __m256i {
    let order = _mm_set_epi8(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    _mm256_shuffle_epi8(blocks, _mm256_broadcastsi128_si256(order))
}

/// As [`swap_bytes`], of one block.
#[target_feature(enable = "avx2,vaes,vpclmulqdq,bmi2")]
#[inline]
pub(super) fn swap_block(block: __m128i) -> __m128i {
    _mm256_castsi256_si128(swap_bytes(alone(block)))
}

/// A vector of one block and a zero.
#[target_feature(enable = "avx2,vaes,vpclmulqdq,bmi2")]
#[inline]
pub(super) fn alone(block: __m128i) -> __m256i {
    _mm256_zextsi128_si256(block)
}

/// Both halves of each block hold the sum of its halves: what Karatsuba's middle product takes.
#[target_feature(enable = "avx2,vaes,vpclmulqdq,bmi2")]
#[inline]
pub(super) fn sums_of_halves(blocks: __m256i) -> __m256i {
    _mm256_xor_si256(blocks, _mm256_shuffle_epi32::<SWAP_HALVES>(blocks))
}

/// Two products a*b, where `b` carries the factor x.
#[target_feature(enable = "avx2,vaes,vpclmulqdq,bmi2")]
#[inline]
pub(super) fn multiply(a: __m256i, b: __m256i) -> __m256i {
    let mut products = Products::zero();
    products.add(a, b, sums_of_halves(b));
    products.reduce_each()
}

/// A sum of unreduced products, two at a time, each of 256 bits in Karatsuba's three parts.
#[derive(Clone, Copy)]
pub(super) struct Products {
    low: __m256i,
    /// (low half + high half) * (low half + high half).
    middle: __m256i,
    high: __m256i,
}

impl Products {
    #[target_feature(enable = "avx2,vaes,vpclmulqdq,bmi2")]
    #[inline]
    pub(super) fn zero() -> Products {
        let zero = _mm256_setzero_si256();
        Products {
            low: zero,
            middle: zero,
            high: zero,
        }
    }

    /// Adds two blocks, each times its power of H. `sums` is [`sums_of_halves`] of the powers.
    #[target_feature(enable = "avx2,vaes,vpclmulqdq,bmi2")]
    #[inline]
    pub(super) fn add(&mut self, blocks: __m256i, powers: __m256i, sums: __m256i) {
        let block_sums = sums_of_halves(blocks);
        self.low = _mm256_xor_si256(self.low, _mm256_clmulepi64_epi128::<0x00>(blocks, powers));
        self.high = _mm256_xor_si256(self.high, _mm256_clmulepi64_epi128::<0x11>(blocks, powers));
        self.middle = _mm256_xor_si256(self.middle, _mm256_clmulepi64_epi128::<0x00>(block_sums, sums));
    }

    /// Adds one block times one power.
    #[target_feature(enable = "avx2,vaes,vpclmulqdq,bmi2")]
    #[inline]
    pub(super) fn add_block(&mut self, block: __m128i, power: __m128i) {
        let power = alone(power);
        self.add(alone(block), power, sums_of_halves(power));
    }

    /// The sum modulo the polynomial.
    #[target_feature(enable = "avx2,vaes,vpclmulqdq,bmi2")]
    #[inline]
    pub(super) fn reduce(self) -> __m128i {
        let two = self.reduce_each();
        _mm_xor_si128(_mm256_castsi256_si128(two), _mm256_extracti128_si256::<1>(two))
    }

    /// The two sums modulo the polynomial.
    #[target_feature(enable = "avx2,vaes,vpclmulqdq,bmi2")]
    #[inline]
    fn reduce_each(self) -> __m256i {
        let polynomial = _mm256_broadcastsi128_si256(_mm_set_epi64x(POLYNOMIAL as i64, 1));
        let middle = xor_3(self.middle, self.low, self.high);
        let fold = _mm256_clmulepi64_epi128::<0x01>(polynomial, self.low);
        let middle = xor_3(middle, _mm256_shuffle_epi32::<SWAP_HALVES>(self.low), fold);
        let fold = _mm256_clmulepi64_epi128::<0x01>(polynomial, middle);
        xor_3(self.high, _mm256_shuffle_epi32::<SWAP_HALVES>(middle), fold)
    }
}

/// The shuffle of 32-bit words that exchanges a block's halves.
const SWAP_HALVES: i32 = 0x4e;

#[target_feature(enable = "avx2,vaes,vpclmulqdq,bmi2")]
#[inline]
fn xor_3(a: __m256i, b: __m256i, c: __m256i) -> __m256i {
    _mm256_xor_si256(_mm256_xor_si256(a, b), c)
}
