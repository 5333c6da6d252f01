//! How a virtual machine ends, and what else the legacy ports do.

use crate::{
    guest::{Guest, Kind, Stop},
    program::{INPUT, Program},
};
use iced_x86::code_asm::{ptr, registers::*};
use teuthis_hypervisor::{flows::Flow, link::End};

fn end_of(build: impl FnOnce(&mut Program)) -> (Stop, Guest) {
    let mut program = Program::new();
    build(&mut program);
    let mut guest = Guest::new(program);
    (guest.run(), guest)
}

#[test]
fn power_off_reset_and_halt() {
    let (stop, _) = end_of(|program| {
        program.out8(0x601, 0x80).out8(0x600, 0x34);
    });
    assert_eq!(stop, Stop::End(End::PowerOff));
    let (stop, _) = end_of(|program| {
        program.out8(0x602, 1);
    });
    assert_eq!(stop, Stop::End(End::Reset));
    let (stop, guest) = end_of(|program| {
        program.out8(0x602, 2).out8(0x600, 0x14);
    });
    assert_eq!(stop, Stop::End(End::Halted));
    assert_eq!(guest.count(Flow::PortPower).rejected, 2);
}

#[test]
fn a_triple_fault_ends_the_vm() {
    let (stop, guest) = end_of(|program| {
        let limit = 0x3_0000u64;
        program.store(limit, 0).store(limit + 8, 0);
        program.asm.mov(rbx, limit).unwrap();
        program.asm.lidt(ptr(rbx)).unwrap();
        program.asm.ud2().unwrap();
    });
    assert_eq!(stop, Stop::End(End::TripleFault));
    assert_eq!(guest.count(Flow::InterceptShutdown).count, 1);
}

#[test]
fn a_crash_is_reported_with_its_parameters() {
    let (stop, guest) = end_of(|program| {
        program.rdmsr(0x4000_0105);
        for index in 0..5 {
            program.wrmsr(0x4000_0100 + index, 0x1111 * u64::from(index));
        }
        program.wrmsr(0x4000_0105, 1 << 62 | 1); // no notification, an unknown bit
        program.wrmsr(0x4000_0105, 3 << 62);
    });
    let expected = [0, 0x1111, 0x2222, 0x3333, 0x4444, 3 << 62];
    assert_eq!(stop, Stop::End(End::GuestCrash(expected)));
    assert_eq!(guest.results(), [3 << 62]);
    let count = guest.count(Flow::MsrCrash);
    assert_eq!((count.count, count.rejected), (8, 1));
}

#[test]
fn the_serial_port_takes_output() {
    let (_, guest) = end_of(|program| {
        for byte in *b"hello\n" {
            program.in8(0x3FD).out8(0x3F8, byte);
        }
    });
    assert_eq!(guest.partition.ports.serial.output(), b"hello\n");
    assert_eq!(guest.results(), [0x60; 6]);
}

#[test]
fn unknown_ports_read_all_ones() {
    let (_, guest) = end_of(|program| {
        for port in [0x20, 0x40, 0x60, 0x64, 0x92, 0xCF8, 0x2F8, 0x4D0, 0xFFFF] {
            program.out8(port, 0xFE).in8(port);
        }
    });
    assert_eq!(guest.results(), [0xFF; 9]);
    assert_eq!(guest.count(Flow::PortUnknown).rejected, 18);
    assert_eq!(guest.count(Flow::PortUnknown).count, 0);
}

#[test]
fn the_clock_has_no_update_in_progress() {
    let (_, guest) = end_of(|program| {
        for register in [0x8A, 0x0B, 0x0D, 0x09, 0x32] {
            program.out8(0x70, register).in8(0x71);
        }
    });
    // 1970, where this test's clock starts, in BCD.
    assert_eq!(guest.results(), [0, 2, 0x80, 0x70, 0x19]);
}

/// KVM hands string instructions over; the software processor does not have them.
#[test]
fn string_instructions_reach_ports_element_by_element() {
    if Kind::chosen() == Kind::Soft {
        return;
    }
    let (_, guest) = end_of(|program| {
        let text = b"strings\n";
        program.store(INPUT, u64::from_le_bytes(*text));
        program.asm.mov(rsi, INPUT).unwrap();
        program.asm.mov(rdi, INPUT).unwrap();
        program.asm.mov(ecx, text.len() as u32).unwrap();
        program.asm.mov(edx, 0x3F8u32).unwrap();
        program.asm.rep().outsb().unwrap();
        program.asm.mov(ecx, 5u32).unwrap();
        program.asm.mov(edx, 0x3FDu32).unwrap();
        program.asm.rep().insb().unwrap();
    });
    assert_eq!(guest.partition.ports.serial.output(), b"strings\n");
    assert_eq!(guest.read(INPUT), 0x0A73_6760_6060_6060);
    assert_eq!(guest.count(Flow::PortSerial).count, 8 + 5);
}
