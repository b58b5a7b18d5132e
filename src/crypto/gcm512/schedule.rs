//! What a key expands to: round keys, the first round's share of each counter, and powers of the hash key.
#![forbid(unsafe_code)]

use std::arch::x86_64::*;

use zeroize::{Zeroize, ZeroizeOnDrop};

use super::ghash::{POLYNOMIAL, alone, multiply, sums_of_halves, swap_block};
use super::{BLOCK_LEN, POWERS, VECTOR_LEN};
use crate::crypto::KEY_LEN;
use crate::crypto::simd::{load_16, store};

/// Rounds of AES-256 plus one (FIPS 197, section 5).
const ROUND_KEYS: usize = 15;

/// Blocks after the last power, so that a whole vector can be loaded from any power on. They stay zero.
const PADDING: usize = 3;

/// An expanded key: 7 KiB, wiped when dropped.
#[derive(Zeroize, ZeroizeOnDrop)]
#[repr(C, align(64))]
pub(in crate::crypto) struct Schedule {
    /// Each round key, in all four blocks of a vector.
    pub(super) round_keys: [[u8; VECTOR_LEN]; ROUND_KEYS],
    /// What the counters 1..=128 add to the state after the first round. A counter below 256 changes only the last
    /// byte of the block, so its effect on the first round does not depend on the nonce and is kept.
    pub(super) first_round: [[u8; VECTOR_LEN]; POWERS / 4],
    /// H^128, .., H^1, each times x.
    powers: [[u8; BLOCK_LEN]; POWERS + PADDING],
    /// The sums of their halves.
    sums: [[u8; BLOCK_LEN]; POWERS + PADDING],
}

impl Schedule {
    const ZERO: Schedule = Schedule {
        round_keys: [[0; VECTOR_LEN]; ROUND_KEYS],
        first_round: [[0; VECTOR_LEN]; POWERS / 4],
        powers: [[0; BLOCK_LEN]; POWERS + PADDING],
        sums: [[0; BLOCK_LEN]; POWERS + PADDING],
    };

    /// H^blocks, .., H^1 in vectors, and the sums of their halves. The last vector is filled up with zeros.
    #[inline]
    pub(super) fn powers_from(&self, blocks: usize) -> (&[[u8; VECTOR_LEN]], &[[u8; VECTOR_LEN]]) {
        let from = POWERS - blocks;
        let (powers, sums) = (&self.powers[from..], &self.sums[from..]);
        (powers.as_flattened().as_chunks().0, sums.as_flattened().as_chunks().0)
    }

    /// H^exponent.
    #[inline]
    pub(super) fn power(&self, exponent: usize) -> &[u8; BLOCK_LEN] {
        &self.powers[POWERS - exponent]
    }
}

/// Expands `key`, on the heap, so that no copy is left behind on the stack.
#[target_feature(enable = "avx512bw,avx512vl,vaes,vpclmulqdq,bmi2")]
pub(in crate::crypto) fn expand(key: &[u8; KEY_LEN]) -> Box<Schedule> {
    let mut schedule = Box::new(Schedule::ZERO);
    let mut round_keys = round_keys(key);
    for (bytes, round_key) in schedule.round_keys.iter_mut().zip(round_keys) {
        store(bytes, _mm512_broadcast_i32x4(round_key));
    }

    let first_round = |blocks| {
        let whitened = _mm512_xor_si512(blocks, _mm512_broadcast_i32x4(round_keys[0]));
        _mm512_aesenc_epi128(whitened, _mm512_broadcast_i32x4(round_keys[1]))
    };
    let without_counter = first_round(_mm512_setzero_si512());
    for (at, bytes) in schedule.first_round.iter_mut().enumerate() {
        let counter = |block| ((4 * at + block + 1) as i64) << 56;
        let counters = _mm512_set_epi64(counter(3), 0, counter(2), 0, counter(1), 0, counter(0), 0);
        store(bytes, _mm512_xor_si512(first_round(counters), without_counter));
    }

    let hash_key = times_x(swap_block(encrypt_zero(&round_keys)));
    let mut four = first_four_powers(hash_key);
    let fourth = _mm512_broadcast_i32x4(_mm512_castsi512_si128(four));
    let powers = schedule.powers[..POWERS].as_flattened_mut().as_chunks_mut().0;
    let sums = schedule.sums[..POWERS].as_flattened_mut().as_chunks_mut().0;
    for (powers, sums) in powers.iter_mut().zip(sums).rev() {
        store(powers, four);
        store(sums, sums_of_halves(four));
        four = multiply(four, fourth);
    }
    round_keys.zeroize();
    schedule
}

/// The key expansion of FIPS 197, section 5.2.
#[target_feature(enable = "avx512bw,avx512vl,vaes,vpclmulqdq,bmi2")]
fn round_keys(key: &[u8; KEY_LEN]) -> [__m128i; ROUND_KEYS] {
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
#[target_feature(enable = "avx512bw,avx512vl,vaes,vpclmulqdq,bmi2")]
fn next_two<const ROUND_CONSTANT: i32>(keys: &mut [__m128i; ROUND_KEYS], at: usize) {
    let rotated = _mm_aeskeygenassist_si128::<ROUND_CONSTANT>(keys[at - 1]);
    keys[at] = chain_words(keys[at - 2], _mm_shuffle_epi32::<0xff>(rotated));
    if at + 1 < ROUND_KEYS {
        let substituted = _mm_aeskeygenassist_si128::<0>(keys[at]);
        keys[at + 1] = chain_words(keys[at - 1], _mm_shuffle_epi32::<0xaa>(substituted));
    }
}

/// Each word of the new key is the old one plus the new word before it, the first one plus `first`.
#[target_feature(enable = "avx512bw,avx512vl,vaes,vpclmulqdq,bmi2")]
fn chain_words(old: __m128i, first: __m128i) -> __m128i {
    let pairs = _mm_xor_si128(old, _mm_slli_si128::<4>(old));
    let sums = _mm_xor_si128(pairs, _mm_slli_si128::<8>(pairs));
    _mm_xor_si128(sums, first)
}

#[target_feature(enable = "avx512bw,avx512vl,vaes,vpclmulqdq,bmi2")]
fn encrypt_zero(keys: &[__m128i; ROUND_KEYS]) -> __m128i {
    let [whitening, rounds @ .., last] = keys;
    let state = rounds
        .iter()
        .fold(*whitening, |state, key| _mm_aesenc_si128(state, *key));
    _mm_aesenclast_si128(state, *last)
}

/// h*x: a shift by one bit, and by the polynomial what that shifts out.
#[target_feature(enable = "avx512bw,avx512vl,vaes,vpclmulqdq,bmi2")]
fn times_x(h: __m128i) -> __m128i {
    let low = _mm_cvtsi128_si64(h) as u64;
    let high = _mm_cvtsi128_si64(_mm_unpackhi_epi64(h, h)) as u64;
    let carry = (high >> 63).wrapping_neg();
    let new_high = (high << 1 | low >> 63) ^ (carry & POLYNOMIAL);
    let new_low = (low << 1) ^ (carry & 1);
    _mm_set_epi64x(new_high as i64, new_low as i64)
}

/// h^4, h^3, h^2 and h.
#[target_feature(enable = "avx512bw,avx512vl,vaes,vpclmulqdq,bmi2")]
fn first_four_powers(h: __m128i) -> __m512i {
    let h = alone(h);
    let square = multiply(h, h);
    let (third, fourth) = (multiply(square, h), multiply(square, square));
    let two = _mm512_inserti32x4::<1>(fourth, _mm512_castsi512_si128(third));
    let three = _mm512_inserti32x4::<2>(two, _mm512_castsi512_si128(square));
    _mm512_inserti32x4::<3>(three, _mm512_castsi512_si128(h))
}
