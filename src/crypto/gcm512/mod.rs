//! AES-256-GCM (NIST SP 800-38D) on VAES and VPCLMULQDQ with 512-bit vectors, shaped for records of one packet.
//!
//! AES and GHASH walk over the same vectors of four blocks:
//!
//! ```text
//! vector           0                    1                         the last
//! AES of counter   1   2   3   4   |    5   6   7   8   | ... |   n+1
//! adds to, hashes  AAD T1  T2  T3  |    T4  T5  T6  T7  | ... |   Tn  lengths
//! ```
//!
//! T are the text's blocks. The encryption of counter 1, which ends up in the tag (SP 800-38D calls the block J0), has
//! AAD as its neighbour, and the block of lengths fills a place behind the text, so the fixed costs of a record ride in
//! vectors that are there anyway. Eight vectors are in flight, which is what two AES units of four cycles' latency need;
//! GHASH runs in their shadow, on the ciphertext of the eight before when sealing. A segment of up to 128 blocks is
//! reduced once; longer records are several segments.
//!
//! No branch and no address depends on a key or on text; they depend on lengths alone.
#![forbid(unsafe_code)]

mod ghash;
mod record;
mod schedule;

use std::arch::x86_64::*;

use self::record::{FAR, HEAD_VECTORS, NEAR, Record, START};
pub(super) use self::schedule::{Schedule, expand};
use super::TAG_LEN;
use super::gcm::{BLOCK_LEN, Nonce};
use super::simd::{load_16, store_16};

/// Where the part of a text begins that may lie elsewhere before it is sealed.
pub(super) const TAIL_AT: usize = HEAD_VECTORS * VECTOR_LEN - BLOCK_LEN;

/// Encrypts `text` and writes its tag. `tail`: what is to be taken in place of `text` from [`TAIL_AT`] on, unless it is empty.
///
/// # Panics
/// When `text` is longer than 64 GiB less 32 bytes (SP 800-38D, section 5.2.1.1), or `tail` is of another length than what it stands
/// for.
#[target_feature(enable = "avx512bw,avx512vl,vaes,vpclmulqdq,bmi2")]
pub(super) fn seal(
    schedule: &Schedule,
    nonce: Nonce,
    aad: &[u8],
    text: &mut [u8],
    tail: &[u8],
    tag: &mut [u8; TAG_LEN],
) {
    let is_in_place = tail.is_empty();
    assert!(
        is_in_place || TAIL_AT + tail.len() == text.len(),
        "a tail ends with its text"
    );
    let result = match (text.len(), is_in_place) {
        (..=SHORT_MAX, true) => crypt::<SEAL, SHORT, IN_PLACE>(schedule, nonce, aad, text, tail),
        (..=SHORT_MAX, false) => crypt::<SEAL, SHORT, WITH_TAIL>(schedule, nonce, aad, text, tail),
        (_, true) => crypt::<SEAL, LONG, IN_PLACE>(schedule, nonce, aad, text, tail),
        (_, false) => crypt::<SEAL, LONG, WITH_TAIL>(schedule, nonce, aad, text, tail),
    };
    store_16(tag, result);
}

/// Decrypts `text` in place and says whether it is authentic. If not, the caller must wipe it.
///
/// # Panics
/// As [`seal`].
#[target_feature(enable = "avx512bw,avx512vl,vaes,vpclmulqdq,bmi2")]
#[must_use]
pub(super) fn open(schedule: &Schedule, nonce: Nonce, aad: &[u8], text: &mut [u8], tag: &[u8; TAG_LEN]) -> bool {
    let expected = match text.len() {
        ..=SHORT_MAX => crypt::<OPEN, SHORT, IN_PLACE>(schedule, nonce, aad, text, &[]),
        _ => crypt::<OPEN, LONG, IN_PLACE>(schedule, nonce, aad, text, &[]),
    };
    let difference = _mm_xor_si128(expected, load_16(tag));
    _mm_test_epi64_mask(difference, difference) == 0
}

const VECTOR_LEN: usize = 64;

/// Powers of H in a schedule, so the most blocks of a segment.
const POWERS: usize = 128;
/// The longest text of one segment, which has two more blocks.
const SHORT_MAX: usize = (POWERS - 2) * BLOCK_LEN;

// What a record is put through.
const SEAL: bool = false;
const OPEN: bool = true;
// How many segments it has: one, or more.
const SHORT: bool = false;
const LONG: bool = true;
// Where its text is.
const IN_PLACE: bool = false;
const WITH_TAIL: bool = true;

/// Encrypts or decrypts `text` and returns its tag.
#[target_feature(enable = "avx512bw,avx512vl,vaes,vpclmulqdq,bmi2")]
#[inline]
fn crypt<const DIRECTION: bool, const LENGTH: bool, const TEXT: bool>(
    schedule: &Schedule,
    nonce: Nonce,
    aad: &[u8],
    text: &mut [u8],
    tail: &[u8],
) -> __m128i {
    let mut record = Record::<DIRECTION, LENGTH, TEXT>::new(schedule, nonce, aad, text, tail);
    if LENGTH == SHORT && record.whole_flights_end() == 0 {
        record.last_flight::<0, START>(&[]);
        return record.tag();
    }
    let mut unhashed = record.whole_flights::<START, NEAR>();
    if LENGTH == SHORT {
        record.last_flight_after::<NEAR>(&unhashed);
        return record.tag();
    }
    while !record.is_last_segment() {
        record.next_segment(&unhashed);
        unhashed = record.whole_flights::<FAR, FAR>();
    }
    record.last_flight_after::<FAR>(&unhashed);
    record.tag()
}
