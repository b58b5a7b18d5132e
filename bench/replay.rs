//! What the replay window costs per record: check and mark, for counters as they come.

use std::hint::black_box;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use ringway::proto::replay::{ReplayWindow, WINDOW};

/// Counters per round: many windows' worth, so that the bitmap wraps.
const RECORDS: u64 = 100_000;

/// Checks and marks every counter of `order`; how many were refused.
fn pass(window: &mut ReplayWindow, order: &[u64]) -> usize {
    let refused = |&&counter: &&u64| {
        let result = window.check(counter);
        if result.is_ok() {
            window.mark(counter);
        }
        result.is_err()
    };
    order.iter().filter(refused).count()
}

fn replay(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("replay");
    group.throughput(Throughput::Elements(RECORDS));
    let in_order: Vec<u64> = (0..RECORDS).collect();
    // Four senders of one key take runs of 45 in turn; the last to arrive is three runs late.
    let four_cores = in_order
        .chunks(180)
        .flat_map(|turn| turn.rchunks(45).flatten().copied())
        .collect();
    // Each counter of a window in an order that jumps about in it.
    let shuffled = in_order
        .chunks(WINDOW as usize / 2)
        .flat_map(|half| (0..half.len()).map(|at| half[at * 1_009 % half.len()]))
        .collect();
    let again = [&in_order[..WINDOW as usize / 2]; 2].concat();
    // The worst case: every record clears the whole window.
    let leaps = (0..RECORDS).map(|record| record * 2 * WINDOW).collect();
    let orders: [(&str, Vec<u64>); 5] = [
        ("in order", in_order.clone()),
        ("runs of 45 of four cores", four_cores),
        ("shuffled within half a window", shuffled),
        ("everything twice", again),
        ("leaps of two windows", leaps),
    ];
    for (name, order) in orders {
        group.throughput(Throughput::Elements(order.len() as u64));
        group.bench_function(name, |bencher| {
            bencher.iter_batched_ref(
                ReplayWindow::new,
                |window| pass(window, black_box(&order)),
                BatchSize::SmallInput,
            );
        });
    }
    group.finish();
}

criterion_group!(benches, replay);
criterion_main!(benches);
