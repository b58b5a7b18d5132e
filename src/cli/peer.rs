//! `peer`: the peers of a tunnel that runs.

use std::io::{self, Write as _};
use std::path::PathBuf;

use clap::builder::{OsStringValueParser, TypedValueParser as _};
use clap::{Args, Subcommand, ValueHint};
use zeroize::Zeroizing;

use super::change::{self, HELP};
use super::exit::{Exit, Failure};
use super::target;
use crate::config::PublicKey;
use crate::config::edit::{KeyText, PeerEdit};
use crate::config::keyfile;
use crate::control::api::Request;

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Add a peer
    Add {
        #[arg(value_name = "NAME", help = HELP)]
        interface: String,
        /// The peer's public key
        #[arg(value_name = "PUBLIC_KEY")]
        key: PublicKey,
        #[command(flatten)]
        set: Settings,
    },
    /// Change a peer: only what is given changes, and an empty text takes a setting away
    Set {
        #[arg(value_name = "NAME", help = HELP)]
        interface: String,
        /// The peer's name or public key
        peer: String,
        #[command(flatten)]
        set: Settings,
    },
    /// Remove a peer
    Remove {
        #[arg(value_name = "NAME", help = HELP)]
        interface: String,
        /// The peer's name or public key
        peer: String,
    },
    /// List the peers, a line each: public key, name, endpoint, allowed IPs
    List {
        #[arg(value_name = "NAME", help = HELP)]
        interface: Option<String>,
    },
}

#[derive(Debug, Args)]
pub(super) struct Settings {
    /// What people call it
    #[arg(long)]
    name: Option<String>,
    /// Where it is: address or host name, and port
    #[arg(long, value_name = "HOST:PORT")]
    endpoint: Option<String>,
    /// Networks that are routed to it, separated by commas
    #[arg(long, value_name = "NETWORKS")]
    allowed_ips: Option<String>,
    /// Seconds between keepalives; 0 for none
    #[arg(long, value_name = "SECONDS")]
    persistent_keepalive: Option<u16>,
    /// A file with the key that is mixed into handshakes; "" for none
    // The parser of paths takes no empty one.
    #[arg(long, value_name = "FILE", value_parser = OsStringValueParser::new().map(PathBuf::from), value_hint = ValueHint::AnyPath)]
    preshared_key_file: Option<PathBuf>,
    /// auto, native or wireguard
    #[arg(long)]
    suite: Option<String>,
}

impl Settings {
    fn edit(&self) -> Result<PeerEdit, Failure> {
        let key = match &self.preshared_key_file {
            None => None,
            Some(path) if path.as_os_str().is_empty() => Some(KeyText(Zeroizing::default())),
            Some(path) => {
                let text = keyfile::read(path).map_err(|error| Failure::new(Exit::Invalid, error.to_string()))?;
                Some(KeyText(Zeroizing::new(text.trim().to_owned())))
            }
        };
        let networks = |text: &String| {
            let texts = text.split(',').map(str::trim).filter(|text| !text.is_empty());
            texts.map(str::to_owned).collect()
        };
        Ok(PeerEdit {
            name: self.name.clone(),
            preshared_key: key,
            endpoint: self.endpoint.clone(),
            allowed_ips: self.allowed_ips.as_ref().map(networks),
            persistent_keepalive: self.persistent_keepalive,
            suite: self.suite.clone(),
        })
    }
}

pub(super) fn peer(command: &Command) -> Result<(), Failure> {
    match command {
        Command::Add { interface, key, set } => {
            let request = Request::PeerAdd {
                public_key: *key,
                set: set.edit()?,
            };
            change::change(Some(interface), &request)
        }
        Command::Set { interface, peer, set } => {
            let set = set.edit()?;
            if set == PeerEdit::default() {
                return Err(Failure::new(Exit::Usage, "nothing to set: see ringway peer set --help"));
            }
            let request = Request::PeerSet {
                peer: peer.clone(),
                set,
            };
            change::change(Some(interface), &request)
        }
        Command::Remove { interface, peer } => {
            change::change(Some(interface), &Request::PeerRemove { peer: peer.clone() })
        }
        Command::List { interface } => list(interface.as_deref()),
    }
}

fn list(name: Option<&str>) -> Result<(), Failure> {
    let report = target::connect_one(name)?.status()?;
    let mut out = io::stdout().lock();
    for peer in report.peers {
        let networks: Vec<String> = peer.allowed_ips.iter().map(ToString::to_string).collect();
        let or_dash = |text: Option<String>| text.filter(|text| !text.is_empty()).unwrap_or_else(|| "-".into());
        writeln!(
            out,
            "{}\t{}\t{}\t{}",
            peer.public_key,
            or_dash(peer.name),
            or_dash(peer.endpoint.map(|endpoint| endpoint.to_string())),
            or_dash(Some(networks.join(",")))
        )?;
    }
    Ok(())
}
