#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| sessionferry_fuzz::value(data));
