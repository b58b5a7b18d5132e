//! Days in the life of a tunnel, in virtual time: traffic and silence, loss, reordering, duplicates, cuts, clock jumps,
//! roaming and restarts. What must hold always is checked by `sim` in every step.

mod sim;

use std::time::Duration;

use ringway::proto::SuiteChoice;
use ringway::proto::limits::{DEAD_PEER_TIMEOUT, REKEY_TIMEOUT};
use sim::{Network, Rng, Setup, World};

const SUITES: [[SuiteChoice; 2]; 4] = [
    [SuiteChoice::Native; 2],
    [SuiteChoice::WireGuard; 2],
    [SuiteChoice::Auto; 2],
    [SuiteChoice::Auto, SuiteChoice::WireGuard],
];

fn setups(suites: [SuiteChoice; 2]) -> [Setup; 2] {
    let mut setups = Setup::pair(SuiteChoice::Auto);
    for (end, setup) in setups.iter_mut().enumerate() {
        setup.suite = suites[end];
        setup.lanes = [3, 2][end];
        setup.psk = Some([0x77; 32]);
    }
    setups
}

/// One stretch of traffic: who sends, how often, for how long.
fn talk(world: &mut World, rng: &mut Rng) {
    let senders = [rng.chance(0.7), rng.chance(0.5)];
    let pause = Duration::from_millis([20, 700, 9_000, 40_000][rng.below(4) as usize]);
    let packets = 2 + rng.below(20);
    for _ in 0..packets {
        for end in (0..2).filter(|&end| senders[end]) {
            world.send(end);
        }
        world.run(pause);
    }
}

/// After any trouble: on a good network, data flows both ways within the time that it takes to notice, or fewer.
fn recovers(world: &mut World, what: &str) {
    world.network = Network::GOOD;
    let limit = DEAD_PEER_TIMEOUT + 4 * REKEY_TIMEOUT;
    let start = world.time;
    let payloads = [world.send(0), world.send(1)];
    let mut probes = vec![payloads];
    while world.time - start <= limit {
        world.run(Duration::from_millis(500));
        let arrived = |end: usize| probes.iter().any(|probe| world.delivered(1 - end, probe[end]));
        if arrived(0) && arrived(1) {
            return;
        }
        let payloads = [world.send(0), world.send(1)];
        probes.push(payloads);
    }
    panic!("no data after {limit:?} of good network: {what}");
}

#[test]
fn a_tunnel_lives_for_days_through_any_weather() {
    for (number, suites) in SUITES.into_iter().enumerate() {
        let seed = 100 + number as u64;
        let mut rng = Rng(seed);
        let setups = setups(suites);
        let mut world = World::new(&setups, seed);
        world.sampling = (number % 2 == 1).then_some(Duration::from_secs(1));
        let days = world.time + Duration::from_secs(2 * 86_400);
        while world.time < days {
            world.network = Network::weather(&mut rng);
            talk(&mut world, &mut rng);
            match rng.below(8) {
                0 => world.run(Duration::from_secs(rng.below(2_000))),
                1 => world.ends[rng.below(2) as usize].wall_offset += rng.below(20_000) as i64 - 10_000,
                2 => {
                    let address = [198, 51, 100, rng.below(250) as u8 + 1];
                    world.ends[0].address = (address, 1024 + rng.below(60_000) as u16).into();
                }
                _ => {}
            }
            let at = world.time;
            recovers(&mut world, &format!("suites {suites:?}, seed {seed}, {at:?}"));
        }
        let delivered: Vec<usize> = world.ends.iter().map(|end| end.delivered.len()).collect();
        assert!(delivered.iter().all(|&count| count > 3_000), "{delivered:?}");
    }
}

#[test]
fn restarts_on_either_side_are_survived() {
    for suites in SUITES {
        let setups = setups(suites);
        let mut world = World::new(&setups, 5);
        for round in 0..6 {
            recovers(&mut world, "before a restart");
            let end = round % 2;
            world.restart(end, &setups[end], 1_000 + round as u64);
            recovers(&mut world, &format!("{suites:?}, restart {round} of end {end}"));
        }
    }
}

#[test]
fn an_idle_tunnel_falls_silent_and_wakes_at_once() {
    for suites in SUITES {
        let mut world = World::new(&setups(suites), 9);
        recovers(&mut world, "at first");
        world.run_seconds(600);
        for end in &mut world.ends {
            assert_eq!(end.session_count(), 0);
            assert_eq!(end.device.poll_timeout(), None, "nothing is left to wait for");
            end.seen.clear();
        }
        world.run_seconds(86_400);
        assert!(world.ends.iter().all(|end| end.seen.is_empty()));
        let payload = world.send(1);
        world.run_seconds(1);
        assert!(world.delivered(0, payload), "{suites:?}");
    }
}

#[test]
fn every_packet_of_a_good_network_arrives_in_spite_of_rekeys() {
    for suites in SUITES {
        let mut world = World::new(&setups(suites), 11);
        recovers(&mut world, "at first");
        for _ in 0..4_000 {
            let payloads = [world.send(0), world.send(1)];
            world.run(Duration::from_millis(100));
            assert!(
                world.delivered(1, payloads[0]) && world.delivered(0, payloads[1]),
                "{suites:?}"
            );
        }
    }
}
