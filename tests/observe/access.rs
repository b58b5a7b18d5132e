//! Who may ask a daemon, and for what: the control socket and the metrics' one.

use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;

use nix::sys::signal::Signal;

use crate::PATIENCE;
use crate::lab::Lab;
use crate::metrics_text;
use crate::tunnel::{Daemon, GROUP_ID, Tunnel};

/// Somebody who is neither root nor the daemon's user.
struct Somebody<'a> {
    daemon: &'a Daemon,
    is_member: bool,
}

impl Somebody<'_> {
    /// Runs a program whose arguments have `@` for the control socket: exit code, and all that it said.
    fn run(&self, program: &Path, arguments: &[&str]) -> (Option<i32>, String) {
        let control = self.daemon.control.to_str().expect("text");
        let groups = match self.is_member {
            true => format!("--groups={GROUP_ID}"),
            false => "--clear-groups".into(),
        };
        let mut command = Command::new("setpriv");
        command.args(["--reuid=65534", "--regid=65534", &groups]).arg(program);
        command.args(arguments.iter().map(|word| if *word == "@" { control } else { word }));
        said(&mut command)
    }

    /// As [`Somebody::run`], with the ringway beside the socket: the one under test lies where others may not go.
    fn ringway(&self, arguments: &[&str]) -> (Option<i32>, String) {
        self.run(&self.daemon.control.with_file_name("ringway"), arguments)
    }

    /// Sends a line to the control socket. Python may lie where others may not go either, so it becomes somebody itself.
    fn ask(&self, line: &str) -> (Option<i32>, String) {
        let script = "import os, socket, sys\n\
                      os.setgroups([int(group) for group in sys.argv[3:]])\n\
                      os.setgid(65534)\n\
                      os.setuid(65534)\n\
                      s = socket.socket(socket.AF_UNIX)\n\
                      s.connect(sys.argv[1])\n\
                      s.sendall(sys.argv[2].encode() + b'\\n')\n\
                      print(s.makefile().readline())";
        let mut command = Command::new("python3");
        command.args(["-c", script]).arg(&self.daemon.control).arg(line);
        command.args(self.is_member.then(|| GROUP_ID.to_string()));
        said(&mut command)
    }
}

/// Runs a command to its end: exit code, and all that it said.
fn said(command: &mut Command) -> (Option<i32>, String) {
    let output = command.output().expect("it is installed");
    let text = [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned());
    (output.status.code(), text.concat())
}

/// The lab, unless this root is the only user that its namespace has.
fn lab() -> Option<Lab> {
    if fs::read_to_string("/proc/self/uid_map").is_ok_and(|map| map.trim().ends_with(" 1")) {
        println!("skipped: needs other users, whom a user namespace lacks");
        return None;
    }
    Lab::new()
}

/// A daemon with a copy of the program beside its socket.
fn daemon(tunnel: &Tunnel, further: &str) -> Daemon {
    let daemon = tunnel.second_daemon(further);
    fs::copy(env!("CARGO_BIN_EXE_ringway"), daemon.control.with_file_name("ringway")).expect("a copy");
    daemon
}

#[test]
fn only_root_and_the_group_may_use_the_control_socket() {
    let Some(tunnel) = lab().map(Tunnel::up) else {
        return;
    };
    let daemon = daemon(&tunnel, "");
    let metadata = fs::metadata(&daemon.control).expect("it is there");
    assert_eq!((metadata.mode() & 0o777, metadata.gid()), (0o660, GROUP_ID));
    let [stranger, member] = [false, true].map(|is_member| Somebody {
        daemon: &daemon,
        is_member,
    });
    let key = tunnel.key();
    // What each may see and change, in this order.
    let permitted: [&[&str]; 14] = [
        &["status", "@"],
        &["stats", "@"],
        &["latency", "@"],
        &["drops", "@"],
        &["explain", "-i", "@", "10.0.0.1", "10.0.0.7"],
        &["capture", "@", "--seconds", "1"],
        &[
            "peer",
            "add",
            "@",
            &key,
            "--name",
            "ann",
            "--allowed-ips",
            "10.0.0.7/32",
        ],
        &["peer", "set", "@", "ann", "--persistent-keepalive", "25"],
        &["peer", "list", "@"],
        &["peer", "remove", "@", "ann"],
        &["set", "mtu", "1400", "@"],
        &["save", "@"],
        &["reload", "@"],
        &["upgrade", "@"],
    ];
    for arguments in permitted {
        let (code, text) = stranger.ringway(arguments);
        assert_eq!(code, Some(5), "{arguments:?}: {text}");
        assert!(
            text.contains("permission denied; run as root or as a member of the group ringway"),
            "{text}"
        );
        if arguments[0] != "upgrade" {
            let (code, text) = member.ringway(arguments);
            assert_eq!(code, Some(0), "{arguments:?}: {text}");
        }
    }
    // A file may hold commands, and a program is one: both would run with the daemon's privileges.
    let other = daemon.control.with_file_name("ringway");
    let reserved: [&[&str]; 3] = [
        &["apply", "/etc/hostname", "@"],
        &["upgrade", "@"],
        &["upgrade", "@", "--binary", other.to_str().expect("text")],
    ];
    for arguments in reserved {
        let (code, text) = member.ringway(arguments);
        assert_eq!(code, Some(5), "{arguments:?}: {text}");
        assert!(text.contains("only root and the daemon's own user"), "{text}");
    }
    assert!(tunnel.status(&daemon)["upgrades"].is_null(), "there was none");

    // The end of the tunnel is the group's to ask for too.
    let (code, text) = stranger.ask("{\"command\":\"stop\"}");
    assert!(code == Some(1) && text.contains("PermissionError"), "{text}");
    let (code, text) = member.ask("{\"command\":\"stop\"}");
    assert!(code == Some(0) && text.contains("down"), "{text}");
    let mut daemon = daemon;
    daemon.wait_for_end();
    assert!(!daemon.control.exists());
}

#[test]
fn metrics_on_a_unix_socket_are_for_the_same_people_and_go_with_the_daemon() {
    let Some(tunnel) = lab().map(Tunnel::up) else {
        return;
    };
    let socket = tunnel.shared_directory().join("metrics.sock");
    let mut daemon = daemon(&tunnel, &format!("[metrics]\nlisten = \"unix:{}\"\n", socket.display()));
    let metadata = fs::metadata(&socket).expect("it is there");
    assert_eq!((metadata.mode() & 0o777, metadata.gid()), (0o660, GROUP_ID));
    let scrape = |accept: &str| {
        let mut stream = UnixStream::connect(&socket).expect("metrics are served");
        stream.set_read_timeout(Some(PATIENCE)).expect("a socket");
        write!(stream, "GET /metrics HTTP/1.1\r\nHost: x\r\nAccept: {accept}\r\n\r\n").expect("it reads");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("text");
        let (head, body) = answer.split_once("\r\n\r\n").expect("a head and a body");
        assert!(head.starts_with("HTTP/1.1 200 OK"), "{head}");
        body.to_owned()
    };
    metrics_text::check(&scrape("text/plain"), false);
    metrics_text::check(&scrape("application/openmetrics-text;version=1.0.0"), true);

    // As somebody else, by a program that people use.
    let url = [
        "-sS",
        "--unix-socket",
        socket.to_str().expect("text"),
        "http://localhost/metrics",
    ];
    for (is_member, expected) in [(false, None), (true, Some("ringway_peers"))] {
        let somebody = Somebody {
            daemon: &daemon,
            is_member,
        };
        let (code, text) = somebody.run(Path::new("curl"), &url);
        assert_eq!(code == Some(0), is_member, "{text}");
        assert!(expected.is_none_or(|metric| text.contains(metric)), "{text}");
    }
    daemon.signal(Signal::SIGTERM);
    daemon.wait_for_end();
    assert!(!socket.exists());
}
