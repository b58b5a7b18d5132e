//! Single rules of the life cycle, each in a world of its own (WireGuard paper, sections 5 and 6).
//!
//! | constant | covered by |
//! |---|---|
//! | all values | `the_constants_are_those_of_the_paper` |
//! | REKEY_AFTER_MESSAGES, REJECT_AFTER_MESSAGES | `proto::session`: `either_end_rekeys_by_count_but_only_the_initiator_by_age`, `a_session_ends_with_its_record_count` |
//! | REKEY_AFTER_TIME | `only_the_initiator_rekeys_by_age_when_it_sends` |
//! | REKEY_AFTER_TIME_RECEIVING | `an_initiator_that_only_receives_rekeys_before_the_end` |
//! | REJECT_AFTER_TIME | `a_session_is_erased_when_its_time_is_up`; `proto::session`: `a_session_ends_with_its_time` |
//! | ZERO_KEYS_AFTER | `nothing_secret_and_no_timer_is_left_of_a_peer_that_went_silent` |
//! | REKEY_ATTEMPT_TIME, REKEY_TIMEOUT, REKEY_TIMEOUT_JITTER_MAX | `an_unanswered_initiation_is_repeated_with_jitter_and_given_up_after_rekey_attempt_time`, `new_packets_keep_an_attempt_alive`, `many_wishes_make_one_initiation_per_rekey_timeout` |
//! | KEEPALIVE_TIMEOUT | `received_data_is_answered_by_a_keepalive_and_a_keepalive_by_nothing`, `a_stream_of_data_is_answered_by_a_keepalive_every_ten_seconds` |
//! | DEAD_PEER_TIMEOUT | `a_dead_peer_is_looked_for_fifteen_seconds_after_the_first_unanswered_packet` |
//! | INITIATIONS_PER_SECOND | `one_peers_initiations_are_consumed_at_most_fifty_times_a_second` |
//! | COOKIE_SECRET_MAX_AGE, COOKIE_SECRET_LATENCY | `proto::cookie` |
//! | AUTO_FALLBACK | `auto_falls_back_to_wireguard_after_a_quarter_of_a_second_and_remembers` |
//! | REPLAY_WINDOW_BITS | `proto::replay` |

mod sim;

use std::net::SocketAddr;
use std::time::Duration;

use ringway::proto::limits::{
    AUTO_FALLBACK, COOKIE_SECRET_MAX_AGE, DEAD_PEER_TIMEOUT, INITIATIONS_PER_SECOND, KEEPALIVE_TIMEOUT,
    REJECT_AFTER_MESSAGES, REJECT_AFTER_TIME, REKEY_AFTER_MESSAGES, REKEY_AFTER_TIME, REKEY_AFTER_TIME_RECEIVING,
    REKEY_ATTEMPT_TIME, REKEY_TIMEOUT, REKEY_TIMEOUT_JITTER_MAX, ZERO_KEYS_AFTER,
};
use ringway::proto::{Endpoint, PeerConfig, PeerUpdate, Rejected, Suite, SuiteChoice, Time, Timestamps};
use sim::{Network, Seen, Setup, World, home};
use x25519_dalek::StaticSecret;
use zeroize::Zeroizing;

const WG_INITIATION: u8 = 0x01;
const NATIVE_INITIATION: u8 = 0x81;
const NATIVE_RESPONSE: u8 = 0x82;
const NATIVE_COOKIE_REPLY: u8 = 0x83;
const NATIVE_DATA: u8 = 0x84;

const SINGLE: [(SuiteChoice, Suite); 2] = [
    (SuiteChoice::Native, Suite::Native),
    (SuiteChoice::WireGuard, Suite::WireGuard),
];

fn done(suite: Suite, initiator: bool, remote_lanes: u8) -> Seen {
    Seen::Done {
        suite,
        initiator,
        remote_lanes,
    }
}

/// A pair with a session that end 0 began just now.
fn connected(choice: SuiteChoice) -> World {
    let mut world = World::pair(choice);
    let payload = world.send(0);
    world.run_seconds(1);
    assert!(world.delivered(1, payload));
    assert_eq!(world.ends[0].suite(), world.ends[1].suite());
    world
}

/// The spans between points in time.
fn gaps(times: &[Time]) -> Vec<Duration> {
    times.windows(2).map(|pair| pair[1] - pair[0]).collect()
}

fn initiations(world: &World, end: usize) -> usize {
    world.ends[end].sent(WG_INITIATION) + world.ends[end].sent(NATIVE_INITIATION)
}

#[test]
fn a_device_may_live_on_any_thread() {
    fn sendable<T: Send>() {}
    sendable::<ringway::proto::Device>();
}

// Handshakes.

#[test]
fn a_waiting_packet_makes_a_session_in_one_round_trip() {
    for (choice, suite) in SINGLE {
        let mut world = World::pair(choice);
        let payload = world.send(0);
        assert_eq!(initiations(&world, 0), 1);
        world.run(Duration::from_millis(29));
        assert!(!world.delivered(1, payload));
        world.run(Duration::from_millis(1));
        assert!(world.delivered(1, payload), "10 ms there, 10 ms back, 10 ms there");
        let lanes = if suite == Suite::Native { 2 } else { 1 };
        assert_eq!(world.ends[0].saw(&done(suite, true, lanes)), 1);
        assert_eq!(world.ends[1].saw(&done(suite, false, lanes)), 1);
        assert_eq!(
            world.ends[0].saw(&Seen::Keepalive),
            0,
            "the packet confirms; no keepalive is needed"
        );
        let info = world.ends[0].device.peer(world.ends[0].peer).unwrap();
        assert_eq!((info.suite, info.last_handshake.is_some()), (Some(suite), true));
        assert_eq!(world.flows(), [true, true]);
    }
}

#[test]
fn a_responder_sends_nothing_before_the_initiator_has_confirmed() {
    let mut world = World::pair(SuiteChoice::Native);
    world.with_device(0, |device, peer, now| device.want_session(peer, now));
    world.run(Duration::from_millis(10));
    assert_eq!(world.ends[1].sent(NATIVE_RESPONSE), 1);
    let payload = world.send(1);
    assert_eq!(world.ends[1].sent(NATIVE_DATA), 0);
    world.run(Duration::from_millis(10));
    assert_eq!(
        world.ends[0].saw(&Seen::Keepalive),
        1,
        "nothing waits, so a keepalive confirms"
    );
    world.run(Duration::from_millis(20));
    assert_eq!(world.ends[1].saw(&Seen::Promoted), 1);
    assert!(
        world.delivered(0, payload),
        "what waited goes out with the confirmation"
    );
}

#[test]
fn each_direction_has_its_senders_lanes() {
    let mut setups = Setup::pair(SuiteChoice::Native);
    (setups[0].lanes, setups[1].lanes) = (3, 255);
    let mut world = World::new(&setups, 1);
    assert_eq!(world.flows(), [true, true]);
    assert_eq!(world.ends[0].lanes(), Some((3, 255)));
    assert_eq!(world.ends[1].lanes(), Some((255, 3)));
    let indices = world.ends[0].indices();
    for (lane, index) in indices.iter().enumerate() {
        assert_eq!((index & 0xff, index >> 8), (lane as u32, indices[0] >> 8));
    }
    for _ in 0..255 {
        assert_eq!(world.flows(), [true, true]);
    }
}

#[test]
fn a_wireguard_index_names_a_worker() {
    let mut setups = Setup::pair(SuiteChoice::WireGuard);
    setups[0].lanes = 3;
    let mut world = World::new(&setups, 1);
    let mut workers = [0; 3];
    for _ in 0..6 {
        world.run(REJECT_AFTER_TIME);
        assert_eq!(world.flows(), [true, true]);
        let [index] = world.ends[0].indices()[..] else {
            panic!("one index")
        };
        workers[(index & 0xff) as usize] += 1;
    }
    assert_eq!(workers, [2; 3], "in turn");
}

#[test]
fn simultaneous_initiations_lead_to_sessions_both_ways_at_once() {
    for choice in SuiteChoice::ALL {
        let mut world = World::pair(choice);
        assert_eq!(world.flows(), [true, true], "{choice}");
        assert_eq!([initiations(&world, 0), initiations(&world, 1)], [1, 1]);
        world.run_seconds(30);
        assert_eq!(
            [initiations(&world, 0), initiations(&world, 1)],
            [1, 1],
            "and none is repeated"
        );
        assert_eq!(world.flows(), [true, true]);
    }
}

#[test]
fn a_wrong_preshared_key_passes_nothing_and_a_right_one_does_at_once() {
    for (choice, _) in SINGLE {
        let mut setups = Setup::pair(choice);
        setups[0].psk = Some([1; 32]);
        let mut world = World::new(&setups, 1);
        assert_eq!(world.flows(), [false, false]);
        world.run_seconds(20);
        assert!(world.ends[0].saw(&Seen::Rejected(Rejected::BadHandshake)) > 0);
        let update = PeerUpdate {
            preshared_key: Some(None),
            ..PeerUpdate::default()
        };
        world.with_device(0, |device, peer, now| device.update_peer(now, peer, update));
        world.run(REKEY_TIMEOUT + REKEY_TIMEOUT_JITTER_MAX);
        assert_eq!(world.flows(), [true, true]);
    }
}

// Retries.

#[test]
fn an_unanswered_initiation_is_repeated_with_jitter_and_given_up_after_rekey_attempt_time() {
    let mut world = World::pair(SuiteChoice::Native);
    world.network.cut = [true, true];
    world.send(0);
    world.run_seconds(200);
    let gaps = gaps(&world.ends[0].sent_at(NATIVE_INITIATION));
    assert!(
        gaps.iter()
            .all(|&gap| gap >= REKEY_TIMEOUT && gap <= REKEY_TIMEOUT + REKEY_TIMEOUT_JITTER_MAX)
    );
    assert!(gaps.windows(2).any(|pair| pair[0] != pair[1]), "no jitter");
    assert_eq!(gaps.len() + 1, 18);
    let given_up = world.ends[0]
        .seen
        .iter()
        .find(|(_, seen)| *seen == Seen::GivenUp)
        .unwrap()
        .0;
    assert!(given_up - Time::from_nanos(1_000_000_000) >= REKEY_ATTEMPT_TIME);
    assert_eq!(world.ends[0].device.poll_timeout(), None);
    world.network = Network::GOOD;
    assert_eq!(world.flows(), [true, true], "the next packet tries again");
}

#[test]
fn new_packets_keep_an_attempt_alive() {
    let mut world = World::pair(SuiteChoice::Native);
    world.network.cut = [true, true];
    for _ in 0..10 {
        world.send(0);
        world.run_seconds(60);
    }
    assert_eq!(world.ends[0].saw(&Seen::GivenUp), 0);
}

#[test]
fn without_an_endpoint_a_wish_is_given_up_at_once() {
    let mut setups = Setup::pair(SuiteChoice::Auto);
    setups[0].knows_endpoint = false;
    let mut world = World::new(&setups, 1);
    world.send(0);
    assert_eq!(world.ends[0].saw(&Seen::GivenUp), 1);
    world.send(1);
    world.run_seconds(1);
    assert_eq!(
        world.flows(),
        [true, true],
        "once the other end has spoken, its address is known"
    );
}

#[test]
fn many_wishes_make_one_initiation_per_rekey_timeout() {
    let mut world = connected(SuiteChoice::Native);
    let before = initiations(&world, 0);
    for _ in 0..1_000 {
        world.with_device(0, |device, peer, now| device.want_session(peer, now));
        world.run(Duration::from_millis(10));
    }
    let after = initiations(&world, 0) - before;
    assert!((1..=2).contains(&after), "{after} in ten seconds");
}

// Choosing a suite.

#[test]
fn two_autos_use_the_native_suite_and_never_ask_in_wireguards() {
    let mut world = connected(SuiteChoice::Auto);
    assert_eq!(world.ends[0].suite(), Some(Suite::Native));
    for _ in 0..100 {
        world.run_seconds(10);
        assert_eq!(world.flows(), [true, true]);
    }
    assert_eq!(
        [world.ends[0].sent(WG_INITIATION), world.ends[1].sent(WG_INITIATION)],
        [0, 0]
    );
}

fn auto_and_wireguard() -> [Setup; 2] {
    let mut setups = Setup::pair(SuiteChoice::Auto);
    setups[1].suite = SuiteChoice::WireGuard;
    setups
}

#[test]
fn auto_falls_back_to_wireguard_after_a_quarter_of_a_second_and_remembers() {
    let mut world = World::new(&auto_and_wireguard(), 1);
    assert_eq!(world.flows(), [true, true]);
    assert_eq!(world.ends[0].suite(), Some(Suite::WireGuard));
    let [native, wireguard] = [NATIVE_INITIATION, WG_INITIATION].map(|kind| world.ends[0].sent_at(kind));
    // End 1 asks too, in its own suite, so end 0 need not have come to ask in that.
    assert!(wireguard.iter().all(|&at| at - native[0] == AUTO_FALLBACK));

    world.run(REJECT_AFTER_TIME);
    world.ends[0].seen.clear();
    let payload = world.send(0);
    world.run(Duration::from_millis(30));
    assert!(
        world.delivered(1, payload),
        "remembered: nobody waits for the fallback again"
    );
    assert_eq!(world.ends[0].sent(NATIVE_INITIATION), 0);
}

#[test]
fn auto_asks_both_ways_when_what_it_remembers_stops_working() {
    let mut world = connected(SuiteChoice::Auto);
    let mut setups = auto_and_wireguard();
    setups[1].knows_endpoint = false;
    world.restart(1, &setups[1], 99);
    world.send(0);
    world.run(DEAD_PEER_TIMEOUT + 2 * REKEY_TIMEOUT);
    assert_eq!(world.flows(), [true, true]);
    assert_eq!(world.ends[0].suite(), Some(Suite::WireGuard));
}

#[test]
fn auto_stays_native_when_the_way_is_longer_than_the_fallback() {
    let mut world = World::pair(SuiteChoice::Auto);
    world.network = Network::with_delay(Duration::from_millis(400));
    let payload = world.send(0);
    world.run_seconds(4);
    assert!(world.delivered(1, payload));
    assert_eq!(world.ends[0].sent(WG_INITIATION), 1, "it did ask");
    assert_eq!(
        world.ends[1].saw(&Seen::Rejected(Rejected::Unexpected)),
        1,
        "and was not answered"
    );
    assert_eq!([world.ends[0].suite(), world.ends[1].suite()], [Some(Suite::Native); 2]);
}

#[test]
fn one_lost_packet_does_not_cost_the_native_suite_for_long() {
    let mut world = World::pair(SuiteChoice::Auto);
    world.network.cut = [true, true];
    let payload = world.send(0);
    world.run(Duration::from_millis(100));
    world.network = Network::GOOD;
    world.run_seconds(1);
    assert!(world.delivered(1, payload));
    assert_eq!(world.ends[0].suite(), Some(Suite::WireGuard));
    for _ in 0..13 {
        world.run_seconds(9);
        assert_eq!(world.flows(), [true, true]);
    }
    assert_eq!(
        [world.ends[0].suite(), world.ends[1].suite()],
        [Some(Suite::Native); 2],
        "after the next rekey"
    );
}

#[test]
fn ends_that_may_not_use_a_common_suite_pass_nothing() {
    let mut setups = Setup::pair(SuiteChoice::Native);
    setups[1].suite = SuiteChoice::WireGuard;
    let mut world = World::new(&setups, 1);
    assert_eq!(world.flows(), [false, false]);
    assert_eq!(world.ends[1].saw(&Seen::Rejected(Rejected::Unexpected)), 1);
    assert_eq!(world.ends[0].session_count() + world.ends[1].session_count(), 0);
}

#[test]
fn a_change_of_the_suite_takes_effect_at_once() {
    let mut world = connected(SuiteChoice::Auto);
    for end in 0..2 {
        let update = PeerUpdate {
            suite: Some(SuiteChoice::WireGuard),
            ..PeerUpdate::default()
        };
        world.with_device(end, |device, peer, now| device.update_peer(now, peer, update));
        assert_eq!(world.ends[end].session_count(), 0);
    }
    world.send(0);
    world.run(REKEY_TIMEOUT);
    assert_eq!(world.flows(), [true, true]);
    assert_eq!(world.ends[0].suite(), Some(Suite::WireGuard));
}

// Rekeying and ageing.

#[test]
fn only_the_initiator_rekeys_by_age_when_it_sends() {
    for (choice, _) in SINGLE {
        let mut world = connected(choice);
        for _ in 0..23 {
            world.run_seconds(5);
            world.send(1);
            world.send(0);
        }
        assert_eq!(initiations(&world, 0), 1, "after 116 seconds");
        world.run_seconds(4);
        world.send(1);
        world.run_seconds(1);
        assert_eq!(initiations(&world, 0), 1, "a packet received does not do it");
        assert_eq!(world.flows(), [true, true]);
        assert_eq!([initiations(&world, 0), initiations(&world, 1)], [2, 0]);
    }
}

#[test]
fn an_initiator_that_only_receives_rekeys_before_the_end() {
    let mut world = connected(SuiteChoice::Native);
    let start = world.time;
    // One packet a second, answered by keepalives of the initiator alone.
    while initiations(&world, 0) == 1 && world.time - start < REJECT_AFTER_TIME {
        world.send(1);
        world.run_seconds(1);
    }
    let asked = world.ends[0].sent_at(NATIVE_INITIATION)[1];
    let age = asked - start + Duration::from_secs(1);
    assert!(
        age >= REKEY_AFTER_TIME && age <= REKEY_AFTER_TIME_RECEIVING + Duration::from_secs(1),
        "{age:?}"
    );
    assert_eq!(initiations(&world, 1), 0);
}

#[test]
fn a_session_is_erased_when_its_time_is_up() {
    let mut world = connected(SuiteChoice::Native);
    world.run(REJECT_AFTER_TIME - Duration::from_secs(2));
    assert_eq!([world.ends[0].session_count(), world.ends[1].session_count()], [1, 1]);
    world.run_seconds(2);
    assert_eq!([world.ends[0].session_count(), world.ends[1].session_count()], [0, 0]);
    assert_eq!(world.flows(), [true, true]);
}

#[test]
fn nothing_secret_and_no_timer_is_left_of_a_peer_that_went_silent() {
    for (choice, _) in SINGLE {
        let mut world = connected(choice);
        world.network.cut = [true, true];
        world.send(0);
        world.run(ZERO_KEYS_AFTER + REKEY_ATTEMPT_TIME);
        for end in &world.ends {
            assert_eq!((end.session_count(), end.device.poll_timeout()), (0, None));
        }
    }
}

#[test]
fn the_constants_are_those_of_the_paper() {
    let seconds = Duration::from_secs;
    assert_eq!(REKEY_AFTER_MESSAGES, 1 << 60);
    assert_eq!(REJECT_AFTER_MESSAGES, u64::MAX - (1 << 13));
    assert_eq!([REKEY_AFTER_TIME, REJECT_AFTER_TIME], [seconds(120), seconds(180)]);
    assert_eq!([REKEY_ATTEMPT_TIME, REKEY_TIMEOUT], [seconds(90), seconds(5)]);
    assert_eq!(KEEPALIVE_TIMEOUT, seconds(10));
    assert_eq!(
        [REKEY_AFTER_TIME_RECEIVING, ZERO_KEYS_AFTER],
        [seconds(165), seconds(540)]
    );
    assert_eq!(COOKIE_SECRET_MAX_AGE, seconds(120));
}

// Keepalives and dead peers.

#[test]
fn received_data_is_answered_by_a_keepalive_and_a_keepalive_by_nothing() {
    let mut world = connected(SuiteChoice::Native);
    let received = world.time;
    world.run_seconds(60);
    assert_eq!(world.ends[1].saw(&Seen::Keepalive), 1);
    assert_eq!(world.ends[0].saw(&Seen::Keepalive), 0);
    let sent = world.ends[1]
        .seen
        .iter()
        .find(|(_, seen)| *seen == Seen::Keepalive)
        .unwrap()
        .0;
    assert!(sent - received <= KEEPALIVE_TIMEOUT);
}

#[test]
fn a_stream_of_data_is_answered_by_a_keepalive_every_ten_seconds() {
    let mut world = connected(SuiteChoice::Native);
    for _ in 0..100 {
        world.send(0);
        world.run_seconds(1);
    }
    let keepalives = world.ends[1].saw(&Seen::Keepalive);
    assert!((9..=10).contains(&keepalives), "{keepalives}");
    assert_eq!(initiations(&world, 0), 1, "so the peer never seems dead");
}

#[test]
fn a_dead_peer_is_looked_for_fifteen_seconds_after_the_first_unanswered_packet() {
    let mut world = connected(SuiteChoice::Native);
    world.run_seconds(20);
    world.network.cut = [true, true];
    let start = world.time;
    for _ in 0..20 {
        world.send(0);
        world.run_seconds(1);
    }
    let asked = world.ends[0].sent_at(NATIVE_INITIATION)[1] - start;
    assert!(
        asked >= DEAD_PEER_TIMEOUT && asked <= DEAD_PEER_TIMEOUT + REKEY_TIMEOUT_JITTER_MAX,
        "{asked:?}"
    );
}

#[test]
fn after_a_conversation_comes_one_keepalive_and_no_handshake_however_the_data_plane_tells() {
    for sampling in [None, Some(Duration::from_millis(250)), Some(Duration::from_secs(2))] {
        let mut world = World::pair(SuiteChoice::Native);
        world.sampling = sampling;
        for _ in 0..50 {
            world.send(0);
            world.run(Duration::from_millis(11));
            world.send(1); // the answer
            world.run(Duration::from_millis(89));
        }
        world.run_seconds(100);
        assert_eq!(
            [initiations(&world, 0), initiations(&world, 1)],
            [1, 0],
            "sampled every {sampling:?}"
        );
        assert_eq!(
            [world.ends[0].saw(&Seen::Keepalive), world.ends[1].saw(&Seen::Keepalive)],
            [1, 0]
        );
    }
}

#[test]
fn a_persistent_keepalive_begins_at_once_and_goes_on_for_ever() {
    let mut setups = Setup::pair(SuiteChoice::Native);
    setups[0].keepalive = Some(Duration::from_secs(25));
    setups[1].knows_endpoint = false;
    let mut world = World::new(&setups, 1);
    world.run_seconds(1);
    assert_eq!(world.ends[0].session_count(), 1);
    world.run_seconds(3_600);
    let sent = world.ends[0].sent_at(NATIVE_DATA);
    assert!(
        gaps(&sent).iter().all(|&gap| gap <= Duration::from_secs(25)),
        "the NAT would close"
    );
    assert_eq!(world.flows(), [true, true], "the way back is open");

    world.network.cut = [true, true];
    world.run_seconds(1_000);
    world.network = Network::GOOD;
    world.run_seconds(26);
    assert_eq!(world.flows(), [true, true], "given-up attempts do not end it");

    let update = PeerUpdate {
        persistent_keepalive: Some(None),
        ..PeerUpdate::default()
    };
    world.with_device(0, |device, peer, now| device.update_peer(now, peer, update));
    world.run(REJECT_AFTER_TIME * 3);
    world.ends[0].seen.clear();
    world.run_seconds(3_600);
    assert!(world.ends[0].seen.is_empty());
}

// Addresses.

#[test]
fn the_endpoint_follows_authentic_packets_only() {
    let mut world = connected(SuiteChoice::Native);
    world.ends[0].address = "203.0.113.9:4242".parse().unwrap();
    world.send(0);
    world.run_seconds(1);
    let remote = |world: &World| {
        world.ends[1]
            .device
            .peer(world.ends[1].peer)
            .unwrap()
            .endpoint
            .unwrap()
            .remote
    };
    assert_eq!(remote(&world), world.ends[0].address);
    assert_eq!(world.flows(), [true, true]);

    let [attacker, home] = ["198.51.100.66:1".parse().unwrap(), world.ends[0].address];
    world.keep_wire = true;
    world.flows();
    for flight in world.wire.clone() {
        let end = usize::from(flight.to == world.ends[1].address);
        world.inject(end, attacker, &flight.bytes).ok();
        let mut forged = flight.bytes;
        *forged.last_mut().unwrap() ^= 1;
        world.inject(end, attacker, &forged).ok();
    }
    assert_eq!(remote(&world), home);
}

#[test]
fn a_repeated_initiation_gives_up_our_own_address() {
    let mut world = connected(SuiteChoice::Native);
    let local = ringway::proto::Local {
        address: home(0).ip(),
        interface: 3,
    };
    let endpoint = Endpoint {
        remote: home(1),
        local: Some(local),
    };
    world.with_device(0, |device, peer, _| device.roamed(peer, endpoint));
    assert_eq!(world.ends[0].endpoint, Some(endpoint));
    world.network.cut = [true, true];
    world.send(0);
    world.run(DEAD_PEER_TIMEOUT + REKEY_TIMEOUT);
    assert_eq!(world.ends[0].endpoint, Some(Endpoint::new(home(1))));
}

#[test]
fn an_address_of_ours_that_was_refused_is_not_used_until_the_peer_moves_or_the_route_is_back() {
    let mut world = connected(SuiteChoice::Native);
    let local = |interface: u32| {
        Some(ringway::proto::Local {
            address: home(0).ip(),
            interface,
        })
    };
    let at = |remote, local| Endpoint { remote, local };
    let [wifi, cable] = [local(3), local(4)];
    let hear = |world: &mut World, endpoint| {
        world.with_device(0, |device, peer, _| device.roamed(peer, endpoint));
        world.ends[0].endpoint
    };
    assert_eq!(hear(&mut world, at(home(1), wifi)), Some(at(home(1), wifi)));
    world.with_device(0, |device, peer, _| device.refuse_source(peer, wifi));
    assert_eq!(world.ends[0].endpoint, Some(at(home(1), None)));
    assert_eq!(
        hear(&mut world, at(home(1), wifi)),
        Some(at(home(1), None)),
        "what was on its way"
    );
    assert_eq!(hear(&mut world, at(home(1), cable)), Some(at(home(1), cable)));
    world.with_device(0, |device, peer, _| device.refuse_source(peer, cable));
    assert_eq!(
        hear(&mut world, at(home(1), wifi)),
        Some(at(home(1), wifi)),
        "one is refused at a time"
    );
    world.with_device(0, |device, peer, _| device.refuse_source(peer, None));
    assert_eq!(hear(&mut world, at(home(1), cable)), Some(at(home(1), cable)));
    world.with_device(0, |device, peer, _| device.refuse_source(peer, cable));
    let elsewhere = "203.0.113.9:4242".parse().unwrap();
    assert_eq!(
        hear(&mut world, at(elsewhere, cable)),
        Some(at(elsewhere, cable)),
        "another way"
    );
}

// Addresses of names.

fn name_says(world: &mut World, end: usize, addresses: &[SocketAddr]) {
    world.with_device(end, |device, peer, now| {
        device.set_candidates(now, peer, addresses.to_vec())
    });
}

/// Where end 0 sent its initiations.
fn asked_at(world: &World) -> Vec<SocketAddr> {
    let is_initiation = |kind: u8| kind == NATIVE_INITIATION || kind == WG_INITIATION;
    let from_0 = world.wire.iter().filter(|flight| flight.from == world.ends[0].address);
    from_0
        .filter(|flight| is_initiation(flight.bytes[0]))
        .map(|flight| flight.to)
        .collect()
}

#[test]
fn an_unanswered_peer_is_asked_at_all_addresses_of_its_name_in_turn() {
    for (choice, _) in SINGLE {
        let mut world = World::pair(choice);
        world.keep_wire = true;
        let [nobody, moved] = ["203.0.113.1:7", "[2001:db8::9]:9"].map(|text| text.parse().unwrap());
        world.ends[1].address = moved;
        name_says(&mut world, 0, &[home(1), nobody, moved]);
        let payload = world.send(0);
        world.run(2 * (REKEY_TIMEOUT + REKEY_TIMEOUT_JITTER_MAX) + Duration::from_secs(1));
        assert_eq!(asked_at(&world), [home(1), nobody, moved]);
        assert_eq!(world.ends[0].saw(&Seen::Unanswered), 2);
        assert!(world.delivered(1, payload), "data follows the answer");
        assert_eq!(world.ends[0].endpoint.unwrap().remote, moved);
    }
}

#[test]
fn addresses_are_tried_round_and_round() {
    let mut world = World::pair(SuiteChoice::Native);
    world.keep_wire = true;
    world.network.cut = [true, true];
    let other: SocketAddr = "203.0.113.1:7".parse().unwrap();
    name_says(&mut world, 0, &[other, home(1)]);
    world.send(0);
    world.run(4 * (REKEY_TIMEOUT + REKEY_TIMEOUT_JITTER_MAX));
    assert_eq!(asked_at(&world)[..4], [home(1), other, home(1), other]);
}

#[test]
fn an_address_that_the_name_says_anew_is_asked_next() {
    let mut world = World::pair(SuiteChoice::Native);
    world.keep_wire = true;
    let [nobody, moved] = ["203.0.113.1:7", "203.0.113.2:7"].map(|text| text.parse().unwrap());
    name_says(&mut world, 0, &[home(1), nobody]);
    world.ends[1].address = moved;
    world.send(0);
    world.run(Duration::from_secs(1));
    name_says(&mut world, 0, &[home(1), nobody, moved]);
    world.run(REKEY_TIMEOUT + REKEY_TIMEOUT_JITTER_MAX);
    assert_eq!(asked_at(&world), [home(1), moved]);
    assert_eq!(world.flows(), [true, true]);
}

#[test]
fn a_lost_rekey_looks_elsewhere_while_data_stays_where_it_is() {
    let mut world = connected(SuiteChoice::Native);
    world.keep_wire = true;
    let other: SocketAddr = "203.0.113.1:7".parse().unwrap();
    name_says(&mut world, 0, &[home(1), other]);
    world.run(REKEY_AFTER_TIME);
    world.network.cut = [true, true];
    world.send(0);
    world.network.cut = [false, false];
    world.run(REKEY_TIMEOUT + REKEY_TIMEOUT_JITTER_MAX);
    assert_eq!(asked_at(&world), [home(1), other]);
    assert_eq!(world.flows(), [true, true], "on the session that is there");
    world.run(REKEY_TIMEOUT + REKEY_TIMEOUT_JITTER_MAX);
    assert_eq!(asked_at(&world), [home(1), other, home(1)]);
    assert_eq!(world.ends[0].saw(&done(Suite::Native, true, 2)), 2);
}

#[test]
fn where_a_peer_was_heard_counts_more_than_its_name() {
    let mut world = connected(SuiteChoice::Native);
    let moved: SocketAddr = "203.0.113.2:7".parse().unwrap();
    world.ends[1].address = moved;
    world.send(1);
    world.run_seconds(1);
    name_says(&mut world, 0, &[home(1)]);
    world.run(REJECT_AFTER_TIME);
    world.keep_wire = true;
    assert_eq!(world.flows(), [true, true]);
    assert_eq!(asked_at(&world), [moved]);
}

#[test]
fn a_first_address_opens_the_way_at_once_where_keepalives_want_it() {
    let mut setups = Setup::pair(SuiteChoice::Native);
    setups[0].knows_endpoint = false;
    setups[1].knows_endpoint = false;
    setups[0].keepalive = Some(Duration::from_secs(25));
    let mut world = World::new(&setups, 1);
    world.run_seconds(7);
    assert_eq!(initiations(&world, 0), 0);
    name_says(&mut world, 0, &[home(1)]);
    world.run_seconds(1);
    assert_eq!(world.flows(), [true, true]);
}

// Replays, clocks, restarts.

#[test]
fn replayed_handshake_messages_are_refused() {
    for (choice, suite) in SINGLE {
        let mut world = World::pair(choice);
        world.keep_wire = true;
        world.flows();
        world.run_seconds(10);
        let native = if suite == Suite::Native { 0x80 } else { 0 };
        for flight in world.wire.clone() {
            let end = usize::from(flight.to == world.ends[1].address);
            let verdict = world.inject(end, flight.from, &flight.bytes);
            match flight.bytes[0] & !native {
                1 => assert_eq!(verdict, Err(Rejected::Replayed)),
                2 => assert_eq!(verdict, Err(Rejected::Unexpected)),
                _ => {}
            }
        }
        assert_eq!(world.flows(), [true, true]);
    }
}

#[test]
fn a_wall_clock_that_goes_back_does_not_stop_handshakes() {
    let mut world = connected(SuiteChoice::WireGuard);
    for offset in [-10_000, 50_000, -1_000_000, 0] {
        world.ends[0].wall_offset = offset;
        world.run(REJECT_AFTER_TIME);
        assert_eq!(world.flows(), [true, true], "offset {offset} s");
    }
}

#[test]
fn kept_timestamps_survive_a_restart() {
    let mut world = World::pair(SuiteChoice::Native);
    world.keep_wire = true;
    world.send(0);
    world.run_seconds(1);
    let initiation = world.wire[0].clone();
    let kept: Vec<Timestamps> = world
        .ends
        .iter()
        .map(|end| end.device.timestamps(end.peer).unwrap())
        .collect();
    assert_eq!(kept[0].sent, kept[1].received);

    let setups = Setup::pair(SuiteChoice::Native);
    world.restart(1, &setups[1], 50);
    world.with_device(1, |device, peer, _| device.restore_timestamps(peer, kept[1]));
    assert_eq!(
        world.inject(1, initiation.from, &initiation.bytes),
        Err(Rejected::Replayed)
    );

    // A restart with a clock that lost its time: without what was kept the initiations would look old.
    world.restart(0, &setups[0], 51);
    world.ends[0].wall_offset = -1_000_000;
    world.with_device(0, |device, peer, _| device.restore_timestamps(peer, kept[0]));
    world.send(0);
    world.run_seconds(1);
    assert_eq!(world.flows(), [true, true]);
}

// Changes at run time.

#[test]
fn a_changed_preshared_key_is_used_at_once_and_without_a_gap() {
    let mut world = connected(SuiteChoice::Native);
    world.run_seconds(10);
    for end in 0..2 {
        let update = PeerUpdate {
            preshared_key: Some(Some(Zeroizing::new([9; 32]))),
            ..PeerUpdate::default()
        };
        world.with_device(end, |device, peer, now| device.update_peer(now, peer, update));
        assert_eq!(world.flows(), [true, true]);
    }
    world.run(REKEY_TIMEOUT + REKEY_TIMEOUT_JITTER_MAX);
    assert!(
        world
            .ends
            .iter()
            .all(|end| end.sent(NATIVE_INITIATION) + end.sent(NATIVE_RESPONSE) >= 2)
    );
    assert_eq!(world.flows(), [true, true]);
}

#[test]
fn a_removed_peer_leaves_nothing_and_may_come_back() {
    let mut world = connected(SuiteChoice::Native);
    let public_key = world.ends[0].device.peer(world.ends[0].peer).unwrap().public_key;
    assert!(world.with_device(0, |device, peer, _| device.remove_peer(peer)));
    assert!(!world.with_device(0, |device, peer, _| device.remove_peer(peer)));
    assert_eq!(world.ends[0].session_count(), 0);
    assert_eq!(world.ends[0].device.poll_timeout(), None);
    assert_eq!(world.ends[0].device.find_peer(&public_key), None);
    world.send(1);
    world.run(DEAD_PEER_TIMEOUT + REKEY_TIMEOUT);
    assert!(world.ends[0].saw(&Seen::Rejected(Rejected::UnknownPeer)) > 0);
}

#[test]
fn a_new_private_key_ends_all_sessions() {
    let mut world = connected(SuiteChoice::Native);
    let secret = StaticSecret::from([42; 32]);
    let public = x25519_dalek::PublicKey::from(&secret).to_bytes();
    world.with_device(0, |device, _, _| device.set_private_key(secret));
    assert_eq!(world.ends[0].device.public_key(), public);
    assert_eq!(world.ends[0].session_count(), 0);
    world.run_seconds(10);
    assert_eq!(world.flows(), [false, false], "the other end does not know the new key");
}

#[test]
fn a_handshake_that_is_waited_for_begins_anew_with_a_new_key() {
    // As where a key comes after the tunnel is up: what was sent before it reached nobody.
    for keepalive in [None, Some(Duration::from_secs(25))] {
        let mut world = World::pair(SuiteChoice::WireGuard);
        world.network.cut = [true, true];
        let payload = match keepalive {
            None => Some(world.send(0)),
            Some(_) => {
                let update = PeerUpdate {
                    persistent_keepalive: Some(keepalive),
                    ..PeerUpdate::default()
                };
                world.with_device(0, |device, peer, now| device.update_peer(now, peer, update));
                None
            }
        };
        world.run(Duration::from_millis(100));
        assert_eq!(initiations(&world, 0), 1);
        world.network.cut = [false, false];
        let secret = StaticSecret::from([42; 32]);
        let public_key = x25519_dalek::PublicKey::from(&secret).to_bytes();
        world.with_device(1, |device, _, now| {
            let config = PeerConfig {
                public_key,
                preshared_key: None,
                endpoint: None,
                persistent_keepalive: None,
                suite: SuiteChoice::WireGuard,
            };
            device.add_peer(now.mono, config).expect("a new one")
        });
        world.with_device(0, |device, _, _| device.set_private_key(secret));
        world.run(Duration::from_millis(50));
        assert_eq!(initiations(&world, 0), 2, "at once");
        assert_eq!(world.ends[0].saw(&done(Suite::WireGuard, true, 1)), 1);
        if let Some(payload) = payload {
            assert!(world.delivered(1, payload));
        }
    }
}

#[test]
fn one_peers_initiations_are_consumed_at_most_fifty_times_a_second() {
    // Three initiations, each newer than the one before, as a peer that restarts again and again would send.
    let setups = Setup::pair(SuiteChoice::Native);
    let mut world = World::new(&setups, 1);
    world.keep_wire = true;
    world.network.cut = [true, true];
    for restart in 0..3 {
        world.restart(0, &setups[0], 60 + restart);
        world.ends[0].wall_offset = restart as i64;
        world.send(0);
    }
    let sent: Vec<Vec<u8>> = world.wire.iter().map(|flight| flight.bytes.clone()).collect();
    assert_eq!(world.inject(1, home(0), &sent[0]), Ok(()));
    assert_eq!(world.inject(1, home(0), &sent[1]), Err(Rejected::RateLimited));
    world.run(Duration::from_secs(1) / INITIATIONS_PER_SECOND);
    assert_eq!(world.inject(1, home(0), &sent[2]), Ok(()));
}

// Load.

#[test]
fn a_flood_from_one_source_has_to_show_cookies_and_others_do_not_notice() {
    let mut world = World::pair(SuiteChoice::Native);
    world.keep_wire = true;
    world.send(0);
    let bogus = world.wire[0].bytes.clone();
    world.run_seconds(1);
    let attacker = "198.51.100.1:1".parse().unwrap();
    let before = world.ends[1].device.diffie_hellmans();
    let verdicts: Vec<_> = (0..5_000)
        .map(|_| world.inject(1, attacker, &bogus).unwrap_err())
        .collect();
    let work = world.ends[1].device.diffie_hellmans() - before;
    assert_eq!(
        verdicts
            .iter()
            .filter(|&&verdict| verdict == Rejected::Replayed)
            .count(),
        500
    );
    assert_eq!(verdicts.last(), Some(&Rejected::CookieDemanded));
    // Who got a reply gets a limited number of further ones.
    assert_eq!(world.ends[1].sent(NATIVE_COOKIE_REPLY), 1 + 1_000);
    assert_eq!(work, 500, "one operation each: the static one is remembered");

    world.run(REJECT_AFTER_TIME);
    for _ in 0..5_000 {
        world.inject(1, attacker, &bogus).unwrap_err();
    }
    let payload = world.send(0);
    world.run(Duration::from_millis(30));
    assert!(world.delivered(1, payload), "at once");
}

#[test]
fn under_a_flood_from_everywhere_an_honest_peer_gets_through_with_a_cookie() {
    for choice in SuiteChoice::ALL {
        let mut world = World::pair(choice);
        world.keep_wire = true;
        world.send(0);
        let bogus = world.wire[0].bytes.clone();
        // Three times what is admitted, and so dense that no token is left for whoever comes in between.
        world.network = Network::with_delay(Duration::from_micros(10_500));
        let flood = |world: &mut World, seconds: u32| {
            for _ in 0..seconds * 1_000 {
                for _ in 0..3 {
                    let source = std::net::Ipv4Addr::from(world.rng.next() as u32);
                    world.inject(1, (source, 9).into(), &bogus).ok();
                }
                world.run(Duration::from_millis(1));
            }
        };
        flood(&mut world, 1);
        world.restart(0, &Setup::pair(choice)[0], 3);
        let endpoint = world.ends[1].endpoint;
        let payload = world.send(0);
        flood(&mut world, 1);
        let cookie_replies = world.ends[0]
            .seen
            .iter()
            .filter(|(_, seen)| matches!(seen, Seen::Received { kind } if kind & 0x7f == 3));
        assert!(cookie_replies.count() > 0);
        assert_eq!(world.ends[1].endpoint, endpoint, "cookie replies move nothing");
        assert!(!world.delivered(1, payload));
        flood(&mut world, 6);
        assert!(world.delivered(1, payload), "{choice}");
        assert_eq!(world.flows(), [true, true]);
    }
}

#[test]
fn an_unknown_key_costs_one_diffie_hellman_operation_and_a_wrong_mac1_none() {
    for (choice, _) in SINGLE {
        let mut setups = Setup::pair(choice);
        setups[0].key = [0x66; 32];
        let mut world = World::new(&setups, 1);
        world.keep_wire = true;
        world.send(0);
        world.run_seconds(1);
        assert_eq!(world.ends[1].saw(&Seen::Rejected(Rejected::UnknownPeer)), 1);
        assert_eq!(world.ends[1].device.diffie_hellmans(), 1);
        assert_eq!(world.ends[1].seen.len(), 1, "and is answered by nothing");
        let mut bytes = world.wire[0].bytes.clone();
        bytes[20] ^= 1;
        assert_eq!(world.inject(1, home(0), &bytes), Err(Rejected::BadMac1));
        assert_eq!(world.ends[1].device.diffie_hellmans(), 1);
    }
}
