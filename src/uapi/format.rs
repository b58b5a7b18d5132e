//! A device as it is -> the lines that answer a `get`.

use std::fmt::{self, Write as _};
use std::time::Duration;

use zeroize::Zeroizing;

use crate::config::key::KEY_LEN;
use crate::control::dump::{Dump, PeerDump};

/// Bytes that a peer's lines take, but for its allowed IPs: more than the longest of them do.
const PEER_LEN_MAX: usize = 512;
/// Bytes that an allowed IP's line takes at most.
const ALLOWED_IP_LEN_MAX: usize = 64;

/// The lines of the answer to `get=1`, its `errno` not among them. It holds keys, and is as secret as they are.
pub fn dump(dump: &Dump) -> Zeroizing<String> {
    // Room for everything from the start: a growing String would leave copies of keys behind.
    let allowed_ips: usize = dump.peers.iter().map(|peer| peer.allowed_ips.len()).sum();
    let room = PEER_LEN_MAX * (1 + dump.peers.len()) + ALLOWED_IP_LEN_MAX * allowed_ips;
    let mut out = Zeroizing::new(String::with_capacity(room));
    // Writing to a String can't fail.
    let _ = write_device(&mut out, dump);
    for peer in &dump.peers {
        let _ = write_peer(&mut out, peer);
    }
    debug_assert!(out.capacity() == room, "the estimate was too low");
    out
}

/// The end of every answer: 0, or why the operation was not carried out.
pub fn errno(errno: i32) -> String {
    // Negated, as wireguard-go has it and wg takes it.
    format!("errno={}\n\n", -errno)
}

fn write_device(out: &mut String, dump: &Dump) -> fmt::Result {
    if let Some(key) = &dump.private_key {
        write_key(out, "private_key", key.as_bytes())?;
    }
    if dump.listen_port != 0 {
        writeln!(out, "listen_port={}", dump.listen_port)?;
    }
    if dump.fwmark != 0 {
        writeln!(out, "fwmark={}", dump.fwmark)?;
    }
    Ok(())
}

fn write_peer(out: &mut String, peer: &PeerDump) -> fmt::Result {
    write_key(out, "public_key", &peer.public_key.0)?;
    let none = [0; KEY_LEN];
    let preshared_key = peer.preshared_key.as_ref().map_or(&none, |key| key.as_bytes());
    write_key(out, "preshared_key", preshared_key)?;
    writeln!(out, "protocol_version=1")?;
    if let Some(endpoint) = peer.endpoint {
        writeln!(out, "endpoint={endpoint}")?;
    }
    let last_handshake = peer.last_handshake.unwrap_or_default();
    writeln!(out, "last_handshake_time_sec={}", last_handshake.as_secs())?;
    writeln!(out, "last_handshake_time_nsec={}", last_handshake.subsec_nanos())?;
    writeln!(out, "tx_bytes={}", peer.tx_bytes)?;
    writeln!(out, "rx_bytes={}", peer.rx_bytes)?;
    let interval_s = peer
        .persistent_keepalive
        .map_or(0, |interval: Duration| interval.as_secs());
    writeln!(out, "persistent_keepalive_interval={interval_s}")?;
    for allowed_ip in &peer.allowed_ips {
        writeln!(out, "allowed_ip={allowed_ip}")?;
    }
    Ok(())
}

fn write_key(out: &mut String, name: &str, key: &[u8; KEY_LEN]) -> fmt::Result {
    write!(out, "{name}=")?;
    for byte in key {
        write!(out, "{byte:02x}")?;
    }
    writeln!(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{PresharedKey, PrivateKey, PublicKey};
    use crate::control::changes::AllowedIp;
    use crate::uapi::parse::SetRequest;

    fn peer(public_key: u8) -> PeerDump {
        PeerDump {
            public_key: PublicKey([public_key; KEY_LEN]),
            preshared_key: None,
            endpoint: None,
            last_handshake: None,
            tx_bytes: 0,
            rx_bytes: 0,
            persistent_keepalive: None,
            allowed_ips: Vec::new(),
        }
    }

    #[test]
    fn a_new_device_has_only_its_port() {
        let new = Dump {
            private_key: None,
            listen_port: 40000,
            fwmark: 0,
            peers: Vec::new(),
        };
        assert_eq!(dump(&new).as_str(), "listen_port=40000\n");
        assert_eq!(errno(0), "errno=0\n\n");
        assert_eq!(errno(libc::EINVAL), "errno=-22\n\n");
    }

    #[test]
    fn everything_about_a_peer_is_told() {
        let full = Dump {
            private_key: Some(PrivateKey::from_bytes(Zeroizing::new([0xab; KEY_LEN]))),
            listen_port: 51820,
            fwmark: 51820,
            peers: vec![
                PeerDump {
                    preshared_key: Some(PresharedKey::from_bytes(Zeroizing::new([0x0c; KEY_LEN]))),
                    endpoint: Some("[2001:db8::1]:51820".parse().expect("an endpoint")),
                    last_handshake: Some(Duration::new(1_700_000_000, 5)),
                    tx_bytes: u64::MAX,
                    rx_bytes: 1,
                    persistent_keepalive: Some(Duration::from_secs(25)),
                    allowed_ips: vec!["10.0.0.0/8".parse().expect("net"), "::/0".parse().expect("net")],
                    ..peer(1)
                },
                peer(2),
            ],
        };
        let (ab, zero_c, one, two) = ("ab".repeat(32), "0c".repeat(32), "01".repeat(32), "02".repeat(32));
        let zeros = "0".repeat(64);
        let expected = format!(
            "private_key={ab}\nlisten_port=51820\nfwmark=51820\n\
             public_key={one}\npreshared_key={zero_c}\nprotocol_version=1\nendpoint=[2001:db8::1]:51820\n\
             last_handshake_time_sec=1700000000\nlast_handshake_time_nsec=5\n\
             tx_bytes=18446744073709551615\nrx_bytes=1\npersistent_keepalive_interval=25\n\
             allowed_ip=10.0.0.0/8\nallowed_ip=::/0\n\
             public_key={two}\npreshared_key={zeros}\nprotocol_version=1\n\
             last_handshake_time_sec=0\nlast_handshake_time_nsec=0\n\
             tx_bytes=0\nrx_bytes=0\npersistent_keepalive_interval=0\n"
        );
        assert_eq!(dump(&full).as_str(), expected);
    }

    #[test]
    fn what_can_be_set_reads_back_as_it_was_told() {
        let told = Dump {
            private_key: Some(PrivateKey::from_bytes(Zeroizing::new([9; KEY_LEN]))),
            listen_port: 1,
            fwmark: 2,
            peers: vec![PeerDump {
                endpoint: Some("[fe80::1%3]:4".parse().expect("an endpoint")),
                persistent_keepalive: Some(Duration::from_secs(u16::MAX.into())),
                allowed_ips: vec!["10.0.0.1/32".parse().expect("net")],
                ..peer(5)
            }],
        };
        let mut request = SetRequest::new(|_| None);
        let text = dump(&told);
        let state = ["last_handshake", "tx_bytes", "rx_bytes"];
        let settings = text
            .lines()
            .filter(|line| !state.iter().any(|state| line.starts_with(state)));
        for line in settings {
            request.line(line.as_bytes()).expect("a line of our own");
        }
        let changes = request.finish();
        let peer = &changes.peers[0];
        assert_eq!(changes.private_key, Some(told.private_key));
        assert_eq!((changes.listen_port, changes.fwmark), (Some(1), Some(2)));
        assert_eq!(peer.endpoint, told.peers[0].endpoint);
        assert_eq!(peer.persistent_keepalive, Some(told.peers[0].persistent_keepalive));
        assert_eq!(peer.preshared_key, Some(None));
        assert_eq!(peer.allowed_ips, [AllowedIp::Add(told.peers[0].allowed_ips[0])]);
    }

    #[test]
    fn the_longest_peer_fits_the_room_that_is_made_for_it() {
        let longest = PeerDump {
            preshared_key: Some(PresharedKey::from_bytes(Zeroizing::new([1; KEY_LEN]))),
            endpoint: Some(
                "[ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff%4294967295]:65535"
                    .parse()
                    .expect("an endpoint"),
            ),
            last_handshake: Some(Duration::MAX),
            tx_bytes: u64::MAX,
            rx_bytes: u64::MAX,
            persistent_keepalive: Some(Duration::from_secs(u16::MAX.into())),
            allowed_ips: vec!["ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff/128".parse().expect("net"); 3],
            ..peer(0xff)
        };
        let mut text = String::new();
        write_peer(&mut text, &longest).expect("a String");
        assert!(text.len() <= PEER_LEN_MAX + 3 * ALLOWED_IP_LEN_MAX, "{}", text.len());
    }
}
