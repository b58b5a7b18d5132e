//! Real packets through real tunnels between two network namespaces. Needs root (or the namespaces that
//! `scripts/test` makes); elsewhere each test prints "skipped: needs root" and passes.
//!
//! Run them one at a time: `cargo test --test netns -- --test-threads=1`.

mod daemon;
mod lab;
mod lane_ports;
mod traffic;

use std::thread;
use std::time::Duration;

use hdrhistogram::serialization::interval_log::{IntervalLogIterator, LogEntry};
use nix::sys::signal::Signal;

use crate::daemon::{INTERFACE, Setup, Tunnel};
use crate::lab::{Lab, UNDERLAY, wait_until};
use crate::traffic::{carry, connect, echo_datagrams, exchange_files, iperf3, send_one_file, under_traffic};

const MIB: u64 = 1 << 20;

/// Time for two ends to agree again after one of them was lost: 15 s until a silent peer is noticed (keepalive and rekey
/// timeouts of the WireGuard paper, section 6), a handshake retry, and a slow machine.
const RECOVERY: Duration = Duration::from_secs(40);

macro_rules! carries_everything {
    ($($name:ident: $io:literal, $suite:literal, $workers:literal;)+) => {
        $(#[test] fn $name() { carries_everything(Setup { io: $io, suite: $suite, workers: $workers, ..Setup::default() }); })+
    };
}

carries_everything! {
    carries_everything_with_uring_native_1_worker: "uring", "native", 1;
    carries_everything_with_uring_native_2_workers: "uring", "native", 2;
    carries_everything_with_uring_wireguard_1_worker: "uring", "wireguard", 1;
    carries_everything_with_uring_wireguard_2_workers: "uring", "wireguard", 2;
    carries_everything_with_syscall_native_1_worker: "syscall", "native", 1;
    carries_everything_with_syscall_native_2_workers: "syscall", "native", 2;
    carries_everything_with_syscall_wireguard_1_worker: "syscall", "wireguard", 1;
    carries_everything_with_syscall_wireguard_2_workers: "syscall", "wireguard", 2;
}

/// Pings, datagrams of all sizes, files both ways at once over IPv4 and IPv6, iperf3; then a look at the daemons.
fn carries_everything(setup: Setup) {
    if setup.io == "uring" && !uring_is_allowed() {
        return;
    }
    let Some(lab) = Lab::new() else { return };
    let mut tunnel = Tunnel::up(lab, setup);
    let lab = &tunnel.lab;
    for address in tunnel.addresses_of_b() {
        for size in [0, 56, 1300, 8000] {
            assert!(lab.a.answers(address, size), "a ping of {size} bytes to {address}");
        }
        echo_datagrams(lab, address, &datagram_runs());
    }
    thread::scope(|scope| {
        for address in tunnel.addresses_of_b() {
            for _ in 0..2 {
                let connection = connect(lab, address);
                scope.spawn(|| exchange_files(connection, scaled(10 * MIB)));
            }
        }
    });
    let address = tunnel.addresses_of_b()[0];
    let end = iperf3(lab, address, &["-P", "4"]);
    assert!(end["sum_received"]["bytes"].as_u64().expect("a number") > MIB, "{end}");
    let end = iperf3(lab, address, &["-u", "-b", "20M", "-l", "1300"]);
    assert!(end["sum"]["packets"].as_u64().expect("a number") > 1000, "{end}");
    assert!(end["sum"]["lost_percent"].as_f64().expect("a number") < 5.0, "{end}");

    for daemon in [&tunnel.a, &tunnel.b] {
        let status = daemon.status();
        let workers = status["workers"].as_array().expect("a list");
        assert_eq!(workers.len(), setup.workers as usize);
        assert!(workers.iter().all(|worker| worker["io"] == setup.io), "{workers:?}");
        assert_eq!(status["peers"][0]["suite"], setup.suite);
        let rss = daemon.rss_bytes_peak();
        assert!(rss < 64 * MIB, "{} MiB resident", rss / MIB);
    }
    tunnel.assert_healthy();
}

#[test]
fn one_stream_arrives_in_order() {
    for workers in [1, 2] {
        let Some(lab) = Lab::new() else { return };
        let tunnel = Tunnel::up(
            lab,
            Setup {
                workers,
                ..Setup::default()
            },
        );
        // Where segments were lost, later ones are early without having been reordered: only a lossless run tells.
        let lossless = (0..8).any(|_| {
            let counters = || {
                let early = tunnel.lab.b.counter("TcpExt", "TCPOFOQueue");
                (tunnel.lab.a.counter("Tcp", "RetransSegs"), early)
            };
            let before = counters();
            send_one_file(connect(&tunnel.lab, tunnel.addresses_of_b()[0]), scaled(64 * MIB));
            let after = counters();
            let [retransmitted, early] = [after.0 - before.0, after.1 - before.1];
            assert!(
                retransmitted > 0 || early == 0,
                "{early} segments came before their turn, none was lost"
            );
            retransmitted == 0
        });
        assert!(lossless, "every transfer lost packets on a link that loses none");
    }
}

#[test]
fn connections_are_spread_evenly_over_the_workers() {
    const CONNECTIONS: usize = 16;
    // With another number of workers the kernel at b leads answers back by other lanes than a's packets came by.
    for (io, more_workers_of_b) in [("uring", 0), ("syscall", 0), ("auto", 1)] {
        if io == "uring" && !uring_is_allowed() {
            continue;
        }
        let Some(lab) = Lab::new() else { return };
        let setup = Setup {
            io,
            workers: 2,
            more_workers_of_b,
            ..Setup::default()
        };
        let mut tunnel = Tunnel::up(lab, setup);
        for address in tunnel.addresses_of_b() {
            let bytes = || ["tx", "rx"].map(|way| tunnel.a.bytes_by_worker(way));
            let before = bytes();
            let connections: Vec<_> = (0..CONNECTIONS)
                .map(|_| {
                    let (a, b) = connect(&tunnel.lab, address);
                    carry([&a, &b], MIB / 4);
                    carry([&b, &a], MIB / 4);
                    (a, b)
                })
                .collect();
            for (before, after) in before.iter().zip(bytes()) {
                let moved: Vec<u64> = after.iter().zip(before).map(|(after, before)| after - before).collect();
                let total: u64 = moved.iter().sum();
                // A hash of the ports would be as even once in five times.
                let is_even = moved.iter().all(|&bytes| bytes > total * 45 / 100);
                assert!(is_even, "{setup:?}, {address}: {moved:?}");
            }
            drop(connections);
        }
        tunnel.assert_healthy();
    }
}

#[test]
fn files_survive_2_percent_loss() {
    let Some(lab) = Lab::new() else { return };
    let mut tunnel = Tunnel::up(lab, Setup::default());
    for namespace in [&tunnel.lab.a, &tunnel.lab.b] {
        namespace.run(&["nft", "add table inet lossy"]);
        namespace.run(&[
            "nft",
            "add chain inet lossy input { type filter hook input priority 0; }",
        ]);
        namespace.run(&[
            "nft",
            "add rule inet lossy input udp dport 51820 numgen random mod 100 < 2 counter drop",
        ]);
    }
    exchange_files(connect(&tunnel.lab, tunnel.addresses_of_b()[0]), scaled(8 * MIB));
    exchange_files(connect(&tunnel.lab, tunnel.addresses_of_b()[1]), scaled(8 * MIB));
    for namespace in [&tunnel.lab.a, &tunnel.lab.b] {
        let rules = namespace.run(&["nft", "list chain inet lossy input"]);
        assert!(!rules.contains("packets 0 "), "nothing was lost:\n{rules}");
    }
    tunnel.assert_healthy();
}

#[test]
fn a_narrow_underlay_carries_whole_files() {
    // Without IPv6 inside the tunnel's MTU fits the path; with it 1280 bytes must pass, in fragments.
    for ipv6 in [false, true] {
        let Some(lab) = Lab::with_mtu(1280) else { return };
        let mut tunnel = Tunnel::up(
            lab,
            Setup {
                ipv6,
                ..Setup::default()
            },
        );
        for address in tunnel.addresses_of_b() {
            assert!(tunnel.lab.a.answers(address, 4000));
            echo_datagrams(&tunnel.lab, address, &datagram_runs());
            exchange_files(connect(&tunnel.lab, address), scaled(8 * MIB));
        }
        tunnel.assert_healthy();
    }
}

#[test]
fn an_underlay_that_becomes_narrow_still_carries_whole_files() {
    let Some(lab) = Lab::new() else { return };
    let mut tunnel = Tunnel::up(lab, Setup::default());
    for address in tunnel.addresses_of_b() {
        send_one_file(connect(&tunnel.lab, address), MIB);
    }
    for namespace in [&tunnel.lab.a, &tunnel.lab.b] {
        namespace.ip(&["link", "set", UNDERLAY, "mtu", "1280"]);
    }
    for address in tunnel.addresses_of_b() {
        exchange_files(connect(&tunnel.lab, address), scaled(8 * MIB));
    }
    tunnel.assert_healthy();
}

#[test]
fn a_transfer_outlives_a_link_that_goes_down_and_up() {
    let Some(lab) = Lab::new() else { return };
    let mut tunnel = Tunnel::up(lab, Setup::default());
    let address = tunnel.addresses_of_b()[0];
    under_traffic(connect(&tunnel.lab, address), || {
        tunnel.lab.a.ip(&["link", "set", UNDERLAY, "down"]);
        wait_until("silence", Duration::from_secs(10), || !tunnel.lab.a.ping(address, 56));
        tunnel.lab.a.ip(&["link", "set", UNDERLAY, "up"]);
        wait_until("an answer", RECOVERY, || tunnel.lab.a.ping(address, 56));
    });
    tunnel.assert_healthy();
}

#[test]
fn a_transfer_outlives_a_restart_of_one_daemon() {
    let Some(lab) = Lab::new() else { return };
    let mut tunnel = Tunnel::up(lab, Setup::default());
    let address = tunnel.addresses_of_b()[0];
    under_traffic(connect(&tunnel.lab, address), || {
        let status = tunnel.b.end_by(Signal::SIGTERM);
        assert!(status.success(), "{status}");
        tunnel.start_b();
    });
    tunnel.wait_until_packets_pass(RECOVERY);
    tunnel.assert_healthy();
}

#[test]
fn starts_cleanly_after_sigkill() {
    for _ in 0..2 {
        let Some(lab) = Lab::new() else { return };
        let mut tunnel = Tunnel::up(lab, Setup::default());
        tunnel.a.end_by(Signal::SIGKILL);
        wait_until("the interface to go", Duration::from_secs(20), || {
            !tunnel.lab.a.has_interface(INTERFACE)
        });
        tunnel.start_a();
        tunnel.wait_until_packets_pass(RECOVERY);
        exchange_files(connect(&tunnel.lab, tunnel.addresses_of_b()[0]), MIB);
        tunnel.assert_healthy();
    }
}

#[test]
fn sigterm_and_sigint_remove_what_was_made() {
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        for io in ["auto", "syscall"] {
            let Some(lab) = Lab::new() else { return };
            let mut tunnel = Tunnel::up(
                lab,
                Setup {
                    io,
                    workers: 2,
                    ..Setup::default()
                },
            );
            let routes = tunnel.lab.a.run(&["ip", "route", "show", "table", "all"]);
            assert!(routes.contains(INTERFACE), "{routes}");
            let status = tunnel.a.end_by(signal);
            assert!(status.success(), "after {signal}: {status}");
            assert!(!tunnel.lab.a.has_interface(INTERFACE));
            assert!(!tunnel.a.has_control_socket());
            for family in ["-4", "-6"] {
                let routes = tunnel.lab.a.run(&["ip", family, "route", "show", "table", "all"]);
                assert!(
                    !routes.contains(INTERFACE) && !routes.contains("10.99.") && !routes.contains("fd99:"),
                    "{routes}"
                );
            }
        }
    }
}

#[test]
fn latency_logs_are_what_histogram_tools_read() {
    let Some(lab) = Lab::new() else { return };
    let tunnel = Tunnel::up(lab, Setup::default());
    send_one_file(connect(&tunnel.lab, tunnel.addresses_of_b()[0]), MIB);
    let path = tunnel.lab.directory.join("a.hlog");
    let report = tunnel.a.latency(path.to_str().expect("an ASCII path"));
    let log = std::fs::read(path).expect("the log was written");
    let tags = tags_of(&log);
    wait_until("the daemon's own log to have it too", Duration::from_secs(20), || {
        let logged = tags_of(&tunnel.a.latency_log());
        ["tun_to_udp", "udp_to_tun"]
            .iter()
            .all(|stage| logged.iter().any(|tag| tag == stage))
    });
    for stage in ["tun_to_udp", "udp_to_tun"] {
        let stages = report["stages"].as_array().expect("a list");
        let entry = stages
            .iter()
            .find(|entry| entry["name"] == stage)
            .expect("the stage is reported");
        assert!(entry["count"].as_u64().expect("a number") > 0, "{entry}");
        assert!(tags.iter().any(|tag| tag == stage), "{tags:?}");
    }
}

/// The tags of a histogram log's intervals.
fn tags_of(log: &[u8]) -> Vec<String> {
    IntervalLogIterator::new(log)
        .filter_map(|entry| match entry.expect("a well-formed line") {
            LogEntry::Interval(interval) => Some(interval.tag().expect("every stage has a tag").as_str().to_owned()),
            _ => None,
        })
        .collect()
}

/// Sizes around every boundary, each alone: empty, small, one packet of either family, several fragments. Then runs of
/// small and of equal ones, which are merged on their way.
fn datagram_runs() -> Vec<Vec<usize>> {
    let boundaries = [
        0, 1, 2, 63, 64, 65, 1171, 1172, 1173, 1191, 1192, 1193, 1231, 1232, 1233, 1371, 1372, 1373, 1391, 1392, 1393,
        1500, 4000, 9000,
    ];
    let runs = [
        vec![1000; 8],
        vec![100; 16],
        vec![0; 8],
        vec![700, 700, 300, 700, 1, 64, 64, 64, 500],
    ];
    boundaries.map(|len| vec![len]).into_iter().chain(runs).collect()
}

/// More work in `scripts/test --long`.
fn scaled(len: u64) -> u64 {
    if std::env::var_os("RINGWAY_LONG").is_some() {
        len * 16
    } else {
        len
    }
}

/// Whether the kernel lets us have a ring; prints a line where it does not.
fn uring_is_allowed() -> bool {
    let ring = io_uring::IoUring::new(2);
    if let Err(error) = &ring {
        println!("skipped: io_uring is refused here: {error}");
    }
    ring.is_ok()
}
