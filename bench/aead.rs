//! What sealing and opening one record costs, per algorithm, backend and length.
//!
//! Records lie side by side as in a GSO batch and each is used once per round, so the data comes from L1 or L2 as on
//! the fast path, and an opened record is never opened again.

use std::hint::black_box;
use std::time::{Duration, Instant};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use ringway::crypto::{Aead, Algorithm, Choice, NONCE_LEN, TAG_LEN};

const RECORDS: usize = 40;
const AAD: [u8; 16] = [0x11; 16];

fn nonce(counter: usize) -> [u8; NONCE_LEN] {
    let mut nonce = [0; NONCE_LEN];
    nonce[4..].copy_from_slice(&(counter as u64).to_be_bytes());
    nonce
}

/// Time spent in `each` over `iterations` records, in rounds of [`RECORDS`], not counting `prepare` before each round.
fn time_rounds(
    iterations: u64,
    record_len: usize,
    prepare: impl Fn(usize, &mut [u8]),
    each: impl Fn(usize, &mut [u8]),
) -> Duration {
    let mut batch = vec![0x5a; RECORDS * record_len];
    let mut spent = Duration::ZERO;
    let mut left = iterations as usize;
    while left > 0 {
        let round = left.min(RECORDS);
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
    for algorithm in [Algorithm::Aes256Gcm, Algorithm::ChaCha20Poly1305] {
        for choice in [Choice::AwsLc, Choice::AesGcm] {
            let aead = Aead::new(algorithm, choice, &[7; 32]);
            let mut group = criterion.benchmark_group(format!("{algorithm:?}/{choice}"));
            for len in [64, 576, 1420] {
                group.throughput(Throughput::Bytes(len as u64));
                let seal = |counter: usize, record: &mut [u8]| aead.seal_in_place(&nonce(counter), &AAD, record);
                let open = |counter: usize, record: &mut [u8]| {
                    aead.open_in_place(&nonce(counter), &AAD, record)
                        .expect("sealed with the same nonce");
                };
                group.bench_function(format!("seal/{len}"), |bencher| {
                    bencher.iter_custom(|iterations| time_rounds(iterations, len + TAG_LEN, |_, _| (), seal));
                });
                group.bench_function(format!("open/{len}"), |bencher| {
                    bencher.iter_custom(|iterations| time_rounds(iterations, len + TAG_LEN, seal, open));
                });
            }
        }
    }
}

fn keys(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("new key");
    for algorithm in [Algorithm::Aes256Gcm, Algorithm::ChaCha20Poly1305] {
        for choice in [Choice::AwsLc, Choice::AesGcm] {
            group.bench_function(format!("{algorithm:?}/{choice}"), |bencher| {
                bencher.iter(|| Aead::new(algorithm, choice, black_box(&[7; 32])));
            });
        }
    }
    group.bench_function("self-test", |bencher| {
        bencher.iter(|| ringway::crypto::self_test(Choice::Auto))
    });
}

criterion_group!(benches, records, keys);
criterion_main!(benches);
