//! TUN frames that wait for handshakes, of all peers of one worker.
//!
//! Most who are waited for answer within a round trip, and some never do; nobody can tell which. So what is bounded for all
//! together is shared fairly: where there is no more room, the peer that holds most of it loses its oldest frame, and those
//! with less are not touched.

use std::collections::{BTreeSet, HashMap, VecDeque};

use crate::proto::PeerId;

/// Bytes of packets that may wait for one peer's handshake, in one worker. A TCP sender's first window fits.
const PENDING_BYTES_MAX: usize = 128 * 1024;
/// Packets that may wait for one peer's handshake, as in WireGuard (MAX_STAGED_PACKETS).
const PENDING_FRAMES_MAX: usize = 128;
/// Bytes of packets that may wait for all peers' handshakes, in one worker: with thousands of peers that do not answer
/// the bound per peer alone would be gigabytes.
const PENDING_ROOM: usize = 16 << 20;

const _: () = assert!(PENDING_BYTES_MAX <= PENDING_ROOM);

/// The frames, bounded in number and bytes per peer, and in bytes for all peers together.
pub(super) struct Waiting {
    /// Of those peers for which something waits.
    queues: HashMap<PeerId, Queue>,
    /// The same peers by the bytes that they hold.
    by_bytes: BTreeSet<(usize, PeerId)>,
    bytes: usize,
    /// [`PENDING_ROOM`], but in tests.
    room: usize,
}

impl Default for Waiting {
    fn default() -> Waiting {
        Waiting {
            queues: HashMap::new(),
            by_bytes: BTreeSet::new(),
            bytes: 0,
            room: PENDING_ROOM,
        }
    }
}

/// One peer's, oldest first.
#[derive(Default)]
struct Queue {
    frames: VecDeque<Box<[u8]>>,
    bytes: usize,
}

impl Waiting {
    /// Keeps a frame for the peer. Returns how many frames were lost for want of room: older ones of the same peer or of one
    /// that holds more, or this one.
    pub(super) fn push(&mut self, id: PeerId, frame: &[u8]) -> u64 {
        if frame.len() > PENDING_BYTES_MAX {
            return 1;
        }
        let mut lost = 0;
        loop {
            let (frames, bytes) = self.held_by(id);
            let wanted = bytes + frame.len();
            let is_full = frames == PENDING_FRAMES_MAX || wanted > PENDING_BYTES_MAX;
            if !is_full && self.bytes + frame.len() <= self.room {
                break;
            }
            let loser = match self.by_bytes.last() {
                Some(&(most, other)) if !is_full && most > wanted => other,
                _ if frames > 0 => id,
                _ => return lost + 1,
            };
            self.change(loser, |queue| queue.frames.pop_front());
            lost += 1;
        }
        self.change(id, |queue| {
            queue.frames.push_back(frame.into());
            None
        });
        lost
    }

    /// How many frames wait for the peer.
    pub(super) fn count(&self, id: PeerId) -> usize {
        self.held_by(id).0
    }

    /// How many frames wait for all peers together.
    pub(super) fn total(&self) -> usize {
        self.queues.values().map(|queue| queue.frames.len()).sum()
    }

    /// How many bytes wait for all peers together.
    #[cfg(test)]
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Hands out every frame of the peer's, oldest first, and forgets them.
    pub(super) fn take(&mut self, id: PeerId) -> VecDeque<Box<[u8]>> {
        let Some(queue) = self.queues.remove(&id) else {
            return VecDeque::new();
        };
        self.by_bytes.remove(&(queue.bytes, id));
        self.bytes -= queue.bytes;
        queue.frames
    }

    /// Frames and bytes.
    fn held_by(&self, id: PeerId) -> (usize, usize) {
        let queue = self.queues.get(&id);
        queue.map_or((0, 0), |queue| (queue.frames.len(), queue.bytes))
    }

    /// Lets `change` add one frame at the end, or take one out and return it, and keeps the sums right.
    fn change(&mut self, id: PeerId, change: impl FnOnce(&mut Queue) -> Option<Box<[u8]>>) {
        let queue = self.queues.entry(id).or_default();
        let before = queue.bytes;
        match change(queue) {
            Some(taken) => queue.bytes -= taken.len(),
            None => queue.bytes += queue.frames.back().map_or(0, |frame| frame.len()),
        }
        let (after, is_empty) = (queue.bytes, queue.frames.is_empty());
        self.bytes = self.bytes + after - before;
        self.by_bytes.remove(&(before, id));
        match is_empty {
            true => drop(self.queues.remove(&id)),
            false => drop(self.by_bytes.insert((after, id))),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const A: PeerId = PeerId(0);
    const B: PeerId = PeerId(1_000_000);

    /// The first byte of each frame that waits for the peer.
    fn marks(waiting: &Waiting, id: PeerId) -> Vec<u8> {
        let queue = waiting.queues.get(&id);
        queue.map_or(Vec::new(), |queue| queue.frames.iter().map(|frame| frame[0]).collect())
    }

    #[test]
    fn a_peer_keeps_its_newest_frames_within_both_bounds() {
        let mut waiting = Waiting::default();
        let lost: u64 = (0..200u8).map(|number| waiting.push(A, &[number; 100])).sum();
        assert_eq!(lost, 200 - PENDING_FRAMES_MAX as u64);
        assert_eq!(marks(&waiting, A).first(), Some(&(200 - PENDING_FRAMES_MAX as u8)));
        let whole = vec![0; PENDING_BYTES_MAX];
        assert_eq!(waiting.push(A, &whole), PENDING_FRAMES_MAX as u64);
        assert_eq!(waiting.push(A, &vec![0; PENDING_BYTES_MAX + 1]), 1);
        assert_eq!((waiting.count(A), waiting.take(A).len()), (1, 1));
        assert_eq!((waiting.count(A), waiting.take(A).len(), waiting.bytes), (0, 0, 0));
        assert_eq!(waiting.push(A, &whole), 0, "taking the frames frees their bytes");
    }

    #[test]
    fn peers_that_never_answer_keep_nobody_elses_packets_out() {
        let mut waiting = Waiting::default();
        let half = vec![1; PENDING_BYTES_MAX / 2];
        let dead = || (1..).map(PeerId).take(PENDING_ROOM / PENDING_BYTES_MAX);
        for id in dead() {
            assert_eq!(waiting.push(id, &half) + waiting.push(id, &half), 0);
        }
        assert_eq!(waiting.bytes, PENDING_ROOM);
        for number in 0..100 {
            let lost = waiting.push(B, &[number; 1000]);
            assert!(lost <= 1, "what is lost is another's");
            // They go on sending, and the live one's packets stay.
            for id in dead() {
                waiting.push(id, &half);
            }
        }
        assert_eq!(marks(&waiting, B), Vec::from_iter(0..100));
        assert!(waiting.bytes <= PENDING_ROOM);
    }

    #[test]
    fn where_nobody_holds_more_a_peer_makes_room_itself() {
        let mut waiting = Waiting::default();
        let small = vec![1; PENDING_ROOM / 1024];
        for id in (1..).map(PeerId).take(1024) {
            assert_eq!(waiting.push(id, &small), 0);
        }
        assert_eq!(waiting.push(PeerId(1), &small), 1);
        assert_eq!(marks(&waiting, PeerId(1)), [1], "its own oldest one makes room");
        assert_eq!(
            waiting.push(B, &vec![2; small.len()]),
            1,
            "it would hold as much as others do"
        );
        assert_eq!(waiting.count(B), 0);
        assert_eq!(waiting.push(B, &[2; 10]), 1);
        assert_eq!(marks(&waiting, B), [2]);
    }

    proptest! {
        #[test]
        fn sums_are_those_of_the_frames_and_no_frame_is_lost_uncounted(
            steps in proptest::collection::vec((0..5u32, 0..400usize, 0..50u8), 0..300),
        ) {
            let mut waiting = Waiting { room: 3000, ..Waiting::default() };
            let (mut pushed, mut lost, mut taken) = (0, 0, 0);
            for (id, len, what) in steps {
                match what {
                    0 => taken += waiting.take(PeerId(id)).len() as u64,
                    _ => {
                        pushed += 1;
                        lost += waiting.push(PeerId(id), &vec![0; len]);
                    }
                }
                let queues = || waiting.queues.iter();
                prop_assert!(queues().all(|(_, queue)| !queue.frames.is_empty()));
                for (id, queue) in queues() {
                    prop_assert_eq!(queue.bytes, queue.frames.iter().map(|frame| frame.len()).sum::<usize>());
                    prop_assert!(waiting.by_bytes.contains(&(queue.bytes, *id)));
                }
                prop_assert_eq!(waiting.by_bytes.len(), waiting.queues.len());
                prop_assert_eq!(waiting.bytes, queues().map(|(_, queue)| queue.bytes).sum::<usize>());
                prop_assert!(waiting.bytes <= waiting.room);
                let kept: u64 = queues().map(|(_, queue)| queue.frames.len() as u64).sum();
                prop_assert_eq!(pushed, lost + taken + kept);
            }
        }
    }
}
