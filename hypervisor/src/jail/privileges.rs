//! What this process gives up for good: its user, keys, capabilities.
#![allow(unsafe_code)]

use rustix::{
    io::Errno,
    process::{
        DumpableBehavior, Signal, geteuid, set_dumpable_behavior, set_parent_process_death_signal,
    },
    thread::{
        CapabilitiesSecureBits, CapabilitySet, CapabilitySets, Gid, Uid, capabilities,
        clear_ambient_capability_set, remove_capability_from_bounding_set, set_capabilities,
        set_capabilities_secure_bits, set_keep_capabilities, set_no_new_privs, set_thread_groups,
        set_thread_res_gid, set_thread_res_uid,
    },
};
use std::io;

/// Becomes user and group `uid`, keeping for now the capabilities that build namespaces.
pub fn assume(uid: Option<Uid>) -> io::Result<()> {
    let Some(uid) = uid else {
        return if geteuid().is_root() {
            Err(io::Error::other(
                "started by root without a user id of its own",
            ))
        } else {
            Ok(())
        };
    };
    let gid = Gid::from_raw(uid.as_raw());
    set_thread_groups(&[])?;
    set_thread_res_gid(gid, gid, gid)?;
    set_keep_capabilities(true)?;
    set_thread_res_uid(uid, uid, uid)?;
    // The change of user has cleared the effective set, and only that.
    let sets = capabilities(None)?;
    Ok(set_capabilities(
        None,
        CapabilitySets {
            effective: sets.permitted,
            ..sets
        },
    )?)
}

/// Leaves the keys of the session that started the VM.
pub fn own_keyring() -> io::Result<()> {
    const JOIN_SESSION_KEYRING: u64 = 1;
    let anonymous = std::ptr::null::<u8>();
    // SAFETY: the call takes no memory of ours.
    if unsafe { libc::syscall(libc::SYS_keyctl, JOIN_SESSION_KEYRING, anonymous) } >= 0 {
        return Ok(());
    }
    match io::Error::last_os_error() {
        // A kernel without keys has none to reach.
        error if error.raw_os_error() == Some(libc::ENOSYS) => Ok(()),
        error => Err(error),
    }
}

/// No core file; processes of the same user may not trace it or read its /proc.
pub fn undumpable() -> io::Result<()> {
    Ok(set_dumpable_behavior(DumpableBehavior::NotDumpable)?)
}

/// Empties all capability sets. Whoever holds none may not touch the bounding set and the
/// securebits; they then bound nothing, because no program is executed with more privileges.
pub fn drop_capabilities() -> io::Result<()> {
    if !capabilities(None)?.permitted.is_empty() {
        set_capabilities_secure_bits(
            CapabilitiesSecureBits::NO_ROOT
                | CapabilitiesSecureBits::NO_ROOT_LOCKED
                | CapabilitiesSecureBits::NO_SETUID_FIXUP
                | CapabilitiesSecureBits::NO_SETUID_FIXUP_LOCKED
                | CapabilitiesSecureBits::KEEP_CAPS_LOCKED
                | CapabilitiesSecureBits::NO_CAP_AMBIENT_RAISE
                | CapabilitiesSecureBits::NO_CAP_AMBIENT_RAISE_LOCKED,
        )?;
        for number in 0..u64::BITS {
            match remove_capability_from_bounding_set(CapabilitySet::from_bits_retain(1 << number))
            {
                Err(Errno::INVAL) => break, // one more than the kernel knows
                result => result?,
            }
        }
    }
    clear_ambient_capability_set()?;
    let none = CapabilitySet::empty();
    let sets = CapabilitySets {
        effective: none,
        permitted: none,
        inheritable: none,
    };
    Ok(set_capabilities(None, sets)?)
}

/// No program that this process executes gains anything by it.
pub fn no_new_privileges() -> io::Result<()> {
    Ok(set_no_new_privs(true)?)
}

/// Ends with the thread that started it, even while stopped or stuck. Every change of credentials
/// undoes this, so it comes after them.
pub fn die_with_parent() -> io::Result<()> {
    Ok(set_parent_process_death_signal(Some(Signal::KILL))?)
}

/// Lets all threads allocate from one heap, which grows by calls that the run loop makes anyway.
pub fn share_heap() {
    // SAFETY: sets a number, before there are other threads.
    unsafe { libc::mallopt(libc::M_ARENA_MAX, 1) };
}

/// Ends the process, without the clean-up that Rust's runtime would do.
pub fn exit(status: u8) -> ! {
    // SAFETY: nothing of this process outlives it.
    unsafe { libc::_exit(status.into()) }
}
