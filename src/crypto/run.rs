//! Runs: the records of one GSO or GRO batch, sealed or opened in one call.
#![forbid(unsafe_code)]

use super::{Aead, Key, NONCE_LEN, TAG_LEN};

/// One record of a run.
#[derive(Debug)]
pub struct Record<'a> {
    /// As for [`Aead::seal_in_place`]. Within a run, too, no two records may have the same.
    pub nonce: [u8; NONCE_LEN],
    /// Authenticated with the text.
    pub aad: &'a [u8],
    /// Plaintext | 16 bytes of any value, or ciphertext | tag.
    pub text: &'a mut [u8],
    /// Sealing: the plaintext's last bytes, which are taken from here and not from `text`. Those that `text` has in their place are
    /// overwritten.
    pub tail: &'a [u8],
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
            tail: &[],
            forged: false,
        }
    }

    /// The same, with the plaintext's last bytes elsewhere.
    #[inline]
    pub fn with_tail(self, tail: &'a [u8]) -> Record<'a> {
        Record { tail, ..self }
    }

    /// Copies the tail to where it belongs.
    ///
    /// # Panics
    /// When the text is shorter than the tail and a tag.
    #[inline]
    pub(super) fn join(&mut self) {
        self.join_before(usize::MAX);
    }

    /// Copies what of the tail belongs before byte `at` of the text, or all of it when it begins behind that. The rest is what is
    /// left in `tail`.
    ///
    /// # Panics
    /// As [`Record::join`].
    #[inline]
    pub(super) fn join_before(&mut self, at: usize) {
        let end = self.text.len().checked_sub(TAG_LEN);
        let start = end.and_then(|end| end.checked_sub(self.tail.len()));
        let start = start.expect("the caller leaves room for the tag and the tail");
        let copied = at
            .checked_sub(start)
            .map_or(self.tail.len(), |before| before.min(self.tail.len()));
        let (tail, rest) = self.tail.split_at(copied);
        self.text[start..][..copied].copy_from_slice(tail);
        self.tail = rest;
    }
}

impl Aead {
    /// [`Aead::seal_in_place`] for each record, whose tail need not have been copied into its text before: AES-256-GCM on AVX-512
    /// reads it from where it is.
    ///
    /// ChaCha20-Poly1305 on AVX-512 works on eight consecutive records side by side when they have about the same length
    /// and no associated data, as those of a GSO batch in the WireGuard suite. Then a run costs much less than its
    /// records one by one.
    ///
    /// # Panics
    /// When a text is shorter than its tail and a tag. Records before it may have been sealed.
    #[inline]
    pub fn seal_run(&self, records: &mut [Record<'_>]) {
        match &self.0 {
            #[cfg(target_arch = "x86_64")]
            Key::Avx512(key) => key.seal_run(records),
            _ => {
                for record in records {
                    record.join();
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
