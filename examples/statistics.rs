//! What passes through a device, counted from the beginning and from a reset.
//!
//! ```text
//! sudo cargo run --example statistics -- [NAME]
//! ```
//! The program sends three datagrams into its own tunnel, reads the statistics with a reset, sends two more, and reads them
//! again.

use std::net::UdpSocket;
use std::time::Duration;

use ringway::tunnel::{Builder, Device, Statistics};

/// Bytes of a datagram's payload; it is 128 bytes long with its headers.
const PAYLOAD: [u8; 100] = [0; 100];
const PATIENCE: Duration = Duration::from_secs(5);

/// Has the system route `count` datagrams into the device, and takes them out there.
fn send(device: &Device, socket: &UdpSocket, count: usize) -> std::io::Result<()> {
    let mut packet = [0; 1500];
    for _ in 0..count {
        socket.send_to(&PAYLOAD, "10.78.0.2:9")?;
        device.recv_timeout(&mut packet, PATIENCE)?;
    }
    Ok(())
}

pub(crate) fn run(mut arguments: impl Iterator<Item = String>) -> Result<[Statistics; 2], Box<dyn std::error::Error>> {
    let name = arguments.next().unwrap_or_else(|| "rw-example".into());
    let device = Builder::new(name).address("10.78.0.1/24".parse()?).establish()?;
    let socket = UdpSocket::bind("10.78.0.1:0")?;

    send(&device, &socket, 3)?;
    let first = device.reset_statistics()?;
    println!("at first:          {first:?}");
    send(&device, &socket, 2)?;
    let second = device.statistics()?;
    println!("after the reset:   {second:?}");

    device.disconnect()?;
    Ok([first, second])
}

#[allow(dead_code)] // tests call `run`
fn main() -> Result<(), Box<dyn std::error::Error>> {
    run(std::env::args().skip(1)).map(drop)
}
