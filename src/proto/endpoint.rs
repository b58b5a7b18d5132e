//! Where a peer is.

use std::net::{IpAddr, SocketAddr};

/// Where a peer is and which of our addresses it talks to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Endpoint {
    /// The peer's address.
    pub remote: SocketAddr,
    /// The address of ours that the peer talks to, if known.
    pub local: Option<Local>,
}

/// One of our addresses, as `IP_PKTINFO` or `IPV6_PKTINFO` named it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Local {
    /// The address.
    pub address: IpAddr,
    /// The index of the interface that has it.
    pub interface: u32,
}
