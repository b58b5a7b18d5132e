//! Any TUN frame through segmentation, and any run of packets through coalescing: what comes out of the far TUN is what went in.

use ringway::path::coalesce::{Coalescer, Group, Lanes, Offloads, Origin, Part};
use ringway::path::segment::{Checksums, Segments};
use ringway::wire::checksum::Sum;
use ringway::wire::ip::{Fragment, Ip};
use ringway::wire::vnet::{F_NEEDS_CSUM, VnetHeader};
use std::collections::BTreeMap;
use std::net::IpAddr;

#[path = "../../../src/path/sample.rs"]
mod sample;
use sample::{Sample, Written};

/// Panics when something does not hold. The first byte chooses between a TUN frame, which makes both journeys, and a list of packets.
pub(crate) fn check(data: &[u8]) {
    let Some((kind, rest)) = data.split_first() else { return };
    if kind % 2 == 0 {
        frame(rest);
    } else {
        journey(&packets(rest));
    }
}

/// A frame that can be cut at all comes out of the far TUN as the same packets for either kind of peer.
fn frame(frame: &[u8]) {
    let (partial, complete) = (cut(frame, Checksums::Partial), cut(frame, Checksums::Complete));
    assert_eq!(partial.is_some(), complete.is_some());
    let (Some(partial), Some(complete)) = (partial, complete) else {
        return;
    };
    assert!(complete.iter().all(|(_, partial)| !partial));
    assert_eq!(partial.len(), complete.len());
    let to_be_finished = |(packet, partial): &(Vec<u8>, bool)| if *partial { finish(packet) } else { packet.clone() };
    assert!(
        partial
            .iter()
            .map(to_be_finished)
            .eq(complete.iter().map(|(packet, _)| packet.clone()))
    );
    journey(&partial);
    journey(&complete);
}

/// Pushes packets (and whether their checksum is partial), and compares what was accepted with what comes out, flow by flow.
fn journey(packets: &[(Vec<u8>, bool)]) {
    let mut coalescer = Coalescer::new(Offloads { tcp: true, udp: true });
    let mut groups = Vec::new();
    let mut expected: BTreeMap<Flow, Vec<Vec<u8>>> = BTreeMap::new();
    for (index, (packet, partial)) in packets.iter().enumerate().take(usize::from(Part::OWN)) {
        let origin = Origin {
            partial: *partial,
            lanes: Lanes { first: 0, count: 2 },
        };
        if coalescer.push(index as u16, 0, packet, origin, 0, &mut groups).is_ok() {
            let ip = Ip::parse(packet).expect("only packets are accepted");
            let arrives = if *partial {
                finish(ip.bytes())
            } else {
                ip.bytes().to_vec()
            };
            expected.entry(flow(ip)).or_default().push(without_id(arrives));
        }
    }
    coalescer.flush(&mut groups);

    let mut out: BTreeMap<Flow, Vec<Vec<u8>>> = BTreeMap::new();
    for group in &groups {
        let packets = cut(&write(group, packets), Checksums::Complete).expect("the TUN takes what it gave");
        assert_eq!(packets.len(), group.packets() as usize);
        assert_eq!(
            packets.iter().map(|(packet, _)| packet.len()).sum::<usize>(),
            group.bytes()
        );
        for (packet, _) in packets {
            let flow = flow(Ip::parse(&packet).expect("a packet"));
            out.entry(flow).or_default().push(without_id(packet));
        }
    }
    assert!(out == expected);
}

/// All segments of `frame`, and whether their checksums are partial.
fn cut(frame: &[u8], checksums: Checksums) -> Option<Vec<(Vec<u8>, bool)>> {
    let mut segments = Segments::parse(frame, checksums).ok()?;
    let (largest, mut packets) = (segments.largest(), Vec::new());
    while let Some(len) = segments.next_len() {
        let mut packet = vec![0; len];
        let partial = segments.write_next(&mut packet);
        assert_eq!(Ip::parse(&packet).expect("a segment is a packet").bytes().len(), len);
        packets.push((packet, partial));
    }
    assert_eq!(packets.iter().map(|(packet, _)| packet.len()).max(), Some(largest));
    Some(packets)
}

/// The packet with its partial checksum finished, by a TUN.
fn finish(packet: &[u8]) -> Vec<u8> {
    let ip = Ip::parse(packet).expect("a packet");
    let (start, offset) = ip.checksum_field().expect("a partial checksum has a place");
    let vnet = VnetHeader {
        flags: F_NEEDS_CSUM,
        csum_start: start as u16,
        csum_offset: offset as u16,
        ..VnetHeader::default()
    };
    let frame = [&vnet.bytes()[..], ip.bytes()].concat();
    cut(&frame, Checksums::Complete).expect("a good frame").remove(0).0
}

/// What the kernel is given.
fn write(group: &Group, packets: &[(Vec<u8>, bool)]) -> Vec<u8> {
    let parts = group
        .parts()
        .iter()
        .map(|part| &packets[usize::from(part.buffer)].0[part.start as usize..][..part.len as usize]);
    parts.fold(group.head().to_vec(), |frame, part| [&frame, part].concat())
}

type Flow = (IpAddr, IpAddr, u8, Option<[u8; 4]>);

/// The unit within which order is kept.
fn flow(ip: Ip<'_>) -> Flow {
    let upper = ip.upper();
    let ports = match upper.fragment {
        Fragment::Whole => ip.bytes()[upper.start..].first_chunk().copied(),
        _ => None,
    };
    (ip.source(), ip.destination(), upper.protocol, ports)
}

/// IPv4 IDs of packets that are never fragmented mean nothing (RFC 6864) and may change.
fn without_id(mut packet: Vec<u8>) -> Vec<u8> {
    if packet[0] >> 4 == 4 && packet[6] & 0x40 != 0 && Sum::of(&packet[..20]).is_intact() {
        packet[4..6].fill(0);
        packet[10..12].fill(0);
    }
    packet
}

/// Packets of a few flows, eight bytes each: flow, size, flags, what else differs, and a wrong byte somewhere; or raw bytes.
fn packets(script: &[u8]) -> Vec<(Vec<u8>, bool)> {
    let (mut packets, mut seqs, mut ids) = (Vec::new(), [1u32; 16], [1u16; 16]);
    let mut rest = script;
    while let Some((&[what, len, size, flags, other, at_high, at_low, wrong], after)) = rest.split_first_chunk() {
        rest = after;
        let partial = what & 0x80 != 0;
        if what & 0x60 == 0x60 {
            let (raw, after) = rest.split_at(usize::from(len).min(rest.len()));
            packets.push((raw.to_vec(), partial));
            rest = after;
            continue;
        }
        let flow = usize::from(what & 15);
        let payload = vec![size; usize::from(len) * if size & 1 == 0 { 1 } else { 100 }];
        let mut sample = match what & 2 {
            0 => Sample {
                flags: flags ^ 0x10,
                ..Sample::tcp(what & 1 == 0, seqs[flow], payload)
            },
            _ => Sample::udp(what & 1 == 0, payload),
        };
        sample.ports = (what & 12).into();
        sample.id = ids[flow];
        sample.dont_fragment = what & 0x10 == 0;
        match other & 7 {
            1 => sample.traffic_class = other,
            2 => sample.hops = other,
            3 => sample.window = other.into(),
            4 => sample.ack = other.into(),
            5 => sample.options.truncate(4 * usize::from(other & 3)),
            6 => sample.seq ^= u32::from(other),
            7 => sample.id ^= u16::from(other),
            _ => (),
        }
        seqs[flow] = seqs[flow].wrapping_add(sample.payload.len() as u32);
        ids[flow] = ids[flow].wrapping_add(1);
        let mut bytes = sample.bytes(if partial { Written::Partial } else { Written::Complete });
        let at = usize::from(u16::from_be_bytes([at_high, at_low])) % bytes.len();
        bytes[at] ^= wrong;
        packets.push((bytes, partial));
    }
    packets
}
