//! `cargo +nightly fuzz run --fuzz-dir tests/fuzz wire`
#![no_main]

#[path = "../checks/wire.rs"]
mod wire;

libfuzzer_sys::fuzz_target!(|data: &[u8]| wire::check(data));
