//! `stats`: everything that was counted since the start or the last reset.

use clap::Args;

use super::exit::Failure;
use super::style::Style;
use super::{show, target, units};
use crate::control::api::{PeerStats, StatsReport, WorkerStats};
use crate::stats::counters::CounterSnapshot;

#[derive(Debug, Args)]
pub(super) struct Options {
    #[arg(value_name = "NAME", help = target::HELP)]
    name: Option<String>,
    /// Write one JSON object per tunnel, each on a line of its own
    #[arg(long)]
    json: bool,
    /// Begin a new interval afterwards; "status" and metrics go on counting
    #[arg(long)]
    reset: bool,
}

pub(super) fn stats(options: &Options) -> Result<(), Failure> {
    target::write_reports(
        options.name.as_deref(),
        options.json,
        |client| client.stats(options.reset),
        text,
    )
}

fn text(report: &StatsReport, style: Style) -> String {
    let seconds = report.until_unix_ms.saturating_sub(report.since_unix_ms) as f64 / 1e3;
    let total: CounterSnapshot = report.workers.iter().map(|worker| worker.counters.clone()).sum();
    let mut out = format!(
        "{}: {}, the last {seconds:.1} s\n",
        style.interface("interface"),
        report.name
    );
    let mut line = |label: &str, value: String| out += &format!("  {}: {value}\n", style.label(label));
    let way = |packets: u64, bytes: u64| {
        format!(
            "{} packets, {}, {}",
            units::count(packets),
            units::bytes(bytes),
            units::rate(bytes, seconds.max(1e-3))
        )
    };
    line("sent", way(total.packets_out, total.bytes_out));
    line("received", way(total.packets_in, total.bytes_in));
    line("tun reads", runs(total.tun_reads, total.tun_read_packets, "packets"));
    line(
        "udp sends",
        runs(total.udp_sends, total.udp_send_datagrams, "datagrams"),
    );
    line(
        "udp receives",
        runs(total.udp_receives, total.udp_receive_datagrams, "datagrams"),
    );
    line("tun writes", runs(total.tun_writes, total.tun_write_packets, "packets"));
    line("loops", units::count(total.loops));
    if total.mis_steered > 0 {
        line("mis-steered", units::count(total.mis_steered));
    }
    for (name, count) in engine_totals(&report.workers) {
        line(&format!("engine {name}"), units::count(count));
    }
    if !total.drops.is_empty() {
        line("dropped", style.alarm(show::reasons(&total.drops)).to_string());
    }
    if !report.control_drops.is_empty() {
        line(
            "refused handshakes",
            style.alarm(show::reasons(&report.control_drops)).to_string(),
        );
    }
    for peer in &report.peers {
        out += &peer_text(peer, style, seconds);
    }
    out
}

fn peer_text(peer: &PeerStats, style: Style, seconds: f64) -> String {
    let key = peer.public_key.to_string();
    let name = peer.name.as_ref().map_or(String::new(), |name| format!(" ({name})"));
    let way = |packets: u64, bytes: u64| {
        format!(
            "{} packets, {}, {}",
            units::count(packets),
            units::bytes(bytes),
            units::rate(bytes, seconds.max(1e-3))
        )
    };
    let mut out = format!("\n{}: {key}{name}\n", style.peer("peer"));
    let mut line = |label: &str, value: String| out += &format!("  {}: {value}\n", style.label(label));
    line("sent", way(peer.tx_packets, peer.tx_bytes));
    line("received", way(peer.rx_packets, peer.rx_bytes));
    let given_up = match peer.handshakes_given_up {
        0 => String::new(),
        count => format!(", {} given up", style.alarm(units::count(count))),
    };
    line("handshakes", format!("{}{given_up}", units::count(peer.handshakes)));
    out
}

/// "12 of 340 packets, 28.3 each".
fn runs(calls: u64, items: u64, what: &str) -> String {
    match calls {
        0 => "none".into(),
        _ => format!(
            "{} of {} {what}, {:.1} each",
            units::count(calls),
            units::count(items),
            items as f64 / calls as f64
        ),
    }
}

fn engine_totals(workers: &[WorkerStats]) -> std::collections::BTreeMap<&str, u64> {
    let mut totals = std::collections::BTreeMap::new();
    for (name, count) in workers.iter().flat_map(|worker| &worker.engine) {
        *totals.entry(name.as_str()).or_default() += count;
    }
    totals
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::PublicKey;
    use std::collections::BTreeMap;

    #[test]
    fn counts_of_all_workers_are_added_up() {
        let worker = |packets_out| WorkerStats {
            counters: CounterSnapshot {
                packets_out,
                bytes_out: 1_000_000,
                udp_sends: 2,
                udp_send_datagrams: packets_out,
                loops: 1000,
                drops: BTreeMap::from([("forged".into(), 2)]),
                ..CounterSnapshot::default()
            },
            engine: BTreeMap::from([("rearms".into(), 3)]),
        };
        let report = StatsReport {
            name: "rw0".into(),
            since_unix_ms: 0,
            until_unix_ms: 2000,
            control_drops: BTreeMap::from([("bad_mac1".into(), 4)]),
            workers: vec![worker(10), worker(30)],
            peers: vec![PeerStats {
                name: Some("b".into()),
                public_key: PublicKey([0; 32]),
                tx_packets: 40,
                tx_bytes: 2048,
                rx_packets: 0,
                rx_bytes: 0,
                handshakes: 3,
                handshakes_given_up: 1,
            }],
        };
        let expected = "\
interface: rw0, the last 2.0 s
  sent: 40 packets, 1.91 MiB, 8.00 Mbit/s
  received: 0 packets, 0 B, 0 bit/s
  tun reads: none
  udp sends: 4 of 40 datagrams, 10.0 each
  udp receives: none
  tun writes: none
  loops: 2,000
  engine rearms: 6
  dropped: 4 forged
  refused handshakes: 4 bad_mac1

peer: AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA= (b)
  sent: 40 packets, 2.00 KiB, 8.19 kbit/s
  received: 0 packets, 0 B, 0 bit/s
  handshakes: 3, 1 given up
";
        assert_eq!(text(&report, Style::PLAIN), expected);
    }
}
