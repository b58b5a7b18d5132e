//! Changes of every kind in a quick loop while iperf3 runs: nobody who uses the tunnel notices, and what stays is what the
//! last change said, no more.

use std::fs;
use std::net::UdpSocket;
use std::path::PathBuf;
use std::thread::{self, ScopedJoinHandle};
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::end::{End, Keys, PORT, peer, write};
use crate::lab::{Lab, wait_until};
use crate::says::assert_says;
use crate::traffic::iperf3_report;
use crate::{PATIENCE, Pair, inner};

/// iperf3 runs for eight seconds and says of each half how many bytes were sent.
const LOAD: [&str; 4] = ["-t", "8", "-i", "0.5"];
const INTERVAL: Duration = Duration::from_millis(500);
/// A stall that no change explains, on a machine that does much else.
const STALL_MAX: Duration = Duration::from_secs(3);
/// By how much the daemon may grow in the storm: what its allocator keeps, and not what each of a hundred changes leaves.
const GROWTH_MAX_KIB: u64 = 4 * 1024;
/// So often in a row, 20 ms apart, the same files have to be open to count as those that last.
const LOOKS: usize = 25;
/// So many rounds make one of each kind.
const KINDS: usize = 8;

/// A pair whose a has an /etc of its own, and what else the changes need.
struct Storm {
    pair: Pair,
    guests: [Keys; 3],
    etc: PathBuf,
}

#[test]
fn a_storm_of_changes_stops_no_traffic_and_leaves_what_the_last_one_says() {
    let Some(storm) = Storm::new() else { return };
    let Pair { a, b, lab } = &storm.pair;
    let pid = a.status()["pid"].as_u64().expect("a number");
    // The state that the storm ends in, from a tunnel that has not seen one.
    storm.reload(0);
    let expected = storm.state();
    assert_says(
        &expected,
        &[
            "mtu 1300",
            "10.98.0.0/24",
            "10.96.0.0/24",
            "ringway-gateway-rw0",
            "nameserver 10.99.0.3",
        ],
    );
    let before = stable_descriptors(pid);
    let handshakes = [a.handshake("b"), b.handshake("a")];
    let (rounds, report, resident_kib) = thread::scope(|scope| {
        let load = scope.spawn(move || iperf3_report(lab, inner(1), &LOAD));
        let (rounds, resident_kib) = storm.rage(&load, pid);
        (rounds, load.join().expect("iperf3 runs to its end"), resident_kib)
    });
    storm.reload(0);
    assert_eq!(storm.state(), expected, "after {rounds} rounds");
    assert_eq!(
        [a.handshake("b"), b.handshake("a")],
        handshakes,
        "the session is the same"
    );
    let longest = longest_stall(&report);
    assert!(longest <= STALL_MAX, "nothing passed for {longest:?}");
    let bytes = report["end"]["sum_received"]["bytes"].as_u64().expect("a number");
    assert!(bytes > 1 << 20, "{bytes} bytes");
    wait_until(&format!("{before} descriptors as before"), PATIENCE, || {
        stable_descriptors(pid) == before
    });
    let grown_kib = resident(pid).saturating_sub(resident_kib);
    assert!(
        grown_kib <= GROWTH_MAX_KIB,
        "{grown_kib} KiB more than in the first rounds"
    );
    println!("{rounds} rounds, {bytes} bytes, longest stall {longest:?}, {grown_kib} KiB more");
    assert!(lab.a.answers(inner(1), 56));
}

impl Storm {
    fn new() -> Option<Storm> {
        let lab = Lab::new()?;
        let [mut a, mut b] = [0, 1].map(|me| End::new(&lab, me));
        let etc = lab.directory.join("etc");
        fs::create_dir(&etc).expect("a directory");
        for file in ["passwd", "group"] {
            fs::copy(format!("/etc/{file}"), etc.join(file)).expect("every system has it");
        }
        fs::write(etc.join("resolv.conf"), "nameserver 192.0.2.53\n").expect("it can be written");
        a.write("dns = [\"10.99.0.3\"]\n", &[b.as_peer_at_home()]);
        b.write("", &[a.as_peer("")]);
        b.start(&lab.b);
        let mount = format!("mount --bind {} /etc && exec \"$@\"", etc.display());
        a.start_under(&lab.a, &["unshare", "-m", "sh", "-c", &mount, "sh"]);
        let pair = Pair { a, b, lab };
        pair.wait_until_packets_pass();
        let guests = [0; 3].map(|_| Keys::new());
        Some(Storm { pair, guests, etc })
    }

    /// The whole file of a, number `number`: none is like the one before in any key that may change.
    fn file(&self, number: usize) -> String {
        let Pair { a, b, .. } = &self.pair;
        let mut interface = format!("mtu = {}\nmetric = {}\n", mtu(number), 10 + number % 2);
        interface += [
            "addresses = [\"10.99.0.1/24\"]\n",
            "addresses = [\"10.99.0.1/24\", \"10.97.0.1/24\"]\n",
        ][number % 2];
        interface += [
            "dns = [\"10.99.0.3\"]\n",
            "",
            "dns = [\"10.99.0.4\"]\ndns_search = [\"example\"]\n",
        ][number % 3];
        let (lockdown, gateway) = [
            ("", "[gateway]\negress = [\"under0\"]\n"),
            ("lockdown = true\n", ""),
            (
                "",
                "[gateway]\negress = [\"under0\"]\npeer_to_peer = true\nmss_clamp = false\n",
            ),
            ("", ""),
        ][number % 4];
        let guest = peer(
            &self.guests[number % 3].public,
            &format!("guest{}", number % 3),
            &format!("10.98.{}.0/24", number % 200),
            if gateway.is_empty() {
                ""
            } else {
                "deny = [\"203.0.113.0/24\"]"
            },
        );
        let home = b.as_peer_at_home();
        let home = home.replace("/32\"", &format!("/32\", \"10.96.{}.0/24\"", number % 200));
        // Its datagrams come from elsewhere then, and b follows.
        let port = format!("listen_port = {}", usize::from(PORT) + number % 2);
        let text = a.interface(&(interface + lockdown)) + gateway + &guest + &home;
        text.replace(&format!("listen_port = {PORT}"), &port)
    }

    /// Writes file `number` and has it carried out.
    fn reload(&self, number: usize) {
        write(&self.pair.a.file, &self.file(number));
        self.pair.a.must(&["reload", "@"]);
    }

    /// Changes until `load` is done, of each kind in turn; how many, and the daemon's memory in KiB after the first.
    fn rage(&self, load: &ScopedJoinHandle<'_, Value>, pid: u64) -> (usize, u64) {
        let (mut round, mut resident_kib) = (0, 0);
        while round < KINDS || !load.is_finished() {
            round += 1;
            match round % KINDS {
                0 => self.refuses(round),
                1 => self.by_signal(round),
                2 => self.by_commands(round),
                3 => self.applies(round),
                // Once, because it takes its time.
                4 if round == 4 => self.applies_for_a_second(round),
                _ => self.reload(round),
            }
            if round == 2 * KINDS {
                resident_kib = resident(pid);
            }
        }
        // Where not so many fitted in, nothing can be said of what a round leaves.
        (round, if resident_kib == 0 { resident(pid) } else { resident_kib })
    }

    /// What can't be, each refused whole.
    fn refuses(&self, round: usize) {
        let Pair { a, lab, .. } = &self.pair;
        let before = self.state();
        let text = self.file(round);
        let taken = lab.a.enter(|| UdpSocket::bind("0.0.0.0:0").expect("a free port"));
        let port = taken.local_addr().expect("it is bound").port();
        let listen = text
            .lines()
            .find(|line| line.starts_with("listen_port"))
            .expect("it is there");
        let twice = format!("{text}\n{}", peer(&Keys::new().public, "twin", "10.99.0.2/32", ""));
        for (text, expected) in [
            (
                text.replace("mtu = ", "mtu = \"large\" # "),
                "interface.mtu = \"large\"",
            ),
            (text.replace("workers = 1", "workers = 3"), "workers cannot change"),
            (
                text.replace(listen, &format!("listen_port = {port}")),
                "cannot listen on UDP port",
            ),
            (text.trim_end().trim_end_matches('"').to_owned(), "a.toml"),
            (twice, "10.99.0.2/32"),
        ] {
            write(&a.file, &text);
            let (_, said) = a.ringway(&["reload", "@"]).expect_err("it is refused");
            assert!(said.contains(expected), "{said}");
        }
        assert_eq!(self.state(), before);
    }

    fn by_signal(&self, round: usize) {
        let a = &self.pair.a;
        write(&a.file, &self.file(round));
        a.signal(Signal::SIGHUP);
        let guest = format!("10.98.{}.0/24", round % 200);
        wait_until("the reload", PATIENCE, || self.pair.ip(&["route"]).contains(&guest));
    }

    fn by_commands(&self, round: usize) {
        let a = &self.pair.a;
        let key = Keys::new().public;
        a.must(&[
            "peer",
            "add",
            "@",
            &key,
            "--name",
            "extra",
            "--allowed-ips",
            "10.95.0.0/24",
        ]);
        a.must(&["peer", "set", "@", "extra", "--allowed-ips", "10.95.1.0/24"]);
        a.must(&["set", "mtu", &(mtu(round) + 5).to_string(), "@"]);
        assert!(self.pair.ip(&["route"]).contains("10.95.1.0/24"));
        a.must(&["peer", "remove", "@", "extra"]);
    }

    fn applies(&self, round: usize) {
        let a = &self.pair.a;
        let other = self.other(round);
        a.must(&["apply", &other, "--confirm", "60s"]);
        let (_, said) = a.ringway(&["reload", "@"]).expect_err("a change waits");
        assert!(said.contains("waits"), "{said}");
        assert_eq!(a.must(&["confirm", "@"]), "confirmed");
    }

    fn applies_for_a_second(&self, round: usize) {
        let before = self.state();
        self.pair.a.must(&["apply", &self.other(round), "--confirm", "1s"]);
        wait_until("the old state", PATIENCE, || self.state() == before);
    }

    /// File `number` beside a's own.
    fn other(&self, number: usize) -> String {
        let path = self.pair.lab.directory.join("other.toml");
        write(&path, &self.file(number));
        path.to_str().expect("an ASCII path").to_owned()
    }

    /// What a change may change, as the daemon and the system tell it.
    fn state(&self) -> String {
        let Pair { a, lab, .. } = &self.pair;
        let status = a.status();
        let peers = status["peers"].as_array().expect("a list").iter();
        let mut peers: Vec<String> = peers
            .map(|peer| format!("{} {} {}", peer["name"], peer["public_key"], peer["allowed_ips"]))
            .collect();
        peers.sort();
        let own =
            ["name", "public_key", "listen_port", "fwmark", "mtu", "addresses"].map(|key| status[key].to_string());
        [
            own.join("\n"),
            peers.join("\n"),
            self.pair.ip(&["link"]),
            self.pair.ip(&["address"]),
            self.pair.ip(&["route"]),
            lab.a.ip(&["rule"]),
            lab.a.run(&["nft", "-s", "list", "ruleset"]),
            fs::read_to_string(self.etc.join("resolv.conf")).expect("it is there"),
        ]
        .join("\n")
    }
}

/// Bytes that an interface's packets have at most by file `number`.
fn mtu(number: usize) -> usize {
    1300 + 10 * (number % 5)
}

/// What the process has open that lasts: the number of files, once several looks in a row find the same ones. A client that
/// has its answer may be connected yet, and each other file that is opened meanwhile is a new one.
fn stable_descriptors(pid: u64) -> usize {
    let look = || {
        let open = fs::read_dir(format!("/proc/{pid}/fd")).expect("it runs").flatten();
        let mut open: Vec<_> = open
            .map(|entry| (entry.file_name(), fs::read_link(entry.path()).ok()))
            .collect();
        open.sort();
        open
    };
    let (mut last, mut same) = (look(), 0);
    wait_until("descriptors that last", PATIENCE, || {
        let seen = look();
        same = if seen == last { same + 1 } else { 0 };
        last = seen;
        same == LOOKS
    });
    last.len()
}

/// KiB of memory that the process has resident.
fn resident(pid: u64) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .expect("every process has it");
    line.trim().trim_end_matches(" kB").parse().expect("a number")
}

/// The longest time in which no byte was sent.
fn longest_stall(report: &Value) -> Duration {
    let intervals = report["intervals"].as_array().expect("a list");
    assert!(intervals.len() > 10, "{intervals:?}");
    let stalls = intervals.split(|interval| interval["sum"]["bytes"] != 0);
    INTERVAL * stalls.map(<[Value]>::len).max().unwrap_or(0) as u32
}
