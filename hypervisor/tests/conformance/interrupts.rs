//! The SynIC's messages and events reach the guest as memory and as an interrupt.

use crate::{
    guest::{Guest, Stop},
    program::{EVENTS, MESSAGES, Program},
};
use teuthis_hypervisor::{flows::Flow, link::End};

const VECTOR: u8 = 0xF3;
const SLOT: u64 = MESSAGES + 0x200;

fn program(sint2: u64) -> Program {
    let mut program = Program::new();
    program.count_interrupts(VECTOR).enable_synic(sint2);
    program
}

/// Reports the slot (type, size and flags; payload) and empties it.
fn take_message(program: &mut Program) {
    program.load(SLOT).load(SLOT + 16).store(SLOT, 0);
}

#[test]
fn a_message_wakes_the_guest() {
    let mut program = program(VECTOR.into());
    program.halt();
    take_message(&mut program);
    let mut guest = Guest::new(program);
    assert_eq!(guest.run(), Stop::Asleep);
    guest.deliver(b"12345678");
    assert_eq!(guest.run(), Stop::End(End::Halted));
    let [.., header, payload] = guest.results::<7>();
    assert_eq!(header, 1 | 8 << 32);
    assert_eq!(payload.to_le_bytes(), *b"12345678");
    assert_eq!(guest.interrupts(VECTOR), 1);
}

#[test]
fn a_second_message_waits_for_eom() {
    let mut program = program(VECTOR.into());
    program.halt();
    take_message(&mut program);
    program.load(SLOT); // still empty
    program.wrmsr(0x4000_0084, 0);
    program.asm.sti().unwrap();
    program.asm.nop().unwrap();
    take_message(&mut program);
    let mut guest = Guest::new(program);
    guest.run();
    guest.deliver(b"first...");
    guest.deliver(b"second..");
    assert_eq!(guest.run(), Stop::End(End::Halted));
    let [.., first, one, empty, _, second, two] = guest.results::<11>();
    assert_eq!(first >> 40 & 1, 1, "message pending");
    assert_eq!(one.to_le_bytes(), *b"first...");
    assert_eq!(empty & 0xFFFF_FFFF, 0);
    assert_eq!(second >> 40 & 1, 0);
    assert_eq!(two.to_le_bytes(), *b"second..");
    assert_eq!(guest.interrupts(VECTOR), 2);
}

#[test]
fn an_event_sets_its_flag_and_interrupts_once() {
    let mut program = program(VECTOR.into());
    program.halt().load(EVENTS + 0x200);
    let mut guest = Guest::new(program);
    assert_eq!(guest.run(), Stop::Asleep);
    for _ in 0..3 {
        guest.signal(9);
    }
    assert_eq!(guest.run(), Stop::End(End::Halted));
    let [.., flags] = guest.results::<6>();
    assert_eq!(flags, 1 << 9);
    assert_eq!(guest.interrupts(VECTOR), 1);
}

#[test]
fn a_masked_source_gets_nothing_a_polling_one_no_interrupt() {
    let mut masked = Guest::new(program(1 << 16));
    masked.run();
    masked.deliver(b"masked");
    masked.signal(1);
    assert_eq!((masked.read(SLOT), masked.read(EVENTS + 0x200)), (0, 0));
    assert_eq!(masked.count(Flow::SynicEvent).rejected, 1);

    let mut program = program(1 << 18);
    program.halt();
    let mut polling = Guest::new(program);
    assert_eq!(polling.run(), Stop::Asleep);
    polling.deliver(b"polled");
    polling.signal(1);
    assert_eq!(polling.run(), Stop::Asleep);
    assert_eq!(polling.read(SLOT), 1 | 6 << 32);
    assert_eq!(polling.read(EVENTS + 0x200), 2);
}

#[test]
fn messages_beyond_the_queue_are_not_taken() {
    let mut guest = Guest::new(program(VECTOR.into()));
    guest.run();
    let mut taken = 0;
    while guest.partition.takes_messages() {
        guest.deliver(b"x");
        taken += 1;
    }
    assert_eq!(taken, 65, "one in the slot, 64 in the queue");
    guest.deliver(b"one too many");
    let count = guest.count(Flow::SynicMessage);
    assert_eq!((count.count, count.rejected), (65, 1));
}
