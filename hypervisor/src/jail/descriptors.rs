//! The descriptors that this process was given, and no other.
#![allow(unsafe_code)]

use super::Jail;
use rustix::process::chdir;
use std::{
    io,
    os::fd::{FromRawFd, OwnedFd, RawFd},
};

/// A descriptor of the command line is not there.
#[derive(Debug, thiserror::Error)]
#[error("descriptor {0} was not given, or was given twice")]
pub struct NotGiven(RawFd);

/// What [`adopt`] has taken, in the order it was given.
pub type Adopted<const N: usize> = ([OwnedFd; N], Option<OwnedFd>, Vec<OwnedFd>);

/// Takes possession of the descriptors `given`, of a `further` one and of those of a saved machine.
pub fn adopt<const N: usize>(
    given: [RawFd; N],
    further: Option<RawFd>,
    saved: Vec<RawFd>,
) -> Result<Adopted<N>, NotGiven> {
    let mut sorted: Vec<_> = given
        .into_iter()
        .chain(further)
        .chain(saved.iter().copied())
        .collect();
    sorted.sort_unstable();
    let mut next = 3;
    for fd in sorted {
        // SAFETY: only asks whether the descriptor is open.
        if fd < next || unsafe { libc::fcntl(fd, libc::F_GETFD) } < 0 {
            return Err(NotGiven(fd));
        }
        next = fd.saturating_add(1);
    }
    // SAFETY: each is open, differs from the others, and is owned by nothing else: this runs
    // before anything in this process has opened a descriptor.
    let own = |fd| unsafe { OwnedFd::from_raw_fd(fd) };
    Ok((
        given.map(own),
        further.map(own),
        saved.into_iter().map(own).collect(),
    ))
}

/// Closes all but the link, what is read and written, what KVM made and 0 to 2, which are
/// /dev/null; and leaves the directory of whoever started it.
pub fn close_others(jail: &Jail) -> io::Result<()> {
    chdir("/")?;
    let own = jail.link.iter().chain(&jail.reads).chain(&jail.writes);
    let mut kept: Vec<_> = own.copied().collect();
    if let Some(kvm) = &jail.kvm {
        kept.push(kvm.vm);
        kept.extend(&kvm.vcpus);
    }
    kept.sort_unstable();
    let mut next = 3;
    for fd in kept {
        close_range(next, fd.saturating_sub(1))?;
        next = fd.saturating_add(1).max(3);
    }
    close_range(next, RawFd::MAX)
}

fn close_range(first: RawFd, last: RawFd) -> io::Result<()> {
    if first > last {
        return Ok(());
    }
    // SAFETY: what is closed was given to this process and is mapped by now, or was left open by
    // whoever started it; nothing in this process still uses it.
    match unsafe { libc::close_range(first as u32, last as u32, 0) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
