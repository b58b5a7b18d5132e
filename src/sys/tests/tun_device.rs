//! The TUN itself, and both engines reading and writing it.

use super::lab::{Station, as_tun, in_namespace, ip, wait_until_gone, with_each_engine};
use crate::path::coalesce::{self, Coalescer, Group, Origin};
use crate::path::gso::Slots as _;
use crate::path::segment::{Checksums, Segments};
use crate::sys::engine::{Event, Wait};
use crate::sys::tun::{self, Offloads, TunError, TunQueue};
use crate::sys::tun_mtu::TunMtu;
use std::io::{BufRead as _, Write as _};
use std::net::UdpSocket as StdSocket;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The IP packet that carries `payload` from 10.99.0.2:9 to 10.99.0.1:`port`, its UDP checksum absent (0, RFC 768).
fn packet_to(port: u16, payload: &[u8]) -> Vec<u8> {
    let len = u16::try_from(28 + payload.len()).unwrap();
    let mut packet = vec![
        0x45, 0, 0, 0, 0, 0, 0, 0, 64, 17, 0, 0, 10, 99, 0, 2, 10, 99, 0, 1, 0, 9,
    ];
    packet[2..4].copy_from_slice(&len.to_be_bytes());
    packet.extend(port.to_be_bytes());
    packet.extend((len - 20).to_be_bytes());
    packet.extend([0, 0]);
    let words = packet[..20]
        .chunks(2)
        .map(|word| u32::from(u16::from_be_bytes([word[0], word[1]])));
    let sum: u32 = words.sum();
    let checksum = !u16::try_from((sum & 0xffff) + (sum >> 16)).unwrap();
    packet[10..12].copy_from_slice(&checksum.to_be_bytes());
    packet.extend(payload);
    packet
}

fn receiver() -> StdSocket {
    let socket = StdSocket::bind("10.99.0.1:0").unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
    socket
}

fn written(events: Vec<Event>) -> Vec<Result<(), i32>> {
    events
        .into_iter()
        .filter_map(|event| {
            if let Event::Written { result, .. } = event {
                Some(result)
            } else {
                None
            }
        })
        .collect()
}

#[test]
fn a_device_has_the_queues_and_offloads_it_was_asked_for() {
    in_namespace(|| {
        let device = tun::create("rwt%d", 3, Offloads::ALL).unwrap();
        assert_eq!((device.name.as_str(), device.queues.len()), ("rwt0", 3));
        assert!(
            device.offloads.csum && device.offloads.tso,
            "every kernel that this runs on has these"
        );
        assert!(device.ifindex > 1, "1 is the loopback");
        let plain = tun::create(
            "rwplain",
            1,
            Offloads {
                csum: false,
                ..Offloads::ALL
            },
        )
        .unwrap();
        assert_eq!(plain.offloads, Offloads::NONE);
        drop((device, plain));
        wait_until_gone(&["rw"]);
    });
}

#[test]
fn what_cannot_be_created_says_why() {
    in_namespace(|| {
        for name in ["", "a/b", "a b", "a:b", "sixteen-letters-", "zero\0"] {
            assert!(
                matches!(tun::create(name, 1, Offloads::ALL), Err(TunError::Name(_))),
                "{name:?}"
            );
        }
        for queues in [0, 257] {
            assert!(matches!(
                tun::create("rwq", queues, Offloads::ALL),
                Err(TunError::Queues(_))
            ));
        }
        let _first = tun::create("rwsame", 2, Offloads::ALL).unwrap();
        assert!(matches!(
            tun::create("rwsame", 2, Offloads::ALL),
            Err(TunError::Exists(_))
        ));
        assert!(matches!(tun::create("lo", 1, Offloads::ALL), Err(TunError::Exists(_))));
    });
}

#[test]
fn packets_into_the_tun_are_read_and_packets_written_come_out() {
    with_each_engine(|kind| {
        let mut station = Station::new(kind);
        station.up("10.99.0.1/24");
        let socket = receiver();
        socket.send_to(b"out", "10.99.0.2:7").unwrap();
        let mut events = Vec::new();
        station.turn_until(&mut events, |events| {
            events.iter().any(|event| matches!(event, Event::Tun(_)))
        });
        let frame = events.into_iter().find_map(as_tun).unwrap();
        let segments = Segments::parse(frame.frame(), Checksums::Complete).unwrap();
        assert_eq!(
            (&segments.ip()[16..20], &segments.ip()[28..]),
            (&[10, 99, 0, 2][..], &b"out"[..])
        );

        let mut packet = vec![7; 5];
        packet.extend(packet_to(socket.local_addr().unwrap().port(), b"in"));
        let range = 5..packet.len();
        station
            .engine
            .write(Group::from_owned(packet, range, false, 1).unwrap());
        let mut events = Vec::new();
        station.turn_until(&mut events, |events| !events.is_empty());
        assert_eq!(written(events), [Ok(())]);
        let mut found = [0; 16];
        let (len, from) = socket.recv_from(&mut found).unwrap();
        assert_eq!((&found[..len], from), (&b"in"[..], "10.99.0.2:9".parse().unwrap()));
    });
}

#[test]
fn what_is_written_to_another_workers_queue_is_answered_there() {
    with_each_engine(|kind| {
        let device = tun::create("rwt%d", 3, Offloads::ALL).unwrap();
        let queues: Arc<[TunQueue]> = device.queues.into();
        let mut station = Station::of(kind, device.name, queues[0].try_clone().unwrap());
        station.up("10.99.0.1/24");
        station.engine.use_queues(queues.clone());
        let socket = receiver();
        let port = socket.local_addr().unwrap().port();
        // There is no queue 3, so that goes to the engine's own.
        for (told, found) in [
            (Some(1), 1),
            (Some(2), 2),
            (None, 0),
            (Some(1), 1),
            (Some(3), 0),
            (Some(0), 0),
        ] {
            let packet = packet_to(port, b"in");
            let range = 0..packet.len();
            let mut group = Group::from_owned(packet, range, false, 1).unwrap();
            group.queue = told;
            station.engine.write(group);
            let mut events = Vec::new();
            station.turn_until(&mut events, |events| !events.is_empty());
            assert_eq!(written(events), [Ok(())]);
            socket.recv(&mut [0; 16]).unwrap();
            socket.send_to(b"out", "10.99.0.2:9").unwrap();
            if found == 0 {
                let mut events = Vec::new();
                station.turn_until(&mut events, |events| {
                    events.iter().any(|event| matches!(event, Event::Tun(_)))
                });
            }
            let waiting = [1, 2].map(|number: usize| queues[number].read(&mut [0; 2048]).is_ok());
            assert_eq!(waiting, [found == 1, found == 2], "{told:?}");
        }
    });
}

#[test]
fn receive_buffers_are_written_from_where_they_are_and_then_reused() {
    with_each_engine(|kind| {
        let mut station = Station::new(kind);
        station.up("10.99.0.1/24");
        let socket = receiver();
        let sender = StdSocket::bind("127.0.0.1:0").unwrap();
        let mut coalescer = Coalescer::new(coalesce::Offloads { tcp: true, udp: false });
        let (mut sent, mut arrived) = (0u16, 0u16);
        let started = Instant::now();
        // Several times as many as there are buffers.
        while arrived < 500 {
            assert!(
                started.elapsed() < Duration::from_secs(10),
                "{sent} sent, {arrived} arrived"
            );
            while sent < 500 && sent < arrived + 50 {
                let packet = packet_to(socket.local_addr().unwrap().port(), &sent.to_be_bytes());
                sender.send_to(&packet, ("127.0.0.1", station.port)).unwrap();
                sent += 1;
            }
            let mut events = Vec::new();
            station
                .engine
                .turn(Wait::For(Duration::from_millis(100)), &mut events)
                .unwrap();
            let (mut groups, mut held) = (Vec::new(), Vec::new());
            for event in events {
                match event {
                    Event::Udp(mut buffer) => {
                        let index = buffer.index();
                        let (_, packet) = station.engine.datagrams(&mut buffer);
                        coalescer
                            .push(index, 0, packet, Origin::default(), 0, &mut groups)
                            .unwrap();
                        held.push(buffer);
                    }
                    Event::Written { group, result } => {
                        assert_eq!(result, Ok(()));
                        coalescer.recycle(group);
                    }
                    _ => {}
                }
            }
            coalescer.flush(&mut groups);
            groups.into_iter().for_each(|group| station.engine.write(group));
            drop(held);
            socket.set_nonblocking(true).unwrap();
            let mut found = [0; 16];
            while let Ok(len) = socket.recv(&mut found) {
                assert_eq!(found[..len], arrived.to_be_bytes());
                arrived += 1;
            }
        }
    });
}

#[test]
fn a_write_while_the_link_is_down_is_refused_and_harmless() {
    with_each_engine(|kind| {
        let mut station = Station::new(kind);
        let write = |station: &mut Station| {
            let packet = packet_to(9, b"x");
            let range = 0..packet.len();
            station
                .engine
                .write(Group::from_owned(packet, range, false, 1).unwrap());
            let mut events = Vec::new();
            station.turn_until(&mut events, |events| {
                events.iter().any(|event| matches!(event, Event::Written { .. }))
            });
            written(events)
        };
        assert_eq!(write(&mut station), [Err(libc::EIO)]);
        station.up("10.99.0.1/24");
        assert_eq!(write(&mut station), [Ok(())]);
        ip(&format!("link set {} down", station.device));
        assert_eq!(write(&mut station), [Err(libc::EIO)]);
        ip(&format!("link set {} up", station.device));
        assert_eq!(write(&mut station), [Ok(())]);
        // And the TUN is still read.
        ip(&format!("addr replace 10.99.0.1/24 dev {}", station.device));
        receiver().send_to(b"out", "10.99.0.2:7").unwrap();
        let mut events = Vec::new();
        station.turn_until(&mut events, |events| {
            events.iter().any(|event| matches!(event, Event::Tun(_)))
        });
    });
}

#[test]
fn more_small_writes_than_slots_all_go_out_in_order() {
    with_each_engine(|kind| {
        const PACKETS: u16 = 1500;
        let mut station = Station::new(kind);
        station.up("10.99.0.1/24");
        let socket = receiver();
        let port = socket.local_addr().unwrap().port();
        for number in 0..PACKETS {
            let packet = packet_to(port, &number.to_be_bytes());
            let range = 0..packet.len();
            station
                .engine
                .write(Group::from_owned(packet, range, false, 1).unwrap());
        }
        let mut done = 0;
        let mut arrived = 0;
        socket.set_nonblocking(true).unwrap();
        let mut read = || {
            let mut found = [0; 16];
            while let Ok(len) = socket.recv(&mut found) {
                let number = u16::from_be_bytes(found[..len].try_into().unwrap());
                // The socket's buffer may be small; what it takes comes in order.
                assert!(number >= arrived, "{number} after {arrived}");
                arrived = number + 1;
            }
        };
        while done < PACKETS {
            let mut events = Vec::new();
            station.turn_until(&mut events, |events| !events.is_empty());
            done += u16::try_from(written(events).len()).unwrap();
            read();
        }
        assert!(arrived > 100, "{arrived}");
    });
}

#[test]
fn the_tun_is_not_read_while_send_slots_are_low() {
    with_each_engine(|kind| {
        let mut station = Station::new(kind);
        station.up("10.99.0.1/24");
        let slots: Vec<_> = std::iter::from_fn(|| station.engine.slots().acquire()).collect();
        assert_eq!(slots.len(), 128);
        let socket = receiver();
        let mut events = Vec::new();
        // What the kernel had been given before may still be used: 64 buffers at most.
        for _ in 0..200 {
            socket.send_to(b"out", "10.99.0.2:7").unwrap();
            station.engine.turn(Wait::Now, &mut events).unwrap();
            events.clear();
        }
        socket.send_to(b"out", "10.99.0.2:7").unwrap();
        let turns = station.engine.counters().turns;
        let started = Instant::now();
        while started.elapsed() < Duration::from_millis(50) {
            station
                .engine
                .turn(Wait::For(Duration::from_millis(10)), &mut events)
                .unwrap();
        }
        assert!(events.is_empty());
        assert!(station.engine.counters().turns - turns < 20, "the wait was not a wait");
        assert!(station.engine.counters().tun_paused > 0);
        drop(slots);
        station.turn_until(&mut events, |events| {
            events.iter().any(|event| matches!(event, Event::Tun(_)))
        });
    });
}

#[test]
fn a_tun_that_is_deleted_ends_the_engine() {
    with_each_engine(|kind| {
        let mut station = Station::new(kind);
        station.up("10.99.0.1/24");
        station.engine.turn(Wait::Now, &mut Vec::new()).unwrap();
        ip(&format!("link del {}", station.device));
        let started = Instant::now();
        let error = loop {
            assert!(started.elapsed() < Duration::from_secs(5));
            if let Err(error) = station
                .engine
                .turn(Wait::For(Duration::from_millis(100)), &mut Vec::new())
            {
                break error;
            }
        };
        assert_eq!(error.raw_os_error(), Some(libc::ENODEV));
    });
}

#[test]
fn the_mtu_is_known_after_changes_renaming_and_moving() {
    in_namespace(|| {
        let tun::TunDevice { name, queues, .. } = tun::create("rwt%d", 1, Offloads::ALL).unwrap();
        let mut mtu = TunMtu::new(&queues[0]).unwrap();
        assert_eq!(mtu.get().unwrap(), 1500);
        ip(&format!("link set {name} mtu 1337"));
        assert_eq!(mtu.get().unwrap(), 1337);
        ip(&format!("link set {name} name renamed"));
        assert_eq!(mtu.get().unwrap(), 1337);
        // Into the namespace of a process that waits in one of its own until its input ends.
        let mut elsewhere = std::process::Command::new("unshare")
            .args([
                "-n",
                "sh",
                "-c",
                "echo ready; read line; ip link set renamed mtu 1400; echo done; read line",
            ])
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let mut input = elsewhere.stdin.take().unwrap();
        let mut output = std::io::BufReader::new(elsewhere.stdout.take().unwrap()).lines();
        assert_eq!(output.next().unwrap().unwrap(), "ready");
        ip(&format!("link set renamed netns {}", elsewhere.id()));
        assert_eq!(mtu.get().unwrap(), 1337);
        input.write_all(b"\n").unwrap();
        assert_eq!(output.next().unwrap().unwrap(), "done");
        assert_eq!(mtu.get().unwrap(), 1400);
        drop(input);
        elsewhere.wait().unwrap();
        drop(queues);
    });
}
