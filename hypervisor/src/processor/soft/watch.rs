//! Which lines of RAM hold decoded code, and the guest's stores into them.

use super::code::Blocks;
use crate::memory::PAGE_SIZE;

/// Stores that one instruction may note before all code is dropped instead.
const MAX_WRITES: usize = 64;
const LINE: u64 = 64;

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

    pub(super) fn mark(&mut self, offset: u64, length: u64) {
        if let Some(lines) = self.lines.get_mut((offset / PAGE_SIZE) as usize) {
            *lines |= Self::mask(offset, length);
        }
    }

    pub(super) fn clear(&mut self, page: u64) {
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
