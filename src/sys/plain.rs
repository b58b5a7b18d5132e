//! The engine on plain system calls: read, writev, recvmmsg, sendmmsg and poll, with the same GSO, GRO and pools.
//!
//! A turn: send what was queued; read what is there, a bounded number each; only if there was nothing, poll as told
//! and read again.

use super::engine::{BUFFER_BYTES, Engine, EngineCounters, Event, Received, SLOT_BYTES, SendRun, SendSlots, TunBuffer};
use super::engine::{UdpBuffer, Wait};
use super::errno;
use super::gather::{Arrived, HEAD_ROOM};
use super::poll;
use super::pool::Pool;
use super::receive::ReceiveBatch;
use super::send::{self, Outlets, Resender, SendBatch, last_errno};
use super::tun::TunQueue;
use super::udp::UdpSocket;
use super::wake::Wake;
use crate::path::coalesce::Group;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

/// Frames per turn: then the socket has its turn.
const READS_PER_TURN: usize = 32;
/// Receives per turn.
const RECEIVES_PER_TURN: usize = 16;
const TUN_BUFFERS: u16 = 64;
const UDP_BUFFERS: u16 = 32;
/// Two per TUN buffer: a frame of 64 KiB and its records' overhead don't fit one.
const SEND_SLOTS: u16 = 2 * TUN_BUFFERS;

/// The engine on plain system calls. Runs on every Linux that has the TUN's and the socket's offloads.
pub struct Plain {
    tun: TunQueue,
    udp: Outlets,
    wake: Wake,
    /// Of all workers, by their numbers.
    queues: Arc<[TunQueue]>,
    tun_pool: Rc<Pool>,
    arrived: Arrived,
    send_pool: Rc<Pool>,
    /// What the next turn sends.
    queue: Vec<SendRun>,
    /// What the next turn reports.
    ready: Vec<Event>,
    sends: SendBatch,
    resender: Resender,
    receives: ReceiveBatch,
    pieces: Vec<libc::iovec>,
    paused: bool,
    counters: EngineCounters,
}

/// What is worth a try to read.
#[derive(Debug, Clone, Copy)]
struct Readable {
    tun: bool,
    udp: bool,
    wake: bool,
}

impl Plain {
    /// Builds the engine.
    ///
    /// # Errors
    /// `ENOMEM`.
    pub fn new(tun: TunQueue, udp: UdpSocket, wake: Wake) -> io::Result<Plain> {
        Ok(Plain {
            tun_pool: Pool::new(TUN_BUFFERS, BUFFER_BYTES)?,
            arrived: Arrived::new(Pool::new(UDP_BUFFERS, BUFFER_BYTES)?),
            send_pool: Pool::new(SEND_SLOTS, SLOT_BYTES)?,
            queue: Vec::with_capacity(usize::from(SEND_SLOTS)),
            ready: Vec::new(),
            sends: SendBatch::new(usize::from(SEND_SLOTS)),
            resender: Resender::new(&udp),
            receives: ReceiveBatch::new(RECEIVES_PER_TURN),
            pieces: Vec::new(),
            paused: false,
            counters: EngineCounters::default(),
            queues: Arc::new([]),
            tun,
            udp: Outlets {
                shared: udp,
                lane: None,
            },
            wake,
        })
    }

    /// Sends the queue, in order.
    fn flush(&mut self, events: &mut Vec<Event>) {
        let mut done = 0;
        while let Some(first) = self.queue.get(done) {
            let socket = self.udp.of(first);
            if !self.resender.takes_whole(first) {
                events.push(Event::Sent(self.resender.send_single(
                    socket,
                    first,
                    &mut self.counters,
                )));
                done += 1;
                continue;
            }
            let resender = &self.resender;
            let whole = self.queue[done..]
                .iter()
                .take_while(|run| resender.takes_whole(run) && run.lane_port == first.lane_port)
                .map(send::outgoing);
            self.counters.enters += 1;
            match self.sends.send(socket, whole) {
                Ok(count) => {
                    let sent = self.queue[done..][..count]
                        .iter()
                        .map(|run| Event::Sent(send::outcome(run, Ok(()))));
                    events.extend(sent);
                    done += count;
                }
                Err(errno) => {
                    let sent = self.resender.recover(socket, first, errno, &mut self.counters);
                    events.push(Event::Sent(sent));
                    done += 1;
                }
            }
        }
        self.queue.clear();
    }

    fn read(&mut self, readable: Readable, events: &mut Vec<Event>) -> io::Result<()> {
        if readable.wake {
            self.wake.drain();
            self.counters.enters += 1;
            events.push(Event::Woken);
        }
        if readable.udp {
            self.receive(events)?;
        }
        if readable.tun {
            self.read_tun(events)?;
        }
        Ok(())
    }

    fn read_tun(&mut self, events: &mut Vec<Event>) -> io::Result<()> {
        // Backpressure: every frame read is to find two send slots.
        for _ in 0..READS_PER_TURN.min(self.frames_wanted()) {
            let Some(mut buffer) = self.tun_pool.acquire() else {
                self.counters.tun_enobufs += 1;
                return Ok(());
            };
            self.counters.enters += 1;
            match self.tun.read(buffer.bytes_mut()) {
                Ok(0) => return Ok(()),
                Ok(len) => events.push(Event::Tun(TunBuffer { buffer, len })),
                Err(error) => {
                    return errno::of_tun_read(error.raw_os_error().unwrap_or(libc::EIO)).map_or(Ok(()), Err);
                }
            }
        }
        Ok(())
    }

    fn receive(&mut self, events: &mut Vec<Event>) -> io::Result<()> {
        self.receives.refill(self.arrived.pool());
        if self.receives.is_empty() {
            self.counters.udp_enobufs += 1;
            return Ok(());
        }
        self.counters.enters += 1;
        match self.receives.receive(&self.udp.shared) {
            Ok(messages) => {
                for message in messages {
                    let Some((buffer, payload, received)) = message else {
                        self.counters.udp_discarded += 1;
                        continue;
                    };
                    self.arrived.arrive(buffer.index(), payload.clone());
                    events.push(Event::Udp(UdpBuffer {
                        buffer,
                        payload,
                        received,
                    }));
                }
                Ok(())
            }
            Err(libc::EAGAIN) => Ok(()),
            Err(errno) => {
                self.counters.udp_recv_errors += 1;
                errno::of_udp_receive(errno).map_or(Ok(()), Err)
            }
        }
    }

    /// How many frames there are send slots for.
    fn frames_wanted(&self) -> usize {
        self.send_pool.free_count() / 2
    }

    /// Waits until something can be read; what that is.
    fn poll(&mut self, timeout: Option<Duration>) -> io::Result<Readable> {
        let has_udp_buffer = !self.receives.is_empty() || self.arrived.pool().free_count() > 0;
        let wants_tun = self.frames_wanted() > 0 && self.tun_pool.free_count() > 0;
        self.counters.tun_paused += u64::from(!wants_tun);
        let files = [
            (wants_tun && !self.paused).then(|| self.tun.as_fd()),
            (has_udp_buffer && !self.paused).then(|| self.udp.shared.as_fd()),
            Some(self.wake.as_fd()),
        ];
        self.counters.enters += 1;
        let [tun, udp, wake] = poll::readable(files, timeout)?;
        Ok(Readable { tun, udp, wake })
    }
}

impl Engine for Plain {
    fn turn(&mut self, wait: Wait, events: &mut Vec<Event>) -> io::Result<()> {
        self.counters.turns += 1;
        let before = events.len();
        events.append(&mut self.ready);
        self.flush(events);
        self.read(
            Readable {
                tun: !self.paused,
                udp: !self.paused,
                wake: self.wake.is_rung(),
            },
            events,
        )?;
        let timeout = match wait {
            _ if events.len() > before => return Ok(()),
            Wait::Now => return Ok(()),
            Wait::Block => None,
            Wait::For(timeout) => Some(timeout),
            // Nothing here waits for more than one event.
            Wait::Batch { timeout, .. } => timeout,
        };
        let readable = self.poll(timeout)?;
        self.read(readable, events)
    }

    fn datagrams<'a>(&'a mut self, buffer: &'a mut UdpBuffer) -> (Received, &'a mut [u8]) {
        assert!(buffer.buffer.is_of(self.arrived.pool()), "a buffer of another engine");
        (buffer.received, &mut buffer.buffer.bytes_mut()[buffer.payload.clone()])
    }

    fn slots(&self) -> SendSlots {
        SendSlots(Rc::clone(&self.send_pool))
    }

    fn send(&mut self, run: SendRun) {
        send::check(&run);
        assert!(run.slot.buffer.is_of(&self.send_pool), "a slot of another engine");
        self.queue.push(run);
    }

    /// Writes at once: nothing is gained by waiting.
    fn write(&mut self, group: Group) {
        self.arrived.keep(&group);
        let mut head = [0; HEAD_ROOM];
        let head = &mut head[..group.head().len()];
        head.copy_from_slice(group.head());
        let queue = group.queue.and_then(|number| self.queues.get(usize::from(number)));
        let tun = queue.unwrap_or(&self.tun).as_fd().as_raw_fd();
        let result = if self.arrived.pieces(head, &group, &mut self.pieces) {
            let count = libc::c_int::try_from(self.pieces.len()).expect("at most PIECES_MAX");
            self.counters.enters += 1;
            // SAFETY: head, the group's own bytes and the kept receive buffers are readable until the call returns.
            let written = unsafe { libc::writev(tun, self.pieces.as_ptr(), count) };
            if written < 0 { Err(last_errno()) } else { Ok(()) }
        } else {
            Err(libc::EMSGSIZE)
        };
        self.arrived.release(&group);
        self.ready.push(Event::Written { group, result });
    }

    fn use_queues(&mut self, queues: Arc<[TunQueue]>) {
        assert!(self.queues.is_empty(), "the queues are known");
        self.queues = queues;
    }

    fn writes_waiting(&self) -> usize {
        // A write is done before it returns.
        0
    }

    fn replace_udp(&mut self, socket: UdpSocket) -> io::Result<()> {
        // The new socket's device may have the checksum offload that GSO needs.
        self.resender = Resender::new(&socket);
        self.udp.shared = socket;
        Ok(())
    }

    fn add_lane_socket(&mut self, socket: UdpSocket) -> io::Result<()> {
        self.udp.lane = Some(socket);
        Ok(())
    }

    fn pause(&mut self) {
        self.paused = true;
    }

    fn go_on(&mut self) {
        self.paused = false;
    }

    fn is_still(&self) -> bool {
        self.paused && self.queue.is_empty() && self.ready.is_empty()
    }

    fn counters(&self) -> EngineCounters {
        self.counters
    }
}
