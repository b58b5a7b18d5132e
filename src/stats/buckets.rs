//! Histograms with few, fixed buckets, as metrics have them: they only grow, whoever resets the precise ones.

use super::latency::{Stage, StageHistogram, StageHistograms};

/// Upper bounds of times, in nanoseconds: 5 us to 2.5 s in steps of 2 and 2.5.
const TIMES_NS: [u64; 18] = [
    5_000,
    10_000,
    25_000,
    50_000,
    100_000,
    250_000,
    500_000,
    1_000_000,
    2_500_000,
    5_000_000,
    10_000_000,
    25_000_000,
    50_000_000,
    100_000_000,
    250_000_000,
    500_000_000,
    1_000_000_000,
    2_500_000_000,
];
/// Upper bounds of batch sizes, in packets.
const PACKETS: [u64; 8] = [1, 2, 4, 8, 16, 32, 64, 128];

/// The distribution of one [`Stage`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Buckets {
    bounds: &'static [u64],
    /// Values up to each bound and above the one before, then those above all.
    counts: Vec<u64>,
    sum: u64,
}

impl Buckets {
    /// An empty distribution.
    pub fn new(stage: Stage) -> Buckets {
        let bounds: &[u64] = match stage.unit() {
            "ns" => &TIMES_NS,
            _ => &PACKETS,
        };
        Buckets {
            bounds,
            counts: vec![0; bounds.len() + 1],
            sum: 0,
        }
    }

    /// Counts `value` `count` times.
    pub fn record(&mut self, value: u64, count: u64) {
        let at = self.bounds.partition_point(|bound| *bound < value);
        self.counts[at] += count;
        self.sum = self.sum.wrapping_add(value.wrapping_mul(count));
    }

    /// Adds the values of a precise histogram of the same stage.
    pub fn add(&mut self, histogram: &StageHistogram) {
        for value in histogram.values.iter_recorded() {
            self.record(value.value_iterated_to(), value.count_at_value());
        }
    }

    /// Each bound, and how many values are at most that large.
    pub fn cumulative(&self) -> impl Iterator<Item = (u64, u64)> {
        let mut below = 0;
        self.bounds.iter().zip(&self.counts).map(move |(bound, count)| {
            below += count;
            (*bound, below)
        })
    }

    /// How many values there are.
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// Their sum.
    pub fn sum(&self) -> u64 {
        self.sum
    }
}

/// One distribution per stage.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StageBuckets([Buckets; Stage::ALL.len()]);

impl Default for StageBuckets {
    fn default() -> StageBuckets {
        StageBuckets(Stage::ALL.map(Buckets::new))
    }
}

impl StageBuckets {
    /// Adds the values of a set of precise histograms.
    pub fn add(&mut self, histograms: &StageHistograms) {
        for (buckets, histogram) in self.0.iter_mut().zip(histograms.iter()) {
            buckets.add(histogram);
        }
    }

    /// The distribution of `stage`.
    pub fn stage(&self, stage: Stage) -> &Buckets {
        &self.0[stage as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_belongs_to_the_first_bucket_that_holds_it() {
        let mut buckets = Buckets::new(Stage::Rtt);
        for (value, count) in [(1_000, 2), (5_000, 1), (5_001, 4), (3_000_000_000, 1)] {
            buckets.record(value, count);
        }
        let cumulative: Vec<(u64, u64)> = buckets.cumulative().collect();
        assert_eq!(cumulative[..2], [(5_000, 3), (10_000, 7)]);
        assert_eq!(cumulative.last(), Some(&(2_500_000_000, 7)));
        assert_eq!(
            (buckets.count(), buckets.sum()),
            (8, 2_000 + 5_000 + 20_004 + 3_000_000_000)
        );
    }

    #[test]
    fn precise_histograms_add_up_in_their_buckets() {
        let mut precise = StageHistograms::new();
        precise.record(Stage::SendBatch, 45, 3);
        precise.record(Stage::TunToUdp, 80_000, 7);
        let mut buckets = StageBuckets::default();
        buckets.add(&precise);
        buckets.add(&precise);
        let batches = buckets.stage(Stage::SendBatch);
        assert_eq!((batches.count(), batches.sum()), (6, 270));
        assert_eq!(batches.cumulative().find(|(bound, _)| *bound == 64), Some((64, 6)));
        let times = buckets.stage(Stage::TunToUdp);
        assert_eq!(
            times.cumulative().find(|(bound, _)| *bound == 100_000),
            Some((100_000, 14))
        );
        assert_eq!(
            times.cumulative().find(|(bound, _)| *bound == 50_000),
            Some((50_000, 0))
        );
    }
}
