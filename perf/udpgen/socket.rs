//! UDP sockets with the buffers and offloads of a load generator.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsRawFd, OwnedFd};

use nix::sys::socket::{
    AddressFamily, SetSockOpt, SockFlag, SockProtocol, SockType, SockaddrStorage, bind, connect, setsockopt, socket,
    sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};

/// Bytes asked for socket buffers: a hundred milliseconds at 1 Gbit/s. A sink that is scheduled away for less must not
/// lose what the tunnel delivered.
const BUFFER_BYTES: usize = 16 << 20;

/// How long a receive waits before its thread looks at the clock, in milliseconds.
const RECEIVE_WAIT_MS: i64 = 20;

/// A socket that is bound to `address`; several may be, each gets its share of the flows.
pub(crate) fn bound(address: SocketAddr) -> io::Result<OwnedFd> {
    let fd = new(address)?;
    setsockopt(&fd, sockopt::ReusePort, &true)?;
    bind(fd.as_raw_fd(), &SockaddrStorage::from(address))?;
    Ok(fd)
}

/// A socket that sends to, and receives from, `address` only, from port `source`; 0 lets the kernel choose.
pub(crate) fn connected(address: SocketAddr, source: u16) -> io::Result<OwnedFd> {
    let fd = new(address)?;
    let any: IpAddr = match address {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    bind(fd.as_raw_fd(), &SockaddrStorage::from(SocketAddr::new(any, source)))?;
    connect(fd.as_raw_fd(), &SockaddrStorage::from(address))?;
    Ok(fd)
}

fn new(address: SocketAddr) -> io::Result<OwnedFd> {
    let family = if address.is_ipv4() {
        AddressFamily::Inet
    } else {
        AddressFamily::Inet6
    };
    let fd = socket(family, SockType::Datagram, SockFlag::SOCK_CLOEXEC, SockProtocol::Udp)?;
    // The forced ones need CAP_NET_ADMIN in the initial user namespace, the others are cut to net.core.*mem_max.
    forced_or_polite(&fd, sockopt::RcvBufForce, sockopt::RcvBuf)?;
    forced_or_polite(&fd, sockopt::SndBufForce, sockopt::SndBuf)?;
    setsockopt(&fd, sockopt::ReceiveTimeout, &TimeVal::milliseconds(RECEIVE_WAIT_MS))?;
    Ok(fd)
}

fn forced_or_polite<F, P>(fd: &OwnedFd, forced: F, polite: P) -> nix::Result<()>
where
    F: SetSockOpt<Val = usize>,
    P: SetSockOpt<Val = usize>,
{
    setsockopt(fd, forced, &BUFFER_BYTES).or_else(|_| setsockopt(fd, polite, &BUFFER_BYTES))
}
