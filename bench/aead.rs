//! What sealing and opening one record costs, per algorithm, backend and length.
//!
//! Records lie side by side as in a GSO batch and each is used once per round, so an opened record is never opened again.
//! A run of 45 comes from L1 or L2 as on the fast path; 8 records stay in L1 and show the cipher alone. A single one is timed by
//! itself, so that two readings of the clock are in its time.

use std::hint::black_box;
use std::time::{Duration, Instant};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use ringway::crypto::{Aead, Algorithm, Choice, NONCE_LEN, TAG_LEN, self_test};

const ALGORITHMS: [Algorithm; 2] = [Algorithm::Aes256Gcm, Algorithm::ChaCha20Poly1305];
const LENGTHS: [usize; 4] = [64, 256, 576, 1420];
const RUNS: [usize; 3] = [1, 8, 45];
const AAD: [u8; 16] = [0x11; 16];

/// The choices that run here and have a backend of their own for `algorithm`.
fn choices(algorithm: Algorithm) -> Vec<Choice> {
    let backend = |choice| self_test(choice).map(|selected| selected.backend(algorithm)).ok();
    let mut choices: Vec<Choice> = [Choice::AesGcm, Choice::AwsLc, Choice::Vaes, Choice::Avx512].into();
    choices.retain(|&choice| backend(choice).is_some());
    choices.dedup_by_key(|choice| backend(*choice));
    choices
}

fn nonce(counter: usize) -> [u8; NONCE_LEN] {
    let mut nonce = [0; NONCE_LEN];
    nonce[4..].copy_from_slice(&(counter as u64).to_be_bytes());
    nonce
}

/// Time spent in `each` over `iterations` records, in rounds of `run`, not counting `prepare` before each round.
fn time_rounds(
    iterations: u64,
    run: usize,
    record_len: usize,
    prepare: impl Fn(usize, &mut [u8]),
    each: impl Fn(usize, &mut [u8]),
) -> Duration {
    let mut batch = vec![0x5a; run * record_len];
    let mut spent = Duration::ZERO;
    let mut left = iterations as usize;
    while left > 0 {
        let round = left.min(run);
        batch
            .chunks_exact_mut(record_len)
            .enumerate()
            .for_each(|(counter, record)| prepare(counter, record));
        let start = Instant::now();
        batch
            .chunks_exact_mut(record_len)
            .take(round)
            .enumerate()
            .for_each(|(counter, record)| each(counter, record));
        spent += start.elapsed();
        left -= round;
        black_box(&mut batch);
    }
    spent
}

fn records(criterion: &mut Criterion) {
    for algorithm in ALGORITHMS {
        for choice in choices(algorithm) {
            let aead = Aead::new(algorithm, choice, &[7; 32]);
            let mut group = criterion.benchmark_group(format!("{algorithm:?}/{choice}"));
            for (len, run) in LENGTHS.into_iter().flat_map(|len| RUNS.map(|run| (len, run))) {
                group.throughput(Throughput::Bytes(len as u64));
                let seal = |counter: usize, record: &mut [u8]| aead.seal_in_place(&nonce(counter), &AAD, record);
                let open = |counter: usize, record: &mut [u8]| {
                    aead.open_in_place(&nonce(counter), &AAD, record)
                        .expect("sealed with the same nonce");
                };
                group.bench_function(format!("seal/{len} x {run}"), |bencher| {
                    bencher.iter_custom(|iterations| time_rounds(iterations, run, len + TAG_LEN, |_, _| (), seal));
                });
                group.bench_function(format!("open/{len} x {run}"), |bencher| {
                    bencher.iter_custom(|iterations| time_rounds(iterations, run, len + TAG_LEN, seal, open));
                });
            }
        }
    }
}

fn keys(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("new key");
    for algorithm in ALGORITHMS {
        for choice in choices(algorithm) {
            group.bench_function(format!("{algorithm:?}/{choice}"), |bencher| {
                bencher.iter(|| Aead::new(algorithm, choice, black_box(&[7; 32])));
            });
        }
    }
    group.bench_function("self-test", |bencher| bencher.iter(|| self_test(Choice::Auto)));
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1));
    targets = records, keys
}
criterion_main!(benches);
