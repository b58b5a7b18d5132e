//! Whether the data path's cost per packet grows with the number of workers: by counting, not by the clock.
//!
//! Two hosts of N workers each are joined in memory, without a kernel. Every worker has a thread, which builds its data path
//! and owns it as in the daemon, so that what it allocates lies where it would there. Every worker of one host sends
//! super-packets to the other on its lane, and every worker of the other opens them, one at a time. This runs under
//! `valgrind --tool=lackey --trace-mem=yes`, which prints every instruction and every access to memory; a store to a known
//! address says whose turn begins. So one core is enough to count what each of many would do:
//!
//! - instructions per packet, which must not grow with N;
//! - accesses per packet to cache lines that one worker writes and another one of the same host touches: what would travel
//!   between cores. In the native suite there must be none. In the WireGuard suite the workers share a record counter, and
//!   must touch it no more than a super-packet needs.
//!
//! A last count has a counter of each worker planted side by side in memory, for sending and for receiving: unless both are noticed,
//! nothing else counts.
//!
//! ```text
//! cargo run --release --example scaling
//! ```
//! Needs valgrind. valgrind knows no AVX-512, so another backend seals than on such a CPU; what is counted besides is the
//! same.

mod pair;
mod thread;
mod trace;

use std::io::{self, BufReader, Read};
use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;

use clap::error::ErrorKind;
use clap::{CommandFactory as _, Parser, ValueEnum};
use ringway::proto::SuiteChoice;

use pair::{Pair, SEGMENTS};
use thread::Load;
use trace::{Count, Shared, Trace, WORKERS_MAX};

/// Rounds before counting begins: until nothing allocates any more, and every table has grown. (Each session before has had
/// a small one.)
const WARM_UP_ROUNDS: usize = 1;
/// Rounds that are counted: a super-packet of every worker in each, and another for what happens every other time.
const ROUNDS: usize = 2;
/// How much more instructions per packet may be with more workers: hash tables differ a little with what they hold.
const GROWTH_MAX: f64 = 1.02;
/// What would travel between cores sets the pace of many workers, so a native session may share nothing: lanes are there for that.
/// The protocol has one record counter for all workers of a WireGuard session. A super-packet moves it on once, for all its
/// records, and looks at it before, whether the key is used up, and after, whether a new one is due. (lackey shows an atomic addition as
/// two loads and a store.)
const WIREGUARD_LOADS_MAX: u64 = 4;
const WIREGUARD_STORES_MAX: u64 = 1;
/// Heaps that the C library may keep: one for each thread, as on a machine that has a core for each. (It derives their number
/// from that of the cores.)
const HEAPS: u32 = 80;
/// How often a row is counted that fails.
const ATTEMPTS: usize = 2;
/// In less time valgrind fills no pipe.
const FILLING_TIME: Duration = Duration::from_millis(1);
/// How many of the shared lines are printed.
const LINES_SHOWN: usize = 8;

#[derive(Parser)]
#[command(
    name = "scaling",
    about = "Counts instructions and shared cache lines per packet for 1, 2, 4 and 8 workers"
)]
struct Options {
    /// Workers of each host
    #[arg(long, default_values_t = [1, 2, 4, 8], num_args = 1.., value_parser = clap::value_parser!(u8).range(1..=WORKERS_MAX as i64))]
    workers: Vec<u8>,
    /// In this suite only
    #[arg(long)]
    suite: Option<Suite>,
    /// All threads allocate from one heap, which may lay what two of them write side by side
    #[arg(long)]
    one_heap: bool,
    /// Only carry packets, as what is traced
    #[arg(long, hide = true, requires = "suite")]
    traced: bool,
    /// The workers count in words that lie side by side
    #[arg(long, hide = true)]
    planted: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Suite {
    Native,
    Wireguard,
}

impl Suite {
    fn choice(self) -> SuiteChoice {
        match self {
            Suite::Native => SuiteChoice::Native,
            Suite::Wireguard => SuiteChoice::WireGuard,
        }
    }

    /// As options and tables have it.
    fn name(self) -> String {
        let value = self.to_possible_value().expect("every suite is one");
        value.get_name().to_owned()
    }
}

fn main() -> ExitCode {
    let options = Options::parse();
    let result = match (options.traced, options.suite) {
        (true, Some(suite)) => carry(&options, suite).map(|()| true),
        _ => compare(&options),
    };
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("scaling: {error}");
            ExitCode::FAILURE
        }
    }
}

/// The traced run: prints where the marks are, then carries packets.
fn carry(options: &Options, suite: Suite) -> io::Result<()> {
    for &workers in &options.workers {
        let mut pair = Pair::connect(suite.choice(), workers, options.planted);
        (0..WARM_UP_ROUNDS).for_each(|_| {
            pair.round(Load::Most);
        });
        println!("{}", trace::announcement()?);
        let packets: usize = (0..ROUNDS).map(|_| pair.round(Load::Most)).sum();
        println!("packets {packets}");
    }
    Ok(())
}

/// Counts for every number of workers and suite; whether nothing grows that should not, and that would have been noticed.
fn compare(options: &Options) -> io::Result<bool> {
    let numbers = numbers_of(options);
    if numbers.len() < 2 {
        let why = "--workers: one number has nothing to be compared with; give two or more, e.g. --workers 1 4";
        Options::command().error(ErrorKind::TooFewValues, why).exit();
    }
    let (mut holds, mut is_blind) = (true, false);
    println!("                    per packet                         to shared lines, out        to shared lines, in");
    println!(
        "suite      workers  instructions     loads    stores        loads      stores          loads      stores"
    );
    let suites = [Suite::Native, Suite::Wireguard].into_iter();
    for suite in suites.filter(|suite| options.suite.is_none_or(|only| only == *suite)) {
        // What is counted too high here would hide growth, so the lesser of two counts.
        let of_fewest = || counted(options, numbers[0], suite, false).map(|count| count.instructions_per_packet());
        let limit = of_fewest()?.min(of_fewest()?) * GROWTH_MAX;
        for &workers in &numbers {
            let mut complaint = None;
            for attempt in 1..=ATTEMPTS {
                let count = counted(options, workers, suite, false)?;
                print_row(suite, workers, if attempt > 1 { "(again)" } else { "" }, &count);
                complaint = complaint_of(suite, &count, limit);
                match complaint {
                    Some(_) => print_lines(&count)?,
                    None => break,
                }
            }
            if let Some(complaint) = complaint {
                println!("  {complaint}");
                holds = false;
            }
        }
        // What finds nothing has to show that it can find something.
        let planted = counted(options, 2, suite, true)?;
        print_row(suite, 2, "with counters of each worker planted side by side", &planted);
        is_blind |= !notices_what_is_planted(suite, &planted);
    }
    println!(
        "{}",
        match (is_blind, holds) {
            (true, _) => "counters that were planted side by side were not noticed: the counts mean nothing",
            (false, true) => "nothing grows with the number of workers",
            (false, false) => "something grows with the number of workers",
        }
    );
    Ok(holds && !is_blind)
}

/// In their order, each once.
fn numbers_of(options: &Options) -> Vec<u8> {
    let mut numbers = options.workers.clone();
    numbers.sort_unstable();
    numbers.dedup();
    numbers
}

/// What is wrong with a count that may have `limit` instructions per packet.
fn complaint_of(suite: Suite, count: &Count, limit: f64) -> Option<String> {
    let grown = (count.instructions_per_packet() > limit)
        .then(|| format!("more than {GROWTH_MAX} times the instructions of the fewest workers"));
    let shared = || {
        (!shares_no_more_than_it_must(suite, count))
            .then(|| "more accesses to shared lines than the suite needs".to_owned())
    };
    grown.or_else(shared)
}

/// What a suite has to share for so many packets, sent and received.
fn needed(suite: Suite, packets: u64) -> [Shared; 2] {
    let super_packets = packets / SEGMENTS as u64;
    let out = match suite {
        Suite::Native => Shared::default(),
        Suite::Wireguard => Shared {
            loads: WIREGUARD_LOADS_MAX * super_packets,
            stores: WIREGUARD_STORES_MAX * super_packets,
        },
    };
    [out, Shared::default()]
}

fn shares_no_more_than_it_must(suite: Suite, count: &Count) -> bool {
    let mut sides = count.shared.iter().zip(needed(suite, count.packets));
    sides.all(|(shared, needed)| shared.loads <= needed.loads && shared.stores <= needed.stores)
}

/// On each side of its own: what shows on one says nothing about the other. In the WireGuard suite one worker receives everything, so
/// only those that send can share a line.
fn notices_what_is_planted(suite: Suite, planted: &Count) -> bool {
    let [out, into] = planted.shared;
    let [needed_out, needed_into] = needed(suite, planted.packets);
    out.stores > needed_out.stores && (suite == Suite::Wireguard || into.stores > needed_into.stores)
}

fn print_row(suite: Suite, workers: u8, note: &str, count: &Count) {
    let per_packet = |number: u64| number as f64 / count.packets as f64;
    let suite = suite.name();
    let [out, into] = count.shared;
    println!(
        "{suite:<10} {workers:>7} {:>13.0} {:>9.0} {:>9.0} {:>12.3} {:>11.3} {:>14.3} {:>11.3} {note}",
        per_packet(count.instructions),
        per_packet(count.loads),
        per_packet(count.stores),
        per_packet(out.loads),
        per_packet(out.stores),
        per_packet(into.loads),
        per_packet(into.stores)
    );
}

/// The lines that are shared, and how to find the code that does it.
fn print_lines(count: &Count) -> io::Result<()> {
    for line in count.lines.iter().take(LINES_SHOWN) {
        println!("  {line}");
    }
    println!(
        "  (addr2line --exe {} --demangle --functions --inlines ADDRESS)",
        std::env::current_exe()?.display()
    );
    Ok(())
}

/// Reads seldom and much: valgrind writes line by line, and who waits for each is woken for each, which takes longer than all else.
struct Patient<R>(R);

impl<R: Read> Read for Patient<R> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        std::thread::sleep(FILLING_TIME);
        self.0.read(bytes)
    }
}

/// Runs this program under valgrind, and reads what it traces.
fn counted(options: &Options, workers: u8, suite: Suite, planted: bool) -> io::Result<Count> {
    let mut command = Command::new("valgrind");
    command.args(["--tool=lackey", "--trace-mem=yes", "--log-fd=1"]);
    command
        .arg(std::env::current_exe()?)
        .args(["--traced", "--workers", &workers.to_string()])
        .args(["--suite", &suite.name()])
        .args(planted.then_some("--planted"))
        .env(
            "GLIBC_TUNABLES",
            format!("glibc.malloc.arena_max={}", if options.one_heap { 1 } else { HEAPS }),
        );
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(|error| io::Error::new(error.kind(), format!("cannot run valgrind: {error}")))?;
    let output = child.stdout.take().expect("piped");
    let trace = Trace::read(BufReader::with_capacity(1 << 16, Patient(output)));
    let status = child.wait()?;
    if !status.success() {
        return Err(io::Error::other(format!("valgrind: {status}")));
    }
    trace?
        .count()
        .ok_or_else(|| io::Error::other("the trace is not of packets"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(instructions: u64, [out, into]: [[u64; 2]; 2]) -> Count {
        let shared = [out, into].map(|[loads, stores]| Shared { loads, stores });
        Count {
            packets: SEGMENTS as u64,
            instructions,
            loads: 0,
            stores: 0,
            shared,
            lines: Vec::new(),
        }
    }

    #[test]
    fn numbers_of_workers_are_counted_in_their_order_and_once() {
        let options = Options::parse_from(["scaling", "--workers", "8", "1", "8"]);
        assert_eq!(numbers_of(&options), [1, 8]);
    }

    #[test]
    fn what_grows_or_is_shared_is_complained_of_and_what_is_planted_has_to_show_on_both_sides() {
        let limit = 1_000.0;
        let within = 1_000 * SEGMENTS as u64;
        let complains = |suite, count: &Count| complaint_of(suite, count, limit).is_some();
        let clean = count(within, [[0; 2]; 2]);
        let counter = count(within, [[4, 1], [0; 2]]);
        assert!(!complains(Suite::Native, &clean) && !complains(Suite::Wireguard, &counter));
        assert!(complains(Suite::Native, &count(within + SEGMENTS as u64, [[0; 2]; 2])));
        assert!(complains(Suite::Native, &counter));
        assert!(complains(Suite::Wireguard, &count(within, [[4, 2], [0; 2]])));
        assert!(complains(Suite::Wireguard, &count(within, [[4, 1], [1, 0]])));
        let both = count(within, [[4, 2], [2, 1]]);
        let out_only = count(within, [[4, 2], [0; 2]]);
        let into_only = count(within, [[0; 2], [2, 1]]);
        assert!(notices_what_is_planted(Suite::Native, &both));
        for one_side in [&out_only, &into_only] {
            assert!(!notices_what_is_planted(Suite::Native, one_side));
        }
        assert!(!notices_what_is_planted(Suite::Wireguard, &into_only));
        assert!(notices_what_is_planted(Suite::Wireguard, &out_only));
        assert!(!notices_what_is_planted(Suite::Wireguard, &counter));
    }
}
