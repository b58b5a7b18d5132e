//! One AEAD over backends chosen at run time: seal and open a record in place.
//!
//! [`self_test`] runs at start and says which backend each algorithm gets; [`Aead`] is one key on one backend. Calls
//! neither allocate nor fail for reasons other than a forged record, so the fast path has one branch per record.
#![deny(unsafe_code)]

#[cfg(target_arch = "x86_64")]
mod avx512;
mod aws_lc;
#[cfg(target_arch = "x86_64")]
mod chachapoly512;
#[cfg(target_arch = "x86_64")]
mod gcm;
#[cfg(target_arch = "x86_64")]
mod gcm256;
#[cfg(target_arch = "x86_64")]
mod gcm512;
mod portable;
mod run;
mod self_test;
#[cfg(target_arch = "x86_64")]
mod simd;
#[cfg(target_arch = "x86_64")]
mod vaes;

use std::fmt;
use std::str::FromStr;

pub use run::Record;
pub use self_test::{Selected, SelfTestError, self_test};

/// Bytes of a key, of both algorithms.
pub const KEY_LEN: usize = 32;
/// Bytes of a nonce, of both algorithms (RFC 5116, section 3.2).
pub const NONCE_LEN: usize = 12;
/// Bytes of a tag, of both algorithms.
pub const TAG_LEN: usize = 16;

/// An authenticated cipher with a 256-bit key, a 96-bit nonce and a 128-bit tag.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Algorithm {
    /// AES-256 in Galois/Counter Mode: NIST SP 800-38D, RFC 5116. The native suite's.
    Aes256Gcm,
    /// ChaCha20 with Poly1305: RFC 8439. WireGuard's.
    ChaCha20Poly1305,
}

/// What the user asks for: the `crypto` key and its command line and environment twins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Choice {
    /// For each algorithm the fastest backend that passes its self-test.
    #[default]
    Auto,
    /// ringway's own kernels for AVX-512, on CPUs that have it.
    Avx512,
    /// ringway's own AES-256-GCM kernel for VAES with 256-bit vectors, on CPUs that have it, and aws-lc-rs for the other
    /// algorithm.
    Vaes,
    /// aws-lc-rs for both algorithms.
    AwsLc,
    /// The portable pure Rust crates: `aes-gcm`, and `chacha20poly1305` for the other algorithm.
    AesGcm,
}

impl Choice {
    /// Every choice.
    pub const ALL: [Choice; 5] = [
        Choice::Auto,
        Choice::Avx512,
        Choice::Vaes,
        Choice::AwsLc,
        Choice::AesGcm,
    ];

    /// The choice's stable name in configs and logs.
    pub const fn name(self) -> &'static str {
        match self {
            Choice::Auto => "auto",
            Choice::Avx512 => "avx512",
            Choice::Vaes => "vaes",
            Choice::AwsLc => "aws-lc",
            Choice::AesGcm => "aes-gcm",
        }
    }
}

impl fmt::Display for Choice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Choice {
    type Err = UnknownChoice;

    fn from_str(name: &str) -> Result<Choice, UnknownChoice> {
        Choice::ALL
            .into_iter()
            .find(|choice| choice.name() == name)
            .ok_or(UnknownChoice)
    }
}

/// The text names no [`Choice`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("expected one of: auto, avx512, vaes, aws-lc, aes-gcm")]
pub struct UnknownChoice;

/// An implementation of an [`Algorithm`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Backend {
    /// ringway's own kernels, on CPUs with AVX-512, IFMA, VAES and VPCLMULQDQ.
    Avx512,
    /// ringway's own kernel of [`Algorithm::Aes256Gcm`], on CPUs with AVX2, VAES and VPCLMULQDQ.
    Vaes,
    /// AWS-LC's assembly, through aws-lc-rs.
    AwsLc,
    /// The pure Rust crates of the RustCrypto project.
    Portable,
}

impl Backend {
    /// Every backend, fastest first.
    const BY_SPEED: [Backend; 4] = [Backend::Avx512, Backend::Vaes, Backend::AwsLc, Backend::Portable];

    /// What `choice` allows for `algorithm`, best first.
    const fn allowed(choice: Choice, algorithm: Algorithm) -> &'static [Backend] {
        match (choice, algorithm) {
            (Choice::Auto, Algorithm::Aes256Gcm) => &Backend::BY_SPEED,
            (Choice::Auto, Algorithm::ChaCha20Poly1305) => &[Backend::Avx512, Backend::AwsLc, Backend::Portable],
            (Choice::Avx512, _) => &[Backend::Avx512],
            (Choice::Vaes, Algorithm::Aes256Gcm) => &[Backend::Vaes],
            (Choice::Vaes, Algorithm::ChaCha20Poly1305) | (Choice::AwsLc, _) => &[Backend::AwsLc],
            (Choice::AesGcm, _) => &[Backend::Portable],
        }
    }
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Backend::Avx512 => "avx512",
            Backend::Vaes => "vaes",
            Backend::AwsLc => "aws-lc",
            Backend::Portable => "portable",
        })
    }
}

/// The record does not authenticate under this key, nonce and associated data.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("forged record")]
pub struct Forged;

/// One key of one algorithm, ready for use. Its expanded form lives on the heap and is wiped on drop.
pub struct Aead(Key);

enum Key {
    #[cfg(target_arch = "x86_64")]
    Avx512(avx512::Key),
    #[cfg(target_arch = "x86_64")]
    Vaes(vaes::Key),
    AwsLc(aws_lc::Key),
    Portable(portable::Key),
}

impl Aead {
    /// Expands `key` for the backend that `choice` means.
    ///
    /// # Panics
    /// When [`Choice::Auto`] has no backend that passes its self-test, or [`Choice::Avx512`] or [`Choice::Vaes`] was not
    /// made for this CPU: call [`self_test`] with the choice once at start and refuse to run.
    pub fn new(algorithm: Algorithm, choice: Choice, key: &[u8; KEY_LEN]) -> Aead {
        let backend = match choice {
            Choice::Auto => self_test::selected().backend(algorithm),
            _ => Backend::allowed(choice, algorithm)[0],
        };
        Aead::with_backend(algorithm, backend, key).expect("start-up refuses to run with a backend that cannot")
    }

    /// None when `backend` does not run on this CPU or has no `algorithm`.
    fn with_backend(algorithm: Algorithm, backend: Backend, key: &[u8; KEY_LEN]) -> Option<Aead> {
        let key = match backend {
            #[cfg(target_arch = "x86_64")]
            Backend::Avx512 => Key::Avx512(avx512::Key::new(algorithm, key)?),
            #[cfg(target_arch = "x86_64")]
            Backend::Vaes => Key::Vaes(vaes::Key::new(algorithm, key)?),
            #[cfg(not(target_arch = "x86_64"))]
            Backend::Avx512 | Backend::Vaes => return None,
            Backend::AwsLc => Key::AwsLc(aws_lc::Key::new(algorithm, key)),
            Backend::Portable => Key::Portable(portable::Key::new(algorithm, key)),
        };
        Some(Aead(key))
    }

    /// Encrypts `text` = plaintext | 16 bytes of any value, which becomes ciphertext | tag. `aad` is authenticated
    /// with it. A nonce must never be used twice with a key.
    ///
    /// # Panics
    /// When `text` is shorter than a tag.
    #[inline]
    pub fn seal_in_place(&self, nonce: &[u8; NONCE_LEN], aad: &[u8], text: &mut [u8]) {
        let (plaintext, tag) = text.split_last_chunk_mut().expect("the caller leaves room for the tag");
        match &self.0 {
            #[cfg(target_arch = "x86_64")]
            Key::Avx512(key) => key.seal(nonce, aad, plaintext, tag),
            #[cfg(target_arch = "x86_64")]
            Key::Vaes(key) => key.seal(nonce, aad, plaintext, tag),
            Key::AwsLc(key) => key.seal(nonce, aad, plaintext, tag),
            Key::Portable(key) => key.seal(nonce, aad, plaintext, tag),
        }
    }

    /// Decrypts `text` = ciphertext | tag; the plaintext is `text[..text.len() - 16]`.
    ///
    /// # Errors
    /// [`Forged`] when the tag is wrong or missing. `text` is zeroed then, so nothing unauthentic can leak.
    #[inline]
    pub fn open_in_place(&self, nonce: &[u8; NONCE_LEN], aad: &[u8], text: &mut [u8]) -> Result<(), Forged> {
        let opened = match &self.0 {
            #[cfg(target_arch = "x86_64")]
            Key::Avx512(key) => key.open(nonce, aad, text),
            #[cfg(target_arch = "x86_64")]
            Key::Vaes(key) => key.open(nonce, aad, text),
            Key::AwsLc(key) => key.open(nonce, aad, text),
            Key::Portable(key) => key.open(nonce, aad, text),
        };
        if opened.is_err() {
            text.fill(0);
        }
        opened
    }
}

impl fmt::Debug for Aead {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Aead(..)")
    }
}

#[cfg(test)]
mod tests {
    use std::sync::LazyLock;

    use proptest::prelude::*;

    use super::*;

    const ALGORITHMS: [Algorithm; 2] = [Algorithm::Aes256Gcm, Algorithm::ChaCha20Poly1305];
    const NONCE: [u8; NONCE_LEN] = [0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8];

    impl Backend {
        /// What a test says that leaves this backend out because the CPU lacks what it needs.
        pub(super) fn skipped(self) -> String {
            let feature = match self {
                Backend::Avx512 => "AVX-512",
                _ => "VAES",
            };
            format!("skipped: no {feature} here: backend {self} was not run")
        }
    }

    /// Those that run on this CPU. The others are named, once.
    fn each_backend(algorithm: Algorithm, key: &[u8; KEY_LEN]) -> Vec<Aead> {
        static HERE: LazyLock<Vec<Backend>> = LazyLock::new(|| {
            let runs = |backend: &Backend| {
                // The algorithm that every backend has.
                let runs = Aead::with_backend(Algorithm::Aes256Gcm, *backend, &[0; KEY_LEN]).is_some();
                if !runs {
                    println!("{}", backend.skipped());
                }
                runs
            };
            Backend::BY_SPEED.into_iter().filter(runs).collect()
        });
        HERE.iter()
            .filter_map(|&backend| Aead::with_backend(algorithm, backend, key))
            .collect()
    }

    fn with_room_for_the_tag(plaintext: &[u8]) -> Vec<u8> {
        [plaintext, &[0xa5; TAG_LEN]].concat()
    }

    #[test]
    fn backends_agree_and_open_each_others_records_at_every_length_to_2100() {
        let plaintext: Vec<u8> = (0..2100u32).map(|i| (i * 31 / 8) as u8).collect();
        for algorithm in ALGORITHMS {
            let backends = each_backend(algorithm, &[0x42; KEY_LEN]);
            for len in 0..=plaintext.len() {
                let (aad, plaintext) = (&plaintext[..len % 33], &plaintext[..len]);
                let mut record = with_room_for_the_tag(plaintext);
                backends[0].seal_in_place(&NONCE, aad, &mut record);
                for aead in &backends {
                    let mut text = with_room_for_the_tag(plaintext);
                    aead.seal_in_place(&NONCE, aad, &mut text);
                    assert_eq!(text, record, "{algorithm:?} of {len} bytes");
                    assert_eq!(aead.open_in_place(&NONCE, aad, &mut text), Ok(()));
                    assert_eq!(&text[..len], plaintext);
                }
            }
        }
    }

    #[test]
    fn any_part_of_a_plaintext_may_be_its_tail() {
        let plaintext: Vec<u8> = (0..9000u32).map(|i| (i * 31 / 8) as u8).collect();
        let lens = (0..=300).chain([1387, 1388, 1420, 2015, 2016, 2017, 2100, 4500, 9000]);
        for (algorithm, len) in ALGORITHMS
            .into_iter()
            .flat_map(|algorithm| lens.clone().map(move |len| (algorithm, len)))
        {
            let plaintext = &plaintext[..len];
            for aead in each_backend(algorithm, &[0x42; KEY_LEN]) {
                let mut record = with_room_for_the_tag(plaintext);
                aead.seal_in_place(&NONCE, &[7; 16], &mut record);
                for at in [0, 1, 20, 48, 52, 111, 112, 113, len / 2, len]
                    .into_iter()
                    .filter(|&at| at <= len)
                {
                    let mut text = with_room_for_the_tag(plaintext);
                    text[at..].fill(0x5a);
                    aead.seal_run(&mut [Record::new(NONCE, &[7; 16], &mut text).with_tail(&plaintext[at..])]);
                    assert_eq!(text, record, "{algorithm:?} of {len} bytes, the tail from {at} on");
                }
            }
        }
    }

    #[test]
    #[should_panic(expected = "room for the tag and the tail")]
    fn a_tail_that_is_longer_than_its_text_panics() {
        let aead = Aead::new(Algorithm::Aes256Gcm, Choice::Auto, &[1; KEY_LEN]);
        aead.seal_run(&mut [Record::new(NONCE, &[], &mut [0; 30]).with_tail(&[0; 15])]);
    }

    #[test]
    fn a_record_shorter_than_a_tag_is_forged() {
        for algorithm in ALGORITHMS {
            for aead in each_backend(algorithm, &[1; KEY_LEN]) {
                for len in 0..TAG_LEN {
                    assert_eq!(aead.open_in_place(&NONCE, &[], &mut vec![0; len]), Err(Forged));
                }
            }
        }
    }

    #[test]
    #[should_panic(expected = "room for the tag")]
    fn sealing_without_room_for_the_tag_panics() {
        Aead::new(Algorithm::Aes256Gcm, Choice::Auto, &[1; KEY_LEN]).seal_in_place(&NONCE, &[], &mut [0; 15]);
    }

    #[test]
    fn a_choice_is_spelt_as_it_is_read() {
        for choice in Choice::ALL {
            assert_eq!(choice.to_string().parse(), Ok(choice));
        }
        assert_eq!("AES".parse::<Choice>(), Err(UnknownChoice));
    }

    #[test]
    fn keys_may_be_shared_between_threads() {
        fn shareable<T: Send + Sync>() {}
        shareable::<Aead>();
    }

    proptest! {
        #[test]
        fn one_flipped_bit_anywhere_is_refused_and_leaves_nothing_to_read(
            key: [u8; KEY_LEN],
            nonce: [u8; NONCE_LEN],
            aad in prop::collection::vec(any::<u8>(), 0..40),
            plaintext in prop::collection::vec(any::<u8>(), 0..2000),
            bit: prop::sample::Index,
        ) {
            for algorithm in ALGORITHMS {
                for aead in each_backend(algorithm, &key) {
                    let mut text = with_room_for_the_tag(&plaintext);
                    aead.seal_in_place(&nonce, &aad, &mut text);
                    let (mut nonce, mut aad) = (nonce, aad.clone());
                    let bit = bit.index((NONCE_LEN + aad.len() + text.len()) * 8);
                    let byte = nonce.iter_mut().chain(&mut aad).chain(&mut text).nth(bit / 8);
                    *byte.expect("the bit lies within all bytes") ^= 1 << (bit % 8);
                    prop_assert_eq!(aead.open_in_place(&nonce, &aad, &mut text), Err(Forged));
                    prop_assert!(text.iter().all(|&byte| byte == 0));
                }
            }
        }
    }
}
