//! The systemd-resolved that people have. The one here is the test's own, with a bus, an /etc and a /run of its own.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use nix::sys::signal::Signal;

use crate::hosts::{Daemon, Hosts, SERVER};
use crate::lab::wait_until;
use crate::names::{etc, isolated, spawn, start_bus};
use crate::{ALL, PATIENCE};

/// What everything is called by the resolver beyond the router, and by the one behind the tunnel.
const OUTSIDE: &str = "192.0.2.77";
const INSIDE: &str = "10.99.0.77";

/// A running systemd-resolved, its bus, and the two name servers; killed on drop.
struct Resolver {
    children: Vec<Child>,
    environment: [String; 1],
}

impl Resolver {
    /// `None`, with a printed line, where a program is missing.
    fn start(hosts: &Hosts) -> Option<Resolver> {
        let Some(program) = program() else {
            println!("skipped: needs systemd-resolved, installed or in target (scripts/setup test puts it there)");
            return None;
        };
        if Command::new("dnsmasq").arg("--version").output().is_err() {
            println!("skipped: needs dnsmasq");
            return None;
        }
        if fs::read_to_string("/proc/self/uid_map").is_ok_and(|map| map.trim().ends_with(" 1")) {
            println!("skipped: systemd-resolved becomes another user, and this root can't");
            return None;
        }
        let run = hosts.lab.directory.join("run-of-resolved");
        for folder in ["dbus", "systemd"] {
            fs::create_dir_all(run.join(folder)).expect("it can be made");
        }
        let bus = run.join("dbus/system_bus_socket");
        let mut children = vec![start_bus(hosts, &bus)?];
        for (host, listen, answer) in [
            (&hosts.router, "192.0.2.254", OUTSIDE),
            (&hosts.lab.b, "10.99.0.2", INSIDE),
        ] {
            let arguments = [
                "--keep-in-foreground",
                "--conf-file=/dev/null",
                "--no-resolv",
                "--no-hosts",
                "--pid-file=",
                "--user=root",
                "--bind-interfaces",
                &format!("--listen-address={listen}"),
                &format!("--address=/#/{answer}"),
            ];
            children.push(spawn(host, "dnsmasq", &arguments.map(str::to_owned)));
        }

        let etc = etc(hosts);
        fs::create_dir_all(etc.join("systemd")).expect("it can be made");
        for (file, text) in [
            // Asked again and again, until the answer is the one that is waited for.
            (
                "systemd/resolved.conf",
                "[Resolve]\nDNS=192.0.2.254\nFallbackDNS=\nCache=no\nDNSSEC=no\nLLMNR=no\nMulticastDNS=no\n",
            ),
            ("resolv.conf", "nameserver 127.0.0.53\noptions timeout:1 attempts:1\n"),
        ] {
            fs::write(etc.join(file), text).expect("it can be written");
        }
        // It becomes this user, whose number the bus has to know by some name.
        for (file, line) in [
            ("passwd", "systemd-resolve:x:65534:65534::/:/usr/sbin/nologin\n"),
            ("group", "systemd-resolve:x:65534:\n"),
        ] {
            let text = fs::read_to_string(etc.join(file)).expect("it is there");
            fs::write(etc.join(file), line.to_owned() + &text).expect("it can be written");
        }
        let script = format!(
            "mount --bind {} /etc && mount --bind {} /run && exec {}",
            etc.display(),
            run.display(),
            program.display()
        );
        let mut command = hosts.client().command("unshare");
        command.args(["--mount", "--propagation", "private", "sh", "-c", &script]);
        let log = fs::File::create(hosts.lab.directory.join("resolved.log")).expect("the log can be written");
        command.stdout(Stdio::null()).stderr(log);
        children.push(command.spawn().expect("unshare is installed"));
        Some(Resolver {
            children,
            environment: [format!("DBUS_SYSTEM_BUS_ADDRESS=unix:path={}", bus.display())],
        })
    }
}

impl Drop for Resolver {
    fn drop(&mut self) {
        for child in &mut self.children {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Where the program is, if it finds its libraries.
fn program() -> Option<PathBuf> {
    let target = Path::new(env!("CARGO_TARGET_TMPDIR"))
        .parent()
        .expect("it lies in target");
    let places = [
        PathBuf::from("/usr/lib/systemd/systemd-resolved"),
        target.join("systemd-resolved"),
    ];
    places.into_iter().find(|place| {
        let libraries = Command::new("ldd").arg(place).output();
        libraries.is_ok_and(|output| {
            output.status.success() && !String::from_utf8_lossy(&output.stdout).contains("not found")
        })
    })
}

/// What a program in the client's network gets for a name; empty without an answer.
fn address_of(hosts: &Hosts, name: &str) -> String {
    let script = format!(
        "mount --bind {} /etc && exec getent ahostsv4 {name}",
        hosts.lab.directory.join("etc").display()
    );
    let mut command = hosts.client().command("unshare");
    command.args(["--mount", "--propagation", "private", "sh", "-c", &script]);
    let output = command.output().expect("unshare is installed");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.split_whitespace().next().unwrap_or_default().to_owned()
}

fn expect(hosts: &Hosts, answers: [(&str, &str); 2]) {
    for (name, answer) in answers {
        wait_until(&format!("{name} to be {answer}"), PATIENCE, || {
            address_of(hosts, name) == answer
        });
    }
}

#[test]
fn a_real_systemd_resolved_asks_for_some_domains_through_the_tunnel_and_for_others_beside_it() {
    let Some(hosts) = Hosts::new() else { return };
    let Some(resolver) = Resolver::start(&hosts) else {
        return;
    };
    let [theirs, others] = ["www.corp.example", "www.example.com"];
    let start = |interface: &str, peer: &str| {
        let config = hosts.write_config(SERVER[0], interface, peer);
        let mut daemon = Daemon::start(isolated(&hosts, &resolver.environment), &config);
        hosts.wait_until_up(&mut daemon);
        assert!(
            daemon.log().contains("name servers set by=systemd-resolved"),
            "{}",
            daemon.log()
        );
        daemon
    };
    let outside = [(theirs, OUTSIDE), (others, OUTSIDE)];
    expect(&hosts, outside);

    let mut daemon = start(
        "dns = [\"10.99.0.2\"]\ndns_domains = [\"corp.example\"]",
        "allowed_ips = [\"10.99.0.2\"]",
    );
    expect(&hosts, [(theirs, INSIDE), (others, OUTSIDE)]);
    assert!(daemon.end_by(Signal::SIGTERM).success());
    expect(&hosts, outside);

    // All names, with all traffic. What was set goes with the interface, also when nobody is there to take it back.
    let mut daemon = start("dns = [\"10.99.0.2\"]", ALL);
    expect(&hosts, [(theirs, INSIDE), (others, INSIDE)]);
    daemon.end_by(Signal::SIGKILL);
    expect(&hosts, outside);
}
