//! The backend on ringway's own ChaCha20-Poly1305 kernel for AVX-512.
#![forbid(unsafe_code)]

use zeroize::Zeroizing;

use super::simd::Avx512;
use super::{Forged, KEY_LEN, NONCE_LEN, Record, TAG_LEN, chacha512};

/// A key in words, boxed so that it stays at one address until its drop wipes it.
pub(super) struct Key {
    cpu: Avx512,
    words: Box<Zeroizing<chacha512::Key>>,
}

impl Key {
    pub(super) fn new(cpu: Avx512, key: &[u8; KEY_LEN]) -> Key {
        let mut words = Box::new(Zeroizing::new([0; KEY_LEN / 4]));
        for (word, bytes) in words.iter_mut().zip(key.as_chunks().0) {
            *word = u32::from_le_bytes(*bytes);
        }
        Key { cpu, words }
    }

    #[inline]
    pub(super) fn seal(&self, nonce: &[u8; NONCE_LEN], aad: &[u8], text: &mut [u8], tag: &mut [u8; TAG_LEN]) {
        *tag = self.cpu.chachapoly_seal(&self.words, nonce, aad, text);
    }

    #[inline]
    pub(super) fn open(&self, nonce: &[u8; NONCE_LEN], aad: &[u8], text: &mut [u8]) -> Result<(), Forged> {
        let (text, tag) = text.split_last_chunk_mut().ok_or(Forged)?;
        let expected = self.cpu.chachapoly_open(&self.words, nonce, aad, text);
        if equal(&expected, tag) { Ok(()) } else { Err(Forged) }
    }

    pub(super) fn seal_run(&self, records: &mut [Record<'_>]) {
        let mut workspace = self.cpu.chachapoly_workspace();
        for group in records.chunks_mut(LANES) {
            if !pays(group) {
                for record in group {
                    let (text, tag) = split_tag(record.text).expect("the caller leaves room for the tag");
                    self.seal(&record.nonce, record.aad, text, tag);
                }
                continue;
            }
            let (mut nonces, mut texts, mut tags) = (
                [[0; NONCE_LEN]; LANES],
                <[&mut [u8]; LANES]>::default(),
                [const { None }; LANES],
            );
            for (lane, record) in group.iter_mut().enumerate() {
                let (text, tag) = split_tag(record.text).expect("the caller leaves room for the tag");
                (nonces[lane], texts[lane], tags[lane]) = (record.nonce, text, Some(tag));
            }
            let computed = self
                .cpu
                .chachapoly_eight::<false>(&self.words, &nonces, &mut texts, &mut workspace);
            for (tag, computed) in tags.into_iter().flatten().zip(computed) {
                *tag = computed;
            }
        }
        self.cpu.chachapoly_wipe(&mut workspace);
    }

    pub(super) fn open_run(&self, records: &mut [Record<'_>]) {
        let mut workspace = self.cpu.chachapoly_workspace();
        for group in records.chunks_mut(LANES) {
            if pays(group) {
                let (mut nonces, mut texts) = ([[0; NONCE_LEN]; LANES], <[&mut [u8]; LANES]>::default());
                for (lane, record) in group.iter_mut().enumerate() {
                    nonces[lane] = record.nonce;
                    texts[lane] = split_tag(record.text).map_or(&mut [], |(text, _)| text);
                }
                let expected = self
                    .cpu
                    .chachapoly_eight::<true>(&self.words, &nonces, &mut texts, &mut workspace);
                for (record, expected) in group.iter_mut().zip(&expected) {
                    record.forged = !record.text.last_chunk().is_some_and(|tag| equal(expected, tag));
                }
            } else {
                for record in &mut *group {
                    record.forged = self.open(&record.nonce, record.aad, record.text).is_err();
                }
            }
            for record in group.iter_mut().filter(|record| record.forged) {
                record.text.fill(0);
            }
        }
        self.cpu.chachapoly_wipe(&mut workspace);
    }
}

/// Records that the kernel takes side by side.
const LANES: usize = 8;

/// Whether the records cost less side by side, at the price of eight of the longest, than one by one.
#[inline]
fn pays(group: &[Record<'_>]) -> bool {
    let longest = group.iter().map(|record| record.text.len()).max().unwrap_or(0);
    let together: usize = group.iter().map(|record| record.text.len()).sum();
    group.len() > 1 && 2 * together > LANES * longest && group.iter().all(|record| record.aad.is_empty())
}

#[inline]
fn split_tag(text: &mut [u8]) -> Option<(&mut [u8], &mut [u8; TAG_LEN])> {
    text.split_last_chunk_mut()
}

/// In constant time.
#[inline]
fn equal(one: &[u8; TAG_LEN], other: &[u8; TAG_LEN]) -> bool {
    u128::from_ne_bytes(*one) ^ u128::from_ne_bytes(*other) == 0
}
