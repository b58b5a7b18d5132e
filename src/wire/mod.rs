//! Bytes and nothing else: every header that ringway reads or writes, as checked views over slices.
//!
//! One checked constructor per header decides whether the bytes are long enough; the getters after it are
//! infallible. Getters panic only on slices that did not come through that constructor.
#![forbid(unsafe_code)]

pub mod checksum;
pub mod icmp;
pub mod ip;
pub mod message;
pub mod tcp;
pub mod udp;
pub mod vnet;
