//! Small shared mappings seen as atomics: the doorbell page and the counter page.
#![allow(unsafe_code)]

use rustix::{
    fs::{MemfdFlags, fstat, ftruncate, memfd_create},
    io::Errno,
    mm::{MapFlags, ProtFlags, mmap, munmap},
};
use std::{
    ops::Deref,
    os::fd::AsFd,
    ptr::NonNull,
    sync::atomic::{AtomicU8, AtomicU64},
};

/// An atomic that may be laid over shared memory.
///
/// # Safety
/// All bit patterns are valid, and nothing but atomic accesses reaches the memory from here.
pub unsafe trait Cell {}
// SAFETY: integers have no invalid bit patterns.
unsafe impl Cell for AtomicU8 {}
// SAFETY: as above.
unsafe impl Cell for AtomicU64 {}

/// A shared mapping of a whole file as a slice of atomics.
pub struct Shared<T: Cell> {
    base: NonNull<T>,
    length: usize,
}

// SAFETY: the mapping lives as long as the value and is only reached by atomic accesses.
unsafe impl<T: Cell> Send for Shared<T> {}
// SAFETY: as above.
unsafe impl<T: Cell> Sync for Shared<T> {}

impl<T: Cell> Shared<T> {
    /// Maps the first `length` cells of `fd`; refuses a file that is too short, whose missing
    /// pages would kill the process at the first access.
    pub fn map(fd: impl AsFd, length: usize) -> rustix::io::Result<Self> {
        let bytes = length.checked_mul(size_of::<T>()).ok_or(Errno::INVAL)?;
        if u64::try_from(fstat(&fd)?.st_size).unwrap_or(0) < bytes as u64 {
            return Err(Errno::INVAL);
        }
        // SAFETY: a fresh mapping at an address the kernel chooses aliases nothing.
        let base = unsafe {
            mmap(
                std::ptr::null_mut(),
                bytes,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED,
                fd,
                0,
            )?
        };
        let base = NonNull::new(base.cast()).ok_or(Errno::FAULT)?;
        Ok(Self { base, length })
    }

    /// A mapping of the same shape that nobody else sees, for tests and fuzz targets.
    pub fn anonymous(length: usize) -> rustix::io::Result<Self> {
        let fd = memfd_create("shared", MemfdFlags::CLOEXEC)?;
        ftruncate(&fd, (length * size_of::<T>()) as u64)?;
        Self::map(fd, length)
    }
}

impl<T: Cell> Deref for Shared<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        // SAFETY: the mapping holds `length` cells, page-aligned, and lives as long as `self`.
        unsafe { std::slice::from_raw_parts(self.base.as_ptr(), self.length) }
    }
}

impl<T: Cell> Drop for Shared<T> {
    fn drop(&mut self) {
        // SAFETY: the mapping was made in `map` and no reference outlives `self`.
        let _ = unsafe { munmap(self.base.as_ptr().cast(), self.length * size_of::<T>()) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_is_too_short_is_refused() {
        let fd = memfd_create("short", MemfdFlags::CLOEXEC).unwrap();
        ftruncate(&fd, 100).unwrap();
        assert!(Shared::<AtomicU8>::map(&fd, 4096).is_err());
        assert!(Shared::<AtomicU64>::map(&fd, usize::MAX).is_err());
    }
}
