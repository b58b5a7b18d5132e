//! A day in the life of a hub and its spokes, through the data path and the protocol that the daemon has too, in both suites
//! and between a peer that may use either and one that knows WireGuard's alone.
//!
//! A working hour, silence, any weather, roaming, restarts, suspends, wrong clocks, floods and used-up keys. What must hold
//! always is checked by `world` in every step.

#[path = "../../../../tests/sim/network.rs"]
mod network;
mod world;

use std::time::Duration;

use network::{Network, Rng};
use world::{Link, World, home};

use crate::config::Suite::{Auto, Native, WireGuard};
use crate::proto::limits::{
    COOKIE_SECRET_MAX_AGE, DEAD_PEER_TIMEOUT, NATIVE_REJECT_AFTER_MESSAGES, NATIVE_REKEY_AFTER_MESSAGES,
    REJECT_AFTER_MESSAGES, REKEY_AFTER_MESSAGES, REKEY_AFTER_TIME, REKEY_TIMEOUT, ZERO_KEYS_AFTER,
};
use crate::proto::ratelimit::TOTAL;
use crate::proto::{Suite, Time};

const DAY: Duration = Duration::from_secs(86_400);
const HOUR: Duration = Duration::from_secs(3_600);
const SECOND: Duration = Duration::from_secs(1);

const LINKS: [Link; 4] = [
    Link {
        suites: [Native, Native],
        keepalive: Some(Duration::from_secs(25)),
    },
    Link {
        suites: [WireGuard, WireGuard],
        keepalive: None,
    },
    Link {
        suites: [Auto, WireGuard],
        keepalive: None,
    },
    Link {
        suites: [Auto, Auto],
        keepalive: None,
    },
];

#[test]
fn a_tunnel_lives_through_a_day_with_all_its_troubles() {
    let seeds = if std::env::var_os("RINGWAY_LONG").is_some() {
        20
    } else {
        1
    };
    for seed in 1..=seeds {
        let mut world = World::new(&LINKS, seed);
        recovers(&mut world);
        a_working_hour(&mut world);
        floods(&mut world);
        any_weather(&mut world, Time::default() + (DAY - HOUR));
        silence(&mut world, Time::default() + DAY);
        world.check_totals();
    }
}

/// On an open network packets pass both ways of every link within the time that it takes to notice a loss and to shake hands.
fn recovers(world: &mut World) {
    world.network = Network::GOOD;
    let limit = DEAD_PEER_TIMEOUT + 4 * REKEY_TIMEOUT;
    let start = world.time;
    let mut missing: Vec<(usize, usize, Vec<u64>)> = world
        .spokes()
        .flat_map(|spoke| [(0, spoke, Vec::new()), (spoke, 0, Vec::new())])
        .collect();
    while !missing.is_empty() {
        assert!(
            world.time - start <= limit,
            "no packet after {limit:?} of good network: {missing:?}"
        );
        for (from, to, numbers) in &mut missing {
            numbers.push(world.send(*from, *to));
        }
        world.run(SECOND / 2);
        missing.retain(|(_, _, numbers)| !numbers.iter().any(|&number| world.delivered(number)));
    }
}

/// Steady traffic on a good network: all of it arrives, and keys are renewed as often as they should, no more.
fn a_working_hour(world: &mut World) {
    world.chapter = "the working hour".to_owned();
    let before: Vec<u64> = world.ends.iter().map(|end| end.connected).collect();
    let pause = 3 * SECOND;
    for _ in 0..HOUR.as_secs() / pause.as_secs() {
        let numbers: Vec<u64> = world
            .spokes()
            .flat_map(|spoke| [world.send(0, spoke), world.send(spoke, 0)])
            .collect();
        world.run(pause);
        assert!(numbers.iter().all(|&number| world.delivered(number)));
    }
    for spoke in world.spokes() {
        let renewals = world.ends[spoke].connected - before[spoke];
        let most = HOUR.as_secs() / REKEY_AFTER_TIME.as_secs();
        assert!(
            (most - 2..=most + 2).contains(&renewals),
            "spoke {spoke}: {renewals} handshakes"
        );
    }
}

/// An attacker repeats initiations from everywhere while spokes need new keys: with cookies they get them. The first flood
/// meets ends without cookies, the second those of the first, the third comes after the secret behind them has changed.
fn floods(world: &mut World) {
    for (round, pause) in [Duration::ZERO, COOKIE_SECRET_MAX_AGE / 2, COOKIE_SECRET_MAX_AGE * 2]
        .into_iter()
        .enumerate()
    {
        world.chapter = format!("flood {round}");
        world.run(pause);
        recovers(world);
        let replies = world.cookies[0];
        for spoke in world.spokes() {
            skip_to(world, spoke, reject_after);
        }
        let initiation = world.initiation.clone().expect("spokes have asked for keys");
        attack(world, &initiation, 1 + u64::from(TOTAL.burst));
        let start = world.time;
        let mut missing: Vec<usize> = world.spokes().collect();
        while !missing.is_empty() {
            assert!(
                world.time - start <= 3 * REKEY_TIMEOUT,
                "no new keys in a flood: {missing:?}"
            );
            let numbers: Vec<(usize, u64)> = missing.iter().map(|&spoke| (spoke, world.send(spoke, 0))).collect();
            // More often than a token comes back.
            for _ in 0..100 {
                world.run(Duration::from_millis(3));
                attack(world, &initiation, 2);
            }
            let arrived = |spoke| {
                numbers
                    .iter()
                    .any(|&(from, number)| from == spoke && world.delivered(number))
            };
            missing.retain(|&spoke| !arrived(spoke));
        }
        // Cookies of the round before are good for less than their secret's time.
        assert_eq!(world.cookies[0] > replies, round != 1, "cookie replies to spokes");
    }
    assert!(world.cookies[1] >= 3 * LINKS.len() as u64, "{:?}", world.cookies);
}

/// Repeats an initiation, which has been answered, from anywhere.
fn attack(world: &mut World, initiation: &[u8], times: u64) {
    for _ in 0..times {
        let source = [10, 0, 0, 0].map(|byte: u8| byte + world.rng.below(200) as u8);
        world.inject((source, 1024).into(), initiation.to_vec());
    }
}

/// Every trouble that a network, a machine or a person makes, one after the other; each is over when packets pass again.
fn any_weather(world: &mut World, end: Time) {
    let mut rng = Rng(world.seed);
    while world.time < end {
        world.network = Network::weather(&mut rng);
        talk(world, &mut rng);
        let spoke = 1 + rng.below(LINKS.len() as u64) as usize;
        let anyone = rng.below(1 + LINKS.len() as u64) as usize;
        let what = rng.below(10);
        world.chapter = format!("trouble {what} of spoke {spoke} or end {anyone}");
        match what {
            0 | 1 => world.run(SECOND * rng.below(6_000) as u32),
            2 => world.ends[anyone].wall_offset += rng.below(20_000) as i64 - 10_000,
            3 => {
                let host = rng.below(250) as u8 + 1;
                world.ends[spoke].address = ([198, 51, spoke as u8, host], 1_024 + rng.below(60_000) as u16).into();
            }
            // The hub too may move, and comes back, where restarted spokes look for it.
            4 => {
                world.ends[0].address = ([203, 0, 113, 7], 4_500).into();
                recovers(world);
                world.ends[0].address = home(0);
            }
            5 => world.restart(spoke),
            6 => world.restart(0),
            7 => {
                world.suspend(anyone, SECOND * (1 + rng.below(1_000) as u32));
                talk(world, &mut rng);
                world.wake(anyone);
            }
            8 => skip_to(world, anyone, |suite| {
                let rekey_after = match suite {
                    Suite::Native => NATIVE_REKEY_AFTER_MESSAGES,
                    Suite::WireGuard => REKEY_AFTER_MESSAGES,
                };
                rekey_after - 2
            }),
            _ => skip_to(world, anyone, |suite| reject_after(suite) - 2),
        }
        recovers(world);
    }
}

/// One stretch of traffic: who sends, how often, for how long.
fn talk(world: &mut World, rng: &mut Rng) {
    let links: Vec<(usize, usize)> = world
        .spokes()
        .flat_map(|spoke| [(0, spoke), (spoke, 0)])
        .filter(|_| rng.chance(0.6))
        .collect();
    let pause = Duration::from_millis(rng.one_of(&[20, 700, 9_000, 40_000]));
    for _ in 0..2 + rng.below(20) {
        for &(from, to) in &links {
            world.send(from, to);
        }
        world.run(pause);
    }
}

fn reject_after(suite: Suite) -> u64 {
    match suite {
        Suite::Native => NATIVE_REJECT_AFTER_MESSAGES,
        Suite::WireGuard => REJECT_AFTER_MESSAGES,
    }
}

/// An end's sealing keys go on from that record, as if so many had been sent.
fn skip_to(world: &mut World, end: usize, counter: impl Fn(Suite) -> u64) {
    let end = &mut world.ends[end];
    for &peer in &end.peers {
        if let Some(suite) = end.core.peer(peer).and_then(|info| info.suite) {
            end.core.forwarder.skip_to(peer, counter(suite));
        }
    }
}

/// Nobody has anything to say: keys are forgotten, and nothing is left to wait for but the keepalives that were asked for.
fn silence(world: &mut World, end: Time) {
    world.chapter = "the silence".to_owned();
    // What was said last may go unanswered and lead to one more session.
    world.run(2 * ZERO_KEYS_AFTER);
    let before: Vec<[u64; 2]> = world.ends.iter().map(|end| [end.wakes, end.events]).collect();
    let seen = |world: &World, end: usize| {
        let (now, before) = (&world.ends[end], before[end]);
        [now.wakes - before[0], now.events - before[1]]
    };
    let span = end - world.time;
    world.run(span);
    for (at, link) in LINKS.iter().enumerate() {
        let spoke = 1 + at;
        let core = &world.ends[spoke].core;
        match link.keepalive {
            None => {
                assert_eq!(seen(world, spoke), [0, 0], "spoke {spoke}");
                assert_eq!(
                    (core.poll_timeout(), core.device.held().indices),
                    (None, 0),
                    "spoke {spoke}"
                );
                assert_eq!(core.forwarder.held(), (0, 0), "spoke {spoke}");
            }
            Some(interval) => {
                let keepalives = span.as_secs() / interval.as_secs();
                let [wakes, _] = seen(world, spoke);
                assert!(
                    (keepalives..=4 * keepalives).contains(&wakes),
                    "{wakes} wake-ups, {keepalives} keepalives"
                );
            }
        }
    }
    assert_eq!(
        world.ends[0].core.device.held().deadlines,
        1,
        "of the spoke that keeps its way open"
    );
    recovers(world);
}
