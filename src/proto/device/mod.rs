//! All peers, their handshakes and their timers: the part of the protocol that lives on the control thread.
#![forbid(unsafe_code)]

mod config;

use std::collections::VecDeque;

pub use config::{AddPeerError, DeviceConfig, PeerConfig, PeerInfo, PeerUpdate};

use super::action::{Action, Rejected};
use super::endpoint::{Endpoint, PeerId, SessionId};
use super::time::{Now, Time};

/// One end: its static key and its peers.
pub struct Device {
    actions: VecDeque<Action>,
}

#[allow(missing_docs, unused_variables)]
impl Device {
    pub fn new(config: DeviceConfig, random: impl FnMut(&mut [u8]) + Send + 'static) -> Device {
        Device {
            actions: VecDeque::new(),
        }
    }
    pub fn add_peer(&mut self, now: Time, config: PeerConfig) -> Result<PeerId, AddPeerError> {
        Ok(PeerId(0))
    }
    pub fn update_peer(&mut self, now: Now, peer: PeerId, update: PeerUpdate) {}
    pub fn remove_peer(&mut self, peer: PeerId) -> bool {
        false
    }
    pub fn peer(&self, peer: PeerId) -> Option<PeerInfo> {
        None
    }
    pub fn peers(&self) -> impl Iterator<Item = PeerInfo> + '_ {
        std::iter::empty()
    }
    pub fn find_peer(&self, public_key: &[u8; 32]) -> Option<PeerId> {
        None
    }
    pub fn set_private_key(&mut self, private_key: x25519_dalek::StaticSecret) {}
    pub fn public_key(&self) -> [u8; 32] {
        [0; 32]
    }
    pub fn handle_datagram(&mut self, now: Now, from: Endpoint, datagram: &[u8]) -> Result<(), Rejected> {
        Ok(())
    }
    pub fn handle_timeout(&mut self, now: Now) {}
    pub fn poll_timeout(&self) -> Option<Time> {
        None
    }
    pub fn poll_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }
    pub fn want_session(&mut self, peer: PeerId, now: Now) {}
    pub fn confirmed(&mut self, peer: PeerId, session: SessionId, now: Now) {}
    pub fn roamed(&mut self, peer: PeerId, endpoint: Endpoint) {}
    pub fn data_sent(&mut self, peer: PeerId, now: Now) {}
    pub fn data_received(&mut self, peer: PeerId, now: Now) {}
    pub fn authenticated_sent(&mut self, peer: PeerId, now: Now) {}
    pub fn authenticated_received(&mut self, peer: PeerId, now: Now) {}
}
