//! Captures: copies of inner packets for somebody who looks.
//!
//! Without a tap the data path pays one branch per batch of packets. A [`Tap`] copies what its filter lets through into
//! [`Chunk`]s of memory that exist since it began; the worker sends them on at the end of a pass, and they come back
//! empty. While all of them are away packets go uncaptured, and are counted. Nothing waits for whoever looks.

pub mod filter;

use crate::proto::{PeerId, Time};
use filter::Filter;

/// Chunks of one tap, in one worker: what may be on its way to whoever looks.
pub const CHUNKS: usize = 16;
/// Bytes of a chunk. A worker's chunks together hold what one busy pass moves.
pub const CHUNK_LEN: usize = 256 * 1024;
/// Chunks that may be on their way before further ones are filled up first.
const EAGER_CHUNKS: usize = 2;
/// Bytes of a record before its packet: time 8, peer 4, lengths 4 and 4, direction 1, unused 3.
const RECORD_HEADER_LEN: usize = 24;

/// Which way a packet goes through the tunnel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// From the peer to this machine.
    In,
    /// From this machine to the peer.
    Out,
}

/// What a capture takes.
#[derive(Debug, Clone)]
pub struct Wanted {
    /// Only packets from and to this peer.
    pub peer: Option<PeerId>,
    /// Only packets that it matches.
    pub filter: Filter,
    /// Of each packet at most so many bytes.
    pub snap_len: usize,
}

/// One worker's part of a capture.
#[derive(Debug)]
pub struct Tap {
    number: u64,
    wanted: Wanted,
    filling: Option<Chunk>,
    free: Vec<Chunk>,
    full: Vec<Chunk>,
    /// Packets that found no chunk since the last one was handed out.
    lost: u64,
    away: usize,
}

impl Tap {
    /// The part of capture `number`, with all the memory that it will ever take.
    pub fn new(number: u64, wanted: Wanted) -> Tap {
        Tap {
            number,
            wanted,
            filling: None,
            free: (0..CHUNKS).map(|_| Chunk::new()).collect(),
            full: Vec::with_capacity(CHUNKS),
            lost: 0,
            away: 0,
        }
    }

    /// Which capture it belongs to.
    pub fn number(&self) -> u64 {
        self.number
    }

    /// Whether it only wants packets of `peer`.
    pub fn is_of(&self, peer: PeerId) -> bool {
        self.wanted.peer == Some(peer)
    }

    /// Copies `packet` if it is wanted.
    pub fn offer(&mut self, now: Time, peer: PeerId, direction: Direction, packet: &[u8]) {
        if self.wanted.peer.is_some_and(|wanted| wanted != peer) || !self.wanted.filter.matches(direction, packet) {
            return;
        }
        let kept = &packet[..packet.len().min(self.wanted.snap_len)];
        if let Some(full) = self.filling.take_if(|chunk| !chunk.fits(kept.len())) {
            self.full.push(full);
        }
        match self.filling.take().or_else(|| self.free.pop()) {
            Some(mut chunk) => {
                chunk.push(now, peer, direction, packet.len(), kept);
                self.filling = Some(chunk);
            }
            None => self.lost += 1,
        }
    }

    /// The next chunk to send on, at the end of a pass: full ones, and while few are on their way the one that is being
    /// filled too.
    pub fn take(&mut self) -> Option<Chunk> {
        let mut chunk = match self.full.is_empty() {
            false => self.full.remove(0),
            true if self.away < EAGER_CHUNKS => self.filling.take()?,
            true => return None,
        };
        chunk.lost = std::mem::take(&mut self.lost);
        self.away += 1;
        Some(chunk)
    }

    /// Takes a chunk back that was sent on.
    pub fn give_back(&mut self, mut chunk: Chunk) {
        chunk.bytes.clear();
        self.away = self.away.saturating_sub(1);
        self.free.push(chunk);
    }
}

/// Offers `packets`, all of one peer and direction, to every tap.
pub fn offer<'a>(
    taps: &mut [Tap],
    now: Time,
    peer: PeerId,
    direction: Direction,
    packets: impl Iterator<Item = &'a [u8]> + Clone,
) {
    for tap in taps {
        packets
            .clone()
            .for_each(|packet| tap.offer(now, peer, direction, packet));
    }
}

/// Captured packets, one after the other.
#[derive(Debug)]
pub struct Chunk {
    bytes: Vec<u8>,
    lost: u64,
}

/// One captured packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Record<'a> {
    /// The time of the worker's pass that carried it.
    pub time: Time,
    /// Whose it is.
    pub peer: PeerId,
    /// Which way it went.
    pub direction: Direction,
    /// Bytes of the whole packet.
    pub original_len: usize,
    /// As much of it as was wanted.
    pub packet: &'a [u8],
}

impl Chunk {
    fn new() -> Chunk {
        Chunk {
            bytes: Vec::with_capacity(CHUNK_LEN),
            lost: 0,
        }
    }

    /// How many packets found no chunk since the chunk before this one.
    pub fn lost(&self) -> u64 {
        self.lost
    }

    /// Its packets, oldest first.
    pub fn records(&self) -> impl Iterator<Item = Record<'_>> {
        let mut rest = &self.bytes[..];
        std::iter::from_fn(move || {
            let (header, behind) = rest.split_first_chunk::<RECORD_HEADER_LEN>()?;
            let word = |at: usize| u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
            let (packet, next) = behind.split_at(word(16) as usize);
            rest = next;
            Some(Record {
                time: Time::from_nanos(u64::from(word(0)) | u64::from(word(4)) << 32),
                peer: PeerId(word(8)),
                direction: if header[20] == 0 { Direction::In } else { Direction::Out },
                original_len: word(12) as usize,
                packet,
            })
        })
    }

    fn fits(&self, len: usize) -> bool {
        self.bytes.len() + RECORD_HEADER_LEN + len <= CHUNK_LEN
    }

    fn push(&mut self, now: Time, peer: PeerId, direction: Direction, original_len: usize, kept: &[u8]) {
        let mut header = [0; RECORD_HEADER_LEN];
        header[..8].copy_from_slice(&now.as_nanos().to_le_bytes());
        header[8..12].copy_from_slice(&peer.0.to_le_bytes());
        // Inner packets have at most 65,575 bytes.
        header[12..16].copy_from_slice(&(original_len as u32).to_le_bytes());
        header[16..20].copy_from_slice(&(kept.len() as u32).to_le_bytes());
        header[20] = u8::from(direction == Direction::Out);
        self.bytes.extend_from_slice(&header);
        self.bytes.extend_from_slice(kept);
    }
}

#[cfg(test)]
mod tests {
    use super::super::sample::{Sample, Written};
    use super::*;

    fn tap(filter: &str, peer: Option<PeerId>, snap_len: usize) -> Tap {
        Tap::new(
            7,
            Wanted {
                peer,
                filter: filter.parse().expect("a filter"),
                snap_len,
            },
        )
    }

    fn packet(len: usize) -> Vec<u8> {
        Sample::udp(false, vec![7; len]).bytes(Written::Complete)
    }

    #[test]
    fn what_is_wanted_comes_out_as_it_went_in() {
        let mut taps = [tap("udp", Some(PeerId(3)), 40), tap("tcp", None, 65535)];
        let (small, large) = (packet(2), packet(1000));
        let now = Time::from_nanos(5 << 32 | 9);
        offer(
            &mut taps,
            now,
            PeerId(3),
            Direction::Out,
            [&small[..], &large].into_iter(),
        );
        offer(&mut taps, now, PeerId(4), Direction::In, [&small[..]].into_iter());
        offer(&mut taps, now, PeerId(3), Direction::In, [&small[..]].into_iter());
        let chunk = taps[0].take().expect("three packets");
        let record = |direction, original_len, packet| Record {
            time: now,
            peer: PeerId(3),
            direction,
            original_len,
            packet,
        };
        assert_eq!(
            chunk.records().collect::<Vec<_>>(),
            [
                record(Direction::Out, 30, &small),
                record(Direction::Out, 1028, &large[..40]),
                record(Direction::In, 30, &small)
            ]
        );
        assert_eq!(chunk.lost(), 0);
        assert!(taps[0].take().is_none() && taps[1].take().is_none());
    }

    #[test]
    fn packets_that_find_no_memory_are_counted_and_later_ones_are_captured_again() {
        let mut tap = tap("", None, 65535);
        let packet = packet(60_000);
        let per_chunk = CHUNK_LEN / (packet.len() + RECORD_HEADER_LEN);
        let offered = per_chunk * CHUNKS + 5;
        for _ in 0..offered {
            tap.offer(Time::default(), PeerId(0), Direction::In, &packet);
        }
        let mut chunks: Vec<Chunk> = std::iter::from_fn(|| tap.take()).collect();
        // The one that was being filled when memory ran out is full.
        assert_eq!(chunks.len(), CHUNKS);
        let (captured, lost) = chunks.iter().fold((0, 0), |(n, lost), chunk| {
            (n + chunk.records().count(), lost + chunk.lost())
        });
        assert_eq!((captured, lost), (per_chunk * CHUNKS, 5));
        tap.give_back(chunks.pop().expect("one of them"));
        tap.offer(Time::default(), PeerId(0), Direction::In, &packet);
        assert!(tap.take().is_none(), "it is filled up first while others are away");
        chunks.into_iter().for_each(|chunk| tap.give_back(chunk));
        assert_eq!(tap.take().map(|chunk| chunk.records().count()), Some(1));
    }
}
