//! A tunnel that `wg` and `wg-quick` configure: what `ringway-wg` runs.

use std::io;

use super::RunError;
use super::parts::{Identity, Parts};
use crate::config::{Dns, Hooks, Interface, Mtu, OffloadSwitches, Routing, Table, WireGuard, default_control_socket};
use crate::control::server::{Desks, Server};
use crate::control::signals::Signals;
use crate::control::{self, ControlError, Facts};
use crate::link;
use crate::uapi;

/// Makes the interface, down and without a key, and serves `wg`'s socket until the interface or the socket is removed,
/// or SIGINT or SIGTERM comes. `ready` is called once the socket is there.
///
/// The UDP sockets belong to the network namespace that this is called in, wherever the interface is moved to.
pub fn run_wireguard(options: &WireGuard, ready: &mut dyn FnMut(&Facts) -> io::Result<()>) -> Result<(), RunError> {
    let interface = Interface {
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
        pin: true,
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
    };
    let parts = Parts::assemble(&interface)?;
    let ifindex = parts.ifindex;
    let identity = Identity {
        private_key: None,
        addresses: Vec::new(),
        suite: options.suite,
    };
    parts.run(identity, Signals::install, async |control, signals, _| {
        let name = control.facts().name.clone();
        link::prepare(ifindex, &name, link::MTU_DEFAULT).await?;
        control.set_tun_mtu(link::MTU_DEFAULT)?;
        let uapi = uapi::server::Server::bind(&uapi::server::path_of(&name)).await?;
        // For `ringway status`; `wg` needs it not.
        let status = Server::bind(&default_control_socket(&name)).await;
        if let Err(error) = &status {
            tracing::warn!(%error, "no control socket");
        }
        ready(control.facts())?;
        let (orders_in, mut orders) = control::orders();
        let answer_status = async {
            match &status {
                Ok(server) => {
                    let desks = Desks {
                        orders: orders_in.clone(),
                        changes: None,
                    };
                    server.serve(desks).await;
                }
                Err(_) => std::future::pending().await,
            }
        };
        tokio::select! {
            result = control.run(&mut orders, signals) => match result {
                Ok(()) | Err(ControlError::InterfaceRemoved) => Ok(()),
                Err(error) => Err(error.into()),
            },
            () = uapi.serve(orders_in.clone()) => Ok(()),
            () = answer_status => Ok(()),
        }
    })
}
