//! What metrics tell: every counter, the drops by reason, handshakes, and times in buckets.

use std::time::Duration;

use tokio::sync::oneshot;

use super::Control;
use super::inquiry::{NoAnswer, Said};
use super::report::unix;
use super::stats::Totals;
use crate::path::drops::Drop;
use crate::stats::buckets::StageBuckets;
use crate::stats::counters::CounterSnapshot;
use crate::stats::exposition::{Exposition, Format};
use crate::stats::latency::{Stage, StageHistograms};
use crate::sys::engine::EngineCounters;

/// Makes seconds of nanoseconds.
const NS: f64 = 1e9;

/// Counters of a worker: name, help, and the labels that tell the two directions apart.
type WorkerCounter = (&'static str, &'static str, [fn(&CounterSnapshot) -> u64; 2]);

/// Of each the outbound and the inbound one.
const WORKER_COUNTERS: [WorkerCounter; 5] = [
    (
        "ringway_worker_packets",
        "Inner packets that went through the tunnel.",
        [|count| count.packets_out, |count| count.packets_in],
    ),
    (
        "ringway_worker_bytes",
        "Bytes of those inner packets.",
        [|count| count.bytes_out, |count| count.bytes_in],
    ),
    (
        "ringway_worker_udp_calls",
        "Sends (out) and receives (in) of the UDP socket, each of one or more datagrams.",
        [|count| count.udp_sends, |count| count.udp_receives],
    ),
    (
        "ringway_worker_udp_datagrams",
        "Datagrams in those calls.",
        [|count| count.udp_send_datagrams, |count| count.udp_receive_datagrams],
    ),
    (
        "ringway_worker_tun_calls",
        "Reads (out) and writes (in) of the TUN, each of one or more packets.",
        [|count| count.tun_reads, |count| count.tun_writes],
    ),
];

impl Control {
    /// Counts times for metrics from here on.
    pub fn serve_metrics(&mut self) {
        self.metrics.get_or_insert_default();
    }

    /// Sends all metrics as text, or `None` when a worker does not answer.
    pub(super) fn send_metrics(&mut self, format: Format, reply: oneshot::Sender<Option<String>>) {
        let (histograms, engines) = (self.ask_for_histograms(), self.ask_for_engine_counters());
        let said = async { (histograms.gather().await, engines.gather().await) };
        self.afterwards(said, move |control, said| {
            drop(reply.send(control.metrics(said, format).ok()))
        });
    }

    fn metrics(
        &mut self,
        (histograms, engines): (Said<Box<StageHistograms>>, Said<EngineCounters>),
        format: Format,
    ) -> Result<String, NoAnswer> {
        self.take_in(histograms)?;
        let totals = self.totals(engines)?;
        let mut out = Exposition::new(format);
        self.write_tunnel(&mut out);
        self.write_workers(&mut out, &totals);
        write_drops(&mut out, &self.facts.name, &totals);
        if let Some(stages) = &self.metrics {
            write_stages(&mut out, &self.facts.name, stages);
        }
        self.write_peers(&mut out, &totals);
        Ok(out.finish())
    }

    fn write_tunnel(&self, out: &mut Exposition) {
        let name = self.facts.name.as_str();
        let interface = [("interface", name)];
        let build = [("interface", name), ("version", env!("CARGO_PKG_VERSION"))];
        out.gauge("ringway_build_info", "The daemon's version; always 1.")
            .sample(&build, 1);
        out.gauge("ringway_start_time_seconds", "When the daemon started, since 1970.")
            .sample(&interface, seconds(unix(self.started)));
        out.gauge("ringway_mtu_bytes", "The interface's MTU.")
            .sample(&interface, self.facts.mtu);
        out.gauge("ringway_peers", "Peers that are configured.")
            .sample(&interface, self.peers.iter().count());
    }

    fn write_workers(&self, out: &mut Exposition, totals: &Totals) {
        let interface = self.facts.name.as_str();
        let numbers: Vec<String> = (0..totals.workers.len()).map(|number| number.to_string()).collect();
        let workers = || numbers.iter().zip(&totals.workers);
        let mut info = out.gauge("ringway_worker_info", "How the worker talks to the kernel; always 1.");
        for (number, worker) in numbers.iter().zip(&self.workers) {
            info.sample(&[("interface", interface), ("worker", number), ("io", worker.io)], 1);
        }
        for (name, help, fields) in WORKER_COUNTERS {
            let mut family = out.counter(name, help);
            for (number, worker) in workers() {
                for (direction, field) in ["out", "in"].into_iter().zip(fields) {
                    let labels = [("interface", interface), ("worker", number), ("direction", direction)];
                    family.sample(&labels, field(&worker.counters));
                }
            }
        }
        let mut family = out.counter("ringway_worker_loops", "Passes of the worker's loop.");
        for (number, worker) in workers() {
            family.sample(&[("interface", interface), ("worker", number)], worker.counters.loops);
        }
        let help = "Datagrams that reached a worker other than their session's.";
        let mut family = out.counter("ringway_worker_mis_steered", help);
        for (number, worker) in workers() {
            family.sample(
                &[("interface", interface), ("worker", number)],
                worker.counters.mis_steered,
            );
        }
        let help = "Datagrams that the kernel dropped at the worker's socket, because its receive buffer was full.";
        let mut family = out.counter("ringway_worker_socket_drops", help);
        for (number, worker) in workers() {
            let dropped = worker.counters.drops.get(Drop::SocketFull.name()).copied().unwrap_or(0);
            family.sample(&[("interface", interface), ("worker", number)], dropped);
        }
        let mut family = out.counter(
            "ringway_worker_engine_events",
            "What went on inside the worker's engine.",
        );
        for (number, worker) in workers() {
            for (event, count) in &worker.engine {
                family.sample(&[("interface", interface), ("worker", number), ("event", event)], count);
            }
        }
    }

    fn write_peers(&self, out: &mut Exposition, totals: &Totals) {
        let interface = self.facts.name.as_str();
        let peers: Vec<(String, String)> = totals
            .peers
            .iter()
            .map(|peer| {
                let key = peer.public_key.to_string();
                (peer.name.clone().unwrap_or_else(|| key.clone()), key)
            })
            .collect();
        let mut info = out.gauge("ringway_peer_info", "The peer's public key; always 1.");
        for (name, key) in &peers {
            info.sample(&[("interface", interface), ("peer", name), ("public_key", key)], 1);
        }
        let mut family = out.counter("ringway_peer_bytes", "UDP payload bytes from and to the peer.");
        for ((name, _), peer) in peers.iter().zip(&totals.peers) {
            for (direction, bytes) in [("out", peer.tx_bytes), ("in", peer.rx_bytes)] {
                let labels = [("interface", interface), ("peer", name), ("direction", direction)];
                family.sample(&labels, bytes);
            }
        }
        let mut family = out.counter("ringway_peer_packets", "Data messages from and to the peer.");
        for ((name, _), peer) in peers.iter().zip(&totals.peers) {
            for (direction, packets) in [("out", peer.tx_packets), ("in", peer.rx_packets)] {
                let labels = [("interface", interface), ("peer", name), ("direction", direction)];
                family.sample(&labels, packets);
            }
        }
        let mut family = out.counter(
            "ringway_peer_handshakes",
            "Handshakes that were completed, or given up.",
        );
        for ((name, _), peer) in peers.iter().zip(&totals.peers) {
            for (result, count) in [("done", peer.handshakes), ("given_up", peer.handshakes_given_up)] {
                family.sample(&[("interface", interface), ("peer", name), ("result", result)], count);
            }
        }
        self.write_peers_state(out, &peers);
    }

    fn write_peers_state(&self, out: &mut Exposition, names: &[(String, String)]) {
        let interface = self.facts.name.as_str();
        let peers = || names.iter().zip(self.peers.iter().map(|(_, peer)| peer));
        let help = "When the last handshake was completed, since 1970; without one there is no sample.";
        let mut family = out.gauge("ringway_peer_last_handshake_seconds", help);
        for ((name, _), peer) in peers() {
            if let Some(handshake) = &peer.handshake {
                family.sample(&[("interface", interface), ("peer", name)], seconds(unix(handshake.at)));
            }
        }
        let help = "Round trips through the tunnel, measured once a second while data flows (native suite).";
        let mut family = out.histogram("ringway_peer_rtt_seconds", help);
        for ((name, _), peer) in peers() {
            if let Some(buckets) = &peer.rtt_buckets {
                family.buckets(&[("interface", interface), ("peer", name)], buckets, NS);
            }
        }
    }
}

/// Every reason from the start, so that the first drop is seen as one.
fn write_drops(out: &mut Exposition, interface: &str, totals: &Totals) {
    let help = "Packets and handshakes that were dropped, by reason; \"ringway drops\" explains each.";
    let mut family = out.counter("ringway_drops", help);
    for reason in Drop::ALL {
        let of_workers = totals
            .workers
            .iter()
            .map(|worker| worker.counters.drops.get(reason.name()));
        let count: u64 = of_workers
            .chain([totals.control_drops.get(reason.name())])
            .flatten()
            .sum();
        family.sample(&[("interface", interface), ("reason", reason.name())], count);
    }
}

fn write_stages(out: &mut Exposition, interface: &str, stages: &StageBuckets) {
    let labels = |stage: Stage| [("interface", interface), ("stage", stage.name())];
    let help = "How long packets take inside: from the TUN's read until the UDP send is due, from the UDP receive to the TUN's write.";
    let mut family = out.histogram("ringway_stage_seconds", help);
    for stage in [Stage::TunToUdp, Stage::UdpToTun] {
        family.buckets(&labels(stage), stages.stage(stage), NS);
    }
    let mut family = out.histogram("ringway_batch_packets", "Packets per UDP send and per TUN write.");
    for stage in [Stage::SendBatch, Stage::WriteBatch] {
        family.buckets(&labels(stage), stages.stage(stage), 1.0);
    }
}

fn seconds(since_1970: Duration) -> f64 {
    since_1970.as_millis() as f64 / 1e3
}
