//! Cutting TUN frames: what one 64 KiB super-packet costs with either kind of checksum, and what a single packet costs.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use ringway::path::segment::{Checksums, Segments};
use std::hint::black_box;

#[path = "../src/path/sample.rs"]
mod sample;
use sample::Sample;

/// Payload bytes per segment that fill 1420-byte packets.
const STEP: u16 = 1368;

fn segment(criterion: &mut Criterion) {
    let payload = |packets: usize| vec![0x5a; packets * usize::from(STEP)];
    let frames = [
        ("TCP/IPv4 x47", Sample::tcp(false, 1, payload(47)).frame(STEP)),
        ("TCP/IPv6 x47", Sample::tcp(true, 1, payload(47)).frame(STEP)),
        ("UDP/IPv4 x47", Sample::udp(false, payload(47)).frame(STEP)),
        ("TCP/IPv4 x1", Sample::tcp(false, 1, payload(1)).frame(STEP)),
        (
            "UDP/IPv4 x64 of 64 B",
            Sample::udp(false, vec![0x5a; 64 * 64]).frame(64),
        ),
    ];
    let mut group = criterion.benchmark_group("segment");
    let mut out = vec![0; 128 * 1024];
    for (name, frame) in &frames {
        for checksums in [Checksums::Partial, Checksums::Complete] {
            group.throughput(Throughput::Bytes(frame.len() as u64));
            group.bench_function(format!("{name}, {checksums:?}"), |bencher| {
                bencher.iter(|| {
                    let mut segments = Segments::parse(black_box(frame), checksums).expect("the frame is good");
                    let mut at = 0;
                    while let Some(len) = segments.next_len() {
                        segments.write_next(&mut out[at..at + len]);
                        at += len + 32;
                    }
                    black_box(&out);
                })
            });
        }
    }
    group.finish();
}

criterion_group!(benches, segment);
criterion_main!(benches);
