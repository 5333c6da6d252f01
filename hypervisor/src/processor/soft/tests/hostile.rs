//! A hostile guest: random code with random state must never make the processor panic.

use super::*;
use crate::processor::Completion;

struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
}

/// Numbers that matter: addresses inside and at the edges of things, small, large, anything.
fn interesting(numbers: &mut Numbers) -> u64 {
    let value = numbers.next();
    match value % 8 {
        0 => value >> 60,
        1 => 0_u64.wrapping_sub(value >> 60),
        2 => DATA + (value >> 52),
        3 => (4 << 20) - (value >> 58),
        4 => 0x0000_7FFF_FFFF_FFF8 + (value >> 60),
        5 => HIGH + (value >> 44),
        6 => [PT, GDT, IDT, TSS, CODE][(value >> 32) as usize % 5] + (value >> 54),
        _ => value,
    }
}

fn survive(seed: u64, legacy: bool) {
    let mut numbers = Numbers(seed | 1);
    let mut code = vec![0; 0x3000];
    code.iter_mut()
        .for_each(|byte| *byte = numbers.next() as u8);
    let mut guest = Guest::with_code(&code);
    let cpu = guest.cpu_mut();
    for register in 0..16 {
        cpu.gpr[register] = interesting(&mut numbers);
    }
    cpu.system_flags = numbers.next() & 0x0024_5700;
    if numbers.next().is_multiple_of(2) {
        cpu.cpl = 3;
    }
    cpu.long_code = !legacy;
    cpu.cr4 |= 0x600;
    cpu.update_fpu_access();
    cpu.update_domain();
    // Handlers go on somewhere in the random code, with interrupts allowed again by chance.
    for vector in 0..32 {
        let handler = CODE + numbers.next() % 0x2FF0;
        gate(guest.0.memory(), vector, handler, 0x8F, numbers.next() % 3);
    }
    for _ in 0..200 {
        match guest.0.run(100) {
            Intercept::SliceEnd => {}
            Intercept::Shutdown => break,
            Intercept::Halt { .. } => guest.0.assert_interrupt(numbers.next() as u8),
            Intercept::Cpuid { .. } => {
                guest
                    .0
                    .complete(Completion::Cpuid([numbers.next() as u32; 4]));
            }
            _ if numbers.next().is_multiple_of(2) => {
                guest.0.complete(Completion::GeneralProtection)
            }
            _ => guest
                .0
                .complete(Completion::Value(interesting(&mut numbers))),
        }
    }
    assert!(guest.0.unimplemented().len() <= 64);
}

#[test]
fn random_code_never_panics() {
    for seed in 1..300_u64 {
        survive(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15), false);
    }
}

#[test]
fn random_32_bit_code_never_panics() {
    for seed in 1..300_u64 {
        survive(seed.wrapping_mul(0xD134_2543_DE82_EF95), true);
    }
}

#[test]
fn random_model_specific_registers_never_panic() {
    use iced_x86::code_asm::*;

    let mut numbers = Numbers(0x0123_4567_89AB_CDEF);
    let mut guest = Guest::new(|a| {
        let mut again = a.create_label();
        a.set_label(&mut again).unwrap();
        a.out(0x80, al).unwrap();
        a.wrmsr().unwrap();
        a.rdmsr().unwrap();
        a.jmp(again).unwrap();
    });
    // Faults and interrupts go back to the loop.
    for vector in 0..256 {
        gate(guest.0.memory(), vector, CODE, 0x8F, 1);
    }
    guest.cpu_mut().system_flags |= super::super::flags::IF;
    for _ in 0..20_000 {
        match guest.0.run(100) {
            Intercept::SliceEnd => {}
            Intercept::PortWrite { .. } => {
                let (choice, value) = (numbers.next(), interesting(&mut numbers));
                let msr = match choice % 4 {
                    0 => 0x800 + (choice >> 58),
                    1 => 0xC000_0080 + (choice >> 62),
                    2 => [
                        0x10, 0x1B, 0xFE, 0x174, 0x1A0, 0x200, 0x250, 0x26F, 0x277, 0x2FF,
                    ][(choice >> 32) as usize % 10],
                    _ => u64::from(choice as u32),
                };
                let cpu = guest.cpu_mut();
                cpu.gpr[1] = msr;
                cpu.gpr[0] = value & 0xFFFF_FFFF;
                cpu.gpr[2] = if choice >> 40 & 1 == 0 {
                    0
                } else {
                    value >> 32
                };
                guest.0.complete(Completion::Done);
            }
            Intercept::MsrRead { .. } | Intercept::MsrWrite { .. } => {
                guest.0.complete(Completion::GeneralProtection);
            }
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_guest_that_only_faults_uses_up_its_slice() {
    // Each page fault's handler lies in a page that cannot be executed.
    let mut guest = Guest::with_code(&[0x0F, 0x0B]);
    guest.map(DATA, DATA | P | W | NX);
    for vector in [6, 14] {
        gate(guest.0.memory(), vector, DATA, 0x8E, 1);
    }
    assert_eq!(guest.run(), Intercept::SliceEnd);
    // Or it is the handler's first instruction that faults.
    let mut guest = Guest::with_code(&[0x0F, 0x0B]);
    gate(guest.0.memory(), 6, CODE, 0x8E, 1);
    assert_eq!(guest.run(), Intercept::SliceEnd);
    // Or a handler that returns into single steps.
    let mut guest = Guest::with_code(&[0x48, 0xCF]); // iretq
    gate(guest.0.memory(), 1, CODE, 0x8E, 1);
    for (i, word) in [CODE, KERNEL_CODE.into(), 0x102, INTERRUPT_STACK - 40, 0]
        .into_iter()
        .enumerate()
    {
        guest.put(INTERRUPT_STACK - 40 + i as u64 * 8, word);
    }
    guest.cpu_mut().gpr[4] = INTERRUPT_STACK - 40;
    assert_eq!(guest.run(), Intercept::SliceEnd);
}
