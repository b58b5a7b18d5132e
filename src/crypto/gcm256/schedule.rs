//! What a key expands to: round keys, the first round's share of each counter, and powers of the hash key.
#![forbid(unsafe_code)]

use std::arch::x86_64::*;

use zeroize::{Zeroize, ZeroizeOnDrop};

use super::ghash::{alone, multiply, sums_of_halves};
use super::{POWERS, VECTOR_LEN};
use crate::crypto::KEY_LEN;
use crate::crypto::gcm::{BLOCK_LEN, ROUND_KEYS, hash_key, round_keys};
use crate::crypto::simd::store_32;

/// An expanded key: 6.5 KiB, wiped when dropped.
#[derive(Zeroize, ZeroizeOnDrop)]
#[repr(C, align(64))]
pub(in crate::crypto) struct Schedule {
    /// Each round key, in both blocks of a vector.
    pub(super) round_keys: [[u8; VECTOR_LEN]; ROUND_KEYS],
    /// What the counters 1..=128 add to the state after the first round. A counter below 256 changes only the last
    /// byte of the block, so its effect on the first round does not depend on the nonce and is kept.
    pub(super) first_round: [[u8; VECTOR_LEN]; POWERS / 2],
    /// H^128, .., H^1, each times x.
    powers: [[u8; BLOCK_LEN]; POWERS],
    /// The sums of their halves.
    sums: [[u8; BLOCK_LEN]; POWERS],
}

impl Schedule {
    const ZERO: Schedule = Schedule {
        round_keys: [[0; VECTOR_LEN]; ROUND_KEYS],
        first_round: [[0; VECTOR_LEN]; POWERS / 2],
        powers: [[0; BLOCK_LEN]; POWERS],
        sums: [[0; BLOCK_LEN]; POWERS],
    };

    /// H^blocks, .., H^1 in vectors, and the sums of their halves. Of an odd number the last, H^1, is left out.
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
#[target_feature(enable = "avx2,vaes,vpclmulqdq,bmi2")]
pub(in crate::crypto) fn expand(key: &[u8; KEY_LEN]) -> Box<Schedule> {
    let mut schedule = Box::new(Schedule::ZERO);
    let mut round_keys = round_keys(key);
    for (bytes, round_key) in schedule.round_keys.iter_mut().zip(round_keys) {
        store_32(bytes, _mm256_broadcastsi128_si256(round_key));
    }

    let first_round = |blocks| {
        let whitened = _mm256_xor_si256(blocks, _mm256_broadcastsi128_si256(round_keys[0]));
        _mm256_aesenc_epi128(whitened, _mm256_broadcastsi128_si256(round_keys[1]))
    };
    let without_counter = first_round(_mm256_setzero_si256());
    for (at, bytes) in schedule.first_round.iter_mut().enumerate() {
        let counter = |block| ((2 * at + block + 1) as i64) << 56;
        let counters = _mm256_set_epi64x(counter(1), 0, counter(0), 0);
        store_32(bytes, _mm256_xor_si256(first_round(counters), without_counter));
    }

    let h = alone(hash_key(&round_keys));
    let square = _mm256_castsi256_si128(multiply(h, h));
    let mut two = _mm256_set_m128i(_mm256_castsi256_si128(h), square);
    let square = _mm256_broadcastsi128_si256(square);
    let powers = schedule.powers.as_flattened_mut().as_chunks_mut().0;
    let sums = schedule.sums.as_flattened_mut().as_chunks_mut().0;
    for (powers, sums) in powers.iter_mut().zip(sums).rev() {
        store_32(powers, two);
        store_32(sums, sums_of_halves(two));
        two = multiply(two, square);
    }
    round_keys.zeroize();
    schedule
}
