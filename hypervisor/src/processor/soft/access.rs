//! Guest memory as instructions see it: linear addresses, through a software TLB.
//!
//! A hit costs an index, a compare and the copy. Everything else (page walk, accesses across a
//! page boundary, pages that hold decoded code, holes) is in the cold path. Holes of the physical
//! address space read as all ones and ignore writes.

use super::{
    cpu::{Cpu, Exception, Exit},
    flags,
    paging::{Access, CR4_SMAP, is_canonical},
    simd::vector::Vector,
    tlb::{Domain, Entry, OFFSET, Tlb, giant_bit},
};
use crate::{
    flows::Reject,
    ioapic::IoApic,
    memory::{PAGE_SIZE, Plain},
};

/// Where a translation leads.
enum Place {
    /// To this offset in guest memory.
    Ram(u64),
    /// To this guest physical address in the page of the I/O APIC's registers.
    Registers(u64),
    Hole,
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
            let value = match self.translate(linear, Access::Read)? {
                Place::Ram(offset) => self.memory.read(offset),
                Place::Registers(gpa) => Some(T::narrow(self.memory.ioapic().load(gpa, size))),
                Place::Hole => None,
            };
            return Ok(value.unwrap_or(T::narrow(u128::MAX)));
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
            match self.translate(linear, Access::Write)? {
                Place::Ram(offset) => {
                    let _ = self.memory.write(offset, value);
                    self.code.note_store(offset, size as u64);
                }
                Place::Registers(gpa) => self.memory.ioapic().store(gpa, size, value.widen()),
                Place::Hole => {}
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
            let offset = self.translate_to_ram(at, Access::Read)?;
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
            if let Some(offset) = self.translate_to_ram(at, Access::Write)? {
                let _ = self.memory.write_bytes(offset, part);
                self.code.note_store(offset, length as u64);
            }
            at = at.wrapping_add(length as u64);
            rest = after;
        }
        Ok(())
    }

    /// For bulk work: offset of `linear` in guest memory and how many bytes from there stay in its
    /// page. `None` for pages that must go element by element through `load` and `store` (holes,
    /// registers; decoded code when `write`).
    pub fn page_span(&mut self, linear: u64, write: bool) -> Result<Option<(u64, u64)>, Exit> {
        let access = if write { Access::Write } else { Access::Read };
        let Place::Ram(offset) = self.translate(linear, access)? else {
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

    /// Where `linear` leads for an access by the current domain, through the TLB.
    fn translate(&mut self, linear: u64, access: Access) -> Result<Place, Exit> {
        let row = self.tlb.domain as usize & 3;
        let index = Tlb::index(linear);
        let tag = self.tlb.tag(linear, 1);
        let entry = match access {
            Access::Read => self.tlb.read[row][index],
            Access::Write => self.tlb.write[row][index],
            Access::Execute => self.tlb.execute[usize::from(self.cpl == 3)][index],
        };
        if entry.tag == tag {
            return Ok(Place::Ram(entry.addend.wrapping_add(linear)));
        }
        if !is_canonical(linear) {
            return self.raise(Exception::general_protection(0));
        }
        let page = self.walk(linear, access, self.tlb.domain)?;
        let Some(offset) = self.memory.offset(page.gpa) else {
            if IoApic::is_at(page.gpa) {
                return Ok(Place::Registers(page.gpa | (linear & OFFSET)));
            }
            self.tally.reject(Reject::MemoryHoleAccess);
            return Ok(Place::Hole);
        };
        // Code is read where it is; data may be written at any time, by the worker too.
        if access != Access::Execute {
            self.memory.touch(offset);
        }
        let entry = Entry {
            tag,
            addend: offset.wrapping_sub(linear & !OFFSET),
        };
        self.tlb.note_fill(linear, page);
        match access {
            Access::Read => self.tlb.read[row][index] = entry,
            Access::Write => {
                if !self.code.is_code(offset) {
                    self.tlb.allow_fast_stores(row, index, entry);
                }
            }
            Access::Execute => self.tlb.execute[usize::from(self.cpl == 3)][index] = entry,
        }
        Ok(Place::Ram(offset | (linear & OFFSET)))
    }

    /// Offset in guest memory of `linear`, for what can reach no register; `None` outside RAM.
    fn translate_to_ram(&mut self, linear: u64, access: Access) -> Result<Option<u64>, Exit> {
        Ok(match self.translate(linear, access)? {
            Place::Ram(offset) => Some(offset),
            Place::Registers(_) => {
                self.memory.ioapic().refuse();
                None
            }
            Place::Hole => None,
        })
    }

    /// Offset in guest memory of the instruction at `linear`; `None` in a hole.
    pub fn translate_fetch(&mut self, linear: u64) -> Result<Option<u64>, Exit> {
        self.translate_to_ram(linear, Access::Execute)
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
