//! The I/O APIC: one pin, raised when a restored machine goes on, by which ACPI tells the guest's
//! kernel that its generation id has changed.
//!
//! As little of Intel's 82093AA as a stock Linux kernel takes: index and window in one page of the
//! hole, and one redirection entry, for an edge that goes to one local APIC with a vector. Whatever
//! else an entry could say is refused, and so is every other register.

use crate::{
    counters::Counters,
    flows::{Flow, Reject, values},
    memory::PAGE_SIZE,
    record::{Malformed, Record, check},
};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};

const BASE: u64 = values::MEMORY_IOAPIC_BASE;
/// Places in the page: which register, and its value.
const INDEX: u64 = 0x00;
const WINDOW: u64 = 0x10;
/// Registers.
const ID: u32 = 0x00;
const VERSION: u32 = 0x01;
const ARBITRATION: u32 = 0x02;
const ENTRY_LOW: u32 = 0x10;
const ENTRY_HIGH: u32 = 0x11;

/// That of the 82093AA; above it the number of the last entry, 0.
const VERSION_VALUE: u32 = 0x11;
/// Of an entry: its vector, whether its pin is active low (nobody can tell), whether it is masked.
const VECTOR: u32 = 0xFF;
const ACTIVE_LOW: u32 = 1 << 13;
const MASKED: u32 = 1 << 16;
const LOWEST_VECTOR: u32 = 0x10;
/// The local APIC in the upper half.
const DESTINATION: u32 = 24;

/// Why an access is refused.
const REFUSALS: [Reject; 2] = [Reject::MemoryIoapicAccess, Reject::MemoryIoapicEntry];

/// Reached by all processors at once; of two that change it together either may win, as a guest has
/// a lock for that.
#[derive(Debug)]
pub struct IoApic {
    index: AtomicU32,
    low: AtomicU32,
    high: AtomicU32,
    accepted: AtomicU64,
    refused: [AtomicU64; REFUSALS.len()],
}

impl Default for IoApic {
    fn default() -> Self {
        Self {
            index: AtomicU32::new(0),
            low: AtomicU32::new(MASKED),
            high: AtomicU32::new(0),
            accepted: AtomicU64::new(0),
            refused: Default::default(),
        }
    }
}

impl IoApic {
    /// Whether its page is the one of guest physical address `gpa`.
    pub fn is_at(gpa: u64) -> bool {
        gpa & !(PAGE_SIZE - 1) == BASE
    }

    /// Reads `size` bytes at `gpa` in its page; what is refused reads as all ones.
    pub fn load(&self, gpa: u64, size: usize) -> u128 {
        let value = match (gpa % PAGE_SIZE, size) {
            (INDEX, 4) => Ok(self.index.load(Relaxed)),
            (WINDOW, 4) => match self.index.load(Relaxed) {
                ID | ARBITRATION => Ok(0),
                VERSION => Ok(VERSION_VALUE),
                ENTRY_LOW => Ok(self.low.load(Relaxed)),
                ENTRY_HIGH => Ok(self.high.load(Relaxed)),
                _ => Err(Reject::MemoryIoapicAccess),
            },
            _ => Err(Reject::MemoryIoapicAccess),
        };
        self.count(value).map_or(u128::MAX, u128::from)
    }

    /// Writes the `size` low bytes of `value` at `gpa` in its page; what is refused changes nothing.
    pub fn store(&self, gpa: u64, size: usize, value: u128) {
        let value = value as u32;
        let register = match (gpa % PAGE_SIZE, size) {
            (INDEX, 4) => Ok((&self.index, value & 0xFF)),
            (WINDOW, 4) => match self.index.load(Relaxed) {
                ENTRY_LOW if is_low_half(value) => Ok((&self.low, value)),
                ENTRY_HIGH if is_high_half(value) => Ok((&self.high, value)),
                ENTRY_LOW | ENTRY_HIGH => Err(Reject::MemoryIoapicEntry),
                _ => Err(Reject::MemoryIoapicAccess),
            },
            _ => Err(Reject::MemoryIoapicAccess),
        };
        if let Some((register, value)) = self.count(register) {
            register.store(value, Relaxed);
        }
    }

    /// Refuses an access that is none of a processor's data: its code, or across a page's end.
    pub fn refuse(&self) {
        self.count::<()>(Err(Reject::MemoryIoapicAccess));
    }

    /// Where an edge on the pin goes: the number of a local APIC and a vector. `None`: masked.
    pub fn route(&self) -> Option<(usize, u8)> {
        let (low, high) = (self.low.load(Relaxed), self.high.load(Relaxed));
        (low & MASKED == 0).then_some(((high >> DESTINATION) as usize, (low & VECTOR) as u8))
    }

    fn count<T>(&self, result: Result<T, Reject>) -> Option<T> {
        match result {
            Ok(value) => {
                self.accepted.fetch_add(1, Relaxed);
                Some(value)
            }
            Err(kind) => {
                #[cfg(debug_assertions)]
                crate::evidence::refused(kind);
                for (_, count) in self.refusals().filter(|&(other, _)| other == kind) {
                    count.fetch_add(1, Relaxed);
                }
                None
            }
        }
    }

    fn refusals(&self) -> impl Iterator<Item = (Reject, &AtomicU64)> {
        REFUSALS.into_iter().zip(&self.refused)
    }

    /// Hands over what was counted since the last call.
    pub fn merge_counts(&self, counters: &Counters) {
        let (flow, count) = (Flow::MemoryIoapic, self.accepted.swap(0, Relaxed));
        counters.merge(flow, count, count * flow.max_bytes());
        for (kind, count) in self.refusals() {
            counters.merge_rejected(kind, count.swap(0, Relaxed));
        }
    }

    pub fn state(&self, record: &mut Record) -> Result<(), Malformed> {
        let registers = [&self.index, &self.low, &self.high];
        let mut values = registers.map(|register| register.load(Relaxed));
        record.field(&mut values)?;
        let [index, low, high] = values;
        check(index <= 0xFF, "the index of the I/O APIC")?;
        check(is_low_half(low), "an entry of the I/O APIC")?;
        check(is_high_half(high), "a destination of the I/O APIC")?;
        for (register, value) in registers.into_iter().zip(values) {
            register.store(value, Relaxed);
        }
        Ok(())
    }
}

/// Fixed delivery, physical destination, edge; masked, or with a vector that an APIC delivers.
fn is_low_half(value: u32) -> bool {
    value & !(VECTOR | ACTIVE_LOW | MASKED) == 0
        && (value & MASKED != 0 || value & VECTOR >= LOWEST_VECTOR)
}

fn is_high_half(value: u32) -> bool {
    value & !(0xFF << DESTINATION) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(ioapic: &IoApic, register: u32) -> u128 {
        ioapic.store(BASE + INDEX, 4, register.into());
        ioapic.load(BASE + WINDOW, 4)
    }

    fn write(ioapic: &IoApic, register: u32, value: u32) {
        ioapic.store(BASE + INDEX, 4, register.into());
        ioapic.store(BASE + WINDOW, 4, value.into());
    }

    fn counts(ioapic: &IoApic) -> (u64, u64) {
        let counters = Counters::anonymous().unwrap();
        ioapic.merge_counts(&counters);
        let count = counters.get(Flow::MemoryIoapic);
        (count.count, count.rejected)
    }

    #[test]
    fn it_has_one_entry_that_begins_masked() {
        let ioapic = IoApic::default();
        assert_eq!(read(&ioapic, VERSION), 0x11);
        assert_eq!(read(&ioapic, ID), 0);
        assert_eq!(read(&ioapic, ARBITRATION), 0);
        assert_eq!(read(&ioapic, ENTRY_LOW), MASKED.into());
        assert_eq!(ioapic.route(), None);
        write(&ioapic, ENTRY_HIGH, 3 << DESTINATION);
        write(&ioapic, ENTRY_LOW, 0x31 | ACTIVE_LOW);
        assert_eq!(ioapic.route(), Some((3, 0x31)));
        assert_eq!(read(&ioapic, ENTRY_LOW), (0x31 | ACTIVE_LOW).into());
        assert_eq!(read(&ioapic, ENTRY_HIGH), 3 << DESTINATION);
        assert_eq!(ioapic.load(BASE + INDEX, 4), ENTRY_HIGH.into());
        assert_eq!(counts(&ioapic), (17, 0));
        assert_eq!(counts(&ioapic), (0, 0));
    }

    #[test]
    fn what_an_entry_cannot_be_is_refused() {
        let ioapic = IoApic::default();
        write(&ioapic, ENTRY_LOW, 0x31);
        let delivery_modes = (1..8).map(|mode| 0x40 | mode << 8);
        // Logical destination, delivery status, remote IRR, level, and what is reserved.
        let bits = [11, 12, 14, 15].into_iter().chain(17..32);
        let others = bits.map(|bit| 0x40 | 1 << bit);
        let vectors = 0..LOWEST_VECTOR;
        let mut refused = 0;
        for low in delivery_modes.chain(others).chain(vectors) {
            write(&ioapic, ENTRY_LOW, low);
            refused += 1;
            assert_eq!(ioapic.route(), Some((0, 0x31)), "{low:#x}");
        }
        for bit in 0..DESTINATION {
            write(&ioapic, ENTRY_HIGH, 1 << DESTINATION | 1 << bit);
            refused += 1;
            assert_eq!(ioapic.route(), Some((0, 0x31)), "{bit}");
        }
        assert_eq!(counts(&ioapic).1, refused);
    }

    #[test]
    fn every_other_access_is_refused() {
        let ioapic = IoApic::default();
        let mut refused = 0;
        for place in (0..PAGE_SIZE).filter(|&place| place != INDEX && place != WINDOW) {
            assert_eq!(ioapic.load(BASE + place, 4), u128::MAX);
            ioapic.store(BASE + place, 4, 0x31);
            refused += 2;
        }
        for place in [INDEX, WINDOW] {
            for size in [1, 2, 8, 16] {
                assert_eq!(ioapic.load(BASE + place, size), u128::MAX);
                ioapic.store(BASE + place, size, 0x31);
                refused += 2;
            }
        }
        let registers = (0..=0xFF).filter(|register| !(ENTRY_LOW..=ENTRY_HIGH).contains(register));
        for register in registers {
            write(&ioapic, register, 0x31);
            refused += 1;
            if register > ARBITRATION {
                assert_eq!(read(&ioapic, register), u128::MAX);
                refused += 1;
            }
        }
        ioapic.refuse();
        assert_eq!(counts(&ioapic).1, refused + 1);
        assert_eq!(read(&ioapic, ENTRY_LOW), MASKED.into());
        assert_eq!(read(&ioapic, ENTRY_HIGH), 0);
    }

    #[test]
    fn a_saved_entry_that_cannot_be_is_refused() {
        let saved = |values: [u32; 3]| {
            let mut record = Record::saving(0);
            record.field(&mut { values }).unwrap();
            let mut record = Record::restoring(&record.finish(), 0).unwrap();
            let ioapic = IoApic::default();
            ioapic.state(&mut record).map(|()| ioapic.route())
        };
        assert_eq!(saved([0x11, 0x31, 2 << 24]), Ok(Some((2, 0x31))));
        assert_eq!(saved([0, MASKED, 0]), Ok(None));
        for wrong in [[0x100, MASKED, 0], [0, 0, 0], [0, 0x8031, 0], [0, 0x31, 1]] {
            assert!(
                matches!(saved(wrong), Err(Malformed::Value(_))),
                "{wrong:?}"
            );
        }
    }
}
