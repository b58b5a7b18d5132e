//! Changes of a tunnel that runs: keys, port, mark and peers. What a change does not name goes on undisturbed, the
//! sessions of other peers above all.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::bounded;
use ipnet::IpNet;

use super::peers::{self, Peer};
use super::{Control, ControlError, REPORTS_PER_TURN};
use crate::config::{self, HostPort, PresharedKey, PrivateKey, PublicKey, Suite};
use crate::path::peers::NewPeer;
use crate::proto::{AddPeerError, Endpoint, PeerConfig, PeerId, PeerUpdate};
use crate::sys::steer;
use crate::sys::udp::{self, UdpGroup, UdpOptions, UdpSocket};
use crate::worker::mailbox::Command;

/// How long the workers may take to carry out what they were told: longer than any machine keeps a thread from its core. That
/// a worker has ended is noticed at once.
pub(super) const WORKER_ANSWER_MAX: Duration = Duration::from_secs(30);

/// What to change; `None` leaves a thing as it is.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Our private key; `Some(None)` takes it away.
    pub private_key: Option<Option<PrivateKey>>,
    /// The UDP port to listen on; 0 lets the kernel choose another one.
    pub listen_port: Option<u16>,
    /// SO_MARK of the outer sockets; 0 for none.
    pub fwmark: Option<u32>,
    /// The interface's addresses, which somebody else has changed, for reports.
    pub addresses: Option<Vec<IpNet>>,
    /// The interface's MTU in bytes, which somebody else has changed.
    pub mtu: Option<u16>,
    /// Remove all peers first.
    pub replace_peers: bool,
    /// Peers to add, change and remove, in this order.
    pub peers: Vec<PeerChanges>,
}

/// What to change about a peer; a peer that does not exist is added. `None` leaves a thing as it is.
#[derive(Debug, PartialEq, Eq)]
pub struct PeerChanges {
    /// Who it is.
    pub public_key: PublicKey,
    /// Remove it; nothing else counts then.
    pub remove: bool,
    /// Change it if it exists, but do not add it.
    pub update_only: bool,
    /// What people call it; `Some(None)` takes the name away.
    pub name: Option<Option<String>>,
    /// Mixed into its handshakes; `Some(None)` takes it away.
    pub preshared_key: Option<Option<PresharedKey>>,
    /// Where it is. Takes any host name away.
    pub endpoint: Option<SocketAddr>,
    /// Where it is by the configuration; a host name is looked up, now and whenever handshakes go unanswered. `Some(None)`:
    /// it does not say any more, so the peer is where it was heard last.
    pub host: Option<Option<HostPort>>,
    /// Keepalive interval; `Some(None)` switches keepalives off.
    pub persistent_keepalive: Option<Option<Duration>>,
    /// The protocol to speak.
    pub suite: Option<Suite>,
    /// Take all allowed IPs from it first.
    pub replace_allowed_ips: bool,
    /// Allowed IPs to give and take, in this order.
    pub allowed_ips: Vec<AllowedIp>,
}

/// A change of a peer's allowed IPs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AllowedIp {
    /// Give it to the peer, and take it from any other.
    Add(IpNet),
    /// Take it from the peer, if it is the peer's.
    Remove(IpNet),
}

impl PeerChanges {
    /// A peer with this key exists; nothing else is changed.
    pub fn of(public_key: PublicKey) -> PeerChanges {
        PeerChanges {
            public_key,
            remove: false,
            update_only: false,
            name: None,
            preshared_key: None,
            endpoint: None,
            host: None,
            persistent_keepalive: None,
            suite: None,
            replace_allowed_ips: false,
            allowed_ips: Vec::new(),
        }
    }

    /// The peer is as configured.
    pub fn configured(peer: &config::Peer) -> PeerChanges {
        PeerChanges {
            name: Some(peer.name.clone()),
            preshared_key: Some(peer.preshared_key.clone()),
            host: Some(peer.endpoint.clone()),
            persistent_keepalive: Some(peer.persistent_keepalive),
            suite: Some(peer.suite),
            replace_allowed_ips: true,
            allowed_ips: peer.allowed_ips.iter().copied().map(AllowedIp::Add).collect(),
            ..PeerChanges::of(peer.public_key)
        }
    }
}

/// Why a change was not made.
#[derive(Debug, thiserror::Error)]
pub enum ChangeError {
    /// The port can't be had. Nothing was changed.
    #[error("cannot listen on UDP port {port}: {error}")]
    Port {
        /// Which.
        port: u16,
        /// What the kernel said.
        #[source]
        error: io::Error,
    },
    /// The mark can't be set. No peer was changed.
    #[error("cannot set the mark {mark}: {error}")]
    Mark {
        /// Which.
        mark: u32,
        /// What the kernel said.
        #[source]
        error: io::Error,
    },
    /// The tunnel is ending.
    #[error(transparent)]
    Control(#[from] ControlError),
}

impl ChangeError {
    /// The error number that tells a program most, positive.
    pub fn errno(&self) -> i32 {
        match self {
            ChangeError::Port { error, .. } | ChangeError::Mark { error, .. } => error.raw_os_error(),
            ChangeError::Control(_) => None,
        }
        .unwrap_or(libc::EIO)
    }
}

/// The sockets of a tunnel.
pub struct Sockets {
    /// Gets what is no data.
    pub door: UdpSocket,
    /// One per worker, which get the data messages of their lanes; with what is true of all.
    pub group: UdpGroup,
}

/// Binds a tunnel's sockets to `port`, steered so that datagrams reach whom they are for.
///
/// # Errors
/// As [`udp::bind_group`]; what setsockopt(2) says of the steering program.
pub fn bind(port: u16, workers: usize, options: UdpOptions) -> io::Result<Sockets> {
    let mut group = udp::bind_group(port, 1 + workers, options)?;
    steer::attach(&group.sockets[0], workers as u8)?;
    Ok(Sockets {
        door: group.sockets.remove(0),
        group,
    })
}

impl Control {
    /// Makes all changes: those that the kernel may refuse first, then the others, which can't fail.
    pub fn apply(&mut self, changes: Changes) -> Result<(), ChangeError> {
        if let Some(port) = changes.listen_port {
            self.set_listen_port(port)?;
        }
        if let Some(mark) = changes.fwmark {
            self.set_fwmark(mark)?;
        }
        if let Some(key) = changes.private_key {
            self.set_private_key(key)?;
        }
        if let Some(addresses) = changes.addresses {
            self.addresses = addresses;
        }
        if let Some(mtu) = changes.mtu {
            self.set_tun_mtu(mtu)?;
        }
        if changes.replace_peers {
            for id in self.peers.ids() {
                self.remove_peer(id)?;
            }
        }
        for peer in changes.peers {
            self.change_peer(peer)?;
        }
        self.name_captured_peers();
        if let Some(table) = self.allowed.changed_table() {
            let table = Arc::new(table);
            self.broadcast(|| Command::Routes(table.clone()))?;
        }
        Ok(self.act()?)
    }

    /// Changes who we are. Sessions that rest on the old key end, and a peer that has the new one is removed.
    /// Without a key nobody is spoken to.
    pub fn set_private_key(&mut self, key: Option<PrivateKey>) -> Result<(), ControlError> {
        if key == self.private_key {
            return Ok(());
        }
        // No key: one that nobody knows.
        let secret = key.as_ref().map_or_else(peers::random_secret, PrivateKey::to_secret);
        let public = x25519_dalek::PublicKey::from(&secret);
        if let Some(own) = self.device.find_peer(public.as_bytes()) {
            self.remove_peer(own)?;
        }
        self.private_key = key;
        self.device.set_private_key(secret);
        self.post_doorman()?;
        self.act()
    }

    /// Moves to another UDP port; 0 lets the kernel choose. Sessions go on: peers follow to the port that authentic
    /// packets come from.
    pub fn set_listen_port(&mut self, port: u16) -> Result<(), ChangeError> {
        if port != 0 && port == self.facts.listen_port {
            return Ok(());
        }
        let failed = |error| ChangeError::Port { port, error };
        let Sockets { door, group } = bind(port, self.workers.len(), self.udp_options).map_err(failed)?;
        // First all that can fail, then the change.
        let door_outbox = door.try_clone().map_err(failed)?;
        let outboxes = group.sockets.iter().map(UdpSocket::try_clone);
        let outboxes: Vec<_> = outboxes.collect::<io::Result<_>>().map_err(failed)?;
        for ((worker, socket), outbox) in self.workers.iter_mut().zip(group.sockets).zip(outboxes) {
            worker.replace_socket(outbox);
            let moved = worker.port.send(Command::ReplaceUdp(socket));
            moved.map_err(|gone| ControlError::Worker(gone.to_string()))?;
        }
        self.door.replace_socket(door_outbox);
        let moved = self.door.port.replace_udp(door);
        moved.map_err(|gone| ControlError::Worker(gone.to_string()))?;
        self.facts.listen_port = group.port;
        Ok(())
    }

    /// Changes SO_MARK of the outer sockets; 0 for none.
    pub fn set_fwmark(&mut self, mark: u32) -> Result<(), ChangeError> {
        let failed = |error| ChangeError::Mark { mark, error };
        if mark != self.udp_options.mark {
            // A worker's descriptor and ours are the same socket.
            let sockets = || {
                let workers = self.workers.iter();
                let of_workers =
                    workers.flat_map(|worker| std::iter::once(&worker.socket.socket).chain(&worker.lane_socket));
                std::iter::once(&self.door.socket.socket).chain(of_workers)
            };
            if let Err(error) = sockets().try_for_each(|socket| socket.set_mark(mark)) {
                // All of them or none: handshakes and data go by the same rules.
                for socket in sockets() {
                    let _ = socket.set_mark(self.udp_options.mark);
                }
                return Err(failed(error));
            }
            self.udp_options.mark = mark;
            // Other rules may hold for this mark.
            self.ask_for_routes();
        }
        Ok(())
    }

    fn change_peer(&mut self, changes: PeerChanges) -> Result<(), ControlError> {
        let id = match self.device.find_peer(&changes.public_key.0) {
            Some(id) if changes.remove => return self.remove_peer(id),
            Some(id) => {
                self.update_peer(id, &changes);
                id
            }
            None if changes.remove || changes.update_only => return Ok(()),
            None => match self.add_peer(&changes)? {
                Some(id) => id,
                None => return Ok(()),
            },
        };
        if changes.replace_allowed_ips {
            self.allowed.clear(id);
        }
        for allowed_ip in changes.allowed_ips {
            match allowed_ip {
                AllowedIp::Add(prefix) => self.allowed.insert(prefix, id),
                AllowedIp::Remove(prefix) => self.allowed.remove(prefix, id),
            }
        }
        Ok(())
    }

    /// Where the changes say that the peer is, if that is an address.
    fn address(changes: &PeerChanges) -> Option<SocketAddr> {
        let configured = changes.host.iter().flatten().next();
        changes.endpoint.or_else(|| configured?.address())
    }

    /// Has the peer's name looked up, or forgets the name that it had. `moves`: the answer is where the peer is, even if it
    /// was heard of elsewhere.
    fn follow_host(&mut self, id: PeerId, changes: &PeerChanges, moves: bool) {
        if changes.endpoint.is_none() && changes.host.is_none() {
            return;
        }
        match changes.host.iter().flatten().next() {
            Some(host) if host.address().is_none() => self.names.insert(id, host.clone(), moves, self.now().mono),
            _ => {
                self.names.remove(id);
                self.device.set_candidates(self.now(), id, Vec::new());
            }
        }
    }

    /// `None`: it is ourselves, which is passed over, so that all machines of a mesh can share one list of peers.
    fn add_peer(&mut self, changes: &PeerChanges) -> Result<Option<PeerId>, ControlError> {
        let endpoint = Self::address(changes);
        let config = PeerConfig {
            public_key: changes.public_key.0,
            preshared_key: changes
                .preshared_key
                .iter()
                .flatten()
                .next()
                .map(PresharedKey::to_bytes),
            endpoint,
            persistent_keepalive: changes.persistent_keepalive.flatten(),
            suite: peers::suite_choice(changes.suite.unwrap_or(self.suite)),
        };
        // A number that a removed peer had may be given again: what workers still say about that one must be gone first.
        self.forget_removed()?;
        let id = match self.device.add_peer(self.now().mono, config) {
            Ok(id) => id,
            Err(AddPeerError::OwnKey) => return Ok(None),
            Err(AddPeerError::Exists(id)) => return Ok(Some(id)),
        };
        if let Some(state) = &mut self.state {
            self.device.restore_timestamps(id, state.of_new(&changes.public_key));
        }
        let new = Arc::new(NewPeer::new(endpoint.map(Endpoint::new), self.workers.len()));
        let mut peer = Peer::new(changes.public_key, new.clone());
        peer.name = changes.name.clone().flatten();
        self.peers.insert(id, peer);
        self.broadcast(|| Command::AddPeer(id, new.clone()))?;
        self.follow_host(id, changes, false);
        Ok(Some(id))
    }

    fn update_peer(&mut self, id: PeerId, changes: &PeerChanges) {
        let update = PeerUpdate {
            preshared_key: changes
                .preshared_key
                .as_ref()
                .map(|key| key.as_ref().map(PresharedKey::to_bytes)),
            endpoint: Self::address(changes),
            persistent_keepalive: changes.persistent_keepalive,
            suite: changes.suite.map(peers::suite_choice),
        };
        let now = self.now();
        self.device.update_peer(now, id, update);
        self.follow_host(id, changes, true);
        if let (Some(peer), Some(name)) = (self.peers.get_mut(id), &changes.name) {
            peer.name = name.clone();
        }
    }

    fn remove_peer(&mut self, id: PeerId) -> Result<(), ControlError> {
        self.device.remove_peer(id);
        self.names.remove(id);
        self.allowed.clear(id);
        self.peers.remove(id);
        self.removed = true;
        self.broadcast(|| Command::RemovePeer(id))
    }

    /// Once peers were removed: waits until every worker knows, and takes what they reported before.
    fn forget_removed(&mut self) -> Result<(), ControlError> {
        if !std::mem::take(&mut self.removed) {
            return Ok(());
        }
        // What the protocol has to say about removed peers comes before their numbers are given again.
        self.act()?;
        let (done, answers) = bounded(self.workers.len());
        self.broadcast(|| Command::Answer(done.clone()))?;
        for _ in 0..self.workers.len() {
            let slow = |_| ControlError::Worker("a worker does not answer".into());
            answers.recv_timeout(WORKER_ANSWER_MAX).map_err(slow)?;
        }
        // Not more than wait at this moment: the workers go on reporting.
        for _ in 0..=self.reports.reports.len() / REPORTS_PER_TURN {
            self.take_reports();
        }
        Ok(())
    }
}
