//! What a handshake message must show before anybody spends a thought on it: mac1, and under load a cookie; an answer, that
//! somebody waits for it.
//!
//! A [`Device`](super::Device) looks for itself. Where another thread receives, it keeps a [`Doorman`]: a flood then costs that
//! thread one or two hashes for each message and at most a cookie reply, and never gets to the thread that shakes hands. What
//! the doorman has let in goes to [`Device::handle_admitted`](super::Device::handle_admitted).
#![forbid(unsafe_code)]

use std::net::SocketAddr;
use std::sync::Arc;

use super::action::Rejected;
use super::awaited::Awaited;
use super::context::Random;
use super::cookie::CookieSecret;
use super::mac;
use super::ratelimit::{Gate, Replies, Verdict};
use super::suite::Suite;
use super::time::Time;
use crate::wire::message::{Body, COOKIE_REPLY_LEN, HandshakeMessage, MAC_LEN, Macs};

/// A message was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TurnedAway {
    /// Why.
    pub reason: Rejected,
    /// The cookie reply that its sender is to get, unless too many do.
    pub reply: Option<[u8; COOKIE_REPLY_LEN]>,
}

impl From<Rejected> for TurnedAway {
    fn from(reason: Rejected) -> TurnedAway {
        TurnedAway { reason, reply: None }
    }
}

/// Keeps the door of a thread that receives for a device.
pub struct Doorman {
    door: Door,
    awaited: Arc<Awaited>,
    random: Random,
}

impl Doorman {
    /// For the owner of `public_key`, whose device awaits answers to what is [`awaited`](super::Device::awaited_answers).
    /// `random` fills a slice with unpredictable bytes.
    pub fn new(public_key: [u8; 32], awaited: Arc<Awaited>, random: impl FnMut(&mut [u8]) + Send + 'static) -> Doorman {
        let mut random: Random = Box::new(random);
        Doorman {
            door: Door::new(public_key, &mut random),
            awaited,
            random,
        }
    }

    /// Whether a datagram from `from` that is no data message is worth a handshake's work.
    ///
    /// # Errors
    /// [`TurnedAway`] says why not. The caller counts that, and sends the reply.
    pub fn judge(&mut self, now: Time, from: SocketAddr, datagram: &[u8]) -> Result<(), TurnedAway> {
        let message = HandshakeMessage::parse(datagram).ok_or(Rejected::BadMessage)?;
        match message.body {
            Body::Initiation { sender, macs, .. } => {
                let suite = Suite::from_native(message.native);
                self.door.check_mac1(&macs)?;
                self.door.admit(now, from, (suite, sender), &macs, &mut self.random)
            }
            Body::Response { receiver, macs, .. } => {
                // First what costs less.
                self.check_awaited(receiver)?;
                Ok(self.door.check_mac1(&macs)?)
            }
            Body::CookieReply { receiver, .. } => self.check_awaited(receiver),
        }
    }

    /// Whether an answer to `receiver` may be waited for. Who in truth does, and got one before, the device knows.
    fn check_awaited(&self, receiver: u32) -> Result<(), TurnedAway> {
        match self.awaited.contains(receiver) {
            true => Ok(()),
            false => Err(Rejected::Unexpected.into()),
        }
    }
}

/// The checks, without randomness of their own.
pub(super) struct Door {
    mac1_key: [u8; 32],
    cookie_key: [u8; 32],
    gate: Gate,
    replies: Replies,
    cookies: CookieSecret,
}

impl Door {
    /// Of the owner of `public_key`.
    pub(super) fn new(public_key: [u8; 32], random: &mut Random) -> Door {
        let mut hash_key = [0; 16];
        random(&mut hash_key);
        Door {
            mac1_key: mac::mac1_key(&public_key),
            cookie_key: mac::cookie_key(&public_key),
            gate: Gate::new(hash_key),
            replies: Replies::new(hash_key),
            cookies: CookieSecret::default(),
        }
    }

    /// Messages are for the owner of another key from here on.
    pub(super) fn set_public_key(&mut self, public_key: &[u8; 32]) {
        self.mac1_key = mac::mac1_key(public_key);
        self.cookie_key = mac::cookie_key(public_key);
    }

    /// Whether the sender knows our public key.
    pub(super) fn check_mac1(&self, macs: &Macs<'_>) -> Result<(), Rejected> {
        match mac::verify(&self.mac1_key, &[macs.before_mac1], macs.mac1) {
            true => Ok(()),
            false => Err(Rejected::BadMac1),
        }
    }

    /// Lets a message whose mac1 is valid in, or makes a cookie reply, unless too many were made. It came in `suite` from the
    /// index `sender`.
    pub(super) fn admit(
        &mut self,
        now: Time,
        from: SocketAddr,
        (suite, sender): (Suite, u32),
        macs: &Macs<'_>,
        random: &mut Random,
    ) -> Result<(), TurnedAway> {
        // All zero: no cookie. A genuine mac2 that is has never been seen.
        let is_bare = macs.mac2 == &[0; MAC_LEN];
        let has_cookie = || !is_bare && self.cookies.verify(now, from, macs);
        let reason = match self.gate.judge(now, from.ip(), has_cookie) {
            Verdict::Admit => return Ok(()),
            Verdict::RateLimited => return Err(Rejected::RateLimited.into()),
            Verdict::DemandCookie if is_bare => Rejected::CookieDemanded,
            Verdict::DemandCookie => Rejected::BadMac2,
        };
        if !self.replies.allow(now, from) {
            return Err(reason.into());
        }
        let head = (suite.is_native(), sender);
        let reply = self.cookies.reply(now, head, from, macs.mac1, &self.cookie_key, random);
        Err(TurnedAway {
            reason,
            reply: Some(reply),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::cookie::Cookie;
    use crate::proto::ratelimit::TOTAL;
    use crate::wire::message::{WG_INITIATION_LEN, WG_RESPONSE_LEN};
    use crate::wire::message::{cookie_reply, initiation_without_macs, response_without_macs};

    const PUBLIC: [u8; 32] = [7; 32];
    const AWAITED: u32 = 0x1234_5600;
    const NOW: Time = Time::from_nanos(1 << 40);

    fn doorman() -> Doorman {
        let mut next = 0u8;
        Doorman::new(PUBLIC, Arc::default(), move |bytes| {
            next = next.wrapping_add(1);
            bytes.fill(next);
        })
    }

    fn source(number: u32) -> SocketAddr {
        (std::net::Ipv4Addr::from(0x0a00_0000 + number), 51820).into()
    }

    fn initiation(receiver: &[u8; 32], cookie: Option<&[u8; 16]>) -> (Vec<u8>, [u8; 16]) {
        let mut message = initiation_without_macs(false, 9, &[5; WG_INITIATION_LEN - 8 - 32]);
        let mac1 = mac::append(&mut message, receiver, cookie);
        (message, mac1)
    }

    /// Sources without a cookie until one is asked for it; how many were let in before.
    fn flood(doorman: &mut Doorman) -> u32 {
        let (message, _) = initiation(&PUBLIC, None);
        (0..)
            .find(|&n| doorman.judge(NOW, source(n), &message).is_err())
            .expect("a limit")
    }

    #[test]
    fn who_does_not_know_the_key_is_turned_away_without_a_reply() {
        let mut doorman = doorman();
        let (message, _) = initiation(&[8; 32], None);
        let expected = Err(Rejected::BadMac1.into());
        assert_eq!(doorman.judge(NOW, source(1), &message), expected);
        assert_eq!(
            doorman.judge(NOW, source(1), &message[1..]),
            Err(Rejected::BadMessage.into())
        );
    }

    #[test]
    fn under_load_the_reply_s_cookie_opens_the_door() {
        let mut doorman = doorman();
        assert_eq!(flood(&mut doorman), TOTAL.burst);
        let here = source(77);
        let (bare, mac1) = initiation(&PUBLIC, None);
        let turned_away = doorman.judge(NOW, here, &bare).expect_err("under load");
        assert_eq!(turned_away.reason, Rejected::CookieDemanded);
        let reply = turned_away.reply.expect("a cookie reply");
        let Some(HandshakeMessage {
            native: false,
            body:
                Body::CookieReply {
                    receiver: 9,
                    nonce,
                    sealed,
                },
        }) = HandshakeMessage::parse(&reply)
        else {
            panic!("a cookie reply to the sender's index")
        };
        let cookie = Cookie::open(NOW, nonce, sealed, &mac1, &PUBLIC).expect("a genuine one");
        let (with_cookie, _) = initiation(&PUBLIC, cookie.fresh(NOW));
        assert_eq!(
            doorman
                .judge(NOW, source(78), &with_cookie)
                .expect_err("not its cookie")
                .reason,
            Rejected::BadMac2
        );
        assert_eq!(doorman.judge(NOW, here, &with_cookie), Ok(()));
    }

    #[test]
    fn an_answer_is_let_in_only_while_somebody_waits_for_it() {
        let mut doorman = doorman();
        let answer = |receiver: u32| {
            let mut message = response_without_macs(false, 9, receiver, &[5; WG_RESPONSE_LEN - 12 - 32]);
            mac::append(&mut message, &PUBLIC, None);
            message
        };
        let reply = cookie_reply(false, AWAITED, &[1; 24], &[2; 32]);
        for message in [&answer(AWAITED)[..], &reply] {
            assert_eq!(doorman.judge(NOW, source(1), message), Err(Rejected::Unexpected.into()));
        }
        doorman.awaited.add(AWAITED);
        for message in [&answer(AWAITED)[..], &reply] {
            assert_eq!(doorman.judge(NOW, source(1), message), Ok(()));
        }
        let another = answer(!AWAITED);
        assert_eq!(
            doorman.judge(NOW, source(1), &another),
            Err(Rejected::Unexpected.into())
        );
    }
}
