//! `lane_ports = true`: each worker's data leaves from a UDP port of its own where that gets through.

use std::time::Duration;

use crate::daemon::{Daemon, Setup, Tunnel};
use crate::lab::{Lab, Namespace, UNDERLAY, wait_until};
use crate::traffic::{connect, exchange_files, iperf3};
use crate::{MIB, scaled, uring_is_allowed};

/// Longer than it takes to notice that echoes are missed, on a slow machine.
const PATIENCE: Duration = Duration::from_secs(20);

/// Two tunnels' ends with lane ports.
fn up(io: &'static str) -> Option<Tunnel> {
    if io == "uring" && !uring_is_allowed() {
        return None;
    }
    let setup = Setup {
        io,
        workers: 2,
        lane_ports: true,
        ..Setup::default()
    };
    Some(Tunnel::up(Lab::new()?, setup))
}

/// Handles datagrams to the shared port that come from other ports by `verdict`, and counts them.
fn filter(namespace: &Namespace, verdict: &str) {
    let rule = format!("add rule inet lanes input udp dport 51820 udp sport != 51820 counter {verdict}");
    namespace.run(&["nft", "add table inet lanes"]);
    namespace.run(&[
        "nft",
        "add chain inet lanes input { type filter hook input priority 0; }",
    ]);
    namespace.run(&["nft", &rule]);
}

/// How many datagrams the filter saw.
fn counted(namespace: &Namespace) -> u64 {
    let rules = namespace.run(&["nft", "list chain inet lanes input"]);
    let count = rules.split("packets ").nth(1).and_then(|rest| rest.split(' ').next());
    count.expect("the rule counts").parse().expect("a number")
}

/// Data messages that left from each worker's own port.
fn by_lane_port(daemon: &Daemon) -> Vec<u64> {
    let status = daemon.status();
    let workers = status["workers"].as_array().expect("a list of workers");
    let count = |worker: &serde_json::Value| worker["lane_port_datagrams"].as_u64().expect("a number");
    workers.iter().map(count).collect()
}

#[test]
fn every_lane_leaves_from_its_own_port() {
    for io in ["uring", "syscall"] {
        let Some(mut tunnel) = up(io) else { continue };
        for namespace in [&tunnel.lab.a, &tunnel.lab.b] {
            filter(namespace, "accept");
        }
        for address in tunnel.addresses_of_b() {
            exchange_files(connect(&tunnel.lab, address), scaled(8 * MIB));
        }
        let address = tunnel.addresses_of_b()[0];
        wait_until("both lanes of a to be used", PATIENCE, || {
            iperf3(&tunnel.lab, address, &["-P", "8", "-t", "1"]);
            by_lane_port(&tunnel.a).iter().all(|&count| count > 1000)
        });
        for (daemon, far) in [(&tunnel.a, &tunnel.lab.b), (&tunnel.b, &tunnel.lab.a)] {
            let sent: u64 = by_lane_port(daemon).iter().sum();
            assert!(sent > 0 && counted(far) > 0, "{io}: {sent} sent, {} seen", counted(far));
        }
        tunnel.assert_healthy();
    }
}

#[test]
fn a_firewall_that_knows_the_shared_port_only_stops_nothing() {
    let Some(mut tunnel) = up("auto") else { return };
    let address = tunnel.addresses_of_b()[0];
    // Some data by the lanes' ports first, so that they must be given up.
    exchange_files(connect(&tunnel.lab, address), scaled(8 * MIB));
    for namespace in [&tunnel.lab.a, &tunnel.lab.b] {
        filter(namespace, "drop");
    }
    exchange_files(connect(&tunnel.lab, address), scaled(8 * MIB));
    assert!(counted(&tunnel.lab.a) > 0 && counted(&tunnel.lab.b) > 0);
    // Echoes that were answered before count for a while.
    wait_until("only echoes to try it yet", PATIENCE, || {
        let before = by_lane_port(&tunnel.a);
        exchange_files(connect(&tunnel.lab, address), scaled(8 * MIB));
        by_lane_port(&tunnel.a) == before
    });
    tunnel.assert_healthy();
}

#[test]
fn an_end_that_moves_is_followed() {
    let Some(mut tunnel) = up("auto") else { return };
    let address = tunnel.addresses_of_b()[0];
    exchange_files(connect(&tunnel.lab, address), scaled(8 * MIB));
    tunnel.lab.a.ip(&["address", "add", "192.0.2.77/24", "dev", UNDERLAY]);
    tunnel.lab.a.ip(&["address", "del", "192.0.2.1/24", "dev", UNDERLAY]);
    // Deleting the first address took the second one along, unless the kernel promotes secondaries.
    tunnel
        .lab
        .a
        .ip(&["address", "replace", "192.0.2.77/24", "dev", UNDERLAY]);
    wait_until("an answer at the new address", PATIENCE, || {
        tunnel.lab.a.ping(address, 56)
    });
    exchange_files(connect(&tunnel.lab, address), scaled(8 * MIB));
    let endpoint = tunnel.b.status()["peers"][0]["endpoint"].clone();
    assert_eq!(endpoint, "192.0.2.77:51820");
    tunnel.assert_healthy();
}
