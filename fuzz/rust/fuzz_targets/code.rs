#![no_main]

#[path = "../../../hypervisor/tests/fuzz/bytes.rs"]
mod bytes;
#[path = "../../../hypervisor/tests/fuzz/code.rs"]
mod code;

libfuzzer_sys::fuzz_target!(|data: &[u8]| code::run(data));
