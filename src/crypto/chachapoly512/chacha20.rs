//! ChaCha20 (RFC 8439, section 2.3) on 512-bit vectors: blocks as columns of 16, and as rows of 4.
//!
//! *Columns*: word `w` of 16 blocks in vector `w`. No instruction of the rounds but the cipher's own, and the blocks
//! need not be related: each has a counter and a nonce of its own. *Rows*: a row of the 4x4 state of 4 blocks in one
//! vector; six shuffles per double round, but a quarter of the registers. On Zen 5 an operation takes two cycles and four
//! can begin in each, so sets of blocks are worked on in pairs: [`columns_pair`] fills the 32 registers exactly and
//! [`columns_and_rows`] makes the 24 blocks that a record of a usual MTU needs.
//!
//! Authenticating in the gaps of these rounds was slower than afterwards: with every register taken, sums would live in
//! memory. So was the one-time key's block on the integer units beside them.

use std::arch::x86_64::*;

/// "expand 32-byte k", little-endian.
const CONSTANTS: [u32; 4] = [0x6170_7865, 0x3320_646e, 0x7962_2d32, 0x6b20_6574];

/// A key as words of the state.
type Key = [u32; 8];

/// The four rows of the state matrix; in columns a row is four vectors, in rows one.
#[derive(Clone, Copy)]
struct State<const N: usize> {
    a: [__m512i; N],
    b: [__m512i; N],
    c: [__m512i; N],
    d: [__m512i; N],
}

/// Ten double rounds of every state named, step by step in turn so that they hide each other's latency. `$turn` brings
/// the diagonals into the columns and back.
macro_rules! rounds {
    ($($state:ident: $turn:ident),+) => {
        for _ in 0..10 {
            half_round!(16, 12, $($state),+);
            half_round!(8, 7, $($state),+);
            $($state = $turn::<true>($state);)+
            half_round!(16, 12, $($state),+);
            half_round!(8, 7, $($state),+);
            $($state = $turn::<false>($state);)+
        }
    };
}

/// Half the steps of the quarter rounds: a += b; d = (d ^ a) <<< $d; c += d; b = (b ^ c) <<< $b.
macro_rules! half_round {
    ($d:literal, $b:literal, $($state:ident),+) => {
        $(add(&mut $state.a, &$state.b);)+
        $(xor_rotate::<$d, _>(&mut $state.d, &$state.a);)+
        $(add(&mut $state.c, &$state.d);)+
        $(xor_rotate::<$b, _>(&mut $state.b, &$state.c);)+
    };
}

/// Key stream: 2 x 8 blocks.
pub(super) type Stream = [[__m512i; 8]; 2];

/// The 16 blocks of `counters` and `nonces` (word by word), lane by lane.
#[target_feature(enable = "avx512f")]
#[inline]
pub(super) fn columns(key: &Key, counters: __m512i, nonces: &[__m512i; 3], stream: &mut Stream) {
    let mut state = initial_columns(key, counters, nonces);
    rounds!(state: turn_columns);
    blocks_of_columns(state, initial_columns(key, counters, nonces), stream);
}

/// [`columns`] for two sets of 16 blocks with the same nonces, which take a quarter longer than one.
#[target_feature(enable = "avx512f")]
#[inline]
pub(super) fn columns_pair(key: &Key, counters: [__m512i; 2], nonces: &[__m512i; 3], stream: &mut [Stream; 2]) {
    let mut one = initial_columns(key, counters[0], nonces);
    let mut two = initial_columns(key, counters[1], nonces);
    rounds!(one: turn_columns, two: turn_columns);
    let [stream_one, stream_two] = stream;
    blocks_of_columns(one, initial_columns(key, counters[0], nonces), stream_one);
    blocks_of_columns(two, initial_columns(key, counters[1], nonces), stream_two);
}

/// Eight blocks of one nonce.
#[target_feature(enable = "avx512f")]
#[inline]
pub(super) fn rows(key: &Key, counters: [u32; 8], nonce: [u32; 3], stream: &mut [__m512i; 8]) {
    let initial = initial_rows(key, counters, nonce);
    let mut state = initial;
    rounds!(state: turn_rows);
    blocks_of_rows(state, initial, stream);
}

/// 16 blocks from counter `from` on in `columns`, and those of `counters` in `rows`, all of one nonce. `meanwhile` gets
/// the rows before the columns are put in order.
#[target_feature(enable = "avx512f")]
#[inline]
pub(super) fn columns_and_rows<T>(
    key: &Key,
    from: u32,
    counters: [u32; 8],
    nonce: [u32; 3],
    columns: &mut Stream,
    rows: &mut [__m512i; 8],
    meanwhile: impl FnOnce(&[__m512i; 8]) -> T,
) -> T {
    let (column_counters, column_nonces) = (count_from(from), nonces(nonce));
    let mut column_state = initial_columns(key, column_counters, &column_nonces);
    let mut row_state = initial_rows(key, counters, nonce);
    rounds!(column_state: turn_columns, row_state: turn_rows);
    blocks_of_rows(row_state, initial_rows(key, counters, nonce), rows);
    let result = meanwhile(rows);
    blocks_of_columns(
        column_state,
        initial_columns(key, column_counters, &column_nonces),
        columns,
    );
    result
}

/// One nonce for every lane.
#[target_feature(enable = "avx512f")]
#[inline]
pub(super) fn nonces(nonce: [u32; 3]) -> [__m512i; 3] {
    [splat(nonce[0]), splat(nonce[1]), splat(nonce[2])]
}

/// The counters of 16 consecutive blocks.
#[target_feature(enable = "avx512f")]
#[inline]
pub(super) fn count_from(first: u32) -> __m512i {
    let lanes = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    _mm512_add_epi32(splat(first), lanes)
}

/// `word` in every lane.
#[target_feature(enable = "avx512f")]
#[inline]
pub(super) fn splat(word: u32) -> __m512i {
    _mm512_set1_epi32(word as i32)
}

/// Transposes a 4x4 matrix of 16-byte elements.
#[target_feature(enable = "avx512f")]
#[inline]
pub(super) fn transpose_quarters(rows: [__m512i; 4]) -> [__m512i; 4] {
    let low_01 = _mm512_shuffle_i64x2::<0x44>(rows[0], rows[1]);
    let low_23 = _mm512_shuffle_i64x2::<0x44>(rows[2], rows[3]);
    let high_01 = _mm512_shuffle_i64x2::<0xee>(rows[0], rows[1]);
    let high_23 = _mm512_shuffle_i64x2::<0xee>(rows[2], rows[3]);
    [
        _mm512_shuffle_i64x2::<0x88>(low_01, low_23),
        _mm512_shuffle_i64x2::<0xdd>(low_01, low_23),
        _mm512_shuffle_i64x2::<0x88>(high_01, high_23),
        _mm512_shuffle_i64x2::<0xdd>(high_01, high_23),
    ]
}

#[target_feature(enable = "avx512f")]
#[inline]
fn initial_columns(key: &Key, counters: __m512i, nonces: &[__m512i; 3]) -> State<4> {
    State {
        a: [
            splat(CONSTANTS[0]),
            splat(CONSTANTS[1]),
            splat(CONSTANTS[2]),
            splat(CONSTANTS[3]),
        ],
        b: [splat(key[0]), splat(key[1]), splat(key[2]), splat(key[3])],
        c: [splat(key[4]), splat(key[5]), splat(key[6]), splat(key[7])],
        d: [counters, nonces[0], nonces[1], nonces[2]],
    }
}

/// Rows of 2 x 4 blocks.
#[target_feature(enable = "avx512f")]
#[inline]
fn initial_rows(key: &Key, counters: [u32; 8], nonce: [u32; 3]) -> State<2> {
    let row = |words: [u32; 4]| {
        let [w0, w1, w2, w3] = words.map(|word| word as i32);
        _mm512_broadcast_i32x4(_mm_set_epi32(w3, w2, w1, w0))
    };
    let [n0, n1, n2] = nonce;
    let counted = |c: [u32; 4]| {
        let [c0, c1, c2, c3] = c.map(|counter| counter as i32);
        let counters = _mm512_set_epi32(0, 0, 0, c3, 0, 0, 0, c2, 0, 0, 0, c1, 0, 0, 0, c0);
        _mm512_or_si512(row([0, n0, n1, n2]), counters)
    };
    let [c0, c1, c2, c3, c4, c5, c6, c7] = counters;
    State {
        a: [row(CONSTANTS); 2],
        b: [row([key[0], key[1], key[2], key[3]]); 2],
        c: [row([key[4], key[5], key[6], key[7]]); 2],
        d: [counted([c0, c1, c2, c3]), counted([c4, c5, c6, c7])],
    }
}

#[target_feature(enable = "avx512f")]
#[inline]
fn add<const N: usize>(to: &mut [__m512i; N], from: &[__m512i; N]) {
    for i in 0..N {
        to[i] = _mm512_add_epi32(to[i], from[i]);
    }
}

#[target_feature(enable = "avx512f")]
#[inline]
fn xor_rotate<const BITS: i32, const N: usize>(to: &mut [__m512i; N], from: &[__m512i; N]) {
    for i in 0..N {
        to[i] = _mm512_xor_si512(to[i], from[i]);
    }
    for vector in to {
        *vector = _mm512_rol_epi32::<BITS>(*vector);
    }
}

/// Brings the diagonals into the columns, or back: only the names of registers change.
#[target_feature(enable = "avx512f")]
#[inline]
fn turn_columns<const TO_DIAGONALS: bool>(state: State<4>) -> State<4> {
    let State { a, b, c, d } = state;
    let c = [c[2], c[3], c[0], c[1]];
    let (left, right) = (
        |r: [__m512i; 4]| [r[1], r[2], r[3], r[0]],
        |r: [__m512i; 4]| [r[3], r[0], r[1], r[2]],
    );
    if TO_DIAGONALS {
        State {
            a,
            b: left(b),
            c,
            d: right(d),
        }
    } else {
        State {
            a,
            b: right(b),
            c,
            d: left(d),
        }
    }
}

/// Brings the diagonals into the columns, or back.
#[target_feature(enable = "avx512f")]
#[inline]
fn turn_rows<const TO_DIAGONALS: bool>(mut state: State<2>) -> State<2> {
    const LEFT: i32 = 0b00_11_10_01;
    const RIGHT: i32 = 0b10_01_00_11;
    const HALF: i32 = 0b01_00_11_10;
    for i in 0..2 {
        state.c[i] = _mm512_shuffle_epi32::<HALF>(state.c[i]);
        if TO_DIAGONALS {
            state.b[i] = _mm512_shuffle_epi32::<LEFT>(state.b[i]);
            state.d[i] = _mm512_shuffle_epi32::<RIGHT>(state.d[i]);
        } else {
            state.b[i] = _mm512_shuffle_epi32::<RIGHT>(state.b[i]);
            state.d[i] = _mm512_shuffle_epi32::<LEFT>(state.d[i]);
        }
    }
    state
}

#[target_feature(enable = "avx512f")]
#[inline]
fn blocks_of_columns(mut state: State<4>, initial: State<4>, stream: &mut Stream) {
    add(&mut state.a, &initial.a);
    add(&mut state.b, &initial.b);
    add(&mut state.c, &initial.c);
    add(&mut state.d, &initial.d);
    // After this, quarter q of rows[i] holds a row of block 4q + i.
    let (a, b, c, d) = (
        transpose_words(state.a),
        transpose_words(state.b),
        transpose_words(state.c),
        transpose_words(state.d),
    );
    let [b0, b4, b8, b12] = transpose_quarters([a[0], b[0], c[0], d[0]]);
    let [b1, b5, b9, b13] = transpose_quarters([a[1], b[1], c[1], d[1]]);
    let [b2, b6, b10, b14] = transpose_quarters([a[2], b[2], c[2], d[2]]);
    let [b3, b7, b11, b15] = transpose_quarters([a[3], b[3], c[3], d[3]]);
    *stream = [[b0, b1, b2, b3, b4, b5, b6, b7], [b8, b9, b10, b11, b12, b13, b14, b15]];
}

#[target_feature(enable = "avx512f")]
#[inline]
fn blocks_of_rows(mut state: State<2>, initial: State<2>, stream: &mut [__m512i; 8]) {
    add(&mut state.a, &initial.a);
    add(&mut state.b, &initial.b);
    add(&mut state.c, &initial.c);
    add(&mut state.d, &initial.d);
    let [b0, b1, b2, b3] = transpose_quarters([state.a[0], state.b[0], state.c[0], state.d[0]]);
    let [b4, b5, b6, b7] = transpose_quarters([state.a[1], state.b[1], state.c[1], state.d[1]]);
    *stream = [b0, b1, b2, b3, b4, b5, b6, b7];
}

/// Transposes a 4x4 matrix of words within each 16-byte quarter.
#[target_feature(enable = "avx512f")]
#[inline]
fn transpose_words(rows: [__m512i; 4]) -> [__m512i; 4] {
    let low_01 = _mm512_unpacklo_epi32(rows[0], rows[1]);
    let low_23 = _mm512_unpacklo_epi32(rows[2], rows[3]);
    let high_01 = _mm512_unpackhi_epi32(rows[0], rows[1]);
    let high_23 = _mm512_unpackhi_epi32(rows[2], rows[3]);
    [
        _mm512_unpacklo_epi64(low_01, low_23),
        _mm512_unpackhi_epi64(low_01, low_23),
        _mm512_unpacklo_epi64(high_01, high_23),
        _mm512_unpackhi_epi64(high_01, high_23),
    ]
}
