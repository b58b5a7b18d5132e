//! What a device and its peers are made from, and what is told about them.
#![forbid(unsafe_code)]

use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use x25519_dalek::StaticSecret;
use zeroize::Zeroizing;

use crate::crypto;
use crate::proto::endpoint::{Endpoint, PeerId};
use crate::proto::suite::{Suite, SuiteChoice};
use crate::proto::tai64n::Tai64n;
use crate::proto::time::Time;

/// What a [`Device`](super::Device) is made from.
pub struct DeviceConfig {
    /// The static key of this end.
    pub private_key: StaticSecret,
    /// How many workers seal here, 1..=255: the native suite's lanes towards every peer. 0 counts as 1.
    pub lanes: u8,
    /// Which AEAD implementation sessions use.
    pub crypto: crypto::Choice,
}

/// What a peer is made from.
pub struct PeerConfig {
    /// Its static key.
    pub public_key: [u8; 32],
    /// An additional symmetric secret; `None` is the same as 32 zero bytes.
    pub preshared_key: Option<Zeroizing<[u8; 32]>>,
    /// Where it is, if known; otherwise it has to speak first.
    pub endpoint: Option<SocketAddr>,
    /// Send something at least this often, to keep NATs open.
    pub persistent_keepalive: Option<Duration>,
    /// Which suites it may use.
    pub suite: SuiteChoice,
}

/// What to change about a peer; `None` leaves it as it is.
#[derive(Default)]
pub struct PeerUpdate {
    /// The preshared key, or none.
    pub preshared_key: Option<Option<Zeroizing<[u8; 32]>>>,
    /// The endpoint to send to from here on; candidates that were named before are forgotten.
    pub endpoint: Option<SocketAddr>,
    /// The persistent keepalive, or none.
    pub persistent_keepalive: Option<Option<Duration>>,
    /// Which suites it may use. Sessions of a suite that it may not use any more are retired.
    pub suite: Option<SuiteChoice>,
}

/// What is known about a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PeerInfo {
    /// Its index.
    pub id: PeerId,
    /// Its static key.
    pub public_key: [u8; 32],
    /// Whether it has a preshared key.
    pub has_preshared_key: bool,
    /// Where packets to it go.
    pub endpoint: Option<Endpoint>,
    /// Its persistent keepalive.
    pub persistent_keepalive: Option<Duration>,
    /// Which suites it may use.
    pub suite_choice: SuiteChoice,
    /// The suite of the session that is sent on; `None` without one.
    pub suite: Option<Suite>,
    /// When the latest handshake was completed, since 1970.
    pub last_handshake: Option<Duration>,
}

/// When the data plane last saw what, since it last told: `None` for what it has not seen again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Traffic {
    /// A data message that is no keepalive was sent.
    pub data_sent: Option<Time>,
    /// An authentic data message that is no keepalive was received.
    pub data_received: Option<Time>,
    /// A data message, keepalive or not, was sent.
    pub any_sent: Option<Time>,
    /// An authentic data message, keepalive or not, was received.
    pub any_received: Option<Time>,
}

/// The timestamps of the latest initiations to and from a peer. Kept over a restart, they keep old initiations from
/// being taken for new ones, and ours from being taken for old ones where the clock went back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Timestamps {
    /// Of the latest initiation to the peer.
    pub sent: Tai64n,
    /// Of the latest initiation from the peer.
    pub received: Tai64n,
}

/// Why a peer was not added.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AddPeerError {
    /// There is a peer with this public key.
    #[error("there is a peer with this public key already")]
    Exists(PeerId),
    /// The public key is this device's own.
    #[error("the public key is this device's own")]
    OwnKey,
}

impl fmt::Debug for DeviceConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DeviceConfig")
            .field("lanes", &self.lanes)
            .field("crypto", &self.crypto)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for PeerConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PeerConfig")
            .field("public_key", &self.public_key)
            .field("endpoint", &self.endpoint)
            .field("persistent_keepalive", &self.persistent_keepalive)
            .field("suite", &self.suite)
            .finish_non_exhaustive()
    }
}
