//! The configuration protocol that `wg` speaks with userspace implementations of WireGuard, on a Unix stream socket
//! (<https://www.wireguard.com/xplatform/>, "Configuration Protocol").
//!
//! ```text
//! > get=1                        > set=1
//! >                              > listen_port=51820
//! < private_key=<hex>            > public_key=<hex>
//! < listen_port=51820            > allowed_ip=10.0.0.2/32
//! < public_key=<hex>             >
//! < ...                          < errno=0
//! < errno=0                      <
//! <
//! ```
//!
//! [`parse`] and [`format`] are pure: lines to [`Changes`](crate::control::changes::Changes), a
//! [`Dump`](crate::control::dump::Dump) to lines. [`server`] moves them.
//!
//! One deliberate difference to wireguard-go, which carries a `set` out line by line: here a `set` is read to its end
//! first, and one with a wrong line changes nothing.
#![forbid(unsafe_code)]

pub mod format;
pub mod parse;
pub mod server;

/// Why an operation was not carried out: what is answered, and what is logged.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct UapiError {
    /// A positive error number (errno(3)); the protocol carries it negated.
    pub errno: i32,
    /// For the log. Never holds a secret.
    pub reason: String,
}

impl UapiError {
    /// A key or value that is wrong.
    fn invalid(reason: impl Into<String>) -> UapiError {
        UapiError {
            errno: libc::EINVAL,
            reason: reason.into(),
        }
    }

    /// A line that is none.
    fn protocol(reason: impl Into<String>) -> UapiError {
        UapiError {
            errno: libc::EPROTO,
            reason: reason.into(),
        }
    }
}
