#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| portmapping_fuzz_checks::cni(data));
