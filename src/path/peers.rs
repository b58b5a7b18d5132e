//! The peers that one worker knows, by number. Most of thousands of peers are idle most of the time, so a worker spends
//! two words on each until its first packet.

use std::sync::Arc;

use super::lane_port::LaneProofs;
use super::peer::PeerPath;
use crate::proto::{Endpoint, PeerId};
use crate::stats::counters::PeerCells;

/// A peer that becomes known: one copy for all workers.
#[derive(Debug)]
pub struct NewPeer {
    /// Where it is, when that is known.
    pub endpoint: Option<Endpoint>,
    /// Where its traffic is counted.
    pub cells: PeerCells,
    /// Which echoes from the workers' own ports came back.
    pub(super) lane_proofs: LaneProofs,
}

impl NewPeer {
    /// A peer at `endpoint`, for `workers` workers.
    pub fn new(endpoint: Option<Endpoint>, workers: usize) -> NewPeer {
        NewPeer {
            endpoint,
            cells: PeerCells::new(workers),
            lane_proofs: LaneProofs::new(workers),
        }
    }
}

/// A worker's peers.
pub(super) struct PeerTable {
    worker: u8,
    slots: Vec<Slot>,
}

#[derive(Default)]
enum Slot {
    #[default]
    Vacant,
    /// As it was made known.
    Idle(Arc<NewPeer>),
    Active(Box<PeerPath>),
}

impl PeerTable {
    /// The table of worker `worker`.
    pub(super) fn new(worker: u8) -> PeerTable {
        PeerTable {
            worker,
            slots: Vec::new(),
        }
    }

    pub(super) fn insert(&mut self, id: PeerId, peer: Arc<NewPeer>) {
        let at = id.0 as usize;
        if self.slots.len() <= at {
            self.slots.resize_with(at + 1, Slot::default);
        }
        self.slots[at] = Slot::Idle(peer);
    }

    /// Forgets the peer; gives back what there was to know of it.
    pub(super) fn remove(&mut self, id: PeerId) -> Option<Box<PeerPath>> {
        match std::mem::take(self.slots.get_mut(id.0 as usize)?) {
            Slot::Active(peer) => Some(peer),
            Slot::Vacant | Slot::Idle(_) => None,
        }
    }

    /// Every peer that had packets or news.
    pub(super) fn into_active(self) -> impl Iterator<Item = (PeerId, Box<PeerPath>)> {
        (0..).zip(self.slots).filter_map(|(id, slot)| match slot {
            Slot::Active(peer) => Some((PeerId(id), peer)),
            Slot::Vacant | Slot::Idle(_) => None,
        })
    }

    /// The peer, for its packets.
    #[inline]
    pub(super) fn get_mut(&mut self, id: PeerId) -> Option<&mut PeerPath> {
        let slot = self.slots.get_mut(id.0 as usize)?;
        if let Slot::Idle(peer) = slot {
            *slot = Slot::Active(Box::new(PeerPath::new(Arc::clone(peer), self.worker)));
        }
        match slot {
            Slot::Active(peer) => Some(peer),
            Slot::Vacant | Slot::Idle(_) => None,
        }
    }

    /// The peer if it had packets or news before; an idle one has nothing to forget.
    pub(super) fn active_mut(&mut self, id: PeerId) -> Option<&mut PeerPath> {
        match self.slots.get_mut(id.0 as usize)? {
            Slot::Active(peer) => Some(peer),
            Slot::Vacant | Slot::Idle(_) => None,
        }
    }

    /// Whether the peer is idle, and at `endpoint`.
    pub(super) fn is_idle_at(&self, id: PeerId, endpoint: Endpoint) -> bool {
        matches!(self.slots.get(id.0 as usize), Some(Slot::Idle(peer)) if peer.endpoint == Some(endpoint))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_idle_peer_becomes_active_with_its_first_packet_and_vacant_when_removed() {
        let endpoint = Endpoint {
            remote: "192.0.2.1:51820".parse().expect("an endpoint"),
            local: None,
        };
        let id = PeerId(3);
        let peer = Arc::new(NewPeer::new(Some(endpoint), 2));
        let mut table = PeerTable::new(1);
        table.insert(id, peer.clone());
        assert!(table.active_mut(id).is_none() && table.is_idle_at(id, endpoint));
        assert!(table.get_mut(PeerId(2)).is_none() && table.get_mut(PeerId(4)).is_none());
        assert_eq!(table.get_mut(id).map(|peer| peer.endpoint), Some(Some(endpoint)));
        assert!(table.active_mut(id).is_some() && !table.is_idle_at(id, endpoint));
        assert!(table.remove(id).is_some() && table.remove(id).is_none());
        assert!(table.remove(PeerId(9)).is_none());
        assert!(table.get_mut(id).is_none());
        assert_eq!(Arc::strong_count(&peer), 1);
    }

    #[test]
    fn an_idle_peer_is_two_words() {
        assert_eq!(size_of::<Slot>(), 2 * size_of::<usize>());
    }
}
