//! Builders of the two ICMP errors that tell a sender its packet is too large. Whether one may be sent at all is
//! decided in `path::icmp`.

use super::checksum::Sum;
use super::ip::{Ipv4, Ipv6, V4_HEADER_LEN, V6_HEADER_LEN};

/// The protocol number of ICMP.
pub const PROTOCOL_V4: u8 = 1;
/// The protocol number of ICMPv6.
pub const PROTOCOL_V6: u8 = 58;
/// Bytes before the quoted packet, in both versions.
const ICMP_HEADER_LEN: usize = 8;
/// An ICMPv4 error quotes as much as fits in the datagram that every host accepts (RFC 1812, section 4.3.2.3).
const V4_ERROR_LEN_MAX: usize = 576;
/// An ICMPv6 error quotes as much as fits in the minimum MTU (RFC 4443, section 2.4 (c)).
const V6_ERROR_LEN_MAX: usize = 1280;
/// The initial TTL and hop limit of our own packets (RFC 1700).
const HOPS: u8 = 64;
/// Internetwork control, the precedence of ICMP errors (RFC 1812, section 4.3.2.5).
const TOS_INTERNETWORK_CONTROL: u8 = 0xc0;

/// Destination unreachable, fragmentation needed (type 3 code 4, RFC 792; next-hop MTU of RFC 1191), from the
/// destination of `original` to its source.
pub fn fragmentation_needed(original: Ipv4<'_>, mtu: u16) -> Vec<u8> {
    let quoted = quote(original.bytes(), V4_ERROR_LEN_MAX - V4_HEADER_LEN);
    let total_len = V4_HEADER_LEN + ICMP_HEADER_LEN + quoted.len();

    let mut packet = Vec::with_capacity(total_len);
    packet.extend([0x45, TOS_INTERNETWORK_CONTROL]);
    packet.extend((total_len as u16).to_be_bytes());
    packet.extend([0, 0, 0x40, 0]); // never fragmented, so it needs no ID (RFC 6864)
    packet.extend([HOPS, PROTOCOL_V4, 0, 0]);
    packet.extend(original.destination());
    packet.extend(original.source());
    let header_checksum = Sum::of(&packet).checksum();
    packet[10..12].copy_from_slice(&header_checksum.to_be_bytes());

    packet.extend([3, 4, 0, 0, 0, 0]);
    packet.extend(mtu.to_be_bytes());
    packet.extend(quoted);
    let checksum = Sum::of(&packet[V4_HEADER_LEN..]).checksum();
    packet[V4_HEADER_LEN + 2..V4_HEADER_LEN + 4].copy_from_slice(&checksum.to_be_bytes());
    packet
}

/// Packet too big (type 2, RFC 4443, section 3.2), from the destination of `original` to its source.
pub fn packet_too_big(original: Ipv6<'_>, mtu: u32) -> Vec<u8> {
    let quoted = quote(original.bytes(), V6_ERROR_LEN_MAX - V6_HEADER_LEN);
    let icmp_len = (ICMP_HEADER_LEN + quoted.len()) as u16;

    let mut packet = Vec::with_capacity(V6_HEADER_LEN + usize::from(icmp_len));
    packet.extend([0x60, 0, 0, 0]);
    packet.extend(icmp_len.to_be_bytes());
    packet.extend([PROTOCOL_V6, HOPS]);
    packet.extend(original.destination());
    packet.extend(original.source());

    packet.extend([2, 0, 0, 0]);
    packet.extend(mtu.to_be_bytes());
    packet.extend(quoted);
    // Addresses and ICMP message lie side by side; length and protocol complete the pseudo-header.
    let checksum = Sum::of(&packet[8..])
        .word(icmp_len)
        .word(u16::from(PROTOCOL_V6))
        .checksum();
    packet[V6_HEADER_LEN + 2..V6_HEADER_LEN + 4].copy_from_slice(&checksum.to_be_bytes());
    packet
}

fn quote(original: &[u8], room: usize) -> &[u8] {
    &original[..original.len().min(room - ICMP_HEADER_LEN)]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::ip::Ip;

    fn v4(len: usize) -> Vec<u8> {
        let mut packet = vec![7; len];
        packet[..12].copy_from_slice(&[0x45, 0, (len >> 8) as u8, len as u8, 0, 0, 0x40, 0, 64, 17, 0, 0]);
        packet[12..20].copy_from_slice(&[10, 0, 0, 1, 192, 0, 2, 9]);
        packet
    }

    fn v6(len: usize) -> Vec<u8> {
        let mut packet = vec![7; len];
        let payload = len - V6_HEADER_LEN;
        packet[..8].copy_from_slice(&[0x60, 0, 0, 0, (payload >> 8) as u8, payload as u8, 17, 64]);
        packet
    }

    #[test]
    fn fragmentation_needed_quotes_the_packet_and_sums_up() {
        let original = v4(1400);
        let error = fragmentation_needed(Ipv4::parse(&original).unwrap(), 1280);
        let Some(Ip::V4(ip)) = Ip::parse(&error) else {
            panic!("not IPv4")
        };
        assert_eq!((error.len(), ip.bytes().len()), (576, 576));
        assert_eq!((ip.source(), ip.destination()), ([192, 0, 2, 9], [10, 0, 0, 1]));
        assert!(Sum::of(&error[..20]).is_intact() && Sum::of(&error[20..]).is_intact());
        assert_eq!(error[20..22], [3, 4]);
        assert_eq!(error[26..28], 1280u16.to_be_bytes());
        assert_eq!(error[28..], original[..548]);
    }

    #[test]
    fn packet_too_big_quotes_the_packet_and_sums_up() {
        let original = v6(1500);
        let error = packet_too_big(Ipv6::parse(&original).unwrap(), 1420);
        assert_eq!((error.len(), Ip::parse(&error).unwrap().bytes().len()), (1280, 1280));
        assert!(
            Sum::pseudo(&error[8..40], 58)
                .word(1240)
                .plus(Sum::of(&error[40..]))
                .is_intact()
        );
        assert_eq!(error[40..42], [2, 0]);
        assert_eq!(error[44..48], 1420u32.to_be_bytes());
        assert_eq!(error[48..], original[..1232]);
    }

    #[test]
    fn a_short_packet_is_quoted_whole() {
        let original = v4(40);
        assert_eq!(
            fragmentation_needed(Ipv4::parse(&original).unwrap(), 576)[28..],
            original
        );
        let original = v6(60);
        assert_eq!(packet_too_big(Ipv6::parse(&original).unwrap(), 1280)[48..], original);
    }
}
