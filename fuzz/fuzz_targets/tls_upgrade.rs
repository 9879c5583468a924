#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| nbd_oracles::oracle::tls_upgrade(data));
