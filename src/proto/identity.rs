//! This end's static key, and the static keys that it knows: who may cause a second Diffie-Hellman operation.
#![forbid(unsafe_code)]

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use x25519_dalek::StaticSecret;

use super::endpoint::PeerId;
use super::x25519::{PrivateKey, Shared};
use crate::crypto::Choice;

/// The local static key and the known peers' ones. Noise's Diffie-Hellman objects hold it too, hence the lock; only
/// the control thread ever takes it.
pub(super) struct Identity {
    key: PrivateKey,
    choice: Choice,
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
    pub(super) fn new(secret: &StaticSecret, choice: Choice) -> Identity {
        Identity {
            key: PrivateKey::new(choice, secret.as_bytes()),
            choice,
            peers: Mutex::default(),
            diffie_hellmans: AtomicU64::new(0),
        }
    }

    /// The local static public key.
    pub(super) fn public(&self) -> &[u8; 32] {
        self.key.public()
    }

    /// Which implementations of primitives to use.
    pub(super) fn choice(&self) -> Choice {
        self.choice
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
        self.counted(&self.key, theirs)
    }

    /// DH(local static, `theirs`) for a static key; `None` unless it is a known peer's, or when the result is all
    /// zero.
    pub(super) fn static_static(&self, theirs: &[u8; 32]) -> Option<Shared> {
        let mut peers = self.known();
        let known = peers.get_mut(theirs)?;
        if known.static_static.is_none() {
            known.static_static = self.counted(&self.key, theirs);
        }
        known.static_static.clone()
    }

    /// DH(`key`, `theirs`), counted.
    pub(super) fn counted(&self, key: &PrivateKey, theirs: &[u8; 32]) -> Option<Shared> {
        self.diffie_hellmans.fetch_add(1, Ordering::Relaxed);
        key.diffie_hellman(theirs)
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
        let [ours, theirs] = [1, 2].map(|n| Identity::new(&StaticSecret::from([n; 32]), Choice::Auto));
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
    fn a_known_key_of_low_order_gives_no_secret() {
        let ours = Identity::new(&StaticSecret::from([1; 32]), Choice::Auto);
        ours.insert([0; 32], PeerId(1));
        assert!(ours.static_static(&[0; 32]).is_none());
    }
}
