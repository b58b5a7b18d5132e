//! Out: a frame of the TUN becomes sealed datagrams in batches.

use std::net::IpAddr;
use std::time::Duration;

use super::{Forwarder, want_session};
use crate::path::capture::{self, Direction};
use crate::path::coalesce::Group;
use crate::path::drops::Drop;
use crate::path::gso::{Outer, SEND_LEN_MAX, Slots};
use crate::path::peer::{self, PeerPath};
use crate::path::peers::PeerTable;
use crate::path::route::RouteTable;
use crate::path::segment::{Checksums, Segments};
use crate::path::{ecn, icmp, loops};
use crate::proto::{PeerId, Suite, Time};
use crate::wire::ip::Ip;
use crate::wire::message::{DATA_HEADER_LEN, DATA_OVERHEAD, FLAG_LANE_PORT, FLAG_PARTIAL_CHECKSUM};
use crate::wire::vnet::VNET_LEN;

/// How often the senders of packets for one peer are told that these are too big.
const TOO_BIG_INTERVAL: Duration = Duration::from_millis(1);
/// RFC 8200, section 5.
const IPV6_MTU_MIN: usize = 1280;
/// WireGuard pads plaintexts to multiples of 16 bytes (WireGuard paper, section 5.4.6).
const WIREGUARD_PADDING: usize = 16;

impl<S: AsMut<[u8]>> Forwarder<S> {
    /// One frame from the TUN: a virtio_net_hdr and an IP packet, perhaps a super-packet.
    pub fn outbound(&mut self, now: Time, frame: &[u8], slots: &mut impl Slots<Slot = S>) {
        self.counters.tun_reads.add(1);
        if let Err((reason, packets)) = self.try_outbound(now, frame, slots) {
            self.counters.dropped(reason, packets);
        }
    }

    fn try_outbound(&mut self, now: Time, frame: &[u8], slots: &mut impl Slots<Slot = S>) -> Result<(), (Drop, u64)> {
        let one = |reason| (reason, 1);
        let ip = frame.get(VNET_LEN..).and_then(Ip::parse).ok_or(one(Drop::Malformed))?;
        let (id, peer) = peer_towards(&self.routes, &mut self.peers, ip.destination()).map_err(one)?;
        let endpoint = peer.endpoint.ok_or(one(Drop::NoEndpoint))?;
        let lane_port_carries = self.lane_ports && peer.lane_port_carries(now);
        let Some(seal) = peer::usable(&mut peer.current, now) else {
            let dropped = self.waiting.push(id, frame);
            self.counters.dropped(Drop::PendingFull, dropped);
            want_session(peer, id, now, &mut self.reports);
            return Ok(());
        };
        let suite = seal.suite();
        let checksums = match suite {
            Suite::Native => Checksums::Partial,
            Suite::WireGuard => Checksums::Complete,
        };
        let mut segments = Segments::parse(frame, checksums).map_err(one)?;
        if DATA_OVERHEAD + segments.largest() > SEND_LEN_MAX {
            return Err((Drop::TooBig, segments.remaining() as u64));
        }
        if loops::leads_back(ip, &endpoint.remote, seal) {
            return Err((Drop::RoutingLoop, segments.remaining() as u64));
        }
        self.counters.tun_read_packets.add(segments.remaining() as u64);
        if segments.largest() > peer.mtu {
            let last_told = &mut peer.told_too_big;
            self.groups
                .extend(too_big_error(now, ip, segments.largest(), peer.mtu, last_told));
        }
        let outer = Outer {
            tos: ecn::encapsulate(ip.traffic_class()),
            lane_port: lane_port_carries && suite == Suite::Native,
        };
        let padded_max = self.tun_mtu.min(peer.mtu).min(SEND_LEN_MAX - DATA_OVERHEAD);
        let (mut packets, mut bytes, mut inner_bytes) = (0, 0, 0);
        let mut refused = None;
        while let Some(len) = segments.next_len() {
            let padding = match suite {
                Suite::Native => 0,
                Suite::WireGuard => len.next_multiple_of(WIREGUARD_PADDING).min(padded_max.max(len)) - len,
            };
            let datagram_len = DATA_OVERHEAD + len + padding;
            // What the path does not carry whole goes alone: the kernel fragments single datagrams, and refuses runs.
            let alone = len + padding > peer.mtu;
            let equal = if alone { 1 } else { segments.equal() };
            if alone {
                self.batches.close(id);
            }
            let Some(mut place) = self.batches.reserve(id, &endpoint, outer, datagram_len, equal, slots) else {
                refused = Some((Drop::NoSendSlot, segments.remaining() as u64));
                break;
            };
            // Sealing reads payloads where they are, if nothing else has to see them whole.
            let payloads = match segments.payloads(place.count()) {
                Some(payloads) if padding == 0 && self.taps.is_empty() => Some(payloads),
                _ => None,
            };
            let run = place.bytes();
            let mut partial = payloads.is_some_and(|(_, partial)| partial);
            for datagram in run.chunks_exact_mut(datagram_len) {
                let (text, rest) = datagram[DATA_HEADER_LEN..].split_at_mut(len);
                if payloads.is_some() {
                    segments.write_next_headers(text);
                } else {
                    partial |= segments.write_next(text);
                    rest[..padding].fill(0);
                }
            }
            let mut flags = if outer.lane_port { FLAG_LANE_PORT } else { 0 };
            if partial {
                flags |= FLAG_PARTIAL_CHECKSUM;
            }
            if !self.taps.is_empty() {
                let texts = run
                    .chunks_exact(datagram_len)
                    .map(|datagram| &datagram[DATA_HEADER_LEN..][..len]);
                capture::offer(&mut self.taps, now, id, Direction::Out, texts);
            }
            let tails = payloads.map_or(&[][..], |(payloads, _)| payloads);
            if seal.seal_run(now, flags, datagram_len, run, tails).is_err() {
                refused = Some((Drop::SessionExpired, (place.count() + segments.remaining()) as u64));
                break;
            }
            packets += place.count() as u64;
            bytes += (place.count() * datagram_len) as u64;
            inner_bytes += (place.count() * len) as u64;
            place.commit();
            if alone {
                self.batches.close(id);
            }
        }
        if seal.wants_rekey(now) {
            want_session(peer, id, now, &mut self.reports);
        }
        if packets > 0 {
            peer.count_sent(now, packets, bytes);
            peer.cell().last_data_sent_ns.set(now.as_nanos());
            self.counters.packets_out.add(packets);
            self.counters.bytes_out.add(inner_bytes);
            if outer.lane_port {
                self.counters.lane_port_datagrams.add(packets);
            }
            if self.lane_ports
                && suite == Suite::Native
                && let Some(token) = peer.lane_port.due_probe(now)
            {
                self.send_lane_probe(now, id, token, slots);
            }
        }
        refused.map_or(Ok(()), Err)
    }

    /// Sends what waited for the peer's keys.
    pub(super) fn send_pending(&mut self, now: Time, id: PeerId, slots: &mut impl Slots<Slot = S>) {
        for frame in self.waiting.take(id) {
            if let Err((reason, packets)) = self.try_outbound(now, &frame, slots) {
                self.counters.dropped(reason, packets);
            }
        }
    }
}

/// The peer whose allowed IPs contain `destination` by the longest prefix.
#[inline]
pub(super) fn peer_towards<'a>(
    routes: &RouteTable<PeerId>,
    peers: &'a mut PeerTable,
    destination: IpAddr,
) -> Result<(PeerId, &'a mut PeerPath), Drop> {
    let id = routes.lookup(destination).ok_or(Drop::NoRoute)?;
    let peer = peers.get_mut(id).ok_or(Drop::NoRoute)?;
    Ok((id, peer))
}

/// What to tell the sender of a packet whose segments of `len` bytes exceed `mtu`, unless senders of the peer's were
/// told a moment ago.
fn too_big_error(now: Time, ip: Ip<'_>, len: usize, mtu: usize, last_told: &mut Option<Time>) -> Option<Group> {
    let mtu = match ip {
        Ip::V4(_) => mtu,
        // RFC 8200, section 5: every IPv6 path carries 1280 bytes, so a sender would not believe less. Such packets
        // travel in fragments of the outer packet.
        Ip::V6(_) => mtu.max(IPV6_MTU_MIN),
    };
    if len <= mtu || last_told.is_some_and(|last| now - last < TOO_BIG_INTERVAL) {
        return None;
    }
    let error = icmp::too_big(ip.bytes(), mtu as u16)?;
    *last_told = Some(now);
    let len = error.len();
    Group::from_owned(error, 0..len, false, 0)
}
