#![no_main]

#[path = "../../../hypervisor/tests/fuzz/bytes.rs"]
mod bytes;
#[path = "../../../hypervisor/tests/fuzz/link.rs"]
mod link;

libfuzzer_sys::fuzz_target!(|data: &[u8]| link::run(data));
