//! Answering a peer that asks for a session.
#![forbid(unsafe_code)]

use std::time::Duration;

use super::action::{Action, Rejected};
use super::context::Context;
use super::endpoint::{Endpoint, SessionId};
use super::handshake::Asked;
use super::limits::{INITIATIONS_PER_SECOND, REKEY_TIMEOUT};
use super::mac;
use super::peer::{Peer, psk};
use super::suite::{Suite, SuiteChoice};
use super::time::{Now, Time};

/// How far apart the initiations of one peer are at least.
const INITIATION_INTERVAL: Duration = Duration::from_nanos(1_000_000_000 / INITIATIONS_PER_SECOND as u64);

impl Peer {
    /// Answers an authentic initiation in `suite` with a session that waits for confirmation.
    pub(super) fn answer(
        &mut self,
        context: &mut Context,
        now: Now,
        from: Endpoint,
        suite: Suite,
        asked: Asked,
    ) -> Result<(), Rejected> {
        self.consume(now.mono, suite, &asked)?;
        let index = context.allocate(self.id, suite, Some(asked.lanes()));
        let Ok((agreed, mut message)) = asked.answer(psk(&self.preshared_key), index.wire(), context.lanes) else {
            // A low-order ephemeral key: nobody else sends one.
            context.indices.release(index.base);
            return Err(Rejected::BadHandshake);
        };
        self.authenticated_received(now.mono);
        self.set_endpoint(context, from);

        // First the keys, then the message that makes the peer use them.
        let slot = context.install(self.id, now.mono, (suite, false), index, agreed);
        let retired = self.slots.answered(slot);
        context.retire(self.id, retired);
        self.session_made(now.mono);

        let cookie = self.cookie.as_ref().and_then(|cookie| cookie.fresh(now.mono));
        let mac1 = mac::append(&mut message, &self.public_key, cookie);
        context.indices.announced(index.base, mac1);
        context.transmit(from, Some(self.id), message);
        self.handshake_sent = Some(now.mono);
        self.authenticated_sent(now.mono);
        Ok(())
    }

    /// The first authentic data message came on `session`.
    pub(super) fn confirm(&mut self, context: &mut Context, now: Now, session: SessionId) {
        if let Some((slot, retired)) = self.slots.confirm(now.mono, session) {
            context.indices.settled(slot.base);
            context.actions.push_back(Action::Promote { peer: self.id, session });
            context.retire(self.id, retired);
            self.handshake_done(context, now, &slot, false);
        }
    }

    /// Whether to answer; if so, this initiation and older ones will not be answered again.
    fn consume(&mut self, now: Time, suite: Suite, asked: &Asked) -> Result<(), Rejected> {
        if !self.choice.allows(suite) {
            return Err(Rejected::Unexpected);
        }
        if asked.timestamp <= self.timestamp_received {
            return Err(Rejected::Replayed);
        }
        if self
            .handshake_consumed
            .is_some_and(|last| now - last < INITIATION_INTERVAL)
        {
            return Err(Rejected::RateLimited);
        }
        self.timestamp_received = asked.timestamp;
        self.handshake_consumed = Some(now);
        match self.has_just_answered_natively(now) && suite == Suite::WireGuard {
            true => Err(Rejected::Unexpected),
            false => Ok(()),
        }
    }

    /// The peer's native initiation was answered a moment ago. Its WireGuard one was then sent before the answer got
    /// there; answering that as well would replace the session that it is about to use.
    fn has_just_answered_natively(&self, now: Time) -> bool {
        self.choice == SuiteChoice::Auto
            && [self.slots.next(), self.slots.current()]
                .into_iter()
                .flatten()
                .any(|slot| slot.suite == Suite::Native && now - slot.created < REKEY_TIMEOUT)
    }
}
