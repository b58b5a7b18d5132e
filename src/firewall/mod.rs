//! What the kernel's packet filter does for a tunnel: the gateway's rules, and the kill switch.
//!
//! ```text
//! gateway   [gateway]: forwarding, NAT, who may reach what; goes with the daemon
//! lockdown  lockdown = true: nothing leaves beside the tunnel; outlives a daemon that is killed
//! rules     one of them as text, from the configuration alone; link::nft carries it out in one transaction
//! ranges    prefixes as disjoint ranges        sysctl  the kernel's switches, put back as they were
//! leaktest  watches what leaves beside a tunnel
//! ```
//!
//! Each has one table of its own, named after the interface, so that a new daemon finds what a dead one left. Nobody
//! else's tables are touched. Packets still have to pass those: an "accept" of ours does not overrule a "drop" elsewhere.
#![forbid(unsafe_code)]

pub mod gateway;
pub mod leaktest;
pub mod lockdown;
mod ranges;
mod rules;
mod sysctl;

use std::io;
use std::path::PathBuf;

use crate::config::Config;
use crate::link::LinkError;
use crate::link::nft::NftError;

/// Why the kernel does not filter as it was asked to.
#[derive(Debug, thiserror::Error)]
pub enum FirewallError {
    /// The program nft, by which all of it is done.
    #[error("[gateway] and lockdown need a packet filter: {0}")]
    Nft(#[from] NftError),
    /// A switch of the kernel.
    #[error("cannot set {key} = {value}: {error}; set it yourself with: sysctl -w {key}={value}")]
    Sysctl {
        /// Its name, as sysctl(8) has it.
        key: String,
        /// What it should be.
        value: String,
        /// Why it is not.
        #[source]
        error: io::Error,
    },
    /// What a switch was can't be written down, or that can't be read or removed.
    #[error("{}: cannot read, write or remove what the kernel's switches were: {error}", path.display())]
    State {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        error: io::Error,
    },
    /// Two kill switches let nothing through.
    #[error(
        "the kill switch of {other} holds, and two of them would block each other's tunnel; lift that one: ringway \
             unblock {other}"
    )]
    OtherLockdown {
        /// The interface that it is for.
        other: String,
    },
    /// The routes or interfaces can't be listed.
    #[error(transparent)]
    Link(#[from] LinkError),
}

/// Makes the kernel filter as `new` says instead of as `old` says, which it does. Each table is replaced from one packet to
/// the next; where one of them comes and the other goes, the new one comes first. On an error all is as before.
///
/// The interface is the same. The kill switch knows the tunnel's packets by `fwmark`: while that changes, they are
/// dropped until the sockets have the new one. Where that is all, [`changed`] follows.
pub async fn change(gateway: &gateway::Running, old: &Config, new: &Config) -> Result<(), FirewallError> {
    let switches = switches(old, new);
    let closes = new.interface.lockdown.is_some();
    if switches {
        gateway.is_switch_changing.set(true);
    }
    let result = async {
        if switches && closes {
            lockdown::apply(&new.interface).await?;
        }
        gateway.update(new).await?;
        if switches && !closes {
            lockdown::apply(&new.interface).await?;
        }
        Ok(())
    }
    .await;
    if result.is_err() {
        undo(gateway, new, old).await;
    }
    result
}

/// Puts back what [`change`] has made of `old`, each part whatever becomes of the others.
pub async fn undo(gateway: &gateway::Running, new: &Config, old: &Config) {
    let lockdown = async {
        if switches(new, old) {
            let lockdown = lockdown::restore(&old.interface).await;
            gateway.is_switch_changing.set(lockdown.is_err());
            return lockdown;
        }
        Ok(())
    };
    let update = gateway.update(old);
    let results = match old.interface.lockdown {
        Some(_) => [lockdown.await, update.await],
        None => [update.await, lockdown.await],
    };
    for error in results.into_iter().filter_map(Result::err) {
        tracing::warn!(%error, "the packet filter is not as before");
    }
}

/// `new` runs, after [`change`] and all else: its kill switch is as it says.
pub fn changed(gateway: &gateway::Running, old: &Config, new: &Config) {
    if switches(old, new) {
        gateway.is_switch_changing.set(false);
    }
}

/// Whether the kill switch is to be another one.
fn switches(old: &Config, new: &Config) -> bool {
    let switch = |config: &Config| (config.interface.lockdown.clone(), config.interface.fwmark);
    switch(old) != switch(new) && (old.interface.lockdown.is_some() || new.interface.lockdown.is_some())
}
