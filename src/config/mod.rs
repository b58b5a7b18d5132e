//! Configuration: a file -> raw -> validated.
//!
//! [`toml`] and [`wgquick`] know how files spell things, [`validate`] what they may be, and [`types`] what the rest of the
//! program reads. Whatever is wrong is reported at once, each finding with file, line, key, value and what would be right.
#![forbid(unsafe_code)]

pub mod dns;
pub mod edit;
pub mod files;
pub mod gateway;
pub mod host;
pub mod key;
pub mod keyfile;
pub mod lockdown;
pub mod metrics;
pub mod problem;
pub mod raw;
pub mod render;
pub mod routing;
pub mod save;
pub mod toml;
pub mod trust;
pub mod types;
pub mod validate;
pub mod values;
pub mod wgquick;
pub mod wgquick_text;

#[cfg(test)]
mod tests;

use std::fs::{File, Metadata};
use std::io::{self, Read as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use zeroize::Zeroizing;

pub use dns::Dns;
pub use gateway::{Egress, Gateway, Masquerade, PeerToPeer, Policy};
pub use host::{Host, HostPort};
pub use key::{PresharedKey, PrivateKey, PublicKey};
pub use lockdown::Lockdown;
pub use metrics::MetricsListen;
pub use problem::{LoadError, Located, Problem};
pub use routing::{Routing, Table};
pub use trust::Foreign;
pub use types::{
    Config, Crypto, Hooks, Interface, Io, Mtu, OffloadSwitches, Peer, RUN_DIR, STATE_DIR, Suite, UnknownWord,
    WireGuard, Workers, default_control_socket, default_state_dir,
};

use crate::sys::exec;

/// A configuration that is right, and what is unwise about it.
#[derive(Debug)]
pub struct Loaded {
    /// The configuration.
    pub config: Config,
    /// What works, but is probably not meant; in the order of the file.
    pub warnings: Vec<Problem>,
    /// By what others can have written it than root and whoever became root by sudo.
    pub foreign: Option<Foreign>,
}

/// Reads and checks the configuration file at `path`, and the key files that it names.
pub fn load(path: &Path) -> Result<Loaded, LoadError> {
    let (text, metadata) = read(path).map_err(|error| LoadError::Read {
        path: path.to_owned(),
        error,
    })?;
    let mode = if metadata.is_file() {
        metadata.mode() & 0o7777
    } else {
        0
    };
    let mut loaded = check(path, &text, mode)?;
    loaded.foreign = Foreign::of(path, &metadata);
    Ok(loaded)
}

/// As [`load`], for who is to do what the file says, its commands too: root does not run those that others can have written.
pub fn load_to_run(path: &Path) -> Result<Loaded, LoadError> {
    let loaded = load(path)?;
    match loaded.forbidden_commands(path) {
        Some(error) => Err(error),
        None => Ok(loaded),
    }
}

impl Loaded {
    /// Why this process must not run the commands of the file, which was at `path`; `None`: it may, or there are none.
    pub fn forbidden_commands(&self, path: &Path) -> Option<LoadError> {
        let hook = self.config.interface.hooks.first()?;
        self.distrusted().map(|foreign| LoadError::Commands {
            path: path.to_owned(),
            hook,
            foreign: foreign.clone(),
        })
    }

    /// By what others can have written the file, where this process is root and must not be led by them.
    pub fn distrusted(&self) -> Option<&Foreign> {
        self.foreign.as_ref().filter(|_| exec::effective_user() == 0)
    }
}

/// Checks the text of a configuration file, which is at `path` and has the permission bits `mode` (0: they do not count),
/// and the key files that it names.
pub fn check(path: &Path, text: &str, mode: u32) -> Result<Loaded, LoadError> {
    let mut problems = Vec::new();
    let mut warnings = Vec::new();
    let source = validate::Source {
        path,
        read_key_file: &keyfile::read,
    };
    let raw = if wgquick::is_meant(path, text) {
        wgquick::parse(text, &mut problems)
    } else {
        toml::parse(text, &mut problems)
    };
    let config = raw.and_then(|raw| {
        warnings.extend(warn_of_exposed_secrets(&raw, path, mode));
        validate::validate(raw, source, &mut problems, &mut warnings)
    });
    // Stable: what one line has several of stays in the order of discovery.
    problems.sort_by_key(|problem| problem.line);
    warnings.sort_by_key(|warning| warning.line);
    match config {
        Some(config) => Ok(Loaded {
            config,
            warnings,
            foreign: None,
        }),
        None => Err(LoadError::Invalid {
            path: path.to_owned(),
            problems,
        }),
    }
}

/// The text, and what the open file is: nobody can exchange it in between.
fn read(path: &Path) -> io::Result<(Zeroizing<String>, Metadata)> {
    let mut file = File::open(path)?;
    let metadata = file.metadata()?;
    // Room for everything from the start: a growing String would leave copies of keys behind.
    let mut text = Zeroizing::new(String::with_capacity(usize::try_from(metadata.len()).unwrap_or(0) + 1));
    file.read_to_string(&mut text)?;
    Ok((text, metadata))
}

/// As wg-quick: a file with keys in it should be its owner's alone.
fn warn_of_exposed_secrets(raw: &raw::RawConfig, path: &Path, mode: u32) -> Option<Problem> {
    let secrets = raw
        .interface
        .private_key
        .iter()
        .chain(raw.peers.iter().filter_map(|peer| peer.preshared_key.as_ref()));
    let first = secrets.min_by_key(|secret| secret.place.line)?;
    (mode & 0o077 != 0).then(|| {
        let file = keyfile::shell_quoted(path);
        let text = format!("other users can access this file, and a secret stands here; run: chmod 600 {file}");
        first.place.problem(None, text)
    })
}
