//! What this worker would do with a packet, told instead of done: the data path's own look-ups and its own state.

use std::net::IpAddr;

use super::Forwarder;
use super::inbound::sender_of;
use super::outbound::peer_towards;
use crate::path::drops::Drop;
use crate::path::peer;
use crate::proto::{Endpoint, PeerId, Suite, Time};

/// What one worker would do with one packet, both ways.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Explanation {
    /// Were it read from the TUN.
    pub out: Outbound,
    /// Were it received through the tunnel.
    pub inbound: Inbound,
}

/// The packet on its way from the TUN to a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Outbound {
    /// The peer that the destination belongs to.
    pub peer: Option<PeerId>,
    /// Where it would be sent.
    pub endpoint: Option<Endpoint>,
    /// Bytes of the largest inner packet that goes whole.
    pub mtu: usize,
    /// Packets that wait for a handshake already.
    pub waiting: usize,
    /// What would become of it.
    pub fate: Fate,
}

/// What becomes of an outbound packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// It is sealed with a session of this suite.
    Sealed(Suite),
    /// It waits until a handshake is done.
    Waits,
    /// It is dropped.
    Dropped(Drop),
}

/// The packet on its way from a peer to the TUN.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Inbound {
    /// The one peer that it is taken from: any other's is dropped as [`Drop::BadSource`].
    pub peer: Option<PeerId>,
    /// Receiver indices of that peer's that this worker opens.
    pub lanes: usize,
}

impl<S: AsMut<[u8]>> Forwarder<S> {
    /// What would become of a packet from `source` to `destination`.
    pub fn explain(&mut self, now: Time, source: IpAddr, destination: IpAddr) -> Explanation {
        let out = match peer_towards(&self.routes, &mut self.peers, destination) {
            Ok((id, peer)) => Outbound {
                peer: Some(id),
                endpoint: peer.endpoint,
                mtu: peer.mtu,
                waiting: self.waiting.count(id),
                fate: match (peer.endpoint, peer::usable(&mut peer.current, now)) {
                    (None, _) => Fate::Dropped(Drop::NoEndpoint),
                    (Some(_), Some(seal)) => Fate::Sealed(seal.suite()),
                    (Some(_), None) => Fate::Waits,
                },
            },
            Err(reason) => Outbound {
                peer: None,
                endpoint: None,
                mtu: usize::MAX,
                waiting: 0,
                fate: Fate::Dropped(reason),
            },
        };
        let sender = sender_of(&self.routes, source);
        Explanation {
            out,
            inbound: Inbound {
                peer: sender,
                lanes: sender.map_or(0, |id| self.openers.count_of(id)),
            },
        }
    }
}
