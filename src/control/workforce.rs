//! The other threads of a tunnel, as the control thread knows them.

use std::sync::Arc;

use tokio::sync::mpsc;

use super::ControlError;
use crate::path::drops::Drop;
use crate::stats::counters::WorkerCounters;
use crate::stats::latency::StageHistograms;
use crate::sys::tun::TunQueue;
use crate::sys::udp::UdpSocket;
use crate::worker::door::DoorPort;
use crate::worker::mailbox::{Reports, WorkerPort};

/// What the control thread needs to know of one worker.
pub struct WorkerInfo {
    /// Its mailbox.
    pub(super) port: WorkerPort,
    /// What it counts.
    pub(super) counters: Arc<WorkerCounters>,
    /// Its TUN queue.
    pub(super) queue: TunQueue,
    /// Its UDP socket.
    pub(super) socket: WatchedSocket,
    /// The socket on its lane's own port, if it has one.
    pub(super) lane_socket: Option<UdpSocket>,
    /// The core it is pinned to.
    pub(super) cpu: Option<u32>,
    /// "uring" or "syscall".
    pub(super) io: &'static str,
    /// Why not the other one.
    pub(super) io_reason: Option<String>,
    /// What it has recorded, up to the last read.
    pub(super) histograms: StageHistograms,
    /// An empty set for the next read.
    pub(super) spare: Box<StageHistograms>,
}

/// Descriptors of the control thread's own for what a worker reads and writes.
pub struct Descriptors {
    /// Its TUN queue, for whoever goes on with the tunnel.
    pub queue: TunQueue,
    /// Its UDP socket.
    pub socket: UdpSocket,
    /// The socket on its lane's own port, if it has one.
    pub lane_socket: Option<UdpSocket>,
}

impl WorkerInfo {
    /// A worker that has just started.
    pub fn new(
        port: WorkerPort,
        counters: Arc<WorkerCounters>,
        descriptors: Descriptors,
        cpu: Option<u32>,
        io: &'static str,
        io_reason: Option<String>,
    ) -> WorkerInfo {
        let (histograms, spare) = Default::default();
        WorkerInfo {
            port,
            counters,
            queue: descriptors.queue,
            socket: WatchedSocket::new(descriptors.socket),
            lane_socket: descriptors.lane_socket,
            cpu,
            io,
            io_reason,
            histograms,
            spare,
        }
    }

    /// Answers leave on `socket` from here on, a descriptor of the socket that the worker is about to move to.
    pub(super) fn replace_socket(&mut self, socket: UdpSocket) {
        self.socket.replace(socket, &self.counters);
    }
}

/// What the control thread needs to know of the door.
pub struct DoorInfo {
    /// The way to its thread.
    pub(super) port: DoorPort,
    /// What it counts: drops only.
    pub(super) counters: Arc<WorkerCounters>,
    /// Its socket, on which handshake messages leave.
    pub(super) socket: WatchedSocket,
}

impl DoorInfo {
    /// A door that has just been opened; `socket` is a descriptor of its socket.
    pub fn new(port: DoorPort, counters: Arc<WorkerCounters>, socket: UdpSocket) -> DoorInfo {
        DoorInfo {
            port,
            counters,
            socket: WatchedSocket::new(socket),
        }
    }

    pub(super) fn replace_socket(&mut self, socket: UdpSocket) {
        self.socket.replace(socket, &self.counters);
    }
}

/// A descriptor of somebody's socket.
pub(super) struct WatchedSocket {
    pub(super) socket: UdpSocket,
    /// What the kernel said when its drops at the socket were last counted.
    pub(super) drops: u32,
}

impl WatchedSocket {
    pub(super) fn new(socket: UdpSocket) -> WatchedSocket {
        WatchedSocket { socket, drops: 0 }
    }

    /// Counts what the kernel has dropped at the socket since the last time. Nobody else writes to that counter.
    pub(super) fn count_drops(&mut self, counters: &WorkerCounters) {
        let Ok(drops) = self.socket.drops() else { return };
        let news = drops.wrapping_sub(std::mem::replace(&mut self.drops, drops));
        if news > 0 {
            counters.dropped(Drop::SocketFull, news.into());
        }
    }

    pub(super) fn replace(&mut self, socket: UdpSocket, counters: &WorkerCounters) {
        self.count_drops(counters);
        *self = WatchedSocket::new(socket);
    }
}

/// All threads beside the control thread, and how they reach it.
pub struct Workforce {
    /// Receives what is no data.
    pub door: DoorInfo,
    /// In order of their numbers.
    pub workers: Vec<WorkerInfo>,
    /// What they report.
    pub reports: Reports,
    /// Says why a worker ended by itself.
    pub died: mpsc::UnboundedReceiver<ControlError>,
}
