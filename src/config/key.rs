//! The three kinds of 32-byte keys and their text form: 44 characters of padded base64, as `wg` reads and writes them.
//!
//! Secret bytes are wiped when dropped, are compared in constant time, and never appear in `Debug` output.

use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use zeroize::Zeroizing;

/// Bytes of every key.
pub const KEY_LEN: usize = 32;
/// Characters of every key in base64, padding included.
pub const KEY_TEXT_LEN: usize = 44;

/// A peer's Curve25519 public key.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PublicKey(pub [u8; KEY_LEN]);

/// Our Curve25519 private key.
#[derive(Clone)]
pub struct PrivateKey(Zeroizing<[u8; KEY_LEN]>);

/// The symmetric key that a pair of peers may mix into their handshakes.
#[derive(Clone)]
pub struct PresharedKey(Zeroizing<[u8; KEY_LEN]>);

/// Why a text is not a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// The text has the wrong number of characters.
    #[error("a key is {KEY_TEXT_LEN} characters of base64, this is {0}")]
    Length(usize),
    /// Right length, but not strict base64 of 32 bytes.
    #[error("a key is {KEY_TEXT_LEN} characters of base64 (A-Z a-z 0-9 + /) that end in one \"=\"")]
    Alphabet,
    /// All bytes are zero, which is how `wg` spells "no key".
    #[error("this key is all zeros, which means \"no key\"")]
    Zero,
}

impl PrivateKey {
    /// A key of these bytes; Curve25519 clamps them when they are used.
    pub fn from_bytes(bytes: Zeroizing<[u8; KEY_LEN]>) -> PrivateKey {
        PrivateKey(bytes)
    }

    /// The bytes. Keep copies of them in something that wipes itself.
    pub fn as_bytes(&self) -> &[u8; KEY_LEN] {
        &self.0
    }

    /// The key in the form that the handshake takes.
    pub fn to_secret(&self) -> x25519_dalek::StaticSecret {
        x25519_dalek::StaticSecret::from(*self.0)
    }

    /// The public key that belongs to this private key.
    pub fn public_key(&self) -> PublicKey {
        PublicKey(x25519_dalek::PublicKey::from(&self.to_secret()).to_bytes())
    }

    /// As `parse`, but takes even the key of zeros, as `wg pubkey` does.
    pub fn from_base64_even_zero(text: &str) -> Result<PrivateKey, KeyError> {
        decode(text).map(PrivateKey)
    }

    /// Makes a key out of 32 random bytes as `wg genkey` does: clamped, so that the text is the key in use
    /// (RFC 7748, section 5).
    pub fn generate(random: impl FnOnce(&mut [u8])) -> PrivateKey {
        let mut bytes = Zeroizing::new([0; KEY_LEN]);
        random(&mut bytes[..]);
        bytes[0] &= 0b1111_1000;
        bytes[31] = (bytes[31] & 0b0111_1111) | 0b0100_0000;
        PrivateKey(bytes)
    }

    /// The text form; secret.
    pub fn to_base64(&self) -> Zeroizing<String> {
        encode(&self.0)
    }
}

impl PresharedKey {
    /// A key of these bytes.
    pub fn from_bytes(bytes: Zeroizing<[u8; KEY_LEN]>) -> PresharedKey {
        PresharedKey(bytes)
    }

    /// The bytes. Keep copies of them in something that wipes itself.
    pub fn as_bytes(&self) -> &[u8; KEY_LEN] {
        &self.0
    }

    /// A copy of the bytes that wipes itself.
    pub fn to_bytes(&self) -> Zeroizing<[u8; KEY_LEN]> {
        self.0.clone()
    }

    /// Makes a key out of 32 random bytes, as `wg genpsk` does.
    pub fn generate(random: impl FnOnce(&mut [u8])) -> PresharedKey {
        let mut bytes = Zeroizing::new([0; KEY_LEN]);
        random(&mut bytes[..]);
        PresharedKey(bytes)
    }

    /// The text form; secret.
    pub fn to_base64(&self) -> Zeroizing<String> {
        encode(&self.0)
    }
}

impl FromStr for PublicKey {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<PublicKey, KeyError> {
        decode_nonzero(text).map(|bytes| PublicKey(*bytes))
    }
}

impl FromStr for PrivateKey {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<PrivateKey, KeyError> {
        decode_nonzero(text).map(PrivateKey)
    }
}

impl FromStr for PresharedKey {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<PresharedKey, KeyError> {
        decode_nonzero(text).map(PresharedKey)
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&STANDARD.encode(self.0))
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicKey({self})")
    }
}

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PrivateKey(..)")
    }
}

impl fmt::Debug for PresharedKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PresharedKey(..)")
    }
}

impl PartialEq for PrivateKey {
    fn eq(&self, other: &PrivateKey) -> bool {
        same(&self.0, &other.0)
    }
}

impl PartialEq for PresharedKey {
    fn eq(&self, other: &PresharedKey) -> bool {
        same(&self.0, &other.0)
    }
}

impl Eq for PrivateKey {}
impl Eq for PresharedKey {}

impl Serialize for PublicKey {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for PublicKey {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<PublicKey, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

fn encode(bytes: &[u8; KEY_LEN]) -> Zeroizing<String> {
    Zeroizing::new(STANDARD.encode(bytes))
}

/// Strict: canonical padding, no white space, no bits set beyond the last byte.
fn decode(text: &str) -> Result<Zeroizing<[u8; KEY_LEN]>, KeyError> {
    if text.len() != KEY_TEXT_LEN {
        return Err(KeyError::Length(text.chars().count()));
    }
    // One byte more than a key: 44 characters with a single "=" are 32 bytes, without padding they would be 33.
    let mut bytes = Zeroizing::new([0; KEY_LEN + 1]);
    let len = STANDARD
        .decode_slice(text, &mut bytes[..])
        .map_err(|_| KeyError::Alphabet)?;
    let key: &[u8; KEY_LEN] = bytes[..len]
        .first_chunk()
        .filter(|_| len == KEY_LEN)
        .ok_or(KeyError::Alphabet)?;
    Ok(Zeroizing::new(*key))
}

fn decode_nonzero(text: &str) -> Result<Zeroizing<[u8; KEY_LEN]>, KeyError> {
    let key = decode(text)?;
    if same(&key, &[0; KEY_LEN]) {
        Err(KeyError::Zero)
    } else {
        Ok(key)
    }
}

/// Compares every byte whatever the earlier ones were, so that the time taken says nothing about a secret.
fn same(a: &[u8; KEY_LEN], b: &[u8; KEY_LEN]) -> bool {
    a.iter().zip(b).fold(0, |differing, (a, b)| differing | (a ^ b)) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    // Made with `wg genkey | tee /dev/stderr | wg pubkey`.
    const PRIVATE: &str = "cEN0raABhctV+PdHYvWsSx+vwxsx10yu75a7WH3e+m0=";
    const PUBLIC: &str = "9CpHjHOQvfmaXyBtCusPakSONhE9vHCE9+BIqrGtTxc=";

    #[test]
    fn public_key_of_a_known_private_key() {
        let private: PrivateKey = PRIVATE.parse().unwrap();
        assert_eq!(private.public_key().to_string(), PUBLIC);
        assert_eq!(private.to_base64().as_str(), PRIVATE);
    }

    #[test]
    fn generated_private_keys_are_clamped_and_preshared_keys_are_not() {
        let private = PrivateKey::generate(|bytes| bytes.fill(0xff));
        assert_eq!(private.as_bytes()[0], 0xf8);
        assert_eq!(private.as_bytes()[31], 0x7f);
        let preshared = PresharedKey::generate(|bytes| bytes.fill(0xff));
        assert_eq!(preshared.as_bytes(), &[0xff; 32]);
    }

    #[test]
    fn base64_is_strict() {
        let cases = [
            ("", KeyError::Length(0)),
            (&PRIVATE[..43], KeyError::Length(43)),
            (&format!("{PRIVATE}\n"), KeyError::Length(45)),
            // Bits beyond the last byte: "0" ends in 00, "1" does not.
            (&PRIVATE.replace("m0=", "m1="), KeyError::Alphabet),
            // Base64 for URLs, missing padding, too much padding, white space within.
            (&PRIVATE.replace('+', "-"), KeyError::Alphabet),
            (&PRIVATE.replace('=', "A"), KeyError::Alphabet),
            (&PRIVATE.replace("0=", "=="), KeyError::Alphabet),
            (&PRIVATE.replace('+', " "), KeyError::Alphabet),
            ("AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=", KeyError::Zero),
        ];
        for (text, expected) in cases {
            assert_eq!(text.parse::<PrivateKey>().unwrap_err(), expected, "{text:?}");
            assert_eq!(text.parse::<PublicKey>().unwrap_err(), expected, "{text:?}");
        }
    }

    #[test]
    fn secrets_do_not_show_in_debug_output() {
        let private: PrivateKey = PRIVATE.parse().unwrap();
        let preshared: PresharedKey = PRIVATE.parse().unwrap();
        assert_eq!(format!("{private:?} {preshared:?}"), "PrivateKey(..) PresharedKey(..)");
    }

    #[test]
    fn public_keys_are_base64_in_json() {
        let key: PublicKey = PUBLIC.parse().unwrap();
        let json = serde_json::to_string(&key).unwrap();
        assert_eq!(json, format!("\"{PUBLIC}\""));
        assert_eq!(serde_json::from_str::<PublicKey>(&json).unwrap(), key);
    }
}
