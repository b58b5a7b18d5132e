//! The kill switch, by what its host's underlay carries.

use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::capture::{Capture, Frame};
use crate::hosts::{Process, RINGWAY, tool, write_private};
use crate::lab::{Lab, Namespace, UNDERLAY, UNDERLAY_V4, wait_until};
use crate::ping_until;

const PATIENCE: Duration = Duration::from_secs(20);
/// Where the probes go: on the underlay, off it, over IPv6, and to resolvers.
const STRANGERS: [&str; 4] = ["192.0.2.2", "198.51.100.9", "2001:db8:2::2", "2001:db8:9::9"];

/// A client under lockdown, in namespace a of the lab; the other end in b.
struct Client {
    daemon: Option<Process>,
    server: Option<Process>,
    lab: Lab,
    client_config: PathBuf,
    server_config: PathBuf,
}

impl Client {
    fn new(keys: &str) -> Option<Client> {
        if !Capture::is_possible() {
            return None;
        }
        let lab = Lab::new()?;
        for (host, address, router) in [
            (&lab.a, "2001:db8:2::1", UNDERLAY_V4[1]),
            (&lab.b, "2001:db8:2::2", UNDERLAY_V4[0]),
        ] {
            host.ip(&["address", "add", &format!("{address}/64"), "dev", UNDERLAY, "nodad"]);
            host.ip(&["route", "add", "default", "via", router]);
        }
        lab.a.ip(&["-6", "route", "add", "default", "via", "2001:db8:2::2"]);
        let [ours, theirs] = [0, 1].map(|_| tool(&["genkey"], ""));
        let config = |name: &str, key: &str, peer: &str, i: usize, more: &str| {
            let path = lab.directory.join(format!("{name}.toml"));
            let text = format!(
                "[interface]\nname = \"rw0\"\nprivate_key = \"{key}\"\nlisten_port = 51820\nworkers = 1\n\
                 addresses = [\"10.99.0.{}/24\"]\ncontrol_socket = \"{}\"\nstate_dir = \"{}\"\n{more}\n\n[[peer]]\npublic_key = \"{}\"\n\
                 endpoint = \"{}:51820\"\nallowed_ips = [\"10.99.0.{}/32\"]\n",
                1 + i,
                path.with_extension("sock").display(),
                path.with_extension("state").display(),
                tool(&["pubkey"], peer),
                UNDERLAY_V4[1 - i],
                2 - i,
            );
            write_private(&path, &text);
            path
        };
        let client_config = config("client", &ours, &theirs, 0, &format!("lockdown = true\n{keys}"));
        let server_config = config("server", &theirs, &ours, 1, "");
        Some(Client {
            daemon: None,
            server: None,
            lab,
            client_config,
            server_config,
        })
    }

    fn start(&mut self) {
        self.daemon = Some(Process::start(&self.lab.a, &self.client_config));
        wait_until("the daemon", PATIENCE, || {
            self.client_config.with_extension("sock").exists() && self.lab.a.has_interface("rw0") && self.is_locked()
        });
    }

    fn start_server(&mut self) {
        self.server = Some(Process::start(&self.lab.b, &self.server_config));
    }

    fn wait_until_packets_pass(&self) {
        wait_until("the tunnel", PATIENCE * 2, || {
            self.lab.a.ping("10.99.0.2".parse().unwrap(), 56)
        });
    }

    fn end(&mut self, signal: Signal) {
        self.daemon.take().expect("it runs").end_by(signal);
    }

    fn is_locked(&self) -> bool {
        self.lab
            .a
            .try_run(&["nft", "list", "table", "inet", "ringway-lockdown-rw0"])
            .is_ok()
    }

    fn unblock(&self, arguments: &[&str]) -> Result<String, String> {
        self.lab.a.try_run(&[&[RINGWAY, "unblock"], arguments].concat())
    }

    /// Lets programs try to get out in all ways; what left on the underlay meanwhile beside ARP.
    fn frames_while_probing(&self) -> Vec<Frame> {
        let capture = Capture::on(&self.lab.a, UNDERLAY, &["-Q", "out", "not", "arp"]);
        probe(&self.lab.a);
        capture.end()
    }

    /// As [`Client::frames_while_probing`]; fails unless nothing left but the tunnel's own datagrams and what keeps the
    /// link alive.
    fn assert_nothing_leaks(&self, phase: &str) {
        assert_only_the_tunnel(self.frames_while_probing(), phase);
    }
}

/// Fails where anything is among `frames` but the tunnel's own datagrams and what keeps the link alive.
#[track_caller]
fn assert_only_the_tunnel(frames: Vec<Frame>, phase: &str) {
    let is_strange = |frame: &Frame| !is_tunnel(frame) && !is_link_upkeep(frame);
    let strange: Vec<Frame> = frames.into_iter().filter(is_strange).collect();
    assert!(strange.is_empty(), "{phase}: {strange:#?}");
}

fn is_tunnel(frame: &Frame) -> bool {
    let way = format!("{}.51820 > {}.51820: ", UNDERLAY_V4[0], UNDERLAY_V4[1]);
    frame.text.contains(&way)
}

pub(crate) fn is_link_upkeep(frame: &Frame) -> bool {
    [
        "neighbor solicitation",
        "neighbor advertisement",
        "router solicitation",
        "multicast listener report",
    ]
    .iter()
    .any(|what| frame.text.contains(what))
}

/// Pings, TCP, UDP, DNS, from ordinary sockets and from one that is bound to the underlay's interface.
fn probe(host: &Namespace) {
    thread::scope(|scope| {
        for address in STRANGERS {
            scope.spawn(|| host.ping(address.parse().expect("an address"), 56));
            scope.spawn(|| host.try_run(&["ping", "-n", "-c", "1", "-W", "1", "-I", UNDERLAY, address]));
            scope.spawn(|| host.enter(|| probe_by_sockets(address)));
        }
    });
}

fn probe_by_sockets(address: &str) {
    let address = |port| SocketAddr::new(address.parse().expect("an address"), port);
    let any = if address(0).is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let socket = UdpSocket::bind(any).expect("a free port");
    for port in [53, 443, 853, 51820] {
        // Refusals are what this is about.
        let _ = socket.send_to(b"probe", address(port));
    }
    let _ = TcpStream::connect_timeout(&address(443), Duration::from_millis(500));
}

#[test]
fn nothing_but_the_tunnel_leaves_before_it_is_up_while_it_is_when_it_is_killed_and_when_it_comes_back() {
    let Some(mut client) = Client::new("") else { return };
    // The kernel drops what is sent while a new link is not quite up.
    wait_until("the probes to leave without the switch", PATIENCE, || {
        let open = client.frames_while_probing();
        let leaks = |way: &str| open.iter().any(|frame| frame.text.contains(way));
        leaks("> 198.51.100.9.53:") && leaks("> 2001:db8:9::9.53:") && leaks("echo request")
    });

    client.start();
    client.assert_nothing_leaks("before the other end is there");
    client.start_server();
    client.wait_until_packets_pass();
    client.assert_nothing_leaks("up");
    client.end(Signal::SIGKILL);
    wait_until("the interface to go", PATIENCE, || !client.lab.a.has_interface("rw0"));
    assert!(client.is_locked());
    client.assert_nothing_leaks("killed");
    let capture = Capture::on(&client.lab.a, UNDERLAY, &["-Q", "out", "not", "arp"]);
    client.start();
    probe(&client.lab.a);
    assert_only_the_tunnel(capture.end(), "while it comes back");
    client.wait_until_packets_pass();
    client.assert_nothing_leaks("up again");

    client.end(Signal::SIGTERM);
    assert!(!client.is_locked(), "an end in good order lifts it");
    ping_until(&client.lab.a, UNDERLAY_V4[1]);
}

#[test]
fn nothing_leaks_while_another_program_goes_on_nor_where_it_fails_to() {
    let Some(mut client) = Client::new("") else { return };
    let dying = client.lab.directory.join("dying");
    let text = format!("#!/bin/sh\n[ \"$1\" = --resume-check ] && exec {RINGWAY} \"$@\"\nexit 1\n");
    std::fs::write(&dying, text).expect("the directory is ours");
    std::fs::set_permissions(&dying, std::fs::Permissions::from_mode(0o755)).expect("it is ours");
    wait_until("the probes to leave without the switch", PATIENCE, || {
        let open = client.frames_while_probing();
        open.iter().any(|frame| frame.text.contains("echo request"))
    });
    client.start_server();
    client.start();
    client.wait_until_packets_pass();
    let socket = client.client_config.with_extension("sock");
    let socket = socket.to_str().expect("an ASCII path");
    let programs = [RINGWAY, RINGWAY, dying.to_str().expect("an ASCII path")];
    let capture = Capture::on(&client.lab.a, UNDERLAY, &["-Q", "out", "not", "arp"]);
    thread::scope(|scope| {
        let probes = scope.spawn(|| probe(&client.lab.a));
        for (number, program) in programs.into_iter().enumerate() {
            let upgraded = client.lab.a.try_run(&[RINGWAY, "upgrade", socket, "--binary", program]);
            assert_eq!(upgraded.is_ok(), number < 2, "{upgraded:?}");
        }
        probes.join().expect("they do not panic");
        wait_until("the socket to go", PATIENCE, || !std::path::Path::new(socket).exists());
        probe(&client.lab.a);
    });
    assert_only_the_tunnel(capture.end(), "while others go on");
    assert!(client.is_locked() && !client.lab.a.has_interface("rw0"));
    client.unblock(&["rw0"]).expect("it holds");
}

#[test]
fn what_may_go_inside_and_outside_does_and_dns_only_to_servers_listed_by_address() {
    let keys = "lockdown_inside = [\"10.99.0.9\"]\nlockdown_outside = [\"198.51.100.0/24\", \"192.0.2.2\"]";
    let Some(mut client) = Client::new(keys) else { return };
    client.lab.b.ip(&["address", "add", "10.99.0.9/32", "dev", "lo"]);
    let text = std::fs::read_to_string(&client.client_config).expect("it was written");
    write_private(
        &client.client_config,
        &text.replace("\"10.99.0.2/32\"", "\"10.99.0.2/32\", \"10.99.0.9/32\""),
    );
    client.start_server();
    client.start();
    let frames = client.frames_while_probing();
    let left = |way: &str| frames.iter().any(|frame| frame.text.contains(way));
    assert!(
        left("> 198.51.100.9.443:") && left("> 192.0.2.2.443:") && left("> 192.0.2.2.53:"),
        "{frames:#?}"
    );
    assert!(
        !left("> 198.51.100.9.53:") && !left("> 198.51.100.9.853:"),
        "{frames:#?}"
    );
    assert!(!left("2001:db8:9::9") && !left("2001:db8:2::2.443"), "{frames:#?}");
    // The same peer has both.
    ping_until(&client.lab.a, "10.99.0.9");
    assert!(
        !client.lab.a.ping("10.99.0.2".parse().unwrap(), 56),
        "not on the list for the inside"
    );
}

#[test]
fn forwarded_packets_do_not_leave_either() {
    let Some(mut client) = Client::new("") else { return };
    // A host behind the client: the far end of a second veth, which is in b.
    let [a, b] = [&client.lab.a, &client.lab.b];
    a.ip(&[
        "link", "add", "in0", "type", "veth", "peer", "name", "guest0", "netns", &b.name,
    ]);
    a.ip(&["address", "add", "10.5.0.1/24", "dev", "in0"]);
    a.ip(&["link", "set", "in0", "up"]);
    b.ip(&["address", "add", "10.5.0.2/24", "dev", "guest0"]);
    b.ip(&["link", "set", "guest0", "up"]);
    b.ip(&["route", "add", "198.51.100.0/24", "via", "10.5.0.1"]);
    a.run(&["sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward"]);
    let leaves = |client: &Client| {
        let capture = Capture::on(&client.lab.a, UNDERLAY, &["-Q", "out", "icmp"]);
        client.lab.b.ping("198.51.100.9".parse().unwrap(), 56);
        !capture.end().is_empty()
    };
    wait_until("a forwarded packet", PATIENCE, || leaves(&client));
    client.start();
    assert!(!leaves(&client));
}

#[test]
fn unblock_lifts_what_a_killed_daemon_left_and_what_was_to_be_kept() {
    let Some(mut client) = Client::new("lockdown_keep = true") else {
        return;
    };
    let text = client.unblock(&[]).expect("nothing to do is no failure");
    assert!(text.contains("no kill switch holds here"), "{text}");
    client.start();
    client.end(Signal::SIGTERM);
    assert!(client.is_locked(), "lockdown_keep");
    let error = client.unblock(&["rw7"]).expect_err("there is none of that name");
    assert!(error.contains("rw7: it has none; those of rw0 hold"), "{error}");
    assert!(client.unblock(&["rw0"]).expect("it holds").contains("rw0: unblocked"));
    assert!(!client.is_locked());
    client.start();
    client.end(Signal::SIGKILL);
    assert!(client.unblock(&[]).expect("it holds").contains("rw0: unblocked"));
    assert!(!client.is_locked());
    ping_until(&client.lab.a, UNDERLAY_V4[1]);

    // A configuration that does not want it any more lifts it too.
    client.start();
    client.end(Signal::SIGKILL);
    let text = std::fs::read_to_string(&client.client_config).expect("it was written");
    write_private(
        &client.client_config,
        &text.replace("lockdown = true\nlockdown_keep = true\n", ""),
    );
    client.daemon = Some(Process::start(&client.lab.a, &client.client_config));
    wait_until("the switch to be lifted", PATIENCE, || !client.is_locked());
}

#[test]
fn leaktest_sees_what_leaves_and_that_nothing_does_under_lockdown() {
    let Some(mut client) = Client::new("lockdown_outside = [\"192.0.2.77\"]") else {
        return;
    };
    let leaktest = |client: &Client| {
        let socket = client.client_config.with_extension("sock");
        let socket = socket.display().to_string();
        let mut command = client.lab.a.command(RINGWAY);
        command.args([
            "leaktest",
            "rw0",
            "--seconds",
            "2",
            "--json",
            "--control-socket",
            &socket,
        ]);
        let output = command.output().expect("setpriv is installed");
        let report: Value = serde_json::from_slice(&output.stdout)
            .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&output.stderr)));
        (output.status.code().expect("it ended by itself"), report)
    };
    let (code, report) = leaktest(&client);
    assert_eq!(
        (code, &report["lockdown"], &report["is_up"]),
        (6, &false.into(), &false.into()),
        "{report:#}"
    );
    assert_eq!(report["underlay"], serde_json::json!([UNDERLAY]));
    let leaks = report["leaks"].to_string();
    for what in ["DNS", "UDP", "TCP", "ICMP"] {
        let leaked = |to: &str| leaks.contains(&format!("{what} ")) && leaks.contains(to);
        assert!(
            leaked("-> 198.51.100.53") && leaked("2001:db8:1ea4::53"),
            "{what}: {leaks}"
        );
    }

    client.start_server();
    client.start();
    client.wait_until_packets_pass();
    let (code, report) = leaktest(&client);
    assert_eq!(
        (code, &report["lockdown"], &report["is_up"]),
        (0, &true.into(), &true.into()),
        "{report:#}"
    );
    assert_eq!(report["leaked_packets"], 0);
    client.end(Signal::SIGKILL);
    let (code, report) = leaktest(&client);
    assert_eq!((code, &report["lockdown"]), (0, &true.into()), "{report:#}");
}
