//! Blocks that the text does not fill.
//!
//! AVX2 has no masks for bytes. A block's bytes move between memory and a register in two integers that overlap, so no
//! access leaves the slice and no copy of them is left on the stack.
#![forbid(unsafe_code)]

use std::arch::x86_64::*;

use super::VECTOR_LEN;
use crate::crypto::gcm::BLOCK_LEN;
use crate::crypto::simd::{load_16, load_32, store_16, store_32};

/// Loads up to 32 bytes; the vector's other bytes are zero.
#[target_feature(enable = "avx2,vaes,vpclmulqdq,bmi2")]
#[inline]
pub(super) fn load_vector(bytes: &[u8]) -> __m256i {
    if let Ok(bytes) = bytes.try_into() {
        return load_32(bytes);
    }
    let (low, high) = bytes.split_at(bytes.len().min(BLOCK_LEN));
    _mm256_set_m128i(load_block(high), load_block(low))
}

/// Stores the vector's first bytes, as many as `bytes` has but at most 32.
#[target_feature(enable = "avx2,vaes,vpclmulqdq,bmi2")]
#[inline]
pub(super) fn store_vector(bytes: &mut [u8], vector: __m256i) {
    if let Ok(bytes) = bytes.try_into() {
        return store_32(bytes, vector);
    }
    let (low, high) = bytes.split_at_mut(bytes.len().min(BLOCK_LEN));
    store_block(low, _mm256_castsi256_si128(vector));
    store_block(high, _mm256_extracti128_si256::<1>(vector));
}

/// Loads up to 16 bytes; the block's other bytes are zero.
#[target_feature(enable = "avx2,vaes,vpclmulqdq,bmi2")]
#[inline]
pub(super) fn load_block(bytes: &[u8]) -> __m128i {
    let len = bytes.len() as u32;
    let (low, high) = if let Ok(block) = bytes.try_into() {
        return load_16(block);
    } else if let (Some(first), Some(last)) = (bytes.first_chunk(), bytes.last_chunk()) {
        let last = u64::from_le_bytes(*last);
        (u64::from_le_bytes(*first), last.unbounded_shr(8 * (16 - len)))
    } else if let (Some(first), Some(last)) = (bytes.first_chunk(), bytes.last_chunk()) {
        let [first, last] = [first, last].map(|bytes| u64::from(u32::from_le_bytes(*bytes)));
        (first | last << (8 * (len - 4)), 0)
    } else {
        let all = bytes.iter().rev();
        (all.fold(0, |all, byte| all << 8 | u64::from(*byte)), 0)
    };
    _mm_set_epi64x(high as i64, low as i64)
}

/// Stores the block's first bytes, as many as `bytes` has but at most 16.
#[target_feature(enable = "avx2,vaes,vpclmulqdq,bmi2")]
#[inline]
pub(super) fn store_block(bytes: &mut [u8], block: __m128i) {
    if let Ok(bytes) = bytes.try_into() {
        return store_16(bytes, block);
    }
    let len = bytes.len();
    let low = _mm_cvtsi128_si64(block) as u64;
    if let Some(first) = bytes.first_chunk_mut() {
        *first = low.to_le_bytes();
        let all = u128::from(_mm_extract_epi64::<1>(block) as u64) << 64 | u128::from(low);
        let last = (all >> (8 * (len - 8))) as u64;
        *bytes.last_chunk_mut().expect("as long as the first one") = last.to_le_bytes();
    } else if let Some(first) = bytes.first_chunk_mut() {
        *first = (low as u32).to_le_bytes();
        let last = (low >> (8 * (len - 4))) as u32;
        *bytes.last_chunk_mut().expect("as long as the first one") = last.to_le_bytes();
    } else {
        for (at, byte) in bytes.iter_mut().enumerate() {
            *byte = (low >> (8 * at)) as u8;
        }
    }
}

/// The vector's first `count` bytes, and zeros.
#[target_feature(enable = "avx2,vaes,vpclmulqdq,bmi2")]
#[inline]
pub(super) fn keep_first(count: usize, vector: __m256i) -> __m256i {
    const ORDER: [u8; VECTOR_LEN] = {
        let mut order = [0; VECTOR_LEN];
        let mut at = 0;
        while at < VECTOR_LEN {
            order[at] = at as u8;
            at += 1;
        }
        order
    };
    let kept = _mm256_cmpgt_epi8(_mm256_set1_epi8(count as i8), load_32(&ORDER));
    _mm256_and_si256(vector, kept)
}
