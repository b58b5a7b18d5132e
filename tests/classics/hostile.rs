//! Packets that should not be, keys that are none, and routes that lead in a circle.

use base64::Engine as _;

use crate::lab::{UNDERLAY, UNDERLAY_V4, wait_until};
use crate::pair::{End, PATIENCE, Pair, lab};

#[test]
fn a_forged_inner_source_is_dropped_and_counted_until_it_is_allowed() {
    let Some(lab) = lab() else { return };
    for pair in Pair::of_both_suites(&lab) {
        pair.point(End::A, UNDERLAY_V4[1]);
        pair.wait_until_packets_pass(&lab);
        let to = [pair.v4[1], pair.v6[1]].map(|address| address.to_string());
        let forged = ["10.88.0.9", "fd88::9"];
        for (address, len) in forged.iter().zip(["32", "128"]) {
            lab.a.ip(&[
                "address",
                "add",
                &format!("{address}/{len}"),
                "dev",
                &pair.a.name,
                "nodad",
            ]);
            // So that an answer would find its way.
            lab.b
                .ip(&["route", "add", &format!("{address}/{len}"), "dev", &pair.b.name]);
        }
        let ping = |at: usize| {
            let ping = ["ping", "-n", "-q", "-c", "1", "-W", "1", "-I", forged[at], &to[at]];
            lab.a.try_run(&ping).is_ok()
        };
        for at in [0, 1] {
            assert!(!ping(at), "{}", forged[at]);
            assert_eq!(pair.drops(End::B, "bad_source"), 1 + at as u64);
        }
        pair.set_peer(
            End::B,
            &[
                "allowed-ips",
                &format!("{}/32,{}/128,10.88.0.0/16,fd88::/16", pair.v4[0], pair.v6[0]),
            ],
        );
        for at in [0, 1] {
            assert!(ping(at), "{} is allowed", forged[at]);
            lab.a.ip(&["address", "delete", forged[at], "dev", &pair.a.name]);
        }
        assert_eq!(pair.drops(End::B, "bad_source"), 2);
        for route in ["10.88.0.9/32", "fd88::9/128"] {
            lab.b.ip(&["route", "delete", route, "dev", &pair.b.name]);
        }
    }
}

/// Every encoding of a point of low order on Curve25519 (RFC 7748, section 6.1 asks for a check of the zero result that
/// they lead to): 0, 1, both of order 8, p - 1, and p and p + 1, which are 0 and 1 again.
const LOW_ORDER: [&str; 7] = [
    "0000000000000000000000000000000000000000000000000000000000000000",
    "0100000000000000000000000000000000000000000000000000000000000000",
    "e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800",
    "5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157",
    "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
];

#[test]
fn peers_with_public_keys_of_low_order_never_get_a_session_and_harm_nobody() {
    let Some(lab) = lab() else { return };
    for pair in Pair::of_both_suites(&lab) {
        pair.point(End::A, UNDERLAY_V4[1]);
        pair.wait_until_packets_pass(&lab);
        let endpoint = format!("{}:{}", UNDERLAY_V4[1], pair.b.listen_port());
        let mut keys = Vec::new();
        for (number, hex) in LOW_ORDER.iter().enumerate() {
            let bytes: Vec<u8> = (0..64).step_by(2).map(|at| byte(&hex[at..at + 2])).collect();
            let key = base64::engine::general_purpose::STANDARD.encode(bytes);
            let allowed = format!("10.66.{number}.0/24");
            lab.a.ip(&["route", "add", &allowed, "dev", &pair.a.name]);
            let peer = [
                "peer",
                &key,
                "allowed-ips",
                &allowed,
                "endpoint",
                &endpoint,
                "persistent-keepalive",
                "1",
            ];
            pair.a.wg("set", &peer);
            pair.b.wg("set", &["peer", &key, "allowed-ips", &allowed]);
            // One packet asks for a session.
            lab.a
                .try_run(&["ping", "-q", "-c", "1", "-W", "0.1", &format!("10.66.{number}.1")])
                .expect_err("nobody is there");
            lab.a.ip(&["route", "delete", &allowed, "dev", &pair.a.name]);
            keys.push(key);
        }
        for key in &keys {
            let line = pair.a.peer(key).expect("it was added");
            assert_eq!([&line[4], &line[5]], ["0", "0"], "no handshake, nothing received");
        }
        assert!(
            lab.a.answers(pair.v4[1], 56) && lab.b.answers(pair.v6[0], 56),
            "the honest peer goes on"
        );
    }
}

fn byte(hex: &str) -> u8 {
    u8::from_str_radix(hex, 16).expect("two hexadecimal digits")
}

#[test]
fn a_route_that_leads_the_tunnel_into_itself_costs_little_and_is_counted() {
    let Some(lab) = lab() else { return };
    for pair in Pair::of_both_suites(&lab) {
        pair.set_peer(End::A, &["allowed-ips", "0.0.0.0/0,::/0"]);
        pair.point(End::A, UNDERLAY_V4[1]);
        pair.wait_until_packets_pass(&lab);
        let [_, before] = pair.transfer(End::A);
        let into_itself = ["route", "add", &format!("{}/32", UNDERLAY_V4[1]), "dev", &pair.a.name];
        lab.a.ip(&into_itself);
        let to = pair.v4[1].to_string();
        for size in ["56", "1390", "8000"] {
            let flood = ["ping", "-q", "-n", "-f", "-c", "20", "-W", "1", "-s", size, &to];
            lab.a.try_run(&flood).expect_err("nothing arrives");
        }
        wait_until("the loop to be seen", PATIENCE, || {
            pair.drops(End::A, "routing_loop") >= 60
        });
        let [_, after] = pair.transfer(End::A);
        // What was asked for is 60 packets of at most six fragments each; each went once, and its fragments' rest once more.
        let most = 20 * (56 + 1390 + 8000) * 2 + 60 * 12 * 100;
        assert!(after - before < most, "{} bytes were sent", after - before);
        lab.a.ip(&["route", "delete", into_itself[2], "dev", &pair.a.name]);
        pair.wait_until_packets_pass(&lab);
        // The link to b is what it was.
        assert!(lab.a.ip(&["route", "get", UNDERLAY_V4[1]]).contains(UNDERLAY));
    }
}
