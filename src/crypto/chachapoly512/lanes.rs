//! Poly1305 of eight messages in eight lanes, each under its own key.

use std::arch::x86_64::*;
use std::array;

use zeroize::optimization_barrier;

use super::chacha20::transpose_quarters;
use super::poly1305::{
    BLOCK_LEN, CLAMP, Element, Multiplier, Products, add_elements, finish_lanes, multiply, splat_u64, split,
};
use crate::crypto::simd::{load_u64, store_u64};

/// Bytes of a message in a vector: four blocks.
const UNIT_LEN: usize = 64;

/// The low and high halves of four blocks of each of eight messages.
pub(super) type Blocks = [(__m512i, __m512i); 4];

/// The state of eight messages. A lane whose message has ended keeps its sum.
pub(super) struct Lanes {
    /// Sum of the blocks so far: h = (h + block) r for each.
    h: Element,
    /// r, r^2, ... r^8, as far as the longest message has a use for them.
    powers: [Multiplier; 8],
    /// What is added at the end, its low and its high half.
    pads: (__m512i, __m512i),
    lengths: __m512i,
}

impl Lanes {
    /// Messages of no bytes, to be set up by [`Lanes::start`].
    #[target_feature(enable = "avx512f")]
    #[inline]
    pub(super) fn new() -> Lanes {
        let zero = _mm512_setzero_si512();
        Lanes {
            h: [zero; 3],
            powers: [Multiplier::zero(); 8],
            pads: (zero, zero),
            lengths: zero,
        }
    }

    /// Messages of `lengths` bytes, whose one-time keys are the first 32 bytes of `key_blocks`.
    #[target_feature(enable = "avx512bw,avx512ifma,avx512vbmi2,bmi2")]
    pub(super) fn start(&mut self, key_blocks: &[__m512i; 8], lengths: &[u64; 8]) {
        let [(r_low, r_high), pads, ..] = transpose_records(key_blocks);
        let r = split::<0>((
            _mm512_and_si512(r_low, splat_u64(CLAMP[0])),
            _mm512_and_si512(r_high, splat_u64(CLAMP[1])),
        ));
        self.h = [_mm512_setzero_si512(); 3];
        self.lengths = load_u64(lengths);
        self.pads = pads;
        let longest = lengths.iter().copied().max().unwrap_or(0) as usize;
        // `absorb_one` needs four for 64 bytes, `absorb_two` eight for 128.
        self.powers[0] = Multiplier::new(r);
        if longest >= UNIT_LEN {
            self.power(2, 1, 1);
            self.power(3, 2, 1);
            self.power(4, 2, 2);
        }
        if longest >= 2 * UNIT_LEN {
            for low in 1..=4 {
                self.power(4 + low, 4, low);
            }
        }
    }

    /// r^`power` = r^`a` r^`b`.
    #[target_feature(enable = "avx512bw,avx512ifma,avx512vbmi2,bmi2")]
    #[inline]
    fn power(&mut self, power: usize, a: usize, b: usize) {
        self.powers[power - 1] = Multiplier::new(multiply(self.powers[a - 1].r, &self.powers[b - 1]));
    }

    /// Absorbs 64 bytes of each message, or 128, of those that have not ended. `at` is what was absorbed before.
    #[target_feature(enable = "avx512bw,avx512ifma,avx512vbmi2,bmi2")]
    #[inline]
    pub(super) fn absorb_two(&mut self, at: usize, first: &Blocks, second: &Blocks) {
        // Two sums, since each is a chain of multiplications that would be waited for; what waits for h comes last.
        let (mut one, mut two) = (Products::zero(), Products::zero());
        let powers = &self.powers;
        one.add_product(split::<1>(first[1]), &powers[6]);
        two.add_product(split::<1>(second[0]), &powers[3]);
        one.add_product(split::<1>(first[2]), &powers[5]);
        two.add_product(split::<1>(second[1]), &powers[2]);
        one.add_product(split::<1>(first[3]), &powers[4]);
        two.add_product(split::<1>(second[2]), &powers[1]);
        two.add_product(split::<1>(second[3]), &powers[0]);
        one.add_product(add_elements(self.h, split::<1>(first[0])), &powers[7]);
        one.merge(two);
        self.keep(self.longer_than(at), one.reduce());
    }

    /// Absorbs bytes `at..at + 64` of each message, as far as it goes.
    #[target_feature(enable = "avx512bw,avx512ifma,avx512vbmi2,bmi2")]
    pub(super) fn absorb_one(&mut self, at: usize, blocks: &Blocks) {
        let whole = _mm512_cmpge_epu64_mask(self.lengths, splat_u64((at + UNIT_LEN) as u64));
        if whole | !self.longer_than(at) == 0xff {
            let (mut one, mut two) = (Products::zero(), Products::zero());
            one.add_product(split::<1>(blocks[1]), &self.powers[2]);
            two.add_product(split::<1>(blocks[2]), &self.powers[1]);
            two.add_product(split::<1>(blocks[3]), &self.powers[0]);
            one.add_product(add_elements(self.h, split::<1>(blocks[0])), &self.powers[3]);
            one.merge(two);
            self.keep(whole, one.reduce());
        } else {
            for (block, at) in blocks.iter().zip((at..).step_by(BLOCK_LEN)) {
                let active = self.longer_than(at);
                if active != 0 {
                    let h = multiply(add_elements(self.h, split::<1>(*block)), &self.powers[0]);
                    self.keep(active, h);
                }
            }
        }
    }

    /// The tags, of messages without additional data.
    #[target_feature(enable = "avx512bw,avx512ifma,avx512vbmi2,bmi2")]
    pub(super) fn tags(&mut self) -> [u128; 8] {
        let lengths = split::<1>((_mm512_setzero_si512(), self.lengths));
        self.h = multiply(add_elements(self.h, lengths), &self.powers[0]);
        let (low, high) = finish_lanes(self.h, self.pads);
        let mut halves = [[0; 8]; 2];
        store_u64(&mut halves[0], low);
        store_u64(&mut halves[1], high);
        array::from_fn(|lane| u128::from(halves[0][lane]) | u128::from(halves[1][lane]) << 64)
    }

    /// Forgets the keys.
    #[target_feature(enable = "avx512f")]
    #[inline]
    pub(super) fn wipe(&mut self) {
        let zero = _mm512_setzero_si512();
        self.h = [zero; 3];
        self.powers.fill(Multiplier::zero());
        self.pads = (zero, zero);
        optimization_barrier(self);
    }

    /// The messages of more than `len` bytes.
    #[target_feature(enable = "avx512f")]
    #[inline]
    fn longer_than(&self, len: usize) -> __mmask8 {
        _mm512_cmpgt_epu64_mask(self.lengths, splat_u64(len as u64))
    }

    #[target_feature(enable = "avx512bw,avx512ifma,avx512vbmi2,bmi2")]
    #[inline]
    fn keep(&mut self, active: __mmask8, h: Element) {
        for (kept, h) in self.h.iter_mut().zip(h) {
            *kept = _mm512_mask_mov_epi64(*kept, active, h);
        }
    }
}

/// Four blocks of each of eight messages to the low and high halves of four times a block of each.
#[target_feature(enable = "avx512bw,avx512ifma,avx512vbmi2,bmi2")]
#[inline]
pub(super) fn transpose_records(records: &[__m512i; 8]) -> Blocks {
    let [a, b, c, d, e, f, g, h] = *records;
    let low = transpose_quarters([
        _mm512_unpacklo_epi64(a, b),
        _mm512_unpacklo_epi64(c, d),
        _mm512_unpacklo_epi64(e, f),
        _mm512_unpacklo_epi64(g, h),
    ]);
    let high = transpose_quarters([
        _mm512_unpackhi_epi64(a, b),
        _mm512_unpackhi_epi64(c, d),
        _mm512_unpackhi_epi64(e, f),
        _mm512_unpackhi_epi64(g, h),
    ]);
    [
        (low[0], high[0]),
        (low[1], high[1]),
        (low[2], high[2]),
        (low[3], high[3]),
    ]
}
