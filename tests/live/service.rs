//! What systemd is told where it runs the daemon: its notification socket, and its journal. Both are the test's own here.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{ErrorKind, Read as _};
use std::net::Shutdown;
use std::os::fd::AsFd as _;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram, UnixStream};
use std::path::Path;
use std::process::Stdio;
use std::sync::mpsc::{self, Receiver};
use std::thread;

use nix::sys::signal::Signal;

use crate::end::{End, RINGWAY};
use crate::lab::{Lab, wait_until};
use crate::upgrade_fails::meddler;
use crate::{PATIENCE, Pair, inner};

/// How often the manager wants to hear of the daemon, in microseconds: so seldom that a busy machine is no fault, and the
/// daemon is to say it three times as often.
const WATCHDOG_USEC: u32 = 600_000;

/// Datagrams of a socket, one after the other. They are taken as they come: the kernel queues a few only, and then the
/// sender waits.
struct Mailbox {
    socket: UnixDatagram,
    datagrams: Receiver<Vec<u8>>,
}

impl Mailbox {
    fn new(socket: UnixDatagram) -> Mailbox {
        let (sender, datagrams) = mpsc::channel();
        let ours = socket.try_clone().expect("a descriptor");
        thread::spawn(move || {
            let mut datagram = vec![0; 1 << 18];
            // Nothing is what a socket gives that was shut down.
            while let Ok(len @ 1..) = ours.recv(&mut datagram) {
                let _ = sender.send(datagram[..len].to_vec());
            }
        });
        Mailbox { socket, datagrams }
    }

    fn at(path: &Path) -> Mailbox {
        Mailbox::new(UnixDatagram::bind(path).expect("the directory is ours"))
    }

    fn next(&self) -> Option<String> {
        let datagram = self.datagrams.recv_timeout(PATIENCE).ok()?;
        Some(String::from_utf8(datagram).expect("text"))
    }

    fn is_empty(&self) -> bool {
        self.datagrams.try_recv().is_err()
    }

    /// The next message to a service manager that is more than that all is well.
    fn next_news(&self) -> BTreeMap<String, String> {
        loop {
            let message = self.message();
            if message != BTreeMap::from([("WATCHDOG".into(), "1".into())]) {
                return message;
            }
        }
    }

    /// Waits for the next sign of life.
    fn wait_for_watchdog(&self) {
        while self.message() != BTreeMap::from([("WATCHDOG".into(), "1".into())]) {}
    }

    fn message(&self) -> BTreeMap<String, String> {
        let message = self.next().expect("a message");
        let pairs = message.lines().map(|line| line.split_once('=').expect("a variable"));
        pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
    }

    /// Entries of the journal until one has this message, which is the last of them.
    fn entries_until(&self, message: &str) -> Vec<BTreeMap<String, String>> {
        let mut entries = Vec::new();
        loop {
            let entry = self.next().unwrap_or_else(|| panic!("{message}: {entries:#?}"));
            // Values of several lines have another form; none is among these.
            let fields = entry.lines().filter_map(|line| line.split_once('='));
            let entry: BTreeMap<_, _> = fields
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .collect();
            let is_last = entry["MESSAGE"].starts_with(message);
            entries.push(entry);
            if is_last {
                return entries;
            }
        }
    }
}

impl Drop for Mailbox {
    fn drop(&mut self) {
        let _ = self.socket.shutdown(Shutdown::Both);
    }
}

/// b runs, and a is for the test to start.
fn pair() -> Option<Pair> {
    let lab = Lab::new()?;
    let [a, mut b] = [0, 1].map(|me| End::new(&lab, me));
    a.write("", &[b.as_peer_at_home()]);
    b.write("", &[a.as_peer("")]);
    b.start(&lab.b);
    Some(Pair { a, b, lab })
}

#[test]
fn a_service_manager_is_told_when_packets_pass_that_all_moves_and_what_is_under_change() {
    let Some(mut pair) = pair() else { return };
    let start = |pair: &mut Pair, socket: &str| {
        let environment = [
            format!("NOTIFY_SOCKET={socket}"),
            format!("WATCHDOG_USEC={WATCHDOG_USEC}"),
        ];
        pair.a
            .start_under(&pair.lab.a, &["env", &environment[0], &environment[1]]);
    };
    let is_ready = |news: &BTreeMap<String, String>| news["READY"] == "1" && news["STATUS"] == "rw0 is up";

    let path = pair.lab.directory.join("notify");
    let manager = Mailbox::at(&path);
    start(&mut pair, path.to_str().expect("plain"));
    assert!(is_ready(&manager.next_news()));
    assert!(pair.ip(&["address"]).contains("10.99.0.1"));
    assert!(pair.lab.a.answers(inner(1), 56));
    for _ in 0..3 {
        manager.wait_for_watchdog();
    }

    // SIGHUP, which is what the unit's ExecReload= sends, the command, and a file that is wrong.
    let mut last = 0;
    for way in ["signal", "command", "refused"] {
        match way {
            "signal" => pair.a.signal(Signal::SIGHUP),
            "command" => assert_eq!(pair.a.must(&["reload", "@"]), "nothing had to change"),
            _ => {
                pair.a.write("mtu = \"large\"\n", &[]);
                pair.a.signal(Signal::SIGHUP);
            }
        }
        let news = manager.next_news();
        assert_eq!(news["RELOADING"], "1", "{way}");
        let since: u64 = news["MONOTONIC_USEC"].parse().expect("a number");
        assert!(since > last, "{way}: the manager tells reloads apart by it");
        last = since;
        assert!(is_ready(&manager.next_news()), "{way}");
    }

    // The process stays, so there is no other MAINPID to tell.
    pair.a.must(&["upgrade", "@"]);
    assert!(is_ready(&manager.next_news()));
    for _ in 0..3 {
        manager.wait_for_watchdog();
    }
    assert!(pair.a.end_by(Signal::SIGTERM).success());
    assert_eq!(manager.next_news()["STOPPING"], "1");
    // Before the link goes, and before the rules do.
    for _ in 0..2 {
        assert_eq!(manager.next_news()["EXTEND_TIMEOUT_USEC"], "90000000");
    }
    assert!(manager.is_empty(), "that was the last word");

    pair.a.write("", &[]);
    // As in containers: a name that is in no file system, but in the network namespace.
    let name = format!("ringway-test-{}", std::process::id());
    let manager = pair.lab.a.enter(|| {
        let address = SocketAddr::from_abstract_name(&name).expect("it is short");
        Mailbox::new(UnixDatagram::bind_addr(&address).expect("the name is free"))
    });
    start(&mut pair, &format!("@{name}"));
    assert!(is_ready(&manager.next_news()));
    manager.wait_for_watchdog();
    assert!(pair.a.end_by(Signal::SIGTERM).success());
    assert_eq!(manager.next_news()["STOPPING"], "1");
}

#[test]
fn a_service_manager_is_told_how_long_the_end_of_a_killed_tunnel_may_hold_up_the_next_start() {
    let Some(mut pair) = pair() else { return };
    let mark = pair.a.control.with_extension("sock.up");
    pair.a
        .write("post_down = [\"true\", \"true\"]\n", &[pair.b.as_peer_at_home()]);
    pair.a.start(&pair.lab.a);
    wait_until("what says that it is up", PATIENCE, || mark.exists());
    pair.a.end_by(Signal::SIGKILL);
    let path = pair.lab.directory.join("notify");
    let manager = Mailbox::at(&path);
    let socket = format!("NOTIFY_SOCKET={}", path.display());
    pair.a.start_under(&pair.lab.a, &["env", &socket]);
    // Rules and name servers, then 30 s for each command.
    for seconds in [90, 40, 40] {
        let granted = format!("{seconds}000000");
        assert_eq!(manager.message()["EXTEND_TIMEOUT_USEC"], granted);
    }
    assert_eq!(manager.message()["READY"], "1");
    assert!(pair.a.end_by(Signal::SIGTERM).success());
}

#[test]
fn a_service_manager_hears_at_each_step_of_an_upgrade_that_all_moves() {
    let Some(mut pair) = pair() else { return };
    let path = pair.lab.directory.join("notify");
    let manager = Mailbox::at(&path);
    // So patient that nothing is said because of the time.
    let environment = [
        format!("NOTIFY_SOCKET={}", path.display()),
        "WATCHDOG_USEC=36000000000".to_owned(),
    ];
    let alive = BTreeMap::from([("WATCHDOG".to_owned(), "1".to_owned())]);
    pair.a
        .start_under(&pair.lab.a, &["env", &environment[0], &environment[1]]);
    assert_eq!(manager.message()["READY"], "1");
    pair.wait_until_packets_pass();
    pair.a.must(&["upgrade", "@"]);
    // Before it packs and before it settles, when it has, when workers rest and when they have ended; when it comes, when
    // workers are there, and when it has its state.
    for step in 1..=8 {
        assert_eq!(manager.message(), alive, "step {step}");
    }
    assert_eq!(manager.message()["READY"], "1");
    // Whoever waits for a guard does not run any more.
    let lines = "state = state.replace(b'private_key = ', b'privade_key = ')";
    let program = meddler(&pair.lab.directory.join("renaming"), lines);
    pair.a
        .ringway(&["upgrade", "@", "--binary", &program])
        .expect_err("it fails");
    assert_eq!(manager.next_news()["STOPPING"], "1");
    assert_eq!(pair.a.wait_for_end().code(), Some(1));
}

#[test]
fn the_journal_gets_entries_with_fields_instead_of_lines() {
    let Some(mut pair) = pair() else { return };
    let run = pair.lab.directory.join("run");
    fs::create_dir_all(run.join("systemd/journal")).expect("the directory is ours");
    let journal = Mailbox::at(&run.join("systemd/journal/socket"));
    let (mut lines, stderr) = UnixStream::pair().expect("a pair of sockets");
    lines.set_nonblocking(true).expect("a socket");
    let start = |pair: &mut Pair, stream: &str| {
        let mount = format!("mount --bind {} /run && exec \"$@\"", run.display());
        let mut command = pair.lab.a.command("unshare");
        command.args(["-m", "sh", "-c", &mount, "sh", RINGWAY, "-v", "run"]);
        command.arg(&pair.a.file).env("JOURNAL_STREAM", stream);
        let stderr = stderr.as_fd().try_clone_to_owned().expect("a descriptor");
        command.stdout(Stdio::null()).stderr(stderr);
        pair.a.spawn(command);
    };
    let file = File::from(stderr.as_fd().try_clone_to_owned().expect("a descriptor"));
    let stream = file.metadata().expect("it is open");
    let stream = format!("{}:{}", stream.dev(), stream.ino());
    start(&mut pair, &stream);
    let entries = journal.entries_until("up name=");
    let up = entries.last().expect("there is one");
    for (name, value) in [
        ("PRIORITY", "6"),
        ("SYSLOG_IDENTIFIER", "ringway"),
        ("TARGET", "ringway::cli"),
        ("NAME", "rw0"),
        ("PORT", "51820"),
        ("TUNNEL", "rw0"),
    ] {
        assert_eq!(up.get(name).map(String::as_str), Some(value), "{up:?}");
    }

    // From here on the daemon is confined.
    pair.wait_until_packets_pass();
    let entries = journal.entries_until("handshake done peer=b");
    let done = entries.last().expect("there is one");
    assert_eq!((&*done["PEER"], &*done["SUITE"]), ("b", "Native"), "{done:?}");
    let installed = entries.iter().find(|entry| entry.contains_key("SESSION"));
    let installed = installed.unwrap_or_else(|| panic!("a session: {entries:#?}"));
    assert_eq!(
        (&*installed["PEER"], &*installed["PRIORITY"]),
        ("b", "7"),
        "{installed:?}"
    );
    pair.a.must(&["upgrade", "@"]);
    journal.entries_until("up name=");
    pair.a.write("mtu = \"large\"\n", &[]);
    pair.a.signal(Signal::SIGHUP);
    let entries = journal.entries_until("not reloaded");
    let refused = entries.last().expect("there is one");
    assert_eq!(
        (&*refused["PRIORITY"], &*refused["TUNNEL"]),
        ("3", "rw0"),
        "{refused:?}"
    );
    assert!(pair.a.end_by(Signal::SIGTERM).success());

    // What keeps a tunnel from coming up is no line either.
    pair.a.write("bind_interface = \"nope0\"\n", &[]);
    start(&mut pair, &stream);
    let entries = journal.entries_until("bind_interface = \"nope0\"");
    let failed = entries.last().expect("there is one");
    assert_eq!((&*failed["PRIORITY"], &*failed["TUNNEL"]), ("3", "rw0"), "{failed:?}");
    let no_line = lines.read(&mut [0]).expect_err("nothing came as a line");
    assert_eq!(no_line.kind(), ErrorKind::WouldBlock);

    // One whose standard error was led elsewhere since.
    while !journal.is_empty() {}
    pair.a.write("", &[]);
    start(&mut pair, "1:1");
    let (mut text, mut part) = (String::new(), [0; 4096]);
    wait_until("a line", PATIENCE, || {
        let len = lines.read(&mut part).unwrap_or(0);
        text += &String::from_utf8_lossy(&part[..len]);
        text.contains("up name=\"rw0\"")
    });
    assert!(journal.is_empty());
}
