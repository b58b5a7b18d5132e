//! What a worker asks of the kernel, whichever way the kernel is asked: frames from the TUN, datagrams from the UDP
//! socket, runs of datagrams out, super-packets into the TUN.
//!
//! One loop of a worker is one [`Engine::turn`]: what was queued goes out, the thread waits as it was told to, and what
//! happened comes back as [`Event`]s. Nothing else blocks, and in steady state nothing allocates.
//!
//! Buffers come as values. Whoever has a [`TunBuffer`] or [`TxSlot`] alone may touch its bytes; dropping it gives it
//! back. A [`UdpBuffer`]'s bytes are reached through the engine, because [`Engine::write`] refers to them by number:
//! that way no slice of a receive buffer can be alive while a write that reads from it is queued.

use super::pool::{Buffer, Pool};
use super::tun::TunQueue;
use super::udp::UdpSocket;
use crate::path::coalesce::Group;
use crate::path::gso::Slots;
pub use crate::path::report::Received;
use crate::proto::endpoint::Endpoint;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

/// Bytes of a send slot: the largest UDP payload (65,507 over IPv4, 65,527 over IPv6) and a little.
pub const SLOT_BYTES: usize = 64 * 1024;
/// Bytes of a receive buffer: the largest TUN frame (10 + 65,535) or UDP payload with its address and control data.
pub const BUFFER_BYTES: usize = 68 * 1024;
/// How many datagrams one send may carry (UDP_MAX_SEGMENTS of linux/udp.h before 6.9, which take one less than they say).
pub const DATAGRAMS_MAX: u32 = 63;

/// One worker's side of the kernel: one TUN queue, one UDP socket, one eventfd.
///
/// Engines and their buffers stay on the thread that made them.
pub trait Engine {
    /// Sends and writes what was queued, gives returned buffers back to the kernel, re-arms what ended, waits as told
    /// (not at all when events are at hand already) and appends what happened to `events`.
    ///
    /// EINTR, ENOBUFS and completion queue overflows are handled inside and counted.
    ///
    /// # Errors
    /// Only such as end the engine: the TUN is gone (`ENODEV`), or the kernel refuses what it granted before.
    fn turn(&mut self, wait: Wait, events: &mut Vec<Event>) -> io::Result<()>;

    /// What arrived in `buffer`: one or more datagrams, back to back, [`Received::segment`] bytes each, the last maybe
    /// shorter. [`crate::path::coalesce::Part::start`] counts from the beginning of this slice.
    ///
    /// # Panics
    /// When `buffer` is another engine's, or a queued write reads from it.
    fn datagrams<'a>(&'a mut self, buffer: &'a mut UdpBuffer) -> (Received, &'a mut [u8]);

    /// Where empty send slots come from. The engine reads only as many frames from the TUN as will find two of them each
    /// (what a frame of 64 KiB needs), so slots that are held keep frames in the TUN's queue.
    fn slots(&self) -> SendSlots;

    /// Queues a run of datagrams; an [`Event::Sent`] follows.
    ///
    /// # Panics
    /// When the run breaks the contract of [`SendRun`].
    fn send(&mut self, run: SendRun);

    /// Queues a write of `group` to the TUN; an [`Event::Written`] returns it. The buffers of its parts must be held
    /// (their `UdpBuffer`s not yet dropped) at the time of the call and may be dropped right after: they go back to the
    /// kernel after the final completion.
    ///
    /// # Panics
    /// When a part lies outside what arrived in its buffer, or the buffer is not held.
    fn write(&mut self, group: Group);

    /// Makes these, the queues of all workers by their numbers, the ones that [`Group::queue`] speaks of. Until then, and where there is
    /// no such number, every group goes to the engine's own queue.
    ///
    /// # Panics
    /// When it was told before.
    fn use_queues(&mut self, queues: Arc<[TunQueue]>);

    /// Groups that wait for earlier writes to end, in memory of the engine's: who writes from memory of his own, which no pool
    /// bounds, has to look before he adds more.
    fn writes_waiting(&self) -> usize;

    /// Receives from and sends on `socket` from here on. What the old socket has not delivered is lost; runs that were
    /// queued leave on either. The old socket is closed within a few turns, when the kernel has let go of it.
    ///
    /// # Errors
    /// Only such as end the engine: the kernel refuses what it granted before.
    fn replace_udp(&mut self, socket: UdpSocket) -> io::Result<()>;

    /// Sends the runs from `socket` that ask for it ([`SendRun::lane_port`]); nothing is received from it.
    ///
    /// # Errors
    /// The kernel refuses what it granted before.
    fn add_lane_socket(&mut self, socket: UdpSocket) -> io::Result<()>;

    /// Reads nothing more from the TUN and the socket, where it waits in the kernel. What had been read by then is delivered
    /// in this turn and the next ones.
    fn pause(&mut self);

    /// Reads again.
    fn go_on(&mut self);

    /// Whether it is paused and nothing is under way: all that was read has been delivered, and what was queued has left and
    /// been reported.
    fn is_still(&self) -> bool;

    /// What went on inside since the start.
    fn counters(&self) -> EngineCounters;
}

/// How long [`Engine::turn`] may wait for the first event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wait {
    /// Not at all.
    Now,
    /// Until something happens.
    Block,
    /// Until something happens or the time is over.
    For(Duration),
    /// As `For` (or as `Block` when `timeout` is none), but once something happened wait on for `events` completions
    /// or until `window` is over since the start of the wait, whichever comes first. Trades latency for fewer turns;
    /// 16 events and 50 us pay off with many small packets. Where the kernel can't (before 6.12) it is `For`.
    Batch {
        /// How many completions end the wait early.
        events: u32,
        /// How long the thread may wait for them.
        window: Duration,
        /// How long it may wait for the first.
        timeout: Option<Duration>,
    },
}

/// Something happened.
pub enum Event {
    /// A frame from the TUN.
    Tun(TunBuffer),
    /// Datagrams from the UDP socket: see [`Engine::datagrams`].
    Udp(UdpBuffer),
    /// The TUN took the group, or refused it. `EIO`: the link is down. `EINVAL`: a header or offload that the kernel does
    /// not take. `ENOMEM`, `ENOBUFS`, `EAGAIN`: no memory or queue space. None is worth a retry.
    Written {
        /// For [`crate::path::coalesce::Coalescer::recycle`].
        group: Group,
        /// The errno of a refusal.
        result: Result<(), i32>,
    },
    /// A run left, or did not.
    Sent(Sent),
    /// Someone rang the worker's eventfd.
    Woken,
}

/// A frame that came from the TUN: 10 bytes of virtio_net_hdr and an IP packet. Dropping it returns the buffer.
pub struct TunBuffer {
    pub(super) buffer: Buffer,
    pub(super) len: usize,
}

impl TunBuffer {
    /// The frame.
    pub fn frame(&self) -> &[u8] {
        &self.buffer.bytes()[..self.len]
    }
}

/// Datagrams that came from the UDP socket. Dropping it returns the buffer once no write refers to it.
pub struct UdpBuffer {
    pub(super) buffer: Buffer,
    pub(super) payload: std::ops::Range<usize>,
    pub(super) received: Received,
}

impl UdpBuffer {
    /// Its number: what [`crate::path::coalesce::Part::buffer`] calls it.
    pub fn index(&self) -> u16 {
        self.buffer.index()
    }

    /// Who sent the datagrams, and how.
    pub fn received(&self) -> Received {
        self.received
    }
}

/// A worker's send slots, apart from its engine, so that they can be filled while the engine lends out a received
/// datagram. The slot used last comes first.
#[derive(Clone)]
pub struct SendSlots(pub(super) Rc<Pool>);

impl SendSlots {
    /// One slot of no engine's.
    #[cfg(test)]
    pub(crate) fn one() -> SendSlots {
        SendSlots(Pool::new(1, SLOT_BYTES).expect("a little memory"))
    }

    /// How many are left.
    pub fn free(&self) -> usize {
        self.0.free_count()
    }
}

impl Slots for SendSlots {
    type Slot = TxSlot;

    fn acquire(&mut self) -> Option<TxSlot> {
        self.0.acquire().map(|buffer| TxSlot { buffer })
    }
}

impl AsMut<[u8]> for TxSlot {
    fn as_mut(&mut self) -> &mut [u8] {
        self.buffer.bytes_mut()
    }
}

/// An empty send buffer of [`SLOT_BYTES`] bytes. Dropping it returns it.
pub struct TxSlot {
    pub(super) buffer: Buffer,
}

impl TxSlot {
    /// The slot's bytes; what they hold is left over from earlier use.
    pub fn bytes(&self) -> &[u8] {
        self.buffer.bytes()
    }

    /// The slot's bytes, to be filled from the start.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        self.buffer.bytes_mut()
    }
}

/// A run of datagrams to one peer: `count` in the first `len` bytes of `slot`, `segment` bytes each, only the last may
/// be shorter.
pub struct SendRun {
    /// Where the bytes are.
    pub slot: TxSlot,
    /// Bytes in all: at most 65,507 to an IPv4 address, 65,527 to an IPv6 address.
    pub len: usize,
    /// Bytes per datagram, at least 1.
    pub segment: usize,
    /// How many datagrams: `len` divided by `segment`, rounded up; 1..=[`DATAGRAMS_MAX`].
    pub count: u32,
    /// Where to, and from which address of ours if that matters.
    pub to: Endpoint,
    /// The outer header's traffic class: DSCP and ECN.
    pub tos: u8,
    /// From the socket that [`Engine::add_lane_socket`] gave, if there is one.
    pub lane_port: bool,
    /// Comes back in [`Sent::tag`].
    pub tag: u64,
}

/// What became of a [`SendRun`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sent {
    /// As in the run.
    pub tag: u64,
    /// Datagrams in the run.
    pub count: u32,
    /// How many of them the kernel took; the others are lost.
    pub taken: u32,
    /// Bytes of the run (payload of UDP).
    pub len: usize,
    /// Bytes per datagram of the run.
    pub segment: usize,
    /// `EMSGSIZE`: the datagrams are larger than the path carries whole. The engine has sent them one by one already
    /// (`taken` says how many left, in fragments); send smaller ones to this peer.
    /// `EAGAIN`, `ENOBUFS`: the socket's or device's queue is full. `ENETUNREACH`, `EHOSTUNREACH`: no route.
    /// `EPERM`, `EACCES`: a firewall or a broadcast address. Anything else: what sendmsg(2) says.
    pub result: Result<(), i32>,
    /// The run left only after the engine let the kernel choose the source address: [`Endpoint::local`] of the run's
    /// destination is not ours any more and should be forgotten.
    pub stale_source: bool,
}

macro_rules! counters {
    ($($(#[doc = $doc:literal])+ $field:ident,)+) => {
        /// What went on inside an engine since its start.
        #[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
        pub struct EngineCounters { $($(#[doc = $doc])+ pub $field: u64,)+ }

        impl EngineCounters {
            /// Every counter with its name, in declaration order.
            pub fn each(&self) -> impl Iterator<Item = (&'static str, u64)> {
                [$((stringify!($field), self.$field),)+].into_iter()
            }
        }
    };
}

counters! {
    /// Calls of [`Engine::turn`].
    turns,
    /// System calls: io_uring_enter, or reads, writes, sends and polls.
    enters,
    /// The kernel had a frame but no buffer for it (it keeps the frame).
    tun_enobufs,
    /// The kernel had a datagram but no buffer for it (it keeps the datagram).
    udp_enobufs,
    /// Multishot TUN reads started anew.
    tun_rearms,
    /// Multishot UDP receives started anew.
    udp_rearms,
    /// Turns in which the TUN was not read because send slots were low.
    tun_paused,
    /// Completion queue overflows (the kernel kept the completions).
    cq_overflow,
    /// Errors of UDP receives that do not end the engine.
    udp_recv_errors,
    /// Datagrams dropped because they did not fit the buffer, had no sender, or were empty.
    udp_discarded,
    /// 1 when GSO was turned off because the device has no checksum offload (EIO).
    gso_off,
    /// Runs that were sent one by one (GSO is off or the kernel refused the run).
    runs_unsegmented,
    /// Runs that left only after the kernel was allowed to choose the source address.
    stale_sources,
    /// Groups that waited for a free write slot.
    writes_deferred,
}
