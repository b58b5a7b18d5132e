//! The backend of ringway's own kernels, for CPUs with AVX-512, VAES and VPCLMULQDQ.
#![forbid(unsafe_code)]

use super::gcm::Nonce;
use super::gcm512::{Schedule, TAIL_AT};
use super::simd::Avx512;
use super::{Algorithm, Forged, KEY_LEN, NONCE_LEN, Record, TAG_LEN, chachapoly512};

/// An expanded key, and the proof that this CPU can use it.
pub(super) enum Key {
    Aes256Gcm(Avx512, Box<Schedule>),
    ChaCha20Poly1305(Avx512, Box<chachapoly512::Key>),
}

impl Key {
    /// None where the CPU lacks a feature.
    pub(super) fn new(algorithm: Algorithm, key: &[u8; KEY_LEN]) -> Option<Key> {
        let cpu = Avx512::detect()?;
        match algorithm {
            Algorithm::Aes256Gcm => Some(Key::Aes256Gcm(cpu, cpu.gcm_expand(key))),
            Algorithm::ChaCha20Poly1305 => Some(Key::ChaCha20Poly1305(cpu, chachapoly512::Key::new(key))),
        }
    }

    #[inline]
    pub(super) fn seal(&self, nonce: &[u8; NONCE_LEN], aad: &[u8], text: &mut [u8], tag: &mut [u8; TAG_LEN]) {
        match self {
            Key::Aes256Gcm(cpu, schedule) => cpu.gcm_seal(schedule, Nonce::new(nonce), aad, text, &[], tag),
            Key::ChaCha20Poly1305(cpu, key) => cpu.chachapoly_seal(key, nonce, aad, text, tag),
        }
    }

    /// On failure `text` may hold what no one should read.
    #[inline]
    pub(super) fn open(&self, nonce: &[u8; NONCE_LEN], aad: &[u8], text: &mut [u8]) -> Result<(), Forged> {
        let (text, tag) = text.split_last_chunk_mut().ok_or(Forged)?;
        let authentic = match self {
            Key::Aes256Gcm(cpu, schedule) => cpu.gcm_open(schedule, Nonce::new(nonce), aad, text, tag),
            Key::ChaCha20Poly1305(cpu, key) => cpu.chachapoly_open(key, nonce, aad, text, tag),
        };
        if authentic { Ok(()) } else { Err(Forged) }
    }

    pub(super) fn seal_run(&self, records: &mut [Record<'_>]) {
        match self {
            Key::Aes256Gcm(cpu, schedule) => {
                for record in records {
                    record.join_before(TAIL_AT);
                    let (text, tag) = record
                        .text
                        .split_last_chunk_mut()
                        .expect("the caller leaves room for the tag");
                    cpu.gcm_seal(schedule, Nonce::new(&record.nonce), record.aad, text, record.tail, tag);
                }
            }
            Key::ChaCha20Poly1305(cpu, key) => {
                records.iter_mut().for_each(Record::join);
                cpu.chachapoly_seal_run(key, records);
            }
        }
    }

    /// Sets `forged` of each record. The text of a forged one may hold what no one should read.
    pub(super) fn open_run(&self, records: &mut [Record<'_>]) {
        match self {
            Key::Aes256Gcm(..) => {
                for record in records {
                    record.forged = self.open(&record.nonce, record.aad, record.text).is_err();
                }
            }
            Key::ChaCha20Poly1305(cpu, key) => cpu.chachapoly_open_run(key, records),
        }
    }
}
