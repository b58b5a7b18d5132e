//! The backend of ringway's own kernels, for CPUs with AVX-512, VAES and VPCLMULQDQ.
#![forbid(unsafe_code)]

use super::gcm512::{Nonce, Schedule};
use super::simd::Avx512;
use super::{Algorithm, Forged, KEY_LEN, NONCE_LEN, TAG_LEN};

/// An expanded key, and the proof that this CPU can use it.
pub(super) enum Key {
    Aes256Gcm(Avx512, Box<Schedule>),
}

impl Key {
    /// None where the CPU lacks a feature or `algorithm` has no kernel.
    pub(super) fn new(algorithm: Algorithm, key: &[u8; KEY_LEN]) -> Option<Key> {
        let cpu = Avx512::detect()?;
        match algorithm {
            Algorithm::Aes256Gcm => Some(Key::Aes256Gcm(cpu, cpu.gcm_expand(key))),
            Algorithm::ChaCha20Poly1305 => None,
        }
    }

    #[inline]
    pub(super) fn seal(&self, nonce: &[u8; NONCE_LEN], aad: &[u8], text: &mut [u8], tag: &mut [u8; TAG_LEN]) {
        match self {
            Key::Aes256Gcm(cpu, schedule) => cpu.gcm_seal(schedule, Nonce::new(nonce), aad, text, tag),
        }
    }

    /// On failure `text` may hold what no one should read.
    #[inline]
    pub(super) fn open(&self, nonce: &[u8; NONCE_LEN], aad: &[u8], text: &mut [u8]) -> Result<(), Forged> {
        let (text, tag) = text.split_last_chunk_mut().ok_or(Forged)?;
        let authentic = match self {
            Key::Aes256Gcm(cpu, schedule) => cpu.gcm_open(schedule, Nonce::new(nonce), aad, text, tag),
        };
        if authentic { Ok(()) } else { Err(Forged) }
    }
}
