//! The sans-IO protocol.
#![forbid(unsafe_code)]

pub mod endpoint;
