//! Each backend against aws-lc on any key, nonce, associated data, text and place in memory: the same record, nothing
//! touched beside it, and no changed record opened.

use ringway::crypto::{Aead, Algorithm, Choice, Forged, KEY_LEN, NONCE_LEN, Record, TAG_LEN};

#[path = "../../crypto/choices.rs"]
mod choices;

const LONGEST: usize = 65_535;
/// What surrounds a record in memory.
const AROUND: u8 = 0xb6;

/// Panics when something does not hold.
pub(crate) fn check(data: &[u8]) {
    let Some(case) = Case::parse(data) else { return };
    for algorithm in [Algorithm::Aes256Gcm, Algorithm::ChaCha20Poly1305] {
        let record = case.record(&Aead::new(algorithm, Choice::AwsLc, case.key));
        for &choice in choices() {
            let aead = Aead::new(algorithm, choice, case.key);
            case.holds(&aead, &record);
            case.holds_in_a_run(&aead, &Aead::new(algorithm, Choice::AwsLc, case.key));
        }
    }
}

struct Case<'a> {
    key: &'a [u8; KEY_LEN],
    nonce: &'a [u8; NONCE_LEN],
    aad: &'a [u8],
    plaintext: Vec<u8>,
    /// Where the record starts in its buffer.
    offset: usize,
    /// The bit of the record to flip, modulo its length.
    flip: usize,
}

impl<'a> Case<'a> {
    /// Key, nonce, offset, bit, repetitions, length of AAD, AAD, text to repeat.
    fn parse(data: &'a [u8]) -> Option<Case<'a>> {
        let (key, data) = data.split_first_chunk()?;
        let (nonce, data) = data.split_first_chunk()?;
        let (&[offset, flip_high, flip_low, repetitions, aad_len], data) = data.split_first_chunk()?;
        let (aad, text) = data.split_at_checked(aad_len.into())?;
        let mut plaintext = text.repeat(usize::from(repetitions) + 1);
        plaintext.truncate(LONGEST);
        Some(Case {
            key,
            nonce,
            aad,
            plaintext,
            offset: usize::from(offset % 64),
            flip: u16::from_be_bytes([flip_high, flip_low]).into(),
        })
    }

    fn record(&self, aead: &Aead) -> Vec<u8> {
        let mut record = [self.plaintext.as_slice(), &[0; TAG_LEN]].concat();
        aead.seal_in_place(self.nonce, self.aad, &mut record);
        record
    }

    fn holds(&self, aead: &Aead, record: &[u8]) {
        let at = self.offset..self.offset + record.len();
        let mut buffer = vec![AROUND; at.end + 64];
        buffer[at.clone()][..self.plaintext.len()].copy_from_slice(&self.plaintext);
        aead.seal_in_place(self.nonce, self.aad, &mut buffer[at.clone()]);
        assert_eq!(&buffer[at.clone()], record, "sealed");

        let sealed = &mut buffer[at.clone()];
        assert_eq!(aead.open_in_place(self.nonce, self.aad, sealed), Ok(()));
        assert_eq!(&sealed[..self.plaintext.len()], self.plaintext, "opened");

        sealed.copy_from_slice(record);
        let bit = self.flip % (record.len() * 8);
        sealed[bit / 8] ^= 1 << (bit % 8);
        assert_eq!(aead.open_in_place(self.nonce, self.aad, sealed), Err(Forged));
        assert!(sealed.iter().all(|&byte| byte == 0), "a forgery left text behind");

        let beside = buffer[..at.start].iter().chain(&buffer[at.end..]);
        assert!(beside.copied().all(|byte| byte == AROUND), "touched what lies beside");
    }
}

impl Case<'_> {
    /// The text, parts of it and nothing in one run, whose length and order the case's bytes decide.
    fn holds_in_a_run(&self, aead: &Aead, oracle: &Aead) {
        let numbers = 0..2 + self.flip % 24;
        let aad = if self.flip.is_multiple_of(5) { self.aad } else { &[] };
        let plaintexts: Vec<Vec<u8>> = numbers
            .map(|number| {
                let parts = 1 + (self.offset >> (number % 6) & 1) * number;
                let len = self.plaintext.len() / parts;
                [&self.plaintext[..len], &[0; TAG_LEN]].concat()
            })
            .collect();
        let nonce = |number: usize| {
            let mut nonce = *self.nonce;
            nonce[4] ^= number as u8;
            nonce
        };
        let mut expected = plaintexts.clone();
        for (number, text) in expected.iter_mut().enumerate() {
            oracle.seal_in_place(&nonce(number), aad, text);
        }
        let mut texts = plaintexts.clone();
        let records = |texts: &'_ mut Vec<Vec<u8>>, run: &dyn Fn(&mut [Record<'_>])| {
            let numbered = texts.iter_mut().enumerate();
            let mut records: Vec<_> = numbered
                .map(|(number, text)| Record::new(nonce(number), aad, text))
                .collect();
            run(&mut records);
            records.iter().map(|record| record.forged).collect::<Vec<bool>>()
        };
        records(&mut texts, &|records| aead.seal_run(records));
        assert_eq!(texts, expected, "sealed in a run");
        let mut in_parts = plaintexts.clone();
        let mut records_with_tails: Vec<_> = in_parts
            .iter_mut()
            .zip(&plaintexts)
            .enumerate()
            .map(|(number, (text, plaintext))| {
                let end = text.len() - TAG_LEN;
                let at = (self.offset + self.flip) % (end + 1);
                text[at..].fill(AROUND);
                Record::new(nonce(number), aad, text).with_tail(&plaintext[at..end])
            })
            .collect();
        aead.seal_run(&mut records_with_tails);
        assert_eq!(in_parts, expected, "sealed with tails");
        let victim = self.flip % texts.len();
        let last = texts[victim].len() - 1;
        texts[victim][last] ^= 1;
        let forged = records(&mut texts, &|records| aead.open_run(records));
        for (number, (text, plaintext)) in texts.iter().zip(&plaintexts).enumerate() {
            assert_eq!(forged[number], number == victim);
            let len = text.len() - TAG_LEN;
            let opened = if number == victim {
                &vec![0; len]
            } else {
                &plaintext[..len]
            };
            assert_eq!(&text[..len], opened, "opened in a run");
        }
    }
}

/// What runs on this CPU beside aws-lc, found out once.
fn choices() -> &'static [Choice] {
    use std::sync::LazyLock;
    static CHOICES: LazyLock<Vec<Choice>> = LazyLock::new(|| {
        let beside = |choice: &Choice| !matches!(choice, Choice::Auto | Choice::AwsLc);
        choices::choices().filter(beside).collect()
    });
    &CHOICES
}
