//! Where a peer is, as the file has it: an address or a host name, and a port.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr;

/// A peer's address as the file has it. Names are resolved when the tunnel runs, because their addresses change.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct HostPort {
    /// Whom.
    pub host: Host,
    /// 1 to 65535.
    pub port: u16,
}

/// The host part of an endpoint.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Host {
    /// An address.
    Address(IpAddr),
    /// What getaddrinfo(3) must resolve: a host name, or an IPv6 address with a zone ("fe80::1%eth0").
    Name(String),
}

impl HostPort {
    /// The address, where it is one and no name.
    pub fn address(&self) -> Option<SocketAddr> {
        match self.host {
            Host::Address(address) => Some((address, self.port).into()),
            Host::Name(_) => None,
        }
    }

    /// In the form that `std::net::ToSocketAddrs` and `tokio::net::lookup_host` take.
    pub fn to_lookup(&self) -> (String, u16) {
        (self.host.to_string(), self.port)
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Host::Address(address) => address.fmt(f),
            Host::Name(name) => f.write_str(name),
        }
    }
}

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let host = self.host.to_string();
        if host.contains(':') {
            write!(f, "[{host}]:{}", self.port)
        } else {
            write!(f, "{host}:{}", self.port)
        }
    }
}

impl FromStr for HostPort {
    /// What is wrong, and what would be right.
    type Err = String;

    fn from_str(text: &str) -> Result<HostPort, String> {
        if let Ok(address) = text.parse::<Ipv6Addr>() {
            return Err(format!(
                "the port is missing, and an IPv6 address stands in brackets: \"[{address}]:51820\""
            ));
        }
        let Some((host, port)) = text.rsplit_once(':').filter(|_| !text.ends_with(']')) else {
            return Err(format!("the port is missing; write for example \"{text}:51820\""));
        };
        let port = match port.parse() {
            Ok(0) | Err(_) => return Err(format!("\"{port}\" is not a port; ports are 1 to 65535")),
            Ok(port) => port,
        };
        let host = match host.strip_prefix('[') {
            Some(inner) => bracketed(inner)?,
            None => bare(host)?,
        };
        Ok(HostPort { host, port })
    }
}

/// `inner`: what follows the opening bracket.
fn bracketed(inner: &str) -> Result<Host, String> {
    let wrong = || "in brackets stands an IPv6 address; write for example \"[2001:db8::1]:51820\"".to_owned();
    let inner = inner.strip_suffix(']').ok_or_else(wrong)?;
    let (address, zone) = match inner.split_once('%') {
        Some((address, zone)) => (address, Some(zone)),
        None => (inner, None),
    };
    let parsed: Ipv6Addr = address.parse().map_err(|_| wrong())?;
    match zone {
        None => reachable(IpAddr::V6(parsed)),
        Some(zone) if !zone.is_empty() && zone.bytes().all(|b| b.is_ascii_graphic()) => {
            Ok(Host::Name(inner.to_owned()))
        }
        Some(_) => Err(wrong()),
    }
}

fn bare(host: &str) -> Result<Host, String> {
    if host.contains(':') {
        return Err(format!("an IPv6 address stands in brackets: \"[{host}]:51820\""));
    }
    if let Ok(address) = host.parse::<Ipv4Addr>() {
        return reachable(IpAddr::V4(address));
    }
    check_name(host).map(|()| Host::Name(host.to_owned()))
}

/// An address that one host can have.
fn reachable(address: IpAddr) -> Result<Host, String> {
    let is_nobody = address.is_unspecified() || address.is_multicast() || address == IpAddr::V4(Ipv4Addr::BROADCAST);
    if is_nobody {
        Err(format!("{address} is not the address of a host"))
    } else {
        Ok(Host::Address(address))
    }
}

/// Host names as RFC 1123, section 2.1 has them, and underscores, which occur.
fn check_name(name: &str) -> Result<(), String> {
    let example = "write a host name or an address, for example \"vpn.example.com:51820\"";
    if name.is_empty() {
        return Err(format!("the host is missing; {example}"));
    }
    if !name.is_ascii() {
        return Err(format!(
            "\"{name}\" is not ASCII; write an international host name in its \"xn--\" form"
        ));
    }
    let labels = name.strip_suffix('.').unwrap_or(name);
    let is_label = |label: &str| {
        (1..=63).contains(&label.len())
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
    };
    if labels.len() > 253 || !labels.split('.').all(is_label) {
        return Err(format!("\"{name}\" is not a host name; {example}"));
    }
    // No top-level domain is a number (RFC 3696, section 2), so this is an IPv4 address that went wrong.
    if labels
        .rsplit('.')
        .next()
        .is_some_and(|last| last.bytes().all(|b| b.is_ascii_digit()))
    {
        return Err(format!("\"{name}\" is not an IPv4 address; {example}"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_survive_being_shown_and_read() {
        for text in [
            "192.0.2.1:51820",
            "[2001:db8::1]:1",
            "[fe80::1%eth0]:65535",
            "vpn.example.com:51820",
            "localhost:1",
            "a_b.example.:443",
            "xn--bcher-kva.example:5",
        ] {
            let parsed: HostPort = text.parse().unwrap_or_else(|error| panic!("{text}: {error}"));
            assert_eq!(parsed.to_string(), text);
        }
    }

    #[test]
    fn addresses_are_told_from_names() {
        let host = |text: &str| text.parse::<HostPort>().unwrap().host;
        assert_eq!(host("192.0.2.1:1"), Host::Address("192.0.2.1".parse().unwrap()));
        assert_eq!(host("[2001:DB8::1]:1"), Host::Address("2001:db8::1".parse().unwrap()));
        assert_eq!(host("[fe80::1%eth0]:1"), Host::Name("fe80::1%eth0".into()));
        assert_eq!(host("example.com:1"), Host::Name("example.com".into()));
    }

    #[test]
    fn every_error_says_what_would_be_right() {
        let long = format!("{}.example:1", "a".repeat(64));
        let cases = [
            (
                "192.0.2.1",
                "the port is missing; write for example \"192.0.2.1:51820\"",
            ),
            (
                "vpn.example.com",
                "the port is missing; write for example \"vpn.example.com:51820\"",
            ),
            (
                "[2001:db8::1]",
                "the port is missing; write for example \"[2001:db8::1]:51820\"",
            ),
            (
                "2001:db8::1",
                "an IPv6 address stands in brackets: \"[2001:db8::1]:51820\"",
            ),
            (
                "2001:db8:0:0:0:0:0:1:51820",
                "an IPv6 address stands in brackets: \"[2001:db8:0:0:0:0:0:1]:51820\"",
            ),
            ("192.0.2.1:0", "\"0\" is not a port; ports are 1 to 65535"),
            ("192.0.2.1:65536", "\"65536\" is not a port"),
            ("192.0.2.1:http", "\"http\" is not a port"),
            ("192.0.2.1:", "\"\" is not a port"),
            ("[192.0.2.1]:1", "in brackets stands an IPv6 address"),
            ("[2001:db8::1:1", "in brackets stands an IPv6 address"),
            ("[fe80::1%]:1", "in brackets stands an IPv6 address"),
            ("192.0.2.256:1", "\"192.0.2.256\" is not an IPv4 address"),
            ("192.0.2:1", "\"192.0.2\" is not an IPv4 address"),
            (":1", "the host is missing"),
            ("a..b:1", "\"a..b\" is not a host name"),
            ("-a.example:1", "\"-a.example\" is not a host name"),
            ("a b:1", "\"a b\" is not a host name"),
            ("http://a.example:1", "an IPv6 address stands in brackets"),
            (&long, "is not a host name"),
            (
                "bücher.example:1",
                "write an international host name in its \"xn--\" form",
            ),
            ("0.0.0.0:1", "0.0.0.0 is not the address of a host"),
            ("[::]:1", ":: is not the address of a host"),
            ("[ff02::1]:1", "ff02::1 is not the address of a host"),
            ("255.255.255.255:1", "255.255.255.255 is not the address of a host"),
        ];
        for (text, expected) in cases {
            let error = text.parse::<HostPort>().unwrap_err();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }
}
