//! `struct virtio_net_hdr` (include/uapi/linux/virtio_net.h): what a TUN with IFF_VNET_HDR puts before each packet.
//!
//! Integers are in the machine's byte order, which is the TUN driver's default (no TUNSETVNETLE/TUNSETVNETBE).

/// Bytes of the header.
pub const VNET_LEN: usize = 10;

/// `VIRTIO_NET_HDR_F_NEEDS_CSUM`: the checksum at `csum_start + csum_offset` covers only the pseudo-header.
pub const F_NEEDS_CSUM: u8 = 1;
/// `VIRTIO_NET_HDR_GSO_NONE`: a single packet.
pub const GSO_NONE: u8 = 0;
/// `VIRTIO_NET_HDR_GSO_TCPV4`: many IPv4 TCP segments (TSO).
pub const GSO_TCPV4: u8 = 1;
/// `VIRTIO_NET_HDR_GSO_TCPV6`: many IPv6 TCP segments (TSO).
pub const GSO_TCPV6: u8 = 4;
/// `VIRTIO_NET_HDR_GSO_UDP_L4`: many UDP datagrams over IPv4 or IPv6 (USO).
pub const GSO_UDP_L4: u8 = 5;
/// `VIRTIO_NET_HDR_GSO_ECN`: a flag beside the TCP types: the first segment carries CWR.
pub const GSO_ECN: u8 = 0x80;

/// The header's fields.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct VnetHeader {
    /// [`F_NEEDS_CSUM`] and flags that are hints only.
    pub flags: u8,
    /// One of the `GSO_` types, TCP ones perhaps with [`GSO_ECN`].
    pub gso_type: u8,
    /// Bytes of all headers. A hint on write; on read it is wrong for forwarded packets and so never used.
    pub hdr_len: u16,
    /// Payload bytes per segment.
    pub gso_size: u16,
    /// Where summing begins, in bytes from the IP header.
    pub csum_start: u16,
    /// Where the checksum belongs, in bytes from `csum_start`.
    pub csum_offset: u16,
}

impl VnetHeader {
    /// Splits `frame` into its header and the packet; `None` when it is too short for a header.
    #[inline]
    pub fn split(frame: &[u8]) -> Option<(VnetHeader, &[u8])> {
        let (bytes, packet) = frame.split_first_chunk::<VNET_LEN>()?;
        let word = |at: usize| u16::from_ne_bytes([bytes[at], bytes[at + 1]]);
        let header = VnetHeader {
            flags: bytes[0],
            gso_type: bytes[1],
            hdr_len: word(2),
            gso_size: word(4),
            csum_start: word(6),
            csum_offset: word(8),
        };
        Some((header, packet))
    }

    /// The header's bytes.
    #[inline]
    pub fn bytes(&self) -> [u8; VNET_LEN] {
        let mut bytes = [0; VNET_LEN];
        bytes[0] = self.flags;
        bytes[1] = self.gso_type;
        for (at, word) in [
            (2, self.hdr_len),
            (4, self.gso_size),
            (6, self.csum_start),
            (8, self.csum_offset),
        ] {
            bytes[at..at + 2].copy_from_slice(&word.to_ne_bytes());
        }
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_survives_its_bytes() {
        let header = VnetHeader {
            flags: F_NEEDS_CSUM,
            gso_type: GSO_TCPV4 | GSO_ECN,
            hdr_len: 52,
            gso_size: 1368,
            csum_start: 20,
            csum_offset: 16,
        };
        let frame = [&header.bytes()[..], b"packet"].concat();
        assert_eq!(VnetHeader::split(&frame), Some((header, &b"packet"[..])));
        assert_eq!(VnetHeader::split(&frame[..VNET_LEN - 1]), None);
    }
}
