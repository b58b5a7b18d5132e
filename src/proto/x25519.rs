//! X25519 (RFC 7748) over two implementations: AWS-LC's is 2.5 times as fast (17 us against 42 us an operation, and it
//! is all that a handshake costs), x25519-dalek is portable Rust and the other's oracle in tests.
#![forbid(unsafe_code)]

use aws_lc_rs::agreement;
use x25519_dalek::{PublicKey, StaticSecret};
use zeroize::Zeroizing;

use crate::crypto::Choice;
use crate::wire::message::PUBLIC_KEY_LEN;

/// The result of a Diffie-Hellman operation.
pub(super) type Shared = Zeroizing<[u8; 32]>;

/// A private key; wiped on drop.
pub(super) struct PrivateKey {
    backend: Backend,
    public: [u8; PUBLIC_KEY_LEN],
}

enum Backend {
    AwsLc(agreement::PrivateKey),
    Dalek(StaticSecret),
}

impl PrivateKey {
    /// The private key with these bytes, on the implementation that `choice` means.
    pub(super) fn new(choice: Choice, bytes: &[u8; 32]) -> PrivateKey {
        match choice {
            Choice::Auto | Choice::AwsLc | Choice::Avx512 | Choice::Vaes => {
                PrivateKey::aws_lc(bytes).unwrap_or_else(|| PrivateKey::dalek(bytes))
            }
            Choice::AesGcm => PrivateKey::dalek(bytes),
        }
    }

    fn aws_lc(bytes: &[u8; 32]) -> Option<PrivateKey> {
        let key = agreement::PrivateKey::from_private_key(&agreement::X25519, bytes).ok()?;
        let public = key.compute_public_key().ok()?.as_ref().try_into().ok()?;
        Some(PrivateKey {
            backend: Backend::AwsLc(key),
            public,
        })
    }

    fn dalek(bytes: &[u8; 32]) -> PrivateKey {
        let secret = StaticSecret::from(*bytes);
        let public = PublicKey::from(&secret).to_bytes();
        PrivateKey {
            backend: Backend::Dalek(secret),
            public,
        }
    }

    /// Its public key.
    pub(super) fn public(&self) -> &[u8; PUBLIC_KEY_LEN] {
        &self.public
    }

    /// The secret shared with the owner of `theirs`. `None` when it is all zero, which happens with the public keys of
    /// low order: it would be a secret that everybody knows (RFC 7748, section 6.1).
    pub(super) fn diffie_hellman(&self, theirs: &[u8; PUBLIC_KEY_LEN]) -> Option<Shared> {
        match &self.backend {
            Backend::AwsLc(key) => {
                let theirs = agreement::UnparsedPublicKey::new(&agreement::X25519, theirs);
                // AWS-LC refuses an all-zero result by itself.
                agreement::agree(key, theirs, (), |shared| {
                    let shared = shared.first_chunk().ok_or(())?;
                    Ok(Zeroizing::new(*shared))
                })
                .ok()
            }
            Backend::Dalek(secret) => {
                let shared = secret.diffie_hellman(&PublicKey::from(*theirs));
                shared.was_contributory().then(|| Zeroizing::new(shared.to_bytes()))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const CHOICES: [Choice; 2] = [Choice::AwsLc, Choice::AesGcm];

    #[test]
    fn each_choice_gets_its_implementation() {
        assert!(matches!(
            PrivateKey::new(Choice::AwsLc, &[1; 32]).backend,
            Backend::AwsLc(_)
        ));
        assert!(matches!(
            PrivateKey::new(Choice::AesGcm, &[1; 32]).backend,
            Backend::Dalek(_)
        ));
    }

    #[test]
    fn all_zero_results_are_refused() {
        // The points of order 1, 2 and 8, and a non-canonical 0 (the list at cr.yp.to/ecdh.html).
        let order_8 = [
            0xe0, 0xeb, 0x7a, 0x7c, 0x3b, 0x41, 0xb8, 0xae, 0x16, 0x56, 0xe3, 0xfa, 0xf1, 0x9f, 0xc4, 0x6a, 0xda, 0x09,
            0x8d, 0xeb, 0x9c, 0x32, 0xb1, 0xfd, 0x86, 0x62, 0x05, 0x16, 0x5f, 0x49, 0xb8, 0x00,
        ];
        let mut one = [0; 32];
        one[0] = 1;
        let mut prime = [0xff; 32];
        (prime[0], prime[31]) = (0xed, 0x7f);
        for choice in CHOICES {
            for point in [[0; 32], one, order_8, prime] {
                assert!(PrivateKey::new(choice, &[1; 32]).diffie_hellman(&point).is_none());
            }
        }
    }

    proptest! {
        #[test]
        fn the_implementations_agree(private: [u8; 32], theirs: [u8; 32]) {
            let [a, b] = CHOICES.map(|choice| PrivateKey::new(choice, &private));
            prop_assert_eq!(a.public(), b.public());
            prop_assert_eq!(a.diffie_hellman(&theirs), b.diffie_hellman(&theirs));
        }
    }
}
