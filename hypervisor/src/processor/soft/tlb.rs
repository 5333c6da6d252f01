//! The software TLB: translations by domain, what a hit costs, and what makes them stale.

use super::paging::Page;
use crate::memory::PAGE_SIZE;

/// Entries per table.
pub const ENTRIES: usize = 1024;

pub(super) const OFFSET: u64 = PAGE_SIZE - 1;
/// The generation is held in the low 12 bits of a tag; 0 marks an entry that never matches.
const LAST_GENERATION: u64 = OFFSET;

/// One translation. `tag` is the linear page address with the generation of its half of the
/// address space in the low 12 bits; `addend + linear address` is the offset in guest memory.
#[derive(Clone, Copy, Default)]
pub struct Entry {
    pub tag: u64,
    pub addend: u64,
}

impl Entry {
    /// Offset in guest memory of the page.
    pub(super) fn page(self) -> u64 {
        self.addend.wrapping_add(self.tag & !OFFSET)
    }
}

type Table = [Entry; ENTRIES];

/// Who is asking: each has its own tables, so that permissions are checked once, at the fill.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Domain {
    /// CPL 0-2, user pages refused when SMAP is on.
    Kernel = 0,
    /// CPL 0-2 with user pages allowed (AC set, or SMAP off).
    KernelUser = 1,
    /// CPL 3.
    User = 2,
}

pub struct Tlb {
    /// By domain: 0-2 as in [`Domain`]; index 3 unused, so that a masked index needs no check.
    pub read: Box<[Table; 4]>,
    pub write: Box<[Table; 4]>,
    /// Instruction fetches: supervisor (0) and user (1).
    pub(super) execute: Box<[Table; 2]>,
    pub domain: Domain,
    /// Generations (1..4095) of the user half and the kernel half of the address space.
    pub generation: [u64; 2],
    /// Counts, by half, what may have changed where code lies: flushes of any kind.
    pub(super) epoch: [u64; 2],
    /// Whether the kernel half holds translations that a CR3 write must drop.
    pub(super) transient_kernel: bool,
    /// A set (one hashed bit per 2 MiB region) of the regions filled from 2 MiB pages.
    pub(super) large: [u64; 64],
    /// A set (one hashed bit per GiB) of the regions filled from 1 GiB pages.
    pub(super) giant: u64,
    /// A set (one hashed bit per page of RAM) of the pages that some write entry may lead to.
    stored: [u64; 64],
}

fn tables<const N: usize>() -> Box<[Table; N]> {
    let rows = vec![[Entry::default(); ENTRIES]; N].into_boxed_slice();
    // The length is N, so the conversion cannot fail; the other arm only satisfies types.
    rows.try_into()
        .unwrap_or_else(|_| Box::new([[Entry::default(); ENTRIES]; N]))
}

fn large_bit(linear: u64) -> (usize, u64) {
    let region = linear >> 21;
    ((region >> 6) as usize & 63, 1 << (region & 63))
}

/// The bit of the page at `offset` in guest memory.
fn stored_bit(offset: u64) -> (usize, u64) {
    let page = offset >> 12;
    ((page >> 6) as usize & 63, 1 << (page & 63))
}

pub(super) fn giant_bit(linear: u64) -> u64 {
    1 << (linear >> 30 & 63)
}

impl Default for Tlb {
    fn default() -> Self {
        Self::new()
    }
}

impl Tlb {
    pub fn new() -> Self {
        Self {
            read: tables(),
            write: tables(),
            execute: tables(),
            domain: Domain::Kernel,
            generation: [1, 1],
            epoch: [0, 0],
            transient_kernel: false,
            large: [0; 64],
            giant: 0,
            stored: [0; 64],
        }
    }

    #[inline(always)]
    pub(super) fn tag(&self, linear: u64, size: u64) -> u64 {
        // An access that crosses into the next page gets that page's tag and so misses.
        (linear.wrapping_add(size.wrapping_sub(1)) & !OFFSET)
            | self.generation[(linear >> 63) as usize & 1]
    }

    #[inline(always)]
    pub(super) fn index(linear: u64) -> usize {
        (linear >> 12) as usize & (ENTRIES - 1)
    }

    /// Says whether bytes of code at `linear` that were compared with RAM before must be compared
    /// again: not as long as this value is the same.
    pub fn epoch(&self, linear: u64) -> u64 {
        let half = linear >> 63;
        self.epoch[half as usize & 1] << 1 | half
    }

    /// Every row of every table.
    pub(super) fn rows(&mut self) -> impl Iterator<Item = &mut Table> {
        self.read
            .iter_mut()
            .chain(self.write.iter_mut())
            .chain(self.execute.iter_mut())
    }

    pub(super) fn note_fill(&mut self, linear: u64, page: Page) {
        if linear >> 63 != 0 && !page.global {
            self.transient_kernel = true;
        }
        match page.shift {
            12 => {}
            21 => {
                let (word, bit) = large_bit(linear);
                self.large[word] |= bit;
            }
            _ => self.giant |= giant_bit(linear),
        }
    }

    /// Makes all translations of one half (0 user, 1 kernel) stale. True when generations begin
    /// anew, so that whoever else remembers them must forget.
    #[must_use]
    pub(super) fn next_generation(&mut self, half: usize) -> bool {
        self.epoch[half & 1] += 1;
        let wraps = self.generation[half & 1] >= LAST_GENERATION;
        self.generation[half & 1] += 1;
        if wraps {
            self.generation[half & 1] = 1;
            for row in self.rows() {
                for entry in row.iter_mut().filter(|e| (e.tag >> 63) as usize == half) {
                    *entry = Entry::default();
                }
            }
        }
        if half == 1 {
            self.transient_kernel = false;
        }
        wraps
    }

    /// Drops the entries of the page at `linear`, also where it is part of a larger page; returns the
    /// shift of the size of what was dropped.
    pub(super) fn drop_page(&mut self, linear: u64) -> u32 {
        let (word, bit) = large_bit(linear);
        let shift = if self.large[word] & bit != 0 { 21 } else { 12 };
        let index = Self::index(linear);
        for row in self.rows() {
            if shift == 12 {
                if row[index].tag & !OFFSET == linear & !OFFSET {
                    row[index] = Entry::default();
                }
                continue;
            }
            for entry in row.iter_mut().filter(|e| e.tag >> 21 == linear >> 21) {
                *entry = Entry::default();
            }
        }
        shift
    }

    /// Lets stores of a domain go to the page of an entry without asking.
    pub(super) fn allow_fast_stores(&mut self, row: usize, index: usize, entry: Entry) {
        let (word, bit) = stored_bit(entry.page());
        self.stored[word] |= bit;
        self.write[row & 3][index] = entry;
    }

    /// Sends stores to the page at `offset` in guest memory through the slow path from now on.
    pub fn forbid_fast_stores(&mut self, offset: u64) {
        let (word, bit) = stored_bit(offset);
        if self.stored[word] & bit == 0 {
            return;
        }
        for row in self.write.iter_mut() {
            for entry in row.iter_mut().filter(|e| e.tag != 0 && e.page() == offset) {
                *entry = Entry::default();
            }
        }
    }
}
