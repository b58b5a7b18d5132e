//! SaveConfig: the configuration as it is at the end of a run, written back to its file as `wg-quick` does.

use std::io;
use std::path::Path;

use crate::config::files::follow;
use crate::config::wgquick_text::to_wg_quick;
use crate::config::{Config, Host, HostPort, Peer};
use crate::control::Control;
use crate::control::dump::PeerDump;
use crate::control::runtime::{blocking, replace_file_now, within_disk_time};

/// Writes what runs over `path`: keys, port and peers as they are, and of `config` what does not change at run time. Readable
/// for its owner only; where the path is a symbolic link, the file that it leads to is replaced.
///
/// # Errors
/// What the disk says, or that it takes too long to: what is to be put back after this must not wait for it.
pub(super) async fn save(control: &Control, config: &Config, path: &Path) -> io::Result<()> {
    let text = to_wg_quick(&current(control, config));
    let path = path.to_owned();
    let written = blocking(move || {
        let file = match follow(&path) {
            // It was removed.
            Err(error) if error.kind() == io::ErrorKind::NotFound => path,
            file => file?,
        };
        replace_file_now(&file, text.as_bytes())
    });
    within_disk_time(async { written.await.flatten() }).await
}

fn current(control: &Control, config: &Config) -> Config {
    let dump = control.dump();
    let mut interface = config.interface.clone();
    interface.listen_port = dump.listen_port;
    interface.private_key = dump.private_key;
    let peers = dump.peers.into_iter().map(|peer| {
        let configured = config.peers.iter().find(|known| known.public_key == peer.public_key);
        saved(peer, configured)
    });
    Config {
        interface,
        gateway: config.gateway.clone(),
        peers: peers.collect(),
        metrics: config.metrics.clone(),
    }
}

/// A peer with a host name keeps it: its address is only where it was.
fn saved(peer: PeerDump, configured: Option<&Peer>) -> Peer {
    let named = configured.and_then(|known| known.endpoint.as_ref());
    let named = named.filter(|endpoint| matches!(endpoint.host, Host::Name(_)));
    let address = peer.endpoint.map(|endpoint| HostPort {
        host: Host::Address(endpoint.ip()),
        port: endpoint.port(),
    });
    Peer {
        name: None,
        public_key: peer.public_key,
        preshared_key: peer.preshared_key,
        endpoint: named.cloned().or(address),
        allowed_ips: peer.allowed_ips,
        persistent_keepalive: peer.persistent_keepalive,
        suite: configured.map(|known| known.suite).unwrap_or_default(),
        policy: configured.map(|known| known.policy.clone()).unwrap_or_default(),
    }
}
