//! What a worker knows of one peer: where it is, and the keys that seal for it.

use std::sync::Arc;

use super::lane_port::LanePort;
use super::peers::NewPeer;
use crate::proto::{Endpoint, Local, SealHalf, SessionId, Time};
use crate::stats::counters::PeerCell;

/// One peer, as its packets see it.
pub(super) struct PeerPath {
    pub(super) endpoint: Option<Endpoint>,
    /// Our address that packets from where the peer is may come to, but that is not answered from.
    pub(super) refused_source: Option<Local>,
    /// The largest inner packet that one datagram of the path carries, in bytes.
    pub(super) mtu: usize,
    /// Seals what is sent.
    pub(super) current: Option<SealHalf>,
    /// Seals nothing until the peer has shown that it has the keys too.
    pub(super) next: Option<SealHalf>,
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
            refused_source: None,
            mtu: usize::MAX,
            current: None,
            next: None,
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
        if self.endpoint == Some(endpoint) {
            return false;
        }
        if self.endpoint.is_none_or(|before| before.remote != endpoint.remote) {
            // What is true of the way to one place says nothing about another.
            self.refused_source = None;
        }
        self.endpoint = Some(endpoint);
        self.lane_port.moved();
        true
    }

    /// An authentic datagram came from there; false when that is no news, or none to follow.
    pub(super) fn heard_from(&mut self, from: Endpoint) -> bool {
        let is_refused = self.refused_source.is_some() && self.is_refused(from);
        !is_refused && self.move_to(from)
    }

    /// Whether all that is new about `from` is an address of ours that is not to be used.
    fn is_refused(&self, from: Endpoint) -> bool {
        let same_place = self.endpoint.is_some_and(|endpoint| endpoint.remote == from.remote);
        same_place && from.local == self.refused_source
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

/// The sealing half, unless its time or its records are used up.
#[inline]
pub(super) fn usable(seal: &mut Option<SealHalf>, now: Time) -> Option<&mut SealHalf> {
    seal.as_mut().filter(|seal| !seal.is_expired(now))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_of_ours_that_was_refused_is_taken_again_when_the_peer_moves() {
        let mut peer = PeerPath::new(Arc::new(NewPeer::new(None, 1)), 0);
        let local = |host: u8| Local {
            address: [192, 0, 2, host].into(),
            interface: host.into(),
        };
        let at = |port: u16, local| Endpoint {
            remote: ([198, 51, 100, 1], port).into(),
            local,
        };
        let [wifi, cable] = [1, 2].map(|host| Some(local(host)));
        assert!(peer.heard_from(at(1, wifi)));
        assert!(!peer.heard_from(at(1, wifi)));
        peer.refused_source = wifi;
        peer.move_to(at(1, None));
        assert!(!peer.heard_from(at(1, wifi)), "what was on its way");
        assert_eq!(peer.endpoint, Some(at(1, None)));
        assert!(peer.heard_from(at(1, cable)));
        assert!(!peer.heard_from(at(1, wifi)));
        assert!(peer.heard_from(at(2, wifi)));
        assert_eq!(peer.refused_source, None);
    }
}
