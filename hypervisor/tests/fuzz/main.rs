//! What `make fuzz` runs for hours, here for seconds: the same harnesses, on random bytes and on all
//! inputs that once broke something.

mod bytes;
mod code;
mod doorbells;
mod link;
mod partition;
mod record;
mod replay;
mod seeds;
mod whole;

use std::{fs, path::Path, thread};

/// Runs a harness on `count` inputs of random bytes and on its regressions, in a thread by whose
/// name the evidence knows it.
fn try_many(name: &'static str, harness: fn(&[u8]), count: u64) {
    let thread = thread::Builder::new().name(format!("fuzz::{name}"));
    let run = thread.spawn(move || try_in_this_thread(name, harness, count));
    if let Err(panic) = run.unwrap().join() {
        std::panic::resume_unwind(panic);
    }
}

fn try_in_this_thread(name: &str, harness: fn(&[u8]), count: u64) {
    let mut state = 0x9E37_79B9_7F4A_7C15_u64;
    let mut next = || {
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        state.wrapping_mul(0x2545_F491_4F6C_DD1D)
    };
    for _ in 0..count {
        let length = next() % 12_000;
        let input: Vec<u8> = (0..length).map(|_| (next() >> 40) as u8).collect();
        harness(&input);
    }
    let regressions = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../fuzz/regressions")
        .join(name);
    for entry in fs::read_dir(regressions).into_iter().flatten() {
        harness(&fs::read(entry.unwrap().path()).unwrap());
    }
}

#[test]
fn any_code_is_survived() {
    try_many("code", code::run, 300);
}

#[test]
fn any_sequence_of_intercepts_is_survived() {
    try_many("partition", partition::run, 200);
}

#[test]
fn any_packet_of_the_worker_is_decoded_or_refused() {
    try_many("link", link::run, 500);
}

#[test]
fn any_page_of_doorbells_is_taken() {
    try_many("doorbells", doorbells::run, 100);
}

#[test]
fn any_saved_machine_is_taken_or_refused() {
    try_many("record", record::run, 500);
}

#[test]
fn any_recording_is_played_or_refused() {
    try_many("replay", replay::run, 300);
}

#[test]
fn any_guest_and_any_worker_are_survived_together() {
    try_many("whole", whole::run, 100);
}
