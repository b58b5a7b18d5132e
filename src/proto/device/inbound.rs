//! The journey of a handshake datagram: cheap checks first, the expensive ones only for those who earned them.
//!
//! 1. the layout, 2. mac1, 3. for responses: does anybody wait for it, 4. the gate: cookie and rate,
//! 5. Diffie-Hellman: one for an unknown key, 6. the peer's own rules, 7. the session.
#![forbid(unsafe_code)]

use super::Device;
use crate::proto::action::Rejected;
use crate::proto::cookie::Cookie;
use crate::proto::doorman::TurnedAway;
use crate::proto::endpoint::{Endpoint, PeerId};
use crate::proto::handshake::Asked;
use crate::proto::index::Base;
use crate::proto::noise::NoiseError;
use crate::proto::suite::Suite;
use crate::proto::time::{Now, Time};
use crate::wire::message::{Body, COOKIE_LEN, COOKIE_NONCE_LEN, HandshakeMessage, Macs, TAG_LEN};

impl Device {
    /// Takes in a datagram that is no data message: initiations, responses and cookie replies of both suites. Tells
    /// which peer it was authentically from; a cookie reply is not.
    ///
    /// # Errors
    /// [`Rejected`] says why nothing came of it. The caller counts that; there is nothing else to do.
    pub fn handle_datagram(&mut self, now: Now, from: Endpoint, datagram: &[u8]) -> Result<Option<PeerId>, Rejected> {
        let message = HandshakeMessage::parse(datagram).ok_or(Rejected::BadMessage)?;
        match message.body {
            Body::Initiation { sender, macs, .. } => {
                self.door.check_mac1(&macs)?;
                self.admit(now.mono, from, Suite::from_native(message.native), sender, &macs)?;
            }
            Body::Response { macs, .. } => self.door.check_mac1(&macs)?,
            Body::CookieReply { .. } => {}
        }
        self.take_in(now, from, message)
    }

    /// As [`Device::handle_datagram`], for one that a [`Doorman`](crate::proto::Doorman) of this device's key has let in.
    ///
    /// # Errors
    /// [`Rejected`], as there.
    pub fn handle_admitted(&mut self, now: Now, from: Endpoint, datagram: &[u8]) -> Result<Option<PeerId>, Rejected> {
        let message = HandshakeMessage::parse(datagram).ok_or(Rejected::BadMessage)?;
        self.take_in(now, from, message)
    }

    /// A message that deserves attention: an initiation that was admitted, a response with a valid mac1, a cookie reply.
    fn take_in(&mut self, now: Now, from: Endpoint, message: HandshakeMessage<'_>) -> Result<Option<PeerId>, Rejected> {
        let suite = Suite::from_native(message.native);
        match message.body {
            Body::Initiation { sender, noise, .. } => self.initiation(now, from, suite, sender, noise).map(Some),
            Body::Response {
                sender,
                receiver,
                noise,
                macs,
            } => {
                let first = self.awaited(suite, receiver)?;
                // Asked for, so no load that others put on us; but only once, lest it be repeated.
                if !first {
                    self.admit(now.mono, from, suite, sender, &macs)?;
                }
                self.response(now, from, (sender, receiver), noise).map(Some)
            }
            Body::CookieReply {
                receiver,
                nonce,
                sealed,
            } => self.cookie_reply(now.mono, receiver, nonce, sealed).map(|()| None),
        }
    }

    /// Lets a message whose mac1 is valid pass, or answers with a cookie.
    fn admit(&mut self, now: Time, from: Endpoint, suite: Suite, sender: u32, macs: &Macs<'_>) -> Result<(), Rejected> {
        let random = &mut self.context.random;
        self.door
            .admit(now, from.remote, (suite, sender), macs, random)
            .map_err(|TurnedAway { reason, reply }| {
                if let Some(reply) = reply {
                    self.context.transmit(from, None, reply.to_vec());
                }
                reason
            })
    }

    fn initiation(
        &mut self,
        now: Now,
        from: Endpoint,
        suite: Suite,
        sender: u32,
        noise: &[u8],
    ) -> Result<PeerId, Rejected> {
        let ephemeral = self.context.draw_key();
        let asked = Asked::read(self.context.means(suite), ephemeral, sender, noise).map_err(|error| match error {
            NoiseError::UnknownPeer => Rejected::UnknownPeer,
            NoiseError::Invalid => Rejected::BadHandshake,
        })?;
        let peer = self.find_peer(&asked.initiator).ok_or(Rejected::UnknownPeer)?;
        let mut verdict = Err(Rejected::UnknownPeer);
        self.with_peer(peer, |peer, context| {
            verdict = peer.answer(context, now, from, suite, asked)
        });
        verdict.map(|()| peer)
    }

    /// Whether a response in `suite` to `receiver` is waited for, and is the first one.
    fn awaited(&mut self, suite: Suite, receiver: u32) -> Result<bool, Rejected> {
        let owner = self
            .context
            .indices
            .owner(Base::of(receiver))
            .ok_or(Rejected::Unexpected)?;
        let awaited = self.peers.get(owner.peer).and_then(|peer| peer.awaits(receiver));
        match awaited {
            Some((asked_in, first)) if asked_in == suite => Ok(first),
            _ => Err(Rejected::Unexpected),
        }
    }

    fn response(
        &mut self,
        now: Now,
        from: Endpoint,
        (sender, receiver): (u32, u32),
        noise: &[u8],
    ) -> Result<PeerId, Rejected> {
        let peer = self
            .context
            .indices
            .owner(Base::of(receiver))
            .ok_or(Rejected::Unexpected)?
            .peer;
        let mut verdict = Err(Rejected::Unexpected);
        self.with_peer(peer, |peer, context| {
            verdict = peer.finish(context, now, from, (sender, receiver), noise);
        });
        verdict.map(|()| peer)
    }

    /// A peer under load wants to see a cookie in our next message. It says nothing about where the peer is.
    fn cookie_reply(
        &mut self,
        now: Time,
        receiver: u32,
        nonce: &[u8; COOKIE_NONCE_LEN],
        sealed: &[u8; COOKIE_LEN + TAG_LEN],
    ) -> Result<(), Rejected> {
        let owner = self
            .context
            .indices
            .owner(Base::of(receiver))
            .ok_or(Rejected::Unexpected)?;
        let mac1 = owner.mac1.ok_or(Rejected::Unexpected)?;
        let peer = self.peers.get_mut(owner.peer).ok_or(Rejected::Unexpected)?;
        let cookie = Cookie::open(now, nonce, sealed, &mac1, &peer.public_key).ok_or(Rejected::BadHandshake)?;
        peer.cookie = Some(cookie);
        owner.mac1 = None;
        Ok(())
    }
}
