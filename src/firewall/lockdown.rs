//! The kill switch: a table that lets nothing leave beside the tunnel, whether its daemon lives or not.
//!
//! It knows the tunnel's packets by their mark, so it needs no word about endpoints that move, and outlives the daemon: a
//! new one puts its own table in place of the old in one transaction, without a gap. It goes when the daemon is ended in
//! good order (unless `lockdown_keep`), or by `ringway unblock`.
//!
//! What it does not see: packets that programs with CAP_NET_RAW put on the wire past the IP layer (DHCP clients do), and
//! bridged frames of virtual machines.

use super::{FirewallError, rules};
use crate::config::{Interface, lockdown};
use crate::link::nft::{self, NftError};

const PURPOSE: &str = "lockdown";

/// Makes the kernel do what the file says: raises the switch, in place of one that stands, or lifts one that the file does
/// not want any more. Returns whether it holds.
pub async fn apply(interface: &Interface) -> Result<bool, FirewallError> {
    let name = &interface.name;
    let table = nft::table(PURPOSE, name);
    let Some(wanted) = &interface.lockdown else {
        // Without nft, or without the right to list tables, there is none of ours.
        if nft::tables().await.is_ok_and(|tables| tables.contains(&table)) {
            nft::delete(&table).await?;
            tracing::info!("the kill switch that a daemon left is lifted: the configuration has none");
        }
        return Ok(false);
    };
    if let Some(other) = standing().await?.into_iter().find(|other| other != name) {
        return Err(FirewallError::OtherLockdown { other });
    }
    let mark = interface.fwmark.unwrap_or(lockdown::MARK_DEFAULT);
    let script = nft::replacing(&table, &rules::lockdown(name, mark, wanted));
    nft::apply(&format!("raise the kill switch of {name}"), &script).await?;
    tracing::info!(
        mark = mark.get(),
        keep = wanted.keep,
        "kill switch: nothing leaves beside the tunnel"
    );
    Ok(true)
}

/// As [`apply`], where one may stand that the file does not want: that it cannot be looked for is an error.
pub async fn restore(interface: &Interface) -> Result<(), FirewallError> {
    match interface.lockdown {
        Some(_) => apply(interface).await.map(drop),
        None => match nft::tables().await {
            // Then there is none of ours.
            Err(NftError::Missing) => Ok(()),
            Err(error) if error.is_permission_denied() => Ok(()),
            _ => lift(&interface.name).await,
        },
    }
}

/// Lifts the switch of the interface `name`; nothing happens where there is none.
pub async fn lift(name: &str) -> Result<(), FirewallError> {
    Ok(nft::delete(&nft::table(PURPOSE, name)).await?)
}

/// The interfaces whose kill switches hold, whether their daemons run or not.
pub async fn standing() -> Result<Vec<String>, FirewallError> {
    let tables = nft::tables().await?;
    Ok(tables
        .iter()
        .filter_map(|table| nft::interface_of(PURPOSE, table))
        .collect())
}
