//! What the engines do when the kernel refuses to send.

use super::lab::{Station, as_udp, in_namespace, ip, with_each_engine};
use crate::path::gso::Slots as _;
use crate::proto::endpoint::{Endpoint, Local};
use crate::sys::engine::{EngineCounters, SendRun, Sent};
use crate::sys::send::Resender;
use crate::sys::udp::{self, UdpOptions};
use std::net::SocketAddr;

fn run(station: &mut Station, to: Endpoint, segment: usize, count: u32) -> SendRun {
    let mut slot = station.engine.slots().acquire().unwrap();
    let len = segment * count as usize;
    slot.bytes_mut()[..len]
        .chunks_mut(segment)
        .zip(1..)
        .for_each(|(datagram, number)| datagram.fill(number));
    SendRun {
        slot,
        len,
        segment,
        count,
        to,
        tos: 0,
        lane_port: false,
        tag: 7,
    }
}

/// Receives `count` datagrams of `segment` bytes.
fn expect(station: &mut Station, segment: usize, count: usize) {
    let mut arrived = 0;
    while arrived < count {
        let mut events = Vec::new();
        station.turn_until(&mut events, |events| !events.is_empty());
        for mut buffer in events.into_iter().filter_map(as_udp) {
            let (received, bytes) = station.engine.datagrams(&mut buffer);
            for datagram in bytes.chunks(received.segment) {
                arrived += 1;
                assert_eq!(datagram, vec![u8::try_from(arrived).unwrap(); segment]);
            }
        }
    }
    assert_eq!(arrived, count);
}

fn loopback(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}

#[test]
fn a_run_of_datagrams_larger_than_the_path_leaves_in_fragments_and_is_reported() {
    with_each_engine(|kind| {
        ip("link set lo mtu 1400");
        let (mut a, mut b) = (Station::new(kind), Station::new(kind));
        for remote in [loopback(b.port), SocketAddr::new("::1".parse().unwrap(), b.port)] {
            let big = run(&mut a, Endpoint { remote, local: None }, 1500, 10);
            a.engine.send(big);
            let sent = a.wait_sent();
            assert_eq!(
                (sent.result, sent.taken, sent.count, sent.tag),
                (Err(libc::EMSGSIZE), 10, 10, 7)
            );
            assert!(!sent.stale_source);
            expect(&mut b, 1500, 10);
            // The socket's GSO is not to blame, and neither is another run.
            let small = run(&mut a, Endpoint { remote, local: None }, 1200, 10);
            a.engine.send(small);
            assert_eq!(a.wait_sent().result, Ok(()));
            expect(&mut b, 1200, 10);
        }
        let counters = a.engine.counters();
        assert_eq!((counters.runs_unsegmented, counters.gso_off), (2, 0));
    });
}

#[test]
fn a_source_address_that_is_gone_is_replaced_and_reported() {
    with_each_engine(|kind| {
        let (mut a, mut b) = (Station::new(kind), Station::new(kind));
        // Link-local ones are nothing without their interface.
        let gone = [
            ("127.0.0.1", "192.0.2.77", 1),
            ("127.0.0.1", "169.254.7.7", 999),
            ("::1", "2001:db8::77", 1),
        ];
        for (remote, source, interface) in gone {
            for count in [1, 10] {
                let local = Some(Local {
                    address: source.parse().unwrap(),
                    interface,
                });
                let to = Endpoint {
                    remote: SocketAddr::new(remote.parse().unwrap(), b.port),
                    local,
                };
                let run = run(&mut a, to, 1000, count);
                a.engine.send(run);
                let sent = a.wait_sent();
                assert_eq!(
                    (sent.result, sent.stale_source, sent.taken),
                    (Ok(()), true, count),
                    "{source}"
                );
                expect(&mut b, 1000, count as usize);
            }
        }
        let counters = a.engine.counters();
        assert_eq!((counters.stale_sources, counters.runs_unsegmented), (6, 0));
    });
}

#[test]
fn datagrams_leave_from_the_address_that_was_asked() {
    with_each_engine(|kind| {
        ip("addr add 192.0.2.1/32 dev lo");
        ip("addr add 2001:db8::1/128 dev lo nodad");
        let (mut a, mut b) = (Station::new(kind), Station::new(kind));
        for (remote, source) in [("127.0.0.1", "192.0.2.1"), ("::1", "2001:db8::1")] {
            let local = Local {
                address: source.parse().unwrap(),
                interface: 1,
            };
            let to = Endpoint {
                remote: SocketAddr::new(remote.parse().unwrap(), b.port),
                local: Some(local),
            };
            let run = run(&mut a, to, 1000, 3);
            a.engine.send(run);
            assert_eq!(a.wait_sent().result, Ok(()));
            let mut events = Vec::new();
            b.turn_until(&mut events, |events| !events.is_empty());
            let from = events.into_iter().find_map(as_udp).unwrap().received().from;
            assert_eq!(from.remote, SocketAddr::new(local.address, a.port));
        }
    });
}

#[test]
fn what_cannot_be_sent_is_reported_with_the_kernel_s_reason() {
    with_each_engine(|kind| {
        let mut a = Station::new(kind);
        let nowhere = Endpoint {
            remote: "203.0.113.1:9".parse().unwrap(),
            local: None,
        };
        for count in [1, 10] {
            let run = run(&mut a, nowhere, 1000, count);
            a.engine.send(run);
            let sent = a.wait_sent();
            assert_eq!(
                (sent.result, sent.taken, sent.count),
                (Err(libc::ENETUNREACH), 0, count)
            );
        }
        assert_eq!(a.engine.slots().free(), 128);
    });
}

#[test]
fn a_device_without_checksum_offload_turns_gso_off() {
    // The kernel says EIO only where there is IPsec or, before 6.11, a device without checksum offload.
    in_namespace(|| {
        let (mut a, mut b) = (
            Station::new(super::lab::Kind::Plain),
            Station::new(super::lab::Kind::Plain),
        );
        let socket = udp::bind_group(0, 1, UdpOptions::default()).unwrap().sockets.remove(0);
        let mut resender = Resender::new(&socket);
        let mut counters = EngineCounters::default();
        let first = run(
            &mut a,
            Endpoint {
                remote: loopback(b.port),
                local: None,
            },
            1000,
            10,
        );
        assert!(resender.takes_whole(&first) && !resender.overtakes_a_ring());
        let Sent { result, taken, .. } = resender.recover(&socket, &first, libc::EIO, &mut counters);
        assert_eq!((result, taken, counters.gso_off), (Ok(()), 10, 1));
        assert!(!resender.takes_whole(&first));
        assert!(
            resender.overtakes_a_ring(),
            "single datagrams of the same flow keep behind it"
        );
        expect(&mut b, 1000, 10);
        // A single datagram's EIO is what it is.
        let single = run(
            &mut a,
            Endpoint {
                remote: loopback(b.port),
                local: None,
            },
            1000,
            1,
        );
        let sent = resender.recover(&socket, &single, libc::EIO, &mut counters);
        assert_eq!((sent.result, sent.taken), (Err(libc::EIO), 0));
        assert!(resender.takes_whole(&single));
    });
}
