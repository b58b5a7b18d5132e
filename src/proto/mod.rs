//! The sans-IO protocol: handshakes, sessions, timers, cookies; everything of the WireGuard paper's sections 5 and 6,
//! for both suites.
//!
//! A [`Device`] lives on the control thread and knows all peers. It is told the time, the datagrams that are not
//! data, and what the data plane noticed; it answers with [`Action`]s. The data plane holds [`SealHalf`]s and
//! [`OpenHalf`]s and needs nothing else for a packet.
#![forbid(unsafe_code)]

pub mod action;
mod answer;
mod attempt;
mod awaited;
mod context;
mod cookie;
pub mod device;
pub mod doorman;
pub mod endpoint;
mod handshake;
pub mod hex;
mod identity;
mod index;
mod lanes;
pub mod limits;
pub mod mac;
mod noise;
mod peer;
pub mod ratelimit;
mod recent;
pub mod replay;
mod resolver;
pub mod session;
mod slots;
pub mod suite;
pub mod tai64n;
pub mod time;
mod timers;
#[cfg(test)]
mod transcripts;
mod x25519;

pub use action::{Action, Rejected};
pub use awaited::Awaited;
pub use device::{
    AddPeerError, Device, DeviceConfig, PeerConfig, PeerInfo, PeerState, PeerUpdate, Sessions, Timestamps, Traffic,
};
pub use doorman::{Doorman, TurnedAway};
pub use endpoint::{Endpoint, Local, PeerId, SessionId};
pub use session::{COUNTER_SKIP, GROUP, OpenError, OpenHalf, Refused, SealHalf};
pub use suite::{Suite, SuiteChoice};
pub use time::{Now, Time};
/// The keys of [`DeviceConfig`] and [`PeerConfig`].
pub use x25519_dalek::{PublicKey, StaticSecret};
