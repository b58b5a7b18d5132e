//! Receiving several messages by one recvmmsg(2).

use super::address::ADDRESS_ROOM;
use super::cmsg::CONTROL_ROOM;
use super::engine::Received;
use super::pool::{Buffer, Pool};
use super::received;
use super::send::{empty_header, last_errno};
use super::udp::UdpSocket;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd};
use std::rc::Rc;

/// A receive: its buffer, where in it the payload is, and what the kernel said. None was not worth passing on.
pub(super) type Message = Option<(Buffer, Range<usize>, Received)>;

/// Scratch memory for recvmmsg(2), and the buffers that it will fill.
pub(super) struct ReceiveBatch {
    headers: Box<[libc::mmsghdr]>,
    iovecs: Box<[libc::iovec]>,
    addresses: Box<[[u8; ADDRESS_ROOM]]>,
    controls: Box<[[u8; CONTROL_ROOM]]>,
    buffers: Vec<Buffer>,
}

impl ReceiveBatch {
    /// For up to `capacity` messages per call.
    pub(super) fn new(capacity: usize) -> ReceiveBatch {
        let iovec = libc::iovec {
            iov_base: std::ptr::null_mut(),
            iov_len: 0,
        };
        ReceiveBatch {
            headers: (0..capacity)
                .map(|_| libc::mmsghdr {
                    msg_hdr: empty_header(),
                    msg_len: 0,
                })
                .collect(),
            iovecs: vec![iovec; capacity].into_boxed_slice(),
            addresses: vec![[0; ADDRESS_ROOM]; capacity].into_boxed_slice(),
            controls: vec![[0; CONTROL_ROOM]; capacity].into_boxed_slice(),
            buffers: Vec::with_capacity(capacity),
        }
    }

    /// Takes buffers from `pool` until there is one for each message, or it has no more.
    pub(super) fn refill(&mut self, pool: &Rc<Pool>) {
        while self.buffers.len() < self.headers.len() {
            let Some(buffer) = pool.acquire() else { return };
            self.buffers.push(buffer);
        }
    }

    /// Whether there is no buffer to receive into.
    pub(super) fn is_empty(&self) -> bool {
        self.buffers.is_empty()
    }

    /// Receives what is there, without waiting. The errno when there is nothing (`EAGAIN`) or it fails.
    pub(super) fn receive(&mut self, socket: &UdpSocket) -> Result<impl Iterator<Item = Message>, i32> {
        let places = self
            .headers
            .iter_mut()
            .zip(&mut self.iovecs)
            .zip(&mut self.addresses)
            .zip(&mut self.controls);
        let mut count: u32 = 0;
        for (buffer, (((header, iovec), address), control)) in self.buffers.iter_mut().zip(places) {
            let bytes = buffer.bytes_mut();
            *iovec = libc::iovec {
                iov_base: bytes.as_mut_ptr().cast(),
                iov_len: bytes.len(),
            };
            let header = &mut header.msg_hdr;
            header.msg_name = address.as_mut_ptr().cast();
            header.msg_namelen = libc::socklen_t::try_from(ADDRESS_ROOM).expect("a few bytes");
            header.msg_iov = iovec;
            header.msg_iovlen = 1;
            header.msg_control = control.as_mut_ptr().cast();
            header.msg_controllen = CONTROL_ROOM as _;
            count += 1;
        }
        let (fd, headers) = (socket.as_fd().as_raw_fd(), self.headers.as_mut_ptr());
        // SAFETY: the first `count` headers point to as many places of self, each writable for the length that its header
        // says, and to the whole of as many buffers that self owns; none is touched until the call returns.
        let received = unsafe { libc::recvmmsg(fd, headers, count, libc::MSG_DONTWAIT as _, std::ptr::null_mut()) };
        let received = usize::try_from(received).map_err(|_| last_errno())?;
        let filled = self.headers.iter().zip(&self.addresses).zip(&self.controls);
        Ok(self
            .buffers
            .drain(..received)
            .zip(filled)
            .map(|(buffer, ((header, address), control))| {
                let payload = 0..header.msg_len as usize;
                let header = &header.msg_hdr;
                let address = address.get(..header.msg_namelen as usize)?;
                let control = control.get(..header.msg_controllen as _)?;
                let received = received::recvmsg(address, control, payload.len(), header.msg_flags)?;
                Some((buffer, payload, received))
            }))
    }
}
