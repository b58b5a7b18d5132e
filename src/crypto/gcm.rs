//! What the two AES-256-GCM kernels share: blocks of 128 bits, whatever the vectors' width.
#![forbid(unsafe_code)]

use std::arch::x86_64::*;

use super::simd::load_16;
use super::{KEY_LEN, NONCE_LEN};

pub(super) const BLOCK_LEN: usize = 16;

/// Rounds of AES-256 plus one (FIPS 197, section 5).
pub(super) const ROUND_KEYS: usize = 15;

/// The reduction constant of x^128 + x^7 + x^2 + x + 1 when a block's bits are in reverse order.
pub(super) const POLYNOMIAL: u64 = 0xc200_0000_0000_0000;

/// The two parts of a nonce, little-endian, as both suites write them.
///
/// They travel in registers: a caller writes a nonce into memory just before, and one load that spans two fresh stores
/// would wait for the cache, longer than AES takes for a short record.
#[derive(Clone, Copy)]
pub(super) struct Nonce {
    fixed: u32,
    counter: u64,
}

impl Nonce {
    #[inline]
    pub(super) fn new(nonce: &[u8; NONCE_LEN]) -> Nonce {
        let [a, b, c, d, counter @ ..] = *nonce;
        Nonce {
            fixed: u32::from_le_bytes([a, b, c, d]),
            counter: u64::from_le_bytes(counter),
        }
    }

    /// The nonce with a counter of 0.
    #[target_feature(enable = "avx,aes")]
    #[inline]
    pub(super) fn counter_0(self) -> __m128i {
        let low = self.counter << 32 | u64::from(self.fixed);
        let high = self.counter >> 32;
        _mm_set_epi64x(high as i64, low as i64)
    }
}

/// The key expansion of FIPS 197, section 5.2.
#[target_feature(enable = "avx,aes")]
pub(super) fn round_keys(key: &[u8; KEY_LEN]) -> [__m128i; ROUND_KEYS] {
    let mut keys = [_mm_setzero_si128(); ROUND_KEYS];
    for (round_key, half) in keys.iter_mut().zip(key.as_chunks().0) {
        *round_key = load_16(half);
    }
    next_two::<0x01>(&mut keys, 2);
    next_two::<0x02>(&mut keys, 4);
    next_two::<0x04>(&mut keys, 6);
    next_two::<0x08>(&mut keys, 8);
    next_two::<0x10>(&mut keys, 10);
    next_two::<0x20>(&mut keys, 12);
    next_two::<0x40>(&mut keys, 14);
    keys
}

/// The round keys `at` and `at + 1` (of which AES-256 does not use the sixteenth) from the two before.
#[target_feature(enable = "avx,aes")]
fn next_two<const ROUND_CONSTANT: i32>(keys: &mut [__m128i; ROUND_KEYS], at: usize) {
    let rotated = _mm_aeskeygenassist_si128::<ROUND_CONSTANT>(keys[at - 1]);
    keys[at] = chain_words(keys[at - 2], _mm_shuffle_epi32::<0xff>(rotated));
    if at + 1 < ROUND_KEYS {
        let substituted = _mm_aeskeygenassist_si128::<0>(keys[at]);
        keys[at + 1] = chain_words(keys[at - 1], _mm_shuffle_epi32::<0xaa>(substituted));
    }
}

/// Each word of the new key is the old one plus the new word before it, the first one plus `first`.
#[target_feature(enable = "avx,aes")]
fn chain_words(old: __m128i, first: __m128i) -> __m128i {
    let pairs = _mm_xor_si128(old, _mm_slli_si128::<4>(old));
    let sums = _mm_xor_si128(pairs, _mm_slli_si128::<8>(pairs));
    _mm_xor_si128(sums, first)
}

/// The hash key H, its bytes swapped, times x.
#[target_feature(enable = "avx,aes")]
pub(super) fn hash_key(keys: &[__m128i; ROUND_KEYS]) -> __m128i {
    let order = _mm_set_epi8(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    times_x(_mm_shuffle_epi8(encrypt_zero(keys), order))
}

#[target_feature(enable = "avx,aes")]
fn encrypt_zero(keys: &[__m128i; ROUND_KEYS]) -> __m128i {
    let [whitening, rounds @ .., last] = keys;
    let state = rounds
        .iter()
        .fold(*whitening, |state, key| _mm_aesenc_si128(state, *key));
    _mm_aesenclast_si128(state, *last)
}

/// h*x: a shift by one bit, and by the polynomial what that shifts out.
#[target_feature(enable = "avx,aes")]
fn times_x(h: __m128i) -> __m128i {
    let low = _mm_cvtsi128_si64(h) as u64;
    let high = _mm_cvtsi128_si64(_mm_unpackhi_epi64(h, h)) as u64;
    let carry = (high >> 63).wrapping_neg();
    let new_high = (high << 1 | low >> 63) ^ (carry & POLYNOMIAL);
    let new_low = (low << 1) ^ (carry & 1);
    _mm_set_epi64x(new_high as i64, new_low as i64)
}
