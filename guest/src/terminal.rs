//! Pseudo-terminals for programs that people use.
#![allow(unsafe_code)]

use std::{
    fs::File,
    io,
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::process::CommandExt,
    },
    process::Command,
};

use nix::{
    fcntl::{FcntlArg, FdFlag, fcntl},
    pty::{Winsize, openpty},
    unistd::setsid,
};

mod ioctl {
    nix::ioctl_none_bad!(set_controlling_terminal, nix::libc::TIOCSCTTY);
    nix::ioctl_write_ptr_bad!(set_size, nix::libc::TIOCSWINSZ, nix::pty::Winsize);
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size {
    pub rows: u16,
    pub columns: u16,
}

impl From<Size> for Winsize {
    fn from(size: Size) -> Self {
        Winsize {
            ws_row: size.rows,
            ws_col: size.columns,
            ws_xpixel: 0,
            ws_ypixel: 0,
        }
    }
}

/// A new terminal: our end, and the program's.
pub fn open(size: Size) -> io::Result<(File, OwnedFd)> {
    let ends = openpty(&Winsize::from(size), None)?;
    // No other program may inherit them.
    for end in [&ends.master, &ends.slave] {
        fcntl(end, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))?;
    }
    Ok((ends.master.into(), ends.slave))
}

/// Lets `command` lead a session of its own, with the terminal that is its stdin.
pub fn lead(command: &mut Command) {
    let lead = || {
        setsid()?;
        // SAFETY: the call takes a descriptor, here stdin, and no memory.
        unsafe { ioctl::set_controlling_terminal(0) }?;
        Ok(())
    };
    // SAFETY: between fork and exec, `lead` makes two system calls and allocates nothing.
    unsafe { command.pre_exec(lead) };
}

/// Changes the size; the kernel tells the programs (SIGWINCH).
pub fn resize(terminal: &File, size: Size) {
    // SAFETY: the kernel reads one `Winsize`.
    let _ = unsafe { ioctl::set_size(terminal.as_raw_fd(), &Winsize::from(size)) };
}
