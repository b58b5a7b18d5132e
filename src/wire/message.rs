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
/// Flag bit 1 of a native data message: it left from its lane's own port, where nobody listens. Its source says nothing
/// about where its sender is to be reached.
pub const FLAG_LANE_PORT: u8 = 2;

/// Which of an end's `workers` workers opens what is addressed to its receiver index `receiver`: counted from the one that the
/// second byte names, by the lane, which is the low byte. Each end chooses its indices, so this is nothing that two ends agree on.
///
/// # Panics
/// When `workers` is 0.
#[inline]
pub fn owner(receiver: u32, workers: u8) -> u8 {
    let [lane, first, ..] = receiver.to_le_bytes();
    ((u16::from(lane) + u16::from(first)) % u16::from(workers)) as u8
}

/// Bytes of an X25519 public key.
pub const PUBLIC_KEY_LEN: usize = 32;
/// Bytes of a TAI64N timestamp.
pub const TIMESTAMP_LEN: usize = 12;
/// Bytes of mac1 and of mac2.
pub const MAC_LEN: usize = 16;
/// Bytes of a cookie.
pub const COOKIE_LEN: usize = 16;
/// Bytes of a cookie reply's XChaCha20Poly1305 nonce.
pub const COOKIE_NONCE_LEN: usize = 24;

/// Plaintext of the payload in a native initiation: timestamp, version, 4 feature bytes, lane count.
pub const NATIVE_INITIATION_PAYLOAD_LEN: usize = TIMESTAMP_LEN + NATIVE_RESPONSE_PAYLOAD_LEN;
/// Plaintext of the payload in a native response: version, 4 feature bytes, lane count.
pub const NATIVE_RESPONSE_PAYLOAD_LEN: usize = 1 + 4 + 1;

/// Type, 3 zero bytes and the sender's index, before an initiation's Noise message.
const INITIATION_HEAD_LEN: usize = 8;
/// Type, 3 zero bytes and both indices, before a response's Noise message.
const RESPONSE_HEAD_LEN: usize = 12;
/// An initiation's Noise message less the plaintext of its payload: ephemeral key, sealed static key, tag.
const INITIATION_NOISE_LEN: usize = PUBLIC_KEY_LEN + PUBLIC_KEY_LEN + TAG_LEN + TAG_LEN;
/// A response's Noise message less the plaintext of its payload: ephemeral key, tag.
const RESPONSE_NOISE_LEN: usize = PUBLIC_KEY_LEN + TAG_LEN;
/// Both MACs, which end an initiation and a response.
const MACS_LEN: usize = 2 * MAC_LEN;

/// Bytes of a WireGuard initiation.
pub const WG_INITIATION_LEN: usize = INITIATION_HEAD_LEN + INITIATION_NOISE_LEN + TIMESTAMP_LEN + MACS_LEN;
/// Bytes of a WireGuard response.
pub const WG_RESPONSE_LEN: usize = RESPONSE_HEAD_LEN + RESPONSE_NOISE_LEN + MACS_LEN;
/// Bytes of a native initiation.
pub const NATIVE_INITIATION_LEN: usize =
    INITIATION_HEAD_LEN + INITIATION_NOISE_LEN + NATIVE_INITIATION_PAYLOAD_LEN + MACS_LEN;
/// Bytes of a native response.
pub const NATIVE_RESPONSE_LEN: usize = RESPONSE_HEAD_LEN + RESPONSE_NOISE_LEN + NATIVE_RESPONSE_PAYLOAD_LEN + MACS_LEN;
/// Bytes of a cookie reply of either suite: type, 3 zero bytes, receiver index, nonce, sealed cookie.
pub const COOKIE_REPLY_LEN: usize = 8 + COOKIE_NONCE_LEN + COOKIE_LEN + TAG_LEN;

// The sizes of the kernel's struct message_handshake_initiation, _response, _cookie (drivers/net/wireguard/messages.h).
const _: () = assert!(WG_INITIATION_LEN == 148 && WG_RESPONSE_LEN == 92 && COOKIE_REPLY_LEN == 64);
const _: () = assert!(NATIVE_INITIATION_LEN == 154 && NATIVE_RESPONSE_LEN == 98);
const _: () = assert!(DATA_OVERHEAD == 32);
// A cookie reply must not be worth reflecting: it is shorter than anything that causes one.
const _: () = assert!(COOKIE_REPLY_LEN < WG_RESPONSE_LEN);

/// Everything that is not data: the messages of handshakes, of both suites.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HandshakeMessage<'a> {
    /// The native suite's message rather than WireGuard's.
    pub native: bool,
    /// What it is.
    pub body: Body<'a>,
}

/// The fields of a handshake message after its type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Body<'a> {
    /// The first message, from the initiator.
    Initiation {
        /// The index by which the initiator wants to be addressed.
        sender: u32,
        /// The Noise message.
        noise: &'a [u8],
        /// The authentication of the whole.
        macs: Macs<'a>,
    },
    /// The second message, from the responder.
    Response {
        /// The index by which the responder wants to be addressed.
        sender: u32,
        /// The sender index of the initiation that this answers.
        receiver: u32,
        /// The Noise message.
        noise: &'a [u8],
        /// The authentication of the whole.
        macs: Macs<'a>,
    },
    /// The answer to either of them by an end that is under load.
    CookieReply {
        /// The sender index of the message that this answers.
        receiver: u32,
        /// The nonce of the sealed cookie.
        nonce: &'a [u8; COOKIE_NONCE_LEN],
        /// The sealed cookie and its tag.
        sealed: &'a [u8; COOKIE_LEN + TAG_LEN],
    },
}

/// The two MACs at the end of a message, and what they authenticate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Macs<'a> {
    /// All bytes before mac1.
    pub before_mac1: &'a [u8],
    /// Shows that the sender knows the receiver's public key.
    pub mac1: &'a [u8; MAC_LEN],
    /// All bytes before mac2.
    pub before_mac2: &'a [u8],
    /// Shows that the sender owns its address; all zero from a sender without a cookie.
    pub mac2: &'a [u8; MAC_LEN],
}

impl<'a> HandshakeMessage<'a> {
    /// Reads a handshake message; `None` when `datagram` is none or its size is not exactly its type's.
    pub fn parse(datagram: &'a [u8]) -> Option<HandshakeMessage<'a>> {
        let (kind, rest) = datagram.split_first()?;
        if *rest.first_chunk()? != [0; 3] {
            return None;
        }
        let native = kind & NATIVE_BIT != 0;
        let (initiation_len, response_len) = match native {
            true => (NATIVE_INITIATION_LEN, NATIVE_RESPONSE_LEN),
            false => (WG_INITIATION_LEN, WG_RESPONSE_LEN),
        };
        let body = match kind & !NATIVE_BIT {
            WG_INITIATION if datagram.len() == initiation_len => {
                let (noise, macs) = split_macs(datagram, INITIATION_HEAD_LEN)?;
                Body::Initiation {
                    sender: u32_at(datagram, 4)?,
                    noise,
                    macs,
                }
            }
            WG_RESPONSE if datagram.len() == response_len => {
                let (noise, macs) = split_macs(datagram, RESPONSE_HEAD_LEN)?;
                Body::Response {
                    sender: u32_at(datagram, 4)?,
                    receiver: u32_at(datagram, 8)?,
                    noise,
                    macs,
                }
            }
            WG_COOKIE_REPLY if datagram.len() == COOKIE_REPLY_LEN => {
                let (nonce, sealed) = datagram.get(8..)?.split_first_chunk()?;
                Body::CookieReply {
                    receiver: u32_at(datagram, 4)?,
                    nonce,
                    sealed: sealed.first_chunk()?,
                }
            }
            _ => return None,
        };
        Some(HandshakeMessage { native, body })
    }
}

/// The bytes of an initiation whose MACs are left to be appended.
pub fn initiation_without_macs(native: bool, sender: u32, noise: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(INITIATION_HEAD_LEN + noise.len() + MACS_LEN);
    bytes.extend_from_slice(&[kind(native, WG_INITIATION), 0, 0, 0]);
    bytes.extend_from_slice(&sender.to_le_bytes());
    bytes.extend_from_slice(noise);
    bytes
}

/// The bytes of a response whose MACs are left to be appended.
pub fn response_without_macs(native: bool, sender: u32, receiver: u32, noise: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(RESPONSE_HEAD_LEN + noise.len() + MACS_LEN);
    bytes.extend_from_slice(&[kind(native, WG_RESPONSE), 0, 0, 0]);
    bytes.extend_from_slice(&sender.to_le_bytes());
    bytes.extend_from_slice(&receiver.to_le_bytes());
    bytes.extend_from_slice(noise);
    bytes
}

/// The bytes of a cookie reply.
pub fn cookie_reply(
    native: bool,
    receiver: u32,
    nonce: &[u8; COOKIE_NONCE_LEN],
    sealed: &[u8; COOKIE_LEN + TAG_LEN],
) -> [u8; COOKIE_REPLY_LEN] {
    let mut bytes = [0; COOKIE_REPLY_LEN];
    bytes[0] = kind(native, WG_COOKIE_REPLY);
    bytes[4..8].copy_from_slice(&receiver.to_le_bytes());
    bytes[8..8 + COOKIE_NONCE_LEN].copy_from_slice(nonce);
    bytes[8 + COOKIE_NONCE_LEN..].copy_from_slice(sealed);
    bytes
}

fn kind(native: bool, wg_kind: u8) -> u8 {
    if native { NATIVE_BIT | wg_kind } else { wg_kind }
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

/// The Noise message after `head` bytes, and the MACs after it.
fn split_macs(datagram: &[u8], head: usize) -> Option<(&[u8], Macs<'_>)> {
    let (before_mac2, mac2) = datagram.split_last_chunk()?;
    let (before_mac1, mac1) = before_mac2.split_last_chunk()?;
    Some((
        before_mac1.get(head..)?,
        Macs {
            before_mac1,
            mac1,
            before_mac2,
            mac2,
        },
    ))
}

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
            NATIVE_DATA => FLAG_PARTIAL_CHECKSUM | FLAG_LANE_PORT,
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

#[cfg(test)]
mod tests {
    use super::*;

    /// An initiation and a response with recognisable bytes, and a cookie reply.
    fn messages(native: bool) -> [Vec<u8>; 3] {
        let extra = if native { NATIVE_RESPONSE_PAYLOAD_LEN } else { 0 };
        let initiation_noise = vec![0x11; INITIATION_NOISE_LEN + TIMESTAMP_LEN + extra];
        let mut initiation = initiation_without_macs(native, 0x0403_0201, &initiation_noise);
        let mut response = response_without_macs(native, 1, 2, &vec![0x22; RESPONSE_NOISE_LEN + extra]);
        for message in [&mut initiation, &mut response] {
            message.extend_from_slice(&[0xa1; MAC_LEN]);
            message.extend_from_slice(&[0xa2; MAC_LEN]);
        }
        [
            initiation,
            response,
            cookie_reply(native, 7, &[0x33; 24], &[0x44; 32]).to_vec(),
        ]
    }

    #[test]
    fn handshake_messages_parse_into_the_fields_they_were_built_from() {
        for native in [false, true] {
            let [initiation, response, cookie_reply] = messages(native);
            assert_eq!(initiation[4..8], [1, 2, 3, 4]);
            let parsed = HandshakeMessage::parse(&initiation).unwrap();
            assert_eq!(parsed.native, native);
            let Body::Initiation {
                sender: 0x0403_0201,
                noise,
                macs,
            } = parsed.body
            else {
                panic!("{parsed:?}")
            };
            assert!(noise.iter().all(|&byte| byte == 0x11));
            assert_eq!((macs.mac1, macs.mac2), (&[0xa1; 16], &[0xa2; 16]));
            assert_eq!(macs.before_mac1.len() + 32, initiation.len());
            assert_eq!(macs.before_mac2, &initiation[..initiation.len() - 16]);

            let parsed = HandshakeMessage::parse(&response).unwrap();
            let Body::Response {
                sender: 1,
                receiver: 2,
                noise,
                ..
            } = parsed.body
            else {
                panic!("{parsed:?}")
            };
            assert!(noise.iter().all(|&byte| byte == 0x22));

            let parsed = HandshakeMessage::parse(&cookie_reply).unwrap();
            assert_eq!(
                parsed.body,
                Body::CookieReply {
                    receiver: 7,
                    nonce: &[0x33; 24],
                    sealed: &[0x44; 32]
                }
            );
        }
    }

    #[test]
    fn other_sizes_types_and_reserved_bytes_are_no_handshake_messages() {
        for native in [false, true] {
            for message in messages(native) {
                for len in 0..message.len() {
                    assert_eq!(HandshakeMessage::parse(&message[..len]), None);
                }
                assert_eq!(HandshakeMessage::parse(&[message.as_slice(), &[0]].concat()), None);
                for reserved in 1..4 {
                    let mut message = message.clone();
                    message[reserved] = 1;
                    assert_eq!(HandshakeMessage::parse(&message), None);
                }
                for kind in (0..=u8::MAX).filter(|kind| !matches!(kind & !NATIVE_BIT, 1..=3)) {
                    let mut message = message.clone();
                    message[0] = kind;
                    assert_eq!(HandshakeMessage::parse(&message), None);
                }
            }
        }
    }

    #[test]
    fn a_data_header_is_read_as_it_was_written() {
        let header = DataHeader {
            kind: NATIVE_DATA,
            flags: FLAG_PARTIAL_CHECKSUM,
            receiver: 0x0a0b_0c0d,
            counter: 1 << 40,
        };
        let mut datagram = header.bytes().to_vec();
        assert_eq!(DataHeader::parse(&datagram), None, "no room for a tag");
        datagram.extend_from_slice(&[0; TAG_LEN]);
        assert_eq!(DataHeader::parse(&datagram), Some(header));
        datagram[0] = WG_DATA;
        assert_eq!(DataHeader::parse(&datagram), None, "WireGuard has no flags");
    }
}
