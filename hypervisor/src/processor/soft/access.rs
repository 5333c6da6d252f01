//! Guest memory as instructions see it: linear addresses, through a software TLB.
//!
//! A hit costs an index, a compare and the copy. Everything else (page walk, accesses across a
//! page boundary, pages that hold decoded code, holes) is in the cold path. Holes of the physical
//! address space read as all ones and ignore writes.

use super::{
    cpu::{Cpu, Exception, Exit},
    flags,
    paging::{Access, CR4_SMAP, Page, is_canonical},
    simd::vector::Vector,
};
use crate::{
    flows::Flow,
    memory::{PAGE_SIZE, Plain},
};

/// Entries per table.
pub const ENTRIES: usize = 1024;

const OFFSET: u64 = PAGE_SIZE - 1;
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
    fn page(self) -> u64 {
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
    execute: Box<[Table; 2]>,
    pub domain: Domain,
    /// Generations (1..4095) of the user half and the kernel half of the address space.
    pub generation: [u64; 2],
    /// Counts, by half, what may have changed where code lies: flushes of any kind.
    epoch: [u64; 2],
    /// Whether the kernel half holds translations that a CR3 write must drop.
    transient_kernel: bool,
    /// A set (one hashed bit per 2 MiB region) of the regions filled from 2 MiB pages.
    large: [u64; 64],
    /// A set (one hashed bit per GiB) of the regions filled from 1 GiB pages.
    giant: u64,
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

fn giant_bit(linear: u64) -> u64 {
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
        }
    }

    #[inline(always)]
    fn tag(&self, linear: u64, size: u64) -> u64 {
        // An access that crosses into the next page gets that page's tag and so misses.
        (linear.wrapping_add(size.wrapping_sub(1)) & !OFFSET)
            | self.generation[(linear >> 63) as usize & 1]
    }

    #[inline(always)]
    fn index(linear: u64) -> usize {
        (linear >> 12) as usize & (ENTRIES - 1)
    }

    /// Says whether bytes of code at `linear` that were compared with RAM before must be compared
    /// again: not as long as this value is the same.
    pub fn epoch(&self, linear: u64) -> u64 {
        let half = linear >> 63;
        self.epoch[half as usize & 1] << 1 | half
    }

    /// Every row of every table.
    fn rows(&mut self) -> impl Iterator<Item = &mut Table> {
        self.read
            .iter_mut()
            .chain(self.write.iter_mut())
            .chain(self.execute.iter_mut())
    }

    fn note_fill(&mut self, linear: u64, page: Page) {
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
    fn next_generation(&mut self, half: usize) -> bool {
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
    fn drop_page(&mut self, linear: u64) -> u32 {
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

    /// Sends stores to the page at `offset` in guest memory through the slow path from now on.
    pub fn forbid_fast_stores(&mut self, offset: u64) {
        for row in self.write.iter_mut() {
            for entry in row.iter_mut().filter(|e| e.tag != 0 && e.page() == offset) {
                *entry = Entry::default();
            }
        }
    }
}

impl Cpu {
    /// The value at a linear address, when that takes no more than the TLB. The hot handlers use
    /// these three and start over in a cold copy of themselves when there is no answer: what calls
    /// nothing has no registers to save.
    #[inline(always)]
    pub fn load_fast<T: Plain>(&self, linear: u64) -> Option<T> {
        let entry = &self.tlb.read[self.tlb.domain as usize & 3][Tlb::index(linear)];
        if entry.tag != self.tlb.tag(linear, size_of::<T>() as u64) {
            return None;
        }
        self.memory.read(entry.addend.wrapping_add(linear))
    }

    /// As `load_fast`, for a value that the same instruction writes back.
    #[inline(always)]
    pub fn load_for_update_fast<T: Plain>(&self, linear: u64) -> Option<T> {
        let entry = &self.tlb.write[self.tlb.domain as usize & 3][Tlb::index(linear)];
        if entry.tag != self.tlb.tag(linear, size_of::<T>() as u64) {
            return None;
        }
        self.memory.read(entry.addend.wrapping_add(linear))
    }

    /// Stores, when that takes no more than the TLB.
    #[inline(always)]
    pub fn store_fast<T: Plain>(&self, linear: u64, value: T) -> Option<()> {
        let entry = &self.tlb.write[self.tlb.domain as usize & 3][Tlb::index(linear)];
        if entry.tag != self.tlb.tag(linear, size_of::<T>() as u64) {
            return None;
        }
        self.memory.write(entry.addend.wrapping_add(linear), value)
    }

    /// Loads a value at a linear address with the current privilege.
    #[inline(always)]
    pub fn load<T: Plain>(&mut self, linear: u64) -> Result<T, Exit> {
        match self.load_fast(linear) {
            Some(value) => Ok(value),
            None => self.load_slow(linear),
        }
    }

    /// Loads a vector operand: like `load::<u128>`, in a form that vector code can use as it is.
    #[inline(always)]
    pub fn load_vector(&mut self, linear: u64) -> Result<Vector, Exit> {
        let entry = &self.tlb.read[self.tlb.domain as usize & 3][Tlb::index(linear)];
        let mut value = Vector::default();
        if entry.tag == self.tlb.tag(linear, 16)
            && let Some(bytes) = self.memory.read_vector(entry.addend.wrapping_add(linear))
        {
            value = Vector(bytes);
        } else {
            // By reference, so that both ways leave the value in memory and none lane by lane.
            self.load_vector_slow(linear, &mut value)?;
        }
        Ok(value)
    }

    #[cold]
    #[inline(never)]
    fn load_vector_slow(&mut self, linear: u64, value: &mut Vector) -> Result<(), Exit> {
        *value = self.load_slow::<u128>(linear)?.into();
        Ok(())
    }

    /// Loads a value that the same instruction writes back: faults as its store would.
    #[inline(always)]
    pub fn load_for_update<T: Plain>(&mut self, linear: u64) -> Result<T, Exit> {
        match self.load_for_update_fast(linear) {
            Some(value) => Ok(value),
            None => self.load_for_update_slow(linear),
        }
    }

    /// Stores a value at a linear address with the current privilege.
    ///
    /// `Err(Exit::Resync)` is never returned from here: a store into decoded code is noted in
    /// [`Cpu::code`] and the loop leaves the block after this instruction.
    #[inline(always)]
    pub fn store<T: Plain>(&mut self, linear: u64, value: T) -> Result<(), Exit> {
        match self.store_fast(linear, value) {
            Some(()) => Ok(()),
            None => self.store_slow(linear, value),
        }
    }

    #[cold]
    #[inline(never)]
    fn load_slow<T: Plain>(&mut self, linear: u64) -> Result<T, Exit> {
        let size = size_of::<T>();
        if within_page(linear, size as u64) {
            let offset = self.translate(linear, Access::Read)?;
            return Ok(offset
                .and_then(|offset| self.memory.read(offset))
                .unwrap_or(T::narrow(u128::MAX)));
        }
        let mut bytes = [0; 16];
        if let Some(bytes) = bytes.get_mut(..size) {
            self.load_bytes(linear, bytes)?;
        }
        Ok(T::narrow(u128::from_le_bytes(bytes)))
    }

    #[cold]
    #[inline(never)]
    fn load_for_update_slow<T: Plain>(&mut self, linear: u64) -> Result<T, Exit> {
        self.check_store(linear, size_of::<T>() as u64)?;
        self.load_slow(linear)
    }

    #[cold]
    #[inline(never)]
    fn store_slow<T: Plain>(&mut self, linear: u64, value: T) -> Result<(), Exit> {
        let size = size_of::<T>();
        if within_page(linear, size as u64) {
            if let Some(offset) = self.translate(linear, Access::Write)? {
                let _ = self.memory.write(offset, value);
                self.code.note_store(offset, size as u64);
            }
            return Ok(());
        }
        let bytes = value.widen().to_le_bytes();
        self.store_bytes(linear, bytes.get(..size).unwrap_or(&bytes))
    }

    /// Checks that `size` bytes at `linear` could be stored, without storing: for instructions
    /// that read, compute and write back (so that they fault before any register changes) and for
    /// stores of more than 16 bytes.
    pub fn check_store(&mut self, linear: u64, size: u64) -> Result<(), Exit> {
        let mut at = linear;
        let mut left = size;
        while left > 0 {
            self.translate(at, Access::Write)?;
            let step = (PAGE_SIZE - (at & OFFSET)).min(left);
            at = at.wrapping_add(step);
            left -= step;
        }
        Ok(())
    }

    /// Loads bytes of any length, also across pages.
    pub fn load_bytes(&mut self, linear: u64, into: &mut [u8]) -> Result<(), Exit> {
        let mut at = linear;
        let mut rest = into;
        while !rest.is_empty() {
            let length = ((PAGE_SIZE - (at & OFFSET)) as usize).min(rest.len());
            let (part, after) = rest.split_at_mut(length);
            let offset = self.translate(at, Access::Read)?;
            let copied = offset.and_then(|offset| self.memory.read_bytes(offset, part));
            if copied.is_none() {
                part.fill(0xFF);
            }
            at = at.wrapping_add(length as u64);
            rest = after;
        }
        Ok(())
    }

    /// Stores bytes of any length, also across pages; nothing is stored when any page refuses.
    pub fn store_bytes(&mut self, linear: u64, from: &[u8]) -> Result<(), Exit> {
        if !within_page(linear, from.len() as u64) {
            self.check_store(linear, from.len() as u64)?;
        }
        let mut at = linear;
        let mut rest = from;
        while !rest.is_empty() {
            let length = ((PAGE_SIZE - (at & OFFSET)) as usize).min(rest.len());
            let (part, after) = rest.split_at(length);
            if let Some(offset) = self.translate(at, Access::Write)? {
                let _ = self.memory.write_bytes(offset, part);
                self.code.note_store(offset, length as u64);
            }
            at = at.wrapping_add(length as u64);
            rest = after;
        }
        Ok(())
    }

    /// For bulk work: offset of `linear` in guest memory and how many bytes from there stay in its
    /// page. `None` for pages that must go element by element through `load` and `store` (holes;
    /// decoded code when `write`).
    pub fn page_span(&mut self, linear: u64, write: bool) -> Result<Option<(u64, u64)>, Exit> {
        let access = if write { Access::Write } else { Access::Read };
        let Some(offset) = self.translate(linear, access)? else {
            return Ok(None);
        };
        if write && self.code.is_code(offset) {
            return Ok(None);
        }
        Ok(Some((offset, PAGE_SIZE - (linear & OFFSET))))
    }

    /// Runs `work` with the rights of the processor itself (descriptor tables, task state): never
    /// those of user code, whatever AC says.
    pub fn as_system<T>(&mut self, work: impl FnOnce(&mut Self) -> T) -> T {
        let domain = self.tlb.domain;
        self.tlb.domain = if self.cr4 & CR4_SMAP != 0 {
            Domain::Kernel
        } else {
            Domain::KernelUser
        };
        let result = work(self);
        self.tlb.domain = domain;
        result
    }

    /// Chooses the domain after a change of CPL, AC or CR4.SMAP.
    #[inline]
    pub fn update_domain(&mut self) {
        self.tlb.domain = if self.cpl == 3 {
            Domain::User
        } else if self.cr4 & CR4_SMAP != 0 && self.system_flags & flags::AC == 0 {
            Domain::Kernel
        } else {
            Domain::KernelUser
        };
    }

    /// Offset in guest memory of `linear` for an access by the current domain, through the TLB;
    /// `None` in a hole.
    fn translate(&mut self, linear: u64, access: Access) -> Result<Option<u64>, Exit> {
        let row = self.tlb.domain as usize & 3;
        let index = Tlb::index(linear);
        let tag = self.tlb.tag(linear, 1);
        let entry = match access {
            Access::Read => self.tlb.read[row][index],
            Access::Write => self.tlb.write[row][index],
            Access::Execute => self.tlb.execute[usize::from(self.cpl == 3)][index],
        };
        if entry.tag == tag {
            return Ok(Some(entry.addend.wrapping_add(linear)));
        }
        if !is_canonical(linear) {
            return self.raise(Exception::general_protection(0));
        }
        let page = self.walk(linear, access, self.tlb.domain)?;
        let Some(offset) = self.memory.offset(page.gpa) else {
            self.tally.reject(Flow::MemoryHole);
            return Ok(None);
        };
        let entry = Entry {
            tag,
            addend: offset.wrapping_sub(linear & !OFFSET),
        };
        self.tlb.note_fill(linear, page);
        match access {
            Access::Read => self.tlb.read[row][index] = entry,
            Access::Write => {
                if !self.code.is_code(offset) {
                    self.tlb.write[row][index] = entry;
                }
            }
            Access::Execute => self.tlb.execute[usize::from(self.cpl == 3)][index] = entry,
        }
        Ok(Some(offset | (linear & OFFSET)))
    }

    /// Offset in guest memory of the instruction at `linear`; `None` in a hole.
    pub fn translate_fetch(&mut self, linear: u64) -> Result<Option<u64>, Exit> {
        self.translate(linear, Access::Execute)
    }

    /// CR3 was written: drops what is not global.
    pub fn flush_address_space(&mut self) {
        let mut wrapped = self.tlb.next_generation(0);
        if self.tlb.transient_kernel {
            wrapped |= self.tlb.next_generation(1);
        }
        if wrapped {
            self.jumps.forget_all();
        }
    }

    /// Drops every translation (CR0, CR4 or EFER changed what they mean).
    pub fn flush_translations(&mut self) {
        let wrapped = self.tlb.next_generation(0) | self.tlb.next_generation(1);
        self.tlb.large = [0; 64];
        self.tlb.giant = 0;
        if wrapped {
            self.jumps.forget_all();
        }
    }

    /// INVLPG.
    pub fn flush_page(&mut self, linear: u64) {
        if self.tlb.giant & giant_bit(linear) != 0 {
            return self.flush_translations();
        }
        self.tlb.epoch[(linear >> 63) as usize & 1] += 1;
        let shift = self.tlb.drop_page(linear);
        self.jumps.forget_page(linear, shift);
    }
}

#[inline]
fn within_page(linear: u64, size: u64) -> bool {
    (linear & OFFSET) + size <= PAGE_SIZE
}
