//! Why a tunnel is not as a program wanted it.

use std::fmt::Display;
use std::io;

use crate::control::api::ApiError;
use crate::dns::DnsError;
use crate::gateway::RunError;
use crate::link::LinkError;
use crate::sys::tun::TunError;

/// Why something was not done.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A method of the builder's was called with something that can't be.
    #[error("{method}({value}): {right}")]
    Argument {
        /// Which.
        method: &'static str,
        /// What it was called with.
        value: String,
        /// What would be right.
        right: String,
    },
    /// A method of the builder's was not called.
    #[error("{method}() was not called: {why}")]
    Missing {
        /// Which.
        method: &'static str,
        /// What it is needed for.
        why: &'static str,
    },
    /// The TUN device.
    #[error(transparent)]
    Tun(#[from] TunError),
    /// Addresses, MTU or routes.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// Name servers.
    #[error(transparent)]
    Dns(#[from] DnsError),
    /// The tunnel did not come up, or ended by itself.
    #[error(transparent)]
    Run(#[from] RunError),
    /// The tunnel has ended.
    #[error("the tunnel has ended")]
    Ended,
    /// The tunnel could not say.
    #[error(transparent)]
    Answer(#[from] ApiError),
    /// The system refused something basic.
    #[error("the system refused something basic: {0}")]
    Io(#[from] io::Error),
}

impl Error {
    pub(super) fn argument(method: &'static str, value: impl Display, right: impl Into<String>) -> Error {
        Error::Argument {
            method,
            value: value.to_string(),
            right: right.into(),
        }
    }
}
