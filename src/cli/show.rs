//! A status report as text, in the layout of `wg show`.

use std::collections::BTreeMap;
use std::fmt::{self, Display, Write as _};
use std::time::{SystemTime, UNIX_EPOCH};

use super::style::Style;
use super::units;
use crate::control::api::{DirectionReport, OffloadReport, PeerReport, StatusReport, WorkerReport};

/// An earlier report, for rates.
#[derive(Clone, Copy)]
pub(super) struct Since<'a> {
    /// What was then.
    pub(super) report: &'a StatusReport,
    /// How long ago that is.
    pub(super) seconds: f64,
}

/// The report as a block of lines.
pub(super) fn status(report: &StatusReport, since: Option<Since<'_>>, style: Style) -> String {
    let now_unix_s = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs();
    let mut out = String::new();
    // Writing to a String can't fail.
    let _ = Block {
        out: &mut out,
        style,
        now_unix_s,
        since,
    }
    .write(report);
    out
}

struct Block<'a> {
    out: &'a mut String,
    style: Style,
    now_unix_s: u64,
    since: Option<Since<'a>>,
}

impl Block<'_> {
    fn write(&mut self, report: &StatusReport) -> fmt::Result {
        let style = self.style;
        writeln!(self.out, "{}: {}", style.interface("interface"), report.name)?;
        self.line("public key", report.public_key)?;
        self.line("private key", "(hidden)")?;
        self.line("listening port", report.listen_port)?;
        if let Some(mark) = report.fwmark {
            self.line("fwmark", format_args!("{mark:#x}"))?;
        }
        if !report.addresses.is_empty() {
            self.line("addresses", list(&report.addresses))?;
        }
        self.line("mtu", report.mtu)?;
        self.line("crypto", &report.crypto)?;
        self.line("offloads", offloads(&report.offloads))?;
        self.line(
            "running since",
            format_args!(
                "{} (pid {}, version {}{})",
                units::duration(report.uptime_s),
                report.pid,
                report.version,
                match report.upgrades {
                    0 => String::new(),
                    1 => ", upgraded once".into(),
                    times => format!(", upgraded {times} times"),
                }
            ),
        )?;
        self.reasons("refused handshakes", &report.control_drops)?;
        for worker in &report.workers {
            self.worker(worker)?;
        }
        for peer in &report.peers {
            self.peer(peer)?;
        }
        Ok(())
    }

    fn worker(&mut self, worker: &WorkerReport) -> fmt::Result {
        write!(
            self.out,
            "\n{}: {}, {}",
            self.style.worker("worker"),
            worker.index,
            worker.io
        )?;
        if let Some(cpu) = worker.cpu {
            write!(self.out, " on core {cpu}")?;
        }
        if let Some(reason) = &worker.io_reason {
            write!(self.out, " ({reason})")?;
        }
        self.out.push('\n');
        self.direction("sent", &worker.tx)?;
        self.direction("received", &worker.rx)?;
        self.reasons("dropped", &worker.drops)?;
        if worker.lane_port_datagrams > 0 {
            self.line("from its own port", units::count(worker.lane_port_datagrams))?;
        }
        if worker.mis_steered > 0 {
            self.line("mis-steered", units::count(worker.mis_steered))?;
        }
        if !worker.engine.is_empty() {
            self.line("engine", reasons(&worker.engine))?;
        }
        Ok(())
    }

    fn direction(&mut self, label: &str, direction: &DirectionReport) -> fmt::Result {
        let (packets, bytes) = (units::count(direction.packets), units::bytes(direction.bytes));
        let batch = direction.batch;
        if batch.count == 0 {
            return self.line(label, format_args!("{packets} packets, {bytes}"));
        }
        self.line(
            label,
            format_args!(
                "{packets} packets, {bytes} in {} batches (mean {:.1}, median {}, p99 {}, max {} packets)",
                units::count(direction.batches),
                batch.mean,
                batch.p50,
                batch.p99,
                batch.max
            ),
        )
    }

    fn peer(&mut self, peer: &PeerReport) -> fmt::Result {
        write!(self.out, "\n{}: {}", self.style.peer("peer"), peer.public_key)?;
        if let Some(name) = &peer.name {
            write!(self.out, " ({name})")?;
        }
        self.out.push('\n');
        if peer.preshared_key {
            self.line("preshared key", "(hidden)")?;
        }
        if let Some(endpoint) = peer.endpoint {
            self.line("endpoint", endpoint)?;
        }
        let allowed = if peer.allowed_ips.is_empty() {
            "(none)".into()
        } else {
            list(&peer.allowed_ips)
        };
        self.line("allowed ips", allowed)?;
        if let Some(suite) = &peer.suite {
            match peer.remote_lanes {
                Some(lanes) => self.line("suite", format_args!("{suite}, {lanes} lane{}", plural(lanes.into())))?,
                None => self.line("suite", suite)?,
            }
        }
        match peer.latest_handshake_unix_s {
            Some(at) => match self.now_unix_s.saturating_sub(at) {
                0 => self.line("latest handshake", "now")?,
                seconds => self.line("latest handshake", format_args!("{} ago", units::duration(seconds)))?,
            },
            None => self.line("latest handshake", "(none yet)")?,
        }
        if peer.rx_bytes > 0 || peer.tx_bytes > 0 {
            let (received, sent) = (units::bytes(peer.rx_bytes), units::bytes(peer.tx_bytes));
            self.line("transfer", format_args!("{received} received, {sent} sent"))?;
        }
        if let Some((earlier, seconds)) = self.earlier(peer) {
            let received = units::rate(peer.rx_bytes.saturating_sub(earlier.rx_bytes), seconds);
            let sent = units::rate(peer.tx_bytes.saturating_sub(earlier.tx_bytes), seconds);
            self.line("throughput", format_args!("{received} received, {sent} sent"))?;
        }
        if let Some(rtt) = peer.rtt_ns.filter(|rtt| rtt.count > 0) {
            let [median, p99, max] = [rtt.p50, rtt.p99, rtt.max].map(|ns| units::nanoseconds(ns as f64));
            self.line("round trip", format_args!("median {median}, p99 {p99}, max {max}"))?;
        }
        if let Some(seconds) = peer.persistent_keepalive_s {
            self.line(
                "persistent keepalive",
                format_args!("every {}", units::duration(seconds.into())),
            )?;
        }
        if let Some(mtu) = peer.mtu {
            self.line("path mtu", mtu)?;
        }
        Ok(())
    }

    /// The peer's earlier report, and how many seconds ago it was made.
    fn earlier(&self, peer: &PeerReport) -> Option<(&PeerReport, f64)> {
        let Since { report, seconds } = self.since?;
        let earlier = report
            .peers
            .iter()
            .find(|earlier| earlier.public_key == peer.public_key)?;
        (seconds > 0.0).then_some((earlier, seconds))
    }

    fn reasons(&mut self, label: &str, counts: &BTreeMap<String, u64>) -> fmt::Result {
        if counts.is_empty() {
            return Ok(());
        }
        let text = self.style.alarm(reasons(counts));
        self.line(label, text)
    }

    fn line(&mut self, label: &str, value: impl Display) -> fmt::Result {
        writeln!(self.out, "  {}: {value}", self.style.label(label))
    }
}

/// "3 no_route, 1 replayed": most frequent first.
pub(super) fn reasons(counts: &BTreeMap<String, u64>) -> String {
    let mut counts: Vec<(&String, &u64)> = counts.iter().collect();
    counts.sort_by_key(|(_, count)| std::cmp::Reverse(**count));
    let texts: Vec<String> = counts
        .iter()
        .map(|(name, count)| format!("{} {name}", units::count(**count)))
        .collect();
    texts.join(", ")
}

fn offloads(offloads: &OffloadReport) -> String {
    let all = [
        ("udp_gso", offloads.udp_gso),
        ("udp_gro", offloads.udp_gro),
        ("tun_tso", offloads.tun_tso),
        ("tun_uso", offloads.tun_uso),
        ("tun_csum", offloads.tun_csum),
    ];
    let names = |is_on| {
        let names: Vec<&str> = all
            .iter()
            .filter(|(_, on)| *on == is_on)
            .map(|(name, _)| *name)
            .collect();
        names.join(", ")
    };
    match (names(true), names(false)) {
        (on, off) if off.is_empty() => on,
        (on, off) if on.is_empty() => format!("none (off: {off})"),
        (on, off) => format!("{on} (off: {off})"),
    }
}

fn list(items: &[impl Display]) -> String {
    items.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

fn plural(count: u64) -> &'static str {
    if count == 1 { "" } else { "s" }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::api::Summary;

    fn report() -> StatusReport {
        let batch = Summary {
            count: 40,
            mean: 30.25,
            p50: 32,
            p99: 44,
            max: 45,
        };
        StatusReport {
            name: "rw0".into(),
            version: "0.1.0".into(),
            pid: 77,
            public_key: "9CpHjHOQvfmaXyBtCusPakSONhE9vHCE9+BIqrGtTxc=".parse().unwrap(),
            listen_port: 51820,
            fwmark: Some(0xca6c),
            mtu: 1420,
            addresses: vec!["10.99.0.1/24".parse().unwrap(), "fd99::1/64".parse().unwrap()],
            crypto: "aws-lc".into(),
            offloads: OffloadReport {
                udp_gso: true,
                udp_gro: true,
                tun_tso: true,
                tun_uso: false,
                tun_csum: true,
            },
            started_unix_s: 1,
            uptime_s: 3725,
            upgrades: 0,
            control_drops: BTreeMap::from([("bad_mac1".into(), 3)]),
            workers: vec![WorkerReport {
                index: 0,
                cpu: Some(2),
                io: "syscall".into(),
                io_reason: Some("kernel.io_uring_disabled is 2".into()),
                tx: DirectionReport {
                    packets: 1210,
                    bytes: 1_500_000,
                    batches: 40,
                    batch,
                },
                rx: DirectionReport {
                    packets: 5,
                    bytes: 500,
                    batches: 0,
                    batch: Summary::default(),
                },
                drops: BTreeMap::from([("no_route".into(), 1), ("replayed".into(), 1234)]),
                lane_port_datagrams: 44,
                mis_steered: 8,
                engine: BTreeMap::from([("enobufs_udp".into(), 2)]),
            }],
            peers: vec![
                PeerReport {
                    name: Some("b".into()),
                    public_key: "HIgo9xNzJMWLKASShiTqIybxZ0U3wGLiUeJ1PKf8ykw=".parse().unwrap(),
                    preshared_key: true,
                    endpoint: Some("192.0.2.1:51820".parse().unwrap()),
                    allowed_ips: vec!["10.99.0.2/32".parse().unwrap()],
                    latest_handshake_unix_s: Some(0),
                    suite: Some("native".into()),
                    remote_lanes: Some(2),
                    tx_packets: 9,
                    tx_bytes: 2048,
                    rx_packets: 9,
                    rx_bytes: 1024,
                    rtt_ns: Some(Summary {
                        count: 5,
                        mean: 90.0,
                        p50: 81_300,
                        p99: 120_000,
                        max: 1_200_000,
                    }),
                    persistent_keepalive_s: Some(25),
                    mtu: Some(1380),
                },
                PeerReport {
                    name: None,
                    public_key: "xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=".parse().unwrap(),
                    preshared_key: false,
                    endpoint: None,
                    allowed_ips: vec![],
                    latest_handshake_unix_s: None,
                    suite: None,
                    remote_lanes: None,
                    tx_packets: 0,
                    tx_bytes: 0,
                    rx_packets: 0,
                    rx_bytes: 0,
                    rtt_ns: None,
                    persistent_keepalive_s: None,
                    mtu: None,
                },
            ],
        }
    }

    fn shown(since: Option<Since<'_>>, style: Style) -> String {
        let mut out = String::new();
        Block {
            out: &mut out,
            style,
            now_unix_s: 62,
            since,
        }
        .write(&report())
        .unwrap();
        out
    }

    #[test]
    fn a_report_is_laid_out_as_wg_shows_it() {
        let expected = "\
interface: rw0
  public key: 9CpHjHOQvfmaXyBtCusPakSONhE9vHCE9+BIqrGtTxc=
  private key: (hidden)
  listening port: 51820
  fwmark: 0xca6c
  addresses: 10.99.0.1/24, fd99::1/64
  mtu: 1420
  crypto: aws-lc
  offloads: udp_gso, udp_gro, tun_tso, tun_csum (off: tun_uso)
  running since: 1 hour, 2 minutes, 5 seconds (pid 77, version 0.1.0)
  refused handshakes: 3 bad_mac1

worker: 0, syscall on core 2 (kernel.io_uring_disabled is 2)
  sent: 1,210 packets, 1.43 MiB in 40 batches (mean 30.2, median 32, p99 44, max 45 packets)
  received: 5 packets, 500 B
  dropped: 1,234 replayed, 1 no_route
  from its own port: 44
  mis-steered: 8
  engine: 2 enobufs_udp

peer: HIgo9xNzJMWLKASShiTqIybxZ0U3wGLiUeJ1PKf8ykw= (b)
  preshared key: (hidden)
  endpoint: 192.0.2.1:51820
  allowed ips: 10.99.0.2/32
  suite: native, 2 lanes
  latest handshake: 1 minute, 2 seconds ago
  transfer: 1.00 KiB received, 2.00 KiB sent
  round trip: median 81.3 us, p99 120 us, max 1.20 ms
  persistent keepalive: every 25 seconds
  path mtu: 1380

peer: xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=
  allowed ips: (none)
  latest handshake: (none yet)
";
        assert_eq!(shown(None, Style::PLAIN), expected);
    }

    #[test]
    fn colours_change_nothing_but_colours() {
        let coloured = shown(None, Style::COLOURED);
        assert!(coloured.starts_with("\x1b[1;32minterface\x1b[0m: rw0\n  \x1b[1mpublic key\x1b[0m: "));
        let mut plain = coloured;
        while let Some(begin) = plain.find('\x1b') {
            let end = begin + plain[begin..].find('m').unwrap();
            plain.replace_range(begin..=end, "");
        }
        assert_eq!(plain, shown(None, Style::PLAIN));
    }

    #[test]
    fn rates_are_those_since_the_earlier_report() {
        let mut earlier = report();
        earlier.peers[0].rx_bytes -= 1000;
        let text = shown(
            Some(Since {
                report: &earlier,
                seconds: 2.0,
            }),
            Style::PLAIN,
        );
        assert!(
            text.contains("  throughput: 4.00 kbit/s received, 0 bit/s sent\n"),
            "{text}"
        );
    }

    #[test]
    fn reports_survive_json() {
        let json = serde_json::to_string(&report()).unwrap();
        assert_eq!(serde_json::from_str::<StatusReport>(&json).unwrap(), report());
    }
}
