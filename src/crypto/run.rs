//! Runs: the records of one GSO or GRO batch, sealed or opened in one call.
#![forbid(unsafe_code)]

use super::{Aead, Key, NONCE_LEN};

/// One record of a run.
#[derive(Debug)]
pub struct Record<'a> {
    /// As for [`Aead::seal_in_place`]. Within a run, too, no two records may have the same.
    pub nonce: [u8; NONCE_LEN],
    /// Authenticated with the text.
    pub aad: &'a [u8],
    /// Plaintext | 16 bytes of any value, or ciphertext | tag.
    pub text: &'a mut [u8],
    /// What [`Aead::open_run`] found: the record does not authenticate, and its text is zeroed.
    pub forged: bool,
}

impl<'a> Record<'a> {
    /// A record to be sealed or opened.
    #[inline]
    pub fn new(nonce: [u8; NONCE_LEN], aad: &'a [u8], text: &'a mut [u8]) -> Record<'a> {
        Record {
            nonce,
            aad,
            text,
            forged: false,
        }
    }
}

impl Aead {
    /// [`Aead::seal_in_place`] for each record.
    ///
    /// ChaCha20-Poly1305 on AVX-512 works on eight consecutive records side by side when they have about the same length
    /// and no associated data, as those of a GSO batch in the WireGuard suite. Then a run costs much less than its
    /// records one by one.
    ///
    /// # Panics
    /// When a text is shorter than a tag. Records before it may have been sealed.
    #[inline]
    pub fn seal_run(&self, records: &mut [Record<'_>]) {
        match &self.0 {
            #[cfg(target_arch = "x86_64")]
            Key::Avx512(key) => key.seal_run(records),
            _ => {
                for record in records {
                    self.seal_in_place(&record.nonce, record.aad, record.text);
                }
            }
        }
    }

    /// [`Aead::open_in_place`] for each record, whose result is in [`Record::forged`]; [`Aead::seal_run`] on speed.
    #[inline]
    pub fn open_run(&self, records: &mut [Record<'_>]) {
        match &self.0 {
            #[cfg(target_arch = "x86_64")]
            Key::Avx512(key) => {
                key.open_run(records);
                for record in records.iter_mut().filter(|record| record.forged) {
                    record.text.fill(0);
                }
            }
            _ => {
                for record in records {
                    record.forged = self.open_in_place(&record.nonce, record.aad, record.text).is_err();
                }
            }
        }
    }
}
