//! Decoded code: what invalidates it, page boundaries, instructions that do not exist.

use super::*;
use crate::processor::Completion;
use iced_x86::code_asm::*;

#[test]
fn code_that_changes_the_next_instruction_sees_the_change() {
    // Overwrites the immediate of the instruction behind it, in the same block.
    let mut guest = Guest::new(|a| {
        a.mov(byte_ptr(CODE + 9), 0x22).unwrap();
        a.mov(eax, 0x11).unwrap();
        a.hlt().unwrap();
    });
    assert_eq!(guest.0.memory().read::<u8>(CODE + 8), Some(0xB8));
    guest.halt();
    assert_eq!(guest.reg(Cpu::RAX), 0x22);
}

#[test]
fn a_patched_function_runs_as_patched_each_time() {
    // for ecx in 1..=50 { patch the function's immediate to ecx; call it; add }
    let mut guest = Guest::new(|a| {
        let mut again = a.create_label();
        a.mov(ecx, 50).unwrap();
        a.set_label(&mut again).unwrap();
        a.mov(byte_ptr(DATA + 1), cl).unwrap();
        a.call(DATA).unwrap();
        a.add(ebx, eax).unwrap();
        a.dec(ecx).unwrap();
        a.jne(again).unwrap();
        a.hlt().unwrap();
    });
    let function = assemble(64, DATA, |a| {
        a.mov(eax, 0).unwrap();
        a.ret().unwrap();
    });
    guest.0.memory().write_bytes(DATA, &function).unwrap();
    guest.halt();
    assert_eq!(guest.reg(Cpu::RBX), 50 * 51 / 2);
}

#[test]
fn data_beside_code_does_not_disturb_it() {
    let mut guest = Guest::new(|a| {
        let mut again = a.create_label();
        a.mov(ecx, 50).unwrap();
        a.set_label(&mut again).unwrap();
        a.mov(qword_ptr(CODE + 0x800), rcx).unwrap();
        a.add(rbx, qword_ptr(CODE + 0x800)).unwrap();
        a.dec(ecx).unwrap();
        a.jne(again).unwrap();
        a.hlt().unwrap();
    });
    guest.halt();
    assert_eq!(guest.reg(Cpu::RBX), 50 * 51 / 2);
}

#[test]
fn code_changed_unseen_is_found_out_after_a_flush() {
    // Another process (a disk read) replaces the function; the guest maps the page anew.
    let mut guest = Guest::new(|a| {
        a.call(DATA).unwrap();
        a.mov(ebx, eax).unwrap();
        a.out(0x80, al).unwrap();
        a.invlpg(byte_ptr(DATA)).unwrap();
        a.call(DATA).unwrap();
        a.hlt().unwrap();
    });
    let function = |value: u32| {
        assemble(64, DATA, |a| {
            a.mov(eax, value).unwrap();
            a.ret().unwrap();
        })
    };
    guest.0.memory().write_bytes(DATA, &function(1)).unwrap();
    assert!(matches!(guest.run(), Intercept::PortWrite { .. }));
    guest.0.complete(Completion::Done);
    guest.0.memory().write_bytes(DATA, &function(2)).unwrap();
    guest.halt();
    assert_eq!((guest.reg(Cpu::RBX), guest.reg(Cpu::RAX)), (1, 2));
}

#[test]
fn instructions_may_straddle_pages() {
    let edge = DATA + 0xFFE;
    let mut guest = Guest::new(|a| a.jmp(edge).unwrap());
    let code = assemble(64, edge, |a| {
        a.mov(eax, 0x1234_5678).unwrap();
        a.out(0x80, al).unwrap();
    });
    guest.0.memory().write_bytes(edge, &code).unwrap();
    let run = |guest: &mut Guest| {
        assert!(matches!(guest.run(), Intercept::PortWrite { .. }));
        guest.0.complete(Completion::Done);
        guest.cpu_mut().rip = CODE;
        guest.reg(Cpu::RAX)
    };
    assert_eq!(run(&mut guest), 0x1234_5678);

    // A store into the second page's part changes it.
    guest.cpu_mut().store(DATA + 0x1000, 0xAA_u8).unwrap();
    assert_eq!(run(&mut guest), 0x1234_AA78);

    // So does another page in its place.
    let other = [0xBB, 0xBB, 0xBB, 0xE6, 0x80];
    guest.0.memory().write_bytes(DATA + 0x2000, &other).unwrap();
    guest.map(DATA + 0x1000, (DATA + 0x2000) | P);
    assert_eq!(run(&mut guest), 0xBBBB_BB78);

    // Without one, the fault is the second page's.
    guest.map(DATA + 0x1000, 0);
    assert_eq!(guest.fault(), (14, 16));
    assert_eq!((guest.cpu().cr2, guest.stack(1)), (DATA + 0x1000, edge));
}

#[test]
fn what_is_not_implemented_is_counted_by_name() {
    // vaddps ymm0, ymm0, ymm0
    let mut guest = Guest::with_code(&[0xC5, 0xFC, 0x58, 0xC0]);
    guest.halt();
    assert_eq!(guest.vector(), Some(6));
    assert_eq!(guest.0.unimplemented().len(), 1);
    assert!(
        guest
            .0
            .unimplemented()
            .keys()
            .all(|name| name.contains("Vaddps"))
    );
    // What does not exist, or exists to fault, is not counted.
    for code in [&[0x0F, 0x0B][..], &[0x06], &[0x0F, 0xFF, 0xC0]] {
        let mut guest = Guest::with_code(code);
        guest.halt();
        assert_eq!(guest.vector(), Some(6));
        assert!(guest.0.unimplemented().is_empty());
    }
}

#[test]
fn the_same_start_gives_the_same_trace() {
    let run = || {
        let mut guest = Guest::new(|a| {
            let mut again = a.create_label();
            a.set_label(&mut again).unwrap();
            a.rdtsc().unwrap();
            a.add(rbx, rax).unwrap();
            a.rdrand(rdx).unwrap();
            a.xor(rbx, rdx).unwrap();
            a.jmp(again).unwrap();
        });
        for _ in 0..10 {
            guest.run();
        }
        (guest.reg(Cpu::RBX), guest.0.instructions())
    };
    assert_eq!(run(), run());
}

#[test]
fn a_processor_that_rested_decodes_anew() {
    let mut guest = Guest::new(|a| {
        for _ in 0..17_000 {
            a.inc(eax).unwrap();
        }
        a.out(0x80, al).unwrap();
    });
    let run = |guest: &mut Guest| {
        while guest.run() == Intercept::SliceEnd {}
        guest.0.complete(Completion::Done);
        guest.cpu_mut().rip = CODE;
        guest.reg(Cpu::RAX)
    };
    assert_eq!(run(&mut guest), 17_000);
    // Nobody tells it of another first instruction (dec eax).
    guest.0.memory().write_bytes(CODE, &[0xFF, 0xC8]).unwrap();
    assert_eq!(run(&mut guest), 34_000);
    guest.0.rest();
    assert_eq!(run(&mut guest), 50_998);
}
