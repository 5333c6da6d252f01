//! Random bytes from the host, credited to the kernel's pool.
#![allow(unsafe_code)]

use std::{fs::OpenOptions, io, os::fd::AsRawFd};

use crate::flows::Flow;

/// What the agent takes at once; more is cut off.
const MAX_BYTES: usize = Flow::AgentEntropy.max_bytes() as usize;

/// `struct rand_pool_info` of `linux/random.h`, with room for the bytes.
#[repr(C)]
struct PoolInfo {
    entropy_count: i32,
    buffer_size: i32,
    buffer: [u8; MAX_BYTES],
}

mod ioctl {
    // RNDRESEEDCRNG is _IO('R', 7).
    nix::ioctl_none!(reseed, b'R', 7);
    // RNDADDENTROPY is _IOW('R', 3, int[2]): the size in its number is that of the two counts.
    nix::ioctl_write_ptr_bad!(
        add_entropy,
        nix::request_code_write!(b'R', 3, 2 * size_of::<i32>()),
        super::PoolInfo
    );
}

/// Adds `bytes` to the pool and counts every bit of them.
pub fn add(bytes: &[u8]) -> io::Result<()> {
    let length = bytes.len().min(MAX_BYTES);
    let mut info = PoolInfo {
        entropy_count: 8 * length as i32,
        buffer_size: length as i32,
        buffer: [0; MAX_BYTES],
    };
    info.buffer[..length].copy_from_slice(&bytes[..length]);
    let pool = OpenOptions::new().write(true).open("/dev/urandom")?;
    // SAFETY: the kernel reads two counts and `buffer_size` bytes, all inside `info`.
    unsafe { ioctl::add_entropy(pool.as_raw_fd(), &raw const info) }?;
    Ok(())
}

/// Makes the kernel's generator draw a new key from the pool at once: copies of a machine would
/// otherwise give the same numbers until the next time it does so by itself.
pub fn reseed() -> io::Result<()> {
    let pool = OpenOptions::new().write(true).open("/dev/urandom")?;
    // SAFETY: this call takes no argument.
    unsafe { ioctl::reseed(pool.as_raw_fd()) }?;
    Ok(())
}
