//! A tunnel without keys: TCP through TUN, segments, UDP, coalescer and TUN, on either engine.
//!
//! ```text
//!   namespace A                  the test's namespace                   namespace B
//!   TcpListener - rwt0 (.1) -- engine - 127.0.0.1:a <> b - engine -- rwt0 (.2) - TcpStream
//! ```

use super::lab::{Kind, enter_fresh_namespace, in_namespace, ip, wait_until_gone, with_each_engine};
use crate::path::coalesce::{self, Coalescer, Group, Origin};
use crate::path::gso::Slots as _;
use crate::path::segment::{Checksums, Segments};
use crate::proto::endpoint::Endpoint;
use crate::sys::engine::{DATAGRAMS_MAX, Engine, EngineCounters, Event, SendRun, TxSlot, UdpBuffer, Wait};
use crate::sys::tun::{self, Offloads, TunQueue};
use crate::sys::udp::{self, UdpOptions, UdpSocket};
use crate::sys::wake::{self, Wake, Waker};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// A flag byte and 15 for alignment, as a record's header would be.
const HEADER: usize = 16;
const RUN_BYTES_MAX: usize = 65_507;

/// One end, before it has an engine.
struct Parts {
    tun: TunQueue,
    udp: UdpSocket,
    wake: Wake,
    peer: SocketAddr,
}

/// A worker's loop with nothing in it but copying.
struct Forwarder {
    engine: Box<dyn Engine>,
    peer: SocketAddr,
    coalescer: Coalescer,
    run: Option<(TxSlot, usize, usize, u32)>,
    groups: Vec<Group>,
    held: Vec<UdpBuffer>,
    lost: u64,
}

impl Forwarder {
    fn new(kind: Kind, parts: Parts) -> Forwarder {
        Forwarder {
            engine: kind.build(parts.tun, parts.udp, parts.wake),
            peer: parts.peer,
            coalescer: Coalescer::new(coalesce::Offloads { tcp: true, udp: true }),
            run: None,
            groups: Vec::new(),
            held: Vec::new(),
            lost: 0,
        }
    }

    fn work(mut self, stop: &AtomicBool) -> (EngineCounters, u64) {
        let mut events = Vec::new();
        while !stop.load(Ordering::Relaxed) {
            self.engine.turn(Wait::Block, &mut events).unwrap();
            for event in events.drain(..) {
                match event {
                    Event::Tun(buffer) => self.out(buffer.frame()),
                    Event::Udp(buffer) => self.back(buffer),
                    Event::Written { group, result } => {
                        self.lost += u64::from(result.is_err());
                        self.coalescer.recycle(group);
                    }
                    Event::Sent(sent) => self.lost += u64::from(sent.count - sent.taken),
                    Event::Woken => {}
                }
            }
            self.flush_run();
            self.coalescer.flush(&mut self.groups);
            self.groups.drain(..).for_each(|group| self.engine.write(group));
            self.held.clear();
        }
        (self.engine.counters(), self.lost)
    }

    fn out(&mut self, frame: &[u8]) {
        let mut segments = Segments::parse(frame, Checksums::Partial).unwrap();
        while let Some(len) = segments.next_len() {
            let datagram = HEADER + len;
            let fits = |(_, len, segment, count): &(TxSlot, usize, usize, u32)| {
                datagram <= *segment && len + datagram <= RUN_BYTES_MAX && *count < DATAGRAMS_MAX && len % segment == 0
            };
            if !self.run.as_ref().is_some_and(fits) {
                self.flush_run();
            }
            if self.run.is_none() {
                let Some(slot) = self.engine.slots().acquire() else {
                    self.lost += 1;
                    return;
                };
                self.run = Some((slot, 0, datagram, 0));
            }
            let (slot, end, _, count) = self.run.as_mut().unwrap();
            let place = &mut slot.bytes_mut()[*end..][..datagram];
            place[0] = u8::from(segments.write_next(&mut place[HEADER..]));
            *end += datagram;
            *count += 1;
        }
    }

    fn flush_run(&mut self) {
        if let Some((slot, len, segment, count)) = self.run.take() {
            let to = Endpoint {
                remote: self.peer,
                local: None,
            };
            self.engine.send(SendRun {
                slot,
                len,
                segment,
                count,
                to,
                tos: 0,
                lane_port: false,
                tag: 0,
            });
        }
    }

    fn back(&mut self, mut buffer: UdpBuffer) {
        let index = buffer.index();
        let (received, bytes) = self.engine.datagrams(&mut buffer);
        for (number, datagram) in bytes.chunks(received.segment).enumerate() {
            let at = number * received.segment + HEADER;
            let origin = Origin {
                partial: datagram[0] == 1,
                ..Origin::default()
            };
            self.coalescer
                .push(index, at, &datagram[HEADER..], origin, 0, &mut self.groups)
                .unwrap();
        }
        self.held.push(buffer);
    }
}

/// Makes one end: its TUN in a fresh namespace, its socket in this thread's.
fn end(number: u8, udp: UdpSocket, peer: u16) -> (Parts, Waker) {
    let device = tun::create("rwt%d", 1, Offloads::ALL).unwrap();
    ip(&format!("addr add 10.99.0.{number}/24 dev {}", device.name));
    ip(&format!("link set {} mtu 1400 up", device.name));
    let (waker, wake) = wake::pair().unwrap();
    let peer = SocketAddr::from(([127, 0, 0, 1], peer));
    (
        Parts {
            tun: device.queues.into_iter().next().unwrap(),
            udp,
            wake,
            peer,
        },
        waker,
    )
}

/// The `at`th block of a stream that does not repeat soon.
fn fill(block: &mut [u8], at: u64) {
    let mut state = at.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    for bytes in block.chunks_mut(8) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.copy_from_slice(&state.to_le_bytes()[..bytes.len()]);
    }
}

const BLOCK: usize = 64 * 1024;

fn send(mut stream: TcpStream, blocks: u64) {
    let mut block = vec![0; BLOCK];
    for at in 0..blocks {
        fill(&mut block, at);
        stream.write_all(&block).unwrap();
    }
}

fn receive(mut stream: TcpStream, blocks: u64) {
    let (mut block, mut expected) = (vec![0; BLOCK], vec![0; BLOCK]);
    for at in 0..blocks {
        stream
            .read_exact(&mut block)
            .unwrap_or_else(|error| panic!("block {at}: {error}"));
        fill(&mut expected, at);
        assert!(block == expected, "block {at} differs");
    }
}

#[test]
fn tcp_both_ways_through_two_engines_arrives_byte_for_byte() {
    with_each_engine(|kind| {
        const BLOCKS: u64 = 2000;
        let mut sockets = [(); 2].map(|()| udp::bind_group(0, 1, UdpOptions::default()).unwrap());
        let ports = [sockets[0].port, sockets[1].port];
        let [a_socket, b_socket] = [0, 1].map(|end| sockets[end].sockets.remove(0));
        assert!(enter_fresh_namespace());
        let (a, a_waker) = end(1, a_socket, ports[1]);
        let listener = TcpListener::bind("10.99.0.1:7777").unwrap();
        assert!(enter_fresh_namespace());
        let (b, b_waker) = end(2, b_socket, ports[0]);

        let stop = Arc::new(AtomicBool::new(false));
        let workers = [a, b].map(|parts| {
            let stop = Arc::clone(&stop);
            std::thread::spawn(move || Forwarder::new(kind, parts).work(&stop))
        });
        let client = TcpStream::connect_timeout(&"10.99.0.1:7777".parse().unwrap(), Duration::from_secs(5)).unwrap();
        let server = listener.accept().unwrap().0;
        for stream in [&client, &server] {
            stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
            stream.set_write_timeout(Some(Duration::from_secs(10))).unwrap();
        }
        let started = Instant::now();
        let streams = [
            std::thread::spawn({
                let stream = client.try_clone().unwrap();
                move || send(stream, BLOCKS)
            }),
            std::thread::spawn({
                let stream = server.try_clone().unwrap();
                move || send(stream, BLOCKS)
            }),
            std::thread::spawn(move || receive(client, BLOCKS)),
            std::thread::spawn(move || receive(server, BLOCKS)),
        ];
        let results = streams.map(std::thread::JoinHandle::join);
        let seconds = started.elapsed().as_secs_f64();
        stop.store(true, Ordering::Relaxed);
        a_waker.wake();
        b_waker.wake();
        let counters = workers.map(|worker| worker.join().unwrap());
        results.into_iter().for_each(Result::unwrap);
        let gigabits = 2.0 * BLOCKS as f64 * BLOCK as f64 * 8.0 / 1e9;
        eprintln!("{kind:?}: {:.1} Gbit/s both ways", gigabits / seconds);
        for (counters, lost) in counters {
            eprintln!("  {lost} lost, {counters:?}");
            assert_eq!(counters.udp_discarded, 0);
        }
    });
}

#[test]
fn a_forwarder_that_is_stopped_under_load_leaves_nothing_behind() {
    in_namespace(|| {
        if crate::sys::probe::io_uring().is_err() {
            return;
        }
        for round in 0..20 {
            let mut sockets = [(); 2].map(|()| udp::bind_group(0, 1, UdpOptions::default()).unwrap());
            let port = sockets[1].port;
            let (parts, waker) = end(1, sockets[0].sockets.remove(0), port);
            let stop = Arc::new(AtomicBool::new(false));
            let worker = std::thread::spawn({
                let stop = Arc::clone(&stop);
                move || Forwarder::new(Kind::Uring, parts).work(&stop)
            });
            let source = std::net::UdpSocket::bind("10.99.0.1:0").unwrap();
            let started = Instant::now();
            while started.elapsed() < Duration::from_millis(5 + round) {
                // ENOBUFS and the like are the load's own business.
                let _ = source.send_to(&[1; 1000], "10.99.0.2:9");
            }
            stop.store(true, Ordering::Relaxed);
            waker.wake();
            worker.join().unwrap();
            wait_until_gone(&["rwt"]);
        }
    });
}
