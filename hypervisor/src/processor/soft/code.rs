//! Decoded code: blocks by guest physical address, what invalidates them, and the shortcut from a
//! virtual address to its block.
//!
//! Three parts. [`Blocks`] owns the blocks. [`CodeWatch`] knows which 64-byte lines of RAM hold
//! decoded code and collects the guest's stores into them. [`JumpCache`] maps the address of a
//! branch target to a block without a translation.
//!
//! The worker process may change RAM without our seeing it (a disk read into the page cache); for
//! the new code to run the guest must map it, which flushes translations and so misses the jump
//! cache. That is where a block's bytes are compared with RAM again.

use super::{
    cpu::{Cpu, Exit},
    op::Op,
};
use crate::memory::{GuestMemory, PAGE_SIZE};
use std::{
    collections::HashMap,
    hash::{BuildHasherDefault, Hasher},
};

/// Bounds: when either is reached, everything is dropped.
const MAX_BLOCKS: usize = 1 << 18;
const MAX_OPS: usize = 1 << 21;
/// Stores that one instruction may note before all code is dropped instead.
const MAX_WRITES: usize = 64;
const LINE: u64 = 64;

/// A run of instructions decoded together; its ops lie in [`Blocks::ops`].
pub struct Block {
    /// The bytes it was decoded from; empty once the block is dead.
    pub bytes: Box<[u8]>,
    /// Offset in guest memory of the first byte.
    pub offset: u64,
    /// Where the bytes after the page boundary lie, for an instruction that straddles one.
    pub second_page: Option<u64>,
    pub long_code: bool,
    /// Position of its first op.
    pub first: u32,
    /// When its bytes were last compared with RAM: see `Tlb::epoch`.
    pub verified: u64,
}

/// What stands in place of a dropped block's first op.
fn stale(_cpu: &mut Cpu, _op: &Op) -> Result<(), Exit> {
    Err(Exit::Stale)
}

impl Block {
    fn key(offset: u64, long_code: bool) -> u64 {
        offset << 1 | u64::from(long_code)
    }

    /// The parts of RAM it came from: (offset, length).
    fn parts(&self) -> [(u64, u64); 2] {
        let length = self.bytes.len() as u64;
        match self.second_page {
            None => [(self.offset, length), (0, 0)],
            Some(second) => {
                let first = (PAGE_SIZE - self.offset % PAGE_SIZE).min(length);
                [(self.offset, first), (second, length - first)]
            }
        }
    }

    fn overlaps(&self, offset: u64, length: u64) -> bool {
        self.parts()
            .iter()
            .any(|&(start, size)| start < offset + length && offset < start + size)
    }

    /// Whether RAM still holds what was decoded.
    pub fn is_current(&self, memory: &GuestMemory) -> bool {
        let mut buffer = [0; 256];
        let mut from = 0;
        self.parts().into_iter().all(|(offset, size)| {
            let size = size as usize;
            let Some(now) = buffer.get_mut(..size) else {
                return false;
            };
            let same = memory.read_bytes(offset, now).is_some()
                && self.bytes.get(from..from + size) == Some(&*now);
            from += size;
            same
        })
    }
}

/// A hasher for keys that are addresses: one multiplication.
#[derive(Default)]
pub struct AddressHasher(u64);

impl Hasher for AddressHasher {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.write_u64(self.0 ^ u64::from(byte));
        }
    }
    fn write_u64(&mut self, value: u64) {
        let product = value.wrapping_mul(0x9E37_79B9_7F4A_7C15);
        self.0 = product ^ (product >> 32);
    }
}

type AddressMap<V> = HashMap<u64, V, BuildHasherDefault<AddressHasher>>;

/// All decoded blocks. Their ops lie one behind the other and stay where they are until everything
/// is dropped; a dropped block says so when it is run, to whoever still remembers its place.
#[derive(Default)]
pub struct Blocks {
    ops: Vec<Op>,
    all: Vec<Block>,
    by_address: AddressMap<u32>,
    by_page: AddressMap<Vec<u32>>,
}

impl Blocks {
    /// The ops from position `first` on, beyond the end of their block.
    #[inline(always)]
    pub fn ops(&self, first: u32) -> &[Op] {
        self.ops.get(first as usize..).unwrap_or_default()
    }

    pub fn get(&mut self, number: u32) -> Option<&mut Block> {
        self.all.get_mut(number as usize)
    }

    /// The live block decoded at `offset`, whether or not it is still current.
    pub fn find(&self, offset: u64, long_code: bool) -> Option<u32> {
        self.by_address.get(&Block::key(offset, long_code)).copied()
    }

    pub fn is_full(&self) -> bool {
        self.all.len() >= MAX_BLOCKS || self.ops.len() >= MAX_OPS
    }

    /// Adds a block and answers where its ops are. The first of its page makes stores to that page
    /// slow: the answer holds the pages (offsets) for which the caller must see to that.
    pub fn insert(
        &mut self,
        mut block: Block,
        ops: &[Op],
        watch: &mut CodeWatch,
    ) -> (u32, [Option<u64>; 2]) {
        let number = self.all.len() as u32;
        block.first = self.ops.len() as u32;
        let first = block.first;
        self.ops.extend_from_slice(ops);
        let mut fresh = [None; 2];
        for ((offset, size), fresh) in block.parts().into_iter().zip(&mut fresh) {
            if size == 0 {
                continue;
            }
            let page = offset & !(PAGE_SIZE - 1);
            if !watch.is_code(page) {
                *fresh = Some(page);
            }
            watch.mark(offset, size);
            self.by_page.entry(page).or_default().push(number);
        }
        self.by_address
            .insert(Block::key(block.offset, block.long_code), number);
        self.all.push(block);
        (first, fresh)
    }

    /// Drops the blocks that a store to `length` bytes at `offset` (within one page) touched.
    pub fn invalidate(&mut self, offset: u64, length: u64, watch: &mut CodeWatch) {
        let page = offset & !(PAGE_SIZE - 1);
        let Some(mut numbers) = self.by_page.remove(&page) else {
            watch.clear(page);
            return;
        };
        watch.clear(page);
        numbers.retain(|&number| {
            let Some(block) = self.all.get_mut(number as usize) else {
                return false;
            };
            if block.bytes.is_empty() {
                return false;
            }
            if block.overlaps(offset, length) {
                let key = Block::key(block.offset, block.long_code);
                if self.by_address.get(&key) == Some(&number) {
                    self.by_address.remove(&key);
                }
                if let Some(op) = self.ops.get_mut(block.first as usize) {
                    *op = Op::bare(stale);
                }
                block.bytes = Box::default();
                return false;
            }
            for (start, size) in block.parts() {
                if size > 0 && start & !(PAGE_SIZE - 1) == page {
                    watch.mark(start, size);
                }
            }
            true
        });
        if !numbers.is_empty() {
            self.by_page.insert(page, numbers);
        }
    }

    /// Drops the block `number`, whose bytes changed unseen, and its whole page with it.
    pub fn invalidate_page_of(&mut self, number: u32, watch: &mut CodeWatch) {
        if let Some(block) = self.all.get(number as usize) {
            let page = block.offset & !(PAGE_SIZE - 1);
            self.invalidate(page, PAGE_SIZE, watch);
        }
    }

    pub fn clear(&mut self, watch: &mut CodeWatch) {
        // Page by page: the time this takes is bounded by what the guest made us decode, not by
        // the size of its RAM.
        for &page in self.by_page.keys() {
            watch.clear(page);
        }
        self.ops.clear();
        self.all.clear();
        self.by_address.clear();
        self.by_page.clear();
    }
}

/// Which lines of RAM hold decoded code, and the stores that hit them.
pub struct CodeWatch {
    /// Per page of RAM one bit for each 64-byte line with decoded code.
    lines: Vec<u64>,
    writes: Vec<(u64, u64)>,
    /// A store hit decoded code: the loop must leave the block and drop what changed.
    pub dirty: bool,
    overflow: bool,
}

impl CodeWatch {
    pub fn new(memory_size: u64) -> Self {
        let pages = usize::try_from(memory_size.div_ceil(PAGE_SIZE)).unwrap_or(0);
        Self {
            lines: vec![0; pages],
            writes: Vec::new(),
            dirty: false,
            overflow: false,
        }
    }

    fn mask(offset: u64, length: u64) -> u64 {
        let within = offset % PAGE_SIZE;
        let first = within / LINE;
        let last = ((within + length.max(1) - 1) / LINE).min(63);
        (u64::MAX >> (63 - last)) & (u64::MAX << first)
    }

    /// Whether the page of `offset` holds decoded code.
    #[inline]
    pub fn is_code(&self, offset: u64) -> bool {
        self.lines
            .get((offset / PAGE_SIZE) as usize)
            .is_some_and(|&lines| lines != 0)
    }

    fn mark(&mut self, offset: u64, length: u64) {
        if let Some(lines) = self.lines.get_mut((offset / PAGE_SIZE) as usize) {
            *lines |= Self::mask(offset, length);
        }
    }

    fn clear(&mut self, page: u64) {
        if let Some(lines) = self.lines.get_mut((page / PAGE_SIZE) as usize) {
            *lines = 0;
        }
    }

    /// Notes that `length` bytes at `offset` (within one page) were stored.
    #[inline]
    pub fn note_store(&mut self, offset: u64, length: u64) {
        let lines = self.lines.get((offset / PAGE_SIZE) as usize).copied();
        if lines.unwrap_or(0) & Self::mask(offset, length) == 0 {
            return;
        }
        self.dirty = true;
        if let Some((start, size)) = self.writes.last_mut()
            && *start + *size == offset
            && !offset.is_multiple_of(PAGE_SIZE)
        {
            *size += length;
        } else if self.writes.len() < MAX_WRITES {
            self.writes.push((offset, length));
        } else {
            self.overflow = true;
        }
    }

    /// Drops the blocks that the noted stores touched. True when that was everything, so that
    /// block numbers begin anew.
    #[must_use]
    pub fn settle(&mut self, blocks: &mut Blocks) -> bool {
        self.dirty = false;
        let writes = std::mem::take(&mut self.writes);
        if std::mem::take(&mut self.overflow) {
            blocks.clear(self);
            return true;
        }
        for (offset, length) in writes {
            blocks.invalidate(offset, length, self);
        }
        false
    }
}

const LINES: usize = 4096;
const WAYS: usize = 4;

#[derive(Clone, Copy, Default)]
struct Jump {
    rip: u64,
    /// Generation of the translation and the mode; 0 matches nothing.
    tag: u32,
    /// Position of the block's first op.
    first: u32,
}

/// A cache line of the host.
#[derive(Clone, Copy, Default)]
#[repr(align(64))]
struct Line([Jump; WAYS]);

/// Cache from a branch target to its block. A line serves 32 bytes of code; within it, a target is
/// first looked for at the place that its low bits give.
pub struct JumpCache {
    lines: Box<[Line; LINES]>,
    /// A set (one hashed bit per page) of the pages it may have entries of.
    pages: [u64; 64],
}

impl Default for JumpCache {
    fn default() -> Self {
        let lines = vec![Line::default(); LINES].into_boxed_slice();
        Self {
            // The length is LINES, so the conversion cannot fail; the other arm only satisfies types.
            lines: lines
                .try_into()
                .unwrap_or_else(|_| Box::new([Line::default(); LINES])),
            pages: [0; 64],
        }
    }
}

impl JumpCache {
    #[inline(always)]
    fn line(rip: u64) -> usize {
        ((rip >> 5) ^ (rip >> 17)) as usize & (LINES - 1)
    }

    #[inline(always)]
    fn way(rip: u64) -> usize {
        rip.wrapping_add(rip >> 3) as usize & (WAYS - 1)
    }

    fn page_bit(rip: u64) -> (usize, u64) {
        let page = rip >> 12;
        ((page >> 6) as usize & 63, 1 << (page & 63))
    }

    #[inline(always)]
    pub fn get(&self, rip: u64, tag: u32) -> Option<u32> {
        let ways = &self.lines[Self::line(rip)].0;
        (0..WAYS).find_map(|distance| {
            let jump = &ways[Self::way(rip) ^ distance];
            (jump.rip == rip && jump.tag == tag).then_some(jump.first)
        })
    }

    pub fn insert(&mut self, rip: u64, tag: u32, first: u32) {
        let ways = &mut self.lines[Self::line(rip)].0;
        let way = Self::way(rip);
        // The first choice is for the newest; the others move along.
        for distance in (1..WAYS).rev() {
            ways.swap(way ^ distance, way ^ (distance - 1));
        }
        ways[way] = Jump { rip, tag, first };
        let (word, bit) = Self::page_bit(rip);
        self.pages[word] |= bit;
    }

    pub fn forget(&mut self, rip: u64) {
        for jump in &mut self.lines[Self::line(rip)].0 {
            if jump.rip == rip {
                *jump = Jump::default();
            }
        }
    }

    pub fn forget_all(&mut self) {
        self.lines.fill(Line::default());
        self.pages = [0; 64];
    }

    /// Forgets the targets in the page of `1 << shift` bytes around `linear`.
    pub fn forget_page(&mut self, linear: u64, shift: u32) {
        let (word, bit) = Self::page_bit(linear);
        if shift == 12 && self.pages[word] & bit == 0 {
            return;
        }
        for jump in self.lines.iter_mut().flat_map(|line| &mut line.0) {
            if jump.rip >> shift == linear >> shift {
                *jump = Jump::default();
            }
        }
    }
}
