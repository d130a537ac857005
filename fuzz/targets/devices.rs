//! Devices, their transport and the bus, driven by a hostile guest, next to a hostile file server.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| sealock_fuzz::run(data));
