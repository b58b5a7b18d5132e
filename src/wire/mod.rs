//! Bytes and nothing else: every header that ringway reads or writes, as checked views over slices.
//!
//! One checked constructor per header decides whether the bytes are long enough; the getters after it are
//! infallible. Getters panic only on slices that did not come through that constructor.
#![forbid(unsafe_code)]

pub mod checksum;
pub mod control;
pub mod icmp;
pub mod ip;
pub mod message;
pub mod tcp;
pub mod udp;
pub mod vnet;

/// The big-endian word at `at`.
#[inline]
pub(crate) fn get_u16(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

/// Writes a big-endian word at `at`.
#[inline]
pub(crate) fn put_u16(bytes: &mut [u8], at: usize, value: u16) {
    bytes[at..at + 2].copy_from_slice(&value.to_be_bytes());
}
