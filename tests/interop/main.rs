//! ringway against other implementations of WireGuard and of Noise, in network namespaces. Needs root and
//! wireguard-tools, and whichever of the others is installed; what is missing is named in a line that begins with
//! "skipped:", and the test passes.
//!
//! Run them one at a time: `cargo test --test interop -- --test-threads=1 --show-output`. What they prove against which
//! version is in docs/INTEROP.md, and a test sees to it that the table there names these tests and no others.

#[path = "../uapi/device.rs"]
#[expect(dead_code, reason = "another program's tests use the rest of the device")]
mod device;
mod gateway;
#[path = "../netns/lab.rs"]
#[expect(dead_code, reason = "another program's tests use the rest of the lab")]
mod lab;
mod noise;
mod pair;
mod peers;
mod relay;
mod table;
#[path = "../netns/traffic.rs"]
#[expect(dead_code, reason = "another program's tests use the rest of the traffic")]
mod traffic;

use std::thread;
use std::time::Duration;

use gateway::Gateway;
use lab::{UNDERLAY, UNDERLAY_V4, wait_until};
use pair::{A, B, INNER_V4, INNER_V6, PATIENCE, PORTS, Pair, Terms, UNDERLAY_V6, ip, socket};
use peers::Implementation;
use relay::Relay;
use traffic::{connect, echo_datagrams, exchange_files, under_traffic};

const MIB: u64 = 1 << 20;
/// What ringway-wg is told: WireGuard only, and its own suite first.
const SUITES: [&str; 2] = ["wireguard", "auto"];

/// Each of these functions is a test against each implementation.
macro_rules! against_each {
    ($($test:ident),+ $(,)?) => {
        mod wireguard_go { $(#[test] fn $test() { super::$test(&super::peers::WIREGUARD_GO); })+ }
        mod boringtun { $(#[test] fn $test() { super::$test(&super::peers::BORINGTUN); })+ }
        mod gotatun { $(#[test] fn $test() { super::$test(&super::peers::GOTATUN); })+ }
    };
}

against_each! {
    everything_passes_whoever_begins,
    a_transfer_outlives_rekeys_by_either_end,
    a_transfer_outlives_roaming_of_either_end,
    a_transfer_outlives_a_restart_of_either_end,
    preshared_and_public_keys_must_agree,
    persistent_keepalives_move_bytes_on_an_idle_tunnel,
    initiations_that_cross_end_in_a_working_session,
    ringway_run_falls_back_and_goes_on,
}

/// Pings, datagrams and files both ways at once, over both families outside and inside, whichever end begins.
fn everything_passes_whoever_begins(other: &Implementation) {
    for suite in SUITES {
        let Some(mut pair) = Pair::start(other, suite) else {
            return;
        };
        for outer in [UNDERLAY_V4, UNDERLAY_V6] {
            for initiator in [A, B] {
                let mut knows = [false; 2];
                knows[initiator] = true;
                pair.acquaint(Terms {
                    outer,
                    knows,
                    ..Terms::default()
                });
                pair.wait_for_answer(initiator);
                for inner in [INNER_V4, INNER_V6] {
                    for (from, size) in [(A, 0), (B, 1), (A, 1372), (B, 1372), (A, 4000), (B, 4000)] {
                        let to = inner[1 - from];
                        assert!(pair.answers(from, to, size), "{suite}: a ping of {size} bytes to {to}");
                    }
                    echo_datagrams(&pair.lab, ip(inner[B]), &datagrams());
                    exchange_files(connect(&pair.lab, ip(inner[B])), 2 * MIB);
                }
            }
        }
        pair.assert_alive();
    }
}

/// Sizes around those that are padded and those that fill a packet, one by one: no implementation promises an order.
fn datagrams() -> Vec<Vec<usize>> {
    [0, 1, 15, 16, 17, 500, 1371, 1372, 1373, 1392, 1393]
        .map(|len| vec![len])
        .into()
}

/// New sessions while bytes go both ways, at the wish of either end.
fn a_transfer_outlives_rekeys_by_either_end(other: &Implementation) {
    let Some(mut pair) = Pair::acquainted(other, "auto", Terms::default()) else {
        return;
    };
    pair.wait_for_answer(A);
    under_traffic(connect(&pair.lab, ip(INNER_V4[B])), || {
        // ringway begins a handshake when the preshared key changes, and keeps the session until that is done. The key is
        // the old one again by then, so the other end need not be told.
        let before = pair.latest_handshake();
        let (device, peer) = (&pair.ends[A].device, &pair.ends[B].device.keys.public);
        let other_key = device.file("psk", &device::Keys::new().private);
        for path in [&other_key, "/dev/null"] {
            device.wg("set", &["peer", peer, "preshared-key", path]);
        }
        wait_until("ringway's handshake", PATIENCE, || pair.latest_handshake() > before);
        // Who can't be asked for another key rekeys by time only, see --long.
        for end in pair.ends.iter().rev().skip(usize::from(!other.reopens_sockets)) {
            let before = pair.latest_handshake();
            end.drop_sessions();
            wait_until("a new session", PATIENCE, || pair.latest_handshake() > before);
        }
    });
    pair.assert_alive();
}

/// The addresses and ports of both ends change under a transfer, one after the other, in one session.
fn a_transfer_outlives_roaming_of_either_end(other: &Implementation) {
    const ELSEWHERE: [&str; 2] = ["192.0.2.11", "192.0.2.12"];
    const OTHER_PORTS: [u16; 2] = [51830, 51831];
    let options = [other.options, other.options_for_moving].concat();
    let Some(mut pair) = Pair::start_with(other, &options, "auto") else {
        return;
    };
    pair.acquaint(Terms::default());
    pair.wait_for_answer(A);
    let handshake = pair.latest_handshake();
    let found_at = |side: usize, address: &str| {
        let expected = socket(address, OTHER_PORTS[side]);
        wait_until(&format!("the other end to follow to {expected}"), PATIENCE, || {
            pair.endpoint_seen_by(1 - side) == expected
        });
    };
    let change_port = |side: usize| {
        if side == A || other.reopens_sockets {
            let port = OTHER_PORTS[side].to_string();
            pair.ends[side].device.wg("set", &["listen-port", &port]);
        } else {
            pair.rewrite_port(side, OTHER_PORTS[side]);
        }
    };
    under_traffic(connect(&pair.lab, ip(INNER_V4[B])), || {
        for side in [B, A] {
            change_port(side);
            found_at(side, UNDERLAY_V4[side]);
        }
        for side in [B, A] {
            let (namespace, old, new) = (pair.namespace(side), UNDERLAY_V4[side], ELSEWHERE[side]);
            namespace.ip(&["address", "add", &format!("{new}/32"), "dev", UNDERLAY]);
            namespace.ip(&["address", "delete", &format!("{old}/24"), "dev", UNDERLAY]);
            namespace.ip(&["route", "replace", "192.0.2.0/24", "dev", UNDERLAY, "src", new]);
            if side == B && other.keeps_source {
                let [there, expected] = [(A, UNDERLAY_V4[A]), (B, new)].map(|(side, ip)| socket(ip, OTHER_PORTS[side]));
                let a = &pair.ends[A].device.keys.public;
                wait_until("a to follow", PATIENCE, || {
                    pair.ends[B].device.wg("set", &["peer", a, "endpoint", &there]);
                    pair.endpoint_seen_by(A) == expected
                });
            }
            found_at(side, new);
        }
    });
    // To another family, at the wish of a. A peer that goes on sending from the old address would call a back there.
    let endpoint = socket(UNDERLAY_V6[B], OTHER_PORTS[B]);
    let key = pair.ends[B].device.keys.public.clone();
    wait_until("both ends to meet over IPv6", PATIENCE, || {
        pair.ends[A].device.wg("set", &["peer", &key, "endpoint", &endpoint]);
        pair.ping(A, INNER_V6[B], 56) && pair.endpoint_seen_by(A) == endpoint
    });
    found_at(A, UNDERLAY_V6[A]);
    exchange_files(connect(&pair.lab, ip(INNER_V6[B])), MIB);
    assert_eq!(pair.latest_handshake(), handshake, "all in one session");
    pair.assert_alive();
}

/// Either end is killed under a transfer, and comes back with nothing but its configuration.
fn a_transfer_outlives_a_restart_of_either_end(other: &Implementation) {
    let Some(mut pair) = Pair::acquainted(other, "auto", Terms::default()) else {
        return;
    };
    pair.wait_for_answer(A);
    for side in [A, B] {
        under_traffic(connect(&pair.lab, ip(INNER_V4[B])), || pair.restart(side));
    }
    pair.assert_alive();
}

/// With a wrong key on either end nothing passes, and nothing breaks; with the right ones everything does.
fn preshared_and_public_keys_must_agree(other: &Implementation) {
    let Some(mut pair) = Pair::start(other, "auto") else {
        return;
    };
    let key = || Some(device::Keys::new().private);
    let (right, wrong) = (key(), key());
    let preshared = |preshared| Terms {
        preshared,
        ..Terms::default()
    };
    let stranger = Some(device::Keys::new().public);
    let refused = [
        ("one preshared key is missing", preshared([right.clone(), None])),
        ("the preshared keys differ", preshared([right.clone(), wrong])),
        (
            "a takes another key for b's",
            Terms {
                mistaken: [stranger.clone(), None],
                ..Terms::default()
            },
        ),
        (
            "b takes another key for a's",
            Terms {
                mistaken: [None, stranger],
                ..Terms::default()
            },
        ),
    ];
    for (what, terms) in refused {
        pair.acquaint(terms);
        let answered = thread::scope(|scope| {
            let pings = [A, B].map(|side| {
                let pair = &pair;
                scope.spawn(move || pair.ping(side, INNER_V4[1 - side], 56) || pair.ping(side, INNER_V6[1 - side], 56))
            });
            pings.map(|ping| ping.join().expect("ping does not panic"))
        });
        assert_eq!(answered, [false; 2], "{what}");
        pair.assert_alive();
    }
    pair.acquaint(preshared([right.clone(), right]));
    pair.wait_for_answer(A);
    exchange_files(connect(&pair.lab, ip(INNER_V6[B])), MIB);
    pair.assert_alive();
}

/// Nobody sends anything but an end that is to keep the path open.
fn persistent_keepalives_move_bytes_on_an_idle_tunnel(other: &Implementation) {
    let Some(mut pair) = Pair::start(other, "auto") else {
        return;
    };
    // Not all implementations count keepalives, so they are counted on their way.
    let relay = Relay::start(&pair.lab);
    for keeper in [A, B] {
        let mut terms = Terms {
            knows: [false; 2],
            ..Relay::terms()
        };
        terms.knows[keeper] = true;
        terms.keepalive[keeper] = Some(1);
        // The first one needs a session, so nothing else has to ask for one.
        pair.acquaint(terms);
        let before = relay.keepalives(keeper);
        wait_until("keepalives", PATIENCE, || relay.keepalives(keeper) >= before + 3);
        assert!(pair.latest_handshake() > Duration::ZERO);
        // Both ends have keys, so what is sent at last passes at once.
        pair.wait_for_answer(1 - keeper);
    }
    pair.assert_alive();
}

/// Both ends ask before either has heard the other.
fn initiations_that_cross_end_in_a_working_session(other: &Implementation) {
    for suite in SUITES {
        let Some(mut pair) = Pair::start(other, suite) else {
            return;
        };
        let relay = Relay::start(&pair.lab);
        for _ in 0..3 {
            relay.hold_initiations();
            pair.acquaint(Relay::terms());
            thread::scope(|scope| {
                for side in [A, B] {
                    let pair = &pair;
                    scope.spawn(move || pair.wait_for_answer(side));
                }
                relay.wait_until_they_crossed();
            });
            exchange_files(connect(&pair.lab, ip(INNER_V4[B])), MIB / 4);
        }
        pair.assert_alive();
    }
}

/// The other program: a TOML file, `suite = "auto"`, IPv6 outside, a preshared key.
fn ringway_run_falls_back_and_goes_on(other: &Implementation) {
    let Some(mut pair) = Pair::start(other, "wireguard") else {
        return;
    };
    let preshared = device::Keys::new().private;
    pair.acquaint(Terms {
        outer: UNDERLAY_V6,
        knows: [true, false],
        preshared: [Some(preshared.clone()), Some(preshared.clone())],
        ..Terms::default()
    });
    let config = format!(
        r#"[interface]
name = "rw0"
private_key = "{}"
listen_port = {}
addresses = ["{}/24", "{}/64"]

[[peer]]
public_key = "{}"
preshared_key = "{preshared}"
endpoint = "{}"
allowed_ips = ["{}/32", "{}/128"]
persistent_keepalive = 5
"#,
        pair.ends[A].device.keys.private,
        PORTS[A],
        INNER_V4[A],
        INNER_V6[A],
        pair.ends[B].device.keys.public,
        socket(UNDERLAY_V6[B], PORTS[B]),
        INNER_V4[B],
        INNER_V6[B],
    );
    pair.ends[A].kill();
    let mut gateway = Gateway::start(&pair.lab, &config);
    pair.wait_for_answer(B);
    assert_eq!(gateway.suite(), "wireguard");
    for inner in [INNER_V4, INNER_V6] {
        exchange_files(connect(&pair.lab, ip(inner[B])), 2 * MIB);
    }
    under_traffic(connect(&pair.lab, ip(INNER_V6[B])), || gateway.restart(&pair.lab));
    gateway.end();
}

#[test]
fn a_noise_initiator_in_python_gets_a_wireguard_session() {
    noise::it_initiates("wireguard");
}

#[test]
fn a_noise_initiator_in_python_gets_a_native_session() {
    noise::it_initiates("native");
}

#[test]
fn a_noise_responder_in_python_gives_a_wireguard_session() {
    noise::it_responds("wireguard");
}

#[test]
fn a_noise_responder_in_python_gives_a_native_session() {
    noise::it_responds("native");
}

/// No trick: REKEY_AFTER_TIME passes under traffic, against all implementations at once, begun by either end.
#[test]
#[ignore = "takes more than two minutes"]
fn the_timers_rekey_under_traffic_without_a_loss() {
    let pairs: Vec<(Pair, usize)> = peers::ALL
        .iter()
        .flat_map(|other| [A, B].map(|initiator| (other, initiator)))
        .filter_map(|(other, initiator)| {
            let mut knows = [false; 2];
            knows[initiator] = true;
            let terms = Terms {
                knows,
                ..Terms::default()
            };
            let pair = Pair::acquainted(other, "auto", terms)?;
            pair.wait_for_answer(initiator);
            Some((pair, initiator))
        })
        .collect();
    thread::scope(|scope| {
        for (pair, initiator) in &pairs {
            scope.spawn(move || {
                let first = pair.latest_handshake();
                let to = INNER_V4[1 - initiator];
                // 140 s: the initiator's time is up after 120 s, the retry of a lost message takes 5 s.
                let ping = ["ping", "-n", "-q", "-i", "0.1", "-c", "1400", "-W", "5", to];
                let report = pair.namespace(*initiator).run(&ping);
                assert!(report.contains(" 0% packet loss"), "{report}");
                let later = pair.latest_handshake().saturating_sub(first);
                assert!(
                    later >= Duration::from_secs(110),
                    "the next handshake was {later:?} later"
                );
            });
        }
    });
}
