//! The four kinds of packets that merge, and which of their header bits must agree for that.

use super::Offloads;
use crate::wire::checksum::Sum;
use crate::wire::ip::{V4_HEADER_LEN, V6_HEADER_LEN};
use crate::wire::{tcp, udp, vnet};

/// Bytes of the longest headers: IPv6 and TCP with all options.
pub(super) const HEADERS_LEN_MAX: usize = V6_HEADER_LEN + tcp::HEADER_LEN_MAX;

/// TCP over IPv4 without options.
pub(super) static V4_TCP: Layout = Layout::new(false, true);
/// UDP over IPv4 without options.
pub(super) static V4_UDP: Layout = Layout::new(false, false);
/// TCP over IPv6 without extension headers.
pub(super) static V6_TCP: Layout = Layout::new(true, true);
/// UDP over IPv6 without extension headers.
pub(super) static V6_UDP: Layout = Layout::new(true, false);

/// Where things are in the headers of one kind of packets.
#[derive(Debug)]
pub(super) struct Layout {
    pub(super) is_v6: bool,
    pub(super) is_tcp: bool,
    /// Where the TCP or UDP header starts.
    pub(super) start: usize,
    /// Where its checksum lies in it.
    pub(super) checksum_at: usize,
    /// Zero has two representations as a checksum. This one is never the result of segmentation: for TCP it is -0, for UDP +0,
    /// which means that there is no checksum.
    pub(super) never_written: u16,
    /// The GSO type of a super-packet.
    pub(super) gso_type: u8,
    /// The header bits that must be the same in all packets of a group.
    same: [u8; HEADERS_LEN_MAX],
}

impl Layout {
    const fn new(is_v6: bool, is_tcp: bool) -> Layout {
        let start = if is_v6 { V6_HEADER_LEN } else { V4_HEADER_LEN };
        let mut same = [0xff; HEADERS_LEN_MAX];
        if is_v6 {
            free(&mut same, 4, 2); // payload length
        } else {
            free(&mut same, 2, 4); // total length, ID
            free(&mut same, 10, 2); // header checksum
        }
        if is_tcp {
            free(&mut same, start + tcp::SEQ_AT, 4);
            same[start + tcp::FLAGS_AT] = !(tcp::PSH | tcp::CWR);
            free(&mut same, start + tcp::CHECKSUM_AT, 2);
        } else {
            free(&mut same, start + udp::LENGTH_AT, 2);
            free(&mut same, start + udp::CHECKSUM_AT, 2);
        }
        Layout {
            is_v6,
            is_tcp,
            start,
            checksum_at: if is_tcp { tcp::CHECKSUM_AT } else { udp::CHECKSUM_AT },
            never_written: if is_tcp { 0xffff } else { 0 },
            gso_type: match (is_v6, is_tcp) {
                (false, true) => vnet::GSO_TCPV4,
                (true, true) => vnet::GSO_TCPV6,
                (_, false) => vnet::GSO_UDP_L4,
            },
            same,
        }
    }

    #[inline]
    pub(super) fn is_offloaded(&self, offloads: Offloads) -> bool {
        if self.is_tcp { offloads.tcp } else { offloads.udp }
    }

    /// Source and destination address.
    #[inline]
    pub(super) fn addresses<'a>(&self, headers: &'a [u8]) -> &'a [u8] {
        if self.is_v6 { &headers[8..40] } else { &headers[12..20] }
    }

    /// The pseudo-header sum but for the length.
    #[inline]
    pub(super) fn pseudo(&self, headers: &[u8]) -> Sum {
        let protocol = if self.is_tcp { tcp::PROTOCOL } else { udp::PROTOCOL };
        Sum::pseudo(self.addresses(headers), protocol)
    }

    /// Whether the headers of two packets agree in all that segmentation copies. Headers of different lengths already disagree in
    /// what says so, the TCP data offset.
    #[inline]
    pub(super) fn agree(&self, one: &[u8], other: &[u8]) -> bool {
        // Headers are whole 32-bit words, all of them.
        let words = one
            .as_chunks::<4>()
            .0
            .iter()
            .zip(other.as_chunks::<4>().0)
            .zip(self.same.as_chunks::<4>().0);
        let differing = words.fold(0, |differing, ((one, other), same)| {
            differing | (u32::from_ne_bytes(*one) ^ u32::from_ne_bytes(*other)) & u32::from_ne_bytes(*same)
        });
        differing == 0
    }
}

/// Lets `len` bytes at `at` differ.
const fn free(same: &mut [u8; HEADERS_LEN_MAX], at: usize, len: usize) {
    let mut offset = 0;
    while offset < len {
        same[at + offset] = 0;
        offset += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exactly_the_counted_fields_may_differ() {
        let free_bytes =
            |layout: &Layout| -> Vec<usize> { (0..HEADERS_LEN_MAX).filter(|&at| layout.same[at] == 0).collect() };
        assert_eq!(free_bytes(&V4_TCP), [2, 3, 4, 5, 10, 11, 24, 25, 26, 27, 36, 37]);
        assert_eq!(free_bytes(&V4_UDP), [2, 3, 4, 5, 10, 11, 24, 25, 26, 27]);
        assert_eq!(free_bytes(&V6_TCP), [4, 5, 44, 45, 46, 47, 56, 57]);
        assert_eq!(free_bytes(&V6_UDP), [4, 5, 44, 45, 46, 47]);
        assert_eq!(V4_TCP.same[33], !(tcp::PSH | tcp::CWR));
    }

    #[test]
    fn one_differing_bit_is_noticed_wherever_it_counts() {
        let one = [0x5a; HEADERS_LEN_MAX];
        for at in 0..HEADERS_LEN_MAX {
            for bit in 0..8 {
                let mut other = one;
                other[at] ^= 1 << bit;
                assert_eq!(
                    V6_TCP.agree(&one, &other),
                    V6_TCP.same[at] & 1 << bit == 0,
                    "byte {at} bit {bit}"
                );
            }
        }
    }
}
