//! What a record of the WireGuard suite costs, alone and in runs, with this crate's kernel and with aws-lc-rs.
//!
//! `cargo bench --bench chacha`
//!
//! The contenders take turns of about half a millisecond each, many times over, so that a change of clock or a noisy
//! neighbour meets them all; printed are medians, in ns per record. Records lie end to end behind headers of 16 bytes as
//! in a GSO batch, and what is opened was sealed before, outside the measured time.

use std::hint::black_box;
use std::time::{Duration, Instant};

use ringway::crypto::{Aead, Algorithm, Choice, NONCE_LEN, Record, TAG_LEN, self_test};

const HEADER_LEN: usize = 16;
const TURNS: usize = 61;
const TURN: Duration = Duration::from_micros(500);

fn main() {
    let algorithm = Algorithm::ChaCha20Poly1305;
    let fastest = self_test(Choice::Auto).expect("some backend works").chacha20_poly1305;
    let [ours, aws_lc] = [Choice::Auto, Choice::AwsLc].map(|choice| Aead::new(algorithm, choice, &[7; 32]));
    println!("ns per record            aws-lc one by one | {fastest} one by one | {fastest} in runs");
    println!("bytes   in a run of        seal       open |     seal      open |     seal      open");
    for (len, run) in [0, 64, 128, 256, 576, 1024, 1280, 1420, 1424, 1440, 1452, 8940]
        .into_iter()
        .flat_map(|len| [(len, 8), (len, 45)])
        .chain([2, 3, 4, 5, 6, 7, 13].map(|run| (1424, run)))
    {
        let medians = measure(
            len,
            run,
            [
                &mut |buffer, sealing| one_by_one(&aws_lc, len, buffer, sealing),
                &mut |buffer, sealing| one_by_one(&ours, len, buffer, sealing),
                &mut |buffer, sealing| in_runs(&ours, len, buffer, sealing),
            ],
        );
        let [[a, b], [c, d], [e, f]] = medians;
        println!("{len:5} {run:12} {a:15.1} {b:10.1} | {c:8.1}  {d:8.1} | {e:8.1}  {f:8.1}");
    }
}

/// Seals or opens all records of a buffer.
type Contender<'a> = &'a mut dyn FnMut(&mut [u8], bool);

/// Medians of each contender's time per record, sealing and opening.
fn measure<const N: usize>(len: usize, run: usize, mut contenders: [Contender<'_>; N]) -> [[f64; 2]; N] {
    let mut buffer = vec![0x5a; run * (HEADER_LEN + len + TAG_LEN)];
    let mut times: [[Vec<f64>; 2]; N] = [const { [const { Vec::new() }; 2] }; N];
    for _ in 0..TURNS {
        for (contender, times) in contenders.iter_mut().zip(&mut times) {
            let mut spent = [Duration::ZERO; 2];
            let mut rounds = 0;
            while spent[0] + spent[1] < 2 * TURN {
                for (spent, sealing) in spent.iter_mut().zip([true, false]) {
                    let start = Instant::now();
                    contender(black_box(&mut buffer), sealing);
                    *spent += start.elapsed();
                }
                rounds += run;
            }
            for (times, spent) in times.iter_mut().zip(spent) {
                times.push(spent.as_nanos() as f64 / rounds as f64);
            }
        }
    }
    times.map(|both| {
        both.map(|mut times| {
            times.sort_by(f64::total_cmp);
            times[TURNS / 2]
        })
    })
}

fn one_by_one(aead: &Aead, len: usize, buffer: &mut [u8], sealing: bool) {
    for (datagram, counter) in buffer.chunks_exact_mut(HEADER_LEN + len + TAG_LEN).zip(0..) {
        let text = &mut datagram[HEADER_LEN..];
        if sealing {
            aead.seal_in_place(&nonce(counter), &[], text);
        } else {
            aead.open_in_place(&nonce(counter), &[], text)
                .expect("sealed with the same nonce");
        }
    }
}

fn in_runs(aead: &Aead, len: usize, buffer: &mut [u8], sealing: bool) {
    let datagrams = buffer.chunks_exact_mut(HEADER_LEN + len + TAG_LEN);
    let mut records: Vec<Record<'_>> = datagrams
        .zip(0..)
        .map(|(datagram, counter)| Record::new(nonce(counter), &[], &mut datagram[HEADER_LEN..]))
        .collect();
    if sealing {
        aead.seal_run(&mut records);
    } else {
        aead.open_run(&mut records);
        assert!(records.iter().all(|record| !record.forged));
    }
}

fn nonce(counter: u64) -> [u8; NONCE_LEN] {
    let mut nonce = [0; NONCE_LEN];
    nonce[4..].copy_from_slice(&counter.to_le_bytes());
    nonce
}
