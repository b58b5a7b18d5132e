//! The constants of the protocol, named after the WireGuard paper (section 6.1) where it has them.
#![forbid(unsafe_code)]

use std::time::Duration;

/// A key that sealed this many records asks for its successor.
pub const REKEY_AFTER_MESSAGES: u64 = 1 << 60;
/// A key seals and opens no record with this counter or a higher one: 2^64 less the replay window's 2^13 and one.
pub const REJECT_AFTER_MESSAGES: u64 = u64::MAX - (1 << 13);
/// [`REKEY_AFTER_MESSAGES`] of one lane of the native suite.
pub const NATIVE_REKEY_AFTER_MESSAGES: u64 = 1 << 26;
/// [`REJECT_AFTER_MESSAGES`] of one lane of the native suite. AES-GCM's confidentiality bound for records of up to
/// 64 KiB (2^12 blocks) leaves an advantage of about 2^-48 here (RFC 8446, section 5.5, reasons alike).
pub const NATIVE_REJECT_AFTER_MESSAGES: u64 = 1 << 28;

/// The initiator of a session of this age starts a new handshake when it sends.
pub const REKEY_AFTER_TIME: Duration = Duration::from_secs(120);
/// A session of this age neither seals nor opens anything.
pub const REJECT_AFTER_TIME: Duration = Duration::from_secs(180);
/// How long a handshake is retried before it is given up; every further wish to send starts the time anew.
pub const REKEY_ATTEMPT_TIME: Duration = Duration::from_secs(90);
/// How long an initiation waits for its response before the next one, and how far initiations to one peer are apart.
pub const REKEY_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a received data message may go unanswered before a keepalive answers it.
pub const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);
/// The longest jitter added to [`REKEY_TIMEOUT`], so that two initiators fall out of step.
pub const REKEY_TIMEOUT_JITTER_MAX: Duration = Duration::from_millis(333);
/// The initiator of a session of this age starts a new handshake when it receives: what remains is just enough to
/// notice silence and to shake hands.
pub const REKEY_AFTER_TIME_RECEIVING: Duration =
    Duration::from_secs(REJECT_AFTER_TIME.as_secs() - KEEPALIVE_TIMEOUT.as_secs() - REKEY_TIMEOUT.as_secs());
/// Data sent and nothing heard for this long (and a jitter): the peer is lost, and a new handshake looks for it.
pub const DEAD_PEER_TIMEOUT: Duration = Duration::from_secs(KEEPALIVE_TIMEOUT.as_secs() + REKEY_TIMEOUT.as_secs());
/// So long after the last new session everything secret that is left is erased.
pub const ZERO_KEYS_AFTER: Duration = Duration::from_secs(3 * REJECT_AFTER_TIME.as_secs());

/// How long a cookie secret makes cookies, and how long a cookie is used.
pub const COOKIE_SECRET_MAX_AGE: Duration = Duration::from_secs(120);
/// A cookie is used for this much less, so that it does not expire on its way.
pub const COOKIE_SECRET_LATENCY: Duration = Duration::from_secs(5);

/// With `suite = auto`: how long the native initiation is alone before a WireGuard one goes out too.
pub const AUTO_FALLBACK: Duration = Duration::from_millis(250);

/// One peer's initiations are consumed at most this often; bounds the work that one static key can cause.
pub const INITIATIONS_PER_SECOND: u32 = 50;

/// Bits of the replay window's bitmap.
pub const REPLAY_WINDOW_BITS: u64 = 8192;

const _: () = {
    assert!(REKEY_AFTER_MESSAGES < REJECT_AFTER_MESSAGES);
    assert!(NATIVE_REKEY_AFTER_MESSAGES < NATIVE_REJECT_AFTER_MESSAGES);
    assert!(
        REJECT_AFTER_MESSAGES == u64::MAX - REPLAY_WINDOW_BITS,
        "counters near the end cannot wrap the window"
    );
    assert!(REKEY_AFTER_TIME.as_secs() < REKEY_AFTER_TIME_RECEIVING.as_secs());
    assert!(REKEY_AFTER_TIME_RECEIVING.as_secs() < REJECT_AFTER_TIME.as_secs());
    assert!(REKEY_TIMEOUT_JITTER_MAX.as_nanos() < REKEY_TIMEOUT.as_nanos());
    assert!(AUTO_FALLBACK.as_nanos() > 1_000_000_000 / INITIATIONS_PER_SECOND as u128);
};
