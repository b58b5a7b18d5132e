//! Whole files through parsing and validation.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::num::NonZeroU32;
use std::path::Path;
use std::time::Duration;

use proptest::prelude::*;

use super::*;

const KEY_A: &str = "cEN0raABhctV+PdHYvWsSx+vwxsx10yu75a7WH3e+m0=";
const PUBLIC_A: &str = "9CpHjHOQvfmaXyBtCusPakSONhE9vHCE9+BIqrGtTxc=";
const PUBLIC_B: &str = "HIgo9xNzJMWLKASShiTqIybxZ0U3wGLiUeJ1PKf8ykw=";
const PUBLIC_C: &str = "xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=";

/// As [`load`], of a text instead of files; every key file holds [`KEY_A`].
fn read_text(path: &str, text: &str) -> Result<Loaded, String> {
    let read_key_file = |path: &Path| match path.to_str() {
        Some("/etc/rw/gone.key") => Err(io::Error::from_raw_os_error(2).into()),
        Some("/etc/rw/bad.key") => Ok(Zeroizing::new("bad".to_owned())),
        _ => Ok(Zeroizing::new(KEY_A.to_owned())),
    };
    let (mut problems, mut warnings) = (Vec::new(), Vec::new());
    let source = validate::Source {
        path: Path::new(path),
        read_key_file: &read_key_file,
    };
    let config =
        toml::parse(text, &mut problems).and_then(|raw| validate::validate(raw, source, &mut problems, &mut warnings));
    problems.sort_by_key(|problem| problem.line);
    assert_eq!(config.is_none(), !problems.is_empty(), "{problems:?}");
    match config {
        Some(config) => Ok(Loaded {
            config,
            warnings,
            foreign: None,
        }),
        None => Err(Located {
            path: Path::new("f"),
            problems: &problems,
        }
        .to_string()),
    }
}

/// The problems of a file whose `[interface]` has a private key in line 2 and `lines` from line 3 on.
fn interface_problems(lines: &str) -> String {
    read_text(
        "/etc/rw/rw0.toml",
        &format!("[interface]\nprivate_key = \"{KEY_A}\"\n{lines}\n"),
    )
    .unwrap_err()
}

/// The problems of a file whose first `[[peer]]` has a public key in line 4 and `lines` from line 5 on.
fn peer_problems(lines: &str) -> String {
    let text = format!("[interface]\nprivate_key = \"{KEY_A}\"\n[[peer]]\npublic_key = \"{PUBLIC_B}\"\n{lines}\n");
    read_text("/etc/rw/rw0.toml", &text).unwrap_err()
}

#[test]
fn every_key_is_read() {
    let text = format!(
        r#"
        [interface]
        name = "vpn"
        private_key_file = "rw0.key"
        listen_port = 51820
        addresses = ["10.99.0.1/24", "fd99::1/64", "10.98.0.1"]
        mtu = 1380
        workers = 2
        io = "syscall"
        crypto = "aws-lc"
        fwmark = 0xca6c
        control_socket = "ctl/rw.sock"
        latency_log = "rw.hlog"
        udp_gso = false
        udp_gro = false
        tun_tso = false
        tun_uso = false
        pin = true
        sandbox = false
        lane_ports = true
        table = 51820
        metric = 50
        exclude = ["10.50.1.7/24", "fd99::/120", "10.50.1.0/24"]
        bind_interface = "eth0"
        dns = ["10.99.0.2", "fd99::2", "10.99.0.2"]
        dns_search = ["Home.example"]
        dns_domains = ["corp.example.", "10.in-addr.arpa"]
        pre_up = ["true"]
        post_up = ["ip route add 10.9.0.0/16 dev %i", 'echo "up"']
        pre_down = ["a"]
        post_down = ["b"]
        state_dir = "state"

        [gateway]
        egress = ["eth0", "eth1"]
        masquerade = "ipv4"
        inbound = true
        mss_clamp = false
        peer_to_peer = [["b", "b"]]

        [[peer]]
        name = "b"
        public_key = "{PUBLIC_B}"
        preshared_key_file = "/keys/b.psk"
        endpoint = "192.0.2.1:51820"
        allowed_ips = ["10.99.0.2/32", "fd99::2/128", "10.50.1.2/16", "10.50.0.0/16"]
        persistent_keepalive = 25
        suite = "native"
        allow = ["10.0.0.0/8", "192.0.2.1"]
        deny = ["10.9.1.1/16"]

        [[peer]]
        public_key = "{PUBLIC_C}"
        endpoint = "vpn.example.com:1"

        [metrics]
        listen = "unix:metrics.sock"
        "#
    );
    let Loaded { config, warnings, .. } = read_text("/etc/rw/rw0.toml", &text).unwrap();
    assert_eq!(warnings, []);
    let expected = Config {
        interface: Interface {
            name: "vpn".into(),
            private_key: Some(KEY_A.parse().unwrap()),
            listen_port: 51820,
            addresses: ["10.99.0.1/24", "fd99::1/64", "10.98.0.1/32"]
                .map(|text| text.parse().unwrap())
                .into(),
            mtu: Mtu::Bytes(1380),
            workers: Workers::Count(2),
            io: Io::Syscall,
            crypto: Crypto::AwsLc,
            fwmark: NonZeroU32::new(0xca6c),
            control_socket: "/etc/rw/ctl/rw.sock".into(),
            latency_log: Some("/etc/rw/rw.hlog".into()),
            offloads: OffloadSwitches {
                udp_gso: false,
                udp_gro: false,
                tun_tso: false,
                tun_uso: false,
            },
            pin: true,
            sandbox: false,
            lane_ports: true,
            routing: Routing {
                table: Table::Number(51820),
                metric: Some(50),
                exclude: ["10.50.1.0/24", "fd99::/120"].map(|text| text.parse().unwrap()).into(),
                bind_interface: Some("eth0".into()),
            },
            dns: Dns {
                servers: ["10.99.0.2", "fd99::2"].map(|text| text.parse().unwrap()).into(),
                search: vec!["home.example".into()],
                domains: vec!["corp.example".into(), "10.in-addr.arpa".into()],
            },
            save: None,
            hooks: Hooks {
                pre_up: vec!["true".into()],
                post_up: vec!["ip route add 10.9.0.0/16 dev %i".into(), "echo \"up\"".into()],
                pre_down: vec!["a".into()],
                post_down: vec!["b".into()],
            },
            state_dir: Some("/etc/rw/state".into()),
            lockdown: None,
        },
        gateway: Some(Gateway {
            egress: Egress::Interfaces(vec!["eth0".into(), "eth1".into()]),
            masquerade: Masquerade::Ipv4,
            inbound: true,
            mss_clamp: false,
            peer_to_peer: PeerToPeer::Groups(vec![vec!["b".into(), "b".into()]]),
        }),
        peers: vec![
            Peer {
                name: Some("b".into()),
                public_key: PUBLIC_B.parse().unwrap(),
                preshared_key: Some(KEY_A.parse().unwrap()),
                endpoint: Some("192.0.2.1:51820".parse().unwrap()),
                allowed_ips: ["10.99.0.2/32", "fd99::2/128", "10.50.0.0/16"]
                    .map(|text| text.parse().unwrap())
                    .into(),
                persistent_keepalive: Some(Duration::from_secs(25)),
                suite: Suite::Native,
                policy: Policy {
                    internet: true,
                    allow: Some(nets(["10.0.0.0/8", "192.0.2.1/32"])),
                    deny: nets(["10.9.0.0/16"]),
                },
            },
            Peer {
                name: None,
                public_key: PUBLIC_C.parse().unwrap(),
                preshared_key: None,
                endpoint: Some(HostPort {
                    host: Host::Name("vpn.example.com".into()),
                    port: 1,
                }),
                allowed_ips: vec![],
                persistent_keepalive: None,
                suite: Suite::Auto,
                policy: Policy::default(),
            },
        ],
        metrics: Some(MetricsListen::Unix("/etc/rw/metrics.sock".into())),
    };
    assert_eq!(config, expected);
}

fn nets<const N: usize>(texts: [&str; N]) -> Vec<IpNet> {
    texts.map(|text| text.parse().unwrap()).into()
}

#[test]
fn a_gateway_and_a_kill_switch_have_their_documented_defaults() {
    let interface = format!("[interface]\nprivate_key = \"{KEY_A}\"\n");
    let read = |text: &str| {
        let text = format!("{interface}{text}");
        read_text("/etc/rw/rw0.toml", &text).unwrap()
    };
    let config = read("[gateway]").config;
    let expected = Gateway {
        egress: Egress::Auto,
        masquerade: Masquerade::All,
        inbound: false,
        mss_clamp: true,
        peer_to_peer: PeerToPeer::Off,
    };
    assert_eq!(config.gateway, Some(expected));
    assert!(read("[gateway]\nmasquerade = \"off\"").config.gateway.unwrap().inbound);

    let config = read("lockdown = true").config;
    assert_eq!(config.interface.lockdown, Some(Lockdown::default()));
    assert_eq!(config.interface.fwmark, NonZeroU32::new(0x7277));
    let config = read("lockdown = true\nfwmark = 5\nlockdown_outside = [\"lan\", \"192.0.2.9\"]").config;
    assert_eq!(config.interface.fwmark, NonZeroU32::new(5));
    let outside = config.interface.lockdown.unwrap().outside;
    for network in nets(["192.168.0.0/16", "fe80::/10", "192.0.2.9/32"]) {
        assert!(outside.contains(&network), "{outside:?}");
    }
    assert_eq!(read("lockdown = false").config.interface.lockdown, None);

    let peer = format!("[[peer]]\npublic_key = \"{PUBLIC_B}\"\nendpoint = \"vpn.example.com:1\"");
    let warnings = |outside: &str| read(&format!("lockdown = true\n{outside}\n{peer}")).warnings;
    let [warning] = &warnings("")[..] else {
        panic!("one warning")
    };
    assert!(
        warning.to_string().contains("this name can't be looked up"),
        "{warning}"
    );
    assert_eq!(warnings("lockdown_outside = [\"192.0.2.53\"]"), []);
}

#[test]
fn every_mistake_about_a_gateway_or_a_kill_switch_is_named_with_its_remedy() {
    let peer = format!("[[peer]]\nname = \"alice\"\npublic_key = \"{PUBLIC_B}\"\n");
    let cases = [
        (
            "gateway = 1".into(),
            "f:3: interface.gateway: unknown key; the keys here are name, ",
        ),
        (
            "[gateway]\negress = \"eth0\"".into(),
            r#"f:4: gateway.egress = "eth0": the egress is "auto", or a list of interfaces: ["eth0"]"#,
        ),
        (
            "[gateway]\negress = [\"a b\"]".into(),
            r#"f:4: gateway.egress[0] = "a b": a name has 1 to 15 of the characters"#,
        ),
        (
            "[gateway]\nmasquerade = \"yes\"".into(),
            r#"f:4: gateway.masquerade = "yes": expected one of: all, ipv4, ipv6, off"#,
        ),
        (
            "[gateway]\nmasquerading = \"all\"".into(),
            r#"f:4: gateway.masquerading: unknown key; did you mean "masquerade"?"#,
        ),
        (
            "[gateway]\nmtu = 1420".into(),
            "f:4: gateway.mtu: this key belongs in [interface]",
        ),
        (
            "masquerade = \"all\"".into(),
            "f:3: interface.masquerade: this key belongs in [gateway]",
        ),
        (
            format!("[gateway]\npeer_to_peer = [[\"alice\", \"alcie\"]]\n{peer}"),
            r#"f:4: gateway.peer_to_peer[0][1] = "alcie": no peer has this name; did you mean "alice"?"#,
        ),
        (
            format!("[gateway]\npeer_to_peer = [\"alice\"]\n{peer}"),
            r#"f:4: gateway.peer_to_peer[0] = "alice": write true, false, or groups of texts: [["a", "b"]]"#,
        ),
        (
            format!("[gateway]\n{peer}allow = [\"10.0.0/8\"]"),
            r#"f:7: peer[0].allow[0] = "10.0.0/8": "10.0.0" is not an IP address"#,
        ),
        (
            format!("[gateway]\n{peer}internet = true\nallow = []"),
            "f:7: peer[0].internet = true: allow lists the only destinations of this peer; leave out one of both",
        ),
        (
            format!("{peer}deny = [\"10.0.0.0/8\"]"),
            "f:6: peer[0].deny[0]: this says what the peer may reach through a gateway; it needs a section [gateway]",
        ),
        (
            format!("{peer}internet = false"),
            "f:6: peer[0].internet: this says what the peer may reach through a gateway",
        ),
        (
            "lockdown = \"on\"".into(),
            r#"f:3: interface.lockdown = "on": write true or false, without quotes"#,
        ),
        (
            "lockdown_keep = true".into(),
            "f:3: interface.lockdown_keep: this belongs to the kill switch, which is off; write lockdown = true",
        ),
        (
            "lockdown = true\nlockdown_outside = [\"wan\"]".into(),
            r#"f:4: interface.lockdown_outside[0] = "wan": "wan" is not an IP address; write for example "10.0.0.0/24" or "fd00::/64"; or "lan""#,
        ),
        (
            "lockdown = true\n[gateway]".into(),
            "f:4: gateway: a gateway lets its peers' packets out beside the tunnel, and lockdown = true lets nothing",
        ),
    ];
    for (lines, expected) in cases {
        let problems = interface_problems(&lines);
        assert!(problems.contains(expected), "{lines}:\n{problems}");
        assert_eq!(problems.lines().count(), 1, "one mistake is one problem: {problems}");
    }
}

#[test]
fn what_is_not_given_has_its_documented_default() {
    let config = read_text("/etc/rw/rw0.toml", &format!("[interface]\nprivate_key = \"{KEY_A}\"\n"))
        .unwrap()
        .config;
    let expected = Interface {
        name: "rw0".into(),
        private_key: Some(KEY_A.parse().unwrap()),
        listen_port: 0,
        addresses: vec![],
        mtu: Mtu::Auto,
        workers: Workers::Auto,
        io: Io::Auto,
        crypto: Crypto::Auto,
        fwmark: None,
        control_socket: "/run/ringway/rw0.sock".into(),
        latency_log: None,
        offloads: OffloadSwitches {
            udp_gso: true,
            udp_gro: true,
            tun_tso: true,
            tun_uso: true,
        },
        pin: false,
        sandbox: true,
        lane_ports: false,
        routing: Routing::default(),
        dns: Dns::default(),
        save: None,
        hooks: Hooks::default(),
        state_dir: default_state_dir(),
        lockdown: None,
    };
    assert_eq!(
        config,
        Config {
            interface: expected,
            gateway: None,
            peers: vec![],
            metrics: None,
        }
    );
}

#[test]
fn every_wrong_value_of_the_interface_is_named_with_line_key_value_and_remedy() {
    let cases = [
        // Keys and types.
        (
            "mtuu = 1420",
            r#"f:3: interface.mtuu: unknown key; did you mean "mtu"?"#,
        ),
        (
            "ListenPort = 1",
            r#"f:3: interface.ListenPort: unknown key; did you mean "listen_port"?"#,
        ),
        (
            "\"a b\" = 1",
            r#"f:3: interface."a b": unknown key; the keys here are name, private_key, "#,
        ),
        (
            "endpoint = \"a:1\"",
            "f:3: interface.endpoint: this key belongs in [[peer]]",
        ),
        (
            "listen_port = \"51820\"",
            r#"f:3: interface.listen_port = "51820": write a whole number, without quotes"#,
        ),
        (
            "listen_port = 5.5",
            "f:3: interface.listen_port = 5.5: write a whole number, without quotes",
        ),
        ("name = 7", "f:3: interface.name = 7: write a text in quotes"),
        (
            "pin = \"yes\"",
            r#"f:3: interface.pin = "yes": write true or false, without quotes"#,
        ),
        (
            "mtu = true",
            r#"f:3: interface.mtu = true: write a whole number, or "auto""#,
        ),
        (
            "addresses = \"10.0.0.1/24\"",
            r#"f:3: interface.addresses = "10.0.0.1/24": write a list of texts, in brackets: ["10.0.0.1/24"]"#,
        ),
        (
            "addresses = [\"10.0.0.1/24\",\n 7]",
            "f:4: interface.addresses[1] = 7: write a text in quotes",
        ),
        // Values.
        (
            "name = \"a/b\"",
            r#"f:3: interface.name = "a/b": a name has 1 to 15 of the characters a-z A-Z 0-9 _ = + . -"#,
        ),
        (
            "name = \"all\"",
            r#"f:3: interface.name = "all": this name has a meaning of its own to the kernel"#,
        ),
        (
            "listen_port = 65536",
            "f:3: interface.listen_port = 65536: a port is 1 to 65535, or 0 for any",
        ),
        (
            "listen_port = -1",
            "f:3: interface.listen_port = -1: a port is 1 to 65535, or 0 for any",
        ),
        (
            "addresses = [\"10.0.0.1/33\"]",
            r#"f:3: interface.addresses[0] = "10.0.0.1/33": the prefix length of an IPv4 network is 0 to 32"#,
        ),
        (
            "addresses = [\"10.0.0/24\"]",
            r#"f:3: interface.addresses[0] = "10.0.0/24": "10.0.0" is not an IP address; write for example "10.0.0.0/24" or "fd00::/64""#,
        ),
        (
            "addresses = [\"10.0.0.1/24\", \"10.0.0.1/16\"]",
            r#"f:3: interface.addresses[1] = "10.0.0.1/16": this address stands in the list already"#,
        ),
        (
            "addresses = [\"224.0.0.1/24\"]",
            r#"f:3: interface.addresses[0] = "224.0.0.1/24": 224.0.0.1 is not an address that an interface can have"#,
        ),
        (
            "mtu = 575",
            r#"f:3: interface.mtu = 575: an MTU is "auto", or 576 to 65535 without quotes"#,
        ),
        (
            "mtu = 65536",
            r#"f:3: interface.mtu = 65536: an MTU is "auto", or 576 to 65535 without quotes"#,
        ),
        (
            "mtu = \"1420\"",
            r#"f:3: interface.mtu = "1420": an MTU is "auto", or 576 to 65535 without quotes"#,
        ),
        (
            "mtu = 1279\naddresses = [\"fd::1/64\"]",
            "f:3: interface.mtu = 1279: IPv6 needs an MTU of at least 1280, and 1279 is less; raise it or remove the \
             IPv6 addresses",
        ),
        (
            "workers = 0",
            r#"f:3: interface.workers = 0: the workers are "auto" (one per core), or 1 to 255 without quotes"#,
        ),
        (
            "workers = 256",
            r#"f:3: interface.workers = 256: the workers are "auto" (one per core), or 1 to 255"#,
        ),
        (
            "io = \"epoll\"",
            r#"f:3: interface.io = "epoll": expected one of: auto, uring, syscall"#,
        ),
        (
            "crypto = \"ring\"",
            r#"f:3: interface.crypto = "ring": expected one of: auto, "#,
        ),
        (
            "table = \"51820\"",
            r#"f:3: interface.table = "51820": the table is "auto", "off", or the number of a routing table, 1 to"#,
        ),
        (
            "table = 0",
            r#"f:3: interface.table = 0: the table is "auto", "off", or"#,
        ),
        (
            "table = 255",
            "f:3: interface.table = 255: this is the kernel's table of local addresses; choose another number",
        ),
        (
            "metric = -1",
            "f:3: interface.metric = -1: a metric is 1 to 4294967295, or 0 for what the kernel chooses",
        ),
        (
            "table = \"off\"\nmetric = 1",
            "f:4: interface.metric = 1: this is about routes, and table = \"off\" makes none; remove one of both",
        ),
        (
            "exclude = [\"10.0.0.0/8\"]\ntable = \"off\"",
            "f:3: interface.exclude[0] = \"10.0.0.0/8\": this is about routes, and table",
        ),
        (
            "exclude = [\"0.0.0.0/0\"]",
            "f:3: interface.exclude[0] = \"0.0.0.0/0\": this leaves nothing in the tunnel; name the networks",
        ),
        (
            "exclude = [\"here\"]",
            "f:3: interface.exclude[0] = \"here\": \"here\" is not an IP address",
        ),
        (
            "bind_interface = \"\"",
            r#"f:3: interface.bind_interface = "": a name has 1 to 15 of the characters"#,
        ),
        (
            "bind_interface = \"rw0\"",
            r#"f:3: interface.bind_interface = "rw0": this is the tunnel itself; name the interface that leads to"#,
        ),
        (
            "dns = [\"dns.example\"]",
            r#"f:3: interface.dns[0] = "dns.example": a name server is an IP address, for example "10.99.0.1""#,
        ),
        (
            "dns = [\"::\"]",
            r#"f:3: interface.dns[0] = "::": :: is not an address that a name server can have"#,
        ),
        (
            "dns = [\"10.0.0.1\"]\ndns_search = [\"a b\"]",
            r#"f:4: interface.dns_search[0] = "a b": a domain is labels of a-z 0-9 - _ with dots between them"#,
        ),
        (
            "dns_domains = [\"corp.example\"]",
            r#"f:3: interface.dns_domains[0] = "corp.example": there is no name server to ask; write its address too"#,
        ),
        (
            "fwmark = 4294967296",
            "f:3: interface.fwmark = 4294967296: a mark is 1 to 4294967295, or 0 for none",
        ),
        (
            "control_socket = \"\"",
            r#"f:3: interface.control_socket = "": write the path of the socket, for example "#,
        ),
        (
            &format!("control_socket = \"/{}\"", "a".repeat(107)),
            "a socket's path has at most 107 bytes, this one has 108",
        ),
        (
            "private_key_file = \"rw0.key\"",
            r#"f:3: interface.private_key_file = "rw0.key": private_key is given too; write only one of both"#,
        ),
    ];
    for (lines, expected) in cases {
        let problems = interface_problems(lines);
        assert!(problems.contains(expected), "{lines}:\n{problems}");
        assert_eq!(problems.lines().count(), 1, "one mistake is one problem: {problems}");
    }
}

#[test]
fn every_wrong_value_of_a_peer_is_named_with_line_key_value_and_remedy() {
    let second = |lines: &str| {
        format!("allowed_ips = [\"10.2.0.0/16\"]\nname = \"b\"\n[[peer]]\npublic_key = \"{PUBLIC_C}\"\n{lines}")
    };
    let cases = [
        (
            "AllowedIPs = []".to_owned(),
            r#"f:5: peer[0].AllowedIPs: unknown key; did you mean "allowed_ips"?"#,
        ),
        ("mtu = 1420".into(), "f:5: peer[0].mtu: this key belongs in [interface]"),
        (
            "name = \"\"".into(),
            r#"f:5: peer[0].name = "": a peer's name has 1 to 64 characters"#,
        ),
        (
            "name = \"a\\nb\"".into(),
            r#"f:5: peer[0].name = "a\nb": a peer's name has 1 to 64 characters"#,
        ),
        (
            "endpoint = \"192.0.2.1\"".into(),
            r#"f:5: peer[0].endpoint = "192.0.2.1": the port is missing; write for"#,
        ),
        (
            "allowed_ips = [\"10.0.0.0/8\", \"fd00::/129\"]".into(),
            r#"f:5: peer[0].allowed_ips[1] = "fd00::/129": the prefix length of an IPv6 network is 0 to 128"#,
        ),
        (
            "persistent_keepalive = 65536".into(),
            "f:5: peer[0].persistent_keepalive = 65536: an interval is 1 to 65535 seconds, or 0 for no keepalives",
        ),
        (
            "suite = \"ipsec\"".into(),
            r#"f:5: peer[0].suite = "ipsec": expected one of: auto, native, wireguard"#,
        ),
        (
            "preshared_key = \"abc\"".into(),
            "f:5: peer[0].preshared_key: a key is 44 characters of base64, this is 3",
        ),
        (
            "preshared_key_file = \"bad.key\"".into(),
            r#"f:5: peer[0].preshared_key_file = "bad.key": a key is 44 characters of base64, this is 3"#,
        ),
        (
            "preshared_key_file = \"gone.key\"".into(),
            r#"f:5: peer[0].preshared_key_file = "gone.key": No such file or directory (os error 2)"#,
        ),
        (
            second("allowed_ips = [\"10.1.0.0/16\", \"10.2.3.4/16\"]"),
            r#"f:9: peer[1].allowed_ips[1] = "10.2.3.4/16": 10.2.0.0/16 belongs to peer[0] in line 5 already; only one peer can have it"#,
        ),
        (
            second("name = \"b\""),
            r#"f:9: peer[1].name = "b": this is the name of peer[0] in line 6 too"#,
        ),
        (
            format!("[[peer]]\npublic_key = \"{PUBLIC_B}\""),
            "f:6: peer[1].public_key = \"HIgo9xNzJMWLKASShiTqIybxZ0U3wGLiUeJ1PKf8ykw=\": this is the key of peer[0] in line 4 too",
        ),
        (
            format!("[[peer]]\npublic_key = \"{PUBLIC_A}\""),
            "f:6: peer[1].public_key = \"9CpHjHOQvfmaXyBtCusPakSONhE9vHCE9+BIqrGtTxc=\": this is the public key of the interface itself",
        ),
        (
            "[[peer]]\npublic_key = \"x\"".into(),
            r#"f:6: peer[1].public_key = "x": a key is 44 characters of base64, this is 1"#,
        ),
        (
            "[[peer]]".into(),
            "f:5: peer[1].public_key: no public key is given; it tells who the peer is",
        ),
    ];
    for (lines, expected) in cases {
        let problems = peer_problems(&lines);
        assert!(problems.contains(expected), "{lines}:\n{problems}");
        assert_eq!(problems.lines().count(), 1, "one mistake is one problem: {problems}");
    }
}

#[test]
fn wrong_sections_are_named_with_what_would_be_right() {
    let interface = format!("[interface]\nprivate_key = \"{KEY_A}\"\n");
    let cases = [
        (String::new(), "f:1: interface: the section [interface] is missing"),
        (
            "[interface]\n".into(),
            "f:1: interface.private_key_file: no private key is given; make one with",
        ),
        (
            "interface = 1\n".into(),
            "f:1: interface: this is a section of its own: write [interface]",
        ),
        (
            format!("{interface}[peer]\n"),
            "f:3: peer: there can be several peers: write [[peer]], with two brackets",
        ),
        (
            format!("peer = [1]\n{interface}"),
            "f:1: peer[0]: each peer is a section of its own: write [[peer]]",
        ),
        (
            format!("{interface}[[peers]]\n"),
            "f:3: peers: unknown section; did you mean [[peer]]?",
        ),
        (
            format!("{interface}[Interface]\n"),
            "f:3: Interface: unknown section; did you mean [interface]?",
        ),
        (
            format!("{interface}[gatway]\n"),
            "f:3: gatway: unknown section; did you mean [gateway]?",
        ),
        (
            format!("{interface}[colours]\n"),
            "f:3: colours: unknown section; the sections are [interface], [gateway], [metrics] and [[peer]]",
        ),
        (
            format!("mtu = 1420\n{interface}"),
            "f:1: mtu: this key belongs in [interface]",
        ),
        (
            format!("endpoint = 1\n{interface}"),
            "f:1: endpoint: this key belongs in [[peer]]",
        ),
        (
            format!("colour = 1\n{interface}"),
            "f:1: colour: unknown key; all keys belong in a section: [interface], [gateway], [metrics] or [[peer]]",
        ),
    ];
    for (text, expected) in cases {
        let problems = read_text("/etc/rw/rw0.toml", &text).unwrap_err();
        assert!(problems.contains(expected), "{text}:\n{problems}");
        assert_eq!(problems.lines().count(), 1, "one mistake is one problem: {problems}");
    }
}

#[test]
fn a_file_name_that_is_no_interface_name_asks_for_one() {
    let problems = read_text(
        "/etc/rw/my tunnel.toml",
        &format!("[interface]\nprivate_key = \"{KEY_A}\"\n"),
    )
    .unwrap_err();
    assert!(
        problems.starts_with("f:1: interface.name: no name is given"),
        "{problems}"
    );
}

#[test]
fn all_problems_are_reported_in_the_order_of_the_file() {
    let text = "[interface]\nmtu = 1\nprivate_key = \"x\"\nio = \"y\"\n[[peer]]\nendpoint = \"z\"\nallowed_ips = [\"1\", \"2\"]\n";
    let problems = read_text("/etc/rw/rw0.toml", text).unwrap_err();
    let places: Vec<&str> = problems
        .lines()
        .map(|line| line.split([' ']).nth(1).unwrap().trim_end_matches(':'))
        .collect();
    assert_eq!(
        places,
        [
            "interface.mtu",
            "interface.private_key",
            "interface.io",
            "peer[0].public_key",
            "peer[0].endpoint",
            "peer[0].allowed_ips[0]",
            "peer[0].allowed_ips[1]"
        ]
    );
}

#[test]
fn secrets_appear_in_no_problem() {
    let secret = "Zm9vYmFyYmF6cXV4";
    for text in [
        format!("[interface]\nprivate_key = \"{secret}\"\n"),
        format!("[interface]\nprivate_key = [\"{secret}\"]\n"),
        format!("[interface]\nprivate_key = {secret}\n"),
        format!("[interface]\nprivate_key = \"{secret}\n"),
        format!("[interface]\nprivate_key = \"{secret}\" {secret}\n"),
        format!("[interface]\nprivatekey = \"{secret}\"\n"),
        format!("[interface]\nprivate_key = \"{KEY_A}\"\nprivate_key = \"{secret}\"\n"),
        format!("private_key = \"{secret}\"\n"),
        format!("[interface]\nprivate_key = \"{KEY_A}\"\n[[peer]]\npreshared_key = \"{secret}\"\n"),
        format!("[interface]\nprivate_key = \"{KEY_A}\"\n[peer]\npreshared_key = \"{secret}\"\n"),
    ] {
        let problems = read_text("/etc/rw/rw0.toml", &text).unwrap_err();
        assert!(!problems.contains("Zm9v") && !problems.contains(KEY_A), "{problems}");
    }
}

#[test]
fn text_that_is_not_toml_is_reported_with_its_line() {
    let problems = read_text("/etc/rw/rw0.toml", "[interface]\nname = rw0\n[[peer]\n").unwrap_err();
    assert!(problems.contains("f:2: not TOML: "), "{problems}");
    assert!(problems.contains("f:3: not TOML: "), "{problems}");
}

#[test]
fn an_endpoint_within_its_own_allowed_ips_is_warned_of_where_rules_are_somebody_elses() {
    let text = format!(
        "[interface]\nprivate_key = \"{KEY_A}\"\n[[peer]]\npublic_key = \"{PUBLIC_B}\"\nendpoint = \"10.1.2.3:5\"\n\
         allowed_ips = [\"10.0.0.0/8\"]\n"
    );
    assert_eq!(
        read_text("/etc/rw/rw0.toml", &text).unwrap().warnings,
        [],
        "policy routing sees to it"
    );
    let text = text.replace("[[peer]]", "table = 7\n[[peer]]");
    let warnings = read_text("/etc/rw/rw0.toml", &text).unwrap().warnings;
    assert_eq!(warnings.len(), 1);
    let warning = warnings[0].to_string();
    assert!(
        warning.starts_with(r#"peer[0].endpoint = "10.1.2.3:5": the endpoint lies within allowed_ips (10.0.0.0/8)"#)
    );
}

#[test]
fn a_readable_configuration_with_a_key_in_it_is_warned_of_and_relative_key_files_are_beside_it() {
    use std::fs::{self, Permissions};
    use std::os::unix::fs::PermissionsExt as _;
    let dir = std::env::temp_dir().join(format!("ringway-config-{}", std::process::id()));
    fs::create_dir_all(&dir).unwrap();
    let write = |name: &str, text: &str, mode| {
        fs::write(dir.join(name), text).unwrap();
        fs::set_permissions(dir.join(name), Permissions::from_mode(mode)).unwrap();
        dir.join(name)
    };

    let path = write("rw0.toml", &format!("[interface]\nprivate_key = \"{KEY_A}\"\n"), 0o644);
    let warnings = load(&path).unwrap().warnings;
    assert_eq!(warnings.len(), 1);
    assert!(
        warnings[0]
            .to_string()
            .starts_with("interface.private_key: other users can access this file")
    );
    write("rw0.toml", &format!("[interface]\nprivate_key = \"{KEY_A}\"\n"), 0o600);
    assert_eq!(load(&path).unwrap().warnings, []);

    write("rw0.toml", "[interface]\nprivate_key_file = \"rw0.key\"\n", 0o644);
    write("rw0.key", &format!("{KEY_A}\n"), 0o600);
    let loaded = load(&path).unwrap();
    assert_eq!(loaded.warnings, []);
    let key = loaded.config.interface.private_key.expect("a key");
    assert_eq!(key.public_key().to_string(), PUBLIC_A);
    write("rw0.key", &format!("{KEY_A}\n"), 0o644);
    assert!(load(&path).unwrap_err().to_string().contains("run: chmod 600 "));

    fs::write(&path, [0xff]).unwrap();
    assert!(matches!(load(&path), Err(LoadError::Read { .. })));
    fs::remove_dir_all(&dir).unwrap();
    assert!(matches!(load(&path), Err(LoadError::Read { .. })));
}

#[test]
fn ten_thousand_peers_are_read_in_a_moment() {
    let mut text = format!("[interface]\nprivate_key = \"{KEY_A}\"\n");
    for i in 0..10_000u32 {
        let mut key = [7; 32];
        key[..4].copy_from_slice(&i.to_le_bytes());
        let [_, a, b, c] = i.to_be_bytes();
        text += &format!(
            "[[peer]]\npublic_key = \"{}\"\nallowed_ips = [\"10.{a}.{b}.{c}/32\"]\n",
            PublicKey(key)
        );
    }
    let begin = std::time::Instant::now();
    assert_eq!(read_text("/etc/rw/rw0.toml", &text).unwrap().config.peers.len(), 10_000);
    assert!(begin.elapsed() < Duration::from_secs(2), "{:?}", begin.elapsed());
}

fn any_hooks() -> impl Strategy<Value = Hooks> {
    let commands = || prop::collection::vec("[a-z\"'\\\\$%ié]{1,10}", 0..3);
    (commands(), commands(), commands(), commands()).prop_map(|(pre_up, post_up, pre_down, post_down)| Hooks {
        pre_up,
        post_up,
        pre_down,
        post_down,
    })
}

fn any_networks() -> impl Strategy<Value = Vec<IpNet>> {
    let network = prop_oneof![
        (any::<u32>(), 0u8..=32).prop_map(|(bits, len)| IpNet::new(Ipv4Addr::from_bits(bits).into(), len).unwrap()),
        (any::<u128>(), 0u8..=128).prop_map(|(bits, len)| IpNet::new(Ipv6Addr::from_bits(bits).into(), len).unwrap()),
    ];
    prop::collection::btree_set(network.prop_map(|network| network.trunc()), 0..4)
        .prop_map(|networks| networks.into_iter().collect())
}

fn any_lockdown() -> impl Strategy<Value = Lockdown> {
    (prop::option::of(any_networks()), any_networks(), any::<bool>()).prop_map(|(inside, outside, keep)| Lockdown {
        inside,
        outside,
        keep,
    })
}

fn any_gateway() -> impl Strategy<Value = Gateway> {
    let egress = prop_oneof![
        Just(Egress::Auto),
        prop::collection::btree_set("[a-z]{1,4}", 0..3).prop_map(|names| Egress::Interfaces(
            names.into_iter().filter(|name| name != "lo" && name != "all").collect()
        )),
    ];
    let words = ["all", "ipv4", "ipv6", "off"].map(|word| word.parse::<Masquerade>().unwrap());
    (egress, prop::sample::select(words.to_vec()), any::<[bool; 3]>()).prop_map(
        |(egress, masquerade, [inbound, mss_clamp, on])| Gateway {
            egress,
            masquerade,
            inbound,
            mss_clamp,
            peer_to_peer: if on { PeerToPeer::On } else { PeerToPeer::Off },
        },
    )
}

fn any_policy() -> impl Strategy<Value = Policy> {
    (any::<bool>(), prop::option::of(any_networks()), any_networks()).prop_map(|(internet, allow, deny)| Policy {
        internet,
        allow,
        deny,
    })
}

fn any_interface() -> impl Strategy<Value = Interface> {
    let any_address = prop_oneof![
        (1u32..0xe000_0000, 1u8..=32)
            .prop_map(|(bits, len)| IpNet::new(Ipv4Addr::from_bits(bits).into(), len).unwrap()),
        (1u128..1 << 127, 1u8..=128).prop_map(|(bits, len)| IpNet::new(Ipv6Addr::from_bits(bits).into(), len).unwrap()),
    ];
    let any_switches =
        any::<(bool, bool, bool, bool)>().prop_map(|(udp_gso, udp_gro, tun_tso, tun_uso)| OffloadSwitches {
            udp_gso,
            udp_gro,
            tun_tso,
            tun_uso,
        });
    (
        (
            "[a-z][a-z0-9_=+.-]{0,14}",
            any::<[u8; 32]>(),
            any::<u16>(),
            prop::collection::vec(any_address, 0..4),
        ),
        prop_oneof![Just(Mtu::Auto), (1280u16..).prop_map(Mtu::Bytes)],
        prop_oneof![Just(Workers::Auto), (1u8..).prop_map(Workers::Count)],
        prop_oneof![Just(Io::Auto), Just(Io::Uring), Just(Io::Syscall)],
        prop_oneof![Just(Crypto::Auto), Just(Crypto::AwsLc), Just(Crypto::AesGcm)],
        any::<Option<NonZeroU32>>(),
        prop::option::of("/[ -~éß]{1,30}"),
        any_switches,
        (
            any::<(bool, bool, bool)>(),
            any_routing(),
            any_dns(),
            any_hooks(),
            prop::option::of(any_lockdown()),
        ),
    )
        .prop_map(
            |(
                (name, key, listen_port, mut addresses),
                mtu,
                workers,
                io,
                crypto,
                fwmark,
                socket,
                offloads,
                ((pin, sandbox, lane_ports), routing, dns, hooks, lockdown),
            )| {
                addresses.sort();
                addresses.dedup_by_key(|address| address.addr());
                Interface {
                    private_key: Some(PrivateKey::generate(|bytes| bytes.copy_from_slice(&key))),
                    listen_port,
                    addresses,
                    mtu,
                    workers,
                    io,
                    crypto,
                    fwmark: lockdown::mark(fwmark, lockdown.as_ref()),
                    control_socket: socket.map_or_else(|| default_control_socket(&name), Into::into),
                    latency_log: None,
                    offloads,
                    pin,
                    sandbox,
                    lane_ports,
                    routing,
                    dns,
                    save: None,
                    hooks,
                    state_dir: default_state_dir(),
                    lockdown,
                    name,
                }
            },
        )
        .prop_filter("a name of the kernel's", |interface| {
            values::check_interface_name(&interface.name).is_ok()
        })
}

fn any_routing() -> impl Strategy<Value = Routing> {
    let any_table = prop_oneof![Just(Table::Auto), (1u32..255).prop_map(Table::Number), Just(Table::Off)];
    let any_excluded = prop::collection::btree_set((any::<u32>(), 1u8..=32), 0..3);
    let any_bound = prop::option::of("[a-z]{3}[0-9]{13}|eth[0-9]");
    (any_table, any::<Option<u32>>(), any_excluded, any_bound).prop_map(|(table, metric, excluded, bound)| {
        let mut exclude: Vec<IpNet> = excluded
            .into_iter()
            .map(|(bits, len)| IpNet::new(Ipv4Addr::from_bits(bits).into(), len).unwrap().trunc())
            .collect();
        exclude.sort();
        exclude.dedup();
        Routing {
            table,
            metric: metric.filter(|metric| *metric > 0 && table != Table::Off),
            exclude: if table == Table::Off { Vec::new() } else { exclude },
            bind_interface: bound.filter(|name| values::check_interface_name(name).is_ok()),
        }
    })
}

fn any_dns() -> impl Strategy<Value = Dns> {
    let any_domains = || prop::collection::btree_set("[a-z0-9_-]{1,9}(\\.[a-z0-9]{1,9}){0,2}", 0..3);
    let any_servers = prop::collection::btree_set(1u32..0xe000_0000, 0..3);
    (any_servers, any_domains(), any_domains()).prop_map(|(servers, search, domains)| {
        let some = |domains: std::collections::BTreeSet<String>| match servers.is_empty() {
            true => Vec::new(),
            false => domains.into_iter().collect(),
        };
        Dns {
            search: some(search),
            domains: some(domains),
            servers: servers
                .into_iter()
                .map(|bits| Ipv4Addr::from_bits(bits).into())
                .collect(),
        }
    })
}

/// The `i`th peer: unlike all others in what must be unique.
fn any_peer(i: u8) -> impl Strategy<Value = Peer> {
    let any_host = prop_oneof![
        (1u32..0xe000_0000).prop_map(|bits| Host::Address(Ipv4Addr::from_bits(bits).into())),
        (1u128..1 << 127).prop_map(|bits| Host::Address(Ipv6Addr::from_bits(bits).into())),
        "[a-z0-9]([a-z0-9-]{0,9}[a-z0-9])?(\\.[a-z]{2,5}){1,2}".prop_map(Host::Name),
    ];
    let any_allowed = prop::collection::btree_set((any::<u16>(), 24u8..=32), 0..4);
    (
        prop::option::of("[a-zé\"\\\\][ -~]{0,8}[a-z]"),
        any::<[u8; 31]>(),
        prop::option::of(any::<[u8; 32]>().prop_filter("zero means none", |key| *key != [0; 32])),
        prop::option::of((any_host, 1u16..).prop_map(|(host, port)| HostPort { host, port })),
        any_allowed,
        prop::option::of((1u16..).prop_map(|s| Duration::from_secs(s.into()))),
        prop_oneof![Just(Suite::Auto), Just(Suite::Native), Just(Suite::WireGuard)],
        any_policy(),
    )
        .prop_map(
            move |(name, key, preshared_key, endpoint, allowed, persistent_keepalive, suite, policy)| {
                let mut public_key = [i + 1; 32];
                public_key[1..].copy_from_slice(&key);
                let mut allowed_ips: Vec<IpNet> = allowed
                    .into_iter()
                    .map(|(low, len)| {
                        let [a, b] = low.to_be_bytes();
                        IpNet::new(Ipv4Addr::new(10, i, a, b).into(), len).unwrap().trunc()
                    })
                    .collect();
                allowed_ips.sort();
                allowed_ips.dedup();
                Peer {
                    name: name.map(|name| format!("{i}{name}")),
                    public_key: PublicKey(public_key),
                    preshared_key: preshared_key.map(|key| PresharedKey::from_bytes(Zeroizing::new(key))),
                    endpoint,
                    allowed_ips,
                    persistent_keepalive,
                    suite,
                    policy,
                }
            },
        )
}

use ipnet::IpNet;

proptest! {
    #[test]
    fn a_rendered_configuration_reads_back_as_itself(
        interface in any_interface(),
        gateway in prop::option::of(any_gateway()),
        peers in (any_peer(0), any_peer(1), any_peer(2)),
        count in 0usize..=3,
        metrics: bool,
    ) {
        let mut peers: Vec<Peer> = [peers.0, peers.1, peers.2].into_iter().take(count).collect();
        // A gateway and a kill switch exclude each other, and without a gateway a policy says nothing.
        let mut gateway = gateway.filter(|_| interface.lockdown.is_none());
        match &mut gateway {
            Some(gateway) if gateway.mss_clamp => {
                let group = peers.iter().filter_map(|peer| peer.name.clone()).collect();
                gateway.peer_to_peer = PeerToPeer::Groups(vec![group, vec![]]);
            }
            Some(_) => {}
            None => peers.iter_mut().for_each(|peer| peer.policy = Policy::default()),
        }
        let metrics = metrics.then(|| MetricsListen::Tcp(([127, 0, 0, 1], 9586).into()));
        let config = Config { interface, gateway, peers, metrics };
        let text = render::to_toml(&config);
        let read = read_text("/etc/rw/other.toml", &text).map_err(TestCaseError::fail)?;
        prop_assert_eq!(read.config, config);
    }

    #[test]
    fn no_text_makes_the_reader_panic(text in "(\\[interface\\]\n|\\[\\[peer\\]\\]\n|[a-z_]{1,12} = [\"0-9\\[\\]{}.a-z]{0,12}\n|\\PC{0,10}\n){0,8}") {
        let _ = read_text("/etc/rw/rw0.toml", &text);
    }
}
