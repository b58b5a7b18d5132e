//! From the TUN to the tunnel: one frame with its offloads undone becomes single IP packets.
//!
//! The kernel hands over TCP super-packets (TSO), runs of UDP datagrams (USO) and packets whose checksum it left to
//! the "device". Segments follow the rules of the kernel's own segmentation (net/ipv4/tcp_offload.c,
//! net/ipv4/udp_offload.c): the IPv4 ID counts up, FIN and PSH stay on the last segment, CWR on the first, and each
//! checksum field starts from the pseudo-header sum that the kernel left in it.

use super::drops::Drop;
use crate::wire::checksum::Sum;
use crate::wire::ip::{Ip, V6_HEADER_LEN};
use crate::wire::tcp::{self, Tcp};
use crate::wire::udp;
use crate::wire::vnet::{self, VnetHeader};
use crate::wire::{get_u16, put_u16};

/// What to do about TCP and UDP checksums that the kernel left unfinished.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Checksums {
    /// Finish them: the peer speaks WireGuard.
    Complete,
    /// Leave the pseudo-header sum in place and say so: the peer is a ringway, and the AEAD protects the bytes anyway.
    Partial,
}

/// The IP packets of one frame, one after the other.
#[derive(Debug, Clone)]
pub struct Segments<'a> {
    packet: &'a [u8],
    /// Bytes of all headers, which every segment repeats; 0 for a packet that stays whole.
    header_len: usize,
    /// Payload bytes of every segment but the last.
    step: usize,
    /// Where the next segment's payload begins.
    at: usize,
    /// How many segments came before it.
    count: u16,
    /// How the headers of segments differ; `None` for a packet that stays whole.
    numbers: Option<Numbers>,
    /// The checksum to finish: where its sum starts, and where it belongs from there.
    unfinished: Option<(usize, usize)>,
    /// Whether a checksum stays partial.
    partial: bool,
}

impl<'a> Segments<'a> {
    /// `frame` = virtio_net_hdr | IP packet, as read from a TUN with IFF_VNET_HDR. Bytes after a single packet's end are left out.
    ///
    /// # Errors
    /// [`Drop::Malformed`] when there is no whole IP packet, [`Drop::BadOffload`] when the virtio_net_hdr asks for something
    /// that ringway did not offer or that does not fit the packet.
    pub fn parse(frame: &'a [u8], checksums: Checksums) -> Result<Segments<'a>, Drop> {
        let (vnet, bytes) = VnetHeader::split(frame).ok_or(Drop::Malformed)?;
        let ip = Ip::parse(bytes).ok_or(Drop::Malformed)?;
        let segments = match vnet.gso_type {
            vnet::GSO_NONE => Segments::one(vnet, ip, checksums),
            _ if ip.bytes().len() == bytes.len() => Segments::many(vnet, ip, checksums),
            _ => return Err(Drop::Malformed),
        };
        segments.ok_or(Drop::BadOffload)
    }

    /// A packet that stays whole.
    fn one(vnet: VnetHeader, ip: Ip<'a>, checksums: Checksums) -> Option<Segments<'a>> {
        let packet = ip.bytes();
        let field = (usize::from(vnet.csum_start), usize::from(vnet.csum_offset));
        let needs_checksum = vnet.flags & vnet::F_NEEDS_CSUM != 0;
        if needs_checksum && field.0 + field.1 + 2 > packet.len() {
            return None;
        }
        // The checksum may also be that of a header wrapped deeper, in VXLAN say, which the peer would not find.
        let partial = needs_checksum && checksums == Checksums::Partial && ip.checksum_field() == Some(field);
        Some(Segments {
            packet,
            header_len: 0,
            step: packet.len(),
            at: 0,
            count: 0,
            numbers: None,
            unfinished: (needs_checksum && !partial).then_some(field),
            partial,
        })
    }

    /// A super-packet that is cut into many.
    fn many(vnet: VnetHeader, ip: Ip<'a>, checksums: Checksums) -> Option<Segments<'a>> {
        let packet = ip.bytes();
        let (start, offset) = ip.checksum_field()?;
        let tcp = match offset {
            tcp::CHECKSUM_AT => Some(Tcp::parse(&packet[start..])?),
            _ => None,
        };
        let type_fits = match vnet.gso_type & !vnet::GSO_ECN {
            vnet::GSO_TCPV4 => tcp.is_some() && matches!(ip, Ip::V4(_)),
            vnet::GSO_TCPV6 => tcp.is_some() && matches!(ip, Ip::V6(_)),
            vnet::GSO_UDP_L4 => tcp.is_none() && vnet.gso_type & vnet::GSO_ECN == 0,
            _ => false,
        };
        // virtio 1.2, section 5.1.6.2: who asks for segmentation must ask for checksums too.
        let sum_fits = vnet.flags & vnet::F_NEEDS_CSUM != 0
            && (usize::from(vnet.csum_start), usize::from(vnet.csum_offset)) == (start, offset);
        let header_len = start + tcp.map_or(udp::HEADER_LEN, |tcp| tcp.header_len());
        if !type_fits || !sum_fits || vnet.gso_size == 0 || header_len >= packet.len() {
            return None;
        }

        let partial = checksums == Checksums::Partial;
        Some(Segments {
            packet,
            header_len,
            step: vnet.gso_size.into(),
            at: header_len,
            count: 0,
            numbers: Some(Numbers::new(ip, start, offset, tcp)),
            unfinished: (!partial).then_some((start, offset)),
            partial,
        })
    }

    /// The whole IP packet, not yet cut, its headers checked: for looking up its route.
    pub fn ip(&self) -> &'a [u8] {
        self.packet
    }

    /// Bytes of the largest segment, an IP packet.
    pub fn largest(&self) -> usize {
        self.packet.len().min(self.header_len + self.step)
    }

    /// Bytes of the next segment, an IP packet; `None` after the last.
    #[inline]
    pub fn next_len(&self) -> Option<usize> {
        let left = self.packet.len() - self.at;
        (left > 0).then(|| self.header_len + left.min(self.step))
    }

    /// How many segments in a row, from the next one on, have the next one's size.
    #[inline]
    pub fn equal(&self) -> usize {
        ((self.packet.len() - self.at) / self.step.max(1)).max(1)
    }

    /// How many segments are left.
    pub fn remaining(&self) -> usize {
        (self.packet.len() - self.at).div_ceil(self.step.max(1))
    }

    /// Writes the next IP packet to `out`; true when its TCP or UDP checksum field holds only the pseudo-header sum.
    ///
    /// # Panics
    /// Unless `out` has exactly [`Segments::next_len`] bytes.
    #[inline]
    pub fn write_next(&mut self, out: &mut [u8]) -> bool {
        let payload = self.write_next_headers(out);
        out[self.header_len..].copy_from_slice(payload);
        if let Some((start, offset)) = self.unfinished {
            finish_checksum(&mut out[start..], offset);
        }
        self.partial
    }

    /// The payloads of the next `count` segments, end to end, and whether their checksum fields hold only the pseudo-header sum: for
    /// who takes them from there and has [`Segments::write_next_headers`] write the rest. `None` when a checksum has to be finished.
    ///
    /// # Panics
    /// When fewer are left that have the next one's size.
    pub fn payloads(&self, count: usize) -> Option<(&'a [u8], bool)> {
        let len = self.next_len().expect("there is a next segment") - self.header_len;
        let payloads = &self.packet[self.at..][..count * len];
        self.unfinished.is_none().then_some((payloads, self.partial))
    }

    /// Writes the next IP packet to `out` but for its payload and a checksum that has to be finished; the payload.
    ///
    /// # Panics
    /// As [`Segments::write_next`].
    #[inline]
    pub fn write_next_headers(&mut self, out: &mut [u8]) -> &'a [u8] {
        assert_eq!(
            Some(out.len()),
            self.next_len(),
            "the output must have the size of the next segment"
        );
        let (headers, payload) = out.split_at_mut(self.header_len);
        headers.copy_from_slice(&self.packet[..self.header_len]);
        let bytes_before = self.at - self.header_len;
        let payload = &self.packet[self.at..][..payload.len()];
        self.at += payload.len();

        if let Some(numbers) = &self.numbers {
            let is_last = self.at == self.packet.len();
            numbers.write(headers, payload.len(), self.count, bytes_before, is_last);
            self.count = self.count.wrapping_add(1);
        }
        payload
    }
}

/// What differs between the headers of a super-packet and of its segments, taken apart once.
#[derive(Debug, Clone, Copy)]
struct Numbers {
    /// Where the TCP or UDP header starts.
    start: usize,
    /// Where its checksum lies in it.
    offset: usize,
    /// The pseudo-header sum but for the length.
    pseudo: Sum,
    /// TCP: the sequence number. `None` for UDP.
    seq: Option<u32>,
    /// IPv4: the ID, and the header's sum but for total length, ID and checksum. `None` for IPv6.
    v4: Option<(u16, Sum)>,
}

impl Numbers {
    fn new(ip: Ip<'_>, start: usize, offset: usize, tcp: Option<Tcp<'_>>) -> Numbers {
        let packet = ip.bytes();
        let upper_len = (packet.len() - start) as u16;
        let v4 = match ip {
            Ip::V4(ip) => Some((ip.id(), ip.constant_sum())),
            Ip::V6(_) => None,
        };
        Numbers {
            start,
            offset,
            pseudo: Sum::ZERO.word(get_u16(packet, start + offset)).without(upper_len),
            seq: tcp.map(|tcp| tcp.seq()),
            v4,
        }
    }

    /// Turns the copied headers of the super-packet into those of segment `count`, which has `bytes_before` payload bytes
    /// before it. The checksum field gets the pseudo-header sum.
    #[inline]
    fn write(&self, headers: &mut [u8], payload_len: usize, count: u16, bytes_before: usize, is_last: bool) {
        let len = headers.len() + payload_len;
        let upper_len = (len - self.start) as u16;
        match self.v4 {
            Some((id, constant_sum)) => {
                let id = id.wrapping_add(count);
                put_u16(headers, 2, len as u16);
                put_u16(headers, 4, id);
                put_u16(headers, 10, constant_sum.word(len as u16).word(id).checksum());
            }
            None => put_u16(headers, 4, (len - V6_HEADER_LEN) as u16),
        }
        let upper = &mut headers[self.start..];
        match self.seq {
            Some(seq) => {
                let seq = seq.wrapping_add(bytes_before as u32);
                upper[tcp::SEQ_AT..tcp::SEQ_AT + 4].copy_from_slice(&seq.to_be_bytes());
                if count > 0 {
                    upper[tcp::FLAGS_AT] &= !tcp::CWR;
                }
                if !is_last {
                    upper[tcp::FLAGS_AT] &= !(tcp::FIN | tcp::PSH);
                }
            }
            None => put_u16(upper, udp::LENGTH_AT, upper_len),
        }
        put_u16(upper, self.offset, self.pseudo.word(upper_len).fold());
    }
}

/// Replaces the pseudo-header sum at `offset` by the checksum of `upper`, a TCP or UDP header and its payload.
#[inline]
fn finish_checksum(upper: &mut [u8], offset: usize) {
    let sum = Sum::of(upper);
    let checksum = if offset == udp::CHECKSUM_AT {
        sum.udp_checksum()
    } else {
        sum.checksum()
    };
    put_u16(upper, offset, checksum);
}

#[cfg(test)]
mod tests {
    use super::super::sample::{Sample, Written};
    use super::*;
    use crate::wire::ip::Ip;
    use proptest::prelude::*;

    fn packets(frame: &[u8], checksums: Checksums) -> Vec<(Vec<u8>, bool)> {
        let mut segments = Segments::parse(frame, checksums).expect("a good frame");
        let mut packets = Vec::new();
        while let Some(len) = segments.next_len() {
            let mut packet = vec![0xaa; len];
            let mut in_parts = segments.clone();
            let partial = segments.write_next(&mut packet);
            if let Some((payload, also_partial)) = in_parts.payloads(1) {
                let mut written = vec![0xaa; len];
                assert_eq!(in_parts.write_next_headers(&mut written), payload);
                let headers = len - payload.len();
                assert!(written[headers..].iter().all(|&byte| byte == 0xaa));
                written[headers..].copy_from_slice(payload);
                assert!((written, also_partial) == (packet.clone(), partial));
                assert_eq!(in_parts.next_len(), segments.next_len());
            } else {
                assert!(!partial);
            }
            packets.push((packet, partial));
        }
        packets
    }

    /// A frame with no segmentation asked for, its checksum partial or complete.
    fn single(sample: &Sample, written: Written) -> Vec<u8> {
        let mut frame = sample.frame(0);
        frame[1] = vnet::GSO_NONE;
        if written == Written::Complete {
            frame[0] = 0;
            frame.splice(10.., sample.bytes(Written::Complete));
        }
        frame
    }

    fn bytes(len: usize) -> Vec<u8> {
        (0..len).map(|at| (at * 7 + at / 251) as u8).collect()
    }

    prop_compose! {
        fn sample()(
            v6: bool, tcp: bool, ports: u32, traffic_class: u8, dont_fragment: bool, id: u16, seq: u32, ack: u32,
            flags in prop::sample::select(vec![0x10, 0x18, 0x11, 0x19, 0x90, 0xd8, 0x50]),
            options in 0usize..=10, len in prop_oneof![1usize..100, 1usize..20_000, Just(65_400)],
        ) -> Sample {
            let mut sample = Sample { ports, traffic_class, dont_fragment, id, ..Sample::udp(v6, bytes(len)) };
            if tcp {
                sample = Sample { tcp, seq, ack, flags, options: bytes(options * 4), ..sample };
            }
            sample
        }
    }

    proptest! {
        #[test]
        fn segments_are_those_of_the_slow_twin(sample in sample(), step in prop_oneof![1u16..3000, Just(1368), Just(u16::MAX)]) {
            let frame = sample.frame(step);
            let cut = sample.cut(step.into());
            let expected = |written| cut.iter().map(move |segment| segment.bytes(written));
            prop_assert_eq!(Segments::parse(&frame, Checksums::Partial).unwrap().largest(), cut[0].bytes(Written::Partial).len());
            let partial = expected(Written::Partial).map(|packet| (packet, true)).collect::<Vec<_>>();
            prop_assert!(packets(&frame, Checksums::Partial) == partial);
            let complete = expected(Written::Complete).map(|packet| (packet, false)).collect::<Vec<_>>();
            prop_assert!(packets(&frame, Checksums::Complete) == complete);
        }

        #[test]
        fn a_single_packet_keeps_its_bytes_and_gets_the_checksum_that_is_asked_for(sample in sample()) {
            let (complete, partial) = (sample.bytes(Written::Complete), sample.bytes(Written::Partial));
            let frame = single(&sample, Written::Partial);
            prop_assert!(packets(&frame, Checksums::Complete) == [(complete.clone(), false)]);
            prop_assert!(packets(&frame, Checksums::Partial) == [(partial, true)]);
            for checksums in [Checksums::Complete, Checksums::Partial] {
                prop_assert!(packets(&single(&sample, Written::Complete), checksums) == [(complete.clone(), false)]);
            }
        }
    }

    #[test]
    fn a_udp_checksum_of_zero_is_written_as_all_ones() {
        let mut sample = Sample::udp(false, vec![0; 4]);
        let checksum = u16::from_be_bytes(sample.bytes(Written::Complete)[26..28].try_into().unwrap());
        // Adding its own checksum to the data makes the sum -0.
        sample.payload[..2].copy_from_slice(&checksum.to_be_bytes());
        for frame in [single(&sample, Written::Partial), sample.frame(2000)] {
            assert_eq!(packets(&frame, Checksums::Complete)[0].0[26..28], [0xff, 0xff]);
        }
    }

    #[test]
    fn a_checksum_wrapped_deeper_is_finished_for_either_peer() {
        // A UDP datagram that carries an Ethernet-less inner IPv4/TCP packet whose checksum is the unfinished one.
        let inner = Sample::tcp(false, 9, bytes(500));
        let outer = Sample::udp(false, inner.bytes(Written::Partial));
        let vnet = VnetHeader {
            flags: vnet::F_NEEDS_CSUM,
            csum_start: 28 + 20,
            csum_offset: 16,
            ..VnetHeader::default()
        };
        let frame = [&vnet.bytes()[..], &outer.bytes(Written::Complete)].concat();
        for checksums in [Checksums::Complete, Checksums::Partial] {
            let [(packet, false)] = &packets(&frame, checksums)[..] else {
                panic!("one complete packet")
            };
            assert_eq!(packet[28..], inner.bytes(Written::Complete));
        }
    }

    #[test]
    fn extension_headers_are_repeated_in_every_segment() {
        let sample = Sample::tcp(true, 1, bytes(3000));
        let mut frame = sample.frame(1000);
        let hop_by_hop = [6, 0, 1, 4, 0, 0, 0, 0];
        frame[10 + 6] = 0;
        frame[10 + 4..10 + 6].copy_from_slice(&(3000u16 + 32 + 8).to_be_bytes());
        frame.splice(50..50, hop_by_hop);
        frame[6..8].copy_from_slice(&48u16.to_ne_bytes());
        let packets = packets(&frame, Checksums::Complete);
        assert_eq!(packets.len(), 3);
        for ((packet, _), expected) in packets.iter().zip(sample.cut(1000)) {
            assert_eq!(Ip::parse(packet).unwrap().bytes().len(), packet.len());
            assert_eq!(packet[40..48], hop_by_hop);
            assert_eq!(packet[48..], expected.bytes(Written::Complete)[40..]);
        }
    }

    #[test]
    fn padding_after_a_single_packet_is_left_out() {
        let sample = Sample::udp(false, bytes(20));
        let padded = [&single(&sample, Written::Partial)[..], &[0; 13]].concat();
        assert_eq!(
            packets(&padded, Checksums::Complete)[0].0,
            sample.bytes(Written::Complete)
        );
    }

    #[test]
    fn frames_without_a_whole_packet_are_malformed() {
        let frame = Sample::tcp(false, 1, bytes(100)).frame(10);
        for bad in [
            &frame[..9],
            &frame[..29],
            &frame[..frame.len() - 1],
            &[&frame[..], &[0]].concat(),
        ] {
            assert_eq!(Segments::parse(bad, Checksums::Complete).err(), Some(Drop::Malformed));
        }
    }

    #[test]
    fn offloads_that_were_not_asked_for_or_do_not_fit_are_refused() {
        let refused = |sample: &Sample, change: &dyn Fn(&mut Vec<u8>)| {
            let mut frame = sample.frame(10);
            assert!(Segments::parse(&frame, Checksums::Partial).is_ok());
            change(&mut frame);
            assert_eq!(
                Segments::parse(&frame, Checksums::Partial).err(),
                Some(Drop::BadOffload)
            );
        };
        let tcp = Sample::tcp(false, 1, bytes(100));
        let udp = Sample::udp(true, bytes(100));
        refused(&tcp, &|frame| frame[0] = 0); // segmentation without NEEDS_CSUM
        refused(&tcp, &|frame| frame[1] = 3); // VIRTIO_NET_HDR_GSO_UDP, fragmentation
        refused(&tcp, &|frame| frame[1] = vnet::GSO_TCPV6);
        refused(&tcp, &|frame| frame[1] = vnet::GSO_UDP_L4);
        refused(&udp, &|frame| frame[1] = vnet::GSO_UDP_L4 | vnet::GSO_ECN);
        refused(&udp, &|frame| frame[1] = vnet::GSO_TCPV6);
        refused(&tcp, &|frame| frame[4..6].fill(0)); // gso_size
        refused(&tcp, &|frame| frame[6] += 1); // csum_start
        refused(&tcp, &|frame| frame[8] = 6); // csum_offset
        refused(&tcp, &|frame| frame[10 + 6] = 0x20); // a fragment

        refused(&Sample::udp(false, bytes(10)), &|frame| {
            frame.truncate(38);
            frame[13] = 28; // no payload
        });
    }

    #[test]
    fn a_checksum_outside_the_packet_is_refused() {
        let sample = Sample::udp(false, bytes(10));
        let mut frame = single(&sample, Written::Partial);
        frame[8..10].copy_from_slice(&17u16.to_ne_bytes());
        assert_eq!(
            Segments::parse(&frame, Checksums::Complete).err(),
            Some(Drop::BadOffload)
        );
        frame[8..10].copy_from_slice(&u16::MAX.to_ne_bytes());
        assert_eq!(
            Segments::parse(&frame, Checksums::Complete).err(),
            Some(Drop::BadOffload)
        );
    }
}
