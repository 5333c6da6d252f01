//! Conformance: tiny guests, one property each, run through the `Processor` trait and the
//! partition. Whatever processor stands behind the trait must pass them and leave the same trace.

mod guest;
mod hostile;
mod hypercalls;
mod interrupts;
mod power;
mod program;
mod registers;
mod time;

use guest::Guest;
use program::Program;

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
        let mut guest = Guest::new(program);
        guest.run();
        let found: [u64; 32] = guest.results();
        (guest.trace, found)
    };
    let (first, second) = (run(), run());
    assert!(first.0.len() > 60);
    assert_eq!(first, second);
}
