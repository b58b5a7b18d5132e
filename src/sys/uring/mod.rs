//! The engine on io_uring: multishot receives into provided buffers, sends and writes as requests, one
//! io_uring_enter per turn that has something to submit and finds something done.
//!
//! A turn: start what was deferred, give buffers back, re-arm what ended; enter; reap; complete. Where nothing has completed it
//! sleeps in poll(2), on the files that the multishots read, and enters again: whoever sleeps in io_uring_enter is woken like by a stranger
//! (io_req_local_work_add), whoever sleeps in poll by somebody who says that he is about to be done (sock_def_readable,
//! WF_SYNC). So the scheduler runs it where the packets are in the cache.

mod allowance;
mod requests;

use self::requests::{COMPLETIONS, Outcome, Requests, Write};
use super::engine::{Engine, EngineCounters, Event, Received, SendRun, SendSlots, TunBuffer, UdpBuffer, Wait};
use super::pool::Buffer;
use super::probe::Refusal;
use super::ring::Completion;
use super::send::{self, Outlets, Resender};
use super::tun::TunQueue;
use super::udp::UdpSocket;
use super::wake::Wake;
use super::{errno, poll, received};
use crate::path::coalesce::Group;
use std::collections::VecDeque;
use std::io;
use std::os::fd::AsFd;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

/// The engine on io_uring.
pub struct Uring {
    // First, so that it is dropped before the descriptors it uses.
    requests: Requests,
    tun: TunQueue,
    /// Of all workers, by their numbers.
    queues: Arc<[TunQueue]>,
    udp: Outlets,
    wake: Wake,
    resender: Resender,
    /// Groups whose write waits for a free slot: as many as the receive buffers hold, and one pass's hand-overs.
    deferred: VecDeque<Group>,
    /// Events that did not come out of the ring; the next turn delivers them.
    ready: Vec<Event>,
    completions: Vec<Completion>,
    paused: bool,
    /// Whether poll has last told of a file that nothing came of.
    fruitless: bool,
    counters: EngineCounters,
}

/// The engine could not be built; what it was to be built of comes back.
pub struct Refused {
    /// Why.
    pub reason: Refusal,
    /// As given.
    pub tun: TunQueue,
    /// As given.
    pub udp: UdpSocket,
    /// As given.
    pub wake: Wake,
}

impl Uring {
    /// Builds the engine on the calling thread, which has to be the one that uses it, and starts receiving.
    ///
    /// # Errors
    /// When the kernel or its administrator does not let us: see [`Refusal`]. [`super::plain::Plain`] does the same job.
    pub fn new(tun: TunQueue, udp: UdpSocket, wake: Wake) -> Result<Uring, Refused> {
        let requests = match Requests::new(tun.as_fd(), udp.as_fd(), wake.as_fd()) {
            Ok(requests) => requests,
            Err(reason) => return Err(Refused { reason, tun, udp, wake }),
        };
        let mut engine = Uring {
            requests,
            resender: Resender::new(&udp),
            deferred: VecDeque::new(),
            ready: Vec::new(),
            completions: Vec::with_capacity(COMPLETIONS as usize),
            paused: false,
            fruitless: false,
            counters: EngineCounters::default(),
            tun,
            queues: Arc::new([]),
            udp: Outlets {
                shared: udp,
                lane: None,
            },
            wake,
        };
        // A file that can't be read without blocking refuses the multishot at once.
        let mut ready = Vec::new();
        if let Err(error) = engine.turn(Wait::Now, &mut ready) {
            let Uring {
                requests,
                tun,
                udp,
                wake,
                ..
            } = engine;
            drop(requests);
            return Err(Refused {
                reason: Refusal::Tun(error),
                tun,
                udp: udp.shared,
                wake,
            });
        }
        engine.ready = ready;
        engine.counters = EngineCounters::default();
        Ok(engine)
    }

    fn start_write(&mut self, group: Group) -> Result<(), Group> {
        let queue = group.queue.and_then(|number| self.queues.get(usize::from(number)));
        match self.requests.write(group, queue.map(TunQueue::as_fd)) {
            Write::Started => {}
            Write::NoSlot(group) => return Err(group),
            Write::TooManyPieces(group) => {
                self.requests.arrived().release(&group);
                self.ready.push(Event::Written {
                    group,
                    result: Err(libc::EMSGSIZE),
                });
            }
        }
        Ok(())
    }

    fn start_deferred(&mut self) {
        while let Some(group) = self.deferred.pop_front() {
            if let Err(group) = self.start_write(group) {
                self.deferred.push_front(group);
                return;
            }
        }
    }

    fn arm(&mut self) {
        self.requests.arm_poll();
        if self.paused {
            self.requests.cancel_reads();
            return;
        }
        if self.requests.arm_receive() {
            self.counters.udp_rearms += 1;
        }
        if self.requests.arm_read() {
            self.counters.tun_rearms += 1;
        }
        if !self.requests.is_reading() {
            self.counters.tun_paused += 1;
        }
    }

    /// One io_uring_enter; whether anything has completed. The first error that ends the engine.
    fn enter(&mut self, wait: Wait, events: &mut Vec<Event>) -> io::Result<bool> {
        self.counters.enters += 1;
        self.requests.enter(wait)?;
        events.append(&mut self.ready);
        self.reap(events)?;
        Ok(!self.completions.is_empty())
    }

    /// Sleeps until a multishot has something to read, or somebody rings; whether that has happened.
    fn poll(&mut self, timeout: Option<Duration>) -> io::Result<bool> {
        self.counters.enters += 1;
        // What is not being read, for want of buffers, may be readable for long.
        let files = [
            self.requests.is_reading().then(|| self.tun.as_fd()),
            self.requests.is_receiving().then(|| self.udp.shared.as_fd()),
            Some(self.wake.as_fd()),
        ];
        Ok(poll::readable(files, timeout)?.contains(&true))
    }

    /// Turns completions into events; the first error that ends the engine.
    fn reap(&mut self, events: &mut Vec<Event>) -> io::Result<()> {
        let mut completions = std::mem::take(&mut self.completions);
        if self.requests.reap(&mut completions) {
            self.counters.cq_overflow += 1;
        }
        let mut result = Ok(());
        for completion in &completions {
            let completed = self.complete(completion, events);
            result = result.and(completed);
        }
        self.completions = completions;
        result
    }

    fn complete(&mut self, completion: &Completion, events: &mut Vec<Event>) -> io::Result<()> {
        match self.requests.settle(completion) {
            Outcome::Frame(buffer, Ok(len)) => {
                events.extend(
                    buffer
                        .filter(|_| len > 0)
                        .map(|buffer| Event::Tun(TunBuffer { buffer, len })),
                );
            }
            // The read that a pause has ended.
            Outcome::Frame(_, Err(libc::ECANCELED)) => {}
            Outcome::Frame(_, Err(errno)) => {
                self.counters.tun_enobufs += u64::from(errno == libc::ENOBUFS);
                return errno::of_tun_read(errno).map_or(Ok(()), Err);
            }
            Outcome::Datagrams(Some(buffer), Ok(len)) => self.receive(buffer, len, events),
            Outcome::Datagrams(None, Ok(_)) => {}
            Outcome::Datagrams(_, Err(libc::ENOBUFS)) => self.counters.udp_enobufs += 1,
            // The receive from a socket that was replaced, or that a pause has ended.
            Outcome::Datagrams(_, Err(libc::ECANCELED)) => {}
            Outcome::Datagrams(_, Err(errno)) => {
                self.counters.udp_recv_errors += 1;
                return errno::of_udp_receive(errno).map_or(Ok(()), Err);
            }
            Outcome::Woken => {
                self.wake.drain();
                events.push(Event::Woken);
            }
            Outcome::Sent(run, Ok(())) => events.push(Event::Sent(send::outcome(&run, Ok(())))),
            Outcome::Sent(run, Err(errno)) => {
                events.push(Event::Sent(self.resender.recover(
                    self.udp.of(&run),
                    &run,
                    errno,
                    &mut self.counters,
                )));
            }
            Outcome::Written(group, result) => events.push(Event::Written { group, result }),
            Outcome::Nothing => {}
        }
        Ok(())
    }

    fn receive(&mut self, buffer: Buffer, len: usize, events: &mut Vec<Event>) {
        let Some((received, payload)) = received::multishot(&buffer.bytes()[..len]) else {
            self.counters.udp_discarded += 1;
            return;
        };
        self.requests.arrived().arrive(buffer.index(), payload.clone());
        events.push(Event::Udp(UdpBuffer {
            buffer,
            payload,
            received,
        }));
    }
}

impl Engine for Uring {
    fn turn(&mut self, wait: Wait, events: &mut Vec<Event>) -> io::Result<()> {
        self.counters.turns += 1;
        self.start_deferred();
        self.requests.provide();
        self.arm();
        let has_work = !self.ready.is_empty() || !self.deferred.is_empty();
        let timeout = match wait {
            Wait::Block if !has_work => None,
            Wait::For(timeout) if !has_work => Some(timeout),
            Wait::Batch { .. } if !has_work => return self.enter(wait, events).map(drop),
            _ => return self.enter(Wait::Now, events).map(drop),
        };
        // What has arrived nobody collects but we ourselves, so poll tells of it.
        if self.requests.has_queued() && self.enter(Wait::Now, events)? {
            return Ok(());
        }
        // Nobody but the ring tells of requests that are under way. And poll tells as long as a file can be read, the ring once: where they
        // disagree (a TUN that is just being removed is one case), this would go on without a rest.
        if std::mem::take(&mut self.fruitless) || !self.requests.only_watch() {
            return self.enter(wait, events).map(drop);
        }
        let is_told = self.poll(timeout)?;
        self.fruitless = !self.enter(Wait::Now, events)? && is_told;
        Ok(())
    }

    fn datagrams<'a>(&'a mut self, buffer: &'a mut UdpBuffer) -> (Received, &'a mut [u8]) {
        assert!(
            buffer.buffer.is_of(self.requests.arrived().pool()),
            "a buffer of another engine"
        );
        (buffer.received, &mut buffer.buffer.bytes_mut()[buffer.payload.clone()])
    }

    fn slots(&self) -> SendSlots {
        SendSlots(Rc::clone(self.requests.send_pool()))
    }

    fn send(&mut self, run: SendRun) {
        send::check(&run);
        assert!(
            run.slot.buffer.is_of(self.requests.send_pool()),
            "a slot of another engine"
        );
        let sent = if self.resender.takes_whole(&run) && !self.resender.overtakes_a_ring() {
            match self.requests.send(&self.udp, run) {
                Ok(()) => return,
                Err(run) => send::outcome(&run, Err(libc::EAFNOSUPPORT)),
            }
        } else {
            self.resender.send_single(self.udp.of(&run), &run, &mut self.counters)
        };
        self.ready.push(Event::Sent(sent));
    }

    fn write(&mut self, group: Group) {
        self.requests.arrived().keep(&group);
        let group = if self.deferred.is_empty() {
            self.start_write(group)
        } else {
            Err(group)
        };
        if let Err(group) = group {
            self.counters.writes_deferred += 1;
            self.deferred.push_back(group);
        }
    }

    fn use_queues(&mut self, queues: Arc<[TunQueue]>) {
        assert!(self.queues.is_empty(), "the queues are known");
        self.queues = queues;
    }

    fn writes_waiting(&self) -> usize {
        self.deferred.len()
    }

    fn replace_udp(&mut self, socket: UdpSocket) -> io::Result<()> {
        self.requests.replace_udp(socket.as_fd())?;
        // The new socket's device may have the checksum offload that GSO needs.
        self.resender = Resender::new(&socket);
        self.udp.shared = socket;
        Ok(())
    }

    fn add_lane_socket(&mut self, socket: UdpSocket) -> io::Result<()> {
        self.requests.add_lane_socket(socket.as_fd())?;
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
        self.paused && self.ready.is_empty() && self.deferred.is_empty() && self.requests.are_done()
    }

    fn counters(&self) -> EngineCounters {
        self.counters
    }
}
