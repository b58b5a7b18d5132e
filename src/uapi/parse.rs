//! Lines of a `set` -> changes. Input may be anything; what is wrong is an error, never a panic.

use std::net::{Ipv6Addr, SocketAddr, SocketAddrV6};
use std::time::Duration;

use ipnet::IpNet;
use zeroize::Zeroizing;

use super::UapiError;
use crate::config::key::KEY_LEN;
use crate::config::{PresharedKey, PrivateKey, PublicKey};
use crate::control::changes::{AllowedIp, Changes, PeerChanges};

/// What a client asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// `get=1`: everything about the device and its peers.
    Get,
    /// `set=1`: changes follow.
    Set,
}

impl Operation {
    /// Reads the first line of a request, without its newline.
    pub fn parse(line: &[u8]) -> Option<Operation> {
        match line {
            b"get=1" => Some(Operation::Get),
            b"set=1" => Some(Operation::Set),
            _ => None,
        }
    }
}

/// A `set` while its lines come in: first those of the device, then those of each peer behind its `public_key`.
pub struct SetRequest {
    changes: Changes,
    interface_index: fn(&str) -> Option<u32>,
}

impl SetRequest {
    /// Before the first line. `interface_index` gives the index of an interface by its name, for IPv6 endpoints with a
    /// zone (`[fe80::1%eth0]:51820`).
    pub fn new(interface_index: fn(&str) -> Option<u32>) -> SetRequest {
        SetRequest {
            changes: Changes::default(),
            interface_index,
        }
    }

    /// Takes the next line, without its newline.
    ///
    /// # Errors
    /// `EPROTO`: no `key=value`. `EINVAL`: an unknown key, one in the wrong place, or a wrong value.
    pub fn line(&mut self, line: &[u8]) -> Result<(), UapiError> {
        let (key, value) = std::str::from_utf8(line)
            .ok()
            .and_then(|line| line.split_once('='))
            .ok_or_else(|| UapiError::protocol("a line is not of the form key=value"))?;
        if key == "public_key" {
            let public_key = PublicKey(*hex_key(key, value)?);
            self.changes.peers.push(PeerChanges::of(public_key));
            return Ok(());
        }
        match self.changes.peers.last_mut() {
            None => device_line(&mut self.changes, key, value),
            Some(peer) => peer_line(peer, key, value, self.interface_index),
        }
    }

    /// All lines have come.
    pub fn finish(self) -> Changes {
        self.changes
    }
}

fn device_line(changes: &mut Changes, key: &str, value: &str) -> Result<(), UapiError> {
    match key {
        "private_key" => {
            let bytes = hex_key(key, value)?;
            // Zeros take the key away.
            changes.private_key = Some((*bytes != [0; KEY_LEN]).then(|| PrivateKey::from_bytes(bytes)));
        }
        "listen_port" => changes.listen_port = Some(number(key, value)?),
        "fwmark" => changes.fwmark = Some(number(key, value)?),
        "replace_peers" => changes.replace_peers = is_true(key, value)?,
        _ => return Err(UapiError::invalid(format!("{key:?} is no key of a device"))),
    }
    Ok(())
}

fn peer_line(
    peer: &mut PeerChanges,
    key: &str,
    value: &str,
    interface_index: fn(&str) -> Option<u32>,
) -> Result<(), UapiError> {
    match key {
        "update_only" => peer.update_only = is_true(key, value)?,
        "remove" => peer.remove = is_true(key, value)?,
        "preshared_key" => {
            let bytes = hex_key(key, value)?;
            peer.preshared_key = Some((*bytes != [0; KEY_LEN]).then(|| PresharedKey::from_bytes(bytes)));
        }
        "endpoint" => peer.endpoint = Some(endpoint(value, interface_index).ok_or_else(|| wrong(key, value))?),
        "persistent_keepalive_interval" => {
            let interval_s: u16 = number(key, value)?;
            peer.persistent_keepalive = Some((interval_s > 0).then(|| Duration::from_secs(interval_s.into())));
        }
        "replace_allowed_ips" => {
            peer.replace_allowed_ips = is_true(key, value)?;
            // Those that came before it are replaced too.
            peer.allowed_ips.clear();
        }
        "allowed_ip" => {
            let (prefix, wrap): (_, fn(IpNet) -> AllowedIp) = match value.strip_prefix('-') {
                Some(prefix) => (prefix, AllowedIp::Remove),
                None => (value, AllowedIp::Add),
            };
            let prefix = network(prefix).ok_or_else(|| wrong(key, value))?;
            peer.allowed_ips.push(wrap(prefix));
        }
        "protocol_version" if value == "1" => {}
        "protocol_version" => return Err(wrong(key, value)),
        _ => return Err(UapiError::invalid(format!("{key:?} is no key of a peer"))),
    }
    Ok(())
}

/// Only for values that are no secrets.
fn wrong(key: &str, value: &str) -> UapiError {
    UapiError::invalid(format!("{key}={value:?} is wrong"))
}

fn is_true(key: &str, value: &str) -> Result<bool, UapiError> {
    if value == "true" {
        Ok(true)
    } else {
        Err(wrong(key, value))
    }
}

/// Decimal digits only: no sign, no space.
fn number<T: std::str::FromStr>(key: &str, value: &str) -> Result<T, UapiError> {
    let digits = value.bytes().all(|byte| byte.is_ascii_digit());
    value.parse().ok().filter(|_| digits).ok_or_else(|| wrong(key, value))
}

fn hex_key(key: &str, value: &str) -> Result<Zeroizing<[u8; KEY_LEN]>, UapiError> {
    let wrong = || UapiError::invalid(format!("{key} is not {} hexadecimal digits", 2 * KEY_LEN));
    let mut bytes = Zeroizing::new([0; KEY_LEN]);
    if value.len() != 2 * KEY_LEN {
        return Err(wrong());
    }
    for (byte, digits) in bytes.iter_mut().zip(value.as_bytes().chunks_exact(2)) {
        let digit = |at: usize| char::from(digits[at]).to_digit(16);
        let (Some(high), Some(low)) = (digit(0), digit(1)) else {
            return Err(wrong());
        };
        *byte = (high << 4 | low) as u8;
    }
    Ok(bytes)
}

/// `192.0.2.1:51820`, `[2001:db8::1]:51820`, `[fe80::1%eth0]:51820`, `[fe80::1%2]:51820`.
fn endpoint(text: &str, interface_index: fn(&str) -> Option<u32>) -> Option<SocketAddr> {
    let address = match text.parse() {
        Ok(address) => address,
        Err(_) => {
            let (address, port) = text.strip_prefix('[')?.split_once("]:")?;
            let (address, zone) = address.split_once('%')?;
            let address: Ipv6Addr = address.parse().ok()?;
            let port = number("", port).ok()?;
            SocketAddr::V6(SocketAddrV6::new(address, port, 0, interface_index(zone)?))
        }
    };
    // One host has one form: the sockets report mapped IPv4 addresses as IPv4, too.
    let canonical = address.ip().to_canonical();
    Some(match canonical {
        ip if ip.is_ipv4() => SocketAddr::new(ip, address.port()),
        _ => address,
    })
}

/// `10.0.0.0/24`; host bits are cleared, the prefix length may not be left out.
fn network(text: &str) -> Option<IpNet> {
    let prefix_len = text.split_once('/')?.1;
    let plain = prefix_len.bytes().all(|byte| byte.is_ascii_digit());
    let network: IpNet = text.parse().ok()?;
    plain.then(|| network.trunc())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const KEY: &str = "0102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1fFF";

    fn set(lines: &[&str]) -> Result<Changes, UapiError> {
        let mut request = SetRequest::new(|name| (name == "eth0").then_some(7));
        lines.iter().try_for_each(|line| request.line(line.as_bytes()))?;
        Ok(request.finish())
    }

    fn errno(lines: &[&str]) -> i32 {
        set(lines).expect_err("the last line is wrong").errno
    }

    /// The peer that these lines make, behind its public key.
    fn peer(lines: &[&str]) -> PeerChanges {
        let key = format!("public_key={KEY}");
        let lines: Vec<&str> = [key.as_str()].into_iter().chain(lines.iter().copied()).collect();
        let mut peers = set(&lines).expect("the lines are right").peers;
        assert_eq!(peers.len(), 1);
        peers.remove(0)
    }

    fn key_bytes() -> [u8; KEY_LEN] {
        let mut bytes: [u8; KEY_LEN] = std::array::from_fn(|at| at as u8 + 1);
        bytes[31] = 0xff;
        bytes
    }

    fn net(text: &str) -> IpNet {
        text.parse().expect("a network")
    }

    #[test]
    fn operations_are_exactly_version_1() {
        assert_eq!(Operation::parse(b"get=1"), Some(Operation::Get));
        assert_eq!(Operation::parse(b"set=1"), Some(Operation::Set));
        for line in ["", "get", "get=2", "get=1 ", "GET=1", "set=1\r"] {
            assert_eq!(Operation::parse(line.as_bytes()), None, "{line:?}");
        }
    }

    #[test]
    fn every_key_of_a_device_is_read() {
        let changes = set(&[
            &format!("private_key={KEY}"),
            "listen_port=51820",
            "fwmark=4294967295",
            "replace_peers=true",
        ])
        .expect("all is right");
        assert_eq!(
            changes,
            Changes {
                private_key: Some(Some(PrivateKey::from_bytes(Zeroizing::new(key_bytes())))),
                listen_port: Some(51820),
                fwmark: Some(u32::MAX),
                mtu: None,
                replace_peers: true,
                ..Changes::default()
            }
        );
    }

    #[test]
    fn every_key_of_a_peer_is_read() {
        let peer = peer(&[
            "update_only=true",
            &format!("preshared_key={KEY}"),
            "endpoint=[2001:db8::1]:51820",
            "persistent_keepalive_interval=25",
            "replace_allowed_ips=true",
            "allowed_ip=10.1.2.3/16",
            "allowed_ip=-fd00::/8",
            "protocol_version=1",
        ]);
        let expected = PeerChanges {
            update_only: true,
            preshared_key: Some(Some(PresharedKey::from_bytes(Zeroizing::new(key_bytes())))),
            endpoint: Some("[2001:db8::1]:51820".parse().expect("an endpoint")),
            persistent_keepalive: Some(Some(Duration::from_secs(25))),
            replace_allowed_ips: true,
            allowed_ips: vec![AllowedIp::Add(net("10.1.0.0/16")), AllowedIp::Remove(net("fd00::/8"))],
            ..PeerChanges::of(PublicKey(key_bytes()))
        };
        assert_eq!(peer, expected);
    }

    #[test]
    fn zeros_and_nothing_take_away() {
        let zeros = "0".repeat(64);
        let changes = set(&[
            &format!("private_key={zeros}"),
            "fwmark=0",
            &format!("public_key={KEY}"),
            &format!("preshared_key={zeros}"),
            "persistent_keepalive_interval=0",
        ])
        .expect("all is right");
        assert_eq!(changes.private_key, Some(None));
        assert_eq!(changes.fwmark, Some(0));
        assert_eq!(changes.peers[0].preshared_key, Some(None));
        assert_eq!(changes.peers[0].persistent_keepalive, Some(None));
    }

    #[test]
    fn lines_belong_to_the_public_key_before_them() {
        let other = "ab".repeat(32);
        let changes = set(&[
            &format!("public_key={KEY}"),
            "allowed_ip=10.0.0.1/32",
            &format!("public_key={other}"),
            "remove=true",
            &format!("public_key={KEY}"),
        ])
        .expect("all is right");
        let shape: Vec<_> = changes
            .peers
            .iter()
            .map(|peer| (peer.public_key.0[0], peer.remove, peer.allowed_ips.len()))
            .collect();
        assert_eq!(shape, [(1, false, 1), (0xab, true, 0), (1, false, 0)]);
    }

    #[test]
    fn replacing_allowed_ips_forgets_those_named_before_it() {
        let peer = peer(&[
            "allowed_ip=10.0.0.1/32",
            "replace_allowed_ips=true",
            "allowed_ip=10.0.0.2/32",
        ]);
        assert_eq!(peer.allowed_ips, [AllowedIp::Add(net("10.0.0.2/32"))]);
    }

    #[test]
    fn endpoints_may_have_zones_and_mapped_addresses_are_ipv4() {
        let cases = [
            ("192.0.2.1:1", "192.0.2.1:1"),
            ("[fe80::1%eth0]:2", "[fe80::1%7]:2"),
            ("[fe80::1%3]:2", "[fe80::1%3]:2"),
            ("[::ffff:192.0.2.1]:65535", "192.0.2.1:65535"),
        ];
        for (text, expected) in cases {
            let endpoint = peer(&[&format!("endpoint={text}")]).endpoint;
            assert_eq!(endpoint, expected.parse().ok(), "{text}");
        }
    }

    #[test]
    fn what_is_wrong_is_answered_with_its_errno() {
        let public_key = format!("public_key={KEY}");
        for line in ["", "listen_port", "=", "private_key=", "x=y", "allowed_ip=10.0.0.0/8"] {
            let expected = if line.contains('=') { libc::EINVAL } else { libc::EPROTO };
            assert_eq!(errno(&[line]), expected, "{line:?}");
        }
        let device = [
            "listen_port=65536",
            "listen_port=-1",
            "listen_port=+1",
            "listen_port= 1",
            "listen_port=",
            "listen_port=0x10",
            "fwmark=4294967296",
            "replace_peers=false",
            "replace_peers=1",
            "private_key=0102",
            "public_key=",
            "update_only=true",
            &format!("private_key={}", KEY.replace('f', "g")),
            &format!("private_key={}", "é".repeat(32)),
        ];
        for line in device {
            assert_eq!(errno(&[line]), libc::EINVAL, "{line:?}");
        }
        let peer = [
            "listen_port=1",
            "private_key=00",
            "replace_peers=true",
            "remove=false",
            "update_only=yes",
            "replace_allowed_ips=",
            "preshared_key=0",
            "endpoint=192.0.2.1",
            "endpoint=vpn.example.com:1",
            "endpoint=192.0.2.1:65536",
            "endpoint=[fe80::1%eth1]:1",
            "endpoint=[fe80::1%eth0]:+1",
            "endpoint=[fe80::1%eth0:1",
            "persistent_keepalive_interval=65536",
            "persistent_keepalive_interval=off",
            "allowed_ip=10.0.0.1",
            "allowed_ip=10.0.0.1/33",
            "allowed_ip=10.0.0.1/+8",
            "allowed_ip=--10.0.0.1/32",
            "allowed_ip=",
            "allowed_ip=-",
            "protocol_version=2",
            "last_handshake_time_sec=1",
        ];
        for line in peer {
            assert_eq!(errno(&[&public_key, line]), libc::EINVAL, "{line:?}");
        }
    }

    #[test]
    fn no_error_tells_a_secret() {
        let secret = "5ec2e7".repeat(11);
        for key in ["private_key", "preshared_key"] {
            let wrong = format!("{key}={secret}");
            let error = set(&[&format!("public_key={KEY}"), &wrong]).or_else(|_| set(&[&wrong]));
            let reason = error.expect_err("66 digits").reason;
            assert!(!reason.contains("5ec2e7"), "{reason}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_taken_or_refused(lines in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..80), 0..20)) {
            let mut request = SetRequest::new(|_| None);
            for line in lines {
                if let Err(error) = request.line(&line) {
                    prop_assert!(matches!(error.errno, libc::EINVAL | libc::EPROTO));
                }
            }
            request.finish();
        }

        #[test]
        fn any_value_of_any_key_is_taken_or_refused(
            key in prop::sample::select(vec![
                "private_key", "listen_port", "fwmark", "replace_peers", "public_key", "remove", "update_only",
                "preshared_key", "endpoint", "persistent_keepalive_interval", "replace_allowed_ips", "allowed_ip",
                "protocol_version",
            ]),
            value in "\\PC*|[0-9a-f:./%\\[\\]+-]{0,70}",
            behind_peer in any::<bool>(),
        ) {
            let mut request = SetRequest::new(|_| None);
            if behind_peer {
                prop_assert_eq!(request.line(format!("public_key={KEY}").as_bytes()), Ok(()));
            }
            if let Err(error) = request.line(format!("{key}={value}").as_bytes()) {
                prop_assert_eq!(error.errno, libc::EINVAL);
            }
        }
    }
}
