//! What was counted since a moment that somebody chose.
//!
//! Counters only grow, so that several readers (metrics above all) can each take differences. A reset is therefore a
//! photograph of all counters that later reports are relative to.

use std::collections::{BTreeMap, HashMap};
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use super::api::{PeerStats, StatsReport, WorkerStats};
use super::inquiry::{NoAnswer, Said};
use super::report::unix;
use super::{Control, WorkerInfo};
use crate::config::PublicKey;
use crate::sys::engine::EngineCounters;

/// The counters when they were reset last.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Baseline {
    since: SystemTime,
    control_drops: BTreeMap<String, u64>,
    workers: Vec<WorkerStats>,
    peers: HashMap<PublicKey, PeerStats>,
}

impl Baseline {
    /// Of a daemon that has just started.
    pub(super) fn zero() -> Baseline {
        Baseline {
            since: SystemTime::now(),
            control_drops: BTreeMap::new(),
            workers: Vec::new(),
            peers: HashMap::new(),
        }
    }

    /// As another process goes on with it: its engines begin to count anew.
    pub(super) fn without_engines(&self) -> Baseline {
        let mut baseline = self.clone();
        baseline.workers.iter_mut().for_each(|worker| worker.engine.clear());
        baseline
    }
}

impl Control {
    /// What was counted since the last reset; `reset` begins a new interval.
    pub(super) fn stats(&mut self, engines: Said<EngineCounters>, reset: bool) -> Result<StatsReport, NoAnswer> {
        let until = SystemTime::now();
        let totals = self.totals(engines)?;
        let base = &self.baseline;
        let report = StatsReport {
            name: self.facts.name.clone(),
            since_unix_ms: unix(base.since).as_millis() as u64,
            until_unix_ms: unix(until).as_millis() as u64,
            control_drops: counts_since(&totals.control_drops, &base.control_drops),
            workers: totals
                .workers
                .iter()
                .enumerate()
                .map(|(at, worker)| match base.workers.get(at) {
                    Some(base) => worker_since(worker, base),
                    None => worker.clone(),
                })
                .collect(),
            peers: totals
                .peers
                .iter()
                .map(|peer| match base.peers.get(&peer.public_key) {
                    Some(base) => peer_since(peer, base),
                    None => peer.clone(),
                })
                .collect(),
        };
        if reset {
            self.baseline = Baseline {
                since: until,
                control_drops: totals.control_drops,
                workers: totals.workers,
                peers: totals.peers.into_iter().map(|peer| (peer.public_key, peer)).collect(),
            };
        }
        Ok(report)
    }

    /// What was counted since the daemon started.
    pub(super) fn totals(&mut self, engines: Said<EngineCounters>) -> Result<Totals, NoAnswer> {
        self.count_socket_drops();
        let engines = engines.by_all()?;
        let peers = self.peers.iter().map(|(_, peer)| {
            let traffic = peer.traffic();
            PeerStats {
                name: peer.name.clone(),
                public_key: peer.public_key,
                tx_packets: traffic.tx_packets,
                tx_bytes: traffic.tx_bytes,
                rx_packets: traffic.rx_packets,
                rx_bytes: traffic.rx_bytes,
                handshakes: peer.handshakes,
                handshakes_given_up: peer.handshakes_given_up,
            }
        });
        Ok(Totals {
            control_drops: self.refused_handshakes(),
            workers: self.workers.iter().zip(&engines).map(worker_totals).collect(),
            peers: peers.collect(),
        })
    }
}

/// All counters.
pub(super) struct Totals {
    pub(super) control_drops: BTreeMap<String, u64>,
    pub(super) workers: Vec<WorkerStats>,
    pub(super) peers: Vec<PeerStats>,
}

fn worker_totals((worker, engine): (&WorkerInfo, &EngineCounters)) -> WorkerStats {
    WorkerStats {
        counters: worker.counters.snapshot(),
        engine: engine
            .each()
            .filter(|(_, count)| *count != 0)
            .map(|(name, count)| (name.to_owned(), count))
            .collect(),
    }
}

fn worker_since(now: &WorkerStats, base: &WorkerStats) -> WorkerStats {
    WorkerStats {
        counters: now.counters.since(&base.counters),
        engine: counts_since(&now.engine, &base.engine),
    }
}

fn peer_since(now: &PeerStats, base: &PeerStats) -> PeerStats {
    // A peer that was removed and added again began anew.
    let since = |field: fn(&PeerStats) -> u64| field(now).checked_sub(field(base)).unwrap_or(field(now));
    PeerStats {
        name: now.name.clone(),
        public_key: now.public_key,
        tx_packets: since(|peer| peer.tx_packets),
        tx_bytes: since(|peer| peer.tx_bytes),
        rx_packets: since(|peer| peer.rx_packets),
        rx_bytes: since(|peer| peer.rx_bytes),
        handshakes: since(|peer| peer.handshakes),
        handshakes_given_up: since(|peer| peer.handshakes_given_up),
    }
}

/// Counts that have grown.
fn counts_since(now: &BTreeMap<String, u64>, base: &BTreeMap<String, u64>) -> BTreeMap<String, u64> {
    let since = |(name, count): (&String, &u64)| {
        let grown = count.saturating_sub(base.get(name).copied().unwrap_or(0));
        (grown != 0).then(|| (name.clone(), grown))
    };
    now.iter().filter_map(since).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stats::counters::CounterSnapshot;

    fn counts(pairs: &[(&str, u64)]) -> BTreeMap<String, u64> {
        pairs.iter().map(|(name, count)| ((*name).to_owned(), *count)).collect()
    }

    #[test]
    fn only_what_has_grown_is_reported() {
        let now = counts(&[("forged", 5), ("no_route", 3), ("replayed", 1)]);
        let base = counts(&[("forged", 2), ("no_route", 3)]);
        assert_eq!(counts_since(&now, &base), counts(&[("forged", 3), ("replayed", 1)]));
    }

    #[test]
    fn a_workers_interval_is_the_difference_of_all_its_counters() {
        let worker = |packets_out, forged, restarts| WorkerStats {
            counters: CounterSnapshot {
                packets_out,
                drops: counts(&[("forged", forged)]),
                ..CounterSnapshot::default()
            },
            engine: counts(&[("rearms", restarts)]),
        };
        assert_eq!(worker_since(&worker(9, 4, 2), &worker(5, 1, 1)), worker(4, 3, 1));
    }

    #[test]
    fn a_peer_that_was_removed_and_added_again_counts_from_zero() {
        let peer = |bytes| PeerStats {
            name: None,
            public_key: PublicKey([7; 32]),
            tx_packets: 1,
            tx_bytes: bytes,
            rx_packets: 1,
            rx_bytes: 0,
            handshakes: 1,
            handshakes_given_up: 0,
        };
        assert_eq!(peer_since(&peer(100), &peer(40)).tx_bytes, 60);
        assert_eq!(peer_since(&peer(30), &peer(40)).tx_bytes, 30);
    }
}
