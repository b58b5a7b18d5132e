//! UDP headers (RFC 768).

/// The protocol number of UDP.
pub const PROTOCOL: u8 = 17;
/// Bytes of a header.
pub const HEADER_LEN: usize = 8;
/// Where the length lies in the header.
pub const LENGTH_AT: usize = 4;
/// Where the checksum lies in the header.
pub const CHECKSUM_AT: usize = 6;

/// A UDP header and what follows it.
#[derive(Debug, Clone, Copy)]
pub struct Udp<'a>(&'a [u8]);

impl<'a> Udp<'a> {
    /// `None` unless `bytes` hold the whole header. The length field is not judged: see [`Udp::length`].
    #[inline]
    pub fn parse(bytes: &'a [u8]) -> Option<Udp<'a>> {
        (bytes.len() >= HEADER_LEN).then_some(Udp(bytes))
    }

    /// The source port.
    pub fn source_port(&self) -> u16 {
        u16::from_be_bytes([self.0[0], self.0[1]])
    }

    /// The destination port.
    pub fn destination_port(&self) -> u16 {
        u16::from_be_bytes([self.0[2], self.0[3]])
    }

    /// The length field: bytes of header and payload, as the sender says.
    #[inline]
    pub fn length(&self) -> usize {
        usize::from(u16::from_be_bytes([self.0[4], self.0[5]]))
    }

    /// The checksum field; 0 = none.
    #[inline]
    pub fn checksum(&self) -> u16 {
        u16::from_be_bytes([self.0[6], self.0[7]])
    }

    /// What follows the header, whatever the length field says.
    #[inline]
    pub fn payload(&self) -> &'a [u8] {
        &self.0[HEADER_LEN..]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_read_where_rfc_768_puts_them() {
        let bytes = [0x12, 0x34, 0x56, 0x78, 0, 11, 0xab, 0xcd, b'h', b'e', b'y'];
        let udp = Udp::parse(&bytes).unwrap();
        assert_eq!(
            (udp.source_port(), udp.destination_port(), udp.length()),
            (0x1234, 0x5678, 11)
        );
        assert_eq!((udp.checksum(), udp.payload()), (0xabcd, &b"hey"[..]));
        assert!(Udp::parse(&bytes[..7]).is_none());
    }
}
