//! The backend on AWS-LC: the fastest one that runs on every CPU.
#![forbid(unsafe_code)]

use aws_lc_rs::aead::{AES_256_GCM, Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};

use super::{Algorithm, Forged, KEY_LEN, NONCE_LEN, TAG_LEN};

/// An expanded key. AWS-LC holds it on its own heap and wipes it when it is freed.
pub(super) struct Key(LessSafeKey);

impl Key {
    pub(super) fn new(algorithm: Algorithm, key: &[u8; KEY_LEN]) -> Key {
        let algorithm = match algorithm {
            Algorithm::Aes256Gcm => &AES_256_GCM,
            Algorithm::ChaCha20Poly1305 => &CHACHA20_POLY1305,
        };
        Key(LessSafeKey::new(
            UnboundKey::new(algorithm, key).expect("both algorithms take keys of 32 bytes"),
        ))
    }

    #[inline]
    pub(super) fn seal(&self, nonce: &[u8; NONCE_LEN], aad: &[u8], text: &mut [u8], tag: &mut [u8; TAG_LEN]) {
        // The scatter form writes the tag where it belongs; with no extra input it is a plain seal.
        self.0
            .seal_in_place_scatter(Nonce::assume_unique_for_key(*nonce), Aad::from(aad), text, &[], tag)
            .expect("only a record of 64 GiB is too long to seal");
    }

    #[inline]
    pub(super) fn open(&self, nonce: &[u8; NONCE_LEN], aad: &[u8], text: &mut [u8]) -> Result<(), Forged> {
        let opened = self
            .0
            .open_in_place(Nonce::assume_unique_for_key(*nonce), Aad::from(aad), text);
        opened.map(|_| ()).map_err(|_| Forged)
    }
}
