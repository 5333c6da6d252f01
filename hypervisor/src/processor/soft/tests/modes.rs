//! Changes of privilege and mode, descriptors, control registers.

use super::{
    super::{cpu::segment, flags},
    *,
};
use iced_x86::code_asm::*;

const STAR: u64 = 0x0020_0010_0000_0000 | 3 << 48;

#[test]
fn system_calls_go_in_and_out() {
    let mut guest = Guest::new(|a| {
        a.syscall().unwrap();
        a.mov(ebx, 7).unwrap();
        a.int(0x80).unwrap();
    });
    let kernel = assemble(64, DATA, |a| {
        a.mov(rsi, rsp).unwrap();
        a.mov(rdi, r11).unwrap();
        a.sysretq().unwrap();
    });
    guest.0.memory().write_bytes(DATA, &kernel).unwrap();
    gate(guest.0.memory(), 0x80, HANDLERS + 0x800, 0xEE, 0);
    let cpu = guest.as_user().cpu_mut();
    cpu.msrs.star = STAR;
    cpu.msrs.lstar = DATA;
    cpu.msrs.sfmask = 0x400;
    cpu.system_flags |= 0x400;
    guest.halt();
    assert_eq!(guest.vector(), Some(0x80));
    assert_eq!((guest.reg(Cpu::RCX), guest.reg(Cpu::RBX)), (CODE + 2, 7));
    assert_eq!((guest.reg(Cpu::RSI), guest.reg(Cpu::RDI)), (STACK, 0x402));
    assert_eq!(guest.stack(1), u64::from(USER_CODE));
    assert_eq!(guest.stack(2) & 0x400, 0x400);
    assert_eq!(guest.stack(4), u64::from(USER_DATA));
}

#[test]
fn compatibility_mode_runs_32_bit_code() {
    let mut guest = Guest::new(|a| {
        a.push(i32::from(USER_DATA)).unwrap();
        a.push(STACK as i32).unwrap();
        a.push(0x202).unwrap();
        a.push(i32::from(USER_CODE32)).unwrap();
        a.push(DATA as i32).unwrap();
        a.iretq().unwrap();
    });
    // inc eax is a prefix in 64-bit mode; 32-bit addresses wrap.
    let code = assemble(32, DATA, |a| {
        a.mov(eax, 0x7FFF_FFFF).unwrap();
        a.inc(eax).unwrap();
        a.push(eax).unwrap();
        a.mov(ebx, 0xFFFF_FFF0_u32).unwrap();
        a.mov(ecx, dword_ptr(ebx + (DATA as i32 + 0x110))).unwrap();
        a.int(0x80).unwrap();
    });
    guest.0.memory().write_bytes(DATA, &code).unwrap();
    guest.put(DATA + 0x100, 0x1234);
    gate(guest.0.memory(), 0x80, HANDLERS + 0x800, 0xEE, 0);
    guest.halt();
    assert_eq!(guest.vector(), Some(0x80));
    assert_eq!(guest.reg(Cpu::RAX), 0x8000_0000);
    assert_eq!(guest.reg(Cpu::RCX), 0x1234);
    assert_eq!(guest.stack(1), u64::from(USER_CODE32));
    assert_eq!(guest.stack(3), STACK - 4);
    assert_eq!(guest.word(STACK - 4) as u32, 0x8000_0000);
    assert!(guest.cpu().long_code);
}

#[test]
fn far_returns_change_segments_and_refuse_bad_ones() {
    let code = |selector: i32| {
        move |a: &mut CodeAssembler| {
            a.push(selector).unwrap();
            a.push(DATA as i32).unwrap();
            a.db(&[0x48, 0xCB]).unwrap(); // retfq
        }
    };
    let mut guest = Guest::new(code(KERNEL_CODE.into()));
    guest.0.memory().write(DATA, 0xF4_u8).unwrap();
    guest.halt();
    assert_eq!(guest.cpu().rip, DATA + 1);
    // Data, beyond the table, null.
    for (selector, error) in [(0x18, 0x18), (0x100, 0x100), (0, 0)] {
        let mut guest = Guest::new(code(selector));
        assert_eq!(guest.fault(), (13, error));
        assert_eq!(
            guest.stack(1),
            CODE + assemble(64, CODE, code(selector)).len() as u64 - 2
        );
    }
}

#[test]
fn segment_registers_check_what_they_load() {
    let mut guest = Guest::new(|a| {
        a.mov(eax, 0x2B).unwrap();
        a.mov(ds, ax).unwrap();
        a.mov(fs, ax).unwrap();
        a.mov(ebx, ds).unwrap();
        a.xor(eax, eax).unwrap();
        a.mov(es, ax).unwrap();
        a.push(fs).unwrap();
        a.pop(gs).unwrap();
        a.mov(eax, 0x2B).unwrap();
        a.mov(ss, ax).unwrap();
    });
    // SS must have the privilege of the code.
    assert_eq!(guest.fault(), (13, 0x28));
    assert_eq!(guest.reg(Cpu::RBX), 0x2B);
    assert_eq!(guest.cpu().segments[segment::GS].selector, 0x2B);
}

#[test]
fn control_registers_refuse_what_is_reserved() {
    let cases: [fn(&mut CodeAssembler); 6] = [
        |a| a.mov(cr0, rax).unwrap(), // leaves long mode
        |a| {
            a.mov(rax, cr4).unwrap();
            a.bts(rax, 18).unwrap(); // OSXSAVE
            a.mov(cr4, rax).unwrap();
        },
        |a| {
            a.mov(rax, 1_u64 << 45).unwrap();
            a.mov(cr3, rax).unwrap();
        },
        |a| {
            a.mov(ecx, 0xC000_0080_u32).unwrap();
            a.rdmsr().unwrap();
            a.bts(eax, 12).unwrap(); // SVME
            a.wrmsr().unwrap();
        },
        |a| {
            a.mov(ecx, 0xC000_0082_u32).unwrap();
            a.mov(edx, 0x8000_u32).unwrap(); // LSTAR not canonical
            a.wrmsr().unwrap();
        },
        |a| {
            a.mov(eax, 16).unwrap();
            a.mov(cr8, rax).unwrap();
        },
    ];
    for (i, case) in cases.into_iter().enumerate() {
        assert_eq!(Guest::new(case).fault(), (13, 0), "case {i}");
    }
}

#[test]
fn the_local_apic_refuses_what_is_reserved() {
    // A read-only register, a value that must be zero, one that is not there.
    for (register, value) in [(0x802_u32, 0_u32), (0x80B, 1), (0x831, 0)] {
        let mut guest = Guest::new(|a| {
            a.mov(ecx, register).unwrap();
            a.mov(eax, value).unwrap();
            a.xor(edx, edx).unwrap();
            a.wrmsr().unwrap();
        });
        assert_eq!(guest.fault(), (13, 0), "{register:#x}");
    }
}

#[test]
fn umip_hides_the_tables_from_users() {
    let code = |a: &mut CodeAssembler| {
        a.sgdt(fword_ptr(DATA)).unwrap();
        a.str(eax).unwrap();
        a.int(0x80).unwrap();
    };
    let mut guest = Guest::new(code);
    guest.as_user().cpu_mut().cr4 |= 1 << 11;
    assert_eq!(guest.fault(), (13, 0));
    let mut guest = Guest::new(code);
    gate(guest.0.memory(), 0x80, HANDLERS + 0x800, 0xEE, 0);
    guest.as_user().halt();
    assert_eq!(guest.word(DATA) & 0xFFFF, 0x37);
    assert_eq!(guest.reg(Cpu::RAX), 0x40);
}

#[test]
fn bases_are_swapped_written_and_read() {
    let mut guest = Guest::new(|a| {
        a.mov(eax, 0x1000).unwrap();
        a.wrgsbase(rax).unwrap();
        a.swapgs().unwrap();
        a.rdgsbase(rbx).unwrap();
        a.mov(rax, DATA).unwrap();
        a.wrfsbase(rax).unwrap();
        a.mov(rcx, qword_ptr(8).fs()).unwrap();
        a.hlt().unwrap();
    });
    guest.cpu_mut().cr4 |= 1 << 16;
    guest.cpu_mut().msrs.kernel_gs_base = 0x2000;
    guest.put(DATA + 8, 0x55);
    guest.halt();
    assert_eq!((guest.reg(Cpu::RBX), guest.reg(Cpu::RCX)), (0x2000, 0x55));
    assert_eq!(guest.cpu().msrs.kernel_gs_base, 0x1000);
}

#[test]
fn the_machine_status_word_is_loaded_with_any_operand_size() {
    for size in [&[][..], &[0x66], &[0x48]] {
        let mut guest = Guest::new(|a| {
            a.mov(eax, 0xF).unwrap();
            a.db(&[size, &[0x0F, 0x01, 0xF0]].concat()).unwrap();
            a.smsw(ebx).unwrap();
            a.hlt().unwrap();
        });
        guest.halt();
        assert_eq!(guest.vector(), None, "{size:?}");
        assert_eq!(guest.reg(Cpu::RBX) & 0xF, 0xF);
    }
}

#[test]
fn pointers_are_loaded_with_their_segments() {
    let pointer = 0x1122_3344 | u64::from(USER_DATA) << 32;
    let mut guest = Guest::new(|a| {
        a.mov(rdi, DATA).unwrap();
        a.lfs(eax, ptr(rdi)).unwrap();
        a.lgs(cx, ptr(rdi + 2)).unwrap();
        a.hlt().unwrap();
    });
    guest.put(DATA, pointer);
    guest.put(DATA + 4, u64::from(USER_DATA));
    guest.cpu_mut().gpr[1] = u64::MAX;
    guest.halt();
    assert_eq!(guest.vector(), None);
    assert_eq!(guest.reg(Cpu::RAX), 0x1122_3344);
    assert_eq!(guest.reg(Cpu::RCX), 0xFFFF_FFFF_FFFF_1122);
    assert_eq!(guest.cpu().segments[segment::FS].selector, USER_DATA);
    assert_eq!(guest.cpu().segments[segment::GS].selector, USER_DATA);
    // A selector that is refused leaves both as they were.
    let mut guest = Guest::new(|a| {
        a.mov(rdi, DATA).unwrap();
        a.lss(eax, ptr(rdi)).unwrap();
    });
    guest.put(DATA, pointer);
    guest.cpu_mut().gpr[0] = 7;
    assert_eq!(guest.fault(), (13, u64::from(USER_DATA & !3)));
    assert_eq!(guest.reg(Cpu::RAX), 7);
}

#[test]
fn stac_and_clac_are_the_kernels_with_or_without_smap() {
    let mut guest = Guest::new(|a| {
        a.stac().unwrap();
        a.pushfq().unwrap();
        a.pop(rax).unwrap();
        a.clac().unwrap();
        a.hlt().unwrap();
    });
    guest.halt();
    assert_eq!(guest.vector(), None);
    assert_ne!(guest.reg(Cpu::RAX) & flags::AC, 0);
    let mut guest = Guest::new(|a| a.stac().unwrap());
    guest.as_user().halt();
    assert_eq!(guest.vector(), Some(6));
}

#[test]
fn there_is_no_performance_counter() {
    let mut guest = Guest::new(|a| a.rdpmc().unwrap());
    assert_eq!(guest.fault(), (13, 0));
}
