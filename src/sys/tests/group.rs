//! The REUSEPORT group: binding, steering, path MTU.

use super::lab::{in_namespace, ip};
use crate::proto::endpoint::{Endpoint, Local};
use crate::sys::udp::{self, UdpOptions, UdpSocket};
use crate::sys::{option, steer};
use crate::wire::message;
use std::net::{SocketAddr, UdpSocket as StdSocket};
use std::os::fd::AsFd;
use std::time::Duration;

/// The same socket for the standard library, which waits a second for what comes.
fn readable(socket: &UdpSocket) -> StdSocket {
    let socket = StdSocket::from(socket.as_fd().try_clone_to_owned().unwrap());
    socket.set_nonblocking(false).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
    socket
}

fn data_message(kind: u8, receiver: u32) -> Vec<u8> {
    let mut message = vec![kind, 0, 0, 0];
    message.extend(receiver.to_le_bytes());
    message.extend([0; 24]);
    message
}

#[test]
fn data_messages_reach_the_worker_that_their_index_names() {
    const WORKERS: u8 = 3;
    let group = udp::bind_group(0, 1 + usize::from(WORKERS), UdpOptions::default()).unwrap();
    steer::attach(&group.sockets[0], WORKERS).unwrap();
    let sockets: Vec<StdSocket> = group.sockets[1..].iter().map(readable).collect();
    let senders: &[&str] = if group.dual_stack {
        &["127.0.0.1", "[::1]"]
    } else {
        &["127.0.0.1"]
    };
    for ip in senders {
        // Several flows, which the hash would spread, to several bases.
        for flow in 0..8u32 {
            let sender = StdSocket::bind(format!("{ip}:0")).unwrap();
            sender.connect(format!("{ip}:{}", group.port)).unwrap();
            for lane in [0u8, 1, 2, 3, 4, 128, 255] {
                for kind in [4, 0x84] {
                    let receiver = 0xabcd_e000 + (flow << 8) + u32::from(lane);
                    let message = data_message(kind, receiver);
                    sender.send(&message).unwrap();
                    let mut found = [0; 64];
                    let len = sockets[usize::from(message::owner(receiver, WORKERS))]
                        .recv(&mut found)
                        .unwrap();
                    assert_eq!(found[..len], message, "lane {lane} from {ip}");
                }
            }
        }
    }
}

#[test]
fn all_else_reaches_the_door() {
    const WORKERS: u8 = 4;
    let group = udp::bind_group(0, 1 + usize::from(WORKERS), UdpOptions::default()).unwrap();
    steer::attach(&group.sockets[0], WORKERS).unwrap();
    let door = readable(&group.sockets[0]);
    for _ in 0..16 {
        let sender = StdSocket::bind("127.0.0.1:0").unwrap();
        sender.connect(("127.0.0.1", group.port)).unwrap();
        // Handshakes of both suites, too short for a data message, and noise.
        for message in [&[1, 0, 0, 0, 9][..], &[0x81, 0, 0, 0, 3], &[4, 0, 0], &[77; 100]] {
            sender.send(message).unwrap();
            let mut found = [0; 128];
            let len = door.recv(&mut found).unwrap();
            assert_eq!(found[..len], *message);
        }
    }
}

#[test]
fn steering_takes_a_group() {
    let group = udp::bind_group(0, 1, UdpOptions::default()).unwrap();
    assert_eq!(
        steer::attach(&group.sockets[0], 1).unwrap_err().raw_os_error(),
        Some(libc::EINVAL)
    );
}

#[test]
fn a_port_is_not_shared_with_a_stranger() {
    for n in [1, 2] {
        let group = udp::bind_group(0, n, UdpOptions::default()).unwrap();
        for others in [1, 2] {
            let error = udp::bind_group(group.port, others, UdpOptions::default())
                .err()
                .unwrap();
            assert_eq!(
                error.raw_os_error(),
                Some(libc::EADDRINUSE),
                "{n} sockets here, {others} there"
            );
        }
        let port = group.port;
        drop(group);
        assert_eq!(udp::bind_group(port, 2, UdpOptions::default()).unwrap().port, port);
    }
}

#[test]
fn a_group_has_the_options_it_was_asked_for() {
    in_namespace(|| {
        let options = UdpOptions {
            mark: 0xcafe_0001,
            ..UdpOptions::default()
        };
        let group = udp::bind_group(0, 2, options).unwrap();
        assert!(group.gso && group.gro && group.dual_stack);
        for socket in &group.sockets {
            let get = |level, name| option::get(socket.as_fd(), level, name).unwrap();
            assert_eq!(get(libc::SOL_SOCKET, libc::SO_MARK).cast_unsigned(), 0xcafe_0001);
            assert_eq!(get(libc::SOL_UDP, libc::UDP_GRO), 1);
            // The kernel doubles what it is asked for.
            assert_eq!(get(libc::SOL_SOCKET, libc::SO_RCVBUF), 32 << 20);
            assert_eq!(get(libc::SOL_SOCKET, libc::SO_SNDBUF), 32 << 20);
            socket.set_mark(0).unwrap();
            assert_eq!(get(libc::SOL_SOCKET, libc::SO_MARK), 0);
        }
        let without = udp::bind_group(
            0,
            1,
            UdpOptions {
                gso: false,
                gro: false,
                mark: 0,
                device: None,
            },
        )
        .unwrap();
        assert!(!without.gso && !without.gro);
    });
}

#[test]
fn single_datagrams_leave_outside_of_the_engines_too() {
    in_namespace(|| {
        ip("addr add 192.0.2.1/32 dev lo");
        let group = udp::bind_group(0, 1, UdpOptions::default()).unwrap();
        let control = group.sockets[0].try_clone().unwrap();
        let receiver = StdSocket::bind("127.0.0.1:0").unwrap();
        receiver.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
        let remote = receiver.local_addr().unwrap();
        let local = |address: &str| {
            Some(Local {
                address: address.parse().unwrap(),
                interface: 1,
            })
        };
        // Of our choice, the kernel's, and the kernel's because ours is gone.
        for (local, source) in [
            (local("192.0.2.1"), "192.0.2.1"),
            (None, "127.0.0.1"),
            (local("192.0.2.2"), "127.0.0.1"),
        ] {
            control.send_to(&Endpoint { remote, local }, 0, b"hello").unwrap();
            let mut found = [0; 16];
            let (len, from) = receiver.recv_from(&mut found).unwrap();
            assert_eq!(&found[..len], b"hello");
            assert_eq!(from, SocketAddr::new(source.parse().unwrap(), group.port));
        }
    });
}

#[test]
fn the_path_mtu_is_that_of_the_route() {
    in_namespace(|| {
        ip("link set lo mtu 1380");
        assert_eq!(
            udp::path_mtu("127.0.0.1:9".parse().unwrap(), UdpOptions::default()).unwrap(),
            1380
        );
        assert_eq!(
            udp::path_mtu("[::1]:9".parse().unwrap(), UdpOptions::default()).unwrap(),
            1380
        );
        let error = udp::path_mtu("203.0.113.1:9".parse().unwrap(), UdpOptions::default()).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ENETUNREACH));
    });
}
