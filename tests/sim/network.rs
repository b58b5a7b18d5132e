//! What is between the ends of a simulated tunnel: a network that loses, delays, reorders and duplicates as it is told.
#![allow(dead_code, unreachable_pub)] // every test program uses its own part of this

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use super::Time;

/// splitmix64: enough randomness for tests, the same in every run.
#[derive(Clone)]
pub struct Rng(pub u64);

impl Rng {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    pub fn one_of<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len() as u64) as usize]
    }

    pub fn chance(&mut self, probability: f64) -> bool {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64 <= probability && probability > 0.0
    }

    pub fn fill(&mut self, bytes: &mut [u8]) {
        bytes
            .chunks_mut(8)
            .for_each(|chunk| chunk.copy_from_slice(&self.next().to_le_bytes()[..chunk.len()]));
    }
}

/// How the network treats datagrams.
#[derive(Debug, Clone, Copy)]
pub struct Network {
    pub loss: f64,
    pub duplicates: f64,
    pub delay_min: Duration,
    pub delay_max: Duration,
    /// Nothing gets through, by direction: from end 0, from the others.
    pub cut: [bool; 2],
}

impl Network {
    pub const GOOD: Network = Network {
        loss: 0.0,
        duplicates: 0.0,
        delay_min: Duration::from_millis(10),
        delay_max: Duration::from_millis(10),
        cut: [false; 2],
    };

    pub fn with_delay(delay: Duration) -> Network {
        Network {
            delay_min: delay,
            delay_max: delay,
            ..Network::GOOD
        }
    }

    /// A network with a different fault each time.
    pub fn weather(rng: &mut Rng) -> Network {
        let milliseconds = |ms| Duration::from_millis(ms);
        let delay_min = milliseconds(rng.one_of(&[1, 20, 300]));
        Network {
            loss: rng.one_of(&[0.0, 0.02, 0.3]),
            duplicates: rng.one_of(&[0.0, 0.0, 0.5]),
            delay_min,
            delay_max: delay_min + milliseconds(rng.one_of(&[0, 5, 700])),
            cut: [rng.chance(0.05), rng.chance(0.05)],
        }
    }
}

/// A datagram on its way.
#[derive(Debug, Clone)]
pub struct Flight {
    pub from: SocketAddr,
    pub to: SocketAddr,
    pub bytes: Vec<u8>,
}

/// All datagrams on their way, in the order in which they arrive.
#[derive(Default)]
pub struct Flights {
    by_arrival: BTreeMap<(Time, u64), Flight>,
    next: u64,
}

impl Flights {
    /// Sends a datagram from end 0 (`direction` 0) or another one (1) over `network`.
    pub fn send(&mut self, now: Time, network: &Network, rng: &mut Rng, direction: usize, flight: &Flight) {
        let copies = 1 + usize::from(rng.chance(network.duplicates));
        for _ in 0..copies {
            if network.cut[direction] || rng.chance(network.loss) {
                continue;
            }
            let spread = (network.delay_max - network.delay_min).as_nanos() as u64;
            let delay = network.delay_min + Duration::from_nanos(rng.below(spread + 1));
            self.by_arrival.insert((now + delay, self.next), flight.clone());
            self.next += 1;
        }
    }

    /// When the next one arrives.
    pub fn next_arrival(&self) -> Option<Time> {
        self.by_arrival.keys().next().map(|&(at, _)| at)
    }

    /// The next one that has arrived.
    pub fn pop(&mut self, now: Time) -> Option<Flight> {
        let first = self.by_arrival.first_entry().filter(|entry| entry.key().0 <= now)?;
        Some(first.remove())
    }
}
