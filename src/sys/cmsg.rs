//! Control messages (cmsg(3)): what sendmsg takes and recvmsg gives beside the payload.
//!
//! A message is a header (length, level, type) and data, each padded to a machine word. Everything here is bytes: the
//! kernel copies them and asks for no alignment beyond that padding.

use super::address::{Family, mapped, unmapped};
use crate::proto::endpoint::Local;
use std::net::{IpAddr, Ipv4Addr};

/// Room for all that a socket of ours receives: UDP_GRO (24), packet info (40), traffic class (24), time stamp (32).
pub(super) const CONTROL_ROOM: usize = 128;

const WORD: usize = size_of::<usize>();
/// struct cmsghdr: size_t, int, int.
const HEADER_LEN: usize = WORD + 8;
/// UDP_SEGMENT, IPV6_PKTINFO and IPV6_TCLASS.
const SEND_ROOM: usize = space(2) + space(20) + space(4);

const _: () = assert!(HEADER_LEN == size_of::<libc::cmsghdr>());
const _: () = assert!(space(4) + space(20) + space(4) + space(16) <= CONTROL_ROOM);

/// CMSG_SPACE.
const fn space(data: usize) -> usize {
    HEADER_LEN + data.next_multiple_of(WORD)
}

/// Control messages for a send.
#[derive(Debug, Clone, Copy)]
pub(super) struct Control {
    bytes: [u8; SEND_ROOM],
    len: usize,
}

impl Control {
    /// None at all.
    pub(super) const fn new() -> Control {
        Control {
            bytes: [0; SEND_ROOM],
            len: 0,
        }
    }

    /// UDP_SEGMENT (linux/udp.h): the kernel or the device cuts the payload into datagrams of `segment` bytes.
    pub(super) fn segment(&mut self, segment: u16) {
        self.push(libc::SOL_UDP, libc::UDP_SEGMENT, &segment.to_ne_bytes());
    }

    /// The address to send from: in6_pktinfo for a dual-stack socket (with a mapped address the kernel applies it to
    /// IPv4, ip_cmsg_send), in_pktinfo for an IPv4 one, which can't name an IPv6 address and then sends nothing.
    ///
    /// The interface is the routes' choice, as in the kernel's WireGuard: naming it would hold on to a link after the
    /// route has left it, and take a peer behind a router for a neighbour where no route goes through it. Only link-local
    /// addresses mean nothing without it.
    pub(super) fn source(&mut self, family: Family, source: &Local) {
        let interface = if is_link_local(source.address) {
            source.interface
        } else {
            0
        };
        match (family, source.address) {
            (Family::Dual, address) => {
                let mut info = [0; 20];
                info[..16].copy_from_slice(&mapped(address).octets());
                info[16..].copy_from_slice(&interface.to_ne_bytes());
                self.push(libc::IPPROTO_IPV6, libc::IPV6_PKTINFO, &info);
            }
            (Family::V4, IpAddr::V4(address)) => {
                let mut info = [0; 12];
                info[..4].copy_from_slice(&interface.to_ne_bytes());
                info[4..8].copy_from_slice(&address.octets());
                self.push(libc::IPPROTO_IP, libc::IP_PKTINFO, &info);
            }
            (Family::V4, IpAddr::V6(_)) => {}
        }
    }

    /// The traffic class (DSCP and ECN) of datagrams to `to`.
    pub(super) fn tos(&mut self, to: IpAddr, tos: u8) {
        let value = i32::from(tos).to_ne_bytes();
        match to {
            IpAddr::V4(_) => self.push(libc::IPPROTO_IP, libc::IP_TOS, &value),
            IpAddr::V6(_) => self.push(libc::IPPROTO_IPV6, libc::IPV6_TCLASS, &value),
        }
    }

    /// What to hand to the kernel.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }

    fn push(&mut self, level: i32, kind: i32, data: &[u8]) {
        let message = &mut self.bytes[self.len..][..space(data.len())];
        message[..WORD].copy_from_slice(&(HEADER_LEN + data.len()).to_ne_bytes());
        message[WORD..][..4].copy_from_slice(&level.to_ne_bytes());
        message[WORD + 4..][..4].copy_from_slice(&kind.to_ne_bytes());
        message[HEADER_LEN..][..data.len()].copy_from_slice(data);
        self.len += space(data.len());
    }
}

fn is_link_local(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => address.is_link_local(),
        IpAddr::V6(address) => address.is_unicast_link_local(),
    }
}

/// What a receive said about its payload.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Parsed {
    /// UDP_GRO: bytes per datagram.
    pub(super) segment: Option<usize>,
    /// Packet info: the address of ours that it came to.
    pub(super) local: Option<Local>,
    /// The traffic class.
    pub(super) tos: u8,
    /// SO_TIMESTAMPNS, nanoseconds since 1970; 0 for none.
    pub(super) received_unix_ns: u64,
}

/// Reads what we asked the kernel for; other messages, and what follows a malformed one, are ignored.
pub(super) fn parse(mut control: &[u8]) -> Parsed {
    let mut parsed = Parsed::default();
    while let Some((level, kind, data, rest)) = next(control) {
        control = rest;
        match (level, kind) {
            (libc::SOL_UDP, libc::UDP_GRO) => {
                let segment = data.first_chunk().map(|bytes| i32::from_ne_bytes(*bytes));
                parsed.segment = segment
                    .and_then(|segment| usize::try_from(segment).ok())
                    .filter(|&segment| segment > 0);
            }
            (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO) => parsed.local = in6_pktinfo(data).or(parsed.local),
            (libc::IPPROTO_IP, libc::IP_PKTINFO) => parsed.local = in_pktinfo(data).or(parsed.local),
            // The kernel sends IP_TOS as one byte and IPV6_TCLASS as an int.
            (libc::IPPROTO_IP, libc::IP_TOS) => parsed.tos = data.first().copied().unwrap_or(0),
            (libc::IPPROTO_IPV6, libc::IPV6_TCLASS) => {
                let class = data.first_chunk().map_or(0, |bytes| i32::from_ne_bytes(*bytes));
                parsed.tos = u8::try_from(class).unwrap_or(0);
            }
            (libc::SOL_SOCKET, libc::SCM_TIMESTAMPNS) => parsed.received_unix_ns = timespec_ns(data).unwrap_or(0),
            _ => {}
        }
    }
    parsed
}

type Message<'a> = (i32, i32, &'a [u8], &'a [u8]);

/// The first message's level, type and data, and what follows it.
fn next(control: &[u8]) -> Option<Message<'_>> {
    let len = usize::from_ne_bytes(*control.first_chunk()?);
    let level = i32::from_ne_bytes(control.get(WORD..WORD + 4)?.try_into().ok()?);
    let kind = i32::from_ne_bytes(control.get(WORD + 4..HEADER_LEN)?.try_into().ok()?);
    let data = control.get(HEADER_LEN..len)?;
    // The last message's padding may be missing.
    let rest = control.get(len.next_multiple_of(WORD)..).unwrap_or(&[]);
    Some((level, kind, data, rest))
}

fn in6_pktinfo(data: &[u8]) -> Option<Local> {
    let octets: [u8; 16] = *data.first_chunk()?;
    let interface = u32::from_ne_bytes(data.get(16..20)?.try_into().ok()?);
    Some(Local {
        address: unmapped(octets),
        interface,
    })
}

fn in_pktinfo(data: &[u8]) -> Option<Local> {
    let interface = u32::from_ne_bytes(*data.first_chunk()?);
    // ipi_spec_dst, the local address; ipi_addr behind it is the header's destination, which may be a broadcast.
    let octets: [u8; 4] = data.get(4..8)?.try_into().ok()?;
    Some(Local {
        address: Ipv4Addr::from(octets).into(),
        interface,
    })
}

fn timespec_ns(data: &[u8]) -> Option<u64> {
    let seconds = i64::from_ne_bytes(data.get(0..8)?.try_into().ok()?);
    let nanoseconds = i64::from_ne_bytes(data.get(8..16)?.try_into().ok()?);
    let (seconds, nanoseconds) = (u64::try_from(seconds).ok()?, u64::try_from(nanoseconds).ok()?);
    seconds.checked_mul(1_000_000_000)?.checked_add(nanoseconds)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn message(level: i32, kind: i32, data: &[u8]) -> Vec<u8> {
        let mut bytes = (HEADER_LEN + data.len()).to_ne_bytes().to_vec();
        bytes.extend(level.to_ne_bytes());
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(data);
        bytes.resize(bytes.len().next_multiple_of(WORD), 0);
        bytes
    }

    #[test]
    fn all_that_a_receive_can_say_is_read() {
        let mut control = message(libc::SOL_SOCKET, libc::SCM_TIMESTAMPNS, &{
            let mut timespec = 3i64.to_ne_bytes().to_vec();
            timespec.extend(7i64.to_ne_bytes());
            timespec
        });
        let mut info = "2001:db8::1".parse::<std::net::Ipv6Addr>().unwrap().octets().to_vec();
        info.extend(5u32.to_ne_bytes());
        control.extend(message(libc::IPPROTO_IPV6, libc::IPV6_PKTINFO, &info));
        control.extend(message(libc::IPPROTO_IPV6, libc::IPV6_TCLASS, &0x2ei32.to_ne_bytes()));
        control.extend(message(libc::SOL_UDP, libc::UDP_GRO, &1452i32.to_ne_bytes()));
        assert!(control.len() <= CONTROL_ROOM);
        let local = Some(Local {
            address: "2001:db8::1".parse().unwrap(),
            interface: 5,
        });
        let expected = Parsed {
            segment: Some(1452),
            local,
            tos: 0x2e,
            received_unix_ns: 3_000_000_007,
        };
        assert_eq!(parse(&control), expected);
        // CMSG_LEN in place of CMSG_SPACE for the last one, as some kernels count it.
        assert_eq!(parse(&control[..control.len() - 4]), expected);
    }

    #[test]
    fn v4_packet_info_is_the_same_in_both_families_and_names_the_interface_of_link_local_addresses_only() {
        for (address, interface) in [("192.0.2.9", 0), ("169.254.7.7", 2)] {
            let address = address.parse().unwrap();
            for family in [Family::Dual, Family::V4] {
                let mut control = Control::new();
                control.source(family, &Local { address, interface: 2 });
                let told = Some(Local { address, interface });
                assert_eq!(parse(control.bytes()).local, told, "{family:?}");
            }
        }
    }

    #[test]
    fn a_send_with_everything_fits() {
        let local = Local {
            address: "fe80::9".parse().unwrap(),
            interface: 2,
        };
        let mut control = Control::new();
        control.segment(1452);
        control.source(Family::Dual, &local);
        control.tos(local.address, 0xb8);
        let mut expected = message(libc::SOL_UDP, libc::UDP_SEGMENT, &1452u16.to_ne_bytes());
        let mut info = [0; 20];
        info[..16].copy_from_slice(&"fe80::9".parse::<std::net::Ipv6Addr>().unwrap().octets());
        info[16] = 2;
        expected.extend(message(libc::IPPROTO_IPV6, libc::IPV6_PKTINFO, &info));
        expected.extend(message(libc::IPPROTO_IPV6, libc::IPV6_TCLASS, &0xb8i32.to_ne_bytes()));
        assert_eq!(control.bytes(), expected);
        assert_eq!(expected.len(), SEND_ROOM);
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_are_parsed_without_panic(control in proptest::collection::vec(any::<u8>(), 0..200)) {
            parse(&control);
        }

        #[test]
        fn a_message_of_any_claimed_length_stays_within_its_bytes(claimed in any::<usize>(), room in 0usize..64) {
            let mut control = message(libc::SOL_UDP, libc::UDP_GRO, &vec![1; room]);
            control[..WORD].copy_from_slice(&claimed.to_ne_bytes());
            parse(&control);
        }
    }
}
