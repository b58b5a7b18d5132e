use super::super::sample::{Sample, Written};
use super::super::segment::{Checksums, Segments};
use super::*;
use proptest::prelude::*;
use std::collections::BTreeSet;

const ALL: Offloads = Offloads { tcp: true, udp: true };
const NS: u64 = 1_000;
const LANES: Lanes = Lanes { first: 1, count: 2 };

/// Receive buffers of one datagram each, a coalescer, and what came out.
struct Bench {
    coalescer: Coalescer,
    buffers: Vec<Vec<u8>>,
    out: Vec<Group>,
}

impl Bench {
    fn new(offloads: Offloads) -> Bench {
        Bench {
            coalescer: Coalescer::new(offloads),
            buffers: Vec::new(),
            out: Vec::new(),
        }
    }

    /// Receives `packet` somewhere in a buffer of its own, `NS` after the one before.
    fn push(&mut self, packet: &[u8], partial: bool) -> Result<(), Drop> {
        let index = self.buffers.len();
        let at = 16 + index % 5;
        self.buffers.push([&vec![0xee; at], packet, &[0xee; 16]].concat());
        self.coalescer.push(
            index as u16,
            at,
            packet,
            Origin { partial, lanes: LANES },
            index as u64 * NS,
            &mut self.out,
        )
    }

    fn push_all(&mut self, packets: impl IntoIterator<Item = Vec<u8>>) {
        for packet in packets {
            self.push(&packet, false).unwrap();
        }
    }

    fn flush(&mut self) {
        self.coalescer.flush(&mut self.out);
    }

    /// What the kernel would be given.
    fn frames(&self) -> Vec<Vec<u8>> {
        self.out.iter().map(|group| frame(group, &self.buffers)).collect()
    }

    /// The packets that come out when the kernel, or the next ringway, cuts the groups again.
    fn cut(&self) -> Vec<Vec<u8>> {
        self.frames().iter().flat_map(|frame| cut(frame)).collect()
    }

    /// How many packets went into each group.
    fn sizes(&self) -> Vec<u32> {
        self.out.iter().map(Group::packets).collect()
    }
}

fn frame(group: &Group, buffers: &[Vec<u8>]) -> Vec<u8> {
    let mut frame = group.head().to_vec();
    for part in group.parts() {
        let buffer = if part.buffer == Part::OWN {
            &group.own
        } else {
            &buffers[usize::from(part.buffer)]
        };
        frame.extend(&buffer[part.start as usize..][..part.len as usize]);
    }
    frame
}

fn cut(frame: &[u8]) -> Vec<Vec<u8>> {
    let mut segments = Segments::parse(frame, Checksums::Complete).expect("the TUN takes what it gave");
    let mut packets = Vec::new();
    while let Some(len) = segments.next_len() {
        let mut packet = vec![0; len];
        segments.write_next(&mut packet);
        packets.push(packet);
    }
    packets
}

fn bytes(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at * 7 + at / 251) as u8).collect()
}

fn complete(samples: &[Sample]) -> Vec<Vec<u8>> {
    samples.iter().map(|sample| sample.bytes(Written::Complete)).collect()
}

// The slow twin.

/// What happens to a flow's next packet on its way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Harm {
    None,
    /// A wrong bit in the payload, which a partial checksum does not cover.
    Payload,
    Checksum,
    HeaderChecksum,
}

#[derive(Debug, Clone)]
struct Sent {
    sample: Sample,
    written: Written,
    harm: Harm,
}

impl Sent {
    fn bytes(&self) -> Vec<u8> {
        let mut bytes = self.sample.bytes(self.written);
        match self.harm {
            Harm::None => (),
            Harm::Payload => *bytes.last_mut().unwrap() ^= 4,
            Harm::Checksum => bytes[self.sample.start() + self.sample.checksum_at()] ^= 4,
            Harm::HeaderChecksum if self.sample.v6 => (),
            Harm::HeaderChecksum => bytes[10] ^= 4,
        }
        bytes
    }

    fn is_intact(&self) -> bool {
        match self.harm {
            Harm::None => true,
            Harm::Payload => self.written == Written::Partial,
            Harm::Checksum => false,
            Harm::HeaderChecksum => self.sample.v6,
        }
    }

    /// The packet as it is when it comes out of the receiver's TUN.
    fn arrives(&self) -> Vec<u8> {
        let alone = VnetHeader {
            flags: u8::from(self.written == Written::Partial),
            csum_start: self.sample.start() as u16,
            csum_offset: self.sample.checksum_at() as u16,
            ..VnetHeader::default()
        };
        cut(&[&alone.bytes()[..], &self.bytes()].concat()).remove(0)
    }

    fn flow(&self) -> (bool, bool, u8, u32) {
        (self.sample.v6, self.sample.tcp, self.sample.hosts, self.sample.ports)
    }
}

/// Whether packets may become one: when the slow twin of segmentation makes the same packets out of the result.
fn may_merge(packets: &[&Sent]) -> bool {
    let (first, last) = (&packets[0].sample, &packets[packets.len() - 1].sample);
    let payload = packets.iter().flat_map(|sent| sent.sample.payload.clone()).collect();
    let mut merged = Sample {
        payload,
        ..first.clone()
    };
    merged.flags |= last.flags & 0x08;
    let mergeable = packets.len() <= 64
        && merged.header_len() + merged.payload.len() <= 65_535
        && packets
            .iter()
            .all(|sent| sent.is_intact() && (!sent.sample.tcp || sent.sample.flags & 0x37 == 0x10));
    let meaningful = |sample: &Sample| {
        let dont_fragment = sample.dont_fragment || sample.v6;
        let id = if dont_fragment { 0 } else { sample.id };
        let seq = if sample.tcp { sample.seq } else { 0 };
        Sample {
            id,
            seq,
            dont_fragment,
            ..sample.clone()
        }
    };
    mergeable
        && !first.payload.is_empty()
        && merged
            .cut(first.payload.len())
            .iter()
            .map(meaningful)
            .eq(packets.iter().map(|sent| meaningful(&sent.sample)))
}

/// Group sizes of each flow, in order.
fn slow_sizes(sent: &[Sent], flow: (bool, bool, u8, u32)) -> Vec<u32> {
    let mut groups: Vec<Vec<&Sent>> = Vec::new();
    for next in sent.iter().filter(|sent| sent.flow() == flow) {
        if let Some(group) = groups.last_mut() {
            group.push(next);
            if may_merge(group) {
                continue;
            }
            group.pop();
        }
        groups.push(vec![next]);
    }
    groups.iter().map(|group| group.len() as u32).collect()
}

/// IPv4 IDs of packets that are never fragmented mean nothing (RFC 6864) and may change.
fn without_id(mut packet: Vec<u8>) -> Vec<u8> {
    if packet[0] >> 4 == 4 && packet[6] & 0x40 != 0 && Sum::of(&packet[..20]).is_intact() {
        packet[4..6].fill(0);
        packet[10..12].fill(0);
    }
    packet
}

/// A change to the flow that the next packet brings.
#[derive(Debug, Clone, Copy)]
enum Twist {
    None,
    Push,
    Fin,
    Cwr,
    Ece,
    Gap,
    Swap,
    Length(usize),
    Ack,
    Window,
    TrafficClass,
    Hops,
    DontFragment,
    Id,
    Options,
    Harm(Harm),
}

fn twist() -> impl Strategy<Value = Twist> {
    use Twist::*;
    let odd = prop::sample::select(vec![
        Push,
        Fin,
        Cwr,
        Ece,
        Gap,
        Swap,
        Ack,
        Window,
        TrafficClass,
        Hops,
        DontFragment,
        Id,
        Options,
        Harm(self::Harm::Payload),
        Harm(self::Harm::Checksum),
        Harm(self::Harm::HeaderChecksum),
    ]);
    prop_oneof![12 => Just(None), 3 => odd, 1 => (0usize..1500).prop_map(Length)]
}

/// Packets of some flows as they arrive: (flow, twist, partial) make the next packet of that flow.
fn arrivals(flows: &[(bool, bool, bool, usize)], steps: &[(usize, Twist, bool)]) -> Vec<Sent> {
    let mut next: Vec<Sample> = flows
        .iter()
        .enumerate()
        .map(|(index, &(v6, tcp, dont_fragment, len))| {
            let sample = if tcp {
                Sample::tcp(v6, u32::MAX - 3000, bytes(len))
            } else {
                Sample::udp(v6, bytes(len))
            };
            Sample {
                hosts: (index / 2) as u8,
                ports: index as u32,
                dont_fragment,
                id: u16::MAX - 1,
                ..sample
            }
        })
        .collect();
    let mut sent: Vec<Sent> = Vec::new();
    for &(flow, twist, partial) in steps {
        let flow = flow % flows.len();
        let now = &mut next[flow];
        let mut harm = Harm::None;
        let mut swap = false;
        let mut sample = now.clone();
        match twist {
            Twist::None => (),
            Twist::Push => sample.flags |= 0x08,
            Twist::Fin => sample.flags |= 0x01,
            Twist::Cwr => sample.flags |= 0x80,
            Twist::Ece => now.flags ^= 0x40,
            Twist::Gap => sample.seq = sample.seq.wrapping_add(1),
            Twist::Swap => swap = true,
            Twist::Length(len) => sample.payload = bytes(len),
            Twist::Ack => now.ack += 1,
            Twist::Window => now.window += 1,
            Twist::TrafficClass => now.traffic_class ^= 1,
            Twist::Hops => now.hops ^= 1,
            Twist::DontFragment => now.dont_fragment ^= true,
            Twist::Id => sample.id = sample.id.wrapping_add(3),
            Twist::Options => now.options = if now.options.is_empty() { vec![1; 8] } else { vec![] },
            Twist::Harm(what) => harm = what,
        }
        if !sample.tcp {
            (sample.flags, now.flags) = (0, 0);
            (sample.options, now.options) = (vec![], vec![]);
            (sample.ack, now.ack, sample.window, now.window, sample.seq) = (0, 0, 0, 0, 0);
        }
        now.seq = sample
            .seq
            .wrapping_add(if sample.tcp { sample.payload.len() as u32 } else { 0 });
        now.id = sample.id.wrapping_add(1);
        let written = if partial { Written::Partial } else { Written::Complete };
        if sample.payload.is_empty() && harm == Harm::Payload {
            harm = Harm::None;
        }
        sent.push(Sent { sample, written, harm });
        let before_last = sent.len().wrapping_sub(2);
        if swap && before_last < sent.len() {
            sent.swap(before_last, before_last + 1);
        }
    }
    sent
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn groups_are_those_of_the_slow_twin_and_cut_into_the_packets_that_were_merged(
        flows in prop::collection::vec((any::<bool>(), any::<bool>(), any::<bool>(), 1usize..1449), 1..6),
        steps in prop::collection::vec((0usize..6, twist(), prop::bool::weighted(0.3)), 1..150),
    ) {
        let sent = arrivals(&flows, &steps);
        let mut bench = Bench::new(ALL);
        for packet in &sent {
            bench.push(&packet.bytes(), packet.written == Written::Partial).unwrap();
        }
        bench.flush();

        let received: usize = sent.iter().map(|packet| packet.bytes().len()).sum();
        prop_assert_eq!(bench.out.iter().map(Group::bytes).sum::<usize>(), received);

        // Which packets each group is made of, by the buffers that it refers to.
        let members = |group: &Group| group.parts().iter().map(|part| usize::from(part.buffer)).collect::<Vec<_>>();
        for flow in sent.iter().map(Sent::flow).collect::<BTreeSet<_>>() {
            let of_flow = |group: &&Group| sent[members(group)[0]].flow() == flow;
            let groups: Vec<&Group> = bench.out.iter().filter(of_flow).collect();
            let order: Vec<usize> = groups.iter().flat_map(|group| members(group)).collect();
            let arrival: Vec<usize> = (0..sent.len()).filter(|&index| sent[index].flow() == flow).collect();
            prop_assert_eq!(order, arrival, "the order within a flow is kept");
            let sizes: Vec<u32> = groups.iter().map(|group| group.packets()).collect();
            prop_assert_eq!(sizes, slow_sizes(&sent, flow));
        }
        for (group, frame) in bench.out.iter().zip(bench.frames()) {
            let members = members(group);
            prop_assert_eq!(group.received_ns(), members[0] as u64 * NS);
            let packets: Vec<_> = cut(&frame).into_iter().map(without_id).collect();
            let expected: Vec<_> = members.iter().map(|&index| without_id(sent[index].arrives())).collect();
            prop_assert!(packets == expected, "cutting gives back what was merged");
        }
    }

    #[test]
    fn a_wrong_bit_anywhere_is_still_wrong_when_it_comes_out(
        v6: bool, tcp: bool, victim in 0usize..4, position in any::<prop::sample::Index>(), bit in 0u8..8
    ) {
        let sample = if tcp { Sample::tcp(v6, 5, bytes(400)) } else { Sample::udp(v6, bytes(400)) };
        let mut packets = complete(&sample.cut(100));
        let at = position.index(packets[victim].len());
        packets[victim][at] ^= 1 << bit;
        let mut bench = Bench::new(ALL);
        // Some bits make it no packet at all.
        let refused = packets.iter().filter(|packet| bench.push(packet, false).is_err()).count();
        bench.flush();
        let out = bench.cut();
        prop_assert_eq!(out.len() + refused, 4);
        prop_assert!(refused == 1 || out.iter().any(|packet| packets[victim].starts_with(packet)));
    }
}

#[test]
fn a_tcp_stream_becomes_one_super_packet_with_the_headers_that_the_kernel_wants() {
    for v6 in [false, true] {
        let stream = Sample {
            flags: 0x18,
            ..Sample::tcp(v6, 1, bytes(10_000))
        };
        let mut bench = Bench::new(ALL);
        bench.push_all(complete(&stream.cut(1000)));
        bench.flush();
        assert_eq!(bench.sizes(), [10]);
        let mut expected = stream.frame(1000);
        expected[2..4].copy_from_slice(&(stream.header_len() as u16).to_ne_bytes());
        assert_eq!(bench.frames(), [expected]);
    }
}

#[test]
fn udp_datagrams_of_equal_size_become_one_super_packet_that_a_shorter_one_ends() {
    for v6 in [false, true] {
        let run = Sample::udp(v6, bytes(1250));
        let mut bench = Bench::new(ALL);
        bench.push_all(complete(&run.cut(100)));
        let mut expected = run.frame(100);
        expected[2..4].copy_from_slice(&(run.header_len() as u16).to_ne_bytes());
        assert_eq!(bench.frames(), [expected], "complete without a flush");
    }
}

#[test]
fn a_lone_packet_is_written_as_it_came() {
    let sample = Sample::tcp(false, 1, bytes(100));
    let mut bench = Bench::new(ALL);
    bench.push(&sample.bytes(Written::Complete), false).unwrap();
    bench.flush();
    bench.push(&sample.bytes(Written::Partial), true).unwrap();
    bench.flush();
    let needs_sum = VnetHeader {
        flags: 1,
        csum_start: 20,
        csum_offset: 16,
        ..VnetHeader::default()
    };
    let expected = [
        [&[0; 10][..], &sample.bytes(Written::Complete)].concat(),
        [&needs_sum.bytes()[..], &sample.bytes(Written::Partial)].concat(),
    ];
    assert_eq!(bench.frames(), expected);
}

#[test]
fn a_group_holds_at_most_64_packets_and_65535_bytes() {
    for (v6, len, full) in [
        (false, 10, 64),
        (true, 10, 64),
        (false, 1368, 47),
        (true, 1368, 47),
        (false, 60_000, 1),
    ] {
        let packets: Vec<Sample> = (0..70)
            .map(|index| Sample::tcp(v6, index * len as u32, bytes(len)))
            .collect();
        let mut bench = Bench::new(ALL);
        bench.push_all(complete(&packets));
        assert_eq!(bench.sizes()[0], full, "{len} bytes each");
        assert!(bench.frames().iter().all(|frame| frame.len() <= 10 + 65_535));
    }
}

#[test]
fn what_is_not_offloaded_passes_unmerged_and_at_once() {
    let tcp = complete(&Sample::tcp(false, 1, bytes(300)).cut(100));
    let udp = complete(&Sample::udp(true, bytes(300)).cut(100));
    for (offloads, sizes) in [
        (Offloads { tcp: false, udp: true }, vec![1, 1, 1, 3]),
        (Offloads { tcp: true, udp: false }, vec![1, 1, 1, 3]),
        (Offloads { tcp: false, udp: false }, vec![1; 6]),
    ] {
        let mut bench = Bench::new(offloads);
        bench.push_all(tcp.iter().chain(&udp).cloned());
        bench.flush();
        assert_eq!(bench.sizes(), sizes);
    }
}

#[test]
fn congestion_marks_survive() {
    let mut first = Sample::tcp(false, 1, bytes(300));
    first.flags |= 0x80;
    let mut bench = Bench::new(ALL);
    bench.push_all(complete(&first.cut(100)));
    bench.flush();
    assert_eq!(bench.sizes(), [3]);
    assert_eq!(bench.frames()[0][1], vnet::GSO_TCPV4 | vnet::GSO_ECN);
    assert_eq!(bench.cut(), complete(&first.cut(100)));
}

#[test]
fn a_packet_that_cannot_merge_comes_after_its_flow_and_lets_others_wait() {
    let flow = Sample::tcp(false, 1, bytes(200));
    let other = Sample {
        ports: 99,
        ..flow.clone()
    };
    let ack = Sample {
        payload: vec![],
        ..flow.clone()
    };
    let mut bench = Bench::new(ALL);
    bench.push_all(complete(&other.cut(100)));
    bench.push_all(complete(&flow.cut(100)));
    bench.push(&ack.bytes(Written::Complete), false).unwrap();
    assert_eq!(bench.cut(), [complete(&flow.cut(100)), complete(&[ack])].concat());
    bench.flush();
    assert_eq!(bench.sizes(), [2, 1, 2]);
}

#[test]
fn a_fragment_comes_after_every_flow_between_its_hosts() {
    let flow = Sample::udp(false, bytes(200));
    let elsewhere = Sample {
        hosts: 9,
        ..flow.clone()
    };
    let mut fragment = Sample {
        dont_fragment: false,
        ..flow.clone()
    }
    .bytes(Written::Complete);
    fragment[6..8].copy_from_slice(&[0x20, 9]);
    let mut bench = Bench::new(ALL);
    bench.push_all(complete(&elsewhere.cut(100)));
    bench.push_all(complete(&flow.cut(100)));
    bench.push_all(complete(
        &Sample {
            ports: 4,
            ..flow.clone()
        }
        .cut(100),
    ));
    bench.push(&fragment, false).unwrap();
    assert_eq!(bench.sizes(), [2, 2, 1]);
    assert_eq!(bench.cut()[4], fragment);
}

#[test]
fn datagrams_without_checksum_or_with_a_lying_length_pass_alone() {
    let udp = Sample::udp(false, bytes(200)).cut(100);
    let mut unsummed = complete(&udp);
    unsummed.iter_mut().for_each(|packet| packet[26..28].fill(0));
    let mut lying = complete(&udp);
    lying.iter_mut().for_each(|packet| packet[25] -= 1);
    for packets in [unsummed, lying] {
        let mut bench = Bench::new(ALL);
        bench.push_all(packets.clone());
        assert_eq!((bench.sizes(), bench.cut()), (vec![1, 1], packets));
    }
}

#[test]
fn minus_zero_checksums_pass_alone() {
    // The payload's own checksum makes the sum -0, so the field is 0, or -0 from a sender that does not care.
    let mut sample = Sample::tcp(false, 1, vec![0; 100]);
    let checksum: [u8; 2] = sample.bytes(Written::Complete)[36..38].try_into().unwrap();
    sample.payload[..2].copy_from_slice(&checksum);
    let next = Sample {
        seq: 101,
        ..sample.clone()
    };
    let mut odd = sample.bytes(Written::Complete);
    assert_eq!(odd[36..38], [0, 0]);
    let mut bench = Bench::new(ALL);
    bench.push_all([odd.clone(), next.bytes(Written::Complete)]);
    bench.flush();
    assert_eq!(bench.sizes(), [2]);

    odd[36..38].fill(0xff);
    let mut bench = Bench::new(ALL);
    bench.push_all([odd, next.bytes(Written::Complete)]);
    bench.flush();
    assert_eq!(bench.sizes(), [1, 1]);
}

#[test]
fn a_pseudo_header_sum_of_all_ones_is_as_good_as_any() {
    // These addresses and this length happen to add up to it.
    let packets = Sample::tcp(true, 1, bytes(2 * 1491)).cut(1491);
    let mut bench = Bench::new(ALL);
    for packet in &packets {
        let partial = packet.bytes(Written::Partial);
        assert_eq!(partial[56..58], [0xff, 0xff]);
        bench.push(&partial, true).unwrap();
    }
    bench.flush();
    assert_eq!(bench.sizes(), [2]);
}

#[test]
fn more_flows_than_the_table_holds_push_the_oldest_out() {
    let flows: Vec<Sample> = (0..FLOWS_MAX as u32 + 1)
        .map(|ports| Sample {
            ports,
            ..Sample::tcp(false, 1, bytes(200))
        })
        .collect();
    let mut bench = Bench::new(ALL);
    for flow in &flows {
        bench.push_all(complete(&flow.cut(100)));
    }
    assert_eq!(bench.sizes(), [2]);
    assert_eq!(bench.cut(), complete(&flows[0].cut(100)));
    bench.flush();
    assert_eq!(bench.sizes(), [2; FLOWS_MAX + 1]);
}

#[test]
fn a_partial_checksum_where_there_is_none_is_refused() {
    let mut bench = Bench::new(ALL);
    let udp = Sample::udp(false, bytes(10)).bytes(Written::Partial);
    let mut icmp = udp.clone();
    icmp[9] = 1;
    let mut fragment = udp.clone();
    fragment[6] = 0x20;
    let mut short = udp.clone();
    short.truncate(27);
    short[3] = 27;
    for bad in [icmp, fragment, short, b"no packet".to_vec(), vec![]] {
        assert_eq!(bench.push(&bad, true), Err(Drop::BadInner));
        assert!(Group::from_owned(bad.clone(), 0..bad.len(), true, 0).is_none());
    }
    assert!(bench.out.is_empty());
}

#[test]
fn an_owned_packet_is_its_own_buffer() {
    let packet = Sample::udp(true, bytes(50)).bytes(Written::Partial);
    let datagram = [&[1; 16][..], &packet, &[2; 16]].concat();
    let group = Group::from_owned(datagram.clone(), 16..16 + packet.len(), true, 5).unwrap();
    assert_eq!(
        (group.packets(), group.bytes(), group.received_ns()),
        (1, packet.len(), 5)
    );
    assert_eq!(cut(&frame(&group, &[])), complete(&[Sample::udp(true, bytes(50))]));
    assert!(Group::from_owned(datagram, 16..1000, false, 5).is_none());
}

#[test]
fn recycled_groups_carry_nothing_over() {
    let mut bench = Bench::new(ALL);
    let first = complete(&Sample::tcp(true, 1, bytes(300)).cut(100));
    let second = complete(&Sample::udp(false, bytes(200)).cut(100));
    bench.push_all(first);
    bench.flush();
    let used = bench.out.remove(0);
    bench.coalescer.recycle(used);
    let owned = Group::from_owned(second[0].clone(), 0..second[0].len(), false, 0).unwrap();
    bench.coalescer.recycle(owned);
    bench.push_all(second.clone());
    bench.flush();
    assert_eq!((bench.sizes(), bench.cut()), (vec![2], second));
}

#[test]
fn a_connection_is_told_by_its_name_and_begins_with_the_answer_to_its_first_packet() {
    const SYN_ACK: u8 = tcp::SYN | tcp::ACK;
    for v6 in [false, true] {
        let data = Sample::tcp(v6, 1, bytes(300));
        let with_flags = |flags| Sample {
            payload: vec![],
            flags,
            ..data.clone()
        };
        let other = Sample {
            ports: 99,
            ..data.clone()
        };
        let mut bench = Bench::new(ALL);
        let lone = [tcp::SYN, SYN_ACK, SYN_ACK | tcp::ECE, tcp::ACK].map(with_flags);
        bench.push_all(complete(&lone));
        bench.push_all(complete(&data.cut(100)));
        bench.push_all(complete(&[other]));
        bench.push_all(complete(&[Sample::udp(v6, bytes(100))]));
        bench.flush();
        bench.push_all(complete(&Sample::udp(v6, bytes(300)).cut(100)));
        bench.flush();
        let told: Vec<_> = bench.out.iter().map(Group::connection).collect();
        let begins: Vec<_> = told
            .iter()
            .map(|told| told.map(|connection| connection.begins))
            .collect();
        let (no, answered) = (Begins::No, Begins::Answered(1));
        let expected = [no, answered, answered, no, no, no, Begins::Unknown, Begins::Unknown];
        assert_eq!(begins, expected.map(Some));
        let names: Vec<u64> = told.iter().flatten().map(|connection| connection.name).collect();
        assert!(names[..5].iter().all(|&name| name == names[0]), "{names:?}");
        assert_ne!(names[5], names[0]);
        assert_eq!(names[6], names[7], "datagrams alone and together");
        let lanes: Vec<_> = told.iter().flatten().map(|connection| connection.lanes).collect();
        assert_eq!(lanes, [LANES; 8]);
    }
}

#[test]
fn a_connection_has_one_name_for_both_directions_and_none_where_the_sender_has_one_lane() {
    for v6 in [false, true] {
        let there = Sample::tcp(v6, 1, vec![]).bytes(Written::Complete);
        let addresses = if v6 { 8..40 } else { 12..20 };
        let ports = addresses.end..addresses.end + 4;
        let mut back = there.clone();
        back[addresses.clone()].rotate_left(addresses.len() / 2);
        back[ports].rotate_left(2);
        assert_ne!(back, there);
        let told = |packet: &[u8], lanes| {
            let origin = Origin { partial: false, lanes };
            let mut out = Vec::new();
            Coalescer::new(ALL).push(0, 0, packet, origin, 0, &mut out).unwrap();
            out[0].connection()
        };
        assert!(told(&there, LANES).is_some());
        assert_eq!(told(&back, LANES), told(&there, LANES));
        assert_eq!(told(&there, Lanes { first: 1, count: 1 }), None);
        let mut neighbour = there.clone();
        neighbour[addresses.end + 1] = neighbour[addresses.end + 1].wrapping_add(1);
        neighbour[addresses.end + 3] = neighbour[addresses.end + 3].wrapping_sub(1);
        assert_ne!(told(&neighbour, LANES), told(&there, LANES), "ports with the same sum");
    }
}
