//! Bytes that go into a document as hexadecimal digits, and wipe themselves: keys above all.
//!
//! Neither way makes a text of them in memory that nobody wipes: they are written digit by digit into whatever takes the
//! document, and read from the document itself.
#![forbid(unsafe_code)]

use std::fmt;

use serde::de::{Error, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use zeroize::Zeroizing;

/// `N` bytes.
#[derive(Clone, PartialEq, Eq)]
pub struct Hex<const N: usize>(pub Zeroizing<[u8; N]>);

impl<const N: usize> Hex<N> {
    /// A copy of these bytes.
    pub fn new(bytes: &[u8; N]) -> Hex<N> {
        Hex(Zeroizing::new(*bytes))
    }
}

impl<const N: usize> fmt::Debug for Hex<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Hex(..)")
    }
}

/// Shows the digits.
struct Digits<'a>(&'a [u8]);

impl fmt::Display for Digits<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl<const N: usize> Serialize for Hex<N> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&Digits(&self.0[..]))
    }
}

impl<'de, const N: usize> Deserialize<'de> for Hex<N> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Hex<N>, D::Error> {
        struct Reader<const N: usize>;

        impl<const N: usize> Visitor<'_> for Reader<N> {
            type Value = Hex<N>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{} hexadecimal digits", 2 * N)
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<Hex<N>, E> {
                // The text itself is in no error: it may be a key with one wrong digit.
                let wrong = || E::custom(format_args!("expected {} hexadecimal digits", 2 * N));
                let digits = text.as_bytes().as_chunks::<2>();
                if digits.0.len() != N || !digits.1.is_empty() {
                    return Err(wrong());
                }
                let mut bytes = Zeroizing::new([0; N]);
                for (byte, digits) in bytes.iter_mut().zip(digits.0) {
                    let [high, low] = digits.map(|digit| char::from(digit).to_digit(16));
                    let (Some(high), Some(low)) = (high, low) else {
                        return Err(wrong());
                    };
                    *byte = (high << 4 | low) as u8;
                }
                Ok(Hex(bytes))
            }
        }

        deserializer.deserialize_str(Reader)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digits_are_read_as_they_are_written_and_nothing_else_is() {
        let bytes = Hex::new(&[0x00, 0x9f, 0xff]);
        let json = serde_json::to_string(&bytes).unwrap();
        assert_eq!(json, "\"009fff\"");
        assert_eq!(serde_json::from_str::<Hex<3>>(&json).unwrap(), bytes);
        for wrong in [
            "\"009ff\"",
            "\"009fff0\"",
            "\"009fff00\"",
            "\"009fgf\"",
            "\"é9fff\"",
            "[0,159,255]",
            "7",
        ] {
            let error = serde_json::from_str::<Hex<3>>(wrong).unwrap_err().to_string();
            assert!(error.contains("6 hexadecimal digits"), "{error}");
            assert!(!error.contains("9ff"), "{error}");
        }
    }
}
