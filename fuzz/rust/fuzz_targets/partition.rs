#![no_main]

#[path = "../../../hypervisor/tests/fuzz/bytes.rs"]
mod bytes;
#[path = "../../../hypervisor/tests/fuzz/partition.rs"]
mod partition;

libfuzzer_sys::fuzz_target!(|data: &[u8]| partition::run(data));
