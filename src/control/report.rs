//! Answers to the control socket's requests.

use std::cell::RefCell;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ipnet::IpNet;
use tokio::sync::oneshot;

use super::api::{
    DirectionReport, ErrorCode, ExplainRequest, LatencyReport, PeerReport, Request, Response, StageReport,
    StatusReport, Summary, WorkerReport,
};
use super::explain::KernelAnswers;
use super::inquiry::{Answers, NoAnswer, Said};
use super::peers::Peer;
use super::server::refusal;
use super::{Control, WorkerInfo};
use crate::config::PublicKey;
use crate::proto::{PeerInfo, Suite};
use crate::stats::hlog::EncodedHistogram;
use crate::stats::latency::{Stage, StageHistogram, StageHistograms};
use crate::sys::engine::EngineCounters;
use crate::worker::mailbox::Command;

impl Control {
    /// Answers where only the workers have to be asked.
    pub(super) fn answer(&mut self, request: &Request, reply: oneshot::Sender<Response>) {
        let respond = |reply: oneshot::Sender<Response>, answer: Result<Response, NoAnswer>| {
            // A client that hung up wants none.
            let _ = reply.send(answer.unwrap_or_else(no_answer));
        };
        match *request {
            Request::Status {} => {
                let (histograms, engines) = (self.ask_for_histograms(), self.ask_for_engine_counters());
                let said = async { (histograms.gather().await, engines.gather().await) };
                self.afterwards(said, move |control, said| {
                    respond(
                        reply,
                        control.status(said).map(|report| Response::Status(Box::new(report))),
                    );
                });
            }
            Request::Latency { reset } => {
                let histograms = self.ask_for_histograms();
                self.afterwards(histograms.gather(), move |control, said| {
                    let report = control.latency(said, reset);
                    respond(reply, report.map(|report| Response::Latency(Box::new(report))));
                });
            }
            Request::Stats { reset } => {
                let engines = self.ask_for_engine_counters();
                self.afterwards(engines.gather(), move |control, said| {
                    let report = control.stats(said, reset);
                    respond(reply, report.map(|report| Response::Stats(Box::new(report))));
                });
            }
            // Orders of their own: the server asks the kernel first, or goes on with the connection.
            Request::Explain(_) | Request::Capture(_) => respond(reply, Err(NoAnswer)),
            // The server sends those to whoever changes this tunnel.
            Request::Reload {}
            | Request::Apply { .. }
            | Request::Confirm {}
            | Request::Save {}
            | Request::PeerAdd { .. }
            | Request::PeerSet { .. }
            | Request::PeerRemove { .. }
            | Request::Stop {}
            | Request::Upgrade { .. }
            | Request::SetMtu { .. } => {
                let refused = refusal(ErrorCode::Internal, "this request changes something".into());
                respond(reply, Ok(refused));
            }
        }
    }

    /// Says what would become of a packet.
    pub(super) fn explain_to(
        &mut self,
        request: ExplainRequest,
        kernel: KernelAnswers,
        reply: oneshot::Sender<Response>,
    ) {
        let (source, destination) = (request.source, request.destination);
        let answers = self.ask_workers(|reply| Command::Explain(source, destination, reply));
        self.afterwards(answers.gather(), move |control, said| {
            let report = said.by_all().map(|said| control.explain(&request, &kernel, &said));
            let response = report.map(|report| Response::Explain(Box::new(report)));
            let _ = reply.send(response.unwrap_or_else(no_answer));
        });
    }

    fn status(
        &mut self,
        (histograms, engines): (Said<Box<StageHistograms>>, Said<EngineCounters>),
    ) -> Result<StatusReport, NoAnswer> {
        self.take_in(histograms)?;
        let engines = engines.by_all()?;
        self.count_socket_drops();
        Ok(StatusReport {
            name: self.facts.name.clone(),
            version: env!("CARGO_PKG_VERSION").into(),
            pid: std::process::id(),
            public_key: PublicKey(self.device.public_key()),
            listen_port: self.facts.listen_port,
            fwmark: Some(self.udp_options.mark).filter(|mark| *mark != 0),
            mtu: self.facts.mtu,
            addresses: self.addresses.clone(),
            crypto: self.facts.crypto.clone(),
            offloads: self.facts.offloads,
            started_unix_s: unix(self.started).as_secs(),
            uptime_s: self.started.elapsed().unwrap_or_default().as_secs(),
            upgrades: self.upgrades,
            control_drops: self.refused_handshakes(),
            workers: (0..)
                .zip(&self.workers)
                .zip(engines)
                .map(|((index, worker), engine)| worker_report(index, worker, &engine))
                .collect(),
            peers: self
                .peers
                .iter()
                .map(|(id, peer)| peer_report(peer, self.device.peer(id), self.allowed.of(id)))
                .collect(),
        })
    }

    fn latency(&mut self, histograms: Said<Box<StageHistograms>>, reset: bool) -> Result<LatencyReport, NoAnswer> {
        self.take_in(histograms)?;
        let until = SystemTime::now();
        let merged = self.merged_histograms();
        let stages = merged.iter().filter(|histogram| histogram.stage() != Stage::Rtt);
        let rtts = self
            .peers
            .iter()
            .filter_map(|(_, peer)| Some((peer.label(), peer.rtt.as_ref()?)));
        let report = LatencyReport {
            name: self.facts.name.clone(),
            since_unix_ms: unix(self.latency_since).as_millis() as u64,
            until_unix_ms: unix(until).as_millis() as u64,
            stages: stages
                .map(|histogram| stage_report(histogram, None))
                .chain(rtts.map(|(label, rtt)| stage_report(rtt, Some(label))))
                .collect(),
        };
        if reset {
            self.workers.iter_mut().for_each(|worker| worker.histograms.clear());
            self.peers.clear_rtt();
            self.latency_since = until;
        }
        Ok(report)
    }

    /// Has the workers send what they have recorded since the last time.
    pub(super) fn ask_for_histograms(&mut self) -> Answers<Box<StageHistograms>> {
        let spares = RefCell::new(
            self.workers
                .iter_mut()
                .map(|worker| std::mem::take(&mut worker.spare))
                .collect::<Vec<_>>(),
        );
        self.ask_workers(|reply| Command::TakeHistograms(spares.borrow_mut().pop().unwrap_or_default(), reply))
    }

    /// Adds what was sent. What comes from a worker that is late is in its next answer.
    pub(super) fn take_in(&mut self, said: Said<Box<StageHistograms>>) -> Result<(), NoAnswer> {
        let (complete, sets) = said.by_some();
        for (number, mut full) in sets {
            let worker = &mut self.workers[usize::from(number)];
            if let Some(log) = &mut self.latency_log {
                log.record(&full);
            }
            if let Some(metrics) = &mut self.metrics {
                metrics.add(&full);
            }
            worker.histograms.absorb(&mut full);
            worker.spare = full;
        }
        complete
    }

    /// The histograms of all workers as one set.
    fn merged_histograms(&self) -> StageHistograms {
        let mut merged = StageHistograms::new();
        for worker in &self.workers {
            merged.absorb(&mut worker.histograms.clone());
        }
        merged
    }

    pub(super) fn ask_for_engine_counters(&self) -> Answers<EngineCounters> {
        self.ask_workers(Command::EngineCounters)
    }
}

fn no_answer(_: NoAnswer) -> Response {
    refusal(
        ErrorCode::Unavailable,
        "a worker did not answer in time; try again".into(),
    )
}

fn worker_report(index: u32, worker: &WorkerInfo, engine: &EngineCounters) -> WorkerReport {
    let counters = worker.counters.snapshot();
    let batch = |stage| summary(worker.histograms.stage(stage));
    WorkerReport {
        index,
        cpu: worker.cpu,
        io: worker.io.into(),
        io_reason: worker.io_reason.clone(),
        tx: DirectionReport {
            packets: counters.packets_out,
            bytes: counters.bytes_out,
            batches: counters.udp_sends,
            batch: batch(Stage::SendBatch),
        },
        rx: DirectionReport {
            packets: counters.packets_in,
            bytes: counters.bytes_in,
            batches: counters.tun_writes,
            batch: batch(Stage::WriteBatch),
        },
        drops: counters.drops,
        lane_port_datagrams: counters.lane_port_datagrams,
        mis_steered: counters.mis_steered,
        engine: engine
            .each()
            .filter(|(_, count)| *count != 0)
            .map(|(name, count)| (name.to_owned(), count))
            .collect(),
    }
}

fn peer_report(peer: &Peer, info: Option<PeerInfo>, allowed_ips: Vec<IpNet>) -> PeerReport {
    let traffic = peer.traffic();
    let handshake = peer.handshake.as_ref();
    PeerReport {
        name: peer.name.clone(),
        public_key: peer.public_key,
        preshared_key: info.is_some_and(|info| info.has_preshared_key),
        endpoint: info.and_then(|info| info.endpoint).map(|endpoint| endpoint.remote),
        allowed_ips,
        latest_handshake_unix_s: handshake.map(|handshake| unix(handshake.at).as_secs()),
        suite: handshake.map(|handshake| handshake.suite.name().to_owned()),
        remote_lanes: handshake
            .filter(|handshake| handshake.suite == Suite::Native)
            .map(|handshake| handshake.remote_lanes),
        tx_packets: traffic.tx_packets,
        tx_bytes: traffic.tx_bytes,
        rx_packets: traffic.rx_packets,
        rx_bytes: traffic.rx_bytes,
        rtt_ns: peer.rtt.as_deref().map(summary),
        persistent_keepalive_s: info
            .and_then(|info| info.persistent_keepalive)
            .map(|interval| interval.as_secs() as u16),
        mtu: peer.path_mtu.known().map(|mtu| mtu as u32),
    }
}

fn summary(histogram: &StageHistogram) -> Summary {
    let summary = histogram.summary();
    Summary {
        count: summary.count,
        mean: summary.mean,
        p50: summary.p50,
        p99: summary.p99,
        max: summary.max,
    }
}

fn stage_report(histogram: &StageHistogram, peer: Option<String>) -> StageReport {
    let summary = histogram.summary();
    StageReport {
        name: summary.stage.name().into(),
        peer,
        unit: summary.unit,
        count: summary.count,
        mean: summary.mean,
        p50: summary.p50,
        p90: summary.p90,
        p99: summary.p99,
        p99_9: summary.p99_9,
        max: summary.max,
        histogram: EncodedHistogram::encode(histogram).values,
    }
}

pub(super) fn unix(time: SystemTime) -> Duration {
    time.duration_since(UNIX_EPOCH).unwrap_or_default()
}
