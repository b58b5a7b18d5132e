//! Puts a tunnel together from its parts, runs it, and takes it apart again.
//!
//! Up: kill switch, `pre_up`, TUN queues, socket group, workers, then (in the control thread's runtime) control socket,
//! peers, gateway rules, link, `post_up`. Down, whatever ended it: `pre_down`, name servers, link, gateway rules, goodbye to
//! native peers, workers, control socket; the TUN goes with its last descriptor; `post_down`. Last of all, and only after an
//! end in good order, the kill switch. As with wg-quick, a tunnel that did not come up, its commands included, has none
//! of the commands of the end.
#![forbid(unsafe_code)]

mod embed;
mod hooks;
mod live;
mod network;
mod parts;
mod plan;
mod retry;
mod save;
mod service;
mod wireguard;
mod workers;

use std::cell::Cell;
use std::io;
use std::path::{Path, PathBuf};

use tokio::sync::mpsc;

pub(crate) use embed::{Wish, embed};
pub use hooks::HookError;
pub use network::cleanup;
pub use wireguard::run_wireguard;

use crate::config::{Config, Interface, Suite};
use crate::control::changes::ChangeError;
use crate::control::exporter::{Exporter, ExporterError};
use crate::control::runtime::Runtime;
use crate::control::server::{Desks, Server};
use crate::control::signals::{Hangups, Signals};
use crate::control::socket::SocketError;
use crate::control::{self, Control, ControlError, Facts};
use crate::crypto;
use crate::dns::DnsError;
use crate::firewall::{self, FirewallError, lockdown};
use crate::link::LinkError;
use crate::sys::tun::TunError;
use crate::sys::{probe, tun};
use crate::uapi;
use live::Live;
use network::Network;
use parts::{Identity, Parts};

/// Changes that may wait for their turn.
const CHANGES_MAX: usize = 8;

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
    /// `bind_interface` is not there.
    #[error("bind_interface = {0:?}: there is no such interface")]
    NoDevice(String),
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
    /// Name servers.
    #[error(transparent)]
    Dns(#[from] DnsError),
    /// Addresses, MTU or routes.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// The gateway's rules, or the kill switch.
    #[error(transparent)]
    Firewall(#[from] FirewallError),
    /// A socket for requests.
    #[error(transparent)]
    Serve(#[from] SocketError),
    /// The metrics.
    #[error(transparent)]
    Metrics(#[from] ExporterError),
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

/// Runs the tunnel in the foreground until SIGINT or SIGTERM. `file` is where `config` came from: SIGHUP and reloads read it
/// again. `ready` is called once packets can pass.
pub fn run(config: Config, file: &Path, ready: impl FnOnce(&Facts)) -> Result<(), RunError> {
    let file = std::path::absolute(file)?;
    Runtime::Tokio.block_on(async |_| lockdown::apply(&config.interface).await)??;
    // It changes as the tunnel does, and the end is as the last one says.
    let mut config = config;
    let result = run_open(&mut config, file, ready);
    let interface = &config.interface;
    match (&interface.lockdown, &result) {
        (None, _) => {}
        (Some(lockdown), Ok(())) if !lockdown.keep => {
            Runtime::Tokio.block_on(async |_| lockdown::lift(&interface.name).await)??;
        }
        (Some(_), _) => tracing::warn!(
            "the kill switch holds; lift it with: ringway unblock {}",
            interface.name
        ),
    }
    result
}

/// As [`run`], whatever the kill switch does. Leaves in `config` what ran last.
fn run_open(config: &mut Config, file: PathBuf, ready: impl FnOnce(&Facts)) -> Result<(), RunError> {
    let interface = &config.interface;
    if !interface.hooks.pre_up.is_empty() && !begin(interface)? {
        return Ok(());
    }
    let parts = Parts::assemble(interface)?;
    let ifindex = parts.ifindex;
    let identity = Identity {
        private_key: interface.private_key.clone(),
        addresses: interface.addresses.clone(),
        suite: Suite::Auto,
    };
    let runtime = parts.runtime();
    let interface_name = interface.name.clone();
    let came_up = Cell::new(false);
    let result = parts.run(identity, Signals::install, async |control, signals, runtime| {
        let mut hangups = Hangups::install()?;
        let server = Server::bind(&config.interface.control_socket).await?;
        let exporter = match &config.metrics {
            Some(listen) => Some(Exporter::bind(listen).await?),
            None => None,
        };
        if exporter.is_some() {
            control.serve_metrics();
        }
        // Commands of wg-quick's files may call wg.
        let uapi = match file.extension().is_some_and(|extension| extension == "conf") {
            true => match uapi::server::Server::bind(&uapi::server::path_of(&interface_name)).await {
                Ok(uapi) => Some(uapi),
                Err(error) => {
                    tracing::warn!(%error, "wg does not see this tunnel");
                    None
                }
            },
            false => None,
        };
        let tunnel = Tunnel {
            server,
            uapi,
            exporter,
            file,
            ifindex,
            runtime,
            came_up: &came_up,
        };
        tunnel.serve(control, signals, &mut hangups, config, ready).await
    });
    // The interface is gone.
    if came_up.get() {
        let interface = &config.interface;
        runtime.block_on(async |_| hooks::run_down("post_down", &interface.hooks.post_down, &interface.name).await)?;
    }
    result
}

/// Runs the commands that come before the interface; false when a signal ends the tunnel before it is there.
fn begin(interface: &Interface) -> Result<bool, RunError> {
    let is_taken = |error: &TunError| matches!(error, TunError::Exists(_));
    retry::while_taken(is_taken, || match tun::index_of(&interface.name) {
        Some(_) => Err(TunError::Exists(interface.name.clone())),
        None => Ok(()),
    })?;
    Runtime::Tokio.block_on(async |_| {
        let mut signals = Signals::install()?;
        tokio::select! {
            // In this order no signal is lost: what comes while nobody listens waits for who listens next.
            biased;
            () = signals.end() => Ok(false),
            result = hooks::run("pre_up", &interface.hooks.pre_up, &interface.name) => {
                result?;
                Ok(true)
            }
        }
    })?
}

/// What a tunnel has beside its parts.
struct Tunnel<'a> {
    server: Server,
    uapi: Option<uapi::server::Server>,
    exporter: Option<Exporter>,
    file: PathBuf,
    ifindex: u32,
    runtime: Runtime,
    /// Whether the commands of the end are to run.
    came_up: &'a Cell<bool>,
}

impl Tunnel<'_> {
    /// Runs the tunnel between its rules' and its link's coming up and going down. Leaves in `config` what ran last.
    async fn serve(
        self,
        control: &mut Control,
        signals: &mut Signals,
        hangups: &mut Hangups,
        config: &mut Config,
        ready: impl FnOnce(&Facts),
    ) -> Result<(), RunError> {
        let name = control.facts().name.clone();
        if let Some(folder) = &config.interface.state_dir {
            control
                .keep_state(self.runtime, &folder.join(format!("{name}.state")))
                .await;
        }
        control.add_peers(&config.peers).await?;
        // Before the link, so that no packet of the tunnel passes unjudged.
        let rules = firewall::gateway::set_up(config).await?;
        let result = self
            .serve_link((control, signals, hangups), config, &rules, ready)
            .await;
        rules.tear_down().await;
        result
    }

    async fn serve_link(
        self,
        (control, signals, hangups): (&mut Control, &mut Signals, &mut Hangups),
        config: &mut Config,
        rules: &firewall::gateway::Running,
        ready: impl FnOnce(&Facts),
    ) -> Result<(), RunError> {
        let name = control.facts().name.clone();
        let mut network = Network::up(control, config, self.ifindex).await?;
        if let Some(path) = &config.interface.latency_log {
            let failed = |error| RunError::LatencyLog {
                path: path.clone(),
                error,
            };
            if let Err(error) = control.log_latency(self.runtime, path).await {
                network.down().await;
                return Err(failed(error));
            }
        }
        ready(control.facts());
        service::ready(&name);
        self.came_up.set(true);
        network.confined = service::confine(config, &self.file, network.dns_backend());
        let (orders_in, mut orders) = control::orders();
        let (changes_in, changes) = mpsc::channel(CHANGES_MAX);
        let workers = control.workers();
        let desks = Desks {
            orders: orders_in.clone(),
            changes: Some(changes_in),
        };
        let mut live = Live::new(config.clone(), self.file, network, rules, orders_in.clone(), changes);
        // Commands may want to use the tunnel, so it runs beside them.
        let post_up = async {
            match hooks::run("post_up", &config.interface.hooks.post_up, &name).await {
                Ok(()) => std::future::pending().await,
                Err(error) => error,
            }
        };
        let serve_wg = async {
            match &self.uapi {
                Some(uapi) => uapi.serve(orders_in.clone()).await,
                None => std::future::pending().await,
            }
        };
        let serve_metrics = async {
            match &self.exporter {
                Some(exporter) => exporter.serve(orders_in.clone()).await,
                None => std::future::pending().await,
            }
        };
        let result = tokio::select! {
            result = control.run(&mut orders, signals) => result.map_err(RunError::from),
            () = self.server.serve(desks) => Ok(()),
            () = serve_metrics => Ok(()),
            // Who removes the socket ends the tunnel, as with wireguard-go.
            () = serve_wg => Ok(()),
            () = live.serve(hangups) => Ok(()),
            () = service::watch(orders_in.clone(), workers) => Ok(()),
            never = rules.follow() => match never {},
            error = post_up => {
                self.came_up.set(false);
                Err(error.into())
            }
        };
        service::stopping();
        let network;
        (network, *config) = live.end();
        let interface = &config.interface;
        if self.came_up.get() {
            hooks::run_down("pre_down", &interface.hooks.pre_down, &name).await;
        }
        if let Some(path) = interface.save.as_ref().filter(|_| self.came_up.get())
            && let Err(error) = save::save(control, self.runtime, config, path).await
        {
            tracing::warn!(%error, path = %path.display(), "SaveConfig: the configuration is not written");
        }
        network.down().await;
        result
    }
}
