//! Merging packets: bulk flows with either kind of checksum, alone and interleaved, and packets that never merge.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use ringway::path::coalesce::{Coalescer, Lanes, Offloads, Origin};
use std::hint::black_box;

#[path = "../src/path/sample.rs"]
mod sample;
use sample::{Sample, Written};

/// Payload bytes per segment that fill 1420-byte packets.
const STEP: usize = 1368;

/// Packets of `flows` flows in turns, 46 of each: what one GRO receive brings.
fn turns(flows: u32, of_flow: impl Fn(u32) -> Sample, written: Written) -> Vec<Vec<u8>> {
    let flows: Vec<Vec<Sample>> = (0..flows).map(|flow| of_flow(flow).cut(STEP)).collect();
    (0..46)
        .flat_map(|turn| flows.iter().map(move |flow| flow[turn].bytes(written)))
        .collect()
}

fn coalesce(criterion: &mut Criterion) {
    let tcp = |v6: bool| {
        move |ports| Sample {
            ports,
            ..Sample::tcp(v6, 1, vec![0x5a; 46 * STEP])
        }
    };
    let udp = |ports| Sample {
        ports,
        ..Sample::udp(false, vec![0x5a; 46 * STEP])
    };
    let ack = |ports| Sample {
        ports,
        ..Sample::tcp(false, 1, vec![])
    };
    let cases = [
        ("TCP/IPv4, partial", turns(1, tcp(false), Written::Partial), true),
        ("TCP/IPv6, partial", turns(1, tcp(true), Written::Partial), true),
        ("TCP/IPv4, complete", turns(1, tcp(false), Written::Complete), false),
        ("UDP/IPv4, partial", turns(1, udp, Written::Partial), true),
        (
            "TCP/IPv4, partial, 4 flows",
            turns(4, tcp(false), Written::Partial),
            true,
        ),
        (
            "TCP/IPv4, partial, 16 flows",
            turns(16, tcp(false), Written::Partial),
            true,
        ),
        (
            "TCP/IPv4, partial, 32 flows (too many)",
            turns(32, tcp(false), Written::Partial),
            true,
        ),
        (
            "TCP/IPv4, ACKs",
            (0..46).map(|ports| ack(ports).bytes(Written::Complete)).collect(),
            false,
        ),
    ];
    let mut group = criterion.benchmark_group("coalesce");
    for (name, packets, partial) in &cases {
        let mut coalescer = Coalescer::new(Offloads { tcp: true, udp: true });
        let mut out = Vec::new();
        group.throughput(Throughput::Elements(packets.len() as u64));
        group.bench_function(*name, |bencher| {
            bencher.iter(|| {
                for (index, packet) in black_box(packets).iter().enumerate() {
                    let origin = Origin {
                        partial: *partial,
                        lanes: Lanes { first: 0, count: 2 },
                    };
                    coalescer
                        .push(index as u16, 0, packet, origin, 0, &mut out)
                        .expect("the packet is good");
                }
                coalescer.flush(&mut out);
                out.drain(..).for_each(|group| coalescer.recycle(group));
            })
        });
    }
    group.finish();
}

criterion_group!(benches, coalesce);
criterion_main!(benches);
