//! What each way out of the guest costs, in nanoseconds: a benchmark, run by `make bench-kvm`.

use crate::{
    guest::{Guest, Stop},
    program::{HYPERCALL_PAGE, Program},
};
use iced_x86::{IcedError, code_asm::*};
use std::time::{Duration, Instant};
use teuthis_hypervisor::link::End;

const TIMER: u8 = 0xEC;
const SYNTHETIC: u8 = 0xED;
const CHANNEL: u16 = 7;
/// How long a measurement takes, about.
const ENOUGH: Duration = Duration::from_millis(20);
/// Behind the guest's RAM.
const HOLE: u64 = 0x80_0000;

type Emit = fn(&mut CodeAssembler) -> Result<(), IcedError>;

/// What is done over and over.
const WAYS: [(&str, Emit); 12] = [
    ("nothing", |asm| asm.nop()),
    ("cpuid", |asm| {
        asm.mov(eax, 0x4000_0000u32)?;
        asm.cpuid()
    }),
    ("msr-own", |asm| {
        asm.mov(ecx, 0xC000_0080u32)?;
        asm.rdmsr()
    }),
    ("msr-read", |asm| {
        asm.mov(ecx, 0x4000_0002)?;
        asm.rdmsr()
    }),
    ("msr-write", |asm| write_msr(asm, 0x4000_0092, 1 << 16)),
    ("port-read", |asm| {
        asm.mov(edx, 0x3FD)?;
        asm.in_(al, dx)
    }),
    ("port-write", |asm| {
        asm.mov(edx, 0x3F9)?;
        asm.xor(eax, eax)?;
        asm.out(dx, al)
    }),
    ("hypercall", |asm| call(asm, 0x77, 0)),
    ("signal", |asm| {
        call(asm, 0x1_005D, 0x2000 + u64::from(CHANNEL))
    }),
    ("hole", |asm| {
        asm.mov(rsi, HOLE)?;
        asm.mov(eax, dword_ptr(rsi))
    }),
    ("halt-local-timer", |asm| {
        write_msr(asm, 0x838, 1)?;
        halt(asm)
    }),
    ("halt-synthetic-timer", |asm| {
        write_msr(asm, 0x4000_00B1, 1)?;
        halt(asm)
    }),
];

fn write_msr(asm: &mut CodeAssembler, msr: u32, value: u32) -> Result<(), IcedError> {
    asm.mov(ecx, msr)?;
    asm.mov(eax, value)?;
    asm.xor(edx, edx)?;
    asm.wrmsr()
}

fn call(asm: &mut CodeAssembler, control: u64, input: u64) -> Result<(), IcedError> {
    asm.mov(rcx, control)?;
    asm.mov(rdx, input)?;
    asm.xor(r8d, r8d)?;
    asm.mov(rax, HYPERCALL_PAGE)?;
    asm.call(rax)
}

/// Until an interrupt that was asked for with interrupts disabled.
fn halt(asm: &mut CodeAssembler) -> Result<(), IcedError> {
    asm.sti()?;
    asm.hlt()?;
    asm.cli()
}

/// How long a guest takes that does it `rounds` times, from its making to its end.
fn time(emit: Emit, rounds: u32) -> Duration {
    let mut program = Program::new();
    program.count_interrupts(TIMER).count_interrupts(SYNTHETIC);
    program.enable_hypercalls();
    // A one-shot timer of the local APIC, undivided; a synthetic one that is enabled when it is set.
    program.wrmsr(0x832, TIMER.into()).wrmsr(0x83E, 0xB);
    program.wrmsr(0x4000_00B0, 0x1008 | u64::from(SYNTHETIC) << 4);
    program.asm.mov(r13d, rounds).unwrap();
    let mut again = program.asm.create_label();
    program.asm.set_label(&mut again).unwrap();
    emit(&mut program.asm).unwrap();
    program.asm.dec(r13d).unwrap();
    program.asm.jnz(again).unwrap();
    program.out8(0x600, 0x34);
    let mut guest = Guest::new(program);
    guest.partition.set_channel_open(CHANNEL, true);
    let start = Instant::now();
    let stop = loop {
        if let Some(stop) = guest.step() {
            break stop;
        }
    };
    assert_eq!(stop, Stop::End(End::PowerOff));
    start.elapsed()
}

#[test]
#[ignore = "a benchmark: `make bench-kvm`"]
fn what_each_way_out_costs() {
    for (name, emit) in WAYS {
        let hundred = time(emit, 100).as_micros().max(1);
        let rounds = (100 * ENOUGH.as_micros() / hundred).clamp(100, 20_000) as u32;
        // Of each length the fastest of three; what they have in common is taken out.
        let best = |rounds| (0..3).map(|_| time(emit, rounds)).min().unwrap_or_default();
        let (short, long) = (best(rounds), best(3 * rounds));
        let cost = long.saturating_sub(short).as_nanos() as f64 / f64::from(2 * rounds);
        println!("cost {name} {cost:.0}");
    }
}
