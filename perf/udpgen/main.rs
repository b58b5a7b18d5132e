//! Generates and counts UDP traffic without being the bottleneck: what `scripts/compare` and `perf/latency` measure with.
//!
//! ```text
//! udpgen serve 10.99.0.2:5300                  the far end: counts on UDP 5300, echoes on 5301, is asked on TCP 5300
//! udpgen blast 10.99.0.2:5300 --size 64        sends as fast as it can, prints what was sent and what arrived
//! udpgen rtt 10.99.0.2:5300 --rate 1000        sends timestamps, prints the percentiles of their way there and back
//! ```
//!
//! Results are one JSON object on standard output. Datagrams move in batches (sendmmsg, recvmmsg), with `--gso` as
//! super-packets that the kernel cuts (UDP_SEGMENT); the far end always takes what the kernel has merged (UDP_GRO).

mod blast;
mod control;
mod rtt;
mod serve;
mod socket;

use std::io;
use std::net::SocketAddr;
use std::process::ExitCode;

use clap::Parser;

#[derive(Parser)]
#[command(name = "udpgen", about = "Generates and counts UDP traffic")]
enum Command {
    /// Count and echo what arrives, until killed
    Serve(serve::Options),
    /// Send to a server, and say what arrived
    Blast(blast::Options),
    /// Measure round trips to a server
    Rtt(rtt::Options),
}

fn main() -> ExitCode {
    let result = match Command::parse() {
        Command::Serve(options) => serve::run(&options),
        Command::Blast(options) => blast::run(&options).and_then(|report| print(&report)),
        Command::Rtt(options) => rtt::run(&options).and_then(|report| print(&report)),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("udpgen: {error}");
            ExitCode::FAILURE
        }
    }
}

fn print(report: &impl serde::Serialize) -> io::Result<()> {
    println!("{}", serde_json::to_string(report)?);
    Ok(())
}

/// Where a server echoes: the port after the one that it counts on.
fn echo_address(server: SocketAddr) -> SocketAddr {
    SocketAddr::new(server.ip(), server.port().wrapping_add(1))
}
