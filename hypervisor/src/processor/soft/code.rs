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
use crate::memory::{self, GuestMemory, PAGE_SIZE};

/// Bounds: when either is reached, everything is dropped.
const MAX_BLOCKS: usize = 1 << 18;
const MAX_OPS: usize = 1 << 21;
/// As much as short programs need, of ops, bytes and blocks.
const USUAL_OPS: usize = 1 << 18;
const USUAL_BYTES: usize = 1 << 20;
const USUAL_BLOCKS: usize = 1 << 14;
/// Lists by address, and how far one is followed: a guest that makes all its code fall into one
/// list has it decoded again and again.
const LISTS: usize = 1 << 15;
const MAX_STEPS: usize = 64;

/// What a block is decoded from.
#[derive(Clone, Copy)]
pub struct Source {
    /// Offset in guest memory of the first byte.
    pub offset: u64,
    /// Where the bytes after the page boundary lie, for an instruction that straddles one.
    pub second_page: Option<u64>,
    pub long_code: bool,
    /// When its bytes were last compared with RAM: see `Tlb::epoch`.
    pub verified: u64,
}

/// A run of instructions decoded together; its ops and its bytes lie in [`Blocks`]. In one cache line:
/// whoever looks for a block looks at many.
#[repr(align(64))]
struct Block {
    source: Source,
    /// Position of its first op.
    first: u32,
    /// Position of the first of the bytes it was decoded from, and their number.
    bytes: u32,
    length: u16,
    /// It is no more; only its number is.
    dead: bool,
    /// The next one in its list by address, and in those of its pages.
    next: Link,
    next_in_page: [Link; 2],
}

const _: () = assert!(size_of::<Block>() == 64);

/// Number of a block, plus one.
type Link = u32;
const NONE: Link = 0;

/// What stands in place of a dropped block's first op.
fn stale(_cpu: &mut Cpu, _op: &Op) -> Result<(), Exit> {
    Err(Exit::Stale)
}

impl Block {
    /// The parts of RAM it came from: (offset, length).
    fn parts(&self) -> [(u64, u64); 2] {
        let Source { offset, .. } = self.source;
        let length = self.length.into();
        match self.source.second_page {
            None => [(offset, length), (0, 0)],
            Some(second) => {
                let first = (PAGE_SIZE - offset % PAGE_SIZE).min(length);
                [(offset, first), (second, length - first)]
            }
        }
    }

    /// The pages (offsets) that its parts lie in, each once.
    fn pages(&self) -> [Option<u64>; 2] {
        let first = page_of(self.source.offset);
        let second = self.source.second_page.map(page_of);
        [Some(first), second.filter(|&second| second != first)]
    }

    /// The next one in the list of `page`, which is one of its own.
    fn next_in(&mut self, page: u64) -> &mut Link {
        let [first, second] = &mut self.next_in_page;
        if page_of(self.source.offset) == page {
            first
        } else {
            second
        }
    }

    fn overlaps(&self, offset: u64, length: u64) -> bool {
        self.parts()
            .iter()
            .any(|&(start, size)| start < offset + length && offset < start + size)
    }
}

fn page_of(offset: u64) -> u64 {
    offset & !(PAGE_SIZE - 1)
}

fn number(page: u64) -> usize {
    (page / PAGE_SIZE) as usize
}

/// The list of the blocks at `offset`. Code that lies together runs together: so do the lists.
fn list(offset: u64) -> usize {
    ((offset >> 2) ^ (offset >> 17)) as usize & (LISTS - 1)
}

/// A block that was found.
pub struct Found {
    link: Link,
    /// Position of its first op.
    pub first: u32,
    pub source: Source,
}

/// All decoded blocks. Their ops lie one behind the other and stay where they are until everything
/// is dropped; a dropped block says so when it is run, to whoever still remembers its place.
pub struct Blocks {
    ops: Vec<Op>,
    bytes: Vec<u8>,
    all: Vec<Block>,
    /// First of each list, by address.
    lists: Vec<Link>,
    /// First of the list of each page of RAM.
    pages: Vec<Link>,
}

impl Blocks {
    /// None yet, of `memory_size` bytes of RAM.
    pub fn new(memory_size: u64) -> Self {
        let pages = usize::try_from(memory_size.div_ceil(PAGE_SIZE)).unwrap_or(0);
        Self {
            // The host gives what is used of it. Growing would copy, and leave in the heap, which
            // never shrinks, what was too small.
            ops: Vec::with_capacity(USUAL_OPS),
            bytes: Vec::with_capacity(USUAL_BYTES),
            all: Vec::with_capacity(USUAL_BLOCKS),
            lists: vec![NONE; LISTS],
            pages: vec![NONE; pages],
        }
    }

    /// In huge pages, where the host has them, for as long as nothing has been released: a guest that
    /// has just started runs through thousands of small ones.
    pub fn in_huge_pages(self) -> Self {
        memory::advise_huge(&self.ops);
        self
    }

    /// The ops from position `first` on, beyond the end of their block.
    #[inline(always)]
    pub fn ops(&self, first: u32) -> &[Op] {
        self.ops.get(first as usize..).unwrap_or_default()
    }

    fn get(&self, link: Link) -> Option<&Block> {
        self.all.get((link as usize).checked_sub(1)?)
    }

    fn get_mut(&mut self, link: Link) -> Option<&mut Block> {
        self.all.get_mut((link as usize).checked_sub(1)?)
    }

    /// The live block decoded at `offset`, whether or not it is still current.
    pub fn find(&self, offset: u64, long_code: bool) -> Option<Found> {
        let mut link = self.lists.get(list(offset)).copied()?;
        for _ in 0..MAX_STEPS {
            let block = self.get(link)?;
            let source = &block.source;
            if source.offset == offset && source.long_code == long_code && !block.dead {
                return Some(Found {
                    link,
                    first: block.first,
                    source: block.source,
                });
            }
            link = block.next;
        }
        None
    }

    /// Whether RAM still holds what the block was decoded from.
    pub fn is_current(&self, found: &Found, memory: &GuestMemory) -> bool {
        let Some(block) = self.get(found.link) else {
            return false;
        };
        let mut buffer = [0; 256];
        let mut from = block.bytes as usize;
        block.parts().into_iter().all(|(offset, size)| {
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

    /// Notes when the block was compared with RAM.
    pub fn set_verified(&mut self, found: &Found, epoch: u64) {
        if let Some(block) = self.get_mut(found.link) {
            block.source.verified = epoch;
        }
    }

    /// Where the ops of the next block are to be put: see [`Blocks::insert`].
    pub fn room(&mut self) -> &mut Vec<Op> {
        &mut self.ops
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
        *self = Self::new(self.pages.len() as u64 * PAGE_SIZE);
    }

    /// Adds a block whose ops were put into its room from position `first` on. The first of its
    /// page makes stores to that page slow: the answer holds the pages (offsets) for which the
    /// caller must see to that.
    pub fn insert(
        &mut self,
        source: Source,
        bytes: &[u8],
        first: usize,
        watch: &mut CodeWatch,
    ) -> [Option<u64>; 2] {
        let mut block = Block {
            source,
            first: first as u32,
            bytes: self.bytes.len() as u32,
            length: bytes.len() as u16,
            dead: false,
            next: NONE,
            next_in_page: [NONE; 2],
        };
        self.bytes.extend_from_slice(bytes);
        let link = self.all.len() as Link + 1;
        let fresh = block
            .pages()
            .map(|page| page.filter(|&page| !watch.is_code(page)));
        for (offset, size) in block.parts() {
            if size > 0 {
                watch.mark(offset, size);
            }
        }
        for (page, next) in block.pages().into_iter().zip(&mut block.next_in_page) {
            if let Some(head) = page.and_then(|page| self.pages.get_mut(number(page))) {
                *next = std::mem::replace(head, link);
            }
        }
        if let Some(head) = self.lists.get_mut(list(source.offset)) {
            block.next = std::mem::replace(head, link);
        }
        self.all.push(block);
        fresh
    }

    /// Drops the blocks that a store to `length` bytes at `offset` (within one page) touched.
    pub fn invalidate(&mut self, offset: u64, length: u64, watch: &mut CodeWatch) {
        let page = page_of(offset);
        watch.clear(page);
        let Some(head) = self.pages.get_mut(number(page)) else {
            return;
        };
        let mut link = std::mem::take(head);
        let mut kept = NONE;
        while let Some(block) = self.get_mut(link) {
            let next = *block.next_in(page);
            if !block.dead && block.overlaps(offset, length) {
                block.dead = true;
                let (first, address) = (block.first, block.source.offset);
                if let Some(op) = self.ops.get_mut(first as usize) {
                    *op = Op::bare(stale);
                }
                self.unlink(link, address);
            } else if !block.dead {
                for (start, size) in block.parts() {
                    if size > 0 && page_of(start) == page {
                        watch.mark(start, size);
                    }
                }
                *block.next_in(page) = kept;
                kept = link;
            }
            link = next;
        }
        if let Some(head) = self.pages.get_mut(number(page)) {
            *head = kept;
        }
    }

    /// Takes a dead block out of its list by address, unless it is where nobody looks.
    fn unlink(&mut self, dead: Link, offset: u64) {
        let after = self.get(dead).map_or(NONE, |block| block.next);
        let Some(mut place) = self.lists.get_mut(list(offset)) else {
            return;
        };
        for _ in 0..MAX_STEPS {
            if *place == dead {
                *place = after;
                return;
            }
            let index = (*place as usize).wrapping_sub(1);
            let Some(block) = self.all.get_mut(index) else {
                return;
            };
            place = &mut block.next;
        }
    }

    /// Drops a block whose bytes changed unseen, and its whole page with it.
    pub fn invalidate_page_of(&mut self, found: &Found, watch: &mut CodeWatch) {
        self.invalidate(page_of(found.source.offset), PAGE_SIZE, watch);
    }

    pub fn clear(&mut self, watch: &mut CodeWatch) {
        // Block by block: the time this takes is bounded by what the guest made us decode, not by
        // the size of its RAM.
        for block in self.all.drain(..) {
            for page in block.pages().into_iter().flatten() {
                watch.clear(page);
                if let Some(head) = self.pages.get_mut(number(page)) {
                    *head = NONE;
                }
            }
            if let Some(head) = self.lists.get_mut(list(block.source.offset)) {
                *head = NONE;
            }
        }
        self.ops.clear();
        self.bytes.clear();
    }
}
