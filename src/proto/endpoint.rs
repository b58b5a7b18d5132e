//! Who and where: peers, sessions, and the addresses that packets go between.
#![forbid(unsafe_code)]

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};

/// Where a peer is, and which of our addresses it talks to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Endpoint {
    /// The peer's address and port.
    pub remote: SocketAddr,
    /// Our side of the conversation ("sticky source"), once a packet has told; `None` lets the kernel choose.
    pub local: Option<Local>,
}

impl Endpoint {
    /// The endpoint at `remote`, our own address being the kernel's choice.
    pub const fn new(remote: SocketAddr) -> Endpoint {
        Endpoint { remote, local: None }
    }
}

/// Our address as `IP_PKTINFO` or `IPV6_PKTINFO` reported it with a datagram.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Local {
    /// The address that the datagram was sent to.
    pub address: IpAddr,
    /// The index of the interface that it came in by.
    pub interface: u32,
}

/// A peer of one [`Device`](super::Device): a small dense index, reused some time after the peer was removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PeerId(pub u32);

impl fmt::Display for PeerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "peer {}", self.0)
    }
}

/// The keys that one handshake made. Unique for the life of a [`Device`](super::Device).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct SessionId(pub u64);
