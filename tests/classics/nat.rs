//! A client behind a NAT.
//!
//! ```text
//!   a (client)            r (NAT)                       b (server)
//!   10.5.0.2 ------------ 10.5.0.1  198.51.100.1 ------ 198.51.100.2
//! ```

use std::thread;
use std::time::Duration;

use crate::lab::{Lab, Namespace, UNDERLAY, wait_until};
use crate::pair::{End, PATIENCE, Pair, lab, nft};
use crate::traffic::{Transfer, connect};

const SERVER: &str = "198.51.100.2";
/// How long the NAT remembers a silent mapping, in seconds.
const MAPPING_S: u64 = 2;

struct Nat {
    router: Namespace,
    lab: Lab,
}

impl Nat {
    fn new() -> Option<Nat> {
        let lab = lab()?;
        lab.a.ip(&["link", "delete", UNDERLAY]);
        let router = Namespace::new(format!("{}-r", lab.a.name));
        for (host, own, far, address, gateway) in [
            (&lab.a, "inside", "eth0", "10.5.0.2/24", "10.5.0.1/24"),
            (&lab.b, "outside", "eth0", "198.51.100.2/24", "198.51.100.1/24"),
        ] {
            router.ip(&[
                "link", "add", own, "type", "veth", "peer", "name", far, "netns", &host.name,
            ]);
            router.ip(&["address", "add", gateway, "dev", own]);
            router.ip(&["link", "set", own, "up"]);
            host.ip(&["address", "add", address, "dev", far]);
            host.ip(&["link", "set", far, "up"]);
        }
        lab.a.ip(&["route", "add", "default", "via", "10.5.0.1"]);
        // An address outlives the one that was there before it.
        for setting in ["ip_forward=1", "conf.all.promote_secondaries=1"] {
            router.run(&["sysctl", "-qw", &format!("net.ipv4.{setting}")]);
        }
        nft(
            &router,
            "table ip nat { chain out { type nat hook postrouting priority 100; oif outside masquerade fully-random; }; }",
        );
        // These keys appear with the first NAT rule.
        for key in ["udp_timeout", "udp_timeout_stream"] {
            router.run(&[
                "sysctl",
                "-qw",
                &format!("net.netfilter.nf_conntrack_{key}={MAPPING_S}"),
            ]);
        }
        Some(Nat { router, lab })
    }

    /// Silence for longer than the NAT remembers.
    fn fall_silent() {
        thread::sleep(Duration::from_millis(MAPPING_S * 1000 + 1300));
    }
}

#[test]
fn keepalives_keep_a_nat_open_and_the_server_follows_a_new_mapping() {
    let Some(nat) = Nat::new() else { return };
    let lab = &nat.lab;
    let pairs = Pair::of_both_suites(lab);
    for pair in &pairs {
        pair.point(End::A, SERVER);
        pair.wait_until_packets_pass(lab);
        assert!(pair.endpoint(End::B).starts_with("198.51.100.1:"), "the NAT's address");
        pair.set_peer(End::A, &["persistent-keepalive", "1"]);
    }
    let before = pairs.each_ref().map(|pair| pair.endpoint(End::B));
    Nat::fall_silent();
    for pair in &pairs {
        assert!(lab.b.answers(pair.v4[0], 56), "the mapping is open");
    }
    assert_eq!(pairs.each_ref().map(|pair| pair.endpoint(End::B)), before);
    for pair in &pairs {
        pair.set_peer(End::A, &["persistent-keepalive", "off"]);
    }
    Nat::fall_silent();
    for pair in &pairs {
        assert!(!lab.b.ping(pair.v4[0], 56), "nobody kept the mapping open");
    }
    for (pair, before) in pairs.iter().zip(before) {
        assert!(
            lab.a.answers(pair.v4[1], 56),
            "a new mapping, and the server has followed"
        );
        assert_ne!(pair.endpoint(End::B), before);
        assert!(lab.b.answers(pair.v4[0], 56));
    }
}

#[test]
fn a_transfer_outlives_a_nat_that_gets_another_address() {
    let Some(nat) = Nat::new() else { return };
    let lab = &nat.lab;
    for pair in Pair::of_both_suites(lab) {
        pair.point(End::A, SERVER);
        pair.wait_until_packets_pass(lab);
        let handshake = pair.latest_handshake();
        let connection = connect(lab, pair.v4[1]);
        thread::scope(|scope| {
            let transfer = Transfer::start(scope, &connection, [u64::MAX; 2]);
            transfer.wait_for_progress();
            let before = pair.endpoint(End::B);
            // With its address the NAT forgets the mappings to it.
            for (there, then) in [
                ("198.51.100.1/24", "198.51.100.9/24"),
                ("198.51.100.9/24", "198.51.100.1/24"),
            ] {
                nat.router.ip(&["address", "add", then, "dev", "outside"]);
                nat.router.ip(&["address", "delete", there, "dev", "outside"]);
                wait_until("the server to follow", PATIENCE, || {
                    let now = pair.endpoint(End::B);
                    now.starts_with(then.trim_end_matches("/24")) && now != before
                });
                transfer.wait_for_progress();
            }
            transfer.finish();
        });
        assert_eq!(pair.latest_handshake(), handshake, "all in one session");
    }
}
