//! `cargo +nightly fuzz run --fuzz-dir tests/fuzz peer`
#![no_main]

#[path = "../checks/peer.rs"]
mod peer;

libfuzzer_sys::fuzz_target!(|data: &[u8]| peer::check(data));
