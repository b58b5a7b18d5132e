//! Routing loops: the tunnel's own datagrams that a route leads back into the tunnel.
//!
//! Sealing them again would send them round for ever, each time 60 bytes longer and soon in fragments, which multiply.

use std::net::SocketAddr;

use crate::proto::SealHalf;
use crate::wire::ip::{Fragment, Ip};
use crate::wire::message::DataHeader;
use crate::wire::udp::{self, Udp};

/// Whether a packet that is on its way to the peer at `remote` was sealed for that very peer: a data message whose receiver
/// index is the session's, which nobody else can know before it was sent. Packets to the peer's address that are not
/// ours (a tunnel within the tunnel, or a shell on the far host) are none of that.
#[inline]
pub(super) fn leads_back(ip: Ip<'_>, remote: &SocketAddr, seal: &SealHalf) -> bool {
    ip.destination() == remote.ip() && is_sealed_for(ip, remote.port(), seal)
}

#[cold]
fn is_sealed_for(ip: Ip<'_>, port: u16, seal: &SealHalf) -> bool {
    let upper = ip.upper();
    if upper.protocol != udp::PROTOCOL || upper.fragment == Fragment::Later {
        // Of a datagram that was cut, the first fragment is told; the others come back sealed once more, and whole.
        return false;
    }
    let header = Udp::parse(&ip.bytes()[upper.start..])
        .filter(|udp| udp.destination_port() == port)
        .and_then(|udp| DataHeader::parse(udp.payload()));
    header.is_some_and(|header| seal.is_for(header.receiver))
}
