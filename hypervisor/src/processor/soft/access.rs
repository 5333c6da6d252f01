//! Guest memory as instructions see it: linear addresses, through a software TLB.
//!
//! A hit costs an index, a compare and the copy. Everything else (page walk, accesses across a
//! page boundary, pages that hold decoded code, holes) is in the cold path.

use super::cpu::{Cpu, Exit};
use crate::memory::Plain;

/// Entries per table.
pub const ENTRIES: usize = 1024;

/// One translation. `tag` is the linear page address with the generation of its half of the
/// address space in the low 12 bits; `addend + linear address` is the offset in guest memory.
#[derive(Clone, Copy, Default)]
pub struct Entry {
    pub tag: u64,
    pub addend: u64,
}

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
    pub read: Box<[[Entry; ENTRIES]; 4]>,
    pub write: Box<[[Entry; ENTRIES]; 4]>,
    pub domain: Domain,
    /// Generations (1..4095) of the user half and the kernel half of the address space.
    pub generation: [u64; 2],
}

impl Tlb {
    pub fn new() -> Self {
        let table = || {
            let rows = vec![[Entry::default(); ENTRIES]; 4].into_boxed_slice();
            // The length is 4, so the conversion cannot fail; the other arm only satisfies types.
            rows.try_into()
                .unwrap_or_else(|_| Box::new([[Entry::default(); ENTRIES]; 4]))
        };
        Self {
            read: table(),
            write: table(),
            domain: Domain::Kernel,
            generation: [1, 1],
        }
    }

    #[inline(always)]
    fn tag(&self, linear: u64, size: u64) -> u64 {
        // An access that crosses into the next page gets that page's tag and so misses.
        (linear.wrapping_add(size.wrapping_sub(1)) & !0xFFF)
            | self.generation[(linear >> 63) as usize & 1]
    }

    #[inline(always)]
    fn index(linear: u64) -> usize {
        (linear >> 12) as usize & (ENTRIES - 1)
    }
}

impl Cpu {
    /// Loads a value at a linear address with the current privilege.
    #[inline(always)]
    pub fn load<T: Plain>(&mut self, linear: u64) -> Result<T, Exit> {
        let entry = &self.tlb.read[self.tlb.domain as usize & 3][Tlb::index(linear)];
        if entry.tag == self.tlb.tag(linear, size_of::<T>() as u64)
            && let Some(value) = self.memory.read(entry.addend.wrapping_add(linear))
        {
            return Ok(value);
        }
        self.load_slow(linear)
    }

    /// Stores a value at a linear address with the current privilege.
    ///
    /// `Err(Exit::Resync)` is never returned from here: a store into decoded code is noted in the
    /// code cache and the loop leaves the block after this instruction.
    #[inline(always)]
    pub fn store<T: Plain>(&mut self, linear: u64, value: T) -> Result<(), Exit> {
        let entry = &self.tlb.write[self.tlb.domain as usize & 3][Tlb::index(linear)];
        if entry.tag == self.tlb.tag(linear, size_of::<T>() as u64)
            && self
                .memory
                .write(entry.addend.wrapping_add(linear), value)
                .is_some()
        {
            return Ok(());
        }
        self.store_slow(linear, value)
    }

    #[cold]
    #[inline(never)]
    fn load_slow<T: Plain>(&mut self, _linear: u64) -> Result<T, Exit> {
        todo!("engine")
    }

    #[cold]
    #[inline(never)]
    fn store_slow<T: Plain>(&mut self, _linear: u64, _value: T) -> Result<(), Exit> {
        todo!("engine")
    }

    /// Checks that `size` bytes at `linear` could be stored, without storing: for instructions
    /// that read, compute and write back (so that they fault before any register changes) and for
    /// stores of more than 16 bytes.
    pub fn check_store(&mut self, _linear: u64, _size: u64) -> Result<(), Exit> {
        todo!("engine")
    }

    /// Loads bytes of any length, also across pages.
    pub fn load_bytes(&mut self, _linear: u64, _into: &mut [u8]) -> Result<(), Exit> {
        todo!("engine")
    }

    /// Stores bytes of any length, also across pages; nothing is stored when any page refuses.
    pub fn store_bytes(&mut self, _linear: u64, _from: &[u8]) -> Result<(), Exit> {
        todo!("engine")
    }

    /// For bulk work: offset of `linear` in guest memory and how many bytes from there stay in its
    /// page. `None` for pages that must go element by element through `load` and `store` (holes;
    /// decoded code when `write`).
    pub fn page_span(&mut self, _linear: u64, _write: bool) -> Result<Option<(u64, u64)>, Exit> {
        todo!("engine")
    }
}
