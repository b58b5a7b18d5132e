//! The last minute as a line of small bars.

use std::collections::{HashMap, VecDeque};

use super::sample::Rates;

/// Values that a line shows.
const VALUES_MAX: usize = 40;
const BARS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];

/// What some lines have shown so far.
#[derive(Default)]
pub(super) struct History(HashMap<String, VecDeque<f64>>);

impl History {
    /// Adds an interval: the 99th percentile of each stage, and each peer's traffic.
    pub(super) fn add(&mut self, rates: &Rates) {
        for stage in &rates.stages {
            self.push(&stage.label, stage.p99 as f64);
        }
        for peer in &rates.peers {
            self.push(&peer.key, peer.out.bits + peer.inbound.bits);
        }
    }

    /// The bars of one line.
    pub(super) fn bars(&self, key: &str) -> String {
        self.0.get(key).map_or(String::new(), bars)
    }

    fn push(&mut self, key: &str, value: f64) {
        let values = self.0.entry(key.to_owned()).or_default();
        if values.len() == VALUES_MAX {
            values.pop_front();
        }
        values.push_back(value);
    }
}

/// A bar per value, the largest one full; a space for zero.
fn bars(values: &VecDeque<f64>) -> String {
    let largest = values.iter().copied().fold(0.0, f64::max);
    let bar = |value: f64| match value {
        value if value <= 0.0 => ' ',
        value => BARS[((value / largest * 8.0).ceil() as usize).clamp(1, 8) - 1],
    };
    values.iter().copied().map(bar).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bars_grow_with_their_values_and_old_ones_leave() {
        assert_eq!(bars(&VecDeque::from([0.0, 1.0, 4.0, 8.0])), " ▁▄█");
        assert_eq!(bars(&VecDeque::from([0.0, 0.0])), "  ");
        let mut history = History::default();
        (0..100).for_each(|value| history.push("x", f64::from(value)));
        assert_eq!(history.bars("x").chars().count(), VALUES_MAX);
        assert_eq!(history.bars("y"), "");
    }
}
