//! Does the time of sealing, opening or expanding a key depend on secrets?
//!
//! `cargo run --release --example dudect -- --help`
//!
//! The method of Reparaz, Balasch and Verbauwhede, "Dude, is my code constant time?" (2017): an operation runs on inputs
//! of two classes in random order, one class fixed and the other random, and Welch's t-test says whether the two classes'
//! times have one mean. It is repeated with the slowest measurements cut off at a hundred points, for interrupts hide
//! small differences, and on squared deviations, for a leak may move the spread and not the mean. The largest |t| is
//! printed: beyond 10 the times differ for certain. More measurements let a real leak grow without bound.
//!
//! Records have the lengths at which kernels take other ways: less than a flight of vectors, several, a packet's, and
//! more than the powers of H reach; runs are sealed and opened in one call, as a worker does.
//!
//! Each shape begins with a control: records are opened and a tag is compared beside, byte by byte until the first
//! difference. Unless that stands out, this machine is too noisy for the other lines of its shape to mean anything, and the
//! exit status is 2. It is 1 where something leaks.

use std::hint::black_box;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Parser;
use ringway::crypto::{Aead, Algorithm, Choice, KEY_LEN, NONCE_LEN, Record, TAG_LEN, self_test};

const AAD: [u8; 16] = [0x81; 16];
/// Bytes of inputs prepared before their operations run, few enough to stay in the L2 cache.
const PREPARED_BYTES: usize = 128 << 10;
/// As many as that, at most.
const PREPARED_MAX: usize = 32;
/// |t| from which on the classes differ for certain.
const CERTAIN: f64 = 10.0;
/// Measurements of a class from which on a test is made of them.
const ENOUGH: usize = 1000;
/// The exit status where nothing can be said; clap's for options that it does not understand.
const NOTHING_LEARNT: u8 = 2;

#[derive(Parser)]
#[command(
    name = "dudect",
    about = "Looks for secrets in the time that the crypto kernels take",
    after_help = "Exit status: 0 no difference seen, 1 a leak, 2 nothing learnt: too noisy to judge, a backend that this CPU has not, or an option not understood"
)]
struct Options {
    /// The backend: auto, avx512, vaes, aws-lc or aes-gcm
    #[arg(long, default_value_t = Choice::Auto)]
    crypto: Choice,
    /// How long to measure, all lines together; judging comes on top
    #[arg(long, default_value_t = 120, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=86_400))]
    seconds: u64,
}

/// What one operation seals or opens.
#[derive(Clone, Copy)]
struct Shape {
    /// Bytes of a plaintext.
    len: usize,
    /// Records; more than one are a run.
    records: usize,
}

const fn alone(len: usize) -> Shape {
    Shape { len, records: 1 }
}

const SHAPES: [Shape; 6] = [
    alone(64),
    alone(256),
    alone(1420),
    alone(4500),
    Shape { len: 64, records: 8 },
    Shape { len: 1420, records: 8 },
];

#[derive(Clone, Copy, PartialEq)]
enum Class {
    Fixed,
    Random,
}

/// What an operation works on.
struct Input {
    aead: Aead,
    key: [u8; KEY_LEN],
    /// Plaintexts or ciphertexts, each with its tag.
    texts: Vec<Vec<u8>>,
    /// A tag, and one that differs from it in one byte.
    tags: [[u8; TAG_LEN]; 2],
}

struct Experiment {
    name: &'static str,
    prepare: fn(&Kernel, Class, &mut Random) -> Input,
    run: fn(&Kernel, &mut Input),
}

/// What is measured.
struct Kernel {
    algorithm: Algorithm,
    choice: Choice,
    shape: Shape,
}

const CONTROL: Experiment = Experiment {
    name: "control: a tag compared byte by byte",
    prepare: |kernel, class, random| {
        let mut input = kernel.sealed(random.bytes(), random);
        input.tags = [random.bytes(); 2];
        input.tags[1][random.position(class, TAG_LEN)] ^= 0x10;
        input
    },
    run: |kernel, input| {
        open(kernel, input);
        let [ours, theirs] = black_box(&input.tags);
        black_box(ours.iter().zip(theirs).all(|(ours, theirs)| black_box(ours) == theirs));
    },
};

const OF_SHAPE: [Experiment; 4] = [
    Experiment {
        name: "open: place of the wrong bit in the tag",
        prepare: |kernel, class, random| {
            let mut input = kernel.sealed(random.bytes(), random);
            let place = kernel.shape.len + random.position(class, TAG_LEN);
            input.forge(place);
            input
        },
        run: open,
    },
    Experiment {
        name: "open: place of the wrong bit in the text",
        prepare: |kernel, class, random| {
            let mut input = kernel.sealed(random.bytes(), random);
            let place = random.position(class, kernel.shape.len);
            input.forge(place);
            input
        },
        run: open,
    },
    Experiment {
        name: "open: key",
        prepare: |kernel, class, random| kernel.sealed(random.unless(class), random),
        run: open,
    },
    Experiment {
        name: "seal: plaintext",
        prepare: |kernel, class, random| {
            let mut input = kernel.sealed(random.bytes(), random);
            for text in &mut input.texts {
                random.fill_unless(class, text);
            }
            input
        },
        run: |kernel, input| kernel.seal(&input.aead, &mut input.texts),
    },
];

const EXPAND: Experiment = Experiment {
    name: "new: key",
    prepare: |kernel, class, random| kernel.sealed(random.unless(class), random),
    run: |kernel, input| input.aead = Aead::new(kernel.algorithm, kernel.choice, black_box(&input.key)),
};

fn open(kernel: &Kernel, input: &mut Input) {
    let aead = black_box(&input.aead);
    match input.texts.as_mut_slice() {
        [text] => {
            let _ = black_box(aead.open_in_place(&nonce(0), &AAD, text));
        }
        texts => {
            let mut records = kernel.run_of(texts);
            aead.open_run(&mut records);
            black_box(&records);
        }
    }
}

impl Input {
    /// Makes a record wrong, always the same one of a run: which one it is, is no secret.
    fn forge(&mut self, place: usize) {
        let victim = self.texts.len() / 2;
        self.texts[victim][place] ^= 0x10;
    }
}

impl Kernel {
    /// Records of random plaintexts.
    fn sealed(&self, key: [u8; KEY_LEN], random: &mut Random) -> Input {
        let aead = Aead::new(self.algorithm, self.choice, &key);
        let mut texts = vec![vec![0; self.shape.len + TAG_LEN]; self.shape.records];
        texts
            .iter_mut()
            .for_each(|text| random.fill_unless(Class::Random, text));
        self.seal(&aead, &mut texts);
        Input {
            aead,
            key,
            texts,
            tags: [[0; TAG_LEN]; 2],
        }
    }

    fn seal(&self, aead: &Aead, texts: &mut [Vec<u8>]) {
        match texts {
            [text] => black_box(aead).seal_in_place(&nonce(0), &AAD, text),
            texts => black_box(aead).seal_run(&mut self.run_of(texts)),
        }
    }

    /// The native suite authenticates a header with each record, the WireGuard suite nothing.
    fn run_of<'a>(&self, texts: &'a mut [Vec<u8>]) -> [Record<'a>; 8] {
        let aad: &[u8] = match self.algorithm {
            Algorithm::Aes256Gcm => &AAD,
            Algorithm::ChaCha20Poly1305 => &[],
        };
        let texts: &mut [Vec<u8>; 8] = texts.try_into().expect("runs are of eight");
        let mut number = 0;
        texts.each_mut().map(|text| {
            number += 1;
            Record::new(nonce(number), aad, text)
        })
    }

    /// Prints what the experiment shows, measured for `time`, and returns |t|.
    fn try_out(&self, experiment: &Experiment, time: Duration, random: &mut Random, verdicts: [&str; 2]) -> f64 {
        let mut times = self.measure(experiment, time, random);
        let (count, t) = (times.fixed.len() + times.random.len(), times.largest_t());
        let verdict = verdicts[usize::from(t > CERTAIN)];
        println!("  {:<42} {count:>9} |t| {t:>8.1}  {verdict}", experiment.name);
        t
    }

    fn measure(&self, experiment: &Experiment, time: Duration, random: &mut Random) -> Times {
        let bytes = self.shape.records * self.shape.len;
        let prepared = (PREPARED_BYTES / bytes).min(PREPARED_MAX);
        let mut times = Times::default();
        let end = Instant::now() + time;
        let mut is_warm = false;
        while Instant::now() < end {
            let mut inputs: Vec<(Class, Input)> = (0..prepared)
                .map(|_| {
                    let class = random.class();
                    (class, (experiment.prepare)(self, class, random))
                })
                .collect();
            for (class, input) in &mut inputs {
                let start = Instant::now();
                (experiment.run)(self, input);
                let spent_ns = start.elapsed().as_nanos() as f64;
                match class {
                    _ if !is_warm => (),
                    Class::Fixed => times.fixed.push(spent_ns),
                    Class::Random => times.random.push(spent_ns),
                }
            }
            is_warm = true;
        }
        times
    }
}

fn nonce(number: u8) -> [u8; NONCE_LEN] {
    [number; NONCE_LEN]
}

/// Nanoseconds of each class.
#[derive(Default)]
struct Times {
    fixed: Vec<f64>,
    random: Vec<f64>,
}

impl Times {
    /// The largest |t| over all cuts and both orders; 0 where a class has too few.
    fn largest_t(&mut self) -> f64 {
        let mut all = [self.fixed.as_slice(), &self.random].concat();
        for times in [&mut all, &mut self.fixed, &mut self.random] {
            times.sort_by(f64::total_cmp);
        }
        if self.fixed.len().min(self.random.len()) < ENOUGH {
            return 0.0;
        }
        // Closer together towards the slow end, as in the paper's tool.
        let cuts = (1..=100).map(|cut| all[(all.len() as f64 * (1.0 - 0.5_f64.powf(f64::from(cut) / 10.0))) as usize]);
        let t_values = cuts.chain([f64::INFINITY]).flat_map(|cut| {
            let [fixed, random] =
                [&self.fixed, &self.random].map(|times| &times[..times.partition_point(|&time| time < cut)]);
            [
                welch_t(fixed, random),
                welch_t(&squared_deviations(fixed), &squared_deviations(random)),
            ]
        });
        t_values.map(f64::abs).fold(0.0, f64::max)
    }
}

fn squared_deviations(times: &[f64]) -> Vec<f64> {
    let (mean, _) = mean_and_variance(times);
    times.iter().map(|time| (time - mean).powi(2)).collect()
}

/// Welch's statistic; 0 where a class is too small or does not vary.
fn welch_t(a: &[f64], b: &[f64]) -> f64 {
    let ((mean_a, variance_a), (mean_b, variance_b)) = (mean_and_variance(a), mean_and_variance(b));
    let error = (variance_a / a.len() as f64 + variance_b / b.len() as f64).sqrt();
    if a.len().min(b.len()) < ENOUGH || error == 0.0 {
        return 0.0;
    }
    (mean_a - mean_b) / error
}

fn mean_and_variance(values: &[f64]) -> (f64, f64) {
    let count = values.len().max(2) as f64;
    let mean = values.iter().sum::<f64>() / count;
    let variance = values.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / (count - 1.0);
    (mean, variance)
}

/// xorshift64* (Vigna, 2016): inputs need variety, not secrecy.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn class(&mut self) -> Class {
        if self.next() >> 63 == 0 {
            Class::Fixed
        } else {
            Class::Random
        }
    }

    fn bytes<const LEN: usize>(&mut self) -> [u8; LEN] {
        self.unless(Class::Random)
    }

    /// Zeros for the fixed class.
    fn unless<const LEN: usize>(&mut self, class: Class) -> [u8; LEN] {
        let mut bytes = [0; LEN];
        self.fill_unless(class, &mut bytes);
        bytes
    }

    /// As [`Random::unless`]. What is random is drawn, written and masked in either class, so that both prepare alike.
    fn fill_unless(&mut self, class: Class, bytes: &mut [u8]) {
        let mask = black_box(if class == Class::Fixed { 0 } else { u64::MAX });
        for part in bytes.chunks_mut(8) {
            let word = self.next() & mask;
            part.copy_from_slice(&word.to_le_bytes()[..part.len()]);
        }
    }

    /// The first place for the fixed class, any for the random one.
    fn position(&mut self, class: Class, len: usize) -> usize {
        let any = (self.next() >> 32) as usize % len;
        if class == Class::Fixed { 0 } else { any }
    }
}

fn main() -> ExitCode {
    let options = Options::parse();
    let selected = match self_test(options.crypto) {
        Ok(selected) => selected,
        Err(error) => {
            eprintln!("dudect: {error}");
            return NOTHING_LEARNT.into();
        }
    };
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let algorithms = [Algorithm::Aes256Gcm, Algorithm::ChaCha20Poly1305];
    let lines = algorithms.len() * (SHAPES.len() * (1 + OF_SHAPE.len()) + 1);
    let time = Duration::from_secs(options.seconds) / lines as u32;
    let (mut leaks, mut blind) = (0, 0);
    for algorithm in algorithms {
        println!("{algorithm:?} on {}", selected.backend(algorithm));
        let kernel = |shape| Kernel {
            algorithm,
            choice: options.crypto,
            shape,
        };
        for shape in SHAPES {
            match shape {
                Shape { len, records: 1 } => println!(" {len} bytes"),
                Shape { len, records } => println!(" {records} records of {len} bytes in a run"),
            }
            let kernel = kernel(shape);
            let verdicts = ["NOT SEEN: too noisy to judge", "seen, as it must be"];
            let control = kernel.try_out(&CONTROL, time, &mut random, verdicts);
            blind += u32::from(control <= CERTAIN);
            for experiment in &OF_SHAPE {
                let t = kernel.try_out(experiment, time, &mut random, VERDICTS);
                leaks += u32::from(t > CERTAIN);
            }
        }
        println!(" keys");
        let t = kernel(alone(64)).try_out(&EXPAND, time, &mut random, VERDICTS);
        leaks += u32::from(t > CERTAIN);
    }
    match (leaks, blind) {
        (0, 0) => ExitCode::SUCCESS,
        (0, _) => NOTHING_LEARNT.into(),
        _ => ExitCode::FAILURE,
    }
}

const VERDICTS: [&str; 2] = ["no difference seen", "LEAKS"];
