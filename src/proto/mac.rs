//! mac1 and mac2: the authentication of whole handshake messages (WireGuard paper, section 5.4.4).
#![forbid(unsafe_code)]

use blake2::{Blake2s256, Digest as _};
use blake2s_simd::{Hash, Params};

use crate::wire::message::{COOKIE_LEN, MAC_LEN};

const LABEL_MAC1: &[u8; 8] = b"mac1----";
const LABEL_COOKIE: &[u8; 8] = b"cookie--";

/// Appends mac1, keyed by the receiver's public key, and mac2, keyed by the receiver's cookie, to a message; returns
/// mac1. Without a cookie mac2 is zero.
///
/// Public for what attacks an end in tests: mac1 is the one thing that everybody can get right who knows a public key.
pub fn append(message: &mut Vec<u8>, receiver: &[u8; 32], cookie: Option<&[u8; COOKIE_LEN]>) -> [u8; MAC_LEN] {
    let mac1 = mac(&mac1_key(receiver), &[message]);
    message.extend_from_slice(&mac1);
    let mac2 = cookie.map_or([0; MAC_LEN], |cookie| mac(cookie, &[message]));
    message.extend_from_slice(&mac2);
    mac1
}

/// The key of mac1 in messages to the owner of `public_key`.
pub(super) fn mac1_key(public_key: &[u8; 32]) -> [u8; 32] {
    hash(LABEL_MAC1, public_key)
}

/// The key that seals cookies of the owner of `public_key`.
pub(super) fn cookie_key(public_key: &[u8; 32]) -> [u8; 32] {
    hash(LABEL_COOKIE, public_key)
}

/// Keyed BLAKE2s with an output of 16 bytes; keys of up to 32 bytes.
pub(super) fn mac(key: &[u8], parts: &[&[u8]]) -> [u8; MAC_LEN] {
    let hash = keyed(key, parts);
    hash.as_bytes().try_into().expect("that length was asked for")
}

/// Whether `tag` is [`mac`] of the same, in constant time.
pub(super) fn verify(key: &[u8], parts: &[&[u8]], tag: &[u8; MAC_LEN]) -> bool {
    // This comparison looks at every byte.
    keyed(key, parts) == tag[..]
}

fn hash(label: &[u8], public_key: &[u8; 32]) -> [u8; 32] {
    Blake2s256::new()
        .chain_update(label)
        .chain_update(public_key)
        .finalize()
        .into()
}

/// Every message of a flood costs one of these: with vectors it takes a third of the time that [`blake2`] needs.
fn keyed(key: &[u8], parts: &[&[u8]]) -> Hash {
    let mut state = Params::new().hash_length(MAC_LEN).key(key).to_state();
    for part in parts {
        state.update(part);
    }
    state.finalize()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::message::{Body, HandshakeMessage, WG_INITIATION_LEN, initiation_without_macs};

    #[test]
    fn appended_macs_verify_over_what_the_parser_says_they_cover() {
        let (receiver, cookie) = ([3; 32], [4; 16]);
        let mut message = initiation_without_macs(false, 9, &[5; WG_INITIATION_LEN - 8 - 32]);
        append(&mut message, &receiver, Some(&cookie));
        let Some(HandshakeMessage {
            body: Body::Initiation { macs, .. },
            ..
        }) = HandshakeMessage::parse(&message)
        else {
            panic!("an initiation")
        };
        assert!(verify(&mac1_key(&receiver), &[macs.before_mac1], macs.mac1));
        assert!(verify(&cookie, &[macs.before_mac2], macs.mac2));
        assert!(!verify(&mac1_key(&[2; 32]), &[macs.before_mac1], macs.mac1));
        assert!(!verify(&cookie, &[macs.before_mac1], macs.mac2));
    }

    #[test]
    fn without_a_cookie_mac2_is_zero() {
        let mut message = vec![1];
        append(&mut message, &[3; 32], None);
        assert_eq!(message[17..], [0; 16]);
    }
}
