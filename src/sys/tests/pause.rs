//! An engine that pauses for good or for a while: what it has read comes, and what it has not read waits in the kernel.

use super::lab::{Kind, Station, with_each_engine};
use crate::sys::engine::{Event, Wait};
use std::net::{Ipv4Addr, UdpSocket as StdSocket};
use std::time::{Duration, Instant};

/// The numbers in datagrams that have arrived, in their order.
fn numbers(station: &mut Station, events: Vec<Event>) -> Vec<u32> {
    let mut found = Vec::new();
    for event in events {
        if let Event::Udp(mut buffer) = event {
            let (_, payload) = station.engine.datagrams(&mut buffer);
            let (words, rest) = payload.as_chunks::<4>();
            assert!(rest.is_empty());
            found.extend(words.iter().map(|word| u32::from_be_bytes(*word)));
        }
    }
    found
}

#[test]
fn no_datagram_is_lost_between_what_was_read_and_what_is_read_later() {
    const ROUNDS: u32 = 50;
    const EACH: u32 = 40;
    with_each_engine(|kind: Kind| {
        let mut station = Station::new(kind);
        let stranger = StdSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        stranger.connect((Ipv4Addr::LOCALHOST, station.port)).unwrap();
        let (mut arrived, mut events) = (Vec::new(), Vec::new());
        for round in 0..ROUNDS {
            for number in round * EACH..(round + 1) * EACH {
                stranger.send(&number.to_be_bytes()).unwrap();
                // In the middle of what comes.
                if number % EACH == round % EACH {
                    station.engine.turn(Wait::Now, &mut events).unwrap();
                    station.engine.pause();
                }
            }
            let began = Instant::now();
            while !station.engine.is_still() {
                assert!(began.elapsed() < Duration::from_secs(5), "round {round}");
                station
                    .engine
                    .turn(Wait::For(Duration::from_millis(1)), &mut events)
                    .unwrap();
            }
            arrived.extend(numbers(&mut station, std::mem::take(&mut events)));
            // Nothing more while it is still.
            station.engine.turn(Wait::Now, &mut events).unwrap();
            assert!(events.is_empty() && station.engine.is_still());
            station.engine.go_on();
            assert!(!station.engine.is_still());
        }
        let began = Instant::now();
        while arrived.len() < (ROUNDS * EACH) as usize {
            assert!(began.elapsed() < Duration::from_secs(5), "{} arrived", arrived.len());
            station
                .engine
                .turn(Wait::For(Duration::from_millis(100)), &mut events)
                .unwrap();
            arrived.extend(numbers(&mut station, std::mem::take(&mut events)));
        }
        assert!(arrived.iter().copied().eq(0..ROUNDS * EACH));
    });
}
