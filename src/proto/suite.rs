//! The two suites: what a handshake and its sessions are made of.
#![forbid(unsafe_code)]

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::limits::{
    NATIVE_REJECT_AFTER_MESSAGES, NATIVE_REKEY_AFTER_MESSAGES, REJECT_AFTER_MESSAGES, REKEY_AFTER_MESSAGES,
};
use crate::crypto::Algorithm;
use crate::wire::message::{NATIVE_DATA, WG_DATA};

/// What a session speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Suite {
    /// AES-256-GCM, lanes, partial checksums, control messages: between two ringways.
    Native,
    /// WireGuard to the letter.
    WireGuard,
}

impl Suite {
    /// Both suites.
    pub const ALL: [Suite; 2] = [Suite::Native, Suite::WireGuard];

    /// The suite's stable name in configs, logs and metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Suite::Native => "native",
            Suite::WireGuard => "wireguard",
        }
    }

    /// The suite of handshake messages whose type has or lacks [`NATIVE_BIT`](crate::wire::message::NATIVE_BIT).
    pub(super) const fn from_native(native: bool) -> Suite {
        match native {
            true => Suite::Native,
            false => Suite::WireGuard,
        }
    }

    pub(super) const fn is_native(self) -> bool {
        matches!(self, Suite::Native)
    }

    /// The type byte of data messages.
    pub(super) const fn data_kind(self) -> u8 {
        match self {
            Suite::Native => NATIVE_DATA,
            Suite::WireGuard => WG_DATA,
        }
    }

    pub(super) const fn algorithm(self) -> Algorithm {
        match self {
            Suite::Native => Algorithm::Aes256Gcm,
            Suite::WireGuard => Algorithm::ChaCha20Poly1305,
        }
    }

    /// The nonce of record number `counter`: 4 zero bytes and the counter, whose byte order is the cipher's in Noise
    /// (specification rev 34, section 12.3 and 12.4).
    #[inline]
    pub(super) fn nonce(self, counter: u64) -> [u8; 12] {
        let mut nonce = [0; 12];
        nonce[4..].copy_from_slice(&match self {
            Suite::Native => counter.to_be_bytes(),
            Suite::WireGuard => counter.to_le_bytes(),
        });
        nonce
    }

    /// The record count of one key after which a new handshake should begin.
    pub(super) const fn rekey_after_messages(self) -> u64 {
        match self {
            Suite::Native => NATIVE_REKEY_AFTER_MESSAGES,
            Suite::WireGuard => REKEY_AFTER_MESSAGES,
        }
    }

    /// The record count of one key that may not be exceeded.
    pub(super) const fn reject_after_messages(self) -> u64 {
        match self {
            Suite::Native => NATIVE_REJECT_AFTER_MESSAGES,
            Suite::WireGuard => REJECT_AFTER_MESSAGES,
        }
    }
}

impl fmt::Display for Suite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// Which suites a peer may use: the `suite` key of its configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SuiteChoice {
    /// Asks natively, and [`AUTO_FALLBACK`](super::limits::AUTO_FALLBACK) later also in WireGuard's way; remembers
    /// what worked. Answers either.
    #[default]
    Auto,
    /// Only the native suite, asking and answering.
    Native,
    /// Only WireGuard, asking and answering.
    WireGuard,
}

impl SuiteChoice {
    /// Every choice.
    pub const ALL: [SuiteChoice; 3] = [SuiteChoice::Auto, SuiteChoice::Native, SuiteChoice::WireGuard];

    /// The choice's stable name in configs.
    pub const fn name(self) -> &'static str {
        match self {
            SuiteChoice::Auto => "auto",
            SuiteChoice::Native => "native",
            SuiteChoice::WireGuard => "wireguard",
        }
    }

    /// Whether a handshake in `suite` is allowed.
    pub const fn allows(self, suite: Suite) -> bool {
        matches!(
            (self, suite),
            (SuiteChoice::Auto, _) | (SuiteChoice::Native, Suite::Native) | (SuiteChoice::WireGuard, Suite::WireGuard)
        )
    }
}

impl fmt::Display for SuiteChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for SuiteChoice {
    type Err = UnknownSuite;

    fn from_str(name: &str) -> Result<SuiteChoice, UnknownSuite> {
        SuiteChoice::ALL
            .into_iter()
            .find(|choice| choice.name() == name)
            .ok_or(UnknownSuite)
    }
}

/// The text names no [`SuiteChoice`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("expected one of: auto, native, wireguard")]
pub struct UnknownSuite;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_choice_is_spelt_as_it_is_read() {
        for choice in SuiteChoice::ALL {
            assert_eq!(choice.to_string().parse(), Ok(choice));
        }
        assert_eq!("Native".parse::<SuiteChoice>(), Err(UnknownSuite));
    }

    #[test]
    fn auto_allows_both_suites_and_the_others_allow_their_own() {
        let allowed = SuiteChoice::ALL.map(|choice| Suite::ALL.map(|suite| choice.allows(suite)));
        assert_eq!(allowed, [[true, true], [true, false], [false, true]]);
    }

    #[test]
    fn nonces_differ_in_byte_order() {
        assert_eq!(Suite::Native.nonce(1), [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
        assert_eq!(Suite::WireGuard.nonce(1), [0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0]);
    }
}
