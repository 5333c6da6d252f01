//! Reference time and the synthetic timer.

use crate::{
    guest::{Guest, Kind, Stop, run},
    program::{GP, Program, TSC_PAGE},
};
use iced_x86::code_asm::registers::*;
use teuthis_hypervisor::{flows::Flow, link::End};

const CONFIG: u32 = 0x4000_00B0;
const COUNT: u32 = 0x4000_00B1;
const REFERENCE: u32 = 0x4000_0020;
/// Auto-enable, direct mode, vector 0xED.
const DIRECT: u64 = 0x1ED8;
const PERIODIC: u64 = 2;

#[test]
fn the_tsc_page_agrees_with_the_counter() {
    let mut program = Program::new();
    program.wrmsr(0x4000_0021, TSC_PAGE | 1);
    for _ in 0..3 {
        // The counter twice, with the time-stamp counter between.
        program.rdmsr(REFERENCE);
        program.asm.rdtsc().unwrap();
        program.asm.shl(rdx, 32).unwrap();
        program.asm.or(rax, rdx).unwrap();
        program.report().rdmsr(REFERENCE);
    }
    program
        .load(TSC_PAGE)
        .load(TSC_PAGE + 8)
        .load(TSC_PAGE + 16);
    let guest = run(program);
    let [_, samples @ .., sequence, scale, offset] = guest.results::<13>();
    assert_eq!((sequence, offset), (1, 0));
    let by_page = |tsc: u64| ((u128::from(tsc) * u128::from(scale)) >> 64) as u64;
    for sample in samples.chunks(3) {
        let time = by_page(sample[1]);
        assert!(sample[0] <= time && time <= sample[2], "{sample:?} {time}");
    }
}

#[test]
fn a_one_shot_timer_fires_once_and_on_time() {
    let mut program = Program::new();
    program.count_interrupts(0xED).wrmsr(CONFIG, DIRECT);
    let kind = Kind::chosen();
    program.wrmsr(COUNT, kind.time(5000)).rdmsr(CONFIG).halt();
    program.rdmsr(REFERENCE).rdmsr(CONFIG).halt();
    let mut guest = Guest::new(program);
    assert_eq!(guest.run(), Stop::Asleep);
    let [_, _, _, armed, time, fired] = guest.results();
    assert_eq!((armed, fired), (DIRECT | 1, DIRECT));
    let expected = kind.time(5000);
    assert!(kind.is_on_time(time, expected, 10), "woke at {time}");
    assert_eq!(guest.interrupts(0xED), 1);
}

#[test]
fn a_timer_in_the_past_fires_at_once() {
    let mut program = Program::new();
    program.count_interrupts(0xED).wrmsr(CONFIG, DIRECT);
    program.wrmsr(COUNT, 1).halt();
    assert_eq!(run(program).interrupts(0xED), 1);
}

#[test]
fn a_running_guest_is_interrupted_too() {
    let mut program = Program::new();
    program.count_interrupts(0xED).wrmsr(CONFIG, DIRECT);
    let kind = Kind::chosen();
    program.wrmsr(COUNT, kind.time(2000));
    program.asm.mov(rbx, 0x3_8000u64 + 8 * 0xED).unwrap();
    program.asm.sti().unwrap();
    let mut again = program.asm.create_label();
    program.asm.set_label(&mut again).unwrap();
    let counter = iced_x86::code_asm::qword_ptr(rbx);
    program.asm.cmp(counter, 0).unwrap();
    program.asm.je(again).unwrap();
    program.asm.cli().unwrap();
    program.rdmsr(REFERENCE);
    let guest = run(program);
    let [.., time] = guest.results::<4>();
    let expected = kind.time(2000);
    assert!(kind.is_on_time(time, expected, 10), "interrupted at {time}");
}

#[test]
fn a_periodic_timer_keeps_its_beat() {
    let mut program = Program::new();
    program
        .count_interrupts(0xED)
        .wrmsr(CONFIG, DIRECT | PERIODIC);
    let kind = Kind::chosen();
    program.wrmsr(COUNT, kind.time(1000));
    for _ in 0..4 {
        program.halt().rdmsr(REFERENCE);
    }
    program.wrmsr(COUNT, 0).halt();
    let mut guest = Guest::new(program);
    assert_eq!(guest.run(), Stop::Asleep, "stopped by a count of 0");
    let [_, _, _, times @ ..] = guest.results::<7>();
    for pair in times.windows(2) {
        let beat = pair[1] - pair[0];
        assert!(
            kind == Kind::Kvm || (990..1010).contains(&beat),
            "{times:?}"
        );
    }
    assert_eq!(guest.interrupts(0xED), 4);
}

#[test]
fn a_long_fill_does_not_hold_up_the_timer() {
    let mut program = Program::new();
    program.count_interrupts(0xED).wrmsr(CONFIG, DIRECT);
    program.wrmsr(COUNT, 1000);
    program.asm.mov(rdi, 0x20_0000u64).unwrap();
    program.asm.mov(ecx, 0x18_0000).unwrap();
    program.asm.xor(eax, eax).unwrap();
    program.asm.sti().unwrap();
    program.asm.rep().stosb().unwrap();
    program.asm.cli().unwrap();
    let guest = run(program);
    assert_eq!(guest.interrupts(0xED), 1, "it came within the instruction");
}

#[test]
fn modes_that_are_not_offered_fault() {
    let mut program = Program::new();
    program.wrmsr(CONFIG, 0x2_0009); // messages
    program.wrmsr(CONFIG, 0x1_1009 & !0x1_0000); // vector 0
    program.wrmsr(CONFIG, DIRECT | 1 << 40); // reserved
    let guest = run(program);
    assert_eq!(guest.results(), [GP; 3]);
    assert_eq!(guest.count(Flow::MsrStimer).rejected, 3);
}

#[test]
fn the_local_apic_timer_wakes_a_halted_guest() {
    let mut program = Program::new();
    program.count_interrupts(0x40);
    program
        .wrmsr(0x83E, 0xB)
        .wrmsr(0x832, 0x40)
        .wrmsr(0x838, 1_000_000);
    program.halt().rdmsr(REFERENCE);
    let mut guest = Guest::new(program);
    assert_eq!(guest.run(), Stop::End(End::Halted));
    let [.., time] = guest.results::<5>();
    assert!(guest.kind().is_on_time(time, 10_000, 20), "woke at {time}");
    assert_eq!(guest.interrupts(0x40), 1);
}
