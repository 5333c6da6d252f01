//! CPUID leaves and MSRs, as the guest's instructions see them.

use crate::{
    guest::{Kind, run},
    program::{GP, Program},
};
use teuthis_hypervisor::flows::Flow;

#[test]
fn cpuid_shows_the_partition() {
    let mut program = Program::new();
    program.cpuid(1, 0);
    program.cpuid(0x4000_0000, 0);
    program.cpuid(0x4000_0003, 0);
    let guest = run(program);
    let [_, _, ecx, _, max, b, c, d, low, high, _, features] = guest.results();
    assert_eq!(ecx >> 31 & 1, 1, "hypervisor present");
    assert_eq!(max, 0x4000_0005);
    let name = [b, c, d].map(|word| (word as u32).to_le_bytes()).concat();
    assert_eq!(name, b"Microsoft Hv");
    assert_eq!((low, high, features), (0xA6E, 0x30, 0x8_0500));
}

#[test]
fn unknown_leaves_read_zero_and_are_counted() {
    let mut program = Program::new();
    for leaf in [0x1234, 0x4000_0006, 0x4000_0100, 0x8FFF_FFFF] {
        program.cpuid(leaf, 0);
    }
    let guest = run(program);
    assert_eq!(guest.results(), [0; 16]);
    if guest.kind() == Kind::Soft {
        assert_eq!(guest.count(Flow::InterceptCpuid).rejected, 4);
    }
}

#[test]
fn identity_and_hypercall_page() {
    let mut program = Program::new();
    program.rdmsr(0x4000_0000); // 0: 0
    program.wrmsr(0x4000_0001, 0x4_0001); // 1: without identity…
    program.rdmsr(0x4000_0001); // 2: …it stays disabled
    program.enable_hypercalls(); // 3, 4
    program.rdmsr(0x4000_0001); // 5
    program.wrmsr(0x4000_0001, 0xFFFF_F001); // 6: outside RAM
    program.wrmsr(0x4000_0001, 0x4_0003); // 7: lock
    program.wrmsr(0x4000_0001, 0); // 8: locked
    program.rdmsr(0x4000_0002); // 9: VP index
    program.wrmsr(0x4000_0002, 1); // 10: read-only
    program.wrmsr(0x4000_0000, 0); // 11: withdraws the page
    program.rdmsr(0x4000_0001); // 12
    program.load(0x4_0000); // 13
    let guest = run(program);
    let expected = [0, 0, 0x4_0000, 0, 0, 0x4_0001, GP, 0, GP, 0, GP, 0, 0];
    assert_eq!(guest.results(), expected);
    assert_eq!(guest.read(0x4_0000), guest.hypercall_code());
    assert_eq!(guest.count(Flow::MsrPartition).rejected, 3);
}

#[test]
fn frequencies_and_read_only_time() {
    let mut program = Program::new();
    program.rdmsr(0x4000_0022).rdmsr(0x4000_0023);
    program.wrmsr(0x4000_0020, 0).wrmsr(0x4000_0022, 1);
    program.wrmsr(0x4000_0021, 0xFFFF_F001);
    let guest = run(program);
    let apic = 1_000_000_000;
    assert_eq!(guest.results(), [guest.hertz(), apic, GP, GP, GP]);
}

#[test]
fn synic_registers() {
    let mut program = Program::new();
    program.rdmsr(0x4000_0080).rdmsr(0x4000_0081);
    program.rdmsr(0x4000_0090).rdmsr(0x4000_009F);
    program.wrmsr(0x4000_0081, 1);
    program.wrmsr(0x4000_0092, 15); // a vector of the exceptions
    program.wrmsr(0x4000_0092, 0x2_00F3); // auto-EOI
    program.wrmsr(0x4000_0083, 0x4000_0001); // outside RAM
    program.wrmsr(0x4000_0092, 0xF3);
    program.rdmsr(0x4000_0092);
    program.rdmsr(0x4000_0085);
    let guest = run(program);
    let expected = [0, 1, 0x1_0000, 0x1_0000, GP, GP, GP, GP, 0, 0xF3, GP];
    assert_eq!(guest.results(), expected);
}

/// It would part from the reference time, which the guest computes from it.
#[test]
fn the_time_stamp_counter_cannot_be_set() {
    let mut program = Program::new();
    program.rdmsr(0x10).wrmsr(0x10, 0).wrmsr(0x10, 1 << 60);
    program.rdmsr(0x10);
    let guest = run(program);
    let [before, first, second, after] = guest.results();
    assert_eq!([first, second], [GP, GP]);
    assert!(before < after && after < 1 << 60);
    assert_eq!(guest.count(Flow::MsrUnknown).rejected, 2);
}

#[test]
fn what_is_not_offered_faults() {
    let registers = [
        0x4000_0003, // reset
        0x4000_0010, // VP run time
        0x4000_0070, // EOI
        0x4000_00B2, // timer 1
        0x4000_00F0, // guest idle
        0x4000_0106, // re-enlightenment
        0x4000_0118, // TSC invariant
        0x4000_01FF,
        0x8B,
        0xC001_0114,
        0xFFFF_FFFF,
    ];
    let mut program = Program::new();
    for msr in registers {
        program.rdmsr(msr).wrmsr(msr, 0);
    }
    let guest = run(program);
    assert_eq!(guest.results(), [GP; 22]);
    assert_eq!(guest.count(Flow::MsrUnknown).rejected, 22);
    assert_eq!(guest.count(Flow::MsrUnknown).count, 0);
}
