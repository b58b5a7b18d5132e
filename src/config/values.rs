//! Texts -> values, each with an error that says what would be right.

use std::net::{IpAddr, Ipv4Addr};

use ipnet::IpNet;

/// IFNAMSIZ (linux/if.h) without the terminating zero.
pub const NAME_LEN_MAX: usize = 15;

/// Bytes of a Unix socket's path: `sun_path` (linux/un.h) without the terminating zero.
pub const SOCKET_PATH_LEN_MAX: usize = 107;

/// Longest name of a peer, in characters.
pub const PEER_NAME_CHARS_MAX: usize = 64;

/// Checks the name of an interface: what the kernel takes (`dev_valid_name`), without what files, scripts and
/// patterns trip over.
pub fn check_interface_name(name: &str) -> Result<(), String> {
    let is_allowed = |b: u8| b.is_ascii_alphanumeric() || b"_=+.-".contains(&b);
    if name.is_empty() || name.len() > NAME_LEN_MAX || !name.bytes().all(is_allowed) {
        return Err(format!(
            "a name has 1 to {NAME_LEN_MAX} of the characters a-z A-Z 0-9 _ = + . -"
        ));
    }
    match name {
        "." | ".." | "all" | "default" | "lo" => Err("this name has a meaning of its own to the kernel".into()),
        _ if name.starts_with('-') => Err("a name that begins with \"-\" looks like an option".into()),
        _ => Ok(()),
    }
}

/// Checks the name of a peer: something that can be shown and typed.
pub fn check_peer_name(name: &str) -> Result<(), String> {
    let chars = name.chars().count();
    if !(1..=PEER_NAME_CHARS_MAX).contains(&chars) || name.chars().any(char::is_control) || name.trim() != name {
        return Err(format!(
            "a peer's name has 1 to {PEER_NAME_CHARS_MAX} characters, no control characters, no space at its ends"
        ));
    }
    Ok(())
}

/// Reads `10.0.0.1/24`; without a prefix length, the address alone (/32 or /128). Host bits are kept.
pub fn parse_network(text: &str) -> Result<IpNet, String> {
    let (address, prefix_len) = match text.split_once('/') {
        Some((address, prefix_len)) => (address, Some(prefix_len)),
        None => (text, None),
    };
    let address: IpAddr = address.parse().map_err(|_| {
        format!("\"{address}\" is not an IP address; write for example \"10.0.0.0/24\" or \"fd00::/64\"")
    })?;
    let (family, prefix_len_max) = if address.is_ipv4() { ("IPv4", 32) } else { ("IPv6", 128) };
    let prefix_len = match prefix_len {
        None => prefix_len_max,
        Some(text) => text
            .parse()
            .ok()
            // "+8" and "08" parse as numbers, but are no prefix lengths.
            .filter(|len: &u8| *len <= prefix_len_max && len.to_string() == text)
            .ok_or_else(|| format!("the prefix length of an {family} network is 0 to {prefix_len_max}"))?,
    };
    IpNet::new(address, prefix_len).map_err(|error| error.to_string())
}

/// Reads an address that the interface is to have, with the prefix length of its network.
pub fn parse_interface_address(text: &str) -> Result<IpNet, String> {
    check_interface_address(parse_network(text)?)
}

/// Checks an address that the interface is to have, with the prefix length of its network.
pub fn check_interface_address(network: IpNet) -> Result<IpNet, String> {
    let address = network.addr();
    if address.is_unspecified() || address.is_multicast() || address == IpAddr::V4(Ipv4Addr::BROADCAST) {
        return Err(format!("{address} is not an address that an interface can have"));
    }
    if network.prefix_len() == 0 {
        return Err("the prefix length 0 would put the whole Internet on this link; write that of your network".into());
    }
    Ok(network)
}

/// Reads an allowed IP as `wg` does: host bits are cleared.
pub fn parse_allowed_ip(text: &str) -> Result<IpNet, String> {
    Ok(parse_network(text)?.trunc())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interface_names_are_those_that_the_kernel_and_scripts_take() {
        for name in ["rw0", "a", "wg-home_1.2", "123456789012345", "a=b+c"] {
            assert_eq!(check_interface_name(name), Ok(()), "{name}");
        }
        for name in [
            "",
            "1234567890123456",
            "a b",
            "a/b",
            "a:b",
            "tun%d",
            "é",
            ".",
            "..",
            "all",
            "default",
            "lo",
            "-a",
        ] {
            assert!(check_interface_name(name).is_err(), "{name}");
        }
    }

    #[test]
    fn networks_keep_host_bits_and_default_to_a_single_address() {
        let cases = [
            ("10.99.0.1/24", "10.99.0.1/24"),
            ("10.99.0.1", "10.99.0.1/32"),
            ("fd99::1/64", "fd99::1/64"),
            ("FD99::1", "fd99::1/128"),
            ("0.0.0.0/0", "0.0.0.0/0"),
        ];
        for (text, expected) in cases {
            assert_eq!(parse_network(text).unwrap().to_string(), expected);
        }
        for (text, expected) in [
            ("10.99.0.7/24", "10.99.0.0/24"),
            ("10.0.0.1/0", "0.0.0.0/0"),
            ("::/0", "::/0"),
        ] {
            assert_eq!(parse_allowed_ip(text).unwrap().to_string(), expected);
        }
    }

    #[test]
    fn wrong_networks_are_refused() {
        for text in [
            "",
            "10.0.0",
            "10.0.0.1/",
            "10.0.0.1/33",
            "10.0.0.1/-1",
            "10.0.0.1/+8",
            "10.0.0.1/08",
            "fd::/129",
            "010.0.0.1/8",
            "10.0.0.0/255.0.0.0",
            "fe80::1%eth0/64",
            " 10.0.0.1",
        ] {
            assert!(parse_network(text).is_err(), "{text:?}");
        }
        for text in [
            "0.0.0.0/8",
            "224.0.0.1/8",
            "255.255.255.255/32",
            "::/64",
            "ff02::1/64",
            "10.0.0.1/0",
        ] {
            assert!(parse_interface_address(text).is_err(), "{text:?}");
        }
    }
}
