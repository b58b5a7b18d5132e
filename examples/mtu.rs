//! The MTU of a device that runs, changed: the same datagram goes through it whole, and then in fragments.
//!
//! ```text
//! sudo cargo run --example mtu -- [NAME]
//! ```

use std::net::UdpSocket;
use std::time::Duration;

use ringway::tunnel::{Builder, Device};

/// With its headers it is 1328 bytes long.
const PAYLOAD: [u8; 1300] = [0; 1300];
const PATIENCE: Duration = Duration::from_secs(5);

/// Sends the datagram into the device; the lengths of the packets that it takes.
fn packets(device: &Device, socket: &UdpSocket) -> std::io::Result<Vec<usize>> {
    socket.send_to(&PAYLOAD, "10.79.0.2:9")?;
    let mut packet = [0; 1500];
    let mut lengths = Vec::new();
    loop {
        let len = device.recv_timeout(&mut packet, PATIENCE)?;
        lengths.push(len);
        // The flag of RFC 791 that more fragments follow.
        if packet[6] & 0x20 == 0 {
            return Ok(lengths);
        }
    }
}

pub(crate) fn run(mut arguments: impl Iterator<Item = String>) -> Result<[Vec<usize>; 2], Box<dyn std::error::Error>> {
    let name = arguments.next().unwrap_or_else(|| "rw-example".into());
    let device = Builder::new(name)
        .address("10.79.0.1/24".parse()?)
        .mtu(1400)
        .establish()?;
    let socket = UdpSocket::bind("10.79.0.1:0")?;

    let before = packets(&device, &socket)?;
    println!("MTU {}: packets of {before:?} bytes", device.mtu()?);
    device.set_mtu(1280)?;
    let after = packets(&device, &socket)?;
    println!("MTU {}: packets of {after:?} bytes", device.mtu()?);

    device.disconnect()?;
    Ok([before, after])
}

#[allow(dead_code)] // tests call `run`
fn main() -> Result<(), Box<dyn std::error::Error>> {
    run(std::env::args().skip(1)).map(drop)
}
