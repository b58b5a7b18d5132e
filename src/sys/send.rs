//! Sending: what sendmsg(2) refers to besides the payload, several messages by one sendmmsg(2), and what to do when
//! the kernel refuses a run.

use super::address::SockAddr;
use super::cmsg::Control;
use super::engine::{EngineCounters, SLOT_BYTES, SendRun, Sent};
use super::udp::UdpSocket;
use crate::proto::endpoint::Endpoint;
use std::os::fd::{AsFd, AsRawFd};

/// Address and control data of one message.
pub(super) struct Envelope {
    address: SockAddr,
    control: Control,
}

/// One message to send.
#[derive(Clone, Copy)]
pub(super) struct Outgoing<'a> {
    pub(super) payload: &'a [u8],
    /// Bytes per datagram when the kernel is to cut the payload; none sends it as one.
    pub(super) segment: Option<u16>,
    pub(super) to: Endpoint,
    pub(super) tos: u8,
}

impl Envelope {
    /// An empty one.
    pub(super) fn new() -> Envelope {
        let nowhere = std::net::SocketAddr::from(([0, 0, 0, 0], 0));
        let address = SockAddr::encode(super::address::Family::Dual, nowhere);
        Envelope {
            address: address.expect("a dual-stack socket has every address"),
            control: Control::new(),
        }
    }

    /// Addresses `outgoing` for `socket`; false when the socket has no such family.
    pub(super) fn address(&mut self, socket: &UdpSocket, outgoing: &Outgoing<'_>) -> bool {
        let Some(address) = SockAddr::encode(socket.family(), outgoing.to.remote) else {
            return false;
        };
        self.address = address;
        self.control = Control::new();
        if let Some(segment) = outgoing.segment {
            self.control.segment(segment);
        }
        if let Some(local) = &outgoing.to.local {
            self.control.source(socket.family(), local);
        }
        if outgoing.tos != 0 {
            self.control.tos(outgoing.to.remote.ip(), outgoing.tos);
        }
        true
    }

    /// A header that points to this envelope and to `iovec`; valid as long as both stay where they are.
    pub(super) fn header(&self, iovec: *mut libc::iovec) -> libc::msghdr {
        let mut header = empty_header();
        let (address, control) = (self.address.bytes(), self.control.bytes());
        // The kernel only reads through these pointers.
        header.msg_name = address.as_ptr().cast_mut().cast();
        header.msg_namelen = libc::socklen_t::try_from(address.len()).expect("at most 28");
        header.msg_iov = iovec;
        header.msg_iovlen = 1;
        if !control.is_empty() {
            header.msg_control = control.as_ptr().cast_mut().cast();
            header.msg_controllen = control.len() as _;
        }
        header
    }
}

/// A header that refers to nothing. (On musl it has padding fields, so it can't be written as a literal; its lengths, and the flags
/// of sendmmsg and recvmmsg, have other integer types there than with glibc, hence `as _` where they are given.)
pub(super) fn empty_header() -> libc::msghdr {
    // SAFETY: msghdr is integers and raw pointers, for all of which zero is a value.
    unsafe { std::mem::zeroed() }
}

impl Outgoing<'_> {
    /// Whether `errno` may mean that the source address in `to.local` is not this machine's any more: `EINVAL` (IPv4 and
    /// IPv6 say it of a foreign address), `EADDRNOTAVAIL`, `ENODEV` (the interface is gone), `ENETUNREACH` and
    /// `EHOSTUNREACH` (no route from that address).
    pub(super) fn may_have_stale_source(&self, errno: i32) -> bool {
        let blamed = [
            libc::EINVAL,
            libc::EADDRNOTAVAIL,
            libc::ENODEV,
            libc::ENETUNREACH,
            libc::EHOSTUNREACH,
        ];
        self.to.local.is_some() && blamed.contains(&errno)
    }
}

/// The sockets that runs leave from.
pub(super) struct Outlets {
    /// The worker's socket on the port that all share.
    pub(super) shared: UdpSocket,
    /// The one on the lane's own port.
    pub(super) lane: Option<UdpSocket>,
}

impl Outlets {
    /// The socket for `run`.
    pub(super) fn of(&self, run: &SendRun) -> &UdpSocket {
        self.lane.as_ref().filter(|_| run.lane_port).unwrap_or(&self.shared)
    }
}

/// Scratch memory for sendmmsg(2).
pub(super) struct SendBatch {
    headers: Box<[libc::mmsghdr]>,
    iovecs: Box<[libc::iovec]>,
    envelopes: Box<[Envelope]>,
}

impl SendBatch {
    /// For up to `capacity` messages per call, at least 1.
    pub(super) fn new(capacity: usize) -> SendBatch {
        let iovec = libc::iovec {
            iov_base: std::ptr::null_mut(),
            iov_len: 0,
        };
        SendBatch {
            headers: (0..capacity)
                .map(|_| libc::mmsghdr {
                    msg_hdr: empty_header(),
                    msg_len: 0,
                })
                .collect(),
            iovecs: vec![iovec; capacity].into_boxed_slice(),
            envelopes: (0..capacity).map(|_| Envelope::new()).collect(),
        }
    }

    /// Hands as many of `messages` to the kernel as fit one call and as it takes: how many that were, or the errno that
    /// the first one met. No message: `Ok(0)`.
    pub(super) fn send<'a>(
        &mut self,
        socket: &UdpSocket,
        messages: impl Iterator<Item = Outgoing<'a>>,
    ) -> Result<usize, i32> {
        let mut count: u32 = 0;
        let places = self.headers.iter_mut().zip(&mut self.iovecs).zip(&mut self.envelopes);
        // The shorter one first: zip takes a message only when there is a place for it.
        for (((header, iovec), envelope), outgoing) in places.zip(messages) {
            if !envelope.address(socket, &outgoing) {
                if count == 0 {
                    return Err(libc::EAFNOSUPPORT);
                }
                break;
            }
            iovec.iov_base = outgoing.payload.as_ptr().cast_mut().cast();
            iovec.iov_len = outgoing.payload.len();
            header.msg_hdr = envelope.header(iovec);
            count += 1;
        }
        if count == 0 {
            return Ok(0);
        }
        // SAFETY: the first `count` headers are filled in and point to iovecs and envelopes of self and to payloads
        // that 'a keeps borrowed, all in place until the call returns; the kernel writes only msg_len.
        let sent = unsafe {
            libc::sendmmsg(
                socket.as_fd().as_raw_fd(),
                self.headers.as_mut_ptr(),
                count,
                libc::MSG_DONTWAIT as _,
            )
        };
        usize::try_from(sent).map_err(|_| last_errno())
    }
}

/// The calling thread's errno.
pub(super) fn last_errno() -> i32 {
    std::io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO)
}

/// Sends runs outside of the ring: what the kernel refused as a whole, and everything once GSO is off.
pub(super) struct Resender {
    batch: SendBatch,
    gso: bool,
    /// The kernel has refused GSO, so runs leave from here.
    refused: bool,
}

impl Resender {
    /// For `socket`.
    pub(super) fn new(socket: &UdpSocket) -> Resender {
        Resender {
            batch: SendBatch::new(super::engine::DATAGRAMS_MAX as usize),
            gso: socket.gso(),
            refused: false,
        }
    }

    /// Whether the kernel may be asked to send `run` as a whole.
    pub(super) fn takes_whole(&self, run: &SendRun) -> bool {
        run.count == 1 || self.gso
    }

    /// Whether runs leave from here, and would overtake what waits in a ring: then everything has to leave from here.
    pub(super) fn overtakes_a_ring(&self) -> bool {
        self.refused
    }

    /// Sends the datagrams of `run` one by one.
    pub(super) fn send_single(&mut self, socket: &UdpSocket, run: &SendRun, counters: &mut EngineCounters) -> Sent {
        counters.runs_unsegmented += u64::from(run.count > 1);
        let (taken, result) = self.one_by_one(socket, run, counters);
        let sent = Sent {
            taken,
            result,
            ..outcome(run, Ok(()))
        };
        match result {
            Err(errno) if taken == 0 && outgoing(run).may_have_stale_source(errno) => {
                self.without_source(socket, run, counters).unwrap_or(sent)
            }
            _ => sent,
        }
    }

    /// The kernel refused all of `run` with `errno`. Tries what may help; tells how it ended.
    ///
    /// `EIO`: the device has no checksum offload or the route has an xfrm policy (udp_send_skb): GSO goes off for this
    /// socket, and the run leaves one by one. `EMSGSIZE`, `EINVAL` (before 6.14): the segments exceed the path's MTU: the
    /// run leaves one by one, in fragments, and the worker is told. A source address that is gone: the kernel chooses
    /// one. `EAGAIN`, `ENOBUFS` and everything else: lost, as on any network.
    pub(super) fn recover(
        &mut self,
        socket: &UdpSocket,
        run: &SendRun,
        errno: i32,
        counters: &mut EngineCounters,
    ) -> Sent {
        if outgoing(run).may_have_stale_source(errno)
            && let Some(sent) = self.without_source(socket, run, counters)
        {
            return sent;
        }
        match errno {
            libc::EIO if run.count > 1 => {
                (self.gso, self.refused) = (false, true);
                counters.gso_off = 1;
                self.send_single(socket, run, counters)
            }
            libc::EMSGSIZE | libc::EINVAL if run.count > 1 => {
                let sent = self.send_single(socket, run, counters);
                // Whatever stopped the single datagrams is not the run's size.
                if sent.result.is_ok() {
                    Sent {
                        result: Err(libc::EMSGSIZE),
                        ..sent
                    }
                } else {
                    sent
                }
            }
            errno => outcome(run, Err(errno)),
        }
    }

    /// Sends `run` from whichever address the kernel chooses; none when that does not help either.
    fn without_source(&mut self, socket: &UdpSocket, run: &SendRun, counters: &mut EngineCounters) -> Option<Sent> {
        let mut whole = outgoing(run);
        whole.to.local = None;
        let left = if self.takes_whole(run) {
            counters.enters += 1;
            self.batch.send(socket, std::iter::once(whole)).is_ok()
        } else {
            let datagrams = singles(run).map(|single| Outgoing { to: whole.to, ..single });
            counters.enters += 1;
            self.batch.send(socket, datagrams) == Ok(run.count as usize)
        };
        if !left {
            return None;
        }
        counters.stale_sources += 1;
        Some(Sent {
            stale_source: true,
            ..outcome(run, Ok(()))
        })
    }

    fn one_by_one(
        &mut self,
        socket: &UdpSocket,
        run: &SendRun,
        counters: &mut EngineCounters,
    ) -> (u32, Result<(), i32>) {
        let mut taken = 0;
        while taken < run.count {
            counters.enters += 1;
            match self.batch.send(socket, singles(run).skip(taken as usize)) {
                // sendmmsg reports an error only when it took nothing: the next round meets it.
                Ok(count) => taken += u32::try_from(count).expect("at most DATAGRAMS_MAX"),
                Err(errno) => return (taken, Err(errno)),
            }
        }
        (taken, Ok(()))
    }
}

/// `run` as one message.
pub(super) fn outgoing(run: &SendRun) -> Outgoing<'_> {
    let segment = u16::try_from(run.segment).ok().filter(|_| run.count > 1);
    Outgoing {
        payload: &run.slot.bytes()[..run.len],
        segment,
        to: run.to,
        tos: run.tos,
    }
}

fn singles(run: &SendRun) -> impl Iterator<Item = Outgoing<'_>> {
    let payload = &run.slot.bytes()[..run.len];
    payload.chunks(run.segment).map(|payload| Outgoing {
        payload,
        segment: None,
        to: run.to,
        tos: run.tos,
    })
}

/// All of `run` left, or nothing of it.
pub(super) fn outcome(run: &SendRun, result: Result<(), i32>) -> Sent {
    Sent {
        tag: run.tag,
        count: run.count,
        taken: if result.is_ok() { run.count } else { 0 },
        len: run.len,
        segment: run.segment,
        result,
        stale_source: false,
    }
}

/// Checks the contract of [`SendRun`].
pub(super) fn check(run: &SendRun) {
    let SendRun {
        len, segment, count, ..
    } = *run;
    assert!(
        (1..=SLOT_BYTES).contains(&len) && segment > 0,
        "a run of {len} bytes in datagrams of {segment}"
    );
    assert!(count <= super::engine::DATAGRAMS_MAX, "a run of {count} datagrams");
    assert_eq!(
        len.div_ceil(segment),
        count as usize,
        "{len} bytes in datagrams of {segment}"
    );
    assert!(
        count == 1 || segment <= usize::from(u16::MAX),
        "UDP_SEGMENT is 16 bits wide"
    );
}
