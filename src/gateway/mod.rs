//! Puts a tunnel together from its parts, runs it, and takes it apart again.
//!
//! Up: TUN queues, socket group, workers, then (in the control thread's runtime) control socket, peers, link.
//! Down, whatever ended it: goodbye to native peers, workers, link, control socket; the TUN goes with its last
//! descriptor.
#![forbid(unsafe_code)]

mod workers;

use std::io;

use ipnet::IpNet;

use crate::config::{Config, Io, Mtu, Suite, Workers};
use crate::control::api::OffloadReport;
use crate::control::changes::ChangeError;
use crate::control::runtime::Runtime;
use crate::control::server::{ServeError, Server};
use crate::control::{self, Control, ControlError, Facts, Settings};
use crate::crypto::{self, Algorithm};
use crate::link::{self, LinkError};
use crate::proto::{Device, DeviceConfig};
use crate::sys::{cpu, probe, steer, tun, udp};

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
    /// Addresses, MTU or routes.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// The control socket.
    #[error(transparent)]
    Serve(#[from] ServeError),
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
    let choice = interface.crypto;
    let selected = crypto::self_test(choice)?;
    let cores = cpu::allowed();
    let count = match interface.workers {
        Workers::Count(count) => usize::from(count),
        Workers::Auto => cores.len().clamp(1, usize::from(u8::MAX)),
    };
    let refusal = match interface.io {
        Io::Syscall => None,
        Io::Auto => probe::io_uring().err(),
        Io::Uring => {
            probe::io_uring().map_err(RunError::Uring)?;
            None
        }
    };
    let switches = interface.offloads;
    let want = tun::Offloads {
        csum: true,
        tso: switches.tun_tso,
        uso: switches.tun_uso,
    };
    let device = tun::create(&interface.name, count, want)?;
    let mark = interface.fwmark.map_or(0, u32::from);
    let options = udp::UdpOptions {
        gso: switches.udp_gso,
        gro: switches.udp_gro,
        mark,
    };
    let group = udp::bind_group(interface.listen_port, count, options).map_err(|error| RunError::Udp {
        port: interface.listen_port,
        error,
    })?;
    if let [socket, _, ..] = &group.sockets[..]
        && let Err(error) = steer::attach(socket, count as u8)
    {
        tracing::warn!(%error, "no steering program: datagrams reach their workers by being handed over");
    }
    let offloads = OffloadReport {
        udp_gso: group.gso,
        udp_gro: group.gro,
        tun_tso: device.offloads.tso,
        tun_uso: device.offloads.uso,
        tun_csum: device.offloads.csum,
    };
    tracing::info!(
        udp_gso = offloads.udp_gso,
        udp_gro = offloads.udp_gro,
        tun_tso = offloads.tun_tso,
        tun_uso = offloads.tun_uso,
        tun_csum = offloads.tun_csum,
        "offloads in use"
    );
    let protocol = Device::new(
        DeviceConfig {
            private_key: interface.private_key.to_secret(),
            lanes: count as u8,
            crypto: choice,
        },
        |bytes| getrandom::fill(bytes).expect("the kernel's random source does not fail once it was seeded"),
    );
    let facts = Facts {
        name: device.name.clone(),
        listen_port: group.port,
        mtu: u32::from(link::MTU_DEFAULT),
        crypto: format!(
            "{} (AES-256-GCM), {} (ChaCha20-Poly1305)",
            selected.backend(Algorithm::Aes256Gcm),
            selected.backend(Algorithm::ChaCha20Poly1305)
        ),
        offloads,
    };
    let settings = Settings {
        private_key: Some(interface.private_key.clone()),
        addresses: interface.addresses.clone(),
        udp_options: options,
        suite: Suite::Auto,
    };
    let ifindex = device.ifindex;
    let plan = workers::Plan {
        uring: interface.io != Io::Syscall && refusal.is_none(),
        refusal: refusal.map(|refusal| refusal.to_string()),
        cores: if interface.pin && count >= cores.len() {
            cores
        } else {
            Vec::new()
        },
        offloads: device.offloads,
        gso: group.gso,
    };
    if let Some(cause) = &plan.refusal {
        tracing::warn!("io_uring is refused, so plain system calls carry the packets: {cause}");
    }
    let runtime = if plan.uring { Runtime::Uring } else { Runtime::Tokio };
    let (workforce, threads) = workers::start(plan, device.queues, group.sockets)?;
    let result = runtime.block_on(async {
        let mut control = Control::new(settings, facts, protocol, workforce);
        let result = serve(&mut control, &config, ifindex, ready).await;
        control.stop();
        result
    });
    for thread in threads {
        // A worker that panicked has reported it and ended the loop above.
        let _ = thread.join();
    }
    result?
}

/// Runs the tunnel between its link's coming up and going down.
async fn serve(
    control: &mut Control,
    config: &Config,
    ifindex: u32,
    ready: impl FnOnce(&Facts),
) -> Result<(), RunError> {
    let server = Server::bind(&config.interface.control_socket).await?;
    control.add_peers(&config.peers).await?;
    let mtu = tunnel_mtu(control, config).await?;
    control.set_tun_mtu(mtu)?;
    let routes: Vec<IpNet> = config
        .peers
        .iter()
        .flat_map(|peer| peer.allowed_ips.iter().copied())
        .collect();
    let link = link::set_up(link::Plan {
        index: ifindex,
        name: &control.facts().name,
        mtu,
        addresses: &config.interface.addresses,
        routes: &routes,
    })
    .await?;
    ready(control.facts());
    let (orders_in, mut orders) = control::orders();
    let result = tokio::select! {
        result = control.run(&mut orders) => result,
        () = server.serve(orders_in) => Ok(()),
    };
    if let Err(error) = link.tear_down().await {
        tracing::warn!(%error, "the link did not come down cleanly");
    }
    Ok(result?)
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
