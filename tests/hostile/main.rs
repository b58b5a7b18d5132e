//! What a network may do to an end: real daemons between a man in the middle, floods and a crowd. Needs root (or the
//! namespaces that `scripts/test` makes); elsewhere each test prints "skipped: needs root" and passes.
//!
//! Run them one at a time: `cargo test --test hostile -- --test-threads=1`.

mod crowd;
mod end;
#[path = "../../perf/floodgen/flood.rs"]
mod flood;
#[path = "../../perf/floodgen/forge.rs"]
mod forge;
#[path = "../netns/lab.rs"]
#[expect(dead_code, reason = "another program's tests use the rest of the lab")]
mod lab;
mod relay;
#[path = "../netns/set_on_drop.rs"]
mod set_on_drop;
#[path = "../netns/traffic.rs"]
#[expect(dead_code, reason = "another program's tests use the rest of the traffic")]
mod traffic;

use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use crowd::Crowd;
use end::{Drops, End, PORT, Peer, Setup, news, private_key, public_key};
use flood::Flood;
use forge::{Forge, Kind};
use lab::{Lab, UNDERLAY_V4, wait_until};
use relay::{RELAY_PORTS, Relay};
use ringway::proto::{Suite, SuiteChoice};
use set_on_drop::SetOnDrop;
use traffic::{Transfer, connect, exchange_files};

const MIB: u64 = 1 << 20;
const INNER: [&str; 2] = ["10.99.0.1", "10.99.0.2"];
/// Where forged sources are (RFC 2544).
const SOURCES: &str = "198.18.0.0/15";
/// For what takes a moment.
const PATIENCE: Duration = Duration::from_secs(30);
/// Every reason for which a datagram that came from the network may die before it is known to be a peer's.
const REFUSALS: [&str; 18] = [
    "socket_full",
    "bad_message",
    "unknown_index",
    "replayed",
    "too_old",
    "forged",
    "expired_session",
    "mailbox_full",
    "handshake_queue_full",
    "bad_mac1",
    "cookie_demanded",
    "bad_mac2",
    "rate_limited",
    "unknown_peer",
    "bad_handshake",
    "replayed_handshake",
    "unexpected_handshake",
    "bad_source",
];

/// The configuration of a (0) and b (1) of a pair.
fn setup(end: usize, suite: Suite) -> Setup {
    Setup {
        name: ["a", "b"][end],
        private_key: private_key(end as u32),
        address: ["10.99.0.1/24", "10.99.0.2/24"][end],
        suite: suite.name(),
    }
}

/// The other end, which is heard at `port` of `host`.
fn peer(end: usize, host: usize, port: u16) -> Peer {
    Peer {
        public_key: public_key(private_key(end as u32)),
        endpoint: Some(SocketAddr::new(UNDERLAY_V4[host].parse().expect("an address"), port)),
        allowed_ip: format!("{}/32", INNER[end]),
    }
}

fn start(lab: &Lab, suite: Suite, end: usize) -> End {
    let namespace = [&lab.a, &lab.b][end];
    End::start(lab, namespace, &setup(end, suite), &[peer(1 - end, 1 - end, PORT)])
}

fn inner(end: usize) -> IpAddr {
    INNER[end].parse().expect("an address")
}

/// How many datagrams were refused, for whatever reason.
fn refused(drops: &Drops) -> u64 {
    REFUSALS.iter().filter_map(|reason| drops.get(*reason)).sum()
}

/// How many died for want of room: that may happen to a genuine one, on a machine that is busy with something else.
fn lost(drops: &Drops) -> u64 {
    ["socket_full", "mailbox_full", "handshake_queue_full"]
        .iter()
        .filter_map(|reason| drops.get(*reason))
        .sum()
}

/// A flood of `messages` at b, from addresses that b reaches through a.
fn flood(lab: &Lab, messages: &[Vec<u8>]) -> Flood {
    let target = format!("{}:{PORT}", UNDERLAY_V4[1]).parse().expect("an address");
    lab.a
        .enter(|| Flood::new(target, SOURCES.parse().expect("a network"), messages))
        .expect("CAP_NET_RAW")
}

fn lab_with_forged_sources() -> Option<Lab> {
    let lab = Lab::new()?;
    lab.b.ip(&["route", "add", SOURCES, "via", UNDERLAY_V4[0]]);
    Some(lab)
}

#[test]
fn a_man_in_the_middle_can_neither_change_nor_repeat_anything() {
    for suite in Suite::ALL {
        let Some(lab) = Lab::new() else { return };
        let relay = Relay::default();
        thread::scope(|scope| {
            let mut ends = [0, 1].map(|end| {
                // Each takes the relay, which lives in b, for the other.
                let other = peer(1 - end, 1, RELAY_PORTS[end]);
                End::start(&lab, [&lab.a, &lab.b][end], &setup(end, suite), &[other])
            });
            let (guard, threads) = relay.start(scope, &lab);
            wait_until("an answer", PATIENCE, || lab.a.ping(inner(1), 56));
            exchange_files(connect(&lab, inner(1)), 16 * MIB);
            wait_until("another answer", PATIENCE, || lab.a.ping(inner(1), 1000));
            drop(guard);
            for thread in threads {
                thread.join().expect("a relay does not panic");
            }

            for (end, done) in ends.iter_mut().zip([&relay.done[1], &relay.done[0]]) {
                end.assert_runs();
                let forged = done.forged.load(Ordering::Relaxed);
                let mut drops = Drops::new();
                wait_until(&format!("{forged} refusals"), PATIENCE, || {
                    drops = end.drops();
                    refused(&drops) >= forged
                });
                assert!(refused(&drops) - lost(&drops) <= forged, "{forged} {drops:?}");
                assert!(
                    done.genuine.load(Ordering::Relaxed) > forged,
                    "most of the traffic is genuine"
                );
                for reason in ["bad_message", "bad_mac1", "replayed", "too_old", "forged"] {
                    assert!(drops.contains_key(reason), "{reason}: {drops:?}");
                }
            }
            // a asked and b answered.
            for (end, reason) in ends.iter().zip(["unexpected_handshake", "replayed_handshake"]) {
                assert!(end.drops().contains_key(reason), "{reason}: {:?}", end.drops());
            }
        });
    }
}

#[test]
fn every_datagram_of_a_flood_is_counted_under_its_reason_and_a_transfer_goes_on() {
    const DATAGRAMS: u64 = 4_000;
    for suite in Suite::ALL {
        let Some(lab) = lab_with_forged_sources() else { return };
        let [_a, mut b] = [0, 1].map(|end| start(&lab, suite, end));
        wait_until("an answer", PATIENCE, || lab.a.ping(inner(1), 56));
        let connection = connect(&lab, inner(1));
        thread::scope(|scope| {
            let transfer = Transfer::start(scope, &connection, [u64::MAX; 2]);
            transfer.wait_for_progress();
            let mut forge = Forge::new(suite, public_key(private_key(1)), 1);
            let memory = b.rss_bytes();
            for (kind, reasons) in KINDS {
                let messages: Vec<_> = match kind {
                    // What a sent long before it sends what it does.
                    Kind::Replay => vec![forge.initiation_of(private_key(0))],
                    _ => (0..256).map(|_| forge.message(kind)).collect(),
                };
                let before = b.drops();
                let sent = flood(&lab, &messages).run(20_000.0, |sent, _| sent < DATAGRAMS);
                let sent = sent.expect("the kernel takes packets").datagrams;
                let mut drops = Drops::new();
                wait_until(&format!("{sent} refusals of {kind:?}"), PATIENCE, || {
                    let earlier = std::mem::replace(&mut drops, news(&before, &b.drops()));
                    refused(&drops) >= sent && drops == earlier
                });
                // The transfer's packets are as likely to find no room as the flood's.
                let counted: u64 = reasons.iter().filter_map(|reason| drops.get(*reason)).sum();
                assert_eq!(counted + lost(&drops), refused(&drops), "{kind:?}: {drops:?}");
                assert!(counted <= sent, "{kind:?}: {drops:?}");
                assert!(drops.contains_key(reasons[0]), "{kind:?}: {drops:?}");
                transfer.wait_for_progress();
            }
            let grown = b.rss_bytes().saturating_sub(memory);
            // Receive buffers that were not needed before, and a little that is the same for any flood; not 240 MB.
            assert!(grown < 16 * MIB, "{grown} bytes more than before");
            transfer.finish();
        });
        b.assert_runs();
    }
}

/// Each kind of flood, and the reasons for which its datagrams die, beside want of room; the first of them at least once.
const KINDS: [(Kind, &[&str]); 9] = [
    (Kind::Garbage, &["bad_message"]),
    (Kind::Truncated, &["bad_message"]),
    (Kind::Oversized, &["bad_message"]),
    (Kind::Data, &["unknown_index"]),
    (Kind::CookieReply, &["unexpected_handshake"]),
    (Kind::NoMac1, &["bad_mac1"]),
    (Kind::Mac1, &["bad_handshake", "cookie_demanded"]),
    (Kind::UnknownKey, &["cookie_demanded", "unknown_peer"]),
    (Kind::Replay, &["cookie_demanded", "replayed_handshake"]),
];

#[test]
fn a_peer_gets_in_while_a_flood_with_valid_mac1_makes_everybody_show_a_cookie() {
    // At the same time: a peer that was asked for a cookie asks again 5 s later.
    thread::scope(|scope| {
        for suite in Suite::ALL {
            scope.spawn(move || gets_in_during_a_flood(suite));
        }
    });
}

fn gets_in_during_a_flood(suite: Suite) {
    let Some(lab) = lab_with_forged_sources() else { return };
    let b = start(&lab, suite, 1);
    let mut forge = Forge::new(suite, public_key(private_key(1)), 2);
    let messages: Vec<_> = (0..256).map(|_| forge.message(Kind::Mac1)).collect();
    let mut flood = flood(&lab, &messages);
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let _over = SetOnDrop(&over);
        scope.spawn(|| {
            flood.run(5_000.0, |_, elapsed| {
                !over.load(Ordering::Relaxed) && elapsed < 3 * PATIENCE
            })
        });
        let demanded = || b.drops().get("cookie_demanded").copied().unwrap_or(0);
        wait_until("load", PATIENCE, || demanded() > 0);
        let _a = start(&lab, suite, 0);
        wait_until("an answer", 2 * PATIENCE, || lab.a.ping(inner(1), 56));
        exchange_files(connect(&lab, inner(1)), MIB);
        let before = demanded();
        wait_until("the flood to go on", PATIENCE, || demanded() > before);
    });
}

#[test]
fn a_thousand_peers_all_pass_packets_both_ways() {
    const CLIENTS: u32 = 1_000;
    for (suite, choice) in [
        (Suite::Native, SuiteChoice::Native),
        (Suite::WireGuard, SuiteChoice::WireGuard),
    ] {
        let Some(lab) = Lab::new() else { return };
        lab.a.ip(&["route", "add", "local", "10.200.0.0/16", "dev", "lo"]);
        lab.b.ip(&["route", "add", "10.200.0.0/16", "via", UNDERLAY_V4[0]]);
        // Clients have the keys from 0 on.
        let key = private_key(CLIENTS);
        let peers: Vec<Peer> = (0..CLIENTS)
            .map(|number| Peer {
                public_key: public_key(private_key(number)),
                endpoint: None,
                allowed_ip: format!("{}/32", crowd::addresses(number)[1]),
            })
            .collect();
        let server = Setup {
            private_key: key,
            ..setup(1, suite)
        };
        let b = End::start(&lab, &lab.b, &server, &peers);
        let address = SocketAddr::new(UNDERLAY_V4[1].parse().expect("an address"), PORT);
        let target = INNER[1].parse().expect("an IPv4 address");
        let mut crowd = Crowd::new(&lab, CLIENTS, choice, address, public_key(key), target);
        wait_until("everybody's answer", 2 * PATIENCE, || crowd.step() == CLIENTS as usize);

        wait_until("everybody's counters", PATIENCE, || {
            let status = b.status();
            let peers = status["peers"].as_array().expect("a list");
            let active = peers.iter().filter(|peer| {
                let count = |key: &str| peer[key].as_u64().unwrap_or(0);
                peer["suite"] == suite.name() && count("rx_packets") > 0 && count("tx_packets") > 0
            });
            active.count() == CLIENTS as usize
        });
        // A client whose initiation was answered late has asked again, and may still have spoken by the first answer: that
        // index may be unknown.
        let drops = b.drops();
        assert!(
            drops
                .get("unknown_index")
                .is_none_or(|&count| count <= u64::from(CLIENTS)),
            "{drops:?}"
        );
        for reason in ["forged", "replayed", "too_old", "bad_source", "bad_inner"] {
            assert!(!drops.contains_key(reason), "{drops:?}");
        }
    }
}
