//! The time of day, as the host gives it.

use std::{io, time::Duration};

use nix::{
    sys::time::TimeSpec,
    time::{ClockId, clock_settime},
};

/// Sets the time of day; what counts time from the start is not touched.
pub fn set(time: Duration) -> io::Result<()> {
    clock_settime(ClockId::CLOCK_REALTIME, TimeSpec::from_duration(time)).map_err(Into::into)
}
