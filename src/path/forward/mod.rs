//! A packet's two journeys through one worker.
//!
//! Out, TUN to UDP ([`Forwarder::outbound`]):
//! 1. The destination's longest prefix names the peer.
//! 2. The peer's sealing half is this worker's lane; without one the packet waits for a handshake.
//! 3. The sender of what no datagram of the path carries whole is told; until it listens, the kernel fragments.
//! 4. Segments of one size are reserved, written, sealed in place and committed in a batch.
//!
//! In, UDP to TUN ([`Forwarder::inbound`]):
//! 1. The header tells data from handshakes, which go past the doorman to the control thread.
//! 2. The receiver index names the worker and the session's opening half.
//! 3. The replay window and the tag decide whether the datagram is authentic; it is decrypted in place.
//! 4. The first authentic datagram of a session confirms it; one from elsewhere moves the peer.
//! 5. Keepalives and control messages end here.
//! 6. The inner source must be the peer's, by longest prefix over all peers.
//! 7. Packets of one flow are coalesced into a super-packet for the TUN.
//!
//! Nothing here does I/O or reads a clock. The worker gives frames and received buffers, and at the pass's end takes
//! batches, groups, reports, hand-overs and replies.

mod changes;
mod handshake;
#[cfg(test)]
mod tests;

pub use handshake::CookieReply;

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use crate::path::coalesce::{Coalescer, Group};
use crate::path::drops::Drop;
use crate::path::gso::{Batches, SEND_LEN_MAX, Slots};
use crate::path::peer::{PeerPath, Room};
use crate::path::peers::PeerTable;
use crate::path::report::{Handover, Received, Report};
use crate::path::route::{RouteTable, Routes};
use crate::path::segment::{Checksums, Segments};
use crate::path::sessions::Openers;
use crate::path::{ecn, icmp, loops};
use crate::proto::{Doorman, GROUP, PeerId, SessionId, Suite, Time};
use crate::stats::counters::WorkerCounters;
use crate::wire::control::Control;
use crate::wire::ip::Ip;
use crate::wire::message::{DATA_HEADER_LEN, DATA_OVERHEAD, DataHeader, FLAG_PARTIAL_CHECKSUM, NATIVE_DATA, TAG_LEN};
use crate::wire::vnet::VNET_LEN;

/// How often one peer's want of a session is reported while packets wait for it.
const WANT_SESSION_INTERVAL: Duration = Duration::from_millis(200);
/// How often the senders of packets for one peer are told that these are too big.
const TOO_BIG_INTERVAL: Duration = Duration::from_millis(1);
/// RFC 8200, section 5.
const IPV6_MTU_MIN: usize = 1280;
/// WireGuard pads plaintexts to multiples of 16 bytes (WireGuard paper, section 5.4.6).
const WIREGUARD_PADDING: usize = 16;

/// One worker's data path.
pub struct Forwarder<S> {
    worker: u8,
    workers: u8,
    routes: Arc<RouteTable<PeerId>>,
    peers: PeerTable,
    openers: Openers,
    pending_room: Room,
    coalescer: Coalescer,
    /// Datagrams on their way out.
    pub batches: Batches<S>,
    /// Packets on their way to the TUN.
    pub groups: Vec<Group>,
    /// News for the control thread.
    pub reports: Vec<Report>,
    /// Datagrams that belong to other workers.
    pub handovers: Vec<Handover>,
    /// Answers to handshake messages that were turned away.
    pub replies: Vec<CookieReply>,
    doorman: Option<Box<Doorman>>,
    counters: Arc<WorkerCounters>,
    tun_mtu: usize,
}

impl<S: AsMut<[u8]>> Forwarder<S> {
    /// The data path of worker `worker` of `workers`.
    pub fn new(
        worker: u8,
        workers: u8,
        coalescer: Coalescer,
        batches: Batches<S>,
        tun_mtu: usize,
        counters: Arc<WorkerCounters>,
    ) -> Forwarder<S> {
        Forwarder {
            worker,
            workers,
            routes: Arc::new(Routes::new().table()),
            peers: PeerTable::new(worker),
            openers: Openers::default(),
            pending_room: Room::default(),
            coalescer,
            batches,
            groups: Vec::new(),
            reports: Vec::new(),
            handovers: Vec::new(),
            replies: Vec::new(),
            doorman: None,
            counters,
            tun_mtu,
        }
    }

    /// One frame from the TUN: a virtio_net_hdr and an IP packet, perhaps a super-packet.
    pub fn outbound(&mut self, now: Time, frame: &[u8], slots: &mut impl Slots<Slot = S>) {
        self.counters.tun_reads.add(1);
        if let Err((reason, packets)) = self.try_outbound(now, frame, slots) {
            self.counters.dropped(reason, packets);
        }
    }

    /// One receive buffer's datagrams, each `received.segment` bytes long but perhaps the last. `buffer` names the
    /// buffer in the groups that refer to it.
    pub fn inbound(
        &mut self,
        now: Time,
        received: &Received,
        buffer: u16,
        payload: &mut [u8],
        slots: &mut impl Slots<Slot = S>,
    ) {
        self.counters.udp_receives.add(1);
        let segment = received.segment.max(1);
        let mut start = 0;
        for group in payload.chunks_mut(GROUP * segment) {
            self.counters
                .udp_receive_datagrams
                .add(group.len().div_ceil(segment) as u64);
            let home = Home::Buffer { buffer, start };
            if !self.try_inbound_group(now, received, home, segment, group, slots) {
                self.inbound_each(now, received, home, segment, group, slots);
            }
            start += group.len();
        }
    }

    /// Datagrams that another worker received for this one.
    pub fn handed_over(&mut self, now: Time, handover: &mut Handover, slots: &mut impl Slots<Slot = S>) {
        // What this worker received itself was received before: keep the order.
        self.coalescer.flush(&mut self.groups);
        let received = handover.received;
        self.inbound_each(
            now,
            &received,
            Home::Own,
            received.segment.max(1),
            &mut handover.bytes,
            slots,
        );
    }

    /// Ends a pass: no group stays open.
    pub fn finish_pass(&mut self) {
        self.coalescer.flush(&mut self.groups);
    }

    /// Takes a written group's memory back.
    pub fn recycle(&mut self, group: Group) {
        self.coalescer.recycle(group);
    }

    fn try_outbound(&mut self, now: Time, frame: &[u8], slots: &mut impl Slots<Slot = S>) -> Result<(), (Drop, u64)> {
        let one = |reason| (reason, 1);
        let ip = frame.get(VNET_LEN..).and_then(Ip::parse).ok_or(one(Drop::Malformed))?;
        let id = self.routes.lookup(ip.destination()).ok_or(one(Drop::NoRoute))?;
        let peer = self.peers.get_mut(id).ok_or(one(Drop::NoRoute))?;
        let endpoint = peer.endpoint.ok_or(one(Drop::NoEndpoint))?;
        let Some(seal) = peer.current.as_mut().filter(|seal| !seal.is_expired(now)) else {
            let dropped = peer.pending.push(frame, &mut self.pending_room);
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
        let tos = ecn::encapsulate(ip.traffic_class());
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
            let Some(mut place) = self.batches.reserve(id, &endpoint, tos, datagram_len, equal, slots) else {
                refused = Some((Drop::NoSendSlot, segments.remaining() as u64));
                break;
            };
            let run = place.bytes();
            let mut flags = 0;
            for datagram in run.chunks_exact_mut(datagram_len) {
                let (text, rest) = datagram[DATA_HEADER_LEN..].split_at_mut(len);
                if segments.write_next(text) {
                    flags = FLAG_PARTIAL_CHECKSUM;
                }
                rest[..padding].fill(0);
            }
            if seal.seal_run(now, flags, datagram_len, run).is_err() {
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
        }
        refused.map_or(Ok(()), Err)
    }

    fn inbound_each(
        &mut self,
        now: Time,
        received: &Received,
        home: Home,
        segment: usize,
        datagrams: &mut [u8],
        slots: &mut impl Slots<Slot = S>,
    ) {
        for (index, datagram) in datagrams.chunks_mut(segment).enumerate() {
            if let Err(reason) = self.try_inbound(now, received, home.after(index * segment), datagram, slots) {
                self.counters.dropped(reason, 1);
            }
        }
    }

    /// A whole group of data messages of one session of this worker's, which are opened together; false, with nothing
    /// done, when they are anything else.
    fn try_inbound_group(
        &mut self,
        now: Time,
        received: &Received,
        home: Home,
        segment: usize,
        group: &mut [u8],
        slots: &mut impl Slots<Slot = S>,
    ) -> bool {
        let mut datagrams = group.chunks(segment);
        let Some(headers) = array_of(|| DataHeader::parse(datagrams.next()?)) else {
            return false;
        };
        let receiver = headers[0].receiver;
        let is_ours = receiver as u8 % self.workers == self.worker;
        if !is_ours || headers.iter().any(|header| header.receiver != receiver) {
            return false;
        }
        let Some(opener) = self.openers.get_mut(receiver) else {
            return false;
        };
        let results = opener.half.open_group(now, &headers, segment, group);
        let (id, session) = (opener.peer, opener.half.session());
        let wants_rekey = opener.half.wants_rekey(now);
        let newest = headers.iter().map(|header| header.counter);
        let newest = newest.filter(|&counter| opener.half.is_newest(counter)).max();
        let each = group.chunks_mut(segment).zip(&headers).zip(results).enumerate();
        for (index, ((datagram, header), result)) in each {
            let opened = result.map(|text| Opened {
                id,
                session,
                wants_rekey,
                newest: Some(header.counter) == newest,
                text,
            });
            let outcome = match opened {
                Ok(opened) => self.accept(
                    now,
                    received,
                    home.after(index * segment),
                    header,
                    opened,
                    datagram,
                    slots,
                ),
                Err(error) => Err(error.into()),
            };
            if let Err(reason) = outcome {
                self.counters.dropped(reason, 1);
            }
        }
        true
    }

    fn try_inbound(
        &mut self,
        now: Time,
        received: &Received,
        home: Home,
        datagram: &mut [u8],
        slots: &mut impl Slots<Slot = S>,
    ) -> Result<(), Drop> {
        let Some(header) = DataHeader::parse(datagram) else {
            return self.handshake(now, received, datagram);
        };
        let owner = header.receiver as u8 % self.workers;
        if owner != self.worker {
            self.counters.mis_steered.add(1);
            Handover::add(&mut self.handovers, owner, received, datagram);
            return Ok(());
        }
        let opener = self.openers.get_mut(header.receiver).ok_or(Drop::UnknownIndex)?;
        let text = opener.half.open(now, &header, datagram)?;
        let (id, session) = (opener.peer, opener.half.session());
        let wants_rekey = opener.half.wants_rekey(now);
        let opened = Opened {
            id,
            session,
            wants_rekey,
            newest: opener.half.is_newest(header.counter),
            text,
        };
        self.accept(now, received, home, &header, opened, datagram, slots)
    }

    /// What an authentic datagram does.
    #[allow(clippy::too_many_arguments)]
    fn accept(
        &mut self,
        now: Time,
        received: &Received,
        home: Home,
        header: &DataHeader,
        opened: Opened,
        datagram: &mut [u8],
        slots: &mut impl Slots<Slot = S>,
    ) -> Result<(), Drop> {
        let Opened {
            id,
            session,
            wants_rekey,
            newest,
            text,
        } = opened;
        let peer = self.peers.get_mut(id).ok_or(Drop::UnknownIndex)?;
        if wants_rekey {
            want_session(peer, id, now, &mut self.reports);
        }
        peer.count_received(now, datagram.len() as u64);
        if newest && let Some(endpoint) = peer.heard_from(received.from) {
            self.reports.push(Report::Roamed(id, endpoint));
        }
        if peer.promote(session) {
            self.reports.push(Report::Confirmed(id, session));
            self.send_pending(now, id, slots);
        }
        let start = text.start;
        let plaintext = &mut datagram[text];
        if plaintext.is_empty() {
            return Ok(());
        }
        if plaintext[0] >> 4 == 0 && header.kind == NATIVE_DATA {
            return self.control_message(now, id, plaintext, slots);
        }
        if let Some(peer) = self.peers.get_mut(id) {
            peer.cell().last_data_received_ns.set(now.as_nanos());
        }
        let ip = Ip::parse(plaintext).ok_or(Drop::BadInner)?;
        if self.routes.lookup(ip.source()) != Some(id) {
            return Err(Drop::BadSource);
        }
        // WireGuard pads: the packet's own length counts.
        let len = ip.bytes().len();
        let packet = &mut plaintext[..len];
        if !ecn::decapsulate(received.tos, packet) {
            return Err(Drop::CongestionUnmarkable);
        }
        self.counters.packets_in.add(1);
        self.counters.bytes_in.add(len as u64);
        let partial = header.flags & FLAG_PARTIAL_CHECKSUM != 0;
        match home {
            Home::Buffer {
                buffer,
                start: datagram_start,
            } => {
                let at = datagram_start + start;
                self.coalescer
                    .push(buffer, at, packet, partial, received.received_unix_ns, &mut self.groups)
            }
            Home::Own => {
                let group = Group::from_owned(packet.to_vec(), 0..len, partial, received.received_unix_ns);
                self.groups.push(group.ok_or(Drop::BadInner)?);
                Ok(())
            }
        }
    }

    fn control_message(
        &mut self,
        now: Time,
        id: PeerId,
        plaintext: &[u8],
        slots: &mut impl Slots<Slot = S>,
    ) -> Result<(), Drop> {
        match Control::parse(plaintext).ok_or(Drop::BadInner)? {
            Control::EchoRequest(token) => self.send_control(now, id, Control::EchoReply(token), slots),
            Control::EchoReply(token) => {
                // One answer per question, whatever the peer sends.
                let asked = self
                    .peers
                    .get_mut(id)
                    .and_then(|peer| peer.echo.take_if(|sent| sent.as_nanos() == token));
                if let Some(asked) = asked {
                    self.reports.push(Report::Rtt(id, now - asked));
                }
            }
            Control::Goodbye => {
                if self
                    .peers
                    .get_mut(id)
                    .is_some_and(|peer| !std::mem::replace(&mut peer.said_goodbye, true))
                {
                    self.reports.push(Report::Goodbye(id));
                }
            }
            Control::Unknown(_) => {}
        }
        Ok(())
    }

    /// Asks the peer for an echo, from which its answer tells the round-trip time. WireGuard peers know none.
    pub fn send_echo(&mut self, now: Time, id: PeerId, slots: &mut impl Slots<Slot = S>) {
        if let Some(peer) = self.peers.get_mut(id) {
            peer.echo = Some(now);
        }
        self.send_control(now, id, Control::EchoRequest(now.as_nanos()), slots);
    }

    /// Tells a native peer that this end goes down.
    pub fn send_goodbye(&mut self, now: Time, id: PeerId, slots: &mut impl Slots<Slot = S>) {
        self.send_control(now, id, Control::Goodbye, slots);
    }

    fn send_control(&mut self, now: Time, id: PeerId, message: Control, slots: &mut impl Slots<Slot = S>) {
        self.send_plaintext(
            now,
            id,
            Some(Suite::Native),
            message.encoded_len(),
            |text| message.write(text),
            slots,
        );
    }

    /// Sends an empty message to the peer, which both proves life and confirms keys.
    pub fn send_keepalive(&mut self, now: Time, id: PeerId, slots: &mut impl Slots<Slot = S>) {
        self.send_plaintext(now, id, None, 0, |_| {}, slots);
    }

    /// Seals a message of ringway's own, unless there is no session, or one of another suite than `only`.
    fn send_plaintext(
        &mut self,
        now: Time,
        id: PeerId,
        only: Option<Suite>,
        len: usize,
        write: impl FnOnce(&mut [u8]),
        slots: &mut impl Slots<Slot = S>,
    ) {
        let Some(peer) = self.peers.get_mut(id) else {
            return;
        };
        let (Some(seal), Some(endpoint)) = (&mut peer.current, peer.endpoint) else {
            return;
        };
        if only.is_some_and(|suite| suite != seal.suite()) {
            return;
        }
        let Some(mut place) = self.batches.reserve(id, &endpoint, 0, DATA_OVERHEAD + len, 1, slots) else {
            self.counters.dropped(Drop::NoSendSlot, 1);
            return;
        };
        let datagram = place.bytes();
        let text = DATA_HEADER_LEN..datagram.len() - TAG_LEN;
        write(&mut datagram[text]);
        if seal.seal(now, 0, datagram).is_err() {
            self.counters.dropped(Drop::SessionExpired, 1);
            return;
        }
        place.commit();
        // An idle tunnel's keepalives keep its keys fresh too, as in WireGuard.
        if seal.wants_rekey(now) {
            want_session(peer, id, now, &mut self.reports);
        }
        peer.count_sent(now, 1, (DATA_OVERHEAD + len) as u64);
    }

    fn send_pending(&mut self, now: Time, id: PeerId, slots: &mut impl Slots<Slot = S>) {
        let Some(peer) = self.peers.get_mut(id) else {
            return;
        };
        for frame in peer.pending.take(&mut self.pending_room) {
            if let Err((reason, packets)) = self.try_outbound(now, &frame, slots) {
                self.counters.dropped(reason, packets);
            }
        }
    }
}

/// A datagram that has turned out authentic.
struct Opened {
    id: PeerId,
    session: SessionId,
    wants_rekey: bool,
    /// Nothing newer has come on the same lane: so it tells where the peer is.
    newest: bool,
    /// The plaintext within the datagram.
    text: Range<usize>,
}

/// As many items as an array has; `None` when one is missing.
fn array_of<T, const N: usize>(mut next: impl FnMut() -> Option<T>) -> Option<[T; N]> {
    let items: [Option<T>; N] = std::array::from_fn(|_| next());
    if items.iter().any(Option::is_none) {
        return None;
    }
    Some(items.map(|item| item.expect("none is missing")))
}

/// Where a received datagram's bytes are.
#[derive(Clone, Copy)]
enum Home {
    /// At `start` of a receive buffer.
    Buffer { buffer: u16, start: usize },
    /// In memory of its own.
    Own,
}

impl Home {
    /// The home of what lies `bytes` further on.
    fn after(self, bytes: usize) -> Home {
        match self {
            Home::Buffer { buffer, start } => Home::Buffer {
                buffer,
                start: start + bytes,
            },
            Home::Own => Home::Own,
        }
    }
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

fn want_session(peer: &mut PeerPath, id: PeerId, now: Time, reports: &mut Vec<Report>) {
    if peer
        .session_wanted
        .is_none_or(|last| now - last >= WANT_SESSION_INTERVAL)
    {
        peer.session_wanted = Some(now);
        reports.push(Report::WantSession(id));
    }
}
