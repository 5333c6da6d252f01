//! Two processors in one machine. Only on KVM: the software processor is one.

use crate::{
    guest::Kind,
    program::{EVENTS, INPUT, MESSAGES, Program, SECOND},
    team::{Team, interrupts, results},
};
use iced_x86::code_asm::{ecx, rax, rdx, xmm3};

const POWER_OFF: u64 = 1;
const GUEST_CRASH: u64 = 4;
const HALTED: u64 = 5;
const PAUSE: u16 = 21;
const RESUME: u16 = 22;
const SAVE: u16 = 23;
const DELIVER: u16 = 18;
/// Where the two tell each other how far they are.
const FIRST_SAYS: u64 = INPUT;
const SECOND_SAYS: u64 = INPUT + 8;

fn is_on_kvm() -> bool {
    Kind::chosen() == Kind::Kvm
}

fn power_off(program: &mut Program) {
    program.out8(0x600, 0x34);
}

#[test]
fn a_second_processor_has_what_is_its_own_and_shares_the_rest() {
    if !is_on_kvm() {
        return;
    }
    let mut first = Program::new();
    first.enable_hypercalls().wrmsr(0x4000_0073, 0xABC0_0000);
    first.wrmsr(0x4000_0100, 77).start_second();
    first.wait_for(SECOND_SAYS, 1);
    first
        .rdmsr(0x4000_0002)
        .rdmsr(0x4000_0073)
        .rdmsr(0x4000_0092);
    power_off(&mut first);
    let mut second = Program::second();
    second.rdmsr(0x4000_0002).rdmsr(0x802).cpuid(1, 0);
    second.rdmsr(0x4000_0000).rdmsr(0x4000_0100);
    second.rdmsr(0x4000_0073).wrmsr(0x4000_0073, 0xDEF0_0000);
    second
        .wrmsr(0x4000_0092, 0xF3)
        .hypercall(0x77, 0)
        .rdmsr(0x1B);
    second.store(SECOND_SAYS, 1);
    let (reason, _, memory) = Team::boot(first, second).end();
    assert_eq!(reason, POWER_OFF);
    let [_, _, _, _, _, _, index, assist, sint] = results(&memory, 0);
    assert_eq!((index, assist, sint), (0, 0xABC0_0000, 1 << 16));
    let [
        index,
        apic,
        _,
        words,
        _,
        _,
        os,
        crash,
        assist,
        _,
        _,
        call,
        base,
    ] = results(&memory, SECOND);
    assert_eq!((index, apic, words >> 24 & 0xFF), (1, 1, 1));
    assert_eq!((os, crash, assist), (0x8100_0000_0000_0000, 77, 0));
    assert_eq!(call, 2, "an unknown call");
    assert_eq!(base, 0xFEE0_0C00, "x2APIC, not the first processor");
}

#[test]
fn processors_interrupt_each_other() {
    if !is_on_kvm() {
        return;
    }
    let mut first = Program::new();
    first.count_interrupts(0x41).start_second().halt();
    first.wait_for(SECOND_SAYS, 1).wrmsr(0x830, 1 << 32 | 0x42);
    first.wait_for(SECOND_SAYS, 2);
    power_off(&mut first);
    let mut second = Program::second();
    second.count_interrupts(0x42).wrmsr(0x830, 0x41);
    second.store(SECOND_SAYS, 1).halt().store(SECOND_SAYS, 2);
    let (reason, _, memory) = Team::boot(first, second).end();
    assert_eq!(reason, POWER_OFF);
    assert_eq!(interrupts(&memory, 0, 0x41), 1);
    assert_eq!(interrupts(&memory, SECOND, 0x42), 1);
}

#[test]
fn messages_and_events_come_to_the_processor_they_are_for() {
    if !is_on_kvm() {
        return;
    }
    let mut first = Program::new();
    first
        .count_interrupts(0xF3)
        .enable_synic(0xF3)
        .start_second();
    first.wait_for(SECOND_SAYS, 2);
    power_off(&mut first);
    let mut second = Program::second();
    second.count_interrupts(0xF4).enable_synic(0xF4);
    second.store(SECOND_SAYS, 1).halt();
    let slot = SECOND + MESSAGES + 0x200;
    second.load(slot).load(slot + 16).store(slot, 0);
    second.wrmsr(0x4000_0084, 0);
    second.wait_for(FIRST_SAYS, 1).load(SECOND + EVENTS + 0x200);
    second.store(SECOND_SAYS, 2);
    let team = Team::boot(first, second);
    assert_eq!(team.wait_for_change(SECOND_SAYS, 0), 1);
    team.send(DELIVER, 2 | 1 << 8 | 1 << 32, b"to you..");
    team.ring(9, 1);
    team.ring(10, 2); // there is none
    team.wait_for_change(SECOND + EVENTS + 0x200, 0);
    team.write(FIRST_SAYS, 1);
    let (reason, _, memory) = team.end();
    assert_eq!(reason, POWER_OFF);
    let [.., header, payload, _, events] = results::<9>(&memory, SECOND);
    assert_eq!(header, 1 | 8 << 32);
    assert_eq!(payload.to_le_bytes(), *b"to you..");
    assert_eq!(events, 1 << 9);
    let came = interrupts(&memory, SECOND, 0xF4);
    assert!((1..=2).contains(&came), "{came}");
    assert_eq!(interrupts(&memory, 0, 0xF3), 0);
    for page in [MESSAGES, EVENTS] {
        assert_eq!(memory.read::<u64>(page + 0x200), Some(0));
    }
}

#[test]
fn each_has_its_timer_and_time_is_the_same() {
    if !is_on_kvm() {
        return;
    }
    let program = |program: &mut Program, own, other| {
        program.count_interrupts(0xED).wrmsr(0x4000_00B0, 0x1EDA);
        program.wrmsr(0x4000_00B1, 200_000); // 20 ms
        for round in 1..=5 {
            program.halt();
            program
                .store(own, 2 * round)
                .wait_for(other, 2 * round as u32);
            program.rdtsc().rdmsr(0x4000_0020);
            program
                .store(own, 2 * round + 1)
                .wait_for(other, 2 * round as u32 + 1);
        }
    };
    let (mut first, mut second) = (Program::new(), Program::second());
    first.start_second();
    program(&mut first, FIRST_SAYS, SECOND_SAYS);
    first.wait_for(SECOND_SAYS, 999);
    power_off(&mut first);
    program(&mut second, SECOND_SAYS, FIRST_SAYS);
    second.store(SECOND_SAYS, 999);
    let (reason, _, memory) = Team::boot(first, second).end();
    assert_eq!(reason, POWER_OFF);
    assert!(interrupts(&memory, 0, 0xED) >= 5);
    assert!(interrupts(&memory, SECOND, 0xED) >= 5);
    let one: [u64; 15] = results(&memory, 0);
    let two: [u64; 13] = results(&memory, SECOND);
    for round in 0..4 {
        // Neither is in round n + 1 before both have read their clocks in round n.
        for clock in 0..2 {
            let at = |round: usize| (one[5 + 2 * round + clock], two[3 + 2 * round + clock]);
            let ((a, b), (c, d)) = (at(round), at(round + 1));
            assert!(a.max(b) <= c.min(d), "{one:?} {two:?}");
        }
    }
}

#[test]
fn the_second_ends_the_machine_too() {
    if !is_on_kvm() {
        return;
    }
    let mut first = Program::new();
    first.start_second().count(FIRST_SAYS);
    let mut second = Program::second();
    for index in 0..5 {
        second.wrmsr(0x4000_0100 + index, 11 * u64::from(index));
    }
    second.wrmsr(0x4000_0105, 1 << 63);
    let (reason, payload, _) = Team::boot(first, second).end();
    assert_eq!(reason, GUEST_CRASH);
    assert_eq!(payload[32..40], 44u64.to_le_bytes());

    let mut first = Program::new();
    first.start_second().halt();
    let mut second = Program::second();
    power_off(&mut second);
    assert_eq!(Team::boot(first, second).end().0, POWER_OFF);
}

#[test]
fn a_machine_has_halted_when_all_its_processors_have() {
    if !is_on_kvm() {
        return;
    }
    // One that was never started is no hope.
    assert_eq!(
        Team::boot(Program::new(), Program::second()).end().0,
        HALTED
    );
    // One that runs is, for longer than it takes to look.
    let mut first = Program::new();
    first.start_second();
    let mut second = Program::second();
    second.count_interrupts(0xED).wrmsr(0x4000_00B0, 0x1ED8);
    second.rdmsr(0x4000_0020);
    second.asm.add(rax, 20_000_000).unwrap(); // 2 s
    second.asm.mov(rdx, rax).unwrap();
    second.asm.shr(rdx, 32).unwrap();
    second.asm.mov(ecx, 0x4000_00B1u32).unwrap();
    second.asm.wrmsr().unwrap();
    second.halt();
    power_off(&mut second);
    assert_eq!(Team::boot(first, second).end().0, POWER_OFF);
    // Both have.
    let mut first = Program::new();
    first.start_second();
    assert_eq!(Team::boot(first, Program::second()).end().0, HALTED);
}

#[test]
fn both_stand_still_are_saved_and_go_on() {
    if !is_on_kvm() {
        return;
    }
    let (mut first, mut second) = (Program::new(), Program::second());
    first.start_second().count(FIRST_SAYS);
    second.asm.mov(rax, 7u64).unwrap();
    second.asm.movq(xmm3, rax).unwrap();
    second.count(SECOND_SAYS);
    let team = Team::boot(first, second);
    let counted = |team: &Team| {
        [FIRST_SAYS, SECOND_SAYS].map(|says| team.wait_for_change(says, team.read(says)))
    };
    counted(&team);
    team.send(PAUSE, 0, &[]);
    assert_eq!(team.receive(), (5, 0, vec![]));
    let stopped = [FIRST_SAYS, SECOND_SAYS].map(|says| team.read(says));
    let memory = team.copy();
    team.send(SAVE, 0, &[]);
    let mut state = vec![];
    loop {
        let (kind, left, piece) = team.receive();
        assert_eq!(kind, 6, "{}", String::from_utf8_lossy(&piece));
        state.extend(piece);
        if left == 0 {
            break;
        }
    }
    assert_eq!(
        [FIRST_SAYS, SECOND_SAYS].map(|says| team.read(says)),
        stopped
    );
    team.send(RESUME, 0, &[]);
    counted(&team);
    team.send(17, 0, &[]);
    team.end();

    let restored = Team::restore(&state, &memory);
    assert_eq!(restored.receive(), (5, 0, vec![]));
    assert_eq!(
        [FIRST_SAYS, SECOND_SAYS].map(|says| restored.read(says)),
        stopped
    );
    restored.send(RESUME, 0, &[]);
    let later = counted(&restored);
    assert!(later[0] > stopped[0] && later[1] > stopped[1]);
    restored.send(17, 0, &[]);
    restored.end();
}
