//! Does the time of sealing, opening or expanding a key depend on secrets?
//!
//! `cargo run --release --example dudect [choice [measurements]]`
//!
//! The method of Reparaz, Balasch and Verbauwhede, "Dude, is my code constant time?" (2017): an operation runs on inputs
//! of two classes in random order, one class fixed and the other random, and Welch's t-test says whether the two classes'
//! times have one mean. It is repeated with the slowest measurements cut off at a hundred points, for interrupts hide
//! small differences, and on squared deviations, for a leak may move the spread and not the mean. The largest |t| is
//! printed: beyond 10 the times differ for certain. More measurements let a real leak grow without bound.
//!
//! The first line is a control, a comparison that stops at the first difference: unless it stands out, this machine is
//! too noisy for the others to mean anything.

use std::env;
use std::error::Error;
use std::hint::black_box;
use std::process::ExitCode;
use std::time::Instant;

use ringway::crypto::{Aead, Algorithm, Choice, KEY_LEN, NONCE_LEN, TAG_LEN, self_test};

const TEXT_LEN: usize = 256;
const AAD: [u8; 16] = [0x81; 16];
const NONCE: [u8; NONCE_LEN] = [7; NONCE_LEN];
/// Inputs prepared before their operations run, few enough to stay in the L2 cache.
const PREPARED: usize = 32;
/// |t| from which on the classes differ for certain.
const CERTAIN: f64 = 10.0;

#[derive(Clone, Copy, PartialEq)]
enum Class {
    Fixed,
    Random,
}

/// What an operation works on.
struct Input {
    aead: Aead,
    key: [u8; KEY_LEN],
    text: Vec<u8>,
}

struct Experiment {
    name: &'static str,
    prepare: fn(Algorithm, Choice, Class, &mut Random) -> Input,
    run: fn(Algorithm, Choice, &mut Input),
}

const CONTROL: Experiment = Experiment {
    name: "control: early exit",
    prepare: |algorithm, choice, class, random| {
        let mut input = sealed(algorithm, choice, random.bytes(), [0; TEXT_LEN]);
        input.text.fill(0);
        input.text[random.position(class, TEXT_LEN)] = 1;
        input
    },
    run: |_, _, input| {
        black_box(input.text.iter().all(|&byte| black_box(byte) == 0));
    },
};

const EXPERIMENTS: [Experiment; 5] = [
    Experiment {
        name: "open: place of the wrong bit in the tag",
        prepare: |algorithm, choice, class, random| {
            let mut input = sealed(algorithm, choice, random.bytes(), random.bytes());
            input.text[TEXT_LEN + random.position(class, TAG_LEN)] ^= 0x10;
            input
        },
        run: open,
    },
    Experiment {
        name: "open: place of the wrong bit in the text",
        prepare: |algorithm, choice, class, random| {
            let mut input = sealed(algorithm, choice, random.bytes(), random.bytes());
            input.text[random.position(class, TEXT_LEN)] ^= 0x10;
            input
        },
        run: open,
    },
    Experiment {
        name: "open: key",
        prepare: |algorithm, choice, class, random| sealed(algorithm, choice, random.unless(class), random.bytes()),
        run: open,
    },
    Experiment {
        name: "seal: plaintext",
        prepare: |algorithm, choice, class, random| Input {
            text: [random.unless::<TEXT_LEN>(class).as_slice(), &[0; TAG_LEN]].concat(),
            ..sealed(algorithm, choice, random.bytes(), [0; TEXT_LEN])
        },
        run: |_, _, input| black_box(&input.aead).seal_in_place(&NONCE, &AAD, &mut input.text),
    },
    Experiment {
        name: "new: key",
        prepare: |algorithm, choice, class, random| sealed(algorithm, choice, random.unless(class), [0; TEXT_LEN]),
        run: |algorithm, choice, input| input.aead = Aead::new(algorithm, choice, black_box(&input.key)),
    },
];

fn sealed(algorithm: Algorithm, choice: Choice, key: [u8; KEY_LEN], plaintext: [u8; TEXT_LEN]) -> Input {
    let aead = Aead::new(algorithm, choice, &key);
    let mut text = [plaintext.as_slice(), &[0; TAG_LEN]].concat();
    aead.seal_in_place(&NONCE, &AAD, &mut text);
    Input { aead, key, text }
}

fn open(_: Algorithm, _: Choice, input: &mut Input) {
    let _ = black_box(black_box(&input.aead).open_in_place(&NONCE, &AAD, &mut input.text));
}

/// Nanoseconds of each class.
#[derive(Default)]
struct Times {
    fixed: Vec<f64>,
    random: Vec<f64>,
}

impl Experiment {
    fn measure(&self, algorithm: Algorithm, choice: Choice, measurements: usize, random: &mut Random) -> Times {
        let mut times = Times::default();
        for round in 0..=measurements / PREPARED {
            let classes: [Class; PREPARED] = std::array::from_fn(|_| random.class());
            let mut inputs = classes.map(|class| (self.prepare)(algorithm, choice, class, random));
            for (class, input) in classes.into_iter().zip(&mut inputs) {
                let start = Instant::now();
                (self.run)(algorithm, choice, input);
                let spent_ns = start.elapsed().as_nanos() as f64;
                // The first round warms up.
                match class {
                    _ if round == 0 => (),
                    Class::Fixed => times.fixed.push(spent_ns),
                    Class::Random => times.random.push(spent_ns),
                }
            }
        }
        times
    }
}

impl Times {
    /// The largest |t| over all cuts and both orders.
    fn largest_t(&self) -> f64 {
        let mut all = [self.fixed.as_slice(), &self.random].concat();
        all.sort_by(f64::total_cmp);
        // Closer together towards the slow end, as in the paper's tool.
        let cuts = (1..=100).map(|cut| all[(all.len() as f64 * (1.0 - 0.5_f64.powf(f64::from(cut) / 10.0))) as usize]);
        let t_values = cuts.chain([f64::INFINITY]).flat_map(|cut| {
            let [fixed, random] = [&self.fixed, &self.random].map(|times| below(times, cut));
            [
                welch_t(&fixed, &random),
                welch_t(&squared_deviations(&fixed), &squared_deviations(&random)),
            ]
        });
        t_values.map(f64::abs).fold(0.0, f64::max)
    }
}

fn below(times: &[f64], cut: f64) -> Vec<f64> {
    times.iter().copied().filter(|&time| time < cut).collect()
}

fn squared_deviations(times: &[f64]) -> Vec<f64> {
    let (mean, _) = mean_and_variance(times);
    times.iter().map(|time| (time - mean).powi(2)).collect()
}

/// Welch's statistic; 0 where a class is too small or does not vary.
fn welch_t(a: &[f64], b: &[f64]) -> f64 {
    let ((mean_a, variance_a), (mean_b, variance_b)) = (mean_and_variance(a), mean_and_variance(b));
    let error = (variance_a / a.len() as f64 + variance_b / b.len() as f64).sqrt();
    if a.len().min(b.len()) < 1000 || error == 0.0 {
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
        std::array::from_fn(|_| (self.next() >> 56) as u8)
    }

    /// Zeros for the fixed class. Random bytes are drawn in any case, so that both prepare alike.
    fn unless<const LEN: usize>(&mut self, class: Class) -> [u8; LEN] {
        let bytes = self.bytes();
        if class == Class::Fixed { [0; LEN] } else { bytes }
    }

    /// The first place for the fixed class, any other for the random one.
    fn position(&mut self, class: Class, len: usize) -> usize {
        let any = (self.next() >> 32) as usize % len;
        if class == Class::Fixed { 0 } else { any }
    }
}

fn main() -> Result<ExitCode, Box<dyn Error>> {
    let mut arguments = env::args().skip(1);
    let choice = arguments.next().map_or(Ok(Choice::Auto), |name| name.parse())?;
    let measurements = arguments.next().map_or(Ok(300_000), |count| count.parse())?;
    let selected = self_test(choice)?;
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let mut leaks = 0;
    for algorithm in [Algorithm::Aes256Gcm, Algorithm::ChaCha20Poly1305] {
        println!(
            "{algorithm:?} on {}, {measurements} measurements each",
            selected.backend(algorithm)
        );
        let control = CONTROL
            .measure(algorithm, choice, measurements, &mut random)
            .largest_t();
        let seen = if control > CERTAIN {
            "seen, as it must be"
        } else {
            "NOT SEEN: too noisy to judge"
        };
        println!("  {:<42} |t| {control:>7.1}  {seen}", CONTROL.name);
        for experiment in EXPERIMENTS {
            let t = experiment
                .measure(algorithm, choice, measurements, &mut random)
                .largest_t();
            let verdict = if t > CERTAIN { "LEAKS" } else { "no difference seen" };
            println!("  {:<42} |t| {t:>7.1}  {verdict}", experiment.name);
            leaks += u32::from(t > CERTAIN);
        }
    }
    Ok(if leaks == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}
