//! The backend of ringway's own kernel for CPUs with VAES and VPCLMULQDQ but without AVX-512: AES-256-GCM alone.
#![forbid(unsafe_code)]

use super::gcm::Nonce;
use super::gcm256::Schedule;
use super::simd::Vaes;
use super::{Algorithm, Forged, KEY_LEN, NONCE_LEN, TAG_LEN};

/// An expanded key, and the proof that this CPU can use it.
pub(super) struct Key(Vaes, Box<Schedule>);

impl Key {
    /// None where the CPU lacks a feature, and of another algorithm.
    pub(super) fn new(algorithm: Algorithm, key: &[u8; KEY_LEN]) -> Option<Key> {
        let cpu = Vaes::detect()?;
        match algorithm {
            Algorithm::Aes256Gcm => Some(Key(cpu, cpu.gcm_expand(key))),
            Algorithm::ChaCha20Poly1305 => None,
        }
    }

    #[inline]
    pub(super) fn seal(&self, nonce: &[u8; NONCE_LEN], aad: &[u8], text: &mut [u8], tag: &mut [u8; TAG_LEN]) {
        let Key(cpu, schedule) = self;
        cpu.gcm_seal(schedule, Nonce::new(nonce), aad, text, tag);
    }

    /// On failure `text` may hold what no one should read.
    #[inline]
    pub(super) fn open(&self, nonce: &[u8; NONCE_LEN], aad: &[u8], text: &mut [u8]) -> Result<(), Forged> {
        let Key(cpu, schedule) = self;
        let (text, tag) = text.split_last_chunk_mut().ok_or(Forged)?;
        if cpu.gcm_open(schedule, Nonce::new(nonce), aad, text, tag) {
            Ok(())
        } else {
            Err(Forged)
        }
    }
}
