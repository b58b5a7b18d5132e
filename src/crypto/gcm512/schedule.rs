//! What a key expands to: round keys, the first round's share of each counter, and powers of the hash key.
#![forbid(unsafe_code)]

use std::arch::x86_64::*;

use zeroize::{Zeroize, ZeroizeOnDrop};

use super::ghash::{alone, multiply, sums_of_halves};
use super::{POWERS, VECTOR_LEN};
use crate::crypto::KEY_LEN;
use crate::crypto::gcm::{BLOCK_LEN, ROUND_KEYS, hash_key, round_keys};
use crate::crypto::simd::store;

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

    let mut four = first_four_powers(hash_key(&round_keys));
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
