//! libFuzzer's bytes, for all that reads what apps want signed or opened.

#![no_main]

#[path = "../check/mod.rs"]
mod check;

libfuzzer_sys::fuzz_target!(|input: &[u8]| check::check(input));
