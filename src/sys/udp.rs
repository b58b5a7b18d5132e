//! The UDP sockets: one REUSEPORT group on one port, dual-stack where the machine has IPv6.

use super::address::{Family, SockAddr};
use super::device::{self, DeviceName};
use super::option;
use super::send::{Outgoing, SendBatch};
use crate::proto::endpoint::Endpoint;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// Bytes asked for both socket buffers: 64 KiB batches in bursts; a socket that its worker doesn't serve for a
/// millisecond at 100 Gbit/s fills 12 MiB.
const SOCKET_BUFFER_BYTES: i32 = 16 << 20;

/// What may be switched at sockets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UdpOptions {
    /// Send runs of datagrams by one call (UDP_SEGMENT), where the kernel can.
    pub gso: bool,
    /// Receive runs of datagrams by one call (UDP_GRO), where the kernel can.
    pub gro: bool,
    /// SO_MARK: the firewall mark of what is sent; 0 for none. Needs CAP_NET_ADMIN.
    pub mark: u32,
    /// SO_BINDTODEVICE: the one interface that carries them.
    pub device: Option<DeviceName>,
}

impl Default for UdpOptions {
    fn default() -> UdpOptions {
        UdpOptions {
            gso: true,
            gro: true,
            mark: 0,
            device: None,
        }
    }
}

/// The sockets of one port, in the order that steering numbers them.
pub struct UdpGroup {
    /// As many as were wanted.
    pub sockets: Vec<UdpSocket>,
    /// The port they are bound to.
    pub port: u16,
    /// Whether they carry IPv6 beside IPv4.
    pub dual_stack: bool,
    /// Whether they send with GSO.
    pub gso: bool,
    /// Whether they receive with GRO.
    pub gro: bool,
}

/// A bound, non-blocking UDP socket.
pub struct UdpSocket {
    fd: OwnedFd,
    family: Family,
    gso: bool,
}

/// Binds `n` sockets to `port` of every address of the machine; to port 0: one that the kernel chooses.
///
/// # Errors
/// `EADDRINUSE`: somebody has the port, another ringway included. `EPERM`: `options.mark` without CAP_NET_ADMIN. `ENODEV`:
/// there is no `options.device`. What socket(2), setsockopt(2) and bind(2) say.
///
/// # Panics
/// When `n` is 0.
pub fn bind_group(port: u16, n: usize, options: UdpOptions) -> io::Result<UdpGroup> {
    match bind_family(Family::Dual, port, n, options) {
        // EAFNOSUPPORT: a kernel without IPv6; EADDRNOTAVAIL: IPv6 is switched off for the interface.
        Err(error) if matches!(error.raw_os_error(), Some(libc::EAFNOSUPPORT | libc::EADDRNOTAVAIL)) => {
            bind_family(Family::V4, port, n, options)
        }
        result => result,
    }
}

/// `n` sockets that only send, each from a port of its own that the kernel chooses; in families and offloads like those
/// of `group`.
///
/// # Errors
/// What socket(2), setsockopt(2) and bind(2) say.
pub fn lane_sockets(group: &UdpGroup, n: usize, options: UdpOptions) -> io::Result<Vec<UdpSocket>> {
    let family = if group.dual_stack { Family::Dual } else { Family::V4 };
    let lane = |_| {
        let fd = socket(family)?;
        configure(fd.as_fd(), family, options)?;
        super::steer::deafen(&fd)?;
        bind(&fd, family, 0)?;
        Ok(UdpSocket {
            fd,
            family,
            gso: group.gso,
        })
    };
    (0..n).map(lane).collect()
}

/// [`bind_group`] for sockets of `family`.
pub(super) fn bind_family(family: Family, port: u16, n: usize, options: UdpOptions) -> io::Result<UdpGroup> {
    assert!(n > 0, "a group needs a socket");
    let mut group = UdpGroup {
        sockets: Vec::with_capacity(n),
        port,
        dual_stack: family == Family::Dual,
        gso: false,
        gro: false,
    };
    for member in 0..n {
        let fd = socket(family)?;
        // SO_REUSEPORT would share the port with a stranger of the same user as well. The first member binds without it,
        // which fails if anybody is there, and allows company afterwards (sk_reuseport is looked at when others bind).
        if member > 0 {
            option::set(fd.as_fd(), libc::SOL_SOCKET, libc::SO_REUSEPORT, &1)?;
        }
        let offloads = configure(fd.as_fd(), family, options)?;
        bind(&fd, family, group.port)?;
        if member == 0 {
            group.port = local_port(&fd)?;
            (group.gso, group.gro) = offloads;
            if n > 1 {
                option::set(fd.as_fd(), libc::SOL_SOCKET, libc::SO_REUSEPORT, &1)?;
            }
        }
        group.sockets.push(UdpSocket {
            fd,
            family,
            gso: group.gso,
        });
    }
    Ok(group)
}

/// Sets every option; tells whether GSO and GRO are on.
fn configure(socket: BorrowedFd<'_>, family: Family, options: UdpOptions) -> io::Result<(bool, bool)> {
    let set = |level, name, value: i32| option::set(socket, level, name, &value);
    // IP_PMTUDISC_WANT: what is larger than the path's known MTU is fragmented here and not lost (as wireguard-go,
    // which relies on it being the default; net.ipv4.ip_no_pmtu_disc may change that).
    if family == Family::Dual {
        set(libc::IPPROTO_IPV6, libc::IPV6_V6ONLY, 0)?;
        set(libc::IPPROTO_IPV6, libc::IPV6_RECVPKTINFO, 1)?;
        set(libc::IPPROTO_IPV6, libc::IPV6_RECVTCLASS, 1)?;
        set(libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, libc::IPV6_PMTUDISC_WANT)?;
    } else {
        // On a dual-stack socket IPV6_RECVPKTINFO covers IPv4 with mapped addresses.
        set(libc::IPPROTO_IP, libc::IP_PKTINFO, 1)?;
    }
    set(libc::IPPROTO_IP, libc::IP_RECVTOS, 1)?;
    set(libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_WANT)?;
    set(libc::SOL_SOCKET, libc::SO_TIMESTAMPNS, 1)?;
    for (forced, polite) in [
        (libc::SO_RCVBUFFORCE, libc::SO_RCVBUF),
        (libc::SO_SNDBUFFORCE, libc::SO_SNDBUF),
    ] {
        // The forced one needs CAP_NET_ADMIN; the polite one is cut to net.core.rmem_max or wmem_max.
        set(libc::SOL_SOCKET, forced, SOCKET_BUFFER_BYTES)
            .or_else(|_| set(libc::SOL_SOCKET, polite, SOCKET_BUFFER_BYTES))?;
    }
    if options.mark != 0 {
        set(libc::SOL_SOCKET, libc::SO_MARK, options.mark.cast_signed())?;
    }
    if let Some(device) = options.device {
        device::bind(socket, device)?;
    }
    // UDP_SEGMENT exists since 4.18, UDP_GRO since 5.0.
    let gso = options.gso && option::get(socket, libc::SOL_UDP, libc::UDP_SEGMENT).is_ok();
    let gro = options.gro && set(libc::SOL_UDP, libc::UDP_GRO, 1).is_ok();
    Ok((gso, gro))
}

impl UdpSocket {
    /// A socket that another process has made and set up as [`bind_group`] or [`lane_sockets`] do; `gso`: it sends with GSO.
    ///
    /// # Errors
    /// What getsockopt(2) says: it is no socket.
    pub fn inherited(fd: OwnedFd, gso: bool) -> io::Result<UdpSocket> {
        let family = match option::get(fd.as_fd(), libc::SOL_SOCKET, libc::SO_DOMAIN)? {
            libc::AF_INET6 => Family::Dual,
            _ => Family::V4,
        };
        Ok(UdpSocket { fd, family, gso })
    }

    /// Whether it carries IPv6 beside IPv4.
    pub fn is_dual_stack(&self) -> bool {
        self.family == Family::Dual
    }

    /// Another descriptor of the same socket, for a thread that only sends.
    ///
    /// # Errors
    /// `EMFILE`, `ENFILE`.
    pub fn try_clone(&self) -> io::Result<UdpSocket> {
        Ok(UdpSocket {
            fd: self.fd.try_clone()?,
            family: self.family,
            gso: self.gso,
        })
    }

    /// SO_MARK: the firewall mark of what is sent from here on; 0 for none.
    ///
    /// # Errors
    /// `EPERM` without CAP_NET_ADMIN.
    pub fn set_mark(&self, mark: u32) -> io::Result<()> {
        option::set(self.fd.as_fd(), libc::SOL_SOCKET, libc::SO_MARK, &mark.cast_signed())
    }

    /// Receives each datagram by itself, whatever the options said, without the time and the traffic class, which cost more
    /// than they tell where packets are small; and holds no more than a few thousand of those.
    pub(super) fn receive_singly(&self) -> io::Result<()> {
        /// The kernel counts 768 bytes or more for a datagram and doubles what it is told (socket(7)): about 2,700.
        const BUFFER_BYTES: i32 = 1 << 20;
        let mut options = vec![
            (libc::SOL_SOCKET, libc::SO_RCVBUF, BUFFER_BYTES),
            (libc::SOL_SOCKET, libc::SO_TIMESTAMPNS, 0),
            (libc::IPPROTO_IP, libc::IP_RECVTOS, 0),
        ];
        if self.family == Family::Dual {
            options.push((libc::IPPROTO_IPV6, libc::IPV6_RECVTCLASS, 0));
        }
        for (level, name, value) in options {
            option::set(self.fd.as_fd(), level, name, &value)?;
        }
        match option::get(self.fd.as_fd(), libc::SOL_UDP, libc::UDP_GRO) {
            Ok(1..) => option::set(self.fd.as_fd(), libc::SOL_UDP, libc::UDP_GRO, &0),
            // Off, or a kernel that knows no GRO.
            _ => Ok(()),
        }
    }

    /// Sends one datagram (outside the fast path: allocates). When the address of ours in `to.local` is gone, the kernel
    /// chooses one.
    ///
    /// # Errors
    /// What sendmsg(2) says; `WouldBlock` when the send buffer is full.
    pub fn send_to(&self, to: &Endpoint, tos: u8, datagram: &[u8]) -> io::Result<()> {
        let mut batch = SendBatch::new(1);
        let mut outgoing = Outgoing {
            payload: datagram,
            segment: None,
            to: *to,
            tos,
        };
        let mut result = batch.send(self, std::iter::once(outgoing));
        if result.is_err_and(|errno| outgoing.may_have_stale_source(errno)) {
            outgoing.to.local = None;
            result = batch.send(self, std::iter::once(outgoing));
        }
        result.map(drop).map_err(io::Error::from_raw_os_error)
    }

    /// Datagrams that the kernel has dropped at this socket since it was made, modulo 2^32: its receive buffer was full, or
    /// their checksum was wrong.
    ///
    /// # Errors
    /// `ENOPROTOOPT` before Linux 4.12.
    pub fn drops(&self) -> io::Result<u32> {
        /// SK_MEMINFO_DROPS of SK_MEMINFO_VARS words (linux/sock_diag.h).
        const DROPS: usize = 8;
        let words: [u32; DROPS + 1] = option::get_words(self.fd.as_fd(), libc::SOL_SOCKET, libc::SO_MEMINFO)?;
        Ok(words[DROPS])
    }

    pub(super) fn family(&self) -> Family {
        self.family
    }

    /// Whether runs may be sent with UDP_SEGMENT, as far as the socket knows.
    pub(super) fn gso(&self) -> bool {
        self.gso
    }
}

impl From<UdpSocket> for OwnedFd {
    fn from(socket: UdpSocket) -> OwnedFd {
        socket.fd
    }
}

impl AsFd for UdpSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// The MTU of the path to `remote` for a socket with these `options`, as far as the kernel knows it: the route's, or what
/// ICMP taught. Bytes of a whole IP packet.
///
/// # Errors
/// `ENETUNREACH`, `EHOSTUNREACH`: no route. What connect(2) says.
pub fn path_mtu(remote: SocketAddr, options: UdpOptions) -> io::Result<u32> {
    let any: IpAddr = if remote.is_ipv4() {
        Ipv4Addr::UNSPECIFIED.into()
    } else {
        Ipv6Addr::UNSPECIFIED.into()
    };
    let socket = std::net::UdpSocket::bind((any, 0))?;
    if options.mark != 0 {
        let mark = options.mark.cast_signed();
        option::set(socket.as_fd(), libc::SOL_SOCKET, libc::SO_MARK, &mark)?;
    }
    if let Some(device) = options.device {
        device::bind(socket.as_fd(), device)?;
    }
    socket.connect(remote)?;
    let (level, name) = match remote {
        SocketAddr::V4(_) => (libc::IPPROTO_IP, libc::IP_MTU),
        SocketAddr::V6(_) => (libc::IPPROTO_IPV6, libc::IPV6_MTU),
    };
    let mtu = option::get(socket.as_fd(), level, name)?;
    u32::try_from(mtu).map_err(|_| io::Error::from_raw_os_error(libc::ENOTCONN))
}

/// A socket that is not bound yet.
pub(super) fn socket(family: Family) -> io::Result<OwnedFd> {
    let domain = if family == Family::Dual {
        libc::AF_INET6
    } else {
        libc::AF_INET
    };
    // SAFETY: takes no pointers.
    let fd = unsafe { libc::socket(domain, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: socket(2) just returned this descriptor, so nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn bind(socket: &OwnedFd, family: Family, port: u16) -> io::Result<()> {
    let any: IpAddr = if family == Family::Dual {
        Ipv6Addr::UNSPECIFIED.into()
    } else {
        Ipv4Addr::UNSPECIFIED.into()
    };
    let address = SockAddr::encode(family, SocketAddr::new(any, port)).expect("the address is of the socket's family");
    let len = libc::socklen_t::try_from(address.bytes().len()).expect("at most 28");
    // SAFETY: address is readable for len bytes during the call.
    let result = unsafe { libc::bind(socket.as_raw_fd(), address.bytes().as_ptr().cast(), len) };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

fn local_port(socket: &OwnedFd) -> io::Result<u16> {
    // The standard library's socket reads its own address; it is a second descriptor of the same socket.
    Ok(std::net::UdpSocket::from(socket.try_clone()?).local_addr()?.port())
}
