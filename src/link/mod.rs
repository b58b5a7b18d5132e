//! The tunnel's interface as the kernel's network stack sees it: MTU, addresses, state and routes, over netlink.
//!
//! Everything here is asynchronous and needs a tokio runtime on the current thread (that of `tokio_uring::start` is
//! one). What [`set_up`] makes, [`Link::tear_down`] removes: only what was made, in the opposite order. What exists
//! already in the right form is left alone both times, so that setting up twice is no error.
#![forbid(unsafe_code)]

mod mtu;
mod netlink;
mod setup;
#[cfg(test)]
mod tests;
mod watch;

use std::io;

use ipnet::IpNet;

pub use mtu::{MTU_DEFAULT, Underlay, auto_mtu, tunnel_mtu};
pub use setup::{Link, Plan, prepare, set_up};
pub use watch::{RouteWatch, Routes};

/// Why the interface could not be brought into the state that was asked for.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// No netlink socket.
    #[error("cannot open a netlink socket: {0}")]
    Socket(#[source] io::Error),
    /// The kernel refused.
    #[error("cannot {action}: {error}{}", hint(action, error))]
    Kernel {
        /// What was tried, e.g. "add the address 10.0.0.1/24 to rw0".
        action: String,
        /// Why it did not work.
        #[source]
        error: io::Error,
    },
    /// The route exists, and leads elsewhere.
    #[error(
        "cannot add the route {route} to {name}: it exists and leads elsewhere; remove that one (ip route del {route}) \
             or this network from allowed_ips"
    )]
    RouteTaken {
        /// The destination.
        route: IpNet,
        /// Our interface.
        name: String,
    },
    /// A default route needs policy routing, or the tunnel's own packets would go into the tunnel.
    #[error("cannot route {0} into the tunnel: a default route needs policy routing, which this version does not have")]
    DefaultRoute(IpNet),
}

impl LinkError {
    /// True when more privileges would have helped.
    pub fn is_permission_denied(&self) -> bool {
        match self {
            LinkError::Socket(error) | LinkError::Kernel { error, .. } => error.raw_os_error() == Some(libc::EPERM),
            LinkError::RouteTaken { .. } | LinkError::DefaultRoute(_) => false,
        }
    }
}

/// What people can do about the kernel's less helpful answers.
fn hint(action: &str, error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::EPERM) => "; this needs root or CAP_NET_ADMIN",
        // net/ipv6/addrconf.c answers so while disable_ipv6 is set.
        Some(libc::EACCES) if action.contains("address") && action.contains("::") => {
            "; IPv6 is switched off: see sysctl net.ipv6.conf.all.disable_ipv6 and net.ipv6.conf.default.disable_ipv6"
        }
        _ => "",
    }
}
