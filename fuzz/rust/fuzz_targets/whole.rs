#![no_main]

#[path = "../../../hypervisor/tests/fuzz/bytes.rs"]
mod bytes;
#[path = "../../../hypervisor/tests/fuzz/whole.rs"]
mod whole;

libfuzzer_sys::fuzz_target!(|data: &[u8]| whole::run(data));
