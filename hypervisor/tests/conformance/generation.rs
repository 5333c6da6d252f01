//! A restored guest hears by the I/O APIC's pin that it is another machine now.

use crate::{
    guest::{Guest, Stop},
    program::Program,
};
use iced_x86::code_asm::*;
use teuthis_hypervisor::{
    flows::{Flow, values},
    link::End,
};

const INDEX: u64 = values::MEMORY_IOAPIC_BASE;
const WINDOW: u64 = INDEX + 0x10;
const VERSION: u32 = 1;
const ENTRY_LOW: u32 = 0x10;
const ENTRY_HIGH: u32 = 0x11;
const MASKED: u32 = 1 << 16;
const VECTOR: u8 = 0x31;

impl Program {
    fn select(&mut self, register: u32) -> &mut Self {
        self.asm.mov(ebx, INDEX as u32).unwrap();
        self.asm.mov(dword_ptr(rbx), register).unwrap();
        self
    }

    fn write_ioapic(&mut self, register: u32, value: u32) -> &mut Self {
        self.select(register);
        self.asm.mov(dword_ptr(rbx + 0x10), value).unwrap();
        self
    }

    fn read_ioapic(&mut self, register: u32) -> &mut Self {
        self.select(register);
        self.asm.mov(eax, dword_ptr(rbx + 0x10)).unwrap();
        self.report()
    }
}

/// A guest that has gone to sleep with its entry at `low` and `high`, saved and restored.
fn restored(low: u32, high: u32) -> Guest {
    let mut program = Program::new();
    program
        .count_interrupts(VECTOR)
        .read_ioapic(VERSION)
        .write_ioapic(ENTRY_HIGH, high)
        .write_ioapic(ENTRY_LOW, low)
        .halt()
        .read_ioapic(ENTRY_LOW)
        .read_ioapic(ENTRY_HIGH);
    let mut saved = Guest::new(program);
    assert_eq!(saved.run(), Stop::Asleep);
    let (state, memory) = saved.save();
    assert_eq!(saved.run(), Stop::Asleep, "the saved one is who it was");
    let mut guest = Guest::restore(saved.kind(), &state, &memory).unwrap();
    guest.announce_generation();
    guest
}

#[test]
fn a_restored_guest_is_told() {
    let mut guest = restored(VECTOR.into(), 0);
    assert_eq!(guest.run(), Stop::End(End::Halted));
    assert_eq!(guest.interrupts(VECTOR), 1);
    let [_, version, low, high] = guest.results();
    assert_eq!([version, low, high], [0x11, VECTOR.into(), 0]);
    assert_eq!(guest.count(Flow::InterruptGeneration).count, 1);
    let accesses = guest.count(Flow::MemoryIoapic);
    assert_eq!((accesses.count, accesses.rejected), (4, 0));
}

#[test]
fn a_guest_that_did_not_ask_is_not_told() {
    let nobody = 7 << 24;
    for (low, high) in [(u32::from(VECTOR) | MASKED, 0), (VECTOR.into(), nobody)] {
        let mut guest = restored(low, high);
        assert_eq!(guest.run(), Stop::Asleep);
        assert_eq!(guest.interrupts(VECTOR), 0);
        let count = guest.count(Flow::InterruptGeneration);
        assert_eq!((count.count, count.rejected), (0, 1));
    }
}

#[test]
fn other_accesses_to_the_page_are_refused() {
    let mut program = Program::new();
    program.write_ioapic(ENTRY_LOW, VECTOR.into());
    program.write_ioapic(ENTRY_LOW, u32::from(VECTOR) | 4 << 8); // an NMI
    program.read_ioapic(0x12);
    program.load(WINDOW).store(WINDOW, 0).load(INDEX + 0x40);
    // Across the page's end, into the hole behind it; as code; as a string.
    program.load(INDEX + 0xFFE);
    let asm = &mut program.asm;
    asm.mov(esi, WINDOW as u32).unwrap();
    asm.mov(edi, WINDOW as u32).unwrap();
    asm.mov(ecx, 2).unwrap();
    asm.rep().movsb().unwrap();
    program.read_ioapic(ENTRY_LOW);
    let mut guest = Guest::new(program);
    assert_eq!(guest.run(), Stop::End(End::Halted));
    let ones = u64::MAX;
    assert_eq!(
        guest.results(),
        [0xFFFF_FFFF, ones, ones, ones, VECTOR.into()]
    );
    let count = guest.count(Flow::MemoryIoapic);
    assert_eq!(count.rejected, 10);
}
