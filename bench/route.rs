//! What a route lookup and a new table cost among 10 to 100,000 prefixes.
//!
//! Each lookup begins when the one before has ended, and addresses are too many to be predicted, so the figures are
//! latencies, as for packets that arrive one by one; in a batch lookups overlap and cost less.

use std::hint::black_box;
use std::net::IpAddr;

use criterion::{BenchmarkGroup, Criterion, criterion_group, criterion_main, measurement::WallTime};
use ipnet::IpNet;
use ringway::path::route::Routes;

/// A fixed sequence without pattern (splitmix64).
fn numbers(seed: u64) -> impl FnMut() -> u64 {
    let mut state = seed;
    move || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (state ^ state >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }
}

/// Addresses of one half of the space, each with a prefix around it: /16 to /32, or /32 to /128.
fn prefixes(count: usize, v6: bool) -> Vec<(IpAddr, IpNet)> {
    let mut number = numbers(count as u64);
    (0..count)
        .map(|_| {
            let (address, len): (IpAddr, u8) = if v6 {
                let bits = u128::from(number()) << 64 | u128::from(number());
                ((bits >> 1).to_be_bytes().into(), 32 + 16 * (number() % 7) as u8)
            } else {
                ((number() as u32 >> 1).to_be_bytes().into(), 16 + (number() % 17) as u8)
            };
            (address, IpNet::new(address, len).expect("the length fits the family"))
        })
        .collect()
}

const ADDRESSES: usize = 1 << 16;

fn chained_lookups(
    group: &mut BenchmarkGroup<'_, WallTime>,
    name: String,
    addresses: &[IpAddr; ADDRESSES],
    lookup: impl Fn(IpAddr) -> u32,
) {
    group.bench_function(name, |bencher| {
        let mut at = 0;
        bencher.iter(|| {
            // Values have the highest bit clear; adding it makes the next address wait for this answer.
            let found = lookup(addresses[at % ADDRESSES]);
            at += 1 + (found >> 31) as usize;
        });
    });
}

fn routes(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("route");
    for (family, v6) in [("v4", false), ("v6", true)] {
        for count in [10, 1_000, 100_000] {
            let prefixes = prefixes(count, v6);
            let mut routes = Routes::new();
            for (value, (_, prefix)) in (0u32..).zip(&prefixes) {
                routes.insert(*prefix, value);
            }
            let table = routes.table();
            let mut number = numbers(1);
            let addresses = std::array::from_fn(|_| prefixes[number() as usize % count].0);
            chained_lookups(&mut group, format!("{family}/{count}/lookup"), &addresses, |address| {
                table.lookup(address).unwrap_or(0)
            });
            group.bench_function(format!("{family}/{count}/new table"), |bencher| {
                bencher.iter(|| black_box(&routes).table());
            });
        }
    }
}

criterion_group!(benches, routes);
criterion_main!(benches);
