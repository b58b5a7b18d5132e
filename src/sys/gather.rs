//! TUN writes: a group's head and parts as the kernel's iovecs, whose buffers stay put until the write is over.

use super::pool::Pool;
use crate::path::coalesce::{Group, Part};
use std::ops::Range;
use std::rc::Rc;

/// Room for a group's head: virtio_net_hdr (10), IPv6 or IPv4 with options (60), TCP with options (60).
pub(super) const HEAD_ROOM: usize = 192;
/// UIO_MAXIOV (linux/uio.h): how many pieces one writev takes.
const PIECES_MAX: usize = 1024;

/// The receive buffers that groups refer to, and where in them the datagrams are.
pub(super) struct Arrived {
    pool: Rc<Pool>,
    payloads: Box<[Range<usize>]>,
}

impl Arrived {
    /// Nothing has arrived in any buffer of `pool`.
    pub(super) fn new(pool: Rc<Pool>) -> Arrived {
        let payloads = vec![0..0; pool.count()].into_boxed_slice();
        Arrived { pool, payloads }
    }

    /// The buffers.
    pub(super) fn pool(&self) -> &Rc<Pool> {
        &self.pool
    }

    /// Notes what arrived in `buffer`.
    pub(super) fn arrive(&mut self, buffer: u16, payload: Range<usize>) {
        debug_assert!(payload.end <= self.pool.size());
        self.payloads[usize::from(buffer)] = payload;
    }

    /// A write of `group` was queued: its buffers are kept until [`Arrived::release`].
    ///
    /// # Panics
    /// When a part lies outside what arrived, or its buffer is not held.
    pub(super) fn keep(&self, group: &Group) {
        for part in group.parts() {
            let len = if part.buffer == Part::OWN {
                group.own.len()
            } else {
                self.payloads[usize::from(part.buffer)].len()
            };
            let end = u64::from(part.start) + u64::from(part.len);
            assert!(end <= len as u64, "{part:?} is not within the {len} bytes that arrived");
        }
        buffers(group).for_each(|buffer| self.pool.begin_read(buffer));
    }

    /// The write of `group` is over.
    pub(super) fn release(&self, group: &Group) {
        buffers(group).for_each(|buffer| self.pool.end_read(buffer));
    }

    /// Fills `iovecs` with `head` and the parts of `group`, which [`Arrived::keep`] has seen; false when a write can't have
    /// that many pieces. They are valid until the group changes or `release`; the kernel may read through them.
    pub(super) fn pieces(&self, head: &[u8], group: &Group, iovecs: &mut Vec<libc::iovec>) -> bool {
        iovecs.clear();
        if group.parts().len() >= PIECES_MAX {
            return false;
        }
        iovecs.push(libc::iovec {
            iov_base: head.as_ptr().cast_mut().cast(),
            iov_len: head.len(),
        });
        iovecs.extend(group.parts().iter().map(|part| {
            let start = part.start as usize;
            let base = if part.buffer == Part::OWN {
                group.own.as_ptr().cast_mut().wrapping_add(start)
            } else {
                let at = self.payloads[usize::from(part.buffer)].start + start;
                self.pool.address(part.buffer).wrapping_add(at)
            };
            libc::iovec {
                iov_base: base.cast(),
                iov_len: part.len as usize,
            }
        }));
        true
    }
}

/// The receive buffers of `group`'s parts, neighbours that are the same once.
fn buffers(group: &Group) -> impl Iterator<Item = u16> {
    let mut previous = Part::OWN;
    group.parts().iter().map(|part| part.buffer).filter(move |&buffer| {
        let is_new = buffer != previous && buffer != Part::OWN;
        previous = buffer;
        is_new
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::path::coalesce::{Coalescer, Offloads, Origin};
    use crate::sys::pool::Buffer;

    /// An IPv6 packet without payload.
    const PACKET: [u8; 40] = {
        let mut packet = [0; 40];
        (packet[0], packet[6], packet[7]) = (0x60, 59, 64);
        packet
    };
    /// Where it lies in its buffer, and where what arrived begins.
    const AT: usize = 16;
    const ARRIVED_AT: usize = 100;

    /// A pool in whose one buffer a datagram arrived that has `PACKET` at `AT`.
    fn arrived() -> (Arrived, Buffer) {
        let pool = Pool::new(1, 4096).unwrap();
        let mut buffer = pool.acquire().unwrap();
        buffer.bytes_mut()[ARRIVED_AT + AT..][..PACKET.len()].copy_from_slice(&PACKET);
        let mut arrived = Arrived::new(pool);
        arrived.arrive(0, ARRIVED_AT..ARRIVED_AT + AT + PACKET.len());
        (arrived, buffer)
    }

    /// A group of the packet said to be at `at` of that buffer.
    fn group(at: usize) -> Group {
        let mut groups = Vec::new();
        let mut coalescer = Coalescer::new(Offloads { tcp: true, udp: true });
        coalescer
            .push(0, at, &PACKET, Origin::default(), 0, &mut groups)
            .unwrap();
        coalescer.flush(&mut groups);
        groups.remove(0)
    }

    #[test]
    fn parts_count_from_where_the_datagrams_begin() {
        let (arrived, buffer) = arrived();
        let (group, mut pieces) = (group(AT), Vec::new());
        arrived.keep(&group);
        assert!(arrived.pieces(group.head(), &group, &mut pieces));
        assert_eq!(pieces.len(), 2);
        assert_eq!(
            (pieces[0].iov_base.cast_const().cast(), pieces[0].iov_len),
            (group.head().as_ptr(), group.head().len())
        );
        let start = buffer.bytes()[ARRIVED_AT + AT..].as_ptr();
        assert_eq!(
            (pieces[1].iov_base.cast_const().cast(), pieces[1].iov_len),
            (start, PACKET.len())
        );
        drop(buffer);
        assert_eq!(arrived.pool().free_count(), 0, "kept until the write is over");
        arrived.release(&group);
        assert_eq!(arrived.pool().free_count(), 1);
    }

    #[test]
    fn a_packet_of_its_own_is_written_from_there() {
        let (arrived, _buffer) = arrived();
        let mut bytes = vec![0; AT];
        bytes.extend(PACKET);
        let group = Group::from_owned(bytes, AT..AT + PACKET.len(), false, 0).unwrap();
        arrived.keep(&group);
        let mut pieces = Vec::new();
        assert!(arrived.pieces(group.head(), &group, &mut pieces));
        assert_eq!(pieces[1].iov_base.cast_const().cast(), group.own[AT..].as_ptr());
        arrived.release(&group);
    }

    #[test]
    #[should_panic(expected = "is not within the 56 bytes that arrived")]
    fn a_part_outside_of_what_arrived_is_refused() {
        let (arrived, _buffer) = arrived();
        arrived.keep(&group(AT + 1));
    }

    #[test]
    #[should_panic(expected = "which is not held")]
    fn a_part_of_a_buffer_that_was_returned_is_refused() {
        let (arrived, buffer) = arrived();
        drop(buffer);
        arrived.keep(&group(AT));
    }
}
