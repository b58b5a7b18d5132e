//! Sending from sources that are not ours: a raw socket, whose IPv4 headers we write. (Root tests include this file by path.)

use std::io::{self, IoSlice};
use std::net::SocketAddrV4;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use ipnet::Ipv4Net;
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, MultiHeaders, SockFlag, SockProtocol, SockType, SockaddrIn, sendmmsg, setsockopt, socket,
    sockopt,
};
use ringway::wire::checksum::Sum;

const IP_HEADER_LEN: usize = 20;
const UDP_HEADER_LEN: usize = 8;
const UDP: u8 = 17;
/// Messages per sendmmsg, at most.
const BATCH_MAX: usize = 64;
/// A rate is made of bursts, at most as many as this per second.
const BURSTS_PER_SECOND: f64 = 2000.0;
/// Below these, a source would be a system's.
const PORTS_FROM: u64 = 1024;
const BUFFER_BYTES: usize = 4 << 20;

/// A raw socket, and the datagrams that leave by it in turn.
pub(crate) struct Flood {
    fd: OwnedFd,
    target: SocketAddrV4,
    from: Ipv4Net,
    packets: Vec<Packet>,
    /// Datagrams made so far.
    number: u64,
}

/// What has left.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Sent {
    /// Datagrams that the kernel took.
    pub(crate) datagrams: u64,
    /// Calls that it refused.
    pub(crate) refused: u64,
    pub(crate) elapsed: Duration,
}

/// A packet, and the sum over what does not change in it.
struct Packet {
    bytes: Vec<u8>,
    sum: Sum,
}

impl Flood {
    /// Sends `messages` in turn to `target`, from all addresses of `from` in turn.
    ///
    /// # Errors
    /// `EPERM` without CAP_NET_RAW.
    pub(crate) fn new(target: SocketAddrV4, from: Ipv4Net, messages: &[Vec<u8>]) -> io::Result<Flood> {
        let fd = socket(
            AddressFamily::Inet,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC,
            SockProtocol::Raw,
        )?;
        // Without CAP_NET_ADMIN it stays what net.core.wmem_default says.
        let _ = setsockopt(&fd, sockopt::SndBufForce, &BUFFER_BYTES);
        Ok(Flood {
            fd,
            target,
            from,
            packets: messages.iter().map(|message| Packet::new(target, message)).collect(),
            number: 0,
        })
    }

    /// Sends at `rate` datagrams per second as long as `goes_on`, which is told what was sent and the time since the start.
    pub(crate) fn run(&mut self, rate: f64, mut goes_on: impl FnMut(u64, Duration) -> bool) -> io::Result<Sent> {
        let burst = (rate / BURSTS_PER_SECOND).ceil().clamp(1.0, BATCH_MAX as f64) as usize;
        let addresses = vec![Some(SockaddrIn::from(self.target)); BATCH_MAX];
        let mut headers = MultiHeaders::<SockaddrIn>::preallocate(burst, None);
        let mut batch: Vec<Vec<u8>> = vec![Vec::new(); burst];
        let started = Instant::now();
        let mut sent = Sent::default();
        loop {
            sent.elapsed = started.elapsed();
            if !goes_on(sent.datagrams, sent.elapsed) {
                return Ok(sent);
            }
            let due = Duration::from_secs_f64(sent.datagrams as f64 / rate);
            if due > sent.elapsed {
                // Short, so that the end is seen soon.
                std::thread::sleep((due - sent.elapsed).min(Duration::from_millis(20)));
                continue;
            }
            for place in &mut batch {
                self.next(place);
            }
            let slices: Vec<_> = batch.iter().map(|packet| [IoSlice::new(packet)]).collect();
            let result = sendmmsg(
                self.fd.as_raw_fd(),
                &mut headers,
                &slices,
                &addresses,
                [],
                MsgFlags::empty(),
            );
            match result.map(Iterator::count) {
                Ok(count) => sent.datagrams += count as u64,
                Err(Errno::EINTR) => {}
                Err(
                    Errno::EAGAIN | Errno::ENOBUFS | Errno::ENETUNREACH | Errno::EHOSTUNREACH | Errno::ECONNREFUSED,
                ) => {
                    sent.refused += 1;
                }
                Err(errno) => return Err(errno.into()),
            }
        }
    }

    /// Writes the next packet to `place`, from the next source.
    fn next(&mut self, place: &mut Vec<u8>) {
        let number = self.number;
        self.number += 1;
        let packet = &self.packets[(number % self.packets.len() as u64) as usize];
        let hosts = 1 << (32 - u32::from(self.from.prefix_len()));
        let source = u64::from(u32::from(self.from.network())) + number % hosts;
        // A large odd step: successive ports are far apart, and all are used.
        let port = PORTS_FROM + number.wrapping_mul(40_503) % (65_536 - PORTS_FROM);
        place.clear();
        place.extend_from_slice(&packet.bytes);
        let [source, port] = [
            (source as u32).to_be_bytes().to_vec(),
            (port as u16).to_be_bytes().to_vec(),
        ];
        place[12..16].copy_from_slice(&source);
        place[20..22].copy_from_slice(&port);
        let checksum = packet.sum.plus(Sum::of(&source)).plus(Sum::of(&port)).udp_checksum();
        place[26..28].copy_from_slice(&checksum.to_be_bytes());
    }
}

impl Packet {
    /// The kernel fills the IPv4 header's length, identification and checksum in.
    fn new(target: SocketAddrV4, message: &[u8]) -> Packet {
        let udp_len = (UDP_HEADER_LEN + message.len()) as u16;
        let mut bytes = vec![0; IP_HEADER_LEN];
        (bytes[0], bytes[8], bytes[9]) = (0x45, 64, UDP);
        bytes[16..20].copy_from_slice(&target.ip().octets());
        bytes.extend([0, 0]);
        bytes.extend(target.port().to_be_bytes());
        bytes.extend(udp_len.to_be_bytes());
        bytes.extend([0, 0]);
        bytes.extend_from_slice(message);
        let sum = Sum::pseudo(&target.ip().octets(), UDP)
            .word(udp_len)
            .plus(Sum::of(&bytes[IP_HEADER_LEN..]));
        Packet { bytes, sum }
    }
}
