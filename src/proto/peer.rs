//! One peer: what is configured, what is known, and what its timers do (WireGuard paper, section 6).
//!
//! How it asks for sessions is in `attempt`, how it answers in `answer`.
#![forbid(unsafe_code)]

use std::net::SocketAddr;
use std::time::Duration;

use zeroize::Zeroizing;

use super::action::Action;
use super::attempt::Attempt;
use super::context::Context;
use super::cookie::Cookie;
use super::device::{PeerConfig, PeerInfo, Traffic};
use super::endpoint::{Endpoint, Local, PeerId};
use super::limits::{DEAD_PEER_TIMEOUT, KEEPALIVE_TIMEOUT, ZERO_KEYS_AFTER};
use super::noise::NO_PSK;
use super::slots::{Slot, Slots};
use super::suite::{Suite, SuiteChoice};
use super::tai64n::Tai64n;
use super::time::{Now, Time};
use super::timers::{Place, Timer, Timers};

pub(super) struct Peer {
    pub(super) id: PeerId,
    pub(super) public_key: [u8; 32],
    pub(super) preshared_key: Option<Zeroizing<[u8; 32]>>,
    pub(super) endpoint: Option<Endpoint>,
    /// Our address that the peer where it is may use, but that it is not answered from.
    refused_source: Option<Local>,
    /// Where it may be too: the addresses of its name.
    pub(super) candidates: Box<[SocketAddr]>,
    pub(super) persistent_keepalive: Option<Duration>,
    pub(super) choice: SuiteChoice,

    /// The suite of the latest handshake that was completed.
    pub(super) remembered: Option<Suite>,
    pub(super) slots: Slots,
    pub(super) attempt: Option<Box<Attempt>>,
    pub(super) cookie: Option<Cookie>,
    /// When the latest initiation or response went out.
    pub(super) handshake_sent: Option<Time>,
    /// When the latest initiation was consumed.
    pub(super) handshake_consumed: Option<Time>,
    /// When the latest handshake was completed, since 1970.
    pub(super) last_handshake: Option<Duration>,
    /// The timestamp of the latest initiation to the peer, and from it.
    pub(super) timestamp_sent: Tai64n,
    pub(super) timestamp_received: Tai64n,

    pub(super) timers: Timers,
    pub(super) place: Place,
    /// Data came after the keepalive timer was set, so it is set again when it fires.
    pub(super) keepalive_again: bool,
    /// When the first data was sent that nothing has answered.
    pub(super) unanswered_since: Time,
}

/// A kind of traffic.
#[derive(Clone, Copy)]
enum Seen {
    AnySent,
    DataSent,
    AnyReceived,
    DataReceived,
}

/// A preshared key as the handshake takes it.
pub(super) fn psk(preshared_key: &Option<Zeroizing<[u8; 32]>>) -> &[u8; 32] {
    preshared_key.as_deref().unwrap_or(&NO_PSK)
}

impl Peer {
    pub(super) fn new(id: PeerId, now: Time, config: PeerConfig) -> Peer {
        let mut peer = Peer {
            id,
            public_key: config.public_key,
            preshared_key: config.preshared_key,
            endpoint: config.endpoint.map(Endpoint::new),
            refused_source: None,
            candidates: Box::default(),
            persistent_keepalive: None,
            choice: config.suite,
            remembered: None,
            slots: Slots::default(),
            attempt: None,
            cookie: None,
            handshake_sent: None,
            handshake_consumed: None,
            last_handshake: None,
            timestamp_sent: Tai64n::default(),
            timestamp_received: Tai64n::default(),
            timers: Timers::default(),
            place: Place::default(),
            keepalive_again: false,
            unanswered_since: Time::default(),
        };
        peer.set_persistent_keepalive(now, config.persistent_keepalive);
        peer
    }

    pub(super) fn info(&self) -> PeerInfo {
        PeerInfo {
            id: self.id,
            public_key: self.public_key,
            has_preshared_key: self.preshared_key.is_some(),
            endpoint: self.endpoint,
            persistent_keepalive: self.persistent_keepalive,
            suite_choice: self.choice,
            suite: self.slots.current().map(|slot| slot.suite),
            last_handshake: self.last_handshake,
        }
    }

    /// The first keepalive is due at once: it opens the NAT that it then keeps open.
    pub(super) fn set_persistent_keepalive(&mut self, now: Time, interval: Option<Duration>) {
        self.persistent_keepalive = interval.filter(|interval| !interval.is_zero());
        self.timers
            .set_or_clear(Timer::PersistentKeepalive, self.persistent_keepalive.map(|_| now));
    }

    /// A handshake with the new key begins at once where there is a session under the old one.
    pub(super) fn set_preshared_key(&mut self, context: &mut Context, now: Now, key: Option<Zeroizing<[u8; 32]>>) {
        if self.preshared_key == key {
            return;
        }
        self.preshared_key = key;
        if self.slots.usable(now.mono).is_some() {
            self.begin_soon(context, now);
        }
    }

    /// Ends what the peer may not do any more, and begins anew where something was under way.
    pub(super) fn set_choice(&mut self, context: &mut Context, now: Now, choice: SuiteChoice) {
        if self.choice == choice {
            return;
        }
        self.choice = choice;
        self.remembered = None;
        self.retire(context, |slot| !choice.allows(slot.suite));
        if self.attempt.is_some() {
            self.cancel_attempt(context);
            self.handshake_sent = None;
            self.begin_soon(context, now);
        }
    }

    /// Sends to `endpoint` from here on.
    pub(super) fn set_endpoint(&mut self, context: &mut Context, mut endpoint: Endpoint) {
        if self.endpoint.is_none_or(|before| before.remote != endpoint.remote) {
            self.refused_source = None;
        }
        if self.refused_source.is_some() && endpoint.local == self.refused_source {
            endpoint.local = None;
        }
        if self.endpoint != Some(endpoint) {
            self.endpoint = Some(endpoint);
            context.actions.push_back(Action::Endpoint {
                peer: self.id,
                endpoint,
            });
        }
    }

    /// Learns where else the peer may be. Where nothing is known of it yet, it is at the first of them.
    pub(super) fn set_candidates(&mut self, context: &mut Context, now: Now, candidates: Vec<SocketAddr>) {
        let is_new = |candidate: &&SocketAddr| !self.candidates.contains(candidate);
        let news = candidates.iter().find(is_new).copied();
        self.candidates = candidates.into();
        match (self.endpoint, self.candidates.first()) {
            (None, Some(&first)) => {
                self.set_endpoint(context, Endpoint::new(first));
                // The keepalive that opens the NAT has waited for this.
                if self.persistent_keepalive.is_some() {
                    self.timers.set(Timer::PersistentKeepalive, now.mono);
                }
            }
            // What the name did not say before is asked next.
            _ => {
                if let Some(news) = news {
                    self.ask_next_at(news);
                }
            }
        }
    }

    /// Leaves our address to the kernel again: the one that was used may be gone.
    pub(super) fn forget_local_address(&mut self, context: &mut Context) {
        if let Some(Endpoint { remote, local: Some(_) }) = self.endpoint {
            self.set_endpoint(context, Endpoint::new(remote));
        }
    }

    /// Answers from `source` no more while the peer stays where it is; `None`: from any address again.
    pub(super) fn refuse_source(&mut self, context: &mut Context, source: Option<Local>) {
        self.refused_source = source;
        if let Some(endpoint) = self.endpoint.filter(|endpoint| endpoint.local == source) {
            self.set_endpoint(context, endpoint);
        }
    }

    /// Takes the sessions that `which` says from the workers.
    pub(super) fn retire(&mut self, context: &mut Context, which: impl Fn(&Slot) -> bool) {
        let retired = self.slots.take(which);
        context.retire(self.id, retired);
        self.timers.set_or_clear(Timer::Expiry, self.slots.expires());
    }

    /// Ends all that rests on this end's old key. What is waited for begins anew as soon as timers are looked at.
    pub(super) fn change_identity(&mut self, context: &mut Context) {
        let at_once = Time::default();
        let is_wanted = self.attempt.is_some() || self.timers.is_set(Timer::Handshake);
        self.cancel_attempt(context);
        self.retire(context, |_| true);
        // The new key's first handshake need not wait for the pace of the old one's.
        self.handshake_sent = None;
        if is_wanted {
            self.timers.set(Timer::Handshake, at_once);
        }
        if self.persistent_keepalive.is_some() {
            self.timers.set(Timer::PersistentKeepalive, at_once);
        }
    }

    // What went over the wire. "Authenticated" are data messages, keepalives, initiations and responses.

    pub(super) fn traffic(&mut self, context: &mut Context, traffic: Traffic) {
        let mut seen = [
            (traffic.any_sent, Seen::AnySent),
            (traffic.data_sent, Seen::DataSent),
            (traffic.any_received, Seen::AnyReceived),
            (traffic.data_received, Seen::DataReceived),
        ];
        // What happened in the same instant was an answer: the sort is stable, and sent comes first above.
        seen.sort_by_key(|&(at, _)| at);
        for (at, what) in seen {
            let Some(at) = at else { continue };
            match what {
                Seen::AnySent => self.authenticated_sent(at),
                Seen::DataSent => self.data_sent(context, at),
                Seen::AnyReceived => self.authenticated_received(at),
                Seen::DataReceived => self.data_received(at),
            }
        }
    }

    pub(super) fn data_sent(&mut self, context: &mut Context, now: Time) {
        if !self.timers.is_set(Timer::DeadPeer) {
            self.unanswered_since = now;
            self.timers
                .set(Timer::DeadPeer, now + DEAD_PEER_TIMEOUT + context.draw_jitter());
        }
        self.authenticated_sent(now);
    }

    pub(super) fn data_received(&mut self, now: Time) {
        match self.timers.is_set(Timer::Keepalive) {
            true => self.keepalive_again = true,
            false => self.timers.set(Timer::Keepalive, now + KEEPALIVE_TIMEOUT),
        }
        self.authenticated_received(now);
    }

    pub(super) fn authenticated_sent(&mut self, now: Time) {
        self.timers.clear(Timer::Keepalive);
        self.keepalive_again = false;
        self.postpone_persistent_keepalive(now);
    }

    pub(super) fn authenticated_received(&mut self, now: Time) {
        // Workers report from several threads: what came before the data was sent does not answer it.
        if now >= self.unanswered_since {
            self.timers.clear(Timer::DeadPeer);
        }
        self.postpone_persistent_keepalive(now);
    }

    fn postpone_persistent_keepalive(&mut self, now: Time) {
        if let Some(interval) = self.persistent_keepalive {
            self.timers.set(Timer::PersistentKeepalive, now + interval);
        }
    }

    /// Both ends have new keys.
    pub(super) fn session_made(&mut self, now: Time) {
        self.timers.set_or_clear(Timer::Expiry, self.slots.expires());
        self.timers.set(Timer::ZeroKeys, now + ZERO_KEYS_AFTER);
    }

    /// Both ends know that both have the keys of `slot`.
    pub(super) fn handshake_done(&mut self, context: &mut Context, now: Now, slot: &Slot, initiator: bool) {
        self.cancel_attempt(context);
        self.remembered = Some(slot.suite);
        self.last_handshake = Some(now.unix);
        context.actions.push_back(Action::HandshakeDone {
            peer: self.id,
            suite: slot.suite,
            initiator,
            remote_lanes: slot.remote_lanes,
        });
    }

    /// Does what has come due.
    pub(super) fn fire_due_timers(&mut self, context: &mut Context, now: Now) {
        while let Some(timer) = self.timers.pop_due(now.mono) {
            self.fire(context, now, timer);
        }
    }

    fn fire(&mut self, context: &mut Context, now: Now, timer: Timer) {
        match timer {
            Timer::Handshake => self.continue_handshake(context, now),
            Timer::Fallback => self.ask_in_the_other_suite(context, now),
            Timer::Keepalive => {
                self.send_keepalive(context, now);
                if std::mem::take(&mut self.keepalive_again) {
                    self.timers.set(Timer::Keepalive, now.mono + KEEPALIVE_TIMEOUT);
                }
            }
            Timer::DeadPeer => {
                self.forget_local_address(context);
                self.begin_soon(context, now);
            }
            Timer::PersistentKeepalive => {
                self.send_keepalive(context, now);
                self.postpone_persistent_keepalive(now.mono);
            }
            Timer::Expiry => self.retire(context, |slot| slot.expires() <= now.mono),
            Timer::ZeroKeys => {
                self.retire(context, |_| true);
                self.cookie = None;
            }
        }
    }

    fn send_keepalive(&mut self, context: &mut Context, now: Now) {
        match self.slots.usable(now.mono) {
            Some(_) => context.actions.push_back(Action::SendKeepalive { peer: self.id }),
            None if self.endpoint.is_some() => self.want_session(context, now),
            // Nobody knows where it is: it has to speak first.
            None => {}
        }
    }
}
