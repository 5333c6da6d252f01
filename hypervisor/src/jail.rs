//! The walls around this process, raised before the first guest instruction runs.
#![allow(unsafe_code)]

use libc::c_long;
use rustix::{
    fs::Mode,
    io::Errno,
    process::{DumpableBehavior, Resource, Rlimit, set_dumpable_behavior, setrlimit, umask},
    thread::set_no_new_privs,
};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch,
};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("descriptor {0} was not given, or was given twice")]
    Descriptor(RawFd),
    #[error("could not drop privileges: {0}")]
    System(#[from] Errno),
    #[error("could not build the system call filter: {0}")]
    Filter(#[from] seccompiler::BackendError),
    #[error("the host refuses the system call filter: {0}")]
    Apply(#[from] seccompiler::Error),
}

/// Takes possession of the descriptors `given`, and closes every other one above stderr.
pub fn adopt<const N: usize>(given: [RawFd; N]) -> Result<[OwnedFd; N], Error> {
    let mut sorted = given;
    sorted.sort_unstable();
    let mut next = 3;
    for fd in sorted {
        if fd < next {
            return Err(Error::Descriptor(fd));
        }
        // SAFETY: only asks whether the descriptor is open.
        if unsafe { libc::fcntl(fd, libc::F_GETFD) } < 0 {
            return Err(Error::Descriptor(fd));
        }
        close_range(next, fd - 1)?;
        next = fd + 1;
    }
    close_range(next, RawFd::MAX)?;
    // SAFETY: each is open, differs from the others, and is owned by nothing else: this runs
    // before anything in this process has opened a descriptor.
    Ok(given.map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }))
}

fn close_range(first: RawFd, last: RawFd) -> Result<(), Errno> {
    if first > last {
        return Ok(());
    }
    // SAFETY: nothing in this process owns these descriptors, see `adopt`.
    match unsafe { libc::close_range(first as u32, last as u32, 0) } {
        0 => Ok(()),
        _ => Err(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::PERM)),
    }
}

/// The descriptors that stay in use behind the walls.
pub struct Descriptors<'a> {
    pub link: BorrowedFd<'a>,
    pub to_worker: BorrowedFd<'a>,
    pub to_hypervisor: BorrowedFd<'a>,
}

/// From here on: no new privileges, no files, no processes, no debugger, no dumps, and of all
/// system calls only those below, on the descriptors they need. Any other call kills the process.
pub fn lock(descriptors: &Descriptors) -> Result<(), Error> {
    umask(Mode::RWXU | Mode::RWXG | Mode::RWXO);
    set_no_new_privs(true)?;
    set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    let limits = [
        // No new descriptor gets a number below 2; poll(2) accepts as many entries as that.
        (Resource::Nofile, 2),
        (Resource::Fsize, 0),
        (Resource::Core, 0),
        (Resource::Nproc, 0),
        (Resource::Memlock, 0),
        (Resource::Msgqueue, 0),
    ];
    for (resource, limit) in limits {
        let limit = Some(limit);
        setrlimit(
            resource,
            Rlimit {
                current: limit,
                maximum: limit,
            },
        )?;
    }
    seccompiler::apply_filter(&filter(descriptors)?)?;
    Ok(())
}

fn filter(descriptors: &Descriptors) -> Result<BpfProgram, Error> {
    let fd = |fd: BorrowedFd| fd.as_raw_fd() as u64;
    let on = |fd: u64| rule(&[(0, SeccompCmpOp::Eq, fd)]);
    // Anonymous memory that is never executable: protection, flags, descriptor.
    let anonymous = rule(&[
        (2, SeccompCmpOp::MaskedEq(libc::PROT_EXEC as u64), 0),
        (
            3,
            SeccompCmpOp::MaskedEq((libc::MAP_ANONYMOUS | libc::MAP_SHARED) as u64),
            libc::MAP_ANONYMOUS as u64,
        ),
    ]);
    let rules: [(c_long, Vec<SeccompRule>); 13] = [
        // The worker: messages and doorbells. (2 is stderr, for the last words of a panic.)
        (libc::SYS_sendto, vec![on(fd(descriptors.link))?]),
        (libc::SYS_recvfrom, vec![on(fd(descriptors.link))?]),
        (libc::SYS_read, vec![on(fd(descriptors.to_hypervisor))?]),
        (
            libc::SYS_write,
            vec![on(fd(descriptors.to_worker))?, on(2)?],
        ),
        // Sleep, and the time on hosts whose vDSO cannot tell it.
        (libc::SYS_ppoll, vec![]),
        (libc::SYS_clock_gettime, vec![]),
        // RDRAND and RDSEED.
        (libc::SYS_getrandom, vec![]),
        // The allocator.
        (libc::SYS_mmap, vec![anonymous?]),
        (libc::SYS_mremap, vec![]),
        (libc::SYS_munmap, vec![]),
        (libc::SYS_brk, vec![]),
        // The end: Rust's runtime takes down its signal stack.
        (libc::SYS_sigaltstack, vec![]),
        (libc::SYS_exit_group, vec![]),
    ];
    let filter = SeccompFilter::new(
        rules.into_iter().collect(),
        SeccompAction::KillProcess,
        SeccompAction::Allow,
        TargetArch::x86_64,
    )?;
    Ok(filter.try_into()?)
}

/// All of `conditions`: argument number, comparison, value.
fn rule(conditions: &[(u8, SeccompCmpOp, u64)]) -> Result<SeccompRule, Error> {
    let conditions: Result<Vec<_>, _> = conditions
        .iter()
        .map(|(argument, comparison, value)| {
            // Descriptors and flags are 32 bits wide; the upper half is whatever was there.
            let width = SeccompCmpArgLen::Dword;
            SeccompCondition::new(*argument, width, comparison.clone(), *value)
        })
        .collect();
    Ok(SeccompRule::new(conditions?)?)
}
