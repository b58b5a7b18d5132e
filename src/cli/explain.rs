//! `explain`: would a packet pass, by which rule, to which peer and lane, and if not, why.

use std::fmt::Display;
use std::io::{self, Write as _};
use std::net::IpAddr;

use clap::Args;

use super::exit::{Exit, Failure};
use super::style::Style;
use super::target;
use crate::control::api::{ExplainReport, ExplainRequest, InboundReport, OutboundReport, Verdict};
use crate::path::drops::Drop;

#[derive(Debug, Args)]
pub(super) struct Options {
    /// The packet's source address
    #[arg(value_name = "SRC")]
    source: IpAddr,
    /// Its destination address
    #[arg(value_name = "DST")]
    destination: IpAddr,
    /// Its protocol, for routing rules that look at it: tcp, udp, icmp, icmp6 or a number
    #[arg(value_name = "PROTO", value_parser = protocol)]
    protocol: Option<u8>,
    /// Its destination port, likewise
    #[arg(value_name = "PORT")]
    port: Option<u16>,
    #[arg(short, long, value_name = "NAME", help = target::HELP)]
    interface: Option<String>,
    /// Write one JSON object
    #[arg(long)]
    json: bool,
}

pub(super) fn explain(options: &Options) -> Result<(), Failure> {
    if options.source.is_ipv4() != options.destination.is_ipv4() {
        let message = "SRC and DST are of different families; write two IPv4 or two IPv6 addresses";
        return Err(Failure::new(Exit::Usage, message));
    }
    let request = ExplainRequest {
        source: options.source,
        destination: options.destination,
        protocol: options.protocol,
        port: options.port,
    };
    let report = target::connect_one(options.interface.as_deref())?.explain(&request)?;
    let text = match options.json {
        true => serde_json::to_string(&report).map_err(io::Error::from)? + "\n",
        false => text(&request, &report, Style::of_stdout()),
    };
    io::stdout().write_all(text.as_bytes())?;
    Ok(())
}

fn protocol(text: &str) -> Result<u8, String> {
    match text {
        "tcp" => Ok(6),
        "udp" => Ok(17),
        "icmp" => Ok(1),
        "icmp6" => Ok(58),
        _ => text
            .parse()
            .map_err(|_| "a protocol is tcp, udp, icmp, icmp6, or a number from 0 to 255".into()),
    }
}

fn text(request: &ExplainRequest, report: &ExplainReport, style: Style) -> String {
    let mut out = Text {
        out: format!("{}: {}\n", style.interface("interface"), report.name),
        style,
    };
    out.outbound(request, &report.outbound);
    out.inbound(request, &report.inbound);
    out.out
}

struct Text {
    out: String,
    style: Style,
}

impl Text {
    fn outbound(&mut self, request: &ExplainRequest, report: &OutboundReport) {
        self.head("out", "when this machine sends or forwards it");
        self.line("kernel", &report.kernel.text);
        if !report.kernel.agrees {
            self.alarm("verdict", "never reaches the tunnel: the kernel routes it elsewhere");
            return;
        }
        self.allowed_ip(
            report.peer.as_deref(),
            report.allowed_ip,
            "destination",
            request.destination,
        );
        if let Some(endpoint) = report.endpoint {
            self.line("endpoint", endpoint);
        }
        let lanes: Vec<String> = (0..report.workers.len())
            .filter(|at| report.workers[*at].verdict == Verdict::Pass)
            .map(|at| at.to_string())
            .collect();
        if let Some(suite) = report.workers.iter().find_map(|worker| worker.suite.as_deref()) {
            let lanes = match &lanes[..] {
                [lane] => format!("lane {lane}"),
                lanes => format!("lane {}, as the kernel spreads flows", lanes.join(" or ")),
            };
            self.line("session", format_args!("{suite}, {lanes}"));
        }
        if report.peer.is_some() {
            self.line("largest whole packet", format_args!("{} bytes", report.mtu));
        }
        let waiting: u64 = report.workers.iter().map(|worker| worker.waiting).sum();
        match report.verdict {
            Verdict::Pass => self.line("verdict", "passes"),
            Verdict::Wait => self.alarm(
                "verdict",
                &format!("waits for a handshake with the peer ({waiting} packets wait already)"),
            ),
            Verdict::Drop => self.dropped(report.reason.as_deref()),
        }
    }

    fn inbound(&mut self, request: &ExplainRequest, report: &InboundReport) {
        self.head("in", "when it comes through the tunnel");
        self.allowed_ip(report.peer.as_deref(), report.allowed_ip, "source", request.source);
        if report.peer.is_some() {
            let opened = report.lanes.iter().enumerate().filter(|(_, lanes)| **lanes > 0);
            let opened: Vec<String> = opened
                .map(|(worker, lanes)| format!("{lanes} by worker {worker}"))
                .collect();
            let keys = if opened.is_empty() {
                "none".into()
            } else {
                opened.join(", ")
            };
            self.line("lanes that are opened", keys);
        }
        match (report.verdict, &report.peer) {
            (Verdict::Pass, Some(peer)) => self.line(
                "verdict",
                format_args!("passes from {peer}; from any other peer it is dropped as bad_source"),
            ),
            (Verdict::Wait, Some(peer)) => self.alarm(
                "verdict",
                &format!("{peer} may send it, once a handshake gives both sides keys"),
            ),
            _ => self.dropped(report.reason.as_deref()),
        }
        if let Some(kernel) = &report.kernel {
            match kernel.agrees {
                true => self.line("then the kernel", &kernel.text),
                false => self.alarm("then the kernel", &format!("drops it: {}", kernel.text)),
            }
        }
    }

    fn allowed_ip(&mut self, peer: Option<&str>, prefix: Option<impl Display>, role: &str, address: IpAddr) {
        match (peer, prefix) {
            (Some(peer), Some(prefix)) => self.line("allowed ip", format_args!("{prefix} of peer {peer}")),
            _ => self.line("allowed ip", format_args!("no peer's contains the {role} {address}")),
        }
    }

    fn dropped(&mut self, reason: Option<&str>) {
        let name = reason.unwrap_or("an unknown reason");
        let known = Drop::ALL.iter().find(|known| Some(known.name()) == reason);
        let meaning = known.map_or(String::new(), |known| format!(": {}", known.meaning().trim()));
        self.alarm("verdict", &format!("dropped as {name}{meaning}"));
    }

    fn head(&mut self, direction: &str, when: &str) {
        self.out += &format!("\n{}: {when}\n", self.style.peer(direction));
    }

    fn line(&mut self, label: &str, value: impl Display) {
        self.out += &format!("  {}: {value}\n", self.style.label(label));
    }

    fn alarm(&mut self, label: &str, value: &str) {
        let value = self.style.alarm(value).to_string();
        self.line(label, value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::api::{KernelRoute, WorkerVerdict};

    fn kernel(agrees: bool, text: &str) -> KernelRoute {
        KernelRoute {
            agrees,
            interface: None,
            text: text.into(),
        }
    }

    fn request() -> ExplainRequest {
        ExplainRequest {
            source: "10.99.0.1".parse().expect("an address"),
            destination: "10.99.0.2".parse().expect("an address"),
            protocol: Some(6),
            port: Some(80),
        }
    }

    #[test]
    fn a_packet_that_passes_one_way_is_told_with_its_rule_and_lanes() {
        let worker = WorkerVerdict {
            verdict: Verdict::Pass,
            suite: Some("native".into()),
            waiting: 0,
        };
        let report = ExplainReport {
            name: "rw0".into(),
            outbound: OutboundReport {
                kernel: kernel(true, "routed to rw0"),
                peer: Some("b".into()),
                allowed_ip: Some("10.99.0.2/32".parse().expect("a prefix")),
                endpoint: Some("192.0.2.2:51820".parse().expect("an endpoint")),
                mtu: 1420,
                workers: vec![worker.clone(), worker],
                verdict: Verdict::Pass,
                reason: None,
            },
            inbound: InboundReport {
                peer: None,
                allowed_ip: None,
                lanes: vec![0, 0],
                verdict: Verdict::Drop,
                reason: Some("bad_source".into()),
                kernel: None,
            },
        };
        let expected = "\
interface: rw0

out: when this machine sends or forwards it
  kernel: routed to rw0
  allowed ip: 10.99.0.2/32 of peer b
  endpoint: 192.0.2.2:51820
  session: native, lane 0 or 1, as the kernel spreads flows
  largest whole packet: 1420 bytes
  verdict: passes

in: when it comes through the tunnel
  allowed ip: no peer's contains the source 10.99.0.1
  verdict: dropped as bad_source: The inner source address is not in the peer's allowed IPs.
";
        assert_eq!(text(&request(), &report, Style::PLAIN), expected);
    }

    #[test]
    fn what_the_kernel_sends_elsewhere_or_refuses_is_told() {
        let report = ExplainReport {
            name: "rw0".into(),
            outbound: OutboundReport {
                kernel: kernel(false, "routed to eth0 via 192.0.2.254"),
                peer: None,
                allowed_ip: None,
                endpoint: None,
                mtu: 1420,
                workers: Vec::new(),
                verdict: Verdict::Drop,
                reason: Some("no_route".into()),
            },
            inbound: InboundReport {
                peer: Some("a".into()),
                allowed_ip: Some("0.0.0.0/0".parse().expect("a prefix")),
                lanes: vec![0, 0],
                verdict: Verdict::Wait,
                reason: None,
                kernel: Some(kernel(false, "no route to host")),
            },
        };
        let expected = "\
interface: rw0

out: when this machine sends or forwards it
  kernel: routed to eth0 via 192.0.2.254
  verdict: never reaches the tunnel: the kernel routes it elsewhere

in: when it comes through the tunnel
  allowed ip: 0.0.0.0/0 of peer a
  lanes that are opened: none
  verdict: a may send it, once a handshake gives both sides keys
  then the kernel: drops it: no route to host
";
        assert_eq!(text(&request(), &report, Style::PLAIN), expected);
    }

    #[test]
    fn protocols_have_names_and_numbers() {
        assert_eq!((protocol("tcp"), protocol("47")), (Ok(6), Ok(47)));
        assert!(protocol("256").is_err() && protocol("TCP").is_err());
    }
}
