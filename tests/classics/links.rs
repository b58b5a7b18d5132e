//! Hosts with several addresses and several links, and links that change.

use std::thread;

use crate::lab::{self, Lab, UNDERLAY, UNDERLAY_V4, wait_until};
use crate::pair::{End, PATIENCE, Pair, lab, status};
use crate::roaming::IN_FLIGHT;
use crate::traffic::{Transfer, connect, send_one_file};

#[test]
fn an_answer_leaves_from_the_address_that_was_asked_until_that_is_gone() {
    let Some(lab) = lab() else { return };
    let pairs = Pair::of_both_suites(&lab);
    lab.b.run(&["sysctl", "-qw", "net.ipv4.conf.all.promote_secondaries=1"]);
    for (namespace, address) in [(&lab.a, "2001:db8::1"), (&lab.b, "2001:db8::2")] {
        namespace.ip(&["address", "add", &format!("{address}/64"), "dev", UNDERLAY, "nodad"]);
    }
    // Left to itself the kernel would answer from 192.0.2.2 and 2001:db8::2.
    let families = [
        ("192.0.2.22", "24", UNDERLAY_V4[1]),
        ("2001:db8::22", "64", "2001:db8::2"),
    ];
    for (asked, len, usual) in families {
        let prefix = format!("{asked}/{len}");
        lab.b.ip(&["address", "add", &prefix, "dev", UNDERLAY, "nodad"]);
        if asked.contains(':') {
            // An address that nobody prefers.
            lab.b
                .ip(&["address", "change", &prefix, "dev", UNDERLAY, "preferred_lft", "0"]);
        }
        for pair in &pairs {
            // What b still sends from its other address may come last, and is believed then.
            wait_until("a to go by the address", PATIENCE, || {
                pair.point(End::A, asked);
                thread::sleep(IN_FLIGHT);
                host_of(&pair.endpoint(End::A)) == asked
            });
            pair.wait_until_packets_pass(&lab);
            assert!(lab.b.answers(pair.v4[0], 56), "what b begins, too");
            assert_eq!(host_of(&pair.endpoint(End::A)), asked, "a has heard from nowhere else");
        }
        lab.b.ip(&["address", "delete", &prefix, "dev", UNDERLAY]);
        for pair in &pairs {
            let handshake = pair.latest_handshake();
            assert!(
                lab.b.answers(pair.v4[0], 56),
                "b falls back to the address that it has left"
            );
            assert_eq!(host_of(&pair.endpoint(End::A)), usual);
            assert_eq!(pair.latest_handshake(), handshake);
        }
    }
}

/// Two links between a and b, where b is known by an address of its own:
///
/// ```text
///   a  under0 192.0.2.1 --------- 192.0.2.2 under0  b 203.0.113.2
///      link1  198.51.100.1 --- 198.51.100.2 link1
/// ```
fn second_link(lab: &Lab) {
    let b = &lab.b.name;
    lab.a.ip(&[
        "link", "add", "link1", "type", "veth", "peer", "name", "link1", "netns", b,
    ]);
    for (namespace, address) in [(&lab.a, "198.51.100.1/24"), (&lab.b, "198.51.100.2/24")] {
        namespace.ip(&["address", "add", address, "dev", "link1"]);
        namespace.ip(&["link", "set", "link1", "up"]);
    }
    lab.b.ip(&["address", "add", "203.0.113.2/32", "dev", "lo"]);
    lab.a
        .ip(&["route", "add", "203.0.113.2", "via", "192.0.2.2", "metric", "10"]);
    lab.a
        .ip(&["route", "add", "203.0.113.2", "via", "198.51.100.2", "metric", "20"]);
}

#[test]
fn a_transfer_goes_on_over_another_link_when_the_route_moves_and_comes_back_with_it() {
    for suite in crate::pair::SUITES {
        let Some(lab) = lab() else { return };
        second_link(&lab);
        let pair = Pair::new(&lab, suite);
        pair.point(End::A, "203.0.113.2");
        pair.wait_until_packets_pass(&lab);
        let handshake = pair.latest_handshake();
        let connection = connect(&lab, pair.v4[1]);
        thread::scope(|scope| {
            let transfer = Transfer::start(scope, &connection, [u64::MAX; 2]);
            let arrives_from = |address: &str| {
                // Until that rests: a link which is left before answers have come by it counts as one that they never came by.
                let mut looks = 0;
                wait_until(&format!("b to hear from {address}"), PATIENCE, || {
                    let is_there = host_of(&pair.endpoint(End::B)) == address;
                    looks = if is_there { looks + 1 } else { 0 };
                    looks == 25
                });
                transfer.wait_for_progress();
            };
            arrives_from("192.0.2.1");
            // A better route, while the first link works on: packets still come in by it for a moment.
            lab.a
                .ip(&["route", "add", "203.0.113.2", "via", "198.51.100.2", "metric", "5"]);
            arrives_from("198.51.100.1");
            lab.a
                .ip(&["route", "delete", "203.0.113.2", "via", "198.51.100.2", "metric", "5"]);
            arrives_from("192.0.2.1");
            // A link that dies; its address stays configured.
            lab.a.ip(&["link", "set", UNDERLAY, "down"]);
            arrives_from("198.51.100.1");
            lab.a.ip(&["link", "set", UNDERLAY, "up"]);
            lab.a
                .ip(&["route", "add", "203.0.113.2", "via", "192.0.2.2", "metric", "10"]);
            arrives_from("192.0.2.1");
            transfer.finish();
        });
        // b's address is on no link, so it is b's on all of them.
        assert_eq!(host_of(&pair.endpoint(End::A)), "203.0.113.2");
        // A peer that is looked for after a silence is found by a handshake.
        assert_eq!(pair.latest_handshake(), handshake, "{suite}: it never came to silence");
    }
}

#[test]
fn a_path_that_was_narrow_is_used_whole_when_it_is_wide_again() {
    let Some(lab) = lab() else { return };
    let pair = Pair::new(&lab, "native");
    pair.point(End::A, UNDERLAY_V4[1]);
    pair.wait_until_packets_pass(&lab);
    let known = || status(&pair.a)["peers"][0]["mtu"].as_u64();
    assert_eq!(known(), None);
    // Once: from then on the sender inside knows the narrow path, and sends nothing that is refused.
    set_mtu(&lab, "1300");
    wait_until("a to learn of the narrow path", PATIENCE, || {
        send_one_file(connect(&lab, pair.v4[1]), 1 << 20);
        known() == Some(1300 - 60)
    });
    set_mtu(&lab, "1500");
    wait_until("a to learn of the wide path", PATIENCE, || known().is_none());
    send_one_file(connect(&lab, pair.v4[1]), 1 << 20);
}

fn set_mtu(lab: &Lab, mtu: &str) {
    for namespace in [&lab.a, &lab.b] {
        namespace.ip(&["link", "set", UNDERLAY, "mtu", mtu]);
    }
}

#[test]
fn an_interface_moves_to_another_namespace_and_back_and_packets_pass_in_both() {
    let Some(lab) = lab() else { return };
    let inside = lab::Namespace::new(format!("{}-inside", lab.a.name));
    for pair in Pair::of_both_suites(&lab) {
        pair.point(End::A, UNDERLAY_V4[1]);
        pair.wait_until_packets_pass(&lab);
        let handshake = pair.latest_handshake();
        let name = &pair.a.name;
        lab.a.ip(&["link", "set", name, "netns", &inside.name]);
        pair.bring_up(&inside, &pair.a, 0);
        wait_until("an answer inside", PATIENCE, || inside.ping(pair.v4[1], 56));
        assert!(lab.b.answers(pair.v6[0], 1300));
        inside.ip(&["link", "set", name, "netns", &lab.a.name]);
        pair.bring_up(&lab.a, &pair.a, 0);
        pair.wait_until_packets_pass(&lab);
        assert!(
            host_of(&pair.endpoint(End::B)) == UNDERLAY_V4[0],
            "the sockets have never moved"
        );
        assert_eq!(pair.latest_handshake(), handshake);
    }
}

/// The address of `ADDRESS:PORT`.
fn host_of(endpoint: &str) -> &str {
    let (host, _) = endpoint.rsplit_once(':').expect("it has a port");
    host.trim_matches(['[', ']'])
}
