//! Another socket for a running engine.

use super::lab::{Station, as_udp, with_each_engine};
use crate::path::gso::Slots as _;
use crate::proto::endpoint::Endpoint;
use crate::sys::engine::{Event, SendRun, Wait};
use crate::sys::udp::{self, UdpGroup, UdpOptions};
use std::net::{Ipv4Addr, SocketAddr, UdpSocket as StdSocket};
use std::time::{Duration, Instant};

/// Gives the engine a new socket; its port.
fn replace(station: &mut Station) -> u16 {
    let UdpGroup { mut sockets, port, .. } = udp::bind_group(0, 1, UdpOptions::default()).unwrap();
    station.engine.replace_udp(sockets.remove(0)).unwrap();
    port
}

fn stranger() -> StdSocket {
    let stranger = StdSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    stranger.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    stranger
}

/// Sends `text` to the engine at `port` and waits until it arrives.
fn assert_receives(station: &mut Station, from: &StdSocket, port: u16, text: &[u8]) {
    from.send_to(text, (Ipv4Addr::LOCALHOST, port)).unwrap();
    let mut events = Vec::new();
    station.turn_until(&mut events, |events| {
        events.iter().any(|event| matches!(event, Event::Udp(_)))
    });
    let mut buffer = events.into_iter().find_map(as_udp).unwrap();
    assert_eq!(station.engine.datagrams(&mut buffer).1, text);
}

fn queue_send(station: &mut Station, to: SocketAddr, text: &[u8]) {
    let mut slot = station.engine.slots().acquire().unwrap();
    slot.bytes_mut()[..text.len()].copy_from_slice(text);
    station.engine.send(SendRun {
        slot,
        len: text.len(),
        segment: text.len(),
        count: 1,
        to: Endpoint {
            remote: to,
            local: None,
        },
        tos: 0,
        lane_port: false,
        tag: 0,
    });
}

#[test]
fn datagrams_come_and_go_through_the_new_socket() {
    with_each_engine(|kind| {
        let (mut station, stranger) = (Station::new(kind), stranger());
        let old = station.port;
        assert_receives(&mut station, &stranger, old, b"to the old one");
        for _ in 0..3 {
            let port = replace(&mut station);
            assert_receives(&mut station, &stranger, port, b"to the new one");
            queue_send(&mut station, stranger.local_addr().unwrap(), b"answer");
            station.wait_sent();
            let mut found = [0; 64];
            let (len, from) = stranger.recv_from(&mut found).unwrap();
            assert_eq!((&found[..len], from.port()), (&b"answer"[..], port));
        }
    });
}

#[test]
fn the_old_port_is_free_after_a_turn() {
    with_each_engine(|kind| {
        let mut station = Station::new(kind);
        let mut events = Vec::new();
        station.engine.turn(Wait::Now, &mut events).unwrap();
        let old = station.port;
        replace(&mut station);
        let deadline = Instant::now() + Duration::from_secs(5);
        while let Err(error) = udp::bind_group(old, 1, UdpOptions::default()) {
            assert!(Instant::now() < deadline, "{kind:?}: {error}");
            station.engine.turn(Wait::Now, &mut events).unwrap();
        }
        assert!(events.is_empty());
    });
}

#[test]
fn many_replacements_between_two_turns_leave_the_last() {
    with_each_engine(|kind| {
        let (mut station, stranger) = (Station::new(kind), stranger());
        // More than there is room for requests, if each took one.
        let mut port = 0;
        for _ in 0..2000 {
            port = replace(&mut station);
        }
        assert_receives(&mut station, &stranger, port, b"to the last one");
        port = replace(&mut station);
        assert_receives(&mut station, &stranger, port, b"and on");
    });
}

#[test]
fn runs_that_were_queued_before_leave_and_come_back_as_sent() {
    with_each_engine(|kind| {
        let (mut station, stranger) = (Station::new(kind), stranger());
        let to = stranger.local_addr().unwrap();
        let free = station.engine.slots().free();
        for _ in 0..20 {
            queue_send(&mut station, to, b"queued");
            replace(&mut station);
        }
        let mut events = Vec::new();
        station.turn_until(&mut events, |events| {
            events
                .iter()
                .filter(|event| matches!(event, Event::Sent(sent) if sent.result.is_ok()))
                .count()
                == 20
        });
        assert_eq!(station.engine.slots().free(), free, "every slot came back");
        for _ in 0..20 {
            assert_eq!(stranger.recv(&mut [0; 64]).unwrap(), 6);
        }
    });
}

#[test]
fn an_engine_ends_cleanly_right_after_a_replacement() {
    with_each_engine(|kind| {
        let mut station = Station::new(kind);
        let port = replace(&mut station);
        drop(station);
        // Closing is complete when the ring's last references go.
        let deadline = Instant::now() + Duration::from_secs(5);
        while let Err(error) = udp::bind_group(port, 1, UdpOptions::default()) {
            assert!(Instant::now() < deadline, "{kind:?}: {error}");
            std::thread::sleep(Duration::from_millis(10));
        }
    });
}
