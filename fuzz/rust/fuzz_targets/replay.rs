#![no_main]

#[path = "../../../hypervisor/tests/fuzz/bytes.rs"]
mod bytes;
#[path = "../../../hypervisor/tests/fuzz/replay.rs"]
mod replay;

libfuzzer_sys::fuzz_target!(|data: &[u8]| replay::run(data));
