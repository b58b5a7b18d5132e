//! Puts a tunnel together from its parts, runs it, and takes it apart again.
//!
//! Up: TUN queues, socket group, workers, then (in the control thread's runtime) control socket, peers, link.
//! Down, whatever ended it: goodbye to native peers, workers, link, control socket; the TUN goes with its last
//! descriptor.
#![forbid(unsafe_code)]

mod hooks;
mod parts;
mod retry;
mod service;
mod wireguard;
mod workers;

use std::io;
use std::path::PathBuf;

use ipnet::IpNet;

pub use hooks::HookError;
pub use wireguard::run_wireguard;

use crate::config::{Config, Mtu, Suite, Table};
use crate::control::changes::ChangeError;
use crate::control::runtime::Runtime;
use crate::control::server::Server;
use crate::control::signals::Signals;
use crate::control::socket::SocketError;
use crate::control::{self, Control, ControlError, Facts};
use crate::crypto;
use crate::link::{self, LinkError};
use crate::sys::{probe, tun};
use parts::{Identity, Parts};

/// Why a tunnel did not come up, or went down by itself.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// No AEAD implementation passes its self-test.
    #[error(transparent)]
    SelfTest(#[from] crypto::SelfTestError),
    /// The TUN device.
    #[error(transparent)]
    Tun(#[from] tun::TunError),
    /// The UDP sockets.
    #[error("cannot listen on UDP port {port}: {error}")]
    Udp {
        /// The configured port.
        port: u16,
        /// What the kernel said.
        #[source]
        error: io::Error,
    },
    /// A worker could not start.
    #[error("worker {worker}: {cause}")]
    Worker {
        /// Its number.
        worker: usize,
        /// Why.
        cause: String,
    },
    /// `io = "uring"` where the kernel refuses io_uring.
    #[error("io = \"uring\", but {0}; or set io = \"auto\"")]
    Uring(probe::Refusal),
    /// The latency log.
    #[error("{}: cannot write the latency log: {error}", path.display())]
    LatencyLog {
        /// The configured file.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        error: io::Error,
    },
    /// Addresses, MTU or routes.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// A socket for requests.
    #[error(transparent)]
    Serve(#[from] SocketError),
    /// A command of the configuration.
    #[error(transparent)]
    Hook(#[from] HookError),
    /// A peer could not be added.
    #[error(transparent)]
    Change(#[from] ChangeError),
    /// It ran, and ended by itself.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// The system refused something basic.
    #[error("the system refused something basic: {0}")]
    Io(#[from] io::Error),
}

/// Runs the tunnel in the foreground until SIGINT or SIGTERM. `ready` is called once packets can pass.
pub fn run(config: Config, ready: impl FnOnce(&Facts)) -> Result<(), RunError> {
    let interface = &config.interface;
    let parts = Parts::assemble(interface)?;
    let ifindex = parts.ifindex;
    let identity = Identity {
        private_key: Some(interface.private_key.clone()),
        addresses: interface.addresses.clone(),
        suite: Suite::Auto,
    };
    let runtime = parts.runtime();
    let result = parts.run(identity, async |control, signals, runtime| {
        serve(control, signals, &config, ifindex, runtime, ready).await
    });
    // The interface is gone.
    runtime.block_on(async |_| hooks::run_down("post_down", &interface.hooks.post_down, &interface.name).await)?;
    result
}

/// Runs the tunnel between its link's coming up and going down.
async fn serve(
    control: &mut Control,
    signals: &mut Signals,
    config: &Config,
    ifindex: u32,
    runtime: Runtime,
    ready: impl FnOnce(&Facts),
) -> Result<(), RunError> {
    let server = Server::bind(&config.interface.control_socket).await?;
    let hooks = &config.interface.hooks;
    let name = control.facts().name.clone();
    tokio::select! {
        biased;
        () = signals.end() => return Ok(()),
        result = hooks::run("pre_up", &hooks.pre_up, &name) => result?,
    }
    if let Some(folder) = &config.interface.state_dir {
        control.keep_state(runtime, &folder.join(format!("{name}.state")));
    }
    control.add_peers(&config.peers).await?;
    let mtu = tunnel_mtu(control, config).await?;
    control.set_tun_mtu(mtu)?;
    let routed_peers = match config.interface.table {
        Table::Auto => &config.peers[..],
        Table::Off => &[],
    };
    let routes: Vec<IpNet> = routed_peers
        .iter()
        .flat_map(|peer| peer.allowed_ips.iter().copied())
        .collect();
    let link = link::set_up(link::Plan {
        index: ifindex,
        name: &name,
        mtu,
        addresses: &config.interface.addresses,
        routes: &routes,
    })
    .await?;
    if let Some(path) = &config.interface.latency_log {
        let failed = |error| RunError::LatencyLog {
            path: path.clone(),
            error,
        };
        control.log_latency(runtime, path).await.map_err(failed)?;
    }
    ready(control.facts());
    service::ready(&name);
    service::confine(config);
    let (orders_in, mut orders) = control::orders();
    let control_workers = control.workers();
    // Commands may want to use the tunnel, so it runs beside them.
    let post_up = async {
        match hooks::run("post_up", &hooks.post_up, &name).await {
            Ok(()) => std::future::pending().await,
            Err(error) => error,
        }
    };
    let result = tokio::select! {
        result = control.run(&mut orders, signals) => result.map_err(RunError::from),
        () = server.serve(orders_in.clone()) => Ok(()),
        () = service::watch(orders_in.clone(), control_workers) => Ok(()),
        error = post_up => Err(error.into()),
    };
    service::stopping();
    hooks::run_down("pre_down", &hooks.pre_down, &name).await;
    if let Err(error) = link.tear_down().await {
        tracing::warn!(%error, "the link did not come down cleanly");
    }
    result
}

/// The configured MTU, or the one that the paths to the peers allow.
async fn tunnel_mtu(control: &Control, config: &Config) -> Result<u16, RunError> {
    let interface = &config.interface;
    match interface.mtu {
        Mtu::Bytes(mtu) => Ok(mtu),
        Mtu::Auto => {
            let remotes = control.endpoints();
            let roaming = remotes.len() < config.peers.len();
            let ipv6_inside = interface
                .addresses
                .iter()
                .any(|address| matches!(address, IpNet::V6(_)));
            let addresses = remotes.into_iter().map(|remote| remote.ip());
            Ok(link::auto_mtu(addresses, interface.fwmark.map(u32::from), roaming, ipv6_inside).await?)
        }
    }
}
