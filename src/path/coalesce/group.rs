//! What is written to the TUN in one piece: headers of our own and references to payload that stays where it was received.

use super::Drop;
use super::layout::HEADERS_LEN_MAX;
use crate::wire::ip::Ip;
use crate::wire::vnet::{F_NEEDS_CSUM, VNET_LEN, VnetHeader};
use std::ops::Range;

/// Bytes of the longest head.
const HEAD_LEN_MAX: usize = VNET_LEN + HEADERS_LEN_MAX;

/// A range of bytes in a receive buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Part {
    /// The receive buffer's index, or [`Part::OWN`].
    pub buffer: u16,
    /// Where the range begins in the buffer, in bytes.
    pub start: u32,
    /// Bytes of the range.
    pub len: u32,
}

impl Part {
    /// In place of a buffer's index: the range lies in [`Group::own`].
    pub const OWN: u16 = u16::MAX;
}

/// Which workers of this end open the lanes of a session, one each.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Lanes {
    /// Who opens the first lane; the others follow, and after the last worker comes the first one.
    pub first: u8,
    /// How many lanes the sender has, which may be more than there are workers.
    pub count: u8,
}

/// A TCP connection, or the datagrams between two UDP ports, as far as one packet tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Connection {
    /// Equal for all packets of both directions. Two connections may have the same, as TCP and UDP between the same ports do.
    pub name: u64,
    /// Of the session that the packet came by.
    pub lanes: Lanes,
    /// What the packet says about the connection's beginning.
    pub begins: Begins,
}

/// What a packet says about whether its connection begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Begins {
    /// Any other TCP packet.
    No,
    /// The answer to a connection's first one, SYN and ACK: who called has sent no data yet. With its sequence number, which another
    /// connection between the same ports hardly shares.
    Answered(u32),
    /// UDP does not say.
    Unknown,
}

/// One TUN write: [`head`](Group::head), then all [`parts`](Group::parts). Its memory is on the heap: the addresses that a
/// write in flight refers to stay the same while the group moves.
#[derive(Debug)]
pub struct Group {
    /// The packet itself, when it is in no receive buffer.
    pub own: Vec<u8>,
    /// The worker to whose TUN queue it is to be written; none for the queue of whoever writes it.
    pub queue: Option<u8>,
    pub(super) inner: Box<Inner>,
}

#[derive(Debug)]
pub(super) struct Inner {
    pub(super) head: [u8; HEAD_LEN_MAX],
    pub(super) head_len: usize,
    pub(super) parts: Vec<Part>,
    pub(super) bytes: usize,
    pub(super) received_ns: u64,
    pub(super) connection: Option<Connection>,
}

impl Group {
    /// A packet that is its own memory: an ICMP error of ours, or `range` of a datagram that another worker handed over.
    /// `partial`: its checksum field holds only the pseudo-header sum. `None` when `range` of `packet` is no whole IP packet, or one
    /// without the checksum field that `partial` speaks of.
    pub fn from_owned(packet: Vec<u8>, range: Range<usize>, partial: bool, received_ns: u64) -> Option<Group> {
        let part = Part {
            buffer: Part::OWN,
            start: range.start as u32,
            len: range.len() as u32,
        };
        let vnet = lone_header(Ip::parse(packet.get(range)?)?, partial).ok()?;
        let mut group = Group::empty();
        group.own = packet;
        group.set_lone(&vnet, part, received_ns, None);
        Some(group)
    }

    /// The virtio_net_hdr and, if packets were merged, their common headers.
    pub fn head(&self) -> &[u8] {
        &self.inner.head[..self.inner.head_len]
    }

    /// What follows the head, in this order.
    pub fn parts(&self) -> &[Part] {
        &self.inner.parts
    }

    /// How many packets were merged.
    pub fn packets(&self) -> u32 {
        self.inner.parts.len() as u32
    }

    /// When the first packet was received, in nanoseconds of the clock that it came with.
    pub fn received_ns(&self) -> u64 {
        self.inner.received_ns
    }

    /// Bytes of all merged packets, IP headers included, as they were received.
    pub fn bytes(&self) -> usize {
        self.inner.bytes
    }

    /// Whose packets these are; `None` for other protocols, fragments, packets in memory of their own, and where the sender has one lane.
    pub fn connection(&self) -> Option<Connection> {
        self.inner.connection
    }

    pub(super) fn empty() -> Group {
        let inner = Inner {
            head: [0; HEAD_LEN_MAX],
            head_len: 0,
            parts: Vec::with_capacity(super::PACKETS_MAX),
            bytes: 0,
            received_ns: 0,
            connection: None,
        };
        Group {
            own: Vec::new(),
            queue: None,
            inner: Box::new(inner),
        }
    }

    /// Makes an empty group one of a single packet.
    #[inline]
    pub(super) fn set_lone(&mut self, vnet: &VnetHeader, part: Part, received_ns: u64, connection: Option<Connection>) {
        let inner = &mut *self.inner;
        inner.head[..VNET_LEN].copy_from_slice(&vnet.bytes());
        inner.head_len = VNET_LEN;
        inner.parts.push(part);
        inner.bytes = part.len as usize;
        inner.received_ns = received_ns;
        inner.connection = connection;
    }
}

/// The virtio_net_hdr of a packet that is written alone.
///
/// # Errors
/// [`Drop::BadInner`] when the checksum is said to be partial and there is none.
#[inline]
pub(super) fn lone_header(ip: Ip<'_>, partial: bool) -> Result<VnetHeader, Drop> {
    if !partial {
        return Ok(VnetHeader::default());
    }
    let (start, offset) = ip.checksum_field().ok_or(Drop::BadInner)?;
    Ok(VnetHeader {
        flags: F_NEEDS_CSUM,
        csum_start: start as u16,
        csum_offset: offset as u16,
        ..VnetHeader::default()
    })
}
