//! Which names are asked for through the tunnel, and whom.

use std::net::IpAddr;

use super::raw::{At, RawDns};
use super::validate::Validation;

/// RFC 1035, section 2.3.4: octets of a label, and of a name as people write it.
const LABEL_LEN_MAX: usize = 63;
const NAME_LEN_MAX: usize = 253;

/// The name servers that the system uses while the tunnel is up.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Dns {
    /// Their addresses; none leaves the system's name servers alone, and then the lists below are empty.
    pub servers: Vec<IpAddr>,
    /// Domains that single-label names are completed with, in lower case, without a dot at the end.
    pub search: Vec<String>,
    /// Domains whose names are asked for at these servers, and no others; none: all names are.
    pub domains: Vec<String>,
}

impl Validation<'_> {
    pub(super) fn dns(&mut self, raw: &RawDns) -> Dns {
        let mut servers: Vec<IpAddr> = Vec::with_capacity(raw.servers.len());
        for at in &raw.servers {
            match self.read(at, parse_server) {
                Some(server) if !servers.contains(&server) => servers.push(server),
                _ => {}
            }
        }
        let search = self.domains(&raw.search);
        let domains = self.domains(&raw.domains);
        if raw.servers.is_empty() {
            for at in raw.search.first().into_iter().chain(raw.domains.first()) {
                self.refuse(at, "there is no name server to ask; write its address too");
            }
        }
        Dns {
            servers,
            search,
            domains,
        }
    }

    fn domains(&mut self, raw: &[At<String>]) -> Vec<String> {
        let mut domains: Vec<String> = Vec::with_capacity(raw.len());
        for at in raw {
            match self.read(at, parse_domain) {
                Some(domain) if !domains.contains(&domain) => domains.push(domain),
                _ => {}
            }
        }
        domains
    }
}

fn parse_server(text: &str) -> Result<IpAddr, String> {
    match text.parse() {
        Ok(address) => check_server(address),
        Err(_) => Err("a name server is an IP address, for example \"10.99.0.1\"".into()),
    }
}

/// Checks the address of a name server.
pub fn check_server(address: IpAddr) -> Result<IpAddr, String> {
    if address.is_unspecified() || address.is_multicast() {
        return Err(format!("{address} is not an address that a name server can have"));
    }
    Ok(address)
}

/// Reads a domain: in lower case. What could end a line or a word of resolv.conf is none.
pub fn parse_domain(text: &str) -> Result<String, String> {
    let name = text.strip_suffix('.').unwrap_or(text);
    let is_label = |label: &str| {
        let right = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
        (1..=LABEL_LEN_MAX).contains(&label.len()) && label.bytes().all(right)
    };
    if name.len() > NAME_LEN_MAX || !name.split('.').all(is_label) {
        return Err("a domain is labels of a-z 0-9 - _ with dots between them, for example \"corp.example\"".into());
    }
    Ok(name.to_ascii_lowercase())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn domains_are_labels_in_lower_case() {
        for (text, domain) in [("Corp.Example.", "corp.example"), ("a", "a"), ("_x.b-1", "_x.b-1")] {
            assert_eq!(parse_domain(text).as_deref(), Ok(domain));
        }
        let long = "a.".repeat(127);
        for text in [
            "",
            ".",
            "a..b",
            "a b",
            "a\nnameserver 1.1.1.1",
            "~a",
            "é",
            &"a".repeat(64),
            &long,
        ] {
            assert_eq!(parse_domain(text).is_ok(), text == long, "{text:?}");
        }
        assert!(parse_domain(&format!("{long}b")).is_err());
    }
}
