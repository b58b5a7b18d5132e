//! Peers that move to other addresses, families and ports while packets pass.

use std::net::IpAddr;
use std::thread;
use std::time::Duration;

use crate::lab::{Lab, UNDERLAY, UNDERLAY_V4, wait_until};
use crate::pair::{End, PATIENCE, Pair, SUITES, lab, status};
use crate::traffic::{Transfer, connect, echo_datagrams};

const V6: [&str; 2] = ["2001:db8::1", "2001:db8::2"];
const ELSEWHERE: &str = "192.0.2.11";

/// Longer than a packet stays in a socket's queue.
pub(crate) const IN_FLIGHT: Duration = Duration::from_millis(150);

/// So many flows use every worker: all of 16 hash to one queue of two once in 2^15 times.
const FLOWS: usize = 16;

#[test]
fn a_peer_is_followed_to_other_addresses_families_and_ports_under_traffic() {
    for suite in SUITES {
        let Some(lab) = lab() else { return };
        for (namespace, address) in [&lab.a, &lab.b].into_iter().zip(V6) {
            namespace.ip(&["address", "add", &format!("{address}/64"), "dev", UNDERLAY, "nodad"]);
        }
        let pair = Pair::new(&lab, suite);
        pair.point(End::A, UNDERLAY_V4[1]);
        pair.wait_until_packets_pass(&lab);
        let handshake = pair.latest_handshake();
        let connection = connect(&lab, pair.v4[1]);
        thread::scope(|scope| {
            let transfer = Transfer::start(scope, &connection, [u64::MAX; 2]);
            let follows = |expected: &str| {
                wait_until(&format!("b to follow to {expected}"), PATIENCE, || {
                    pair.endpoint(End::B).starts_with(expected)
                });
                transfer.wait_for_progress();
                every_lane_follows(&lab, &pair, pair.v4[1], suite);
            };
            transfer.wait_for_progress();
            // Another address: what is sent to the old one is lost from here on.
            lab.a.run(&["sysctl", "-qw", "net.ipv4.conf.all.promote_secondaries=1"]);
            lab.a
                .ip(&["address", "add", &format!("{ELSEWHERE}/24"), "dev", UNDERLAY]);
            lab.a
                .ip(&["address", "delete", &format!("{}/24", UNDERLAY_V4[0]), "dev", UNDERLAY]);
            follows(ELSEWHERE);
            for (address, expected) in [(V6[1], "[2001:db8::1]:"), (UNDERLAY_V4[1], ELSEWHERE)] {
                // What b still sends to the old address may come last, and is believed then: both go back.
                let settled = || {
                    thread::sleep(IN_FLIGHT);
                    pair.endpoint(End::A).contains(address) && pair.endpoint(End::B).starts_with(expected)
                };
                wait_until("both to use the other family", PATIENCE, || {
                    pair.point(End::A, address);
                    settled() && settled()
                });
                follows(expected);
            }
            for port in ["42051", "42052"] {
                pair.a.wg("set", &["listen-port", port]);
                follows(&format!("{ELSEWHERE}:{port}"));
            }
            // The other way round: a follows b.
            pair.b.wg("set", &["listen-port", "42053"]);
            wait_until("a to follow", PATIENCE, || {
                pair.endpoint(End::A) == format!("{}:42053", UNDERLAY_V4[1])
            });
            transfer.wait_for_progress();
            transfer.finish();
        });
        assert_eq!(pair.latest_handshake(), handshake, "{suite}: all in one session");
        for end in [End::A, End::B] {
            for reason in ["forged", "replayed", "bad_source", "unknown_index"] {
                assert_eq!(pair.drops(end, reason), 0, "{suite}: {reason}");
            }
        }
    }
}

/// Datagrams of many flows come back, over both lanes of b.
fn every_lane_follows(lab: &Lab, pair: &Pair, to: IpAddr, suite: &str) {
    let sent = || {
        let workers = status(&pair.b)["workers"].take();
        let workers = workers.as_array().expect("a list").clone();
        workers
            .iter()
            .map(|worker| worker["tx"]["packets"].as_u64().expect("a number"))
            .collect::<Vec<_>>()
    };
    let before = sent();
    for _ in 0..FLOWS {
        echo_datagrams(lab, to, &[vec![100, 1000]]);
    }
    let after = sent();
    assert_eq!(after.len(), 2);
    let each_has = before.iter().zip(&after).all(|(before, after)| after > before);
    // A WireGuard session has one lane, and the TUN gives answers to the worker that brought the question.
    assert!(
        each_has || suite == "wireguard",
        "a worker of b has sent nothing: {before:?}, {after:?}"
    );
}

#[test]
fn both_ends_may_move_one_after_the_other() {
    let Some(lab) = lab() else { return };
    for pair in Pair::of_both_suites(&lab) {
        pair.point(End::A, UNDERLAY_V4[1]);
        pair.wait_until_packets_pass(&lab);
        pair.a.wg("set", &["listen-port", "0"]);
        assert!(lab.a.answers(pair.v4[1], 56));
        pair.b.wg("set", &["listen-port", "0"]);
        assert!(lab.b.answers(pair.v4[0], 56));
        for (end, other, host) in [(End::A, &pair.b, 1), (End::B, &pair.a, 0)] {
            assert_eq!(
                pair.endpoint(end),
                format!("{}:{}", UNDERLAY_V4[host], other.listen_port())
            );
        }
    }
}
