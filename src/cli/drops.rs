//! `drops`: which packets died, where, why, and what can be done about it.

use clap::Args;
use serde::Serialize;

use super::exit::Failure;
use super::style::Style;
use super::{target, units};
use crate::control::api::StatusReport;
use crate::path::drops::Drop;

#[derive(Debug, Args)]
pub(super) struct Options {
    #[arg(value_name = "NAME", help = target::HELP)]
    name: Option<String>,
    /// Write one JSON object per tunnel, each on a line of its own
    #[arg(long)]
    json: bool,
    /// Show every reason, also those that never happened
    #[arg(long)]
    all: bool,
}

/// All drops of one tunnel.
#[derive(Serialize)]
struct Report {
    name: String,
    drops: Vec<Reason>,
}

/// One reason.
#[derive(Serialize)]
struct Reason {
    reason: String,
    /// Of all workers and the control thread.
    count: u64,
    workers: Vec<u64>,
    /// By the control thread: handshakes.
    control: u64,
    meaning: String,
    advice: String,
}

pub(super) fn drops(options: &Options) -> Result<(), Failure> {
    target::write_reports(
        options.name.as_deref(),
        options.json,
        |client| Ok(report(&client.status()?, options.all)),
        text,
    )
}

/// Most frequent first. Reasons that only a newer daemon has come without an explanation.
fn report(status: &StatusReport, all: bool) -> Report {
    let known = Drop::ALL.iter().map(|reason| reason.name());
    let mut names: Vec<&str> = status
        .workers
        .iter()
        .flat_map(|worker| worker.drops.keys())
        .chain(status.control_drops.keys())
        .map(String::as_str)
        .chain(known.filter(|_| all))
        .collect();
    names.sort_unstable();
    names.dedup();
    let mut drops: Vec<Reason> = names.into_iter().map(|name| reason(status, name)).collect();
    drops.sort_by_key(|drop| std::cmp::Reverse(drop.count));
    Report {
        name: status.name.clone(),
        drops,
    }
}

fn reason(status: &StatusReport, name: &str) -> Reason {
    let known = Drop::ALL.iter().copied().find(|reason| reason.name() == name);
    let of = |counts: &std::collections::BTreeMap<String, u64>| counts.get(name).copied().unwrap_or(0);
    let workers: Vec<u64> = status.workers.iter().map(|worker| of(&worker.drops)).collect();
    let control = of(&status.control_drops);
    Reason {
        reason: name.to_owned(),
        count: workers.iter().sum::<u64>() + control,
        workers,
        control,
        meaning: known.map_or("", |reason| reason.meaning().trim()).to_owned(),
        advice: known.map_or("", advice).to_owned(),
    }
}

fn text(report: &Report, style: Style) -> String {
    let mut out = format!("{}: {}\n", style.interface("interface"), report.name);
    if report.drops.is_empty() {
        out += "  no packet was dropped\n";
    }
    for drop in &report.drops {
        out += &format!("\n{}: {}\n", style.alarm(&drop.reason), units::count(drop.count));
        let mut line = |label: &str, value: &str| {
            if !value.is_empty() {
                out += &format!("  {}: {value}\n", style.label(label));
            }
        };
        let by_worker = drop.workers.iter().enumerate().filter(|(_, count)| **count > 0);
        let places: Vec<String> = by_worker
            .map(|(worker, count)| format!("worker {worker}: {}", units::count(*count)))
            .chain((drop.control > 0).then(|| format!("control thread: {}", units::count(drop.control))))
            .collect();
        line("where", &places.join(", "));
        line("why", &drop.meaning);
        line("what to do", &drop.advice);
    }
    out
}

/// What an operator can do about packets that die so.
fn advice(reason: Drop) -> &'static str {
    match reason {
        Drop::Malformed | Drop::BadOffload => {
            "None should come from a Linux kernel; switch tun_tso and tun_uso off, and report it with the kernel's version."
        }
        Drop::NoRoute => {
            "Some are normal (multicast, broadcasts). Else give the destination to a peer's allowed_ips, or route less to \
             the interface; \"ringway explain SRC DST\" tells which."
        }
        Drop::NoEndpoint => "Give the peer an endpoint, or wait until it has spoken first.",
        Drop::PendingFull | Drop::HandshakeFailed => {
            "The peer does not answer: check that it runs, its endpoint, the firewalls on the way and both public keys \
             (\"ringway doctor\")."
        }
        Drop::RoutingLoop => {
            "Take the endpoint out of what is routed to the interface: table = \"auto\" does, and so does exclude; \"ringway \
             doctor NAME\" tells which endpoint it is."
        }
        Drop::SessionExpired | Drop::ExpiredSession => {
            "A few at a change of keys are normal. Many: handshakes do not get through; see \"ringway status\"."
        }
        Drop::TooBig => "Lower mtu in [interface] on both sides; \"ringway doctor NAME\" measures the path.",
        Drop::NoSendSlot | Drop::SendBufferFull => {
            "The network is slower than the senders, who slow down by such losses. Where it should be faster: raise \
             net.core.wmem_max, and look at the interface's queue."
        }
        Drop::SendFailed => {
            "No route to the endpoint, or a firewall refuses: \"ip route get ENDPOINT\", \"nft list ruleset\"."
        }
        Drop::SocketFull => {
            "Of a worker: it is slower than the network; more workers, or a larger receive buffer (CAP_NET_ADMIN, or \
             net.core.rmem_max). A run of datagrams that came as one counts as one. Of the control row: a flood of handshakes is faster than ringway wants to look at."
        }
        Drop::BadMessage => "Something else sends to this port. Harmless; a firewall can keep it away.",
        Drop::UnknownIndex => {
            "A few after a restart are normal: the peer still uses the old session until its next handshake."
        }
        Drop::Replayed => "The network duplicates packets, or somebody replays them. Harmless.",
        Drop::TooOld => "The network reorders by more than 8192 packets; look for unequal paths.",
        Drop::Forged => "Packets are damaged on the way past their UDP checksum, or forged. None gets through.",
        Drop::BadInner => "The peer's software is faulty; report it with both versions.",
        Drop::BadSource => {
            "Add the source to the peer's allowed_ips if it may send from there; else the peer lacks masquerading or lies."
        }
        Drop::CongestionUnmarkable => {
            "Routers on the way are congested and the inner connection does without ECN: a normal loss."
        }
        Drop::TunWriteFailed => {
            "The interface is down, or the kernel refuses an offload: try tun_tso = false, tun_uso = false."
        }
        Drop::MailboxFull => {
            "Datagrams reach the wrong worker faster than they can be handed over; look at mis-steered in \"ringway status\"."
        }
        Drop::HandshakeQueueFull | Drop::CookieDemanded | Drop::RateLimited => {
            "A flood of handshakes: the sender has to prove its address or slow down. Limit it in front of this machine \
             if sessions suffer."
        }
        Drop::BadMac1 => "Scanners, or a peer that has another public key of ours.",
        Drop::BadMac2 => "Somebody made cookies up under load, or its address changed meanwhile. Harmless.",
        Drop::UnknownPeer => {
            "A machine with a key that is no peer here knocks; add it as a [[peer]] if it should get in."
        }
        Drop::BadHandshake => {
            "The peer has another public key of ours, another preshared key, or its packets are damaged."
        }
        Drop::ReplayedHandshake => "Somebody replays a handshake, or the peer's clock was set back: set it right.",
        Drop::UnexpectedHandshake => "Answers that came too late; a few are normal on slow paths.",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(drops: &str, control: &str) -> StatusReport {
        let worker = r#"{"index":0,"io":"uring","tx":{"packets":0,"bytes":0,"batches":0},"rx":{"packets":0,"bytes":0,"batches":0},"drops":"#;
        let json = format!(
            r#"{{"name":"rw0","version":"0","pid":1,"public_key":"9CpHjHOQvfmaXyBtCusPakSONhE9vHCE9+BIqrGtTxc=","listen_port":1,"mtu":1420,"crypto":"x",
            "offloads":{{"udp_gso":true,"udp_gro":true,"tun_tso":true,"tun_uso":true,"tun_csum":true}},"started_unix_s":0,"uptime_s":0,
            "control_drops":{control},"workers":[{worker}{drops}}},{worker}{{"no_route":5}}}}],"peers":[]}}"#
        );
        serde_json::from_str(&json).expect("a report")
    }

    #[test]
    fn drops_are_told_most_frequent_first_with_place_meaning_and_advice() {
        let status = status(
            r#"{"no_route":1200,"replayed":7,"of_the_future":9}"#,
            r#"{"bad_mac1":8}"#,
        );
        let text = text(&report(&status, false), Style::PLAIN);
        let expected = "interface: rw0\n\nno_route: 1,205\n  where: worker 0: 1,200, worker 1: 5\n  why: No peer's \
                        allowed IPs contain the destination.\n  what to do: Some are normal";
        assert!(text.starts_with(expected), "{text}");
        let at = |reason: &str| text.find(reason).unwrap_or_else(|| panic!("{reason}: {text}"));
        assert!(at("of_the_future: 9") < at("bad_mac1: 8") && at("bad_mac1: 8") < at("replayed: 7"));
        assert!(text.contains("where: control thread: 8"), "{text}");
    }

    #[test]
    fn every_reason_is_shown_on_request_and_none_where_there_is_none() {
        let quiet = status("{}", "{}");
        let all = report(&quiet, true);
        assert_eq!(all.drops.len(), Drop::COUNT);
        assert!(
            all.drops
                .iter()
                .all(|drop| !drop.meaning.is_empty() && drop.advice.ends_with(['.', ')']))
        );
        let mut one = quiet;
        one.workers.truncate(1);
        assert!(text(&report(&one, false), Style::PLAIN).contains("no packet was dropped"));
    }
}
