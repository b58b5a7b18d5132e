//! What the control thread changes in a worker's data path.

use std::sync::Arc;

use super::Forwarder;
use crate::path::drops::Drop;
use crate::path::gso::Slots;
use crate::path::peer::PeerPath;
use crate::path::peers::NewPeer;
use crate::path::route::RouteTable;
use crate::proto::{Endpoint, Local, OpenHalf, PeerId, SealHalf, SessionId, Time};

impl<S: AsMut<[u8]>> Forwarder<S> {
    /// Replaces the allowed IPs of all peers.
    pub fn set_routes(&mut self, routes: Arc<RouteTable<PeerId>>) {
        self.routes = routes;
    }

    /// Makes a peer known, without keys.
    pub fn add_peer(&mut self, id: PeerId, peer: Arc<NewPeer>) {
        self.peers.insert(id, peer);
    }

    /// Forgets a peer, its keys and its waiting packets, and what there was to report of it: its number may be given to
    /// another.
    pub fn remove_peer(&mut self, id: PeerId) {
        self.peers.remove(id);
        self.waiting.take(id);
        self.openers.retire_peer(id);
        self.reports.retain(|report| report.peer() != Some(id));
    }

    /// Takes the keys of a new session that open the lanes that this worker owns.
    pub fn open_with(&mut self, id: PeerId, halves: Vec<OpenHalf>) {
        if self.peers.get_mut(id).is_some() {
            for half in halves {
                self.openers.insert(id, half);
            }
        }
    }

    /// Takes the key of a new session that seals on this worker's lane. `sending`: seal with it at once, else from the
    /// session's first authentic datagram on.
    pub fn seal_with(
        &mut self,
        now: Time,
        id: PeerId,
        seal: Option<SealHalf>,
        sending: bool,
        slots: &mut impl Slots<Slot = S>,
    ) {
        let Some(peer) = self.peers.get_mut(id) else {
            return;
        };
        peer.said_goodbye = false;
        if sending {
            peer.current = seal;
            peer.session_wanted = None;
            self.send_pending(now, id, slots);
        } else {
            peer.next = seal;
        }
    }

    /// Starts to seal with the session that the peer has confirmed, perhaps to another worker.
    pub fn promote(&mut self, now: Time, id: PeerId, session: SessionId, slots: &mut impl Slots<Slot = S>) {
        let Some(peer) = self.peers.get_mut(id) else {
            return;
        };
        if peer.promote(session) {
            peer.session_wanted = None;
        }
        self.send_pending(now, id, slots);
    }

    /// Forgets a session's keys.
    pub fn retire(&mut self, id: PeerId, session: SessionId) {
        if let Some(peer) = self.peers.active_mut(id) {
            peer.retire(session);
        }
        self.openers.retire(id, session);
    }

    /// Sends to another address from now on.
    pub fn set_endpoint(&mut self, id: PeerId, endpoint: Endpoint) {
        // The first thing that is told of a new peer is where it is, as it was made known with.
        if !self.peers.is_idle_at(id, endpoint)
            && let Some(peer) = self.peers.get_mut(id)
        {
            peer.move_to(endpoint);
        }
    }

    /// Does not answer from this address of ours, for as long as the peer stays where it is, though the peer's packets
    /// may come to it: they were on their way when the route to the peer changed. `None`: any will do again.
    pub fn refuse_source(&mut self, id: PeerId, source: Option<Local>) {
        let Some(peer) = self.peers.active_mut(id) else { return };
        peer.refused_source = source;
        if let Some(endpoint) = peer.endpoint
            && source.is_some()
            && endpoint.local == source
        {
            peer.move_to(Endpoint::new(endpoint.remote));
        }
    }

    /// Lets the kernel choose the source address towards the peer, because the one that the peer used is ours no more.
    pub fn forget_source(&mut self, id: PeerId) {
        if let Some(PeerPath {
            endpoint: Some(endpoint),
            ..
        }) = self.peers.active_mut(id)
        {
            endpoint.local = None;
        }
    }

    /// Bounds the inner packets to what the path to the peer carries, in bytes.
    pub fn set_path_mtu(&mut self, id: PeerId, mtu: usize) {
        if let Some(peer) = self.peers.get_mut(id) {
            peer.mtu = mtu;
        }
    }

    /// Changes the interface's MTU, up to which WireGuard's padding goes.
    pub fn set_tun_mtu(&mut self, mtu: usize) {
        self.tun_mtu = mtu;
    }

    /// Gives the packets up that wait for a handshake.
    pub fn give_up(&mut self, id: PeerId) {
        if let Some(peer) = self.peers.active_mut(id) {
            let waiting = self.waiting.take(id).len();
            self.counters.dropped(Drop::HandshakeFailed, waiting as u64);
            peer.session_wanted = None;
        }
    }
}
