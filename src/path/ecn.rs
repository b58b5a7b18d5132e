//! Explicit congestion notification across the tunnel, RFC 6040 normal mode. DSCP stays inside, as in WireGuard.

use crate::wire::checksum::Sum;
use crate::wire::get_u16;

const ECN_MASK: u8 = 0b11;
const NOT_ECT: u8 = 0b00;
const ECT_1: u8 = 0b01;
const CE: u8 = 0b11;

/// The outer traffic class for a packet (RFC 6040, figure 3): its ECN bits, DSCP 0.
pub(super) fn encapsulate(inner_tos: u8) -> u8 {
    inner_tos & ECN_MASK
}

/// Merges the outer traffic class into the packet that came in it (RFC 6040, figure 4); false when the packet
/// must be dropped, because congestion was met and the packet cannot say so.
///
/// # Panics
/// Unless `packet` is a whole IP packet.
pub(super) fn decapsulate(outer_tos: u8, packet: &mut [u8]) -> bool {
    let inner = ecn(packet);
    match (inner, outer_tos & ECN_MASK) {
        (NOT_ECT, CE) => return false,
        (NOT_ECT | CE, _) => {}
        (_, CE) => set_ecn(packet, CE),
        (_, ECT_1) => set_ecn(packet, ECT_1),
        _ => {}
    }
    true
}

/// The ECN bits of an IP packet's traffic class.
fn ecn(packet: &[u8]) -> u8 {
    let tos = if packet[0] >> 4 == 4 { packet[1] } else { packet[1] >> 4 };
    tos & ECN_MASK
}

fn set_ecn(packet: &mut [u8], ecn: u8) {
    if packet[0] >> 4 == 6 {
        packet[1] = packet[1] & !(ECN_MASK << 4) | ecn << 4;
        return;
    }
    let before = get_u16(packet, 0);
    packet[1] = packet[1] & !ECN_MASK | ecn;
    // RFC 1624, equation 3: a header that was damaged stays so.
    let old_sum = get_u16(packet, 10);
    let checksum = Sum::ZERO
        .word(!old_sum)
        .word(!before)
        .word(get_u16(packet, 0))
        .checksum();
    packet[10..12].copy_from_slice(&checksum.to_be_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::ip::Ip;

    /// An IPv4 packet of a header alone, or an IPv6 one, with these ECN bits and a DSCP.
    fn packet(v6: bool, ecn: u8) -> Vec<u8> {
        let tos = 0b1011_1000 | ecn;
        if v6 {
            let mut packet = vec![0; 40];
            (packet[0], packet[1]) = (0x60 | tos >> 4, tos << 4);
            return packet;
        }
        let mut packet = vec![0; 20];
        (packet[0], packet[1], packet[3], packet[8]) = (0x45, tos, 20, 64);
        let checksum = Sum::of(&packet).checksum();
        packet[10..12].copy_from_slice(&checksum.to_be_bytes());
        packet
    }

    #[test]
    fn decapsulation_follows_figure_4_of_rfc_6040() {
        const ECT_0: u8 = 0b10;
        // Per inner codepoint: the result under an outer Not-ECT, ECT(0), ECT(1) and CE; None = drop.
        let table = [
            (NOT_ECT, [Some(NOT_ECT), Some(NOT_ECT), Some(NOT_ECT), None]),
            (ECT_0, [Some(ECT_0), Some(ECT_0), Some(ECT_1), Some(CE)]),
            (ECT_1, [Some(ECT_1), Some(ECT_1), Some(ECT_1), Some(CE)]),
            (CE, [Some(CE); 4]),
        ];
        for (inner, results) in table {
            for (outer, expected) in [NOT_ECT, ECT_0, ECT_1, CE].into_iter().zip(results) {
                for v6 in [false, true] {
                    let mut packet = packet(v6, inner);
                    let kept = decapsulate(0b0110_0000 | outer, &mut packet);
                    assert_eq!(kept, expected.is_some(), "{inner:#b} in {outer:#b}");
                    let ip = Ip::parse(&packet).expect("still an IP packet");
                    if let Some(expected) = expected {
                        assert_eq!(ip.traffic_class(), 0b1011_1000 | expected, "{inner:#b} in {outer:#b}");
                    }
                    if !v6 {
                        assert!(Sum::of(&packet).is_intact(), "the header checksum is right again");
                    }
                }
            }
        }
    }

    #[test]
    fn encapsulation_copies_ecn_and_hides_dscp() {
        assert_eq!(encapsulate(0b1011_1011), CE);
    }
}
