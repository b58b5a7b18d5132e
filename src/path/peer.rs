//! What a worker knows of one peer: where it is, the keys that seal for it, and the packets that wait for keys.

use std::collections::VecDeque;
use std::sync::Arc;

use super::lane_port::LanePort;
use super::peers::NewPeer;
use crate::proto::{Endpoint, SealHalf, SessionId, Time};
use crate::stats::counters::PeerCell;

/// Bytes of packets that may wait for one peer's handshake, in one worker. A TCP sender's first window fits.
const PENDING_BYTES_MAX: usize = 128 * 1024;
/// Packets that may wait for one peer's handshake, as in WireGuard (MAX_STAGED_PACKETS).
const PENDING_FRAMES_MAX: usize = 128;

/// One peer, as its packets see it.
pub(super) struct PeerPath {
    pub(super) endpoint: Option<Endpoint>,
    /// The largest inner packet that one datagram of the path carries, in bytes.
    pub(super) mtu: usize,
    /// Seals what is sent.
    pub(super) current: Option<SealHalf>,
    /// Seals nothing until the peer has shown that it has the keys too.
    pub(super) next: Option<SealHalf>,
    pub(super) pending: Pending,
    pub(super) session_wanted: Option<Time>,
    pub(super) told_too_big: Option<Time>,
    /// Whether datagrams from this lane's own port reach the peer.
    pub(super) lane_port: LanePort,
    /// When the echo was sent that has not been answered.
    pub(super) echo: Option<Time>,
    /// The peer has said that it goes down; once per session.
    pub(super) said_goodbye: bool,
    shared: Arc<NewPeer>,
    worker: usize,
}

impl PeerPath {
    /// A peer without keys, whose traffic goes through worker `worker`.
    pub(super) fn new(shared: Arc<NewPeer>, worker: u8) -> PeerPath {
        PeerPath {
            endpoint: shared.endpoint,
            mtu: usize::MAX,
            current: None,
            next: None,
            pending: Pending::default(),
            session_wanted: None,
            told_too_big: None,
            lane_port: LanePort::new(worker),
            echo: None,
            said_goodbye: false,
            shared,
            worker: usize::from(worker),
        }
    }

    /// The peer is to be reached at `endpoint` from here on; false when it was before.
    pub(super) fn move_to(&mut self, endpoint: Endpoint) -> bool {
        let moves = self.endpoint != Some(endpoint);
        if moves {
            self.endpoint = Some(endpoint);
            self.lane_port.moved();
        }
        moves
    }

    /// Where this worker counts the peer's traffic.
    pub(super) fn cell(&self) -> &PeerCell {
        self.shared.cells.worker(self.worker)
    }

    /// Counts datagrams that were sealed for the peer.
    pub(super) fn count_sent(&self, now: Time, packets: u64, bytes: u64) {
        let cell = self.cell();
        cell.tx_packets.add(packets);
        cell.tx_bytes.add(bytes);
        cell.last_any_sent_ns.set(now.as_nanos());
    }

    /// Counts an authentic datagram of the peer's.
    pub(super) fn count_received(&self, now: Time, bytes: u64) {
        let cell = self.cell();
        cell.rx_packets.add(1);
        cell.rx_bytes.add(bytes);
        cell.last_any_received_ns.set(now.as_nanos());
    }

    /// Whether data may leave from this lane's own port.
    pub(super) fn lane_port_carries(&self, now: Time) -> bool {
        self.lane_port.carries(now, &self.shared.lane_proofs)
    }

    /// An echo of the token came back.
    pub(super) fn echoed(&self, token: u64) {
        self.shared.lane_proofs.answered(token);
    }

    /// Makes the session that was answered the one that seals; false when it is not the next one.
    pub(super) fn promote(&mut self, session: SessionId) -> bool {
        let is_next = self.next.as_ref().is_some_and(|seal| seal.session() == session);
        if is_next {
            self.current = self.next.take();
        }
        is_next
    }

    /// Forgets the session's sealing keys.
    pub(super) fn retire(&mut self, session: SessionId) {
        for half in [&mut self.current, &mut self.next] {
            if half.as_ref().is_some_and(|seal| seal.session() == session) {
                *half = None;
            }
        }
    }
}

/// TUN frames that wait for a handshake, oldest first, bounded in number and bytes.
#[derive(Default)]
pub(super) struct Pending {
    frames: VecDeque<Box<[u8]>>,
    bytes: usize,
}

impl Pending {
    /// Keeps a frame; returns how many older ones had to go for it, or 1 when it is itself too large.
    pub(super) fn push(&mut self, frame: &[u8]) -> u64 {
        if frame.len() > PENDING_BYTES_MAX {
            return 1;
        }
        let mut dropped = 0;
        while self.frames.len() >= PENDING_FRAMES_MAX || self.bytes + frame.len() > PENDING_BYTES_MAX {
            let Some(oldest) = self.frames.pop_front() else { break };
            self.bytes -= oldest.len();
            dropped += 1;
        }
        self.bytes += frame.len();
        self.frames.push_back(frame.into());
        dropped
    }

    /// Hands out every frame, oldest first, and forgets them.
    pub(super) fn take(&mut self) -> VecDeque<Box<[u8]>> {
        self.bytes = 0;
        std::mem::take(&mut self.frames)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pending_keeps_the_newest_frames_within_both_bounds() {
        let mut pending = Pending::default();
        let dropped: u64 = (0..200u8).map(|number| pending.push(&[number; 100])).sum();
        assert_eq!(dropped, 200 - PENDING_FRAMES_MAX as u64);
        assert_eq!(
            pending.frames.front().map(|frame| frame[0]),
            Some(200 - PENDING_FRAMES_MAX as u8)
        );
        assert_eq!(pending.push(&vec![0; PENDING_BYTES_MAX]), PENDING_FRAMES_MAX as u64);
        assert_eq!(pending.push(&vec![0; PENDING_BYTES_MAX + 1]), 1);
        assert_eq!(pending.take().len(), 1);
        assert_eq!(
            pending.push(&vec![0; PENDING_BYTES_MAX]),
            0,
            "taking the frames frees their bytes"
        );
    }
}
