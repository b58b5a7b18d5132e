//! Handshake messages of both suites by one code path: Noise messages with their payloads, in their envelopes.
//!
//! The initiation's payload is a timestamp, to which the native suite adds what this end is: protocol version, feature
//! bits, lane count. The native response's payload is the responder's part of that; WireGuard's is empty.
#![forbid(unsafe_code)]

use zeroize::Zeroizing;

use super::noise::{Initiator, Means, NoiseError, Payload, Responder, SplitKeys};
use super::suite::Suite;
use super::tai64n::Tai64n;
use crate::wire::message::{
    NATIVE_RESPONSE_PAYLOAD_LEN, TIMESTAMP_LEN, initiation_without_macs, response_without_macs,
};

/// The native protocol's version. A responder answers with the lower one of both ends'.
const VERSION: u8 = 1;
/// Optional features that this end speaks; both ends use what both announce. None are defined so far.
const FEATURES: u32 = 0;

/// An initiation that waits for its response.
pub(super) struct Initiation {
    noise: Initiator,
    suite: Suite,
}

/// An initiation that was read and proved authentic.
pub(super) struct Asked {
    noise: Responder,
    suite: Suite,
    index: u32,
    lanes: u8,
    /// The initiator's static key: a known peer's.
    pub(super) initiator: [u8; 32],
    /// When the initiator made it, by its clock.
    pub(super) timestamp: Tai64n,
}

/// What a handshake agreed on.
pub(super) struct Agreed {
    /// Both directions' keys.
    pub(super) keys: SplitKeys,
    /// The index by which the other end wants to be addressed.
    pub(super) remote: u32,
    /// Lanes of the other end; 1 in the WireGuard suite.
    pub(super) remote_lanes: u8,
}

impl Initiation {
    /// Writes an initiation to the owner of `responder`, to be answered to `index`.
    pub(super) fn start(
        means: Means<'_>,
        ephemeral: Zeroizing<[u8; 32]>,
        responder: &[u8; 32],
        index: u32,
        timestamp: Tai64n,
        lanes: u8,
    ) -> Result<(Initiation, Vec<u8>), NoiseError> {
        let suite = means.suite;
        let mut payload = timestamp.bytes().to_vec();
        payload.extend_from_slice(announcement(suite, lanes).as_ref());
        let (noise, message) = Initiator::start(means, ephemeral, responder, &payload)?;
        Ok((
            Initiation { noise, suite },
            initiation_without_macs(suite.is_native(), index, &message),
        ))
    }

    /// The suite that it asked in.
    pub(super) fn suite(&self) -> Suite {
        self.suite
    }

    /// Reads the response's Noise message, from `sender`. After an error a genuine one can still be read.
    pub(super) fn finish(&mut self, psk: &[u8; 32], sender: u32, message: &[u8]) -> Result<Agreed, NoiseError> {
        let (keys, payload) = self.noise.finish(psk, message)?;
        let remote_lanes = lanes(self.suite, sender, bytes(&payload))?;
        Ok(Agreed {
            keys,
            remote: sender,
            remote_lanes,
        })
    }
}

impl Asked {
    /// Reads an initiation's Noise message, from `sender`.
    pub(super) fn read(
        means: Means<'_>,
        ephemeral: Zeroizing<[u8; 32]>,
        sender: u32,
        message: &[u8],
    ) -> Result<Asked, NoiseError> {
        let (noise, initiator, payload) = Responder::read(means, ephemeral, message)?;
        let (timestamp, announcement) = bytes(&payload)
            .split_first_chunk::<TIMESTAMP_LEN>()
            .ok_or(NoiseError::Invalid)?;
        Ok(Asked {
            noise,
            suite: means.suite,
            index: sender,
            lanes: lanes(means.suite, sender, announcement)?,
            initiator,
            timestamp: Tai64n::from_bytes(*timestamp),
        })
    }

    /// How many lanes the initiator has.
    pub(super) fn lanes(&self) -> u8 {
        self.lanes
    }

    /// Writes the response, to be addressed by `index`.
    pub(super) fn answer(self, psk: &[u8; 32], index: u32, lanes: u8) -> Result<(Agreed, Vec<u8>), NoiseError> {
        let (keys, message) = self.noise.respond(psk, announcement(self.suite, lanes).as_ref())?;
        let response = response_without_macs(self.suite.is_native(), index, self.index, &message);
        Ok((
            Agreed {
                keys,
                remote: self.index,
                remote_lanes: self.lanes,
            },
            response,
        ))
    }
}

fn bytes((bytes, len): &Payload) -> &[u8] {
    &bytes[..*len]
}

/// What this end says of itself: version, features, lanes. Nothing in the WireGuard suite.
fn announcement(suite: Suite, lanes: u8) -> impl AsRef<[u8]> {
    let mut bytes = Vec::with_capacity(NATIVE_RESPONSE_PAYLOAD_LEN);
    if suite.is_native() {
        bytes.push(VERSION);
        bytes.extend_from_slice(&FEATURES.to_le_bytes());
        bytes.push(lanes);
    }
    bytes
}

/// The lane count in the announcement of the other end, which wants to be addressed by `index`.
fn lanes(suite: Suite, index: u32, announcement: &[u8]) -> Result<u8, NoiseError> {
    match (suite, announcement) {
        (Suite::WireGuard, []) => Ok(1),
        // The low byte of a native index is the lane's place.
        (Suite::Native, &[version, _, _, _, _, lanes])
            if version >= VERSION && lanes > 0 && index.to_le_bytes()[0] == 0 =>
        {
            Ok(lanes)
        }
        _ => Err(NoiseError::Invalid),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_announcement_is_read_as_it_was_written() {
        for lanes_here in [1, 2, 255] {
            assert_eq!(
                lanes(Suite::Native, 0x100, announcement(Suite::Native, lanes_here).as_ref()),
                Ok(lanes_here)
            );
            assert_eq!(
                lanes(
                    Suite::WireGuard,
                    0x101,
                    announcement(Suite::WireGuard, lanes_here).as_ref()
                ),
                Ok(1)
            );
        }
    }

    #[test]
    fn impossible_announcements_are_refused() {
        let refused = Err(NoiseError::Invalid);
        assert_eq!(lanes(Suite::Native, 0, &[1, 0, 0, 0, 0, 0]), refused, "no lanes");
        assert_eq!(lanes(Suite::Native, 0, &[0, 0, 0, 0, 0, 1]), refused, "no version");
        assert_eq!(
            lanes(Suite::Native, 1, &[1, 0, 0, 0, 0, 1]),
            refused,
            "an index with a low byte"
        );
        assert_eq!(lanes(Suite::Native, 0, &[1, 0, 0, 0, 1]), refused, "too short");
        assert_eq!(lanes(Suite::WireGuard, 0, &[1]), refused, "too long");
        assert_eq!(
            lanes(Suite::Native, 0, &[2, 0, 0, 0, 0x80, 1]),
            Ok(1),
            "later versions and features are for them"
        );
    }
}
