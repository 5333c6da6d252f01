//! Guest RAM: one shared mapping, seen by the worker process too.
//!
//! Every access is a volatile copy in or out of the mapping: another processor or the worker may
//! change any byte at any moment, so no reference into guest RAM ever exists. Callers copy once,
//! validate the copy and use only the copy.
#![allow(unsafe_code)]

use crate::flows::values;
use std::{os::fd::AsFd, ptr::NonNull};

/// Where RAM stops below 4 GiB; the rest continues at [`HIGH_BASE`].
pub const LOW_LIMIT: u64 = values::MEMORY_HOLE_HOLE_FIRST;
/// Guest physical address of the second memory slot.
pub const HIGH_BASE: u64 = values::MEMORY_HOLE_HOLE_END;
pub const PAGE_SIZE: u64 = 4096;

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
pub struct GuestMemory {
    base: NonNull<u8>,
    size: u64,
}

// SAFETY: the mapping lives as long as the value and is only accessed by volatile copies.
unsafe impl Send for GuestMemory {}

impl GuestMemory {
    /// Maps `size` bytes of the memory file `fd` shared and writable. Refuses a file that is too
    /// short, whose missing pages would kill the process at the first access.
    pub fn map(fd: impl AsFd, size: u64) -> rustix::io::Result<Self> {
        use rustix::mm::{MapFlags, ProtFlags, mmap};
        if u64::try_from(rustix::fs::fstat(&fd)?.st_size).unwrap_or(0) < size {
            return Err(rustix::io::Errno::INVAL);
        }
        let length = usize::try_from(size).map_err(|_| rustix::io::Errno::INVAL)?;
        // SAFETY: a fresh mapping at an address the kernel chooses aliases nothing.
        let base = unsafe {
            mmap(
                std::ptr::null_mut(),
                length,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED | MapFlags::NORESERVE,
                fd,
                0,
            )?
        };
        let base = NonNull::new(base.cast()).ok_or(rustix::io::Errno::FAULT)?;
        Ok(Self { base, size })
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

    /// Copies bytes out of RAM. `None` (nothing copied) when the range leaves RAM.
    pub fn read_bytes(&self, offset: u64, into: &mut [u8]) -> Option<()> {
        let end = offset.checked_add(into.len() as u64)?;
        if end > self.size {
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
