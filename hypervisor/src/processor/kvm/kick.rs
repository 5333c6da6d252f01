//! How a running guest is interrupted: by one signal, which is blocked except inside `KVM_RUN`.
//!
//! There is no handler and no race: the kernel unblocks the signal when it enters the guest and
//! blocks it again when it leaves, so that one that came a moment earlier is seen as well. It is
//! sent by a timer, and by the descriptors to the worker when they become readable. Another thread
//! kicks by setting the timer to go off at once, which takes no system call that the timer does not.
#![allow(unsafe_code)]

use super::super::Kicker;
use std::{io, mem::zeroed, os::fd::AsRawFd, ptr::null_mut};

/// The signal that descriptors send by default.
const SIGNAL: libc::c_int = libc::SIGIO;

/// `F_SETOWN_EX`, and that a number is a thread's.
const SET_OWNER: libc::c_int = 15;
const OWNER_IS_THREAD: libc::c_int = 0;

/// What may be known of a timer in other threads: its number.
#[derive(Clone, Copy)]
struct Timer(libc::timer_t);

// SAFETY: the kernel knows a timer by its number, the same in all threads of the process.
unsafe impl Send for Timer {}

pub struct Kick {
    timer: Timer,
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
            let timer = Timer(timer);
            Ok((Self { timer, armed: None }, blocked))
        }
    }

    /// From now on `descriptor` kicks the calling thread when it becomes readable, or when its other
    /// end is gone.
    pub fn watch(descriptor: &impl AsRawFd) -> io::Result<()> {
        let fd = descriptor.as_raw_fd();
        // SAFETY: these only change flags and the owner of an open descriptor.
        unsafe {
            let owner = [OWNER_IS_THREAD, libc::gettid()];
            check(libc::fcntl(fd, SET_OWNER, &raw const owner))?;
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
        self.timer.set(deadline.saturating_sub(now));
    }

    /// Kicks from any thread. The one that runs the guest must not [`Kick::arm`] meanwhile.
    pub fn kicker(&self) -> Kicker {
        let timer = self.timer;
        Kicker(Box::new(move || timer.set(0)))
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

impl Timer {
    /// Lets it go off in `left` nanoseconds.
    fn set(&self, left: u64) {
        // 0 would switch the timer off.
        let left = left.max(1);
        let value = libc::timespec {
            tv_sec: i64::try_from(left / 1_000_000_000).unwrap_or(i64::MAX),
            tv_nsec: (left % 1_000_000_000) as i64,
        };
        // SAFETY: the timer is ours; all else are plain numbers.
        unsafe {
            let mut setting: libc::itimerspec = zeroed();
            setting.it_value = value;
            libc::timer_settime(self.0, 0, &raw const setting, null_mut());
        }
    }
}

impl Drop for Kick {
    fn drop(&mut self) {
        // SAFETY: the timer is ours.
        unsafe { libc::timer_delete(self.timer.0) };
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
