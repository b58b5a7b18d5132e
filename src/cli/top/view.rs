//! An interval as lines of text.

use std::time::{SystemTime, UNIX_EPOCH};

use super::sample::{Rates, Speed};
use super::spark::History;
use crate::cli::style::Style;
use crate::cli::units;

/// How peers are sorted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Order {
    /// Most traffic first.
    Traffic,
    /// By name.
    Name,
}

impl Order {
    pub(super) fn next(self) -> Order {
        match self {
            Order::Traffic => Order::Name,
            Order::Name => Order::Traffic,
        }
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Order::Traffic => "traffic",
            Order::Name => "name",
        }
    }
}

pub(super) fn lines(rates: &Rates, history: &History, order: Order, style: Style) -> Vec<String> {
    let now_unix_s = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs();
    lines_at(now_unix_s, rates, history, order, style)
}

fn lines_at(now_unix_s: u64, rates: &Rates, history: &History, order: Order, style: Style) -> Vec<String> {
    let total = |direction: fn(&super::sample::WorkerRates) -> Speed| {
        let bits: f64 = rates.workers.iter().map(|worker| direction(worker).bits).sum();
        bit_rate(bits)
    };
    let drops: f64 = rates.workers.iter().map(|worker| worker.drops).sum();
    let mut lines = vec![format!(
        "{}: {}, up {}, {} out, {} in, {} drops/s, {} handshakes/s refused",
        style.interface("interface"),
        rates.name,
        units::duration(rates.uptime_s),
        total(|worker| worker.out),
        total(|worker| worker.inbound),
        alarm_above_zero(drops, style),
        alarm_above_zero(rates.refused, style),
    )];
    lines.push(head(
        style,
        &format!(
            "{:<12}{:>12}{:>10}{:>10}{:>10}  p99 so far",
            "latency", "packets", "p50", "p99", "max"
        ),
    ));
    for stage in &rates.stages {
        let [p50, p99, max] = [stage.p50, stage.p99, stage.max].map(|ns| match stage.count {
            0 => "-".to_owned(),
            _ => units::nanoseconds(ns as f64),
        });
        lines.push(format!(
            "  {:<12}{:>12}{p50:>10}{p99:>10}{max:>10}  {}",
            stage.label,
            units::count(stage.count),
            history.bars(&stage.label)
        ));
    }
    lines.push(head(
        style,
        &format!(
            "{:<12}{:>14}{:>14}{:>14}{:>14}{:>10}",
            "worker", "out", "packets/s", "in", "packets/s", "drops/s"
        ),
    ));
    for worker in &rates.workers {
        let place = match worker.cpu {
            Some(cpu) => format!("{} {}@{cpu}", worker.index, worker.io),
            None => format!("{} {}", worker.index, worker.io),
        };
        lines.push(format!(
            "  {place:<12}{}{}{:>10}",
            speed(worker.out),
            speed(worker.inbound),
            alarm_above_zero(worker.drops, style)
        ));
    }
    lines.push(head(
        style,
        &format!(
            "{:<24}{:>14}{:>14}{:>14}{:>14}{:>10}{:>12}  traffic so far",
            "peer", "out", "packets/s", "in", "packets/s", "rtt", "handshake"
        ),
    ));
    let mut peers: Vec<_> = rates.peers.iter().collect();
    match order {
        Order::Traffic => peers.sort_by(|a, b| {
            let bits = |peer: &super::sample::PeerRates| peer.out.bits + peer.inbound.bits;
            bits(b).total_cmp(&bits(a)).then_with(|| a.name.cmp(&b.name))
        }),
        Order::Name => peers.sort_by(|a, b| a.name.cmp(&b.name)),
    }
    for peer in peers {
        let rtt = peer.rtt_ns.map_or("-".into(), |ns| units::nanoseconds(ns as f64));
        let handshake = match peer.handshake_unix_s {
            Some(at) => format!("{} s ago", now_unix_s.saturating_sub(at)),
            None => "none".into(),
        };
        lines.push(format!(
            "  {:<24}{}{}{rtt:>10}{handshake:>12}  {}",
            shortened(&peer.name, 23),
            speed(peer.out),
            speed(peer.inbound),
            history.bars(&peer.key)
        ));
    }
    lines
}

fn head(style: Style, text: &str) -> String {
    format!("  {}", style.label(text))
}

fn speed(speed: Speed) -> String {
    format!(
        "{:>14}{:>14}",
        bit_rate(speed.bits),
        units::count(speed.packets.round() as u64)
    )
}

fn bit_rate(bits: f64) -> String {
    units::rate((bits / 8.0).round() as u64, 1.0)
}

/// Right-aligned to a width of 1 at least, in alarming colour unless zero.
fn alarm_above_zero(rate: f64, style: Style) -> super::super::style::Painted<String> {
    let text = match rate {
        rate if rate > 0.0 && rate < 1.0 => "<1".to_owned(),
        rate => units::count(rate.round() as u64),
    };
    if rate > 0.0 {
        style.alarm(text)
    } else {
        style.plain(text)
    }
}

fn shortened(text: &str, chars_max: usize) -> String {
    match text.chars().count() <= chars_max {
        true => text.to_owned(),
        false => text.chars().take(chars_max - 1).chain(['…']).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::sample::{PeerRates, StageRates, WorkerRates};
    use super::*;

    fn speed(bits: f64, packets: f64) -> Speed {
        Speed { bits, packets }
    }

    fn rates() -> Rates {
        let peer = |name: &str, bits, rtt_ns| PeerRates {
            key: format!("{name}-key"),
            name: name.into(),
            out: speed(bits, 1000.0),
            inbound: speed(0.0, 0.0),
            rtt_ns,
            handshake_unix_s: rtt_ns.map(|_| 40),
        };
        Rates {
            name: "rw0".into(),
            uptime_s: 61,
            workers: vec![WorkerRates {
                index: 0,
                cpu: Some(3),
                io: "uring".into(),
                out: speed(3.2e9, 280_000.0),
                inbound: speed(1.2e6, 100.0),
                drops: 0.5,
            }],
            peers: vec![
                peer("a", 1e6, None),
                peer("a-very-long-name-of-a-peer", 3e9, Some(81_300)),
            ],
            stages: vec![StageRates {
                label: "tun_to_udp".into(),
                count: 280_000,
                p50: 8_100,
                p99: 30_000,
                max: 1_200_000,
            }],
            refused: 0.0,
        }
    }

    #[test]
    fn an_interval_is_laid_out_in_columns_with_the_busiest_peer_first() {
        let rates = rates();
        let mut history = History::default();
        history.add(&rates);
        let expected = "\
interface: rw0, up 1 minute, 1 second, 3.20 Gbit/s out, 1.20 Mbit/s in, <1 drops/s, 0 handshakes/s refused
  latency          packets       p50       p99       max  p99 so far
  tun_to_udp       280,000   8.10 us   30.0 us   1.20 ms  █
  worker                 out     packets/s            in     packets/s   drops/s
  0 uring@3      3.20 Gbit/s       280,000   1.20 Mbit/s           100        <1
  peer                               out     packets/s            in     packets/s       rtt   handshake  traffic so far
  a-very-long-name-of-a-…    3.00 Gbit/s         1,000       0 bit/s             0   81.3 us    60 s ago  █
  a                          1.00 Mbit/s         1,000       0 bit/s             0         -        none  █";
        let lines = lines_at(100, &rates, &history, Order::Traffic, Style::PLAIN);
        assert_eq!(lines.join("\n"), expected);
        let by_name = lines_at(100, &rates, &history, Order::Name, Style::PLAIN);
        assert!(by_name[6].trim_start().starts_with("a  "), "{}", by_name[6]);
    }
}
