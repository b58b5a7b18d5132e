//! ChaCha20-Poly1305 (RFC 8439, section 2.8) of one record, and of eight records at a time.
//!
//! A record has a one-time key of its own, so alone it has to wait for its first block before it can be authenticated,
//! and work out powers of r for eight lanes. Eight records side by side share those costs: their blocks fill the
//! vectors of ChaCha20 whatever their length, and Poly1305 has a lane for each.
#![forbid(unsafe_code)]

use std::arch::x86_64::*;

use zeroize::optimization_barrier;

use super::chacha512::{Key, Stream, columns, columns_and_rows, columns_pair, count_from, nonces, rows, splat};
use super::poly512::{Lanes, Message, transpose_records};
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
    let zero = [_mm512_setzero_si512(); 8];
    if text.len() <= 7 * BLOCK {
        let mut stream = zero;
        rows(key, [0, 1, 2, 3, 4, 5, 6, 7], nonce, &mut stream);
        let [key_block, blocks @ ..] = &stream;
        let mut message = Message::new(*key_block, text.len());
        return authenticate_around::<OPEN>(&mut message, aad, text, |text| {
            xor(blocks, text);
        });
    }
    let mut stream = [zero; 2];
    let mut second = zero;
    let counters = [0, 17, 18, 19, 20, 21, 22, 23];
    let mut message = columns_and_rows(key, 1, counters, nonce, &mut stream, |rows| {
        second = rows;
        Message::new(rows[0], text.len())
    });
    authenticate_around::<OPEN>(&mut message, aad, text, |text| {
        let text = xor(stream.as_flattened(), text);
        let text = xor(&second[1..], text);
        if !text.is_empty() {
            further_blocks(key, nonce, 24, text);
        }
    })
}

/// Adds the blocks from counter `from` on.
#[target_feature(enable = "avx512bw,bmi2")]
fn further_blocks(key: &Key, nonce: [u32; 3], from: u32, text: &mut [u8]) {
    let nonces = nonces(nonce);
    let mut stream = [[[_mm512_setzero_si512(); 8]; 2]; 2];
    for (text, from) in text.chunks_mut(32 * BLOCK).zip((from..).step_by(32)) {
        columns_pair(key, [count_from(from), count_from(from + 16)], &nonces, &mut stream);
        xor(stream.as_flattened().as_flattened(), text);
    }
}

/// Authenticates the ciphertext: what `crypt` makes of `text`, or when opening what it is made of.
#[target_feature(enable = "avx512bw,avx512ifma,avx512vbmi2,bmi2")]
#[inline]
fn authenticate_around<const OPEN: bool>(
    message: &mut Message,
    aad: &[u8],
    text: &mut [u8],
    crypt: impl FnOnce(&mut [u8]),
) -> [u8; TAG_LEN] {
    if OPEN {
        let tag = message.tag(aad, text);
        crypt(text);
        tag
    } else {
        crypt(text);
        message.tag(aad, text)
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

/// What [`eight_records`] works with; to be wiped after the last one.
pub(super) struct Workspace {
    stream: [Stream; 2],
    lanes: Lanes,
    spare: [[u8; 2 * BLOCK]; 8],
}

impl Workspace {
    #[target_feature(enable = "avx512f")]
    #[inline]
    pub(super) fn new() -> Workspace {
        Workspace {
            stream: [[[_mm512_setzero_si512(); 8]; 2]; 2],
            lanes: Lanes::new(),
            spare: [[0; 2 * BLOCK]; 8],
        }
    }

    /// Forgets key stream and one-time keys.
    #[target_feature(enable = "avx512f")]
    #[inline]
    pub(super) fn wipe(&mut self) {
        *self = Workspace::new();
        optimization_barrier(self);
    }
}

/// Seals or opens each of `texts` in place under its nonce and returns the tags of what are their ciphertexts.
///
/// Costs as much as eight records of the longest length. Unused places may be empty.
#[target_feature(enable = "avx512bw,avx512ifma,avx512vbmi2,bmi2")]
pub(super) fn eight_records<const OPEN: bool>(
    key: &Key,
    nonces: &[[u8; NONCE_LEN]; 8],
    texts: &mut [&mut [u8]; 8],
    workspace: &mut Workspace,
) -> [[u8; TAG_LEN]; 8] {
    let Workspace { stream, lanes, spare } = workspace;
    let lengths = texts.each_ref().map(|text| text.len() as u64);
    let longest = texts.iter().map(|text| text.len()).max().unwrap_or(0);
    let nonces = nonce_columns(nonces);
    let blocks = 1 + longest.div_ceil(BLOCK);

    for first in (0..blocks).step_by(4) {
        let counters = [pair_of_blocks(first as u32), pair_of_blocks(first as u32 + 2)];
        if blocks - first <= 2 {
            columns(key, counters[0], &nonces, &mut stream[0]);
        } else {
            columns_pair(key, counters, &nonces, stream);
        }
        for (pair, block) in stream.iter().zip((first..blocks).step_by(2)) {
            if block == 0 {
                lanes.start(&pair[0], &lengths);
                one_block::<OPEN>(lanes, texts, 0, &pair[1]);
                continue;
            }
            let at = (block - 1) * BLOCK;
            if let Some(windows) = windows(texts, spare, at) {
                two_blocks::<OPEN>(lanes, windows, at, pair);
            } else {
                one_block::<OPEN>(lanes, texts, at, &pair[0]);
                one_block::<OPEN>(lanes, texts, at + BLOCK, &pair[1]);
            }
        }
    }
    lanes.tags()
}

/// Two blocks of a text.
type Window<'a> = &'a mut [[u8; BLOCK]; 2];

/// Two blocks of each text from `at` on; of texts that end before, something to spare instead. None if one ends within.
#[inline]
fn windows<'a>(
    texts: &'a mut [&mut [u8]; 8],
    spare: &'a mut [[u8; 2 * BLOCK]; 8],
    at: usize,
) -> Option<[Window<'a>; 8]> {
    let [t0, t1, t2, t3, t4, t5, t6, t7] = texts;
    let [s0, s1, s2, s3, s4, s5, s6, s7] = spare;
    let window = |text: &'a mut [u8], spare: &'a mut [u8; 2 * BLOCK]| {
        let bytes = if text.len() > at { &mut text[at..] } else { spare };
        bytes.as_chunks_mut().0.first_chunk_mut()
    };
    Some([
        window(t0, s0)?,
        window(t1, s1)?,
        window(t2, s2)?,
        window(t3, s3)?,
        window(t4, s4)?,
        window(t5, s5)?,
        window(t6, s6)?,
        window(t7, s7)?,
    ])
}

/// Two blocks of each text, which lie at `at` of it.
#[target_feature(enable = "avx512bw,avx512ifma,avx512vbmi2,bmi2")]
#[inline]
fn two_blocks<const OPEN: bool>(lanes: &mut Lanes, windows: [Window<'_>; 8], at: usize, stream: &[[__m512i; 8]; 2]) {
    let mut ciphertext = *stream;
    for (i, window) in windows.into_iter().enumerate() {
        for (j, block) in window.iter_mut().enumerate() {
            let before = load(block);
            let after = _mm512_xor_si512(before, stream[j][i]);
            store(block, after);
            ciphertext[j][i] = if OPEN { before } else { after };
        }
    }
    lanes.absorb_pair(
        at,
        &transpose_records(&ciphertext[0]),
        &transpose_records(&ciphertext[1]),
    );
}

/// A block of each text, from `at` on, as far as it goes.
#[target_feature(enable = "avx512bw,avx512ifma,avx512vbmi2,bmi2")]
fn one_block<const OPEN: bool>(lanes: &mut Lanes, texts: &mut [&mut [u8]; 8], at: usize, stream: &[__m512i; 8]) {
    let mut ciphertext = *stream;
    for (i, text) in texts.iter_mut().enumerate() {
        let block = text.get_mut(at..).unwrap_or_default();
        let before = load_partial(block);
        let after = _mm512_maskz_mov_epi8(first_bytes(block.len()), _mm512_xor_si512(before, stream[i]));
        store_partial(block, after);
        ciphertext[i] = if OPEN { before } else { after };
    }
    lanes.absorb(at, &transpose_records(&ciphertext));
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
