//! The requests of one ring and the memory that they refer to.
//!
//! All of it is in [`Memory`] and stays there, unmoved, until the final completion of the request. Dropping
//! [`Requests`] cancels every request and reaps it before the memory goes: closing a ring alone cancels some time later,
//! and until then the kernel may write to the buffers. If the kernel does not finish, the memory is leaked.

use super::allowance::Allowance;
use crate::path::coalesce::Group;
use crate::sys::address::ADDRESS_ROOM;
use crate::sys::cmsg::CONTROL_ROOM;
use crate::sys::engine::{BUFFER_BYTES, SLOT_BYTES, SendRun, Wait};
use crate::sys::gather::{Arrived, HEAD_ROOM};
use crate::sys::pool::{Buffer, Pool};
use crate::sys::probe::Refusal;
use crate::sys::ring::{BufferRing, Completion, Ring};
use crate::sys::send::{self, Envelope, Outgoing, Outlets};
use io_uring::types::{CancelBuilder, Fd, Fixed};
use io_uring::{opcode, squeue};
use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::rc::Rc;
use std::time::{Duration, Instant};

const SUBMISSIONS: u32 = 1024;
/// Completions between two reaps.
pub(super) const COMPLETIONS: u32 = 4096;
/// Frames have up to 64 KiB, and TCP at full speed keeps a few dozen of them in the TUN's queue. See [`Allowance`] for how many
/// of these the kernel has at a time.
const TUN_BUFFERS: u16 = 64;
/// A turn whose receives use all of them up, one per datagram where nobody merges those (UDP_GRO), ends without the next receive
/// being armed. More than these were a little faster there, but a flood leaves each worker with all of them.
const UDP_BUFFERS: u16 = 64;
/// How many full frames, and receives, a turn should bring at most. With 4, 8, 16 and 64 of both, four TCP streams took 1.70, 1.59 (in
/// another run 1.87), 1.59 (1.92) and 1.70 (2.00) s of CPU per GB on a core with 512 KiB of second-level cache. With 2 MiB one stream
/// had 7.49 Gbit/s with 8 of both and 7.74 with 4 receives (standard errors 0.08 and 0.05), as much with 4 of both or 2 receives;
/// four streams did not differ.
const FULL_FRAMES: u16 = 8;
const FULL_RECEIVES: u16 = 4;
/// Two per TUN buffer: a frame of 64 KiB and its records' overhead don't fit one.
const SEND_SLOTS: u16 = 2 * TUN_BUFFERS;
/// Small packets that can't be merged make many: 64 receives of up to 64 datagrams. The others wait a turn.
const WRITE_SLOTS: u16 = 512;

/// Sends, writes, three multishots, and the cancellations of the read, of the receive and of everything.
const REQUESTS_MAX: u32 = SEND_SLOTS as u32 + WRITE_SLOTS as u32 + 3 + 3;
// Whatever is queued or in flight fits the submission queue, so pushing can't fail. All completions between two reaps
// fit the completion queue.
const _: () = assert!(REQUESTS_MAX <= SUBMISSIONS);
const _: () = assert!(REQUESTS_MAX + TUN_BUFFERS as u32 + UDP_BUFFERS as u32 <= COMPLETIONS);

/// Registered files.
const TUN: Fixed = Fixed(0);
const UDP: Fixed = Fixed(1);
const WAKE: Fixed = Fixed(2);
/// Empty until there is a socket on the lane's own port.
const LANE: Fixed = Fixed(3);
/// Of an empty place (IORING_REGISTER_FILES, io_uring_register(2)).
const NO_FILE: RawFd = -1;

/// What a request is; its user data is the discriminant above 16 bits of index.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Request {
    ReadTun,
    ReceiveUdp,
    PollWake,
    Send(u16),
    Write(u16),
    Cancel,
}

impl Request {
    fn user_data(self) -> u64 {
        let (kind, index) = match self {
            Request::ReadTun => (1, 0),
            Request::ReceiveUdp => (2, 0),
            Request::PollWake => (3, 0),
            Request::Send(index) => (4, index),
            Request::Write(index) => (5, index),
            Request::Cancel => (6, 0),
        };
        kind << 16 | u64::from(index)
    }

    fn of_user_data(user_data: u64) -> Request {
        let index = u16::try_from(user_data & 0xffff).expect("16 bits");
        match user_data >> 16 {
            1 => Request::ReadTun,
            2 => Request::ReceiveUdp,
            3 => Request::PollWake,
            4 => Request::Send(index),
            5 => Request::Write(index),
            6 => Request::Cancel,
            _ => unreachable!("the kernel returns the user data of our requests"),
        }
    }
}

/// What a completion brought.
pub(super) enum Outcome {
    /// The TUN's read: how many bytes there are in which buffer, or an errno.
    Frame(Option<Buffer>, Result<usize, i32>),
    /// The socket's receive: as above, in the layout of a multishot recvmsg.
    Datagrams(Option<Buffer>, Result<usize, i32>),
    /// The eventfd is readable.
    Woken,
    /// A send ended.
    Sent(SendRun, Result<(), i32>),
    /// A write ended.
    Written(Group, Result<(), i32>),
    /// Nothing to report.
    Nothing,
}

/// What became of a group given to [`Requests::write`].
pub(super) enum Write {
    /// Queued.
    Started,
    /// There is no free slot at the moment.
    NoSlot(Group),
    /// More pieces than one write takes. Its buffers are still kept.
    TooManyPieces(Group),
}

/// The ring, its requests and their memory.
pub(super) struct Requests {
    ring: ManuallyDrop<Ring>,
    memory: ManuallyDrop<Memory>,
    /// Whether the multishot requests are in flight.
    read_armed: bool,
    receive_armed: bool,
    /// Whether they are being cancelled.
    read_cancelled: bool,
    receive_cancelled: bool,
    /// Whether the receive is from a socket that was replaced.
    receive_is_stale: bool,
    poll_armed: bool,
    sends_in_flight: usize,
    writes_in_flight: usize,
}

struct Memory {
    tun_ring: BufferRing,
    tun_allowance: Allowance,
    udp_ring: BufferRing,
    udp_allowance: Allowance,
    tun_pool: Rc<Pool>,
    arrived: Arrived,
    /// The room for address and control data in each receive.
    receive_header: Box<libc::msghdr>,
    send_pool: Rc<Pool>,
    /// One per send slot, by its index.
    sends: Box<[SendFlight]>,
    head_pool: Rc<Pool>,
    /// One per write slot, by the index of its head.
    writes: Box<[WriteFlight]>,
}

/// `run` is there while the request is in flight, and nothing here changes as long.
struct SendFlight {
    run: Option<SendRun>,
    header: libc::msghdr,
    iovec: libc::iovec,
    envelope: Envelope,
}

/// `write` is there while the request is in flight, and nothing here changes as long.
struct WriteFlight {
    write: Option<(Group, Buffer)>,
    iovecs: Vec<libc::iovec>,
}

impl Requests {
    /// A ring with its memory, on the thread that will use it.
    pub(super) fn new(tun: BorrowedFd<'_>, udp: BorrowedFd<'_>, wake: BorrowedFd<'_>) -> Result<Requests, Refusal> {
        let ring = Ring::new(SUBMISSIONS, COMPLETIONS)?;
        ring.register_files(&[tun.as_raw_fd(), udp.as_raw_fd(), wake.as_raw_fd(), NO_FILE])?;
        let memory = Memory::new(&ring)?;
        Ok(Requests {
            ring: ManuallyDrop::new(ring),
            memory: ManuallyDrop::new(memory),
            read_armed: false,
            receive_armed: false,
            read_cancelled: false,
            receive_cancelled: false,
            receive_is_stale: false,
            poll_armed: false,
            sends_in_flight: 0,
            writes_in_flight: 0,
        })
    }

    /// The send slots.
    pub(super) fn send_pool(&self) -> &Rc<Pool> {
        &self.memory.send_pool
    }

    /// What arrived from the socket.
    pub(super) fn arrived(&mut self) -> &mut Arrived {
        &mut self.memory.arrived
    }

    /// Gives free receive buffers to the kernel.
    pub(super) fn provide(&mut self) {
        let memory = &mut *self.memory;
        let most = memory.udp_allowance.buffers(memory.udp_ring.provided());
        while memory.udp_ring.provided() < most && memory.udp_ring.provide(memory.arrived.pool()) {}
        memory.udp_ring.publish();
        // Backpressure: every frame that the kernel may deliver is to find two send slots.
        let most = memory.tun_allowance.buffers(memory.tun_ring.provided());
        let most = most.min(memory.send_pool.free_count() / 2);
        while memory.tun_ring.provided() < most && memory.tun_ring.provide(&memory.tun_pool) {}
        memory.tun_ring.publish();
    }

    /// Queues the eventfd's poll if it is not in flight.
    pub(super) fn arm_poll(&mut self) {
        if self.poll_armed {
            return;
        }
        let entry = opcode::PollAdd::new(WAKE, u32::from(libc::POLLIN.cast_unsigned()))
            .multi(true)
            .build();
        // SAFETY: refers to no memory.
        unsafe { self.ring.push(&entry.user_data(Request::PollWake.user_data())) };
        self.poll_armed = true;
    }

    /// Queues the socket's receive if it is not in flight and the kernel has buffers for it (without any it would end at
    /// once, turn after turn). Whether it was queued.
    pub(super) fn arm_receive(&mut self) -> bool {
        if self.receive_is_stale {
            // A cancellation does not find a receive that is just being carried out.
            self.cancel_receive();
        }
        if self.receive_armed || self.memory.udp_ring.provided() == 0 {
            return false;
        }
        let header = &raw const *self.memory.receive_header;
        let entry = opcode::RecvMsgMulti::new(UDP, header, self.memory.udp_ring.group()).build();
        // SAFETY: the header is boxed in Memory. The kernel writes only to buffers whose state is Kernel.
        unsafe { self.ring.push(&entry.user_data(Request::ReceiveUdp.user_data())) };
        self.receive_armed = true;
        true
    }

    /// Makes `udp` the socket of all requests that are submitted from here on, and ends the receive from the old one,
    /// which the kernel would keep open for it. Its last completion lets [`Requests::arm_receive`] start the next.
    pub(super) fn replace_udp(&mut self, udp: BorrowedFd<'_>) -> io::Result<()> {
        // Requests in flight hold on to the file they began with, so nothing they refer to changes under them.
        self.ring.replace_file(UDP.0, udp)?;
        self.receive_is_stale = self.receive_armed;
        self.cancel_receive();
        Ok(())
    }

    /// Ends the TUN's read and the socket's receive; what they have brought by then still comes. Both are ended when
    /// [`Requests::are_done`] says so; until then this is to be called before each `enter`, for a request that is just being
    /// carried out can't be cancelled.
    pub(super) fn cancel_reads(&mut self) {
        if self.read_armed && !self.read_cancelled {
            self.cancel(Request::ReadTun);
            self.read_cancelled = true;
        }
        self.cancel_receive();
    }

    fn cancel_receive(&mut self) {
        if self.receive_armed && !self.receive_cancelled {
            self.cancel(Request::ReceiveUdp);
            self.receive_cancelled = true;
        }
    }

    fn cancel(&mut self, request: Request) {
        let one = CancelBuilder::user_data(request.user_data());
        let cancel = opcode::AsyncCancel2::new(one).build();
        // SAFETY: refers to no memory.
        unsafe { self.ring.push(&cancel.user_data(Request::Cancel.user_data())) };
    }

    /// Sends from `socket` what asks for the lane's own port.
    pub(super) fn add_lane_socket(&self, socket: BorrowedFd<'_>) -> io::Result<()> {
        self.ring.replace_file(LANE.0, socket)
    }

    /// Queues the TUN's read, as [`Requests::arm_receive`].
    pub(super) fn arm_read(&mut self) -> bool {
        if self.read_armed || self.memory.tun_ring.provided() == 0 {
            return false;
        }
        let entry = opcode::ReadMulti::new(TUN, 0, self.memory.tun_ring.group())
            .offset(u64::MAX)
            .build();
        // io-uring 0.7.15 drops the flag that makes TUN the number of a registered file: it would read descriptor 0.
        let entry = entry
            .flags(squeue::Flags::FIXED_FILE)
            .user_data(Request::ReadTun.user_data());
        // SAFETY: refers to no memory. The kernel writes only to buffers whose state is Kernel.
        unsafe { self.ring.push(&entry) };
        self.read_armed = true;
        true
    }

    /// Whether the TUN is being read.
    pub(super) fn is_reading(&self) -> bool {
        self.read_armed
    }

    /// Whether datagrams are being received.
    pub(super) fn is_receiving(&self) -> bool {
        self.receive_armed
    }

    /// Whether there is something to submit, or completions wait in the kernel because the queue was full.
    pub(super) fn has_queued(&mut self) -> bool {
        self.ring.has_queued()
    }

    /// Whether nothing is in flight but what waits until the TUN, the present socket or the bell can be read.
    pub(super) fn only_watch(&self) -> bool {
        let is_cancelling = self.read_cancelled || self.receive_cancelled || self.receive_is_stale;
        !is_cancelling && self.sends_in_flight == 0 && self.writes_in_flight == 0
    }

    /// Queues a send; back it comes when its socket has no such address family.
    pub(super) fn send(&mut self, sockets: &Outlets, run: SendRun) -> Result<(), SendRun> {
        let index = run.slot.buffer.index();
        let flight = &mut self.memory.sends[usize::from(index)];
        let Outgoing { payload, .. } = send::outgoing(&run);
        if !flight.envelope.address(sockets.of(&run), &send::outgoing(&run)) {
            return Err(run);
        }
        flight.iovec = libc::iovec {
            iov_base: payload.as_ptr().cast_mut().cast(),
            iov_len: payload.len(),
        };
        flight.header = flight.envelope.header(&raw mut flight.iovec);
        // MSG_DONTWAIT: a full send buffer is a dropped packet, not a request that waits in the kernel.
        let file = if run.lane_port && sockets.lane.is_some() {
            LANE
        } else {
            UDP
        };
        let entry = opcode::SendMsg::new(file, &raw const flight.header)
            .flags(libc::MSG_DONTWAIT.cast_unsigned())
            .build();
        flight.run = Some(run);
        self.sends_in_flight += 1;
        // SAFETY: header, iovec and envelope are the flight's, in a boxed slice; `run` owns the slot that the iovec
        // names, whose index no other run can have. The kernel only reads.
        unsafe { self.ring.push(&entry.user_data(Request::Send(index).user_data())) };
        Ok(())
    }

    /// Queues the write of a group whose buffers [`Arrived::keep`] keeps; `queue`: to that one instead of the ring's own, which has to
    /// stay open until the next [`Requests::enter`].
    pub(super) fn write(&mut self, group: Group, queue: Option<BorrowedFd<'_>>) -> Write {
        let memory = &mut *self.memory;
        let Some(mut head) = memory.head_pool.acquire() else {
            return Write::NoSlot(group);
        };
        let len = group.head().len();
        head.bytes_mut()[..len].copy_from_slice(group.head());
        let index = head.index();
        let flight = &mut memory.writes[usize::from(index)];
        if !memory.arrived.pieces(&head.bytes()[..len], &group, &mut flight.iovecs) {
            return Write::TooManyPieces(group);
        }
        let count = u32::try_from(flight.iovecs.len()).expect("at most PIECES_MAX");
        let iovecs = flight.iovecs.as_ptr();
        let write = match queue {
            None => opcode::Writev::new(TUN, iovecs, count),
            Some(queue) => opcode::Writev::new(Fd(queue.as_raw_fd()), iovecs, count),
        };
        let entry = write.offset(u64::MAX).build();
        flight.write = Some((group, head));
        self.writes_in_flight += 1;
        // SAFETY: the iovecs are the flight's, on the heap; `write` owns the head, and the group with its own bytes on the
        // heap; `arrived` keeps the receive buffers of its parts. The kernel only reads.
        unsafe { self.ring.push(&entry.user_data(Request::Write(index).user_data())) };
        Write::Started
    }

    /// Submits and waits.
    pub(super) fn enter(&mut self, wait: Wait) -> io::Result<()> {
        self.ring.enter(wait)
    }

    /// See [`Ring::reap`].
    pub(super) fn reap(&mut self, completions: &mut Vec<Completion>) -> bool {
        self.ring.reap(completions)
    }

    /// Takes back what a completion's request owned.
    pub(super) fn settle(&mut self, completion: &Completion) -> Outcome {
        let memory = &mut *self.memory;
        let result = match usize::try_from(completion.result) {
            Ok(count) => Ok(count),
            Err(_) => Err(completion.result.wrapping_neg()),
        };
        match Request::of_user_data(completion.user_data) {
            Request::ReadTun => {
                self.read_armed = completion.more;
                self.read_cancelled &= completion.more;
                let buffer = completion.buffer.map(|index| {
                    memory.tun_allowance.used(result.unwrap_or(0));
                    memory.tun_ring.take(&memory.tun_pool, index)
                });
                Outcome::Frame(buffer, result)
            }
            Request::ReceiveUdp => {
                self.receive_armed = completion.more;
                self.receive_cancelled &= completion.more;
                self.receive_is_stale &= completion.more;
                let buffer = completion.buffer.map(|index| {
                    memory.udp_allowance.used(result.unwrap_or(0));
                    memory.udp_ring.take(memory.arrived.pool(), index)
                });
                Outcome::Datagrams(buffer, result)
            }
            Request::PollWake => {
                self.poll_armed = completion.more;
                Outcome::Woken
            }
            Request::Send(index) => {
                let Some(run) = memory.sends[usize::from(index)].run.take() else {
                    return Outcome::Nothing;
                };
                self.sends_in_flight -= 1;
                Outcome::Sent(run, result.map(drop))
            }
            Request::Write(index) => {
                let Some((group, _head)) = memory.writes[usize::from(index)].write.take() else {
                    return Outcome::Nothing;
                };
                self.writes_in_flight -= 1;
                memory.arrived.release(&group);
                Outcome::Written(group, result.map(drop))
            }
            Request::Cancel => {
                if result.is_err() {
                    // Whoever still wants them to end tries again.
                    (self.read_cancelled, self.receive_cancelled) = (false, false);
                }
                Outcome::Nothing
            }
        }
    }

    /// Whether nothing is in flight but the eventfd's poll.
    pub(super) fn are_done(&self) -> bool {
        let is_armed = self.read_armed || self.receive_armed;
        !is_armed && self.sends_in_flight == 0 && self.writes_in_flight == 0
    }

    fn is_quiet(&self) -> bool {
        self.are_done() && !self.poll_armed
    }

    /// Cancels every request and waits for its last completion; false when the kernel does not finish in time.
    fn quiesce(&mut self) -> bool {
        const PATIENCE: Duration = Duration::from_secs(2);
        /// A cancellation does not find what is just being carried out.
        const AGAIN: Duration = Duration::from_millis(10);
        let started = Instant::now();
        let mut cancelled: Option<Instant> = None;
        let mut completions = Vec::new();
        while !self.is_quiet() {
            if started.elapsed() >= PATIENCE {
                return false;
            }
            if cancelled.is_none_or(|cancelled| cancelled.elapsed() >= AGAIN) {
                let cancel = opcode::AsyncCancel2::new(CancelBuilder::any()).build();
                // SAFETY: refers to no memory.
                unsafe { self.ring.push(&cancel.user_data(Request::Cancel.user_data())) };
                cancelled = Some(Instant::now());
            }
            if self.ring.enter(Wait::For(AGAIN)).is_err() {
                return false;
            }
            self.ring.reap(&mut completions);
            for completion in &completions {
                // Buffers fall back to their pools, and nothing provides them to the kernel again.
                drop(self.settle(completion));
            }
        }
        true
    }
}

impl Drop for Requests {
    fn drop(&mut self) {
        let is_quiet = self.quiesce();
        // The descriptors go at once, and with the last one of the TUN its interface; closing the ring would let go of
        // them some time later, which is also what happens after an error.
        let _ = self.ring.unregister_files();
        // SAFETY: the fields are not used after drop().
        unsafe { ManuallyDrop::drop(&mut self.ring) };
        if is_quiet {
            // SAFETY: as above. No request is left that refers to the memory.
            unsafe { ManuallyDrop::drop(&mut self.memory) };
        }
    }
}

impl Memory {
    fn new(ring: &Ring) -> Result<Memory, Refusal> {
        let pool = |count, size| Pool::new(count, size).map_err(|_| Refusal::Memory);
        let mut receive_header = Box::new(send::empty_header());
        receive_header.msg_namelen = libc::socklen_t::try_from(ADDRESS_ROOM).expect("a few bytes");
        receive_header.msg_controllen = CONTROL_ROOM as _;
        let iovec = libc::iovec {
            iov_base: std::ptr::null_mut(),
            iov_len: 0,
        };
        let send_flight = || SendFlight {
            run: None,
            header: send::empty_header(),
            iovec,
            envelope: Envelope::new(),
        };
        // SAFETY: Memory keeps it, and Requests drops the ring first. (Should the next step fail, it goes before the ring
        // does, but no request was made that would look into it.)
        let tun_ring = unsafe { BufferRing::register(ring, 0, TUN_BUFFERS) }?;
        // SAFETY: as above.
        let udp_ring = unsafe { BufferRing::register(ring, 1, UDP_BUFFERS) }?;
        Ok(Memory {
            tun_ring,
            tun_allowance: Allowance::new(FULL_FRAMES, TUN_BUFFERS),
            udp_ring,
            udp_allowance: Allowance::new(FULL_RECEIVES, UDP_BUFFERS),
            tun_pool: pool(TUN_BUFFERS, BUFFER_BYTES)?,
            arrived: Arrived::new(pool(UDP_BUFFERS, BUFFER_BYTES)?),
            receive_header,
            send_pool: pool(SEND_SLOTS, SLOT_BYTES)?,
            sends: (0..SEND_SLOTS).map(|_| send_flight()).collect(),
            head_pool: pool(WRITE_SLOTS, HEAD_ROOM)?,
            writes: (0..WRITE_SLOTS)
                .map(|_| WriteFlight {
                    write: None,
                    iovecs: Vec::new(),
                })
                .collect(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn user_data_names_the_request() {
        let requests = [
            Request::ReadTun,
            Request::ReceiveUdp,
            Request::PollWake,
            Request::Cancel,
        ];
        let indexed = [0, 1, u16::MAX]
            .into_iter()
            .flat_map(|index| [Request::Send(index), Request::Write(index)]);
        for request in requests.into_iter().chain(indexed) {
            assert_eq!(Request::of_user_data(request.user_data()), request);
        }
    }
}
