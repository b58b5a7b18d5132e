//! The other implementations, and where they are.

use std::path::{Path, PathBuf};
use std::process::Command;

/// Where other implementations are looked for before PATH; RINGWAY_PEERS names another directory.
const DIRECTORY: &str = "/opt/peers/bin";
/// Where PATH of a user may not lead.
const SYSTEM: &str = "/usr/local/sbin:/usr/sbin:/sbin";

/// Another implementation of WireGuard that makes a TUN device and serves a socket for `wg`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Implementation {
    /// As docs/INTEROP.md calls it.
    pub(crate) name: &'static str,
    program: &'static str,
    /// What makes it stay in the foreground as the user it was started by.
    pub(crate) options: &'static [&'static str],
    /// What it needs beyond these to go on when this machine's own address changes.
    pub(crate) options_for_moving: &'static [&'static str],
    /// Whether it outlives being told of another private key or port while it runs. gotatun opens its sockets anew then, and now
    /// and then ends: what reads from its TUN goes with the first of the tasks that it stops, and the one that is stopped last
    /// takes that for the interface's end. Told once, it has nothing to stop.
    pub(crate) reopens_sockets: bool,
    /// Whether it may go on sending from the address at which it was heard last, even when that is no longer its machine's: until it
    /// has heard nothing for 15 s, which a new handshake follows, or is told where the other end is. wireguard-go mostly lets go of
    /// such an address at once, but on a busy machine it was seen not to ("network is unreachable").
    pub(crate) keeps_source: bool,
}

pub(crate) const WIREGUARD_GO: Implementation = Implementation {
    name: "wireguard-go",
    program: "wireguard-go",
    options: &["--foreground"],
    options_for_moving: &[],
    reopens_sockets: true,
    keeps_source: true,
};
pub(crate) const BORINGTUN: Implementation = Implementation {
    name: "boringtun",
    program: "boringtun-cli",
    options: &["--foreground", "--disable-drop-privileges"],
    // A connected socket keeps the address that it was connected from.
    options_for_moving: &["--disable-connected-udp"],
    reopens_sockets: true,
    keeps_source: false,
};
pub(crate) const GOTATUN: Implementation = Implementation {
    name: "gotatun",
    program: "gotatun",
    options: &["--foreground", "--disable-drop-privileges"],
    options_for_moving: &[],
    reopens_sockets: false,
    keeps_source: false,
};
/// All of them, as docs/INTEROP.md has its columns.
pub(crate) const ALL: [Implementation; 3] = [WIREGUARD_GO, BORINGTUN, GOTATUN];

impl Implementation {
    /// The program. `None`, with a printed line, where it is not installed.
    pub(crate) fn find(&self) -> Option<PathBuf> {
        let first = std::env::var("RINGWAY_PEERS").unwrap_or_else(|_| DIRECTORY.to_owned());
        let path = std::env::var("PATH").unwrap_or_default();
        let directories = [first.as_str()]
            .into_iter()
            .chain(path.split(':'))
            .chain(SYSTEM.split(':'));
        let found = directories
            .filter(|directory| !directory.is_empty())
            .map(|directory| Path::new(directory).join(self.program))
            .find(|program| program.is_file());
        if found.is_none() {
            println!("skipped: {} is missing, neither in {first} nor in PATH", self.program);
        }
        found
    }
}

/// What the program says of its version: the last word of its first line, without a leading "v".
pub(crate) fn version(program: &Path) -> String {
    let output = Command::new(program).arg("--version").output();
    let text = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
    let text = text.unwrap_or_default();
    let word = text.lines().next().and_then(|line| line.split_whitespace().last());
    word.unwrap_or("unknown").trim_start_matches('v').to_owned()
}
