//! Known-answer tests of every backend, run at start: a miscompiled or miscalled cipher must never see a packet.
#![forbid(unsafe_code)]

use std::sync::OnceLock;

use super::{Aead, Algorithm, Backend, Choice, KEY_LEN, NONCE_LEN, Record, TAG_LEN};

/// The backend of each algorithm.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Selected {
    /// The backend of [`Algorithm::Aes256Gcm`].
    pub aes_256_gcm: Backend,
    /// The backend of [`Algorithm::ChaCha20Poly1305`].
    pub chacha20_poly1305: Backend,
}

impl Selected {
    /// The backend of `algorithm`.
    pub fn backend(&self, algorithm: Algorithm) -> Backend {
        match algorithm {
            Algorithm::Aes256Gcm => self.aes_256_gcm,
            Algorithm::ChaCha20Poly1305 => self.chacha20_poly1305,
        }
    }
}

/// No backend that was allowed runs on this CPU and computes `algorithm` correctly.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("no backend of crypto = \"{choice}\" runs on this CPU and passes the known-answer tests of {algorithm:?}")]
pub struct SelfTestError {
    /// What has no backend.
    pub algorithm: Algorithm,
    /// What was asked for.
    pub choice: Choice,
}

/// Tests the backends that `choice` allows, fastest first, and selects for each algorithm the first one that passes.
/// Takes well under a millisecond per backend.
///
/// # Errors
/// [`SelfTestError`] when an algorithm is left without a backend: do not run.
pub fn self_test(choice: Choice) -> Result<Selected, SelfTestError> {
    select(choice, passes)
}

/// What [`Choice::Auto`] means on this machine, found out once.
pub(super) fn selected() -> Selected {
    static SELECTED: OnceLock<Selected> = OnceLock::new();
    *SELECTED.get_or_init(|| self_test(Choice::Auto).expect("start-up refuses to run without a working cipher"))
}

fn select(choice: Choice, passes: impl Fn(Algorithm, Backend) -> bool) -> Result<Selected, SelfTestError> {
    let first_that_passes = |algorithm| {
        let mut allowed = Backend::allowed(choice, algorithm).iter().copied();
        let passing = allowed.find(|&backend| passes(algorithm, backend));
        passing.ok_or(SelfTestError { algorithm, choice })
    };
    Ok(Selected {
        aes_256_gcm: first_that_passes(Algorithm::Aes256Gcm)?,
        chacha20_poly1305: first_that_passes(Algorithm::ChaCha20Poly1305)?,
    })
}

fn passes(algorithm: Algorithm, backend: Backend) -> bool {
    KNOWN_ANSWERS
        .iter()
        .filter(|known| known.algorithm == algorithm)
        .all(|known| gives(backend, known))
        && agrees_with_portable(algorithm, backend)
        && runs_agree_with_portable(algorithm, backend)
}

struct KnownAnswer {
    algorithm: Algorithm,
    key: [u8; KEY_LEN],
    nonce: [u8; NONCE_LEN],
    aad: &'static [u8],
    plaintext: &'static [u8],
    ciphertext: &'static [u8],
    tag: [u8; TAG_LEN],
}

fn gives(backend: Backend, known: &KnownAnswer) -> bool {
    let Some(aead) = Aead::with_backend(known.algorithm, backend, &known.key) else {
        return false;
    };
    let record = [known.ciphertext, &known.tag].concat();
    let mut text = [known.plaintext, &[0; TAG_LEN]].concat();
    aead.seal_in_place(&known.nonce, known.aad, &mut text);
    let seals = text == record;
    let opens = aead.open_in_place(&known.nonce, known.aad, &mut text).is_ok() && text.starts_with(known.plaintext);
    text.copy_from_slice(&record);
    text[record.len() - 1] ^= 1;
    seals && opens && aead.open_in_place(&known.nonce, known.aad, &mut text).is_err()
}

/// The published vectors are short; packets are not, and the fast backends have code of their own for every few lengths
/// and for long records. A stride of a little less than a vector takes all of it.
fn agrees_with_portable(algorithm: Algorithm, backend: Backend) -> bool {
    let (key, nonce, aad) = ([0x5c; KEY_LEN], [0xff; NONCE_LEN], [0x36; 16]);
    let aeads = [backend, Backend::Portable].map(|backend| Aead::with_backend(algorithm, backend, &key));
    let [Some(aead), Some(oracle)] = aeads else {
        return false;
    };
    let mut lengths = (0..=4500).step_by(61);
    lengths.all(|len| {
        let mut text: Vec<u8> = (0..len + TAG_LEN).map(|at| at as u8).collect();
        let mut expected = text.clone();
        let plaintext = text[..len].to_vec();
        aead.seal_in_place(&nonce, &aad, &mut text);
        oracle.seal_in_place(&nonce, &aad, &mut expected);
        text == expected && aead.open_in_place(&nonce, &aad, &mut text).is_ok() && text[..len] == plaintext
    })
}

/// Runs have code of their own too: for records of one length, of several, and of none.
fn runs_agree_with_portable(algorithm: Algorithm, backend: Backend) -> bool {
    let key = [0xc5; KEY_LEN];
    let aeads = [backend, Backend::Portable].map(|backend| Aead::with_backend(algorithm, backend, &key));
    let [Some(aead), Some(oracle)] = aeads else {
        return false;
    };
    let lengths = |shortest: usize, step: usize| (0..8).map(move |record| shortest + step * record).rev();
    [(0, 0), (64, 0), (1452, 0), (200, 9), (1000, 31), (0, 64)]
        .into_iter()
        .all(|(shortest, step)| {
            let plaintexts: Vec<Vec<u8>> = lengths(shortest, step)
                .map(|len| (0..len + TAG_LEN).map(|at| (at * 7) as u8).collect())
                .collect();
            let mut texts = plaintexts.clone();
            let mut expected = plaintexts.clone();
            for (text, number) in expected.iter_mut().zip(0..) {
                oracle.seal_in_place(&[number; NONCE_LEN], &[], text);
            }
            aead.seal_run(&mut run(&mut texts));
            let seals = texts == expected;
            texts[5][shortest] ^= 1;
            let mut records = run(&mut texts);
            aead.open_run(&mut records);
            let opens = records
                .iter()
                .zip(0..)
                .all(|(record, number)| record.forged == (number == 5));
            let mut opened = texts.iter().zip(&plaintexts).zip(0..);
            let same = opened.all(|((text, plaintext), number)| {
                let len = text.len() - TAG_LEN;
                if number == 5 {
                    text.iter().all(|&byte| byte == 0)
                } else {
                    text[..len] == plaintext[..len]
                }
            });
            seals && opens && same
        })
}

fn run(texts: &mut [Vec<u8>]) -> Vec<Record<'_>> {
    let numbered = texts.iter_mut().zip(0..);
    numbered
        .map(|(text, number)| Record::new([number; NONCE_LEN], &[], text))
        .collect()
}

const KNOWN_ANSWERS: &[KnownAnswer] = &[
    // McGrew and Viega, "The Galois/Counter Mode of Operation (GCM)", appendix B, test case 13.
    KnownAnswer {
        algorithm: Algorithm::Aes256Gcm,
        key: [0; KEY_LEN],
        nonce: [0; NONCE_LEN],
        aad: &[],
        plaintext: &[],
        ciphertext: &[],
        tag: hex("530f8afbc74536b9a963b4f1c4cb738b"),
    },
    // Test case 14 of the same.
    KnownAnswer {
        algorithm: Algorithm::Aes256Gcm,
        key: [0; KEY_LEN],
        nonce: [0; NONCE_LEN],
        aad: &[],
        plaintext: &[0; 16],
        ciphertext: &hex::<16>("cea7403d4d606b6e074ec5d3baf39d18"),
        tag: hex("d0d1c8a799996bf0265b98b5d48ab919"),
    },
    // Test case 16 of the same.
    KnownAnswer {
        algorithm: Algorithm::Aes256Gcm,
        key: hex("feffe9928665731c6d6a8f9467308308feffe9928665731c6d6a8f9467308308"),
        nonce: hex("cafebabefacedbaddecaf888"),
        aad: &hex::<20>("feedfacedeadbeeffeedfacedeadbeefabaddad2"),
        plaintext: &hex::<60>(
            "d9313225f88406e5a55909c5aff5269a86a7a9531534f7da2e4c303d8a318a72\
             1c3c0c95956809532fcf0e2449a6b525b16aedf5aa0de657ba637b39",
        ),
        ciphertext: &hex::<60>(
            "522dc1f099567d07f47f37a32a84427d643a8cdcbfe5c0c97598a2bd2555d1aa\
             8cb08e48590dbb3da7b08b1056828838c5f61e6393ba7a0abcc9f662",
        ),
        tag: hex("76fc6ece0f4e1768cddf8853bb2d551b"),
    },
    // RFC 8439, section 2.8.2.
    KnownAnswer {
        algorithm: Algorithm::ChaCha20Poly1305,
        key: hex("808182838485868788898a8b8c8d8e8f909192939495969798999a9b9c9d9e9f"),
        nonce: hex("070000004041424344454647"),
        aad: &hex::<12>("50515253c0c1c2c3c4c5c6c7"),
        plaintext: b"Ladies and Gentlemen of the class of '99: If I could offer you only one tip for the future, \
                     sunscreen would be it.",
        ciphertext: &hex::<114>(
            "d31a8d34648e60db7b86afbc53ef7ec2a4aded51296e08fea9e2b5a736ee62d6\
             3dbea45e8ca9671282fafb69da92728b1a71de0a9e060b2905d6a5b67ecd3b36\
             92ddbd7f2d778b8c9803aee328091b58fab324e4fad675945585808b4831d7bc\
             3ff4def08e4b7a9de576d26586cec64b6116",
        ),
        tag: hex("1ae10b594f09e26a7e902ecbd0600691"),
    },
];

/// Bytes from hexadecimal digits, at compile time.
const fn hex<const LEN: usize>(digits: &str) -> [u8; LEN] {
    const fn nibble(digit: u8) -> u8 {
        match digit {
            b'0'..=b'9' => digit - b'0',
            b'a'..=b'f' => digit - b'a' + 10,
            _ => panic!("not a hexadecimal digit"),
        }
    }
    let digits = digits.as_bytes();
    assert!(digits.len() == LEN * 2);
    let mut bytes = [0; LEN];
    let mut at = 0;
    while at < LEN {
        bytes[at] = nibble(digits[2 * at]) << 4 | nibble(digits[2 * at + 1]);
        at += 1;
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_backend_that_runs_here_passes() {
        for algorithm in [Algorithm::Aes256Gcm, Algorithm::ChaCha20Poly1305] {
            for backend in Backend::BY_SPEED {
                let runs = Aead::with_backend(algorithm, backend, &[0; KEY_LEN]).is_some();
                assert_eq!(passes(algorithm, backend), runs, "{algorithm:?} on {backend}");
            }
        }
    }

    #[test]
    fn an_answer_other_than_the_known_one_fails() {
        for known in KNOWN_ANSWERS {
            for backend in Backend::BY_SPEED {
                let mut tag = known.tag;
                tag[3] ^= 0x10;
                assert!(!gives(backend, &KnownAnswer { tag, ..*known }));
                assert!(!gives(
                    backend,
                    &KnownAnswer {
                        aad: b"another",
                        ..*known
                    }
                ));
            }
        }
    }

    #[test]
    fn auto_takes_the_fastest_backend_that_passes_per_algorithm() {
        let all_but = |broken: &'static [(Algorithm, Backend)]| {
            select(Choice::Auto, |algorithm, backend| {
                !broken.contains(&(algorithm, backend))
            })
        };
        let avx512 = Selected {
            aes_256_gcm: Backend::Avx512,
            chacha20_poly1305: Backend::AwsLc,
        };
        const CHACHA_ON_AVX512: (Algorithm, Backend) = (Algorithm::ChaCha20Poly1305, Backend::Avx512);
        const AES_ON_AVX512: (Algorithm, Backend) = (Algorithm::Aes256Gcm, Backend::Avx512);
        const AES_ON_VAES: (Algorithm, Backend) = (Algorithm::Aes256Gcm, Backend::Vaes);
        assert_eq!(all_but(&[CHACHA_ON_AVX512]), Ok(avx512));
        let vaes = Selected {
            aes_256_gcm: Backend::Vaes,
            ..avx512
        };
        assert_eq!(all_but(&[CHACHA_ON_AVX512, AES_ON_AVX512]), Ok(vaes));
        let aws_lc = Selected {
            aes_256_gcm: Backend::AwsLc,
            ..avx512
        };
        assert_eq!(all_but(&[CHACHA_ON_AVX512, AES_ON_AVX512, AES_ON_VAES]), Ok(aws_lc));
        let portable = Selected {
            aes_256_gcm: Backend::Portable,
            ..avx512
        };
        const AES_ON_AWS_LC: (Algorithm, Backend) = (Algorithm::Aes256Gcm, Backend::AwsLc);
        assert_eq!(
            all_but(&[CHACHA_ON_AVX512, AES_ON_AVX512, AES_ON_VAES, AES_ON_AWS_LC]),
            Ok(portable)
        );
    }

    #[test]
    fn a_choice_is_kept_to() {
        let only = |backend| {
            Ok(Selected {
                aes_256_gcm: backend,
                chacha20_poly1305: backend,
            })
        };
        assert_eq!(self_test(Choice::AwsLc), only(Backend::AwsLc));
        assert_eq!(self_test(Choice::AesGcm), only(Backend::Portable));
        let vaes = Selected {
            aes_256_gcm: Backend::Vaes,
            chacha20_poly1305: Backend::AwsLc,
        };
        assert_eq!(select(Choice::Vaes, |_, _| true), Ok(vaes));
        let none = |_, backend| !matches!(backend, Backend::Avx512 | Backend::Vaes);
        for choice in [Choice::Avx512, Choice::Vaes] {
            let refused = select(choice, none).expect_err("the CPU lacks the features");
            assert_eq!(refused.algorithm, Algorithm::Aes256Gcm);
        }
    }

    #[test]
    fn a_chosen_backend_that_fails_is_an_error_that_names_it() {
        let error = select(Choice::AesGcm, |_, backend| backend != Backend::Portable).expect_err("nothing passes");
        assert_eq!(
            error,
            SelfTestError {
                algorithm: Algorithm::Aes256Gcm,
                choice: Choice::AesGcm
            }
        );
        assert!(error.to_string().contains("aes-gcm"));
    }
}
