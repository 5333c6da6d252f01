//! Hypercalls through the page and through the instruction.

use crate::{
    guest::{Guest, Stop, run},
    program::{HYPERCALL_PAGE, INPUT, Program, UD},
};
use teuthis_hypervisor::{flows::Flow, link::End};

const POST: u64 = 0x5C;
const SIGNAL: u64 = 0x1_005D;

#[test]
fn a_call_before_the_page_is_undefined() {
    let mut program = Program::new();
    program.hypercall_instruction(POST, INPUT);
    program
        .wrmsr(0x4000_0000, 1)
        .hypercall_instruction(POST, INPUT);
    let guest = run(program);
    assert_eq!(guest.results(), [UD, 0, UD]);
    assert_eq!(guest.count(Flow::HypercallUnknown).rejected, 2);
}

#[test]
fn a_message_is_posted() {
    let mut program = Program::new();
    program.enable_hypercalls();
    program.store(INPUT, 4).store(INPUT + 8, 1 | 5 << 32);
    program.store(INPUT + 16, u64::from_le_bytes(*b"hello..."));
    program.hypercall(POST, INPUT);
    let guest = run(program);
    assert_eq!(guest.results(), [0, 0, 0]);
    assert_eq!(guest.worker.posted, [(4, 1, b"hello".to_vec())]);
    assert_eq!(guest.read(HYPERCALL_PAGE), guest.hypercall_code());
}

#[test]
fn every_refusal_has_its_status() {
    let mut program = Program::new();
    program.enable_hypercalls();
    program.hypercall(0x2, 0).hypercall(0xFFFF, 0); // unknown
    program.hypercall(POST, INPUT + 4); // unaligned
    program.hypercall(POST, INPUT + 0xF08); // across a page
    program.hypercall(POST, 0xFFFF_F000); // no RAM
    program.hypercall(POST | 1 << 16, INPUT); // fast
    program.hypercall(POST, INPUT); // connection 0
    program.store(INPUT, 1).store(INPUT + 8, 1 | 241 << 32);
    program.hypercall(POST, INPUT); // too long
    program.hypercall(SIGNAL, 0x2001); // not open
    program.hypercall(SIGNAL & 0xFFFF, 0x2001); // slow
    let guest = run(program);
    let expected = [0, 0, 2, 2, 4, 4, 3, 3, 18, 5, 18, 3];
    assert_eq!(guest.results(), expected);
    assert!(guest.worker.posted.is_empty());
    assert_eq!(guest.count(Flow::HypercallPostMessage).rejected, 6);
    assert_eq!(guest.count(Flow::HypercallSignalEvent).rejected, 2);
}

#[test]
fn an_open_channel_can_be_signalled() {
    let mut program = Program::new();
    program.enable_hypercalls();
    program.hypercall(SIGNAL, 0x2007);
    program.hypercall(SIGNAL, 0x2008);
    program.hypercall(SIGNAL, 0x2007 | 1 << 32);
    let mut guest = Guest::new(program);
    guest.partition.set_channel_open(7, true);
    assert_eq!(guest.run(), Stop::End(End::Halted));
    assert_eq!(guest.results(), [0, 0, 0, 18, 5]);
    assert_eq!(guest.worker.signalled, [7]);
}
