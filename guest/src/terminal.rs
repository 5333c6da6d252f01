//! Pseudo-terminals for programs that people use.
#![allow(unsafe_code)]

use std::{
    fs::File,
    io,
    os::{fd::AsRawFd, unix::process::CommandExt},
    process::{Command, Stdio},
};

use nix::{
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

/// Gives `command` a new terminal, in a session of its own; returns our end.
pub fn attach(command: &mut Command, size: Size) -> io::Result<File> {
    let ends = openpty(&Winsize::from(size), None)?;
    command
        .stdin(Stdio::from(ends.slave.try_clone()?))
        .stdout(Stdio::from(ends.slave.try_clone()?))
        .stderr(Stdio::from(ends.slave));
    let lead = || {
        setsid()?;
        // SAFETY: the call takes a descriptor, here stdin, and no memory.
        unsafe { ioctl::set_controlling_terminal(0) }?;
        Ok(())
    };
    // SAFETY: between fork and exec, `lead` makes two system calls and allocates nothing.
    unsafe { command.pre_exec(lead) };
    Ok(ends.master.into())
}

/// Changes the size; the kernel tells the programs (SIGWINCH).
pub fn resize(terminal: &File, size: Size) {
    // SAFETY: the kernel reads one `Winsize`.
    let _ = unsafe { ioctl::set_size(terminal.as_raw_fd(), &Winsize::from(size)) };
}
