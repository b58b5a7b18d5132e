//! A tunnel that `wg` and `wg-quick` configure: what `ringway-wg` runs.

use std::cell::Cell;
use std::io;
use std::os::fd::RawFd;
use std::path::PathBuf;

use tokio::sync::mpsc;

use super::guard::Guard;
use super::handover::{self, Handover};
use super::leave::{self, Departure, Luggage, rehearsed};
use super::leftovers::Traces;
use super::parts::{Identity, Parts};
use super::{Listeners, Resumed, RunError, run_here, upgrade};
use crate::config::{Dns, Hooks, Interface, Mtu, OffloadSwitches, Routing, Table, WireGuard, default_control_socket};
use crate::control::server::{Desks, Server};
use crate::control::signals::Signals;
use crate::control::{self, ControlError, Facts};
use crate::link;
use crate::sys::exec;
use crate::uapi;

/// The program whose tunnels these are.
const PROGRAM: &str = "ringway-wg";
/// Wishes for an upgrade that may wait.
const UPGRADES_MAX: usize = 1;

/// Makes the interface, down and without a key, and serves `wg`'s socket until the interface or the socket is removed,
/// or SIGINT or SIGTERM comes. `ready` is called once the socket is there. `resume`: go on instead from where the program
/// stopped that this one was executed by, and that has left what is needed under this descriptor.
///
/// The UDP sockets belong to the network namespace that this is called in, wherever the interface is moved to.
pub fn run_wireguard(
    options: &WireGuard,
    resume: Option<RawFd>,
    ready: &mut dyn FnMut(&Facts) -> io::Result<()>,
) -> Result<(), RunError> {
    let from = resume.map(Handover::take).transpose()?;
    run_here(from, |from, guard| run_open(options, from, guard, ready))
}

/// The part of a configuration that `wg` has no say in.
pub(super) fn interface(options: &WireGuard) -> Interface {
    Interface {
        name: options.name.clone(),
        private_key: None,
        listen_port: 0,
        addresses: Vec::new(),
        mtu: Mtu::Bytes(link::MTU_DEFAULT),
        workers: options.workers,
        io: options.io,
        crypto: options.crypto,
        fwmark: None,
        control_socket: default_control_socket(&options.name),
        latency_log: None,
        offloads: OffloadSwitches::default(),
        pin: false,
        sandbox: true,
        lane_ports: false,
        routing: Routing {
            table: Table::Off,
            ..Routing::default()
        },
        dns: Dns::default(),
        save: None,
        hooks: Hooks::default(),
        state_dir: None,
        lockdown: None,
    }
}

/// Where the tunnel is to go on, comes back with it and with the program that is to have it. The `guard` of one that came here
/// is dismissed once it runs.
fn run_open(
    options: &WireGuard,
    from: Option<Handover>,
    guard: &Cell<Option<Guard>>,
    ready: &mut dyn FnMut(&Facts) -> io::Result<()>,
) -> Result<Option<(Handover, PathBuf)>, RunError> {
    let interface = interface(options);
    let (mut listeners, mut resumed, mut private_key) = (Listeners::default(), None, None);
    let parts = match from {
        None => Parts::assemble(&interface)?,
        Some(Handover {
            state,
            descriptors,
            outcome,
            ..
        }) => {
            let sockets = (descriptors.sockets, descriptors.lane_sockets);
            let parts = Parts::resume(&interface, &state, descriptors.queues, sockets)?;
            listeners.control = descriptors.control;
            listeners.wg = descriptors.wg;
            private_key = state.control.private_key();
            resumed = Some(Resumed {
                state,
                client: descriptors.client,
                outcome,
            });
            parts
        }
    };
    let ifindex = parts.ifindex;
    let identity = Identity {
        private_key,
        addresses: Vec::new(),
        suite: options.suite,
    };
    parts.run(identity, Signals::install, async |control, signals| {
        exec::accept_signals()?;
        let name = control.facts().name.clone();
        let uapi_path = uapi::server::path_of(&name);
        let mut uapi = match (&resumed, listeners.wg) {
            (Some(resumed), Some(listener)) => {
                control.resume(&resumed.state.control)?;
                uapi::server::Server::inherited(&uapi_path, listener)?
            }
            _ => {
                link::prepare(ifindex, &name, link::MTU_DEFAULT).await?;
                control.set_tun_mtu(link::MTU_DEFAULT)?;
                uapi::server::Server::bind(&uapi_path).await?
            }
        };
        // For `ringway status`; `wg` needs it not.
        let path = default_control_socket(&name);
        let mut status = match listeners.control {
            Some(listener) => Server::inherited(&path, listener),
            None => super::bind(&path).await,
        };
        if let Err(error) = &status {
            tracing::warn!(%error, "no control socket");
        }
        ready(control.facts())?;
        guard.take().into_iter().for_each(Guard::dismiss);
        if let Some(resumed) = resumed {
            Handover::answer(resumed.client, &resumed.outcome);
        }
        let (orders_in, mut orders) = control::orders();
        let (upgrades_in, mut upgrades) = mpsc::channel(UPGRADES_MAX);
        let desks = Desks {
            orders: orders_in.clone(),
            changes: None,
            upgrades: upgrades_in,
        };
        let leaving = loop {
            let answer_status = async {
                match &status {
                    Ok(server) => server.serve(desks.clone()).await,
                    Err(_) => std::future::pending().await,
                }
            };
            let upgrade = async {
                while let Some(asked) = upgrades.recv().await {
                    let rehearsal = async {
                        let control = rehearsed(&orders_in).await?;
                        handover::rehearsal(&handover::State::of_wireguard(ifindex, control), None)
                    };
                    if let Some(granted) = upgrade::examine(PROGRAM, asked, rehearsal, upgrade::deadline()).await {
                        return granted;
                    }
                }
                std::future::pending().await
            };
            let granted = tokio::select! {
                result = control.run(&mut orders, signals) => match result {
                    Ok(()) | Err(ControlError::InterfaceRemoved) => return Ok(None),
                    Err(error) => return Err(error.into()),
                },
                () = uapi.serve(orders_in.clone()) => return Ok(None),
                () = answer_status => return Ok(None),
                granted = upgrade => granted,
            };
            let listeners = || {
                Ok(Listeners {
                    control: status.as_ref().ok().map(Server::duplicate).transpose()?,
                    wg: Some(uapi.duplicate()?),
                    metrics: None,
                })
            };
            let traces = Traces {
                name: name.clone(),
                sockets: vec![path.clone(), uapi_path.clone()],
                owns_network: false,
                lockdown: false,
                post_down: Vec::new(),
            };
            let pack = async || {
                Ok(Luggage {
                    about: None,
                    ifindex,
                    listeners: leave::unready("cannot take the listeners along", listeners())?,
                    guard: leave::unready("cannot post a guard", Guard::post(&traces))?,
                })
            };
            match leave::depart(control, (&mut *signals, None), granted, pack).await {
                Departure::Leaves(leaving) => break leaving,
                Departure::Stays => {}
                Departure::Down(result) => return result.map(|()| None),
            }
        };
        uapi.leave_behind();
        status.iter_mut().for_each(Server::leave_behind);
        Ok(Some(leaving.hand_over()))
    })
}
