//! A record's walk over its vectors.
#![forbid(unsafe_code)]

use std::arch::x86_64::*;
use std::hint::black_box;
use std::ops::Range;

use super::ghash::{Products, alone, multiply, swap_block, swap_bytes};
use super::tail::{keep_first, load_block, load_vector, store_block, store_vector};
use super::{OPEN, POWERS, SEAL, SHORT, Schedule, VECTOR_LEN};
use crate::crypto::gcm::{BLOCK_LEN, Nonce};
use crate::crypto::simd::{load_16, load_32, store_32};

/// Vectors in flight.
const FLIGHT: usize = 8;
/// The fewest blocks of a last segment that follows others. That makes it longer than a flight, and saves the code for
/// shorter ones.
const LAST_SEGMENT_MIN: usize = 2 * FLIGHT + 2;

// Where a flight of vectors lies.
/// At the start of the record.
pub(super) const START: u8 = 0;
/// Not at the start, with counters that the schedule knows.
pub(super) const NEAR: u8 = 1;
/// With counters beyond those.
pub(super) const FAR: u8 = 2;

/// A record on its way. The methods on the way have one caller each per kind of record, so that all of them are inlined
/// and the record lives in registers.
pub(super) struct Record<'a, const DIRECTION: bool, const LENGTH: bool> {
    schedule: &'a Schedule,
    /// Blocks that GHASH takes: AAD, text and lengths.
    blocks: usize,
    /// The nonce with counter 0, plus the first round key.
    whitened: __m256i,
    /// The same after the first round.
    after_first_round: __m256i,
    aad: __m128i,
    lengths: __m128i,
    /// The text in vector 0, up to a block, and what it was before.
    head: &'a mut [u8],
    head_text: __m128i,
    /// The text in whole vectors, from vector 1 on.
    body: &'a mut [[u8; VECTOR_LEN]],
    /// The text in the last vector, 1 to 32 bytes unless `head` took it all, and what it was before.
    last: &'a mut [u8],
    last_text: __m256i,
    /// The vector at which the segment starts, and its blocks.
    segment: usize,
    segment_blocks: usize,
    /// The segment's powers of H, and the sums of their halves.
    powers: &'a [[u8; VECTOR_LEN]],
    sums: &'a [[u8; VECTOR_LEN]],
    hash: Products,
    /// The body's first vector that is not in `hash`.
    unhashed: usize,
    encrypted_counter_1: __m128i,
}

impl<'a, const DIRECTION: bool, const LENGTH: bool> Record<'a, DIRECTION, LENGTH> {
    #[target_feature(enable = "avx2,vaes,vpclmulqdq,bmi2")]
    #[inline]
    pub(super) fn new(schedule: &'a Schedule, nonce: Nonce, aad: &[u8], text: &'a mut [u8]) -> Self {
        let blocks = 1 + text.len().div_ceil(BLOCK_LEN) + 1;
        assert!(blocks <= 1 << 32, "a counter has 32 bits");
        let lengths = _mm_set_epi64x((aad.len() * 8) as i64, (text.len() * 8) as i64);
        let (head, rest) = text.split_at_mut(text.len().min(BLOCK_LEN));
        let last_len = rest.len() - rest.len().saturating_sub(1) / VECTOR_LEN * VECTOR_LEN;
        let (body, last) = rest.split_at_mut(rest.len() - last_len);
        let segment_blocks = next_segment_blocks(blocks);
        let (powers, sums) = schedule.powers_from(segment_blocks);
        let counter_0 = _mm256_broadcastsi128_si256(nonce.counter_0());
        let whitened = _mm256_xor_si256(counter_0, load_32(&schedule.round_keys[0]));
        let mut record = Record {
            schedule,
            blocks,
            whitened,
            after_first_round: _mm256_aesenc_epi128(whitened, load_32(&schedule.round_keys[1])),
            aad: match aad.try_into() {
                Ok(block) => load_16(block),
                Err(_) => hash_up_to_last(aad, schedule),
            },
            lengths,
            head_text: load_block(head),
            head,
            body: body.as_chunks_mut().0,
            last_text: load_vector(last),
            last,
            segment: 0,
            segment_blocks,
            powers,
            sums,
            hash: Products::zero(),
            unhashed: 1,
            encrypted_counter_1: _mm_setzero_si128(),
        };
        if DIRECTION == OPEN {
            record.hash_vector(0, _mm256_set_m128i(record.head_text, record.aad));
        }
        record
    }

    #[inline]
    pub(super) fn is_last_segment(&self) -> bool {
        2 * self.segment + self.segment_blocks == self.blocks
    }

    /// Where the segment's whole flights end. Behind them, the last segment has one flight of 1 to 8 vectors.
    #[inline]
    pub(super) fn whole_flights_end(&self) -> usize {
        if LENGTH == SHORT || self.is_last_segment() {
            // The block of lengths gets no vector.
            let vectors = (self.segment_blocks - 1).div_ceil(2);
            self.segment + (vectors - 1) / FLIGHT * FLIGHT
        } else {
            self.segment + self.segment_blocks / 2
        }
    }

    /// Completes the segment and moves on to the next one.
    #[target_feature(enable = "avx2,vaes,vpclmulqdq,bmi2")]
    #[inline]
    pub(super) fn next_segment(&mut self) {
        self.hash_body_to(self.whole_flights_end());
        self.segment += self.segment_blocks / 2;
        self.segment_blocks = next_segment_blocks(self.blocks - 2 * self.segment);
        (self.powers, self.sums) = self.schedule.powers_from(self.segment_blocks);
        // The hash so far counts as one more block, before the segment's first.
        let hash = self.hash.reduce();
        self.hash = Products::zero();
        self.hash
            .add_block(hash, load_16(self.schedule.power(self.segment_blocks)));
    }

    /// The segment's whole flights, at least one.
    #[target_feature(enable = "avx2,vaes,vpclmulqdq,bmi2")]
    #[inline]
    pub(super) fn whole_flights<const FIRST: u8, const OTHERS: u8>(&mut self) {
        let (mut at, end) = (self.segment, self.whole_flights_end());
        if FIRST == START {
            let flight = self.flight::<FLIGHT, START, false>(at);
            self.head_done(flight[0]);
            at += FLIGHT;
        }
        while at < end {
            self.flight::<FLIGHT, OTHERS, false>(at);
            at += FLIGHT;
        }
    }

    /// The flight that ends a record.
    #[target_feature(enable = "avx2,vaes,vpclmulqdq,bmi2")]
    #[inline]
    pub(super) fn last_flight<const PLACE: u8>(&mut self) {
        self.hash.add_block(self.lengths, load_16(self.schedule.power(1)));
        let (at, end) = (self.whole_flights_end(), (self.blocks - 1).div_ceil(2));
        let has_last = !self.last.is_empty();
        if DIRECTION == OPEN && has_last {
            self.hash_vector(end - 1, self.last_text);
        }
        let [first, last] = match end - at {
            1 => self.flight::<1, PLACE, true>(at),
            2 => self.flight::<2, PLACE, true>(at),
            3 => self.flight::<3, PLACE, true>(at),
            4 => self.flight::<4, PLACE, true>(at),
            5 => self.flight::<5, PLACE, true>(at),
            6 => self.flight::<6, PLACE, true>(at),
            7 => self.flight::<7, PLACE, true>(at),
            _ => self.flight::<FLIGHT, PLACE, true>(at),
        };
        if PLACE == START {
            self.head_done(first);
        }
        if has_last {
            store_vector(self.last, last);
            if DIRECTION == SEAL {
                self.hash_vector(end - 1, keep_first(self.last.len(), last));
            }
        }
        self.hash_body_to(1 + self.body.len());
    }

    /// AES of `N` vectors from `at` on, with GHASH in its shadow: of these vectors when opening, of the ones before when
    /// sealing. What may not fill its vector is the caller's, who gets the first and the last vector.
    ///
    /// The rounds are loops whose length is hidden from the compiler, because what it writes out it also rearranges, until
    /// few vectors are in flight at a time and the others wait in memory.
    #[target_feature(enable = "avx2,vaes,vpclmulqdq,bmi2")]
    #[inline]
    fn flight<const N: usize, const PLACE: u8, const LAST: bool>(&mut self, at: usize) -> [__m256i; 2] {
        let has_head = PLACE == START;
        let has_last = LAST && !(has_head && N == 1);
        let body = at + usize::from(has_head)..at + N - usize::from(has_last);
        let round_key = |round: usize| load_32(&self.schedule.round_keys[round]);

        let mut state = [_mm256_setzero_si256(); N];
        if PLACE == FAR {
            let whitened = self.whitened;
            for (i, state) in state.iter_mut().enumerate() {
                *state = _mm256_aesenc_epi128(_mm256_xor_si256(whitened, counters(at, i)), round_key(1));
            }
        } else {
            for (state, counters) in state.iter_mut().zip(&self.schedule.first_round[at..][..N]) {
                *state = _mm256_xor_si256(self.after_first_round, load_32(counters));
            }
        }

        let to_hash = if DIRECTION == OPEN {
            self.unhashed..body.end
        } else {
            self.unhashed..at.max(1)
        };
        let rounds = &self.schedule.round_keys[2..14];
        let (in_shadow, rounds) = rounds.split_at(black_box(to_hash.len()));
        let mut hash = self.hash;
        for (key, [text, powers, sums]) in in_shadow.iter().zip(self.with_powers(to_hash.clone())) {
            let key = load_32(key);
            for state in &mut state {
                *state = _mm256_aesenc_epi128(*state, key);
            }
            hash.add(swap_bytes(load_32(text)), load_32(powers), load_32(sums));
        }
        for key in rounds {
            let key = load_32(key);
            for state in &mut state {
                *state = _mm256_aesenc_epi128(*state, key);
            }
        }
        (self.hash, self.unhashed) = (hash, to_hash.end);

        let key = round_key(14);
        if has_head {
            let text = _mm256_set_m128i(self.head_text, _mm_setzero_si128());
            state[0] = _mm256_aesenclast_epi128(state[0], _mm256_xor_si256(key, text));
        }
        let texts = &mut self.body[body.start - 1..body.end - 1];
        for (state, text) in state[usize::from(has_head)..].iter().zip(texts) {
            let result = _mm256_aesenclast_epi128(*state, _mm256_xor_si256(key, load_32(text)));
            store_32(text, result);
        }
        if has_last {
            state[N - 1] = _mm256_aesenclast_epi128(state[N - 1], _mm256_xor_si256(key, self.last_text));
        }
        [state[0], state[N - 1]]
    }

    /// Takes the encryption of counter 1 and the first block of the text from vector 0.
    #[target_feature(enable = "avx2,vaes,vpclmulqdq,bmi2")]
    #[inline]
    fn head_done(&mut self, vector: __m256i) {
        self.encrypted_counter_1 = _mm256_castsi256_si128(vector);
        store_block(self.head, _mm256_extracti128_si256::<1>(vector));
        if DIRECTION == SEAL {
            let ciphertext = keep_first(BLOCK_LEN + self.head.len(), vector);
            self.hash_vector(0, _mm256_inserti128_si256::<0>(ciphertext, self.aad));
        }
    }

    /// GHASH of what is in vector `at`.
    #[target_feature(enable = "avx2,vaes,vpclmulqdq,bmi2")]
    #[inline]
    fn hash_vector(&mut self, at: usize, vector: __m256i) {
        let at = at - self.segment;
        self.hash
            .add(swap_bytes(vector), load_32(&self.powers[at]), load_32(&self.sums[at]));
    }

    /// GHASH of the body's vectors before `end`, outside of any shadow.
    #[target_feature(enable = "avx2,vaes,vpclmulqdq,bmi2")]
    #[inline]
    fn hash_body_to(&mut self, end: usize) {
        let mut hash = self.hash;
        for [text, powers, sums] in self.with_powers(self.unhashed..end) {
            hash.add(swap_bytes(load_32(text)), load_32(powers), load_32(sums));
        }
        self.hash = hash;
        self.unhashed = end;
    }

    /// Vectors of the body, each with its powers of H and the sums of their halves.
    #[inline]
    fn with_powers(&self, vectors: Range<usize>) -> impl Iterator<Item = [&[u8; VECTOR_LEN]; 3]> {
        let body = &self.body[vectors.start - 1..vectors.end - 1];
        let in_segment = vectors.start - self.segment..vectors.end - self.segment;
        let (powers, sums) = (&self.powers[in_segment.clone()], &self.sums[in_segment]);
        let operands = body.iter().zip(powers).zip(sums);
        operands.map(|((text, powers), sums)| [text, powers, sums])
    }

    #[target_feature(enable = "avx2,vaes,vpclmulqdq,bmi2")]
    #[inline]
    pub(super) fn tag(&self) -> __m128i {
        _mm_xor_si128(swap_block(self.hash.reduce()), self.encrypted_counter_1)
    }
}

/// The blocks of the next segment. The last one takes all that are left; others take what the schedule has powers for,
/// or half of that where too little would be left for the last one.
#[inline]
fn next_segment_blocks(blocks_left: usize) -> usize {
    const { assert!(POWERS / 2 > LAST_SEGMENT_MIN && (POWERS / 2).is_multiple_of(2 * FLIGHT)) };
    match blocks_left {
        ..=POWERS => blocks_left,
        _ if blocks_left >= POWERS + LAST_SEGMENT_MIN => POWERS,
        _ => POWERS / 2,
    }
}

/// The counters of vector `at + i`, at their place in otherwise empty blocks.
#[target_feature(enable = "avx2,vaes,vpclmulqdq,bmi2")]
#[inline]
fn counters(at: usize, i: usize) -> __m256i {
    let before = _mm256_broadcastsi128_si256(_mm_cvtsi32_si128((2 * at) as i32));
    let within = |block: usize| (2 * i + block + 1) as i64;
    swap_bytes(_mm256_add_epi32(before, _mm256_set_epi64x(0, within(1), 0, within(0))))
}

/// For AAD of other lengths than one block: its last block, filled up with zeros, plus the hash of those before, which
/// stands in for all of them.
#[target_feature(enable = "avx2,vaes,vpclmulqdq,bmi2")]
#[cold]
fn hash_up_to_last(aad: &[u8], schedule: &Schedule) -> __m128i {
    let h = alone(load_16(schedule.power(1)));
    let mut sum = _mm256_setzero_si256();
    for block in aad.chunks(BLOCK_LEN) {
        sum = _mm256_xor_si256(multiply(sum, h), swap_bytes(alone(load_block(block))));
    }
    _mm256_castsi256_si128(swap_bytes(sum))
}
