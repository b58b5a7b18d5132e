//! Telling a sender inside the tunnel that its packet is too large for the path to the peer.

use crate::wire::icmp::{PROTOCOL_V4, PROTOCOL_V6, fragmentation_needed, packet_too_big};
use crate::wire::ip::{Fragment, Ip};
use std::net::{Ipv4Addr, Ipv6Addr};

/// The ICMP error that tells the source of `packet` that the path carries `mtu` bytes: fragmentation needed (IPv4) or
/// packet too big (IPv6). It comes from the packet's destination, because a tunnel has no address of its own.
///
/// `None` where there must be no answer (RFC 1122, section 3.2.2; RFC 4443, section 2.4 (e)): to ICMP errors, fragments
/// other than the first, packets to a multicast or broadcast address (also for IPv6, where the error would need a multicast
/// source), and packets whose source is not one host. Also for IPv4 packets that may be fragmented.
pub fn too_big(packet: &[u8], mtu: u16) -> Option<Vec<u8>> {
    let ip = Ip::parse(packet)?;
    let upper = ip.upper();
    if upper.fragment == Fragment::Later || is_error(upper.protocol, ip.bytes().get(upper.start)) {
        return None;
    }
    match ip {
        Ip::V4(ip) => {
            let answerable = ip.dont_fragment() && is_one_host_v4(ip.source()) && is_one_host_v4(ip.destination());
            answerable.then(|| fragmentation_needed(ip, mtu))
        }
        Ip::V6(ip) => {
            let answerable = is_one_host_v6(ip.source()) && is_one_host_v6(ip.destination());
            answerable.then(|| packet_too_big(ip, mtu.into()))
        }
    }
}

/// ICMP messages that must not be answered by an error: all but the known queries in version 4, all errors and redirects in
/// version 6. A message too short for its type counts as an error.
fn is_error(protocol: u8, icmp_type: Option<&u8>) -> bool {
    match protocol {
        // Echo, timestamp, information and address mask requests and replies (RFC 792, RFC 950).
        PROTOCOL_V4 => !matches!(icmp_type, Some(0 | 8 | 13..=18)),
        PROTOCOL_V6 => matches!(icmp_type, None | Some(0..=127 | 137)),
        _ => false,
    }
}

/// Neither "this network" (0/8), nor multicast, reserved or the limited broadcast (224/3).
fn is_one_host_v4(address: [u8; 4]) -> bool {
    let address = Ipv4Addr::from(address);
    address.octets()[0] != 0 && address.octets()[0] < 224 && !address.is_loopback()
}

fn is_one_host_v6(address: [u8; 16]) -> bool {
    let address = Ipv6Addr::from(address);
    !address.is_unspecified() && !address.is_multicast() && !address.is_loopback()
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: [u8; 4] = [10, 0, 0, 1];
    const B: [u8; 4] = [10, 0, 0, 2];

    fn v4(source: [u8; 4], destination: [u8; 4], protocol: u8, first: u8, flags_and_offset: u16) -> Vec<u8> {
        let mut packet = vec![0x45, 0, 0, 100, 0, 0, 0, 0, 64, protocol, 0, 0];
        packet[6..8].copy_from_slice(&flags_and_offset.to_be_bytes());
        packet.extend([source, destination].concat());
        packet.resize(100, first);
        packet
    }

    fn v6(source: [u8; 16], destination: [u8; 16], protocol: u8, first: u8) -> Vec<u8> {
        let mut packet = vec![0x60, 0, 0, 0, 0, 60, protocol, 64];
        packet.extend([source, destination].concat());
        packet.resize(100, first);
        packet
    }

    #[test]
    fn ordinary_packets_are_answered() {
        for (protocol, first) in [(6, 0), (17, 0), (1, 8), (50, 3)] {
            let error = too_big(&v4(A, B, protocol, first, 0x4000), 1280).unwrap();
            assert_eq!((error[9], &error[12..16], &error[16..20]), (1, &B[..], &A[..]));
        }
        let error = too_big(&v6([0xfd; 16], [0xfe; 16], 58, 128), 1280).unwrap();
        assert_eq!(
            (error[6], &error[8..24], &error[24..40]),
            (58, &[0xfe; 16][..], &[0xfd; 16][..])
        );
    }

    #[test]
    fn errors_are_never_answered() {
        for icmp_type in [3, 4, 5, 11, 12] {
            assert_eq!(too_big(&v4(A, B, 1, icmp_type, 0x4000), 1280), None);
        }
        for icmp_type in [1, 2, 3, 4, 100, 137] {
            assert_eq!(too_big(&v6([0xfd; 16], [0xfe; 16], 58, icmp_type), 1280), None);
        }
    }

    #[test]
    fn only_the_first_fragment_and_only_with_df_is_answered() {
        assert!(too_big(&v4(A, B, 17, 0, 0x6000), 1280).is_some());
        assert_eq!(too_big(&v4(A, B, 17, 0, 0x4001), 1280), None);
        assert_eq!(too_big(&v4(A, B, 17, 0, 0x0000), 1280), None);
    }

    #[test]
    fn neither_a_group_nor_nobody_is_answered() {
        for bad in [[0, 0, 0, 0], [224, 0, 0, 1], [255, 255, 255, 255], [127, 0, 0, 1]] {
            assert_eq!(too_big(&v4(bad, B, 17, 0, 0x4000), 1280), None);
            assert_eq!(too_big(&v4(A, bad, 17, 0, 0x4000), 1280), None);
        }
        for bad in [[0; 16], [0xff; 16]] {
            assert_eq!(too_big(&v6(bad, [0xfe; 16], 17, 0), 1280), None);
            assert_eq!(too_big(&v6([0xfd; 16], bad, 17, 0), 1280), None);
        }
    }

    #[test]
    fn what_is_no_packet_is_not_answered() {
        assert_eq!(too_big(&[], 1280), None);
        assert_eq!(too_big(&v4(A, B, 17, 0, 0x4000)[..99], 1280), None);
    }
}
