//! Messages between the two ends: keepalives, echoes, goodbyes.

use super::{Forwarder, want_session};
use crate::path::drops::Drop;
use crate::path::gso::{Outer, Slots};
use crate::path::report::Report;
use crate::proto::{PeerId, Suite, Time};
use crate::wire::control::Control;
use crate::wire::message::{DATA_HEADER_LEN, DATA_OVERHEAD, FLAG_LANE_PORT, TAG_LEN};

impl<S: AsMut<[u8]>> Forwarder<S> {
    /// Asks the peer for an echo, from which its answer tells the round-trip time. WireGuard peers know none.
    pub fn send_echo(&mut self, now: Time, id: PeerId, slots: &mut impl Slots<Slot = S>) {
        if let Some(peer) = self.peers.get_mut(id) {
            peer.echo = Some(now);
        }
        self.send_control(now, id, Control::EchoRequest(now.as_nanos()), slots);
    }

    /// Asks over the lane's own port whether that reaches the peer, and shows it over the shared one where we are.
    pub(super) fn send_lane_probe(&mut self, now: Time, id: PeerId, token: u64, slots: &mut impl Slots<Slot = S>) {
        let lane_port = Outer {
            lane_port: true,
            ..Outer::default()
        };
        let request = Control::EchoRequest(token);
        let write = |text: &mut [u8]| request.write(text);
        self.send_plaintext(
            now,
            id,
            Some(Suite::Native),
            lane_port,
            request.encoded_len(),
            write,
            slots,
        );
        self.send_keepalive(now, id, slots);
    }

    /// Tells a native peer that this end goes down.
    pub fn send_goodbye(&mut self, now: Time, id: PeerId, slots: &mut impl Slots<Slot = S>) {
        self.send_control(now, id, Control::Goodbye, slots);
    }

    /// Sends an empty message to the peer, which both proves life and confirms keys.
    pub fn send_keepalive(&mut self, now: Time, id: PeerId, slots: &mut impl Slots<Slot = S>) {
        self.send_plaintext(now, id, None, Outer::default(), 0, |_| {}, slots);
    }

    fn send_control(&mut self, now: Time, id: PeerId, message: Control, slots: &mut impl Slots<Slot = S>) {
        self.send_plaintext(
            now,
            id,
            Some(Suite::Native),
            Outer::default(),
            message.encoded_len(),
            |text| message.write(text),
            slots,
        );
    }

    /// Seals a message of ringway's own, unless there is no session, or one of another suite than `only`.
    #[allow(clippy::too_many_arguments)]
    fn send_plaintext(
        &mut self,
        now: Time,
        id: PeerId,
        only: Option<Suite>,
        outer: Outer,
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
        let Some(mut place) = self
            .batches
            .reserve(id, &endpoint, outer, DATA_OVERHEAD + len, 1, slots)
        else {
            self.counters.dropped(Drop::NoSendSlot, 1);
            return;
        };
        let datagram = place.bytes();
        let text = DATA_HEADER_LEN..datagram.len() - TAG_LEN;
        write(&mut datagram[text]);
        let flags = if outer.lane_port { FLAG_LANE_PORT } else { 0 };
        if seal.seal(now, flags, datagram).is_err() {
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

    /// Does what a message of the peer's asks for.
    pub(super) fn control_message(
        &mut self,
        now: Time,
        id: PeerId,
        plaintext: &[u8],
        slots: &mut impl Slots<Slot = S>,
    ) -> Result<(), Drop> {
        match Control::parse(plaintext).ok_or(Drop::BadInner)? {
            Control::EchoRequest(token) => self.send_control(now, id, Control::EchoReply(token), slots),
            Control::EchoReply(token) => {
                if let Some(peer) = self.peers.get_mut(id) {
                    peer.echoed(token);
                    // One answer per question, whatever the peer sends.
                    if let Some(asked) = peer.echo.take_if(|sent| sent.as_nanos() == token) {
                        self.reports.push(Report::Rtt(id, now - asked));
                    }
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
}
