//! Runs of datagrams from one engine to another over the loopback.

use super::lab::{BOTH, Kind, Station, as_udp, in_namespace, wait_until_gone, with_each_engine};
use crate::path::gso::Slots as _;
use crate::proto::endpoint::{Endpoint, Local};
use crate::sys::address::Family;
use crate::sys::clock;
use crate::sys::engine::{Event, SendRun, Wait};
use crate::sys::udp::{self, UdpOptions};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

/// Byte `at` of datagram `number`.
fn pattern(number: u32, at: usize) -> u8 {
    (number as usize).wrapping_mul(31).wrapping_add(at.wrapping_mul(7)) as u8
}

/// Queues a run of `count` datagrams of `segment` bytes, the last of `last`, numbered from `number`. False without a slot.
fn queue(from: &mut Station, to: Endpoint, number: u32, count: u32, segment: usize, last: usize) -> bool {
    let Some(mut slot) = from.engine.slots().acquire() else {
        return false;
    };
    let len = (count as usize - 1) * segment + last;
    for (index, datagram) in slot.bytes_mut()[..len].chunks_mut(segment).enumerate() {
        let number = number + u32::try_from(index).unwrap();
        datagram
            .iter_mut()
            .enumerate()
            .for_each(|(at, byte)| *byte = pattern(number, at));
    }
    from.engine.send(SendRun {
        slot,
        len,
        segment,
        count,
        to,
        tos: 0xb8,
        lane_port: false,
        tag: u64::from(number),
    });
    true
}

/// Sends `runs` runs of `count` datagrams from `a` to `b` at `ip` and compares all that arrives.
fn transfer(a: &mut Station, b: &mut Station, ip: IpAddr, runs: u32, count: u32) {
    const SEGMENT: usize = 1452;
    const LAST: usize = 99;
    let to = Endpoint {
        remote: SocketAddr::new(ip, b.port),
        local: None,
    };
    let from = Endpoint {
        remote: SocketAddr::new(ip, a.port),
        local: Some(Local {
            address: ip,
            interface: 1,
        }),
    };
    let (mut started, mut sent, mut arrived) = (0, 0, 0);
    let (began, began_unix_ns) = (Instant::now(), clock::unix_ns());
    let mut events = Vec::new();
    while arrived < runs * count || sent < runs {
        assert!(
            began.elapsed() < Duration::from_secs(10),
            "{sent} runs sent, {arrived} datagrams arrived"
        );
        // A few runs ahead of the receiver: the socket's buffer may be small where it can't be forced.
        while started < runs
            && started * count < arrived + 4 * count
            && queue(a, to, started * count, count, SEGMENT, LAST)
        {
            started += 1;
        }
        a.engine.turn(Wait::Now, &mut events).unwrap();
        for event in events.drain(..) {
            let Event::Sent(outcome) = event else {
                panic!("only sends were asked for")
            };
            assert_eq!((outcome.result, outcome.taken, outcome.count), (Ok(()), count, count));
            assert_eq!(outcome.tag, u64::from(sent * count), "runs end in order");
            sent += 1;
        }
        b.engine.turn(Wait::For(Duration::from_millis(1)), &mut events).unwrap();
        for mut buffer in events.drain(..).filter_map(as_udp) {
            let (received, bytes) = b.engine.datagrams(&mut buffer);
            assert_eq!((received.from, received.tos), (from, 0xb8));
            assert!(received.received_unix_ns >= began_unix_ns && received.received_unix_ns <= clock::unix_ns());
            for datagram in bytes.chunks(received.segment) {
                let expected = if (arrived + 1) % count == 0 { LAST } else { SEGMENT };
                assert_eq!(datagram.len(), expected, "datagram {arrived}");
                assert!(
                    datagram
                        .iter()
                        .enumerate()
                        .all(|(at, &byte)| byte == pattern(arrived, at))
                );
                arrived += 1;
            }
        }
    }
}

#[test]
fn runs_arrive_whole_and_in_order_between_any_two_engines() {
    for sender in BOTH {
        for receiver in BOTH {
            if crate::sys::probe::io_uring().is_err() && (sender, receiver) != (Kind::Plain, Kind::Plain) {
                eprintln!("skipped {sender:?} to {receiver:?}: no io_uring");
                continue;
            }
            in_namespace(move || {
                let (mut a, mut b) = (Station::new(sender), Station::new(receiver));
                transfer(&mut a, &mut b, "127.0.0.1".parse().unwrap(), 300, 40);
                transfer(&mut a, &mut b, "::1".parse().unwrap(), 300, 40);
                transfer(&mut b, &mut a, "127.0.0.1".parse().unwrap(), 10, 1 + 44);
                let counters = b.engine.counters();
                assert_eq!((counters.udp_discarded, counters.udp_recv_errors), (0, 0));
            });
        }
    }
}

#[test]
fn a_run_takes_one_receive_with_gro_and_many_without() {
    with_each_engine(|kind| {
        let mut a = Station::new(kind);
        for (gro, receives) in [(true, 1), (false, 20)] {
            let mut b = Station::with(
                kind,
                UdpOptions {
                    gro,
                    ..UdpOptions::default()
                },
            );
            let to = Endpoint {
                remote: SocketAddr::from(([127, 0, 0, 1], b.port)),
                local: None,
            };
            assert!(queue(&mut a, to, 0, 20, 1000, 1000));
            a.wait_sent();
            let mut events = Vec::new();
            b.turn_until(&mut events, |events| events.len() >= receives);
            assert_eq!(events.len(), receives);
            assert!(
                events
                    .into_iter()
                    .filter_map(as_udp)
                    .all(|buffer| buffer.received().segment == 1000)
            );
        }
    });
}

#[test]
fn without_gso_a_run_still_arrives() {
    with_each_engine(|kind| {
        let mut a = Station::with(
            kind,
            UdpOptions {
                gso: false,
                ..UdpOptions::default()
            },
        );
        let mut b = Station::new(kind);
        transfer(&mut a, &mut b, "127.0.0.1".parse().unwrap(), 20, 45);
        assert_eq!(a.engine.counters().runs_unsegmented, 20);
    });
}

#[test]
fn a_machine_without_ipv6_has_sockets_too() {
    with_each_engine(|kind| {
        let v4_only = || {
            let group = udp::bind_family(Family::V4, 0, 1, UdpOptions::default()).unwrap();
            assert!(!group.dual_stack);
            Station::on(kind, group)
        };
        let (mut a, mut b) = (v4_only(), v4_only());
        transfer(&mut a, &mut b, "127.0.0.1".parse().unwrap(), 20, 40);
        let source = Some(Local {
            address: "127.0.0.9".parse().unwrap(),
            interface: 1,
        });
        let to = Endpoint {
            remote: SocketAddr::from(([127, 0, 0, 1], b.port)),
            local: source,
        };
        assert!(queue(&mut a, to, 0, 2, 500, 500));
        assert_eq!(a.wait_sent().result, Ok(()));
        let mut events = Vec::new();
        b.turn_until(&mut events, |events| !events.is_empty());
        let from = events.into_iter().find_map(as_udp).unwrap().received().from;
        assert_eq!(from.remote, SocketAddr::from(([127, 0, 0, 9], a.port)));
        // An IPv6 peer is out of reach, for that socket.
        let to = Endpoint {
            remote: SocketAddr::new("::1".parse().unwrap(), b.port),
            local: None,
        };
        assert!(queue(&mut a, to, 0, 2, 500, 500));
        let sent = a.wait_sent();
        assert_eq!((sent.result, sent.taken), (Err(libc::EAFNOSUPPORT), 0));
    });
}

#[test]
fn a_single_datagram_may_be_as_large_as_udp_allows() {
    with_each_engine(|kind| {
        let (mut a, mut b) = (Station::new(kind), Station::new(kind));
        for (ip, len) in [("127.0.0.1", 65_507), ("::1", 65_527)] {
            let to = Endpoint {
                remote: SocketAddr::new(ip.parse().unwrap(), b.port),
                local: None,
            };
            assert!(queue(&mut a, to, 0, 1, len, len));
            assert_eq!(a.wait_sent().result, Ok(()), "{ip}");
            let mut events = Vec::new();
            b.turn_until(&mut events, |events| !events.is_empty());
            let mut buffer = events.into_iter().find_map(as_udp).unwrap();
            assert_eq!(b.engine.datagrams(&mut buffer).1.len(), len);
        }
    });
}

#[test]
fn datagrams_wait_in_the_kernel_while_the_worker_has_all_buffers() {
    with_each_engine(|kind| {
        const DATAGRAMS: u16 = 500;
        let buffers = if kind == Kind::Uring { 64 } else { 32 };
        let mut b = Station::with(
            kind,
            UdpOptions {
                gro: false,
                ..UdpOptions::default()
            },
        );
        let sender = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        for number in 0..DATAGRAMS {
            sender.send_to(&number.to_le_bytes(), ("127.0.0.1", b.port)).unwrap();
        }
        let mut held = Vec::new();
        b.turn_until(&mut held, |events| events.len() == buffers);
        // Nothing to receive into: the engine must neither lose datagrams nor run hot.
        let turns = b.engine.counters().turns;
        let started = Instant::now();
        while started.elapsed() < Duration::from_millis(50) {
            b.engine.turn(Wait::For(Duration::from_millis(10)), &mut held).unwrap();
        }
        assert_eq!(held.len(), buffers);
        assert!(b.engine.counters().turns - turns < 20, "the wait was not a wait");
        let mut arrived = Vec::new();
        while arrived.len() < usize::from(DATAGRAMS) {
            for mut buffer in held.drain(..).filter_map(as_udp) {
                arrived.extend(
                    b.engine
                        .datagrams(&mut buffer)
                        .1
                        .first_chunk()
                        .copied()
                        .map(u16::from_le_bytes),
                );
            }
            b.engine.turn(Wait::For(Duration::from_secs(1)), &mut held).unwrap();
        }
        let expected: Vec<u16> = (0..DATAGRAMS).collect();
        assert_eq!(arrived, expected);
    });
}

#[test]
fn a_turn_waits_as_told() {
    with_each_engine(|kind| {
        let mut station = Station::new(kind);
        let mut events = Vec::new();
        let mut turn = |station: &mut Station, wait| {
            let started = Instant::now();
            station.engine.turn(wait, &mut events).unwrap();
            (started.elapsed(), std::mem::take(&mut events))
        };
        let pause = Duration::from_millis(30);
        let batch = |timeout| Wait::Batch {
            events: 16,
            window: Duration::from_millis(1),
            timeout,
        };
        assert!(turn(&mut station, Wait::Now).0 < pause);
        for wait in [Wait::For(pause), batch(Some(pause))] {
            let (elapsed, events) = turn(&mut station, wait);
            assert!(elapsed >= pause && events.is_empty(), "{wait:?} took {elapsed:?}");
        }
        for wait in [
            Wait::Block,
            Wait::For(Duration::from_secs(5)),
            batch(None),
            batch(Some(Duration::from_secs(5))),
        ] {
            let waker = station.waker.clone();
            let ringer = std::thread::spawn(move || {
                std::thread::sleep(pause);
                waker.wake();
            });
            let (elapsed, events) = turn(&mut station, wait);
            ringer.join().unwrap();
            assert!(
                elapsed >= pause / 2 && elapsed < Duration::from_secs(4),
                "{wait:?} took {elapsed:?}"
            );
            assert!(matches!(events[..], [Event::Woken]), "{wait:?}");
        }
        // A ring before the wait ends it as well.
        station.waker.wake();
        assert!(matches!(turn(&mut station, Wait::Block).1[..], [Event::Woken]));
    });
}

#[test]
fn an_engine_may_go_while_its_buffers_are_held_and_its_requests_run() {
    with_each_engine(|kind| {
        let (mut a, mut b) = (Station::new(kind), Station::new(kind));
        let to = Endpoint {
            remote: SocketAddr::from(([127, 0, 0, 1], b.port)),
            local: None,
        };
        let slot = a.engine.slots().acquire().unwrap();
        for number in 0..100 {
            assert!(queue(&mut a, to, number, 1, 500, 500));
        }
        a.engine.turn(Wait::Now, &mut Vec::new()).unwrap();
        let mut events = Vec::new();
        b.turn_until(&mut events, |events| events.len() >= 3);
        // Queued and never submitted.
        assert!(queue(&mut a, to, 0, 1, 500, 500));
        let (a_device, b_device) = (a.device, b.device);
        drop((a.engine, b.engine));
        assert_eq!(slot.bytes().len(), crate::sys::engine::SLOT_BYTES);
        assert!(
            events
                .into_iter()
                .filter_map(as_udp)
                .all(|buffer| buffer.received().segment >= 500)
        );
        // Nothing keeps the interfaces alive: not even a ring that the kernel has yet to take apart.
        wait_until_gone(&[&a_device, &b_device]);
    });
}
