//! Packets of every size, and what is written on them.

use std::thread;
use std::time::Duration;

use crate::lab::{Namespace, UNDERLAY_V4, wait_until};
use crate::pair::{End, PATIENCE, Pair, counted, lab, nft};

#[test]
fn pings_of_every_size_pass_whatever_the_mtu() {
    let Some(lab) = lab() else { return };
    let pairs = Pair::of_both_suites(&lab);
    for pair in &pairs {
        pair.point(End::A, UNDERLAY_V4[1]);
        pair.wait_until_packets_pass(&lab);
    }
    for mtu in ["1420", "1280", "9000", "1500"] {
        for pair in &pairs {
            for (namespace, device) in [(&lab.a, &pair.a), (&lab.b, &pair.b)] {
                namespace.ip(&["link", "set", &device.name, "mtu", mtu]);
            }
            for address in [pair.v4[1], pair.v6[1]] {
                for size in [0, 1, 1232, 1252, 1253, 1392, 1393, 1473, 8952, 30_000, 60_000] {
                    assert!(
                        lab.a.answers(address, size),
                        "{size} bytes to {address} with an MTU of {mtu}"
                    );
                }
            }
        }
    }
    for pair in &pairs {
        for end in [End::A, End::B] {
            for reason in ["too_big", "malformed", "bad_inner", "tun_write_failed", "forged"] {
                assert_eq!(pair.drops(end, reason), 0, "{reason}");
            }
        }
    }
}

#[test]
fn both_ends_count_the_same_bytes_handshakes_included() {
    let Some(lab) = lab() else { return };
    for pair in Pair::of_both_suites(&lab) {
        // Initiation and response with their MACs, then a keepalive (WireGuard paper, section 5.4).
        const HANDSHAKE: [u64; 2] = [148 + 32, 92];
        pair.point(End::A, UNDERLAY_V4[1]);
        pair.wait_until_packets_pass(&lab);
        assert!(lab.a.answers(pair.v4[1], 1000));
        let [(received_a, sent_a), (received_b, sent_b)] = settled(&pair);
        assert_eq!((received_a, received_b), (sent_b, sent_a));
        assert!(
            sent_a > HANDSHAKE[0] + 1000 && sent_b > HANDSHAKE[1] + 1000,
            "{sent_a} and {sent_b}"
        );
    }
}

/// What each end has received and sent, once nothing is under way.
fn settled(pair: &Pair) -> [(u64, u64); 2] {
    let now = || [End::A, End::B].map(|end| <(u64, u64)>::from(pair.transfer(end)));
    let mut before = now();
    wait_until("silence", PATIENCE, || {
        thread::sleep(Duration::from_millis(300));
        let after = now();
        std::mem::replace(&mut before, after) == after
    });
    before
}

/// DSCP EF.
const EF: u8 = 0x2e << 2;

#[test]
fn outer_packets_carry_ecn_but_no_dscp_and_handshakes_are_af41() {
    let Some(lab) = lab() else { return };
    for pair in Pair::of_both_suites(&lab) {
        let (port, name) = (pair.b.listen_port(), &pair.b.name);
        nft(
            &lab.b,
            &format!(
                "table inet marks_{name} {{ chain in {{ type filter hook input priority 0;
                 udp dport {port} ip dscp af41 counter comment \"af41-{name}\"
                 udp dport {port} ip dscp ef counter comment \"ef-outside-{name}\"
                 udp dport {port} ip ecn ce counter comment \"ce-outside-{name}\"
                 udp dport {port} ip ecn ect0 counter comment \"ect0-outside-{name}\"
                 iifname {name} ip dscp ef ip ecn ce counter comment \"ef-ce-inside-{name}\"
                 iifname {name} ip dscp ef ip ecn ect0 counter comment \"ef-ect0-inside-{name}\"
                 iifname {name} ip6 dscp ef ip6 ecn ce counter comment \"ef-ce-inside6-{name}\"
                 iifname {name} ip6 dscp ef ip6 ecn ect0 counter comment \"ef-ect0-inside6-{name}\"
                 }}; }}"
            ),
        );
        let count = |what: &str| counted(&lab.b, &format!("{what}-{name}"));
        let ping = |version: &str, tos: u8| {
            let to = if version == "-4" { pair.v4[1] } else { pair.v6[1] };
            ping_marked(&lab.a, version, tos, &to.to_string())
        };
        pair.point(End::A, UNDERLAY_V4[1]);
        pair.wait_until_packets_pass(&lab);
        assert_eq!(count("af41"), 1, "one initiation");
        // The way in: RFC 6040, figure 3.
        for (version, inside) in [("-4", "inside"), ("-6", "inside6")] {
            let before = [count("ce-outside"), count("ect0-outside")];
            assert!(ping(version, EF | 0b11) && ping(version, EF | 0b10) && ping(version, EF));
            assert_eq!(
                [count("ce-outside"), count("ect0-outside")],
                before.map(|count| count + 1)
            );
            let kept = ["ce", "ect0"].map(|ecn| count(&format!("ef-{ecn}-{inside}")));
            assert_eq!(kept, [1, 1], "what is inside is as it was");
        }
        assert_eq!((count("ef-outside"), count("af41")), (0, 1));

        // The way out: figure 4. A router on the way meets congestion.
        let router = format!("router_{name}");
        let congest = format!(
            "table inet {router} {{ chain out {{ type filter hook output priority 0; udp dport {port} ip ecn set ce; }}; }}"
        );
        nft(&lab.a, &congest);
        assert!(ping("-4", EF | 0b10) && ping("-6", EF | 0b10), "it can say so");
        assert_eq!([count("ef-ce-inside"), count("ef-ce-inside6")], [2, 2]);
        assert_eq!(pair.drops(End::B, "congestion_unmarkable"), 0);
        assert!(!ping("-4", EF), "it cannot, and is dropped");
        assert_eq!(pair.drops(End::B, "congestion_unmarkable"), 1);
        nft(&lab.a, &format!("delete table inet {router}"));
        assert!(ping("-4", EF));
    }
}

/// Whether one ping with this traffic class is answered.
fn ping_marked(from: &Namespace, version: &str, tos: u8, to: &str) -> bool {
    let tos = format!("{tos:#x}");
    let ping = ["ping", version, "-n", "-q", "-c", "1", "-W", "1", "-Q", &tos, to];
    from.try_run(&ping).is_ok()
}
