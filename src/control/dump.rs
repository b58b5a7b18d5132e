//! A device as `wg` shows it: everything, its secrets included.

use std::net::SocketAddr;
use std::time::{Duration, UNIX_EPOCH};

use ipnet::IpNet;
use zeroize::Zeroizing;

use super::Control;
use crate::config::{PresharedKey, PrivateKey, PublicKey};

/// Our side and all peers.
#[derive(Debug)]
pub struct Dump {
    /// `None`: no key is set.
    pub private_key: Option<PrivateKey>,
    /// The UDP port in use.
    pub listen_port: u16,
    /// SO_MARK of the outer sockets; 0 for none.
    pub fwmark: u32,
    /// In the order in which they were added, but for places that became free in between.
    pub peers: Vec<PeerDump>,
}

/// One peer.
#[derive(Debug)]
pub struct PeerDump {
    /// Who it is.
    pub public_key: PublicKey,
    /// Mixed into the handshake when set.
    pub preshared_key: Option<PresharedKey>,
    /// Where packets to it go.
    pub endpoint: Option<SocketAddr>,
    /// When the last handshake was done, since 1970.
    pub last_handshake: Option<Duration>,
    /// Outer UDP payload bytes sent to it.
    pub tx_bytes: u64,
    /// Outer UDP payload bytes received from it.
    pub rx_bytes: u64,
    /// Keepalive interval.
    pub persistent_keepalive: Option<Duration>,
    /// Inner addresses that are routed to it, in order.
    pub allowed_ips: Vec<IpNet>,
}

impl Control {
    /// The device as it is.
    pub fn dump(&self) -> Dump {
        let peers = self.peers.iter().map(|(id, peer)| {
            let info = self.device.peer(id);
            let traffic = peer.traffic();
            let handshake = peer.handshake.as_ref();
            PeerDump {
                public_key: peer.public_key,
                preshared_key: self
                    .device
                    .preshared_key(id)
                    .map(|key| PresharedKey::from_bytes(Zeroizing::new(*key))),
                endpoint: info.and_then(|info| info.endpoint).map(|endpoint| endpoint.remote),
                last_handshake: handshake.map(|handshake| handshake.at.duration_since(UNIX_EPOCH).unwrap_or_default()),
                tx_bytes: traffic.tx_bytes,
                rx_bytes: traffic.rx_bytes,
                persistent_keepalive: info.and_then(|info| info.persistent_keepalive),
                allowed_ips: self.allowed.of(id),
            }
        });
        Dump {
            private_key: self.private_key.clone(),
            listen_port: self.facts.listen_port,
            fwmark: self.udp_options.mark,
            peers: peers.collect(),
        }
    }
}
