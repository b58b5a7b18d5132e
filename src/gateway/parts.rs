//! What every tunnel is made of, whoever configures it: TUN queues, sockets, protocol state, workers.

use std::io;
use std::os::fd::OwnedFd;
use std::thread::JoinHandle;

use ipnet::IpNet;

use super::{RunError, handover, retry, workers};
use crate::config::{Interface, Io, PrivateKey, Suite, Workers};
use crate::control::api::OffloadReport;
use crate::control::changes::Sockets;
use crate::control::log_file::Means;
use crate::control::runtime;
use crate::control::signals::Signals;
use crate::control::{self, Control, Facts, Settings, Workforce};
use crate::crypto::{self, Algorithm};
use crate::link;
use crate::proto::{Device, DeviceConfig};
use crate::stats::counters::CounterSnapshot;
use crate::sys::cpu::Core;
use crate::sys::device::DeviceName;
use crate::sys::tun::{TunDevice, TunError, TunQueue};
use crate::sys::tun_mtu::TunMtu;
use crate::sys::udp::{self, UdpGroup, UdpOptions, UdpSocket};
use crate::sys::{cpu, probe, steer, tun};

/// A tunnel whose workers run, without peers, and with its link down.
pub(super) struct Parts {
    /// The interface's index.
    pub(super) ifindex: u32,
    facts: Facts,
    udp_options: UdpOptions,
    mtu: TunMtu,
    protocol: Device,
    workforce: Workforce,
    threads: Vec<JoinHandle<()>>,
    log_means: Means,
}

/// What the control thread starts with, beside what [`Parts::assemble`] found.
pub(super) struct Identity {
    /// `None`: nobody is spoken to before a key comes.
    pub(super) private_key: Option<PrivateKey>,
    /// For reports.
    pub(super) addresses: Vec<IpNet>,
    /// Of peers for which none is named.
    pub(super) suite: Suite,
}

/// What workers are started on.
struct Found {
    device: TunDevice,
    sockets: Sockets,
    lane_sockets: Vec<UdpSocket>,
    udp_options: UdpOptions,
    counted: Vec<CounterSnapshot>,
}

/// How records are sealed, and why not io_uring.
struct EngineChoice {
    selected: crypto::Selected,
    refusal: Option<probe::Refusal>,
}

impl EngineChoice {
    fn of(interface: &Interface) -> Result<EngineChoice, RunError> {
        let selected = crypto::self_test(interface.crypto)?;
        let refusal = match interface.io {
            Io::Syscall => None,
            Io::Auto => probe::io_uring().err(),
            Io::Uring => {
                probe::io_uring().map_err(RunError::Uring)?;
                None
            }
        };
        Ok(EngineChoice { selected, refusal })
    }
}

/// Whether records can be sealed and packets moved in the way that `interface` asks for.
pub(super) fn try_engine(interface: &Interface) -> Result<(), RunError> {
    EngineChoice::of(interface).map(drop)
}

fn udp_options(interface: &Interface, mark: u32) -> UdpOptions {
    UdpOptions {
        gso: interface.offloads.udp_gso,
        gro: interface.offloads.udp_gro,
        mark,
        device: interface.routing.bind_interface.as_deref().and_then(DeviceName::new),
    }
}

impl Parts {
    /// Makes the interface with its workers. Of `interface`, addresses and MTU are left to the link, and the control
    /// socket to whoever serves it.
    pub(super) fn assemble(interface: &Interface) -> Result<Parts, RunError> {
        let engine = EngineChoice::of(interface)?;
        let cores = cpu::allowed();
        let count = match interface.workers {
            Workers::Count(count) => usize::from(count),
            Workers::Auto => cores.len().clamp(1, usize::from(u8::MAX)),
        };
        let switches = interface.offloads;
        let want = tun::Offloads {
            csum: true,
            tso: switches.tun_tso,
            uso: switches.tun_uso,
        };
        let exists = |error: &TunError| matches!(error, TunError::Exists(_));
        let device = retry::while_taken(exists, || tun::create(&interface.name, count, want))?;
        let udp_options = udp_options(interface, interface.fwmark.map_or(0, u32::from));
        let port = interface.listen_port;
        let in_use = |error: &io::Error| error.kind() == io::ErrorKind::AddrInUse;
        let sockets =
            retry::while_taken(in_use, || control::changes::bind(port, count, udp_options)).map_err(|error| {
                match &interface.routing.bind_interface {
                    Some(name) if error.raw_os_error() == Some(libc::ENODEV) => RunError::NoDevice(name.clone()),
                    _ => RunError::Udp { port, error },
                }
            })?;
        let lane_sockets = if interface.lane_ports {
            udp::lane_sockets(&sockets.group, count, udp_options).map_err(|error| RunError::Udp { port: 0, error })?
        } else {
            Vec::new()
        };
        let found = Found {
            device,
            sockets,
            lane_sockets,
            udp_options,
            counted: Vec::new(),
        };
        Parts::start(interface, interface.private_key.as_ref(), engine, cores, found)
    }

    /// Starts workers on what another process has left of the interface. The first of `sockets` is the door's.
    pub(super) fn resume(
        interface: &Interface,
        state: &handover::State,
        queues: Vec<OwnedFd>,
        (sockets, lane_sockets): (Vec<OwnedFd>, Vec<OwnedFd>),
    ) -> Result<Parts, RunError> {
        let engine = EngineChoice::of(interface)?;
        let offloads = state.control.offloads;
        let inherit = |fds: Vec<OwnedFd>| -> io::Result<Vec<UdpSocket>> {
            fds.into_iter()
                .map(|fd| UdpSocket::inherited(fd, offloads.udp_gso))
                .collect()
        };
        let mut sockets = inherit(sockets)?;
        let door = sockets.remove(0);
        // The program that bound them may have had other rules.
        steer::attach(&door, queues.len() as u8)?;
        let found = Found {
            device: TunDevice {
                name: state.control.name.clone(),
                ifindex: state.ifindex,
                queues: queues.into_iter().map(TunQueue::inherited).collect(),
                offloads: tun::Offloads {
                    csum: offloads.tun_csum,
                    tso: offloads.tun_tso,
                    uso: offloads.tun_uso,
                },
            },
            sockets: Sockets {
                group: UdpGroup {
                    port: state.control.listen_port,
                    dual_stack: door.is_dual_stack(),
                    gso: offloads.udp_gso,
                    gro: offloads.udp_gro,
                    sockets,
                },
                door,
            },
            lane_sockets: inherit(lane_sockets)?,
            udp_options: udp_options(interface, state.control.mark),
            counted: state.control.counters(),
        };
        let private_key = state.control.private_key();
        Parts::start(interface, private_key.as_ref(), engine, cpu::allowed(), found)
    }

    fn start(
        interface: &Interface,
        private_key: Option<&PrivateKey>,
        engine: EngineChoice,
        cores: Vec<Core>,
        found: Found,
    ) -> Result<Parts, RunError> {
        let Found {
            device,
            sockets,
            lane_sockets,
            udp_options,
            counted,
        } = found;
        let count = device.queues.len();
        let group = &sockets.group;
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
                private_key: private_key.map_or_else(control::random_secret, PrivateKey::to_secret),
                lanes: count as u8,
                crypto: interface.crypto,
            },
            control::random,
        );
        let EngineChoice { selected, refusal } = engine;
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
        let plan = workers::Plan {
            uring: interface.io != Io::Syscall && refusal.is_none(),
            refusal: refusal.map(|refusal| refusal.to_string()),
            cores: if interface.pin { cores } else { Vec::new() },
            offloads: device.offloads,
            gso: group.gso,
            sandbox: interface.sandbox,
            lane_sockets,
            counted,
        };
        if let Some(cause) = &plan.refusal {
            tracing::warn!("io_uring is refused, so plain system calls carry the packets: {cause}");
        }
        let log_means = Means {
            uring: plan.uring,
            sandbox: plan.sandbox,
        };
        let mtu = TunMtu::new(&device.queues[0])?;
        let (workforce, threads) = workers::start(plan, device.queues, sockets, control::doorman(&protocol))?;
        Ok(Parts {
            ifindex: device.ifindex,
            facts,
            udp_options,
            mtu,
            protocol,
            workforce,
            threads,
            log_means,
        })
    }

    /// How the tunnel's logs are written.
    pub(super) fn log_means(&self) -> Means {
        self.log_means
    }

    /// The interface's TUN.
    pub(super) fn tun(&self) -> io::Result<TunMtu> {
        self.mtu.try_clone()
    }

    /// Runs `serve` on the control thread, which is the calling one, and takes everything down when it ends, unless the
    /// tunnel was handed over. The `signals` that end a tunnel are taken before `serve` makes anything that would outlive the
    /// process.
    pub(super) fn run<T>(
        self,
        identity: Identity,
        signals: impl FnOnce() -> io::Result<Signals>,
        serve: impl AsyncFnOnce(&mut Control, &mut Signals) -> Result<T, RunError>,
    ) -> Result<T, RunError> {
        let settings = Settings {
            private_key: identity.private_key,
            addresses: identity.addresses,
            udp_options: self.udp_options,
            suite: identity.suite,
            mtu: self.mtu,
        };
        let result = runtime::block_on(async {
            let mut signals = signals()?;
            let mut control = Control::new(settings, self.facts, self.protocol, self.workforce);
            let result = serve(&mut control, &mut signals).await;
            control.stop().await;
            result
        });
        for thread in self.threads {
            // A worker that panicked has reported it and ended the loop above.
            let _ = thread.join();
        }
        result?
    }
}
