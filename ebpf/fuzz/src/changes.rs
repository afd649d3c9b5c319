//! `sluice_packet::fuzz::changes` under libFuzzer.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| sluice_packet::fuzz::changes(bytes));
