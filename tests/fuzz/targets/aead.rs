//! `cargo +nightly fuzz run --fuzz-dir tests/fuzz aead`
#![no_main]

#[path = "../checks/aead.rs"]
mod aead;

libfuzzer_sys::fuzz_target!(|data: &[u8]| aead::check(data));
