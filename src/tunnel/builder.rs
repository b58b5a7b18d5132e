//! What a tunnel is to be like.

use std::net::IpAddr;
use std::num::NonZeroU32;
use std::path::PathBuf;

use ipnet::IpNet;

use super::check;
use super::device::Device;
use super::error::Error;
use super::peer::Peer;
use super::running::Tunnel;
use crate::config::{
    self, Config, Crypto, Dns, Hooks, Interface, Io, Mtu, OffloadSwitches, PrivateKey, Routing, Workers,
};

/// Describes a tunnel, then makes it. What is wrong with the description is said when it is made.
///
/// ```no_run
/// use ringway::tunnel::Builder;
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let device = Builder::new("rw0")
///     .session("Example VPN")
///     .address("10.99.0.2/24".parse()?)
///     .route("0.0.0.0/0".parse()?)
///     .dns("10.99.0.1".parse()?)
///     .mtu(1400)
///     .establish()?;
/// let server = std::net::UdpSocket::bind("0.0.0.0:0")?;
/// device.protect(&server)?;
/// let mut packet = [0; 1400];
/// let len = device.recv(&mut packet)?;
/// server.send_to(&packet[..len], "192.0.2.1:5000")?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct Builder {
    pub(super) name: String,
    pub(super) session: Option<String>,
    pub(super) addresses: Vec<IpNet>,
    pub(super) routes: Vec<IpNet>,
    pub(super) routing: Routing,
    pub(super) dns: Dns,
    pub(super) mtu: Option<u16>,
    pub(super) fwmark: Option<NonZeroU32>,
    pub(super) private_key: Option<PrivateKey>,
    pub(super) listen_port: u16,
    pub(super) peers: Vec<Peer>,
    pub(super) workers: Option<u8>,
    pub(super) pin: bool,
    pub(super) io: Io,
}

impl Builder {
    /// A tunnel whose interface is called `name`: up to 15 of the characters a-z A-Z 0-9 _ = + . -
    pub fn new(name: impl Into<String>) -> Builder {
        Builder {
            name: name.into(),
            session: None,
            addresses: Vec::new(),
            routes: Vec::new(),
            routing: Routing::default(),
            dns: Dns::default(),
            mtu: None,
            fwmark: None,
            private_key: None,
            listen_port: 0,
            peers: Vec::new(),
            workers: None,
            pin: false,
            io: Io::Auto,
        }
    }

    /// What people call the tunnel, up to 255 bytes; the interface bears it as its alias, which `ip link` shows.
    pub fn session(mut self, session: impl Into<String>) -> Builder {
        self.session = Some(session.into());
        self
    }

    /// Gives the interface an address, with the prefix length of its network. May be called any number of times.
    pub fn address(mut self, address: IpNet) -> Builder {
        self.addresses.push(address);
        self
    }

    /// Leads what goes to a network into the tunnel. May be called any number of times.
    ///
    /// A default route (`0.0.0.0/0`, `::/0`) leads all packets but those of protected sockets there, and
    /// [`Tunnel`]s protect their own. In a tunnel with exactly one peer this adds to the networks that are the
    /// peer's; with more peers say whose each is with [`Peer::allowed_ip`].
    pub fn route(mut self, network: IpNet) -> Builder {
        self.routes.push(network.trunc());
        self
    }

    /// Leaves a network outside of the tunnel, though [`Builder::route`]s have it. May be called any number of times.
    pub fn exclude(mut self, network: IpNet) -> Builder {
        self.routing.exclude.push(network.trunc());
        self
    }

    /// Has the system ask this name server while the tunnel is up. May be called any number of times.
    pub fn dns(mut self, server: IpAddr) -> Builder {
        self.dns.servers.push(server);
        self
    }

    /// A domain that names without a dot are completed with. May be called any number of times; needs a [`Builder::dns`].
    pub fn search_domain(mut self, domain: impl Into<String>) -> Builder {
        self.dns.search.push(domain.into());
        self
    }

    /// The interface's MTU, 576 to 65535 bytes. Otherwise a [`Device`] has 1420, and a [`Tunnel`] what the
    /// paths to its peers carry.
    pub fn mtu(mut self, bytes: u16) -> Builder {
        self.mtu = Some(bytes);
        self
    }

    /// The mark (SO_MARK) of protected sockets, in place of one that is chosen where there is a default route.
    ///
    /// With a mark of its own, a [`Device`]'s protected sockets go around *all* its routes, else only around default routes. That
    /// takes one more routing table, which is asked after every route of the system's but the default one, and nft, as
    /// default routes do.
    pub fn fwmark(mut self, mark: NonZeroU32) -> Builder {
        self.fwmark = Some(mark);
        self
    }

    /// Lets protected sockets, and a [`Tunnel`]'s own, leave by this interface only.
    pub fn bind_interface(mut self, name: impl Into<String>) -> Builder {
        self.routing.bind_interface = Some(name.into());
        self
    }

    /// Who we are to peers.
    pub fn private_key(mut self, key: PrivateKey) -> Builder {
        self.private_key = Some(key);
        self
    }

    /// The UDP port that peers find us at; otherwise the kernel chooses.
    pub fn listen_port(mut self, port: u16) -> Builder {
        self.listen_port = port;
        self
    }

    /// Adds a peer.
    pub fn peer(mut self, peer: Peer) -> Builder {
        self.peers.push(peer);
        self
    }

    /// How many threads carry packets, 1 to 255; otherwise as many as there are cores.
    pub fn workers(mut self, count: u8) -> Builder {
        self.workers = Some(count);
        self
    }

    /// Whether each of those threads stays on one core, in turn: for machines that do little else.
    pub fn pin(mut self, pin: bool) -> Builder {
        self.pin = pin;
        self
    }

    /// How to talk to the kernel; otherwise by io_uring where it lets us.
    pub fn io(mut self, io: Io) -> Builder {
        self.io = io;
        self
    }

    /// Makes the interface and leads packets to it; moving them is left to the program. As [`Device`] needs no keys, peers or
    /// workers, it is an error to have named some.
    ///
    /// # Errors
    /// What is wrong with the description, or what the system refused; nothing is left of what was made until then.
    pub fn establish(mut self) -> Result<Device, Error> {
        check::device(&self)?;
        check::common(&mut self)?;
        Device::establish(self)
    }

    /// Makes the interface, leads packets to it, and lets ringway's workers carry them to the peers and back, on threads of their
    /// own.
    ///
    /// # Errors
    /// What is wrong with the description, or what the system refused; nothing is left of what was made until then.
    pub fn connect(mut self) -> Result<Tunnel, Error> {
        check::common(&mut self)?;
        check::peers(&self)?;
        let session = self.session.take();
        Tunnel::start(self.into_config()?, session)
    }

    /// As a configuration file says it.
    fn into_config(self) -> Result<Config, Error> {
        let private_key = self.private_key.ok_or(Error::Missing {
            method: "private_key",
            why: "peers know us by its public half",
        })?;
        let mut peers: Vec<config::Peer> = self.peers.into_iter().map(|peer| peer.0).collect();
        match (&mut peers[..], &self.routes[..]) {
            ([], _) => {
                return Err(Error::Missing {
                    method: "peer",
                    why: "without one there is nobody to carry packets to",
                });
            }
            ([peer], routes) => {
                peer.allowed_ips.extend(routes);
                check::remove_duplicates(&mut peer.allowed_ips);
            }
            (_, [route, ..]) => {
                let right = "with more than one peer, say whose this network is: Peer::allowed_ip()";
                return Err(Error::argument("route", route, right));
            }
            (peers, []) => peers
                .iter_mut()
                .for_each(|peer| check::remove_duplicates(&mut peer.allowed_ips)),
        }
        let workers = match self.workers {
            None => Workers::Auto,
            Some(0) => return Err(Error::argument("workers", 0, "1 to 255 workers carry packets")),
            Some(count) => Workers::Count(count),
        };
        let interface = Interface {
            name: self.name,
            private_key: Some(private_key),
            listen_port: self.listen_port,
            addresses: self.addresses,
            mtu: self.mtu.map_or(Mtu::Auto, Mtu::Bytes),
            workers,
            io: self.io,
            crypto: Crypto::Auto,
            fwmark: self.fwmark,
            control_socket: PathBuf::new(), // nobody serves it
            latency_log: None,
            offloads: OffloadSwitches::default(),
            pin: self.pin,
            sandbox: false, // what the process may do is its program's to say
            lane_ports: false,
            routing: self.routing,
            dns: self.dns,
            save: None,
            hooks: Hooks::default(),
            state_dir: None,
            lockdown: None,
        };
        Ok(Config {
            interface,
            gateway: None,
            peers,
            metrics: None,
        })
    }
}
