//! Upgrades: another program goes on with a tunnel, and nobody notices.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::thread;

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::end::{End, RINGWAY};
use crate::lab::{Lab, wait_until};
use crate::traffic::{Transfer, connect};
use crate::{PATIENCE, Pair, inner};

/// What must be the same after an upgrade.
pub(crate) fn unchanged(end: &End, peer: &str) -> (Value, Value, Value) {
    let status = end.status();
    let handshakes = end.must(&["stats", "@", "--json"]);
    let stats: Value = serde_json::from_str(&handshakes).expect("JSON");
    let handshakes = stats["peers"][0]["handshakes"].clone();
    assert_eq!(status["peers"][0]["name"], peer);
    (
        status["pid"].clone(),
        status["peers"][0]["latest_handshake_unix_s"].clone(),
        handshakes,
    )
}

/// Upgrades to the same program.
pub(crate) fn upgrade(end: &End, times: u64) {
    let sent = |status: &Value| {
        let peer = &status["peers"][0];
        [&peer["tx_bytes"], &peer["rx_bytes"]].map(|count| count.as_u64().expect("a number"))
    };
    let before = end.status();
    let answer = end.must(&["upgrade", "@"]);
    assert!(answer.starts_with("upgraded from "), "{answer}");
    let after = end.status();
    assert_eq!(after["upgrades"], times);
    assert_eq!(after["started_unix_s"], before["started_unix_s"]);
    let counts = sent(&before).into_iter().zip(sent(&after));
    assert!(
        counts.into_iter().all(|(before, after)| after >= before),
        "counters go on"
    );
    wait_for_no_children(&after);
    let drops = after["workers"].to_string();
    for never in ["forged", "replayed", "expired", "unknown_index"] {
        assert!(!drops.contains(never), "{drops}");
    }
}

/// Neither the program that was asked nor the guard is left of an upgrade, not even for somebody to take note of their ends.
pub(crate) fn wait_for_no_children(status: &Value) {
    let pid = status["pid"].as_u64().expect("a number");
    let children = format!("/proc/{pid}/task/{pid}/children");
    wait_until("no children", PATIENCE, || {
        fs::read_to_string(&children).unwrap_or_default().is_empty()
    });
}

/// Upgrades of each end.
pub(crate) const ROUNDS: u64 = 5;

#[test]
fn a_bulk_transfer_outlives_upgrades_of_both_ends_in_both_suites_and_on_both_engines() {
    for (suite, io) in [("native", ""), ("wireguard", "io = \"syscall\"\n")] {
        let Some(lab) = Lab::new() else { return };
        let [mut a, mut b] = [0, 1].map(|me| End::new(&lab, me));
        let suite = format!("suite = \"{suite}\"\n");
        // Two workers, so that lanes and steering have something to get wrong.
        a.write("", &[b.as_peer_at_home() + &suite]);
        b.write(io, &[a.as_peer(&suite)]);
        for end in [&a, &b] {
            let text = fs::read_to_string(&end.file).expect("it was written");
            crate::end::write(&end.file, &text.replace("workers = 1", "workers = 2"));
        }
        b.start(&lab.b);
        a.start(&lab.a);
        let pair = Pair { a, b, lab };
        pair.wait_until_packets_pass();
        let Pair { a, b, lab } = &pair;
        let system = || ["address", "route", "link"].map(|what| pair.ip(&[what]));
        let before = (unchanged(a, "b"), unchanged(b, "a"), system());
        let connection = connect(lab, inner(1));
        thread::scope(|scope| {
            let transfer = Transfer::start(scope, &connection, [u64::MAX; 2]);
            transfer.wait_for_progress();
            for times in 1..=ROUNDS {
                for end in [a, b] {
                    upgrade(end, times);
                    transfer.wait_for_progress();
                }
            }
            transfer.finish();
        });
        let after = (unchanged(a, "b"), unchanged(b, "a"), system());
        assert_eq!(after, before, "no new handshake, nothing changed around the tunnel");
    }
}

#[test]
fn routes_rules_filters_and_files_stay_as_they_are_and_go_at_the_end() {
    let Some(lab) = Lab::new() else { return };
    let [mut a, mut b] = [0, 1].map(|me| End::new(&lab, me));
    let all = b.as_peer_at_home().replace("/32\"", "/32\", \"0.0.0.0/0\"");
    let log = lab.directory.join("latency.hlog");
    let interface = format!(
        "mtu = 1400\nexclude = [\"10.96.0.0/16\"]\nlane_ports = true\nlatency_log = \"{}\"\n",
        log.display()
    );
    a.write(&interface, &[format!("[gateway]\negress = [\"under0\"]\n{all}")]);
    b.write("", &[a.as_peer("")]);
    b.start(&lab.b);
    a.start(&lab.a);
    let mut pair = Pair { a, b, lab };
    pair.wait_until_packets_pass();
    let lab = &pair.lab;
    let around = || {
        let nft = lab.a.run(&["nft", "-a", "list", "ruleset"]);
        let ip: [&[&str]; 4] = [
            &["rule"],
            &["-6", "rule"],
            &["route", "show", "table", "all"],
            &["address", "show", "dev", "rw0"],
        ];
        // The underlay gets an address of the kernel's making at some time.
        let ours = |text: String| {
            let lines = text.lines().filter(|line| !line.contains("under0"));
            lines.map(str::to_owned).collect::<Vec<_>>()
        };
        (nft, ip.map(|arguments| ours(lab.a.ip(arguments))))
    };
    let before = around();
    assert!(before.0.contains("ringway-gateway-rw0") && before.0.contains("ringway-route-rw0"));
    let peers = || pair.a.must(&["peer", "list", "@"]);
    let added = crate::Keys::new();
    pair.a.must(&["peer", "add", "@", &added.public, "--name", "guest"]);
    let listed = peers();
    let handshake = pair.a.handshake("b");
    for times in [1, 2] {
        upgrade(&pair.a, times);
        assert_eq!(around(), before);
        assert_eq!(peers(), listed, "peers that are in no file stay too");
        assert!(lab.a.answers(inner(1), 56));
    }
    assert_eq!(pair.a.handshake("b"), handshake);
    // What runs is still under change.
    assert_eq!(pair.a.must(&["peer", "remove", "@", "guest"]), "peer guest: removed");
    assert_eq!(pair.a.must(&["reload", "@"]), "nothing had to change");
    let text = fs::read_to_string(&log).expect("it is written");
    assert_eq!(text.matches("[StartTime").count(), 1, "one log: {text}");
    let status = pair.a.end_by(Signal::SIGTERM);
    assert!(status.success(), "{status}");
    assert!(!pair.a.control.exists());
    let (nft, [rules, _, routes, _]) = {
        let nft = pair.lab.a.run(&["nft", "-a", "list", "ruleset"]);
        let ip: [&[&str]; 2] = [&["rule"], &["route", "show", "table", "all"]];
        let [rules, routes] = ip.map(|arguments| pair.lab.a.ip(arguments));
        (nft, [rules, String::new(), routes, String::new()])
    };
    assert!(!nft.contains("ringway"), "{nft}");
    assert!(!rules.contains("51820") && !routes.contains("throw"), "{rules}{routes}");
}

/// A program of these lines of shell.
pub(crate) fn script(path: &Path, lines: &str) -> String {
    program(path, "/bin/sh", lines)
}

/// As [`script`], for another interpreter.
pub(crate) fn program(path: &Path, interpreter: &str, lines: &str) -> String {
    fs::write(path, format!("#!{interpreter}\n{lines}\n")).expect("the directory is ours");
    fs::set_permissions(path, Permissions::from_mode(0o755)).expect("it is ours");
    path.to_str().expect("an ASCII path").to_owned()
}

#[test]
fn a_program_that_cannot_go_on_is_refused_and_the_tunnel_goes_on() {
    let Some(pair) = Pair::up() else { return };
    let Pair { a, lab, .. } = &pair;
    let before = unchanged(a, "b");
    let in_lab = |name: &str| lab.directory.join(name);
    let answering = |name: &str, formats: &str, program: &str| {
        let answer = format!(
            r#"{{"program":"{program}","version":"9.9.9","formats":{formats},"capabilities":18446744073709551615,"problem":null}}"#
        );
        script(&in_lab(name), &format!("echo '{answer}'"))
    };
    let other_format = answering("other-format", "[7,8]", "ringway");
    let other_program = answering("other-program", "[2]", "ringway-wg");
    // As programs would that read another layout, or have lost an option.
    let blind = script(&in_lab("blind"), &format!("exec {RINGWAY} \"$@\" </dev/null"));
    let deaf = script(
        &in_lab("deaf"),
        &format!("shift; exec {RINGWAY} --resume-check --no-such-option \"$@\""),
    );
    let powerless = script(
        &in_lab("powerless"),
        &format!("exec setpriv --bounding-set -net_admin {RINGWAY} \"$@\""),
    );
    // Fit when it is asked, and gone when it is needed.
    let vanishing = script(
        &in_lab("vanishing"),
        &format!("[ \"$1\" = --resume-check ] && rm \"$0\" && exec {RINGWAY} \"$@\""),
    );
    let connection = connect(lab, inner(1));
    thread::scope(|scope| {
        let transfer = Transfer::start(scope, &connection, [u64::MAX; 2]);
        transfer.wait_for_progress();
        for (program, expected) in [
            ("/no/such/program", "cannot be executed"),
            ("/etc/passwd", "cannot be executed"),
            ("/bin/false", "does not say whether it can"),
            (&other_format, "does not read what version"),
            (&other_program, "this tunnel is of ringway"),
            (&blind, "cannot read what was handed over: not a sealed memory file"),
            (
                &deaf,
                "does not take the command line: unexpected argument '--no-such-option'",
            ),
            (&powerless, "would lose capabilities"),
            (&vanishing, "the tunnel goes on as before"),
        ] {
            let (code, text) = a
                .ringway(&["upgrade", "@", "--binary", program])
                .expect_err("it is refused");
            assert!(code == 1 && text.contains(expected), "{program}: {code}, {text}");
            assert_eq!(unchanged(a, "b"), before, "{program}");
            transfer.wait_for_progress();
        }
        // None of them is an upgrade, and none keeps one from happening.
        upgrade(a, 1);
        transfer.wait_for_progress();
        transfer.finish();
    });
    assert_eq!(unchanged(a, "b"), before);
}
