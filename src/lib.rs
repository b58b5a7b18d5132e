//! ringway: an io_uring packet forwarder for Linux, an encrypted TUN <-> UDP tunnel and VPN gateway.
//!
//! Dependencies point one way:
//!
//! ```text
//! wire, crypto <- proto <- path <- worker -> sys      control, gateway assemble; main knows gateway, config, cli; tunnel is for
//!                                                     other programs
//! ```
//!
//! `wire`, `crypto`, `proto` and `path` do no I/O and read no clock: bytes, the time and randomness come in as
//! arguments, so every packet's journey runs in a test without a kernel.

pub mod cli;
pub mod config;
pub mod control;
pub mod crypto;
pub mod dns;
pub mod firewall;
pub mod gateway;
pub mod link;
pub mod path;
pub mod proto;
pub mod sandbox;
pub mod stats;
pub mod sys;
pub mod tunnel;
pub mod uapi;
pub mod wire;
pub mod worker;
