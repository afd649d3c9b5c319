//! `sluice_packet::fuzz::packets` under libFuzzer.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| sluice_packet::fuzz::packets(bytes));
