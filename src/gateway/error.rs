//! Why there is no tunnel any more.

use std::io;
use std::path::PathBuf;

use super::handover::HandoverError;
use super::hooks::HookError;
use crate::config::{Foreign, LoadError};
use crate::control::ControlError;
use crate::control::changes::ChangeError;
use crate::control::exporter::ExporterError;
use crate::control::socket::SocketError;
use crate::crypto;
use crate::dns::DnsError;
use crate::firewall::FirewallError;
use crate::link::LinkError;
use crate::sys::{probe, tun};

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
    /// What another process has handed over.
    #[error(transparent)]
    Handover(#[from] HandoverError),
    /// A command of the configuration.
    #[error(transparent)]
    Hook(#[from] HookError),
    /// Somebody has the control socket of what was to be cleaned up after.
    #[error("{}: a daemon answers on this socket, so its tunnel runs; end that first: ringway down", .0.display())]
    Runs(PathBuf),
    /// Somebody else puts an end to the tunnel that was there before, and does not come to it.
    #[error(
        "{}: another process still runs post_down of the tunnel that was here before, and holds this file; end that process",
        .0.display()
    )]
    BeingEnded(PathBuf),
    /// A signal came before it was clear that nothing of an earlier tunnel is left.
    #[error("ended by a signal before what an earlier tunnel may have left was removed; see: ringway cleanup {0}")]
    EndedEarly(String),
    /// What was to be removed of a tunnel that has ended.
    #[error("{}: cannot be removed: {error}", path.display())]
    Left {
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        error: io::Error,
    },
    /// What root was to do on the word of others.
    #[error(transparent)]
    Config(#[from] LoadError),
    /// Where root was to remove something on the word of others.
    #[error(
        "{}: root removes nothing at a place that others can have chosen ({}), and runs no commands of theirs: {foreign}",
        file.display(), socket.display()
    )]
    StrangeSocket {
        /// Whose word it is.
        file: PathBuf,
        /// The place.
        socket: PathBuf,
        /// By what they can.
        foreign: Foreign,
    },
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
