//! The table of peers: dense indices, the longest unused one first.
#![forbid(unsafe_code)]

use std::collections::VecDeque;

use crate::proto::endpoint::PeerId;
use crate::proto::peer::Peer;

/// All peers by index.
#[derive(Default)]
pub(super) struct Peers {
    slots: Vec<Option<Box<Peer>>>,
    /// First in, first out: what still refers to a removed peer has the more time to be gone.
    free: VecDeque<PeerId>,
}

impl Peers {
    pub(super) fn insert(&mut self, make: impl FnOnce(PeerId) -> Peer) -> PeerId {
        let id = self.free.pop_front().unwrap_or_else(|| {
            self.slots.push(None);
            PeerId(u32::try_from(self.slots.len() - 1).expect("4 billion peers do not fit into memory"))
        });
        self.slots[id.0 as usize] = Some(Box::new(make(id)));
        id
    }

    pub(super) fn remove(&mut self, id: PeerId) -> Option<Box<Peer>> {
        let peer = self.slots.get_mut(id.0 as usize)?.take()?;
        self.free.push_back(id);
        Some(peer)
    }

    pub(super) fn get(&self, id: PeerId) -> Option<&Peer> {
        self.slots.get(id.0 as usize)?.as_deref()
    }

    pub(super) fn get_mut(&mut self, id: PeerId) -> Option<&mut Peer> {
        self.slots.get_mut(id.0 as usize)?.as_deref_mut()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Peer> {
        self.slots.iter().flatten().map(Box::as_ref)
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Peer> {
        self.slots.iter_mut().flatten().map(Box::as_mut)
    }
}
