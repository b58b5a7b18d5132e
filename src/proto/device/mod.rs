//! All peers, their handshakes and their timers: the part of the protocol that lives on the control thread.
//!
//! A [`Device`] does no I/O and reads no clock. The caller passes in datagrams, wishes and the time, and after each
//! call drains [`Device::poll_action`]; [`Device::poll_timeout`] says by when to call [`Device::handle_timeout`].
#![forbid(unsafe_code)]

mod config;
mod handover;
mod inbound;
mod peers;

use std::net::SocketAddr;
use std::sync::Arc;

use x25519_dalek::StaticSecret;

pub use config::{AddPeerError, DeviceConfig, PeerConfig, PeerInfo, PeerUpdate, Timestamps, Traffic};
pub use handover::{PeerState, Sessions};
use peers::Peers;

use super::action::Action;
use super::awaited::Awaited;
use super::context::{Context, Random};
use super::doorman::Door;
use super::endpoint::{Endpoint, Local, PeerId, SessionId};
use super::identity::Identity;
use super::peer::Peer;
use super::time::{Now, Time};
use super::timers::Schedule;

/// One end: its static key and its peers.
pub struct Device {
    context: Context,
    peers: Peers,
    schedule: Schedule,
    door: Door,
}

/// How much a device remembers beside its peers: what a test sees grow when something is not given back.
#[cfg(test)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Held {
    /// Indices of sessions and handshakes.
    pub(crate) indices: usize,
    /// Peers that wait for a time to come.
    pub(crate) deadlines: usize,
    /// Actions that nobody has taken.
    pub(crate) actions: usize,
}

impl Device {
    /// A device without peers. `random` fills a slice with unpredictable bytes; it makes ephemeral keys, indices,
    /// nonces and jitter.
    pub fn new(config: DeviceConfig, random: impl FnMut(&mut [u8]) + Send + 'static) -> Device {
        let mut random: Random = Box::new(random);
        let identity = Arc::new(Identity::new(&config.private_key, config.crypto));
        let door = Door::new(*identity.public(), &mut random);
        Device {
            context: Context::new(identity, config.lanes, random),
            peers: Peers::default(),
            schedule: Schedule::default(),
            door,
        }
    }

    /// The public half of the static key.
    pub fn public_key(&self) -> [u8; 32] {
        *self.context.identity.public()
    }

    /// What answers may come to: for the [`Doorman`](super::Doorman) of whoever receives for this device.
    pub fn awaited_answers(&self) -> Arc<Awaited> {
        self.context.indices.awaited().clone()
    }

    /// How many Diffie-Hellman operations this device did: what handshakes cost.
    pub fn diffie_hellmans(&self) -> u64 {
        self.context.identity.diffie_hellmans()
    }

    // Peers.

    /// Adds a peer. With a persistent keepalive its first handshake is due at once.
    ///
    /// # Errors
    /// [`AddPeerError`] when its key is there already or this device's own.
    pub fn add_peer(&mut self, now: Time, config: PeerConfig) -> Result<PeerId, AddPeerError> {
        if config.public_key == self.public_key() {
            return Err(AddPeerError::OwnKey);
        }
        if let Some(peer) = self.find_peer(&config.public_key) {
            return Err(AddPeerError::Exists(peer));
        }
        let public_key = config.public_key;
        let id = self.peers.insert(|id| Peer::new(id, now, config));
        self.context.identity.insert(public_key, id);
        self.with_peer(id, |peer, context| {
            if let Some(endpoint) = peer.endpoint {
                context.actions.push_back(Action::Endpoint { peer: id, endpoint });
            }
        });
        Ok(id)
    }

    /// Changes a peer; false if there is none.
    ///
    /// A new preshared key is used by the next handshake, which begins at once if there is a session; that session
    /// lasts until then, as in wireguard-go, so that keys can be changed on both ends one after the other without a
    /// gap.
    pub fn update_peer(&mut self, now: Now, peer: PeerId, update: PeerUpdate) -> bool {
        self.with_peer(peer, |peer, context| {
            if let Some(endpoint) = update.endpoint {
                peer.candidates = Box::default();
                peer.set_endpoint(context, Endpoint::new(endpoint));
            }
            if let Some(choice) = update.suite {
                peer.set_choice(context, now, choice);
            }
            if let Some(key) = update.preshared_key {
                peer.set_preshared_key(context, now, key);
            }
            if let Some(interval) = update.persistent_keepalive {
                peer.set_persistent_keepalive(now.mono, interval);
            }
        })
    }

    /// Says where else a peer may be: the addresses of its name, the likeliest first; none forgets what was said before.
    /// A peer that nothing is known of is at the first of them. For others they count only while handshakes go unanswered
    /// ([`Action::Unanswered`]): each further initiation then goes to the next one. False if there is no such peer.
    pub fn set_candidates(&mut self, now: Now, peer: PeerId, candidates: Vec<SocketAddr>) -> bool {
        self.with_peer(peer, |peer, context| peer.set_candidates(context, now, candidates))
    }

    /// Removes a peer and retires its sessions; false if there is none.
    pub fn remove_peer(&mut self, peer: PeerId) -> bool {
        let Some(mut peer) = self.peers.remove(peer) else {
            return false;
        };
        peer.cancel_attempt(&mut self.context);
        peer.retire(&mut self.context, |_| true);
        self.schedule.forget(peer.id, &mut peer.place);
        self.context.identity.remove(&peer.public_key);
        true
    }

    /// What is known about a peer.
    pub fn peer(&self, peer: PeerId) -> Option<PeerInfo> {
        self.peers.get(peer).map(Peer::info)
    }

    /// What is known about all peers, in the order of their indices.
    pub fn peers(&self) -> impl Iterator<Item = PeerInfo> + '_ {
        self.peers.iter().map(Peer::info)
    }

    /// The peer with this static key.
    pub fn find_peer(&self, public_key: &[u8; 32]) -> Option<PeerId> {
        self.context.identity.peer_of(public_key)
    }

    /// Whether there are keys of a session with the peer, so that packets may come or go.
    pub fn has_session(&self, peer: PeerId) -> bool {
        self.peers.get(peer).is_some_and(|peer| peer.slots.expires().is_some())
    }

    /// The preshared key of a peer, for tools that show configurations.
    pub fn preshared_key(&self, peer: PeerId) -> Option<&[u8; 32]> {
        self.peers.get(peer)?.preshared_key.as_deref()
    }

    /// The timestamps to keep over a restart.
    pub fn timestamps(&self, peer: PeerId) -> Option<Timestamps> {
        self.peers.get(peer).map(|peer| Timestamps {
            sent: peer.timestamp_sent,
            received: peer.timestamp_received,
        })
    }

    /// Brings back kept timestamps; they only ever grow. False if there is no such peer.
    pub fn restore_timestamps(&mut self, peer: PeerId, kept: Timestamps) -> bool {
        self.with_peer(peer, |peer, _| {
            peer.timestamp_sent = peer.timestamp_sent.max(kept.sent);
            peer.timestamp_received = peer.timestamp_received.max(kept.received);
        })
    }

    /// Changes this device's static key. All handshakes and sessions end, and those that somebody waits for begin anew; a
    /// peer whose key it is, is removed.
    pub fn set_private_key(&mut self, private_key: StaticSecret) {
        let identity = Arc::new(Identity::new(&private_key, self.context.identity.choice()));
        if let Some(peer) = self.find_peer(identity.public()) {
            self.remove_peer(peer);
        }
        for peer in self.peers.iter_mut() {
            identity.insert(peer.public_key, peer.id);
            peer.change_identity(&mut self.context);
            self.schedule.ensure(peer.id, &mut peer.place, peer.timers.next());
        }
        self.door.set_public_key(identity.public());
        self.context.identity = identity;
    }

    // Time and actions. What comes from the network is in `inbound`.

    /// Does what has come due.
    pub fn handle_timeout(&mut self, now: Now) {
        while let Some(id) = self.schedule.pop(now.mono) {
            self.with_peer(id, |peer, context| {
                peer.place = Default::default();
                peer.fire_due_timers(context, now);
            });
        }
    }

    /// By when [`Device::handle_timeout`] wants to be called. It may turn out then that nothing is due yet.
    pub fn poll_timeout(&self) -> Option<Time> {
        self.schedule.first()
    }

    /// The next thing to do; drain them after every call that takes `&mut self`.
    pub fn poll_action(&mut self) -> Option<Action> {
        self.context.actions.pop_front()
    }

    // What the data plane reports. An unknown peer or session is ignored: it was removed in the meantime.

    /// A packet waits for a session, or a half of one wants its successor.
    pub fn want_session(&mut self, peer: PeerId, now: Now) {
        self.with_peer(peer, |peer, context| peer.want_session(context, now));
    }

    /// The first authentic data message came on `session`, which this end had answered. To say so again, or of other
    /// sessions, does no harm.
    pub fn confirmed(&mut self, peer: PeerId, session: SessionId, now: Now) {
        self.with_peer(peer, |peer, context| peer.confirm(context, now, session));
    }

    /// The route to the peer leaves by another interface than the one where its packets came to `source`, an address of
    /// ours: the kernel chooses the address to answer from, until the peer comes to another one or from elsewhere.
    /// `None`: the route is what it was before that.
    pub fn refuse_source(&mut self, peer: PeerId, source: Option<Local>) {
        self.with_peer(peer, |peer, context| peer.refuse_source(context, source));
    }

    /// An authentic data message came from `endpoint`: send there from here on.
    pub fn roamed(&mut self, peer: PeerId, endpoint: Endpoint) {
        self.with_peer(peer, |peer, context| peer.set_endpoint(context, endpoint));
    }

    /// A data message that is no keepalive was sent; includes [`Device::authenticated_sent`].
    pub fn data_sent(&mut self, peer: PeerId, now: Now) {
        self.with_peer(peer, |peer, context| peer.data_sent(context, now.mono));
    }

    /// An authentic data message that is no keepalive was received; includes [`Device::authenticated_received`].
    pub fn data_received(&mut self, peer: PeerId, now: Now) {
        self.with_peer(peer, |peer, _| peer.data_received(now.mono));
    }

    /// A data message, keepalive or not, was sent.
    pub fn authenticated_sent(&mut self, peer: PeerId, now: Now) {
        self.with_peer(peer, |peer, _| peer.authenticated_sent(now.mono));
    }

    /// An authentic data message, keepalive or not, was received.
    pub fn authenticated_received(&mut self, peer: PeerId, now: Now) {
        self.with_peer(peer, |peer, _| peer.authenticated_received(now.mono));
    }

    /// All of the above at once, for a data plane that is sampled: what was seen is taken in the order in which it
    /// happened, which decides whether what was sent has been answered.
    pub fn traffic(&mut self, peer: PeerId, traffic: Traffic) {
        self.with_peer(peer, |peer, context| peer.traffic(context, traffic));
    }

    /// What it remembers beside its peers.
    #[cfg(test)]
    pub(crate) fn held(&self) -> Held {
        Held {
            indices: self.context.indices.len(),
            deadlines: self.schedule.len(),
            actions: self.context.actions.len(),
        }
    }

    /// Lets `change` work on a peer, and sees to it that its timers are seen to; false if there is no such peer.
    fn with_peer(&mut self, id: PeerId, change: impl FnOnce(&mut Peer, &mut Context)) -> bool {
        let Some(peer) = self.peers.get_mut(id) else {
            return false;
        };
        change(peer, &mut self.context);
        self.schedule.ensure(id, &mut peer.place, peer.timers.next());
        true
    }
}
