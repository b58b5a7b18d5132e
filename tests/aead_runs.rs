//! Runs of records, sealed and opened in one call, against the same records one by one from aws-lc-rs.

use aws_lc_rs::aead::{AES_256_GCM, Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
use proptest::prelude::*;
use ringway::crypto::{Aead, Algorithm, Choice, KEY_LEN, NONCE_LEN, Record, TAG_LEN};

#[path = "crypto/choices.rs"]
mod choices;

use choices::choices;

const ALGORITHMS: [Algorithm; 2] = [Algorithm::Aes256Gcm, Algorithm::ChaCha20Poly1305];
const KEY: [u8; KEY_LEN] = [0x4f; KEY_LEN];
/// What lies between the records of a run, as headers do in a GSO batch.
const GAP: usize = 16;
const AROUND: u8 = 0xd7;

/// As WireGuard's: four zero bytes and a little-endian counter.
fn nonce(counter: u64) -> [u8; NONCE_LEN] {
    let mut nonce = [0; NONCE_LEN];
    nonce[4..].copy_from_slice(&counter.to_le_bytes());
    nonce
}

/// Records laid end to end in one buffer, with gaps.
#[derive(Debug, Clone)]
struct Run {
    buffer: Vec<u8>,
    /// Lengths of the plaintexts.
    lens: Vec<usize>,
    aads: Vec<Vec<u8>>,
    first_counter: u64,
}

impl Run {
    fn new(lens: &[usize], first_counter: u64, start: usize) -> Run {
        let mut buffer = vec![AROUND; start];
        for (number, len) in lens.iter().enumerate() {
            buffer.extend([AROUND; GAP]);
            buffer.extend((0..*len).map(|at| ((at + number * 77) as u32).wrapping_mul(2_654_435_761).to_be_bytes()[0]));
            buffer.extend([0; TAG_LEN]);
        }
        buffer.extend([AROUND; GAP]);
        Run {
            buffer,
            lens: lens.to_vec(),
            aads: vec![Vec::new(); lens.len()],
            first_counter,
        }
    }

    fn records(&mut self) -> Vec<Record<'_>> {
        let all: usize = self.lens.iter().map(|len| GAP + len + TAG_LEN).sum();
        let start = self.buffer.len() - GAP - all;
        let mut rest = &mut self.buffer[start..];
        let mut records = Vec::new();
        for ((len, aad), counter) in self.lens.iter().zip(&self.aads).zip(self.first_counter..) {
            let (text, behind) = rest.split_at_mut(GAP + len + TAG_LEN);
            records.push(Record::new(nonce(counter), aad, &mut text[GAP..]));
            rest = behind;
        }
        records
    }

    /// Seals each record with aws-lc-rs.
    fn seal_one_by_one(&mut self, algorithm: Algorithm) {
        let algorithm = match algorithm {
            Algorithm::Aes256Gcm => &AES_256_GCM,
            Algorithm::ChaCha20Poly1305 => &CHACHA20_POLY1305,
        };
        let key = LessSafeKey::new(UnboundKey::new(algorithm, &KEY).expect("32 bytes"));
        for record in self.records() {
            let (text, tag) = record.text.split_last_chunk_mut::<TAG_LEN>().expect("there is room");
            let nonce = Nonce::assume_unique_for_key(record.nonce);
            let sealed = key.seal_in_place_separate_tag(nonce, Aad::from(record.aad), text);
            tag.copy_from_slice(sealed.expect("short enough").as_ref());
        }
    }
}

/// Seals and opens the run, with the records of `forge` changed in between.
fn holds(algorithm: Algorithm, choice: Choice, plain: &Run, forge: &[(usize, usize)]) {
    let aead = Aead::new(algorithm, choice, &KEY);
    let mut expected = plain.clone();
    expected.seal_one_by_one(algorithm);
    let mut run = plain.clone();
    aead.seal_run(&mut run.records());
    assert_eq!(run.buffer, expected.buffer, "{choice} seals {:?}", plain.lens);

    for (record, bit) in forge {
        let text = &mut run.records().swap_remove(*record).text;
        let bit = bit % (text.len() * 8);
        text[bit / 8] ^= 1 << (bit % 8);
    }
    let mut records = run.records();
    // What is there already is no finding.
    records.iter_mut().for_each(|record| record.forged = true);
    aead.open_run(&mut records);
    let mut original = plain.clone();
    for (number, (opened, plaintext)) in records.iter().zip(original.records()).enumerate() {
        let forged = forge.iter().any(|(record, _)| *record == number);
        assert_eq!(
            opened.forged, forged,
            "{choice} opens record {number} of {:?}",
            plain.lens
        );
        if forged {
            assert!(opened.text.iter().all(|&byte| byte == 0), "a forgery left text behind");
        } else {
            let len = opened.text.len() - TAG_LEN;
            assert_eq!(opened.text[..len], plaintext.text[..len]);
        }
    }
    for records in [run.records(), original.records()] {
        records.into_iter().for_each(|record| record.text.fill(AROUND));
    }
    assert_eq!(run.buffer, original.buffer, "touched what lies between the records");
}

#[test]
fn eight_records_of_every_length_to_2100_match() {
    for len in 0..=2100 {
        let run = Run::new(&[len; 8], u64::from(u32::MAX) - 3, len % 64);
        let forge = if len % 16 == 3 { &[(len % 8, len * 5)][..] } else { &[] };
        holds(Algorithm::ChaCha20Poly1305, Choice::Auto, &run, forge);
    }
}

#[test]
fn a_gso_batch_with_a_short_last_record_matches() {
    for (algorithm, choice) in ALGORITHMS
        .iter()
        .flat_map(|algorithm| choices().map(move |choice| (algorithm, choice)))
    {
        for (count, len, last) in [
            (45, 1420, 1420),
            (45, 1424, 37),
            (44, 1452, 0),
            (40, 1280, 1279),
            (7, 64, 64),
            (2, 576, 1),
        ] {
            let mut lens = vec![len; count];
            lens[count - 1] = last;
            holds(
                *algorithm,
                choice,
                &Run::new(&lens, 1 << 40, 5),
                &[(count / 2, 9999), (0, 3)],
            );
        }
    }
}

#[test]
fn two_lengths_in_any_places_match() {
    for (short, long) in [
        (0, 64),
        (63, 64),
        (64, 65),
        (191, 192),
        (192, 448),
        (1200, 1472),
        (1471, 1473),
        (1000, 2000),
    ] {
        for places in 0..=255u8 {
            let lens: Vec<usize> = (0..8)
                .map(|at| if places >> at & 1 == 1 { long } else { short })
                .collect();
            holds(Algorithm::ChaCha20Poly1305, Choice::Auto, &Run::new(&lens, 0, 1), &[]);
        }
    }
}

#[test]
fn long_records_match() {
    for len in [4096, 8972, 65_519] {
        let lens: Vec<usize> = (0..8).map(|at| len - at * 17).collect();
        holds(
            Algorithm::ChaCha20Poly1305,
            Choice::Auto,
            &Run::new(&lens, 0, 0),
            &[(7, 1)],
        );
    }
}

#[test]
fn a_record_without_a_whole_tag_is_forged_and_the_others_open() {
    for choice in choices() {
        let aead = Aead::new(Algorithm::ChaCha20Poly1305, choice, &KEY);
        for len in 0..TAG_LEN {
            let mut texts = vec![vec![7; 100 + TAG_LEN]; 8];
            let run = |texts: &mut Vec<Vec<u8>>, run: &dyn Fn(&mut [Record<'_>])| {
                let mut records: Vec<Record<'_>> = (0..)
                    .zip(texts)
                    .map(|(i, text)| Record::new(nonce(i), &[], text))
                    .collect();
                run(&mut records);
                records.iter().map(|record| record.forged).collect::<Vec<bool>>()
            };
            run(&mut texts, &|records| aead.seal_run(records));
            texts[2].truncate(len);
            let forged = run(&mut texts, &|records| aead.open_run(records));
            assert_eq!(forged, [false, false, true, false, false, false, false, false]);
            assert!(texts[2].iter().all(|&byte| byte == 0));
        }
    }
}

#[test]
#[should_panic(expected = "room for the tag")]
fn sealing_a_run_without_room_for_a_tag_panics() {
    let aead = Aead::new(Algorithm::ChaCha20Poly1305, Choice::Auto, &KEY);
    let (mut one, mut two) = ([0; 20], [0; 15]);
    aead.seal_run(&mut [
        Record::new(nonce(0), &[], &mut one),
        Record::new(nonce(1), &[], &mut two),
    ]);
}

#[test]
fn a_run_of_no_records_is_nothing() {
    for choice in choices() {
        let aead = Aead::new(Algorithm::ChaCha20Poly1305, choice, &KEY);
        aead.seal_run(&mut []);
        aead.open_run(&mut []);
    }
}

/// Lengths as traffic has them: mostly one, some acknowledgements, and anything.
fn lengths() -> impl Strategy<Value = Vec<usize>> {
    let usual = 0..2100usize;
    usual.prop_flat_map(|usual| {
        let len = prop_oneof![6 => Just(usual), 2 => 0..130usize, 2 => 0..2100usize, 1 => usual..usual + 64];
        prop::collection::vec(len, 1..50)
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn any_run_matches_and_no_forgery_opens(
        lens in lengths(),
        first_counter: u64,
        start in 0..64usize,
        with_aad in prop::collection::vec((any::<prop::sample::Index>(), 0..40usize), 0..3),
        forge in prop::collection::vec((any::<prop::sample::Index>(), any::<usize>()), 0..4),
    ) {
        let mut run = Run::new(&lens, first_counter >> 1, start);
        for (record, len) in with_aad {
            run.aads[record.index(lens.len())] = vec![0xaa; len];
        }
        let mut forge: Vec<(usize, usize)> = forge.into_iter().map(|(record, bit)| (record.index(lens.len()), bit)).collect();
        forge.sort_unstable();
        forge.dedup_by_key(|(record, _)| *record);
        for algorithm in ALGORITHMS {
            for choice in [Choice::Auto, Choice::AwsLc] {
                holds(algorithm, choice, &run, &forge);
            }
        }
    }
}
