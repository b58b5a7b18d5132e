//! Cookies: the proof that a sender owns its address, demanded before work is done for it (WireGuard paper, section
//! 5.4.7). [`CookieSecret`] is the side under load, [`Cookie`] the side that got a reply.
#![forbid(unsafe_code)]

use std::net::{IpAddr, SocketAddr};

use chacha20poly1305::aead::AeadInPlace;
use chacha20poly1305::{KeyInit, XChaCha20Poly1305};
use zeroize::Zeroizing;

use super::limits::{COOKIE_SECRET_LATENCY, COOKIE_SECRET_MAX_AGE};
use super::mac;
use super::time::Time;
use crate::wire::message::{self, COOKIE_LEN, COOKIE_NONCE_LEN, COOKIE_REPLY_LEN, MAC_LEN, Macs, TAG_LEN};

/// The changing secret that cookies are made from, so that none has to be remembered.
#[derive(Default)]
pub(super) struct CookieSecret(Option<(Zeroizing<[u8; 32]>, Time)>);

impl CookieSecret {
    /// Whether mac2 was made with the cookie of `source`.
    pub(super) fn verify(&self, now: Time, source: SocketAddr, macs: &Macs<'_>) -> bool {
        match &self.0 {
            Some((secret, born)) if now - *born < COOKIE_SECRET_MAX_AGE => {
                mac::verify(&cookie(secret, source), &[macs.before_mac2], macs.mac2)
            }
            _ => false,
        }
    }

    /// The cookie reply to a message from `source` that carried the sender index `receiver` and `mac1`. `cookie_key`
    /// is made of this end's public key.
    pub(super) fn reply(
        &mut self,
        now: Time,
        (native, receiver): (bool, u32),
        source: SocketAddr,
        mac1: &[u8; MAC_LEN],
        cookie_key: &[u8; 32],
        random: &mut dyn FnMut(&mut [u8]),
    ) -> [u8; COOKIE_REPLY_LEN] {
        let mut nonce = [0; COOKIE_NONCE_LEN];
        random(&mut nonce);
        let cookie = cookie(self.fresh(now, random), source);
        message::cookie_reply(native, receiver, &nonce, &seal(cookie_key, &nonce, &cookie, mac1))
    }

    fn fresh(&mut self, now: Time, random: &mut dyn FnMut(&mut [u8])) -> &[u8; 32] {
        if self
            .0
            .as_ref()
            .is_none_or(|(_, born)| now - *born >= COOKIE_SECRET_MAX_AGE)
        {
            self.0 = None;
        }
        let (secret, _) = self.0.get_or_insert_with(|| {
            let mut secret = Zeroizing::new([0; 32]);
            random(secret.as_mut());
            (secret, now)
        });
        secret
    }
}

/// A cookie that a peer gave us: it keys mac2 of the messages to it while it is fresh.
pub(super) struct Cookie {
    value: Zeroizing<[u8; COOKIE_LEN]>,
    received: Time,
}

impl Cookie {
    /// Opens the reply to our message that carried `mac1`, from the owner of `public_key`; `None` if forged.
    pub(super) fn open(
        now: Time,
        nonce: &[u8; COOKIE_NONCE_LEN],
        sealed: &[u8; COOKIE_LEN + TAG_LEN],
        mac1: &[u8; MAC_LEN],
        public_key: &[u8; 32],
    ) -> Option<Cookie> {
        let (cookie, tag) = sealed.split_last_chunk::<TAG_LEN>()?;
        let mut value = Zeroizing::new([0; COOKIE_LEN]);
        value.copy_from_slice(cookie);
        XChaCha20Poly1305::new(&mac::cookie_key(public_key).into())
            .decrypt_in_place_detached(nonce.into(), mac1, value.as_mut(), tag.into())
            .ok()?;
        Some(Cookie { value, received: now })
    }

    /// The cookie, while its maker still takes it.
    pub(super) fn fresh(&self, now: Time) -> Option<&[u8; COOKIE_LEN]> {
        (now - self.received < COOKIE_SECRET_MAX_AGE - COOKIE_SECRET_LATENCY).then_some(&self.value)
    }
}

/// The cookie of a source: address and port both, so that a NAT's other users cannot spend it.
fn cookie(secret: &[u8; 32], source: SocketAddr) -> [u8; COOKIE_LEN] {
    let port = source.port().to_be_bytes();
    match source.ip().to_canonical() {
        IpAddr::V4(ip) => mac::mac(secret, &[&ip.octets(), &port]),
        IpAddr::V6(ip) => mac::mac(secret, &[&ip.octets(), &port]),
    }
}

fn seal(
    cookie_key: &[u8; 32],
    nonce: &[u8; COOKIE_NONCE_LEN],
    cookie: &[u8; COOKIE_LEN],
    mac1: &[u8; MAC_LEN],
) -> [u8; COOKIE_LEN + TAG_LEN] {
    let mut sealed = [0; COOKIE_LEN + TAG_LEN];
    let (text, tag) = sealed.split_at_mut(COOKIE_LEN);
    text.copy_from_slice(cookie);
    let made = XChaCha20Poly1305::new(cookie_key.into())
        .encrypt_in_place_detached(nonce.into(), mac1, text)
        .expect("only a text of 256 GiB is too long to seal");
    tag.copy_from_slice(&made);
    sealed
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::wire::message::{Body, HandshakeMessage};

    const START: Time = Time::from_nanos(1);
    const OWNER: [u8; 32] = [8; 32];
    const MAC1: [u8; 16] = [6; 16];

    fn random() -> impl FnMut(&mut [u8]) {
        let mut next = 0u8;
        move |bytes| {
            next += 1;
            bytes.fill(next);
        }
    }

    fn source(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    /// The cookie in a reply that `secret` makes for `source`.
    fn obtain(secret: &mut CookieSecret, now: Time, source: SocketAddr) -> Cookie {
        let reply = secret.reply(now, (true, 77), source, &MAC1, &mac::cookie_key(&OWNER), &mut random());
        let parsed = HandshakeMessage::parse(&reply).unwrap();
        let Body::CookieReply {
            receiver: 77,
            nonce,
            sealed,
        } = parsed.body
        else {
            panic!("{parsed:?}")
        };
        assert!(parsed.native);
        assert!(
            Cookie::open(now, nonce, sealed, &[0; 16], &OWNER).is_none(),
            "bound to mac1"
        );
        assert!(
            Cookie::open(now, nonce, sealed, &MAC1, &[1; 32]).is_none(),
            "bound to its maker"
        );
        Cookie::open(now, nonce, sealed, &MAC1, &OWNER).unwrap()
    }

    fn verifies(secret: &CookieSecret, now: Time, source: SocketAddr, cookie: &[u8; 16]) -> bool {
        let mac2 = mac::mac(cookie, &[b"message"]);
        secret.verify(
            now,
            source,
            &Macs {
                before_mac1: b"",
                mac1: &MAC1,
                before_mac2: b"message",
                mac2: &mac2,
            },
        )
    }

    #[test]
    fn a_cookie_is_good_for_its_address_and_port_only() {
        let mut secret = CookieSecret::default();
        let (here, other_port) = (source("192.0.2.1:51820"), source("192.0.2.1:51821"));
        let cookie = obtain(&mut secret, START, here);
        let cookie = cookie.fresh(START).unwrap();
        assert!(verifies(&secret, START, here, cookie));
        assert!(
            verifies(&secret, START, source("[::ffff:192.0.2.1]:51820"), cookie),
            "the same address"
        );
        assert!(!verifies(&secret, START, other_port, cookie));
        assert!(!verifies(&secret, START, source("192.0.2.2:51820"), cookie));
        assert!(!verifies(&secret, START, here, &[0; 16]));
    }

    #[test]
    fn cookies_and_their_secret_age() {
        let mut secret = CookieSecret::default();
        let here = source("[2001:db8::1]:1");
        assert!(!verifies(&secret, START, here, &[0; 16]), "no secret, no cookie");
        let cookie = obtain(&mut secret, START, here);
        assert!(cookie.fresh(START + Duration::from_secs(114)).is_some());
        assert!(cookie.fresh(START + Duration::from_secs(115)).is_none());
        let value = *cookie.fresh(START).unwrap();
        assert!(verifies(&secret, START + Duration::from_secs(119), here, &value));
        assert!(!verifies(&secret, START + Duration::from_secs(120), here, &value));
        let kept = *obtain(&mut secret, START + Duration::from_secs(119), here)
            .fresh(START)
            .unwrap();
        assert_eq!(kept, value, "the secret stays for its time");
    }
}
