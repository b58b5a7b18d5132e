//! Messages between two daemons inside a native session: a plaintext whose first nibble is 0, which no IP version is.
//!
//! ```text
//! kind (1 byte, 0x01-0x0f) | zero (1) | value length (2, big-endian) | value | padding
//! ```
//! Padding makes a message as long as a path MTU probe needs. An unknown kind is ignored, so that later versions
//! can add some.

/// Bytes before the value.
const HEADER_LEN: usize = 4;
/// Bytes of an echo message.
pub const ECHO_LEN: usize = HEADER_LEN + 8;

const ECHO_REQUEST: u8 = 0x01;
const ECHO_REPLY: u8 = 0x02;
const GOODBYE: u8 = 0x03;

/// A message between two daemons.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Control {
    /// Asks for the same token back. The token means something to its sender only.
    EchoRequest(u64),
    /// The answer.
    EchoReply(u64),
    /// The sender is going down and will not answer until it comes back.
    Goodbye,
    /// Of a later version.
    Unknown(u8),
}

impl Control {
    /// Reads a plaintext; `None` when it is no control message.
    pub fn parse(plaintext: &[u8]) -> Option<Control> {
        let header: &[u8; HEADER_LEN] = plaintext.first_chunk()?;
        let value_len = usize::from(u16::from_be_bytes([header[2], header[3]]));
        if header[0] & 0xf0 != 0 || header[0] == 0 || header[1] != 0 {
            return None;
        }
        let value = plaintext.get(HEADER_LEN..HEADER_LEN + value_len)?;
        let token = || value.try_into().ok().map(u64::from_be_bytes);
        match header[0] {
            ECHO_REQUEST => Some(Control::EchoRequest(token()?)),
            ECHO_REPLY => Some(Control::EchoReply(token()?)),
            GOODBYE => Some(Control::Goodbye),
            kind => Some(Control::Unknown(kind)),
        }
    }

    /// How many bytes [`Control::write`] needs.
    pub fn encoded_len(&self) -> usize {
        match self {
            Control::EchoRequest(_) | Control::EchoReply(_) => ECHO_LEN,
            Control::Goodbye | Control::Unknown(_) => HEADER_LEN,
        }
    }

    /// Writes the message to the start of `out` and zeroes the rest of it.
    ///
    /// # Panics
    /// When `out` is shorter than [`Control::encoded_len`].
    pub fn write(&self, out: &mut [u8]) {
        let (kind, token) = match *self {
            Control::EchoRequest(token) => (ECHO_REQUEST, Some(token)),
            Control::EchoReply(token) => (ECHO_REPLY, Some(token)),
            Control::Goodbye => (GOODBYE, None),
            Control::Unknown(kind) => (kind, None),
        };
        out.fill(0);
        out[0] = kind;
        if let Some(token) = token {
            out[2..4].copy_from_slice(&8u16.to_be_bytes());
            out[HEADER_LEN..ECHO_LEN].copy_from_slice(&token.to_be_bytes());
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_is_written_is_read_back_with_any_padding(token: u64, padding in 0usize..1400) {
            for message in [Control::EchoRequest(token), Control::EchoReply(token), Control::Goodbye] {
                let mut bytes = vec![0xaa; message.encoded_len() + padding];
                message.write(&mut bytes);
                prop_assert_eq!(Control::parse(&bytes), Some(message));
            }
        }

        #[test]
        fn arbitrary_bytes_never_panic_and_ip_packets_are_no_control_messages(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            let parsed = Control::parse(&bytes);
            if bytes.first().is_none_or(|first| first >> 4 != 0) {
                prop_assert_eq!(parsed, None);
            }
        }
    }

    #[test]
    fn an_echo_without_a_whole_token_is_refused() {
        let mut bytes = [0; ECHO_LEN];
        Control::EchoRequest(1).write(&mut bytes);
        assert_eq!(Control::parse(&bytes[..ECHO_LEN - 1]), None);
        bytes[3] = 7;
        assert_eq!(Control::parse(&bytes), None);
    }
}
