//! The core of a tunnel as programs embed it: two ends without any I/O, in a time that passes as the tests say.

#[path = "../examples/sans_io.rs"]
mod example;

use std::net::SocketAddr;
use std::time::Duration;

use ringway::tunnel::{Core, Now, Output, Peer, PeerId, PrivateKey, Statistics, Suite, Time};
use ringway::wire::checksum::Sum;

const MTU: u16 = 1420;
/// What an initiation is long (WireGuard paper, section 5.4.2).
const INITIATION_LEN: usize = 148;

/// An end and what came out of it.
struct End {
    core: Core,
    peer: PeerId,
    address: SocketAddr,
    packets: Vec<Vec<u8>>,
    unreachable: usize,
    connected: usize,
}

/// Both, with a network between them that delivers at once while it is not cut.
struct Pair {
    ends: [End; 2],
    now: Now,
    cut: bool,
    /// Every datagram that was sent: its length and its traffic class.
    wire: Vec<(usize, u8)>,
}

fn key(at: usize) -> PrivateKey {
    PrivateKey::generate(|bytes| bytes.fill(at as u8 + 1))
}

fn address(at: usize) -> SocketAddr {
    SocketAddr::from(([192, 0, 2, at as u8 + 1], 51820))
}

/// splitmix64: enough for a test, and the same in every run.
fn random(mut state: u64) -> impl FnMut(&mut [u8]) + Send + 'static {
    move |bytes| {
        for chunk in bytes.chunks_mut(8) {
            state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut z = state;
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            chunk.copy_from_slice(&(z ^ (z >> 31)).to_le_bytes()[..chunk.len()]);
        }
    }
}

impl Pair {
    fn new(suite: Suite) -> Pair {
        let now = Now {
            mono: Time::default(),
            unix: Duration::from_secs(1_700_000_000),
        };
        let ends = [0, 1].map(|at| {
            let mut core = Core::new(&key(at), MTU, random(at as u64));
            let peer = Peer::new(key(1 - at).public_key())
                .endpoint(address(1 - at).to_string().parse().expect("an address"))
                .allowed_ip(format!("10.99.0.{}/32", 2 - at).parse().expect("a network"))
                .suite(suite);
            End {
                peer: core.add_peer(now, &peer).expect("the only peer"),
                core,
                address: address(at),
                packets: Vec::new(),
                unreachable: 0,
                connected: 0,
            }
        });
        Pair {
            ends,
            now,
            cut: false,
            wire: Vec::new(),
        }
    }

    /// Hands outputs over until there are none.
    fn settle(&mut self) {
        while let Some((at, output)) = (0..2).find_map(|at| Some((at, self.ends[at].core.poll_output()?))) {
            match output {
                Output::Datagram { to, tos, mut bytes } => {
                    self.wire.push((bytes.len(), tos));
                    let from = self.ends[at].address;
                    if let Some(other) = self.ends.iter_mut().find(|end| end.address == to && !self.cut) {
                        other.core.handle_datagram(self.now, from, tos, &mut bytes);
                    }
                }
                Output::Packet(packet) => self.ends[at].packets.push(packet),
                Output::Unreachable { .. } => self.ends[at].unreachable += 1,
                Output::Connected { .. } => self.ends[at].connected += 1,
            }
        }
    }

    /// Sends a packet from an end; whether it came out at the other.
    fn delivers(&mut self, from: usize, packet: &[u8]) -> bool {
        let before = self.ends[1 - from].packets.len();
        self.ends[from].core.handle_packet(self.now, packet);
        self.settle();
        self.ends[1 - from].packets[before..] == [packet]
    }

    /// Lets time pass, with everything that comes due in it.
    fn run(&mut self, span: Duration) {
        let end = self.now.mono + span;
        while let Some(due) = self.ends.iter().filter_map(|end| end.core.poll_timeout()).min()
            && due <= end
        {
            self.advance(due.max(self.now.mono));
            for at in 0..2 {
                self.ends[at].core.handle_timeout(self.now);
            }
            self.settle();
        }
        self.advance(end);
    }

    fn advance(&mut self, to: Time) {
        self.now.unix += to - self.now.mono;
        self.now.mono = to;
    }
}

/// A UDP packet from one end to the other, with a checksum that is right.
fn packet(from: usize, payload: usize, tos: u8) -> Vec<u8> {
    let len = 28 + payload;
    let mut packet = vec![0x5a; len];
    packet[..20].fill(0);
    (packet[0], packet[1], packet[8], packet[9]) = (0x45, tos, 64, 17);
    packet[2..4].copy_from_slice(&(len as u16).to_be_bytes());
    packet[12..16].copy_from_slice(&[10, 99, 0, from as u8 + 1]);
    packet[16..20].copy_from_slice(&[10, 99, 0, 2 - from as u8]);
    let sum = Sum::of(&packet[..20]).checksum();
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
    packet[24..26].copy_from_slice(&(len as u16 - 20).to_be_bytes());
    packet[26..28].fill(0); // no checksum (RFC 768)
    packet
}

#[test]
fn the_example_runs() {
    example::run().expect("a packet from end to end");
}

#[test]
fn packets_of_every_length_pass_both_ways_unchanged_in_either_suite() {
    for suite in [Suite::Auto, Suite::Native, Suite::WireGuard] {
        let mut pair = Pair::new(suite);
        for payload in [0, 1, 15, 16, 17, 1000, usize::from(MTU) - 28] {
            for from in 0..2 {
                assert!(
                    pair.delivers(from, &packet(from, payload, 0)),
                    "{suite}, {payload} from {from}"
                );
            }
        }
        let padding_max = 15;
        let longest = pair.wire.iter().map(|(len, _)| *len).max();
        assert!(longest <= Some(usize::from(MTU) + 32 + padding_max), "{longest:?}");
        assert!(pair.ends.iter().all(|end| end.connected == 1));
    }
}

#[test]
fn statistics_count_packets_and_begin_anew() {
    let mut pair = Pair::new(Suite::Auto);
    assert!(pair.delivers(0, &packet(0, 100, 0)) && pair.delivers(0, &packet(0, 100, 0)));
    let sent = Statistics {
        tx_packets: 2,
        tx_bytes: 256,
        ..Statistics::default()
    };
    assert_eq!(pair.ends[0].core.reset_statistics(), sent);
    assert_eq!(pair.ends[0].core.statistics(), Statistics::default());
    assert_eq!(pair.ends[1].core.statistics().rx_bytes, 256);
    assert!(pair.delivers(1, &packet(1, 72, 0)));
    assert_eq!(
        (
            pair.ends[0].core.statistics().rx_packets,
            pair.ends[0].core.statistics().rx_bytes
        ),
        (1, 100)
    );
}

#[test]
fn what_can_not_pass_is_counted_by_reason() {
    let mut pair = Pair::new(Suite::Auto);
    assert!(pair.delivers(0, &packet(0, 10, 0)));
    let now = pair.now;
    let core = &mut pair.ends[0].core;
    let mut elsewhere = packet(0, 10, 0);
    elsewhere[16] = 172;
    core.handle_packet(now, &elsewhere);
    core.handle_packet(now, b"no packet");
    core.handle_packet(now, &[]);
    core.handle_datagram(now, address(1), 0, &mut []);
    core.handle_datagram(now, address(1), 0, &mut [1; INITIATION_LEN]);
    core.handle_datagram(now, address(1), 0, &mut [4; 64]);
    assert_eq!(core.poll_output(), None);
    let drops = core.drops();
    assert_eq!(drops.values().sum::<u64>(), 6, "{drops:?}");
    assert_eq!(core.statistics().dropped, 6);
    assert!(pair.delivers(0, &packet(0, 10, 0)));
}

#[test]
fn a_session_is_renewed_while_packets_pass_and_forgotten_when_none_do() {
    for suite in [Suite::Native, Suite::WireGuard] {
        let mut pair = Pair::new(suite);
        for _ in 0..400 {
            assert!(pair.delivers(0, &packet(0, 64, 0)) && pair.delivers(1, &packet(1, 64, 0)));
            pair.run(Duration::from_secs(1));
        }
        for end in &pair.ends {
            let handshakes = end.connected;
            assert!((3..=6).contains(&handshakes), "one per 120 s: {handshakes}");
        }
        pair.run(Duration::from_secs(1000));
        for end in &pair.ends {
            assert_eq!(end.core.poll_timeout(), None, "nothing is left to wait for");
        }
        assert!(pair.delivers(1, &packet(1, 64, 0)));
    }
}

#[test]
fn a_peer_is_followed_to_another_address() {
    let mut pair = Pair::new(Suite::Auto);
    assert!(pair.delivers(0, &packet(0, 64, 0)));
    pair.ends[0].address = "198.51.100.7:4444".parse().expect("an address");
    assert!(pair.delivers(0, &packet(0, 64, 0)));
    assert!(pair.delivers(1, &packet(1, 64, 0)), "it is answered where it is");
}

#[test]
fn nobody_there_is_said_once_and_the_next_packet_tries_again() {
    let mut pair = Pair::new(Suite::Auto);
    pair.cut = true;
    assert!(!pair.delivers(0, &packet(0, 64, 0)));
    pair.run(Duration::from_secs(600));
    assert_eq!(pair.ends[0].unreachable, 1);
    pair.cut = false;
    assert!(pair.delivers(0, &packet(0, 80, 0)));
}

#[test]
fn congestion_marks_cross_the_tunnel() {
    let mut pair = Pair::new(Suite::Auto);
    assert!(pair.delivers(0, &packet(0, 64, 0)));
    pair.wire.clear();
    assert!(pair.delivers(0, &packet(0, 64, 0x02)));
    let marks: Vec<u8> = pair.wire.iter().map(|(_, tos)| tos & 3).collect();
    assert_eq!(marks, [2], "RFC 6040: the outer header says what the inner does");
}

#[test]
fn a_removed_peer_is_gone_and_may_come_back() {
    let mut pair = Pair::new(Suite::Auto);
    assert!(pair.delivers(0, &packet(0, 64, 0)));
    let (now, id) = (pair.now, pair.ends[1].peer);
    assert!(pair.ends[1].core.remove_peer(now, id));
    assert!(!pair.ends[1].core.remove_peer(now, id));
    assert_eq!(pair.ends[1].core.peers().count(), 0);
    assert!(!pair.delivers(0, &packet(0, 64, 0)));
    let again = Peer::new(key(0).public_key()).allowed_ip("10.99.0.1/32".parse().expect("a network"));
    pair.ends[1].core.add_peer(now, &again).expect("it is gone");
    // The other end finds its silence odd after 15 s, and shakes hands again.
    pair.run(Duration::from_secs(40));
    assert!(pair.delivers(0, &packet(0, 64, 0)));
}

#[test]
fn a_handshake_can_be_had_before_the_first_packet() {
    let mut pair = Pair::new(Suite::Auto);
    let (now, peer) = (pair.now, pair.ends[0].peer);
    pair.ends[0].core.connect(now, peer);
    pair.settle();
    assert!(pair.ends.iter().all(|end| end.connected == 1));
    let info = pair.ends[0].core.peer(peer).expect("it is there");
    assert!(info.last_handshake.is_some());
}

#[test]
fn a_name_and_a_key_twice_are_refused() {
    let mut pair = Pair::new(Suite::Auto);
    let now = pair.now;
    let core = &mut pair.ends[0].core;
    let named = Peer::new(key(7).public_key()).endpoint("vpn.example:1".parse().expect("a name"));
    let error = core.add_peer(now, &named).expect_err("a name").to_string();
    assert!(error.starts_with("endpoint(vpn.example:1): "), "{error}");
    for twice in [key(0), key(1)] {
        let error = core
            .add_peer(now, &Peer::new(twice.public_key()))
            .expect_err("a key")
            .to_string();
        assert!(error.starts_with("add_peer("), "{error}");
    }
}
