//! AES-256-GCM on VAES and VPCLMULQDQ: four blocks per 512-bit vector, eight vectors in flight.
#![forbid(unsafe_code)]

use std::arch::x86_64::*;
use std::mem;

use zeroize::{Zeroize, ZeroizeOnDrop};

use super::simd::{first_bytes, load, load_16, load_partial, store, store_16, store_partial};
use super::{KEY_LEN, NONCE_LEN, TAG_LEN};

const BLOCK: usize = 16;
const VECTOR: usize = 64;
const IN_FLIGHT: usize = 8;
const POWERS: usize = 128;
const SEGMENT: usize = POWERS / 4;

/// An expanded key.
#[derive(Zeroize, ZeroizeOnDrop)]
#[repr(align(64))]
pub(super) struct Schedule {
    round_keys: [[u8; VECTOR]; 15],
    round_1: [[u8; VECTOR]; SEGMENT],
    powers: [u8; (POWERS + 4) * BLOCK],
    sums: [u8; (POWERS + 4) * BLOCK],
}

impl Schedule {
    pub(super) const fn zeroed() -> Schedule {
        Schedule {
            round_keys: [[0; VECTOR]; 15],
            round_1: [[0; VECTOR]; SEGMENT],
            powers: [0; (POWERS + 4) * BLOCK],
            sums: [0; (POWERS + 4) * BLOCK],
        }
    }
}

#[target_feature(enable = "avx512bw,avx512vl,vaes,vpclmulqdq,bmi2")]
pub(super) fn expand(key: &[u8; KEY_LEN], schedule: &mut Schedule) {
    let mut w = [_mm_setzero_si128(); 15];
    let (low, high) = key.split_at(16);
    w[0] = load_16(low.first_chunk().expect("half a key"));
    w[1] = load_16(high.first_chunk().expect("half a key"));
    macro_rules! round {
        ($i:literal, $rcon:literal) => {
            w[$i] = mix(
                w[$i - 2],
                _mm_shuffle_epi32::<0xff>(_mm_aeskeygenassist_si128::<$rcon>(w[$i - 1])),
            );
            if $i < 14 {
                w[($i + 1) % 15] = mix(
                    w[$i - 1],
                    _mm_shuffle_epi32::<0xaa>(_mm_aeskeygenassist_si128::<0>(w[$i])),
                );
            }
        };
    }
    round!(2, 1);
    round!(4, 2);
    round!(6, 4);
    round!(8, 8);
    round!(10, 16);
    round!(12, 32);
    round!(14, 64);
    for (bytes, key) in schedule.round_keys.iter_mut().zip(w) {
        store(bytes, _mm512_broadcast_i32x4(key));
    }
    let first_round = |block| {
        let [key_0, key_1, ..] = w.map(|key| _mm512_broadcast_i32x4(key));
        _mm512_aesenc_epi128(_mm512_xor_si512(block, key_0), key_1)
    };
    let zero = first_round(_mm512_setzero_si512());
    for (vector, bytes) in schedule.round_1.iter_mut().enumerate() {
        let counter = |lane| ((4 * vector + lane + 1) as i64) << 56;
        let block = _mm512_set_epi64(counter(3), 0, counter(2), 0, counter(1), 0, counter(0), 0);
        store(bytes, _mm512_xor_si512(first_round(block), zero));
    }
    let mut e = w[0];
    for key in &w[1..14] {
        e = _mm_aesenc_si128(e, *key);
    }
    let h = _mm_shuffle_epi8(_mm_aesenclast_si128(e, w[14]), _mm512_castsi512_si128(byte_swap()));
    let (lo, hi) = (
        _mm_cvtsi128_si64(h) as u64,
        _mm_cvtsi128_si64(_mm_unpackhi_epi64(h, h)) as u64,
    );
    let carry = (hi >> 63).wrapping_neg();
    let h = _mm_set_epi64x(
        ((hi << 1 | lo >> 63) ^ (carry & POLYNOMIAL as u64)) as i64,
        ((lo << 1) ^ (carry & 1)) as i64,
    );
    let mut power = h;
    for at in (0..POWERS).rev() {
        let at = at * BLOCK..(at + 1) * BLOCK;
        store_16((&mut schedule.powers[at.clone()]).try_into().expect("a block"), power);
        store_16(
            (&mut schedule.sums[at]).try_into().expect("a block"),
            halves_summed(power),
        );
        power = multiply(power, h);
    }
}

#[target_feature(enable = "avx512bw,avx512vl,vaes,vpclmulqdq,bmi2")]
fn mix(mut a: __m128i, g: __m128i) -> __m128i {
    a = _mm_xor_si128(a, _mm_slli_si128::<4>(a));
    a = _mm_xor_si128(a, _mm_slli_si128::<8>(a));
    _mm_xor_si128(a, g)
}

#[target_feature(enable = "avx512bw,avx512vl,vaes,vpclmulqdq,bmi2")]
pub(super) fn seal(schedule: &Schedule, nonce: &[u8; NONCE_LEN], aad: &[u8], text: &mut [u8], tag: &mut [u8; TAG_LEN]) {
    store_16(tag, record::<false>(schedule, nonce, aad, text));
}

#[target_feature(enable = "avx512bw,avx512vl,vaes,vpclmulqdq,bmi2")]
pub(super) fn open(
    schedule: &Schedule,
    nonce: &[u8; NONCE_LEN],
    aad: &[u8],
    text: &mut [u8],
    tag: &[u8; TAG_LEN],
) -> bool {
    let difference = _mm_xor_si128(record::<true>(schedule, nonce, aad, text), load_16(tag));
    _mm_test_epi64_mask(difference, difference) == 0
}

const POLYNOMIAL: i64 = 0xc200_0000_0000_0000_u64 as i64;

#[target_feature(enable = "avx512bw,avx512vl,vaes,vpclmulqdq,bmi2")]
#[inline]
fn byte_swap() -> __m512i {
    _mm512_broadcast_i32x4(_mm_set_epi8(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15))
}

#[target_feature(enable = "avx512bw,avx512vl,vaes,vpclmulqdq,bmi2")]
#[inline]
fn halves_summed(a: __m128i) -> __m128i {
    _mm_xor_si128(a, _mm_shuffle_epi32::<0x4e>(a))
}

#[target_feature(enable = "avx512bw,avx512vl,vaes,vpclmulqdq,bmi2")]
#[inline]
fn xor3(a: __m512i, b: __m512i, c: __m512i) -> __m512i {
    _mm512_ternarylogic_epi64::<0x96>(a, b, c)
}

#[derive(Clone, Copy)]
struct Products {
    low: __m512i,
    middle: __m512i,
    high: __m512i,
}

impl Products {
    #[target_feature(enable = "avx512bw,avx512vl,vaes,vpclmulqdq,bmi2")]
    #[inline]
    fn zero() -> Products {
        let zero = _mm512_setzero_si512();
        Products {
            low: zero,
            middle: zero,
            high: zero,
        }
    }

    #[target_feature(enable = "avx512bw,avx512vl,vaes,vpclmulqdq,bmi2")]
    #[inline]
    fn add(&mut self, operand: __m512i, power: __m512i, sum: __m512i) {
        let operand_sum = _mm512_xor_si512(operand, _mm512_shuffle_epi32::<0x4e>(operand));
        self.low = _mm512_xor_si512(self.low, _mm512_clmulepi64_epi128::<0x00>(operand, power));
        self.high = _mm512_xor_si512(self.high, _mm512_clmulepi64_epi128::<0x11>(operand, power));
        self.middle = _mm512_xor_si512(self.middle, _mm512_clmulepi64_epi128::<0x00>(operand_sum, sum));
    }

    #[target_feature(enable = "avx512bw,avx512vl,vaes,vpclmulqdq,bmi2")]
    #[inline]
    fn add_lane(&mut self, operand: __m128i, power: __m128i) {
        let widen = |lane| _mm512_zextsi128_si512(lane);
        self.add(widen(operand), widen(power), widen(halves_summed(power)));
    }

    #[target_feature(enable = "avx512bw,avx512vl,vaes,vpclmulqdq,bmi2")]
    #[inline]
    fn reduce(self) -> __m128i {
        let polynomial = _mm512_broadcast_i32x4(_mm_set_epi64x(POLYNOMIAL, 1));
        let middle = xor3(self.middle, self.low, self.high);
        let t = _mm512_clmulepi64_epi128::<0x01>(polynomial, self.low);
        let middle = xor3(middle, t, _mm512_shuffle_epi32::<0x4e>(self.low));
        let t = _mm512_clmulepi64_epi128::<0x01>(polynomial, middle);
        let lanes = xor3(self.high, t, _mm512_shuffle_epi32::<0x4e>(middle));
        let pairs = _mm256_xor_si256(_mm512_castsi512_si256(lanes), _mm512_extracti64x4_epi64::<1>(lanes));
        _mm_xor_si128(_mm256_castsi256_si128(pairs), _mm256_extracti128_si256::<1>(pairs))
    }
}

#[target_feature(enable = "avx512bw,avx512vl,vaes,vpclmulqdq,bmi2")]
#[inline]
fn multiply(a: __m128i, b: __m128i) -> __m128i {
    let mut products = Products::zero();
    products.add_lane(a, b);
    products.reduce()
}

struct Record<'key, 'text> {
    schedule: &'key Schedule,
    round_1: &'key [[u8; VECTOR]],
    powers: &'key [[u8; VECTOR]],
    sums: &'key [[u8; VECTOR]],
    base: __m512i,
    counter: __m512i,
    aad: __m128i,
    lengths: __m512i,
    lengths_mask: u8,
    head: &'text mut [u8],
    body: &'text mut [[u8; VECTOR]],
    last: &'text mut [u8],
    products: Products,
    tag_pad: __m128i,
}

impl<'key> Record<'key, '_> {
    #[target_feature(enable = "avx512bw,avx512vl,vaes,vpclmulqdq,bmi2")]
    #[inline]
    fn chunk<const OPEN: bool, const N: usize, const G: usize, const HEAD: bool, const LAST: bool, const FAR: bool>(
        &mut self,
        previous: &[__m512i; G],
    ) -> [__m512i; N] {
        let swap = byte_swap();
        let zero = _mm512_setzero_si512();
        let (mut x, mut g, mut state) = ([zero; N], [zero; N], [zero; N]);
        let is_head = |i: usize| HEAD && i == 0;
        let is_last = |i: usize| LAST && i == N - 1 && !is_head(i);
        let whole = N - HEAD as usize - (LAST && !(HEAD && N == 1)) as usize;
        let (body, rest) = mem::take(&mut self.body).split_at_mut(whole);
        self.body = rest;
        let cached = if FAR { &[] } else { take(&mut self.round_1, N) };
        let round_key = |round: usize| load(&self.schedule.round_keys[round]);
        for i in 0..N {
            x[i] = if is_head(i) {
                let text = load_partial(self.head);
                _mm512_alignr_epi64::<6>(text, zero)
            } else if is_last(i) {
                load_partial(self.last)
            } else {
                load(&body[i - HEAD as usize])
            };
            state[i] = if FAR {
                let big_endian = _mm512_shuffle_epi8(self.counter, swap);
                self.counter = _mm512_add_epi32(self.counter, _mm512_broadcast_i32x4(_mm_set_epi32(0, 0, 0, 4)));
                _mm512_aesenc_epi128(_mm512_xor_si512(big_endian, self.base), round_key(1))
            } else {
                _mm512_xor_si512(self.base, load(&cached[i]))
            };
        }
        let (head_mask, last_mask) = (first_bytes(self.head.len()) << 16, first_bytes(self.last.len()));
        let (aad, lengths, lengths_mask) = (self.aad, self.lengths, self.lengths_mask);
        let operand = |i: usize, text: __m512i| {
            let mut text = text;
            if is_head(i) {
                text = _mm512_maskz_mov_epi8(head_mask, text);
                text = _mm512_inserti32x4::<0>(text, aad);
            }
            if is_last(i) {
                text = _mm512_maskz_mov_epi8(last_mask, text);
            }
            text = _mm512_shuffle_epi8(text, swap);
            if LAST && i == N - 1 {
                text = _mm512_mask_mov_epi64(text, lengths_mask, lengths);
            }
            text
        };
        if OPEN {
            for i in 0..N {
                g[i] = operand(i, x[i]);
            }
        }
        let count = if OPEN { N } else { G };
        let powers = take(&mut self.powers, count);
        let sums = take(&mut self.sums, count);
        for round in 2..14 {
            let key = round_key(round);
            for i in 0..N {
                state[i] = _mm512_aesenc_epi128(state[i], key);
            }
            let j = round - 2;
            if j < count {
                let v = if OPEN { g[j % N] } else { previous[j % G] };
                self.products.add(v, load(&powers[j]), load(&sums[j]));
            }
        }
        let key = round_key(14);
        for i in 0..N {
            let c = _mm512_aesenclast_epi128(state[i], _mm512_xor_si512(key, x[i]));
            if is_head(i) {
                self.tag_pad = _mm512_castsi512_si128(c);
                store_partial(self.head, _mm512_alignr_epi64::<2>(zero, c));
            } else if is_last(i) {
                store_partial(self.last, c);
            } else {
                store(&mut body[i - HEAD as usize], c);
            }
            if !OPEN {
                g[i] = operand(i, c);
            }
        }
        g
    }

    #[target_feature(enable = "avx512bw,avx512vl,vaes,vpclmulqdq,bmi2")]
    #[inline]
    fn hash<const N: usize>(&mut self, operands: &[__m512i; N]) {
        let powers = take(&mut self.powers, N);
        let sums = take(&mut self.sums, N);
        for i in 0..N {
            self.products.add(operands[i], load(&powers[i]), load(&sums[i]));
        }
    }

    #[target_feature(enable = "avx512bw,avx512vl,vaes,vpclmulqdq,bmi2")]
    #[inline]
    fn tail<const OPEN: bool, const N: usize, const G: usize, const HEAD: bool, const FAR: bool>(
        &mut self,
        previous: &[__m512i; G],
    ) {
        let operands = self.chunk::<OPEN, N, G, HEAD, true, FAR>(previous);
        if !OPEN {
            self.hash(&operands);
        }
    }

    #[target_feature(enable = "avx512bw,avx512vl,vaes,vpclmulqdq,bmi2")]
    #[inline]
    fn tails<const OPEN: bool, const G: usize, const HEAD: bool, const FAR: bool>(
        &mut self,
        vectors: usize,
        previous: &[__m512i; G],
    ) {
        match vectors {
            1 => self.tail::<OPEN, 1, G, HEAD, FAR>(previous),
            2 => self.tail::<OPEN, 2, G, HEAD, FAR>(previous),
            3 => self.tail::<OPEN, 3, G, HEAD, FAR>(previous),
            4 => self.tail::<OPEN, 4, G, HEAD, FAR>(previous),
            5 => self.tail::<OPEN, 5, G, HEAD, FAR>(previous),
            6 => self.tail::<OPEN, 6, G, HEAD, FAR>(previous),
            7 => self.tail::<OPEN, 7, G, HEAD, FAR>(previous),
            _ => self.tail::<OPEN, 8, G, HEAD, FAR>(previous),
        }
    }
}

#[inline]
fn take<'a>(from: &mut &'a [[u8; VECTOR]], count: usize) -> &'a [[u8; VECTOR]] {
    let (taken, rest) = from.split_at(count);
    *from = rest;
    taken
}

#[target_feature(enable = "avx512bw,avx512vl,vaes,vpclmulqdq,bmi2")]
#[inline]
fn record<const OPEN: bool>(schedule: &Schedule, nonce: &[u8; NONCE_LEN], aad: &[u8], text: &mut [u8]) -> __m128i {
    const W: usize = IN_FLIGHT;
    let len = text.len();
    assert!(len <= 2016);
    let lanes = len.div_ceil(BLOCK) + 2;
    let vectors = (lanes - 1).div_ceil(4);
    let (head, rest) = text.split_at_mut(len.min(48));
    let last_len = if rest.is_empty() {
        0
    } else {
        (rest.len() - 1) % VECTOR + 1
    };
    let (body, last) = rest.split_at_mut(rest.len() - last_len);
    let lengths = _mm_set_epi64x((aad.len() * 8) as i64, (len * 8) as i64);
    let lengths_lane = (lanes - 1) % 4;
    let (nonce_low, nonce_high) = nonce.split_at(8);
    let nonce_low = u64::from_le_bytes(nonce_low.try_into().expect("8 bytes"));
    let nonce_high = u32::from_le_bytes(nonce_high.try_into().expect("4 bytes"));
    let block = _mm512_broadcast_i32x4(_mm_set_epi64x(nonce_high as i64, nonce_low as i64));
    let whitened = _mm512_xor_si512(block, load(&schedule.round_keys[0]));
    let from = (POWERS - lanes) * BLOCK;
    let mut record = Record {
        schedule,
        round_1: &schedule.round_1,
        powers: schedule.powers[from..].as_chunks().0,
        sums: schedule.sums[from..].as_chunks().0,
        base: _mm512_aesenc_epi128(whitened, load(&schedule.round_keys[1])),
        counter: _mm512_setzero_si512(),
        aad: load_16(aad.try_into().expect("16")),
        lengths: _mm512_broadcast_i32x4(lengths),
        lengths_mask: if lengths_lane == 0 { 0 } else { 3 << (2 * lengths_lane) },
        head,
        body: body.as_chunks_mut().0,
        last,
        products: Products::zero(),
        tag_pad: _mm_setzero_si128(),
    };
    let full = (vectors - 1) / W;
    let rest = vectors - full * W;
    if full == 0 {
        record.tails::<OPEN, 0, true, false>(rest, &[]);
    } else if OPEN {
        record.chunk::<OPEN, W, 0, true, false, false>(&[]);
        for _ in 1..full {
            record.chunk::<OPEN, W, 0, false, false, false>(&[]);
        }
        record.tails::<OPEN, 0, false, false>(rest, &[]);
    } else {
        let mut previous = record.chunk::<OPEN, W, 0, true, false, false>(&[]);
        for _ in 1..full {
            previous = record.chunk::<OPEN, W, W, false, false, false>(&previous);
        }
        record.tails::<OPEN, W, false, false>(rest, &previous);
    }
    if lengths_lane == 0 {
        let h = schedule.powers[(POWERS - 1) * BLOCK..]
            .first_chunk()
            .expect("the first power");
        record.products.add_lane(lengths, load_16(h));
    }
    let hash = record.products.reduce();
    _mm_xor_si128(
        _mm_shuffle_epi8(hash, _mm512_castsi512_si128(byte_swap())),
        record.tag_pad,
    )
}
