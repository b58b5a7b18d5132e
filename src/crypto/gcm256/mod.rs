//! AES-256-GCM (NIST SP 800-38D) on VAES and VPCLMULQDQ with 256-bit vectors, for CPUs that have no AVX-512.
//!
//! It is [`gcm512`](super::gcm512) at half the width: AES and GHASH walk over the same vectors, of two blocks here.
//!
//! ```text
//! vector           0         1              the last
//! AES of counter   1   2  |  3   4  | ... | n    n+1
//! adds to, hashes  AAD T1 |  T2  T3 | ... | Tn-1 Tn
//! ```
//!
//! What differs follows from what AVX2 lacks. There are 16 registers, which the states of eight vectors and the sums of
//! GHASH fill, so everything else comes from memory when its turn comes, the ciphertext of the flight before included.
//! There are no masks, so a block that the text does not fill passes through integers, and the block of lengths is
//! multiplied for itself, in the shadow of the last flight.
//!
//! No branch and no address depends on a key or on text; they depend on lengths alone.
#![forbid(unsafe_code)]

mod ghash;
mod record;
mod schedule;
mod tail;

use std::arch::x86_64::*;

use self::record::{FAR, NEAR, Record, START};
pub(super) use self::schedule::{Schedule, expand};
use super::TAG_LEN;
use super::gcm::{BLOCK_LEN, Nonce};
use super::simd::{load_16, store_16};

/// Encrypts `text` in place and writes its tag.
///
/// # Panics
/// When `text` is longer than 64 GiB less 32 bytes (SP 800-38D, section 5.2.1.1).
#[target_feature(enable = "avx2,vaes,vpclmulqdq,bmi2")]
pub(super) fn seal(schedule: &Schedule, nonce: Nonce, aad: &[u8], text: &mut [u8], tag: &mut [u8; TAG_LEN]) {
    let result = match text.len() {
        ..=SHORT_MAX => crypt::<SEAL, SHORT>(schedule, nonce, aad, text),
        _ => crypt::<SEAL, LONG>(schedule, nonce, aad, text),
    };
    store_16(tag, result);
}

/// Decrypts `text` in place and says whether it is authentic. If not, the caller must wipe it.
///
/// # Panics
/// As [`seal`].
#[target_feature(enable = "avx2,vaes,vpclmulqdq,bmi2")]
#[must_use]
pub(super) fn open(schedule: &Schedule, nonce: Nonce, aad: &[u8], text: &mut [u8], tag: &[u8; TAG_LEN]) -> bool {
    let expected = match text.len() {
        ..=SHORT_MAX => crypt::<OPEN, SHORT>(schedule, nonce, aad, text),
        _ => crypt::<OPEN, LONG>(schedule, nonce, aad, text),
    };
    let difference = _mm_xor_si128(expected, load_16(tag));
    _mm_testz_si128(difference, difference) == 1
}

const VECTOR_LEN: usize = 32;

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

/// Encrypts or decrypts `text` and returns its tag.
#[target_feature(enable = "avx2,vaes,vpclmulqdq,bmi2")]
#[inline]
fn crypt<const DIRECTION: bool, const LENGTH: bool>(
    schedule: &Schedule,
    nonce: Nonce,
    aad: &[u8],
    text: &mut [u8],
) -> __m128i {
    let mut record = Record::<DIRECTION, LENGTH>::new(schedule, nonce, aad, text);
    if LENGTH == SHORT && record.whole_flights_end() == 0 {
        record.last_flight::<START>();
        return record.tag();
    }
    record.whole_flights::<START, NEAR>();
    if LENGTH == SHORT {
        record.last_flight::<NEAR>();
        return record.tag();
    }
    while !record.is_last_segment() {
        record.next_segment();
        record.whole_flights::<FAR, FAR>();
    }
    record.last_flight::<FAR>();
    record.tag()
}
