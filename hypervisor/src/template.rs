//! Where a restored machine's memory comes from: a memory file that many machines share and nobody
//! writes, and which pages of it each machine has a copy of by now.
//!
//! Two processes, the hypervisor and the worker, see one machine's RAM. The kernel can share a file
//! between machines copy-on-write, but then these two would not see each other's writes. So RAM is
//! a file of the machine's own, empty at first, and whoever needs a page's data first copies it
//! there from the template. The page file says which pages are there: after a header page one byte
//! per page, 0 for a page that is still only in the template, and 2 for one that the root side has
//! copied before either process had the file.
//!
//! Both processes may want the same page at once. A lock by Peterson's algorithm keeps them apart:
//! two flags and a turn in the header, no system call, and plain stores and loads, as the worker's
//! language has no atomic exchange.
#![allow(unsafe_code)]

use crate::{memory::PAGE_SIZE, shared::Shared};
use rustix::{
    fs::fstat,
    io::Errno,
    mm::{MapFlags, ProtFlags, mmap, munmap},
};
use std::{
    os::fd::AsFd,
    ptr::NonNull,
    sync::atomic::{AtomicU8, Ordering::SeqCst},
};

const HEADER: usize = PAGE_SIZE as usize;
/// Cells of the header.
const HYPERVISOR_WANTS: usize = 0;
const WORKER_WANTS: usize = 1;
const TURN: usize = 2;
const WORKERS_TURN: u8 = 1;
/// What the root side wrote for a page that it has put into RAM before either process had it.
const PLACED: u8 = 2;
/// How often to look whether the worker has let go: some seconds. A worker that does not is dead,
/// or hostile, and can hurt this machine only.
const PATIENCE: u32 = 1 << 30;

pub struct Template {
    base: NonNull<u8>,
    size: u64,
    pages: Shared<AtomicU8>,
}

// SAFETY: the mapping lives as long as the value, is never written and only copied from.
unsafe impl Send for Template {}
// SAFETY: as above. (Its lock is for one thread of ours: the software processor's.)
unsafe impl Sync for Template {}

impl Template {
    /// Maps `size` bytes of the template `fd`, read-only, and the page file. Refuses files that are
    /// too short.
    pub fn map(fd: impl AsFd, pages: impl AsFd, size: u64) -> rustix::io::Result<Self> {
        if u64::try_from(fstat(&fd)?.st_size).unwrap_or(0) < size {
            return Err(Errno::INVAL);
        }
        let length = usize::try_from(size).map_err(|_| Errno::INVAL)?;
        let count = length / PAGE_SIZE as usize;
        let pages = Shared::map(pages, HEADER + count)?;
        // SAFETY: a fresh mapping at an address the kernel chooses aliases nothing.
        let base = unsafe {
            mmap(
                std::ptr::null_mut(),
                length,
                ProtFlags::READ,
                MapFlags::PRIVATE | MapFlags::NORESERVE,
                fd,
                0,
            )?
        };
        let base = NonNull::new(base.cast()).ok_or(Errno::FAULT)?;
        Ok(Self { base, size, pages })
    }

    fn cell(&self, page: u64) -> Option<&AtomicU8> {
        self.pages.get(HEADER..)?.get(usize::try_from(page).ok()?)
    }

    /// Whether the machine has a page of its own there. Beyond the end of RAM it has what it ever
    /// will.
    #[inline]
    pub fn is_present(&self, page: u64) -> bool {
        self.cell(page).is_none_or(|cell| cell.load(SeqCst) != 0)
    }

    /// The first of the pages in each group of `group` that the root side has put into RAM.
    pub fn placed(&self, group: usize) -> impl Iterator<Item = u64> {
        let cells = self.pages.get(HEADER..).unwrap_or_default();
        let groups = cells.chunks(group.max(1)).zip((0..).step_by(group.max(1)));
        groups.filter_map(|(cells, start)| {
            let is_placed = |cell: &AtomicU8| cell.load(SeqCst) == PLACED;
            let first = cells.iter().position(is_placed)?;
            Some(start + first as u64)
        })
    }

    /// Copies from the template. `None` when the range leaves it.
    pub fn read_bytes(&self, offset: u64, into: &mut [u8]) -> Option<()> {
        if offset.checked_add(into.len() as u64)? > self.size {
            return None;
        }
        // SAFETY: the range was checked; the destination is ours. Should somebody write the file
        // meanwhile, some mixture of bytes is read: all bit patterns are valid.
        unsafe {
            std::ptr::copy_nonoverlapping(
                self.base.as_ptr().add(offset as usize),
                into.as_mut_ptr(),
                into.len(),
            );
        }
        Some(())
    }

    /// Where a page is mapped.
    fn at(&self, page: u64) -> Option<*const u8> {
        let offset = page.checked_mul(PAGE_SIZE)?;
        let within = offset.checked_add(PAGE_SIZE)? <= self.size;
        within.then(|| {
            self.base
                .as_ptr()
                .wrapping_add(offset as usize)
                .cast_const()
        })
    }

    /// Lets `store` put the page's data into RAM, unless it is there or the worker was faster.
    #[cold]
    pub fn fill(&self, page: u64, store: impl FnOnce(*const u8)) {
        let Some(cell) = self.cell(page) else {
            return;
        };
        self.lock();
        if cell.load(SeqCst) == 0 {
            if let Some(data) = self.at(page) {
                store(data);
            }
            cell.store(1, SeqCst);
        }
        self.unlock();
    }

    fn header(&self, index: usize) -> &AtomicU8 {
        &self.pages[index]
    }

    fn lock(&self) {
        self.header(HYPERVISOR_WANTS).store(1, SeqCst);
        self.header(TURN).store(WORKERS_TURN, SeqCst);
        for _ in 0..PATIENCE {
            if self.header(WORKER_WANTS).load(SeqCst) == 0
                || self.header(TURN).load(SeqCst) != WORKERS_TURN
            {
                return;
            }
            std::hint::spin_loop();
        }
    }

    fn unlock(&self) {
        self.header(HYPERVISOR_WANTS).store(0, SeqCst);
    }
}

impl Drop for Template {
    fn drop(&mut self) {
        // SAFETY: the mapping was made in `map` and nothing refers to it any more.
        let _ = unsafe { munmap(self.base.as_ptr().cast(), self.size as usize) };
    }
}
