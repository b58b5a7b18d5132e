//! GHASH (NIST SP 800-38D, section 6.4) on four blocks per vector, reduced once per up to 128 blocks.
//!
//! GHASH of blocks X1..Xn is X1*H^n + .. + Xn*H^1, so with the powers of H at hand the products are independent of
//! each other, and only their sum needs reducing. Operands are byte-swapped blocks: that makes them polynomials with
//! their bits reversed, whose carry-less product comes out one bit too low, and the powers are kept multiplied by x to
//! make up for it (Gueron and Kounavis, "Intel Carry-Less Multiplication Instruction and its Usage for Computing the
//! GCM Mode", 2014).
#![forbid(unsafe_code)]

use std::arch::x86_64::*;

use crate::crypto::gcm::POLYNOMIAL;

/// Reverses the bytes of each block.
#[target_feature(enable = "avx512bw,avx512vl,vaes,vpclmulqdq,bmi2")]
#[inline]
pub(super) fn swap_bytes(blocks: __m512i) -> __m512i {
    let order = _mm_set_epi8(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    _mm512_shuffle_epi8(blocks, _mm512_broadcast_i32x4(order))
}

/// As [`swap_bytes`], of one block.
#[target_feature(enable = "avx512bw,avx512vl,vaes,vpclmulqdq,bmi2")]
#[inline]
pub(super) fn swap_block(block: __m128i) -> __m128i {
    _mm512_castsi512_si128(swap_bytes(alone(block)))
}

/// A vector of one block and three zeros.
#[target_feature(enable = "avx512bw,avx512vl,vaes,vpclmulqdq,bmi2")]
#[inline]
pub(super) fn alone(block: __m128i) -> __m512i {
    _mm512_zextsi128_si512(block)
}

/// Both halves of each block hold the sum of its halves: what Karatsuba's middle product takes.
#[target_feature(enable = "avx512bw,avx512vl,vaes,vpclmulqdq,bmi2")]
#[inline]
pub(super) fn sums_of_halves(blocks: __m512i) -> __m512i {
    _mm512_xor_si512(blocks, _mm512_shuffle_epi32::<SWAP_HALVES>(blocks))
}

/// Four products a*b, where `b` carries the factor x.
#[target_feature(enable = "avx512bw,avx512vl,vaes,vpclmulqdq,bmi2")]
#[inline]
pub(super) fn multiply(a: __m512i, b: __m512i) -> __m512i {
    let mut products = Products::zero();
    products.add(a, b, sums_of_halves(b));
    products.reduce_each()
}

/// A sum of unreduced products, four at a time, each of 256 bits in Karatsuba's three parts.
#[derive(Clone, Copy)]
pub(super) struct Products {
    low: __m512i,
    /// (low half + high half) * (low half + high half).
    middle: __m512i,
    high: __m512i,
}

impl Products {
    #[target_feature(enable = "avx512bw,avx512vl,vaes,vpclmulqdq,bmi2")]
    #[inline]
    pub(super) fn zero() -> Products {
        let zero = _mm512_setzero_si512();
        Products {
            low: zero,
            middle: zero,
            high: zero,
        }
    }

    /// Adds four blocks, each times its power of H. `sums` is [`sums_of_halves`] of the powers.
    #[target_feature(enable = "avx512bw,avx512vl,vaes,vpclmulqdq,bmi2")]
    #[inline]
    pub(super) fn add(&mut self, blocks: __m512i, powers: __m512i, sums: __m512i) {
        let block_sums = sums_of_halves(blocks);
        self.low = _mm512_xor_si512(self.low, _mm512_clmulepi64_epi128::<0x00>(blocks, powers));
        self.high = _mm512_xor_si512(self.high, _mm512_clmulepi64_epi128::<0x11>(blocks, powers));
        self.middle = _mm512_xor_si512(self.middle, _mm512_clmulepi64_epi128::<0x00>(block_sums, sums));
    }

    /// Adds one block times one power.
    #[target_feature(enable = "avx512bw,avx512vl,vaes,vpclmulqdq,bmi2")]
    #[inline]
    pub(super) fn add_block(&mut self, block: __m128i, power: __m128i) {
        let power = alone(power);
        self.add(alone(block), power, sums_of_halves(power));
    }

    /// The sum modulo the polynomial.
    #[target_feature(enable = "avx512bw,avx512vl,vaes,vpclmulqdq,bmi2")]
    #[inline]
    pub(super) fn reduce(self) -> __m128i {
        let four = self.reduce_each();
        let two = _mm256_xor_si256(_mm512_castsi512_si256(four), _mm512_extracti64x4_epi64::<1>(four));
        _mm_xor_si128(_mm256_castsi256_si128(two), _mm256_extracti128_si256::<1>(two))
    }

    /// The four sums modulo the polynomial.
    #[target_feature(enable = "avx512bw,avx512vl,vaes,vpclmulqdq,bmi2")]
    #[inline]
    fn reduce_each(self) -> __m512i {
        let polynomial = _mm512_broadcast_i32x4(_mm_set_epi64x(POLYNOMIAL as i64, 1));
        let middle = xor_3(self.middle, self.low, self.high);
        let fold = _mm512_clmulepi64_epi128::<0x01>(polynomial, self.low);
        let middle = xor_3(middle, fold, _mm512_shuffle_epi32::<SWAP_HALVES>(self.low));
        let fold = _mm512_clmulepi64_epi128::<0x01>(polynomial, middle);
        xor_3(self.high, fold, _mm512_shuffle_epi32::<SWAP_HALVES>(middle))
    }
}

/// The shuffle of 32-bit words that exchanges a block's halves.
const SWAP_HALVES: i32 = 0x4e;

#[target_feature(enable = "avx512bw,avx512vl,vaes,vpclmulqdq,bmi2")]
#[inline]
fn xor_3(a: __m512i, b: __m512i, c: __m512i) -> __m512i {
    /// The truth table of a ^ b ^ c.
    const PARITY: i32 = 0x96;
    _mm512_ternarylogic_epi64::<PARITY>(a, b, c)
}
