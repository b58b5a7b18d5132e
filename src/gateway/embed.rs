//! A tunnel inside of another program, which ends it; the process's signals, files and rights are left to the program.

use std::convert::Infallible;

use tokio::sync::{mpsc, oneshot};

use super::RunError;
use super::network::Network;
use super::parts::{Identity, Parts};
use crate::config::{Config, Suite};
use crate::control::changes::Changes;
use crate::control::signals::Signals;
use crate::control::{self, Order};
use crate::link;
use crate::sys::tun_mtu::TunMtu;

/// Wishes that may wait.
const WISHES_MAX: usize = 8;

/// A tunnel that is up.
pub(crate) struct Embedded {
    /// The interface's name.
    pub(crate) name: String,
    /// Its index.
    pub(crate) ifindex: u32,
    /// Its TUN.
    pub(crate) tun: TunMtu,
    /// For the control thread's loop.
    pub(crate) orders: mpsc::Sender<Order>,
    /// For the link.
    pub(crate) wishes: mpsc::Sender<Wish>,
}

/// A change of the link.
pub(crate) enum Wish {
    /// Another MTU, in bytes.
    Mtu(u16, oneshot::Sender<Result<(), RunError>>),
}

/// Runs a tunnel on the calling thread until the other end of `end` is dropped. `ready` is called once packets can pass.
pub(crate) fn embed(
    config: &Config,
    session: Option<&str>,
    end: mpsc::Receiver<Infallible>,
    ready: impl FnOnce(Embedded),
) -> Result<(), RunError> {
    let interface = &config.interface;
    let parts = Parts::assemble(interface)?;
    let ifindex = parts.ifindex;
    let tun = parts.tun()?;
    let identity = Identity {
        private_key: interface.private_key.clone(),
        addresses: interface.addresses.clone(),
        suite: Suite::Auto,
    };
    let signals = || Ok(Signals::until_dropped(end));
    parts.run(identity, signals, async |control, signals| {
        let name = control.facts().name.clone();
        if let Some(session) = session {
            link::describe(ifindex, &name, session).await?;
        }
        control.add_peers(&config.peers).await?;
        let network = Network::up(control, config, ifindex).await?;
        let (orders_in, mut orders) = control::orders();
        let (wishes_in, mut wishes) = mpsc::channel(WISHES_MAX);
        ready(Embedded {
            name: name.clone(),
            ifindex,
            tun,
            orders: orders_in.clone(),
            wishes: wishes_in,
        });
        let result = tokio::select! {
            result = control.run(&mut orders, signals) => result.map_err(RunError::from),
            never = fulfil(&mut wishes, ifindex, &name, &orders_in) => match never {},
        };
        network.down().await;
        result
    })
}

/// Does what is wished until the future is dropped.
async fn fulfil(
    wishes: &mut mpsc::Receiver<Wish>,
    ifindex: u32,
    name: &str,
    orders: &mpsc::Sender<Order>,
) -> Infallible {
    while let Some(wish) = wishes.recv().await {
        match wish {
            // Whoever hung up need not know.
            Wish::Mtu(mtu, answer) => drop(answer.send(set_mtu(mtu, ifindex, name, orders).await)),
        }
    }
    std::future::pending().await
}

async fn set_mtu(mtu: u16, ifindex: u32, name: &str, orders: &mpsc::Sender<Order>) -> Result<(), RunError> {
    link::set_mtu(ifindex, name, mtu).await?;
    let changes = Changes {
        mtu: Some(mtu),
        ..Changes::default()
    };
    let (reply, done) = oneshot::channel();
    // A loop that has ended tells nobody, and nobody is left to be told.
    if orders.send(Order::Change(changes, reply)).await.is_ok()
        && let Ok(result) = done.await
    {
        result?;
    }
    Ok(())
}
