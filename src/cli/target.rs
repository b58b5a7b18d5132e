//! Which daemons a command talks to.

use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::exit::{Exit, Failure};
use super::style::Style;
use crate::config::{RUN_DIR, default_control_socket};
use crate::control::api::ErrorCode;
use crate::control::client::{Client, ClientError, sockets_in};

/// The help of every `NAME` argument.
pub(super) const HELP: &str = "\
The interface, or with a \"/\" the path of its control socket or of a directory of them [default: all that run, from \
/run/ringway]";

/// What `NAME` means.
enum Target {
    /// This daemon.
    One(PathBuf),
    /// All whose sockets lie in this directory.
    AllIn(PathBuf),
}

/// Connects to the daemons that `name` means: at least one.
pub(super) fn connect(name: Option<&str>) -> Result<Vec<Client>, Failure> {
    match target(name) {
        Target::One(socket) => Ok(vec![Client::connect(&socket).map_err(Failure::from)?]),
        Target::AllIn(directory) => connect_all(&directory),
    }
}

/// Asks the daemons that `name` means for a report each and writes them: as JSON, one on a line, or as `text` makes them.
pub(super) fn write_reports<R: Serialize>(
    name: Option<&str>,
    json: bool,
    ask: impl Fn(&mut Client) -> Result<R, ClientError>,
    text: impl Fn(&R, Style) -> String,
) -> Result<(), Failure> {
    let mut blocks = Vec::new();
    for mut client in connect(name)? {
        let report = ask(&mut client)?;
        blocks.push(match json {
            true => serde_json::to_string(&report).map_err(io::Error::from)? + "\n",
            false => text(&report, Style::of_stdout()),
        });
    }
    io::stdout().write_all(blocks.join(if json { "" } else { "\n" }).as_bytes())?;
    Ok(())
}

/// Connects to the one daemon that `name` means.
pub(super) fn connect_one(name: Option<&str>) -> Result<Client, Failure> {
    let mut clients = connect(name)?;
    match (clients.pop(), clients.as_slice()) {
        (Some(client), []) => Ok(client),
        (last, others) => {
            let names: Vec<String> = others
                .iter()
                .chain(&last)
                .map(|client| name_of(client.path()))
                .collect();
            Err(Failure::new(
                Exit::Usage,
                format!("several tunnels run; name one of: {}", names.join(", ")),
            ))
        }
    }
}

fn target(name: Option<&str>) -> Target {
    match name {
        None => Target::AllIn(RUN_DIR.into()),
        Some(path) if path.contains('/') && Path::new(path).is_dir() => Target::AllIn(path.into()),
        Some(path) if path.contains('/') => Target::One(path.into()),
        Some(name) => Target::One(default_control_socket(name)),
    }
}

/// Sockets that nobody serves any more, because their daemon was killed, are passed over.
fn connect_all(directory: &Path) -> Result<Vec<Client>, Failure> {
    let sockets = sockets_in(directory).map_err(|error| {
        let Failure { exit, message } = Failure::of(&error);
        Failure::new(exit, format!("{}: {message}", directory.display()))
    })?;
    let mut clients = Vec::with_capacity(sockets.len());
    for socket in sockets {
        match Client::connect(&socket) {
            Ok(client) => clients.push(client),
            Err(ClientError::NoDaemon { .. }) => {}
            Err(error) => return Err(error.into()),
        }
    }
    if clients.is_empty() {
        return Err(Failure::new(
            Exit::NoDaemon,
            format!("no tunnel runs here (none in {})", directory.display()),
        ));
    }
    Ok(clients)
}

fn name_of(socket: &Path) -> String {
    socket.file_stem().unwrap_or_default().to_string_lossy().into_owned()
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Failure {
        let exit = match &error {
            ClientError::NoDaemon { .. } => Exit::NoDaemon,
            ClientError::Permission { .. } => Exit::Permission,
            ClientError::Refused { error, .. } if error.code == ErrorCode::InvalidConfig => Exit::Invalid,
            ClientError::Refused { error, .. } if error.code == ErrorCode::NotPermitted => Exit::Permission,
            ClientError::Io { .. }
            | ClientError::Protocol { .. }
            | ClientError::UpgradeLost { .. }
            | ClientError::Refused { .. } => Exit::Failure,
        };
        Failure::new(exit, error.to_string())
    }
}
