//! What a [`Device`](super::Device) wants done, and why it refused a datagram.
#![forbid(unsafe_code)]

use super::endpoint::{Endpoint, PeerId, SessionId};
use super::session::{OpenHalf, SealHalf};
use super::suite::Suite;

/// Something for the caller to do. The order matters: drain them in it after every call that can make some.
#[derive(Debug)]
pub enum Action {
    /// Send a handshake message or a cookie reply.
    Transmit {
        /// Where to, and from which address if known.
        to: Endpoint,
        /// The peer that it is for; `None` for cookie replies, whose cause is not authenticated.
        peer: Option<PeerId>,
        /// The whole message.
        datagram: Vec<u8>,
    },
    /// Hand new keys to the workers.
    Install {
        /// Whose.
        peer: PeerId,
        /// Which handshake's.
        session: SessionId,
        /// Of which suite.
        suite: Suite,
        /// Native: one per local lane, in the order of lanes. WireGuard: exactly one, to be cloned.
        seals: Vec<SealHalf>,
        /// Native: one per lane of the peer, in the order of lanes. WireGuard: exactly one.
        opens: Vec<OpenHalf>,
        /// Seal with it at once: this end initiated it. Otherwise only after [`Action::Promote`].
        sending: bool,
    },
    /// Seal with this session, which was installed earlier: the initiator has confirmed it.
    Promote {
        /// Whose.
        peer: PeerId,
        /// Which.
        session: SessionId,
    },
    /// Drop every half of this session, everywhere. Keys are wiped when the last one goes.
    Retire {
        /// Whose.
        peer: PeerId,
        /// Which.
        session: SessionId,
    },
    /// Seal and send an empty plaintext; needless where packets that waited for the session were just sent on it.
    SendKeepalive {
        /// To whom.
        peer: PeerId,
    },
    /// Send to this endpoint from here on.
    Endpoint {
        /// Whose.
        peer: PeerId,
        /// Where.
        endpoint: Endpoint,
    },
    /// Nobody answered the latest initiation within REKEY_TIMEOUT, and another one is due: what is known of where the
    /// peer is may be old. See [`Device::set_candidates`](super::Device::set_candidates).
    Unanswered {
        /// By whom.
        peer: PeerId,
    },
    /// No handshake came about in REKEY_ATTEMPT_TIME, or there is no endpoint to try: drop the packets that wait.
    HandshakeGivenUp {
        /// With whom.
        peer: PeerId,
    },
    /// Both ends hold the session's keys and know it of each other.
    HandshakeDone {
        /// With whom.
        peer: PeerId,
        /// In which suite.
        suite: Suite,
        /// Whether this end began it.
        initiator: bool,
        /// Lanes that the peer seals on; 1 in the WireGuard suite.
        remote_lanes: u8,
    },
}

/// Why a handshake datagram was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Rejected {
    /// No handshake message: unknown type, wrong size, or reserved bits set.
    #[error("not a handshake message")]
    BadMessage,
    /// mac1 is wrong: the sender does not know our public key.
    #[error("mac1 is wrong")]
    BadMac1,
    /// Under load, and without mac2; a cookie reply was sent.
    #[error("a cookie was demanded")]
    CookieDemanded,
    /// Under load, and mac2 is wrong or out of date; a cookie reply was sent.
    #[error("mac2 is wrong")]
    BadMac2,
    /// Too many handshakes from this source, or from this peer.
    #[error("too many handshakes")]
    RateLimited,
    /// An initiation from a static key that is no peer of ours.
    #[error("an initiation from an unknown key")]
    UnknownPeer,
    /// The message does not authenticate, or announces what cannot be.
    #[error("the handshake does not authenticate")]
    BadHandshake,
    /// The initiation's timestamp is not newer than its peer's last one.
    #[error("an old initiation")]
    Replayed,
    /// A response or cookie reply that nobody waits for, or an initiation in a suite that the peer may not use (now).
    #[error("nobody waits for this message")]
    Unexpected,
}
