//! Single IP packets -> groups for the TUN. The smallest version that the engines can be built against.

use super::drops::Drop;
use std::ops::Range;

/// Which offloads the TUN takes on write.
#[derive(Debug, Clone, Copy, Default)]
pub struct Offloads {
    /// TCP segmentation.
    pub tcp: bool,
    /// UDP segmentation.
    pub udp: bool,
}

/// A range of a receive buffer, or of the group's own bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Part {
    /// The receive buffer's number, or [`Part::OWN`].
    pub buffer: u16,
    /// First byte, from the beginning of what arrived in the buffer.
    pub start: u32,
    /// Bytes.
    pub len: u32,
}

impl Part {
    /// Names [`Group::own`] in place of a receive buffer.
    pub const OWN: u16 = u16::MAX;
}

/// A packet for the TUN: a head and ranges of receive buffers.
pub struct Group {
    head: Vec<u8>,
    parts: Vec<Part>,
    /// What parts in [`Part::OWN`] refer to.
    pub own: Vec<u8>,
    received_ns: u64,
}

impl Group {
    /// A packet that is its own memory.
    pub fn from_owned(packet: Vec<u8>, range: Range<usize>, _partial: bool, received_ns: u64) -> Option<Group> {
        let (start, len) = (u32::try_from(range.start).ok()?, u32::try_from(range.len()).ok()?);
        let parts = vec![Part {
            buffer: Part::OWN,
            start,
            len,
        }];
        packet.get(range)?;
        Some(Group {
            head: vec![0; 10],
            parts,
            own: packet,
            received_ns,
        })
    }

    /// virtio_net_hdr and headers.
    pub fn head(&self) -> &[u8] {
        &self.head
    }

    /// What follows the head.
    pub fn parts(&self) -> &[Part] {
        &self.parts
    }

    /// How many IP packets.
    pub fn packets(&self) -> u32 {
        1
    }

    /// When the first packet was received.
    pub fn received_ns(&self) -> u64 {
        self.received_ns
    }
}

/// Makes groups.
pub struct Coalescer;

impl Coalescer {
    /// For a TUN with these offloads.
    pub fn new(_limits: Offloads) -> Coalescer {
        Coalescer
    }

    /// A packet at `at` of receive buffer `buffer`.
    pub fn push(
        &mut self,
        buffer: u16,
        at: usize,
        packet: &[u8],
        _partial: bool,
        received_ns: u64,
        out: &mut Vec<Group>,
    ) -> Result<(), Drop> {
        let (start, len) = (u32::try_from(at), u32::try_from(packet.len()));
        let (Ok(start), Ok(len)) = (start, len) else {
            return Err(Drop::BadInner);
        };
        out.push(Group {
            head: vec![0; 10],
            parts: vec![Part { buffer, start, len }],
            own: Vec::new(),
            received_ns,
        });
        Ok(())
    }

    /// Finishes every open group.
    pub fn flush(&mut self, _out: &mut Vec<Group>) {}

    /// Takes the allocation back.
    pub fn recycle(&mut self, _group: Group) {}
}
