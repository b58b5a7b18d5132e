//! A packet's two journeys through one worker.
//!
//! Out, TUN to UDP ([`Forwarder::outbound`]):
//! 1. The destination's longest prefix names the peer.
//! 2. The peer's sealing half is this worker's lane; without one the packet waits for a handshake.
//! 3. The sender of what no datagram of the path carries whole is told; until it listens, the kernel fragments.
//! 4. Segments of one size are reserved, written, sealed in place and committed in a batch.
//!
//! In, UDP to TUN ([`Forwarder::inbound`]):
//! 1. The header tells data from handshakes, which go to the control thread (where there is a door, no more than strays get here).
//! 2. The receiver index names the worker and the session's opening half.
//! 3. The replay window and the tag decide whether the datagram is authentic; it is decrypted in place.
//! 4. The first authentic datagram of a session confirms it; one from elsewhere moves the peer.
//! 5. Keepalives and control messages end here.
//! 6. The inner source must be the peer's, by longest prefix over all peers.
//! 7. Packets of one flow are coalesced into a super-packet for the TUN.
//!
//! Nothing here does I/O or reads a clock. The worker gives frames and received buffers, and at the pass's end takes
//! batches, groups, reports and hand-overs.

mod changes;
pub mod explain;
mod inbound;
mod messages;
mod outbound;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use crate::path::capture::Tap;
use crate::path::coalesce::{Coalescer, Group};
use crate::path::drops::Drop;
use crate::path::gso::Batches;
use crate::path::peer::PeerPath;
use crate::path::peers::PeerTable;
use crate::path::report::{Handover, Report};
use crate::path::route::{RouteTable, Routes};
use crate::path::sessions::Openers;
use crate::path::waiting::Waiting;
use crate::proto::{OpenHalf, PeerId, SealHalf, Time};
use crate::stats::counters::WorkerCounters;

/// How often one peer's want of a session is reported while packets wait for it.
const WANT_SESSION_INTERVAL: Duration = Duration::from_millis(200);

/// The keys of one worker, with the peers that they are for.
#[derive(Debug, Default)]
pub struct Halves {
    /// What seals: of each peer at most the current and the next session's.
    pub seals: Vec<(PeerId, SealHalf)>,
    /// What opens.
    pub opens: Vec<(PeerId, OpenHalf)>,
}

/// One worker's data path.
pub struct Forwarder<S> {
    worker: u8,
    workers: u8,
    routes: Arc<RouteTable<PeerId>>,
    peers: PeerTable,
    openers: Openers,
    waiting: Waiting,
    coalescer: Coalescer,
    /// Datagrams on their way out.
    pub batches: Batches<S>,
    /// Packets on their way to the TUN.
    pub groups: Vec<Group>,
    /// News for the control thread.
    pub reports: Vec<Report>,
    /// Datagrams that belong to other workers.
    pub handovers: Vec<Handover>,
    /// Whoever looks at inner packets.
    pub taps: Vec<Tap>,
    counters: Arc<WorkerCounters>,
    tun_mtu: usize,
    /// Whether native data may leave from the lane's own port.
    lane_ports: bool,
}

impl<S: AsMut<[u8]>> Forwarder<S> {
    /// The data path of worker `worker` of `workers`.
    pub fn new(
        worker: u8,
        workers: u8,
        coalescer: Coalescer,
        batches: Batches<S>,
        tun_mtu: usize,
        counters: Arc<WorkerCounters>,
    ) -> Forwarder<S> {
        Forwarder {
            worker,
            workers,
            routes: Arc::new(Routes::new().table()),
            peers: PeerTable::new(worker),
            openers: Openers::default(),
            waiting: Waiting::default(),
            coalescer,
            batches,
            groups: Vec::new(),
            reports: Vec::new(),
            handovers: Vec::new(),
            taps: Vec::new(),
            counters,
            tun_mtu,
            lane_ports: false,
        }
    }

    /// Lets the data of native sessions leave from this worker's own port where that reaches the peer; see
    /// [`Outer::lane_port`](crate::path::gso::Outer::lane_port).
    pub fn use_lane_ports(&mut self) {
        self.lane_ports = true;
    }

    /// Ends a pass: no group stays open.
    pub fn finish_pass(&mut self) {
        self.coalescer.flush(&mut self.groups);
    }

    /// Ends the data path and gives out its keys: for each peer what seals, and what opens. Packets that still wait for keys
    /// are lost, as they are when a handshake comes to nothing.
    pub fn into_halves(self) -> Halves {
        self.counters
            .dropped(Drop::HandshakeFailed, self.waiting.total() as u64);
        let sealing = |(id, peer): (PeerId, Box<PeerPath>)| {
            let PeerPath { current, next, .. } = *peer;
            [current, next].into_iter().flatten().map(move |seal| (id, seal))
        };
        Halves {
            seals: self.peers.into_active().flat_map(sealing).collect(),
            opens: self.openers.into_halves().collect(),
        }
    }

    /// How many receiver indices lead to keys, and how many bytes of packets wait for keys.
    #[cfg(test)]
    pub(crate) fn held(&self) -> (usize, usize) {
        (self.openers.len(), self.waiting.bytes())
    }

    /// Makes the sealing key of a peer, if it has one, go on from record number `counter`.
    #[cfg(test)]
    pub(crate) fn skip_to(&mut self, id: PeerId, counter: u64) {
        if let Some(seal) = self.peers.active_mut(id).and_then(|peer| peer.current.as_ref()) {
            seal.skip_to(counter);
        }
    }

    /// Takes a written group's memory back.
    pub fn recycle(&mut self, group: Group) {
        self.coalescer.recycle(group);
    }
}

fn want_session(peer: &mut PeerPath, id: PeerId, now: Time, reports: &mut Vec<Report>) {
    if peer
        .session_wanted
        .is_none_or(|last| now - last >= WANT_SESSION_INTERVAL)
    {
        peer.session_wanted = Some(now);
        reports.push(Report::WantSession(id));
    }
}
