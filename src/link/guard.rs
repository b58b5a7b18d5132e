//! What a default route through the tunnel needs beside routes, as wg-quick has it: a packet filter, and a sysctl.
//!
//! The filter drops packets to the tunnel's addresses that come in by other interfaces, with which somebody on the local
//! network could probe what the tunnel carries (CVE-2019-14899). It also keeps the tunnel's mark in conntrack and gives it
//! back to answers, so that a strict reverse path filter (`rp_filter`) looks their way up as the tunnel's own packets
//! went; for that `src_valid_mark` must be on.
//!
//! All of it is one table of nftables, made and replaced in one transaction. It outlives a daemon that is killed, and
//! remembers whether the sysctl was off before.

use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::LinkError;
use super::nft::{self, NftError};

/// What the tables are for: part of their names.
const PURPOSE: &str = "route";
/// An empty chain of this name says that the sysctl is to be switched off again.
const WAS_OFF: &str = "src_valid_mark_was_off";
const SRC_VALID_MARK: &str = "/proc/sys/net/ipv4/conf/all/src_valid_mark";

/// The filter of one tunnel, while it stands.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Guard {
    table: String,
    /// The sysctl was off before.
    was_off: bool,
}

impl Guard {
    /// That of the tunnel `name`, to be raised. `ipv4`: answers over IPv4 must find their way.
    pub(super) async fn of(name: &str, ipv4: bool) -> Result<Guard, LinkError> {
        let table = nft::table(PURPOSE, name);
        let inherited = has_chain(&table, WAS_OFF).await?;
        Ok(Guard {
            table,
            was_off: inherited || ipv4 && is_off(),
        })
    }

    /// Makes it, in place of what a tunnel of that name may have left. It may be there after an error too, and where nobody waits for
    /// the end of this.
    pub(super) async fn raise(&self, name: &str, mark: u32, addresses: &[IpNet]) -> Result<(), LinkError> {
        let body = rules(name, mark, addresses, self.was_off);
        let script = nft::replacing(&self.table, &body);
        nft::apply(&format!("set the packet filter of {name}"), &script).await?;
        if self.was_off
            && is_off()
            && let Err(error) = std::fs::write(SRC_VALID_MARK, "1")
        {
            tracing::warn!(%error, "{SRC_VALID_MARK} stays off: a strict rp_filter would drop what peers send");
        }
        Ok(())
    }

    /// Removes it. `sysctl`: nobody else needs the sysctl, so it is put back.
    pub(super) async fn lower(&self, sysctl: bool) -> Result<(), LinkError> {
        lower(&self.table, self.was_off && sysctl).await
    }
}

fn is_off() -> bool {
    std::fs::read_to_string(SRC_VALID_MARK).is_ok_and(|text| text.trim() == "0")
}

/// The interfaces that have such a table.
pub(super) async fn names() -> Result<Vec<String>, LinkError> {
    let tables = match nft::tables().await {
        Ok(tables) => tables,
        // Nobody has made one without it.
        Err(NftError::Missing) => return Ok(Vec::new()),
        Err(error) => return Err(error.into()),
    };
    let names = tables.iter().filter_map(|table| nft::interface_of(PURPOSE, table));
    Ok(names.collect())
}

/// Removes the table of the tunnel `name`, which is gone. `sysctl`: as in [`Guard::lower`].
pub(super) async fn remove(name: &str, sysctl: bool) -> Result<(), LinkError> {
    let table = nft::table(PURPOSE, name);
    let was_off = has_chain(&table, WAS_OFF).await?;
    lower(&table, was_off && sysctl).await
}

async fn lower(table: &str, switch_off: bool) -> Result<(), LinkError> {
    if switch_off && let Err(error) = std::fs::write(SRC_VALID_MARK, "0") {
        tracing::warn!(%error, "cannot switch {SRC_VALID_MARK} off again");
    }
    nft::delete(table).await.map_err(LinkError::from)
}

async fn has_chain(table: &str, chain: &str) -> Result<bool, LinkError> {
    let listed = nft::list(&["chains", "inet"]).await?;
    Ok(nft::objects(&listed, "chain").any(|object| object["table"] == table && object["name"] == chain))
}

/// What the table holds.
fn rules(interface: &str, mark: u32, addresses: &[IpNet], was_off: bool) -> String {
    let mut drops = String::new();
    for address in addresses.iter().map(IpNet::addr) {
        let family = match address {
            IpAddr::V4(_) => "ip",
            IpAddr::V6(_) => "ip6",
        };
        drops += &format!("    iifname != \"{interface}\" {family} daddr {address} fib saddr type != local drop\n");
    }
    let memory = if was_off {
        format!("  chain {WAS_OFF} {{ }}\n")
    } else {
        String::new()
    };
    format!(
        "{memory}  \
           chain raw {{\n    \
             type filter hook prerouting priority -300; policy accept;\n\
         {drops}  \
           }}\n  \
           chain incoming {{\n    \
             type filter hook prerouting priority -150; policy accept;\n    \
             meta l4proto udp ct mark {mark} meta mark set ct mark\n  \
           }}\n  \
           chain outgoing {{\n    \
             type filter hook postrouting priority -150; policy accept;\n    \
             meta l4proto udp meta mark {mark} ct mark set meta mark\n  \
           }}\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_filter_has_the_mark_the_addresses_and_the_memory() {
        let addresses = ["10.99.0.1/24", "fd99::1/64"].map(|text| text.parse().expect(text));
        let expected = "  chain src_valid_mark_was_off { }
  chain raw {
    type filter hook prerouting priority -300; policy accept;
    iifname != \"rw0\" ip daddr 10.99.0.1 fib saddr type != local drop
    iifname != \"rw0\" ip6 daddr fd99::1 fib saddr type != local drop
  }
  chain incoming {
    type filter hook prerouting priority -150; policy accept;
    meta l4proto udp ct mark 51820 meta mark set ct mark
  }
  chain outgoing {
    type filter hook postrouting priority -150; policy accept;
    meta l4proto udp meta mark 51820 ct mark set meta mark
  }
";
        assert_eq!(rules("rw0", 51820, &addresses, true), expected);
    }
}
