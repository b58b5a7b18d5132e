//! Upgrades in the middle of other things: changes, signals, handshakes, captures, streams that count.

use std::fs::{self, File};
use std::net::{SocketAddr, UdpSocket};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::end::{End, INNER, INTERFACE, Keys, PORT, RINGWAY, write};
use crate::lab::{Lab, Namespace, UNDERLAY, UNDERLAY_V4, wait_until};
use crate::set_on_drop::SetOnDrop;
use crate::upgrade::{self, ROUNDS, unchanged, upgrade};
use crate::{PATIENCE, Pair, inner};

/// SIGHUP, SIGINT and SIGTERM, as proc_pid_status(5) has them.
const SIGNALS: u64 = 1 | 1 << 1 | 1 << 14;

/// `ringway upgrade` beside the test.
pub(crate) fn upgrade_beside(end: &End, program: &str) -> std::process::Child {
    let mut command = Command::new(RINGWAY);
    command.arg("upgrade").arg(&end.control).args(["--binary", program]);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command.spawn().expect("the binary under test exists")
}

/// How many handshakes there were with the first peer. (When the last one was is told in whole seconds.)
fn handshakes(end: &End) -> Value {
    let stats: Value = serde_json::from_str(&end.must(&["stats", "@", "--json"])).expect("JSON");
    stats["peers"][0]["handshakes"].clone()
}

/// A program that waits for a file at one of two moments, and goes on as `ringway`; it makes `marks` meanwhile.
pub(crate) fn waiting(lab: &Lab, while_asked: bool) -> (String, impl Fn() -> usize + use<>, impl Fn() + use<>) {
    let name = if while_asked { "asked" } else { "executed" };
    let [program, gate, marks] = ["", ".gate", ".marks"].map(|end| lab.directory.join(format!("{name}{end}")));
    fs::write(&marks, "").expect("the directory is ours");
    let condition = if while_asked { "==" } else { "!=" };
    // No shell: those let signals in that are to wait.
    let lines = format!(
        "import os, sys, time
if sys.argv[1] {condition} '--resume-check':
    print(file=open('{}', 'a'))
    while not os.path.exists('{}'):
        time.sleep(0.02)
os.execv('{RINGWAY}', ['{RINGWAY}'] + sys.argv[1:])",
        marks.display(),
        gate.display(),
    );
    let program = upgrade::program(&program, "/usr/bin/python3 -ISB", &lines);
    let count = move || fs::read_to_string(&marks).expect("it is there").lines().count();
    (program, count, move || {
        fs::write(&gate, "").expect("the directory is ours")
    })
}

#[test]
fn handshakes_requests_and_changes_go_on_while_a_program_is_asked_which_then_gets_what_runs() {
    let Some(mut pair) = Pair::up() else { return };
    // The check would leave its marks where the sandbox lets nobody write.
    restart_without_sandbox(&mut pair);
    // The other end begins anew, and has nothing to say until the question: what is asked may take 20 s for its answer.
    pair.b.end_by(Signal::SIGTERM);
    pair.b.write("", &[pair.a.as_peer_at_home()]);
    pair.b.start(&pair.lab.b);
    pair.b.status();
    let (program, asked, open) = waiting(&pair.lab, true);
    let before = handshakes(&pair.a);
    let child = upgrade_beside(&pair.a, &program);
    wait_until("the question", PATIENCE, || asked() == 1);
    let guest = Keys::new();
    pair.a.must(&["peer", "add", "@", &guest.public, "--name", "guest"]);
    let (code, text) = pair.a.ringway(&["upgrade", "@"]).expect_err("one at a time");
    assert!(code == 1 && text.contains("another upgrade is under way"), "{text}");
    // The other end needs an answer of this one's control thread.
    wait_until("a handshake", PATIENCE, || {
        pair.lab.b.ping(inner(0), 56) && handshakes(&pair.a) != before
    });
    assert_eq!(asked(), 1, "it is still being asked");
    assert!(pair.a.status()["upgrades"].is_null(), "there was none");
    open();
    let output = child.wait_with_output().expect("it is our child");
    assert!(output.status.success(), "{output:?}");
    assert_eq!(asked(), 2, "what it was asked about was not what runs any more");
    assert_eq!(pair.a.status()["upgrades"], 1);
    assert!(pair.a.must(&["peer", "list", "@"]).contains("guest"));
    assert!(pair.lab.a.answers(inner(1), 56));
}

#[test]
fn an_upgrade_that_nobody_waits_for_any_more_does_not_happen() {
    let Some(mut pair) = Pair::up() else { return };
    restart_without_sandbox(&mut pair);
    let before = unchanged(&pair.a, "b");
    let lines = || pair.a.log().matches("whoever asked for it has hung up").count();
    let forsaken = |child: std::process::Child, times: usize| {
        wait_until("a line in the log", PATIENCE, || lines() == times);
        let output = child.wait_with_output().expect("it is our child");
        assert!(!output.status.success(), "{output:?}");
        assert!(pair.lab.a.answers(inner(1), 56));
        assert_eq!(unchanged(&pair.a, "b"), before);
        let status = pair.a.status();
        assert!(status["upgrades"].is_null(), "there was none");
        upgrade::wait_for_no_children(&status);
    };

    // While the program is asked.
    let (program, asked, _) = waiting(&pair.lab, true);
    let mut child = upgrade_beside(&pair.a, &program);
    wait_until("the question", PATIENCE, || asked() == 1);
    child.kill().expect("it is our child");
    forsaken(child, 1);

    // Just before it answers.
    let file = pair.lab.directory.join("client");
    let answer = r#"{"program":"ringway","version":"9.9.9","formats":[1,2,3,4,5,6,7,8,9],"capabilities":18446744073709551615,"problem":null}"#;
    let lines = format!(
        "[ \"$1\" = --resume-check ] || exec {RINGWAY} \"$@\"
         until [ -s {file} ]; do sleep 0.02; done
         read -r client <{file}
         kill -9 $client
         while [ -e /proc/$client/fd/0 ]; do :; done
         echo '{answer}'",
        file = file.display()
    );
    let program = upgrade::script(&pair.lab.directory.join("killing"), &lines);
    let child = upgrade_beside(&pair.a, &program);
    write(&file, &format!("{}\n", child.id()));
    forsaken(child, 2);

    // None of it stands in the way of one that somebody waits for.
    pair.a.must(&["upgrade", "@"]);
    assert_eq!(pair.a.status()["upgrades"], 1);
    assert_eq!(unchanged(&pair.a, "b"), before);
}

#[test]
fn signals_come_to_the_control_thread_alone() {
    let Some(lab) = Lab::new() else { return };
    let mut a = End::new(&lab, 0);
    for io in ["auto", "syscall"] {
        a.write(&format!("io = \"{io}\"\n"), &[]);
        a.start(&lab.a);
        for again in [false, true] {
            if again {
                a.must(&["upgrade", "@"]);
            }
            // Reads the file on a thread that stays for a while.
            a.must(&["reload", "@"]);
            let pid = a.status()["pid"].to_string();
            let mut deaf = 0;
            for thread in fs::read_dir(format!("/proc/{pid}/task")).expect("it runs").flatten() {
                let status = fs::read_to_string(thread.path().join("status")).unwrap_or_default();
                // One that has ended meanwhile takes no signal either.
                let Some(mask) = status.lines().find_map(|line| line.strip_prefix("SigBlk:")) else {
                    continue;
                };
                let held = u64::from_str_radix(mask.trim(), 16).expect("a mask") & SIGNALS;
                let is_control = thread.file_name().to_str() == Some(&pid);
                assert_eq!(held, if is_control { 0 } else { SIGNALS }, "{status}");
                deaf += usize::from(!is_control);
            }
            assert!(deaf >= 2, "the door and a worker");
        }
        a.end_by(Signal::SIGTERM);
    }
}

fn restart_without_sandbox(pair: &mut Pair) {
    pair.a.end_by(Signal::SIGTERM);
    pair.a.write("sandbox = false\n", &[pair.b.as_peer_at_home()]);
    pair.a.start(&pair.lab.a);
    pair.wait_until_packets_pass();
}

#[test]
fn an_end_that_is_asked_for_in_the_middle_of_an_upgrade_comes_in_good_order() {
    let Some(mut pair) = Pair::up() else { return };
    for while_asked in [true, false] {
        restart_without_sandbox(&mut pair);
        let (program, reached, open) = waiting(&pair.lab, while_asked);
        let child = upgrade_beside(&pair.a, &program);
        wait_until("the moment", PATIENCE, || reached() == 1);
        pair.a.signal(Signal::SIGTERM);
        if !while_asked {
            // Nobody hears it before there is somebody again.
            open();
        }
        let status = pair.a.wait_for_end();
        assert!(status.success(), "{status}, {}", pair.a.log());
        assert!(!pair.a.control.exists() && !pair.lab.a.has_interface(INTERFACE));
        let output = child.wait_with_output().expect("it is our child");
        assert_eq!(output.status.success(), !while_asked, "{output:?}");
        pair.a.start(&pair.lab.a);
    }
}

#[test]
fn a_handshake_under_way_begins_anew_and_the_session_before_it_goes_on() {
    let Some(pair) = Pair::up() else { return };
    let Pair { a, lab, .. } = &pair;
    let key = lab.directory.join("psk");
    write(&key, &Keys::new().private);
    let before = handshakes(a);
    // Nobody else has this key, so the handshake that begins with it is not answered.
    a.must(&[
        "peer",
        "set",
        "@",
        "b",
        "--preshared-key-file",
        key.to_str().expect("ASCII"),
    ]);
    for times in 1..=2 {
        upgrade(a, times);
        assert!(lab.a.answers(inner(1), 56), "by the session that there is");
        assert_eq!(handshakes(a), before);
    }
    // In the middle of an attempt with the right key.
    a.must(&["peer", "set", "@", "b", "--preshared-key-file", ""]);
    upgrade(a, 3);
    wait_until("a new session", PATIENCE, || handshakes(a) != before);
    assert!(lab.a.answers(inner(1), 56));
}

#[test]
fn a_capture_ends_whole_when_another_program_goes_on() {
    let Some(pair) = Pair::up() else { return };
    let Pair { a, lab, .. } = &pair;
    let file = lab.directory.join("packets.pcapng");
    let mut command = Command::new(RINGWAY);
    command.arg("capture").arg(&a.control).arg("-w").arg(&file);
    let mut capture = command.stderr(Stdio::piped()).spawn().expect("it can be started");
    // A block of a packet is longer than what a file begins with.
    wait_until("packets in the file", PATIENCE, || {
        lab.a.ping(inner(1), 1000) && fs::metadata(&file).is_ok_and(|file| file.len() > 2000)
    });
    upgrade(a, 1);
    wait_until("the capture's end", PATIENCE, || {
        capture.try_wait().expect("it is our child").is_some()
    });
    let output = capture.wait_with_output().expect("it is our child");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success() && said.contains(" packets captured, 0 that matched were lost"),
        "{said}"
    );
    // The next one is none of that one's business.
    let again = ["capture", "@", "-c", "1", "-w", "/dev/null"];
    thread::scope(|scope| {
        let capture = scope.spawn(|| a.must(&again));
        wait_until("its end", PATIENCE, || {
            lab.a.ping(inner(1), 56) && capture.is_finished()
        });
    });
}

#[test]
fn a_tunnel_of_wg_quicks_file_goes_on_with_wg_and_its_commands() {
    let Some(lab) = Lab::new() else { return };
    let [a, mut b] = [0, 1].map(|me| End::new(&lab, me));
    // Its sockets lie where those of all tunnels do.
    let name = format!("lu{:x}", std::process::id());
    let file = lab.directory.join(format!("{name}.conf"));
    let [up, down] = ["up", "down"].map(|what| lab.directory.join(what));
    write(
        &file,
        &format!(
            "[Interface]\nPrivateKey = {}\nAddress = {}/24\nListenPort = {PORT}\nPostUp = echo >>{}\nPostDown = echo >>{}\n\
             [Peer]\nPublicKey = {}\nAllowedIPs = {}/32\nEndpoint = {}:{PORT}\n",
            a.keys.private,
            INNER[0],
            up.display(),
            down.display(),
            b.keys.public,
            INNER[1],
            UNDERLAY_V4[1],
        ),
    );
    b.write("", &[a.as_peer("")]);
    b.start(&lab.b);
    let log = File::create(lab.directory.join("conf.log")).expect("a log");
    let mut command = lab.a.command(RINGWAY);
    command.arg("run").arg(&file);
    let streams = [log.try_clone().expect("a descriptor"), log];
    let [out, err] = streams;
    let mut daemon = Daemon(command.stdout(out).stderr(err).spawn().expect("it can be started"));
    let sockets = [
        format!("/run/ringway/{name}.sock"),
        format!("/var/run/wireguard/{name}.sock"),
    ];
    wait_until("an answer", PATIENCE, || lab.a.ping(inner(1), 56) && up.exists());
    let shown = || lab.a.run(&["wg", "show", &name, "latest-handshakes"]);
    let before = shown();
    for _ in 0..2 {
        let output = Command::new(RINGWAY)
            .args(["upgrade", &name])
            .output()
            .expect("it runs");
        assert!(output.status.success(), "{output:?}");
        assert!(lab.a.answers(inner(1), 56));
        assert_eq!(shown(), before, "no new handshake");
    }
    let times = |file: &Path| fs::read_to_string(file).map_or(0, |text| text.lines().count());
    assert_eq!((times(&up), times(&down)), (1, 0));
    let pid = nix::unistd::Pid::from_raw(daemon.0.id().try_into().expect("an i32"));
    nix::sys::signal::kill(pid, Signal::SIGTERM).expect("it is our child");
    wait_until("the end", PATIENCE, || {
        daemon.0.try_wait().expect("it is our child").is_some()
    });
    assert_eq!((times(&up), times(&down)), (1, 1));
    assert!(sockets.iter().all(|socket| !Path::new(socket).exists()));
}

/// Killed on drop.
struct Daemon(std::process::Child);

impl Drop for Daemon {
    fn drop(&mut self) {
        // It may have ended; then both are errors of no interest.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What finds no room at a socket the kernel counts as it came over the veth, where a run of datagrams is one.
const NO_RUNS: &str = "udp_gso = false\nudp_gro = false\n";

/// A drop is counted once, wherever it happens: in workers and at their sockets by ringway, at both links and at who listens
/// (on `port` of b) by the kernel.
fn counted_drops([a, b]: [(&End, &Namespace); 2], port: u16) -> u64 {
    let number = |value: &Value| value.as_u64().unwrap_or(0);
    let in_workers = |end: &End| {
        let status = end.status();
        let workers = status["workers"].as_array().expect("a list").iter();
        let drops = workers.flat_map(|worker| worker["drops"].as_object().expect("a map"));
        drops.map(|(_, count)| number(count)).sum::<u64>()
    };
    let at_link = |host: &Namespace, link: &str, ways: &[&str]| {
        let shown = host.ip(&["-s", "-j", "link", "show", "dev", link]);
        let shown: Value = serde_json::from_str(&shown).expect("JSON");
        let stats = &shown[0]["stats64"];
        ways.iter().map(|way| number(&stats[way]["dropped"])).sum::<u64>()
    };
    // What finds no room on the far side of a veth is counted at the side where it was sent.
    let one =
        |(end, host)| in_workers(end) + at_link(host, INTERFACE, &["rx", "tx"]) + at_link(host, UNDERLAY, &["tx"]);
    one(a) + one(b) + dropped_at_port(b.1, port)
}

/// How much found no room at the UDP socket of this port (/proc/net/udp, last column).
fn dropped_at_port(host: &Namespace, port: u16) -> u64 {
    let table = host.enter(|| fs::read_to_string("/proc/thread-self/net/udp").expect("proc is mounted"));
    let end = format!(":{port:04X}");
    let mut rows = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    let row = rows.find(|row| row[1].ends_with(&end)).expect("the socket is open");
    row.last().and_then(|drops| drops.parse().ok()).expect("a number")
}

#[test]
fn no_datagram_is_lost_in_an_upgrade_but_what_is_counted() {
    let Some(pair) = Pair::up_with(NO_RUNS) else { return };
    let Pair { a, b, lab } = &pair;
    let ends = [(a, &lab.a), (b, &lab.b)];
    let before = (unchanged(a, "b"), unchanged(b, "a"));
    let [from, to] = [&lab.a, &lab.b].map(|host| host.enter(|| UdpSocket::bind("0.0.0.0:0").expect("a port")));
    let port = to.local_addr().expect("it is bound").port();
    let address = SocketAddr::new(inner(1), port);
    to.set_read_timeout(Some(Duration::from_millis(100))).expect("not zero");
    let dropped_before = counted_drops(ends, port);
    let (stop, over) = (AtomicBool::new(false), AtomicBool::new(false));
    let (sent, received, doubles) = (AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0));
    let count = |number: &AtomicU64| number.load(Ordering::Relaxed);
    let lost = || count(&sent) - count(&received);
    let counted = || counted_drops(ends, port) - dropped_before;
    thread::scope(|scope| {
        let _over = [&stop, &over].map(SetOnDrop);
        let sender = scope.spawn(|| {
            let mut datagram = [0; 600];
            while !stop.load(Ordering::Relaxed) {
                // More than fits, so that workers always have something in their hands.
                for _ in 0..64 {
                    let number = sent.fetch_add(1, Ordering::Relaxed);
                    datagram[..8].copy_from_slice(&number.to_be_bytes());
                    from.send_to(&datagram, address).expect("a may send");
                }
                thread::sleep(Duration::from_micros(50));
            }
        });
        scope.spawn(|| {
            let mut seen = Vec::new();
            let mut buffer = [0; 1500];
            loop {
                match to.recv_from(&mut buffer) {
                    Ok((600, _)) => {
                        let number = u64::from_be_bytes(buffer[..8].try_into().expect("8 bytes")) as usize;
                        seen.resize(seen.len().max(number + 1), false);
                        if std::mem::replace(&mut seen[number], true) {
                            doubles.fetch_add(1, Ordering::Relaxed);
                        } else {
                            received.fetch_add(1, Ordering::Relaxed);
                        }
                    }
                    Ok((len, _)) => panic!("a datagram of {len} bytes"),
                    Err(_) if over.load(Ordering::Relaxed) => return,
                    Err(_) => {}
                }
            }
        });
        let mut progress = 0;
        let mut wait_for_progress = || {
            progress = count(&received);
            wait_until("datagrams", PATIENCE, || count(&received) > progress + 1000);
        };
        wait_for_progress();
        for times in 1..=ROUNDS {
            for end in [a, b] {
                upgrade(end, times);
                wait_for_progress();
            }
        }
        stop.store(true, Ordering::Relaxed);
        sender.join().expect("a may send");
        // What is under way arrives, or is counted, when a busy machine comes to it.
        let deadline = Instant::now() + PATIENCE;
        while lost() > counted() && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(100));
        }
    });
    let (lost, counted) = (lost(), counted());
    let sent = count(&sent);
    println!("{lost} of {sent} lost, {counted} counted");
    assert!(
        lost <= counted,
        "{lost} of {sent} were lost, and {counted} drops were counted"
    );
    assert_eq!(count(&doubles), 0);
    assert_eq!((unchanged(a, "b"), unchanged(b, "a")), before, "no new handshake");
}
