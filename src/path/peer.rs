//! What a worker knows of one peer: where it is, the keys that seal for it, and the packets that wait for keys.

use std::collections::VecDeque;
use std::sync::Arc;

use super::lane_port::LanePort;
use super::peers::NewPeer;
use crate::proto::{Endpoint, Local, SealHalf, SessionId, Time};
use crate::stats::counters::PeerCell;

/// Bytes of packets that may wait for one peer's handshake, in one worker. A TCP sender's first window fits.
const PENDING_BYTES_MAX: usize = 128 * 1024;
/// Packets that may wait for one peer's handshake, as in WireGuard (MAX_STAGED_PACKETS).
const PENDING_FRAMES_MAX: usize = 128;
/// Bytes of packets that may wait for all peers' handshakes, in one worker: with thousands of peers that do not answer
/// the bound per peer alone would be gigabytes.
const PENDING_ROOM: usize = 16 << 20;

const _: () = assert!(PENDING_BYTES_MAX <= PENDING_ROOM);

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
            refused_source: None,
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

/// What all peers of one worker may still have waiting for handshakes, in bytes.
pub(super) struct Room(usize);

impl Default for Room {
    fn default() -> Room {
        Room(PENDING_ROOM)
    }
}

#[cfg(test)]
impl Room {
    /// How many bytes wait.
    pub(super) fn taken(&self) -> usize {
        PENDING_ROOM - self.0
    }
}

/// TUN frames that wait for a handshake, oldest first, bounded in number and bytes.
#[derive(Default)]
pub(super) struct Pending {
    frames: VecDeque<Box<[u8]>>,
    bytes: usize,
}

impl Pending {
    /// Keeps a frame, for which older ones of the same peer go when there is no room. Returns how many frames were lost,
    /// this one included where it does not fit at all.
    pub(super) fn push(&mut self, frame: &[u8], room: &mut Room) -> u64 {
        if frame.len() > PENDING_BYTES_MAX {
            return 1;
        }
        let mut dropped = 0;
        while !self.fits(frame, room) {
            if !self.drop_oldest(room) {
                return dropped + 1;
            }
            dropped += 1;
        }
        room.0 -= frame.len();
        self.bytes += frame.len();
        self.frames.push_back(frame.into());
        dropped
    }

    /// How many frames wait.
    pub(super) fn len(&self) -> usize {
        self.frames.len()
    }

    /// Hands out every frame, oldest first, and forgets them.
    pub(super) fn take(&mut self, room: &mut Room) -> VecDeque<Box<[u8]>> {
        room.0 += std::mem::take(&mut self.bytes);
        std::mem::take(&mut self.frames)
    }

    fn fits(&self, frame: &[u8], room: &Room) -> bool {
        self.frames.len() < PENDING_FRAMES_MAX && self.bytes + frame.len() <= PENDING_BYTES_MAX && frame.len() <= room.0
    }

    /// False when there is none.
    fn drop_oldest(&mut self, room: &mut Room) -> bool {
        let Some(oldest) = self.frames.pop_front() else {
            return false;
        };
        self.bytes -= oldest.len();
        room.0 += oldest.len();
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pending_keeps_the_newest_frames_within_both_bounds() {
        let (mut pending, mut room) = (Pending::default(), Room::default());
        let dropped: u64 = (0..200u8).map(|number| pending.push(&[number; 100], &mut room)).sum();
        assert_eq!(dropped, 200 - PENDING_FRAMES_MAX as u64);
        assert_eq!(
            pending.frames.front().map(|frame| frame[0]),
            Some(200 - PENDING_FRAMES_MAX as u8)
        );
        let whole = vec![0; PENDING_BYTES_MAX];
        assert_eq!(pending.push(&whole, &mut room), PENDING_FRAMES_MAX as u64);
        assert_eq!(pending.push(&vec![0; PENDING_BYTES_MAX + 1], &mut room), 1);
        assert_eq!(room.0, PENDING_ROOM - PENDING_BYTES_MAX);
        assert_eq!(pending.take(&mut room).len(), 1);
        assert_eq!(room.0, PENDING_ROOM);
        assert_eq!(
            pending.push(&whole, &mut room),
            0,
            "taking the frames frees their bytes"
        );
    }

    #[test]
    fn all_peers_together_keep_no_more_than_one_room_and_each_has_its_newest() {
        let mut room = Room::default();
        let mut peers: Vec<Pending> = (0..PENDING_ROOM / PENDING_BYTES_MAX)
            .map(|_| Pending::default())
            .collect();
        let half = vec![1; PENDING_BYTES_MAX / 2];
        for pending in &mut peers {
            assert_eq!(pending.push(&half, &mut room) + pending.push(&half, &mut room), 0);
        }
        assert_eq!(room.0, 0);
        let mut late = Pending::default();
        assert_eq!(late.push(&[2; 100], &mut room), 1, "others have taken the room");
        assert_eq!(peers[0].push(&[2; 100], &mut room), 1, "its own oldest one makes room");
        assert_eq!(peers[0].frames.iter().map(|frame| frame[0]).collect::<Vec<_>>(), [1, 2]);
        assert_eq!(late.push(&[2; 100], &mut room), 0);
        for pending in peers.iter_mut().chain([&mut late]) {
            pending.take(&mut room);
        }
        assert_eq!(room.0, PENDING_ROOM);
    }

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
