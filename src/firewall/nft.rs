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

use super::FirewallError;

/// A daemon's PATH may lack the directories of administration.
const PLACES: [&str; 3] = ["nft", "/usr/sbin/nft", "/sbin/nft"];

/// Rules for 10,000 peers take a second; nothing takes this long.
const TIME_MAX: Duration = Duration::from_secs(60);

/// The family of all our tables.
const FAMILY: &str = "inet";

/// A name for a table that `interface` has for `purpose`: a name that nft takes, and nobody else's. What nft does not
/// take of an interface's name is written as "/" and its hexadecimal code.
pub(super) fn table(purpose: &str, interface: &str) -> String {
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
pub(super) fn interface_of(purpose: &str, table: &str) -> Option<String> {
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
pub(super) fn replacing(table: &str, body: &str) -> String {
    // "add" makes the deletion succeed where there is none.
    format!("add table {FAMILY} {table}\ndelete table {FAMILY} {table}\ntable {FAMILY} {table} {{\n{body}}}\n")
}

/// Carries out `script`; `what` it is, for errors.
pub(super) async fn apply(what: &str, script: &str) -> Result<(), FirewallError> {
    run(what, &["-f", "-"], script).await.map(drop)
}

/// Removes the table, which may be gone already.
pub(super) async fn delete(table: &str) -> Result<(), FirewallError> {
    let script = format!("add table {FAMILY} {table}\ndelete table {FAMILY} {table}\n");
    apply(&format!("remove the table {FAMILY} {table}"), &script).await
}

/// The names of the tables in our family.
pub(super) async fn tables() -> Result<Vec<String>, FirewallError> {
    let listed = list(&["tables", FAMILY]).await?;
    let names = objects(&listed, "table").filter_map(|table| table["name"].as_str());
    Ok(names.map(str::to_owned).collect())
}

/// `nft -j list ARGUMENTS`.
pub(super) async fn list(arguments: &[&str]) -> Result<Value, FirewallError> {
    let what = format!("list {}", arguments.join(" "));
    let output = run(&what, &[&["-j", "list"], arguments].concat(), "").await?;
    serde_json::from_slice(&output.stdout).map_err(|error| FirewallError::Nft {
        what,
        error: io::Error::other(error),
    })
}

/// The objects of one kind in what [`list`] gave.
pub(super) fn objects<'a>(listed: &'a Value, kind: &'a str) -> impl Iterator<Item = &'a Value> {
    let all = listed["nftables"].as_array().into_iter().flatten();
    all.filter_map(move |object| object.get(kind))
}

async fn run(what: &str, arguments: &[&str], input: &str) -> Result<Output, FirewallError> {
    let failed = |error| FirewallError::Nft {
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
    let first = words.lines().next().unwrap_or("it does not say why").to_owned();
    Err(failed(io::Error::new(kind, first)))
}

fn spawn(arguments: &[&str]) -> Result<Child, FirewallError> {
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
                return Err(FirewallError::Nft {
                    what: "run nft".into(),
                    error,
                });
            }
            Ok(child) => return Ok(child),
        }
    }
    Err(FirewallError::NoNft)
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
