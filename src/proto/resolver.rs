//! The primitives that snow computes the handshakes with: X25519 with WireGuard's two refusals, the AEADs of
//! [`crypto`](crate::crypto), BLAKE2s, and randomness that was drawn beforehand.
//!
//! Keys in here are wiped on drop.
#![forbid(unsafe_code)]

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use blake2::Blake2s256;
use blake2::digest::{Digest, FixedOutputReset};
use snow::Error;
use snow::params::{CipherChoice, DHChoice, HashChoice};
use snow::resolvers::CryptoResolver;
use snow::types::{Cipher, Dh, Hash, Random};
use zeroize::{Zeroize, Zeroizing};

use super::identity::Identity;
use super::x25519::PrivateKey;
use crate::crypto::{Aead, Algorithm, Choice, KEY_LEN, TAG_LEN};
use crate::wire::message::PUBLIC_KEY_LEN;

/// Which end of a handshake this is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    Initiator,
    Responder,
}

/// Makes the primitives of one handshake.
pub(super) struct Resolver {
    pub(super) identity: Arc<Identity>,
    pub(super) role: Role,
    /// The ephemeral private key, taken once.
    pub(super) ephemeral: Cell<Option<Zeroizing<[u8; 32]>>>,
}

impl CryptoResolver for Resolver {
    fn resolve_rng(&self) -> Option<Box<dyn Random>> {
        Some(Box::new(Drawn(self.ephemeral.take())))
    }

    fn resolve_dh(&self, choice: &DHChoice) -> Option<Box<dyn Dh>> {
        let identity = Arc::clone(&self.identity);
        matches!(choice, DHChoice::Curve25519).then(|| {
            Box::new(X25519 {
                identity,
                role: self.role,
                key: Key::None,
            }) as Box<dyn Dh>
        })
    }

    fn resolve_hash(&self, choice: &HashChoice) -> Option<Box<dyn Hash>> {
        matches!(choice, HashChoice::Blake2s).then(|| Box::new(Blake2s::default()) as Box<dyn Hash>)
    }

    fn resolve_cipher(&self, choice: &CipherChoice) -> Option<Box<dyn Cipher>> {
        let algorithm = match choice {
            CipherChoice::AESGCM => Algorithm::Aes256Gcm,
            CipherChoice::ChaChaPoly => Algorithm::ChaCha20Poly1305,
        };
        Some(Box::new(NoiseCipher {
            algorithm,
            crypto: self.identity.choice(),
            key: Zeroizing::new([0; KEY_LEN]),
        }))
    }
}

/// X25519 with one of this end's keys.
struct X25519 {
    identity: Arc<Identity>,
    role: Role,
    key: Key,
}

/// Whose turn it is to be a private key.
enum Key {
    /// Nobody's yet.
    None,
    /// The identity's, used this often.
    Static { uses: AtomicU8 },
    /// One for this handshake only.
    Ephemeral(PrivateKey),
}

impl X25519 {
    /// In IK an initiator's static key is used in ss, then in se; a responder's in es, then in ss.
    fn is_static_static(&self, use_number: u8) -> bool {
        match self.role {
            Role::Initiator => use_number == 0,
            Role::Responder => use_number == 1,
        }
    }
}

impl Dh for X25519 {
    fn name(&self) -> &'static str {
        "25519"
    }

    fn pub_len(&self) -> usize {
        PUBLIC_KEY_LEN
    }

    fn priv_len(&self) -> usize {
        KEY_LEN
    }

    /// Says only that this is the static key; the identity has it.
    fn set(&mut self, _private: &[u8]) {
        self.key = Key::Static { uses: AtomicU8::new(0) };
    }

    fn generate(&mut self, rng: &mut dyn Random) -> Result<(), Error> {
        let mut bytes = Zeroizing::new([0; KEY_LEN]);
        rng.try_fill_bytes(bytes.as_mut())?;
        self.key = Key::Ephemeral(PrivateKey::new(self.identity.choice(), &bytes));
        Ok(())
    }

    fn pubkey(&self) -> &[u8] {
        match &self.key {
            Key::None => &[0; PUBLIC_KEY_LEN],
            Key::Static { .. } => self.identity.public(),
            Key::Ephemeral(key) => key.public(),
        }
    }

    /// Nobody's business: snow asks for it only where it makes keys to keep.
    fn privkey(&self) -> &[u8] {
        &[0; KEY_LEN]
    }

    fn dh(&self, theirs: &[u8], out: &mut [u8]) -> Result<(), Error> {
        let theirs: &[u8; PUBLIC_KEY_LEN] = theirs.first_chunk().ok_or(Error::Dh)?;
        let shared = match &self.key {
            Key::None => None,
            // snow uses one handshake from one thread; the atomic is there because its trait asks for Sync.
            Key::Static { uses } => match self.is_static_static(uses.fetch_add(1, Ordering::Relaxed)) {
                true => self.identity.static_static(theirs),
                false => self.identity.diffie_hellman(theirs),
            },
            Key::Ephemeral(key) => self.identity.counted(key, theirs),
        };
        let shared = shared.ok_or(Error::Dh)?;
        out.get_mut(..shared.len())
            .ok_or(Error::Dh)?
            .copy_from_slice(shared.as_ref());
        Ok(())
    }
}

/// Randomness that is there already: one ephemeral private key.
struct Drawn(Option<Zeroizing<[u8; 32]>>);

impl Random for Drawn {
    fn try_fill_bytes(&mut self, dest: &mut [u8]) -> Result<(), Error> {
        // Taken: a second request fails rather than to get the same key.
        let bytes = self.0.take().ok_or(Error::Rng)?;
        if dest.len() != bytes.len() {
            return Err(Error::Rng);
        }
        dest.copy_from_slice(bytes.as_ref());
        Ok(())
    }
}

/// BLAKE2s-256.
#[derive(Default)]
pub(super) struct Blake2s(Blake2s256);

impl Hash for Blake2s {
    fn name(&self) -> &'static str {
        "BLAKE2s"
    }

    fn block_len(&self) -> usize {
        64
    }

    fn hash_len(&self) -> usize {
        32
    }

    fn reset(&mut self) {
        self.0 = Blake2s256::new();
    }

    fn input(&mut self, data: &[u8]) {
        Digest::update(&mut self.0, data);
    }

    fn result(&mut self, out: &mut [u8]) {
        let mut digest = self.0.finalize_fixed_reset();
        out[..digest.len()].copy_from_slice(&digest);
        digest.as_mut_slice().zeroize();
    }
}

/// An AEAD with the nonce that Noise gives it.
struct NoiseCipher {
    algorithm: Algorithm,
    crypto: Choice,
    key: Zeroizing<[u8; KEY_LEN]>,
}

impl NoiseCipher {
    fn aead(&self) -> Aead {
        Aead::new(self.algorithm, self.crypto, &self.key)
    }

    fn nonce(&self, n: u64) -> [u8; 12] {
        let mut nonce = [0; 12];
        nonce[4..].copy_from_slice(&match self.algorithm {
            Algorithm::Aes256Gcm => n.to_be_bytes(),
            Algorithm::ChaCha20Poly1305 => n.to_le_bytes(),
        });
        nonce
    }
}

impl Cipher for NoiseCipher {
    fn name(&self) -> &'static str {
        match self.algorithm {
            Algorithm::Aes256Gcm => "AESGCM",
            Algorithm::ChaCha20Poly1305 => "ChaChaPoly",
        }
    }

    fn set(&mut self, key: &[u8; KEY_LEN]) {
        *self.key = *key;
    }

    /// snow has checked that `out` has room for the tag.
    fn encrypt(&self, nonce: u64, authtext: &[u8], plaintext: &[u8], out: &mut [u8]) -> usize {
        let text = &mut out[..plaintext.len() + TAG_LEN];
        text[..plaintext.len()].copy_from_slice(plaintext);
        self.aead().seal_in_place(&self.nonce(nonce), authtext, text);
        text.len()
    }

    fn decrypt(&self, nonce: u64, authtext: &[u8], ciphertext: &[u8], out: &mut [u8]) -> Result<usize, Error> {
        let mut text = Zeroizing::new(ciphertext.to_vec());
        self.aead()
            .open_in_place(&self.nonce(nonce), authtext, &mut text)
            .map_err(|_| Error::Decrypt)?;
        let plaintext = &text[..ciphertext.len() - TAG_LEN];
        out.get_mut(..plaintext.len())
            .ok_or(Error::Decrypt)?
            .copy_from_slice(plaintext);
        Ok(plaintext.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ephemeral_key_is_drawn_once() {
        let mut drawn = Drawn(Some(Zeroizing::new([7; 32])));
        let mut key = [0; 32];
        assert!(drawn.try_fill_bytes(&mut key).is_ok());
        assert_eq!(key, [7; 32]);
        assert!(drawn.try_fill_bytes(&mut key).is_err());
    }
}
