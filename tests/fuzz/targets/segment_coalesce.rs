//! `cargo +nightly fuzz run --fuzz-dir tests/fuzz segment_coalesce`
#![no_main]

#[path = "../checks/segment_coalesce.rs"]
mod segment_coalesce;

libfuzzer_sys::fuzz_target!(|data: &[u8]| segment_coalesce::check(data));
