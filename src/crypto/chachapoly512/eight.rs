//! Eight records side by side.
//!
//! A pass makes four blocks of key stream for each record: 32 blocks, in two sets of 16 columns. The first pass holds
//! the one-time keys too. Whole blocks of all records are encrypted and authenticated together, two at a time; where
//! one record ends within them, byte by byte under a mask.

use std::arch::x86_64::*;

use zeroize::optimization_barrier;

use super::chacha20::{Stream, columns, columns_pair, splat};
use super::lanes::{Lanes, transpose_records};
use super::{BLOCK_LEN, Key, OPEN};
use crate::crypto::simd::{first_bytes, load, load_partial, load_u64, store, store_partial};

/// Records side by side.
pub(super) const LANES: usize = 8;
/// Blocks of key stream for each record that a pass makes.
const PASS: usize = 4;

/// The working memory, for any number of records; to be wiped after the last.
pub(super) struct Eight {
    stream: [Stream; 2],
    lanes: Lanes,
    /// What is encrypted in place of a record that has ended.
    spare: [[u8; 2 * BLOCK_LEN]; LANES],
}

impl Eight {
    #[target_feature(enable = "avx512f")]
    #[inline]
    pub(super) fn new() -> Eight {
        Eight {
            stream: [[[_mm512_setzero_si512(); 8]; 2]; 2],
            lanes: Lanes::new(),
            spare: [[0; 2 * BLOCK_LEN]; LANES],
        }
    }

    /// Seals or opens each of `texts` in place under its nonce and returns the tags of what are their ciphertexts.
    ///
    /// Costs as much as eight records of the longest length. Places without a record are empty.
    #[target_feature(enable = "avx512bw,avx512ifma,avx512vbmi2,bmi2")]
    pub(super) fn crypt<const DIRECTION: bool>(
        &mut self,
        key: &Key,
        nonces: &[[u32; 3]; LANES],
        texts: &mut [&mut [u8]; LANES],
    ) -> [u128; LANES] {
        let Eight { stream, lanes, spare } = self;
        let nonces = nonce_columns(nonces);
        let lengths = texts.each_ref().map(|text| text.len() as u64);
        let longest = texts.iter().map(|text| text.len()).max().unwrap_or(0);
        let blocks = 1 + longest.div_ceil(BLOCK_LEN);
        assert!(u32::try_from(blocks).is_ok(), "the block counter has 32 bits");

        for first in (0..blocks).step_by(PASS) {
            let counters = [two_counters(first as u32), two_counters(first as u32 + 2)];
            if blocks - first <= 2 {
                columns(&key.0, counters[0], &nonces, &mut stream[0]);
            } else {
                columns_pair(&key.0, counters, &nonces, stream);
            }
            for (pair, block) in stream.iter().zip((first..blocks).step_by(2)) {
                if block == 0 {
                    lanes.start(&pair[0], &lengths);
                    one_block::<DIRECTION>(lanes, texts, 0, &pair[1]);
                    continue;
                }
                let at = (block - 1) * BLOCK_LEN;
                if let Some(windows) = windows(texts, spare, at) {
                    two_blocks::<DIRECTION>(lanes, windows, at, pair);
                } else {
                    one_block::<DIRECTION>(lanes, texts, at, &pair[0]);
                    one_block::<DIRECTION>(lanes, texts, at + BLOCK_LEN, &pair[1]);
                }
            }
        }
        lanes.tags()
    }

    /// Forgets key stream and one-time keys.
    #[target_feature(enable = "avx512f")]
    #[inline]
    pub(super) fn wipe(&mut self) {
        self.lanes.wipe();
        self.stream = [[[_mm512_setzero_si512(); 8]; 2]; 2];
        self.spare = [[0; 2 * BLOCK_LEN]; LANES];
        optimization_barrier(self);
    }
}

/// Two blocks of a text.
type Window<'a> = &'a mut [[u8; BLOCK_LEN]; 2];

/// Two blocks of each text from `at` on; of texts that end before, something to spare. None if a text ends within.
#[inline]
fn windows<'a>(
    texts: &'a mut [&mut [u8]; LANES],
    spare: &'a mut [[u8; 2 * BLOCK_LEN]; LANES],
    at: usize,
) -> Option<[Window<'a>; LANES]> {
    let [t0, t1, t2, t3, t4, t5, t6, t7] = texts;
    let [s0, s1, s2, s3, s4, s5, s6, s7] = spare;
    let window = |text: &'a mut [u8], spare: &'a mut [u8; 2 * BLOCK_LEN]| {
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

/// Encrypts or decrypts two blocks of each text, which lie at `at` of it, and absorbs the ciphertext.
#[target_feature(enable = "avx512bw,avx512ifma,avx512vbmi2,bmi2")]
#[inline]
fn two_blocks<const DIRECTION: bool>(
    lanes: &mut Lanes,
    windows: [Window<'_>; LANES],
    at: usize,
    stream: &[[__m512i; LANES]; 2],
) {
    let mut ciphertext = *stream;
    for (i, window) in windows.into_iter().enumerate() {
        for (j, block) in window.iter_mut().enumerate() {
            let before = load(block);
            let after = _mm512_xor_si512(before, stream[j][i]);
            store(block, after);
            ciphertext[j][i] = if DIRECTION == OPEN { before } else { after };
        }
    }
    let [first, second] = &ciphertext;
    lanes.absorb_two(at, &transpose_records(first), &transpose_records(second));
}

/// Encrypts or decrypts a block of each text, which lies at `at`, as far as it goes, and absorbs the ciphertext.
#[target_feature(enable = "avx512bw,avx512ifma,avx512vbmi2,bmi2")]
fn one_block<const DIRECTION: bool>(
    lanes: &mut Lanes,
    texts: &mut [&mut [u8]; LANES],
    at: usize,
    stream: &[__m512i; LANES],
) {
    let mut ciphertext = *stream;
    for (i, text) in texts.iter_mut().enumerate() {
        let block = text.get_mut(at..).unwrap_or_default();
        let before = load_partial(block);
        let after = _mm512_maskz_mov_epi8(first_bytes(block.len()), _mm512_xor_si512(before, stream[i]));
        store_partial(block, after);
        ciphertext[i] = if DIRECTION == OPEN { before } else { after };
    }
    lanes.absorb_one(at, &transpose_records(&ciphertext));
}

/// The counters of block `first` of eight records and of the blocks after them.
#[target_feature(enable = "avx512f")]
#[inline]
fn two_counters(first: u32) -> __m512i {
    let next = _mm512_set_epi32(1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0);
    _mm512_add_epi32(splat(first), next)
}

/// The words of eight nonces, twice over.
#[target_feature(enable = "avx512f")]
#[inline]
fn nonce_columns(nonces: &[[u32; 3]; LANES]) -> [__m512i; 3] {
    let mut columns = [[0; 8]; 3];
    for (record, nonce) in nonces.iter().enumerate() {
        for (column, word) in columns.iter_mut().zip(nonce) {
            let word = u64::from(*word) << (32 * (record % 2));
            column[record / 2] |= word;
            column[record / 2 + 4] |= word;
        }
    }
    [load_u64(&columns[0]), load_u64(&columns[1]), load_u64(&columns[2])]
}
