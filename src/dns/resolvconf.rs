//! resolvconf(8), as wg-quick calls it: Debian's, openresolv, or what stands in for them.
//!
//! What is set outlives a daemon that is killed, and resolvconf does not tell whose it is: a note in [`RUN_DIR`] does.

use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;

use crate::config::RUN_DIR;

/// Where the program is. `None`: it is not here, or it is systemd-resolved's, which speaks to nobody else.
pub(super) fn find() -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let directories = std::env::split_paths(&path).chain(["/usr/sbin", "/sbin"].map(PathBuf::from));
    let found = directories
        .map(|directory| directory.join("resolvconf"))
        .find(|file| file.is_file())?;
    let real = found.canonicalize().ok()?;
    (real.file_name() != Some("resolvectl".as_ref())).then_some(found)
}

/// Makes `text` (in resolv.conf's form) the tunnel's, and the only one that counts.
pub(super) async fn set(program: &Path, name: &str, text: &str) -> io::Result<()> {
    let record = record(name);
    let note = note(name);
    if let Some(directory) = note.parent() {
        std::fs::create_dir_all(directory)?;
    }
    std::fs::write(&note, &record)?;
    run(program, &["-a", &record, "-m", "0", "-x"], text).await
}

/// Takes it away again.
pub(super) async fn unset(program: &Path, name: &str) -> io::Result<()> {
    let note = note(name);
    let record = std::fs::read_to_string(&note).unwrap_or_else(|_| record(name));
    run(program, &["-d", &record, "-f"], "").await?;
    match std::fs::remove_file(note) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Whether a tunnel of that name has set something.
pub(super) fn has_set(name: &str) -> bool {
    note(name).exists()
}

fn note(name: &str) -> PathBuf {
    Path::new(RUN_DIR).join(format!("{name}.resolvconf"))
}

/// The name of the tunnel's record. Debian's resolvconf orders records by patterns such as `tun*`: one that is named as the
/// first of them that is a bare prefix comes before those of other links.
fn record(name: &str) -> String {
    let order = std::fs::read_to_string("/etc/resolvconf/interface-order").unwrap_or_default();
    match first_prefix(&order) {
        Some(prefix) => format!("{prefix}.{name}"),
        None => name.to_owned(),
    }
}

fn first_prefix(order: &str) -> Option<&str> {
    order.lines().find_map(|line| {
        let prefix = line.trim().strip_suffix('*')?;
        let is_bare = !prefix.is_empty() && prefix.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
        is_bare.then_some(prefix)
    })
}

async fn run(program: &Path, arguments: &[&str], input: &str) -> io::Result<()> {
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    if let Some(mut stdin) = child.stdin.take() {
        // One that reads nothing may have ended already; its status tells.
        let _ = stdin.write_all(input.as_bytes()).await;
    }
    let output = child.wait_with_output().await?;
    if output.status.success() {
        return Ok(());
    }
    let message = String::from_utf8_lossy(&output.stderr);
    let first = message.lines().next().unwrap_or("no reason given");
    Err(io::Error::other(format!(
        "{} {}: {} ({first})",
        program.display(),
        arguments.join(" "),
        output.status
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_record_comes_before_those_of_other_links() {
        let order = "# order\nlo.inet6\nlo.@(dhclient|pppd)\nlo*\n@(tun|tap)*\ntun*\n";
        assert_eq!(first_prefix(order), Some("lo"));
        assert_eq!(first_prefix("@(tun|tap)*\ntun*\n"), Some("tun"));
        assert_eq!(first_prefix("eth0\n*\n"), None);
    }
}
