//! ChaCha20-Poly1305 (RFC 8439, section 2.8) on 512-bit vectors with IFMA: one record, or eight side by side.
//!
//! Every record has a one-time key for Poly1305, which is the first block of its key stream. Alone ([`record`]) it has to
//! wait for that block, and then for powers of the key so that eight blocks can be authenticated in eight lanes. Eight
//! records side by side ([`eight`]) fill the lanes of both algorithms whatever their lengths and share the waiting: a
//! record of a packet's length costs a third less than alone, one of 64 bytes a fifth of it.
//!
//! No branch and no address depends on a key or on text; they depend on lengths alone. Key stream, one-time keys and
//! their powers are wiped from memory before a call returns; copies that the compiler made to spare registers are not.
#![forbid(unsafe_code)]

mod chacha20;
mod eight;
mod lanes;
mod message;
mod poly1305;
mod record;

use zeroize::{Zeroize, ZeroizeOnDrop};

#[cfg(test)]
pub(super) use self::poly1305::tests::in_lanes as poly1305_in_lanes;

use self::eight::{Eight, LANES};
use super::{KEY_LEN, NONCE_LEN, Record, TAG_LEN};

/// A key as words of ChaCha20's state.
#[derive(Zeroize, ZeroizeOnDrop)]
pub(super) struct Key([u32; 8]);

impl Key {
    /// Boxed, so that it stays at one address until its drop wipes it.
    pub(super) fn new(key: &[u8; KEY_LEN]) -> Box<Key> {
        let mut boxed = Box::new(Key([0; 8]));
        for (word, bytes) in boxed.0.iter_mut().zip(key.as_chunks().0) {
            *word = u32::from_le_bytes(*bytes);
        }
        boxed
    }
}

/// Encrypts `text` in place and writes its tag.
///
/// # Panics
/// When `text` is longer than 256 GiB less 64 bytes, where the block counter ends.
#[target_feature(enable = "avx512bw,avx512ifma,avx512vbmi2,bmi2")]
pub(super) fn seal(key: &Key, nonce: &[u8; NONCE_LEN], aad: &[u8], text: &mut [u8], tag: &mut [u8; TAG_LEN]) {
    *tag = record::crypt::<SEAL>(key, nonce_words(nonce), aad, text).to_le_bytes();
}

/// Decrypts `text` in place and says whether it is authentic. If not, the caller must wipe it.
///
/// # Panics
/// As [`seal`].
#[target_feature(enable = "avx512bw,avx512ifma,avx512vbmi2,bmi2")]
#[must_use]
pub(super) fn open(key: &Key, nonce: &[u8; NONCE_LEN], aad: &[u8], text: &mut [u8], tag: &[u8; TAG_LEN]) -> bool {
    record::crypt::<OPEN>(key, nonce_words(nonce), aad, text) ^ u128::from_le_bytes(*tag) == 0
}

/// [`seal`] for each record, eight at a time where that is faster.
///
/// # Panics
/// As [`seal`], and when a text has no room for its tag.
#[target_feature(enable = "avx512bw,avx512ifma,avx512vbmi2,bmi2")]
pub(super) fn seal_run(key: &Key, records: &mut [Record<'_>]) {
    if records.chunks(LANES).any(cost::side_by_side_is_less) {
        return seal_groups(key, records);
    }
    for record in records {
        seal_one(key, record);
    }
}

/// [`open`] for each record, eight at a time where that is faster; a record that is not authentic becomes `forged`, and
/// the caller must wipe its text.
#[target_feature(enable = "avx512bw,avx512ifma,avx512vbmi2,bmi2")]
pub(super) fn open_run(key: &Key, records: &mut [Record<'_>]) {
    if records.chunks(LANES).any(cost::side_by_side_is_less) {
        return open_groups(key, records);
    }
    for record in records {
        open_one(key, record);
    }
}

#[target_feature(enable = "avx512bw,avx512ifma,avx512vbmi2,bmi2")]
fn seal_groups(key: &Key, records: &mut [Record<'_>]) {
    let mut eight = Eight::new();
    for group in records.chunks_mut(LANES) {
        if !cost::side_by_side_is_less(group) {
            for record in group {
                seal_one(key, record);
            }
            continue;
        }
        let (mut nonces, mut texts) = ([[0; 3]; LANES], <[&mut [u8]; LANES]>::default());
        let mut places = [const { None }; LANES];
        for (lane, record) in group.iter_mut().enumerate() {
            nonces[lane] = nonce_words(&record.nonce);
            let (text, tag) = record.text.split_last_chunk_mut().expect(ROOM_FOR_TAG);
            (texts[lane], places[lane]) = (text, Some(tag));
        }
        let tags = eight.crypt::<SEAL>(key, &nonces, &mut texts);
        for (place, tag) in places.into_iter().flatten().zip(tags) {
            *place = tag.to_le_bytes();
        }
    }
    eight.wipe();
}

#[target_feature(enable = "avx512bw,avx512ifma,avx512vbmi2,bmi2")]
fn open_groups(key: &Key, records: &mut [Record<'_>]) {
    let mut eight = Eight::new();
    for group in records.chunks_mut(LANES) {
        if !cost::side_by_side_is_less(group) {
            for record in group {
                open_one(key, record);
            }
            continue;
        }
        let (mut nonces, mut texts) = ([[0; 3]; LANES], <[&mut [u8]; LANES]>::default());
        for (lane, record) in group.iter_mut().enumerate() {
            nonces[lane] = nonce_words(&record.nonce);
            let parts = record.text.split_last_chunk_mut::<TAG_LEN>();
            texts[lane] = parts.map_or(&mut [], |(text, _)| text);
        }
        let tags = eight.crypt::<OPEN>(key, &nonces, &mut texts);
        for (record, expected) in group.iter_mut().zip(tags) {
            let tag = record.text.last_chunk();
            record.forged = tag.is_none_or(|tag| u128::from_le_bytes(*tag) ^ expected != 0);
        }
    }
    eight.wipe();
}

#[target_feature(enable = "avx512bw,avx512ifma,avx512vbmi2,bmi2")]
fn seal_one(key: &Key, record: &mut Record<'_>) {
    let (text, tag) = record.text.split_last_chunk_mut().expect(ROOM_FOR_TAG);
    seal(key, &record.nonce, record.aad, text, tag);
}

#[target_feature(enable = "avx512bw,avx512ifma,avx512vbmi2,bmi2")]
fn open_one(key: &Key, record: &mut Record<'_>) {
    let parts = record.text.split_last_chunk_mut();
    let authentic = parts.is_some_and(|(text, tag)| open(key, &record.nonce, record.aad, text, tag));
    record.forged = !authentic;
}

const ROOM_FOR_TAG: &str = "the caller leaves room for the tag";

// What a record is put through.
const SEAL: bool = false;
const OPEN: bool = true;

const BLOCK_LEN: usize = 64;

#[inline]
fn nonce_words(nonce: &[u8; NONCE_LEN]) -> [u32; 3] {
    let (words, _) = nonce.as_chunks();
    [words[0], words[1], words[2]].map(u32::from_le_bytes)
}

/// What records cost, roughly, in nanoseconds of a Zen 5 at 4 GHz; only the ratio matters.
mod cost {
    use super::{LANES, Record};

    pub(super) fn side_by_side_is_less(group: &[Record<'_>]) -> bool {
        if group.len() < 2 || group.iter().any(|record| !record.aad.is_empty()) {
            return false;
        }
        let lengths = || group.iter().map(|record| record.text.len());
        let longest = lengths().max().unwrap_or(0);
        side_by_side(longest) < lengths().map(alone).sum()
    }

    /// Of one record: rows up to about 450 bytes, columns up to 1,500, passes from there on.
    const fn alone(len: usize) -> usize {
        match len {
            ..464 => 150 + len / 5,
            464..1488 => 270 + len / 32,
            _ => 130 + len / 8,
        }
    }

    /// Of [`LANES`] records of which `len` is the longest.
    const fn side_by_side(len: usize) -> usize {
        270 + len + len / 32
    }

    // A run of full-size packets is worth its while, and so are few short ones.
    const _: () = assert!(side_by_side(1452) < 6 * alone(1452) && side_by_side(1452) > 5 * alone(1452));
    const _: () = assert!(side_by_side(80) < 3 * alone(80) && side_by_side(9000) < LANES * alone(9000));
}
