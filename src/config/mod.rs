//! Configuration: files -> raw -> validated.
#![forbid(unsafe_code)]

pub mod key;
pub mod types;

pub use key::{PresharedKey, PrivateKey, PublicKey};
pub use types::{
    Config, Crypto, Host, HostPort, Interface, Io, Mtu, OffloadSwitches, Peer, Suite, UnknownWord, Workers,
};
