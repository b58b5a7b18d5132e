//! Two ends of a tunnel in memory: no socket, no TUN, no clock, no root.
//!
//! ```text
//! cargo run --example sans_io
//! ```
//! A packet goes in at one end; handshake and data travel as plain byte vectors, in a time that the program makes up; the
//! packet comes out at the other end.

use std::net::SocketAddr;
use std::time::Duration;

use ringway::tunnel::{Core, Now, Output, Peer, PrivateKey, Time};

/// An end, and where it is.
struct End {
    core: Core,
    address: SocketAddr,
}

fn random(bytes: &mut [u8]) {
    getrandom::fill(bytes).expect("the system has randomness");
}

/// An IPv4 packet without payload: 20 bytes of header, protocol 253 (for experiments, RFC 3692).
fn packet(source: [u8; 4], destination: [u8; 4]) -> Vec<u8> {
    let mut packet = vec![0; 20];
    (packet[0], packet[3], packet[8], packet[9]) = (0x45, 20, 64, 253);
    packet[12..16].copy_from_slice(&source);
    packet[16..20].copy_from_slice(&destination);
    packet
}

pub(crate) fn run() -> Result<(), Box<dyn std::error::Error>> {
    let mut now = Now {
        mono: Time::default(),
        unix: Duration::from_secs(1_700_000_000),
    };
    let keys = [PrivateKey::generate(random), PrivateKey::generate(random)];
    let mut ends = [0, 1].map(|at: usize| End {
        core: Core::new(&keys[at], 1420, random),
        address: SocketAddr::from(([192, 0, 2, 1 + at as u8], 51820)),
    });
    for at in 0..2 {
        let peer = Peer::new(keys[1 - at].public_key())
            .endpoint(ends[1 - at].address.to_string().parse()?)
            .allowed_ip(format!("10.99.0.{}/32", 2 - at).parse()?);
        ends[at].core.add_peer(now, &peer)?;
    }

    let sent = packet([10, 99, 0, 1], [10, 99, 0, 2]);
    ends[0].core.handle_packet(now, &sent);
    let mut received = None;
    // Each round takes a millisecond, in which what was sent arrives.
    while received.is_none() && now.mono - Time::default() < Duration::from_secs(1) {
        for at in 0..2 {
            while let Some(output) = ends[at].core.poll_output() {
                match output {
                    Output::Datagram { to, mut bytes, .. } => {
                        println!("{} -> {to}: {} bytes", ends[at].address, bytes.len());
                        let from = ends[at].address;
                        let other = ends.iter_mut().find(|end| end.address == to).ok_or("nobody is there")?;
                        other.core.handle_datagram(now, from, 0, &mut bytes);
                    }
                    Output::Packet(packet) => received = Some(packet),
                    news => println!("{}: {news:?}", ends[at].address),
                }
            }
        }
        now.mono = now.mono + Duration::from_millis(1);
        for end in &mut ends {
            if end.core.poll_timeout().is_some_and(|due| due <= now.mono) {
                end.core.handle_timeout(now);
            }
        }
    }
    if received.as_ref() != Some(&sent) {
        return Err(format!("{sent:?} was sent, {received:?} received").into());
    }
    println!("the packet arrived whole; {:?}", ends[1].core.statistics());
    Ok(())
}

#[allow(dead_code)] // tests call `run`
fn main() -> Result<(), Box<dyn std::error::Error>> {
    run()
}
