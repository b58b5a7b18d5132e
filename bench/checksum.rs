//! RFC 1071 sums of what they are needed for: a header, a packet, a super-packet.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use ringway::wire::checksum::Sum;
use std::hint::black_box;

fn checksum(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("checksum");
    for len in [20, 60, 1400, 65_535] {
        let bytes: Vec<u8> = (0..len).map(|at| at as u8).collect();
        group.throughput(Throughput::Bytes(len as u64));
        group.bench_function(format!("{len} B"), |bencher| {
            bencher.iter(|| Sum::of(black_box(&bytes)).checksum())
        });
        group.bench_function(format!("{len} B word by word"), |bencher| {
            bencher.iter(|| {
                let words = black_box(&bytes).as_chunks::<2>().0;
                words.iter().fold(0u16, |sum, word| {
                    let (sum, carry) = sum.overflowing_add(u16::from_be_bytes(*word));
                    sum + u16::from(carry)
                })
            })
        });
    }
    group.finish();
}

criterion_group!(benches, checksum);
criterion_main!(benches);
