//! Packet sockets (packet(7)): seeing what passes the machine's interfaces, and ICMP sockets (icmp(7)) to send some.

use std::io;
use std::net::UdpSocket;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::time::Duration;

/// ETH_P_ALL (linux/if_ether.h) in network byte order, as socket(2) wants it.
const ETH_P_ALL: u16 = (libc::ETH_P_ALL as u16).to_be();

/// Sees every packet on every interface of the network namespace that it was made in.
pub struct Tap {
    /// Not a UDP socket; the standard library's type for a socket with a time limit.
    socket: UdpSocket,
}

/// One packet, as it passed an interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sighting {
    /// The interface's index.
    pub ifindex: u32,
    /// Whether it was on its way out.
    pub outgoing: bool,
    /// What follows the link's header (ETH_P_IP, ETH_P_IPV6 ..., linux/if_ether.h).
    pub protocol: u16,
    /// Bytes that lie in the buffer, from the network layer's header on.
    pub len: usize,
}

impl Tap {
    /// Sees all from here on.
    ///
    /// # Errors
    /// `EPERM` without CAP_NET_RAW.
    pub fn new() -> io::Result<Tap> {
        let socket = socket(libc::AF_PACKET, libc::SOCK_DGRAM, ETH_P_ALL.into())?;
        Ok(Tap { socket })
    }

    /// The next packet; none when there is none for `patience`, which is not zero. What does not fit into `buffer` is cut off.
    ///
    /// # Errors
    /// `ENOBUFS`: some were missed. `ENETDOWN`: an interface went down.
    pub fn receive(&self, buffer: &mut [u8], patience: Duration) -> io::Result<Option<Sighting>> {
        self.socket.set_read_timeout(Some(patience))?;
        // SAFETY: a sockaddr_ll of zeros is one: integers and an array of such.
        let mut from: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        let mut from_len = libc::socklen_t::try_from(size_of::<libc::sockaddr_ll>()).expect("addresses are small");
        // SAFETY: buffer is writable for its length and from for from_len bytes during the call.
        let len = unsafe {
            libc::recvfrom(
                self.socket.as_raw_fd(),
                buffer.as_mut_ptr().cast(),
                buffer.len(),
                0,
                (&raw mut from).cast(),
                &raw mut from_len,
            )
        };
        let Ok(len) = usize::try_from(len) else {
            let error = io::Error::last_os_error();
            return match error.kind() {
                io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted => Ok(None),
                _ => Err(error),
            };
        };
        Ok(Some(Sighting {
            ifindex: from.sll_ifindex.cast_unsigned(),
            outgoing: from.sll_pkttype == libc::PACKET_OUTGOING,
            protocol: u16::from_be(from.sll_protocol),
            len,
        }))
    }
}

/// A raw socket that sends ICMP (or ICMPv6, whose checksums the kernel fills in) to addresses whose port is 0.
///
/// # Errors
/// `EPERM` without CAP_NET_RAW; `EAFNOSUPPORT` without IPv6.
pub fn icmp(ipv6: bool) -> io::Result<UdpSocket> {
    if ipv6 {
        socket(libc::AF_INET6, libc::SOCK_RAW, libc::IPPROTO_ICMPV6)
    } else {
        socket(libc::AF_INET, libc::SOCK_RAW, libc::IPPROTO_ICMP)
    }
}

fn socket(family: i32, kind: i32, protocol: i32) -> io::Result<UdpSocket> {
    // SAFETY: takes no pointers.
    let fd = unsafe { libc::socket(family, kind | libc::SOCK_CLOEXEC, protocol) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: socket(2) just returned this descriptor, so nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) }.into())
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, SocketAddr};
    use std::time::Instant;

    use super::*;
    use crate::wire::ip::Ip;
    use crate::wire::udp::Udp;

    #[test]
    fn a_datagram_to_ourselves_is_seen_on_its_way_out() {
        let tap = match Tap::new() {
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => return println!("skipped: {error}"),
            result => result.expect("a packet socket"),
        };
        let receiver = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
        let to = receiver.local_addr().expect("it is bound");
        let sender = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
        sender.send_to(b"hello", to).expect("loopback takes it");
        let mut buffer = vec![0; 70_000];
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            assert!(Instant::now() < deadline, "the datagram was not seen");
            let Ok(Some(seen)) = tap.receive(&mut buffer, Duration::from_millis(100)) else {
                continue;
            };
            let Some(packet) = Ip::parse(&buffer[..seen.len]).filter(|_| seen.outgoing) else {
                continue;
            };
            let udp = Udp::parse(&packet.bytes()[packet.upper().start..]);
            if packet.upper().protocol == 17
                && udp.is_some_and(|udp| SocketAddr::new(packet.destination(), udp.destination_port()) == to)
            {
                assert_eq!(i32::from(seen.protocol), libc::ETH_P_IP);
                assert_ne!(seen.ifindex, 0);
                return;
            }
        }
    }
}
