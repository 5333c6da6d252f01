//! Switching the machine off: programs ended, file systems unmounted, all written back.

use std::{fs, thread, time::Duration};

use nix::{
    errno::Errno,
    mount::{MntFlags, MsFlags, mount, umount2},
    sys::{
        reboot::{RebootMode, reboot},
        signal::{Signal, kill},
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::{Pid, sync},
};

use crate::log;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Off,
    Reboot,
}

/// What tells PID 1 to switch off, as with every init: busybox, sysvinit.
pub const SIGNALS: [(Signal, Kind); 3] = [
    (Signal::SIGUSR1, Kind::Off),
    (Signal::SIGUSR2, Kind::Off),
    (Signal::SIGTERM, Kind::Reboot),
];
/// The option with which the kernel starts us when the host asks for power-off.
pub const REQUEST: &str = "--power-off";
const POWER_OFF_COMMAND: &str = "/proc/sys/kernel/poweroff_cmd";

/// How programs are ended, and how many pauses each way is waited for: counted, not timed, as time
/// goes on while the host does not let us run. An interactive shell takes no notice of the first.
const ENDINGS: [(Signal, u32); 3] = [
    (Signal::SIGTERM, 200),
    (Signal::SIGHUP, 50),
    (Signal::SIGKILL, 100),
];
const PAUSE: Duration = Duration::from_millis(10);

/// Has the kernel start us when the host asks for power-off: whatever root file system there is by
/// then need not know that we are its init.
pub fn prepare() {
    if let Err(error) = fs::write(POWER_OFF_COMMAND, format!("/proc/1/exe {REQUEST}")) {
        log::line(&format!("{POWER_OFF_COMMAND}: {error}"));
    }
}

/// Tells PID 1 to switch off.
pub fn request() -> nix::Result<()> {
    kill(Pid::from_raw(1), Signal::SIGUSR2)
}

/// Ends the machine in order. PID 1 must never return.
pub fn off(kind: Kind) -> ! {
    end_programs();
    sync();
    unmount();
    sync();
    let mode = match kind {
        Kind::Off => RebootMode::RB_POWER_OFF,
        Kind::Reboot => RebootMode::RB_AUTOBOOT,
    };
    loop {
        let Err(error) = reboot(mode);
        log::line(&format!("power-off failed: {error}"));
        thread::sleep(Duration::from_secs(1));
    }
}

fn end_programs() {
    let everybody = Pid::from_raw(-1);
    for (signal, pauses) in ENDINGS {
        let _ = kill(everybody, signal);
        let _ = kill(everybody, Signal::SIGCONT); // who is stopped could not end
        if all_ended(pauses) {
            return;
        }
    }
}

/// Waits until there is no process but ourselves: all others are our descendants.
fn all_ended(mut pauses: u32) -> bool {
    loop {
        match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Err(Errno::ECHILD) => return true,
            Ok(WaitStatus::StillAlive) if pauses == 0 => return false,
            Ok(WaitStatus::StillAlive) => thread::sleep(PAUSE),
            _ => continue,
        }
        pauses -= 1;
    }
}

/// Unmounts what can be, the newest first; the root and what is busy becomes read-only.
fn unmount() {
    let mounts = fs::read_to_string("/proc/mounts").unwrap_or_default();
    let targets: Vec<_> = mounts
        .lines()
        .filter_map(|line| line.split(' ').nth(1))
        .collect();
    for target in targets.into_iter().rev() {
        // The kernel writes a blank as \040 and so on; nothing of ours has one.
        if target == "/" || umount2(target, MntFlags::empty()).is_err() {
            let flags = MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
            let _ = mount(None::<&str>, target, None::<&str>, flags, None::<&str>);
        }
    }
}
