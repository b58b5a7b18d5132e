//! What is looked at: a configuration, a daemon that runs, both or neither.

use std::path::{Path, PathBuf};

use super::Finding;
use crate::config::{self, Config, Host, HostPort, LoadError, Mtu, default_control_socket};
use crate::control::api::StatusReport;
use crate::control::client::{Client, ClientError};
use crate::sys::device::DeviceName;
use crate::sys::udp::UdpOptions;

/// Where configurations are kept, as NAME.toml.
const CONFIG_DIR: &str = "/etc/ringway";

#[derive(Default)]
pub(super) struct Subject {
    pub(super) config: Option<Config>,
    pub(super) status: Option<StatusReport>,
}

/// Where a peer is said to be.
pub(super) struct Remote {
    pub(super) peer: String,
    pub(super) endpoint: HostPort,
}

impl Subject {
    /// What `name` means, and what is wrong with it already.
    pub(super) fn find(name: Option<&str>) -> (Subject, Vec<Finding>) {
        let mut findings = Vec::new();
        let Some(name) = name else {
            return (Subject::default(), findings);
        };
        let path = Path::new(name);
        let is_config = path
            .extension()
            .is_some_and(|extension| extension == "toml" || extension == "conf");
        let (file, socket) = match (is_config, name.contains('/')) {
            (true, _) => (Some(path.to_owned()), None),
            (false, true) => (None, Some(path.to_owned())),
            (false, false) => (
                Some(Path::new(CONFIG_DIR).join(format!("{name}.toml"))).filter(|file| file.exists()),
                Some(default_control_socket(name)),
            ),
        };
        let config = file.as_deref().and_then(|file| load(file, &mut findings));
        let socket: Option<PathBuf> = socket.or_else(|| Some(config.as_ref()?.interface.control_socket.clone()));
        let status = socket.and_then(|socket| ask(&socket, config.is_some(), &mut findings));
        (Subject { config, status }, findings)
    }

    /// The interface's name.
    pub(super) fn name(&self) -> Option<&str> {
        let configured = self.config.as_ref().map(|config| config.interface.name.as_str());
        configured.or(self.status.as_ref().map(|status| status.name.as_str()))
    }

    /// SO_MARK of the outer packets.
    pub(super) fn mark(&self) -> Option<u32> {
        let configured = self.config.as_ref().and_then(|config| config.interface.fwmark);
        configured
            .map(u32::from)
            .or(self.status.as_ref().and_then(|status| status.fwmark))
    }

    /// The one interface that carries the outer packets.
    pub(super) fn bound_to(&self) -> Option<&str> {
        self.config.as_ref()?.interface.routing.bind_interface.as_deref()
    }

    /// As the daemon's sockets are set, as far as their paths depend on it.
    pub(super) fn udp_options(&self) -> UdpOptions {
        UdpOptions {
            mark: self.mark().unwrap_or(0),
            device: self.bound_to().and_then(DeviceName::new),
            ..UdpOptions::default()
        }
    }

    /// The interface's MTU, where it is known.
    pub(super) fn mtu(&self) -> Option<u32> {
        match (&self.status, &self.config) {
            (Some(status), _) => Some(status.mtu),
            (None, Some(config)) => match config.interface.mtu {
                Mtu::Bytes(bytes) => Some(bytes.into()),
                Mtu::Auto => None,
            },
            (None, None) => None,
        }
    }

    /// Where peers are.
    pub(super) fn remotes(&self) -> Vec<Remote> {
        if let Some(config) = &self.config {
            let remote = |peer: &config::Peer| {
                Some(Remote {
                    peer: peer.name.clone().unwrap_or_else(|| peer.public_key.to_string()),
                    endpoint: peer.endpoint.clone()?,
                })
            };
            return config.peers.iter().filter_map(remote).collect();
        }
        let peers = self.status.iter().flat_map(|status| &status.peers);
        let remote = |peer: &crate::control::api::PeerReport| {
            let endpoint = peer.endpoint?;
            Some(Remote {
                peer: peer.name.clone().unwrap_or_else(|| peer.public_key.to_string()),
                endpoint: HostPort {
                    host: Host::Address(endpoint.ip()),
                    port: endpoint.port(),
                },
            })
        };
        peers.filter_map(remote).collect()
    }
}

/// Reads the file, and the key files that it names; their modes are looked at there.
fn load(file: &Path, findings: &mut Vec<Finding>) -> Option<Config> {
    match config::load(file) {
        Ok(loaded) => {
            for warning in &loaded.warnings {
                findings.push(Finding::warning(
                    "configuration",
                    warning.to_string(),
                    "see \"ringway check\"",
                ));
            }
            findings.push(Finding::ok("configuration", format!("{} is valid", file.display())));
            Some(loaded.config)
        }
        Err(LoadError::Invalid { path, problems }) => {
            for problem in &problems {
                let text = format!("{}:{problem}", path.display());
                findings.push(Finding::problem(
                    "configuration",
                    text,
                    "correct the file; \"ringway check\" reads it again",
                ));
            }
            None
        }
        Err(error @ (LoadError::Read { .. } | LoadError::Commands { .. })) => {
            findings.push(Finding::problem(
                "configuration",
                error.to_string(),
                "name a file that exists and that you may read",
            ));
            None
        }
    }
}

/// Asks the daemon. None that runs is a problem only where there is nothing else to look at.
fn ask(socket: &Path, is_configured: bool, findings: &mut Vec<Finding>) -> Option<StatusReport> {
    let answer = Client::connect(socket).and_then(|mut client| client.status());
    match answer {
        Ok(status) => {
            findings.push(Finding::ok(
                "daemon",
                format!("runs with pid {}, version {}", status.pid, status.version),
            ));
            Some(status)
        }
        Err(ClientError::NoDaemon { .. }) if is_configured => {
            findings.push(Finding::ok("daemon", "does not run"));
            None
        }
        Err(error) => {
            let advice = "start it with \"ringway run FILE\", or name its file or the path of its control socket";
            findings.push(Finding::problem("daemon", error.to_string(), advice));
            None
        }
    }
}
