//! IPv4 (RFC 791) and IPv6 (RFC 8200) packets.

use super::checksum::Sum;
use super::{get_u16, tcp, udp};
use std::net::IpAddr;

/// Bytes of an IPv4 header without options.
pub const V4_HEADER_LEN: usize = 20;
/// Bytes of an IPv6 header without extension headers.
pub const V6_HEADER_LEN: usize = 40;

/// A whole IPv4 packet: its header is there and so is everything that the total length promises.
#[derive(Debug, Clone, Copy)]
pub struct Ipv4<'a>(&'a [u8]);

impl<'a> Ipv4<'a> {
    /// `None` unless `bytes` begin with a whole IPv4 packet; bytes after its end are left out of the view.
    #[inline]
    pub fn parse(bytes: &'a [u8]) -> Option<Ipv4<'a>> {
        let header: &[u8; V4_HEADER_LEN] = bytes.first_chunk()?;
        let header_len = usize::from(header[0] & 15) * 4;
        let total_len = usize::from(u16::from_be_bytes([header[2], header[3]]));
        if header[0] >> 4 != 4 || header_len < V4_HEADER_LEN || total_len < header_len {
            return None;
        }
        bytes.get(..total_len).map(Ipv4)
    }

    /// The packet.
    #[inline]
    pub fn bytes(&self) -> &'a [u8] {
        self.0
    }

    /// Bytes of the header, options included.
    #[inline]
    pub fn header_len(&self) -> usize {
        usize::from(self.0[0] & 15) * 4
    }

    /// DSCP and ECN.
    #[inline]
    pub fn traffic_class(&self) -> u8 {
        self.0[1]
    }

    /// The identification field.
    #[inline]
    pub fn id(&self) -> u16 {
        u16::from_be_bytes([self.0[4], self.0[5]])
    }

    /// Whether routers must not fragment the packet.
    #[inline]
    pub fn dont_fragment(&self) -> bool {
        self.0[6] & 0x40 != 0
    }

    /// Whether, and where from, the packet is part of a larger one.
    #[inline]
    pub fn fragment(&self) -> Fragment {
        Fragment::new(self.0[6] & 0x20 != 0, self.0[6] & 0x1f != 0 || self.0[7] != 0)
    }

    /// The protocol of the payload.
    #[inline]
    pub fn protocol(&self) -> u8 {
        self.0[9]
    }

    /// The sum of the header but for total length, ID and checksum: the words that differ from segment to segment.
    #[inline]
    pub fn constant_sum(&self) -> Sum {
        let header = &self.0[..self.header_len()];
        Sum::of(header)
            .without(get_u16(header, 2))
            .without(get_u16(header, 4))
            .without(get_u16(header, 10))
    }

    /// The source address.
    #[inline]
    pub fn source(&self) -> [u8; 4] {
        [self.0[12], self.0[13], self.0[14], self.0[15]]
    }

    /// The destination address.
    #[inline]
    pub fn destination(&self) -> [u8; 4] {
        [self.0[16], self.0[17], self.0[18], self.0[19]]
    }
}

/// A whole IPv6 packet: its header is there and so is everything that the payload length promises.
#[derive(Debug, Clone, Copy)]
pub struct Ipv6<'a>(&'a [u8]);

impl<'a> Ipv6<'a> {
    /// `None` unless `bytes` begin with a whole IPv6 packet; bytes after its end are left out of the view. Jumbograms
    /// (RFC 2675) are not supported.
    #[inline]
    pub fn parse(bytes: &'a [u8]) -> Option<Ipv6<'a>> {
        let header: &[u8; V6_HEADER_LEN] = bytes.first_chunk()?;
        let payload_len = usize::from(u16::from_be_bytes([header[4], header[5]]));
        if header[0] >> 4 != 6 {
            return None;
        }
        bytes.get(..V6_HEADER_LEN + payload_len).map(Ipv6)
    }

    /// The packet.
    #[inline]
    pub fn bytes(&self) -> &'a [u8] {
        self.0
    }

    /// DSCP and ECN.
    #[inline]
    pub fn traffic_class(&self) -> u8 {
        self.0[0] << 4 | self.0[1] >> 4
    }

    /// The type of the header after this one.
    #[inline]
    pub fn next_header(&self) -> u8 {
        self.0[6]
    }

    /// The source address.
    #[inline]
    pub fn source(&self) -> [u8; 16] {
        self.0[8..24].try_into().expect("16 bytes are 16 bytes")
    }

    /// The destination address.
    #[inline]
    pub fn destination(&self) -> [u8; 16] {
        self.0[24..40].try_into().expect("16 bytes are 16 bytes")
    }

    /// Walks the extension headers that may stand before TCP or UDP (RFC 8200, section 4): hop-by-hop options, routing,
    /// fragment and destination options. Stops at the first header that is anything else or is cut off.
    fn upper(&self) -> Upper {
        let (mut protocol, mut start, mut fragment) = (self.next_header(), V6_HEADER_LEN, Fragment::Whole);
        while let (0 | 43 | 44 | 60, Some(header)) = (protocol, self.0.get(start..start + 8)) {
            let len = match protocol {
                44 => {
                    let offset_and_more = u16::from_be_bytes([header[2], header[3]]);
                    fragment = Fragment::new(offset_and_more & 1 != 0, offset_and_more >> 3 != 0);
                    8
                }
                _ => (usize::from(header[1]) + 1) * 8,
            };
            if start + len > self.0.len() {
                break;
            }
            (protocol, start) = (header[0], start + len);
            if fragment == Fragment::Later {
                break; // what follows is payload from the middle of a packet, not a header
            }
        }
        Upper {
            protocol,
            start,
            fragment,
        }
    }
}

/// A whole IP packet of either version.
#[derive(Debug, Clone, Copy)]
pub enum Ip<'a> {
    /// IPv4.
    V4(Ipv4<'a>),
    /// IPv6.
    V6(Ipv6<'a>),
}

impl<'a> Ip<'a> {
    /// `None` unless `bytes` begin with a whole IP packet; bytes after its end (padding) are left out of the view.
    #[inline]
    pub fn parse(bytes: &'a [u8]) -> Option<Ip<'a>> {
        match bytes.first()? >> 4 {
            4 => Ipv4::parse(bytes).map(Ip::V4),
            6 => Ipv6::parse(bytes).map(Ip::V6),
            _ => None,
        }
    }

    /// The packet, without what followed it.
    #[inline]
    pub fn bytes(&self) -> &'a [u8] {
        match self {
            Ip::V4(packet) => packet.0,
            Ip::V6(packet) => packet.0,
        }
    }

    /// The source address.
    #[inline]
    pub fn source(&self) -> IpAddr {
        match self {
            Ip::V4(packet) => packet.source().into(),
            Ip::V6(packet) => packet.source().into(),
        }
    }

    /// The destination address.
    #[inline]
    pub fn destination(&self) -> IpAddr {
        match self {
            Ip::V4(packet) => packet.destination().into(),
            Ip::V6(packet) => packet.destination().into(),
        }
    }

    /// DSCP and ECN: the ToS byte or the traffic class.
    #[inline]
    pub fn traffic_class(&self) -> u8 {
        match self {
            Ip::V4(packet) => packet.traffic_class(),
            Ip::V6(packet) => packet.traffic_class(),
        }
    }

    /// What the packet carries, and where.
    #[inline]
    pub fn upper(&self) -> Upper {
        match self {
            Ip::V4(packet) => Upper {
                protocol: packet.protocol(),
                start: packet.header_len(),
                fragment: packet.fragment(),
            },
            Ip::V6(packet) => packet.upper(),
        }
    }

    /// Where the checksum of an unfragmented TCP or UDP packet lies: (start of its header, offset of the field in it), both
    /// in bytes, as `csum_start` and `csum_offset` of a virtio_net_hdr. `None` when there is no such field.
    #[inline]
    pub fn checksum_field(&self) -> Option<(usize, usize)> {
        let upper = self.upper();
        let (min, offset) = match upper.protocol {
            tcp::PROTOCOL => (tcp::HEADER_LEN, tcp::CHECKSUM_AT),
            udp::PROTOCOL => (udp::HEADER_LEN, udp::CHECKSUM_AT),
            _ => return None,
        };
        let whole = upper.fragment == Fragment::Whole && self.bytes().len() >= upper.start + min;
        whole.then_some((upper.start, offset))
    }
}

/// What follows the IP header and its extension headers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Upper {
    /// The protocol number.
    pub protocol: u8,
    /// Where it begins, in bytes from the start of the IP header; at most the packet's length.
    pub start: usize,
    /// Whether the packet is a fragment.
    pub fragment: Fragment,
}

/// Which part of a fragmented packet a packet is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fragment {
    /// Not a fragment.
    Whole,
    /// The first one: upper-layer headers are there, the payload's end is not.
    First,
    /// A later one: no upper-layer header.
    Later,
}

impl Fragment {
    #[inline]
    fn new(more: bool, offset: bool) -> Fragment {
        match (more, offset) {
            (_, true) => Fragment::Later,
            (true, false) => Fragment::First,
            (false, false) => Fragment::Whole,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn v4(change: impl Fn(&mut Vec<u8>)) -> Vec<u8> {
        let mut packet = vec![0; 48];
        packet[..10].copy_from_slice(&[0x45, 0xb8, 0, 48, 0x12, 0x34, 0x40, 0, 64, 6]);
        packet[12..20].copy_from_slice(&[10, 0, 0, 1, 10, 0, 0, 2]);
        change(&mut packet);
        packet
    }

    fn v6(next_header: u8, payload: &[u8]) -> Vec<u8> {
        let mut packet = vec![0x6a, 0xb0, 0, 0, 0, payload.len() as u8, next_header, 64];
        packet.extend([[0xfd; 16], [0xfe; 16]].concat());
        packet.extend(payload);
        packet
    }

    #[test]
    fn fields_are_read_where_rfc_791_puts_them() {
        let packet = v4(|_| ());
        let ip = Ipv4::parse(&packet).unwrap();
        assert_eq!(
            (ip.header_len(), ip.traffic_class(), ip.id(), ip.protocol()),
            (20, 0xb8, 0x1234, 6)
        );
        assert_eq!((ip.source(), ip.destination()), ([10, 0, 0, 1], [10, 0, 0, 2]));
        assert!(ip.dont_fragment());
        assert_eq!(Ip::V4(ip).checksum_field(), Some((20, 16)));
    }

    #[test]
    fn padding_after_the_packet_is_left_out_and_a_cut_packet_is_refused() {
        let packet = v4(|packet| packet.extend([0; 5]));
        assert_eq!(Ip::parse(&packet).unwrap().bytes().len(), 48);
        assert!(Ip::parse(&packet[..47]).is_none());
        let packet = v6(59, &[1, 2, 3]);
        assert_eq!(
            Ip::parse(&[&packet[..], &[0; 13]].concat()).unwrap().bytes(),
            &packet[..]
        );
        assert!(Ip::parse(&packet[..42]).is_none());
        assert!(Ip::parse(&[]).is_none());
    }

    #[test]
    fn impossible_ipv4_lengths_are_refused() {
        assert!(Ip::parse(&v4(|packet| packet[0] = 0x44)).is_none());
        assert!(Ip::parse(&v4(|packet| packet[3] = 19)).is_none());
        assert!(Ip::parse(&v4(|packet| packet[3] = 49)).is_none());
        assert!(Ip::parse(&v4(|packet| packet[0] = 0x55)).is_none());
    }

    #[test]
    fn fragments_have_no_checksum_field() {
        for (flags, offset, fragment) in [
            (0x20, 0, Fragment::First),
            (0, 1, Fragment::Later),
            (1, 0, Fragment::Later),
        ] {
            let packet = v4(|packet| packet[6..8].copy_from_slice(&[flags, offset]));
            let ip = Ip::parse(&packet).unwrap();
            assert_eq!(ip.upper().fragment, fragment);
            assert_eq!(ip.checksum_field(), None);
        }
    }

    #[test]
    fn udp_is_found_behind_extension_headers() {
        let hop_by_hop = [60, 0, 1, 4, 0, 0, 0, 0];
        let destination = [17, 1, 1, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        let udp = [0; 8];
        let packet = v6(0, &[&hop_by_hop[..], &destination, &udp].concat());
        let ip = Ip::parse(&packet).unwrap();
        assert_eq!(
            ip.upper(),
            Upper {
                protocol: 17,
                start: 64,
                fragment: Fragment::Whole
            }
        );
        assert_eq!(ip.checksum_field(), Some((64, 6)));
        assert_eq!(ip.traffic_class(), 0xab);
        assert_eq!(Ip::parse(&v6(0, &hop_by_hop)).unwrap().checksum_field(), None);
    }

    #[test]
    fn a_later_ipv6_fragment_ends_the_walk() {
        let upper = |fragment: [u8; 8]| {
            let packet = v6(44, &[&fragment[..], &[0; 24]].concat());
            Ip::parse(&packet).unwrap().upper()
        };
        assert_eq!(
            upper([17, 0, 0, 1, 0, 0, 0, 7]),
            Upper {
                protocol: 17,
                start: 48,
                fragment: Fragment::First
            }
        );
        // The payload of this one looks like a hop-by-hop header.
        assert_eq!(
            upper([0, 0, 0, 8, 0, 0, 0, 7]),
            Upper {
                protocol: 0,
                start: 48,
                fragment: Fragment::Later
            }
        );
        // An atomic fragment (RFC 6946) is a whole packet.
        assert_eq!(upper([17, 0, 0, 0, 0, 0, 0, 7]).fragment, Fragment::Whole);
    }
}
