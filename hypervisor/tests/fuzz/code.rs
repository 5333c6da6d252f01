//! Any code with any state: decoding, the code cache, page walks, exceptions, every handler.
//!
//! The first bytes choose registers, mode and page tables, the rest is the code, which may reach
//! its own page tables and descriptor tables.

use super::bytes::Bytes;
use teuthis_hypervisor::{
    clock::Clock,
    counters::Counters,
    flows::values::MEMORY_HOLE_HOLE_FIRST,
    memory::GuestMemory,
    processor::{
        BootState, Completion, Intercept, Processor,
        soft::{SoftProcessor, cpu::Table},
    },
};

const MEMORY: u64 = 4 << 20;
const PML4: u64 = 0x1000;
const PDPT: u64 = 0x2000;
const DIRECTORY: u64 = 0x3000;
const PAGES: u64 = 0x4000;
const GDT: u64 = 0x6000;
const IDT: u64 = 0x7000;
const TSS: u64 = 0x8000;
const CODE: u64 = 0x1_0000;
const CODE_SIZE: usize = 0x3000;
const STACK: u64 = 0x4_0000;
/// A page without memory behind it.
const HOLE: u64 = 0x5_0000;
const KERNEL_HALF: u64 = 0xFFFF_8000_0000_0000;
const PRESENT_WRITABLE_USER: u64 = 7;
const LARGE: u64 = 0x80;
const DESCRIPTORS: [u64; 7] = [
    0,
    0,
    0x00AF_9B00_0000_FFFF,
    0x00CF_9300_0000_FFFF,
    0x00CF_FB00_0000_FFFF,
    0x00CF_F300_0000_FFFF,
    0x00AF_FB00_0000_FFFF,
];
/// Instead of the fuzzer's code: out 0x80, al; wrmsr; rdmsr; and again. Faults come back to it.
const REGISTERS: [u8; 8] = [0xE6, 0x80, 0x0F, 0x30, 0x0F, 0x32, 0xEB, 0xF8];
/// The same with stores, near and into this code: out 0x80, al; mov [rcx], rax; mov [rcx + 8], rax;
/// and again.
const STORES: [u8; 11] = [
    0xE6, 0x80, 0x48, 0x89, 0x01, 0x48, 0x89, 0x41, 8, 0xEB, 0xF5,
];
/// Registers that the processor has, beside those in ranges.
const KNOWN: [u64; 18] = [
    0x10,
    0x1B,
    0xFE,
    0x174,
    0x175,
    0x176,
    0x1A0,
    0x200,
    0x250,
    0x26F,
    0x277,
    0x2FF,
    0xC000_0084,
    0xC000_0100,
    0xC000_0101,
    0xC000_0102,
    0xC000_0103,
    0xC000_0080,
];
/// What some of them hold: memory types, SCE with LME and LMA, where the APIC is.
const HELD: [u64; 4] = [0x0606_0606_0606_0606, 0xD01, 0xFEE0_0900, 0];
/// Pages, and entries of tables, that are used whatever the code does.
const USED: [u64; 12] = [0, 1, 2, 3, 4, 6, 7, 8, 0x10, 0x3F, 0x40, 0x50];
/// Slices, and instructions of each: enough to leave the code and come back by an exception.
const SLICES: usize = 10;
/// With code of ours: as many steps as there are bytes.
const MOST_STEPS: usize = 400;
const SLICE: u32 = 100;

pub fn run(data: &[u8]) {
    let mut bytes = Bytes(data);
    let program = Program::of(data.first().copied().unwrap_or(0));
    let mut processor = processor(&mut bytes, program);
    for slice in 0..MOST_STEPS {
        if slice >= SLICES && (program == Program::Any || bytes.0.is_empty()) {
            break;
        }
        match processor.run(SLICE) {
            Intercept::SliceEnd => {}
            Intercept::Shutdown => break,
            Intercept::Halt { .. } => processor.assert_interrupt(0, bytes.byte()),
            Intercept::Cpuid { .. } => {
                processor.complete(Completion::Cpuid([bytes.number(4) as u32; 4]));
            }
            Intercept::PortWrite { port: 0x80, .. } => {
                let place = match program {
                    Program::Stores => CODE + bytes.number(1),
                    _ => model_specific_register(&mut bytes),
                };
                let value = match bytes.byte() % 4 {
                    0 => HELD[bytes.below(HELD.len() as u64) as usize],
                    1 => bytes.number(2),
                    _ => bytes.value(),
                };
                let cpu = processor.cpu_mut();
                cpu.gpr[1] = place;
                cpu.gpr[0] = value & 0xFFFF_FFFF;
                cpu.gpr[2] = value >> 32;
                processor.complete(Completion::Done);
            }
            _ if bytes.byte() % 4 == 3 => processor.complete(Completion::GeneralProtection),
            _ => processor.complete(Completion::Value(bytes.value())),
        }
    }
    assert!(processor.unimplemented().len() <= 64, "notes are bounded");
    processor.merge_counts(&Counters::anonymous().unwrap());
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Program {
    /// The fuzzer's bytes.
    Any,
    Registers,
    Stores,
}

impl Program {
    /// As the first byte chooses.
    fn of(mode: u8) -> Self {
        match mode & 12 {
            4 => Program::Registers,
            12 => Program::Stores,
            _ => Program::Any,
        }
    }
}

/// A processor whose next instruction is the first of the fuzzer's.
fn processor(bytes: &mut Bytes, program: Program) -> SoftProcessor {
    let memory = GuestMemory::anonymous(MEMORY).unwrap();
    let put = |place, value: u64| memory.write(place, value).unwrap();
    put(PML4, PDPT | PRESENT_WRITABLE_USER);
    put(PML4 + 256 * 8, PDPT | PRESENT_WRITABLE_USER);
    put(PDPT, DIRECTORY | PRESENT_WRITABLE_USER);
    put(DIRECTORY, PAGES | PRESENT_WRITABLE_USER);
    put(DIRECTORY + 8, (2 << 20) | LARGE | PRESENT_WRITABLE_USER);
    for page in 0..512 {
        put(PAGES + page * 8, (page << 12) | PRESENT_WRITABLE_USER);
    }
    put(
        PAGES + 8 * (HOLE >> 12),
        MEMORY_HOLE_HOLE_FIRST | PRESENT_WRITABLE_USER,
    );
    for (at, descriptor) in (GDT..).step_by(8).zip(DESCRIPTORS) {
        put(at, descriptor);
    }
    put(TSS + 4, STACK + 0x1_0000);
    put(TSS + 0x24, STACK + 0x2_0000);
    memory.write(TSS + 0x66, 0x68_u16).unwrap(); // no port permission map

    let mode = bytes.byte();
    let flags = bytes.number(3);
    let state: Vec<u64> = (0..16).map(|_| address(bytes)).collect();
    // Some entries of the tables are the fuzzer's: other pages, other rights, other descriptors.
    for _ in 0..bytes.below(8) {
        let table = [PML4, PDPT, DIRECTORY, PAGES, GDT][bytes.below(5) as usize];
        let index = match bytes.byte() % 2 {
            0 => USED[bytes.below(USED.len() as u64) as usize],
            _ => bytes.below(512),
        };
        // What was there, with other rights or a bit that must be zero; or anything.
        let value = match bytes.byte() % 3 {
            0 => index << 12 | bytes.number(1),
            1 => index << 12 | 7 | 1 << (bytes.byte() % 64),
            _ => bytes.value(),
        };
        put(table + 8 * index, value);
    }
    for vector in 0..32 {
        let handler = match program {
            Program::Any => CODE + bytes.below(CODE_SIZE as u64),
            _ => CODE,
        };
        let (selector, attributes) = match bytes.byte() % 8 {
            7 => (bytes.number(1), bytes.number(1)),
            6 => (0x10, 0x8F ^ 1 << (bytes.byte() % 8)),
            5 => (bytes.byte() as u64 % 7 * 8, 0x8E),
            _ => (0x10, 0x8F),
        };
        let low = handler & 0xFFFF | selector << 16 | bytes.below(3) << 32 | attributes << 40;
        put(IDT + vector * 16, low | (handler >> 16 & 0xFFFF) << 48);
    }
    let code = match program {
        Program::Any => bytes.take(CODE_SIZE.min(bytes.0.len() - bytes.0.len() / 4)),
        Program::Registers => &REGISTERS,
        Program::Stores => &STORES,
    };
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
    for (register, value) in cpu.gpr.iter_mut().zip(state) {
        *register = value;
    }
    cpu.system_flags = flags & 0x0024_5700;
    cpu.cpl = if mode & 1 == 0 { 0 } else { 3 };
    cpu.long_code = mode & 2 == 0;
    cpu.cr4 |= 0x600; // OSFXSR OSXMMEXCPT
    cpu.update_fpu_access();
    cpu.update_domain();
    processor
}

fn model_specific_register(bytes: &mut Bytes) -> u64 {
    match bytes.byte() % 4 {
        0 => 0x800 + bytes.below(64),
        1 => 0xC000_0080 + bytes.below(4),
        2 => KNOWN[bytes.below(KNOWN.len() as u64) as usize],
        _ => bytes.number(4),
    }
}

/// Addresses inside and at the edges of things, small numbers, large ones, anything.
fn address(bytes: &mut Bytes) -> u64 {
    match bytes.byte() % 6 {
        0 => [PAGES, GDT, IDT, TSS, CODE, STACK, HOLE][bytes.below(7) as usize] + bytes.number(1),
        1 => MEMORY - bytes.number(1),
        2 => KERNEL_HALF + bytes.number(2),
        3 => 0x8_0000 + bytes.number(1),
        _ => bytes.value(),
    }
}
