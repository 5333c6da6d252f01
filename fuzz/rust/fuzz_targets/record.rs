#![no_main]

#[path = "../../../hypervisor/tests/fuzz/bytes.rs"]
mod bytes;
#[path = "../../../hypervisor/tests/fuzz/record.rs"]
mod record;

libfuzzer_sys::fuzz_target!(|data: &[u8]| record::run(data));
