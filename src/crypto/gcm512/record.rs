//! A record's walk over its vectors.
#![forbid(unsafe_code)]

use std::arch::x86_64::*;

use super::ghash::{Products, alone, multiply, swap_block, swap_bytes};
use super::{OPEN, POWERS, SEAL, SHORT, Schedule, VECTOR_LEN, WITH_TAIL};
use crate::crypto::gcm::{BLOCK_LEN, Nonce};
use crate::crypto::simd::{first_bytes, load, load_16, load_partial, store, store_partial};

/// Vectors in flight.
const FLIGHT: usize = 8;
/// Vectors whose text is in place even where there is a tail: 112 bytes, which is more than inner headers mostly have.
pub(super) const HEAD_VECTORS: usize = 2;
/// The fewest blocks of a last segment that follows others. That makes it longer than a flight, and saves the code for
/// shorter ones.
const LAST_SEGMENT_MIN: usize = 4 * FLIGHT + 2;

// Where a flight of vectors lies.
/// At the start of the record.
pub(super) const START: u8 = 0;
/// Not at the start, with counters that the schedule knows.
pub(super) const NEAR: u8 = 1;
/// With counters beyond those.
pub(super) const FAR: u8 = 2;

/// A record on its way. The methods on the way have one caller each per kind of record, so that all of them are inlined
/// and the record lives in registers.
pub(super) struct Record<'a, const DIRECTION: bool, const LENGTH: bool, const TEXT: bool> {
    schedule: &'a Schedule,
    /// Blocks that GHASH takes: AAD, text and lengths.
    blocks: usize,
    /// The nonce with counter 0, plus the first round key.
    whitened: __m512i,
    /// The same after the first round.
    after_first_round: __m512i,
    aad: __m128i,
    lengths: __m128i,
    /// The half blocks of the last vector where `lengths` goes; none if it needs a vector of its own.
    lengths_place: __mmask8,
    /// The text in vector 0, up to three blocks.
    head: &'a mut [u8],
    /// The text in whole vectors, from vector 1 on.
    body: &'a mut [[u8; VECTOR_LEN]],
    /// The text in the last vector, 1 to 64 bytes unless `head` took it all.
    last: &'a mut [u8],
    /// What is taken in place of `body` and `last`, from vector [`HEAD_VECTORS`] on.
    tail_body: &'a [[u8; VECTOR_LEN]],
    tail_last: &'a [u8],
    /// The vector at which the segment starts, and its blocks.
    segment: usize,
    segment_blocks: usize,
    /// The segment's powers of H, and the sums of their halves.
    powers: &'a [[u8; VECTOR_LEN]],
    sums: &'a [[u8; VECTOR_LEN]],
    hash: Products,
    encrypted_counter_1: __m128i,
}

impl<'a, const DIRECTION: bool, const LENGTH: bool, const TEXT: bool> Record<'a, DIRECTION, LENGTH, TEXT> {
    #[target_feature(enable = "avx512bw,avx512vl,vaes,vpclmulqdq,bmi2")]
    #[inline]
    pub(super) fn new(schedule: &'a Schedule, nonce: Nonce, aad: &[u8], text: &'a mut [u8], tail: &'a [u8]) -> Self {
        let blocks = 1 + text.len().div_ceil(BLOCK_LEN) + 1;
        assert!(blocks <= 1 << 32, "a counter has 32 bits");
        let lengths = _mm_set_epi64x((aad.len() * 8) as i64, (text.len() * 8) as i64);
        let lengths_lane = (blocks - 1) % 4;
        let (head, rest) = text.split_at_mut(text.len().min(VECTOR_LEN - BLOCK_LEN));
        let last_len = rest.len() - rest.len().saturating_sub(1) / VECTOR_LEN * VECTOR_LEN;
        let (body, last) = rest.split_at_mut(rest.len() - last_len);
        let (tail_body, tail_last) = tail.split_at(tail.len().saturating_sub(last_len));
        let segment_blocks = next_segment_blocks(blocks);
        let (powers, sums) = schedule.powers_from(segment_blocks);
        let counter_0 = _mm512_broadcast_i32x4(nonce.counter_0());
        let whitened = _mm512_xor_si512(counter_0, load(&schedule.round_keys[0]));
        Record {
            schedule,
            blocks,
            whitened,
            after_first_round: _mm512_aesenc_epi128(whitened, load(&schedule.round_keys[1])),
            aad: match aad.try_into() {
                Ok(block) => load_16(block),
                Err(_) => hash_up_to_last(aad, schedule),
            },
            lengths,
            lengths_place: if lengths_lane == 0 {
                0
            } else {
                0b11 << (2 * lengths_lane)
            },
            head,
            body: body.as_chunks_mut().0,
            last,
            tail_body: tail_body.as_chunks().0,
            tail_last,
            segment: 0,
            segment_blocks,
            powers,
            sums,
            hash: Products::zero(),
            encrypted_counter_1: _mm_setzero_si128(),
        }
    }

    #[inline]
    pub(super) fn is_last_segment(&self) -> bool {
        4 * self.segment + self.segment_blocks == self.blocks
    }

    /// Where the segment's whole flights end. Behind them, the last segment has one flight of 1 to 8 vectors.
    #[inline]
    pub(super) fn whole_flights_end(&self) -> usize {
        if LENGTH == SHORT || self.is_last_segment() {
            // The block of lengths gets no vector of its own.
            let vectors = (self.segment_blocks - 1).div_ceil(4);
            self.segment + (vectors - 1) / FLIGHT * FLIGHT
        } else {
            self.segment + self.segment_blocks / 4
        }
    }

    /// Completes the segment and moves on to the next one.
    #[target_feature(enable = "avx512bw,avx512vl,vaes,vpclmulqdq,bmi2")]
    #[inline]
    pub(super) fn next_segment(&mut self, unhashed: &[__m512i; FLIGHT]) {
        if DIRECTION == SEAL {
            self.hash_operands(self.whole_flights_end() - FLIGHT, unhashed);
        }
        self.segment += self.segment_blocks / 4;
        self.segment_blocks = next_segment_blocks(self.blocks - 4 * self.segment);
        (self.powers, self.sums) = self.schedule.powers_from(self.segment_blocks);
        // The hash so far counts as one more block, before the segment's first.
        let hash = self.hash.reduce();
        self.hash = Products::zero();
        self.hash
            .add_block(hash, load_16(self.schedule.power(self.segment_blocks)));
    }

    /// The segment's whole flights, at least one. Sealing returns what GHASH takes of the last one, not yet hashed.
    #[target_feature(enable = "avx512bw,avx512vl,vaes,vpclmulqdq,bmi2")]
    #[inline]
    pub(super) fn whole_flights<const FIRST: u8, const OTHERS: u8>(&mut self) -> [__m512i; FLIGHT] {
        let (mut at, end) = (self.segment, self.whole_flights_end());
        let mut unhashed = [_mm512_setzero_si512(); FLIGHT];
        if DIRECTION == SEAL || FIRST != OTHERS {
            unhashed = self.flight::<FLIGHT, 0, FIRST, false>(at, &[]);
            at += FLIGHT;
        }
        while at < end {
            unhashed = if DIRECTION == SEAL {
                self.flight::<FLIGHT, FLIGHT, OTHERS, false>(at, &unhashed)
            } else {
                self.flight::<FLIGHT, 0, OTHERS, false>(at, &[])
            };
            at += FLIGHT;
        }
        unhashed
    }

    /// The flight that ends a record, after whole ones.
    #[target_feature(enable = "avx512bw,avx512vl,vaes,vpclmulqdq,bmi2")]
    #[inline]
    pub(super) fn last_flight_after<const PLACE: u8>(&mut self, unhashed: &[__m512i; FLIGHT]) {
        if DIRECTION == SEAL {
            self.last_flight::<FLIGHT, PLACE>(unhashed);
        } else {
            self.last_flight::<0, PLACE>(&[]);
        }
    }

    /// The flight that ends a record.
    #[target_feature(enable = "avx512bw,avx512vl,vaes,vpclmulqdq,bmi2")]
    #[inline]
    pub(super) fn last_flight<const UNHASHED: usize, const PLACE: u8>(&mut self, unhashed: &[__m512i; UNHASHED]) {
        let at = self.whole_flights_end();
        match (self.blocks - 1).div_ceil(4) - at {
            1 => self.last_vectors::<1, UNHASHED, PLACE>(at, unhashed),
            2 => self.last_vectors::<2, UNHASHED, PLACE>(at, unhashed),
            3 => self.last_vectors::<3, UNHASHED, PLACE>(at, unhashed),
            4 => self.last_vectors::<4, UNHASHED, PLACE>(at, unhashed),
            5 => self.last_vectors::<5, UNHASHED, PLACE>(at, unhashed),
            6 => self.last_vectors::<6, UNHASHED, PLACE>(at, unhashed),
            7 => self.last_vectors::<7, UNHASHED, PLACE>(at, unhashed),
            _ => self.last_vectors::<FLIGHT, UNHASHED, PLACE>(at, unhashed),
        }
    }

    #[target_feature(enable = "avx512bw,avx512vl,vaes,vpclmulqdq,bmi2")]
    #[inline]
    fn last_vectors<const N: usize, const UNHASHED: usize, const PLACE: u8>(
        &mut self,
        at: usize,
        unhashed: &[__m512i; UNHASHED],
    ) {
        let operands = self.flight::<N, UNHASHED, PLACE, true>(at, unhashed);
        if DIRECTION == SEAL {
            self.hash_operands(at, &operands);
        }
        if self.lengths_place == 0 {
            self.hash.add_block(self.lengths, load_16(self.schedule.power(1)));
        }
    }

    /// AES of `N` vectors from `at` on, with GHASH in its shadow: of these vectors when opening, of `unhashed`, the ones
    /// before, when sealing. Returns what GHASH takes of these vectors.
    #[target_feature(enable = "avx512bw,avx512vl,vaes,vpclmulqdq,bmi2")]
    #[inline]
    fn flight<const N: usize, const UNHASHED: usize, const PLACE: u8, const LAST: bool>(
        &mut self,
        at: usize,
        unhashed: &[__m512i; UNHASHED],
    ) -> [__m512i; N] {
        let zero = _mm512_setzero_si512();
        let is_head = |i: usize| PLACE == START && i == 0;
        let is_last = |i: usize| LAST && i == N - 1 && !is_head(i);
        let body_at = at.saturating_sub(1);
        let body_index = |i: usize| if PLACE == START { i - 1 } else { i };
        let body_len = (0..N).filter(|&i| !is_head(i) && !is_last(i)).count();
        let body = &mut self.body[body_at..][..body_len];
        let is_tail = |i: usize| TEXT == WITH_TAIL && (PLACE != START || i >= HEAD_VECTORS);
        let tail_index = |i: usize| if PLACE == START { i - HEAD_VECTORS } else { i };
        let tail_len = (0..N).filter(|&i| is_tail(i) && !is_last(i)).count();
        let tail_at = if tail_len > 0 {
            at.saturating_sub(HEAD_VECTORS)
        } else {
            0
        };
        let tail = &self.tail_body[tail_at..][..tail_len];
        let round_key = |round: usize| load(&self.schedule.round_keys[round]);

        let (mut text, mut state) = ([zero; N], [zero; N]);
        for i in 0..N {
            text[i] = if is_head(i) {
                up_one_block(load_partial(self.head))
            } else if is_last(i) {
                load_partial(if is_tail(i) { self.tail_last } else { &*self.last })
            } else if is_tail(i) {
                load(&tail[tail_index(i)])
            } else {
                load(&body[body_index(i)])
            };
        }
        if PLACE == FAR {
            for (i, state) in state.iter_mut().enumerate() {
                let whitened = _mm512_xor_si512(self.whitened, counters(at + i));
                *state = _mm512_aesenc_epi128(whitened, round_key(1));
            }
        } else {
            for (state, counters) in state.iter_mut().zip(&self.schedule.first_round[at..][..N]) {
                *state = _mm512_xor_si512(self.after_first_round, load(counters));
            }
        }

        let (head_mask, last_mask) = (first_bytes(self.head.len()) << BLOCK_LEN, first_bytes(self.last.len()));
        let (aad, lengths, lengths_place) = (self.aad, self.lengths, self.lengths_place);
        let operand = |i: usize, mut ciphertext: __m512i| {
            if is_head(i) {
                ciphertext = _mm512_inserti32x4::<0>(_mm512_maskz_mov_epi8(head_mask, ciphertext), aad);
            } else if is_last(i) {
                ciphertext = _mm512_maskz_mov_epi8(last_mask, ciphertext);
            }
            let swapped = swap_bytes(ciphertext);
            if LAST && i == N - 1 {
                _mm512_mask_mov_epi64(swapped, lengths_place, _mm512_broadcast_i32x4(lengths))
            } else {
                swapped
            }
        };
        let mut operands = [zero; N];
        if DIRECTION == OPEN {
            for i in 0..N {
                operands[i] = operand(i, text[i]);
            }
        }
        let to_hash = if DIRECTION == OPEN {
            &operands[..]
        } else {
            &unhashed[..]
        };
        let hash_at = if DIRECTION == OPEN { at } else { at - UNHASHED } - self.segment;
        let powers = &self.powers[hash_at..][..to_hash.len()];
        let sums = &self.sums[hash_at..][..to_hash.len()];
        for round in 2..14 {
            let key = round_key(round);
            for state in &mut state {
                *state = _mm512_aesenc_epi128(*state, key);
            }
            let i = round - 2;
            if i < to_hash.len() {
                self.hash.add(to_hash[i], load(&powers[i]), load(&sums[i]));
            }
        }

        let key = round_key(14);
        for i in 0..N {
            let result = _mm512_aesenclast_epi128(state[i], _mm512_xor_si512(key, text[i]));
            if is_head(i) {
                self.encrypted_counter_1 = _mm512_castsi512_si128(result);
                store_partial(self.head, down_one_block(result));
            } else if is_last(i) {
                store_partial(self.last, result);
            } else {
                store(&mut body[body_index(i)], result);
            }
            if DIRECTION == SEAL {
                operands[i] = operand(i, result);
            }
        }
        operands
    }

    /// GHASH of vectors from `at` on, outside of any shadow.
    #[target_feature(enable = "avx512bw,avx512vl,vaes,vpclmulqdq,bmi2")]
    #[inline]
    fn hash_operands<const N: usize>(&mut self, at: usize, operands: &[__m512i; N]) {
        let powers = &self.powers[at - self.segment..][..N];
        let sums = &self.sums[at - self.segment..][..N];
        for i in 0..N {
            self.hash.add(operands[i], load(&powers[i]), load(&sums[i]));
        }
    }

    #[target_feature(enable = "avx512bw,avx512vl,vaes,vpclmulqdq,bmi2")]
    #[inline]
    pub(super) fn tag(&self) -> __m128i {
        _mm_xor_si128(swap_block(self.hash.reduce()), self.encrypted_counter_1)
    }
}

/// The blocks of the next segment. The last one takes all that are left; others take what the schedule has powers for,
/// or half of that where too little would be left for the last one.
#[inline]
fn next_segment_blocks(blocks_left: usize) -> usize {
    const { assert!(POWERS / 2 > LAST_SEGMENT_MIN && (POWERS / 2).is_multiple_of(4 * FLIGHT)) };
    match blocks_left {
        ..=POWERS => blocks_left,
        _ if blocks_left >= POWERS + LAST_SEGMENT_MIN => POWERS,
        _ => POWERS / 2,
    }
}

/// The counters of vector `at`, at their place in otherwise empty blocks.
#[target_feature(enable = "avx512bw,avx512vl,vaes,vpclmulqdq,bmi2")]
#[inline]
fn counters(at: usize) -> __m512i {
    const FIRST_WORD_OF_EACH_BLOCK: __mmask16 = 0x1111;
    let within = _mm512_set_epi64(0, 4, 0, 3, 0, 2, 0, 1);
    let before = _mm512_maskz_set1_epi32(FIRST_WORD_OF_EACH_BLOCK, (4 * at) as i32);
    swap_bytes(_mm512_add_epi32(before, within))
}

#[target_feature(enable = "avx512bw,avx512vl,vaes,vpclmulqdq,bmi2")]
#[inline]
fn up_one_block(vector: __m512i) -> __m512i {
    _mm512_alignr_epi64::<6>(vector, _mm512_setzero_si512())
}

#[target_feature(enable = "avx512bw,avx512vl,vaes,vpclmulqdq,bmi2")]
#[inline]
fn down_one_block(vector: __m512i) -> __m512i {
    _mm512_alignr_epi64::<2>(_mm512_setzero_si512(), vector)
}

/// For AAD of other lengths than one block: its last block, filled up with zeros, plus the hash of those before, which
/// stands in for all of them.
#[target_feature(enable = "avx512bw,avx512vl,vaes,vpclmulqdq,bmi2")]
#[cold]
fn hash_up_to_last(aad: &[u8], schedule: &Schedule) -> __m128i {
    let h = alone(load_16(schedule.power(1)));
    let mut sum = _mm512_setzero_si512();
    for block in aad.chunks(BLOCK_LEN) {
        sum = _mm512_xor_si512(multiply(sum, h), swap_bytes(load_partial(block)));
    }
    _mm512_castsi512_si128(swap_bytes(sum))
}
