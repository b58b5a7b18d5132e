//! A device whose packets the program moves itself: it answers pings to everybody in a network that exists nowhere else.
//!
//! ```text
//! sudo cargo run --example establish -- [NAME [PINGS]]     # ends after so many pings, or never
//! ping 10.77.0.2
//! ```

use ringway::tunnel::{Builder, Device};

/// RFC 792.
const ECHO_REQUEST: u8 = 8;
const ECHO_REPLY: u8 = 0;
const ICMP: u8 = 1;

/// Turns a ping into its answer; `None` where it is none.
fn answer(packet: &mut [u8]) -> Option<()> {
    let header_len = usize::from(packet.first()? & 0x0f) * 4;
    if packet[0] >> 4 != 4 || *packet.get(9)? != ICMP || *packet.get(header_len)? != ECHO_REQUEST {
        return None;
    }
    packet.get(header_len + 4)?;
    let (source, destination) = packet[12..20].split_at_mut(4);
    source.swap_with_slice(destination);
    // The sum of the header is the same; that of the message changes with the type (RFC 1624, equation 3).
    packet[header_len] = ECHO_REPLY;
    let sum = u16::from_be_bytes([packet[header_len + 2], packet[header_len + 3]]);
    let (sum, carry) = sum.overflowing_add(u16::from_be_bytes([ECHO_REQUEST, 0]));
    packet[header_len + 2..header_len + 4].copy_from_slice(&(sum + u16::from(carry)).to_be_bytes());
    Some(())
}

/// Answers `pings` pings.
fn serve(device: &Device, pings: u64) -> std::io::Result<()> {
    let mut packet = [0; 1500];
    let mut answered = 0;
    while answered < pings {
        let len = device.recv(&mut packet)?;
        if answer(&mut packet[..len]).is_some() {
            device.send(&packet[..len])?;
            answered += 1;
        }
    }
    Ok(())
}

pub(crate) fn run(mut arguments: impl Iterator<Item = String>) -> Result<(), Box<dyn std::error::Error>> {
    let name = arguments.next().unwrap_or_else(|| "rw-example".into());
    let pings = arguments.next().map_or(Ok(u64::MAX), |text| text.parse())?;
    let device = Builder::new(name)
        .session("ringway's example")
        .address("10.77.0.1/24".parse()?)
        .establish()?;
    println!("{} (interface {}) is up: ping 10.77.0.2", device.name(), device.index());
    serve(&device, pings)?;
    device.disconnect()?;
    Ok(())
}

#[allow(dead_code)] // tests call `run`
fn main() -> Result<(), Box<dyn std::error::Error>> {
    run(std::env::args().skip(1))
}
