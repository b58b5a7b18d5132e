//! The tunnel's interface as the kernel's network stack sees it: MTU, addresses, state, routes and what leads packets to
//! them, over netlink (and nft for the filter that a default route needs).
//!
//! Everything here is asynchronous and needs a tokio runtime on the current thread (that of `tokio_uring::start` is
//! one). What [`set_up`] makes, [`Link::tear_down`] removes: only what was made, in the opposite order. What exists
//! already in the right form is left alone both times, so that setting up twice is no error. What a daemon that was killed
//! has left, [`remove_leftovers`] finds.
#![forbid(unsafe_code)]

mod counters;
mod guard;
mod interfaces;
mod layout;
mod lookup;
mod mtu;
mod netlink;
pub mod nft;
mod policy;
mod routes;
mod setup;
#[cfg(test)]
mod tests;
mod watch;

use std::io;

use ipnet::IpNet;

pub use counters::Counters;
pub use interfaces::{egress_interfaces, interface_names};
pub use lookup::{Lookup, Route, RouteKind, route};
pub use mtu::{MTU_DEFAULT, Underlay, auto_mtu, tunnel_mtu};
pub use policy::Policy;
pub use routes::{Routes, policy_for};
pub use setup::{Link, Made, Plan, describe, prepare, set_mtu, set_up};
pub use watch::{RouteQueries, RouteWatch};

use netlink::Netlink;

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
    /// Two tunnels that both take all packets would take each other's too.
    #[error(
        "another tunnel has the {family} default route already, and each would carry the other's packets; \
             end that one, or set table = \"off\" or a number of its own here"
    )]
    SecondDefault {
        /// "IPv4" or "IPv6".
        family: &'static str,
    },
    /// It was to be cleaned up after.
    #[error("the interface {0} exists, so its tunnel runs; end that first")]
    Exists(String),
    /// A default route through the tunnel needs a packet filter.
    #[error("a default route through the tunnel needs a packet filter: {0}")]
    Nft(#[from] nft::NftError),
}

/// Removes what tunnels that were killed have left in the kernel: routing rules, exceptions from routes, packet filters.
/// `name`: a tunnel that is known not to run, or is only just coming up. Tells what it removed, a phrase each.
pub async fn remove_leftovers(name: &str) -> Result<Vec<String>, LinkError> {
    let netlink = Netlink::connect()?;
    let mut removed = policy::remove_leftovers(&netlink).await?;
    for owner in guard::names().await? {
        if owner == name || netlink.index_of(&owner).await?.is_none() {
            let sysctl = !policy::is_in_use(&netlink).await?;
            guard::remove(&owner, sysctl).await?;
            removed.push(format!("the packet filter of {owner}"));
        }
    }
    Ok(removed)
}

/// Whether there is an interface called `name`.
pub async fn exists(name: &str) -> Result<bool, LinkError> {
    Ok(Netlink::connect()?.index_of(name).await?.is_some())
}

impl LinkError {
    /// True when more privileges would have helped.
    pub fn is_permission_denied(&self) -> bool {
        match self {
            LinkError::Socket(error) | LinkError::Kernel { error, .. } => error.raw_os_error() == Some(libc::EPERM),
            LinkError::Nft(error) => error.is_permission_denied(),
            LinkError::RouteTaken { .. } | LinkError::SecondDefault { .. } | LinkError::Exists(_) => false,
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
