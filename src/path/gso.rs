//! Send batches: sealed datagrams of one peer laid end to end in a send slot, one `UDP_SEGMENT` send each.
//!
//! A datagram is reserved, written and sealed in its place, then committed; a reservation that is dropped instead
//! leaves the batch as it was. The kernel's rules for such a send (net/ipv4/udp.c, `udp_send_skb`; field notes in
//! DESIGN.md): all datagrams are of one size, only the last may be shorter, at most [`SEGMENTS_MAX`] of them.

use crate::proto::{Endpoint, PeerId};

/// One less than UDP_MAX_SEGMENTS of include/linux/udp.h before Linux 6.9, which took no more in fact.
pub const SEGMENTS_MAX: u32 = 63;
/// The largest UDP payload over IPv4: 65535 - 20 (IPv4 header) - 8 (UDP header). IPv6 would allow 20 bytes more.
pub const SEND_LEN_MAX: usize = 65_507;
/// Batches that may be under construction at once; each holds a send slot, so this bounds what many peers that
/// take turns can pin.
const OPEN_BATCHES_MAX: usize = 16;

/// Where batches live: send slots of at least [`SEND_LEN_MAX`] bytes that the kernel is not reading.
pub trait Slots {
    /// A slot in the caller's hands; dropping it frees it.
    type Slot: AsMut<[u8]>;
    /// Takes a free slot; `None` when the network is slower than the TUN.
    fn acquire(&mut self) -> Option<Self::Slot>;
}

/// In what the outer headers of one peer's datagrams may differ.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Outer {
    /// The traffic class.
    pub tos: u8,
    /// They leave from the lane's own port rather than from the one that all workers share.
    pub lane_port: bool,
}

/// Datagrams that leave in one send.
#[derive(Debug)]
pub struct Batch<S> {
    /// Holds the datagrams, from its first byte on.
    pub slot: S,
    /// Bytes of all datagrams.
    pub len: usize,
    /// Bytes of each datagram but perhaps the last.
    pub segment: usize,
    /// How many datagrams.
    pub count: u32,
    /// Whom they are for.
    pub peer: PeerId,
    /// Where they go.
    pub to: Endpoint,
    /// The rest of the outer headers.
    pub outer: Outer,
}

impl<S> Batch<S> {
    fn is_for(&self, peer: PeerId, to: &Endpoint) -> bool {
        self.peer == peer && self.to == *to
    }

    /// Whether a datagram of `len` bytes may follow.
    fn can_append(&self, len: usize, outer: Outer, segments_max: u32) -> bool {
        let is_ongoing = self.len == self.segment * self.count as usize;
        let fits_segment = len <= self.segment;
        let fits_send = self.count < segments_max && self.len + len <= SEND_LEN_MAX;
        self.count == 0 || self.outer == outer && is_ongoing && fits_segment && fits_send
    }

    /// How many datagrams of `len` bytes may follow, given that one may.
    fn room(&self, len: usize, segments_max: u32) -> usize {
        if len < self.segment {
            return 1;
        }
        ((segments_max - self.count) as usize).min((SEND_LEN_MAX - self.len) / len)
    }
}

/// The batches of one pass: those under construction, and those that are full.
#[derive(Debug)]
pub struct Batches<S> {
    open: Vec<Batch<S>>,
    ready: Vec<Batch<S>>,
    segments_max: u32,
}

/// A place for datagrams at a batch's end.
pub struct Reserved<'a, S> {
    batch: &'a mut Batch<S>,
    len: usize,
    count: usize,
}

impl<S: AsMut<[u8]>> Batches<S> {
    /// `segmentation`: whether the socket has UDP_SEGMENT; without it every batch is one datagram.
    pub fn new(segmentation: bool) -> Batches<S> {
        Batches {
            open: Vec::with_capacity(OPEN_BATCHES_MAX),
            ready: Vec::new(),
            segments_max: if segmentation { SEGMENTS_MAX } else { 1 },
        }
    }

    /// A place for datagrams of `len` bytes each, at least one and at most `count`; `None` when no send slot is free. A
    /// peer has one batch under construction, whatever its datagrams' outer headers, so that none overtakes another.
    ///
    /// # Panics
    /// When `len` exceeds [`SEND_LEN_MAX`].
    pub fn reserve<'a>(
        &'a mut self,
        peer: PeerId,
        to: &Endpoint,
        outer: Outer,
        len: usize,
        count: usize,
        slots: &mut impl Slots<Slot = S>,
    ) -> Option<Reserved<'a, S>> {
        assert!(len <= SEND_LEN_MAX, "a datagram that UDP carries");
        let at = match self.open.iter().position(|batch| batch.is_for(peer, to)) {
            Some(at) if self.open[at].can_append(len, outer, self.segments_max) => at,
            found => {
                let slot = slots.acquire()?;
                // The peer's full batch, or the one begun first: its order among the peer's batches must hold.
                let full = found.or((self.open.len() == OPEN_BATCHES_MAX).then_some(0));
                if let Some(full) = full {
                    self.ready.push(self.open.remove(full));
                }
                self.open.push(Batch {
                    slot,
                    len: 0,
                    segment: len,
                    count: 0,
                    peer,
                    to: *to,
                    outer,
                });
                self.open.len() - 1
            }
        };
        let batch = &mut self.open[at];
        if batch.count == 0 {
            // An earlier reservation of another size may have been rolled back.
            batch.segment = len;
            batch.outer = outer;
        }
        let count = batch.room(len, self.segments_max).min(count.max(1));
        Some(Reserved { batch, len, count })
    }

    /// Ends the peer's batch under construction: what is reserved next for the peer begins another.
    pub fn close(&mut self, peer: PeerId) {
        if let Some(at) = self.open.iter().position(|batch| batch.peer == peer && batch.count > 0) {
            self.ready.push(self.open.remove(at));
        }
    }

    /// Ends the pass: every batch that holds datagrams, in order for each peer.
    pub fn drain(&mut self) -> impl Iterator<Item = Batch<S>> {
        self.ready
            .drain(..)
            .chain(self.open.drain(..))
            .filter(|batch| batch.count > 0)
    }
}

impl<S: AsMut<[u8]>> Reserved<'_, S> {
    /// The datagrams' bytes, end to end, with whatever an earlier batch left in them.
    pub fn bytes(&mut self) -> &mut [u8] {
        let start = self.batch.len;
        &mut self.batch.slot.as_mut()[start..start + self.len * self.count]
    }

    /// How many datagrams there is room for.
    pub fn count(&self) -> usize {
        self.count
    }

    /// Makes the datagrams part of their batch.
    pub fn commit(self) {
        self.batch.len += self.len * self.count;
        self.batch.count += self.count as u32;
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, SocketAddr};

    use proptest::prelude::*;

    use super::*;

    /// So many slots of plain memory.
    struct Memory(usize);

    impl Slots for Memory {
        type Slot = Vec<u8>;
        fn acquire(&mut self) -> Option<Vec<u8>> {
            self.0 = self.0.checked_sub(1)?;
            Some(vec![0; SEND_LEN_MAX])
        }
    }

    fn endpoint(port: u16) -> Endpoint {
        Endpoint {
            remote: SocketAddr::from((Ipv4Addr::LOCALHOST, port)),
            local: None,
        }
    }

    fn append(batches: &mut Batches<Vec<u8>>, memory: &mut Memory, peer: u32, len: usize, byte: u8) -> bool {
        let Some(mut place) = batches.reserve(PeerId(peer), &endpoint(peer as u16), Outer::default(), len, 1, memory)
        else {
            return false;
        };
        place.bytes().fill(byte);
        place.commit();
        true
    }

    #[test]
    fn a_reservation_that_is_not_committed_leaves_no_trace() {
        let mut memory = Memory(2);
        let mut batches = Batches::new(true);
        assert!(
            batches
                .reserve(PeerId(1), &endpoint(1), Outer::default(), 1000, 3, &mut memory)
                .is_some()
        );
        assert!(append(&mut batches, &mut memory, 1, 1400, 7));
        let sent: Vec<_> = batches
            .drain()
            .map(|batch| (batch.len, batch.segment, batch.count))
            .collect();
        assert_eq!(sent, [(1400, 1400, 1)]);

        assert!(
            batches
                .reserve(PeerId(1), &endpoint(1), Outer::default(), 1000, 3, &mut memory)
                .is_some()
        );
        assert_eq!(batches.drain().count(), 0);
    }

    #[test]
    fn without_a_free_slot_nothing_is_reserved_and_nothing_is_lost() {
        let mut memory = Memory(1);
        let mut batches = Batches::new(true);
        assert!(append(&mut batches, &mut memory, 1, 100, 1));
        assert!(
            !append(&mut batches, &mut memory, 1, 200, 2),
            "a longer datagram needs a second slot"
        );
        assert!(
            append(&mut batches, &mut memory, 1, 100, 3),
            "the first batch is still open"
        );
        assert_eq!(batches.drain().map(|batch| batch.count).collect::<Vec<_>>(), [2]);
    }

    proptest! {
        #[test]
        fn runs_fill_batches_as_single_datagrams_do(before in 0usize..70, len in 32usize..3000, count in 1usize..200) {
            let (mut one, mut run) = (Batches::new(true), Batches::new(true));
            let mut memory = Memory(usize::MAX);
            for batches in [&mut one, &mut run] {
                for _ in 0..before {
                    append(batches, &mut memory, 1, 100, 1);
                }
            }
            for _ in 0..count {
                append(&mut one, &mut memory, 1, len, 1);
            }
            let mut left = count;
            while left > 0 {
                let place = run.reserve(PeerId(1), &endpoint(1), Outer::default(), len, left, &mut memory).expect("endless memory");
                prop_assert!((1..=left).contains(&place.count()));
                left -= place.count();
                place.commit();
            }
            let shape = |batches: &mut Batches<Vec<u8>>| {
                batches.drain().map(|batch| (batch.len, batch.segment, batch.count)).collect::<Vec<_>>()
            };
            prop_assert_eq!(shape(&mut one), shape(&mut run));
        }

        #[test]
        fn every_batch_obeys_the_kernels_rules_and_each_peers_order_holds(
            datagrams in prop::collection::vec((0u32..20, prop_oneof![Just(1452usize), Just(96), 32usize..9000]), 1..200),
            segmentation: bool,
        ) {
            let mut memory = Memory(usize::MAX);
            let mut batches = Batches::new(segmentation);
            for (number, (peer, len)) in datagrams.iter().enumerate() {
                prop_assert!(append(&mut batches, &mut memory, *peer, *len, number as u8));
            }
            let mut arrived: Vec<Vec<(usize, u8)>> = vec![Vec::new(); 20];
            for batch in batches.drain() {
                let most = if segmentation { SEGMENTS_MAX } else { 1 };
                prop_assert!(batch.count >= 1 && batch.count <= most);
                prop_assert!(batch.len <= SEND_LEN_MAX);
                let bytes = &batch.slot[..batch.len];
                prop_assert_eq!(bytes.chunks(batch.segment).count(), batch.count as usize);
                for datagram in bytes.chunks(batch.segment) {
                    prop_assert!(datagram.iter().all(|byte| *byte == datagram[0]));
                    arrived[batch.peer.0 as usize].push((datagram.len(), datagram[0]));
                }
            }
            for peer in 0..20u32 {
                let expected: Vec<_> = datagrams.iter().enumerate().filter(|(_, datagram)| datagram.0 == peer)
                    .map(|(number, datagram)| (datagram.1, number as u8)).collect();
                prop_assert_eq!(&arrived[peer as usize], &expected);
            }
        }
    }
}
