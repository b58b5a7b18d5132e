//! What a packet that leaves is: a pure function of its bytes and of what may leave.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;

use crate::wire::icmp;
use crate::wire::ip::{Fragment, Ip};
use crate::wire::tcp::{self, Tcp};
use crate::wire::udp::{self, Udp};

/// ETH_P_IP and ETH_P_IPV6 (linux/if_ether.h).
const IPV4: u16 = 0x0800;
const IPV6: u16 = 0x86dd;

/// DNS, and DNS over TLS and QUIC (RFC 1035, RFC 7858, RFC 9250).
const DNS_PORTS: [u16; 2] = [53, 853];

/// What may leave beside the tunnel.
#[derive(Debug, Default)]
pub(super) struct Exceptions {
    /// The port that the tunnel's datagrams come from, while its daemon runs.
    pub(super) listen_port: Option<u16>,
    /// Where they go.
    pub(super) endpoints: Vec<SocketAddr>,
    /// What the kill switch lets go outside.
    pub(super) outside: Vec<IpNet>,
}

/// Why a packet may leave, or that it may not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// The tunnel's own datagram.
    Tunnel,
    /// Keeps the link alive: not IP, DHCP, neighbour discovery, multicast membership.
    Link,
    /// To a destination that the kill switch lets go outside.
    Outside,
    /// None of them.
    Leak,
}

/// A packet in a few words, and equal for packets of one flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Summary {
    /// The protocol number; none for what can't be read.
    pub(super) protocol: Option<u8>,
    pub(super) from: Option<IpAddr>,
    pub(super) to: Option<IpAddr>,
    /// Of the destination, for TCP and UDP.
    pub(super) port: Option<u16>,
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Some(from), Some(to)) = (self.from, self.to) else {
            return f.write_str("a packet that can't be read");
        };
        match self.protocol {
            Some(tcp::PROTOCOL) => f.write_str("TCP")?,
            Some(udp::PROTOCOL) if self.port.is_some_and(|port| DNS_PORTS.contains(&port)) => f.write_str("DNS")?,
            Some(udp::PROTOCOL) => f.write_str("UDP")?,
            Some(icmp::PROTOCOL_V4 | icmp::PROTOCOL_V6) => f.write_str("ICMP")?,
            protocol => write!(f, "IP protocol {}", protocol.unwrap_or_default())?,
        }
        write!(f, " {from} -> ")?;
        match self.port {
            Some(port) => SocketAddr::new(to, port).fmt(f),
            None => to.fmt(f),
        }
    }
}

/// Judges an outgoing packet: `ethertype`, and `bytes` from the network layer's header on. The summary is that of an IP
/// packet; none for what is not IP.
pub(super) fn judge(ethertype: u16, bytes: &[u8], may: &Exceptions) -> (Verdict, Option<Summary>) {
    if !matches!(ethertype, IPV4 | IPV6) {
        return (Verdict::Link, None);
    }
    let unreadable = Summary {
        protocol: None,
        from: None,
        to: None,
        port: None,
    };
    let Some(packet) = Ip::parse(bytes) else {
        return (Verdict::Leak, Some(unreadable));
    };
    let upper = packet.upper();
    let payload = &packet.bytes()[upper.start..];
    let has_ports = upper.fragment != Fragment::Later;
    let ports = match upper.protocol {
        tcp::PROTOCOL if has_ports => Tcp::parse(payload).map(|tcp| (tcp.source_port(), tcp.destination_port())),
        udp::PROTOCOL if has_ports => Udp::parse(payload).map(|udp| (udp.source_port(), udp.destination_port())),
        _ => None,
    };
    let to = packet.destination();
    let summary = Summary {
        protocol: Some(upper.protocol),
        from: Some(packet.source()),
        to: Some(to),
        port: ports.map(|(_, port)| port),
    };
    let is_tunnel = upper.protocol == udp::PROTOCOL
        && match ports {
            Some((from, port)) => {
                Some(from) == may.listen_port || may.endpoints.contains(&SocketAddr::new(to.to_canonical(), port))
            }
            None => may.endpoints.iter().any(|endpoint| endpoint.ip() == to),
        };
    let verdict = if is_tunnel {
        Verdict::Tunnel
    } else if keeps_link(upper.protocol, ports, payload) {
        Verdict::Link
    } else if is_outside(to, ports, &may.outside) {
        Verdict::Outside
    } else {
        Verdict::Leak
    };
    (verdict, Some(summary))
}

/// DHCP and DHCPv6; router and neighbour discovery and multicast membership of ICMPv6, by its types.
fn keeps_link(protocol: u8, ports: Option<(u16, u16)>, payload: &[u8]) -> bool {
    match protocol {
        udp::PROTOCOL => matches!(ports, Some((68, 67) | (546, 547))),
        icmp::PROTOCOL_V6 => matches!(payload.first(), Some(131 | 132 | 133 | 135 | 136 | 143)),
        _ => false,
    }
}

/// As the kill switch has it: DNS only to addresses that are listed by themselves.
fn is_outside(to: IpAddr, ports: Option<(u16, u16)>, outside: &[IpNet]) -> bool {
    let is_dns = ports.is_some_and(|(_, port)| DNS_PORTS.contains(&port));
    let counts = |network: &&IpNet| !is_dns || network.prefix_len() == network.max_prefix_len();
    outside.iter().filter(counts).any(|network| network.contains(&to))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn v4(protocol: u8, to: [u8; 4], ports: (u16, u16)) -> Vec<u8> {
        let mut packet = vec![0; 48];
        packet[..10].copy_from_slice(&[0x45, 0, 0, 48, 0, 0, 0, 0, 64, protocol]);
        packet[12..16].copy_from_slice(&[192, 0, 2, 1]);
        packet[16..20].copy_from_slice(&to);
        packet[20..22].copy_from_slice(&ports.0.to_be_bytes());
        packet[22..24].copy_from_slice(&ports.1.to_be_bytes());
        packet[24..26].copy_from_slice(&28u16.to_be_bytes());
        packet[32] = 0x50;
        packet
    }

    fn icmpv6(kind: u8) -> Vec<u8> {
        let mut packet = vec![0; 48];
        packet[0] = 0x60;
        packet[5] = 8;
        packet[6] = icmp::PROTOCOL_V6;
        packet[40] = kind;
        packet
    }

    #[test]
    fn what_leaves_is_told_apart() {
        let may = Exceptions {
            listen_port: Some(51820),
            endpoints: vec!["198.51.100.1:443".parse().unwrap()],
            outside: ["192.168.0.0/16", "192.168.1.1/32"]
                .map(|text| text.parse().unwrap())
                .into(),
        };
        let lan = [192, 168, 1, 2];
        let cases = [
            (IPV4, v4(17, [203, 0, 113, 9], (51820, 7)), Verdict::Tunnel),
            (IPV4, v4(17, [198, 51, 100, 1], (1, 443)), Verdict::Tunnel),
            (IPV4, v4(6, [198, 51, 100, 1], (51820, 443)), Verdict::Leak),
            (IPV4, v4(17, [198, 51, 100, 1], (1, 53)), Verdict::Leak),
            (IPV4, v4(17, [255; 4], (68, 67)), Verdict::Link),
            (IPV4, v4(6, lan, (1, 443)), Verdict::Outside),
            (IPV4, v4(17, lan, (1, 53)), Verdict::Leak),
            (IPV4, v4(17, [192, 168, 1, 1], (1, 53)), Verdict::Outside),
            (IPV4, v4(1, [203, 0, 113, 9], (0x800, 0)), Verdict::Leak),
            (IPV4, vec![0x45], Verdict::Leak),
            (IPV6, icmpv6(135), Verdict::Link),
            (IPV6, icmpv6(128), Verdict::Leak),
            (0x0806, vec![0; 28], Verdict::Link),
        ];
        for (i, (ethertype, bytes, expected)) in cases.iter().enumerate() {
            assert_eq!(judge(*ethertype, bytes, &may).0, *expected, "case {i}");
        }
        let mut fragment = v4(17, [198, 51, 100, 1], (0, 0));
        fragment[7] = 9;
        assert_eq!(judge(IPV4, &fragment, &may).0, Verdict::Tunnel);
    }

    #[test]
    fn packets_are_told_in_a_few_words() {
        let words = |packet: &[u8]| judge(IPV4, packet, &Exceptions::default()).1.unwrap().to_string();
        assert_eq!(words(&v4(17, [1, 1, 1, 1], (9, 53))), "DNS 192.0.2.1 -> 1.1.1.1:53");
        assert_eq!(words(&v4(6, [1, 1, 1, 1], (9, 443))), "TCP 192.0.2.1 -> 1.1.1.1:443");
        assert_eq!(words(&v4(1, [1, 1, 1, 1], (9, 0))), "ICMP 192.0.2.1 -> 1.1.1.1");
        assert_eq!(
            words(&v4(50, [1, 1, 1, 1], (9, 0))),
            "IP protocol 50 192.0.2.1 -> 1.1.1.1"
        );
        assert_eq!(words(&[]), "a packet that can't be read");
    }
}
