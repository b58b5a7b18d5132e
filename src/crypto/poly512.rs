//! Poly1305 (RFC 8439, section 2.5) with the 52-bit multiplier of AVX-512 IFMA: eight blocks in eight lanes.
//!
//! A field element is three limbs of 44 bits, which leaves the multiplier's 52 bits room to carry late: products of up
//! to eight blocks are summed before one reduction. The lanes are either eight blocks of one message ([`tag`]), each
//! lane multiplied by its own power of r at the end, or eight messages with a key each ([`Lanes`]), which needs no
//! powers beyond those that delay the reduction and nothing at the end.
#![forbid(unsafe_code)]

use std::arch::x86_64::*;
use std::array;

use zeroize::optimization_barrier;

use super::TAG_LEN;
use super::chacha512::transpose_quarters;
use super::simd::{load, load_partial, load_u64, store_u64};

const BLOCK: usize = 16;
const VECTOR: usize = 64;
/// Eight blocks.
const CHUNK: usize = 2 * VECTOR;
const LOW_44: u64 = (1 << 44) - 1;
const LOW_42: u64 = (1 << 42) - 1;
/// The bits of r that are not cleared.
const CLAMP: [u64; 2] = [0x0fff_fffc_0fff_ffff, 0x0fff_fffc_0fff_fffc];

/// A field element in eight lanes. Limbs are at most a little above 44 bits.
type Element = [__m512i; 3];
/// A field element, likewise.
type Limbs = [u64; 3];

/// Poly1305 of one message.
pub(super) struct Message {
    r: Limbs,
    pad: [u64; 2],
    powers: Powers,
}

impl Message {
    /// With the first 32 bytes of `key_block` as its one-time key (RFC 8439, section 2.6), for a text of `len` bytes.
    #[target_feature(enable = "avx512bw,avx512ifma,avx512vbmi2,bmi2")]
    #[inline]
    pub(super) fn new(key_block: __m512i, len: usize) -> Message {
        let mut words = [0; 8];
        store_u64(&mut words, key_block);
        let [r_low, r_high, pad_low, pad_high, ..] = words;
        words = [0; 8];
        optimization_barrier(&words);
        let r = limbs(r_low & CLAMP[0], r_high & CLAMP[1], 0);
        let mut message = Message {
            r,
            pad: [pad_low, pad_high],
            powers: Powers::zero(),
        };
        if len >= CHUNK {
            message.powers.compute(&r, len / CHUNK);
        }
        message
    }

    /// The tag of `aad` and `text` (RFC 8439, section 2.8), with the `len` given before.
    #[target_feature(enable = "avx512bw,avx512ifma,avx512vbmi2,bmi2")]
    #[inline]
    pub(super) fn tag(&mut self, aad: &[u8], text: &[u8]) -> [u8; TAG_LEN] {
        let mut h = [0; 3];
        if !aad.is_empty() {
            h = absorb_one_by_one(h, &self.r, aad);
        }
        h = if text.len() < CHUNK {
            absorb_one_by_one(h, &self.r, text)
        } else {
            absorb_by_vectors(h, &self.powers, text)
        };
        h = add_limbs(h, limbs(aad.len() as u64, text.len() as u64, 1));
        let tag = finish(multiply_limbs(h, self.r), self.pad);
        *self = Message {
            r: [0; 3],
            pad: [0; 2],
            powers: Powers::zero(),
        };
        optimization_barrier(self);
        tag
    }
}

/// h = (h + block) r for each block of `bytes`, the last one filled up with zeros.
#[inline]
fn absorb_one_by_one(mut h: Limbs, r: &Limbs, bytes: &[u8]) -> Limbs {
    let (blocks, rest) = bytes.as_chunks::<BLOCK>();
    let mut absorb = |block: &[u8; BLOCK]| {
        let block = u128::from_le_bytes(*block);
        h = multiply_limbs(add_limbs(h, limbs(block as u64, (block >> 64) as u64, 1)), *r);
    };
    blocks.iter().for_each(&mut absorb);
    if !rest.is_empty() {
        let mut block = [0; BLOCK];
        block[..rest.len()].copy_from_slice(rest);
        absorb(&block);
    }
    h
}

/// The same for `text` of at least a chunk.
///
/// Lane l sums blocks l, l + 8, ... times powers of r^8; at the end it is multiplied by the power of r that is due to
/// its place, and the lanes are added up.
#[target_feature(enable = "avx512bw,avx512ifma,avx512vbmi2,bmi2")]
#[inline]
fn absorb_by_vectors(h: Limbs, powers: &Powers, text: &[u8]) -> Limbs {
    let (chunks, rest) = text.as_chunks::<CHUNK>();
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
    let rest_blocks = rest.len().div_ceil(BLOCK);
    let mut sum = Products::zero();
    sum.add_product(sums, &powers.descending_from(8 + rest_blocks));
    if !rest.is_empty() {
        let high = rest.get(VECTOR..).unwrap_or_default();
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

/// Powers of one r.
struct Powers {
    /// The limbs of r^16, r^15, ... r, and of 8 zeros.
    descending: [[u64; 24]; 3],
    /// r^8, r^16, r^24 and r^32, in every lane.
    of_8: [Multiplier; 4],
}

impl Powers {
    #[target_feature(enable = "avx512f")]
    #[inline]
    fn zero() -> Powers {
        Powers {
            descending: [[0; 24]; 3],
            of_8: [Multiplier::zero(); 4],
        }
    }

    /// Those that `chunks` full chunks of 8 blocks need.
    #[target_feature(enable = "avx512bw,avx512ifma,avx512vbmi2,bmi2")]
    #[inline]
    fn compute(&mut self, r: &Limbs, chunks: usize) {
        let r1 = *r;
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
        if chunks > 3 {
            self.of_8[2] = Multiplier::new(multiply(r16.r, &r8));
            self.of_8[3] = Multiplier::new(multiply(r16.r, &r16));
        }
        for i in 0..3 {
            let (first, rest) = self.descending[i].split_first_chunk_mut().expect("24 are more than 8");
            store_u64(first, higher[i]);
            store_u64(rest.first_chunk_mut().expect("16 are more than 8"), lanes[i]);
        }
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
    fn absorb_first(&self, before: Element, chunks: &[[u8; CHUNK]]) -> Element {
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
    fn absorb_four(&self, sums: Element, before: Element, chunks: &[[u8; CHUNK]; 4]) -> Element {
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

/// Poly1305 of eight messages in step. Lanes whose message has ended keep their sum.
pub(super) struct Lanes {
    /// Sum of the blocks so far: h = (h + block) r for each.
    h: Element,
    /// r, r^2, ... r^8, as far as the longest message has a use for them.
    powers: [Multiplier; 8],
    pads: [[u64; 8]; 2],
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
            pads: [[0; 8]; 2],
            lengths: zero,
        }
    }

    /// Messages of `lengths` bytes, whose one-time keys are the first 32 bytes of `key_blocks`.
    #[target_feature(enable = "avx512bw,avx512ifma,avx512vbmi2,bmi2")]
    pub(super) fn start(&mut self, key_blocks: &[__m512i; 8], lengths: &[u64; 8]) {
        let [(r_low, r_high), (pad_low, pad_high), ..] = transpose_records(key_blocks);
        let r = split::<0>((
            _mm512_and_si512(r_low, splat_u64(CLAMP[0])),
            _mm512_and_si512(r_high, splat_u64(CLAMP[1])),
        ));
        self.h = [_mm512_setzero_si512(); 3];
        self.lengths = load_u64(lengths);
        store_u64(&mut self.pads[0], pad_low);
        store_u64(&mut self.pads[1], pad_high);
        let longest = lengths.iter().copied().max().unwrap_or(0) as usize;
        // `absorb` needs four for 64 bytes, `absorb_pair` eight for 128.
        self.powers[0] = Multiplier::new(r);
        if longest >= VECTOR {
            self.power(2, 1, 1);
            self.power(3, 2, 1);
            self.power(4, 2, 2);
        }
        if longest >= 2 * VECTOR {
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
    pub(super) fn absorb_pair(&mut self, at: usize, first: &Blocks, second: &Blocks) {
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
    pub(super) fn absorb(&mut self, at: usize, blocks: &Blocks) {
        let whole = _mm512_cmpge_epu64_mask(self.lengths, splat_u64((at + VECTOR) as u64));
        if whole | !self.longer_than(at) == 0xff {
            let (mut one, mut two) = (Products::zero(), Products::zero());
            one.add_product(split::<1>(blocks[1]), &self.powers[2]);
            two.add_product(split::<1>(blocks[2]), &self.powers[1]);
            two.add_product(split::<1>(blocks[3]), &self.powers[0]);
            one.add_product(add_elements(self.h, split::<1>(blocks[0])), &self.powers[3]);
            one.merge(two);
            self.keep(whole, one.reduce());
        } else {
            for (block, at) in blocks.iter().zip((at..).step_by(BLOCK)) {
                let active = self.longer_than(at);
                if active != 0 {
                    let h = multiply(add_elements(self.h, split::<1>(*block)), &self.powers[0]);
                    self.keep(active, h);
                }
            }
        }
    }

    /// Forgets the keys.
    #[target_feature(enable = "avx512f")]
    #[inline]
    pub(super) fn wipe(&mut self) {
        self.h = [_mm512_setzero_si512(); 3];
        self.powers.fill(Multiplier::zero());
        self.pads = [[0; 8]; 2];
        optimization_barrier(self);
    }

    /// The messages of more than `len` bytes.
    #[target_feature(enable = "avx512f")]
    #[inline]
    fn longer_than(&self, len: usize) -> __mmask8 {
        _mm512_cmpgt_epu64_mask(self.lengths, splat_u64(len as u64))
    }

    /// The tags, of messages without additional data.
    #[target_feature(enable = "avx512bw,avx512ifma,avx512vbmi2,bmi2")]
    pub(super) fn tags(&mut self) -> [[u8; TAG_LEN]; 8] {
        let block = split::<1>((_mm512_setzero_si512(), self.lengths));
        self.h = multiply(add_elements(self.h, block), &self.powers[0]);
        let mut h = [[0; 8]; 3];
        for (limbs, vector) in h.iter_mut().zip(self.h) {
            store_u64(limbs, vector);
        }
        array::from_fn(|lane| finish(h.map(|limbs| limbs[lane]), self.pads.map(|words| words[lane])))
    }

    #[target_feature(enable = "avx512bw,avx512ifma,avx512vbmi2,bmi2")]
    #[inline]
    fn keep(&mut self, active: __mmask8, h: Element) {
        for i in 0..3 {
            self.h[i] = _mm512_mask_mov_epi64(self.h[i], active, h[i]);
        }
    }
}

/// What an element is multiplied by: its limbs, and the upper two times 20, since 2^132 = 4 * 2^130 = 4 * 5.
#[derive(Clone, Copy)]
struct Multiplier {
    r: Element,
    r_20: [__m512i; 2],
}

impl Multiplier {
    #[target_feature(enable = "avx512f")]
    #[inline]
    fn zero() -> Multiplier {
        let zero = _mm512_setzero_si512();
        Multiplier {
            r: [zero; 3],
            r_20: [zero; 2],
        }
    }

    #[target_feature(enable = "avx512bw,avx512ifma,avx512vbmi2,bmi2")]
    #[inline]
    fn new(r: Element) -> Multiplier {
        Multiplier {
            r,
            r_20: [times_20(r[1]), times_20(r[2])],
        }
    }
}

/// A sum of products: the low 52 bits of the limbs' products, and the bits above.
struct Products {
    low: Element,
    high: Element,
}

impl Products {
    #[target_feature(enable = "avx512f")]
    #[inline]
    fn zero() -> Products {
        let zero = [_mm512_setzero_si512(); 3];
        Products { low: zero, high: zero }
    }

    #[target_feature(enable = "avx512f")]
    #[inline]
    fn merge(&mut self, other: Products) {
        self.low = add_elements(self.low, other.low);
        self.high = add_elements(self.high, other.high);
    }

    #[target_feature(enable = "avx512f")]
    #[inline]
    fn add(&mut self, element: Element) {
        for i in 0..3 {
            self.low[i] = _mm512_add_epi64(self.low[i], element[i]);
        }
    }

    #[target_feature(enable = "avx512bw,avx512ifma,avx512vbmi2,bmi2")]
    #[inline]
    fn add_product(&mut self, a: Element, by: &Multiplier) {
        let Multiplier {
            r: [r0, r1, r2],
            r_20: [s1, s2],
        } = *by;
        let columns = [[r0, s2, s1], [r1, r0, s2], [r2, r1, r0]];
        for j in 0..3 {
            for i in 0..3 {
                self.low[i] = _mm512_madd52lo_epu64(self.low[i], a[j], columns[i][j]);
                self.high[i] = _mm512_madd52hi_epu64(self.high[i], a[j], columns[i][j]);
            }
        }
    }

    /// Carries once, in all limbs at the same time.
    ///
    /// Eight products of limbs below 2^45 and 2^49 leave `low` below 2^57 and `high` below 2^47, the highest of `high`
    /// below 2^42; so no sum here exceeds 2^57, no carry 2^13, and no limb of the result 2^44 + 2^18.
    #[target_feature(enable = "avx512bw,avx512ifma,avx512vbmi2,bmi2")]
    #[inline]
    fn reduce(self) -> Element {
        let [l0, l1, l2] = self.low;
        let [h0, h1, h2] = self.high;
        // 2^52 is 2^8 in the next limb; past the last one 20 * 2^8 in the first.
        let d0 = _mm512_add_epi64(l0, _mm512_slli_epi64::<8>(times_20(h2)));
        let d1 = _mm512_add_epi64(l1, _mm512_slli_epi64::<8>(h0));
        let d2 = _mm512_add_epi64(l2, _mm512_slli_epi64::<8>(h1));
        let low_44 = splat_u64(LOW_44);
        [
            _mm512_add_epi64(_mm512_and_si512(d0, low_44), times_20(_mm512_srli_epi64::<44>(d2))),
            _mm512_add_epi64(_mm512_and_si512(d1, low_44), _mm512_srli_epi64::<44>(d0)),
            _mm512_add_epi64(_mm512_and_si512(d2, low_44), _mm512_srli_epi64::<44>(d1)),
        ]
    }
}

#[target_feature(enable = "avx512bw,avx512ifma,avx512vbmi2,bmi2")]
#[inline]
fn multiply(a: Element, by: &Multiplier) -> Element {
    let mut sum = Products::zero();
    sum.add_product(a, by);
    sum.reduce()
}

#[target_feature(enable = "avx512f")]
#[inline]
fn add_elements(a: Element, b: Element) -> Element {
    [
        _mm512_add_epi64(a[0], b[0]),
        _mm512_add_epi64(a[1], b[1]),
        _mm512_add_epi64(a[2], b[2]),
    ]
}

/// `limb` of at most 47 bits, times 20. (A sum of shifts the compiler takes for a 64-bit multiplication, and makes it one.)
#[target_feature(enable = "avx512ifma")]
#[inline]
fn times_20(limb: __m512i) -> __m512i {
    _mm512_madd52lo_epu64(_mm512_setzero_si512(), limb, splat_u64(20))
}

#[target_feature(enable = "avx512f")]
#[inline]
fn splat_u64(value: u64) -> __m512i {
    _mm512_set1_epi64(value as i64)
}

/// Limbs of numbers of 128 bits, plus `TOP` * 2^128.
#[target_feature(enable = "avx512bw,avx512ifma,avx512vbmi2,bmi2")]
#[inline]
fn split<const TOP: u64>((low, high): (__m512i, __m512i)) -> Element {
    let low_44 = splat_u64(LOW_44);
    [
        _mm512_and_si512(low, low_44),
        _mm512_and_si512(_mm512_shrdi_epi64::<44>(low, high), low_44),
        _mm512_shrdi_epi64::<24>(high, splat_u64(TOP)),
    ]
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

#[target_feature(enable = "avx512bw,avx512ifma,avx512vbmi2,bmi2")]
#[inline]
fn blocks_of_chunk(chunk: &[u8; CHUNK]) -> Element {
    let [first, second] = chunk.as_chunks().0 else {
        unreachable!("a chunk is two vectors");
    };
    blocks_of(load(first), load(second))
}

/// The low and high halves of four blocks of each of eight messages.
pub(super) type Blocks = [(__m512i, __m512i); 4];

/// Limbs of the number `low` + `high` * 2^64 + `top` * 2^128.
#[inline]
fn limbs(low: u64, high: u64, top: u64) -> Limbs {
    [low & LOW_44, (low >> 44 | high << 20) & LOW_44, high >> 24 | top << 40]
}

#[inline]
fn add_limbs(a: Limbs, b: Limbs) -> Limbs {
    array::from_fn(|i| a[i] + b[i])
}

#[inline]
fn multiply_limbs(a: Limbs, b: Limbs) -> Limbs {
    let product = |x: u64, y: u64| u128::from(x) * u128::from(y);
    let (b1_20, b2_20) = (b[1] * 20, b[2] * 20);
    let d0 = product(a[0], b[0]) + product(a[1], b2_20) + product(a[2], b1_20);
    let d1 = product(a[0], b[1]) + product(a[1], b[0]) + product(a[2], b2_20);
    let d2 = product(a[0], b[2]) + product(a[1], b[1]) + product(a[2], b[0]);
    let (c0, c1, c2) = ((d0 >> 44) as u64, (d1 >> 44) as u64, (d2 >> 44) as u64);
    let low = |d: u128| d as u64 & LOW_44;
    // Carries of up to 2^56, so twice.
    let (e0, e1, e2) = (low(d0) + 20 * c2, low(d1) + c0, low(d2) + c1);
    [
        (e0 & LOW_44) + 20 * (e2 >> 44),
        (e1 & LOW_44) + (e0 >> 44),
        (e2 & LOW_44) + (e1 >> 44),
    ]
}

/// h modulo 2^130 - 5, plus `pad`, modulo 2^128.
#[inline]
fn finish(h: Limbs, pad: [u64; 2]) -> [u8; TAG_LEN] {
    let [mut h0, mut h1, mut h2] = h;
    for _ in 0..2 {
        h1 += h0 >> 44;
        h0 &= LOW_44;
        h2 += h1 >> 44;
        h1 &= LOW_44;
        h0 += 5 * (h2 >> 42);
        h2 &= LOW_42;
    }
    h1 += h0 >> 44;
    h0 &= LOW_44;
    h2 += h1 >> 44;
    h1 &= LOW_44;
    // h < 2^130 here. h - (2^130 - 5), if that is not negative.
    let g0 = h0 + 5;
    let g1 = h1 + (g0 >> 44);
    let g2 = (h2 + (g1 >> 44)).wrapping_sub(1 << 42);
    let not_negative = (g2 >> 63).wrapping_sub(1);
    let select = |h: u64, g: u64| u128::from(h & !not_negative | g & not_negative);
    let h = select(h0, g0 & LOW_44) | select(h1, g1 & LOW_44) << 44 | select(h2, g2) << 88;
    let pad = u128::from(pad[0]) | u128::from(pad[1]) << 64;
    h.wrapping_add(pad).to_le_bytes()
}
