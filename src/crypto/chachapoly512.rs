//! ChaCha20-Poly1305 (RFC 8439, section 2.8) of one record, and of eight records at a time.
//!
//! A record has a one-time key of its own, so alone it has to wait for its first block before it can be authenticated,
//! and work out powers of r for eight lanes. Eight records side by side share those costs: their blocks fill the
//! vectors of ChaCha20 whatever their length, and Poly1305 has a lane for each.
#![forbid(unsafe_code)]

use std::arch::x86_64::*;

use zeroize::{Zeroize, Zeroizing};

use super::chacha512::{Key, columns, columns_and_rows, columns_pair, count_from, rows, splat};
use super::poly512::{self, Lanes};
use super::simd::{first_bytes, load, load_partial, load_u64, store, store_partial};
use super::{NONCE_LEN, TAG_LEN};

const BLOCK: usize = 64;

/// Seals or opens `text` in place and returns the tag of what is its ciphertext.
#[target_feature(enable = "avx512bw,avx512ifma,avx512vbmi2,bmi2")]
pub(super) fn record<const OPEN: bool>(
    key: &Key,
    nonce: &[u8; NONCE_LEN],
    aad: &[u8],
    text: &mut [u8],
) -> [u8; TAG_LEN] {
    let nonce = nonce_words(nonce);
    if text.len() <= 7 * BLOCK {
        let [key_block, blocks @ ..] = rows(key, [0, 1, 2, 3, 4, 5, 6, 7], nonce);
        return authenticate_around::<OPEN>(key_block, aad, text, |text| {
            xor(&blocks, text);
        });
    }
    let (first, [key_block, second @ ..]) = columns_and_rows(key, 1, [0, 17, 18, 19, 20, 21, 22, 23], nonce);
    authenticate_around::<OPEN>(key_block, aad, text, |text| {
        let text = xor(first.as_flattened(), text);
        let text = xor(&second, text);
        let nonces = [splat(nonce[0]), splat(nonce[1]), splat(nonce[2])];
        for (text, from) in text.chunks_mut(32 * BLOCK).zip((24..).step_by(32)) {
            let [first, second] = columns_pair(key, [count_from(from), count_from(from + 16)], nonces);
            let text = xor(first.as_flattened(), text);
            xor(second.as_flattened(), text);
        }
    })
}

/// Authenticates the ciphertext: what `crypt` makes of `text`, or when opening what it is made of.
#[target_feature(enable = "avx512bw,avx512ifma,avx512vbmi2,bmi2")]
#[inline]
fn authenticate_around<const OPEN: bool>(
    key_block: __m512i,
    aad: &[u8],
    text: &mut [u8],
    crypt: impl FnOnce(&mut [u8]),
) -> [u8; TAG_LEN] {
    let mut key_bytes = Zeroizing::new([0; BLOCK]);
    store(&mut key_bytes, key_block);
    if OPEN {
        let tag = poly512::tag(&key_bytes, aad, text);
        crypt(text);
        tag
    } else {
        crypt(text);
        poly512::tag(&key_bytes, aad, text)
    }
}

/// Adds key stream to the front of `text`; the rest, which it did not reach, is returned.
#[target_feature(enable = "avx512bw,bmi2")]
#[inline]
fn xor<'text>(stream: &[__m512i], text: &'text mut [u8]) -> &'text mut [u8] {
    let (text, rest) = text.split_at_mut(text.len().min(stream.len() * BLOCK));
    let (whole, last) = text.as_chunks_mut::<BLOCK>();
    for (block, stream) in whole.iter_mut().zip(stream) {
        let text = _mm512_xor_si512(load(block), *stream);
        store(block, text);
    }
    if !last.is_empty() {
        let text = _mm512_xor_si512(load_partial(last), stream[whole.len()]);
        store_partial(last, text);
    }
    rest
}

/// Seals or opens each of `texts` in place under its nonce and returns the tags of what are their ciphertexts.
///
/// Costs as much as eight records of the longest length. Unused places may be empty.
#[target_feature(enable = "avx512bw,avx512ifma,avx512vbmi2,bmi2")]
pub(super) fn eight_records<const OPEN: bool>(
    key: &Key,
    nonces: &[[u8; NONCE_LEN]; 8],
    texts: &mut [&mut [u8]; 8],
) -> [[u8; TAG_LEN]; 8] {
    let lengths = texts.each_ref().map(|text| text.len() as u64);
    let longest = texts.iter().map(|text| text.len()).max().unwrap_or(0);
    let nonces = nonce_columns(nonces);
    let blocks = 1 + longest.div_ceil(BLOCK);

    let mut lanes;
    if blocks <= 2 {
        let [keys, block] = columns(key, pair_of_blocks(0), nonces);
        lanes = Lanes::new(keys, &lengths);
        lanes.absorb(0, [crypt::<OPEN>(block, texts, 0)]);
    } else {
        let [[keys, first], [second, third]] = columns_pair(key, [pair_of_blocks(0), pair_of_blocks(2)], nonces);
        lanes = Lanes::new(keys, &lengths);
        lanes.absorb(0, [crypt::<OPEN>(first, texts, 0)]);
        let second = crypt::<OPEN>(second, texts, BLOCK);
        let third = crypt::<OPEN>(third, texts, 2 * BLOCK);
        lanes.absorb(BLOCK, [second, third]);
    }
    for block in (4..blocks).step_by(4) {
        let at = (block - 1) * BLOCK;
        let block_number = block as u32;
        if blocks - block <= 2 {
            let [first, second] = columns(key, pair_of_blocks(block_number), nonces);
            let first = crypt::<OPEN>(first, texts, at);
            let second = crypt::<OPEN>(second, texts, at + BLOCK);
            lanes.absorb(at, [first, second]);
        } else {
            let counters = [pair_of_blocks(block_number), pair_of_blocks(block_number + 2)];
            let [[first, second], [third, fourth]] = columns_pair(key, counters, nonces);
            let first = crypt::<OPEN>(first, texts, at);
            let second = crypt::<OPEN>(second, texts, at + BLOCK);
            lanes.absorb(at, [first, second]);
            let third = crypt::<OPEN>(third, texts, at + 2 * BLOCK);
            let fourth = crypt::<OPEN>(fourth, texts, at + 3 * BLOCK);
            lanes.absorb(at + 2 * BLOCK, [third, fourth]);
        }
    }
    let tags = lanes.tags();
    lanes.zeroize();
    tags
}

/// Adds a block of key stream to bytes `at..at + 64` of each text, as far as it goes, and returns the ciphertext, zeros
/// after its end.
#[target_feature(enable = "avx512bw,bmi2")]
#[inline]
fn crypt<const OPEN: bool>(stream: [__m512i; 8], texts: &mut [&mut [u8]; 8], at: usize) -> [__m512i; 8] {
    let mut ciphertext = stream;
    for i in 0..8 {
        if let Some(block) = texts[i].get_mut(at..at + BLOCK).and_then(|block| block.as_mut_array()) {
            let before = load(block);
            let after = _mm512_xor_si512(before, stream[i]);
            store(block, after);
            ciphertext[i] = if OPEN { before } else { after };
        } else {
            let block = texts[i].get_mut(at..).unwrap_or_default();
            let before = load_partial(block);
            let after = _mm512_maskz_mov_epi8(first_bytes(block.len()), _mm512_xor_si512(before, stream[i]));
            store_partial(block, after);
            ciphertext[i] = if OPEN { before } else { after };
        }
    }
    ciphertext
}

/// The counters of block `first` of eight records and of the block after it.
#[target_feature(enable = "avx512f")]
#[inline]
fn pair_of_blocks(first: u32) -> __m512i {
    _mm512_add_epi32(
        splat(first),
        _mm512_set_epi32(1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0),
    )
}

/// The words of eight nonces, twice.
#[target_feature(enable = "avx512f")]
#[inline]
fn nonce_columns(nonces: &[[u8; NONCE_LEN]; 8]) -> [__m512i; 3] {
    let mut columns = [[0; 8]; 3];
    for (record, nonce) in nonces.iter().enumerate() {
        for (column, word) in columns.iter_mut().zip(nonce_words(nonce)) {
            let word = u64::from(word) << (32 * (record % 2));
            column[record / 2] |= word;
            column[record / 2 + 4] |= word;
        }
    }
    [load_u64(&columns[0]), load_u64(&columns[1]), load_u64(&columns[2])]
}

#[inline]
fn nonce_words(nonce: &[u8; NONCE_LEN]) -> [u32; 3] {
    let (words, _) = nonce.as_chunks::<4>();
    [words[0], words[1], words[2]].map(u32::from_le_bytes)
}
