//! Conformance: tiny guests, one property each, run through the `Processor` trait and the
//! partition. Whatever processor stands behind the trait must pass them and leave the same trace.

mod costs;
mod generation;
mod guest;
mod hostile;
mod hypercalls;
mod interrupts;
mod power;
mod privileged;
mod processors;
mod program;
mod registers;
mod snapshots;
mod team;
mod time;

use guest::{Guest, Kind, Stop};
use program::{INPUT, Program};
use teuthis_hypervisor::{link::End, processor::Intercept, tlfs::Outcome};

#[test]
fn the_same_program_leaves_the_same_trace() {
    let run = || {
        let mut program = Program::new();
        program
            .count_interrupts(0xED)
            .enable_hypercalls()
            .cpuid(0, 0);
        program.wrmsr(0x4000_00B0, 0x1EDA); // periodic, auto-enable
        program.wrmsr(0x4000_00B1, 1000);
        for _ in 0..20 {
            program.rdmsr(0x4000_0020).halt();
            program.hypercall(0x5C, 0x4_4000);
        }
        let mut guest = Guest::on(Kind::Soft, program);
        guest.run();
        let found: [u64; 32] = guest.results();
        (guest.trace, found)
    };
    let (first, second) = (run(), run());
    assert!(first.0.len() > 60);
    assert_eq!(first, second);
}

/// What a program ran into and what came of it, without what differs in real time (when, and
/// timers' values) and what KVM answers itself (CPUID, HLT with interrupts enabled).
fn essence(guest: &Guest) -> Vec<(Intercept, Outcome)> {
    let trace = guest
        .trace
        .iter()
        .map(|&(_, intercept, outcome)| (intercept, outcome));
    trace
        .filter(|(intercept, _)| {
            let time = Intercept::MsrRead { msr: 0x4000_0020 };
            let halt = Intercept::Halt {
                interruptible: true,
            };
            !matches!(intercept, Intercept::Cpuid { .. }) && ![time, halt].contains(intercept)
        })
        .collect()
}

#[test]
fn the_chosen_processor_leaves_the_trace_of_the_software_processor() {
    let run = |kind: Kind| {
        let mut program = Program::new();
        program
            .count_interrupts(0xED)
            .enable_hypercalls()
            .enable_synic(0xF3)
            .cpuid(0x4000_0000, 0);
        for msr in (0x4000_0000..0x4000_0110).chain([0x8B, 0xC001_0015, 0xC001_1029]) {
            if ![0x4000_0001, 0x4000_0020, 0x4000_0022].contains(&msr) {
                program.rdmsr(msr);
            }
        }
        program.wrmsr(0x4000_0000, 0x8100_0000_0000_0001);
        program.wrmsr(0x4000_00B0, 0x1ED8); // one shot, auto-enable, direct
        program.wrmsr(0x4000_00B1, 1).halt();
        program.store(INPUT, 4).store(INPUT + 8, 1 | 3 << 32);
        program.hypercall(0x5C, INPUT).hypercall(0x1_005D, 0x2007);
        program.hypercall(0x77, 0);
        // Not the clock, which shows the time.
        for port in [0x3F8, 0x3FD, 0x20, 0xCF8, 0x602] {
            program.out8(port, 0).in8(port);
        }
        program.out8(0x600, 0x34);
        let mut guest = Guest::on(kind, program);
        guest.partition.set_channel_open(7, true);
        assert_eq!(guest.run(), Stop::End(End::PowerOff));
        assert_eq!(guest.interrupts(0xED), 1);
        guest
    };
    let (soft, chosen) = (run(Kind::Soft), run(Kind::chosen()));
    assert!(essence(&soft).len() > 250);
    assert_eq!(essence(&chosen), essence(&soft));
    assert_eq!(chosen.worker.posted, soft.worker.posted);
    assert_eq!(chosen.worker.signalled, [7]);
}
