//! Poly1305 of one message: one block after the other, or eight in eight lanes.

use std::arch::x86_64::*;

use zeroize::optimization_barrier;

use super::poly1305::{
    BLOCK_LEN, CLAMP, Element, Limbs, Multiplier, Products, add_elements, add_limbs, finish, limbs, multiply,
    multiply_limbs, splat_u64, split,
};
use crate::crypto::simd::{load, load_partial, load_u64, store_u64};

const VECTOR_LEN: usize = 64;
/// Eight blocks.
const CHUNK_LEN: usize = 2 * VECTOR_LEN;

/// A message's key (RFC 8439, section 2.6).
pub(super) struct OneTimeKey {
    r: Limbs,
    pad: u128,
}

impl OneTimeKey {
    /// The first 32 bytes of the key stream's first block.
    #[target_feature(enable = "avx512f")]
    #[inline]
    pub(super) fn new(first_block: __m512i) -> OneTimeKey {
        let mut words = [0; 8];
        store_u64(&mut words, first_block);
        let [r_low, r_high, pad_low, pad_high, ..] = words;
        words = [0; 8];
        optimization_barrier(&words);
        OneTimeKey {
            r: limbs(r_low & CLAMP[0], r_high & CLAMP[1], 0),
            pad: u128::from(pad_low) | u128::from(pad_high) << 64,
        }
    }

    /// The tag of `aad` and `text` (RFC 8439, section 2.8).
    #[inline]
    pub(super) fn tag(&self, aad: &[u8], text: &[u8]) -> u128 {
        let h = absorb_one_by_one([0; 3], &self.r, aad);
        let h = absorb_one_by_one(h, &self.r, text);
        self.finish(h, aad, text)
    }

    /// The same with this key's powers, for a text of at least 128 bytes.
    #[target_feature(enable = "avx512bw,avx512ifma,avx512vbmi2,bmi2")]
    #[inline]
    pub(super) fn tag_with(&self, powers: &Powers, aad: &[u8], text: &[u8]) -> u128 {
        let h = absorb_one_by_one([0; 3], &self.r, aad);
        let h = absorb_by_lanes(h, powers, text);
        self.finish(h, aad, text)
    }

    /// Forgets the key.
    #[inline]
    pub(super) fn wipe(&mut self) {
        *self = OneTimeKey { r: [0; 3], pad: 0 };
        optimization_barrier(self);
    }

    #[inline]
    fn finish(&self, h: Limbs, aad: &[u8], text: &[u8]) -> u128 {
        let lengths = limbs(aad.len() as u64, text.len() as u64, 1);
        finish(multiply_limbs(add_limbs(h, lengths), self.r), self.pad)
    }
}

/// h = (h + block) r for each block of `bytes`, the last one filled up with zeros.
#[inline]
fn absorb_one_by_one(mut h: Limbs, r: &Limbs, bytes: &[u8]) -> Limbs {
    let (blocks, rest) = bytes.as_chunks::<BLOCK_LEN>();
    let mut absorb = |block: &[u8; BLOCK_LEN]| {
        let block = u128::from_le_bytes(*block);
        h = multiply_limbs(add_limbs(h, limbs(block as u64, (block >> 64) as u64, 1)), *r);
    };
    blocks.iter().for_each(&mut absorb);
    if !rest.is_empty() {
        let mut block = [0; BLOCK_LEN];
        block[..rest.len()].copy_from_slice(rest);
        absorb(&block);
    }
    h
}

/// [`absorb_one_by_one`] for a text of at least a chunk.
///
/// Lane l sums blocks l, l + 8, ... times powers of r^8; at the end it is multiplied by the power of r that is due to
/// its place, and the lanes are added up.
#[target_feature(enable = "avx512bw,avx512ifma,avx512vbmi2,bmi2")]
#[inline]
fn absorb_by_lanes(h: Limbs, powers: &Powers, text: &[u8]) -> Limbs {
    let (chunks, rest) = text.as_chunks::<CHUNK_LEN>();
    // What came before, additional data, belongs to the first block.
    let mut before = [
        _mm512_maskz_set1_epi64(1, h[0] as i64),
        _mm512_maskz_set1_epi64(1, h[1] as i64),
        _mm512_maskz_set1_epi64(1, h[2] as i64),
    ];
    let mut sums = [_mm512_setzero_si512(); 3];
    let (odd, fours) = chunks.as_rchunks::<4>();
    if !odd.is_empty() {
        sums = powers.absorb_first(before, odd);
        before = [_mm512_setzero_si512(); 3];
    }
    for four in fours {
        sums = powers.absorb_four(sums, before, four);
        before = [_mm512_setzero_si512(); 3];
    }
    let rest_blocks = rest.len().div_ceil(BLOCK_LEN);
    let mut sum = Products::zero();
    sum.add_product(sums, &powers.descending_from(8 + rest_blocks));
    if !rest.is_empty() {
        let high = rest.get(VECTOR_LEN..).unwrap_or_default();
        sum.add_product(
            blocks_of(load_partial(rest), load_partial(high)),
            &powers.descending_from(rest_blocks),
        );
    }
    let [low, middle, high] = sum.reduce();
    [
        _mm512_reduce_add_epi64(low) as u64,
        _mm512_reduce_add_epi64(middle) as u64,
        _mm512_reduce_add_epi64(high) as u64,
    ]
}

/// Powers of r.
pub(super) struct Powers {
    /// The limbs of r^16, r^15, ... r, and of 8 zeros.
    descending: [[u64; 24]; 3],
    /// r^8, r^16, r^24 and r^32, in every lane.
    of_8: [Multiplier; 4],
}

impl Powers {
    #[target_feature(enable = "avx512f")]
    #[inline]
    pub(super) fn zero() -> Powers {
        Powers {
            descending: [[0; 24]; 3],
            of_8: [Multiplier::zero(); 4],
        }
    }

    /// Those that a text of `len` bytes needs.
    #[target_feature(enable = "avx512bw,avx512ifma,avx512vbmi2,bmi2")]
    #[inline]
    pub(super) fn compute(&mut self, key: &OneTimeKey, len: usize) {
        let r1 = key.r;
        let r2 = multiply_limbs(r1, r1);
        let r3 = multiply_limbs(r2, r1);
        let r4 = multiply_limbs(r2, r2);
        let r5 = multiply_limbs(r4, r1);
        let r6 = multiply_limbs(r4, r2);
        let r7 = multiply_limbs(r4, r3);
        let r8 = multiply_limbs(r4, r4);
        let lanes = |i: usize| {
            let [r1, r2, r3, r4, r5, r6, r7, r8] = [r1, r2, r3, r4, r5, r6, r7, r8].map(|r| r[i] as i64);
            _mm512_set_epi64(r1, r2, r3, r4, r5, r6, r7, r8)
        };
        let lanes = [lanes(0), lanes(1), lanes(2)];
        let r8 = Multiplier::new([splat_u64(r8[0]), splat_u64(r8[1]), splat_u64(r8[2])]);
        let higher = multiply(lanes, &r8);
        let lowest_lane = |limb| _mm512_broadcastq_epi64(_mm512_castsi512_si128(limb));
        let r16 = Multiplier::new([lowest_lane(higher[0]), lowest_lane(higher[1]), lowest_lane(higher[2])]);
        self.of_8[0] = r8;
        self.of_8[1] = r16;
        if len >= 4 * CHUNK_LEN {
            self.of_8[2] = Multiplier::new(multiply(r16.r, &r8));
            self.of_8[3] = Multiplier::new(multiply(r16.r, &r16));
        }
        for i in 0..3 {
            let (first, rest) = self.descending[i].split_first_chunk_mut().expect("24 are more than 8");
            store_u64(first, higher[i]);
            store_u64(rest.first_chunk_mut().expect("16 are more than 8"), lanes[i]);
        }
    }

    /// Forgets the powers.
    #[target_feature(enable = "avx512f")]
    #[inline]
    pub(super) fn wipe(&mut self) {
        self.descending = [[0; 24]; 3];
        self.of_8 = [Multiplier::zero(); 4];
        optimization_barrier(self);
    }

    /// r^`first`, r^(`first` - 1), ... in the order of [`blocks_of`]; 0 below r.
    #[target_feature(enable = "avx512bw,avx512ifma,avx512vbmi2,bmi2")]
    #[inline]
    fn descending_from(&self, first: usize) -> Multiplier {
        let order = _mm512_set_epi64(7, 3, 6, 2, 5, 1, 4, 0);
        let limb = |limbs: &[u64; 24]| {
            let limbs = limbs[16 - first..]
                .first_chunk()
                .expect("8 zeros lie behind the lowest power");
            _mm512_permutexvar_epi64(order, load_u64(limbs))
        };
        let [low, middle, high] = &self.descending;
        Multiplier::new([limb(low), limb(middle), limb(high)])
    }

    /// The sums of up to three chunks, to whose first block `before` is added.
    #[target_feature(enable = "avx512bw,avx512ifma,avx512vbmi2,bmi2")]
    #[inline]
    fn absorb_first(&self, before: Element, chunks: &[[u8; CHUNK_LEN]]) -> Element {
        let mut sum = Products::zero();
        let mut before = before;
        for (chunk, after) in chunks.iter().zip((0..chunks.len()).rev()) {
            let blocks = add_elements(blocks_of_chunk(chunk), before);
            before = [_mm512_setzero_si512(); 3];
            match after {
                0 => sum.add(blocks),
                after => sum.add_product(blocks, &self.of_8[after - 1]),
            }
        }
        sum.reduce()
    }

    /// `sums` after four more chunks, to whose first block `before` is added.
    #[target_feature(enable = "avx512bw,avx512ifma,avx512vbmi2,bmi2")]
    #[inline]
    fn absorb_four(&self, sums: Element, before: Element, chunks: &[[u8; CHUNK_LEN]; 4]) -> Element {
        // Only the last of three sums has to wait for `sums`.
        let (mut one, mut two, mut three) = (Products::zero(), Products::zero(), Products::zero());
        one.add_product(add_elements(blocks_of_chunk(&chunks[0]), before), &self.of_8[2]);
        two.add_product(blocks_of_chunk(&chunks[1]), &self.of_8[1]);
        one.add_product(blocks_of_chunk(&chunks[2]), &self.of_8[0]);
        two.add(blocks_of_chunk(&chunks[3]));
        one.merge(two);
        three.add_product(sums, &self.of_8[3]);
        one.merge(three);
        one.reduce()
    }
}

/// Eight consecutive blocks of one message, in the order 0, 4, 1, 5, 2, 6, 3, 7.
#[target_feature(enable = "avx512bw,avx512ifma,avx512vbmi2,bmi2")]
#[inline]
fn blocks_of(first: __m512i, second: __m512i) -> Element {
    split::<1>((
        _mm512_unpacklo_epi64(first, second),
        _mm512_unpackhi_epi64(first, second),
    ))
}

#[target_feature(enable = "avx512bw,avx512ifma,avx512vbmi2,bmi2")]
#[inline]
fn blocks_of_chunk(chunk: &[u8; CHUNK_LEN]) -> Element {
    let [first, second] = chunk.as_chunks().0 else {
        unreachable!("a chunk is two vectors");
    };
    blocks_of(load(first), load(second))
}
