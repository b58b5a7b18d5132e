//! Tunnels as another program embeds them: the examples, and what they leave behind.
//!
//! ```text
//!  +--------- a ---------+                    +--------- b ---------+
//!  | this test's threads +---- veth under0 ---+ this test's threads |
//!  +---------------------+                    +---------------------+
//! ```
#![allow(unreachable_pub, dead_code)] // examples and the lab are shared; each program uses its own part

#[path = "../netns/lab.rs"]
mod lab;

#[path = "../../examples/connect.rs"]
mod connect;
#[path = "../../examples/establish.rs"]
mod establish;
#[path = "../../examples/mtu.rs"]
mod mtu;
#[path = "../../examples/statistics.rs"]
mod statistics;

use std::fs;
use std::io::ErrorKind;
use std::net::UdpSocket;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, unshare};

use lab::{Lab, Namespace, UNDERLAY, run, wait_until};
use ringway::tunnel::{Builder, Device, Peer, PrivateKey, Statistics};

const PATIENCE: Duration = Duration::from_secs(20);

fn arguments<const N: usize>(words: [&str; N]) -> impl Iterator<Item = String> {
    words.map(String::from).into_iter()
}

/// What the system has of interfaces, routes, rules and filters, whether or not a new link has found its carrier.
fn state(lab: &Lab) -> Vec<String> {
    let ip = |arguments: &[&str]| lab.a.ip(arguments);
    let links = ip(&["-o", "link"]);
    let names = links.lines().filter_map(|line| line.split(": ").nth(1));
    vec![
        names.collect::<Vec<_>>().join(" "),
        ip(&["-4", "route", "show", "table", "all"]).replace(" linkdown", ""),
        ip(&["-4", "rule"]),
        ip(&["-6", "rule"]),
        lab.a.run(&["nft", "list", "ruleset"]),
    ]
}

#[test]
fn a_device_moves_packets_is_counted_and_changes_its_mtu() {
    let Some(lab) = Lab::new() else { return };
    let before = state(&lab);
    // Pings until enough were answered for the example to end.
    std::thread::scope(|scope| {
        let example = scope.spawn(|| {
            lab.a
                .enter(|| establish::run(arguments(["rw-ping", "2"])).map_err(|e| e.to_string()))
        });
        wait_until("two pings are answered", PATIENCE, || {
            lab.a.ping([10, 77, 0, 2].into(), 56);
            example.is_finished()
        });
        example.join().expect("no panic").expect("the example runs");
    });

    let counted = lab
        .a
        .enter(|| statistics::run(arguments(["rw-count"])).map_err(|error| error.to_string()));
    let [first, second] = counted.expect("the example runs");
    assert_eq!((first.tx_packets, first.tx_bytes), (3, 3 * 128));
    assert_eq!((second.tx_packets, second.tx_bytes), (2, 2 * 128));

    let lengths = lab
        .a
        .enter(|| mtu::run(arguments(["rw-mtu"])).map_err(|error| error.to_string()));
    let [whole, fragments] = lengths.expect("the example runs");
    assert_eq!(whole, [1328]);
    assert!(
        fragments.len() == 2 && fragments.iter().all(|len| *len <= 1280),
        "{fragments:?}"
    );

    assert_eq!(state(&lab), before, "nothing is left");
}

/// The text of the first packet that holds one of ours.
fn next(device: &Device) -> String {
    let mut packet = [0; 1500];
    loop {
        let len = device.recv_timeout(&mut packet, PATIENCE).expect("a packet in time");
        if packet[0] >> 4 == 4 && packet[9] == 17 {
            return String::from_utf8_lossy(&packet[28..len]).into_owned();
        }
    }
}

#[test]
fn a_default_route_leads_all_packets_into_a_device_but_those_of_protected_sockets() {
    let Some(lab) = Lab::new() else { return };
    let before = state(&lab);
    let device = lab.a.enter(|| {
        Builder::new("rw-all")
            .session("Everything")
            .address("10.76.0.1/24".parse().expect("a network"))
            .route("0.0.0.0/0".parse().expect("a network"))
            .mtu(1400)
            .establish()
            .expect("the lab lets us")
    });
    assert_eq!((device.name(), device.session()), ("rw-all", Some("Everything")));
    assert!(lab.a.ip(&["link", "show", "rw-all"]).contains("alias Everything"));
    assert_eq!(device.mtu().expect("it is there"), 1400);
    assert!(device.fwmark().is_some());

    let socket = || lab.a.enter(|| UdpSocket::bind("0.0.0.0:0").expect("any port"));
    // The link's network has a route of its own, which is longer than a default route: any other address will do.
    let inside = socket();
    inside.send_to(b"inside", "203.0.113.1:5000").expect("there is a route");
    assert_eq!(next(&device), "inside");

    let outside = socket();
    device.protect(&outside).expect("root may");
    lab.a.ip(&["route", "add", "198.51.100.0/24", "via", "192.0.2.2"]);
    lab.b.ip(&["address", "add", "198.51.100.1/32", "dev", "lo"]);
    let far = lab
        .b
        .enter(|| UdpSocket::bind("198.51.100.1:5001").expect("b has the address"));
    far.set_read_timeout(Some(PATIENCE)).expect("it is not zero");
    let mut text = [0; 100];
    outside
        .send_to(b"outside", "198.51.100.1:5001")
        .expect("there is a route");
    let (len, from) = far.recv_from(&mut text).expect("a datagram");
    assert_eq!(
        (&text[..len], from.ip().to_string().as_str()),
        (&b"outside"[..], "192.0.2.1")
    );
    lab.a.ip(&["route", "del", "198.51.100.0/24"]);

    device.disconnect().expect("all is put back");
    assert_eq!(state(&lab), before, "nothing is left");
}

#[test]
fn with_a_mark_protected_sockets_go_around_every_route_and_may_be_bound_too() {
    let Some(lab) = Lab::new() else { return };
    lab.a.ip(&["route", "add", "default", "via", "192.0.2.2"]);
    lab.b.ip(&["address", "add", "198.51.100.1/32", "dev", "lo"]);
    let before = state(&lab);
    let server = lab
        .b
        .enter(|| UdpSocket::bind("198.51.100.1:5000").expect("b has the address"));
    server.set_read_timeout(Some(PATIENCE)).expect("it is not zero");
    let device = lab.a.enter(|| {
        Builder::new("rw-mark")
            .address("10.76.0.1/24".parse().expect("a network"))
            .route("198.51.100.0/24".parse().expect("a network"))
            .fwmark(7.try_into().expect("not zero"))
            .bind_interface(UNDERLAY)
            .establish()
            .expect("the lab lets us")
    });
    assert_eq!(device.fwmark(), Some(7));
    let [inside, outside] = [(); 2].map(|()| lab.a.enter(|| UdpSocket::bind("0.0.0.0:0").expect("any port")));
    inside
        .send_to(b"inside", "198.51.100.1:5000")
        .expect("there is a route");
    assert_eq!(next(&device), "inside");
    device.protect(&outside).expect("root may");
    outside
        .send_to(b"outside", "198.51.100.1:5000")
        .expect("there is a route");
    let mut text = [0; 100];
    let (len, _) = server.recv_from(&mut text).expect("a datagram");
    assert_eq!(&text[..len], b"outside");

    // Dropping is as good, but says nothing.
    drop(device);
    assert_eq!(state(&lab), before, "nothing is left");
}

#[test]
fn what_the_system_refuses_leaves_nothing_behind() {
    let Some(lab) = Lab::new() else { return };
    let before = state(&lab);
    let error = lab.a.enter(|| {
        Builder::new(UNDERLAY)
            .address("10.76.0.1/24".parse().expect("a network"))
            .establish()
            .expect_err("the name is taken")
    });
    assert!(error.to_string().contains("exists already"), "{error}");
    lab.a.ip(&["route", "add", "203.0.113.0/24", "via", "192.0.2.2"]);
    let error = lab.a.enter(|| {
        Builder::new("rw-late")
            .address("10.76.0.1/24".parse().expect("a network"))
            .route("203.0.113.0/24".parse().expect("a network"))
            .establish()
            .expect_err("the route leads elsewhere")
    });
    assert!(error.to_string().contains("203.0.113.0/24"), "{error}");
    lab.a.ip(&["route", "del", "203.0.113.0/24"]);
    assert_eq!(state(&lab), before, "nothing is left");
}

/// A private key for a lab.
fn key(byte: u8) -> PrivateKey {
    PrivateKey::generate(|bytes| bytes.fill(byte))
}

#[test]
fn a_tunnel_carries_packets_and_is_counted_changed_and_gone() {
    let Some(lab) = Lab::new() else { return };
    let before = state(&lab);
    let far = lab.b.enter(|| {
        Builder::new("rw0")
            .session("The far end")
            .private_key(key(2))
            .listen_port(51820)
            .address("10.99.0.2/24".parse().expect("a network"))
            .peer(Peer::new(key(1).public_key()).name("near"))
            .route("10.99.0.1/32".parse().expect("a network"))
            .workers(2)
            .connect()
            .expect("the lab lets us")
    });
    assert!(lab.b.ip(&["link", "show", "rw0"]).contains("alias The far end"));
    assert_eq!(
        (far.name(), far.statistics().expect("it runs")),
        ("rw0", Statistics::default())
    );

    // A full tunnel, of the example's making.
    let (private, public) = (key(1).to_base64(), key(2).public_key().to_string());
    let words = [
        "rw0",
        &private,
        "10.99.0.1/24",
        &public,
        "192.0.2.2:51820",
        "0.0.0.0/0",
        "3",
    ];
    std::thread::scope(|scope| {
        let near = scope.spawn(|| {
            lab.a
                .enter(|| connect::run(arguments(words)).map_err(|error| error.to_string()))
        });
        wait_until("three pings are answered", PATIENCE, || {
            lab.a.ping([10, 99, 0, 2].into(), 56);
            near.is_finished()
        });
        let statistics = near.join().expect("no panic").expect("the example runs");
        // 56 bytes behind 8 of ICMP's and 20 of IP's.
        let packets = statistics.rx_packets;
        assert!(packets >= 3 && statistics.rx_bytes == 84 * packets, "{statistics:?}");
        assert!(statistics.tx_packets >= packets, "{statistics:?}");
    });
    assert_eq!(state(&lab), before, "the example has put everything back");

    let samples = || -> u64 {
        let latency = far.latency().expect("it runs");
        latency.stages.iter().map(|stage| stage.count).sum()
    };
    let samples_before = samples();
    let first = far.reset_statistics().expect("it runs");
    assert!(first.rx_packets >= 3 && first.tx_bytes >= 3 * 84, "{first:?}");
    assert_eq!(far.statistics().expect("it runs"), Statistics::default());
    let peers = far.peers().expect("it runs");
    assert_eq!((peers.len(), peers[0].name.as_deref()), (1, Some("near")));
    assert!(peers[0].latest_handshake_unix_s.is_some());
    // The near end's goodbye may come after the reset, which is a message but no packet.
    assert!(peers[0].rx_packets < first.rx_packets, "{peers:?}");
    let samples_since = samples();
    assert!(
        samples_since < samples_before,
        "{samples_since} since the reset, {samples_before} before"
    );

    far.set_mtu(1300).expect("root may");
    assert_eq!(
        (far.mtu().expect("it is there"), far.report().expect("it runs").mtu),
        (1300, 1300)
    );
    assert!(lab.b.ip(&["link", "show", "rw0"]).contains("mtu 1300"));
    far.set_mtu(575).expect_err("no IPv4 link has so little");

    assert!(far.is_running());
    far.disconnect().expect("it ran until now");
    assert!(!lab.b.has_interface("rw0"));
}

#[test]
fn name_servers_are_the_builders_while_it_is_up_and_those_from_before_at_its_end() {
    let Some(lab) = Lab::new() else { return };
    if Command::new("resolvconf").arg("--version").output().is_ok() {
        return println!("skipped: resolvconf, which is installed, keeps name servers in a place of its own");
    }
    let etc = lab.directory.join("etc");
    fs::create_dir(&etc).expect("it can be made");
    let before = "nameserver 192.0.2.53\n";
    fs::write(etc.join("resolv.conf"), before).expect("it can be written");
    let resolv_conf = || fs::read_to_string(etc.join("resolv.conf")).expect("it is there");
    let during = "\nnameserver 10.76.0.53\nnameserver fd76::53\nsearch corp.example lab.example\n";
    let builder = Builder::new("rw-dns")
        .address("10.76.0.1/24".parse().expect("a network"))
        .dns("10.76.0.53".parse().expect("an address"))
        .dns("fd76::53".parse().expect("an address"))
        .search_domain("corp.example")
        .search_domain("lab.example");
    let establish = || enter_with_etc(&lab.a, &etc, || builder.clone().establish().expect("the lab lets us"));

    let device = establish();
    assert!(resolv_conf().ends_with(during), "{}", resolv_conf());
    device.disconnect().expect("all is put back");
    assert_eq!(resolv_conf(), before);
    let device = establish();
    assert!(resolv_conf().ends_with(during), "{}", resolv_conf());
    drop(device);
    assert_eq!(resolv_conf(), before);

    let connect = || {
        let peer = Peer::new(key(1).public_key());
        let builder = builder.clone().private_key(key(2)).peer(peer);
        enter_with_etc(&lab.a, &etc, || builder.connect().expect("the lab lets us"))
    };
    let tunnel = connect();
    assert!(resolv_conf().ends_with(during), "{}", resolv_conf());
    tunnel.disconnect().expect("it ran until now");
    assert_eq!(resolv_conf(), before);
    let tunnel = connect();
    assert!(resolv_conf().ends_with(during), "{}", resolv_conf());
    drop(tunnel);
    assert_eq!(resolv_conf(), before);
    let left: Vec<_> = fs::read_dir(&etc).expect("it is there").flatten().collect();
    assert_eq!(left.len(), 1, "{left:?}");
}

/// As [`Namespace::enter`], where the directory `etc` stands in for /etc.
fn enter_with_etc<T: Send>(host: &Namespace, etc: &Path, inside: impl FnOnce() -> T + Send) -> T {
    host.enter(|| {
        unshare(CloneFlags::CLONE_NEWNS).expect("root may");
        run(&["mount", "--make-rprivate", "/"]);
        run(&["mount", "--bind", etc.to_str().expect("ASCII"), "/etc"]);
        inside()
    })
}

/// An interface's index, as the kernel has it.
fn index(host: &Namespace, name: &str) -> u32 {
    let line = host.ip(&["-o", "link", "show", name]);
    let index = line.split(':').next().expect("split gives one at least");
    index.parse().expect("a number")
}

/// A line of what the kernel tells of a descriptor (`proc_pid_fdinfo`(5)).
fn told_of(fd: BorrowedFd<'_>, key: &str) -> String {
    let text = fs::read_to_string(format!("/proc/self/fdinfo/{}", fd.as_raw_fd())).expect("it is open");
    let value = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
    value.unwrap_or_else(|| panic!("{key}: {text}")).trim().to_owned()
}

#[test]
fn a_devices_descriptor_does_not_block_and_can_be_polled_for_packets() {
    let Some(lab) = Lab::new() else { return };
    let device = lab.a.enter(|| {
        let address = "10.76.0.1/24".parse().expect("a network");
        let builder = Builder::new("rw-poll").address(address);
        builder.establish().expect("the lab lets us")
    });
    assert_eq!(device.index(), index(&lab.a, "rw-poll"));
    assert_eq!(told_of(device.as_fd(), "iff"), "rw-poll");
    let flags = u32::from_str_radix(&told_of(device.as_fd(), "flags"), 8).expect("an octal number");
    assert_ne!(flags & 0o4000, 0, "O_NONBLOCK (asm-generic/fcntl.h)");

    let socket = lab.a.enter(|| UdpSocket::bind("0.0.0.0:0").expect("any port"));
    let mut packet = [0; 1500];
    let mut sent = false;
    // Also the kernel's own packets, which come when they like.
    loop {
        match device.recv_timeout(&mut packet, Duration::ZERO) {
            Ok(len) if packet[..len].ends_with(b"wake up") => break,
            Ok(_) => continue,
            Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
        }
        if !sent {
            socket.send_to(b"wake up", "10.76.0.2:5000").expect("there is a route");
            sent = true;
        }
        let mut waited_for = [PollFd::new(device.as_fd(), PollFlags::POLLIN)];
        let patience = PollTimeout::try_from(PATIENCE).expect("some seconds");
        assert_eq!(poll(&mut waited_for, patience), Ok(1), "woken in time");
        assert_eq!(waited_for[0].revents(), Some(PollFlags::POLLIN));
    }
}

#[test]
fn a_tunnels_descriptor_is_its_interfaces_and_keeps_that_alive() {
    let Some(lab) = Lab::new() else { return };
    let tunnel = lab.a.enter(|| {
        let peer = Peer::new(key(1).public_key());
        let builder = Builder::new("rw0").private_key(key(2)).peer(peer);
        builder.connect().expect("the lab lets us")
    });
    assert_eq!(tunnel.index(), index(&lab.a, "rw0"));
    assert_eq!(told_of(tunnel.as_fd(), "iff"), "rw0");
    let kept = tunnel.as_fd().try_clone_to_owned().expect("a descriptor");
    tunnel.disconnect().expect("it ran until now");
    assert_eq!(told_of(kept.as_fd(), "iff"), "rw0");
    assert!(lab.a.has_interface("rw0"));
    drop(kept);
    wait_until("the interface to go", PATIENCE, || !lab.a.has_interface("rw0"));
}

#[test]
fn a_tunnel_whose_interface_is_removed_says_so() {
    let Some(lab) = Lab::new() else { return };
    let peer = Peer::new(key(1).public_key());
    let tunnel = lab.a.enter(|| {
        Builder::new("rw0")
            .private_key(key(2))
            .peer(peer)
            .connect()
            .expect("the lab lets us")
    });
    lab.a.ip(&["link", "delete", "rw0"]);
    wait_until("it ends by itself", PATIENCE, || !tunnel.is_running());
    tunnel.statistics().expect_err("nobody answers");
    tunnel.set_mtu(1300).expect_err("nobody answers");
    let error = tunnel.disconnect().expect_err("it had ended").to_string();
    assert!(error.contains("the interface was removed"), "{error}");
}
