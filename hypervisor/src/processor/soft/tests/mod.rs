//! Tiny guests that exercise the engine: one tested property each.

mod code;
mod events;
mod hostile;
mod modes;
mod paging;

use super::{
    cpu::{Cpu, Table},
    run::SoftProcessor,
};
use crate::{
    clock::Clock,
    memory::GuestMemory,
    processor::{BootState, Intercept, Processor},
};
use iced_x86::code_asm::CodeAssembler;

// Guest physical addresses. The first 2 MiB are mapped one to one by 4 KiB pages that users may
// use too, and again in the kernel half at `HIGH`; the second 2 MiB by one large page.
const PML4: u64 = 0x1000;
const PDPT: u64 = 0x2000;
const PD: u64 = 0x3000;
const PT: u64 = 0x4000;
const GDT: u64 = 0x6000;
const IDT: u64 = 0x7000;
const TSS: u64 = 0x8000;
const CODE: u64 = 0x1_0000;
const HANDLERS: u64 = 0x2_0000;
const STACK: u64 = 0x4_0000;
/// RSP0 and the first interrupt stack.
const KERNEL_STACK: u64 = 0x5_0000;
const INTERRUPT_STACK: u64 = 0x6_0000;
const DATA: u64 = 0x8_0000;
const HIGH: u64 = 0xFFFF_8000_0000_0000;

const KERNEL_CODE: u16 = 0x10;
const USER_CODE32: u16 = 0x23;
const USER_DATA: u16 = 0x2B;
const USER_CODE: u16 = 0x33;

const P: u64 = 1;
const W: u64 = 2;
const U: u64 = 4;
const A: u64 = 0x20;
const D: u64 = 0x40;
const PS: u64 = 0x80;
const G: u64 = 0x100;
const NX: u64 = 1 << 63;

struct Guest(SoftProcessor);

impl Guest {
    /// A guest about to run what `write` assembles, in 64-bit mode at CPL 0. Each interrupt vector
    /// has a handler that halts; see [`Guest::vector`].
    fn new(write: impl FnOnce(&mut CodeAssembler)) -> Self {
        Self::with_code(&assemble(64, CODE, write))
    }

    fn with_code(code: &[u8]) -> Self {
        let memory = GuestMemory::anonymous(4 << 20).unwrap();
        let put = |place, value: u64| memory.write(place, value).unwrap();
        put(PML4, PDPT | P | W | U);
        put(PML4 + 256 * 8, PDPT | P | W | U);
        put(PDPT, PD | P | W | U);
        put(PD, PT | P | W | U);
        put(PD + 8, (2 << 20) | PS | P | W | U);
        for page in 0..512 {
            put(PT + page * 8, (page << 12) | P | W | U);
        }
        let descriptors = [
            0,
            0,
            0x00AF_9B00_0000_FFFF,
            0x00CF_9300_0000_FFFF,
            0x00CF_FB00_0000_FFFF,
            0x00CF_F300_0000_FFFF,
            0x00AF_FB00_0000_FFFF,
        ];
        for (i, descriptor) in descriptors.into_iter().enumerate() {
            put(GDT + i as u64 * 8, descriptor);
        }
        for vector in 0..256 {
            let handler = HANDLERS + vector * 16;
            memory.write(handler, 0xF4_u8).unwrap();
            gate(&memory, vector, handler, 0x8E, 0);
        }
        memory.write(TSS + 4, KERNEL_STACK).unwrap();
        memory.write(TSS + 0x24, INTERRUPT_STACK).unwrap();
        // No port permission map.
        memory.write(TSS + 0x66, 0x68_u16).unwrap();
        memory.write_bytes(CODE, code).unwrap();
        let boot = BootState {
            rip: CODE,
            rsp: STACK,
            cr3: PML4,
            gdt_base: GDT,
            gdt_limit: 0x37,
            ..BootState::default()
        };
        let mut processor = SoftProcessor::new(memory, boot, Clock::deterministic(1));
        let cpu = processor.cpu_mut();
        cpu.idtr = Table {
            base: IDT,
            limit: 0xFFF,
            ..Table::default()
        };
        cpu.tr = Table {
            base: TSS,
            limit: 0x67,
            selector: 0x40,
            attributes: 0x8B,
        };
        cpu.efer |= 0x801; // NXE SCE
        Self(processor)
    }

    fn run(&mut self) -> Intercept {
        self.0.run(10_000)
    }

    /// Runs until the guest halts.
    fn halt(&mut self) -> &mut Self {
        let intercept = self.run();
        assert!(matches!(intercept, Intercept::Halt { .. }), "{intercept:?}");
        self
    }

    /// The vector in whose handler the guest halted.
    fn vector(&self) -> Option<u8> {
        let inside = self.cpu().rip.checked_sub(HANDLERS + 1)?;
        (inside < 4096 && inside % 16 == 0).then_some((inside / 16) as u8)
    }

    /// Runs into an exception: its vector and error code.
    fn fault(&mut self) -> (u8, u64) {
        self.halt();
        (
            self.vector().expect("no handler was entered"),
            self.stack(0),
        )
    }

    fn cpu(&self) -> &Cpu {
        self.0.cpu()
    }

    fn cpu_mut(&mut self) -> &mut Cpu {
        self.0.cpu_mut()
    }

    fn reg(&self, index: u8) -> u64 {
        self.cpu().reg(index)
    }

    /// The 64-bit word `index` above the stack pointer.
    fn stack(&self, index: u64) -> u64 {
        self.word((self.reg(Cpu::RSP) & 0xFF_FFFF) + index * 8)
    }

    fn word(&self, place: u64) -> u64 {
        self.0.memory().read(place).unwrap()
    }

    fn put(&mut self, place: u64, value: u64) {
        self.0.memory().write(place, value).unwrap();
    }

    /// Replaces the entry of the low page at `address`.
    fn map(&mut self, address: u64, entry: u64) {
        self.put(PT + (address >> 12) * 8, entry);
        self.cpu_mut().flush_translations();
    }

    /// Continues at `CODE` in 64-bit user mode.
    fn as_user(&mut self) -> &mut Self {
        let cpu = self.cpu_mut();
        cpu.cpl = 3;
        cpu.segments[1].selector = USER_CODE;
        cpu.segments[2].selector = USER_DATA;
        cpu.update_domain();
        self
    }
}

fn gate(memory: &GuestMemory, vector: u64, handler: u64, attributes: u64, stack: u64) {
    let low = (handler & 0xFFFF)
        | u64::from(KERNEL_CODE) << 16
        | stack << 32
        | attributes << 40
        | (handler >> 16 & 0xFFFF) << 48;
    memory.write(IDT + vector * 16, low).unwrap();
    memory.write(IDT + vector * 16 + 8, handler >> 32).unwrap();
}

fn assemble(bitness: u32, at: u64, write: impl FnOnce(&mut CodeAssembler)) -> Vec<u8> {
    let mut assembler = CodeAssembler::new(bitness).unwrap();
    write(&mut assembler);
    assembler.assemble(at).unwrap()
}
