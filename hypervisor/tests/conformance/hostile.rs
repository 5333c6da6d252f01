//! A guest that tries everything: each access is answered, refused or counted, nothing panics, and
//! the machine still works afterwards.

use crate::{
    guest::{Guest, Stop},
    program::Program,
};
use iced_x86::code_asm::registers::*;
use teuthis_hypervisor::{flows::Flow, link::End};

#[test]
fn a_guest_that_writes_noise_everywhere_harms_only_itself() {
    let mut program = Program::new();
    program.enable_hypercalls();
    // Every register of the partition but the crash control, with noise from the counter.
    for msr in (0x4000_0000..0x4000_0200).filter(|msr| ![0x4000_0000, 0x4000_0105].contains(msr)) {
        program.asm.mov(r15d, 0x3_0000).unwrap(); // all results go to the same place
        program
            .rdmsr(msr)
            .wrmsr(msr, u64::from(msr).wrapping_mul(0x9E37_79B9_7F4A_7C15));
    }
    for code in 0..300 {
        program.asm.mov(r15d, 0x3_0000).unwrap();
        program.hypercall_instruction(code | (code & 1) << 16, code << 8);
    }
    for port in (0..0x1000).filter(|port| !(0x600..0x603).contains(port)) {
        program.asm.mov(edx, port as u32).unwrap();
        program.asm.in_(eax, dx).unwrap();
        program.asm.out(dx, eax).unwrap();
        program.asm.out(dx, al).unwrap();
    }
    program.asm.mov(r15d, 0x3_0000).unwrap();
    program.rdmsr(0x4000_0002).cpuid(0x4000_0000, 0);
    let mut guest = Guest::new(program);
    assert_eq!(guest.run(), Stop::End(End::Halted));
    assert_eq!(guest.results::<2>(), [0, 0x4000_0005], "it still works");
    for flow in [
        Flow::MsrUnknown,
        Flow::MsrSynic,
        Flow::HypercallUnknown,
        Flow::PortUnknown,
    ] {
        assert!(guest.count(flow).rejected > 0, "{flow:?}");
    }
}
