//! Packets that must not leave beside a tunnel, and sending them.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

use super::sighting::Summary;
use crate::sys::tap;
use crate::wire::checksum::Sum;
use crate::wire::{icmp, tcp, udp};

/// Addresses that nobody has (RFC 5737, RFC 3849), so that a probe that does leave bothers nobody.
const NOBODY: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::new(198, 51, 100, 53)),
    IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0x1ea4, 0, 0, 0, 0, 0x53)),
];

/// Long enough for a SYN to leave; nobody answers it.
const CONNECT_TIME: Duration = Duration::from_millis(100);

/// A packet to send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Probe {
    kind: Kind,
    to: SocketAddr,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Dns,
    Udp,
    Tcp,
    Icmp,
}

/// DNS to the machine's resolvers and to somebody, and UDP, TCP and ICMP, over IPv4 and IPv6.
pub(super) fn all() -> Vec<Probe> {
    let text = fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    let mut probes: Vec<Probe> = resolvers(&text)
        .map(|server| Probe {
            kind: Kind::Dns,
            to: SocketAddr::new(server, 53),
        })
        .collect();
    for address in NOBODY {
        for (kind, port) in [(Kind::Dns, 53), (Kind::Udp, 443), (Kind::Tcp, 443), (Kind::Icmp, 0)] {
            let to = SocketAddr::new(address, port);
            probes.push(Probe { kind, to });
        }
    }
    probes
}

/// The addresses of resolv.conf(5).
fn resolvers(text: &str) -> impl Iterator<Item = IpAddr> {
    text.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        (words.next() == Some("nameserver")).then(|| words.next()?.parse().ok())?
    })
}

impl Probe {
    /// Sends it once. That it is refused is what the test hopes for, and no error; why, in the kernel's words.
    pub(super) fn send(&self) -> Option<String> {
        let any: SocketAddr = if self.to.is_ipv4() {
            (Ipv4Addr::UNSPECIFIED, 0).into()
        } else {
            (Ipv6Addr::UNSPECIFIED, 0).into()
        };
        let result = match self.kind {
            Kind::Dns => UdpSocket::bind(any).and_then(|socket| socket.send_to(&question(), self.to)),
            Kind::Udp => UdpSocket::bind(any).and_then(|socket| socket.send_to(b"ringway leaktest", self.to)),
            Kind::Icmp => tap::icmp(self.to.is_ipv6()).and_then(|socket| {
                let message = echo_request(self.to.is_ipv6());
                socket.send_to(&message, self.to)
            }),
            Kind::Tcp => TcpStream::connect_timeout(&self.to, CONNECT_TIME).map(|_| 0),
        };
        result.err().map(|error| error.to_string())
    }

    /// Whether a packet that was seen is this one.
    pub(super) fn is(&self, seen: &Summary) -> bool {
        let (protocol, port) = match self.kind {
            Kind::Dns | Kind::Udp => (udp::PROTOCOL, Some(self.to.port())),
            Kind::Tcp => (tcp::PROTOCOL, Some(self.to.port())),
            Kind::Icmp if self.to.is_ipv4() => (icmp::PROTOCOL_V4, None),
            Kind::Icmp => (icmp::PROTOCOL_V6, None),
        };
        seen.to == Some(self.to.ip()) && seen.protocol == Some(protocol) && seen.port == port
    }

    /// For people.
    pub(super) fn name(&self) -> String {
        match self.kind {
            Kind::Dns => format!("DNS to {}", self.to),
            Kind::Udp => format!("UDP to {}", self.to),
            Kind::Tcp => format!("TCP to {}", self.to),
            Kind::Icmp => format!("ICMP to {}", self.to.ip()),
        }
    }
}

/// Asks for the address of a name that nobody has (RFC 2606), recursion desired (RFC 1035, section 4).
fn question() -> Vec<u8> {
    let mut message = vec![0x1e, 0xa4, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in ["ringway-leaktest", "example", "com"] {
        message.push(label.len() as u8);
        message.extend(label.as_bytes());
    }
    message.extend([0, 0, 1, 0, 1]);
    message
}

/// RFC 792, and RFC 4443, section 4.1, where the kernel fills the checksum in.
fn echo_request(ipv6: bool) -> Vec<u8> {
    let mut message = vec![if ipv6 { 128 } else { 8 }, 0, 0, 0, 0x1e, 0xa4, 0, 1];
    message.extend(b"ringway leaktest");
    let checksum = Sum::of(&message).checksum();
    message[2..4].copy_from_slice(&checksum.to_be_bytes());
    message
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_resolvers_are_those_of_resolv_conf() {
        let text =
            "# nameserver 192.0.2.9\nsearch example.com\nnameserver 192.0.2.1\n nameserver fd00::1 # x\nnameserver\n";
        let found: Vec<IpAddr> = resolvers(text).collect();
        assert_eq!(
            found,
            ["192.0.2.1", "fd00::1"].map(|text| text.parse::<IpAddr>().unwrap())
        );
    }

    #[test]
    fn every_family_is_probed_in_every_way() {
        let names: Vec<String> = all().iter().map(Probe::name).collect();
        for name in [
            "TCP to [2001:db8:1ea4::53]:443",
            "ICMP to 198.51.100.53",
            "DNS to 198.51.100.53:53",
        ] {
            assert!(names.iter().any(|found| found == name), "{names:?}");
        }
    }

    #[test]
    fn an_echo_request_has_the_right_checksum() {
        assert!(Sum::of(&echo_request(false)).is_intact());
    }
}
