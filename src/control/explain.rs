//! What would become of a packet: the kernel's answer, the workers' answers, and the rule behind them.

use std::net::IpAddr;

use ipnet::IpNet;

use super::Control;
use super::api::{
    ApiError, ErrorCode, ExplainReport, ExplainRequest, InboundReport, KernelRoute, OutboundReport, Verdict,
    WorkerVerdict,
};
use crate::link::{self, Lookup, RouteKind};
use crate::path::drops::Drop;
use crate::path::forward::explain::{Explanation, Fate};
use crate::proto::PeerId;

/// What the kernel says of the packet, before the workers are asked.
pub struct KernelAnswers {
    outbound: Result<link::Route, link::LinkError>,
    inbound: Result<link::Route, link::LinkError>,
}

/// Asks the kernel: how it routes the packet, and what it does with it when it comes from `interface`.
pub(super) async fn ask_kernel(interface: &str, request: &ExplainRequest) -> Result<KernelAnswers, ApiError> {
    if request.source.is_ipv4() != request.destination.is_ipv4() {
        return Err(ApiError {
            code: ErrorCode::BadRequest,
            message: "source and destination are of different families; a packet has two of one".into(),
        });
    }
    let lookup = Lookup {
        destination: request.destination,
        source: Some(request.source),
        from: None,
        bound_to: None,
        protocol: request.protocol,
        port: request.port,
        mark: None,
    };
    let mut outbound = link::route(&lookup).await;
    if outbound.is_err() {
        // The source is no address of this machine's, so the packet would be forwarded; from where is not known.
        let anywhere = Lookup { source: None, ..lookup };
        outbound = link::route(&anywhere).await;
    }
    let inbound = link::route(&Lookup {
        from: Some(interface),
        ..lookup
    })
    .await;
    Ok(KernelAnswers { outbound, inbound })
}

impl Control {
    /// Puts together what the kernel says and what each worker would do.
    pub(super) fn explain(
        &self,
        request: &ExplainRequest,
        kernel: &KernelAnswers,
        answers: &[Explanation],
    ) -> ExplainReport {
        ExplainReport {
            name: self.facts.name.clone(),
            outbound: self.outbound(request, &kernel.outbound, answers),
            inbound: self.inbound(request, &kernel.inbound, answers),
        }
    }

    fn outbound(
        &self,
        request: &ExplainRequest,
        kernel: &Result<link::Route, link::LinkError>,
        answers: &[Explanation],
    ) -> OutboundReport {
        let workers: Vec<WorkerVerdict> = answers
            .iter()
            .map(|answer| worker_verdict(answer.out.fate, answer.out.waiting))
            .collect();
        let first = answers.first().map(|answer| answer.out);
        let peer = first.and_then(|out| out.peer);
        let reason = answers.iter().find_map(|answer| match answer.out.fate {
            Fate::Dropped(reason) => Some(reason.name().to_owned()),
            _ => None,
        });
        let mtu = first.map_or(usize::MAX, |out| out.mtu).min(self.facts.mtu as usize);
        OutboundReport {
            kernel: kernel_outbound(kernel, &self.facts.name),
            peer: peer.map(|id| self.peers.name(id)),
            allowed_ip: peer.and_then(|id| self.allowed_ip(id, request.destination)),
            endpoint: first.and_then(|out| out.endpoint).map(|endpoint| endpoint.remote),
            mtu: mtu as u32,
            verdict: workers
                .iter()
                .map(|worker| worker.verdict)
                .max()
                .unwrap_or(Verdict::Drop),
            workers,
            reason,
        }
    }

    fn inbound(
        &self,
        request: &ExplainRequest,
        kernel: &Result<link::Route, link::LinkError>,
        answers: &[Explanation],
    ) -> InboundReport {
        let peer = answers.first().and_then(|answer| answer.inbound.peer);
        let lanes: Vec<u32> = answers.iter().map(|answer| answer.inbound.lanes as u32).collect();
        let verdict = match peer {
            None => Verdict::Drop,
            Some(_) if lanes.iter().all(|lanes| *lanes == 0) => Verdict::Wait,
            Some(_) => Verdict::Pass,
        };
        InboundReport {
            peer: peer.map(|id| self.peers.name(id)),
            allowed_ip: peer.and_then(|id| self.allowed_ip(id, request.source)),
            lanes,
            verdict,
            reason: peer.is_none().then(|| Drop::BadSource.name().to_owned()),
            kernel: peer.map(|_| kernel_inbound(kernel)),
        }
    }

    /// The peer's allowed IP by which `address` is its own.
    fn allowed_ip(&self, peer: PeerId, address: IpAddr) -> Option<IpNet> {
        let containing = self
            .allowed
            .of(peer)
            .into_iter()
            .filter(|prefix| prefix.contains(&address));
        containing.max_by_key(IpNet::prefix_len)
    }
}

fn worker_verdict(fate: Fate, waiting: usize) -> WorkerVerdict {
    WorkerVerdict {
        verdict: match fate {
            Fate::Sealed(_) => Verdict::Pass,
            Fate::Waits => Verdict::Wait,
            Fate::Dropped(_) => Verdict::Drop,
        },
        suite: match fate {
            Fate::Sealed(suite) => Some(suite.name().to_owned()),
            Fate::Waits | Fate::Dropped(_) => None,
        },
        waiting: waiting as u64,
    }
}

fn kernel_outbound(answer: &Result<link::Route, link::LinkError>, tunnel: &str) -> KernelRoute {
    match answer {
        Ok(route) => KernelRoute {
            agrees: route.kind == RouteKind::Unicast && route.interface.as_deref() == Some(tunnel),
            interface: route.interface.clone(),
            text: route.to_string(),
        },
        Err(error) => KernelRoute {
            agrees: false,
            interface: None,
            text: error.to_string(),
        },
    }
}

fn kernel_inbound(answer: &Result<link::Route, link::LinkError>) -> KernelRoute {
    match answer {
        Ok(route) => KernelRoute {
            agrees: matches!(route.kind, RouteKind::Local | RouteKind::Unicast | RouteKind::Broadcast),
            interface: route.interface.clone(),
            text: route.to_string(),
        },
        Err(error) => KernelRoute {
            agrees: false,
            interface: None,
            text: format!("{error}; see sysctls ip_forward (or ipv6 forwarding) and rp_filter"),
        },
    }
}
