//! What arrived: from the kernel's layouts to [`Received`].

use super::address::{ADDRESS_ROOM, SockAddr};
use super::cmsg::{self, CONTROL_ROOM};
use super::engine::Received;
use crate::proto::endpoint::Endpoint;
use std::ops::Range;

/// struct io_uring_recvmsg_out (linux/io_uring.h): namelen, controllen, payloadlen, flags.
const MULTISHOT_HEADER_LEN: usize = 16;
/// Where a multishot receive puts the payload: behind its header and the room for address and control data.
const MULTISHOT_PAYLOAD_AT: usize = MULTISHOT_HEADER_LEN + ADDRESS_ROOM + CONTROL_ROOM;

// Records begin 16 bytes into a datagram, and AEADs like aligned ones.
const _: () = assert!(MULTISHOT_PAYLOAD_AT.is_multiple_of(16));
const _: () = assert!(MULTISHOT_PAYLOAD_AT + 65_535 <= super::engine::BUFFER_BYTES);

/// Reads the result of recvmsg(2): none when it is not worth passing on: empty, without an address, or cut off by the
/// kernel (`MSG_TRUNC`, or `MSG_CTRUNC`, which may have taken the datagrams' size).
pub(super) fn recvmsg(address: &[u8], control: &[u8], payload_len: usize, flags: i32) -> Option<Received> {
    if payload_len == 0 || flags & (libc::MSG_TRUNC | libc::MSG_CTRUNC) != 0 {
        return None;
    }
    let remote = SockAddr::decode(address)?;
    let parsed = cmsg::parse(control);
    Some(Received {
        from: Endpoint {
            remote,
            local: parsed.local,
        },
        segment: parsed.segment.unwrap_or(payload_len),
        tos: parsed.tos,
        received_unix_ns: parsed.received_unix_ns,
    })
}

/// Reads what a multishot recvmsg (io_uring_prep_recvmsg_multishot(3)) wrote: `written` is all of it. Also where in it
/// the payload is. None as in [`recvmsg`].
pub(super) fn multishot(written: &[u8]) -> Option<(Received, Range<usize>)> {
    let field = |at: usize| Some(u32::from_ne_bytes(*written.get(at..)?.first_chunk()?));
    let (address_len, control_len) = (usize::try_from(field(0)?).ok()?, usize::try_from(field(4)?).ok()?);
    let flags = field(12)?.cast_signed();
    let address = written
        .get(MULTISHOT_HEADER_LEN..)?
        .get(..address_len.min(ADDRESS_ROOM))?;
    let control = written
        .get(MULTISHOT_HEADER_LEN + ADDRESS_ROOM..)?
        .get(..control_len.min(CONTROL_ROOM))?;
    let payload = MULTISHOT_PAYLOAD_AT..written.len();
    // payloadlen is what there was; what is here is what counts, and MSG_TRUNC says if they differ.
    let received = recvmsg(
        address,
        control,
        written.len().checked_sub(MULTISHOT_PAYLOAD_AT)?,
        flags,
    )?;
    Some((received, payload))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::address::Family;
    use proptest::prelude::*;

    fn written(flags: i32, payload: &[u8]) -> Vec<u8> {
        let address = SockAddr::encode(Family::Dual, "192.0.2.7:9".parse().unwrap()).unwrap();
        let mut bytes = Vec::new();
        for field in [address.bytes().len(), 0, payload.len()] {
            bytes.extend(u32::try_from(field).unwrap().to_ne_bytes());
        }
        bytes.extend(flags.to_ne_bytes());
        bytes.extend(address.bytes());
        bytes.resize(MULTISHOT_PAYLOAD_AT, 0);
        bytes.extend(payload);
        bytes
    }

    #[test]
    fn a_multishot_receive_is_read() {
        let bytes = written(0, b"payload");
        let (received, payload) = multishot(&bytes).unwrap();
        assert_eq!(&bytes[payload], b"payload");
        let from = Endpoint {
            remote: "192.0.2.7:9".parse().unwrap(),
            local: None,
        };
        assert_eq!(
            received,
            Received {
                from,
                segment: 7,
                tos: 0,
                received_unix_ns: 0
            }
        );
    }

    #[test]
    fn what_is_cut_off_or_empty_is_not_passed_on() {
        assert_eq!(multishot(&written(libc::MSG_TRUNC, b"payload")), None);
        assert_eq!(multishot(&written(libc::MSG_CTRUNC, b"payload")), None);
        assert_eq!(multishot(&written(0, b"")), None);
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_are_read_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            if let Some((received, payload)) = multishot(&bytes) {
                prop_assert!(received.segment > 0 && payload.end <= bytes.len() && !payload.is_empty());
            }
        }
    }
}
