//! Whole rule sets, as text.

use super::*;
use crate::config::{Egress, PublicKey, Suite};

fn nets(texts: &[&str]) -> Vec<IpNet> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

fn peer(name: &str, allowed_ips: &[&str], policy: Policy) -> Peer {
    Peer {
        name: Some(name.into()),
        public_key: PublicKey([1; 32]),
        preshared_key: None,
        endpoint: None,
        allowed_ips: nets(allowed_ips),
        persistent_keepalive: None,
        suite: Suite::Auto,
        policy,
    }
}

fn gateway_rules(gateway: &Gateway, peers: &[Peer]) -> String {
    super::gateway(GatewayPlan {
        interface: "rw0",
        gateway,
        peers,
        addresses: &nets(&["10.99.0.1/24", "fd99::1/64"]),
        egress: &["eth0".into(), "eth1".into()],
    })
}

const DEFAULT: Gateway = Gateway {
    egress: Egress::Auto,
    masquerade: Masquerade::All,
    inbound: false,
    mss_clamp: true,
    peer_to_peer: PeerToPeer::Off,
};

#[test]
fn the_rules_of_a_plain_gateway_are_these() {
    let rules = gateway_rules(&DEFAULT, &[peer("a", &["10.99.0.2/32"], Policy::default())]);
    let expected = r#"
    set egress {
        type ifname
        elements = {
            "eth0",
            "eth1",
        }
    }
    chain clamp {
        type filter hook forward priority mangle; policy accept;
        iifname "rw0" tcp flags & (syn | rst) == syn tcp option maxseg size set rt mtu
        oifname "rw0" tcp flags & (syn | rst) == syn tcp option maxseg size set rt mtu
    }
    chain forward {
        type filter hook forward priority filter; policy accept;
        iifname "rw0" goto from_peers
        oifname "rw0" goto to_peers
    }
    chain from_peers {
        ct state established,related ct direction reply accept
        ct state invalid counter drop
        goto destinations
    }
    chain destinations {
        oifname "rw0" goto between_peers
        oifname @egress accept
        counter drop
    }
    chain between_peers {
        counter drop
    }
    chain to_peers {
        ct state established,related ct direction reply accept
        ct state invalid counter drop
        ct status dnat accept
        counter drop
    }
    chain postrouting {
        type nat hook postrouting priority srcnat; policy accept;
        iifname "rw0" oifname @egress masquerade
    }
"#;
    assert_eq!(format!("\n{rules}"), expected);
}

#[test]
fn the_rules_of_peers_with_policies_are_these() {
    let gateway = Gateway {
        masquerade: Masquerade::Off,
        inbound: true,
        mss_clamp: false,
        peer_to_peer: PeerToPeer::Groups(vec![vec!["a".into(), "b".into()]]),
        ..DEFAULT
    };
    let listed = Policy {
        internet: true,
        allow: Some(nets(&["192.168.0.0/16"])),
        deny: nets(&["10.0.0.0/8", "10.1.0.0/16", "fd00::/8"]),
    };
    let offline = Policy {
        internet: false,
        ..Policy::default()
    };
    let peers = [
        peer("a", &["10.99.0.0/30", "fd99::2/128"], listed),
        peer("b", &["10.99.0.2/32"], Policy::default()),
        peer("c", &["10.99.0.9/32"], offline),
    ];
    let expected = r#"
    set egress {
        type ifname
        elements = {
            "eth0",
            "eth1",
        }
    }
    map peers_v4 {
        type ipv4_addr : verdict
        flags interval
        elements = {
            10.99.0.0-10.99.0.1 : jump peer_0,
            10.99.0.3 : jump peer_0,
            10.99.0.9 : jump peer_2,
        }
    }
    map peers_v6 {
        type ipv6_addr : verdict
        flags interval
        elements = {
            fd99::2 : jump peer_0,
        }
    }
    set group_0_v4 {
        type ipv4_addr
        flags interval
        elements = {
            10.99.0.0-10.99.0.1,
            10.99.0.2,
            10.99.0.3,
        }
    }
    set group_0_v6 {
        type ipv6_addr
        flags interval
        elements = {
            fd99::2,
        }
    }
    chain forward {
        type filter hook forward priority filter; policy accept;
        iifname "rw0" goto from_peers
        oifname "rw0" goto to_peers
    }
    chain from_peers {
        ct state established,related ct direction reply accept
        ip saddr vmap @peers_v4
        ip6 saddr vmap @peers_v6
        goto destinations
    }
    chain peer_0 {
        ip daddr { 10.0.0.0/8 } counter drop
        ip6 daddr { fd00::/8 } counter drop
        ip daddr { 10.99.0.1/32, 192.168.0.0/16 } return
        ip6 daddr { fd99::1/128 } return
        counter drop
    }
    chain peer_2 {
        oifname @egress counter drop
    }
    chain destinations {
        oifname "rw0" goto between_peers
        oifname @egress accept
        counter drop
    }
    chain between_peers {
        ip saddr @group_0_v4 ip daddr @group_0_v4 accept
        ip6 saddr @group_0_v6 ip6 daddr @group_0_v6 accept
        counter drop
    }
    chain to_peers {
        ct state established,related ct direction reply accept
        ct status dnat accept
        iifname @egress accept
        counter drop
    }
    chain input {
        type filter hook input priority filter; policy accept;
        iifname "rw0" ct state established,related ct direction reply accept
        iifname "rw0" ip saddr vmap @peers_v4
        iifname "rw0" ip6 saddr vmap @peers_v6
    }
"#;
    assert_eq!(format!("\n{}", gateway_rules(&gateway, &peers)), expected);
}

#[test]
fn the_rules_of_a_kill_switch_are_these() {
    let lockdown = Lockdown {
        inside: Some(nets(&["10.0.0.0/8"])),
        outside: nets(&["192.168.0.0/16", "192.168.1.1/32", "fe80::/10"]),
        keep: false,
    };
    let expected = r#"
    set outside_v4 {
        type ipv4_addr
        flags interval
        elements = {
            192.168.0.0/16,
        }
    }
    set outside_v6 {
        type ipv6_addr
        flags interval
        elements = {
            fe80::/10,
        }
    }
    set dns_v4 {
        type ipv4_addr
        flags interval
        elements = {
            192.168.1.1/32,
        }
    }
    set dns_v6 {
        type ipv6_addr
        flags interval
    }
    chain output {
        type filter hook output priority filter; policy drop;
        oifname "lo" accept
        oifname "rw0" goto inside
        meta mark 0x7277 meta l4proto udp accept
        jump link
        jump outside
        counter reject with icmpx admin-prohibited
    }
    chain forward {
        type filter hook forward priority filter; policy drop;
        oifname "rw0" goto inside
        jump outside
        counter reject with icmpx admin-prohibited
    }
    chain inside {
        ip daddr { 10.0.0.0/8 } accept
        counter reject with icmpx admin-prohibited
    }
    chain link {
        meta nfproto ipv4 udp sport 68 udp dport 67 accept
        ip6 daddr { ff02::1:2, fe80::/10 } udp sport 546 udp dport 547 accept
        ip6 hoplimit 255 icmpv6 type { nd-router-solicit, nd-neighbor-solicit, nd-neighbor-advert } accept
        ip6 hoplimit 1 icmpv6 type { mld-listener-report, mld-listener-done, mld2-listener-report } accept
    }
    chain outside {
        meta l4proto { tcp, udp } th dport { 53, 853 } goto dns
        ip daddr @outside_v4 accept
        ip6 daddr @outside_v6 accept
    }
    chain dns {
        ip daddr @dns_v4 accept
        ip6 daddr @dns_v6 accept
        counter reject with icmpx admin-prohibited
    }
"#;
    let mark = NonZeroU32::new(0x7277).unwrap();
    assert_eq!(format!("\n{}", super::lockdown("rw0", mark, &lockdown)), expected);
}

#[test]
fn one_family_alone_can_be_masqueraded() {
    for (masquerade, rule) in [
        (Masquerade::Ipv4, "oifname @egress meta nfproto ipv4 masquerade"),
        (Masquerade::Ipv6, "oifname @egress meta nfproto ipv6 masquerade"),
    ] {
        let gateway = Gateway { masquerade, ..DEFAULT };
        assert!(gateway_rules(&gateway, &[]).contains(rule));
    }
}
