//! TCP headers (RFC 9293, section 3.1).

/// The protocol number of TCP.
pub const PROTOCOL: u8 = 6;
/// Bytes of a header without options.
pub const HEADER_LEN: usize = 20;
/// Bytes of the longest header.
pub const HEADER_LEN_MAX: usize = 60;
/// Where the sequence number lies in the header.
pub const SEQ_AT: usize = 4;
/// Where the flags lie in the header.
pub const FLAGS_AT: usize = 13;
/// Where the checksum lies in the header.
pub const CHECKSUM_AT: usize = 16;

/// No more data from the sender.
pub const FIN: u8 = 0x01;
/// Synchronise sequence numbers.
pub const SYN: u8 = 0x02;
/// Reset the connection.
pub const RST: u8 = 0x04;
/// Hand the data to the application now.
pub const PSH: u8 = 0x08;
/// The acknowledgement number counts.
pub const ACK: u8 = 0x10;
/// The urgent pointer counts.
pub const URG: u8 = 0x20;
/// Congestion was experienced (RFC 3168).
pub const ECE: u8 = 0x40;
/// The congestion window was reduced (RFC 3168).
pub const CWR: u8 = 0x80;

/// A TCP header and what follows it.
#[derive(Debug, Clone, Copy)]
pub struct Tcp<'a>(&'a [u8]);

impl<'a> Tcp<'a> {
    /// `None` unless `bytes` hold the whole header, options included.
    #[inline]
    pub fn parse(bytes: &'a [u8]) -> Option<Tcp<'a>> {
        let header_len = usize::from(*bytes.get(12)? >> 4) * 4;
        (header_len >= HEADER_LEN && header_len <= bytes.len()).then_some(Tcp(bytes))
    }

    /// Bytes of the header, options included.
    #[inline]
    pub fn header_len(&self) -> usize {
        usize::from(self.0[12] >> 4) * 4
    }

    /// The source port.
    pub fn source_port(&self) -> u16 {
        u16::from_be_bytes([self.0[0], self.0[1]])
    }

    /// The destination port.
    pub fn destination_port(&self) -> u16 {
        u16::from_be_bytes([self.0[2], self.0[3]])
    }

    /// The sequence number of the first payload byte.
    #[inline]
    pub fn seq(&self) -> u32 {
        u32::from_be_bytes([self.0[4], self.0[5], self.0[6], self.0[7]])
    }

    /// The flags [`FIN`] to [`CWR`].
    #[inline]
    pub fn flags(&self) -> u8 {
        self.0[FLAGS_AT]
    }

    /// The checksum field.
    #[inline]
    pub fn checksum(&self) -> u16 {
        u16::from_be_bytes([self.0[16], self.0[17]])
    }

    /// What follows the header.
    #[inline]
    pub fn payload(&self) -> &'a [u8] {
        &self.0[self.header_len()..]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_read_where_rfc_9293_puts_them() {
        let mut bytes = [0; 30];
        bytes[..4].copy_from_slice(&[0x12, 0x34, 0x56, 0x78]);
        bytes[4..8].copy_from_slice(&0xdead_beef_u32.to_be_bytes());
        bytes[12] = 6 << 4;
        bytes[13] = ACK | PSH;
        bytes[16..18].copy_from_slice(&[0xab, 0xcd]);
        bytes[24..].copy_from_slice(b"hello!");
        let tcp = Tcp::parse(&bytes).unwrap();
        assert_eq!(
            (tcp.source_port(), tcp.destination_port(), tcp.seq()),
            (0x1234, 0x5678, 0xdead_beef)
        );
        assert_eq!(
            (tcp.flags(), tcp.checksum(), tcp.payload()),
            (ACK | PSH, 0xabcd, &b"hello!"[..])
        );
    }

    #[test]
    fn a_header_that_is_cut_or_claims_too_little_is_refused() {
        let mut bytes = [0; 24];
        bytes[12] = 6 << 4;
        assert!(Tcp::parse(&bytes).is_some());
        assert!(Tcp::parse(&bytes[..23]).is_none());
        assert!(Tcp::parse(&bytes[..12]).is_none());
        bytes[12] = 4 << 4;
        assert!(Tcp::parse(&bytes).is_none());
    }
}
