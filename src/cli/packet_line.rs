//! One captured packet as a line, much as tcpdump has it.

use std::fmt::Write as _;
use std::time::Duration;

use crate::control::pcapng::Block;
use crate::path::capture::Direction;
use crate::wire::ip::{Fragment, Ip};
use crate::wire::{tcp, udp};

/// The line; nothing for a block that is no packet. Times are UTC.
pub(super) fn packet_line(block: &Block) -> String {
    let Block::Packet {
        time,
        direction,
        original_len,
        packet,
        comment,
    } = block
    else {
        return String::new();
    };
    let arrow = match direction {
        Direction::In => "in ",
        Direction::Out => "out",
    };
    format!("{} {arrow} {comment}: {}", clock(*time), summary(packet, *original_len))
}

/// The time of day, UTC.
fn clock(since_1970: Duration) -> String {
    let seconds = since_1970.as_secs() % 86_400;
    let (hours, minutes) = (seconds / 3600, seconds / 60 % 60);
    format!(
        "{hours:02}:{minutes:02}:{:02}.{:06}",
        seconds % 60,
        since_1970.subsec_micros()
    )
}

fn summary(packet: &[u8], original_len: usize) -> String {
    // A packet that was cut off by the capture still has its headers.
    let whole = whole_header(packet);
    let Some(ip) = whole.as_deref().and_then(Ip::parse) else {
        return format!("not IP, length {original_len}");
    };
    let (source, destination) = (ip.source(), ip.destination());
    let upper = ip.upper();
    let rest = packet.get(upper.start..).unwrap_or_default();
    if upper.fragment == Fragment::Later {
        return format!(
            "{source} > {destination}: fragment of protocol {}, length {original_len}",
            upper.protocol
        );
    }
    match (upper.protocol, rest) {
        (tcp::PROTOCOL, &[a, b, c, d, e, f, g, h, _, _, _, _, offset, flags, ..]) => {
            let header_len = upper.start + usize::from(offset >> 4) * 4;
            format!(
                "{source}.{} > {destination}.{}: TCP [{}] seq {}, length {}",
                u16::from_be_bytes([a, b]),
                u16::from_be_bytes([c, d]),
                tcp_flags(flags),
                u32::from_be_bytes([e, f, g, h]),
                original_len.saturating_sub(header_len)
            )
        }
        (udp::PROTOCOL, &[a, b, c, d, ..]) => format!(
            "{source}.{} > {destination}.{}: UDP, length {}",
            u16::from_be_bytes([a, b]),
            u16::from_be_bytes([c, d]),
            original_len.saturating_sub(upper.start + udp::HEADER_LEN)
        ),
        (protocol @ (1 | 58), &[kind, code, ..]) => {
            format!(
                "{source} > {destination}: {}, length {original_len}",
                icmp(protocol, kind, code)
            )
        }
        (protocol, _) => format!("{source} > {destination}: protocol {protocol}, length {original_len}"),
    }
}

/// The packet, padded with zeros to the length that its header says.
fn whole_header(packet: &[u8]) -> Option<Vec<u8>> {
    let length = |at: usize| Some(usize::from(u16::from_be_bytes(*packet.get(at..)?.first_chunk()?)));
    let len = match packet.first()? >> 4 {
        4 => length(2)?,
        6 => 40 + length(4)?,
        _ => return None,
    };
    let mut whole = packet.to_vec();
    whole.resize(len.max(packet.len()), 0);
    Some(whole)
}

/// As tcpdump abbreviates them.
fn tcp_flags(flags: u8) -> String {
    let letters = ['F', 'S', 'R', 'P', '.', 'U', 'E', 'W'];
    let mut text = String::new();
    for (bit, letter) in letters.into_iter().enumerate() {
        if flags >> bit & 1 == 1 {
            text.push(letter);
        }
    }
    if text.is_empty() { "none".into() } else { text }
}

fn icmp(protocol: u8, kind: u8, code: u8) -> String {
    let mut text = String::from(if protocol == 1 { "ICMP " } else { "ICMPv6 " });
    let name = match (protocol, kind, code) {
        (1, 8, _) | (58, 128, _) => "echo request",
        (1, 0, _) | (58, 129, _) => "echo reply",
        (1, 3, 4) => "fragmentation needed",
        (58, 2, _) => "packet too big",
        (1, 3, _) | (58, 1, _) => "unreachable",
        (1, 11, _) | (58, 3, _) => "time exceeded",
        _ => {
            // Writing to a String can't fail.
            let _ = write!(text, "type {kind} code {code}");
            ""
        }
    };
    text + name
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(packet: &[u8], original_len: usize) -> String {
        packet_line(&Block::Packet {
            time: Duration::from_nanos(86_400_000_000_000 * 3 + 3_723_000_456_000),
            direction: Direction::Out,
            original_len,
            packet: packet.to_vec(),
            comment: "peer b, worker 0".into(),
        })
    }

    fn v4(protocol: u8, len: u8, upper: &[u8]) -> Vec<u8> {
        let header = [
            0x45, 0, 0, len, 0, 0, 0, 0, 64, protocol, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2,
        ];
        [&header[..], upper].concat()
    }

    #[test]
    fn lines_tell_who_talks_to_whom_about_what() {
        let tcp = [0x12, 0x34, 0, 80, 0, 0, 0, 9, 0, 0, 0, 0, 0x50, 0x12, 0, 0, 0, 0, 0, 0];
        let cases = [
            (
                v4(6, 50, &tcp),
                "10.0.0.1.4660 > 10.0.0.2.80: TCP [S.] seq 9, length 10",
            ),
            (
                v4(17, 50, &[0, 53, 1, 0, 0, 30, 0, 0]),
                "10.0.0.1.53 > 10.0.0.2.256: UDP, length 22",
            ),
            (
                v4(1, 50, &[8, 0, 0, 0]),
                "10.0.0.1 > 10.0.0.2: ICMP echo request, length 50",
            ),
            (v4(47, 50, &[0, 0]), "10.0.0.1 > 10.0.0.2: protocol 47, length 50"),
            (vec![0x10, 0], "not IP, length 50"),
            (v4(6, 50, &[])[..12].to_vec(), "10.0.0.0"),
        ];
        for (packet, expected) in cases.iter().take(5) {
            let expected = format!("01:02:03.000456 out peer b, worker 0: {expected}");
            assert_eq!(line(packet, 50), expected);
        }
        assert!(
            line(&cases[5].0, 50).contains("0.0.0.0 > 0.0.0.0"),
            "cut off before the addresses"
        );
    }
}
