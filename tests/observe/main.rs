//! Seeing what a tunnel does: captures, explanations, metrics, doctor, top, and who may ask. Between two network namespaces,
//! with real packets. Needs root; elsewhere each test prints "skipped: needs root" and passes.
//!
//! Run them one at a time: `cargo test --test observe -- --test-threads=1`.

mod access;
#[path = "../netns/lab.rs"]
#[allow(dead_code)]
mod lab;
mod metrics_text;
mod tunnel;

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::net::{TcpStream, UdpSocket};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::Duration;

use serde_json::Value;

use crate::lab::{Lab, wait_until};
use crate::tunnel::{INNER, METRICS, Tunnel, installed};

const PATIENCE: Duration = Duration::from_secs(20);

#[test]
fn tcpdump_reads_a_capture_with_both_directions_and_the_peer() {
    let Some(tunnel) = Lab::new().map(Tunnel::up) else {
        return;
    };
    if !installed("tcpdump") {
        return println!("skipped: tcpdump is not installed");
    }
    let file = tunnel.lab.directory.join("c.pcapng");
    let file = file.to_str().expect("text");
    let control = tunnel.control(0);
    let mut capture = tunnel.start(&["capture", &control, "--peer", "other", "-w", file, "-c", "6", "icmp"]);
    tunnel.pings_until_ended(&mut capture);
    let read = tunnel.lab.a.run(&["tcpdump", "-n", "-r", file]);
    let packets: Vec<&str> = read.lines().filter(|line| line.contains("ICMP")).collect();
    assert_eq!(packets.len(), 6, "{read}");
    let requests = packets
        .iter()
        .filter(|line| line.contains("10.99.0.1 > 10.99.0.2: ICMP echo request"));
    let replies = packets
        .iter()
        .filter(|line| line.contains("10.99.0.2 > 10.99.0.1: ICMP echo reply"));
    assert!(requests.count() >= 2 && replies.count() >= 2, "{read}");
    let bytes = fs::read(file).expect("it was written");
    assert_eq!(fs::metadata(file).expect("it is there").mode() & 0o777, 0o600);
    let text = String::from_utf8_lossy(&bytes);
    assert!(text.contains("peer other, worker "), "packets name their peer");
    if installed("tshark") {
        let fields = [
            "-T",
            "fields",
            "-e",
            "frame.packet_flags_direction",
            "-e",
            "frame.comment",
        ];
        let read = tunnel.lab.a.run(&[&["tshark", "-n", "-r", file], &fields[..]].concat());
        assert!(read.contains("peer other"), "{read}");
    } else {
        println!("tshark is not installed: its reading was not tried");
    }
}

#[test]
fn a_capture_takes_what_its_filter_takes_and_counts_what_it_loses() {
    let Some(tunnel) = Lab::new().map(Tunnel::up) else {
        return;
    };
    let control = tunnel.control(0);
    // Lines, not a file; ended by time.
    let mut capture = tunnel.start(&["capture", &control, "--seconds", "3", "udp", "dst", "port", "4000"]);
    while capture.is_running() {
        tunnel.lab.a.enter(|| {
            let socket = UdpSocket::bind((INNER[0], 0)).expect("a socket");
            for port in [4000, 4001] {
                // Nobody listens there: the answers are ICMP errors, which the next send reports.
                let _ = socket.send_to(b"x", (INNER[1], port));
            }
        });
        thread::sleep(Duration::from_millis(50));
    }
    let output = capture.finish();
    let lines: Vec<&str> = output.stdout.lines().collect();
    let is_wanted = |line: &&str| line.contains("out peer other") && line.contains("> 10.99.0.2.4000: UDP, length 1");
    assert!(!lines.is_empty() && lines.iter().all(is_wanted), "{output:?}");
    let summary = format!("{} packets captured, 0 that matched were lost", lines.len());
    assert!(output.stderr.contains(&summary), "{output:?}");
    let wrong = tunnel
        .tool(&["capture", &control, "port", "http"])
        .expect_err("no number");
    assert!(
        wrong.contains("the filter is wrong at \"http\": expected a port number"),
        "{wrong}"
    );
    let wrong = tunnel
        .tool(&["capture", &control, "--peer", "nobody"])
        .expect_err("no peer");
    assert!(wrong.contains("no peer is called \"nobody\""), "{wrong}");

    // Its number may become another peer's.
    let file = tunnel.lab.directory.join("removed.pcapng");
    let mut capture = tunnel.start(&[
        "capture",
        &control,
        "--peer",
        "other",
        "-w",
        file.to_str().expect("plain"),
    ]);
    wait_until("the capture's first bytes", PATIENCE, || {
        file.metadata().is_ok_and(|file| file.len() > 0)
    });
    tunnel
        .tool(&["peer", "remove", &control, "other"])
        .expect("it is there");
    wait_until("the end of the capture", PATIENCE, || !capture.is_running());
}

#[test]
fn an_explanation_agrees_with_what_happens_to_such_packets() {
    let Some(tunnel) = Lab::new().map(Tunnel::up) else {
        return;
    };
    let explain = |source: &str, destination: &str| -> Value {
        let text = tunnel.tool(&[
            "explain",
            source,
            destination,
            "udp",
            "9",
            "-i",
            &tunnel.control(0),
            "--json",
        ]);
        serde_json::from_str(&text.expect("the daemon answers")).expect("JSON")
    };
    let drops = |reason: &str| tunnel.drops(0, reason);

    // Pings pass, so this one does.
    let passes = explain("10.99.0.1", "10.99.0.2");
    assert_eq!(passes["outbound"]["verdict"], "pass", "{passes}");
    assert_eq!(passes["outbound"]["kernel"]["agrees"], true, "{passes}");
    assert_eq!(passes["outbound"]["peer"], "other", "{passes}");
    assert_eq!(passes["outbound"]["allowed_ip"], "10.99.0.2/32", "{passes}");
    assert_eq!(passes["outbound"]["workers"][0]["suite"], "native", "{passes}");
    // Nobody may send from our own address through the tunnel.
    assert_eq!(passes["inbound"]["verdict"], "drop", "{passes}");
    assert_eq!(passes["inbound"]["reason"], "bad_source", "{passes}");

    // The answer's way.
    let back = explain("10.99.0.2", "10.99.0.1");
    assert_eq!(back["inbound"]["verdict"], "pass", "{back}");
    assert_eq!(back["inbound"]["kernel"]["agrees"], true, "{back}");

    // In the interface's network, but no peer's.
    let nobody = explain("10.99.0.1", "10.99.0.77");
    assert_eq!(nobody["outbound"]["verdict"], "drop", "{nobody}");
    assert_eq!(nobody["outbound"]["reason"], "no_route", "{nobody}");
    let before = drops("no_route");
    wait_until("the drop", PATIENCE, || {
        tunnel.send_udp(0, "10.99.0.77");
        drops("no_route") > before
    });

    // Not routed to the tunnel at all.
    let outside = explain("192.0.2.1", "192.0.2.2");
    assert_eq!(outside["outbound"]["kernel"]["agrees"], false, "{outside}");
    assert_eq!(outside["outbound"]["kernel"]["interface"], lab::UNDERLAY, "{outside}");

    // b sends from an address that a does not allow it.
    tunnel.lab.b.ip(&["address", "add", "10.99.0.66/32", "dev", "rw0"]);
    let spoofed = explain("10.99.0.66", "10.99.0.1");
    assert_eq!(spoofed["inbound"]["reason"], "bad_source", "{spoofed}");
    let before = drops("bad_source");
    // Nothing answers.
    let ping = [
        "ping",
        "-n",
        "-q",
        "-c",
        "1",
        "-W",
        "0.1",
        "-I",
        "10.99.0.66",
        "10.99.0.1",
    ];
    wait_until("the drop", PATIENCE, || {
        let _ = tunnel.lab.b.try_run(&ping);
        drops("bad_source") > before
    });

    let text = tunnel.tool(&["explain", "10.99.0.1", "10.99.0.77", "-i", &tunnel.control(0)]);
    let text = text.expect("the daemon answers");
    assert!(
        text.contains("dropped as no_route: No peer's allowed IPs contain the destination."),
        "{text}"
    );
    let text = tunnel.tool(&["drops", &tunnel.control(0)]).expect("the daemon answers");
    assert!(text.contains("no_route: ") && text.contains("what to do: "), "{text}");
}

#[test]
fn metrics_under_traffic_follow_the_format_and_only_grow() {
    let Some(tunnel) = Lab::new().map(Tunnel::up) else {
        return;
    };
    let scrape = |accept: &str| -> (String, String) {
        let answer = tunnel.lab.a.enter(|| {
            let mut stream = TcpStream::connect(METRICS).expect("metrics are served");
            stream.set_read_timeout(Some(PATIENCE)).expect("a socket");
            write!(stream, "GET /metrics HTTP/1.1\r\nHost: x\r\nAccept: {accept}\r\n\r\n").expect("it reads");
            let mut answer = String::new();
            stream.read_to_string(&mut answer).expect("text");
            answer
        });
        let (head, body) = answer.split_once("\r\n\r\n").expect("a head and a body");
        (head.to_owned(), body.to_owned())
    };
    let (head, first) = scrape("text/plain");
    assert!(
        head.starts_with("HTTP/1.1 200 OK") && head.contains("version=0.0.4"),
        "{head}"
    );
    let first = metrics_text::check(&first, false);
    let b = INNER[1].parse().expect("an address");
    wait_until("an answer", PATIENCE, || tunnel.lab.a.ping(b, 1000));
    let (_, second) = scrape("text/plain");
    let second = metrics_text::check(&second, false);
    for (series, value) in &first.counters {
        assert!(second.counters[series] >= *value, "{series} went back");
    }
    let sent = |metrics: &metrics_text::Metrics| -> f64 {
        let of_workers = metrics.counters.iter().filter(|(series, _)| {
            series.starts_with("ringway_worker_packets_total") && series.contains("direction=\"out\"")
        });
        of_workers.map(|(_, value)| value).sum()
    };
    assert!(sent(&second) > sent(&first));
    let handshakes = "ringway_peer_handshakes_total{interface=\"rw0\",peer=\"other\",result=\"done\"}";
    assert!(second.counters[handshakes] >= 1.0);
    assert!(
        second
            .counters
            .keys()
            .any(|series| series.contains("reason=\"bad_source\""))
    );
    let (head, open) = scrape("application/openmetrics-text;version=1.0.0,text/plain;q=0.5");
    assert!(head.contains("application/openmetrics-text"), "{head}");
    metrics_text::check(&open, true);
    // The dashboard asks for nothing that isn't there.
    let dashboard = include_str!("../../dist/grafana/ringway.json");
    let (_, text) = scrape("text/plain");
    for name in dashboard.split(|c: char| !c.is_ascii_alphanumeric() && c != '_') {
        if name.starts_with("ringway_") {
            let family = name
                .trim_end_matches("_bucket")
                .trim_end_matches("_sum")
                .trim_end_matches("_count");
            assert!(text.contains(&format!("# TYPE {family} ")), "{name} is no metric");
        }
    }
    let Some(promtool) = promtool() else {
        println!("skipped: needs promtool, in PATH or in target (scripts/setup test puts it there)");
        return;
    };
    let file = tunnel.lab.directory.join("metrics.txt");
    fs::write(&file, text).expect("it can be written");
    let mut check = Command::new(promtool);
    check
        .args(["check", "metrics"])
        .stdin(File::open(&file).expect("it was written"));
    let output = check.output().expect("it has told its version");
    let said = [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned());
    assert!(output.status.success(), "{}", said.concat());
}

/// Prometheus's own checks, where they are installed.
fn promtool() -> Option<PathBuf> {
    let target = Path::new(env!("CARGO_TARGET_TMPDIR"))
        .parent()
        .expect("it lies in target");
    let places = [PathBuf::from("promtool"), target.join("promtool")];
    places.into_iter().find(|place| {
        let version = Command::new(place).arg("--version").output();
        version.is_ok_and(|output| output.status.success())
    })
}

#[test]
fn counters_can_be_reset_and_nothing_else_is() {
    let Some(tunnel) = Lab::new().map(Tunnel::up) else {
        return;
    };
    let control = tunnel.control(0);
    let stats = |arguments: &[&str]| -> Value {
        let text = tunnel.tool(&[&["stats", &control, "--json"], arguments].concat());
        serde_json::from_str(&text.expect("the daemon answers")).expect("JSON")
    };
    let sent = |stats: &Value| -> u64 {
        let workers = stats["workers"].as_array().expect("a list").iter();
        workers
            .map(|worker| worker["counters"]["packets_out"].as_u64().expect("a count"))
            .sum()
    };
    let handshakes = |stats: &Value| stats["peers"][0]["handshakes"].as_u64().expect("a count");
    let before = stats(&["--reset"]);
    assert!(sent(&before) > 0 && handshakes(&before) >= 1, "{before}");
    let after = stats(&[]);
    assert!(sent(&after) < sent(&before) && handshakes(&after) == 0, "{after}");
    assert_eq!(after["since_unix_ms"], before["until_unix_ms"]);
    let status: Value =
        serde_json::from_str(&tunnel.tool(&["status", &control, "--json"]).expect("it answers")).expect("JSON");
    let workers = status["workers"].as_array().expect("a list").iter();
    let total: u64 = workers
        .map(|worker| worker["tx"]["packets"].as_u64().expect("a count"))
        .sum();
    assert!(total >= sent(&before), "{status}");
    let text = tunnel.tool(&["stats", &control]).expect("the daemon answers");
    assert!(text.contains("handshakes: 0"), "{text}");
}

#[test]
fn top_shows_one_interval_without_a_terminal() {
    let Some(tunnel) = Lab::new().map(Tunnel::up) else {
        return;
    };
    let mut top = tunnel.start(&["top", &tunnel.control(0), "--once"]);
    tunnel.pings_until_ended(&mut top);
    let output = top.finish();
    let words = |begin: &str| {
        let line = output.stdout.lines().find(|line| line.trim_start().starts_with(begin));
        line.unwrap_or_else(|| panic!("{begin}: {output:?}")).to_owned()
    };
    assert!(words("interface: rw0").contains("drops/s"), "{output:?}");
    let stage = words("tun_to_udp");
    assert_ne!(stage.split_whitespace().nth(1), Some("0"), "{output:?}");
    assert!(words("other").contains("bit/s"), "{output:?}");
}

#[test]
fn doctor_finds_nothing_in_a_healthy_tunnel_and_the_faults_of_a_broken_one() {
    let Some(tunnel) = Lab::new().map(Tunnel::up) else {
        return;
    };
    let doctor = |file: &str| -> (bool, Value) {
        let (is_healthy, text) = match tunnel.tool_in(0, &["doctor", file, "--json"]) {
            Ok(text) => (true, text),
            Err(text) => (false, text[text.find('{').unwrap_or(0)..].to_owned()),
        };
        let json = text.lines().next().unwrap_or_default();
        (
            is_healthy,
            serde_json::from_str(json).unwrap_or_else(|error| panic!("{error}: {text}")),
        )
    };
    let found = |report: &Value, level: &str, about: &str, text: &str| {
        let findings = report["findings"].as_array().expect("a list");
        findings.iter().any(|finding| {
            finding["level"] == level
                && finding["about"].as_str().is_some_and(|found| found.contains(about))
                && finding["text"].as_str().is_some_and(|found| found.contains(text))
        })
    };
    let (is_healthy, report) = doctor(&tunnel.config(0));
    assert!(is_healthy && report["problems"] == 0, "{report:#}");
    assert!(found(&report, "ok", "daemon", "runs with pid"), "{report:#}");
    assert!(
        found(&report, "ok", "peer other", "192.0.2.2:51820 is routed to under0"),
        "{report:#}"
    );
    assert!(found(&report, "ok", "peer other", "handshake"), "{report:#}");

    // Another machine's file, wrong in every way that can be seen from here: the daemon's port, an endpoint without a way,
    // one that is routed into the tunnel, and a key that others can read.
    let broken = tunnel.broken_config();
    let (is_healthy, report) = doctor(&broken);
    assert!(!is_healthy, "{report:#}");
    assert!(found(&report, "problem", "port", "is taken"), "{report:#}");
    assert!(found(&report, "problem", "peer unreachable", "no way to"), "{report:#}");
    assert!(found(&report, "problem", "interface", "no daemon"), "{report:#}");
    assert!(
        found(&report, "problem", "peer loop", "routed into the tunnel"),
        "{report:#}"
    );
    assert!(
        found(&report, "warning", "configuration", "other users can access"),
        "{report:#}"
    );
    let (is_healthy, report) = doctor(&tunnel.invalid_config());
    assert!(
        !is_healthy && found(&report, "problem", "configuration", "unknown key"),
        "{report:#}"
    );
}
