//! The backend in pure Rust: slower, the same on every CPU, and the oracle of the others' tests.
#![forbid(unsafe_code)]

use aes_gcm::Aes256Gcm;
use aes_gcm::aead::{AeadInOut, KeyInit};
use chacha20poly1305::{AeadInPlace, ChaCha20Poly1305};

use super::{Algorithm, Forged, KEY_LEN, NONCE_LEN, TAG_LEN};

/// An expanded key, boxed so that it stays at one address until its own drop wipes it.
pub(super) enum Key {
    Aes256Gcm(Box<Aes256Gcm>),
    ChaCha20Poly1305(Box<ChaCha20Poly1305>),
}

impl Key {
    pub(super) fn new(algorithm: Algorithm, key: &[u8; KEY_LEN]) -> Key {
        match algorithm {
            Algorithm::Aes256Gcm => Key::Aes256Gcm(Box::new(Aes256Gcm::new(key.into()))),
            Algorithm::ChaCha20Poly1305 => Key::ChaCha20Poly1305(Box::new(chacha20poly1305::KeyInit::new(key.into()))),
        }
    }

    pub(super) fn seal(&self, nonce: &[u8; NONCE_LEN], aad: &[u8], text: &mut [u8], tag: &mut [u8; TAG_LEN]) {
        *tag = match self {
            Key::Aes256Gcm(key) => key
                .encrypt_inout_detached(nonce.into(), aad, text.into())
                .map(Into::into)
                .ok(),
            Key::ChaCha20Poly1305(key) => key
                .encrypt_in_place_detached(nonce.into(), aad, text)
                .map(Into::into)
                .ok(),
        }
        .expect("only a record of 64 GiB is too long to seal");
    }

    pub(super) fn open(&self, nonce: &[u8; NONCE_LEN], aad: &[u8], text: &mut [u8]) -> Result<(), Forged> {
        let (text, tag) = text.split_last_chunk_mut::<TAG_LEN>().ok_or(Forged)?;
        let tag: &[u8; TAG_LEN] = tag;
        match self {
            Key::Aes256Gcm(key) => key
                .decrypt_inout_detached(nonce.into(), aad, text.into(), tag.into())
                .map_err(|_| Forged),
            Key::ChaCha20Poly1305(key) => key
                .decrypt_in_place_detached(nonce.into(), aad, text, tag.into())
                .map_err(|_| Forged),
        }
    }
}
