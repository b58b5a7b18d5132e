//! What measuring costs: per batch on the worker, and per read on both sides.

use std::hint::black_box;
use std::time::{Duration, SystemTime};

use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use ringway::path::drops::Drop;
use ringway::stats::counters::{PeerCells, WorkerCounters};
use ringway::stats::hlog::HistogramLog;
use ringway::stats::latency::{Stage, StageHistograms};

const BATCH: u64 = 44;

/// Latencies of 5 to 70 us, so that the counts they hit do not all lie in one cache line.
fn latencies_ns() -> impl Iterator<Item = u64> {
    (0u64..).map(|sample| 5_000 + sample.wrapping_mul(0x9e37_79b9_7f4a_7c15) % 65_536)
}

fn used() -> Box<StageHistograms> {
    let mut set = Box::new(StageHistograms::new());
    for latency_ns in latencies_ns().take(100_000) {
        set.record(Stage::TunToUdp, latency_ns, 1);
        set.record(Stage::UdpToTun, latency_ns, 1);
        set.record(Stage::SendBatch, latency_ns % 44 + 1, 1);
    }
    set
}

fn on_the_worker(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("worker");
    let mut set = used();
    let mut latencies = latencies_ns();
    group.bench_function("one latency", |bencher| {
        bencher.iter(|| set.record(Stage::TunToUdp, latencies.next().unwrap_or(0), black_box(1)));
    });
    group.bench_function("a batch of 44: latency and size, clock read once before", |bencher| {
        bencher.iter(|| {
            set.record(Stage::TunToUdp, latencies.next().unwrap_or(0), black_box(BATCH));
            set.record(Stage::SendBatch, black_box(BATCH), 1);
        });
    });
    group.bench_function("44 packets one by one, for comparison", |bencher| {
        bencher.iter(|| (0..BATCH).for_each(|_| set.record(Stage::TunToUdp, latencies.next().unwrap_or(0), 1)));
    });

    let worker = WorkerCounters::default();
    let peer = PeerCells::new(2);
    group.bench_function("a batch's counters of worker and peer", |bencher| {
        bencher.iter(|| {
            let worker = black_box(&worker);
            worker.packets_out.add(BATCH);
            worker.bytes_out.add(BATCH * 1420);
            worker.udp_sends.add(1);
            worker.udp_send_datagrams.add(BATCH);
            let peer = black_box(&peer).worker(1);
            peer.tx_packets.add(BATCH);
            peer.tx_bytes.add(BATCH * 1452);
            peer.last_data_sent_ns.set(1);
            peer.last_any_sent_ns.set(1);
        });
    });
    group.bench_function("a drop", |bencher| {
        bencher.iter(|| black_box(&worker).dropped(black_box(Drop::Forged), 1))
    });

    let (mut own, mut empty) = (Box::new(StageHistograms::new()), Some(Box::new(StageHistograms::new())));
    group.bench_function("swap of a set", |bencher| {
        bencher.iter(|| empty = empty.take().map(|set| black_box(&mut own).swap(black_box(set))));
    });
    group.finish();
}

fn on_the_control_thread(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("control");
    let mut merged = used();
    group.bench_function("absorb and empty a worker's set", |bencher| {
        bencher.iter_batched_ref(used, |full| merged.absorb(full), BatchSize::LargeInput);
    });
    group.bench_function("summary", |bencher| bencher.iter(|| merged.summary()));
    group.bench_function("log interval", |bencher| {
        let mut log = HistogramLog::begin(std::io::sink(), SystemTime::UNIX_EPOCH).expect("a sink takes everything");
        bencher.iter(|| log.interval(SystemTime::UNIX_EPOCH, Duration::from_secs(1), &merged));
    });
    group.finish();
}

criterion_group!(benches, on_the_worker, on_the_control_thread);
criterion_main!(benches);
