//! What a default route through the tunnel needs beside routes, as wg-quick has it: a packet filter, and a sysctl.
//!
//! The filter drops packets to the tunnel's addresses that come in by other interfaces, with which somebody on the local
//! network could probe what the tunnel carries (CVE-2019-14899). It also keeps the tunnel's mark in conntrack and gives it
//! back to answers, so that a strict reverse path filter (`rp_filter`) looks their way up as the tunnel's own packets
//! went; for that `src_valid_mark` must be on.
//!
//! All of it is one table of nftables, made and replaced in one transaction. It outlives a daemon that is killed, and
//! remembers whether the sysctl was off before.

use std::io;
use std::net::IpAddr;
use std::process::Stdio;

use ipnet::IpNet;
use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;

use super::LinkError;

/// Tables are called so, and then as their interface.
const PREFIX: &str = "ringway-route-";
/// An empty chain of this name says that the sysctl is to be switched off again.
const WAS_OFF: &str = "src_valid_mark_was_off";
const SRC_VALID_MARK: &str = "/proc/sys/net/ipv4/conf/all/src_valid_mark";

/// The filter of one tunnel, while it stands.
pub(super) struct Guard {
    table: String,
    /// The sysctl was off before.
    was_off: bool,
}

impl Guard {
    /// Makes it, in place of what a tunnel of that name may have left. `ipv4`: answers over IPv4 must find their way.
    pub(super) async fn raise(name: &str, mark: u32, addresses: &[IpNet], ipv4: bool) -> Result<Guard, LinkError> {
        let table = table_of(name);
        let inherited = has_chain(&table, WAS_OFF).await?;
        let is_off = ipv4 && std::fs::read_to_string(SRC_VALID_MARK).is_ok_and(|text| text.trim() == "0");
        let guard = Guard {
            table,
            was_off: inherited || is_off,
        };
        nft(&rules(&guard.table, name, mark, addresses, guard.was_off)).await?;
        if is_off && let Err(error) = std::fs::write(SRC_VALID_MARK, "1") {
            tracing::warn!(%error, "{SRC_VALID_MARK} stays off: a strict rp_filter would drop what peers send");
        }
        Ok(guard)
    }

    /// Removes it. `sysctl`: nobody else needs the sysctl, so it is put back.
    pub(super) async fn lower(self, sysctl: bool) -> Result<(), LinkError> {
        lower(&self.table, self.was_off && sysctl).await
    }
}

/// The interfaces that have such a table.
pub(super) async fn names() -> Result<Vec<String>, LinkError> {
    let tables = match nft("list tables inet\n").await {
        Ok(tables) => tables,
        // Nobody has made one without it.
        Err(LinkError::NoNft) => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let names = tables
        .lines()
        .filter_map(|line| line.trim().strip_prefix("table inet ")?.strip_prefix(PREFIX));
    Ok(names.map(unescape).collect())
}

/// Removes the table of the tunnel `name`, which is gone. `sysctl`: as in [`Guard::lower`].
pub(super) async fn remove(name: &str, sysctl: bool) -> Result<(), LinkError> {
    let table = table_of(name);
    let was_off = has_chain(&table, WAS_OFF).await?;
    lower(&table, was_off && sysctl).await
}

async fn lower(table: &str, switch_off: bool) -> Result<(), LinkError> {
    if switch_off && let Err(error) = std::fs::write(SRC_VALID_MARK, "0") {
        tracing::warn!(%error, "cannot switch {SRC_VALID_MARK} off again");
    }
    // That it exists makes deleting it no error.
    nft(&format!("table inet {table} {{ }}\ndelete table inet {table}\n"))
        .await
        .map(drop)
}

async fn has_chain(table: &str, chain: &str) -> Result<bool, LinkError> {
    let chains = nft("list chains inet\n").await?;
    let mut current = "";
    for line in chains.lines().map(|line| line.trim_end_matches(['{', ' ']).trim()) {
        if let Some(table) = line.strip_prefix("table inet ") {
            current = table;
        } else if current == table && line.strip_prefix("chain ") == Some(chain) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// The whole table, in place of an older one.
fn rules(table: &str, interface: &str, mark: u32, addresses: &[IpNet], was_off: bool) -> String {
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
        "table inet {table} {{ }}\n\
         delete table inet {table}\n\
         table inet {table} {{\n\
         {memory}  \
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
           }}\n\
         }}\n"
    )
}

/// A table's name for nft, which knows fewer characters than interfaces have: others become `/` and two digits.
fn table_of(name: &str) -> String {
    let mut table = String::from(PREFIX);
    for c in name.chars() {
        match c {
            'a'..='z' | 'A'..='Z' | '0'..='9' | '.' | '-' | '_' => table.push(c),
            c => table += &format!("/{:02x}", u32::from(c)),
        }
    }
    table
}

/// The interface of a table, less the prefix.
fn unescape(table: &str) -> String {
    let mut parts = table.split('/');
    let mut name = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let (code, rest) = part.split_at_checked(2).unwrap_or((part, ""));
        name.extend(u8::from_str_radix(code, 16).map(char::from));
        name += rest;
    }
    name
}

/// Carries `script` out as one transaction; its output.
async fn nft(script: &str) -> Result<String, LinkError> {
    let failed = |error| LinkError::Nft { error };
    let child = Command::new("nft")
        .args(["-n", "-f", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn();
    let mut child = child.map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => LinkError::NoNft,
        _ => failed(error),
    })?;
    if let Some(mut input) = child.stdin.take() {
        input.write_all(script.as_bytes()).await.map_err(failed)?;
    }
    let output = child.wait_with_output().await.map_err(failed)?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let message = String::from_utf8_lossy(&output.stderr);
    let first = message.lines().next().unwrap_or("no reason given").to_owned();
    let kind = if first.contains("Operation not permitted") {
        io::ErrorKind::PermissionDenied
    } else {
        io::ErrorKind::Other
    };
    Err(failed(io::Error::new(kind, first)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_filter_is_replaced_whole() {
        let addresses = ["10.99.0.1/24", "fd99::1/64"].map(|text| text.parse().expect(text));
        let expected = "\
table inet ringway-route-rw0 { }
delete table inet ringway-route-rw0
table inet ringway-route-rw0 {
  chain src_valid_mark_was_off { }
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
}
";
        assert_eq!(rules("ringway-route-rw0", "rw0", 51820, &addresses, true), expected);
    }

    #[test]
    fn every_interface_has_a_table_name_of_its_own() {
        for (name, table) in [
            ("rw-0.a_B", "ringway-route-rw-0.a_B"),
            ("a=b+", "ringway-route-a/3db/2b"),
        ] {
            assert_eq!(table_of(name), table);
            assert_eq!(unescape(&table[PREFIX.len()..]), name);
        }
        for odd in ["", "/", "/z", "a/zz", "/é"] {
            let _ = unescape(odd);
        }
    }
}
