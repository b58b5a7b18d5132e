//! Noise IKpsk2 of both suites: two messages, then two keys. Knows nothing of what the payloads mean.
#![forbid(unsafe_code)]

use std::cell::Cell;
use std::sync::{Arc, LazyLock};

use snow::params::NoiseParams;
use snow::{Builder, HandshakeState};
use x25519_dalek::StaticSecret;
use zeroize::{Zeroize, Zeroizing};

use super::identity::Identity;
use super::resolver::{Resolver, Role};
use super::suite::Suite;
use crate::crypto::Choice;
use crate::wire::message::{NATIVE_INITIATION_LEN, NATIVE_INITIATION_PAYLOAD_LEN};

/// Where the preshared key is mixed in: after the second message's last token.
const PSK_POSITION: u8 = 2;
/// What stands for "no preshared key".
pub(super) const NO_PSK: [u8; 32] = [0; 32];
/// Longer than any Noise message here, which are parts of handshake messages.
const NOISE_LEN_MAX: usize = NATIVE_INITIATION_LEN;

/// The name and prologue that make up a suite's handshake.
const fn pattern(suite: Suite) -> (&'static str, &'static [u8]) {
    match suite {
        Suite::Native => ("Noise_IKpsk2_25519_AESGCM_BLAKE2s", b"ringway v1"),
        Suite::WireGuard => (
            "Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s",
            b"WireGuard v1 zx2c4 Jason@zx2c4.com",
        ),
    }
}

static PARAMS: LazyLock<[NoiseParams; 3]> = LazyLock::new(|| {
    [
        pattern(Suite::Native).0,
        pattern(Suite::WireGuard).0,
        "Noise_NN_25519_ChaChaPoly_BLAKE2s",
    ]
    .map(|name| name.parse().expect("snow knows these names"))
});

fn params(suite: Suite) -> NoiseParams {
    PARAMS[suite as usize].clone()
}

/// A message did not authenticate, or was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NoiseError {
    /// The initiator's static key belongs to no peer.
    UnknownPeer,
    /// Anything else.
    Invalid,
}

impl From<snow::Error> for NoiseError {
    fn from(_: snow::Error) -> NoiseError {
        NoiseError::Invalid
    }
}

/// What a handshake is computed with.
#[derive(Clone, Copy)]
pub(super) struct Means<'a> {
    pub(super) identity: &'a Arc<Identity>,
    pub(super) suite: Suite,
}

/// The decrypted payload of a Noise message.
pub(super) type Payload = ([u8; NATIVE_INITIATION_PAYLOAD_LEN], usize);

/// The two keys that a handshake makes: from initiator to responder, and back.
pub(super) struct SplitKeys {
    pub(super) to_responder: Zeroizing<[u8; 32]>,
    pub(super) to_initiator: Zeroizing<[u8; 32]>,
}

/// An initiator that waits for the second message.
pub(super) struct Initiator(Wiped);

impl Initiator {
    /// Writes the first message.
    pub(super) fn start(
        means: Means<'_>,
        ephemeral: Zeroizing<[u8; 32]>,
        responder: &[u8; 32],
        payload: &[u8],
    ) -> Result<(Initiator, Vec<u8>), NoiseError> {
        let mut state = Wiped(Box::new(
            builder(means, Role::Initiator, ephemeral)?
                .remote_public_key(responder)?
                .build_initiator()?,
        ));
        let message = write(&mut state.0, payload)?;
        Ok((Initiator(state), message))
    }

    /// Reads the second message. After an error a genuine one can still be read.
    pub(super) fn finish(&mut self, psk: &[u8; 32], message: &[u8]) -> Result<(SplitKeys, Payload), NoiseError> {
        let state = &mut self.0.0;
        state.set_psk(PSK_POSITION.into(), psk)?;
        let payload = read(state, message);
        state.set_psk(PSK_POSITION.into(), &NO_PSK)?;
        Ok((split(state), payload?))
    }
}

/// A responder that has read the first message.
pub(super) struct Responder(Wiped);

impl Responder {
    /// Reads the first message; returns its payload and the initiator's static key too, which belongs to a peer.
    pub(super) fn read(
        means: Means<'_>,
        ephemeral: Zeroizing<[u8; 32]>,
        message: &[u8],
    ) -> Result<(Responder, [u8; 32], Payload), NoiseError> {
        let mut state = Wiped(Box::new(builder(means, Role::Responder, ephemeral)?.build_responder()?));
        let payload = read(&mut state.0, message);
        let initiator = state.0.get_remote_static().and_then(|key| key.first_chunk().copied());
        match (initiator, payload) {
            (Some(initiator), Ok(payload)) => Ok((Responder(state), initiator, payload)),
            (Some(initiator), Err(_)) if means.identity.peer_of(&initiator).is_none() => Err(NoiseError::UnknownPeer),
            _ => Err(NoiseError::Invalid),
        }
    }

    /// Writes the second message.
    pub(super) fn respond(mut self, psk: &[u8; 32], payload: &[u8]) -> Result<(SplitKeys, Vec<u8>), NoiseError> {
        let state = &mut self.0.0;
        state.set_psk(PSK_POSITION.into(), psk)?;
        let message = write(state, payload);
        state.set_psk(PSK_POSITION.into(), &NO_PSK)?;
        let message = message?;
        Ok((split(state), message))
    }
}

/// The resolver's X25519 has the key and needs only to be told that this is its place.
static STANDS_FOR_THE_STATIC_KEY: [u8; 32] = [0; 32];

fn builder<'a>(means: Means<'a>, role: Role, ephemeral: Zeroizing<[u8; 32]>) -> Result<Builder<'a>, snow::Error> {
    let resolver = Resolver {
        identity: Arc::clone(means.identity),
        role,
        ephemeral: Cell::new(Some(ephemeral)),
    };
    Builder::with_resolver(params(means.suite), Box::new(resolver))
        .prologue(pattern(means.suite).1)?
        .local_private_key(&STANDS_FOR_THE_STATIC_KEY)
}

fn write(state: &mut HandshakeState, payload: &[u8]) -> Result<Vec<u8>, snow::Error> {
    let mut message = [0; NOISE_LEN_MAX];
    let len = state.write_message(payload, &mut message)?;
    Ok(message[..len].to_vec())
}

fn read(state: &mut HandshakeState, message: &[u8]) -> Result<Payload, snow::Error> {
    let mut payload = [0; NATIVE_INITIATION_PAYLOAD_LEN];
    let len = state.read_message(message, &mut payload)?;
    Ok((payload, len))
}

fn split(state: &mut HandshakeState) -> SplitKeys {
    let (mut to_responder, mut to_initiator) = state.dangerously_get_raw_split();
    let keys = SplitKeys {
        to_responder: Zeroizing::new(to_responder),
        to_initiator: Zeroizing::new(to_initiator),
    };
    to_responder.zeroize();
    to_initiator.zeroize();
    keys
}

/// A handshake that is overwritten on drop: snow leaves its chaining key, from which both keys follow, in freed
/// memory.
struct Wiped(Box<HandshakeState>);

impl Drop for Wiped {
    fn drop(&mut self) {
        if let Ok(blank) = blank() {
            *self.0 = blank;
            // Or the compiler sees that nobody reads what is about to be freed, and drops the write.
            std::hint::black_box(&mut *self.0);
        }
    }
}

/// A handshake without any secret.
fn blank() -> Result<HandshakeState, snow::Error> {
    static NOBODY: LazyLock<Arc<Identity>> =
        LazyLock::new(|| Arc::new(Identity::new(&StaticSecret::from([0; 32]), Choice::AesGcm)));
    let resolver = Resolver {
        identity: Arc::clone(&NOBODY),
        role: Role::Initiator,
        ephemeral: Cell::new(None),
    };
    Builder::with_resolver(PARAMS[2].clone(), Box::new(resolver)).build_initiator()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::endpoint::PeerId;

    const PSK: [u8; 32] = [0x55; 32];

    /// Two identities that know each other.
    fn pair() -> [Arc<Identity>; 2] {
        let [a, b] = [1, 2].map(|n| Arc::new(Identity::new(&StaticSecret::from([n; 32]), Choice::Auto)));
        a.insert(*b.public(), PeerId(0));
        b.insert(*a.public(), PeerId(0));
        [a, b]
    }

    fn means(identity: &Arc<Identity>, suite: Suite) -> Means<'_> {
        Means { identity, suite }
    }

    fn key(byte: u8) -> Zeroizing<[u8; 32]> {
        Zeroizing::new([byte; 32])
    }

    fn payload((bytes, len): &Payload) -> &[u8] {
        &bytes[..*len]
    }

    #[test]
    fn both_ends_agree_on_keys_and_payloads() {
        for suite in Suite::ALL {
            let [a, b] = pair();
            let (mut initiator, first) = Initiator::start(means(&a, suite), key(3), b.public(), b"hello").unwrap();
            let (responder, from, hello) = Responder::read(means(&b, suite), key(4), &first).unwrap();
            assert_eq!((&from, payload(&hello)), (a.public(), &b"hello"[..]));
            let (theirs, second) = responder.respond(&PSK, b"hi").unwrap();
            assert!(initiator.finish(&NO_PSK, &second).is_err(), "another preshared key");
            let mut broken = second.clone();
            broken[40] ^= 1;
            assert!(initiator.finish(&PSK, &broken).is_err());
            let (ours, hi) = initiator.finish(&PSK, &second).expect("errors before do not matter");
            assert_eq!(payload(&hi), b"hi");
            assert_eq!(ours.to_initiator, theirs.to_initiator);
            assert_eq!(ours.to_responder, theirs.to_responder);
            assert_ne!(ours.to_responder, ours.to_initiator);
        }
    }

    #[test]
    fn an_unknown_key_costs_one_diffie_hellman_operation() {
        for suite in Suite::ALL {
            let [a, b] = pair();
            b.remove(a.public());
            let (_, first) = Initiator::start(means(&a, suite), key(3), b.public(), b"").unwrap();
            let refused = Responder::read(means(&b, suite), key(4), &first).err();
            assert_eq!(refused, Some(NoiseError::UnknownPeer));
            assert_eq!(b.diffie_hellmans(), 1);
            assert_eq!(
                Responder::read(means(&b, suite), key(4), &[9; 96]).err(),
                Some(NoiseError::Invalid)
            );
            assert_eq!(b.diffie_hellmans(), 2, "so does rubbish");
        }
    }

    #[test]
    fn a_known_pair_computes_its_static_secret_once() {
        let [a, b] = pair();
        for handshake in 0..3 {
            let (mut initiator, first) = Initiator::start(means(&a, Suite::Native), key(3), b.public(), b"").unwrap();
            let (responder, ..) = Responder::read(means(&b, Suite::Native), key(4), &first).unwrap();
            let (_, second) = responder.respond(&PSK, b"").unwrap();
            initiator.finish(&PSK, &second).unwrap();
            // es, ee and se each time, ss the first time.
            assert_eq!([a.diffie_hellmans(), b.diffie_hellmans()], [4 + 3 * handshake; 2]);
        }
    }

    #[test]
    fn the_suites_do_not_understand_each_other() {
        let [a, b] = pair();
        let (_, first) = Initiator::start(means(&a, Suite::Native), key(3), b.public(), b"").unwrap();
        assert!(Responder::read(means(&b, Suite::WireGuard), key(4), &first).is_err());
    }

    #[test]
    fn a_first_message_with_a_low_order_ephemeral_key_is_refused() {
        let [a, b] = pair();
        let (_, mut first) = Initiator::start(means(&a, Suite::Native), key(3), b.public(), b"").unwrap();
        first[..32].fill(0);
        assert_eq!(
            Responder::read(means(&b, Suite::Native), key(4), &first).err(),
            Some(NoiseError::Invalid)
        );
    }

    #[test]
    fn a_message_too_long_for_its_payload_is_refused() {
        let [_, b] = pair();
        for len in 0..200 {
            assert!(Responder::read(means(&b, Suite::Native), key(4), &vec![1; len]).is_err());
        }
    }
}
