//! A gateway and a kill switch among hosts in network namespaces. Needs root, nft and python3; elsewhere each test prints
//! why it is skipped and passes.
//!
//! Run them one at a time: `cargo test --test gateway -- --test-threads=1`.

mod by_hand;
mod capture;
mod hosts;
#[path = "../netns/lab.rs"]
#[expect(dead_code, reason = "another program's tests use the rest of the lab")]
mod lab;
mod lockdown;
mod proof;
mod readme;
#[path = "../netns/says.rs"]
mod says;

use std::time::Duration;

use nix::sys::signal::Signal;

use capture::{Capture, Frame};
use hosts::{EGRESS, Hosts, INTERNET_V4, INTERNET_V6, RINGWAY, UPLINK_V4, UPLINK_V6};
use lab::wait_until;

const PATIENCE: Duration = Duration::from_secs(20);
const TABLE: [&str; 5] = ["nft", "list", "table", "inet", "ringway-gateway-rw0"];

/// Waits for an answer.
fn ping_until(host: &lab::Namespace, address: &str) {
    wait_until(&format!("an answer from {address}"), PATIENCE, || {
        host.ping(address.parse().expect("an address"), 56)
    });
}

#[test]
fn masqueraded_peers_reach_the_internet_under_the_gateways_address() {
    let Some(mut hosts) = Hosts::new("[gateway]") else {
        return;
    };
    hosts.start();
    assert_eq!(hosts.address_seen_from(0, INTERNET_V4), Some(UPLINK_V4.into()));
    assert_eq!(hosts.address_seen_from(0, INTERNET_V6), Some(UPLINK_V6.into()));
    // From outside nothing leads to a peer, and peers do not reach each other.
    hosts.internet.ip(&["route", "add", "10.99.0.0/24", "via", UPLINK_V4]);
    hosts.internet.ip(&["route", "add", "fd99::/64", "via", UPLINK_V6]);
    for (peer, other) in hosts.inner(0).into_iter().zip(hosts.inner(1)) {
        assert!(!hosts.internet.ping(peer, 56), "internet -> {peer}");
        assert!(!hosts.clients[0].ping(other, 56), "c0 -> {other}");
    }
    // The gateway itself.
    for address in ["10.99.0.1", "fd99::1"] {
        ping_until(&hosts.clients[0], address);
    }

    // What the operator has is left alone, also by the end.
    let rules = "table inet theirs { chain forward { type filter hook forward priority 5; counter; }; }";
    hosts.nft(rules);
    let before = hosts.gateway.run(&["nft", "-s", "list", "table", "inet", "theirs"]);
    assert!(hosts.gateway.try_run(&TABLE).is_ok());
    assert_eq!(hosts.is_forwarding(EGRESS), [true, true]);
    assert!(hosts.end_gateway(Signal::SIGTERM).success());
    assert!(hosts.gateway.try_run(&TABLE).is_err(), "the table went with the daemon");
    assert_eq!(hosts.is_forwarding(EGRESS), [false, false], "as it was before");
    assert_eq!(
        hosts.gateway.run(&["nft", "-s", "list", "table", "inet", "theirs"]),
        before
    );
}

#[test]
fn routed_peers_keep_their_addresses_and_can_be_reached() {
    let Some(mut hosts) = Hosts::new("[gateway]\nmasquerade = \"off\"\negress = [\"up0\"]") else {
        return;
    };
    hosts.internet.ip(&["route", "add", "10.99.0.0/24", "via", UPLINK_V4]);
    hosts.internet.ip(&["route", "add", "fd99::/64", "via", UPLINK_V6]);
    hosts.start();
    assert_eq!(hosts.address_seen_from(0, INTERNET_V4).as_deref(), Some("10.99.0.2"));
    assert_eq!(hosts.address_seen_from(0, INTERNET_V6).as_deref(), Some("fd99::2"));
    ping_until(&hosts.internet, "10.99.0.2");
}

#[test]
fn ipv4_can_be_masqueraded_while_ipv6_is_routed() {
    let Some(mut hosts) = Hosts::new("[gateway]\nmasquerade = \"ipv4\"") else {
        return;
    };
    hosts.internet.ip(&["route", "add", "fd99::/64", "via", UPLINK_V6]);
    hosts.start();
    assert_eq!(hosts.address_seen_from(0, INTERNET_V4), Some(UPLINK_V4.into()));
    assert_eq!(hosts.address_seen_from(0, INTERNET_V6).as_deref(), Some("fd99::2"));
}

#[test]
fn the_mss_of_connections_through_the_tunnel_is_held_to_its_mtu() {
    for (gateway, clamped) in [("[gateway]", true), ("[gateway]\nmss_clamp = false", false)] {
        let Some(mut hosts) = Hosts::new(gateway) else { return };
        hosts.start();
        // Wider than the gateway's end: the SYN promises more than comes through.
        hosts.clients[0].ip(&["link", "set", "rw0", "mtu", "1480"]);
        hosts.gateway.ip(&["link", "set", "rw0", "mtu", "1300"]);
        for (server, headers_len) in [(INTERNET_V4, 20 + 20), (INTERNET_V6, 40 + 20)] {
            let capture = Capture::start(&hosts.internet);
            hosts.address_seen_from(0, server);
            let frames = capture.end();
            let mss = frames.iter().find_map(Frame::mss_of_first_syn).expect("a SYN came");
            assert_eq!(
                mss,
                if clamped { 1300 } else { 1480 } - headers_len,
                "{gateway}: {server}"
            );
        }
    }
}

#[test]
fn peers_reach_each_other_where_they_may_and_nobody_else_is_let_in_between() {
    let policies = [
        ("true", [true, true]),
        ("[[\"c0\", \"c1\"]]", [true, false]),
        ("[]", [false, false]),
    ];
    let Some(mut hosts) = Hosts::with_clients(3, "[gateway]") else {
        return;
    };
    hosts.start();
    for (policy, expected) in policies {
        hosts.reload(&format!("[gateway]\npeer_to_peer = {policy}"));
        for (other, expected) in [1, 2].into_iter().zip(expected) {
            for address in hosts.inner(other) {
                match expected {
                    true => ping_until(&hosts.clients[0], &address.to_string()),
                    false => assert!(
                        !hosts.clients[0].ping(address, 56),
                        "peer_to_peer = {policy}: c0 -> {address}"
                    ),
                }
            }
        }
    }
}

#[test]
fn each_peer_reaches_what_its_policy_says() {
    let Some(mut hosts) = Hosts::new("[gateway]\npeer_to_peer = true") else {
        return;
    };
    for address in ["198.51.100.7/32", "2001:db8:7::7/128"] {
        hosts.internet.ip(&["address", "add", address, "dev", "lo", "nodad"]);
    }
    hosts.gateway.ip(&["address", "add", "192.0.2.99/32", "dev", "lo"]);
    hosts.policies = vec![
        format!("deny = [\"{INTERNET_V4}/32\", \"192.0.2.99\", \"2001:db8:7::/64\"]"),
        "allow = [\"198.51.100.0/24\", \"2001:db8:7::/64\"]".into(),
    ];
    hosts.start();
    let expect = |hosts: &Hosts, client: usize, reached: &[&str], denied: &[&str]| {
        for address in reached {
            ping_until(&hosts.clients[client], address);
        }
        for address in denied {
            let address = address.parse().expect("an address");
            assert!(!hosts.clients[client].ping(address, 56), "c{client} -> {address}");
        }
    };
    let denied = [INTERNET_V4, "192.0.2.99", "2001:db8:7::7"];
    expect(&hosts, 0, &["198.51.100.7", INTERNET_V6], &denied);
    let reached = ["198.51.100.7", "2001:db8:7::7", "10.99.0.1", "fd99::1"];
    let denied = [INTERNET_V4, INTERNET_V6, "192.0.2.99", "10.99.0.2", "fd99::2"];
    expect(&hosts, 1, &reached, &denied);

    // Changed while it runs.
    hosts.policies = vec!["internet = false".into(), String::new()];
    hosts.reload("[gateway]\npeer_to_peer = true");
    let reached = ["10.99.0.3", "fd99::3", "192.0.2.99"];
    expect(&hosts, 0, &reached, &[INTERNET_V4, INTERNET_V6]);
    expect(&hosts, 1, &[INTERNET_V4, INTERNET_V6], &[]);
}

#[test]
fn what_a_killed_daemon_left_is_replaced_and_the_egress_follows_the_default_route() {
    let Some(mut hosts) = Hosts::new("[gateway]") else {
        return;
    };
    hosts.start();
    hosts.end_gateway(Signal::SIGKILL);
    let left = hosts.gateway.run(&TABLE);
    assert!(left.contains("\"up0\"") && !left.contains("\"dead0\""), "{left}");
    hosts.nft("add element inet ringway-gateway-rw0 egress { \"dead0\" }");
    hosts.start();
    assert!(!hosts.gateway.run(&TABLE).contains("dead0"), "the rules are new");

    hosts
        .gateway
        .ip(&["link", "add", "other0", "type", "veth", "peer", "name", "other1"]);
    for end in ["other0", "other1"] {
        hosts.gateway.ip(&["link", "set", end, "up"]);
    }
    hosts.gateway.ip(&["route", "replace", "default", "dev", "other0"]);
    hosts
        .gateway
        .ip(&["-6", "route", "replace", "default", "dev", "other0"]);
    wait_until("rules for the new egress", PATIENCE, || {
        let rules = hosts.gateway.run(&TABLE);
        rules.contains("\"other0\"") && !rules.contains("\"up0\"")
    });
    wait_until("forwarding", PATIENCE, || hosts.is_forwarding("other0") == [true, true]);

    assert!(hosts.end_gateway(Signal::SIGTERM).success());
    assert!(hosts.gateway.try_run(&TABLE).is_err());
    for interface in [EGRESS, "other0"] {
        assert_eq!(
            hosts.is_forwarding(interface),
            [false, false],
            "{interface}: as before the daemon that was killed"
        );
    }
}

#[test]
fn rules_for_thousands_of_peers_and_every_kind_of_prefix_are_taken_by_the_kernel() {
    let Some(mut hosts) = Hosts::new("[gateway]\npeer_to_peer = [[\"whole\", \"part\"]]") else {
        return;
    };
    let public = |i: u32| {
        let mut key = [7; 32];
        key[..4].copy_from_slice(&i.to_le_bytes());
        hosts::base64(&key)
    };
    let peer = |i: u32, name: &str, allowed: &str, more: &str| {
        let key = public(i);
        format!("[[peer]]\nname = \"{name}\"\npublic_key = \"{key}\"\nallowed_ips = [{allowed}]\n{more}\n")
    };
    let more: String = (0..5000)
        .map(|i: u32| {
            let address = format!("\"10.{}.{}.1/32\", \"fd00:{i:x}::/64\"", 100 + i / 256, i % 256);
            peer(
                i,
                &format!("p{i}"),
                &address,
                if i.is_multiple_of(2) {
                    "deny = [\"192.168.0.0/16\"]"
                } else {
                    ""
                },
            )
        })
        .collect();
    hosts.more = more
        + &peer(6000, "whole", "\"172.16.0.0/12\", \"2000::/3\"", "internet = false")
        + &peer(
            6001,
            "part",
            "\"172.16.5.0/24\", \"2001:db8::/32\"",
            "allow = [\"10.0.0.0/8\", \"10.1.0.0/16\", \"::/0\"]",
        );
    hosts.start();
    let rules = hosts.gateway.run(&TABLE);
    assert!(
        rules.contains("172.16.0.0-172.16.4.255 : jump peer_"),
        "{}",
        &rules[..2000]
    );
    assert_eq!(hosts.address_seen_from(0, INTERNET_V4), Some(UPLINK_V4.into()));
}

#[test]
fn a_gateway_without_nft_says_what_to_install() {
    let Some(hosts) = Hosts::new("[gateway]") else { return };
    let config = hosts.write_gateway_config();
    // A root directory in which neither PATH nor the usual places have it.
    let script = format!(
        "mount -t tmpfs none /usr/sbin; [ -L /sbin ] || mount -t tmpfs none /sbin; PATH=/nowhere exec {RINGWAY} run {}",
        config.display()
    );
    let output = hosts
        .gateway
        .command("unshare")
        .args(["-m", "sh", "-c", &script])
        .output()
        .expect("unshare is installed");
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("the program nft is not installed"), "{text}");
    assert!(!hosts.gateway.has_interface("rw0"));
}
