//! How a running guest is interrupted: by one signal, which is blocked except inside `KVM_RUN`.
//!
//! There is no handler and no race: the kernel unblocks the signal when it enters the guest and
//! blocks it again when it leaves, so that one that came a moment earlier is seen as well. It is
//! sent by a timer, and by the descriptors to the worker when they become readable. This keeps the
//! process single-threaded: while we write to the guest's pages, the guest stands still.
#![allow(unsafe_code)]

use std::{io, mem::zeroed, os::fd::AsRawFd, ptr::null_mut};

/// The signal that descriptors send by default.
const SIGNAL: libc::c_int = libc::SIGIO;

pub struct Kick {
    timer: libc::timer_t,
    /// When the timer goes off, in nanoseconds of the clock.
    armed: Option<u64>,
}

impl Kick {
    /// Blocks the signal in this thread, which must be the one that runs the guest. The second
    /// value is the set of signals that stay blocked while the guest runs.
    pub fn new() -> io::Result<(Self, u64)> {
        let bit = |signal: libc::c_int| 1u64 << (signal - 1);
        // SAFETY: all of these are plain numbers; the kernel fills in what we own.
        unsafe {
            let mut before: libc::sigset_t = zeroed();
            let set = signal_set();
            check(libc::pthread_sigmask(
                libc::SIG_BLOCK,
                &raw const set,
                &raw mut before,
            ))?;
            let blocked = (1..=64)
                .filter(|&signal| {
                    signal != SIGNAL && libc::sigismember(&raw const before, signal) == 1
                })
                .fold(0, |mask, signal| mask | bit(signal));
            let mut event: libc::sigevent = zeroed();
            event.sigev_notify = libc::SIGEV_THREAD_ID;
            event.sigev_signo = SIGNAL;
            event.sigev_notify_thread_id = libc::gettid();
            let mut timer = null_mut();
            check(libc::timer_create(
                libc::CLOCK_MONOTONIC,
                &raw mut event,
                &raw mut timer,
            ))?;
            Ok((Self { timer, armed: None }, blocked))
        }
    }

    /// From now on `descriptor` kicks when it becomes readable, or when its other end is gone.
    pub fn watch(&self, descriptor: &impl AsRawFd) -> io::Result<()> {
        let fd = descriptor.as_raw_fd();
        // SAFETY: these only change flags of an open descriptor.
        unsafe {
            check(libc::fcntl(fd, libc::F_SETOWN, libc::getpid()))?;
            let flags = libc::fcntl(fd, libc::F_GETFL);
            check(libc::fcntl(fd, libc::F_SETFL, flags | libc::O_ASYNC))?;
            // A kind of file that cannot send signals passes over the flag in silence.
            match libc::fcntl(fd, libc::F_GETFL) & libc::O_ASYNC {
                0 => Err(io::Error::from_raw_os_error(libc::ENOTSUP)),
                _ => Ok(()),
            }
        }
    }

    /// Sees to it that a kick comes at `deadline` or before; both in nanoseconds of the clock.
    pub fn arm(&mut self, deadline: u64, now: u64) {
        if self.armed.is_some_and(|armed| armed <= deadline) {
            return;
        }
        self.armed = Some(deadline);
        // 0 would switch the timer off.
        let left = deadline.saturating_sub(now).max(1);
        let value = libc::timespec {
            tv_sec: i64::try_from(left / 1_000_000_000).unwrap_or(i64::MAX),
            tv_nsec: (left % 1_000_000_000) as i64,
        };
        // SAFETY: the timer is ours; all else are plain numbers.
        unsafe {
            let mut setting: libc::itimerspec = zeroed();
            setting.it_value = value;
            libc::timer_settime(self.timer, 0, &raw const setting, null_mut());
        }
    }

    /// Takes the signal back. Whoever sent it, the timer must be armed again: it may have gone off
    /// a little early by the guest's clock.
    pub fn take(&mut self) {
        self.armed = None;
        let set = signal_set();
        // SAFETY: reads a set and a time of ours; does not wait.
        unsafe {
            let none: libc::timespec = zeroed();
            libc::sigtimedwait(&raw const set, null_mut(), &raw const none);
        }
    }
}

impl Drop for Kick {
    fn drop(&mut self) {
        // SAFETY: the timer is ours.
        unsafe { libc::timer_delete(self.timer) };
    }
}

fn signal_set() -> libc::sigset_t {
    // SAFETY: a set is plain numbers, and these calls cannot fail for a signal that exists.
    unsafe {
        let mut set: libc::sigset_t = zeroed();
        libc::sigemptyset(&raw mut set);
        libc::sigaddset(&raw mut set, SIGNAL);
        set
    }
}

fn check(result: libc::c_int) -> io::Result<()> {
    match result {
        0 => Ok(()),
        -1 => Err(io::Error::last_os_error()),
        number => Err(io::Error::from_raw_os_error(number)),
    }
}
