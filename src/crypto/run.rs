//! Runs: the records of one GSO or GRO batch, sealed or opened in one call.
#![forbid(unsafe_code)]

use super::{Aead, Key, NONCE_LEN};

/// One record of a run.
#[derive(Debug)]
pub struct Record<'a> {
    /// As for [`Aead::seal_in_place`].
    pub nonce: [u8; NONCE_LEN],
    /// Authenticated with the text.
    pub aad: &'a [u8],
    /// Plaintext or ciphertext | 16 bytes of tag.
    pub text: &'a mut [u8],
    /// Set by [`Aead::open_run`]: the record does not authenticate, and `text` is zeroed.
    pub forged: bool,
}

impl Aead {
    /// [`Aead::seal_in_place`] for each record. Where the backend has a kernel for several records side by side, a run
    /// costs less than its records one by one; records of about the same length gain most.
    ///
    /// # Panics
    /// When a text is shorter than a tag. Records before it may have been sealed.
    pub fn seal_run(&self, records: &mut [Record<'_>]) {
        match &self.0 {
            Key::ChaCha512(key) => key.seal_run(records),
            _ => {
                for record in records {
                    self.seal_in_place(&record.nonce, record.aad, record.text);
                }
            }
        }
    }

    /// [`Aead::open_in_place`] for each record; its result is in [`Record::forged`].
    pub fn open_run(&self, records: &mut [Record<'_>]) {
        match &self.0 {
            Key::ChaCha512(key) => key.open_run(records),
            _ => {
                for record in records {
                    record.forged = self.open_in_place(&record.nonce, record.aad, record.text).is_err();
                }
            }
        }
    }
}
