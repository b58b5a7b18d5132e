//! This end's static key, and the static keys that it knows: who may cause a second Diffie-Hellman operation.
#![forbid(unsafe_code)]

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use x25519_dalek::{PublicKey, StaticSecret};
use zeroize::Zeroizing;

use super::endpoint::PeerId;

/// The result of a Diffie-Hellman operation.
pub(super) type Shared = Zeroizing<[u8; 32]>;

/// The local static key and the known peers' ones. Noise's Diffie-Hellman objects hold it too, hence the lock; only
/// the control thread ever takes it.
pub(super) struct Identity {
    secret: StaticSecret,
    public: [u8; 32],
    peers: Mutex<HashMap<[u8; 32], Known>>,
    diffie_hellmans: AtomicU64,
}

/// What is remembered of a known key.
struct Known {
    peer: PeerId,
    /// DH(local static, this key), computed when it is first needed.
    static_static: Option<Shared>,
}

impl Identity {
    pub(super) fn new(secret: StaticSecret) -> Identity {
        let public = PublicKey::from(&secret).to_bytes();
        Identity {
            secret,
            public,
            peers: Mutex::default(),
            diffie_hellmans: AtomicU64::new(0),
        }
    }

    /// The local static public key.
    pub(super) fn public(&self) -> &[u8; 32] {
        &self.public
    }

    pub(super) fn secret(&self) -> &StaticSecret {
        &self.secret
    }

    /// Makes `key` known.
    pub(super) fn insert(&self, key: [u8; 32], peer: PeerId) {
        self.known().insert(
            key,
            Known {
                peer,
                static_static: None,
            },
        );
    }

    /// Makes `key` unknown.
    pub(super) fn remove(&self, key: &[u8; 32]) {
        self.known().remove(key);
    }

    /// Whose key it is.
    pub(super) fn peer_of(&self, key: &[u8; 32]) -> Option<PeerId> {
        self.known().get(key).map(|known| known.peer)
    }

    /// DH(local static, `theirs`) for a key that nothing is known about; `None` when the result is all zero.
    pub(super) fn diffie_hellman(&self, theirs: &[u8; 32]) -> Option<Shared> {
        self.counted(&self.secret, theirs)
    }

    /// DH(local static, `theirs`) for a static key; `None` unless it is a known peer's, or when the result is all
    /// zero.
    pub(super) fn static_static(&self, theirs: &[u8; 32]) -> Option<Shared> {
        let mut peers = self.known();
        let known = peers.get_mut(theirs)?;
        if known.static_static.is_none() {
            known.static_static = self.counted(&self.secret, theirs);
        }
        known.static_static.clone()
    }

    /// DH(`secret`, `theirs`), counted; `None` when the result is all zero, which happens with the public keys of
    /// low order: it would be a secret that everybody knows (RFC 7748, section 6.1).
    pub(super) fn counted(&self, secret: &StaticSecret, theirs: &[u8; 32]) -> Option<Shared> {
        self.diffie_hellmans.fetch_add(1, Ordering::Relaxed);
        let shared = secret.diffie_hellman(&PublicKey::from(*theirs));
        shared.was_contributory().then(|| Zeroizing::new(shared.to_bytes()))
    }

    /// How many Diffie-Hellman operations there were.
    pub(super) fn diffie_hellmans(&self) -> u64 {
        self.diffie_hellmans.load(Ordering::Relaxed)
    }

    fn known(&self) -> MutexGuard<'_, HashMap<[u8; 32], Known>> {
        // Every change is one call of HashMap's, so a panic elsewhere leaves nothing half-done.
        self.peers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_static_result_of_a_known_key_is_computed_once_and_of_others_never() {
        let ours = Identity::new(StaticSecret::from([1; 32]));
        let theirs = Identity::new(StaticSecret::from([2; 32]));
        assert!(ours.static_static(theirs.public()).is_none());
        assert_eq!(ours.diffie_hellmans(), 0);
        ours.insert(*theirs.public(), PeerId(4));
        let shared = ours.static_static(theirs.public()).unwrap();
        assert_eq!(ours.static_static(theirs.public()).unwrap(), shared);
        assert_eq!(ours.diffie_hellmans(), 1);
        assert_eq!(theirs.diffie_hellman(ours.public()).unwrap(), shared);
        assert_eq!(ours.peer_of(theirs.public()), Some(PeerId(4)));
        ours.remove(theirs.public());
        assert!(ours.static_static(theirs.public()).is_none());
    }

    #[test]
    fn all_zero_results_are_refused() {
        // The points of order 1, 2 and 8, and a non-canonical 0 (RFC 7748; the list at cr.yp.to/ecdh.html).
        let order_8 = [
            0xe0, 0xeb, 0x7a, 0x7c, 0x3b, 0x41, 0xb8, 0xae, 0x16, 0x56, 0xe3, 0xfa, 0xf1, 0x9f, 0xc4, 0x6a, 0xda, 0x09,
            0x8d, 0xeb, 0x9c, 0x32, 0xb1, 0xfd, 0x86, 0x62, 0x05, 0x16, 0x5f, 0x49, 0xb8, 0x00,
        ];
        let mut one = [0; 32];
        one[0] = 1;
        let mut prime = [0xff; 32];
        (prime[0], prime[31]) = (0xed, 0x7f);
        let ours = Identity::new(StaticSecret::from([1; 32]));
        for point in [[0; 32], one, order_8, prime] {
            assert!(ours.diffie_hellman(&point).is_none());
            ours.insert(point, PeerId(1));
            assert!(ours.static_static(&point).is_none());
        }
    }
}
