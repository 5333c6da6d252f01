//! Switching the machine off.

use std::{thread, time::Duration};

use nix::{
    sys::reboot::{RebootMode, reboot},
    unistd::sync,
};

use crate::log;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Off,
    Reboot,
}

/// Writes everything back and ends the machine. PID 1 must never return.
pub fn off(kind: Kind) -> ! {
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
