//! Every backend of `crypto` against crates used directly and against Project Wycheproof's vectors.

use aes_gcm::aead::{AeadInOut, KeyInit};
use aws_lc_rs::aead::{AES_256_GCM, Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
use proptest::prelude::*;
use ringway::crypto::{Aead, Algorithm, Choice, Forged, KEY_LEN, NONCE_LEN, TAG_LEN};
use wycheproof::TestResult;
use wycheproof::aead::{TestName, TestSet};

#[path = "crypto/choices.rs"]
mod choices;

use choices::choices;

const ALGORITHMS: [Algorithm; 2] = [Algorithm::Aes256Gcm, Algorithm::ChaCha20Poly1305];

fn algorithms_and_choices() -> impl Iterator<Item = (Algorithm, Choice)> {
    let algorithms = ALGORITHMS.into_iter();
    algorithms.flat_map(|algorithm| choices().map(move |choice| (algorithm, choice)))
}

/// Bytes that repeat at no power of two.
fn pattern(len: usize) -> Vec<u8> {
    (0..len as u32)
        .map(|at| (at.wrapping_mul(2_654_435_761) >> 24) as u8)
        .collect()
}

/// Ciphertext and tag as aws-lc-rs makes them.
fn aws_lc(algorithm: Algorithm, key: &[u8; KEY_LEN], nonce: &[u8; NONCE_LEN], aad: &[u8], plaintext: &[u8]) -> Vec<u8> {
    let algorithm = match algorithm {
        Algorithm::Aes256Gcm => &AES_256_GCM,
        Algorithm::ChaCha20Poly1305 => &CHACHA20_POLY1305,
    };
    let key = LessSafeKey::new(UnboundKey::new(algorithm, key).expect("32 bytes"));
    let mut record = plaintext.to_vec();
    key.seal_in_place_append_tag(Nonce::assume_unique_for_key(*nonce), Aad::from(aad), &mut record)
        .expect("short enough");
    record
}

/// Ciphertext and tag as the crates aes-gcm and chacha20poly1305 make them.
fn rust_crypto(
    algorithm: Algorithm,
    key: &[u8; KEY_LEN],
    nonce: &[u8; NONCE_LEN],
    aad: &[u8],
    plaintext: &[u8],
) -> Vec<u8> {
    use chacha20poly1305::{AeadInPlace as _, KeyInit as _};
    let mut record = plaintext.to_vec();
    let tag: [u8; TAG_LEN] = match algorithm {
        Algorithm::Aes256Gcm => aes_gcm::Aes256Gcm::new(key.into())
            .encrypt_inout_detached(nonce.into(), aad, record.as_mut_slice().into())
            .expect("short enough")
            .into(),
        Algorithm::ChaCha20Poly1305 => chacha20poly1305::ChaCha20Poly1305::new(key.into())
            .encrypt_in_place_detached(nonce.into(), aad, &mut record)
            .expect("short enough")
            .into(),
    };
    record.extend_from_slice(&tag);
    record
}

/// Seals and opens `plaintext` at `offset` of a larger buffer, whose other bytes must stay as they are.
fn round_trip(aead: &Aead, nonce: &[u8; NONCE_LEN], aad: &[u8], plaintext: &[u8], offset: usize, record: &[u8]) {
    const AROUND: u8 = 0xd7;
    let mut buffer = vec![AROUND; offset + record.len() + 64];
    let at = offset..offset + record.len();
    buffer[at.clone()][..plaintext.len()].copy_from_slice(plaintext);
    aead.seal_in_place(nonce, aad, &mut buffer[at.clone()]);
    assert_eq!(
        &buffer[at.clone()],
        record,
        "sealed {} bytes at {offset}",
        plaintext.len()
    );
    assert_eq!(aead.open_in_place(nonce, aad, &mut buffer[at.clone()]), Ok(()));
    assert_eq!(&buffer[at.clone()][..plaintext.len()], plaintext, "opened at {offset}");
    buffer[at].fill(AROUND);
    assert!(buffer.iter().all(|&byte| byte == AROUND), "wrote beyond the record");
}

/// Opens `record` with `bit` of it flipped, which must fail and leave zeros.
fn refuses_flipped(aead: &Aead, nonce: &[u8; NONCE_LEN], aad: &[u8], record: &[u8], bit: usize) {
    let mut text = record.to_vec();
    text[bit / 8] ^= 1 << (bit % 8);
    assert_eq!(aead.open_in_place(nonce, aad, &mut text), Err(Forged), "bit {bit}");
    assert!(text.iter().all(|&byte| byte == 0), "bit {bit} left text behind");
}

#[test]
fn every_length_to_2100_matches_both_crates() {
    let (key, nonce, text) = ([0x9d; KEY_LEN], [0x31; NONCE_LEN], pattern(2100));
    for (algorithm, choice) in algorithms_and_choices() {
        let aead = Aead::new(algorithm, choice, &key);
        for len in 0..=text.len() {
            // WireGuard has no associated data, the native suite a header of 16 bytes.
            let (aad, plaintext) = (&text[..len % 2 * 16], &text[..len]);
            let record = aws_lc(algorithm, &key, &nonce, aad, plaintext);
            assert_eq!(record, rust_crypto(algorithm, &key, &nonce, aad, plaintext));
            round_trip(&aead, &nonce, aad, plaintext, len % 64, &record);
        }
    }
}

#[test]
fn every_alignment_gives_the_same_record() {
    let (key, nonce, text) = ([0x11; KEY_LEN], [0x92; NONCE_LEN], pattern(1440));
    for (algorithm, choice) in algorithms_and_choices() {
        let aead = Aead::new(algorithm, choice, &key);
        for len in [0, 1, 47, 48, 49, 64, 112, 113, 1280, 1420, 1440] {
            let (aad, plaintext) = (&text[..16], &text[..len]);
            let record = aws_lc(algorithm, &key, &nonce, aad, plaintext);
            for offset in 0..64 {
                round_trip(&aead, &nonce, aad, plaintext, offset, &record);
            }
        }
    }
}

#[test]
fn every_length_of_associated_data_to_100_matches() {
    let (key, nonce, text) = ([0x77; KEY_LEN], [0x20; NONCE_LEN], pattern(500));
    for (algorithm, choice) in algorithms_and_choices() {
        let aead = Aead::new(algorithm, choice, &key);
        for aad in (0..=100).map(|len| &text[..len]) {
            for plaintext in [&text[..0], &text[..100], &text] {
                let record = aws_lc(algorithm, &key, &nonce, aad, plaintext);
                round_trip(&aead, &nonce, aad, plaintext, 0, &record);
            }
        }
    }
}

#[test]
fn segments_join_at_every_length_around_their_ends() {
    let (key, nonce, text) = ([0x05; KEY_LEN], [0xfe; NONCE_LEN], pattern(65_535));
    for algorithm in ALGORITHMS {
        let aead = Aead::new(algorithm, Choice::Auto, &key);
        let around_2_kib = (1..8).flat_map(|segments| segments * 2048 - 100..segments * 2048 + 600);
        for len in around_2_kib.step_by(7).chain([16_384, 32_768, 65_519, 65_534, 65_535]) {
            let (aad, plaintext) = (&text[..16], &text[..len]);
            let record = aws_lc(algorithm, &key, &nonce, aad, plaintext);
            round_trip(&aead, &nonce, aad, plaintext, 0, &record);
        }
    }
}

#[test]
fn each_single_flipped_bit_of_a_record_is_refused() {
    let (key, nonce, text) = ([0x6e; KEY_LEN], [0x0c; NONCE_LEN], pattern(1420));
    for (algorithm, choice) in algorithms_and_choices() {
        let aead = Aead::new(algorithm, choice, &key);
        for len in [0, 1, 48, 49, 200, 1420] {
            let record = aws_lc(algorithm, &key, &nonce, &text[..16], &text[..len]);
            for bit in 0..record.len() * 8 {
                refuses_flipped(&aead, &nonce, &text[..16], &record, bit);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn any_record_matches_and_no_forgery_opens(
        key: [u8; KEY_LEN],
        nonce: [u8; NONCE_LEN],
        aad in prop::collection::vec(any::<u8>(), 0..80),
        len in prop_oneof![0..2100usize, 2100..65_536usize],
        seed: u8,
        offset in 0..64usize,
        bit: prop::sample::Index,
    ) {
        let plaintext: Vec<u8> = pattern(len).iter().map(|byte| byte ^ seed).collect();
        for algorithm in ALGORITHMS {
            let record = aws_lc(algorithm, &key, &nonce, &aad, &plaintext);
            for choice in [Choice::Auto, Choice::AwsLc] {
                let aead = Aead::new(algorithm, choice, &key);
                round_trip(&aead, &nonce, &aad, &plaintext, offset, &record);
                refuses_flipped(&aead, &nonce, &aad, &record, bit.index(record.len() * 8));
                let mut text = record.clone();
                let mut other = nonce;
                other[bit.index(NONCE_LEN)] ^= 0x40;
                prop_assert_eq!(aead.open_in_place(&other, &aad, &mut text), Err(Forged));
            }
        }
    }
}

fn wycheproof(algorithm: Algorithm, name: TestName) {
    let set = TestSet::load(name).expect("the vectors come with the crate");
    let mut ran = 0;
    for choice in choices() {
        let of_our_kind = set.test_groups.iter().filter(|group| {
            group.key_size == KEY_LEN * 8 && group.nonce_size == NONCE_LEN * 8 && group.tag_size == TAG_LEN * 8
        });
        for test in of_our_kind.flat_map(|group| &group.tests) {
            let key = test.key.as_slice().try_into().expect("chosen by its size");
            let nonce: [u8; NONCE_LEN] = test.nonce.as_slice().try_into().expect("chosen by its size");
            let aead = Aead::new(algorithm, choice, key);
            let record = [test.ct.as_slice(), &test.tag].concat();
            let mut text = record.clone();
            let opened = aead.open_in_place(&nonce, &test.aad, &mut text);
            match test.result {
                TestResult::Valid => {
                    assert_eq!(opened, Ok(()), "{choice} refuses {}", test.tc_id);
                    round_trip(&aead, &nonce, &test.aad, &test.pt, test.tc_id % 64, &record);
                }
                _ => assert_eq!(opened, Err(Forged), "{choice} opens {}: {}", test.tc_id, test.comment),
            }
            ran += 1;
        }
    }
    assert!(ran > 0, "no vector of our sizes");
}

#[test]
fn wycheproof_aes_256_gcm() {
    wycheproof(Algorithm::Aes256Gcm, TestName::AesGcm);
}

#[test]
fn wycheproof_chacha20_poly1305() {
    wycheproof(Algorithm::ChaCha20Poly1305, TestName::ChaCha20Poly1305);
}
