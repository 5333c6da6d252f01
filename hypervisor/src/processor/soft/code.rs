//! Decoded code: blocks by guest physical address, and what invalidates them.
//!
//! The worker process may change RAM without our seeing it (a disk read into the page cache); for
//! the new code to run the guest must map it, which flushes translations and so misses the jump
//! cache. That is where a block's bytes are compared with RAM again.

use super::{
    cpu::{Cpu, Exit},
    op::Op,
    watch::CodeWatch,
};
use crate::memory::{GuestMemory, PAGE_SIZE};
use std::{
    collections::HashMap,
    hash::{BuildHasherDefault, Hasher},
};

/// Bounds: when either is reached, everything is dropped.
const MAX_BLOCKS: usize = 1 << 18;
const MAX_OPS: usize = 1 << 21;

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

    /// Number of decoded instructions, those of dropped blocks included.
    pub fn decoded(&self) -> usize {
        self.ops.len()
    }

    /// Drops everything, and gives the memory back.
    pub fn release(&mut self, watch: &mut CodeWatch) {
        self.clear(watch);
        *self = Self::default();
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
