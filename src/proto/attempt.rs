//! Asking a peer for a session: initiations, their repetition, and the response.
#![forbid(unsafe_code)]

use std::net::SocketAddr;

use super::action::{Action, Rejected};
use super::context::{Context, LocalIndex};
use super::endpoint::Endpoint;
use super::handshake::Initiation;
use super::limits::{AUTO_FALLBACK, REKEY_ATTEMPT_TIME, REKEY_TIMEOUT};
use super::mac;
use super::peer::{Peer, psk};
use super::suite::{Suite, SuiteChoice};
use super::tai64n::Tai64n;
use super::time::{Now, Time};
use super::timers::Timer;

/// A handshake that this end began and which is not done.
pub(super) struct Attempt {
    /// When data was last waiting for it: it is given up REKEY_ATTEMPT_TIME later.
    wanted: Time,
    /// Which of the places where the peer may be is asked: see [`Peer::place_to_ask`].
    place: usize,
    /// The initiations that a response may still answer: those of the latest round.
    asked: Vec<Asking>,
}

/// One initiation.
struct Asking {
    index: LocalIndex,
    initiation: Initiation,
    /// Whether a response to it was looked at.
    tried: bool,
}

impl Peer {
    /// Data waits for a session, or a session wants its successor.
    pub(super) fn want_session(&mut self, context: &mut Context, now: Now) {
        // Said by a worker that has not seen the session which is there already.
        let just_made = self
            .slots
            .current_since()
            .is_some_and(|since| now.mono - since < REKEY_TIMEOUT);
        if !just_made {
            self.begin_soon(context, now);
        }
    }

    /// Begins a handshake, but not within REKEY_TIMEOUT of the latest handshake message to the peer.
    pub(super) fn begin_soon(&mut self, context: &mut Context, now: Now) {
        if let Some(attempt) = &mut self.attempt {
            attempt.wanted = now.mono;
            return;
        }
        if self.endpoint.is_none() {
            context.actions.push_back(Action::HandshakeGivenUp { peer: self.id });
            return;
        }
        match self.handshake_sent.map(|sent| sent + REKEY_TIMEOUT) {
            Some(earliest) if now.mono < earliest => self.timers.set(Timer::Handshake, earliest),
            _ => self.begin(context, now),
        }
    }

    /// The handshake timer fired.
    pub(super) fn continue_handshake(&mut self, context: &mut Context, now: Now) {
        match &self.attempt {
            None => self.begin(context, now),
            Some(attempt) if now.mono - attempt.wanted >= REKEY_ATTEMPT_TIME => {
                self.cancel_attempt(context);
                context.actions.push_back(Action::HandshakeGivenUp { peer: self.id });
            }
            Some(_) => {
                self.forget_local_address(context);
                // The peer may have become something else: ask in every suite that it may use.
                self.remembered = None;
                if let Some(attempt) = &mut self.attempt {
                    attempt.place += 1;
                }
                context.actions.push_back(Action::Unanswered { peer: self.id });
                self.ask(context, now);
            }
        }
    }

    /// The fallback timer fired.
    pub(super) fn ask_in_the_other_suite(&mut self, context: &mut Context, now: Now) {
        if self.attempt.is_some() {
            self.initiate(context, now, Suite::WireGuard);
        }
    }

    /// Forgets the handshake under way, and any that was about to begin.
    pub(super) fn cancel_attempt(&mut self, context: &mut Context) {
        self.forget_initiations(context);
        self.attempt = None;
        self.timers.clear(Timer::Handshake);
        self.timers.clear(Timer::Fallback);
    }

    /// Whether a response to the index `receiver` is waited for: in which suite, and whether it is the first one.
    pub(super) fn awaits(&self, receiver: u32) -> Option<(Suite, bool)> {
        let asked = &self.attempt.as_ref()?.asked;
        let asking = asked.iter().find(|asking| asking.index.wire() == receiver)?;
        Some((asking.initiation.suite(), !asking.tried))
    }

    /// Reads the response from `sender` to the index `receiver`, and takes the session into use.
    pub(super) fn finish(
        &mut self,
        context: &mut Context,
        now: Now,
        from: Endpoint,
        (sender, receiver): (u32, u32),
        noise: &[u8],
    ) -> Result<(), Rejected> {
        let psk = psk(&self.preshared_key);
        let attempt = self.attempt.as_mut().ok_or(Rejected::Unexpected)?;
        let position = attempt.asked.iter().position(|asking| asking.index.wire() == receiver);
        let position = position.ok_or(Rejected::Unexpected)?;
        let asking = &mut attempt.asked[position];
        asking.tried = true;
        let agreed = asking
            .initiation
            .finish(psk, sender, noise)
            .map_err(|_| Rejected::BadHandshake)?;

        // The session keeps this index; the other initiations' are given back.
        let Asking { index, initiation, .. } = attempt.asked.swap_remove(position);
        self.authenticated_received(now.mono);
        self.set_endpoint(context, from);
        let slot = context.install(self.id, now.mono, (initiation.suite(), true), index, agreed);
        context.indices.settled(slot.base);
        let retired = self.slots.initiated(now.mono, slot);
        context.retire(self.id, retired);
        self.session_made(now.mono);
        self.handshake_done(context, now, &slot, true);
        // The responder seals only once it has heard something on the new session.
        context.actions.push_back(Action::SendKeepalive { peer: self.id });
        Ok(())
    }

    fn begin(&mut self, context: &mut Context, now: Now) {
        self.attempt = Some(Box::new(Attempt {
            wanted: now.mono,
            place: 0,
            asked: Vec::new(),
        }));
        self.ask(context, now);
    }

    /// One round: an initiation, time for its response, and perhaps the other suite's a little later.
    fn ask(&mut self, context: &mut Context, now: Now) {
        self.forget_initiations(context);
        let (suite, fallback) = self.suites_to_ask(now.mono);
        self.timers
            .set_or_clear(Timer::Fallback, fallback.then(|| now.mono + AUTO_FALLBACK));
        self.timers
            .set(Timer::Handshake, now.mono + REKEY_TIMEOUT + context.draw_jitter());
        self.initiate(context, now, suite);
    }

    /// The suite to ask in, and whether to ask in WireGuard's too.
    fn suites_to_ask(&self, now: Time) -> (Suite, bool) {
        match (self.choice, self.remembered) {
            (SuiteChoice::Native, _) => (Suite::Native, false),
            (SuiteChoice::WireGuard, _) => (Suite::WireGuard, false),
            (SuiteChoice::Auto, Some(Suite::Native)) => (Suite::Native, false),
            // Nobody waits for a rekey, so it is the moment to find out whether one lost packet made us fall back.
            (SuiteChoice::Auto, Some(Suite::WireGuard)) if self.slots.usable(now).is_none() => {
                (Suite::WireGuard, false)
            }
            (SuiteChoice::Auto, _) => (Suite::Native, true),
        }
    }

    /// Where the next initiation goes: first to where the peer was last, then to each other address of its name in turn.
    /// Only handshakes go there. Data follows once one was answered, so a lost initiation moves no session.
    fn place_to_ask(&self) -> Option<Endpoint> {
        let last = self.endpoint?;
        let others = || self.candidates.iter().filter(|&&candidate| candidate != last.remote);
        let place = self.attempt.as_ref().map_or(0, |attempt| attempt.place) % (others().count() + 1);
        match place.checked_sub(1).and_then(|nth| others().nth(nth)) {
            Some(&other) => Some(Endpoint::new(other)),
            None => Some(last),
        }
    }

    /// Sees to it that the next round of a handshake under way asks at `candidate`.
    pub(super) fn ask_next_at(&mut self, candidate: SocketAddr) {
        let last = self.endpoint.map(|endpoint| endpoint.remote);
        let mut others = self.candidates.iter().filter(|&&other| Some(other) != last);
        if let (Some(nth), Some(attempt)) = (others.position(|&other| other == candidate), &mut self.attempt) {
            // The round begins with one place further.
            attempt.place = nth;
        }
    }

    fn initiate(&mut self, context: &mut Context, now: Now, suite: Suite) {
        let Some(endpoint) = self.place_to_ask() else { return };
        let timestamp = Tai64n::newer_than(self.timestamp_sent, now.unix);
        let index = context.allocate(self.id, suite, None);
        let ephemeral = context.draw_key();
        let started = Initiation::start(
            context.means(suite),
            ephemeral,
            &self.public_key,
            index.wire(),
            timestamp,
            context.lanes,
        );
        // Fails only where the peer's key is of low order: then there is nothing to wait for, and the attempt ends.
        let (Ok((initiation, mut message)), Some(attempt)) = (started, &mut self.attempt) else {
            context.indices.release(index.base);
            return;
        };
        attempt.asked.push(Asking {
            index,
            initiation,
            tried: false,
        });
        let cookie = self.cookie.as_ref().and_then(|cookie| cookie.fresh(now.mono));
        let mac1 = mac::append(&mut message, &self.public_key, cookie);
        context.indices.announced(index.base, mac1);
        context.transmit(endpoint, Some(self.id), message);
        self.timestamp_sent = timestamp;
        self.handshake_sent = Some(now.mono);
        self.authenticated_sent(now.mono);
    }

    fn forget_initiations(&mut self, context: &mut Context) {
        if let Some(attempt) = &mut self.attempt {
            for asking in attempt.asked.drain(..) {
                context.indices.release(asking.index.base);
            }
        }
    }
}
