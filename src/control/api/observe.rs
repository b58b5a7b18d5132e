//! Requests and reports that only look: counters, captures, explanations.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::config::PublicKey;
use crate::stats::counters::CounterSnapshot;

/// Everything that is counted, since the daemon started or the last reset.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StatsReport {
    /// The interface.
    pub name: String,
    /// Begin of the interval: daemon start or the last reset.
    pub since_unix_ms: u64,
    /// End of the interval.
    pub until_unix_ms: u64,
    /// Handshake datagrams that were refused, by reason; reasons that did not happen are left out.
    #[serde(default)]
    pub control_drops: BTreeMap<String, u64>,
    /// One per worker, in order.
    pub workers: Vec<WorkerStats>,
    /// As in a status report.
    pub peers: Vec<PeerStats>,
}

/// What one worker has counted.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct WorkerStats {
    /// Packets, bytes, reads, writes, sends, drops.
    pub counters: CounterSnapshot,
    /// The engine's own counters; those that are zero are left out.
    #[serde(default)]
    pub engine: BTreeMap<String, u64>,
}

/// What was counted of one peer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PeerStats {
    /// What the configuration calls it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Who it is.
    pub public_key: PublicKey,
    /// Inner packets sent to it.
    pub tx_packets: u64,
    /// Outer UDP payload bytes sent to it.
    pub tx_bytes: u64,
    /// Inner packets received from it.
    pub rx_packets: u64,
    /// Outer UDP payload bytes received from it.
    pub rx_bytes: u64,
    /// Handshakes that were completed.
    #[serde(default)]
    pub handshakes: u64,
    /// Times that handshakes were given up, because nobody answered for 90 s.
    #[serde(default)]
    pub handshakes_given_up: u64,
}

/// What to capture.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CaptureRequest {
    /// Only packets from and to this peer: its name or public key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peer: Option<String>,
    /// Only packets that this filter takes; see docs/CONTROL.md for its language. Empty: every packet.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub filter: String,
    /// Of each packet at most so many bytes; all where nothing is given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snap_len: Option<u32>,
    /// End after so many packets.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub packets: Option<u64>,
    /// End after so many seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seconds: Option<u64>,
}

/// A capture has begun: what follows this line on the connection is pcapng, up to its end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CaptureReport {
    /// The interface.
    pub name: String,
    /// "pcapng".
    pub format: String,
}

/// A packet to explain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExplainRequest {
    /// Its source.
    pub source: IpAddr,
    /// Its destination, of the same family.
    pub destination: IpAddr,
    /// Its protocol number, e.g. 6 for TCP. Only the kernel's routing rules may look at it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protocol: Option<u8>,
    /// Its destination port, likewise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
}

/// What would become of a packet.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ExplainReport {
    /// The interface.
    pub name: String,
    /// From the kernel through the tunnel to a peer.
    pub outbound: OutboundReport,
    /// From a peer through the tunnel to the kernel.
    pub inbound: InboundReport,
}

/// What would become of a packet that this machine sends or forwards.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct OutboundReport {
    /// What the kernel's routing says, which comes first: only what it routes to the interface reaches the tunnel.
    pub kernel: KernelRoute,
    /// The peer that the destination belongs to: its name, else its public key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peer: Option<String>,
    /// The allowed IP that says so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub allowed_ip: Option<IpNet>,
    /// Where it would be sent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<SocketAddr>,
    /// Bytes of the largest packet that goes whole; the interface's MTU, or less where the path carries less.
    pub mtu: u32,
    /// What each worker would do with it, in order. The kernel chooses the worker by the flow's hash, and a worker's
    /// number is its lane.
    pub workers: Vec<WorkerVerdict>,
    /// All of it in one word, were it given to the tunnel.
    pub verdict: Verdict,
    /// Why it would be dropped: a reason of "ringway drops".
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// What one worker would do with an outbound packet.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct WorkerVerdict {
    /// In one word.
    pub verdict: Verdict,
    /// The suite of the session that would seal it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub suite: Option<String>,
    /// Packets that wait for a handshake already.
    #[serde(default)]
    pub waiting: u64,
}

/// What would become of a packet that comes through the tunnel.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct InboundReport {
    /// The peer that it is taken from: its name, else its public key. From any other it is dropped as bad_source.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peer: Option<String>,
    /// The allowed IP that says so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub allowed_ip: Option<IpNet>,
    /// How many lanes of the peer's each worker opens, in order; all zero without a session.
    pub lanes: Vec<u32>,
    /// In one word.
    pub verdict: Verdict,
    /// Why it would be dropped: a reason of "ringway drops".
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// What the kernel does with it then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kernel: Option<KernelRoute>,
}

/// What becomes of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// It passes.
    Pass,
    /// It waits for a handshake, and passes if that comes about.
    Wait,
    /// It is dropped.
    Drop,
}

/// What the kernel's routing says of a packet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KernelRoute {
    /// Whether it goes to the tunnel (outbound), or on from it (inbound).
    pub agrees: bool,
    /// The interface that it leaves by.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interface: Option<String>,
    /// For people, e.g. "routed to eth0 via 192.0.2.254".
    pub text: String,
}
