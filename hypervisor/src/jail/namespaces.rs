//! Namespaces of this process's own, and a root directory with nothing in it.
#![allow(unsafe_code)]

use rustix::{
    mount::{MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_change, unmount},
    process::{DumpableBehavior, chdir, getegid, geteuid, pivot_root, set_dumpable_behavior},
    thread::{UnshareFlags, unshare_unsafe},
};
use std::{fs, io};

fn unshare(flags: UnshareFlags) -> io::Result<()> {
    // SAFETY: none of the flags used here parts descriptors from threads; there is one thread.
    Ok(unsafe { unshare_unsafe(flags) }?)
}

/// A user namespace that knows one user and one group: our own.
pub fn user() -> io::Result<()> {
    let (uid, gid) = (geteuid().as_raw(), getegid().as_raw());
    unshare(UnshareFlags::NEWUSER)?;
    // Our own /proc files are ours only while dumpable; a change of user has cleared that.
    set_dumpable_behavior(DumpableBehavior::Dumpable)?;
    fs::write("/proc/self/setgroups", "deny")?;
    fs::write("/proc/self/uid_map", format!("{uid} {uid} 1"))?;
    fs::write("/proc/self/gid_map", format!("{gid} {gid} 1"))
}

/// No interface but a loopback that is down, and no abstract sockets.
pub fn network() -> io::Result<()> {
    unshare(UnshareFlags::NEWNET)
}

/// No System V objects and no message queues of others.
pub fn ipc() -> io::Result<()> {
    unshare(UnshareFlags::NEWIPC)
}

/// A host name of its own.
pub fn host_name() -> io::Result<()> {
    unshare(UnshareFlags::NEWUTS)
}

/// The cgroup it is in looks like the root of all.
pub fn cgroup() -> io::Result<()> {
    unshare(UnshareFlags::NEWCGROUP)
}

/// The root becomes a read-only file system with one directory that nobody may enter.
pub fn empty_root() -> io::Result<()> {
    unshare(UnshareFlags::NEWNS)?;
    // Nothing we do here reaches the host's mount table.
    mount_change(
        "/",
        MountPropagationFlags::PRIVATE | MountPropagationFlags::REC,
    )?;
    // /proc is a directory that every host has; whatever was there is covered, then gone.
    let flags = MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    mount("none", "/proc", "tmpfs", flags, c"mode=000,nr_inodes=1")?;
    chdir("/proc")?;
    pivot_root(".", ".")?;
    unmount(".", UnmountFlags::DETACH)?;
    Ok(chdir("/")?)
}
