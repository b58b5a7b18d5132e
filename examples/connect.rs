//! A tunnel whose packets ringway carries: what `ringway run` does, inside of another program.
//!
//! ```text
//! sudo cargo run --example connect -- NAME PRIVATE_KEY ADDRESS PEER_KEY ENDPOINT ROUTE [PACKETS]
//!
//! sudo cargo run --example connect -- rw0 "$(ringway genkey)" 10.99.0.2/24 \
//!     HIgo9xNzJMWLKASShiTqIybxZ0U3wGLiUeJ1PKf8ykw= vpn.example:51820 0.0.0.0/0
//! ```
//! Ends once so many packets came out of the tunnel, or never. (Arguments show in `ps`: a real program reads its key
//! elsewhere.)

use std::error::Error;
use std::fmt::Display;
use std::str::FromStr;
use std::thread::sleep;
use std::time::Duration;

use ringway::tunnel::{Builder, Peer, Statistics};

fn next<T: FromStr>(arguments: &mut impl Iterator<Item = String>, what: &str) -> Result<T, Box<dyn Error>>
where
    T::Err: Display,
{
    let text = arguments.next().ok_or(format!("{what} is missing"))?;
    text.parse().map_err(|error| format!("{what}: {error}").into())
}

pub(crate) fn run(mut arguments: impl Iterator<Item = String>) -> Result<Statistics, Box<dyn Error>> {
    let arguments = &mut arguments;
    let tunnel = Builder::new(next::<String>(arguments, "NAME")?)
        .session("ringway's example")
        .private_key(next(arguments, "PRIVATE_KEY")?)
        .address(next(arguments, "ADDRESS")?)
        .peer(Peer::new(next(arguments, "PEER_KEY")?).endpoint(next(arguments, "ENDPOINT")?))
        .route(next(arguments, "ROUTE")?)
        .connect()?;
    let packets = arguments.next().map_or(Ok(u64::MAX), |text| text.parse())?;
    println!(
        "{} (interface {}) is up, with an MTU of {}",
        tunnel.name(),
        tunnel.index(),
        tunnel.mtu()?
    );

    let mut shown = Statistics::default();
    while tunnel.is_running() {
        let statistics = tunnel.statistics()?;
        if statistics != shown {
            shown = statistics;
            println!("{statistics:?}");
        }
        if statistics.rx_packets >= packets {
            break;
        }
        sleep(Duration::from_millis(100));
    }
    // Where it had ended by itself, this says why.
    tunnel.disconnect()?;
    Ok(shown)
}

#[allow(dead_code)] // tests call `run`
fn main() -> Result<(), Box<dyn Error>> {
    run(std::env::args().skip(1)).map(drop)
}
