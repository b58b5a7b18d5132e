//! `ringway-wg` as `wg` and `wg-quick` see it, in network namespaces. Needs root and wireguard-tools; elsewhere each test
//! prints why it is skipped and passes.

mod device;
#[path = "../netns/lab.rs"]
#[expect(dead_code, reason = "another program's tests use the rest of the lab")]
mod lab;

use std::fs;
use std::io::{ErrorKind, Read as _};
use std::net::{IpAddr, UdpSocket};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use device::{Device, Keys, RINGWAY_WG, pid_of, socket_of, unique_name};
use lab::{Lab, Namespace, UNDERLAY_V4, wait_until};

const RINGWAY: &str = env!("CARGO_BIN_EXE_ringway");
const PATIENCE: Duration = Duration::from_secs(10);
/// Inner addresses of a and b.
const INNER: [&str; 2] = ["10.77.0.1", "10.77.0.2"];

/// A lab, where `wg` and root are there.
fn lab() -> Option<Lab> {
    if Command::new("wg")
        .arg("--version")
        .stdout(Stdio::null())
        .status()
        .is_err()
    {
        println!("skipped: needs wireguard-tools (wg)");
        return None;
    }
    Lab::new()
}

fn inner(host: usize) -> IpAddr {
    INNER[host].parse().expect("an address")
}

/// Gives the device its inner address and brings it up, as wg-quick does.
fn bring_up(namespace: &Namespace, device: &Device, address: &str) {
    namespace.ip(&["address", "add", &format!("{address}/24"), "dev", &device.name]);
    namespace.ip(&["link", "set", &device.name, "up"]);
}

/// Two devices in a lab that know each other, and are up.
struct Pair {
    a: Device,
    b: Device,
    lab: Lab,
}

impl Pair {
    fn new(lab: Lab, options: &[&str]) -> Pair {
        let a = Device::start(&lab, &lab.a, options);
        let b = Device::start(&lab, &lab.b, options);
        for (me, other, address) in [(&a, &b, INNER[1]), (&b, &a, INNER[0])] {
            me.set_private_key();
            me.wg(
                "set",
                &["peer", &other.keys.public, "allowed-ips", &format!("{address}/32")],
            );
        }
        for (me, other, address) in [(&a, &b, UNDERLAY_V4[1]), (&b, &a, UNDERLAY_V4[0])] {
            let endpoint = format!("{address}:{}", other.listen_port());
            me.wg("set", &["peer", &other.keys.public, "endpoint", &endpoint]);
        }
        bring_up(&lab.a, &a, INNER[0]);
        bring_up(&lab.b, &b, INNER[1]);
        Pair { a, b, lab }
    }

    fn wait_until_packets_pass(&self) {
        wait_until("an answer from b", PATIENCE, || self.lab.a.ping(inner(1), 56));
    }

    /// When the last handshake was, as a tells.
    fn latest_handshake(&self) -> u64 {
        let peer = self.a.peer(&self.b.keys.public).expect("b is a's peer");
        peer[4].parse().expect("seconds")
    }
}

#[test]
fn a_new_device_listens_on_a_port_and_has_neither_key_nor_peer() {
    let Some(lab) = lab() else { return };
    let device = Device::start(&lab, &lab.a, &[]);
    let mode = fs::metadata(device.socket()).expect("it is there").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let port = device.listen_port();
    assert_ne!(port, 0);
    assert_eq!(device.dump(), [["(none)", "(none)", &port.to_string(), "off"]]);
    let taken = lab.a.enter(|| UdpSocket::bind(("0.0.0.0", port)));
    assert!(taken.is_err(), "the port is the real one");
    let link = lab.a.ip(&["link", "show", &device.name]);
    assert!(link.contains("mtu 1420") && link.contains("state DOWN"), "{link}");
    assert!(lab.a.run(&["wg", "show", "interfaces"]).contains(&device.name));
}

#[test]
fn wg_shows_what_wg_has_set() {
    let Some(lab) = lab() else { return };
    let device = Device::start(&lab, &lab.a, &[]);
    device.set_private_key();
    let [peer, other] = [Keys::new(), Keys::new()];
    let preshared = Keys::new().private;
    let path = device.file("psk", &preshared);
    device.wg(
        "set",
        &["listen-port", "41234", "fwmark", "0xca6c", "peer", &peer.public],
    );
    let settings = [
        "preshared-key",
        &path,
        "endpoint",
        "[2001:db8::1]:51820",
        "persistent-keepalive",
        "25",
    ];
    let allowed = ["allowed-ips", "10.1.2.3/16,fd00::/8,192.0.2.1/32"];
    device.wg("set", &[&["peer", &peer.public], &settings[..], &allowed].concat());
    device.wg("set", &["peer", &other.public]);

    let keys = &device.keys;
    let dump = device.dump();
    assert_eq!(dump[0], [&keys.private, &keys.public, "41234", "0xca6c"]);
    let fields = device.peer(&peer.public).expect("it was added");
    assert_eq!(fields[1..3], [preshared.clone(), "[2001:db8::1]:51820".into()]);
    // No handshake, and only initiations were sent, if anything.
    assert_eq!(
        (fields[4].as_str(), fields[5].as_str(), fields[7].as_str()),
        ("0", "0", "25")
    );
    assert_eq!(
        device.allowed_ips(&peer.public),
        ["10.1.0.0/16", "192.0.2.1/32", "fd00::/8"]
    );
    let fields = device.peer(&other.public).expect("it was added");
    assert_eq!(fields[1..], ["(none)", "(none)", "(none)", "0", "0", "0", "off"]);
    let all = lab.a.run(&["wg", "show", "all", "dump"]);
    let ours = all
        .lines()
        .filter(|line| line.starts_with(&format!("{}\t", device.name)));
    assert_eq!(ours.count(), 3);

    device.wg(
        "set",
        &["fwmark", "off", "peer", &peer.public, "persistent-keepalive", "off"],
    );
    device.wg("set", &["peer", &peer.public, "preshared-key", "/dev/null"]);
    let fields = device.peer(&peer.public).expect("it is still there");
    assert_eq!((fields[1].as_str(), fields[7].as_str()), ("(none)", "off"));
    assert_eq!(device.dump()[0][3], "off");
    device.wg("set", &["peer", &other.public, "remove"]);
    assert!(device.peer(&other.public).is_none());
    device.wg("set", &["private-key", "/dev/null"]);
    assert_eq!(device.dump()[0][..2], ["(none)", "(none)"]);
}

#[test]
fn a_configuration_that_was_shown_can_be_set_elsewhere() {
    let Some(lab) = lab() else { return };
    let [from, to] = [Device::start(&lab, &lab.a, &[]), Device::start(&lab, &lab.b, &[])];
    from.set_private_key();
    for number in 0..3 {
        let (peer, network) = (Keys::new(), format!("10.{number}.0.0/16,fd0{number}::/16"));
        let endpoint = format!("192.0.2.{}:1", number + 1);
        from.wg(
            "set",
            &["peer", &peer.public, "allowed-ips", &network, "endpoint", &endpoint],
        );
    }
    let shown = from.wg("showconf", &[]);
    to.wg("setconf", &[&to.file("conf", &shown)]);
    let again = to.wg("showconf", &[]);
    // wg shows peers in no order of its own.
    let sections = |text: &str| {
        let mut sections: Vec<String> = text.split("\n\n").map(|section| section.trim().to_owned()).collect();
        sections.sort();
        sections
    };
    assert_eq!(sections(&again), sections(&shown));
    // Setting replaces, adding adds.
    to.wg("setconf", &[&to.file("conf", "[Interface]\n")]);
    assert_eq!(to.dump().len(), 1);
    assert_eq!(to.dump()[0][..2], ["(none)", "(none)"]);
    let peer = Keys::new().public;
    to.wg("addconf", &[&to.file("conf", &format!("[Peer]\nPublicKey = {peer}\n"))]);
    assert!(to.peer(&peer).is_some());
}

#[test]
fn packets_pass_between_two_devices_in_every_suite() {
    for suite in ["auto", "native", "wireguard"] {
        let Some(lab) = lab() else { return };
        let pair = Pair::new(lab, &["--suite", suite]);
        pair.wait_until_packets_pass();
        for device in [&pair.a, &pair.b] {
            let peer = &device.dump()[1];
            let [handshake, received, sent] = [4, 5, 6].map(|at: usize| peer[at].parse::<u64>().expect("a number"));
            let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
            let age = now.expect("after 1970").as_secs().saturating_sub(handshake);
            assert!(age < 30, "{suite}: the handshake was {age} s ago");
            assert!(received > 100 && sent > 100, "{suite}: {peer:?}");
        }
    }
}

#[test]
fn preshared_keys_must_agree() {
    let Some(lab) = lab() else { return };
    let pair = Pair::new(lab, &[]);
    let set = |device: &Device, other: &Device, key: &str| {
        let path = device.file("psk", key);
        device.wg("set", &["peer", &other.keys.public, "preshared-key", &path]);
    };
    let key = Keys::new().private;
    set(&pair.a, &pair.b, &key);
    for _ in 0..3 {
        assert!(
            !pair.lab.a.ping(inner(1), 56),
            "one end has a preshared key, the other has none"
        );
    }
    set(&pair.b, &pair.a, &key);
    pair.wait_until_packets_pass();
}

#[test]
fn changes_of_other_peers_leave_a_session_alone() {
    let Some(lab) = lab() else { return };
    let pair = Pair::new(lab, &[]);
    pair.wait_until_packets_pass();
    let before = pair.latest_handshake();
    // Handshake times are whole seconds in wg's output.
    std::thread::sleep(Duration::from_millis(1100));
    let stranger = Keys::new().public;
    let (a, b) = (&pair.a, &pair.b.keys.public);
    let shown = a.wg("showconf", &[]);
    a.wg(
        "syncconf",
        &[&a.file(
            "conf",
            &format!("{shown}\n[Peer]\nPublicKey = {stranger}\nAllowedIPs = 10.88.0.0/16\n"),
        )],
    );
    assert!(a.peer(&stranger).is_some());
    a.wg(
        "set",
        &[
            "peer",
            &stranger,
            "allowed-ips",
            "10.89.0.0/16",
            "endpoint",
            "192.0.2.7:7",
        ],
    );
    a.wg("set", &["peer", &stranger, "remove"]);
    a.wg("syncconf", &[&a.file("conf", &shown)]);
    a.wg("set", &["peer", b, "persistent-keepalive", "25"]);
    assert!(pair.lab.a.answers(inner(1), 56), "not one packet is lost");
    assert_eq!(pair.latest_handshake(), before, "nor was there a handshake");
    // To replace all peers is another matter, there as in WireGuard.
    a.wg("setconf", &[&a.file("conf", &shown)]);
    pair.wait_until_packets_pass();
    assert!(pair.latest_handshake() > before);
}

#[test]
fn a_removed_peer_is_spoken_to_no_more() {
    let Some(lab) = lab() else { return };
    let pair = Pair::new(lab, &[]);
    pair.wait_until_packets_pass();
    pair.a.wg("set", &["peer", &pair.b.keys.public, "remove"]);
    assert!(!pair.lab.a.ping(inner(1), 56));
    assert!(!pair.lab.b.ping(inner(0), 56));
    assert_eq!(pair.a.dump().len(), 1);
    let endpoint = format!("{}:{}", UNDERLAY_V4[1], pair.b.listen_port());
    let peer = [
        "peer",
        &pair.b.keys.public,
        "allowed-ips",
        INNER[1],
        "endpoint",
        &endpoint,
    ];
    pair.a.wg("set", &peer);
    pair.wait_until_packets_pass();
}

#[test]
fn allowed_ips_move_from_peer_to_peer_and_go_when_asked() {
    let Some(lab) = lab() else { return };
    let pair = Pair::new(lab, &[]);
    pair.wait_until_packets_pass();
    let (a, b) = (&pair.a, &pair.b.keys.public);
    let other = Keys::new().public;
    let own = format!("{}/32", INNER[1]);
    a.wg("set", &["peer", &other, "allowed-ips", &own]);
    assert_eq!((a.allowed_ips(b), a.allowed_ips(&other)), (vec![], vec![own.clone()]));
    assert!(!pair.lab.a.ping(inner(1), 56), "it is the other's");
    assert!(!pair.lab.b.ping(inner(0), 56), "nor may b send from it");
    a.wg("set", &["peer", b, "allowed-ips", &format!("{own},10.78.0.0/24")]);
    assert!(pair.lab.a.answers(inner(1), 56), "the session went on meanwhile");
    assert!(a.allowed_ips(&other).is_empty());

    let hex = hex_of(b);
    let answer = a.exchange(&format!("set=1\npublic_key={hex}\nallowed_ip=-10.78.0.0/24\n\n"));
    assert_eq!(answer, "errno=0\n\n");
    assert_eq!(a.allowed_ips(b), vec![own.clone()]);
    // It is not this peer's, so nothing happens.
    let answer = a.exchange(&format!("set=1\npublic_key={}\nallowed_ip=-{own}\n\n", hex_of(&other)));
    assert_eq!(answer, "errno=0\n\n");
    assert_eq!(a.allowed_ips(b), [own]);
    a.wg("set", &["peer", b, "allowed-ips", ""]);
    assert!(a.allowed_ips(b).is_empty());
    assert!(!pair.lab.a.ping(inner(1), 56));
}

#[test]
fn the_port_changes_while_packets_pass() {
    for io in ["auto", "syscall"] {
        let Some(lab) = lab() else { return };
        let pair = Pair::new(lab, &["--io", io]);
        pair.wait_until_packets_pass();
        let before = pair.latest_handshake();
        for port in ["42001", "42002", "42001"] {
            pair.a.wg("set", &["listen-port", port]);
            assert_eq!(pair.a.listen_port().to_string(), port);
            assert!(pair.lab.a.answers(inner(1), 56), "{io}: b follows to port {port}");
            let peer = pair.b.peer(&pair.a.keys.public).expect("a is b's peer");
            assert_eq!(peer[2], format!("{}:{port}", UNDERLAY_V4[0]));
        }
        // Whoever has a port keeps it; the device keeps its own then.
        let taken = pair
            .lab
            .a
            .enter(|| UdpSocket::bind(("0.0.0.0", 42003)).expect("a free port"));
        let error = pair
            .a
            .try_wg("set", &["listen-port", "42003"])
            .expect_err("it is taken");
        assert!(error.contains("Address already in use"), "{error}");
        assert!(pair.lab.a.answers(inner(1), 56));
        drop(taken);
        pair.a.wg("set", &["listen-port", "0"]);
        assert!(![0, 42001, 42003].contains(&pair.a.listen_port()));
        assert!(pair.lab.a.answers(inner(1), 56));
        assert_eq!(pair.latest_handshake(), before, "{io}: all in one session");
    }
}

#[test]
fn the_mark_is_on_what_is_sent() {
    let Some(lab) = lab() else { return };
    let pair = Pair::new(lab, &[]);
    pair.wait_until_packets_pass();
    let rule = "table ip t { chain out { type filter hook output priority 0; meta mark 0x77 drop; }; }";
    if let Err(error) = pair.lab.a.try_run(&["nft", rule]) {
        return println!("skipped: needs nft: {error}");
    }
    assert!(pair.lab.a.answers(inner(1), 56));
    pair.a.wg("set", &["fwmark", "0x77"]);
    assert!(!pair.lab.a.ping(inner(1), 56));
    pair.a.wg("set", &["listen-port", "42011"]);
    assert!(!pair.lab.a.ping(inner(1), 56), "new sockets have it too");
    pair.a.wg("set", &["fwmark", "off"]);
    pair.wait_until_packets_pass();
}

#[test]
fn wrong_requests_are_answered_with_an_errno_and_change_nothing() {
    let Some(lab) = lab() else { return };
    let device = Device::start(&lab, &lab.a, &[]);
    let key = "ab".repeat(32);
    let before = device.exchange("get=1\n\n");
    let cases = [
        ("set=1\nfwmark=1\nno_such_key=1\n\n", libc::EINVAL),
        ("set=1\nfwmark=1\nlisten_port=99999\n\n", libc::EINVAL),
        ("set=1\nnonsense\n\n", libc::EPROTO),
        (&format!("set=1\npublic_key={key}\nremove=false\n\n"), libc::EINVAL),
        (
            &format!("set=1\npublic_key={key}\nprotocol_version=2\n\n"),
            libc::EINVAL,
        ),
        ("get=1\nx\n", libc::EINVAL),
    ];
    for (request, errno) in cases {
        assert_eq!(device.exchange(request), format!("errno=-{errno}\n\n"), "{request:?}");
    }
    for request in ["", "\n", "get=2\n\n", "what is this\n\n"] {
        assert_eq!(device.exchange(request), "", "{request:?}");
    }
    assert_eq!(device.exchange("get=1\n\n"), before);
    let answer = device.exchange(&format!(
        "set=1\npublic_key={key}\nupdate_only=true\nallowed_ip=10.0.0.0/8\n\n"
    ));
    assert_eq!(answer, "errno=0\n\n");
    assert_eq!(device.exchange("get=1\n\n"), before, "update_only adds no peer");
}

#[test]
fn a_device_is_no_peer_of_its_own() {
    let Some(lab) = lab() else { return };
    let device = Device::start(&lab, &lab.a, &[]);
    device.set_private_key();
    device.wg("set", &["peer", &device.keys.public, "allowed-ips", "10.0.0.0/8"]);
    assert_eq!(device.dump().len(), 1);
    // And a peer goes that turns out to be ourselves.
    let later = Keys::new();
    device.wg("set", &["peer", &later.public]);
    assert_eq!(device.dump().len(), 2);
    device.wg("set", &["private-key", &device.file("key", &later.private)]);
    assert_eq!(device.dump().len(), 1);
}

#[test]
fn it_ends_with_its_interface_its_socket_or_a_signal() {
    let Some(lab) = lab() else { return };
    for io in ["auto", "syscall"] {
        let device = Device::start(&lab, &lab.a, &["--io", io]);
        lab.a.ip(&["link", "delete", &device.name]);
        device.wait_until_ended();
    }
    let device = Device::start(&lab, &lab.a, &[]);
    lab.a.ip(&["link", "set", &device.name, "up"]);
    fs::remove_file(device.socket()).expect("it is there");
    device.wait_until_ended();
    wait_until("the interface goes too", PATIENCE, || {
        !lab.a.has_interface(&device.name)
    });
    for signal in ["-TERM", "-INT"] {
        let device = Device::start(&lab, &lab.a, &[]);
        lab::run(&["kill", signal, &device.pid().to_string()]);
        device.wait_until_ended();
        wait_until("the interface goes too", PATIENCE, || {
            !lab.a.has_interface(&device.name)
        });
    }
}

#[test]
fn what_keeps_it_from_starting_is_told_before_it_goes_to_the_background() {
    let Some(lab) = lab() else { return };
    let device = Device::start(&lab, &lab.a, &[]);
    let name = &device.name;
    let error = lab.b.try_run(&[RINGWAY_WG, name]).expect_err("the socket is another's");
    assert!(error.contains("another daemon answers on this socket"), "{error}");
    assert!(!lab.b.has_interface(name));
    let error = lab
        .a
        .try_run(&[RINGWAY_WG, "--io", "syscall", "lo"])
        .expect_err("it exists");
    assert!(error.contains("ringway-wg: ") && error.contains("lo"), "{error}");
    for (options, expected) in [
        (["--workers", "0", "x"], "1 to 255"),
        (["--suite", "ipsec", "x"], "native"),
    ] {
        let error = lab
            .a
            .try_run(&[&[RINGWAY_WG], &options[..]].concat())
            .expect_err("it is wrong");
        assert!(error.contains(expected), "{error}");
    }
    assert_eq!(device.dump().len(), 1, "the first one goes on");
    // The exit code is that of the process in the background.
    let code = |program: &[&str]| {
        let mut command = lab.a.command(program[0]);
        let output = command.args(&program[1..]).output().expect("nsenter is installed");
        (
            output.status.code(),
            String::from_utf8_lossy(&output.stderr).into_owned(),
        )
    };
    let new = unique_name();
    let (failure, text) = code(&[RINGWAY_WG, name]);
    assert_eq!(failure, Some(1), "{text}");
    let (denied, text) = code(&["setpriv", "--bounding-set=-all", "--inh-caps=-all", RINGWAY_WG, &new]);
    assert_eq!(denied, Some(5), "{text}");
}

#[test]
fn options_come_from_the_environment_too() {
    let Some(lab) = lab() else { return };
    let name = unique_name();
    let mut command = lab.a.command(RINGWAY_WG);
    command.arg(&name);
    command.envs([
        ("RINGWAY_WORKERS", "3"),
        ("RINGWAY_IO", "syscall"),
        ("RINGWAY_CRYPTO", "aes-gcm"),
    ]);
    command.env("RINGWAY_SUITE", "wireguard");
    assert!(command.status().expect("nsenter is installed").success());
    let pid = pid_of(&name).expect("it runs").to_string();
    let threads = fs::read_dir(format!("/proc/{pid}/task")).expect("it runs").flatten();
    let names = threads.filter_map(|thread| fs::read_to_string(thread.path().join("comm")).ok());
    assert_eq!(names.filter(|name| name.starts_with("worker-")).count(), 3);
    let status = lab.a.run(&[RINGWAY, "status", &name, "--json"]);
    assert!(status.contains("\"syscall\""), "{status}");
    lab::run(&["kill", &pid]);
    wait_until("its end", PATIENCE, || !socket_of(&name).exists());
}

#[test]
fn the_interface_may_move_to_another_namespace() {
    let Some(lab) = lab() else { return };
    let pair = Pair::new(lab, &[]);
    let inside = Inside::new(&pair);
    // Moving takes its addresses away.
    pair.lab.a.ip(&["link", "set", &pair.a.name, "netns", &inside.0]);
    let ip = |arguments: &[&str]| lab::run(&[&["ip", "-n", &inside.0], arguments].concat());
    ip(&["address", "add", &format!("{}/24", INNER[0]), "dev", &pair.a.name]);
    ip(&["link", "set", &pair.a.name, "up"]);
    let ping = [
        "ip", "netns", "exec", &inside.0, "ping", "-n", "-q", "-c", "1", "-W", "1", INNER[1],
    ];
    let is_answered = || {
        Command::new(ping[0])
            .args(&ping[1..])
            .output()
            .is_ok_and(|output| output.status.success())
    };
    wait_until("an answer from b", PATIENCE, is_answered);
    // Its sockets are still where it was born, also new ones.
    pair.a.wg("set", &["listen-port", "42021"]);
    assert!(is_answered());
    let peer = pair.b.peer(&pair.a.keys.public).expect("a is b's peer");
    assert_eq!(peer[2], format!("{}:42021", UNDERLAY_V4[0]));
    ip(&["link", "delete", &pair.a.name]);
    pair.a.wait_until_ended();
}

/// A namespace that only a device leads out of.
struct Inside(String);

impl Inside {
    fn new(pair: &Pair) -> Inside {
        // The lab's sweep knows the name when a run is killed.
        let name = format!("{}-inside", pair.lab.a.name);
        lab::run(&["ip", "netns", "add", &name]);
        Inside(name)
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "delete", &self.0]).status();
    }
}

#[test]
fn wg_quick_takes_it_up_and_down() {
    let Some(lab) = lab() else { return };
    let has_kernel = lab
        .a
        .try_run(&["ip", "link", "add", "probe0", "type", "wireguard"])
        .is_ok();
    if has_kernel || Command::new("wg-quick").stdout(Stdio::null()).status().is_err() {
        println!("skipped: needs wg-quick, and a kernel without WireGuard, which wg-quick prefers");
        return;
    }
    let b = Device::start(&lab, &lab.b, &[]);
    b.set_private_key();
    bring_up(&lab.b, &b, INNER[1]);
    let (keys, name) = (Keys::new(), unique_name());
    b.wg(
        "set",
        &["listen-port", "42031", "peer", &keys.public, "allowed-ips", INNER[0]],
    );
    let marker = lab.directory.join("post-up");
    let config = format!(
        "[Interface]\nAddress = {}/24\nPrivateKey = {}\nMTU = 1380\nPostUp = echo %i > {}\n\n\
         [Peer]\nPublicKey = {}\nAllowedIPs = {}/32, 10.99.0.0/24\nEndpoint = {}:42031\nPersistentKeepalive = 5\n",
        INNER[0],
        keys.private,
        marker.display(),
        b.keys.public,
        INNER[1],
        UNDERLAY_V4[1],
    );
    let path = lab.directory.join(format!("{name}.conf"));
    fs::write(&path, config).expect("the directory is ours");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("the file is ours");
    let wg_quick = |verb: &str| {
        let mut command = lab.a.command("wg-quick");
        command
            .arg(verb)
            .arg(&path)
            .env("WG_QUICK_USERSPACE_IMPLEMENTATION", RINGWAY_WG);
        let output = command.output().expect("it is installed");
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "wg-quick {verb}: {text}");
    };
    for _ in 0..2 {
        wg_quick("up");
        assert_eq!(fs::read_to_string(&marker).expect("PostUp ran").trim(), name);
        wait_until("an answer from b", PATIENCE, || lab.a.ping(inner(1), 56));
        let link = lab.a.ip(&["link", "show", &name]);
        assert!(link.contains("mtu 1380"), "{link}");
        assert!(lab.a.ip(&["route", "show", "dev", &name]).contains("10.99.0.0/24"));
        wg_quick("down");
        assert!(!lab.a.has_interface(&name));
        wait_until("the socket goes", PATIENCE, || !socket_of(&name).exists());
        wait_until("the process goes", PATIENCE, || pid_of(&name).is_none());
    }
}

#[test]
fn ringway_runs_a_configuration_of_wg_quick() {
    let Some(lab) = lab() else { return };
    let b = Device::start(&lab, &lab.b, &[]);
    b.set_private_key();
    bring_up(&lab.b, &b, INNER[1]);
    let (keys, name) = (Keys::new(), unique_name());
    b.wg("set", &["peer", &keys.public, "allowed-ips", INNER[0]]);
    let log = lab.directory.join("hooks");
    let hook = |text: &str| {
        format!(
            "echo {text} %i $(ip link show %i >/dev/null 2>&1 && echo there) >> {}",
            log.display()
        )
    };
    let config = format!(
        "[Interface]\nAddress = {}/24\nPrivateKey = {}\nTable = off\n\
         PreUp = {}\nPostUp = {}; ping -c 1 -W 5 {} >/dev/null; [[ $(wg show %i public-key) == {} ]] && {}\nPreDown = {}\nPostDown = {}\n\
         [Peer]\nPublicKey = {}\nAllowedIPs = {}/32, 10.99.0.0/24\nEndpoint = {}:{}\n",
        INNER[0],
        keys.private,
        hook("pre-up"),
        hook("post-up"),
        INNER[1],
        keys.public,
        hook("pinged"),
        hook("pre-down"),
        hook("post-down"),
        b.keys.public,
        INNER[1],
        UNDERLAY_V4[1],
        b.listen_port(),
    );
    let write = |file: &str, text: &str| {
        let path = lab.directory.join(file);
        fs::write(&path, text).expect("the directory is ours");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("the file is ours");
        path.display().to_string()
    };
    let path = write(&format!("{name}.conf"), &config);
    let mut daemon = lab
        .a
        .command(RINGWAY)
        .args(["run", &path])
        .spawn()
        .expect("nsenter is installed");
    let hooks = || fs::read_to_string(&log).unwrap_or_default();
    wait_until("PostUp's end", PATIENCE, || hooks().contains("pinged"));
    assert!(lab.a.answers(inner(1), 56));
    let routes = lab.a.ip(&["route", "show", "dev", &name]);
    assert!(!routes.contains("10.99.0.0/24"), "Table = off: {routes}");
    lab::run(&["kill", &daemon.id().to_string()]);
    assert!(daemon.wait().expect("it is our child").success());
    let expected = ["post-up", "pinged", "pre-down"].map(|hook| format!("{hook} {name} there\n"));
    let expected = expected.concat();
    assert_eq!(hooks(), format!("pre-up {name}\n{expected}post-down {name}\n"));

    // The same as TOML is the same.
    let converted = lab.a.run(&[RINGWAY, "convert", &path]);
    let again = write("again.toml", &converted);
    assert_eq!(lab.a.run(&[RINGWAY, "convert", &again]), converted);
    assert!(converted.contains("table = \"off\"") && converted.contains("post_up = [\"echo post-up %i"));

    // A command that fails ends it all.
    let broken = write(
        &format!("{name}.conf"),
        &config.replace("PostUp = ", "PostUp = exit 7; "),
    );
    let error = lab.a.try_run(&[RINGWAY, "run", &broken]).expect_err("PostUp fails");
    assert!(
        error.contains("post_up: \"exit 7;") && error.contains("exit status: 7"),
        "{error}"
    );
    assert!(!lab.a.has_interface(&name));
}

#[test]
fn commands_run_when_wg_quick_runs_them_also_where_one_fails() {
    let Some(lab) = lab() else { return };
    let has_kernel = lab
        .a
        .try_run(&["ip", "link", "add", "probe0", "type", "wireguard"])
        .is_ok();
    if has_kernel || Command::new("wg-quick").stdout(Stdio::null()).status().is_err() {
        println!("skipped: needs wg-quick, and a kernel without WireGuard, which wg-quick prefers");
        return;
    }
    let name = unique_name();
    let path = lab.directory.join(format!("{name}.conf"));
    let log = lab.directory.join("hooks");
    let told = || {
        let text = fs::read_to_string(&log).unwrap_or_default();
        let _ = fs::remove_file(&log);
        text
    };
    for failing in ["none", "PreUp", "PostUp"] {
        let keys = Keys::new();
        let mut config = format!(
            "[Interface]\nAddress = {}/24\nPrivateKey = {}\n",
            INNER[0], keys.private
        );
        for hook in ["PreUp", "PostUp", "PreDown", "PostDown"] {
            let there = "$(ip link show %i >/dev/null 2>&1 && echo there)";
            config += &format!("{hook} = echo {hook} %i {there} >> {}\n", log.display());
            if hook == failing {
                config += &format!("{hook} = false\n{hook} = echo after >> {}\n", log.display());
            }
        }
        fs::write(&path, config).expect("the directory is ours");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("the file is ours");

        let wg_quick = |verb: &str| {
            let mut command = lab.a.command("wg-quick");
            let command = command.arg(verb).arg(&path);
            let output = command.env("WG_QUICK_USERSPACE_IMPLEMENTATION", RINGWAY_WG).output();
            output.expect("it is installed").status.success()
        };
        let came_up = wg_quick("up");
        assert_eq!(came_up, failing == "none");
        if came_up {
            assert!(wg_quick("down"));
        }
        wait_until("the end", PATIENCE, || {
            pid_of(&name).is_none() && !lab.a.has_interface(&name)
        });
        let theirs = told();

        let mut daemon = lab.a.command(RINGWAY);
        let mut daemon = daemon.arg("run").arg(&path).spawn().expect("nsenter is installed");
        if came_up {
            let text = || fs::read_to_string(&log).unwrap_or_default();
            wait_until("PostUp", PATIENCE, || text().contains("PostUp"));
            lab::run(&["kill", &daemon.id().to_string()]);
        }
        assert_eq!(daemon.wait().expect("it is our child").success(), came_up);
        assert!(!lab.a.has_interface(&name));
        assert_eq!(told(), theirs, "where {failing} fails");
    }
}

#[test]
fn ringway_runs_a_file_of_wg_quick_to_which_a_command_brings_the_key() {
    let Some(lab) = lab() else { return };
    let b = Device::start(&lab, &lab.b, &[]);
    b.set_private_key();
    bring_up(&lab.b, &b, INNER[1]);
    let (keys, name) = (Keys::new(), unique_name());
    b.wg("set", &["peer", &keys.public, "allowed-ips", INNER[0]]);
    let private = |file: &str, text: &str| {
        let path = lab.directory.join(file);
        fs::write(&path, text).expect("the directory is ours");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("the file is ours");
        path.display().to_string()
    };
    let key_file = private("key", &keys.private);
    let config = format!(
        "[Interface]\nAddress = {}/24\nTable = off\n\
         PostUp = [[ $(wg show %i private-key) == '(none)' ]]\nPostUp = wg set %i private-key {key_file}\n\
         [Peer]\nPublicKey = {}\nAllowedIPs = {}/32\nEndpoint = {}:{}\nPersistentKeepalive = 25\n",
        INNER[0],
        b.keys.public,
        INNER[1],
        UNDERLAY_V4[1],
        b.listen_port(),
    );
    let path = private(&format!("{name}.conf"), &config);
    let mut daemon = lab
        .a
        .command(RINGWAY)
        .args(["run", &path])
        .spawn()
        .expect("nsenter is installed");
    // The keepalive asks, before any packet does.
    wait_until("a handshake", PATIENCE, || {
        b.peer(&keys.public).is_some_and(|peer| peer[4] != "0")
    });
    assert!(lab.a.answers(inner(1), 56));
    // A reload takes the key away as little as it brings one.
    lab.a.run(&[RINGWAY, "reload", &name]);
    assert!(lab.a.answers(inner(1), 56));
    lab::run(&["kill", &daemon.id().to_string()]);
    assert!(daemon.wait().expect("it is our child").success());
}

#[test]
fn ten_thousand_peers_load_and_cost_little() {
    const PEERS: u64 = 10_000;
    let Some(lab) = lab() else { return };
    let device = Device::start(&lab, &lab.a, &["--workers", "2"]);
    let before = device.rss_bytes();
    let config: String = (0..PEERS)
        .map(|number| {
            // Any bytes are a public key.
            let mut key = [0x42; 32];
            key[..8].copy_from_slice(&number.to_le_bytes());
            let [_, _, _, _, _, _, high, low] = number.to_be_bytes();
            let hex: String = key.iter().map(|byte| format!("{byte:02x}")).collect();
            format!("public_key={hex}\nendpoint=192.0.2.9:{}\nallowed_ip=10.1.{high}.{low}/32\nallowed_ip=fd00::{number:x}/128\n", number + 1)
        })
        .collect();
    let begin = Instant::now();
    assert_eq!(
        device.exchange(&format!("set=1\nreplace_peers=true\n{config}\n")),
        "errno=0\n\n"
    );
    let loaded = begin.elapsed();
    let each = device.rss_bytes().saturating_sub(before) / PEERS;
    println!("{PEERS} peers in {loaded:?}, {each} bytes each");
    assert!(each <= 2048, "{each} bytes per peer");
    assert_eq!(device.dump().len() as u64, 1 + PEERS);
    let keys = Keys::new();
    let begin = Instant::now();
    device.wg("set", &["peer", &keys.public, "allowed-ips", "10.200.0.0/16"]);
    println!("one more in {:?}", begin.elapsed());
}

fn hex_of(key: &str) -> String {
    use base64::Engine as _;
    let bytes = base64::engine::general_purpose::STANDARD.decode(key).expect("base64");
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn an_upgrade_keeps_what_wg_has_set_and_the_session() {
    let Some(lab) = lab() else { return };
    let pair = Pair::new(lab, &["--suite", "wireguard"]);
    pair.wait_until_packets_pass();
    let Pair { a, b, lab } = &pair;
    let preshared = a.file("psk", &Keys::new().private);
    let guest = Keys::new();
    let settings = ["preshared-key", &preshared, "allowed-ips", "10.3.0.0/16,fd03::/16"];
    a.wg(
        "set",
        &[&["fwmark", "7", "peer", &guest.public], &settings[..]].concat(),
    );
    let known = |device: &Device| {
        let mut dump = device.dump();
        // Bytes go on being counted.
        dump.iter_mut().skip(1).for_each(|fields| drop(fields.drain(5..7)));
        dump
    };
    let before = known(a);
    for device in [a, a, b] {
        let output = Command::new(RINGWAY).args(["upgrade", &device.name]).output();
        let output = output.expect("the binary under test exists");
        assert!(output.status.success(), "{output:?}");
        assert!(lab.a.answers(inner(1), 56));
        assert_eq!(pid_of(&device.name), Some(device.pid()));
        assert_eq!(known(a), before);
    }
    // One that fails once the old program is gone leaves no socket.
    let dying = lab.directory.join("dying");
    let program = env!("CARGO_BIN_EXE_ringway-wg");
    let lines = format!("#!/bin/sh\n[ \"$1\" = --resume-check ] && exec {program} \"$@\"\nexit 1\n");
    fs::write(&dying, lines).expect("the directory is ours");
    fs::set_permissions(&dying, fs::Permissions::from_mode(0o755)).expect("it is ours");
    let mut command = Command::new(RINGWAY);
    command.args(["upgrade", &b.name, "--binary"]).arg(&dying);
    let output = command.output().expect("the binary under test exists");
    assert!(!output.status.success(), "{output:?}");
    let status = format!("/run/ringway/{}.sock", b.name);
    wait_until("the sockets to go", PATIENCE, || {
        !b.socket().exists() && !fs::exists(&status).expect("it can be asked")
    });
    // It is still wg's.
    a.wg("set", &["peer", &guest.public, "remove"]);
    assert_eq!(a.dump().len(), 2);
    fs::remove_file(a.socket()).expect("it is there");
    a.wait_until_ended();
}

#[test]
fn in_the_background_its_log_goes_on_to_the_journal_over_upgrades_and_up_to_its_last_word() {
    let Some(lab) = lab() else { return };
    let run = lab.directory.join("run");
    fs::create_dir_all(run.join("systemd/journal")).expect("the directory is ours");
    let journal = UnixDatagram::bind(run.join("systemd/journal/socket")).expect("the directory is ours");
    journal.set_read_timeout(Some(PATIENCE)).expect("not zero");
    let name = unique_name();
    // An entry of that tunnel's that says this.
    let wait_for = |message: &str| {
        let mut entry = vec![0; 1 << 16];
        loop {
            let len = journal.recv(&mut entry).expect(message);
            let entry = String::from_utf8_lossy(&entry[..len]);
            if entry.contains(message) {
                for field in ["SYSLOG_IDENTIFIER=ringway-wg", &format!("TUNNEL={name}")] {
                    assert!(entry.lines().any(|line| line == field), "{entry}");
                }
                return;
            }
        }
    };
    let (mut lines, stderr) = UnixStream::pair().expect("a pair of sockets");
    lines.set_nonblocking(true).expect("a socket");
    let stderr = fs::File::from(OwnedFd::from(stderr));
    let stream = stderr.metadata().expect("it is open");
    let mount = format!("mount --bind {} /run && exec \"$@\"", run.display());
    let mut command = lab.a.command("unshare");
    command.args(["-m", "sh", "-c", &mount, "sh", RINGWAY_WG, &name]);
    command.env("JOURNAL_STREAM", format!("{}:{}", stream.dev(), stream.ino()));
    command.env_remove("LOG_LEVEL").stdout(Stdio::null());
    command.stderr(stderr.try_clone().expect("a descriptor"));
    assert!(command.status().expect("nsenter is installed").success());
    let pid = pid_of(&name).expect("it runs in the background");
    let device = Device::running(&lab, name.clone(), Keys::new(), pid);
    let upgrade = |program: &str| {
        let mut command = Command::new(RINGWAY);
        command.arg("upgrade").arg(run.join(format!("ringway/{name}.sock")));
        let output = command.args(["--binary", program]).output();
        output.expect("the binary under test exists").status.success()
    };

    for _ in 0..2 {
        assert!(!upgrade("/no/such/program"));
        wait_for("no upgrade: /no/such/program");
        assert!(upgrade(RINGWAY_WG));
    }
    // Its last word, and what the guard says that has to do with the rest.
    let lost = lab.directory.join("lost");
    let script = format!(
        "#!/bin/sh\n[ \"$1\" = --resume-check ] && exec {RINGWAY_WG} \"$@\"\nexec {RINGWAY_WG} --resume 999 {name}\n"
    );
    fs::write(&lost, script).expect("the directory is ours");
    fs::set_permissions(&lost, fs::Permissions::from_mode(0o755)).expect("it is ours");
    assert!(!upgrade(lost.to_str().expect("plain")));
    wait_for("descriptor 999 was not handed over");
    wait_for("the program that was to go on with the tunnel has not");
    device.wait_until_ended();
    let no_line = lines.read(&mut [0]).expect_err("nothing came as a line");
    assert_eq!(no_line.kind(), ErrorKind::WouldBlock);
}
