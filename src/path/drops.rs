//! Every way a packet can die: one variant per reason, which is also its counter and its name in logs and metrics.

use crate::proto::{OpenError, Rejected};

macro_rules! drop_reasons {
    ($($(#[doc = $doc:literal])+ $variant:ident = $name:literal,)+) => {
        /// Why a packet was dropped.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[repr(u8)]
        pub enum Drop { $($(#[doc = $doc])+ $variant,)+ }

        impl Drop {
            /// Every reason, in declaration order (a reason's discriminant is its position).
            pub const ALL: &'static [Drop] = &[$(Drop::$variant,)+];

            /// The reason's stable name in logs, `status` and metrics.
            pub const fn name(self) -> &'static str {
                match self { $(Drop::$variant => $name,)+ }
            }

            /// One sentence for people.
            pub const fn meaning(self) -> &'static str {
                match self { $(Drop::$variant => concat!($($doc),+),)+ }
            }
        }
    };
}

drop_reasons! {
    // Out: TUN -> UDP.
    /// The TUN delivered something that is not a whole IPv4 or IPv6 packet.
    Malformed = "malformed",
    /// No peer's allowed IPs contain the destination.
    NoRoute = "no_route",
    /// The peer has no known endpoint to send to.
    NoEndpoint = "no_endpoint",
    /// Too many packets wait for handshakes, of this peer or of all; the oldest one of this peer, or of whoever had most, went.
    PendingFull = "pending_full",
    /// A packet waited for a handshake that never came about.
    HandshakeFailed = "handshake_failed",
    /// The tunnel's own datagram came back into the tunnel: the route to the peer's endpoint leads there.
    RoutingLoop = "routing_loop",
    /// The session may seal no more: its time or its record count is used up.
    SessionExpired = "session_expired",
    /// The packet is larger than the path to the peer carries, and did not leave in fragments either.
    TooBig = "too_big",
    /// A TUN offload that ringway did not ask for, or one with impossible fields.
    BadOffload = "bad_offload",
    /// No free send buffer: the network is slower than the TUN.
    NoSendSlot = "no_send_slot",
    /// The kernel's send buffer was full (EAGAIN or ENOBUFS).
    SendBufferFull = "send_buffer_full",
    /// The kernel refused to send for any other reason (unreachable, not permitted).
    SendFailed = "send_failed",

    // In: UDP -> TUN.
    /// The kernel dropped it at the UDP socket: the receive buffer was full, or the checksum wrong. Datagrams that came as one run, as
    /// over a veth or merged by a card, it counts as one.
    SocketFull = "socket_full",
    /// Too short, of an unknown type, or with reserved bits set.
    BadMessage = "bad_message",
    /// The receiver index belongs to no session.
    UnknownIndex = "unknown_index",
    /// The counter was seen before.
    Replayed = "replayed",
    /// The counter is older than the replay window.
    TooOld = "too_old",
    /// The authentication tag is wrong.
    Forged = "forged",
    /// The session may open no more: its time or its record count is used up.
    ExpiredSession = "expired_session",
    /// The authentic plaintext is not a whole IP packet or known control message.
    BadInner = "bad_inner",
    /// The inner source address is not in the peer's allowed IPs.
    BadSource = "bad_source",
    /// Congestion was met on the way, and the packet has no bits to say so (RFC 6040).
    CongestionUnmarkable = "congestion_unmarkable",
    /// The kernel refused the packet at the TUN.
    TunWriteFailed = "tun_write_failed",
    /// The mailbox of the worker that owns the session was full.
    MailboxFull = "mailbox_full",

    // Handshakes.
    /// The control thread's mailbox was full of handshakes.
    HandshakeQueueFull = "handshake_queue_full",
    /// mac1 is wrong: the sender does not know our public key.
    BadMac1 = "bad_mac1",
    /// Under load, and mac2 is missing: a cookie reply went out instead, unless too many did.
    CookieDemanded = "cookie_demanded",
    /// Under load, and mac2 is wrong.
    BadMac2 = "bad_mac2",
    /// Too many handshakes from this source.
    RateLimited = "rate_limited",
    /// An initiation from a static key that is no peer of ours.
    UnknownPeer = "unknown_peer",
    /// A handshake message that does not authenticate or does not parse.
    BadHandshake = "bad_handshake",
    /// An initiation whose timestamp is not newer than the last one of its peer.
    ReplayedHandshake = "replayed_handshake",
    /// A handshake response or cookie reply that nobody waits for.
    UnexpectedHandshake = "unexpected_handshake",
}

impl From<OpenError> for Drop {
    fn from(error: OpenError) -> Drop {
        match error {
            OpenError::Replayed => Drop::Replayed,
            OpenError::TooOld => Drop::TooOld,
            OpenError::Forged => Drop::Forged,
            OpenError::Expired => Drop::ExpiredSession,
            OpenError::WrongSuite => Drop::BadMessage,
        }
    }
}

impl From<Rejected> for Drop {
    fn from(rejected: Rejected) -> Drop {
        match rejected {
            Rejected::BadMessage => Drop::BadMessage,
            Rejected::BadMac1 => Drop::BadMac1,
            Rejected::CookieDemanded => Drop::CookieDemanded,
            Rejected::BadMac2 => Drop::BadMac2,
            Rejected::RateLimited => Drop::RateLimited,
            Rejected::UnknownPeer => Drop::UnknownPeer,
            Rejected::BadHandshake => Drop::BadHandshake,
            Rejected::Replayed => Drop::ReplayedHandshake,
            Rejected::Unexpected => Drop::UnexpectedHandshake,
        }
    }
}

impl Drop {
    /// How many reasons there are.
    pub const COUNT: usize = Drop::ALL.len();
}

#[cfg(test)]
mod tests {
    use super::Drop;

    #[test]
    fn a_reason_is_its_own_position_and_its_name_is_unique() {
        for (position, reason) in Drop::ALL.iter().enumerate() {
            assert_eq!(*reason as usize, position);
            assert_eq!(
                Drop::ALL.iter().filter(|other| other.name() == reason.name()).count(),
                1
            );
        }
    }
}
