//! Guest RAM: one shared mapping, seen by the worker process too.
//!
//! Every access is a volatile copy in or out of the mapping: another processor or the worker may
//! change any byte at any moment, so no reference into guest RAM ever exists. Callers copy once,
//! validate the copy and use only the copy.
#![allow(unsafe_code)]

use crate::{flows::values, ioapic::IoApic, template::Template};
use rustix::mm::{Advice, madvise};
use std::{
    os::fd::AsFd,
    ptr::NonNull,
    sync::atomic::{AtomicU8, Ordering},
};

/// Where RAM stops below 4 GiB; the rest continues at [`HIGH_BASE`].
pub const LOW_LIMIT: u64 = values::MEMORY_HOLE_HOLE_FIRST;
/// Guest physical address of the second memory slot.
pub const HIGH_BASE: u64 = values::MEMORY_HOLE_HOLE_END;
pub const PAGE_SIZE: u64 = 4096;
const HUGE_PAGE: usize = 2 << 20;

/// Makes the allocator give back what is freed. By itself it would keep up to twice the largest
/// piece that was ever freed, which is all that was decoded when the processor rests.
pub fn give_back() {
    const LARGE: libc::c_int = 128 << 10;
    // SAFETY: two numbers of the allocator's; nothing is in use that depends on them.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, LARGE);
        libc::mallopt(libc::M_TRIM_THRESHOLD, LARGE);
    }
}

/// Asks the host for huge pages under an empty vector that will be filled. The call is not one of the
/// run loop's: the door must still be open.
pub fn advise_huge<T>(vector: &Vec<T>) {
    let start = vector.as_ptr().cast_mut().cast::<libc::c_void>();
    // The whole of the page that it begins in, most of which is the vector's own.
    let before = start.addr() % PAGE_SIZE as usize;
    let length = vector.capacity().saturating_mul(size_of::<T>());
    // SAFETY: what is in memory does not depend on the pages it is in.
    let _ = unsafe {
        madvise(
            start.wrapping_byte_sub(before),
            length,
            Advice::LinuxHugepage,
        )
    };
}

/// A plain value that may be copied to and from guest RAM: any bit pattern is valid.
///
/// # Safety
/// Implementors must have no padding and no invalid bit patterns.
pub unsafe trait Plain: Copy + Default {
    /// Zero-extends.
    fn widen(self) -> u128;
    /// Keeps the low bytes.
    fn narrow(value: u128) -> Self;
}

macro_rules! plain {
    ($($integer:ty)*) => {$(
        // SAFETY: integers have neither padding nor invalid bit patterns.
        unsafe impl Plain for $integer {
            #[inline(always)]
            fn widen(self) -> u128 {
                self as u128
            }
            #[inline(always)]
            fn narrow(value: u128) -> Self {
                value as $integer
            }
        }
    )*};
}
plain!(u8 u16 u32 u64 u128);

#[repr(C, packed)]
#[derive(Clone, Copy)]
struct Unaligned<T: Copy>(T);

/// The mapping of one virtual machine's RAM. Offsets are into the memory file; guest physical
/// addresses are translated by [`GuestMemory::offset`].
///
/// In a restored machine a page may still be in the template only. What reads or writes single
/// values has called [`GuestMemory::touch`] for the page before (the translation of a load or store
/// does, [`PageRegister`](crate::tlfs) does); code and page tables are read where they are.
pub struct GuestMemory {
    base: NonNull<u8>,
    size: u64,
    template: Option<Template>,
    ioapic: IoApic,
}

// SAFETY: the mapping lives as long as the value and is only accessed by copies of plain values.
unsafe impl Send for GuestMemory {}
// SAFETY: as above; several threads that access it are to each other as the guest is to each.
unsafe impl Sync for GuestMemory {}

impl GuestMemory {
    /// Maps `size` bytes of the memory file `fd` shared and writable. Refuses a file that is too
    /// short, whose missing pages would kill the process at the first access.
    pub fn map(fd: impl AsFd, size: u64) -> rustix::io::Result<Self> {
        use rustix::mm::{MapFlags, ProtFlags, mmap, mmap_anonymous, munmap};
        if u64::try_from(rustix::fs::fstat(&fd)?.st_size).unwrap_or(0) < size {
            return Err(rustix::io::Errno::INVAL);
        }
        let length = usize::try_from(size).map_err(|_| rustix::io::Errno::INVAL)?;
        // Only at a multiple of a huge page's size can the host map huge pages, on which a guest on
        // KVM faults its RAM in a hundred times less often.
        let room = length
            .checked_add(HUGE_PAGE)
            .ok_or(rustix::io::Errno::NOMEM)?;
        let nowhere = std::ptr::null_mut();
        let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
        // SAFETY: a fresh mapping at an address the kernel chooses aliases nothing. The second one
        // replaces a part of the first, which nobody has used; the rest goes away again.
        let base = unsafe {
            let found = mmap_anonymous(nowhere, room, ProtFlags::empty(), flags)?;
            let before = found.align_offset(HUGE_PAGE);
            let base = mmap(
                found.byte_add(before),
                length,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED | MapFlags::NORESERVE | MapFlags::FIXED,
                fd,
                0,
            )?;
            // Neither can fail for a mapping of ours; hosts without huge pages refuse the third.
            let _ = munmap(found, before);
            let _ = munmap(base.byte_add(length), HUGE_PAGE - before);
            let _ = madvise(base, length, Advice::LinuxHugepage);
            base
        };
        let base = NonNull::new(base.cast()).ok_or(rustix::io::Errno::FAULT)?;
        Ok(Self {
            base,
            size,
            template: None,
            ioapic: IoApic::default(),
        })
    }

    /// The registers of the one page in the hole that has any.
    pub fn ioapic(&self) -> &IoApic {
        &self.ioapic
    }

    /// Takes what is not here yet from `template`.
    pub fn with_template(mut self, template: Template) -> Self {
        // What is here already would be mapped fault by fault, while the guest runs. A read maps
        // what there is around it, this many pages at once on Linux.
        const AROUND: usize = 16;
        for page in template.placed(AROUND) {
            let _ = self.read::<u8>(page.saturating_mul(PAGE_SIZE));
        }
        self.template = Some(template);
        self
    }

    /// Bytes of address space that it takes.
    pub fn mapped(&self) -> u64 {
        let files = if self.template.is_some() { 2 } else { 1 };
        self.size.saturating_mul(files)
    }

    /// Makes sure that the page of `offset` is here, to be read and written.
    #[inline]
    pub fn touch(&self, offset: u64) {
        if let Some(template) = &self.template
            && !template.is_present(offset / PAGE_SIZE)
        {
            self.fetch(template, offset);
        }
    }

    /// Copies the page of `offset` straight from where the template has it: through a buffer that
    /// costs twice as much, and it is much of what a start costs.
    #[cold]
    fn fetch(&self, template: &Template, offset: u64) {
        let start = offset & !(PAGE_SIZE - 1);
        template.fill(start / PAGE_SIZE, |data| {
            if start
                .checked_add(PAGE_SIZE)
                .is_some_and(|end| end <= self.size)
            {
                // SAFETY: `data` is a page of the template, which is mapped as long as we are; the
                // range in RAM was checked. They do not overlap; should somebody write to either
                // meanwhile, some mixture of bytes is there.
                unsafe {
                    let to = self.base.as_ptr().add(start as usize);
                    std::ptr::copy_nonoverlapping(data.cast(), to, PAGE_SIZE as usize);
                }
            }
        });
    }

    /// Reads a value that lies within a page, wherever the page is.
    #[inline]
    pub fn peek(&self, offset: u64) -> Option<u64> {
        match &self.template {
            Some(template) if !template.is_present(offset / PAGE_SIZE) => {
                let mut bytes = [0; 8];
                template.read_bytes(offset, &mut bytes)?;
                Some(u64::from_le_bytes(bytes))
            }
            _ => self.read(offset),
        }
    }

    /// Anonymous memory of the same shape, for tests and fuzz targets.
    pub fn anonymous(size: u64) -> rustix::io::Result<Self> {
        let fd = rustix::fs::memfd_create("guest-ram", rustix::fs::MemfdFlags::CLOEXEC)?;
        rustix::fs::ftruncate(&fd, size)?;
        Self::map(fd, size)
    }

    pub fn size(&self) -> u64 {
        self.size
    }

    /// Where the mapping starts in this process, for KVM.
    pub fn host_address(&self) -> u64 {
        self.base.as_ptr() as u64
    }

    /// Offset in the memory file of guest physical address `gpa`, or `None` in a hole or beyond
    /// the end of RAM.
    #[inline]
    pub fn offset(&self, gpa: u64) -> Option<u64> {
        let offset = if gpa < LOW_LIMIT {
            gpa
        } else {
            gpa.checked_sub(HIGH_BASE)?.checked_add(LOW_LIMIT)?
        };
        (offset < self.size).then_some(offset)
    }

    #[inline(always)]
    fn at<T>(&self, offset: u64) -> Option<*mut Unaligned<T>>
    where
        T: Plain,
    {
        let end = self.size.wrapping_sub(size_of::<T>() as u64);
        if offset > end || end > self.size {
            return None;
        }
        // SAFETY: offset + size_of::<T>() <= size, so the pointer stays inside the mapping.
        Some(unsafe { self.base.as_ptr().add(offset as usize) }.cast())
    }

    /// Reads a value at file offset `offset` (any alignment). `None` outside RAM.
    #[inline(always)]
    pub fn read<T: Plain>(&self, offset: u64) -> Option<T> {
        let pointer = self.at::<T>(offset)?;
        // SAFETY: `at` checked the bounds; the packed wrapper has alignment 1; T is plain.
        Some(unsafe { pointer.read_volatile() }.0)
    }

    /// Reads 16 bytes at file offset `offset`, as one vector where the host has them (a volatile
    /// read would go byte by byte). For instruction operands only: what checks guest data reads it
    /// with [`GuestMemory::read`].
    #[inline(always)]
    pub fn read_vector(&self, offset: u64) -> Option<[u8; 16]> {
        let pointer = self.at::<u128>(offset)?.cast::<[u8; 16]>();
        // SAFETY: `at` checked the bounds; byte arrays have alignment 1. As in `read_bytes`, a
        // change meanwhile yields some mixture of bytes.
        Some(unsafe { pointer.read() })
    }

    /// Writes a value at file offset `offset` (any alignment). `None` outside RAM.
    #[inline(always)]
    pub fn write<T: Plain>(&self, offset: u64, value: T) -> Option<()> {
        let pointer = self.at::<T>(offset)?;
        let aligned = pointer.cast::<T>();
        // A volatile store of the packed wrapper goes by way of the stack: worth avoiding.
        if aligned.is_aligned() {
            // SAFETY: `at` checked the bounds; T is plain; the pointer is aligned for it.
            unsafe { aligned.write_volatile(value) };
        } else {
            // SAFETY: as for `read`.
            unsafe { pointer.write_volatile(Unaligned(value)) };
        }
        Some(())
    }

    /// Sets bits of a byte of which other processors may be changing others; what it was before.
    pub fn fetch_or(&self, offset: u64, bits: u8) -> Option<u8> {
        let pointer = self.at::<u8>(offset)?.cast::<u8>();
        // SAFETY: `at` checked the bounds; the mapping outlives this borrow; a byte is aligned.
        Some(unsafe { AtomicU8::from_ptr(pointer) }.fetch_or(bits, Ordering::SeqCst))
    }

    /// Copies bytes out of RAM, wherever the pages are. `None` (nothing copied) when the range
    /// leaves RAM.
    pub fn read_bytes(&self, offset: u64, into: &mut [u8]) -> Option<()> {
        let end = offset.checked_add(into.len() as u64)?;
        if end > self.size {
            return None;
        }
        let Some(template) = &self.template else {
            return self.copy_out(offset, into);
        };
        let mut at = offset;
        let mut rest = into;
        while !rest.is_empty() {
            let length = ((PAGE_SIZE - at % PAGE_SIZE) as usize).min(rest.len());
            let (part, after) = rest.split_at_mut(length);
            if template.is_present(at / PAGE_SIZE) {
                self.copy_out(at, part)?;
            } else {
                template.read_bytes(at, part)?;
            }
            at += length as u64;
            rest = after;
        }
        Some(())
    }

    fn copy_out(&self, offset: u64, into: &mut [u8]) -> Option<()> {
        if offset.checked_add(into.len() as u64)? > self.size {
            return None;
        }
        // SAFETY: the range was checked; the destination is ours. The source may change while it
        // is copied, which yields some mixture of bytes: all bit patterns are valid.
        unsafe {
            std::ptr::copy_nonoverlapping(
                self.base.as_ptr().add(offset as usize),
                into.as_mut_ptr(),
                into.len(),
            );
        }
        Some(())
    }

    /// Copies bytes into RAM. `None` (nothing copied) when the range leaves RAM.
    pub fn write_bytes(&self, offset: u64, from: &[u8]) -> Option<()> {
        let end = offset.checked_add(from.len() as u64)?;
        if end > self.size {
            return None;
        }
        // SAFETY: as for `read_bytes`, in the other direction.
        unsafe {
            std::ptr::copy_nonoverlapping(
                from.as_ptr(),
                self.base.as_ptr().add(offset as usize),
                from.len(),
            );
        }
        Some(())
    }

    /// Copies `length` bytes inside RAM (ranges may overlap; like `memmove`).
    pub fn copy_within(&self, from: u64, to: u64, length: u64) -> Option<()> {
        if from.checked_add(length)? > self.size || to.checked_add(length)? > self.size {
            return None;
        }
        // SAFETY: both ranges were checked; `copy` allows overlap.
        unsafe {
            std::ptr::copy(
                self.base.as_ptr().add(from as usize),
                self.base.as_ptr().add(to as usize),
                length as usize,
            );
        }
        Some(())
    }

    /// Fills `length` bytes of RAM with `byte`.
    pub fn fill(&self, offset: u64, length: u64, byte: u8) -> Option<()> {
        if offset.checked_add(length)? > self.size {
            return None;
        }
        // SAFETY: the range was checked.
        unsafe {
            std::ptr::write_bytes(
                self.base.as_ptr().add(offset as usize),
                byte,
                length as usize,
            )
        };
        Some(())
    }
}

impl Drop for GuestMemory {
    fn drop(&mut self) {
        // SAFETY: the mapping was made in `map` and nothing refers to it any more.
        let _ = unsafe { rustix::mm::munmap(self.base.as_ptr().cast(), self.size as usize) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shared::Shared;
    use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
    use std::os::fd::OwnedFd;

    const PAGES: u64 = 16;

    fn file(size: u64) -> OwnedFd {
        let fd = memfd_create("test", MemfdFlags::CLOEXEC).unwrap();
        ftruncate(&fd, size).unwrap();
        fd
    }

    /// RAM over a template in which each byte of page n is n + 1, and the page file.
    fn restored() -> (GuestMemory, GuestMemory, Shared<AtomicU8>) {
        let (data, pages) = (file(PAGES * PAGE_SIZE), file(PAGE_SIZE + PAGES));
        let template = GuestMemory::map(&data, PAGES * PAGE_SIZE).unwrap();
        for page in 0..PAGES {
            template
                .fill(page * PAGE_SIZE, PAGE_SIZE, page as u8 + 1)
                .unwrap();
        }
        let cells = Shared::map(&pages, (PAGE_SIZE + PAGES) as usize).unwrap();
        let memory = GuestMemory::anonymous(PAGES * PAGE_SIZE).unwrap();
        let source = Template::map(&data, &pages, PAGES * PAGE_SIZE).unwrap();
        (memory.with_template(source), template, cells)
    }

    #[test]
    fn pages_come_from_the_template_when_they_are_touched() {
        let (memory, template, cells) = restored();
        assert_eq!(memory.peek(0x3008), Some(0x0404_0404_0404_0404));
        let mut bytes = [0; 4];
        memory.read_bytes(0x3FFE, &mut bytes).unwrap();
        assert_eq!(bytes, [4, 4, 5, 5]);
        assert!(
            cells[PAGE_SIZE as usize..]
                .iter()
                .all(|cell| cell.load(Ordering::Relaxed) == 0)
        );
        memory.touch(0x3123);
        memory.write(0x3FFF, 0xAAu8).unwrap();
        assert_eq!(memory.read::<u8>(0x3123), Some(4));
        memory.touch(0x3000);
        memory.read_bytes(0x3FFE, &mut bytes).unwrap();
        assert_eq!(bytes, [4, 0xAA, 5, 5]);
        assert_eq!(
            template.read::<u8>(0x3FFF),
            Some(4),
            "the template is never written"
        );
        // A page that is said to be here is not fetched: new memory reads as zero.
        cells[PAGE_SIZE as usize + 7].store(1, Ordering::Relaxed);
        memory.touch(0x7000);
        assert_eq!(memory.peek(0x7000), Some(0));
        memory.touch(PAGES * PAGE_SIZE);
        memory.touch(u64::MAX);
    }

    #[test]
    fn pages_that_were_put_in_place_are_left_as_they_are() {
        let (data, pages) = (file(PAGES * PAGE_SIZE), file(PAGE_SIZE + PAGES));
        let cells: Shared<AtomicU8> = Shared::map(&pages, (PAGE_SIZE + PAGES) as usize).unwrap();
        for page in [3, 4, 15] {
            cells[PAGE_SIZE as usize + page].store(2, Ordering::Relaxed);
        }
        let source = Template::map(&data, &pages, PAGES * PAGE_SIZE).unwrap();
        assert_eq!(source.placed(16).collect::<Vec<_>>(), [3]);
        assert_eq!(source.placed(5).collect::<Vec<_>>(), [3, 15]);
        let memory = GuestMemory::anonymous(PAGES * PAGE_SIZE).unwrap();
        memory.write(0x4008, 7u64).unwrap();
        let memory = memory.with_template(source);
        memory.touch(0x4008);
        assert_eq!(memory.peek(0x4008), Some(7));
    }

    #[test]
    fn the_lock_is_taken_in_turn() {
        let (memory, _, cells) = restored();
        // The worker holds it, and lets go after a while.
        cells[1].store(1, Ordering::SeqCst);
        cells[2].store(0, Ordering::SeqCst);
        let toucher = std::thread::spawn(move || {
            memory.touch(0x2000);
            memory
        });
        std::thread::sleep(std::time::Duration::from_millis(20));
        cells[PAGE_SIZE as usize + 2].store(1, Ordering::SeqCst);
        cells[1].store(0, Ordering::SeqCst);
        let memory = toucher.join().unwrap();
        assert_eq!(memory.peek(0x2000), Some(0), "the worker was faster");
        assert_eq!(cells[0].load(Ordering::SeqCst), 0, "it is free again");
    }
}
