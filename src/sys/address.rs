//! Socket addresses as the kernel lays them out: sockaddr_in (netinet/in.h) and sockaddr_in6.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};

/// What kind of socket an address is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Family {
    /// AF_INET6 with IPV6_V6ONLY off: IPv4 addresses travel as ::ffff:a.b.c.d.
    Dual,
    /// AF_INET.
    V4,
}

/// Room for any address here: sockaddr_in6 has 28 bytes. A multiple of 16 keeps what follows it aligned.
pub(super) const ADDRESS_ROOM: usize = 32;
const V4_LEN: usize = 16;
const V6_LEN: usize = 28;

/// An encoded socket address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct SockAddr {
    bytes: [u8; ADDRESS_ROOM],
    len: usize,
}

impl SockAddr {
    /// `address` for a socket of `family`; none for an IPv6 address and an IPv4 socket.
    pub(super) fn encode(family: Family, address: SocketAddr) -> Option<SockAddr> {
        let mut bytes = [0; ADDRESS_ROOM];
        let len = match (family, address) {
            (Family::V4, SocketAddr::V4(address)) => {
                bytes[0..2].copy_from_slice(&family_number(libc::AF_INET));
                bytes[2..4].copy_from_slice(&address.port().to_be_bytes());
                bytes[4..8].copy_from_slice(&address.ip().octets());
                V4_LEN
            }
            (Family::V4, SocketAddr::V6(_)) => return None,
            (Family::Dual, address) => {
                bytes[0..2].copy_from_slice(&family_number(libc::AF_INET6));
                bytes[2..4].copy_from_slice(&address.port().to_be_bytes());
                bytes[8..24].copy_from_slice(&mapped(address.ip()).octets());
                if let SocketAddr::V6(address) = address {
                    bytes[4..8].copy_from_slice(&address.flowinfo().to_be_bytes());
                    bytes[24..28].copy_from_slice(&address.scope_id().to_ne_bytes());
                }
                V6_LEN
            }
        };
        Some(SockAddr { bytes, len })
    }

    /// The address in `bytes`; ::ffff:a.b.c.d comes out as a.b.c.d. None when it is too short or of another family.
    pub(super) fn decode(bytes: &[u8]) -> Option<SocketAddr> {
        let family: [u8; 2] = *bytes.first_chunk()?;
        let port = u16::from_be_bytes(bytes.get(2..4)?.try_into().ok()?);
        if family == family_number(libc::AF_INET) {
            let octets: [u8; 4] = bytes.get(4..8)?.try_into().ok()?;
            return Some(SocketAddrV4::new(Ipv4Addr::from(octets), port).into());
        }
        if family != family_number(libc::AF_INET6) {
            return None;
        }
        let octets: [u8; 16] = bytes.get(8..24)?.try_into().ok()?;
        let scope = u32::from_ne_bytes(bytes.get(24..28)?.try_into().ok()?);
        // The flow label names one packet's flow, not the peer: it would make equal endpoints unequal.
        Some(match unmapped(octets) {
            IpAddr::V4(ip) => SocketAddrV4::new(ip, port).into(),
            IpAddr::V6(ip) => SocketAddrV6::new(ip, port, 0, scope).into(),
        })
    }

    /// The encoded bytes.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

/// `ip` as a dual-stack socket names it.
pub(super) fn mapped(ip: IpAddr) -> Ipv6Addr {
    match ip {
        IpAddr::V4(ip) => ip.to_ipv6_mapped(),
        IpAddr::V6(ip) => ip,
    }
}

/// The inverse of [`mapped`].
pub(super) fn unmapped(octets: [u8; 16]) -> IpAddr {
    let ip = Ipv6Addr::from(octets);
    ip.to_ipv4_mapped().map_or(IpAddr::V6(ip), IpAddr::V4)
}

fn family_number(family: libc::c_int) -> [u8; 2] {
    // sa_family_t is 16 bits wide and all families of Linux are below 64.
    u16::try_from(family)
        .expect("an address family fits 16 bits")
        .to_ne_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_survive_the_way_there_and_back() {
        let v6: SocketAddr = SocketAddrV6::new("fe80::1".parse().unwrap(), 7, 0, 3).into();
        for address in [
            "192.0.2.1:51820".parse().unwrap(),
            "[2001:db8::2]:1".parse().unwrap(),
            v6,
        ] {
            let encoded = SockAddr::encode(Family::Dual, address).unwrap();
            assert_eq!(encoded.bytes().len(), std::mem::size_of::<libc::sockaddr_in6>());
            assert_eq!(SockAddr::decode(encoded.bytes()), Some(address));
        }
        let v4 = "192.0.2.1:51820".parse().unwrap();
        let encoded = SockAddr::encode(Family::V4, v4).unwrap();
        assert_eq!(encoded.bytes().len(), std::mem::size_of::<libc::sockaddr_in>());
        assert_eq!(SockAddr::decode(encoded.bytes()), Some(v4));
    }

    #[test]
    fn a_v4_address_is_mapped_for_a_dual_stack_socket() {
        let encoded = SockAddr::encode(Family::Dual, "192.0.2.1:513".parse().unwrap()).unwrap();
        assert_eq!(encoded.bytes()[2..4], [2, 1]);
        assert_eq!(
            encoded.bytes()[8..24],
            [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 192, 0, 2, 1]
        );
    }

    #[test]
    fn what_cannot_be_an_address_is_none() {
        assert_eq!(SockAddr::encode(Family::V4, "[::1]:1".parse().unwrap()), None);
        let encoded = SockAddr::encode(Family::Dual, "[::1]:1".parse().unwrap()).unwrap();
        for len in 0..28 {
            assert_eq!(SockAddr::decode(&encoded.bytes()[..len]), None, "{len} bytes");
        }
        assert_eq!(SockAddr::decode(&[0; 28]), None);
    }
}
