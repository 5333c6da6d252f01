//! The program in lockstep with a played worker, and alone with what that left.

use super::*;
use std::io::{Read, Write, pipe};
use teuthis_hypervisor::flows::values;

/// Waits until the worker has written something to 0x8000, sends it to the serial port, halts.
const ECHO: &[u8] = &[
    0x8A, 0x04, 0x25, 0x00, 0x80, 0x00, 0x00, // again: mov al, [0x8000]
    0x84, 0xC0, 0x74, 0xF5, // test al, al; jz again
    0x66, 0xBA, 0xF8, 0x03, 0xEE, // mov dx, 0x3F8; out dx, al
    0xFA, 0xF4, // cli; hlt
];
const PLACE: u64 = 0x8000;
const TURN: u16 = values::LINK_TURN as u16;
const WROTE: u16 = values::LINK_WROTE as u16;
const OVER: u16 = values::LINK_TURN_OVER as u16;
const CLOCK: (&str, &str) = ("clock", "deterministic:100");

/// A machine in lockstep, and its recording.
fn recorded(code: &[u8]) -> (Vm, impl Read) {
    let (recording, theirs) = pipe().unwrap();
    let (ram, start) = guest(code);
    let theirs = OwnedFd::from(theirs);
    let mut options = start.to_vec();
    options.push(("record-fd", inherited(&theirs)));
    options.push((CLOCK.0, CLOCK.1.into()));
    let vm = Vm::with(ram, &options);
    vm.send(16, 0, &[]);
    (vm, recording)
}

/// Waits for the worker's turn.
fn await_turn(vm: &Vm) {
    while vm.receive().0 != TURN {}
}

fn wrote(offset: u64, length: u64) -> [u8; 16] {
    let mut range = [0; 16];
    range[..8].copy_from_slice(&offset.to_le_bytes());
    range[8..].copy_from_slice(&length.to_le_bytes());
    range
}

/// What a machine leaves whose worker writes an A in its fourth turn.
fn recording() -> Vec<u8> {
    let (mut vm, mut recording) = recorded(ECHO);
    for _ in 0..3 {
        await_turn(&vm);
        vm.send(OVER, 0, &[]);
    }
    await_turn(&vm);
    let memory = GuestMemory::map(&vm.ram, MEMORY).unwrap();
    memory.write(PLACE, b'A').unwrap();
    vm.send(WROTE, 0, &wrote(PLACE, 1));
    vm.send(OVER, 0, &[]);
    assert_eq!(vm.reason(), values::LINK_END_HALTED);
    assert!(vm.wait().success());
    let mut entries = Vec::new();
    recording.read_to_end(&mut entries).unwrap();
    entries
}

/// Exit status, console and report of a replay.
fn replay(entries: &[u8], further: &[&str]) -> (i32, Vec<u8>, String) {
    let (ram, start) = guest(ECHO);
    let counters = file("counters", 1 << 16);
    let (theirs, mut feed) = pipe().unwrap();
    let (mut console, their_console) = pipe().unwrap();
    let (mut report, their_report) = pipe().unwrap();
    let theirs = [theirs.into(), their_console.into(), their_report.into()];
    let [recording, sink, lines]: [OwnedFd; 3] = theirs;
    let mut command = Command::new(env!("CARGO_BIN_EXE_teuthis-hypervisor"));
    let walls = jail::WALLS.map(|wall| wall.name).join(",");
    let options = [
        ("memory-size", MEMORY.to_string()),
        ("memory-fd", inherited(&ram)),
        ("counters-fd", inherited(&counters)),
        ("replay-fd", inherited(&recording)),
        ("console-fd", inherited(&sink)),
        ("report-fd", inherited(&lines)),
        ("allow-missing-walls", walls),
        (CLOCK.0, CLOCK.1.into()),
    ];
    for (option, value) in options.iter().chain(&start) {
        command.arg(format!("--{option}")).arg(value);
    }
    let mut child = command
        .args(further)
        .env_clear()
        .stdin(Stdio::null())
        .spawn()
        .unwrap();
    drop((recording, sink, lines));
    feed.write_all(entries).unwrap();
    drop(feed);
    let (mut text, mut said) = (Vec::new(), String::new());
    console.read_to_end(&mut text).unwrap();
    report.read_to_string(&mut said).unwrap();
    let status = child.wait().unwrap().code();
    note_refusals(&Counters::map(&counters).unwrap());
    (status.unwrap(), text, said)
}

fn at(entries: &[u8], kind: u8, number: usize) -> usize {
    let mut at = 0;
    let mut found = Vec::new();
    while at < entries.len() {
        if entries[at] == kind {
            found.push(at);
        }
        let length = entries[at + 1..at + 5].try_into().unwrap();
        at += 5 + u32::from_le_bytes(length) as usize;
    }
    found[number]
}

#[test]
fn a_recording_replays_and_says_where_it_parts() {
    let entries = recording();
    let (status, console, report) = replay(&entries, &[]);
    assert_eq!((status, &console[..]), (0, &b"A"[..]), "{report}");
    assert!(report.contains("the same to the end"), "{report}");
    assert!(report.contains("4 turns"), "{report}");

    let (status, console, report) = replay(&entries, &["--until", "1000"]);
    let until = values::REPLAY_REPORT_UNTIL as i32;
    assert_eq!((status, &console[..]), (until, &b""[..]));
    assert!(report.contains("rip 0x100"), "{report}");

    let (_, _, report) = replay(&entries, &["--trace", "1"]);
    assert!(report.contains("PortWrite { port: 3f8"), "{report}");
    assert!(
        report.contains("1 bytes into RAM at 0x8000: 41"),
        "{report}"
    );

    // Another byte from the worker, and another time at which it came.
    let memory = at(&entries, values::RECORDING_ENTRY_MEMORY as u8, 0);
    let mut changed = entries.clone();
    changed[memory + 5 + 8] = b'B';
    let (status, console, report) = replay(&changed, &[]);
    let parted = values::REPLAY_REPORT_PARTED as i32;
    assert_eq!((status, &console[..]), (parted, &b"B"[..]));
    assert!(report.contains("part before instruction"), "{report}");
    let mut later = entries.clone();
    let third = at(&entries, values::RECORDING_ENTRY_TURN as u8, 2);
    later[third + 5] ^= 1;
    let (status, _, report) = replay(&later, &[]);
    assert_eq!(status, parted);
    assert!(report.contains("(turn 2)"), "{report}");

    let (status, _, report) = replay(&entries[..memory], &[]);
    assert_eq!(status, values::REPLAY_REPORT_CUT as i32);
    assert!(report.contains("was cut"), "{report}");
    let mut strange = entries.clone();
    strange[memory] = 99;
    let (status, _, report) = replay(&strange, &[]);
    assert_eq!(status, values::REPLAY_REPORT_MALFORMED as i32);
    assert!(report.contains("unknown kind 99"), "{report}");
    let mut outside = entries.clone();
    outside[memory + 5 + 7] = 1;
    let (_, _, report) = replay(&outside, &[]);
    assert!(report.contains("outside of the guest's memory"), "{report}");
    let over = at(&entries, values::RECORDING_ENTRY_OVER as u8, 0);
    let (_, _, report) = replay(&entries[over..], &[]);
    assert!(report.contains("does not belong where it is"), "{report}");
}

#[test]
fn a_worker_that_lies_about_its_turn_ends_the_vm() {
    let outside = [wrote(MEMORY, 1), wrote(u64::MAX, 2), wrote(0, u64::MAX)];
    for range in outside {
        let (vm, _recording) = recorded(SPIN);
        await_turn(&vm);
        // Nothing behind it: who ends with messages unread resets the connection.
        vm.send(WROTE, 0, &range);
        assert_eq!(vm.reason(), values::LINK_END_WORKER_VIOLATION);
    }
    // A machine that is not recorded knows neither.
    for (kind, payload) in [(WROTE, &wrote(0, 1)[..]), (OVER, &[])] {
        let vm = Vm::started(SPIN);
        vm.send(kind, 0, payload);
        assert_eq!(vm.reason(), values::LINK_END_WORKER_VIOLATION);
    }
}

#[test]
fn a_recorded_machine_ends_with_its_worker_and_with_its_recording() {
    let (mut vm, _recording) = recorded(SPIN);
    await_turn(&vm);
    vm.send(17, 0, &[]);
    vm.send(OVER, 0, &[]);
    assert_eq!(vm.reason(), values::LINK_END_STOPPED);
    assert!(vm.wait().success());

    let (mut vm, recording) = recorded(SPIN);
    await_turn(&vm);
    drop(recording);
    vm.send(OVER, 0, &[]);
    assert_eq!(vm.reason(), values::LINK_END_STOPPED);
    assert!(vm.wait().success());
}
