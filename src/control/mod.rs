//! The control side of a running tunnel, and how to talk to it.
#![forbid(unsafe_code)]

pub mod api;
pub mod client;
