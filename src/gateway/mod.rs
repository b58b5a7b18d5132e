//! Puts a tunnel together from its parts, runs it, and takes it apart again.
//!
//! Up: kill switch, the end of one that was killed, `pre_up`, TUN queues, socket group, workers, then (in the control thread's runtime) control socket,
//! peers, gateway rules, link, `post_up`. Down, whatever ended it: `pre_down`, name servers, link, gateway rules, goodbye to
//! native peers, workers, control socket; the TUN goes with its last descriptor; `post_down`. Last of all, and only after an
//! end in good order, the kill switch. As with wg-quick, a tunnel that did not come up, its commands included, has none
//! of the commands of the end.
#![forbid(unsafe_code)]

mod begin;
mod embed;
mod error;
mod guard;
mod handover;
mod hooks;
mod leave;
mod leftovers;
mod live;
mod mark;
mod network;
mod parts;
mod plan;
mod retry;
mod save;
mod service;
mod upgrade;
mod wireguard;
mod workers;

use std::cell::{Cell, RefCell};
use std::io;
use std::os::fd::{OwnedFd, RawFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use tokio::sync::mpsc;

pub(crate) use embed::{Wish, embed};
pub use error::RunError;
pub use guard::keep_guard;
pub use handover::HandoverError;
pub use hooks::HookError;
pub use leftovers::cleanup;
pub(crate) use leftovers::sweep;
pub use upgrade::answer_check;
pub use wireguard::run_wireguard;

use crate::config::{Config, Interface, Suite};
use crate::control::api::Response;
use crate::control::exporter::Exporter;
use crate::control::log_file::Means;
use crate::control::runtime::block_on;
use crate::control::server::{Desks, Server};
use crate::control::signals::{Hangups, Signals};
use crate::control::socket::{self, SocketError};
use crate::control::{self, Control, Facts};
use crate::firewall::{self, lockdown};
use crate::sys::{exec, tun};
use crate::uapi;
use begin::begin;
use guard::Guard;
use handover::Handover;
use leave::{Departure, Leaving, Luggage};
use leftovers::REMOVAL_TIME_MAX;
use live::Live;
use mark::Mark;
use network::Network;
use parts::{Identity, Parts};
use upgrade::Granted;

/// How long a guard may take to put things right.
const GUARD_TIME_MAX: Duration = Duration::from_secs(600);
/// Changes that may wait for their turn.
const CHANGES_MAX: usize = 8;

/// The program whose tunnels these are.
const PROGRAM: &str = "ringway";

/// How a tunnel ends here.
enum End {
    /// It goes down.
    Down,
    /// Another program is to go on with it.
    Upgrade(Granted),
}

/// Runs the tunnel in the foreground until SIGINT or SIGTERM. `file` is where `config` came from: SIGHUP and reloads read it
/// again. `ready` is called once packets can pass. An upgrade does not come back, but goes on by [`resume`] in another
/// program.
pub fn run(config: Config, file: &Path, ready: impl FnMut(&Facts)) -> Result<(), RunError> {
    let file = std::path::absolute(file)?;
    // One that ends it waits until somebody listens.
    exec::hold_signals()?;
    let interface = &config.interface;
    // A daemon that runs keeps the one that it has: whether this one may begin turns out later.
    block_on(async {
        if interface.lockdown.is_none() || socket::is_served(&interface.control_socket).await {
            return Ok(());
        }
        // It may have another control socket.
        let is_kept = tun::index_of(&interface.name).is_some() && lockdown::standing().await?.contains(&interface.name);
        if !is_kept {
            lockdown::apply(interface).await?;
        }
        Ok::<(), RunError>(())
    })??;
    run_on(config, file, None, ready)
}

/// As [`run`], from where the program stopped that this one was executed by, and that has left what is needed under the
/// descriptor `number`.
///
/// Where that fails, all that the tunnel had in the system is put back by the guard that was posted before.
pub fn resume(number: RawFd, ready: impl FnMut(&Facts)) -> Result<(), RunError> {
    service::alive();
    let mut handover = Handover::take(number)?;
    match handover.config() {
        Ok((config, file)) => run_on(config, file, Some(handover), ready),
        Err(error) => {
            let guard = handover.guard();
            // The interface goes with its last descriptor.
            drop(handover);
            raise_alarm(guard);
            Err(error.into())
        }
    }
}

fn run_on(
    config: Config,
    file: PathBuf,
    from: Option<Handover>,
    mut ready: impl FnMut(&Facts),
) -> Result<(), RunError> {
    // It changes as the tunnel does, and the end is as the last one says.
    let mut config = config;
    let mark = RefCell::new(None);
    let result = run_here(from, |from, guard| {
        run_open(&mut config, file.clone(), from, guard, &mark, &mut ready)
    });
    let lifted = unlock(&config.interface, result.is_ok());
    // Last: whoever starts such a tunnel waits for it, and raises its own switch once more then.
    if let Some(mark) = mark.take() {
        block_on(forget(mark))?;
    }
    lifted.and(result)
}

/// Lifts the kill switch of a tunnel that is down, unless it is to stay or something was wrong.
fn unlock(interface: &Interface, is_well: bool) -> Result<(), RunError> {
    match &interface.lockdown {
        None => {}
        Some(lockdown) if is_well && !lockdown.keep => {
            service::takes(REMOVAL_TIME_MAX);
            block_on(lockdown::lift(&interface.name))??;
        }
        Some(_) => {
            service::takes(REMOVAL_TIME_MAX);
            let (name, socket) = (&interface.name, &interface.control_socket);
            // What stands is another daemon's where this one was not to begin.
            let runs = block_on(socket::is_served(socket))?;
            match block_on(lockdown::standing())? {
                Ok(names) if runs || !names.contains(name) => {}
                Ok(_) => tracing::warn!("the kill switch holds; lift it with: ringway unblock {name}"),
                Err(error) => tracing::warn!(%error, "the kill switch may hold; lift it with: ringway unblock {name}"),
            }
        }
    }
    Ok(())
}

/// Runs a tunnel by `run_open` until it is down, or another program has it; also again, where that program could not be executed.
/// What `run_open` takes is where to go on and the guard, to be dismissed once it runs; what it gives is a tunnel that is to
/// go on, and the program that is to have it.
fn run_here(
    mut from: Option<Handover>,
    mut run_open: impl FnMut(Option<Handover>, &Cell<Option<Guard>>) -> Result<Option<(Handover, PathBuf)>, RunError>,
) -> Result<(), RunError> {
    let guard = Cell::new(None);
    let result = loop {
        guard.set(from.as_mut().and_then(Handover::guard));
        let next = match run_open(from.take(), &guard) {
            Ok(None) => break Ok(()),
            Ok(Some((handover, program))) => handover.go_on_in(&program),
            Err(error) => break Err(error),
        };
        match next {
            // The other program could not be executed.
            Ok(handover) => from = Some(handover),
            Err(error) => break Err(error.into()),
        }
    };
    // It came here, and did not run again.
    raise_alarm(guard.take());
    result
}

/// Has a guard that is still at its post put things right, which may take longer than a service manager waits for a sign of life
/// from a service that runs.
fn raise_alarm(guard: Option<Guard>) {
    if let Some(guard) = guard {
        service::stopping();
        // It tells nobody itself: the interface, the claim, what is removed, and ten commands.
        service::takes(GUARD_TIME_MAX);
        guard.alarm();
    }
}

/// As [`run`], whatever the kill switch does. Leaves in `config` what ran last, and in `mark` that of a tunnel that is down. Where the
/// tunnel is to go on, comes back with it and with the program that is to have it. The `guard` of one that came here is dismissed once it
/// runs.
fn run_open(
    config: &mut Config,
    file: PathBuf,
    from: Option<Handover>,
    guard: &Cell<Option<Guard>>,
    mark: &RefCell<Option<Mark>>,
    ready: &mut impl FnMut(&Facts),
) -> Result<Option<(Handover, PathBuf)>, RunError> {
    if from.is_none() && !begin(config, &file)? {
        return Ok(None);
    }
    let interface = &config.interface;
    let mut listeners = Listeners::default();
    let (parts, resumed) = match from {
        None => (Parts::assemble(interface)?, None),
        Some(Handover {
            state,
            descriptors,
            outcome,
            ..
        }) => {
            let sockets = (descriptors.sockets, descriptors.lane_sockets);
            let parts = Parts::resume(interface, &state, descriptors.queues, sockets)?;
            service::alive();
            listeners = Listeners {
                control: descriptors.control,
                wg: descriptors.wg,
                metrics: descriptors.metrics,
            };
            let resumed = Resumed {
                state,
                client: descriptors.client,
                outcome,
            };
            (parts, Some(resumed))
        }
    };
    let ifindex = parts.ifindex;
    let identity = Identity {
        private_key: match &resumed {
            Some(resumed) => resumed.state.control.private_key(),
            None => interface.private_key.clone(),
        },
        addresses: interface.addresses.clone(),
        suite: Suite::Auto,
    };
    let log_means = parts.log_means();
    let interface_name = interface.name.clone();
    let result = parts.run(identity, Signals::install, async |control, signals| {
        let mut hangups = Hangups::install()?;
        exec::accept_signals()?;
        let server = match listeners.control {
            Some(listener) => Server::inherited(&config.interface.control_socket, listener)?,
            // Another process may keep the name for a while.
            None => tokio::select! {
                biased;
                () = signals.end() => return Ok(None),
                server = bind(&config.interface.control_socket) => server?,
            },
        };
        let exporter = match (&config.metrics, listeners.metrics) {
            (Some(listen), Some(listener)) => Some(Exporter::inherited(listen, listener)?),
            (Some(listen), None) => Some(Exporter::bind(listen).await?),
            (None, _) => None,
        };
        if exporter.is_some() {
            control.serve_metrics();
        }
        // Commands of wg-quick's files may call wg.
        let uapi = match (
            file.extension().is_some_and(|extension| extension == "conf"),
            listeners.wg,
        ) {
            (true, listener) => {
                let path = uapi::server::path_of(&interface_name);
                let server = match listener {
                    Some(listener) => uapi::server::Server::inherited(&path, listener),
                    None => uapi::server::Server::bind(&path).await,
                };
                server
                    .inspect_err(|error| tracing::warn!(%error, "wg does not see this tunnel"))
                    .ok()
            }
            (false, _) => None,
        };
        let tunnel = Tunnel {
            server,
            uapi,
            exporter,
            file,
            ifindex,
            log_means,
            mark,
            guard,
        };
        tunnel
            .serve(control, signals, &mut hangups, config, resumed, ready)
            .await
    });
    if let Ok(Some(_)) = &result {
        // The next program has it.
        mark.take();
        return result;
    }
    // The interface is gone.
    if mark.borrow().is_some() {
        let interface = &config.interface;
        let ran = block_on(hooks::run_down(
            "post_down",
            &interface.hooks.post_down,
            &interface.name,
        ));
        if let Err(error) = ran {
            // It is left to the next start.
            mark.take();
            return Err(error.into());
        }
    }
    result
}

/// Serves the control socket, once nobody puts right what a killed daemon has left of its tunnel.
async fn bind(path: &Path) -> Result<Server, SocketError> {
    let deadline = Instant::now() + socket::CLAIM_PATIENCE;
    loop {
        match Server::bind(path).await {
            Err(SocketError::Io(_, error)) if error.kind() == io::ErrorKind::TimedOut && Instant::now() < deadline => {
                service::takes(socket::CLAIM_PATIENCE);
            }
            bound => return bound,
        }
    }
}

/// Listeners of an earlier process.
#[derive(Default)]
struct Listeners {
    control: Option<OwnedFd>,
    wg: Option<OwnedFd>,
    metrics: Option<OwnedFd>,
}

/// What is left of a hand-over once the workers run.
struct Resumed {
    state: handover::State,
    client: Option<OwnedFd>,
    outcome: Response,
}

/// Removes a mark: another process has nothing to do for this tunnel any more.
async fn forget(mark: Mark) {
    if let Err(error) = mark.remove().await {
        tracing::warn!(%error, "cannot remove the mark of a tunnel that was up, so post_down will run again");
    }
}

/// What a tunnel has beside its parts.
struct Tunnel<'a> {
    server: Server,
    uapi: Option<uapi::server::Server>,
    exporter: Option<Exporter>,
    file: PathBuf,
    ifindex: u32,
    log_means: Means,
    /// There while the commands of the end are to run.
    mark: &'a RefCell<Option<Mark>>,
    /// Who puts things right unless a tunnel that came here runs.
    guard: &'a Cell<Option<Guard>>,
}

impl Tunnel<'_> {
    /// Runs the tunnel between its rules' and its link's coming up and going down. Leaves in `config` what ran last.
    async fn serve(
        mut self,
        control: &mut Control,
        signals: &mut Signals,
        hangups: &mut Hangups,
        config: &mut Config,
        resumed: Option<Resumed>,
        ready: &mut impl FnMut(&Facts),
    ) -> Result<Option<(Handover, PathBuf)>, RunError> {
        let name = control.facts().name.clone();
        if let Some(folder) = &config.interface.state_dir {
            control.keep_state(&folder.join(format!("{name}.state"))).await;
        }
        match &resumed {
            Some(resumed) => {
                service::alive();
                control.resume(&resumed.state.control)?;
            }
            None => control.add_peers(&config.peers).await?,
        }
        if resumed.is_none() && config.interface.lockdown.is_some() && !lockdown::standing().await?.contains(&name) {
            // The daemon before has lifted it as its own, since this one raised it.
            lockdown::apply(&config.interface).await?;
        }
        // Before the link, so that no packet of the tunnel passes unjudged.
        let rules = match resumed.as_ref().and_then(|resumed| resumed.state.gateway.as_ref()) {
            Some(state) => firewall::gateway::resume(config, state).await,
            None => firewall::gateway::set_up(config).await?,
        };
        let result = self
            .serve_link((control, signals, hangups), config, &rules, resumed, ready)
            .await;
        match result {
            Ok(Some(leaving)) => {
                self.server.leave_behind();
                self.uapi.iter_mut().for_each(uapi::server::Server::leave_behind);
                self.exporter.iter_mut().for_each(Exporter::leave_behind);
                Ok(Some(leaving.hand_over()))
            }
            result => {
                service::takes(REMOVAL_TIME_MAX);
                rules.tear_down(config).await;
                result.map(|_| None)
            }
        }
    }

    async fn serve_link(
        &self,
        (control, signals, hangups): (&mut Control, &mut Signals, &mut Hangups),
        config: &mut Config,
        rules: &firewall::gateway::Running,
        resumed: Option<Resumed>,
        ready: &mut impl FnMut(&Facts),
    ) -> Result<Option<Box<Leaving>>, RunError> {
        let name = control.facts().name.clone();
        let state = resumed.as_ref().map(|resumed| &resumed.state);
        let mut network = match state.and_then(|state| state.network.as_ref()) {
            Some(made) => Network::resume(made, config, (self.ifindex, &name)).await?,
            None => Network::up(control, config, self.ifindex).await?,
        };
        if let Some(path) = &config.interface.latency_log {
            let failed = |error| RunError::LatencyLog {
                path: path.clone(),
                error,
            };
            let logging = match state.map(|state| state.control.latency_log_begin()) {
                Some(Some(begin)) => control.resume_latency_log(self.log_means, path, begin).await,
                // It had ended before, of what may be wrong with its disk yet; the log has told.
                Some(None) => Ok(()),
                None => control.log_latency(self.log_means, path).await,
            };
            if resumed.is_some() {
                service::alive();
            }
            match logging.map_err(failed) {
                // A tunnel that runs does not end for want of its log.
                Err(error) if resumed.is_some() => tracing::warn!("{error}"),
                Err(error) => {
                    network.down().await;
                    return Err(error);
                }
                Ok(()) => {}
            }
        }
        // Whoever hears that it is up may kill it at once.
        let mark = Mark::make(&config.interface.control_socket).await;
        self.mark.replace(Some(mark));
        ready(control.facts());
        service::ready(&name);
        self.guard.take().into_iter().for_each(Guard::dismiss);
        network.confine(config, &self.file).await;
        // The commands of the start have run in an earlier process.
        let begun = Cell::new(resumed.is_some());
        if let Some(resumed) = resumed {
            Handover::answer(resumed.client, &resumed.outcome);
        }
        let (orders_in, mut orders) = control::orders();
        let (changes_in, changes) = mpsc::channel(CHANGES_MAX);
        let workers = control.workers();
        let desks = Desks {
            orders: orders_in.clone(),
            upgrades: changes_in.clone(),
            changes: Some(changes_in),
        };
        let file = self.file.clone();
        let mut live = Live::new(config.clone(), file, network, rules, orders_in.clone(), changes);
        let result = loop {
            // Commands may want to use the tunnel, so it runs beside them.
            let post_up = async {
                if begun.get() {
                    return std::future::pending().await;
                }
                match hooks::run("post_up", &config.interface.hooks.post_up, &name).await {
                    Ok(()) => {
                        begun.set(true);
                        std::future::pending().await
                    }
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
            let end = tokio::select! {
                result = control.run(&mut orders, signals) => result.map(|()| End::Down).map_err(RunError::from),
                () = self.server.serve(desks.clone()) => Ok(End::Down),
                () = serve_metrics => Ok(End::Down),
                // Who removes the socket ends the tunnel, as with wireguard-go.
                () = serve_wg => Ok(End::Down),
                end = live.serve(hangups, &begun) => Ok(end),
                () = service::watch(orders_in.clone(), workers) => Ok(End::Down),
                never = rules.follow() => match never {},
                error = post_up => {
                    let mark = self.mark.take().expect("it has come up");
                    forget(mark).await;
                    Err(error.into())
                }
            };
            let granted = match end {
                Ok(End::Upgrade(granted)) => granted,
                Ok(End::Down) => break Ok(()),
                Err(error) => break Err(error),
            };
            let pack = async || {
                let about = live.about().await;
                Ok(Luggage {
                    ifindex: self.ifindex,
                    listeners: leave::unready("cannot take the listeners along", self.listeners())?,
                    guard: leave::unready("cannot post a guard", Guard::post(&about.traces()))?,
                    about: Some(about),
                })
            };
            match leave::depart(control, (&mut *signals, Some(&mut *hangups)), granted, pack).await {
                Departure::Leaves(leaving) => {
                    *config = live.end().1;
                    return Ok(Some(leaving));
                }
                Departure::Stays => {}
                Departure::Down(result) => break result,
            }
        };
        service::stopping();
        let network;
        (network, *config) = live.end();
        let interface = &config.interface;
        let came_up = self.mark.borrow().is_some();
        if came_up {
            hooks::run_down("pre_down", &interface.hooks.pre_down, &name).await;
        }
        if let Some(path) = interface.save.as_ref().filter(|_| came_up)
            && let Err(error) = save::save(control, config, path).await
        {
            tracing::warn!(%error, path = %path.display(), "SaveConfig: the configuration is not written");
        }
        service::takes(REMOVAL_TIME_MAX);
        network.down().await;
        result.map(|_| None)
    }

    /// Other descriptors of what is listened on.
    fn listeners(&self) -> io::Result<Listeners> {
        Ok(Listeners {
            control: Some(self.server.duplicate()?),
            wg: self.uapi.as_ref().map(uapi::server::Server::duplicate).transpose()?,
            metrics: self.exporter.as_ref().map(Exporter::duplicate).transpose()?,
        })
    }
}
