//! A tunnel at one moment, and what went on between two of them.

use std::time::Instant;

use crate::control::api::{LatencyReport, PeerReport, StatusReport, WorkerReport};
use crate::control::client::{Client, ClientError};
use crate::stats::hlog::EncodedHistogram;
use crate::stats::latency::{Stage, StageHistogram};

/// A tunnel at one moment.
pub(super) struct Sample {
    at: Instant,
    status: StatusReport,
    stages: Vec<(String, StageHistogram)>,
}

/// One direction's speed.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Speed {
    /// Bits per second.
    pub(super) bits: f64,
    /// Packets per second.
    pub(super) packets: f64,
}

/// What went on in an interval.
pub(super) struct Rates {
    pub(super) name: String,
    pub(super) uptime_s: u64,
    pub(super) workers: Vec<WorkerRates>,
    pub(super) peers: Vec<PeerRates>,
    pub(super) stages: Vec<StageRates>,
    /// Handshakes that were refused, per second.
    pub(super) refused: f64,
}

pub(super) struct WorkerRates {
    pub(super) index: u32,
    pub(super) cpu: Option<u32>,
    pub(super) io: String,
    pub(super) out: Speed,
    pub(super) inbound: Speed,
    pub(super) drops: f64,
}

pub(super) struct PeerRates {
    /// Its public key.
    pub(super) key: String,
    pub(super) name: String,
    pub(super) out: Speed,
    pub(super) inbound: Speed,
    /// The median round trip of the interval, else of all times.
    pub(super) rtt_ns: Option<u64>,
    pub(super) handshake_unix_s: Option<u64>,
}

pub(super) struct StageRates {
    pub(super) label: String,
    pub(super) count: u64,
    pub(super) p50: u64,
    pub(super) p99: u64,
    pub(super) max: u64,
}

impl Sample {
    pub(super) fn take(client: &mut Client) -> Result<Sample, ClientError> {
        let status = client.status()?;
        let stages = decode(&client.latency(false)?);
        Ok(Sample {
            at: Instant::now(),
            status,
            stages,
        })
    }

    /// What went on since `before`.
    pub(super) fn since(&self, before: &Sample) -> Rates {
        let seconds = self.at.duration_since(before.at).as_secs_f64().max(1e-3);
        let refused = |status: &StatusReport| status.control_drops.values().sum::<u64>();
        let stages: Vec<(&str, StageHistogram)> = self
            .stages
            .iter()
            .map(|(label, histogram)| {
                let earlier = before.stages.iter().find(|(other, _)| other == label);
                let since = earlier.map_or_else(|| histogram.clone(), |(_, earlier)| histogram.since(earlier));
                (label.as_str(), since)
            })
            .collect();
        Rates {
            name: self.status.name.clone(),
            uptime_s: self.status.uptime_s,
            workers: self
                .status
                .workers
                .iter()
                .map(|worker| worker_rates(worker, &before.status, seconds))
                .collect(),
            peers: self
                .status
                .peers
                .iter()
                .map(|peer| peer_rates(peer, &before.status, &stages, seconds))
                .collect(),
            stages: stages
                .iter()
                .filter(|(_, histogram)| matches!(histogram.stage(), Stage::TunToUdp | Stage::UdpToTun))
                .map(|(label, histogram)| stage_rates(label, histogram))
                .collect(),
            refused: refused(&self.status).saturating_sub(refused(&before.status)) as f64 / seconds,
        }
    }
}

/// The histograms of stages that this program knows, each with the peer that it belongs to.
fn decode(report: &LatencyReport) -> Vec<(String, StageHistogram)> {
    let decoded = report.stages.iter().filter_map(|entry| {
        let stage = Stage::ALL.into_iter().find(|stage| stage.name() == entry.name)?;
        let encoded = EncodedHistogram {
            stage,
            below: 0,
            above: 0,
            values: entry.histogram.clone(),
        };
        let label = match &entry.peer {
            Some(peer) => rtt_label(peer),
            None => entry.name.clone(),
        };
        Some((label, encoded.decode().ok()?))
    });
    decoded.collect()
}

fn rtt_label(peer: &str) -> String {
    format!("rtt {peer}")
}

fn worker_rates(now: &WorkerReport, before: &StatusReport, seconds: f64) -> WorkerRates {
    let earlier = before.workers.iter().find(|worker| worker.index == now.index);
    let since = |field: fn(&WorkerReport) -> u64| field(now).saturating_sub(earlier.map_or(0, field)) as f64 / seconds;
    WorkerRates {
        index: now.index,
        cpu: now.cpu,
        io: now.io.clone(),
        out: Speed {
            bits: 8.0 * since(|worker| worker.tx.bytes),
            packets: since(|worker| worker.tx.packets),
        },
        inbound: Speed {
            bits: 8.0 * since(|worker| worker.rx.bytes),
            packets: since(|worker| worker.rx.packets),
        },
        drops: since(|worker| worker.drops.values().sum()),
    }
}

fn peer_rates(now: &PeerReport, before: &StatusReport, stages: &[(&str, StageHistogram)], seconds: f64) -> PeerRates {
    let earlier = before.peers.iter().find(|peer| peer.public_key == now.public_key);
    let since = |field: fn(&PeerReport) -> u64| field(now).saturating_sub(earlier.map_or(0, field)) as f64 / seconds;
    let key = now.public_key.to_string();
    let name = now.name.clone().unwrap_or_else(|| key.clone());
    let label = rtt_label(&name);
    let recent = stages
        .iter()
        .find(|(other, histogram)| *other == label && histogram.count() > 0);
    let rtt_ns = match recent {
        Some((_, histogram)) => Some(histogram.summary().p50),
        None => now.rtt_ns.filter(|rtt| rtt.count > 0).map(|rtt| rtt.p50),
    };
    PeerRates {
        out: Speed {
            bits: 8.0 * since(|peer| peer.tx_bytes),
            packets: since(|peer| peer.tx_packets),
        },
        inbound: Speed {
            bits: 8.0 * since(|peer| peer.rx_bytes),
            packets: since(|peer| peer.rx_packets),
        },
        rtt_ns,
        handshake_unix_s: now.latest_handshake_unix_s,
        name,
        key,
    }
}

fn stage_rates(label: &str, histogram: &StageHistogram) -> StageRates {
    let summary = histogram.summary();
    StageRates {
        label: label.to_owned(),
        count: summary.count,
        p50: summary.p50,
        p99: summary.p99,
        max: summary.max,
    }
}
