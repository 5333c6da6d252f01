//! Exceptions, interrupts, traps, and what becomes of faults during their delivery.

use super::{super::flags, *};
use crate::processor::Completion;
use iced_x86::code_asm::*;

#[test]
fn a_fault_saves_the_instruction_and_its_error_code() {
    let mut guest = Guest::new(|a| {
        a.nop().unwrap();
        a.mov(rax, qword_ptr(0x20_0000_0000_u64)).unwrap();
    });
    guest.cpu_mut().system_flags |= flags::IF;
    guest.cpu_mut().gpr[4] = STACK - 3;
    assert_eq!(guest.fault(), (14, 0));
    assert_eq!(guest.cpu().cr2, 0x20_0000_0000);
    assert_eq!(guest.stack(1), CODE + 1);
    assert_eq!(guest.stack(2), u64::from(KERNEL_CODE));
    assert_eq!(
        guest.stack(3) & (flags::RF | flags::IF),
        flags::RF | flags::IF
    );
    assert_eq!(guest.stack(4), STACK - 3);
    assert_eq!(guest.reg(Cpu::RSP), ((STACK - 3) & !15) - 48);
    assert_eq!(guest.cpu().system_flags & (flags::IF | flags::RF), 0);
}

#[test]
fn a_user_fault_switches_to_the_kernel_stack() {
    let mut guest = Guest::new(|a| a.hlt().unwrap());
    guest.as_user();
    assert_eq!(guest.fault(), (13, 0));
    assert_eq!(guest.cpu().cpl, 0);
    assert_eq!(guest.reg(Cpu::RSP), KERNEL_STACK - 48);
    assert_eq!(guest.stack(2), u64::from(USER_CODE));
    assert_eq!(guest.stack(5), u64::from(USER_DATA));
    assert_eq!(guest.cpu().segments[2].selector, 0);
}

#[test]
fn interrupt_stacks_are_used_even_without_a_change_of_privilege() {
    let mut guest = Guest::new(|a| a.ud2().unwrap());
    gate(guest.0.memory(), 6, HANDLERS + 6 * 16, 0x8E, 1);
    guest.halt();
    assert_eq!(guest.vector(), Some(6));
    assert_eq!(guest.reg(Cpu::RSP), INTERRUPT_STACK - 40);
}

#[test]
fn software_interrupts_respect_the_gate_and_return_behind_themselves() {
    let code = |a: &mut CodeAssembler| a.int(0x80).unwrap();
    let mut guest = Guest::new(code);
    guest.as_user();
    assert_eq!(guest.fault(), (13, 0x80 * 8 + 2));
    assert_eq!(guest.stack(1), CODE);

    let mut guest = Guest::new(code);
    gate(guest.0.memory(), 0x80, HANDLERS + 0x800, 0xEE, 0);
    guest.as_user().halt();
    assert_eq!((guest.vector(), guest.stack(0)), (Some(0x80), CODE + 2));
}

#[test]
fn faults_during_delivery_become_a_double_fault_and_then_a_shutdown() {
    let page_fault = |a: &mut CodeAssembler| a.mov(rax, qword_ptr(0x20_0000_0000_u64)).unwrap();
    // The page fault's gate is not present.
    let mut guest = Guest::new(page_fault);
    gate(guest.0.memory(), 14, HANDLERS + 14 * 16, 0x0E, 0);
    assert_eq!(guest.fault(), (8, 0));
    assert_eq!(guest.stack(1), CODE);
    // Neither is the double fault's.
    let mut guest = Guest::new(page_fault);
    gate(guest.0.memory(), 14, HANDLERS + 14 * 16, 0x0E, 0);
    gate(guest.0.memory(), 8, HANDLERS + 8 * 16, 0x0E, 0);
    assert_eq!(guest.run(), Intercept::Shutdown);
    assert_eq!(guest.run(), Intercept::Shutdown);
    // No table at all.
    let mut guest = Guest::new(|a| a.ud2().unwrap());
    guest.cpu_mut().idtr.limit = 0;
    assert_eq!(guest.run(), Intercept::Shutdown);
    // A stack that is not mapped.
    let mut guest = Guest::new(|a| a.ud2().unwrap());
    guest.cpu_mut().gpr[4] = 0x30_0000_0000;
    assert_eq!(guest.run(), Intercept::Shutdown);
    // A benign first event: the second is delivered by itself, as external.
    let mut guest = Guest::new(|a| a.ud2().unwrap());
    gate(guest.0.memory(), 6, HANDLERS + 6 * 16, 0x0E, 0);
    assert_eq!(guest.fault(), (11, 6 * 8 + 3));
}

#[test]
fn sti_holds_interrupts_back_for_one_instruction() {
    let mut guest = Guest::new(|a| {
        a.sti().unwrap();
        a.inc(rax).unwrap();
        a.inc(rax).unwrap();
    });
    guest.cpu_mut().apic.write(0x80F, 0x1FF).unwrap();
    guest.0.assert_interrupt(0, 0x51);
    assert!(!guest.0.has_deliverable_interrupt());
    guest.halt();
    assert_eq!((guest.vector(), guest.reg(Cpu::RAX)), (Some(0x51), 1));
    assert_eq!(guest.stack(0), CODE + 4);
}

#[test]
fn a_halted_processor_wakes_behind_hlt() {
    let mut guest = Guest::new(|a| {
        a.sti().unwrap();
        a.hlt().unwrap();
        a.nop().unwrap();
    });
    guest.cpu_mut().apic.write(0x80F, 0x1FF).unwrap();
    let halt = Intercept::Halt {
        interruptible: true,
    };
    assert_eq!(guest.run(), halt);
    assert_eq!(guest.run(), halt);
    guest.0.assert_interrupt(0, 0x51);
    assert!(guest.0.has_deliverable_interrupt());
    guest.halt();
    assert_eq!((guest.vector(), guest.stack(0)), (Some(0x51), CODE + 2));
}

#[test]
fn interrupts_wait_for_popf_and_iret_to_allow_them() {
    let mut guest = Guest::new(|a| {
        a.push(0x202).unwrap();
        a.popfq().unwrap();
        a.nop().unwrap();
    });
    guest.cpu_mut().apic.write(0x80F, 0x1FF).unwrap();
    guest.0.assert_interrupt(0, 0x51);
    guest.halt();
    assert_eq!(guest.vector(), Some(0x51));
}

#[test]
fn the_local_timer_interrupts_a_loop() {
    let mut guest = Guest::new(|a| {
        let mut again = a.create_label();
        a.set_label(&mut again).unwrap();
        a.inc(rax).unwrap();
        a.jmp(again).unwrap();
    });
    let cpu = guest.cpu_mut();
    cpu.system_flags |= flags::IF;
    for (register, value) in [
        (0x80F, 0x1FF),
        (0x832, 0x51),
        (0x83E, 0xB),
        (0x838, 500_000),
    ] {
        cpu.apic.write(register, value).unwrap();
    }
    // 500 µs at one instruction per microsecond.
    assert_eq!(guest.run(), Intercept::SliceEnd);
    guest.halt();
    assert_eq!(guest.vector(), Some(0x51));
    assert!((500..510).contains(&guest.0.instructions()));
}

#[test]
fn single_steps_trap_after_each_instruction() {
    let mut guest = Guest::new(|a| {
        a.push(0x102).unwrap();
        a.popfq().unwrap();
        a.cmp(ebx, 1).unwrap();
        a.jne(CODE + 0x40).unwrap();
    });
    guest.halt();
    assert_eq!(guest.vector(), Some(1));
    assert_eq!(guest.cpu().dr[6] & 1 << 14, 1 << 14);
    let after = guest.stack(0);
    assert_eq!(after, CODE + 6 + 3);
    assert_eq!(guest.stack(2) & flags::TF, flags::TF);
    assert_eq!(guest.cpu().system_flags & flags::TF, 0);
}

#[test]
fn no_single_step_trap_between_a_software_interrupt_and_its_handler() {
    let mut guest = Guest::new(|a| {
        a.push(0x102).unwrap();
        a.popfq().unwrap();
        a.int(0x80).unwrap();
    });
    gate(guest.0.memory(), 0x80, HANDLERS + 0x800, 0xEE, 0);
    guest.halt();
    assert_eq!(guest.vector(), Some(0x80));
    assert_eq!(guest.stack(2) & flags::TF, flags::TF);
}

#[test]
fn more_than_fifteen_bytes_are_no_instruction() {
    for (prefixes, vector) in [(14, 6), (15, 13), (40, 13)] {
        let mut guest = Guest::new(|a| {
            a.db(&vec![0x66; prefixes]).unwrap();
            a.nop().unwrap();
            a.ud2().unwrap();
        });
        guest.halt();
        assert_eq!(guest.vector(), Some(vector), "{prefixes} prefixes");
    }
}

#[test]
fn what_intercepts_answer_reaches_the_guest() {
    let mut guest = Guest::new(|a| {
        a.mov(ecx, 0x4000_0020).unwrap();
        a.rdmsr().unwrap();
        a.mov(rbx, rax).unwrap();
        a.in_(al, 0x70).unwrap();
        a.wrmsr().unwrap();
        a.vmmcall().unwrap();
    });
    assert_eq!(guest.run(), Intercept::MsrRead { msr: 0x4000_0020 });
    guest.0.complete(Completion::Value(0x1_0000_0002));
    let port = Intercept::PortRead {
        port: 0x70,
        size: 1,
    };
    assert_eq!(guest.run(), port);
    assert_eq!((guest.reg(Cpu::RBX), guest.reg(Cpu::RDX)), (2, 1));
    guest.0.complete(Completion::Value(0xFFFF_FF33));
    assert_eq!(guest.reg(Cpu::RAX), 0x33);
    assert!(matches!(guest.run(), Intercept::MsrWrite { .. }));
    guest.0.complete(Completion::GeneralProtection);
    assert_eq!(guest.fault(), (13, 0));
}

#[test]
fn intercepts_are_the_kernels() {
    let port = assemble(64, CODE, |a| a.out(0x80, al).unwrap());
    let msr = assemble(64, CODE, |a| a.rdmsr().unwrap());
    let call = assemble(64, CODE, |a| a.vmcall().unwrap());
    for (code, vector) in [(port, 13), (msr, 13), (call, 6)] {
        let mut guest = Guest::with_code(&code);
        guest.as_user().halt();
        assert_eq!(guest.vector(), Some(vector));
    }
}

#[test]
fn users_reach_the_ports_that_the_permission_map_grants() {
    let mut guest = Guest::new(|a| {
        a.in_(al, 0x70).unwrap();
        a.in_(ax, 0x77).unwrap();
    });
    guest.as_user();
    guest.cpu_mut().tr.limit = 0x68 + 0x20;
    for byte in 0..0x20 {
        let value = if byte == 0x70 / 8 { 0x00_u8 } else { 0xFF };
        guest.0.memory().write(TSS + 0x68 + byte, value).unwrap();
    }
    assert!(matches!(guest.run(), Intercept::PortRead { size: 1, .. }));
    guest.0.complete(Completion::Value(0));
    // Two ports, the second of which is refused.
    assert_eq!(guest.fault(), (13, 0));
}
