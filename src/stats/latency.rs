//! How long packets take inside ringway: HDR histograms that one worker records into and hands over whole.
//!
//! A reader sends the worker an empty set; the worker [swaps](StageHistograms::swap) it for its own and sends that
//! back. So the worker neither allocates nor clears, no sample is lost or counted twice, and nothing is shared. What
//! came back is [absorbed](StageHistograms::absorb) into the control side's set and is empty again for the next time.

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

/// Something that is measured. Times are in nanoseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// From the end of the wait in which a packet was read from the TUN until what its pass has sealed is handed to the engine. The
    /// system call that sends it comes after that, and time in the TUN's queue before.
    TunToUdp,
    /// From the kernel's receive timestamp of a datagram to the completion of its write to the TUN.
    UdpToTun,
    /// Datagrams per UDP send (GSO); not a time.
    SendBatch,
    /// Packets per TUN write, after coalescing; not a time.
    WriteBatch,
    /// From an echo request to a peer to its answer, through the tunnel.
    Rtt,
}

impl Stage {
    /// Every stage, in declaration order (a stage's discriminant is its position).
    pub const ALL: [Stage; 5] = [
        Stage::TunToUdp,
        Stage::UdpToTun,
        Stage::SendBatch,
        Stage::WriteBatch,
        Stage::Rtt,
    ];

    /// The stage's stable name in logs, tags and metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Stage::TunToUdp => "tun_to_udp",
            Stage::UdpToTun => "udp_to_tun",
            Stage::SendBatch => "send_batch",
            Stage::WriteBatch => "write_batch",
            Stage::Rtt => "rtt",
        }
    }

    /// What a recorded value counts.
    pub const fn unit(self) -> &'static str {
        match self {
            Stage::SendBatch | Stage::WriteBatch => "packets",
            Stage::TunToUdp | Stage::UdpToTun | Stage::Rtt => "ns",
        }
    }

    /// The smallest and the largest value that is told apart; others are clamped to them.
    const fn bounds(self) -> (u64, u64) {
        match self {
            // Several times more than the kernel's limit of segments per batch (UDP_MAX_SEGMENTS, 128).
            Stage::SendBatch | Stage::WriteBatch => (1, 1024),
            // 1 us to 10 s.
            Stage::TunToUdp | Stage::UdpToTun | Stage::Rtt => (1_000, 10_000_000_000),
        }
    }
}

/// Values within 1/1000 of each other count as one.
const SIGNIFICANT_DIGITS: u8 = 3;

/// The distribution of one [`Stage`].
#[derive(Debug, Clone, PartialEq)]
pub struct StageHistogram {
    stage: Stage,
    pub(super) values: Histogram<u64>,
    pub(super) below: u64,
    pub(super) above: u64,
}

impl StageHistogram {
    /// An empty distribution. Its 200 KiB of counts take memory only where values were recorded.
    pub fn new(stage: Stage) -> StageHistogram {
        let (_, largest) = stage.bounds();
        // A unit of 1 at the bottom, and not the smallest value, is what gives that value its three digits.
        let values = Histogram::new_with_bounds(1, largest, SIGNIFICANT_DIGITS).expect("the bounds are in order");
        StageHistogram {
            stage,
            values,
            below: 0,
            above: 0,
        }
    }

    /// What is measured.
    pub fn stage(&self) -> Stage {
        self.stage
    }

    /// Counts `value` (in [`Stage::unit`]) `count` times: a batch that took one time is one call.
    #[inline]
    pub fn record(&mut self, value: u64, count: u64) {
        let (smallest, largest) = self.stage.bounds();
        if value < smallest {
            self.below += count;
        } else if value > largest {
            self.above += count;
        }
        self.values.saturating_record_n(value.clamp(smallest, largest), count);
    }

    /// How many values were recorded.
    pub fn count(&self) -> u64 {
        self.values.len()
    }

    /// Adds the values of `other`, which is of the same stage, and empties it.
    pub fn absorb(&mut self, other: &mut StageHistogram) {
        assert_eq!(self.stage, other.stage);
        self.values
            .add(&other.values)
            .expect("histograms of one stage have the same bounds");
        self.below += other.below;
        self.above += other.above;
        other.clear();
    }

    /// The values that were recorded since `earlier`, an older state of the same distribution; all of them, when it was
    /// cleared in between.
    #[must_use]
    pub fn since(&self, earlier: &StageHistogram) -> StageHistogram {
        let mut since = self.clone();
        if since.values.subtract(&earlier.values).is_err() {
            return self.clone();
        }
        since.below = since.below.saturating_sub(earlier.below);
        since.above = since.above.saturating_sub(earlier.above);
        since
    }

    /// Forgets every value.
    pub fn clear(&mut self) {
        // Clearing writes all counts, which would make an unused histogram's memory real.
        if self.count() != 0 {
            self.values.reset();
        }
        self.below = 0;
        self.above = 0;
    }

    /// The distribution in a few numbers.
    pub fn summary(&self) -> StageSummary {
        let quantile = |quantile| self.values.value_at_quantile(quantile);
        StageSummary {
            stage: self.stage,
            unit: self.stage.unit().to_owned(),
            count: self.count(),
            mean: self.values.mean(),
            p50: quantile(0.5),
            p90: quantile(0.9),
            p99: quantile(0.99),
            p99_9: quantile(0.999),
            max: self.values.max(),
            below: self.below,
            above: self.above,
        }
    }
}

/// A distribution in a few numbers; values are in `unit`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StageSummary {
    /// What was measured.
    pub stage: Stage,
    /// [`Stage::unit`].
    pub unit: String,
    /// Recorded values.
    pub count: u64,
    /// Their mean; 0 when there are none, like the rest.
    pub mean: f64,
    /// Half of the values are at most this large.
    pub p50: u64,
    /// 90 % of the values are at most this large.
    pub p90: u64,
    /// 99 % of the values are at most this large.
    pub p99: u64,
    /// 99.9 % of the values are at most this large.
    pub p99_9: u64,
    /// The largest value.
    pub max: u64,
    /// How many of the values were below the smallest one told apart, and counted as that.
    pub below: u64,
    /// How many of the values were above the largest one told apart, and counted as that.
    pub above: u64,
}

/// One histogram per stage: what a worker owns, and what the control side merges into. Box it to make swaps cheap.
#[derive(Debug, Clone, PartialEq)]
pub struct StageHistograms([StageHistogram; Stage::ALL.len()]);

impl Default for StageHistograms {
    fn default() -> StageHistograms {
        StageHistograms(Stage::ALL.map(StageHistogram::new))
    }
}

impl StageHistograms {
    /// An empty set.
    pub fn new() -> StageHistograms {
        StageHistograms::default()
    }

    /// Counts `value` of `stage` `count` times.
    #[inline]
    pub fn record(&mut self, stage: Stage, value: u64, count: u64) {
        self.0[stage as usize].record(value, count);
    }

    /// The distribution of `stage`.
    pub fn stage(&self, stage: Stage) -> &StageHistogram {
        &self.0[stage as usize]
    }

    /// The distribution of `stage`, to add to.
    pub fn stage_mut(&mut self, stage: Stage) -> &mut StageHistogram {
        &mut self.0[stage as usize]
    }

    /// Every stage's distribution.
    pub fn iter(&self) -> impl Iterator<Item = &StageHistogram> {
        self.0.iter()
    }

    /// The worker's half of a read: continues with `empty` and gives back what was recorded so far.
    #[inline]
    #[must_use = "the samples recorded so far are in it"]
    pub fn swap(self: &mut Box<StageHistograms>, empty: Box<StageHistograms>) -> Box<StageHistograms> {
        debug_assert!(empty.is_empty());
        std::mem::replace(self, empty)
    }

    /// The reader's half: adds the values of `full` and empties it, ready to be sent to a worker again.
    pub fn absorb(&mut self, full: &mut StageHistograms) {
        for (ours, theirs) in self.0.iter_mut().zip(&mut full.0) {
            ours.absorb(theirs);
        }
    }

    /// Forgets every value.
    pub fn clear(&mut self) {
        self.0.iter_mut().for_each(StageHistogram::clear);
    }

    /// Whether nothing was recorded.
    pub fn is_empty(&self) -> bool {
        self.iter().all(|histogram| histogram.count() == 0)
    }

    /// Every stage in a few numbers.
    pub fn summary(&self) -> Vec<StageSummary> {
        self.iter().map(StageHistogram::summary).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_stage_is_its_own_position_and_serialises_as_its_name() {
        for (position, stage) in Stage::ALL.into_iter().enumerate() {
            assert_eq!(stage as usize, position);
            assert_eq!(serde_json::to_value(stage).expect("a string"), stage.name());
        }
    }

    #[test]
    fn values_out_of_bounds_are_clamped_and_counted_as_such() {
        let mut histogram = StageHistogram::new(Stage::Rtt);
        histogram.record(999, 2);
        histogram.record(1_000, 1);
        histogram.record(10_000_000_000, 1);
        histogram.record(u64::MAX, 3);
        let summary = histogram.summary();
        assert_eq!((summary.count, summary.below, summary.above), (7, 2, 3));
        assert_eq!(histogram.values.min_nz(), 1_000);
        assert!(summary.max.abs_diff(10_000_000_000) <= 10_000_000);
    }

    #[test]
    fn batch_sizes_are_exact() {
        let mut histogram = StageHistogram::new(Stage::SendBatch);
        (1..=1024).for_each(|size| histogram.record(size, 1));
        assert!((1..=1024).all(|size| histogram.values.count_at(size) == 1));
    }

    #[test]
    fn an_empty_summary_is_all_zeros() {
        let summary = StageHistogram::new(Stage::TunToUdp).summary();
        assert_eq!((summary.count, summary.p50, summary.p99_9, summary.max), (0, 0, 0, 0));
        assert_eq!(summary.mean, 0.0);
    }

    #[test]
    fn reading_while_a_worker_records_loses_no_sample() {
        const SAMPLES: u64 = 50_000;
        let (to_worker, from_reader) = mpsc::sync_channel::<Box<StageHistograms>>(1);
        let (to_reader, from_worker) = mpsc::sync_channel(1);
        let worker = std::thread::spawn(move || {
            let mut own = Box::new(StageHistograms::new());
            for sample in 0..SAMPLES {
                own.record(Stage::UdpToTun, 1_000 + sample, 1);
                if let Ok(empty) = from_reader.try_recv() {
                    to_reader.send(own.swap(empty)).expect("the reader waits for it");
                }
            }
            own
        });
        let mut merged = StageHistograms::new();
        let mut spare = Box::new(StageHistograms::new());
        let mut reads = 0;
        while to_worker.send(spare).is_ok() {
            let Ok(full) = from_worker.recv() else { break };
            spare = full;
            merged.absorb(&mut spare);
            reads += 1;
        }
        merged.absorb(&mut worker.join().expect("the worker does not panic"));
        assert_eq!(merged.stage(Stage::UdpToTun).count(), SAMPLES, "after {reads} reads");
    }

    proptest! {
        #[test]
        fn quantiles_are_within_three_digits_of_the_sorted_values(
            mut values in prop::collection::vec(1_000u64..10_000_000_000, 1..300),
            split: prop::sample::Index,
        ) {
            let (one, other) = values.split_at(split.index(values.len()));
            let [mut merged, mut second] = [one, other].map(|values| {
                let mut set = StageHistograms::new();
                values.iter().for_each(|&value| set.record(Stage::TunToUdp, value, 1));
                set
            });
            merged.absorb(&mut second);
            prop_assert!(second.is_empty());
            let summary = merged.stage(Stage::TunToUdp).summary();
            values.sort_unstable();
            let rank = |quantile: f64| values[(values.len() as f64 * quantile).ceil() as usize - 1];
            let quantiles = [(summary.p50, 0.5), (summary.p90, 0.9), (summary.p99, 0.99), (summary.max, 1.0)];
            for (measured, quantile) in quantiles {
                let exact = rank(quantile);
                prop_assert!(measured.abs_diff(exact) <= exact / 1_000, "{measured} for {exact} at {quantile}");
            }
        }
    }
}
