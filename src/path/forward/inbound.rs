//! In: received datagrams are opened in place and become groups for the TUN.

use std::net::IpAddr;
use std::ops::Range;

use super::{Forwarder, want_session};
use crate::path::capture::{self, Direction};
use crate::path::coalesce::{Group, Lanes, Origin};
use crate::path::drops::Drop;
use crate::path::ecn;
use crate::path::gso::Slots;
use crate::path::report::{Handover, Handshake, Received, Report};
use crate::path::route::RouteTable;
use crate::proto::{GROUP, OpenHalf, PeerId, SessionId, Time};
use crate::wire::ip::Ip;
use crate::wire::message::{self, DataHeader, FLAG_LANE_PORT, FLAG_PARTIAL_CHECKSUM, HandshakeMessage, NATIVE_DATA};

impl<S: AsMut<[u8]>> Forwarder<S> {
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
        let is_ours = message::owner(receiver, self.workers) == self.worker;
        if !is_ours || headers.iter().any(|header| header.receiver != receiver) {
            return false;
        }
        let Some(opener) = self.openers.get_mut(receiver) else {
            return false;
        };
        let results = opener.half.open_group(now, &headers, segment, group);
        let (id, session) = (opener.peer, opener.half.session());
        let wants_rekey = opener.half.wants_rekey(now);
        let lanes = lanes_of(&opener.half, self.workers);
        let authentic = headers.iter().zip(&results).filter(|(_, result)| result.is_ok());
        let telling = authentic.filter(|(header, _)| says_where(header));
        let newest = telling.map(|(header, _)| header.counter).max();
        let newest = newest.filter(|&counter| opener.is_news(counter));
        let each = group.chunks_mut(segment).zip(&headers).zip(results).enumerate();
        for (index, ((datagram, header), result)) in each {
            let opened = result.map(|text| Opened {
                id,
                session,
                wants_rekey,
                newest: Some(header.counter) == newest,
                lanes,
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
            return self.handshake(received, datagram);
        };
        let owner = message::owner(header.receiver, self.workers);
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
            newest: says_where(&header) && opener.is_news(header.counter),
            lanes: lanes_of(&opener.half, self.workers),
            text,
        };
        self.accept(now, received, home, &header, opened, datagram, slots)
    }

    /// What is no data goes on when it looks like a handshake message.
    fn handshake(&mut self, received: &Received, datagram: &[u8]) -> Result<(), Drop> {
        HandshakeMessage::parse(datagram).ok_or(Drop::BadMessage)?;
        self.reports.push(Report::Handshake(Handshake {
            from: received.from,
            datagram: datagram.into(),
        }));
        Ok(())
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
            lanes,
            text,
        } = opened;
        let peer = self.peers.get_mut(id).ok_or(Drop::UnknownIndex)?;
        if wants_rekey {
            want_session(peer, id, now, &mut self.reports);
        }
        peer.count_received(now, datagram.len() as u64);
        if newest && peer.heard_from(received.from) {
            self.reports.push(Report::Roamed(id, received.from));
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
        if sender_of(&self.routes, ip.source()) != Some(id) {
            return Err(Drop::BadSource);
        }
        // WireGuard pads: the packet's own length counts.
        let len = ip.bytes().len();
        let packet = &mut plaintext[..len];
        if !ecn::decapsulate(received.tos, packet) {
            return Err(Drop::CongestionUnmarkable);
        }
        if !self.taps.is_empty() {
            capture::offer(&mut self.taps, now, id, Direction::In, std::iter::once(&*packet));
        }
        self.counters.packets_in.add(1);
        self.counters.bytes_in.add(len as u64);
        let origin = Origin {
            partial: header.flags & FLAG_PARTIAL_CHECKSUM != 0,
            lanes,
        };
        match home {
            Home::Buffer {
                buffer,
                start: datagram_start,
            } => {
                let at = datagram_start + start;
                self.coalescer
                    .push(buffer, at, packet, origin, received.received_unix_ns, &mut self.groups)
            }
            Home::Own => {
                let group = Group::from_owned(packet.to_vec(), 0..len, origin.partial, received.received_unix_ns);
                self.groups.push(group.ok_or(Drop::BadInner)?);
                Ok(())
            }
        }
    }
}

/// The only peer that may send from `source`: the longest prefix that contains it, over all peers, is one of its own.
#[inline]
pub(super) fn sender_of(routes: &RouteTable<PeerId>, source: IpAddr) -> Option<PeerId> {
    routes.lookup(source)
}

/// Whether a peer is where its datagram came from: not so when it left from a lane's own port.
fn says_where(header: &DataHeader) -> bool {
    header.kind != NATIVE_DATA || header.flags & FLAG_LANE_PORT == 0
}

/// Which of so many workers open the lanes of the session that `half` is one of.
#[inline]
fn lanes_of(half: &OpenHalf, workers: u8) -> Lanes {
    let lane = half.local_index() as u8;
    Lanes {
        first: message::owner(half.local_index() - u32::from(lane), workers),
        count: half.remote_lanes(),
    }
}

/// A datagram that has turned out authentic.
struct Opened {
    id: PeerId,
    session: SessionId,
    wants_rekey: bool,
    /// Of those that tell where the peer is, none that came before on the same lane was sent later.
    newest: bool,
    /// Those of the session.
    lanes: Lanes,
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
