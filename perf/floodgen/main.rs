//! Floods an end of a tunnel with datagrams that nobody honest sends, from many forged sources, and says how many left.
//!
//! ```text
//! floodgen 192.0.2.2:51820 --kind no-mac1 --rate 50000                         initiations of noise
//! floodgen 192.0.2.2:51820 --kind mac1 --public-key KEY --suite wireguard      the same, each with a valid mac1
//! floodgen 192.0.2.2:51820 --kind replay --message FILE                        a genuine message, again and again
//! ```
//!
//! Sources are addresses of 198.18.0.0/15, which RFC 2544 keeps for benchmarks, unless told otherwise. It needs CAP_NET_RAW
//! and IPv4. What it sends costs it the same whichever kind it is: messages are made before it begins. The result is one
//! JSON object on standard output. It attacks: point it at nothing but a lab of your own.

mod flood;
mod forge;

use std::io;
use std::net::SocketAddrV4;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use clap::{Parser, ValueEnum as _};
use flood::Flood;
use forge::{Forge, Kind};
use ipnet::Ipv4Net;
use ringway::proto::Suite;
use serde::Serialize;

/// Different messages that are sent in turn.
const MESSAGES: usize = 1024;

#[derive(Parser)]
#[command(name = "floodgen", about = "Floods an end of a tunnel with forged datagrams")]
struct Options {
    /// Whom
    target: SocketAddrV4,
    /// With what
    #[arg(long, value_enum)]
    kind: Kind,
    /// Whose messages it forges
    #[arg(long, default_value = "native", value_parser = suite)]
    suite: Suite,
    /// The target's public key, for the kinds that have a valid mac1
    #[arg(long, value_name = "BASE64", value_parser = public_key, default_value = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=")]
    public_key: [u8; 32],
    /// The message that `--kind replay` repeats, as it was on the wire
    #[arg(long, value_name = "FILE", required_if_eq("kind", "replay"))]
    message: Option<PathBuf>,
    /// Datagrams per second
    #[arg(long, default_value_t = 50_000.0, value_name = "PPS")]
    rate: f64,
    /// How long
    #[arg(long, default_value_t = 3.0)]
    seconds: f64,
    /// The sources, in turn, each datagram from another port
    #[arg(long, default_value = "198.18.0.0/15", value_name = "NETWORK")]
    from: Ipv4Net,
}

#[derive(Serialize)]
struct Report {
    kind: String,
    suite: &'static str,
    /// Datagrams that the kernel took.
    sent: u64,
    /// Calls that it refused.
    refused: u64,
    seconds: f64,
    sent_pps: f64,
}

fn main() -> ExitCode {
    match run(&Options::parse()) {
        Ok(report) => {
            println!("{}", serde_json::to_string(&report).expect("numbers and names"));
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("floodgen: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> io::Result<Report> {
    let messages = match &options.message {
        Some(path) => vec![std::fs::read(path)?],
        None => {
            let mut forge = Forge::new(options.suite, options.public_key, 1);
            (0..MESSAGES).map(|_| forge.message(options.kind)).collect()
        }
    };
    let mut flood = Flood::new(options.target, options.from, &messages)?;
    let duration = Duration::from_secs_f64(options.seconds);
    let sent = flood.run(options.rate, |_, elapsed| elapsed < duration)?;
    let seconds = sent.elapsed.as_secs_f64();
    Ok(Report {
        kind: options
            .kind
            .to_possible_value()
            .expect("no kind is hidden")
            .get_name()
            .to_owned(),
        suite: options.suite.name(),
        sent: sent.datagrams,
        refused: sent.refused,
        seconds,
        sent_pps: sent.datagrams as f64 / seconds,
    })
}

fn suite(name: &str) -> Result<Suite, String> {
    let suite = Suite::ALL.into_iter().find(|suite| suite.name() == name);
    suite.ok_or_else(|| "native or wireguard".to_owned())
}

fn public_key(text: &str) -> Result<[u8; 32], String> {
    let bytes = STANDARD.decode(text).map_err(|error| error.to_string())?;
    <[u8; 32]>::try_from(bytes).map_err(|bytes| format!("a key has 32 bytes, not {}", bytes.len()))
}
