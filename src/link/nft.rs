//! The `nft` program: whole scripts in one transaction, and what the kernel holds as JSON.
//!
//! A script that nft reads from its input is one transaction of the kernel: all of it holds from one packet to the next, or
//! nothing does. The program is part of every system with nftables; the crates that speak its netlink protocol need
//! libclang or C libraries to build, or know a part of the expressions only.

use std::io;
use std::process::{Output, Stdio};
use std::time::Duration;

use serde_json::Value;
use tokio::io::AsyncWriteExt as _;
use tokio::process::{Child, Command};

/// Why nft did not do it.
#[derive(Debug, thiserror::Error)]
pub enum NftError {
    /// No nft.
    #[error("the program nft is not installed (Debian's package: nftables)")]
    Missing,
    /// It failed.
    #[error("cannot {what}: {error}{}", hint(error))]
    Failed {
        /// What was tried, e.g. "set the rules of the gateway rw0".
        what: String,
        /// Why it did not work, in nft's words.
        #[source]
        error: io::Error,
    },
}

impl NftError {
    /// True when more privileges would have helped.
    pub fn is_permission_denied(&self) -> bool {
        matches!(self, NftError::Failed { error, .. } if error.kind() == io::ErrorKind::PermissionDenied)
    }
}

/// A daemon's PATH may lack the directories of administration.
const PLACES: [&str; 3] = ["nft", "/usr/sbin/nft", "/sbin/nft"];

/// Rules for 10,000 peers take a second; nothing takes this long.
const TIME_MAX: Duration = Duration::from_secs(60);

/// The family of all our tables.
const FAMILY: &str = "inet";

/// A name for a table that `interface` has for `purpose`: a name that nft takes, and nobody else's. What nft does not
/// take of an interface's name is written as "/" and its hexadecimal code.
pub fn table(purpose: &str, interface: &str) -> String {
    let mut name = format!("ringway-{purpose}-");
    for byte in interface.bytes() {
        if byte.is_ascii_alphanumeric() || b"-_.".contains(&byte) {
            name.push(byte.into());
        } else {
            name += &format!("/{byte:02x}");
        }
    }
    name
}

/// The interface that [`table`] was called with.
pub fn interface_of(purpose: &str, table: &str) -> Option<String> {
    let mut rest = table
        .strip_prefix("ringway-")?
        .strip_prefix(purpose)?
        .strip_prefix('-')?;
    let mut name = String::new();
    while let Some((plain, coded)) = rest.split_once('/') {
        name += plain;
        name.push(u8::from_str_radix(coded.get(..2)?, 16).ok()?.into());
        rest = &coded[2..];
    }
    Some(name + rest)
}

/// A script that puts a table with `body` in place of what is there under its name.
pub fn replacing(table: &str, body: &str) -> String {
    // "add" makes the deletion succeed where there is none.
    format!("add table {FAMILY} {table}\ndelete table {FAMILY} {table}\ntable {FAMILY} {table} {{\n{body}}}\n")
}

/// Carries out `script`; `what` it is, for errors.
pub async fn apply(what: &str, script: &str) -> Result<(), NftError> {
    run(what, &["-f", "-"], script).await.map(drop)
}

/// Removes the table, which may be gone already.
pub async fn delete(table: &str) -> Result<(), NftError> {
    let script = format!("add table {FAMILY} {table}\ndelete table {FAMILY} {table}\n");
    apply(&format!("remove the table {FAMILY} {table}"), &script).await
}

/// The names of the tables in our family.
pub async fn tables() -> Result<Vec<String>, NftError> {
    let listed = list(&["tables", FAMILY]).await?;
    let names = objects(&listed, "table").filter_map(|table| table["name"].as_str());
    Ok(names.map(str::to_owned).collect())
}

/// `nft -j list ARGUMENTS`.
pub async fn list(arguments: &[&str]) -> Result<Value, NftError> {
    let what = format!("list {}", arguments.join(" "));
    let output = run(&what, &[&["-j", "list"], arguments].concat(), "").await?;
    serde_json::from_slice(&output.stdout).map_err(|error| NftError::Failed {
        what,
        error: io::Error::other(error),
    })
}

/// The objects of one kind in what [`list`] gave.
pub fn objects<'a>(listed: &'a Value, kind: &'a str) -> impl Iterator<Item = &'a Value> {
    let all = listed["nftables"].as_array().into_iter().flatten();
    all.filter_map(move |object| object.get(kind))
}

fn hint(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::PermissionDenied => "; this needs root or CAP_NET_ADMIN",
        _ => "",
    }
}

async fn run(what: &str, arguments: &[&str], input: &str) -> Result<Output, NftError> {
    let failed = |error| NftError::Failed {
        what: what.to_owned(),
        error,
    };
    let mut child = spawn(arguments)?;
    let mut stdin = child.stdin.take().expect("it is piped");
    let talk = async {
        // Where nft ended early, its own words say why.
        let _ = stdin.write_all(input.as_bytes()).await;
        drop(stdin);
        child.wait_with_output().await
    };
    let output = tokio::time::timeout(TIME_MAX, talk)
        .await
        .map_err(|_| failed(io::Error::new(io::ErrorKind::TimedOut, "nft does not end")))?
        .map_err(failed)?;
    if output.status.success() {
        return Ok(output);
    }
    let words = String::from_utf8_lossy(&output.stderr);
    let denied = words.contains("Operation not permitted") || words.contains("Permission denied");
    let kind = if denied {
        io::ErrorKind::PermissionDenied
    } else {
        io::ErrorKind::Other
    };
    let first = words
        .lines()
        .next()
        .map_or_else(|| format!("nft does not say why ({})", output.status), str::to_owned);
    Err(failed(io::Error::new(kind, first)))
}

fn spawn(arguments: &[&str]) -> Result<Child, NftError> {
    for place in PLACES {
        let child = Command::new(place)
            .args(arguments)
            .env("LC_ALL", "C")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn();
        match child {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => {
                return Err(NftError::Failed {
                    what: "run nft".into(),
                    error,
                });
            }
            Ok(child) => return Ok(child),
        }
    }
    Err(NftError::Missing)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_have_names_that_nft_takes_and_tell_whose_they_are() {
        for (interface, name) in [
            ("rw0", "ringway-lockdown-rw0"),
            ("a.b-c_1", "ringway-lockdown-a.b-c_1"),
            ("a=b+", "ringway-lockdown-a/3db/2b"),
        ] {
            assert_eq!(table("lockdown", interface), name);
            assert_eq!(interface_of("lockdown", name).as_deref(), Some(interface));
        }
        for stranger in [
            "filter",
            "ringway-gateway-rw0",
            "ringway-lockdown",
            "ringway-lockdown-a/",
            "ringway-lockdown-a/é",
        ] {
            assert_eq!(interface_of("lockdown", stranger), None, "{stranger}");
        }
    }
}
