//! Message layouts of both suites. All integers are little-endian unless said otherwise.
//!
//! The WireGuard layouts are those of the WireGuard paper, section 5.4; the native suite uses the same ones with
//! the types 0x81-0x84 and gives the three reserved bytes of data messages a meaning.

/// Bytes before the ciphertext of a data message: type, flags, 2 zero bytes, receiver index, 64-bit counter.
pub const DATA_HEADER_LEN: usize = 16;
/// Bytes of an authentication tag (Poly1305 and GCM alike).
pub const TAG_LEN: usize = 16;
/// What a data message adds to its plaintext.
pub const DATA_OVERHEAD: usize = DATA_HEADER_LEN + TAG_LEN;

/// WireGuard message types (WireGuard paper, sections 5.4.2-5.4.7).
pub const WG_INITIATION: u8 = 1;
/// WireGuard handshake response.
pub const WG_RESPONSE: u8 = 2;
/// WireGuard cookie reply.
pub const WG_COOKIE_REPLY: u8 = 3;
/// WireGuard transport data.
pub const WG_DATA: u8 = 4;
/// The native suite's types are WireGuard's with this bit set.
pub const NATIVE_BIT: u8 = 0x80;
/// Native transport data.
pub const NATIVE_DATA: u8 = NATIVE_BIT | WG_DATA;

/// Flag bit 0 of a native data message: the inner TCP or UDP checksum field holds only the pseudo-header sum.
pub const FLAG_PARTIAL_CHECKSUM: u8 = 1;

/// The header of a data message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DataHeader {
    /// [`WG_DATA`] or [`NATIVE_DATA`].
    pub kind: u8,
    /// Native flags; 0 in the WireGuard suite.
    pub flags: u8,
    /// The receiver's index: 24 random bits above 8 lane bits.
    pub receiver: u32,
    /// The record's counter.
    pub counter: u64,
}

impl DataHeader {
    /// Reads the header of a data message of either suite; `None` when `datagram` is too short for a header and a
    /// tag, is of another type, or has a reserved bit set.
    pub fn parse(datagram: &[u8]) -> Option<DataHeader> {
        let header: &[u8; DATA_HEADER_LEN] = datagram.first_chunk()?;
        let known_flags = match header[0] {
            WG_DATA => 0,
            NATIVE_DATA => FLAG_PARTIAL_CHECKSUM,
            _ => return None,
        };
        if datagram.len() < DATA_OVERHEAD || header[1] & !known_flags != 0 || header[2..4] != [0, 0] {
            return None;
        }
        Some(DataHeader {
            kind: header[0],
            flags: header[1],
            receiver: u32::from_le_bytes([header[4], header[5], header[6], header[7]]),
            counter: u64::from_le_bytes([
                header[8], header[9], header[10], header[11], header[12], header[13], header[14], header[15],
            ]),
        })
    }

    /// The bytes of this header.
    pub fn bytes(&self) -> [u8; DATA_HEADER_LEN] {
        let mut bytes = [0; DATA_HEADER_LEN];
        bytes[0] = self.kind;
        bytes[1] = self.flags;
        bytes[4..8].copy_from_slice(&self.receiver.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.counter.to_le_bytes());
        bytes
    }
}
