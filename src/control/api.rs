//! The control socket's protocol: one JSON object per line, a request then its response, any number of times per
//! connection.
//!
//! ```text
//! > {"command":"status"}
//! < {"status":{"name":"rw0",...}}
//! > {"command":"latency","reset":true}
//! < {"latency":{"name":"rw0",...}}
//! > {"command":"dance"}
//! < {"error":{"code":"bad_request","message":"unknown variant `dance`, ..."}}
//! ```
//!
//! The socket is a Unix stream socket at `/run/ringway/NAME.sock` unless configured otherwise. Requests with unknown
//! fields are refused; readers of responses must ignore fields they don't know, because reports grow. Times end in
//! `_unix_s` or `_unix_ms` (since 1970) or in their unit; counters count since the daemon started.

mod observe;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

pub use observe::{
    CaptureReport, CaptureRequest, ExplainReport, ExplainRequest, InboundReport, KernelRoute, OutboundReport,
    PeerStats, StatsReport, Verdict, WorkerStats, WorkerVerdict,
};

use crate::config::PublicKey;
use crate::config::edit::PeerEdit;

/// Longest request line that a daemon must accept, in bytes without the newline.
pub const REQUEST_LEN_MAX: usize = 64 * 1024;

/// What a client asks for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "snake_case", deny_unknown_fields)]
pub enum Request {
    /// A [`StatusReport`].
    Status {},
    /// A [`LatencyReport`] of all samples since the last reset.
    Latency {
        /// Begin a new interval afterwards: the next report starts where this one ended, no sample is lost.
        #[serde(default)]
        reset: bool,
    },
    /// A [`StatsReport`] of everything that was counted since the last reset.
    Stats {
        /// Begin a new interval afterwards: no count is lost.
        #[serde(default)]
        reset: bool,
    },
    /// An [`ExplainReport`] of one packet.
    Explain(ExplainRequest),
    /// A [`CaptureReport`], and after its line the capture itself; a byte from the client, or the end of what it sends,
    /// ends it. The connection takes no further request.
    Capture(CaptureRequest),
    /// Read the configuration file again and make it what runs: a [`ChangeReport`].
    Reload {},
    /// Make another file what runs: a [`ChangeReport`].
    Apply {
        /// The file; absolute.
        path: PathBuf,
        /// Undo it after so many seconds, unless [`Request::Confirm`] comes before.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        confirm_s: Option<u64>,
    },
    /// Keep what was applied: a [`ChangeReport`].
    Confirm {},
    /// Write what runs into the configuration file: a [`ChangeReport`].
    Save {},
    /// Add a peer: a [`ChangeReport`].
    PeerAdd {
        /// Who it is.
        public_key: PublicKey,
        /// Its keys.
        #[serde(default)]
        set: PeerEdit,
    },
    /// Change a peer: a [`ChangeReport`].
    PeerSet {
        /// Its name or public key.
        peer: String,
        /// What to change.
        set: PeerEdit,
    },
    /// Remove a peer: a [`ChangeReport`].
    PeerRemove {
        /// Its name or public key.
        peer: String,
    },
    /// End the tunnel, as SIGTERM does: a [`ChangeReport`], and the end after it.
    Stop {},
    /// Have another process go on with the tunnel, its sessions and its connections: a [`ChangeReport`], which comes from
    /// that one.
    Upgrade {
        /// The program; absolute. Without it the one that is where this one was started from.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        binary: Option<PathBuf>,
    },
    /// Set the interface's MTU: a [`ChangeReport`].
    SetMtu {
        /// "auto", or bytes.
        mtu: String,
    },
}

impl Request {
    /// Whether it changes the configuration, or what is done with it.
    pub fn is_change(&self) -> bool {
        match self {
            Request::Status {}
            | Request::Latency { .. }
            | Request::Stats { .. }
            | Request::Explain(_)
            | Request::Capture(_) => false,
            Request::Reload {}
            | Request::Apply { .. }
            | Request::Confirm {}
            | Request::Save {}
            | Request::Stop {}
            | Request::Upgrade { .. }
            | Request::PeerAdd { .. }
            | Request::PeerSet { .. }
            | Request::PeerRemove { .. }
            | Request::SetMtu { .. } => true,
        }
    }
}

/// What the daemon answers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Response {
    /// To [`Request::Status`].
    Status(Box<StatusReport>),
    /// To [`Request::Latency`].
    Latency(Box<LatencyReport>),
    /// To [`Request::Stats`].
    Stats(Box<StatsReport>),
    /// To [`Request::Explain`].
    Explain(Box<ExplainReport>),
    /// To [`Request::Capture`].
    Capture(CaptureReport),
    /// To every request that changes something.
    Changed(ChangeReport),
    /// To a request that was not carried out.
    Error(ApiError),
}

/// Why a request was not carried out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct ApiError {
    /// For programs.
    pub code: ErrorCode,
    /// For people, one sentence.
    pub message: String,
}

/// Why a request was not carried out, for programs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorCode {
    /// Not JSON, an unknown command, or an unknown field.
    BadRequest,
    /// The configuration, or what it would become, is not valid; nothing was changed.
    InvalidConfig,
    /// Something differs that is read only when the tunnel comes up; nothing was changed.
    NeedsRestart,
    /// No such peer.
    NotFound,
    /// The client's user may not do that.
    NotPermitted,
    /// Not at this time: a change waits for its confirmation, or none does.
    Conflict,
    /// The system refused; nothing was changed.
    Failed,
    /// The daemon is shutting down or a worker did not answer in time.
    Unavailable,
    /// A fault of the daemon's.
    Internal,
    /// A code that this version does not know.
    #[serde(other)]
    Unknown,
}

/// What a change changed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChangeReport {
    /// A line each, for people; none when nothing had to change.
    pub changes: Vec<String>,
    /// What is unwise in the file, a line each.
    #[serde(default)]
    pub warnings: Vec<String>,
    /// So long the change waits for its confirmation before it is undone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub confirm_within_s: Option<u64>,
}

/// A tunnel as it is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StatusReport {
    /// The interface.
    pub name: String,
    /// The daemon's version.
    pub version: String,
    /// The daemon's process id.
    pub pid: u32,
    /// Our public key.
    pub public_key: PublicKey,
    /// The UDP port in use.
    pub listen_port: u16,
    /// SO_MARK of the outer sockets.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fwmark: Option<u32>,
    /// The TUN device's MTU in bytes.
    pub mtu: u32,
    /// Addresses of the interface.
    #[serde(default)]
    pub addresses: Vec<IpNet>,
    /// The AEAD implementation that was chosen, e.g. "aws-lc".
    pub crypto: String,
    /// What the kernel granted.
    pub offloads: OffloadReport,
    /// When the daemon started.
    pub started_unix_s: u64,
    /// How long ago that was.
    pub uptime_s: u64,
    /// How often another process has gone on with the tunnel since it started.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub upgrades: u32,
    /// Handshake datagrams that were refused, by reason; reasons that never happened are left out.
    #[serde(default)]
    pub control_drops: BTreeMap<String, u64>,
    /// One per worker, in order.
    pub workers: Vec<WorkerReport>,
    /// In the order of the configuration.
    pub peers: Vec<PeerReport>,
}

fn is_zero(count: &u32) -> bool {
    *count == 0
}

/// Which offloads are in use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct OffloadReport {
    /// UDP_SEGMENT on sends.
    pub udp_gso: bool,
    /// UDP_GRO on receives.
    pub udp_gro: bool,
    /// TCP super-packets on the TUN.
    pub tun_tso: bool,
    /// UDP super-packets on the TUN.
    pub tun_uso: bool,
    /// Checksums left to the kernel on the TUN.
    pub tun_csum: bool,
}

/// One worker.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct WorkerReport {
    /// 0, 1, ...: also its TUN queue, its socket and its lane.
    pub index: u32,
    /// The core it is pinned to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu: Option<u32>,
    /// "uring" or "syscall".
    pub io: String,
    /// Why that one, when it is not what "auto" prefers, e.g. "kernel.io_uring_disabled is 2".
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub io_reason: Option<String>,
    /// TUN to UDP.
    pub tx: DirectionReport,
    /// UDP to TUN.
    pub rx: DirectionReport,
    /// Packets dropped, by reason; reasons that never happened are left out.
    #[serde(default)]
    pub drops: BTreeMap<String, u64>,
    /// Data messages that left from the worker's own port (`lane_ports`).
    #[serde(default)]
    pub lane_port_datagrams: u64,
    /// Datagrams that arrived here but belong to another worker's session, and were handed over.
    #[serde(default)]
    pub mis_steered: u64,
    /// The engine's own counters (ENOBUFS, re-arms, ...); those that are zero are left out.
    #[serde(default)]
    pub engine: BTreeMap<String, u64>,
}

/// One direction of one worker.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct DirectionReport {
    /// Inner IP packets.
    pub packets: u64,
    /// Bytes of them.
    pub bytes: u64,
    /// UDP sends (tx) or TUN writes (rx) that carried them.
    pub batches: u64,
    /// Packets per batch.
    #[serde(default)]
    pub batch: Summary,
}

/// A distribution in a few numbers; all zero without samples.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// Samples.
    pub count: u64,
    /// Arithmetic mean.
    pub mean: f64,
    /// Median.
    pub p50: u64,
    /// 99th percentile.
    pub p99: u64,
    /// Largest sample.
    pub max: u64,
}

/// One peer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PeerReport {
    /// What the configuration calls it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Who it is.
    pub public_key: PublicKey,
    /// Whether a preshared key is set.
    #[serde(default)]
    pub preshared_key: bool,
    /// Where it was heard last, or where the configuration says it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<SocketAddr>,
    /// Inner addresses that are routed to it.
    pub allowed_ips: Vec<IpNet>,
    /// When the last handshake was done.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub latest_handshake_unix_s: Option<u64>,
    /// "native" or "wireguard" once a session exists.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub suite: Option<String>,
    /// Lanes that the peer sends on (native suite).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remote_lanes: Option<u8>,
    /// Inner packets sent to it.
    pub tx_packets: u64,
    /// Outer UDP payload bytes sent to it, as `wg` counts: handshakes, headers and tags included.
    pub tx_bytes: u64,
    /// Inner packets received from it.
    pub rx_packets: u64,
    /// Outer UDP payload bytes received from it.
    pub rx_bytes: u64,
    /// Tunnel round trips in nanoseconds, by echo messages (native suite).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rtt_ns: Option<Summary>,
    /// Keepalive interval.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub persistent_keepalive_s: Option<u16>,
    /// Largest inner packet that the path to it carries, where it is smaller than the interface's MTU.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
}

/// Latency of all stages, all workers merged.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LatencyReport {
    /// The interface.
    pub name: String,
    /// Begin of the interval: daemon start or the last reset.
    pub since_unix_ms: u64,
    /// End of the interval.
    pub until_unix_ms: u64,
    /// The stages, in the order in which a packet meets them; then one per peer for round trips.
    pub stages: Vec<StageReport>,
}

/// One histogram.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StageReport {
    /// What was measured, e.g. "tun_to_udp"; also the tag in histogram logs.
    pub name: String,
    /// The peer that it belongs to: its name, else its public key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peer: Option<String>,
    /// Of every value below: "ns" or "packets".
    pub unit: String,
    /// Samples; 0 makes all values below 0.
    pub count: u64,
    /// Arithmetic mean.
    pub mean: f64,
    /// Median.
    pub p50: u64,
    /// 90th percentile.
    pub p90: u64,
    /// 99th percentile.
    pub p99: u64,
    /// 99.9th percentile.
    pub p99_9: u64,
    /// Largest sample.
    pub max: u64,
    /// The whole histogram: HdrHistogram V2, base64 as in histogram logs.
    pub histogram: String,
}
