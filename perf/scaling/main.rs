//! Whether the data path's cost per packet grows with the number of workers: by counting, not by the clock.
//!
//! Two hosts of N workers each are joined in memory, without a kernel. Every worker of one sends super-packets to the
//! other on its lane, and every worker of the other opens them. This runs under `valgrind --tool=lackey
//! --trace-mem=yes`, which prints every instruction and every access to memory; a store to a known address says whose turn
//! begins. So one core is enough to count what each of many would do:
//!
//! - instructions per packet, which must not grow with N;
//! - stores per packet to cache lines that another worker of the same host also touches: what would travel between
//!   cores. In the native suite there must be none. In the WireGuard suite the workers share a record counter.
//!
//! ```text
//! cargo run --release --example scaling
//! ```
//! Needs valgrind. valgrind knows no AVX-512, so another backend seals than on such a CPU; what is counted besides is the
//! same.

mod pair;
mod trace;

use std::io::{self, BufReader};
use std::process::{Command, ExitCode, Stdio};

use clap::Parser;
use ringway::proto::SuiteChoice;

use pair::Pair;
use trace::{Count, Trace};

/// Rounds before counting begins: until nothing allocates any more, and every table has grown.
const WARM_UP_ROUNDS: usize = 3;
/// Rounds that are counted: a super-packet of every worker in each.
const ROUNDS: usize = 4;
/// How much more instructions per packet may be with more workers: hash tables differ a little with what they hold.
const GROWTH_MAX: f64 = 1.02;

#[derive(Parser)]
#[command(
    name = "scaling",
    about = "Counts instructions and shared cache lines per packet for 1, 2, 4 and 8 workers"
)]
struct Options {
    /// Only carry packets, as what is traced
    #[arg(long, hide = true)]
    traced: bool,
    /// Workers of each host
    #[arg(long, default_values_t = [1, 2, 4, 8], num_args = 1.., value_parser = clap::value_parser!(u8).range(1..))]
    workers: Vec<u8>,
    /// In the WireGuard suite
    #[arg(long)]
    wireguard: bool,
}

fn main() -> ExitCode {
    let options = Options::parse();
    if options.traced {
        carry(&options);
        return ExitCode::SUCCESS;
    }
    match compare() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("scaling: {error}");
            ExitCode::FAILURE
        }
    }
}

/// The traced run: prints where the marks are, then carries packets.
fn carry(options: &Options) {
    let suite = if options.wireguard {
        SuiteChoice::WireGuard
    } else {
        SuiteChoice::Native
    };
    for &workers in &options.workers {
        let mut pair = Pair::connect(suite, workers);
        (0..WARM_UP_ROUNDS).for_each(|_| pair.round());
        println!("{}", trace::announcement());
        let packets: usize = (0..ROUNDS).map(|_| pair.counted_round()).sum();
        println!("packets {packets}");
    }
}

/// Counts for every number of workers and suite; whether nothing grows that should not.
fn compare() -> io::Result<bool> {
    let mut holds = true;
    println!("suite      workers   instructions/packet   stores/packet   to shared lines/packet, out and in");
    for wireguard in [false, true] {
        let mut least = f64::INFINITY;
        for workers in Options::parse().workers {
            let Count {
                packets,
                instructions,
                stores,
                shared,
            } = counted(workers, wireguard)?;
            let per_packet = |count: u64| count as f64 / packets as f64;
            let suite = if wireguard { "WireGuard" } else { "native" };
            println!(
                "{suite:<10} {workers:>7} {:>21.0} {:>15.0} {:>18.3} {:.3}",
                per_packet(instructions),
                per_packet(stores),
                per_packet(shared[0]),
                per_packet(shared[1])
            );
            least = least.min(per_packet(instructions));
            holds &= per_packet(instructions) <= least * GROWTH_MAX && (wireguard || shared == [0, 0]);
        }
    }
    println!(
        "{}",
        if holds {
            "nothing grows with the number of workers"
        } else {
            "something grows with the number of workers"
        }
    );
    Ok(holds)
}

/// Runs this program under valgrind, and reads what it traces.
fn counted(workers: u8, wireguard: bool) -> io::Result<Count> {
    let mut command = Command::new("valgrind");
    command.args(["--tool=lackey", "--trace-mem=yes", "--log-fd=1"]);
    command
        .arg(std::env::current_exe()?)
        .args(["--traced", "--workers", &workers.to_string()]);
    if wireguard {
        command.arg("--wireguard");
    }
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(|error| io::Error::new(error.kind(), format!("cannot run valgrind: {error}")))?;
    let output = child.stdout.take().expect("piped");
    let trace = Trace::read(BufReader::with_capacity(1 << 20, output));
    let status = child.wait()?;
    if !status.success() {
        return Err(io::Error::other(format!("valgrind: {status}")));
    }
    trace?
        .count()
        .ok_or_else(|| io::Error::other("the trace is not of packets"))
}
