//! What a handshake costs: per second and core, both suites, each role by itself; and what a bogus one costs.

use std::hint::black_box;
use std::time::Duration;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use ringway::crypto::Choice;
use ringway::proto::{Action, Device, DeviceConfig, Endpoint, Now, PeerConfig, PeerId, Suite, SuiteChoice, Time};
use x25519_dalek::{PublicKey, StaticSecret};

const HERE: ([u8; 4], u16) = ([192, 0, 2, 1], 1);
const THERE: ([u8; 4], u16) = ([192, 0, 2, 2], 2);

/// One end of a pair: its device, and its peer.
struct End(Device, PeerId);

fn end(key: u8, peer: u8, suite: SuiteChoice, seed: u64) -> End {
    let mut state = seed;
    let random = move |bytes: &mut [u8]| {
        for byte in bytes {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            *byte = (state >> 56) as u8;
        }
    };
    let private_key = StaticSecret::from([key; 32]);
    let mut device = Device::new(
        DeviceConfig {
            private_key,
            lanes: 2,
            crypto: Choice::Auto,
        },
        random,
    );
    let peer = device.add_peer(
        Time::default(),
        PeerConfig {
            public_key: PublicKey::from(&StaticSecret::from([peer; 32])).to_bytes(),
            preshared_key: None,
            endpoint: Some(THERE.into()),
            persistent_keepalive: None,
            suite,
        },
    );
    End(device, peer.expect("the first peer"))
}

fn at(second: u64) -> Now {
    Now {
        mono: Time::from_nanos(second * 1_000_000_000),
        unix: Duration::from_secs(1_700_000_000 + second),
    }
}

/// Drains a device; returns the message that it sent.
fn message(device: &mut Device) -> Vec<u8> {
    let mut message = None;
    while let Some(action) = device.poll_action() {
        if let Action::Transmit { datagram, .. } = action {
            message = Some(datagram);
        }
    }
    message.expect("a message")
}

fn initiate(End(device, peer): &mut End, now: Now) -> Vec<u8> {
    device.handle_timeout(now);
    while device.poll_action().is_some() {}
    device.want_session(*peer, now);
    message(device)
}

fn receive(End(device, _): &mut End, now: Now, datagram: &[u8]) {
    let from = Endpoint::new(HERE.into());
    device
        .handle_datagram(now, from, black_box(datagram))
        .expect("a genuine message");
}

fn bench(c: &mut Criterion) {
    for (suite, choice) in [
        (Suite::Native, SuiteChoice::Native),
        (Suite::WireGuard, SuiteChoice::WireGuard),
    ] {
        let mut group = c.benchmark_group(format!("handshake/{suite}"));
        group.throughput(Throughput::Elements(1));
        let (mut a, mut b) = (end(1, 2, choice, 3), end(2, 1, choice, 4));
        // Far enough apart that every wish begins a handshake at once, and nothing else is due.
        let mut second = 0;
        let mut next = move || {
            second += 1_000;
            at(second)
        };

        group.bench_function("initiator", |bencher| {
            bencher.iter_custom(|rounds| {
                let mut spent = Duration::ZERO;
                for _ in 0..rounds {
                    let now = next();
                    let start = std::time::Instant::now();
                    let initiation = initiate(&mut a, now);
                    spent += start.elapsed();
                    receive(&mut b, now, &initiation);
                    let response = message(&mut b.0);
                    let start = std::time::Instant::now();
                    receive(&mut a, now, &response);
                    while a.0.poll_action().is_some() {}
                    spent += start.elapsed();
                    b.0.handle_timeout(now);
                    while b.0.poll_action().is_some() {}
                }
                spent
            });
        });
        let mut second = 1 << 32;
        let mut next = move || {
            second += 1_000;
            at(second)
        };
        group.bench_function("responder", |bencher| {
            bencher.iter_custom(|rounds| {
                let mut spent = Duration::ZERO;
                for _ in 0..rounds {
                    let now = next();
                    let initiation = initiate(&mut a, now);
                    b.0.handle_timeout(now);
                    while b.0.poll_action().is_some() {}
                    let start = std::time::Instant::now();
                    receive(&mut b, now, &initiation);
                    let response = message(&mut b.0);
                    spent += start.elapsed();
                    receive(&mut a, now, &response);
                    while a.0.poll_action().is_some() {}
                }
                spent
            });
        });
        let bogus = initiate(&mut end(9, 2, choice, 5), next());
        group.bench_function("refused: unknown key", |bencher| {
            // Time moves on, so that no cookie is demanded.
            bencher.iter(|| {
                b.0.handle_datagram(next(), Endpoint::new(HERE.into()), black_box(&bogus))
            });
        });
        let mut forged = bogus.clone();
        forged[9] ^= 1;
        group.bench_function("refused: mac1", |bencher| {
            bencher.iter(|| {
                b.0.handle_datagram(next(), Endpoint::new(HERE.into()), black_box(&forged))
            });
        });
        group.bench_function("refused: cookie demanded", |bencher| {
            let now = next();
            bencher.iter(|| {
                let refused = b.0.handle_datagram(now, Endpoint::new(HERE.into()), black_box(&bogus));
                while b.0.poll_action().is_some() {}
                refused
            });
        });
        group.finish();
    }
}

criterion_group!(benches, bench);
criterion_main!(benches);
