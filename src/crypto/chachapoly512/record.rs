//! One record.

use std::arch::x86_64::*;

use zeroize::optimization_barrier;

use super::chacha20::{Stream, columns_and_rows, columns_pair, count_from, nonces, rows};
use super::message::{OneTimeKey, Powers};
use super::{BLOCK_LEN, Key, OPEN};
use crate::crypto::simd::{load, load_partial, store, store_partial};

/// The longest text whose blocks fit into rows beside the one-time key.
const ROWS_MAX: usize = 7 * BLOCK_LEN;
/// From this length on the one-time key's powers are worth their while.
const POWERS_MIN: usize = 192;
/// Counters of the blocks in rows when others are in columns: the one-time key, and what follows 16 columns.
const ROW_COUNTERS: [u32; 8] = [0, 17, 18, 19, 20, 21, 22, 23];
/// The first counter behind these.
const FURTHER: u32 = 24;

/// Seals or opens `text` in place and returns the tag of what is its ciphertext.
#[target_feature(enable = "avx512bw,avx512ifma,avx512vbmi2,bmi2")]
#[inline]
pub(super) fn crypt<const DIRECTION: bool>(key: &Key, nonce: [u32; 3], aad: &[u8], text: &mut [u8]) -> u128 {
    assert!(
        text.len() <= u32::MAX as usize * BLOCK_LEN,
        "the block counter has 32 bits"
    );
    match text.len() {
        ..=ROWS_MAX => short::<DIRECTION>(key, nonce, aad, text),
        _ => long::<DIRECTION>(key, nonce, aad, text),
    }
}

#[target_feature(enable = "avx512bw,avx512ifma,avx512vbmi2,bmi2")]
fn short<const DIRECTION: bool>(key: &Key, nonce: [u32; 3], aad: &[u8], text: &mut [u8]) -> u128 {
    let mut stream = [_mm512_setzero_si512(); 8];
    rows(&key.0, [0, 1, 2, 3, 4, 5, 6, 7], nonce, &mut stream);
    let mut one_time_key = OneTimeKey::new(stream[0]);
    let tag = if text.len() < POWERS_MIN {
        if DIRECTION == OPEN {
            let tag = one_time_key.tag(aad, text);
            xor(&stream[1..], text);
            tag
        } else {
            xor(&stream[1..], text);
            one_time_key.tag(aad, text)
        }
    } else {
        let mut powers = Powers::zero();
        powers.compute(&one_time_key, text.len());
        let tag = if DIRECTION == OPEN {
            let tag = one_time_key.tag_with(&powers, aad, text);
            xor(&stream[1..], text);
            tag
        } else {
            xor(&stream[1..], text);
            one_time_key.tag_with(&powers, aad, text)
        };
        powers.wipe();
        tag
    };
    one_time_key.wipe();
    stream = [_mm512_setzero_si512(); 8];
    optimization_barrier(&stream);
    tag
}

#[target_feature(enable = "avx512bw,avx512ifma,avx512vbmi2,bmi2")]
fn long<const DIRECTION: bool>(key: &Key, nonce: [u32; 3], aad: &[u8], text: &mut [u8]) -> u128 {
    let mut columns = [[_mm512_setzero_si512(); 8]; 2];
    let mut rows = [_mm512_setzero_si512(); 8];
    let mut powers = Powers::zero();
    // The powers are a long wait with little to do, so they are begun before the columns are put in order.
    let mut one_time_key = columns_and_rows(&key.0, 1, ROW_COUNTERS, nonce, &mut columns, &mut rows, |rows| {
        let one_time_key = OneTimeKey::new(rows[0]);
        powers.compute(&one_time_key, text.len());
        one_time_key
    });
    let tag_before = match DIRECTION {
        OPEN => one_time_key.tag_with(&powers, aad, text),
        _ => 0,
    };
    let further = xor(&rows[1..], xor(columns.as_flattened(), text));
    if !further.is_empty() {
        crypt_further(key, nonce, further);
    }
    let tag = match DIRECTION {
        OPEN => tag_before,
        _ => one_time_key.tag_with(&powers, aad, text),
    };
    powers.wipe();
    one_time_key.wipe();
    columns = [[_mm512_setzero_si512(); 8]; 2];
    optimization_barrier(&columns);
    rows = [_mm512_setzero_si512(); 8];
    optimization_barrier(&rows);
    tag
}

/// Adds the key stream from block [`FURTHER`] on.
#[target_feature(enable = "avx512bw,bmi2")]
fn crypt_further(key: &Key, nonce: [u32; 3], text: &mut [u8]) {
    let nonces = nonces(nonce);
    let mut stream: [Stream; 2] = [[[_mm512_setzero_si512(); 8]; 2]; 2];
    for (text, from) in text.chunks_mut(32 * BLOCK_LEN).zip((FURTHER..).step_by(32)) {
        let counters = [count_from(from), count_from(from.wrapping_add(16))];
        columns_pair(&key.0, counters, &nonces, &mut stream);
        xor(stream.as_flattened().as_flattened(), text);
    }
    stream = [[[_mm512_setzero_si512(); 8]; 2]; 2];
    optimization_barrier(&stream);
}

/// Adds key stream to the front of `text` and returns the rest, which it did not reach.
#[target_feature(enable = "avx512bw,bmi2")]
#[inline]
fn xor<'text>(stream: &[__m512i], text: &'text mut [u8]) -> &'text mut [u8] {
    let (text, rest) = text.split_at_mut(text.len().min(stream.len() * BLOCK_LEN));
    let (whole, last) = text.as_chunks_mut();
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
