//! The field of Poly1305 (RFC 8439, section 2.5), on the 52-bit multiplier of AVX-512 IFMA and on 64-bit words.
//!
//! An element is three limbs of 44 bits, which leaves the multiplier's 52 bits room to carry late: products of up to
//! eight blocks are summed before one reduction.

use std::arch::x86_64::*;

/// Bytes of a block.
pub(super) const BLOCK_LEN: usize = 16;
/// The bits of r that stay.
pub(super) const CLAMP: [u64; 2] = [0x0fff_fffc_0fff_ffff, 0x0fff_fffc_0fff_fffc];

const LOW_44: u64 = (1 << 44) - 1;
const LOW_42: u64 = (1 << 42) - 1;

/// A field element in eight lanes. Limbs are at most a little above 44 bits, or 45 with a block added.
pub(super) type Element = [__m512i; 3];
/// A field element, likewise.
pub(super) type Limbs = [u64; 3];

/// What an element is multiplied by: its limbs, and the upper two times 20, since 2^132 = 4 * 2^130 = 4 * 5.
#[derive(Clone, Copy)]
pub(super) struct Multiplier {
    pub(super) r: Element,
    r_20: [__m512i; 2],
}

impl Multiplier {
    #[target_feature(enable = "avx512f")]
    #[inline]
    pub(super) fn zero() -> Multiplier {
        let zero = _mm512_setzero_si512();
        Multiplier {
            r: [zero; 3],
            r_20: [zero; 2],
        }
    }

    #[target_feature(enable = "avx512bw,avx512ifma,avx512vbmi2,bmi2")]
    #[inline]
    pub(super) fn new(r: Element) -> Multiplier {
        Multiplier {
            r,
            r_20: [times_20(r[1]), times_20(r[2])],
        }
    }
}

/// A sum of products: the low 52 bits of the limbs' products, and the bits above.
pub(super) struct Products {
    low: Element,
    high: Element,
}

impl Products {
    #[target_feature(enable = "avx512f")]
    #[inline]
    pub(super) fn zero() -> Products {
        let zero = [_mm512_setzero_si512(); 3];
        Products { low: zero, high: zero }
    }

    /// Adds the other sum, of products that were not to wait for this one's.
    #[target_feature(enable = "avx512f")]
    #[inline]
    pub(super) fn merge(&mut self, other: Products) {
        self.low = add_elements(self.low, other.low);
        self.high = add_elements(self.high, other.high);
    }

    #[target_feature(enable = "avx512f")]
    #[inline]
    pub(super) fn add(&mut self, element: Element) {
        self.low = add_elements(self.low, element);
    }

    #[target_feature(enable = "avx512bw,avx512ifma,avx512vbmi2,bmi2")]
    #[inline]
    pub(super) fn add_product(&mut self, a: Element, by: &Multiplier) {
        let Multiplier {
            r: [r0, r1, r2],
            r_20: [s1, s2],
        } = *by;
        for (a, factors) in a.into_iter().zip([[r0, r1, r2], [s2, r0, r1], [s1, s2, r0]]) {
            for (low, factor) in self.low.iter_mut().zip(factors) {
                *low = _mm512_madd52lo_epu64(*low, a, factor);
            }
            for (high, factor) in self.high.iter_mut().zip(factors) {
                *high = _mm512_madd52hi_epu64(*high, a, factor);
            }
        }
    }

    /// Carries once, in all limbs at the same time.
    ///
    /// Up to eight products of limbs below 2^46 by limbs below 2^45, or 2^50 where they are 20 times as large, leave
    /// `low` below 2^57, `high` below 2^48 and its last limb below 2^44. So no sum here exceeds 2^58 and no carry 2^14,
    /// and the result is below 2^44 + 2^19. With a block added, whose limbs are below 2^44, it is below 2^45 + 2^19 and
    /// so may be multiplied again.
    #[target_feature(enable = "avx512bw,avx512ifma,avx512vbmi2,bmi2")]
    #[inline]
    pub(super) fn reduce(self) -> Element {
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
pub(super) fn multiply(a: Element, by: &Multiplier) -> Element {
    let mut sum = Products::zero();
    sum.add_product(a, by);
    sum.reduce()
}

#[target_feature(enable = "avx512f")]
#[inline]
pub(super) fn add_elements(a: Element, b: Element) -> Element {
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
pub(super) fn splat_u64(value: u64) -> __m512i {
    _mm512_set1_epi64(value as i64)
}

/// Limbs of numbers of 128 bits, plus `TOP` * 2^128.
#[target_feature(enable = "avx512bw,avx512ifma,avx512vbmi2,bmi2")]
#[inline]
pub(super) fn split<const TOP: u64>((low, high): (__m512i, __m512i)) -> Element {
    let low_44 = splat_u64(LOW_44);
    [
        _mm512_and_si512(low, low_44),
        _mm512_and_si512(_mm512_shrdi_epi64::<44>(low, high), low_44),
        _mm512_shrdi_epi64::<24>(high, splat_u64(TOP)),
    ]
}

/// [`finish`] in eight lanes: the low and high halves of the tags.
#[target_feature(enable = "avx512bw,avx512ifma,avx512vbmi2,bmi2")]
#[inline]
pub(super) fn finish_lanes(h: Element, (pad_low, pad_high): (__m512i, __m512i)) -> (__m512i, __m512i) {
    let (low_44, low_42, one) = (splat_u64(LOW_44), splat_u64(LOW_42), splat_u64(1));
    let [mut h0, mut h1, mut h2] = h;
    for last in [false, false, true] {
        h1 = _mm512_add_epi64(h1, _mm512_srli_epi64::<44>(h0));
        h0 = _mm512_and_si512(h0, low_44);
        h2 = _mm512_add_epi64(h2, _mm512_srli_epi64::<44>(h1));
        h1 = _mm512_and_si512(h1, low_44);
        if !last {
            h0 = _mm512_madd52lo_epu64(h0, _mm512_srli_epi64::<42>(h2), splat_u64(5));
            h2 = _mm512_and_si512(h2, low_42);
        }
    }
    let g0 = _mm512_add_epi64(h0, splat_u64(5));
    let g1 = _mm512_add_epi64(h1, _mm512_srli_epi64::<44>(g0));
    let g2 = _mm512_add_epi64(h2, _mm512_srli_epi64::<44>(g1));
    let not_negative = _mm512_cmpgt_epu64_mask(g2, low_42);
    let h0 = _mm512_mask_and_epi64(h0, not_negative, g0, low_44);
    let h1 = _mm512_mask_and_epi64(h1, not_negative, g1, low_44);
    let h2 = _mm512_mask_and_epi64(h2, not_negative, g2, low_42);
    let low = _mm512_or_si512(h0, _mm512_slli_epi64::<44>(h1));
    let high = _mm512_or_si512(_mm512_srli_epi64::<20>(h1), _mm512_slli_epi64::<24>(h2));
    let sum = _mm512_add_epi64(low, pad_low);
    let carried = _mm512_cmplt_epu64_mask(sum, low);
    let high = _mm512_add_epi64(high, pad_high);
    (sum, _mm512_mask_add_epi64(high, carried, high, one))
}

/// Limbs of the number `low` + `high` * 2^64 + `top` * 2^128.
#[inline]
pub(super) fn limbs(low: u64, high: u64, top: u64) -> Limbs {
    [low & LOW_44, (low >> 44 | high << 20) & LOW_44, high >> 24 | top << 40]
}

#[inline]
pub(super) fn add_limbs(a: Limbs, b: Limbs) -> Limbs {
    [a[0] + b[0], a[1] + b[1], a[2] + b[2]]
}

#[inline]
pub(super) fn multiply_limbs(a: Limbs, b: Limbs) -> Limbs {
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

/// The tag: h modulo 2^130 - 5, plus `pad`, modulo 2^128.
#[inline]
pub(super) fn finish(h: Limbs, pad: u128) -> u128 {
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
    // h is at most 2^130 here. Subtract 2^130 - 5 if that does not make it negative.
    let g0 = h0 + 5;
    let g1 = h1 + (g0 >> 44);
    let g2 = (h2 + (g1 >> 44)).wrapping_sub(1 << 42);
    let not_negative = (g2 >> 63).wrapping_sub(1);
    let select = |h: u64, g: u64| u128::from(h & !not_negative | g & not_negative);
    let h = select(h0, g0 & LOW_44) | select(h1, g1 & LOW_44) << 44 | select(h2, g2) << 88;
    h.wrapping_add(pad)
}

#[cfg(test)]
pub(super) mod tests {
    use std::array;

    use proptest::prelude::*;

    use super::*;
    use crate::crypto::Backend;
    use crate::crypto::simd::{Avx512, load_u64, store_u64};

    /// A number below 2^131 as `.1` * 2^128 + `.0`.
    type Number = (u128, u8);

    const P: Number = (u128::MAX - 4, 3);

    fn add(a: Number, b: Number) -> Number {
        let (low, carry) = a.0.overflowing_add(b.0);
        let sum = (low, a.1 + b.1 + u8::from(carry));
        if (sum.1, sum.0) < (P.1, P.0) {
            return sum;
        }
        let (low, borrow) = sum.0.overflowing_sub(P.0);
        (low, sum.1 - P.1 - u8::from(borrow))
    }

    fn shift(a: Number, by: u32) -> Number {
        (0..by).fold(a, |a, _| add(a, a))
    }

    fn product(a: Number, b: Number) -> Number {
        let bit = |at: u32| {
            if at < 128 {
                b.0 >> at & 1 == 1
            } else {
                b.1 >> (at - 128) & 1 == 1
            }
        };
        (0..131).rev().fold((0, 0), |sum, at| {
            let doubled = add(sum, sum);
            if bit(at) { add(doubled, a) } else { doubled }
        })
    }

    fn number(limbs: Limbs) -> Number {
        let [low, middle, high] = limbs.map(|limb| (u128::from(limb), 0));
        add(add(low, shift(middle, 44)), shift(high, 88))
    }

    /// What the limbs of [`Products::reduce`] stay below.
    const REDUCED: u64 = (1 << 44) + (1 << 19);
    /// The same with a block added.
    const WITH_BLOCK: u64 = REDUCED + (1 << 44);
    /// The same for the sum of eight lanes.
    const SUM_WITH_BLOCK: u64 = 8 * REDUCED + (1 << 44);

    /// Limbs below `most`, mostly at the edges.
    fn any_limbs(most: u64) -> impl Strategy<Value = Limbs> {
        let limb = prop_oneof![
            Just(0),
            0..8u64,
            LOW_42 - 4..LOW_42 + 5,
            LOW_44 - 8..LOW_44 + 9,
            most - 4..most,
            0..most
        ]
        // Unoptimised, sixteen unboxed ones do not fit a test's stack.
        .boxed();
        [limb.clone(), limb.clone(), limb]
    }

    /// [`multiply`] and [`finish_lanes`], lane by lane.
    #[target_feature(enable = "avx512bw,avx512ifma,avx512vbmi2,bmi2")]
    pub(in crate::crypto) fn in_lanes(a: &[Limbs; 8], b: &[Limbs; 8], pads: &[u128; 8]) -> ([Limbs; 8], [u128; 8]) {
        let lane = |limbs: &[Limbs; 8], i: usize| load_u64(&limbs.map(|limbs| limbs[i]));
        let [a, b] = [a, b].map(|limbs| [lane(limbs, 0), lane(limbs, 1), lane(limbs, 2)]);
        let pad_low = load_u64(&pads.map(|pad| pad as u64));
        let pad_high = load_u64(&pads.map(|pad| (pad >> 64) as u64));
        let products = multiply(a, &Multiplier::new(b));
        let (low, high) = finish_lanes(a, (pad_low, pad_high));
        let words = |vector: __m512i| {
            let mut words = [0; 8];
            store_u64(&mut words, vector);
            words
        };
        let [p0, p1, p2, low, high] = [products[0], products[1], products[2], low, high].map(words);
        (
            array::from_fn(|i| [p0[i], p1[i], p2[i]]),
            array::from_fn(|i| u128::from(low[i]) | u128::from(high[i]) << 64),
        )
    }

    #[test]
    fn the_modulus_and_its_neighbours_are_reduced() {
        let p = [LOW_44 - 4, LOW_44, LOW_42];
        for (h, expected) in [
            ([0, 0, 0], 0),
            (p, 0),
            ([p[0] - 1, p[1], p[2]], u128::MAX - 5),
            ([p[0] + 1, p[1], p[2]], 1),
            ([LOW_44, LOW_44, LOW_42], 4),
            ([0, 0, LOW_42 + 1], 5),
            ([2 * p[0], 2 * p[1], 2 * p[2]], 0),
        ] {
            assert_eq!(finish(h, 0), expected);
            assert_eq!(finish(h, 7), expected.wrapping_add(7));
        }
    }

    #[test]
    fn lanes_compute_in_the_field() {
        let Some(cpu) = Avx512::detect() else {
            return println!("{}", Backend::Avx512.skipped());
        };
        let limbs = |most| prop::array::uniform8(any_limbs(most));
        proptest!(|(a in limbs(WITH_BLOCK), b in limbs(1 << 45), pads: [u128; 8])| {
            let (products, tags) = cpu.poly1305_in_lanes(&a, &b, &pads);
            for lane in 0..8 {
                prop_assert_eq!(number(products[lane]), product(number(a[lane]), number(b[lane])));
                prop_assert!(products[lane].into_iter().all(|limb| limb < REDUCED));
                prop_assert_eq!(tags[lane], finish(a[lane], pads[lane]));
            }
        });
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        #[test]
        fn words_compute_in_the_field(
            a in any_limbs(SUM_WITH_BLOCK),
            b in any_limbs(WITH_BLOCK),
            h in any_limbs(WITH_BLOCK),
            pad: u128,
        ) {
            prop_assert_eq!(number(multiply_limbs(a, b)), product(number(a), number(b)));
            prop_assert!(multiply_limbs(a, b).into_iter().all(|limb| limb < REDUCED));
            prop_assert_eq!(finish(h, pad), number(h).0.wrapping_add(pad));
        }
    }
}
