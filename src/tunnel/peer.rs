//! The other side of a tunnel.

use std::time::Duration;

use ipnet::IpNet;

use crate::config::{self, HostPort, PresharedKey, PublicKey, Suite};

/// A peer, as a program describes it.
#[derive(Debug, Clone)]
pub struct Peer(pub(super) config::Peer);

impl Peer {
    /// The peer with this public key, of which nothing else is known.
    pub fn new(public_key: PublicKey) -> Peer {
        Peer(config::Peer {
            name: None,
            public_key,
            preshared_key: None,
            endpoint: None,
            allowed_ips: Vec::new(),
            persistent_keepalive: None,
            suite: Suite::Auto,
            policy: Default::default(),
        })
    }

    /// What people call it.
    pub fn name(mut self, name: impl Into<String>) -> Peer {
        self.0.name = Some(name.into());
        self
    }

    /// Where it is, `"192.0.2.1:51820".parse()` or a host name with a port; without this it has to speak first.
    pub fn endpoint(mut self, endpoint: HostPort) -> Peer {
        self.0.endpoint = Some(endpoint);
        self
    }

    /// Routes a network of inner addresses to it, and lets it send from there. May be called any number of times.
    pub fn allowed_ip(mut self, network: IpNet) -> Peer {
        self.0.allowed_ips.push(network.trunc());
        self
    }

    /// Mixes a secret into the handshake that both ends know.
    pub fn preshared_key(mut self, key: PresharedKey) -> Peer {
        self.0.preshared_key = Some(key);
        self
    }

    /// Sends something at least this often (1 s to 65535 s), so that NATs stay open.
    pub fn persistent_keepalive(mut self, interval: Duration) -> Peer {
        self.0.persistent_keepalive = Some(interval);
        self
    }

    /// The protocol to speak with it, in place of whichever it speaks.
    pub fn suite(mut self, suite: Suite) -> Peer {
        self.0.suite = suite;
        self
    }
}
