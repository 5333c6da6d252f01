#![no_main]

#[path = "../../../hypervisor/tests/fuzz/bytes.rs"]
#[allow(dead_code)]
mod bytes;
#[path = "../../../hypervisor/tests/fuzz/doorbells.rs"]
mod doorbells;

libfuzzer_sys::fuzz_target!(|data: &[u8]| doorbells::run(data));
