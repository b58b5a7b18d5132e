//! The only `unsafe` of `crypto`: memory access for vectors, and the way into code compiled for CPU features.
//!
//! Arithmetic on vectors is safe inside functions that enable its CPU features; loads, stores and the first call of
//! such a function are not. Both are given a safe face here, so the ciphers on top of them are safe code:
//!
//! - Loads and stores take slices, and a partial one touches exactly the bytes of its slice. The processor suppresses
//!   faults of lanes that a mask excludes (Intel SDM, volume 1, section 15.6.4), so a record may end where its page does.
//! - [`Avx512`] and [`Vaes`] are proofs that the CPU, and the operating system by saving the registers, support every
//!   feature that the kernels enable. Their methods are the kernels' entry points.
#![allow(unsafe_code)]

use std::arch::x86_64::*;

use super::gcm::Nonce;
use super::{KEY_LEN, NONCE_LEN, Record, TAG_LEN};
use super::{chachapoly512, gcm256, gcm512};

/// Proof that this machine has the features named in [`Avx512::detect`]: the generation of Ice Lake and Zen 4.
#[derive(Clone, Copy)]
pub(super) struct Avx512(());

impl Avx512 {
    /// The proof, on machines where it holds. Std asks the CPU once and keeps the answer.
    pub(super) fn detect() -> Option<Avx512> {
        let detected = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("avx512ifma")
            && is_x86_feature_detected!("avx512vbmi2")
            && is_x86_feature_detected!("vaes")
            && is_x86_feature_detected!("vpclmulqdq")
            && is_x86_feature_detected!("bmi2");
        detected.then_some(Avx512(()))
    }

    /// [`gcm512::expand`].
    pub(super) fn gcm_expand(self, key: &[u8; KEY_LEN]) -> Box<gcm512::Schedule> {
        // SAFETY: the function needs avx512bw, avx512vl, vaes, vpclmulqdq and bmi2, which `self` proves.
        unsafe { gcm512::expand(key) }
    }

    /// [`gcm512::seal`].
    #[inline]
    pub(super) fn gcm_seal(
        self,
        schedule: &gcm512::Schedule,
        nonce: Nonce,
        aad: &[u8],
        text: &mut [u8],
        tail: &[u8],
        tag: &mut [u8; TAG_LEN],
    ) {
        // SAFETY: the function needs avx512bw, avx512vl, vaes, vpclmulqdq and bmi2, which `self` proves.
        unsafe { gcm512::seal(schedule, nonce, aad, text, tail, tag) }
    }

    /// [`gcm512::open`].
    #[inline]
    pub(super) fn gcm_open(
        self,
        schedule: &gcm512::Schedule,
        nonce: Nonce,
        aad: &[u8],
        text: &mut [u8],
        tag: &[u8; TAG_LEN],
    ) -> bool {
        // SAFETY: the function needs avx512bw, avx512vl, vaes, vpclmulqdq and bmi2, which `self` proves.
        unsafe { gcm512::open(schedule, nonce, aad, text, tag) }
    }

    /// [`chachapoly512::seal`].
    #[inline]
    pub(super) fn chachapoly_seal(
        self,
        key: &chachapoly512::Key,
        nonce: &[u8; NONCE_LEN],
        aad: &[u8],
        text: &mut [u8],
        tag: &mut [u8; TAG_LEN],
    ) {
        // SAFETY: the function needs avx512bw, avx512ifma, avx512vbmi2 and bmi2, which `self` proves.
        unsafe { chachapoly512::seal(key, nonce, aad, text, tag) }
    }

    /// [`chachapoly512::open`].
    #[inline]
    pub(super) fn chachapoly_open(
        self,
        key: &chachapoly512::Key,
        nonce: &[u8; NONCE_LEN],
        aad: &[u8],
        text: &mut [u8],
        tag: &[u8; TAG_LEN],
    ) -> bool {
        // SAFETY: the function needs avx512bw, avx512ifma, avx512vbmi2 and bmi2, which `self` proves.
        unsafe { chachapoly512::open(key, nonce, aad, text, tag) }
    }

    /// [`chachapoly512::seal_run`].
    #[inline]
    pub(super) fn chachapoly_seal_run(self, key: &chachapoly512::Key, records: &mut [Record<'_>]) {
        // SAFETY: the function needs avx512bw, avx512ifma, avx512vbmi2 and bmi2, which `self` proves.
        unsafe { chachapoly512::seal_run(key, records) }
    }

    /// [`chachapoly512::open_run`].
    #[inline]
    pub(super) fn chachapoly_open_run(self, key: &chachapoly512::Key, records: &mut [Record<'_>]) {
        // SAFETY: the function needs avx512bw, avx512ifma, avx512vbmi2 and bmi2, which `self` proves.
        unsafe { chachapoly512::open_run(key, records) }
    }
}

/// Proof that this machine has the features named in [`Vaes::detect`]: the generation of Zen 3 and Alder Lake.
#[derive(Clone, Copy)]
pub(super) struct Vaes(());

impl Vaes {
    /// As [`Avx512::detect`].
    pub(super) fn detect() -> Option<Vaes> {
        let detected = is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("vaes")
            && is_x86_feature_detected!("vpclmulqdq")
            && is_x86_feature_detected!("bmi2");
        detected.then_some(Vaes(()))
    }

    /// [`gcm256::expand`].
    pub(super) fn gcm_expand(self, key: &[u8; KEY_LEN]) -> Box<gcm256::Schedule> {
        // SAFETY: the function needs avx2, vaes, vpclmulqdq and bmi2, which `self` proves.
        unsafe { gcm256::expand(key) }
    }

    /// [`gcm256::seal`].
    #[inline]
    pub(super) fn gcm_seal(
        self,
        schedule: &gcm256::Schedule,
        nonce: Nonce,
        aad: &[u8],
        text: &mut [u8],
        tag: &mut [u8; TAG_LEN],
    ) {
        // SAFETY: the function needs avx2, vaes, vpclmulqdq and bmi2, which `self` proves.
        unsafe { gcm256::seal(schedule, nonce, aad, text, tag) }
    }

    /// [`gcm256::open`].
    #[inline]
    pub(super) fn gcm_open(
        self,
        schedule: &gcm256::Schedule,
        nonce: Nonce,
        aad: &[u8],
        text: &mut [u8],
        tag: &[u8; TAG_LEN],
    ) -> bool {
        // SAFETY: the function needs avx2, vaes, vpclmulqdq and bmi2, which `self` proves.
        unsafe { gcm256::open(schedule, nonce, aad, text, tag) }
    }
}

/// Loads 64 bytes.
#[target_feature(enable = "avx512f")]
#[inline]
pub(super) fn load(bytes: &[u8; 64]) -> __m512i {
    // SAFETY: it reads the 64 bytes of `bytes`, at any alignment.
    unsafe { _mm512_loadu_si512(bytes.as_ptr().cast()) }
}

/// Stores 64 bytes.
#[target_feature(enable = "avx512f")]
#[inline]
pub(super) fn store(bytes: &mut [u8; 64], vector: __m512i) {
    // SAFETY: it writes the 64 bytes of `bytes`, at any alignment.
    unsafe { _mm512_storeu_si512(bytes.as_mut_ptr().cast(), vector) }
}

/// Loads up to 64 bytes; the vector's other bytes are zero. Of a longer slice it takes the first 64.
#[target_feature(enable = "avx512bw,bmi2")]
#[inline]
pub(super) fn load_partial(bytes: &[u8]) -> __m512i {
    // An empty slice may point anywhere, and suppressing the fault of an unmapped page takes hundreds of cycles.
    if bytes.is_empty() {
        return _mm512_setzero_si512();
    }
    // SAFETY: the mask selects only bytes below `bytes.len()`, and excluded bytes are not accessed.
    unsafe { _mm512_maskz_loadu_epi8(first_bytes(bytes.len()), bytes.as_ptr().cast()) }
}

/// Stores the vector's first bytes, as many as `bytes` has but at most 64.
#[target_feature(enable = "avx512bw,bmi2")]
#[inline]
pub(super) fn store_partial(bytes: &mut [u8], vector: __m512i) {
    // As in `load_partial`.
    if bytes.is_empty() {
        return;
    }
    // SAFETY: the mask selects only bytes below `bytes.len()`, and excluded bytes are not accessed.
    unsafe { _mm512_mask_storeu_epi8(bytes.as_mut_ptr().cast(), first_bytes(bytes.len()), vector) }
}

/// The mask of a vector's first `count` bytes; of all 64 from there on.
#[inline]
pub(super) fn first_bytes(count: usize) -> __mmask64 {
    !u64::MAX.unbounded_shl(count.min(64) as u32)
}

/// Loads 32 bytes.
#[target_feature(enable = "avx")]
#[inline]
pub(super) fn load_32(bytes: &[u8; 32]) -> __m256i {
    // SAFETY: it reads the 32 bytes of `bytes`, at any alignment.
    unsafe { _mm256_loadu_si256(bytes.as_ptr().cast()) }
}

/// Stores 32 bytes.
#[target_feature(enable = "avx")]
#[inline]
pub(super) fn store_32(bytes: &mut [u8; 32], vector: __m256i) {
    // SAFETY: it writes the 32 bytes of `bytes`, at any alignment.
    unsafe { _mm256_storeu_si256(bytes.as_mut_ptr().cast(), vector) }
}

/// Loads 16 bytes.
#[target_feature(enable = "sse2")]
#[inline]
pub(super) fn load_16(bytes: &[u8; 16]) -> __m128i {
    // SAFETY: it reads the 16 bytes of `bytes`, at any alignment.
    unsafe { _mm_loadu_si128(bytes.as_ptr().cast()) }
}

/// Stores 16 bytes.
#[target_feature(enable = "sse2")]
#[inline]
pub(super) fn store_16(bytes: &mut [u8; 16], vector: __m128i) {
    // SAFETY: it writes the 16 bytes of `bytes`, at any alignment.
    unsafe { _mm_storeu_si128(bytes.as_mut_ptr().cast(), vector) }
}

/// Loads eight words.
#[target_feature(enable = "avx512f")]
#[inline]
pub(super) fn load_u64(words: &[u64; 8]) -> __m512i {
    // SAFETY: it reads the 64 bytes of `words`, at any alignment.
    unsafe { _mm512_loadu_si512(words.as_ptr().cast()) }
}

/// Stores eight words.
#[target_feature(enable = "avx512f")]
#[inline]
pub(super) fn store_u64(words: &mut [u64; 8], vector: __m512i) {
    // SAFETY: it writes the 64 bytes of `words`, at any alignment.
    unsafe { _mm512_storeu_si512(words.as_mut_ptr().cast(), vector) }
}

#[cfg(test)]
impl Avx512 {
    /// [`chachapoly512::poly1305_in_lanes`].
    pub(super) fn poly1305_in_lanes(
        self,
        a: &[[u64; 3]; 8],
        b: &[[u64; 3]; 8],
        pads: &[u128; 8],
    ) -> ([[u64; 3]; 8], [u128; 8]) {
        // SAFETY: the function needs avx512bw, avx512ifma, avx512vbmi2 and bmi2, which `self` proves.
        unsafe { chachapoly512::poly1305_in_lanes(a, b, pads) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::Backend;

    #[test]
    fn a_partial_load_and_store_touch_the_bytes_of_their_slice_alone() {
        #[target_feature(enable = "avx512bw,bmi2")]
        fn copy(from: &[u8], to: &mut [u8]) {
            store_partial(to, load_partial(from));
        }
        if Avx512::detect().is_none() {
            return println!("{}", Backend::Avx512.skipped());
        }
        let from: Vec<u8> = (1..=100).collect();
        for (loaded, stored) in (0..=70).flat_map(|loaded| (0..=70).map(move |stored| (loaded, stored))) {
            let mut to = [0xff; 100];
            // SAFETY: the features are a part of those just detected.
            unsafe { copy(&from[..loaded], &mut to[5..5 + stored]) };
            for (at, byte) in to.into_iter().enumerate() {
                let expected = match at.checked_sub(5) {
                    Some(at) if at < stored.min(64) => {
                        if at < loaded {
                            from[at]
                        } else {
                            0
                        }
                    }
                    _ => 0xff,
                };
                assert_eq!(byte, expected, "byte {at} of {loaded} loaded and {stored} stored");
            }
        }
    }
}
