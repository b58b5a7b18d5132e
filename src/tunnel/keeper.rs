//! Keeps a device's place in the system: its link, routes and name servers, which take a runtime to be changed and removed.
//!
//! That runtime lives on a thread of its own, so that a [`Device`](super::Device) can be used from anywhere: from threads
//! without a runtime, and from those of a program's own.

use std::net::IpAddr;
use std::sync::mpsc::{Sender, channel};
use std::thread::{self, JoinHandle};

use ipnet::IpNet;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use super::builder::Builder;
use super::error::Error;
use crate::config::Table;
use crate::control::runtime::block_on;
use crate::dns;
use crate::gateway;
use crate::link::{self, Counters, Link, LinkError, Routes};

/// What the keeper is asked to do; the answer goes back by the channel.
enum Order {
    Counters(Sender<Result<Counters, LinkError>>),
    SetMtu(u16, Sender<Result<(), LinkError>>),
    End(Sender<Result<(), Error>>),
}

/// The other end of the thread. Everything is put back when it is dropped.
pub(super) struct Keeper {
    orders: UnboundedSender<Order>,
    thread: Option<JoinHandle<()>>,
}

/// What is to be set up.
pub(super) struct Plan {
    /// The interface's index.
    pub(super) ifindex: u32,
    /// Its MTU in bytes.
    pub(super) mtu: u16,
    /// The rest.
    pub(super) builder: Builder,
}

impl Keeper {
    /// Sets everything up. Also tells how packets of protected sockets are marked.
    pub(super) fn start(plan: Plan) -> Result<(Keeper, Option<u32>), Error> {
        let (orders, taken) = unbounded_channel();
        let (tell, told) = channel();
        let thread = thread::Builder::new()
            .name("tunnel-link".into())
            .spawn(move || keep(&plan, taken, &tell))?;
        let keeper = Keeper {
            orders,
            thread: Some(thread),
        };
        let mark = told.recv().unwrap_or(Err(Error::Ended))?;
        Ok((keeper, mark))
    }

    pub(super) fn counters(&self) -> Result<Counters, Error> {
        Ok(self.ask(Order::Counters)??)
    }

    pub(super) fn set_mtu(&self, mtu: u16) -> Result<(), Error> {
        Ok(self.ask(|answer| Order::SetMtu(mtu, answer))??)
    }

    /// Puts everything back, as far as that can be done, and tells what could not.
    pub(super) fn end(self) -> Result<(), Error> {
        self.ask(Order::End)?
    }

    fn ask<T>(&self, order: impl FnOnce(Sender<T>) -> Order) -> Result<T, Error> {
        let (answer, answered) = channel();
        self.orders.send(order(answer)).map_err(|_| Error::Ended)?;
        answered.recv().map_err(|_| Error::Ended)
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        let (answer, _) = channel();
        // It may have ended already.
        let _ = self.orders.send(Order::End(answer));
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// The thread.
fn keep(plan: &Plan, mut orders: UnboundedReceiver<Order>, tell: &Sender<Result<Option<u32>, Error>>) {
    let result = block_on(async {
        let (mut place, mark) = match Place::take(plan).await {
            Ok(taken) => taken,
            Err(error) => return drop(tell.send(Err(error))),
        };
        // Whoever asked waits for each answer.
        let _ = tell.send(Ok(mark));
        while let Some(order) = orders.recv().await {
            match order {
                Order::Counters(answer) => drop(answer.send(place.link.counters().await)),
                Order::SetMtu(mtu, answer) => drop(answer.send(place.link.set_mtu(mtu).await)),
                Order::End(answer) => return drop(answer.send(place.leave().await)),
            }
        }
        if let Err(error) = place.leave().await {
            tracing::warn!(%error, "the system is not as it was before the tunnel");
        }
    });
    if let Err(error) = result {
        let _ = tell.send(Err(error.into()));
    }
}

/// A device's place in the system.
struct Place {
    link: Link,
    dns: Option<dns::Setting>,
}

impl Place {
    /// Brings the link up and leads packets to it; what was made until an error is undone. Tells the mark of protected sockets.
    async fn take(plan: &Plan) -> Result<(Place, Option<u32>), Error> {
        let builder = &plan.builder;
        let name = &builder.name;
        gateway::sweep(name).await;
        let mark = builder.fwmark.map(u32::from);
        let remotes: Vec<IpAddr> = match mark {
            // Protected sockets may go anywhere, so each route is one that could catch them.
            Some(_) => builder.routes.iter().map(IpNet::addr).collect(),
            None => Vec::new(),
        };
        let mut routes = Routes {
            networks: &builder.routes,
            exclude: &builder.routing.exclude,
            table: Table::Auto,
            metric: None,
            remotes: &remotes,
            policy: None,
        };
        routes.policy = link::policy_for(&routes, mark).await?;
        let link = link::set_up(link::Plan {
            index: plan.ifindex,
            name,
            mtu: plan.mtu,
            addresses: &builder.addresses,
            routes,
        })
        .await?;
        let mut place = Place { link, dns: None };
        if let Err(error) = place.furnish(plan).await {
            if let Err(second) = place.leave().await {
                tracing::warn!(error = %second, "could not undo a failed set-up");
            }
            return Err(error);
        }
        Ok((place, routes.policy.map(|policy| policy.mark).or(mark)))
    }

    async fn furnish(&mut self, plan: &Plan) -> Result<(), Error> {
        let builder = &plan.builder;
        if let Some(session) = &builder.session {
            link::describe(plan.ifindex, &builder.name, session).await?;
        }
        if !builder.dns.servers.is_empty() {
            dns::set(&mut self.dns, &builder.name, plan.ifindex, &builder.dns).await?;
        }
        Ok(())
    }

    /// Puts the system back as it was; the first thing that can't be is told, after all else was.
    async fn leave(self) -> Result<(), Error> {
        let dns = match self.dns {
            Some(dns) => dns.revert().await.map_err(Error::from),
            None => Ok(()),
        };
        let link = self.link.tear_down().await.map_err(Error::from);
        dns.and(link)
    }
}
