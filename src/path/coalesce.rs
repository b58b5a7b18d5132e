//! From the tunnel to the TUN: single IP packets become super-packets that the kernel takes in one write.
//!
//! The inverse of [`segment`](super::segment), and the rule that decides everything here is that segmenting a super-packet
//! must give back the packets it was made of, byte for byte (but for the IPv4 IDs of packets with DF, which mean nothing: RFC 6864). Hence
//! packets merge only when their headers agree in all that segmentation copies and follow on in all that it counts. The kernel's own
//! GRO (net/ipv4/tcp_offload.c, net/ipv4/udp_offload.c) works by the same rules.
//!
//! A super-packet gets fresh checksums, so a packet's checksums are verified before it is merged: a corrupt one goes
//! on alone, as it came.

mod group;
mod layout;

pub use group::{Begins, Connection, Group, Lanes, Part};

use super::drops::Drop;
use crate::wire::checksum::Sum;
use crate::wire::ip::{Fragment, Ip, Upper, V4_HEADER_LEN, V6_HEADER_LEN};
use crate::wire::tcp::{self, Tcp};
use crate::wire::udp::{self, Udp};
use crate::wire::vnet::{self, VNET_LEN, VnetHeader};
use crate::wire::{get_u16, put_u16};
use group::lone_header;
use layout::{Layout, V4_TCP, V4_UDP, V6_TCP, V6_UDP};

/// Flows that can be merged at the same time. More than this many bulk flows rarely share one pass of a worker, and all
/// of them are looked at for each packet.
const FLOWS_MAX: usize = 16;
/// Packets in one group: the kernel refuses a UDP super-packet of more segments (UDP_MAX_SEGMENTS was 64 before Linux 6.9).
const PACKETS_MAX: usize = 64;
/// Bytes of a super-packet: the IPv4 total length is a 16-bit field. IPv6 could carry 40 more.
const BYTES_MAX: usize = 65_535;
/// Knuth's multiplicative hashing; the high half of a product depends on all bits.
const FACTOR: u64 = 0x9e37_79b9_7f4a_7c15;
/// Idle groups that are kept for reuse, at under 1 KiB each.
const SPARES_MAX: usize = 256;

/// Which protocols the TUN takes super-packets of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Offloads {
    /// TCP (TSO4 and TSO6).
    pub tcp: bool,
    /// UDP (USO4 and USO6).
    pub udp: bool,
}

/// What the datagram that brought a packet says about it; by default what every WireGuard's does.
#[derive(Debug, Clone, Copy, Default)]
pub struct Origin {
    /// The TCP or UDP checksum field holds only the pseudo-header sum.
    pub partial: bool,
    /// The lanes of its session.
    pub lanes: Lanes,
}

/// Merges packets of up to 16 flows at a time. The order within a flow is kept.
#[derive(Debug)]
pub struct Coalescer {
    offloads: Offloads,
    /// In order of their first packets.
    open: Vec<Open>,
    spares: Vec<Group>,
}

impl Coalescer {
    /// Merges what the TUN can take.
    pub fn new(offloads: Offloads) -> Coalescer {
        Coalescer {
            offloads,
            open: Vec::with_capacity(FLOWS_MAX),
            spares: Vec::new(),
        }
    }

    /// Takes one whole IP packet, which lies at `at` of receive buffer `buffer`. Groups that are complete go to `out`.
    ///
    /// # Errors
    /// [`Drop::BadInner`] when `packet` is no whole IP packet, or one without the checksum field that `origin` speaks of.
    #[inline]
    pub fn push(
        &mut self,
        buffer: u16,
        at: usize,
        packet: &[u8],
        origin: Origin,
        received_ns: u64,
        out: &mut Vec<Group>,
    ) -> Result<(), Drop> {
        let place = Part {
            buffer,
            start: at as u32,
            len: packet.len() as u32,
        };
        match Candidate::new(packet, origin).filter(|candidate| candidate.layout.is_offloaded(self.offloads)) {
            Some(candidate) => self.merge(&candidate, place, received_ns, out),
            None => self.pass_on(packet, place, origin, received_ns, out)?,
        }
        Ok(())
    }

    /// Completes all groups.
    pub fn flush(&mut self, out: &mut Vec<Group>) {
        out.extend(self.open.drain(..).map(Open::close));
    }

    /// Takes back the memory of a group that was written.
    pub fn recycle(&mut self, mut group: Group) {
        if self.spares.len() < SPARES_MAX {
            group.own = Vec::new();
            group.queue = None;
            group.inner.parts.clear();
            self.spares.push(group);
        }
    }

    /// Appends to the flow's group, or opens one.
    #[inline]
    fn merge(&mut self, candidate: &Candidate<'_>, place: Part, received_ns: u64, out: &mut Vec<Group>) {
        if let Some(index) = self.open.iter().position(|open| open.flow == candidate.flow) {
            let open = &mut self.open[index];
            let joins = open.accepts(candidate);
            if joins {
                open.append(candidate, place);
            }
            if !joins || open.is_full() || candidate.ends_group(open.step) {
                out.push(self.open.remove(index).close());
            }
            if joins {
                return;
            }
        }
        let group = self.spares.pop().unwrap_or_else(Group::empty);
        let open = Open::new(group, candidate, place, received_ns);
        if candidate.ends_group(open.step) || !candidate.is_intact() {
            out.push(open.close());
            return;
        }
        if self.open.len() == FLOWS_MAX {
            out.push(self.open.remove(0).close());
        }
        self.open.push(open);
    }

    /// Lets a packet pass that never merges, behind whatever waits of its flow.
    fn pass_on(
        &mut self,
        packet: &[u8],
        mut place: Part,
        origin: Origin,
        received_ns: u64,
        out: &mut Vec<Group>,
    ) -> Result<(), Drop> {
        let ip = Ip::parse(packet).ok_or(Drop::BadInner)?;
        let vnet = lone_header(ip, origin.partial)?;
        place.len = ip.bytes().len() as u32;
        let (flow, has_ports) = Flow::of(ip);
        while let Some(index) = self.open.iter().position(|open| open.flow.may_be(flow, has_ports)) {
            out.push(self.open.remove(index).close());
        }
        let mut group = self.spares.pop().unwrap_or_else(Group::empty);
        let connection = if has_ports { connection(ip, origin.lanes) } else { None };
        group.set_lone(&vnet, place, received_ns, connection);
        out.push(group);
        Ok(())
    }
}

/// A flow's name: equal for equal flows. Two flows with the same name only keep each other from merging.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Flow {
    /// Made of both addresses and the protocol.
    hosts: u32,
    ports: [u8; 4],
}

impl Flow {
    /// `addresses` = source and destination as they lie in the IP header.
    #[inline]
    fn new(addresses: &[u8], protocol: u8, ports: [u8; 4]) -> Flow {
        let words = addresses.as_chunks::<8>().0;
        let mixed = words.iter().fold(u64::from(protocol), |mixed, word| {
            (mixed.rotate_left(32) ^ u64::from_ne_bytes(*word)).wrapping_mul(FACTOR)
        });
        Flow {
            hosts: (mixed >> 32) as u32,
            ports,
        }
    }

    /// The flow of any packet, and whether its ports are known: fragments and other protocols have none.
    fn of(ip: Ip<'_>) -> (Flow, bool) {
        let Upper {
            protocol,
            start,
            fragment,
        } = ip.upper();
        let ports = match fragment {
            Fragment::Whole => ip.bytes()[start..].first_chunk::<4>(),
            _ => None,
        };
        let flow = Flow::new(addresses(ip), protocol, ports.copied().unwrap_or_default());
        (flow, ports.is_some())
    }

    /// Whether a packet of `other` might belong to this flow.
    fn may_be(self, other: Flow, other_has_ports: bool) -> bool {
        self.hosts == other.hosts && (!other_has_ports || self.ports == other.ports)
    }
}

/// Source and destination.
fn addresses(ip: Ip<'_>) -> &[u8] {
    match ip {
        Ip::V4(packet) => &packet.bytes()[12..20],
        Ip::V6(packet) => &packet.bytes()[8..40],
    }
}

/// The connection that a packet with ports is one of.
fn connection(ip: Ip<'_>, lanes: Lanes) -> Option<Connection> {
    if lanes.count <= 1 {
        return None;
    }
    let upper = ip.upper();
    let header = &ip.bytes()[upper.start..];
    let begins = match upper.protocol {
        tcp::PROTOCOL => match Tcp::parse(header)? {
            tcp if tcp.flags() & (tcp::SYN | tcp::ACK) == tcp::SYN | tcp::ACK => Begins::Answered(tcp.seq()),
            _ => Begins::No,
        },
        udp::PROTOCOL => Begins::Unknown,
        _ => return None,
    };
    Some(Connection {
        name: name(addresses(ip), *header.first_chunk()?),
        lanes,
        begins,
    })
}

/// A connection's name: the same for both directions, as the TUN's is. `addresses` = source and destination.
#[inline]
fn name(addresses: &[u8], ports: [u8; 4]) -> u64 {
    let end = |address: &[u8], port: [u8; 2]| {
        let words = address.as_chunks::<4>().0;
        let port = u64::from(u16::from_ne_bytes(port));
        let mixed = words.iter().fold(port, |mixed, word| {
            (mixed.rotate_left(32) ^ u64::from(u32::from_ne_bytes(*word))).wrapping_mul(FACTOR)
        });
        // Not linear: what one end has more and the other has less is not to cancel out.
        (mixed ^ mixed >> 32).wrapping_mul(FACTOR)
    };
    let (source, destination) = addresses.split_at(addresses.len() / 2);
    let both = end(source, [ports[0], ports[1]]).wrapping_add(end(destination, [ports[2], ports[3]]));
    both.wrapping_mul(FACTOR).swap_bytes()
}

/// A packet that can be merged as far as it alone can tell.
struct Candidate<'a> {
    packet: &'a [u8],
    layout: &'static Layout,
    /// Bytes of all headers.
    header_len: usize,
    flow: Flow,
    origin: Origin,
}

impl<'a> Candidate<'a> {
    /// `None` unless `packet` is exactly an unfragmented IP packet without options or extension headers, and either a TCP segment with
    /// ACK and at most PSH, ECE and CWR besides, or a UDP datagram with a checksum, and has a payload.
    #[inline]
    fn new(packet: &'a [u8], origin: Origin) -> Option<Candidate<'a>> {
        let (len, protocol, layouts) = match Ip::parse(packet)? {
            Ip::V4(ip) => {
                let plain = ip.header_len() == V4_HEADER_LEN && ip.fragment() == Fragment::Whole;
                (ip.bytes().len(), ip.protocol(), plain.then_some([&V4_TCP, &V4_UDP])?)
            }
            Ip::V6(ip) => (ip.bytes().len(), ip.next_header(), [&V6_TCP, &V6_UDP]),
        };
        let layout = match protocol {
            tcp::PROTOCOL => layouts[0],
            udp::PROTOCOL => layouts[1],
            _ => return None,
        };
        let upper = &packet[layout.start..];
        let (upper_header_len, fits) = if layout.is_tcp {
            let tcp = Tcp::parse(upper)?;
            (
                tcp.header_len(),
                tcp.flags() & !(tcp::PSH | tcp::ECE | tcp::CWR) == tcp::ACK,
            )
        } else {
            let udp = Udp::parse(upper)?;
            (udp::HEADER_LEN, udp.length() == upper.len())
        };
        let header_len = layout.start + upper_header_len;
        let odd_zero = !origin.partial && get_u16(upper, layout.checksum_at) == layout.never_written;
        if !fits || len != packet.len() || header_len == len || odd_zero {
            return None;
        }
        let flow = Flow::new(layout.addresses(packet), protocol, *upper.first_chunk()?);
        Some(Candidate {
            packet,
            layout,
            header_len,
            flow,
            origin,
        })
    }

    #[inline]
    fn headers(&self) -> &'a [u8] {
        &self.packet[..self.header_len]
    }

    #[inline]
    fn connection(&self) -> Option<Connection> {
        let lanes = self.origin.lanes;
        (lanes.count > 1).then(|| Connection {
            name: name(self.layout.addresses(self.packet), self.flow.ports),
            lanes,
            begins: if self.layout.is_tcp {
                Begins::No
            } else {
                Begins::Unknown
            },
        })
    }

    #[inline]
    fn payload_len(&self) -> usize {
        self.packet.len() - self.header_len
    }

    /// The sequence number; for UDP without meaning.
    #[inline]
    fn seq(&self) -> u32 {
        let seq = &self.packet[self.layout.start + tcp::SEQ_AT..];
        seq.first_chunk().map_or(0, |bytes| u32::from_be_bytes(*bytes))
    }

    #[inline]
    fn has_flag(&self, flag: u8) -> bool {
        self.layout.is_tcp && self.packet[self.layout.start + tcp::FLAGS_AT] & flag != 0
    }

    /// Whether nothing can come after this packet in a group of packets with `step` payload bytes each.
    #[inline]
    fn ends_group(&self, step: usize) -> bool {
        self.payload_len() < step || self.has_flag(tcp::PSH)
    }

    /// Whether all checksums are right.
    #[inline]
    fn is_intact(&self) -> bool {
        let upper = &self.packet[self.layout.start..];
        let pseudo = self.layout.pseudo(self.packet).word(upper.len() as u16);
        let upper_intact = if self.origin.partial {
            get_u16(upper, self.layout.checksum_at) == pseudo.fold()
        } else {
            pseudo.plus(Sum::of(upper)).is_intact()
        };
        upper_intact && (self.layout.is_v6 || self.packet.first_chunk().is_some_and(is_intact_v4))
    }
}

/// A group that may still grow. Its head already holds the first packet's headers.
#[derive(Debug)]
struct Open {
    group: Group,
    flow: Flow,
    layout: &'static Layout,
    header_len: usize,
    /// Payload bytes of every packet but the last.
    step: usize,
    /// Bytes of the super-packet.
    len: usize,
    /// TCP: the sequence number that follows on.
    next_seq: u32,
    /// IPv4: the ID that follows on.
    next_id: u16,
    /// Whether the first packet's checksum is partial.
    partial: bool,
}

impl Open {
    #[inline]
    fn new(mut group: Group, first: &Candidate<'_>, place: Part, received_ns: u64) -> Open {
        let inner = &mut *group.inner;
        inner.head_len = VNET_LEN + first.header_len;
        inner.head[VNET_LEN..inner.head_len].copy_from_slice(first.headers());
        inner.bytes = 0;
        inner.received_ns = received_ns;
        inner.connection = first.connection();
        let mut open = Open {
            group,
            flow: first.flow,
            layout: first.layout,
            header_len: first.header_len,
            step: first.payload_len(),
            len: first.header_len,
            next_seq: first.seq(),
            next_id: get_u16(first.packet, 4),
            partial: first.origin.partial,
        };
        open.append(first, place);
        open
    }

    /// Whether `next` may become the group's last packet. What is cheapest or refuses most comes first.
    #[inline]
    fn accepts(&self, next: &Candidate<'_>) -> bool {
        self.has_room(next) && self.is_followed_by(next) && self.agrees_with(next) && next.is_intact()
    }

    #[inline]
    fn has_room(&self, next: &Candidate<'_>) -> bool {
        next.payload_len() <= self.step && self.len + next.payload_len() <= BYTES_MAX
    }

    /// What segmentation counts up must follow on. CWR belongs to the first segment alone.
    #[inline]
    fn is_followed_by(&self, next: &Candidate<'_>) -> bool {
        let seq_follows = !self.layout.is_tcp || next.seq() == self.next_seq;
        let id_follows = self.layout.is_v6 || has_dont_fragment(next.packet) || get_u16(next.packet, 4) == self.next_id;
        seq_follows && id_follows && !next.has_flag(tcp::CWR)
    }

    /// What segmentation copies must agree.
    #[inline]
    fn agrees_with(&self, next: &Candidate<'_>) -> bool {
        let headers = &self.group.inner.head[VNET_LEN..VNET_LEN + self.header_len];
        self.layout.agree(headers, next.headers())
    }

    #[inline]
    fn append(&mut self, next: &Candidate<'_>, place: Part) {
        let inner = &mut *self.group.inner;
        let header_len = next.header_len as u32;
        inner.parts.push(Part {
            start: place.start + header_len,
            len: place.len - header_len,
            ..place
        });
        inner.bytes += next.packet.len();
        if next.has_flag(tcp::PSH) {
            inner.head[VNET_LEN + self.layout.start + tcp::FLAGS_AT] |= tcp::PSH;
        }
        self.len += next.payload_len();
        self.next_seq = self.next_seq.wrapping_add(next.payload_len() as u32);
        self.next_id = self.next_id.wrapping_add(1);
    }

    #[inline]
    fn is_full(&self) -> bool {
        self.group.inner.parts.len() == PACKETS_MAX
    }

    /// Gives the group the headers that it is written with.
    #[inline]
    fn close(mut self) -> Group {
        let inner = &mut *self.group.inner;
        let (start, checksum_at) = (self.layout.start, self.layout.checksum_at);
        let mut vnet = VnetHeader {
            csum_start: start as u16,
            csum_offset: checksum_at as u16,
            ..VnetHeader::default()
        };
        if let [lone] = &mut inner.parts[..] {
            // As it came: its headers are read from where it was received.
            lone.start -= self.header_len as u32;
            lone.len += self.header_len as u32;
            inner.head_len = VNET_LEN;
            if self.partial {
                vnet.flags = vnet::F_NEEDS_CSUM;
            } else {
                vnet = VnetHeader::default();
            }
        } else {
            let headers = &mut inner.head[VNET_LEN..VNET_LEN + self.header_len];
            let upper_len = (self.len - start) as u16;
            if self.layout.is_v6 {
                put_u16(headers, 4, (self.len - V6_HEADER_LEN) as u16);
            } else {
                put_u16(headers, 2, self.len as u16);
                put_u16(headers, 10, 0);
                put_u16(headers, 10, Sum::of(&headers[..V4_HEADER_LEN]).checksum());
            }
            if !self.layout.is_tcp {
                put_u16(headers, start + udp::LENGTH_AT, upper_len);
            }
            put_u16(
                headers,
                start + checksum_at,
                self.layout.pseudo(headers).word(upper_len).fold(),
            );

            let has_cwr = self.layout.is_tcp && headers[start + tcp::FLAGS_AT] & tcp::CWR != 0;
            vnet.flags = vnet::F_NEEDS_CSUM;
            vnet.gso_type = self.layout.gso_type | if has_cwr { vnet::GSO_ECN } else { 0 };
            vnet.gso_size = self.step as u16;
            vnet.hdr_len = self.header_len as u16;
        }
        inner.head[..VNET_LEN].copy_from_slice(&vnet.bytes());
        self.group
    }
}

/// Whether the header's checksum is right, and written as we would write it: never as 0xffff, the other zero.
#[inline]
fn is_intact_v4(header: &[u8; V4_HEADER_LEN]) -> bool {
    Sum::of(header).is_intact() && get_u16(header, 10) != 0xffff
}

#[inline]
fn has_dont_fragment(v4_packet: &[u8]) -> bool {
    v4_packet[6] & 0x40 != 0
}

#[cfg(test)]
mod tests;
