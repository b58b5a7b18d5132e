//! Captures as others read them: pcapng (draft-ietf-opsawg-pcapng), as much of it as a capture of IP packets takes.
//!
//! One section, one interface of link type RAW (each packet begins with its IP header), a block per packet with its
//! direction as the standard has it and the peer as a comment, and the capture's losses at the end. Everything is written in
//! little-endian byte order.

use std::time::Duration;

use crate::path::capture::Direction;

/// LINKTYPE_RAW (<https://www.tcpdump.org/linktypes.html>): IPv4 or IPv6 by the packet's first nibble.
pub const LINK_TYPE_RAW: u16 = 101;

const SECTION: u32 = 0x0a0d_0d0a;
const INTERFACE: u32 = 1;
const STATISTICS: u32 = 5;
const PACKET: u32 = 6;
/// The least a block has: type, length and length again.
const BLOCK_LEN_MIN: usize = 12;
/// No block of ours comes near to this.
const BLOCK_LEN_MAX: usize = 1 << 20;

const END_OF_OPTIONS: u16 = 0;
const COMMENT: u16 = 1;
const SECTION_USER_APPLICATION: u16 = 4;
const INTERFACE_NAME: u16 = 2;
const INTERFACE_TIME_RESOLUTION: u16 = 9;
const INTERFACE_FILTER: u16 = 11;
const PACKET_FLAGS: u16 = 2;
const STATISTICS_RECEIVED: u16 = 4;
const STATISTICS_DROPPED: u16 = 5;

/// The section and the interface `name`: what a file begins with. `filter` is told to the reader, nothing more.
pub fn write_head(out: &mut Vec<u8>, name: &str, snap_len: u32, filter: &str) {
    block(out, SECTION, |body| {
        body.extend(0x1a2b_3c4d_u32.to_le_bytes());
        body.extend([1, 0, 0, 0]);
        // The section's length is not known yet.
        body.extend((-1i64).to_le_bytes());
        let application = concat!("ringway ", env!("CARGO_PKG_VERSION"));
        option(body, SECTION_USER_APPLICATION, application.as_bytes());
        option(body, END_OF_OPTIONS, &[]);
    });
    block(out, INTERFACE, |body| {
        body.extend(LINK_TYPE_RAW.to_le_bytes());
        body.extend([0, 0]);
        body.extend(snap_len.to_le_bytes());
        option(body, INTERFACE_NAME, name.as_bytes());
        option(body, INTERFACE_TIME_RESOLUTION, &[9]);
        if !filter.is_empty() {
            // 0: the text of a filter, in whatever language.
            option(body, INTERFACE_FILTER, &[&[0], filter.as_bytes()].concat());
        }
        option(body, END_OF_OPTIONS, &[]);
    });
}

/// A packet of which `packet` was captured.
pub fn write_packet(
    out: &mut Vec<u8>,
    time: Duration,
    direction: Direction,
    original_len: usize,
    packet: &[u8],
    comment: &str,
) {
    block(out, PACKET, |body| {
        body.extend(0u32.to_le_bytes());
        write_time(body, time);
        body.extend((packet.len() as u32).to_le_bytes());
        body.extend((original_len as u32).to_le_bytes());
        padded(body, packet);
        let flags: u32 = match direction {
            Direction::In => 1,
            Direction::Out => 2,
        };
        option(body, PACKET_FLAGS, &flags.to_le_bytes());
        option(body, COMMENT, comment.as_bytes());
        option(body, END_OF_OPTIONS, &[]);
    });
}

/// The end: how many packets the filter let through, and how many of them found no memory.
pub fn write_end(out: &mut Vec<u8>, time: Duration, received: u64, dropped: u64) {
    block(out, STATISTICS, |body| {
        body.extend(0u32.to_le_bytes());
        write_time(body, time);
        option(body, STATISTICS_RECEIVED, &received.to_le_bytes());
        option(body, STATISTICS_DROPPED, &dropped.to_le_bytes());
        option(body, END_OF_OPTIONS, &[]);
    });
}

fn block(out: &mut Vec<u8>, kind: u32, write: impl FnOnce(&mut Vec<u8>)) {
    let begin = out.len();
    out.extend(kind.to_le_bytes());
    out.extend([0; 4]);
    write(out);
    let len = (out.len() + 4 - begin) as u32;
    out.extend(len.to_le_bytes());
    out[begin + 4..begin + 8].copy_from_slice(&len.to_le_bytes());
}

fn option(body: &mut Vec<u8>, code: u16, value: &[u8]) {
    // Names, filters and comments are bounded far below 64 KiB where they come in; a longer one would end the options.
    let value = &value[..value.len().min(usize::from(u16::MAX))];
    body.extend(code.to_le_bytes());
    body.extend((value.len() as u16).to_le_bytes());
    padded(body, value);
}

/// In nanoseconds since 1970, the high word first.
fn write_time(body: &mut Vec<u8>, time: Duration) {
    let ns = time.as_nanos() as u64;
    body.extend(((ns >> 32) as u32).to_le_bytes());
    body.extend((ns as u32).to_le_bytes());
}

/// `bytes`, and zeros up to a multiple of 4.
fn padded(body: &mut Vec<u8>, bytes: &[u8]) {
    body.extend_from_slice(bytes);
    body.resize(body.len() + bytes.len().wrapping_neg() % 4, 0);
}

/// One block of a capture, as far as a reader of our own needs it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Block {
    /// A packet.
    Packet {
        /// Since 1970.
        time: Duration,
        /// Which way it went.
        direction: Direction,
        /// Bytes of the whole packet.
        original_len: usize,
        /// What was captured of it.
        packet: Vec<u8>,
        /// The peer.
        comment: String,
    },
    /// The capture is complete.
    End {
        /// Packets that the filter let through.
        received: u64,
        /// Those of them that found no memory.
        dropped: u64,
    },
    /// Anything else.
    Other,
}

/// The bytes are no pcapng of ours.
#[derive(Debug, thiserror::Error)]
#[error("the capture is damaged: {0}")]
pub struct Damaged(&'static str);

impl Block {
    /// The first block of `bytes` and its length; `None` while it is not whole.
    pub fn parse(bytes: &[u8]) -> Result<Option<(Block, usize)>, Damaged> {
        let Some(head) = bytes.first_chunk::<8>() else {
            return Ok(None);
        };
        let len = word(head, 4) as usize;
        if !len.is_multiple_of(4) || !(BLOCK_LEN_MIN..=BLOCK_LEN_MAX).contains(&len) {
            return Err(Damaged("a block of an impossible length"));
        }
        let Some(whole) = bytes.get(..len) else {
            return Ok(None);
        };
        let body = &whole[8..len - 4];
        let block = match word(head, 0) {
            PACKET => packet(body).ok_or(Damaged("a packet that is cut off"))?,
            STATISTICS => end(body).ok_or(Damaged("statistics that are cut off"))?,
            _ => Block::Other,
        };
        Ok(Some((block, len)))
    }
}

fn packet(body: &[u8]) -> Option<Block> {
    let head = body.first_chunk::<20>()?;
    let captured_len = word(head, 12) as usize;
    let packet = body.get(20..)?.get(..captured_len)?.to_vec();
    let (mut direction, mut comment) = (Direction::In, String::new());
    for (code, value) in options(body.get(20 + captured_len.next_multiple_of(4)..)?) {
        match code {
            PACKET_FLAGS if value.first().is_some_and(|flags| flags & 3 == 2) => direction = Direction::Out,
            COMMENT => comment = String::from_utf8_lossy(value).into_owned(),
            _ => {}
        }
    }
    Some(Block::Packet {
        time: Duration::from_nanos(u64::from(word(head, 4)) << 32 | u64::from(word(head, 8))),
        direction,
        original_len: word(head, 16) as usize,
        packet,
        comment,
    })
}

fn end(body: &[u8]) -> Option<Block> {
    let (mut received, mut dropped) = (0, 0);
    for (code, value) in options(body.get(12..)?) {
        let count = value.first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes));
        match code {
            STATISTICS_RECEIVED => received = count,
            STATISTICS_DROPPED => dropped = count,
            _ => {}
        }
    }
    Some(Block::End { received, dropped })
}

/// Code and value of each option up to the end, or to where it makes no sense.
fn options(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let [a, b, c, d] = *bytes.first_chunk()?;
        let (code, len) = (u16::from_le_bytes([a, b]), usize::from(u16::from_le_bytes([c, d])));
        let value = bytes.get(4..4 + len)?;
        bytes = bytes.get(4 + len.next_multiple_of(4)..).unwrap_or_default();
        (code != END_OF_OPTIONS).then_some((code, value))
    })
}

fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sample() -> Vec<u8> {
        let mut out = Vec::new();
        write_head(&mut out, "rw0", 65535, "tcp port 80");
        let time = Duration::from_nanos(1_700_000_000_123_456_789);
        write_packet(&mut out, time, Direction::Out, 900, b"packet", "peer b");
        write_packet(&mut out, time, Direction::In, 3, b"abc", "peer a, worker 1");
        write_end(&mut out, time, 5, 3);
        out
    }

    fn blocks(mut bytes: &[u8]) -> Vec<Block> {
        let mut blocks = Vec::new();
        while let Some((block, len)) = Block::parse(bytes).expect("our own") {
            blocks.push(block);
            bytes = &bytes[len..];
        }
        assert!(bytes.is_empty());
        blocks
    }

    #[test]
    fn what_is_written_is_read_back() {
        let time = Duration::from_nanos(1_700_000_000_123_456_789);
        let packet = |direction, original_len, packet: &[u8], comment: &str| Block::Packet {
            time,
            direction,
            original_len,
            packet: packet.to_vec(),
            comment: comment.to_owned(),
        };
        let expected = [
            Block::Other,
            Block::Other,
            packet(Direction::Out, 900, b"packet", "peer b"),
            packet(Direction::In, 3, b"abc", "peer a, worker 1"),
            Block::End {
                received: 5,
                dropped: 3,
            },
        ];
        assert_eq!(blocks(&sample()), expected);
    }

    #[test]
    fn blocks_are_laid_out_as_the_draft_has_them() {
        let mut out = Vec::new();
        write_packet(
            &mut out,
            Duration::from_nanos(1 << 32 | 2),
            Direction::In,
            9,
            &[0x45; 5],
            "x",
        );
        let words: Vec<u32> = out
            .chunks(4)
            .map(|chunk| u32::from_le_bytes(chunk.try_into().expect("blocks are whole words")))
            .collect();
        let options = [4 << 16 | 2, 1, 1 << 16 | 1, u32::from(b'x'), 0];
        let expected = [&[6, 60, 0, 1, 2, 5, 9, 0x4545_4545, 0x45][..], &options, &[60]].concat();
        assert_eq!(words, expected);
    }

    proptest! {
        #[test]
        fn damaged_bytes_are_refused_or_read_without_panic(at in 0usize..300, value: u8, cut in 0usize..300) {
            let mut bytes = sample();
            bytes.truncate(cut);
            if let Some(byte) = bytes.get_mut(at) {
                *byte = value;
            }
            let mut rest = &bytes[..];
            while let Ok(Some((_, len))) = Block::parse(rest) {
                rest = &rest[len..];
            }
        }
    }
}
