//! Tunnels that are changed while they run, and what outlives a restart. Needs root; elsewhere each test prints
//! "skipped: needs root" and passes. Run them one at a time: `cargo test --test live -- --test-threads=1`.

mod confined;
mod end;
mod killed;
#[path = "../netns/lab.rs"]
#[expect(dead_code, reason = "another program's tests use the rest of the lab")]
mod lab;
mod leftovers;
#[path = "../netns/says.rs"]
mod says;
mod service;
#[path = "../netns/set_on_drop.rs"]
mod set_on_drop;
mod slow_disk;
mod storm;
mod system;
#[path = "../netns/traffic.rs"]
#[expect(dead_code, reason = "another program's tests use the rest of it")]
mod traffic;
mod upgrade;
mod upgrade_amid;
mod upgrade_fails;

use std::fs;
use std::net::{IpAddr, UdpSocket};
use std::thread;
use std::time::Duration;

use end::{End, INNER, INTERFACE, Keys, PORT, peer, write};
use lab::{Lab, Namespace, UNDERLAY_V4, wait_until};
use nix::sys::signal::Signal;
use serde_json::Value;
use traffic::{Transfer, connect};

const PATIENCE: Duration = Duration::from_secs(20);

/// Both ends, which know each other. Field order: the daemons end before the lab goes.
struct Pair {
    a: End,
    b: End,
    lab: Lab,
}

impl Pair {
    /// Started, and packets pass. None of both rekeys by itself within a test's time.
    fn up() -> Option<Pair> {
        Pair::up_with("")
    }

    /// As [`Pair::up`], with these lines in `[interface]` of both.
    fn up_with(interface: &str) -> Option<Pair> {
        let lab = Lab::new()?;
        let [mut a, mut b] = [0, 1].map(|me| End::new(&lab, me));
        a.write(interface, &[b.as_peer_at_home()]);
        b.write(interface, &[a.as_peer("")]);
        b.start(&lab.b);
        a.start(&lab.a);
        let pair = Pair { a, b, lab };
        pair.wait_until_packets_pass();
        Some(pair)
    }

    fn wait_until_packets_pass(&self) {
        wait_until("an answer", PATIENCE, || self.lab.a.ping(inner(1), 56));
    }

    /// What `ip` says of a's tunnel interface.
    fn ip(&self, arguments: &[&str]) -> String {
        self.lab.a.ip(&[arguments, &["show", "dev", INTERFACE]].concat())
    }
}

fn inner(end: usize) -> IpAddr {
    INNER[end].parse().expect("an address")
}

#[test]
fn a_reload_carries_out_what_differs_and_touches_no_other_session() {
    let Some(pair) = Pair::up() else { return };
    let Pair { a, b, lab } = &pair;
    let guest = Keys::new();
    let connection = connect(lab, inner(1));
    let handshake = [a.handshake("b"), b.handshake("a")];
    thread::scope(|scope| {
        let transfer = Transfer::start(scope, &connection, [u64::MAX; 2]);
        transfer.wait_for_progress();
        assert_eq!(a.must(&["reload", "@"]), "nothing had to change");
        a.write(
            "mtu = 1300\naddresses = [\"10.99.0.1/24\", \"10.97.0.1/24\"]\n",
            &[peer(&guest.public, "guest", "10.98.0.0/24", ""), b.as_peer_at_home()],
        );
        let changes = a.must(&["reload", "@"]);
        assert_eq!(changes, "address 10.97.0.1/24: added\nmtu = 1300\npeer guest: added");
        assert!(pair.ip(&["route"]).contains("10.98.0.0/24"), "{}", pair.ip(&["route"]));
        assert!(pair.ip(&["address"]).contains("10.97.0.1/24"));
        assert!(pair.ip(&["link"]).contains("mtu 1300"));
        assert_eq!(a.status()["mtu"], 1300);
        transfer.wait_for_progress();

        // As it was, by SIGHUP.
        a.write("", &[b.as_peer_at_home()]);
        a.signal(Signal::SIGHUP);
        wait_until("the reload", PATIENCE, || !pair.ip(&["route"]).contains("10.98."));
        wait_until("the reload", PATIENCE, || !pair.ip(&["address"]).contains("10.97."));
        assert!(!pair.ip(&["link"]).contains("mtu 1300"));
        transfer.wait_for_progress();
        transfer.finish();
    });
    assert_eq!(
        [a.handshake("b"), b.handshake("a")],
        handshake,
        "the session is the same"
    );
}

#[test]
fn a_preshared_key_that_a_reload_brings_begins_a_handshake_and_the_other_peers_session_stays() {
    for suite in ["native", "wireguard"] {
        let Some(lab) = Lab::new() else { return };
        let id = lab.directory.file_name().expect("it has one").display();
        let far = Namespace::new(format!("{id}-c"));
        lab.a.ip(&[
            "link", "add", "under1", "type", "veth", "peer", "name", "under1", "netns", &far.name,
        ]);
        for (namespace, address) in [(&lab.a, "198.51.100.1/24"), (&far, "198.51.100.2/24")] {
            namespace.ip(&["address", "add", address, "dev", "under1"]);
            namespace.ip(&["link", "set", "under1", "up"]);
        }
        let [mut a, mut b, mut c] = [0, 1, 2].map(|me| End::new(&lab, me));
        let suite = format!("suite = \"{suite}\"\n");
        let c_at_home = c.as_peer(&format!("endpoint = \"198.51.100.2:{PORT}\"\n{suite}"));
        let b_at_home = b.as_peer_at_home() + &suite;
        a.write("", &[b_at_home.clone(), c_at_home.clone()]);
        b.write("", &[a.as_peer(&suite)]);
        c.write("", &[a.as_peer(&suite)]);
        let key = format!("preshared_key = \"{}\"\n", Keys::new().private);
        b.start(&lab.b);
        c.start(&far);
        a.start(&lab.a);
        for end in [1, 2] {
            wait_until("an answer", PATIENCE, || lab.a.ping(inner(end), 56));
        }
        let handshakes = |peer: &str| {
            let stats: Value = serde_json::from_str(&a.must(&["stats", "@", "--json"])).expect("JSON");
            let peers = stats["peers"].as_array().expect("a list").iter();
            let mut peers = peers.filter(|entry| entry["name"] == peer);
            peers.next().expect("the peer is there")["handshakes"].clone()
        };
        let before = ["b", "c"].map(|peer| (handshakes(peer), a.handshake(peer)));
        a.write("", &[b_at_home + &key, c_at_home]);
        assert_eq!(a.must(&["reload", "@"]), "peer b: preshared_key");
        // Nobody else has this key, so a takes no answer to the handshake that begins with it.
        wait_until("a handshake in vain", PATIENCE, || {
            a.status()["control_drops"]["bad_handshake"].as_u64().is_some()
        });
        assert!(lab.a.answers(inner(1), 56), "by the session that there is");
        assert_eq!((handshakes("b"), a.handshake("b")), before[0]);
        b.write("", &[a.as_peer(&(suite.clone() + &key))]);
        b.signal(Signal::SIGHUP);
        wait_until("a handshake", PATIENCE, || handshakes("b") != before[0].0);
        for end in [1, 2] {
            assert!(lab.a.answers(inner(end), 56));
        }
        assert_eq!(
            (handshakes("c"), a.handshake("c")),
            before[1],
            "the session is the same"
        );
    }
}

#[test]
fn a_file_that_is_wrong_or_cannot_be_carried_out_changes_nothing() {
    let Some(pair) = Pair::up() else { return };
    let Pair { a, b, lab } = &pair;
    let before = (
        pair.ip(&["address"]),
        pair.ip(&["route"]),
        a.must(&["peer", "list", "@"]),
    );
    let refused = |interface: &str, peers: &[String], expected: &str| {
        a.write(interface, peers);
        let (code, text) = a.ringway(&["reload", "@"]).expect_err("it is refused");
        assert!(text.contains(expected), "{text}");
        let after = (
            pair.ip(&["address"]),
            pair.ip(&["route"]),
            a.must(&["peer", "list", "@"]),
        );
        assert_eq!(after, before);
        code
    };
    let guest = Keys::new();
    let peers = [b.as_peer_at_home(), peer(&guest.public, "guest", "10.98.0.0/24", "")];
    assert_eq!(refused("mtu = \"large\"\n", &peers, "interface.mtu = \"large\""), 3);
    assert_eq!(
        refused("io = \"syscall\"\n", &peers, "io cannot change while the tunnel runs"),
        1
    );
    // The new address and route are there when the port turns out to be taken.
    let taken = lab.a.enter(|| UdpSocket::bind("0.0.0.0:0").expect("a port"));
    let port = taken.local_addr().expect("it is bound").port();
    let second = "addresses = [\"10.99.0.1/24\", \"10.97.0.1/24\"]\n";
    a.write(second, &peers);
    let text = fs::read_to_string(&a.file).expect("it was written");
    write(
        &a.file,
        &text.replace(&format!("listen_port = {PORT}"), &format!("listen_port = {port}")),
    );
    let (_, text) = a.ringway(&["reload", "@"]).expect_err("the port is taken");
    assert!(text.contains(&format!("cannot listen on UDP port {port}")), "{text}");
    let after = (
        pair.ip(&["address"]),
        pair.ip(&["route"]),
        a.must(&["peer", "list", "@"]),
    );
    assert_eq!(after, before);
    // A signal gets the same answers, in the log.
    a.write("workers = 200\n", &[]);
    a.signal(Signal::SIGHUP);
    wait_until("a line in the log", PATIENCE, || a.log().contains("not reloaded"));
    assert!(lab.a.answers(inner(1), 56));
}

#[test]
fn up_and_down_come_back_when_the_tunnel_is_there_and_gone() {
    let Some(lab) = Lab::new() else { return };
    let a = End::new(&lab, 0);
    let file = a.file.to_str().expect("an ASCII path");
    let run = |command: &str| {
        let output = lab
            .a
            .command(end::RINGWAY)
            .args([command, file])
            .output()
            .expect("it runs");
        let texts = [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned());
        (output.status.code(), texts.concat())
    };
    let is_gone = || !a.control.exists() && !lab.a.has_interface(INTERFACE);
    a.write("post_down = [\"sleep 0.3\"]\n", &[]);
    let (code, text) = run("down");
    assert!(code == Some(4) && text.contains("no daemon serves"), "{text}");

    let (code, text) = run("up");
    assert!(code == Some(0) && text.contains("rw0 is up"), "{text}");
    let addresses = lab.a.ip(&["address", "show", "dev", INTERFACE]);
    assert!(addresses.contains(INNER[0]), "{addresses}");
    let (code, text) = run("up");
    assert!(code == Some(1) && text.contains("up already"), "{text}");
    let pid = a.status()["pid"].as_i64().expect("a number");
    let (code, text) = run("down");
    assert!(code == Some(0) && text.contains("rw0 is down"), "{text}");
    assert!(is_gone() && !end::runs(pid), "with its commands");

    // What fails is told by up, with the daemon's own exit code.
    a.write("pre_up = [\"echo wrong here >&2; false\"]\n", &[]);
    let (code, text) = run("up");
    assert!(code == Some(1) && text.contains("pre_up"), "{text}");
    assert!(is_gone());
    a.write("mtu = \"large\"\n", &[]);
    let (code, text) = run("up");
    assert!(code == Some(3) && text.contains("interface.mtu"), "{text}");

    // A daemon that was killed leaves its socket.
    a.write("", &[]);
    let (code, text) = run("up");
    assert_eq!(code, Some(0), "{text}");
    let pid = a.status()["pid"].as_i64().expect("a number");
    end::kill_process(pid);
    wait_until("the interface to go", PATIENCE, || !lab.a.has_interface(INTERFACE));
    let (code, text) = run("down");
    assert!(code == Some(0) && text.contains("removed the socket"), "{text}");
    assert!(is_gone());
}

#[test]
fn what_nobody_confirms_is_undone() {
    let Some(pair) = Pair::up() else { return };
    let Pair { a, b, lab } = &pair;
    let handshake = a.handshake("b");
    let other = lab.directory.join("other.toml");
    let guest = Keys::new();
    let text = a.interface("addresses = [\"10.99.0.1/24\"]\nmtu = 1300")
        + &b.as_peer_at_home()
        + &peer(&guest.public, "guest", "10.98.0.0/24", "");
    write(&other, &text);
    let other = other.to_str().expect("an ASCII path");
    let answer = a.must(&["apply", other, "--confirm", "2s"]);
    assert!(
        answer.contains("peer guest: added") && answer.contains("ringway confirm"),
        "{answer}"
    );
    let (_, text) = a.ringway(&["reload", "@"]).expect_err("a change waits");
    assert!(text.contains("waits"), "{text}");
    assert!(pair.ip(&["link"]).contains("mtu 1300"));
    wait_until("the old state", PATIENCE, || {
        !a.must(&["peer", "list", "@"]).contains("guest")
    });
    assert!(!pair.ip(&["link"]).contains("mtu 1300") && !pair.ip(&["route"]).contains("10.98."));
    assert!(a.ringway(&["confirm", "@"]).is_err(), "too late");

    a.must(&["apply", other, "--confirm", "60s"]);
    assert_eq!(a.must(&["confirm", "@"]), "confirmed");
    assert!(a.must(&["peer", "list", "@"]).contains("guest"));
    // What is not to be confirmed lasts; the file is what a reload goes back to.
    assert!(a.must(&["reload", "@"]).contains("peer guest: removed"));
    assert!(lab.a.answers(inner(1), 56));
    assert_eq!(a.handshake("b"), handshake, "the session is the same");
}

#[test]
fn peers_come_change_go_and_are_saved() {
    let Some(pair) = Pair::up() else { return };
    let Pair { a, b, lab } = &pair;
    let guest = Keys::new();
    let text = fs::read_to_string(&a.file).expect("it was written");
    write(&a.file, &text.replace("[[peer]]", "# The other office.\n[[peer]]"));
    let key = guest.public.as_str();
    let added = a.must(&[
        "peer",
        "add",
        "@",
        key,
        "--name",
        "guest",
        "--allowed-ips",
        "10.98.0.0/24, 10.98.1.0/24",
    ]);
    assert_eq!(added, "peer guest: added");
    a.must(&[
        "peer",
        "set",
        "@",
        "guest",
        "--endpoint",
        "192.0.2.77:9",
        "--allowed-ips",
        "10.98.1.0/24",
    ]);
    assert_eq!(a.must(&["set", "mtu", "1350", "@"]), "mtu = 1350");
    let list = a.must(&["peer", "list", "@"]);
    assert!(
        list.contains(&format!("{key}\tguest\t192.0.2.77:9\t10.98.1.0/24")),
        "{list}"
    );
    let routes = pair.ip(&["route"]);
    assert!(
        routes.contains("10.98.1.0/24") && !routes.contains("10.98.0.0/24"),
        "{routes}"
    );
    let (_, text) = a.ringway(&["peer", "add", "@", key]).expect_err("it is there");
    assert!(text.contains("there is a peer with this public key (guest)"), "{text}");
    let (_, text) = a
        .ringway(&["peer", "set", "@", "guest", "--allowed-ips", "10.99.0.2/32"])
        .expect_err("b's");
    assert!(text.contains("belongs to the peer b"), "{text}");

    a.must(&["save", "@"]);
    let saved = fs::read_to_string(&a.file).expect("it is there");
    assert!(
        saved.contains("# The other office.") && saved.contains("mtu = 1350"),
        "{saved}"
    );
    assert_eq!(
        a.must(&["reload", "@"]),
        "nothing had to change",
        "the file says what runs"
    );
    assert_eq!(a.must(&["peer", "remove", "@", key]), "peer guest: removed");
    assert!(a.must(&["reload", "@"]).contains("peer guest: added"));
    assert!(lab.a.answers(inner(1), 56));

    // A new key of ours: the other end does not know it, until it is told.
    let renewed = Keys::new();
    let text = fs::read_to_string(&a.file).expect("it is there");
    write(&a.file, &text.replace(&a.keys.private, &renewed.private));
    assert_eq!(a.must(&["reload", "@"]), "private_key");
    b.must(&["peer", "remove", "@", "a"]);
    b.must(&[
        "peer",
        "add",
        "@",
        &renewed.public,
        "--name",
        "a",
        "--allowed-ips",
        "10.99.0.1/32",
    ]);
    pair.wait_until_packets_pass();
}

#[test]
fn an_endpoints_name_may_come_late_and_move() {
    let Some(lab) = Lab::new() else { return };
    let [mut a, mut b] = [0, 1].map(|me| End::new(&lab, me));
    a.write("", &[b.as_peer(&format!("endpoint = \"b.ringway.test:{PORT}\""))]);
    b.write("", &[a.as_peer("")]);
    b.start(&lab.b);
    let hosts = lab.directory.join("hosts");
    fs::write(&hosts, "127.0.0.1 localhost\n").expect("a file");
    let mount = format!("mount --bind {} /etc/hosts && exec \"$@\"", hosts.display());
    a.start_under(&lab.a, &["unshare", "-m", "sh", "-c", &mount, "sh"]);
    let endpoint = |a: &End| a.status()["peers"][0]["endpoint"].clone();
    wait_until("a first look-up", PATIENCE, || {
        a.log().contains("cannot look up the endpoint")
    });
    assert!(endpoint(&a).is_null() && !lab.a.ping(inner(1), 56));
    let says = |address: &str| fs::write(&hosts, format!("{address} b.ringway.test\n")).expect("the file is there");
    says("192.0.2.77");
    wait_until("an address", PATIENCE, || endpoint(&a) == format!("192.0.2.77:{PORT}"));
    // Nobody is there; meanwhile the name moves.
    assert!(!lab.a.ping(inner(1), 56));
    says(UNDERLAY_V4[1]);
    let pair = Pair { a, b, lab };
    pair.wait_until_packets_pass();
    assert_eq!(endpoint(&pair.a), format!("{}:{PORT}", UNDERLAY_V4[1]));
}

#[test]
fn a_clock_that_was_set_back_locks_nobody_out() {
    let Some(lab) = Lab::new() else { return };
    let [mut a, mut b] = [0, 1].map(|me| End::new(&lab, me));
    a.write("", &[b.as_peer_at_home()]);
    b.write("", &[a.as_peer("")]);
    // As if a's clock had been in the year 2100.
    fs::create_dir(a.state.parent().expect("it has one")).expect("a directory");
    fs::write(
        &a.state,
        format!(
            "ringway state 1\nsent {:016x}{:08x}\nend\n",
            (1u64 << 62) + 4_102_444_800,
            0
        ),
    )
    .expect("a file");
    b.start(&lab.b);
    a.start(&lab.a);
    let mut pair = Pair { a, b, lab };
    pair.wait_until_packets_pass();
    for signal in [Signal::SIGKILL, Signal::SIGTERM] {
        // What is sent next is later than all before, and yet it is the same second of that year: kills add next to nothing.
        let text = || fs::read_to_string(&pair.a.state).unwrap_or_default();
        wait_until("the state", PATIENCE, || text().contains("clock "));
        assert!(text().contains("sent 40000000f4865700"), "{}", text());
        pair.a.end_by(signal);
        pair.a.start(&pair.lab.a);
        pair.wait_until_packets_pass();
    }
    // The other way round: what b has seen of a outlives b.
    pair.b.end_by(Signal::SIGTERM);
    let kept = fs::read_to_string(&pair.b.state).expect("b keeps state too");
    assert!(kept.contains(&format!("received {}", pair.a.keys.public)), "{kept}");
    pair.b.start(&pair.lab.b);
    pair.a.end_by(Signal::SIGTERM);
    fs::remove_file(&pair.a.state).expect("it was written");
    pair.a.start(&pair.lab.a);
    let replayed = |end: &End| {
        end.status()["control_drops"]["replayed_handshake"]
            .as_u64()
            .unwrap_or(0)
    };
    wait_until("a's initiations to look old", PATIENCE, || {
        pair.lab.a.ping(inner(1), 56);
        replayed(&pair.b) > 0
    });
}

#[test]
fn a_signal_while_the_tunnel_comes_up_removes_what_was_made() {
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let Some(lab) = Lab::new() else { return };
        let mut a = End::new(&lab, 0);
        // Before there is an interface, and when it has all that it gets.
        let begun = lab.directory.join("begun");
        let command = format!("= [\"touch {}; exec sleep 60\"]\n", begun.display());
        for list in ["pre_up", "post_up"] {
            let down = lab.directory.join(format!("{list}-down"));
            a.write(
                &format!("{list} {command}post_down = [\"touch {}\"]\n", down.display()),
                &[],
            );
            a.start_at_least(&lab.a);
            wait_until("the command", PATIENCE, || begun.exists());
            assert_eq!(lab.a.has_interface(INTERFACE), list == "post_up");
            let status = a.end_by(signal);
            assert!(status.success(), "{status}");
            assert!(!a.control.exists() && !lab.a.has_interface(INTERFACE));
            assert_eq!(down.exists(), list == "post_up", "the tunnel was up already");
            fs::remove_file(&begun).expect("it exists");
        }
    }
}
