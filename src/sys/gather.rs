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
