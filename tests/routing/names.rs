//! Name servers, in mount namespaces where /etc and /run/ringway are directories of the test's own.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::hosts::{Daemon, FAR, Hosts, INTERFACE, RINGWAY, SERVER, write};
use crate::lab::{Namespace, wait_until};
use crate::says::assert_says;
use crate::{ALL, PATIENCE};

const BEFORE: &str = "nameserver 192.0.2.53\n";
const DNS: &str = "dns = [\"10.99.0.2\", \"fd99::2\"]\ndns_search = [\"corp.example\"]";
const AFTER: &str = "nameserver 10.99.0.2\nnameserver fd99::2\nsearch corp.example\n";

/// `ringway` in the client's network, with this resolv.conf in an /etc of its own. What it makes of it can be read in
/// [`resolv_conf`].
pub(crate) fn with_etc(hosts: &Hosts, resolv_conf: &str) -> Command {
    fs::write(etc(hosts).join("resolv.conf"), resolv_conf).expect("it can be written");
    isolated(hosts, &[])
}

/// As [`with_etc`] with what is in /etc already, and further environment.
pub(crate) fn isolated(hosts: &Hosts, environment: &[String]) -> Command {
    let run = hosts.lab.directory.join("run");
    fs::create_dir_all(&run).expect("it can be made");
    let script = format!(
        "mkdir -p /run/ringway && mount --bind {} /etc && mount --bind {} /run/ringway && exec env {} \"$@\"",
        etc(hosts).display(),
        run.display(),
        environment.join(" ")
    );
    let mut command = hosts.client().command("unshare");
    command.args([
        "--mount",
        "--propagation",
        "private",
        "sh",
        "-c",
        &script,
        "sh",
        RINGWAY,
    ]);
    command
}

/// The directory that stands in for /etc.
pub(crate) fn etc(hosts: &Hosts) -> PathBuf {
    let etc = hosts.lab.directory.join("etc");
    fs::create_dir_all(&etc).expect("it can be made");
    for file in ["passwd", "group"] {
        fs::copy(PathBuf::from("/etc").join(file), etc.join(file)).expect("every system has it");
    }
    fs::write(etc.join("nsswitch.conf"), "hosts: files dns\n").expect("it can be written");
    etc
}

fn resolv_conf(hosts: &Hosts) -> String {
    fs::read_to_string(etc(hosts).join("resolv.conf")).unwrap_or_default()
}

/// Fails unless doctor, run by `command` while the tunnel is up, tells that `backend` sets its name servers.
#[track_caller]
fn assert_doctor_says(hosts: &Hosts, mut command: Command, backend: &str) {
    command
        .arg("doctor")
        .arg(hosts.lab.directory.join("client.toml"))
        .arg("--json");
    // Its exit code says how everything else is.
    let output = command.output().expect("unshare is installed");
    let report: Value = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&output.stderr)));
    let finding = json!({"level": "ok", "about": "name servers", "text": format!("are set by {backend}")});
    let findings = report["findings"].as_array().expect("a list");
    assert!(findings.contains(&finding), "{report:#}");
}

fn start(hosts: &Hosts, command: Command, interface: &str) -> Daemon {
    let config = hosts.write_config(SERVER[0], interface, ALL);
    let mut daemon = Daemon::start(command, &config);
    hosts.wait_until_up(&mut daemon);
    daemon
}

#[test]
fn resolv_conf_is_written_and_restored_however_the_daemon_ends() {
    let Some(hosts) = Hosts::new() else { return };
    let mut daemon = start(&hosts, with_etc(&hosts, BEFORE), DNS);
    assert!(resolv_conf(&hosts).starts_with("# ringway rw0 ") && resolv_conf(&hosts).ends_with(AFTER));
    assert!(
        daemon.log().contains("name servers set by=/etc/resolv.conf"),
        "{}",
        daemon.log()
    );
    assert_doctor_says(&hosts, isolated(&hosts, &[]), "/etc/resolv.conf");
    assert!(daemon.end_by(Signal::SIGTERM).success());
    assert_eq!(resolv_conf(&hosts), BEFORE);

    let mut daemon = start(&hosts, with_etc(&hosts, BEFORE), DNS);
    daemon.end_by(Signal::SIGKILL);
    wait_until("the interface to go", PATIENCE, || {
        !hosts.client().has_interface(INTERFACE)
    });
    assert!(resolv_conf(&hosts).ends_with(AFTER), "nobody was there to restore it");
    // Also by a tunnel that sets none.
    let mut daemon = start(&hosts, isolated(&hosts, &[]), "");
    assert_eq!(resolv_conf(&hosts), BEFORE);
    hosts.expect("server", &[FAR[0]]);
    assert!(daemon.end_by(Signal::SIGTERM).success());

    // Somebody else's file meanwhile, as a DHCP client would write it.
    let mut daemon = start(&hosts, with_etc(&hosts, BEFORE), DNS);
    let theirs = "nameserver 192.0.2.54\n";
    fs::write(etc(&hosts).join("resolv.conf"), theirs).expect("it can be written");
    assert!(daemon.end_by(Signal::SIGTERM).success());
    assert_eq!(resolv_conf(&hosts), theirs);
    let left: Vec<_> = fs::read_dir(etc(&hosts))
        .expect("it is there")
        .flatten()
        .map(|entry| entry.file_name())
        .collect();
    assert!(
        !left.iter().any(|name| name.to_string_lossy().contains("ringway")),
        "{left:?}"
    );
}

#[test]
fn wg_quicks_file_sets_a_full_tunnel_with_name_servers() {
    let Some(hosts) = Hosts::new() else { return };
    let (state, interface) = (
        hosts.state(),
        "DNS = 10.99.0.2, fd99::2, corp.example\nSaveConfig = true\nPostUp = true %i",
    );
    let config = hosts.write_wg_quick(INTERFACE, SERVER[0], interface, "AllowedIPs = 0.0.0.0/0, ::/0");
    let converted = hosts
        .client()
        .run(&[RINGWAY, "convert", config.to_str().expect("ASCII")]);
    let again = write(&hosts.lab.directory.join("again.toml"), &converted);
    assert_eq!(
        hosts
            .client()
            .run(&[RINGWAY, "convert", again.to_str().expect("ASCII")]),
        converted
    );
    assert_says(
        &converted,
        &[
            "dns = [\"10.99.0.2\", \"fd99::2\"]",
            "dns_search = [\"corp.example\"]",
            ALL,
        ],
    );
    let mut daemon = Daemon::start(with_etc(&hosts, BEFORE), &config);
    hosts.wait_until_up(&mut daemon);
    hosts.expect("server", &[FAR[0], FAR[2]]);
    assert!(resolv_conf(&hosts).ends_with(AFTER));
    assert!(daemon.end_by(Signal::SIGTERM).success());
    assert_eq!((resolv_conf(&hosts), hosts.state()), (BEFORE.into(), state));
    // SaveConfig: the port that the kernel chose, and what the file said before.
    let saved = fs::read_to_string(&config).expect("it is there");
    assert_says(
        &saved,
        &[
            "ListenPort = ",
            "PostUp = true %i\n",
            "DNS = corp.example\n",
            "AllowedIPs = 0.0.0.0/0, ::/0\n",
        ],
    );
    assert_eq!(
        fs::metadata(&config).expect("it is there").permissions().mode() & 0o777,
        0o600
    );
    let converted = hosts
        .client()
        .run(&[RINGWAY, "convert", config.to_str().expect("ASCII")]);
    assert!(
        converted.contains("listen_port = ") && converted.contains("dns_search = [\"corp.example\"]"),
        "{converted}"
    );
}

#[test]
fn resolvconf_is_called_as_wg_quick_calls_it() {
    let Some(hosts) = Hosts::new() else { return };
    let directory = &hosts.lab.directory;
    let (bin, log) = (directory.join("bin"), directory.join("resolvconf.calls"));
    fs::create_dir_all(&bin).expect("it can be made");
    let program = bin.join("resolvconf");
    fs::write(
        &program,
        format!("#!/bin/sh\necho \"$@\" >> {0}\ncat >> {0}\n", log.display()),
    )
    .expect("written");
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).expect("it is ours");
    fs::create_dir_all(etc(&hosts).join("resolvconf")).expect("it can be made");
    fs::write(
        etc(&hosts).join("resolvconf/interface-order"),
        "@(tun|tap)*\ntun*\nwg*\n",
    )
    .expect("written");
    fs::write(etc(&hosts).join("resolv.conf"), BEFORE).expect("written");
    let path = [format!("PATH={}:/usr/sbin:/usr/bin:/sbin:/bin", bin.display())];
    let calls = || fs::read_to_string(&log).unwrap_or_default();
    let set = format!("-a tun.rw0 -m 0 -x\n{AFTER}");

    let mut daemon = start(&hosts, isolated(&hosts, &path), DNS);
    assert!(
        daemon.log().contains("name servers set by=resolvconf"),
        "{}",
        daemon.log()
    );
    assert_doctor_says(&hosts, isolated(&hosts, &path), "resolvconf");
    assert_eq!(calls(), set);
    assert!(daemon.end_by(Signal::SIGTERM).success());
    assert_eq!(calls(), format!("{set}-d tun.rw0 -f\n"));

    fs::write(&log, "").expect("it can be written");
    let mut daemon = start(&hosts, isolated(&hosts, &path), DNS);
    daemon.end_by(Signal::SIGKILL);
    wait_until("the interface to go", PATIENCE, || {
        !hosts.client().has_interface(INTERFACE)
    });
    let mut daemon = start(&hosts, isolated(&hosts, &path), "");
    assert!(daemon.end_by(Signal::SIGTERM).success());
    assert_eq!(calls(), format!("{set}-d tun.rw0 -f\n"));
    assert_eq!(resolv_conf(&hosts), BEFORE, "that is resolvconf's to write");
}

/// A message bus of the test's own that lets everybody do everything. `None`, with a printed line, where there is no
/// dbus-daemon.
pub(crate) fn start_bus(hosts: &Hosts, socket: &Path) -> Option<Child> {
    if Command::new("dbus-daemon").arg("--version").output().is_err() {
        println!("skipped: dbus-daemon is not installed");
        return None;
    }
    let config = hosts.lab.directory.join("bus.conf");
    let text = format!(
        "<!DOCTYPE busconfig PUBLIC \"-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN\" \
         \"http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd\"><busconfig><listen>unix:path={}</listen><policy context=\"default\"><allow send_destination=\"*\" eavesdrop=\"true\"/>\
         <allow eavesdrop=\"true\"/><allow own=\"*\"/><allow user=\"*\"/></policy></busconfig>",
        socket.display()
    );
    fs::write(&config, text).expect("it can be written");
    let arguments = [
        format!("--config-file={}", config.display()),
        "--nofork".into(),
        "--nopidfile".into(),
    ];
    let bus = spawn(hosts.client(), "dbus-daemon", &arguments);
    wait_until("the bus", PATIENCE, || socket.exists());
    Some(bus)
}

/// Starts a program that says nothing.
pub(crate) fn spawn(namespace: &Namespace, program: &str, arguments: &[String]) -> Child {
    let mut command = namespace.command(program);
    command.args(arguments).stdout(Stdio::null()).stderr(Stdio::null());
    command.spawn().expect("nsenter is installed")
}

/// A message bus of the test's own with a resolve1 on it that writes down what it is told.
struct Resolve1 {
    children: Vec<Child>,
    calls: PathBuf,
    environment: [String; 1],
}

impl Resolve1 {
    /// `None`, with a printed line, where there is no dbus-daemon.
    fn start(hosts: &Hosts) -> Option<Resolve1> {
        let directory = &hosts.lab.directory;
        let (socket, calls) = (directory.join("bus"), directory.join("resolve1.calls"));
        let mut children = vec![start_bus(hosts, &socket)?];
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/routing/resolve1.py");
        let arguments = [script.into(), socket.display().to_string(), calls.display().to_string()];
        children.push(spawn(hosts.client(), "python3", &arguments));
        wait_until("the resolver", PATIENCE, || calls.exists());
        Some(Resolve1 {
            children,
            calls,
            environment: [format!("DBUS_SYSTEM_BUS_ADDRESS=unix:path={}", socket.display())],
        })
    }

    fn calls(&self) -> String {
        fs::read_to_string(&self.calls).unwrap_or_default()
    }
}

impl Drop for Resolve1 {
    fn drop(&mut self) {
        for child in &mut self.children {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

#[test]
fn systemd_resolved_is_told_over_the_bus() {
    let Some(hosts) = Hosts::new() else { return };
    let Some(resolve1) = Resolve1::start(&hosts) else {
        return;
    };
    let stub = "nameserver 127.0.0.53\n";
    fs::write(etc(&hosts).join("resolv.conf"), stub).expect("it can be written");
    let index = || {
        let show = hosts.client().ip(&["-o", "link", "show", INTERFACE]);
        show.split(':').next().expect("an index").to_owned()
    };
    let mut daemon = start(&hosts, isolated(&hosts, &resolve1.environment), DNS);
    assert!(
        daemon.log().contains("name servers set by=systemd-resolved"),
        "{}",
        daemon.log()
    );
    assert_doctor_says(&hosts, isolated(&hosts, &resolve1.environment), "systemd-resolved");
    let all = format!(
        "SetLinkDNS {0} [2 10.99.0.2, 10 fd99::2]\nSetLinkDomains {0} [corp.example False, . True]\n\
         SetLinkDefaultRoute {0} True\n",
        index()
    );
    let revert = format!("RevertLink {}\n", index());
    assert_eq!(resolve1.calls(), all);
    assert!(daemon.end_by(Signal::SIGTERM).success());
    assert_eq!(resolve1.calls(), all.clone() + &revert);
    assert_eq!(resolv_conf(&hosts), stub);

    // Some domains only.
    let mut daemon = start(
        &hosts,
        isolated(&hosts, &resolve1.environment),
        "dns = [\"10.99.0.2\"]\ndns_domains = [\"corp.example\"]",
    );
    let split = format!(
        "SetLinkDNS {0} [2 10.99.0.2]\nSetLinkDomains {0} [corp.example True]\nSetLinkDefaultRoute {0} False\n",
        index()
    );
    assert_eq!(resolve1.calls(), all + &revert + &split);
    assert!(daemon.end_by(Signal::SIGTERM).success());

    // One that runs but that nobody asks is not told.
    fs::write(etc(&hosts).join("resolv.conf"), BEFORE).expect("it can be written");
    let mut daemon = start(&hosts, isolated(&hosts, &resolve1.environment), DNS);
    assert!(resolv_conf(&hosts).ends_with(AFTER));
    assert!(daemon.end_by(Signal::SIGTERM).success());
    assert_eq!(resolv_conf(&hosts), BEFORE);
}
