//! The way of a tunnel out of this process: what can fail comes first, while all goes on here, and then what can't.

use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use tokio::sync::mpsc;

use super::guard::Guard;
use super::handover::{self, Descriptors, Handover};
use super::leftovers::Traces;
use super::network;
use super::upgrade::{Granted, HUNG_UP};
use super::{Listeners, RunError, service};
use crate::config::Config;
use crate::control::handover::HandedOver;
use crate::control::server::ask;
use crate::control::signals::{Hangups, Signals};
use crate::control::{Control, Order, handover as control_handover};
use crate::firewall::gateway;
use crate::sys::exec;

/// What a tunnel is, beside what the control thread knows of it.
pub(super) struct About {
    /// Where the configuration came from.
    pub(super) file: PathBuf,
    /// What runs.
    pub(super) config: Config,
    pub(super) network: network::State,
    pub(super) gateway: gateway::HandedOver,
    pub(super) ifindex: u32,
}

impl About {
    /// The file that a program gets which is asked whether it could go on.
    pub(super) async fn rehearsal(self, orders: &mpsc::Sender<Order>) -> io::Result<OwnedFd> {
        let control = rehearsed(orders).await?;
        let config = handover::config_text(&self.config);
        handover::rehearsal(&self.state(control), Some(&config))
    }

    /// By what a guard finds what there is to be put right.
    pub(super) fn traces(&self) -> Traces {
        Traces::of(&self.config, &self.file)
    }

    fn state(self, control: control_handover::State) -> handover::State {
        handover::State {
            ifindex: self.ifindex,
            guard: None,
            control,
            file: Some(self.file),
            save: self.config.interface.save.clone(),
            keyless: self.config.interface.private_key.is_none(),
            network: Some(self.network),
            gateway: Some(self.gateway),
        }
    }
}

/// What the control thread would hand over, without keys.
pub(super) async fn rehearsed(orders: &mpsc::Sender<Order>) -> io::Result<control_handover::State> {
    let state = ask(orders, Order::Rehearse).await;
    state.ok_or_else(|| io::Error::other("the tunnel is going down"))
}

/// Says what could not be got ready.
pub(super) fn unready<T>(what: &str, result: io::Result<T>) -> io::Result<T> {
    result.map_err(|error| io::Error::other(format!("{what}: {error}")))
}

/// Everything but the control thread's part, ready to go.
pub(super) struct Luggage {
    pub(super) about: Option<About>,
    pub(super) ifindex: u32,
    pub(super) listeners: Listeners,
    pub(super) guard: Guard,
}

/// A tunnel that is on its way out: nobody here has anything of it any more.
pub(super) struct Leaving {
    granted: Granted,
    luggage: Luggage,
    control: HandedOver,
}

/// What became of an upgrade that was granted.
pub(super) enum Departure {
    /// The tunnel leaves.
    Leaves(Box<Leaving>),
    /// It stays as it is; whoever asked was told why.
    Stays,
    /// It goes down: somebody has asked for that, or a worker has failed.
    Down(Result<(), RunError>),
}

/// Lets the tunnel go. `pack` gets ready what may fail to.
pub(super) async fn depart(
    control: &mut Control,
    (signals, hangups): (&mut Signals, Option<&mut Hangups>),
    granted: Granted,
    pack: impl AsyncFnOnce() -> io::Result<Luggage>,
) -> Departure {
    let departure = try_to_depart(control, (signals, hangups), granted, pack).await;
    if !matches!(departure, Departure::Leaves(_)) {
        // Those that have come meanwhile are heard here.
        let _ = exec::accept_signals();
    }
    departure
}

async fn try_to_depart(
    control: &mut Control,
    (signals, mut hangups): (&mut Signals, Option<&mut Hangups>),
    granted: Granted,
    pack: impl AsyncFnOnce() -> io::Result<Luggage>,
) -> Departure {
    let stays = |granted: Granted, error: &dyn std::fmt::Display| {
        granted.refuse(&format!("{error}; the tunnel goes on as before"));
        Departure::Stays
    };
    service::alive();
    match signals.hold(hangups.as_deref_mut()).await {
        Ok(false) => {}
        Ok(true) => {
            granted.refuse("the tunnel is going down");
            return Departure::Down(Ok(()));
        }
        Err(error) => return stays(granted, &error),
    }
    let luggage = match pack().await {
        Ok(luggage) => luggage,
        Err(error) => return stays(granted, &error),
    };
    // Nobody watches meanwhile whether all moves: each step has the manager's patience for itself.
    service::alive();
    if let Err(error) = control.settle().await {
        luggage.guard.dismiss();
        return stays(granted, &error);
    }
    service::alive();
    let paused = match control.pause().await {
        Ok(paused) => paused,
        Err(error) => {
            luggage.guard.dismiss();
            return stays(granted, &error);
        }
    };
    service::alive();
    // The last moment at which nothing has happened yet.
    if granted.is_forsaken() {
        luggage.guard.dismiss();
        return match control.go_on() {
            Ok(()) => stays(granted, &HUNG_UP),
            Err(error) => Departure::Down(Err(error.into())),
        };
    }
    match control.hand_over(paused).await {
        Ok(control) => {
            signals.pass_on(hangups).await;
            service::alive();
            Departure::Leaves(Box::new(Leaving {
                granted,
                luggage,
                control,
            }))
        }
        Err(error) => {
            luggage.guard.dismiss();
            granted.refuse(&format!("{error}; the tunnel goes down"));
            Departure::Down(Err(error.into()))
        }
    }
}

impl Leaving {
    /// All of it, and the program that is to have it.
    pub(super) fn hand_over(self) -> (Handover, PathBuf) {
        let Leaving {
            granted,
            luggage,
            control: handed_over,
        } = self;
        let Luggage {
            about,
            ifindex,
            listeners,
            guard,
        } = luggage;
        let config = about.as_ref().map(|about| handover::config_text(&about.config));
        let state = match about {
            Some(about) => about.state(handed_over.state),
            None => handover::State::of_wireguard(ifindex, handed_over.state),
        };
        let descriptors = Descriptors {
            queues: handed_over.queues.into_iter().map(OwnedFd::from).collect(),
            sockets: handed_over.sockets.into_iter().map(OwnedFd::from).collect(),
            lane_sockets: handed_over.lane_sockets.into_iter().map(OwnedFd::from).collect(),
            control: listeners.control,
            wg: listeners.wg,
            metrics: listeners.metrics,
            client: None,
            guard: None,
        };
        Handover::new(state, config, descriptors, guard, granted)
    }
}
