//! The time a guest sees: nanoseconds since the virtual machine was made, and the time-stamp counter
//! that goes with them.
//!
//! One [`Clock`] is shared by everything that tells or waits for time (time-stamp counter, local
//! APIC timer, the partition's timers), so that they can never disagree.

use crate::record::{Malformed, Record, check};
use rustix::time::{ClockId, clock_gettime};
use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering::Relaxed},
};

/// A handle to a virtual machine's clock; clones share it.
#[derive(Clone)]
pub struct Clock(Arc<Source>);

/// Nanoseconds in a second, and the time-stamp counter's frequency where it is ours to choose.
const GIGAHERTZ: u64 = 1_000_000_000;
/// Of a clock that does not stand.
const RUNNING: u64 = u64::MAX;
/// Parts of a counter's frequency by which it may differ after a restore: what a host measures anew
/// at each boot, and what a guest's clock makes up for.
const TOLERANCE: u64 = 4000;

enum Source {
    /// Counts as the host's monotonic clock does, or its time-stamp counter, which a guest on
    /// hardware reads too.
    Counter {
        read: fn() -> u64,
        hertz: AtomicU64,
        /// What the host's counter showed when ours was 0, or would have shown.
        start: AtomicU64,
        /// Where ours stands, or `RUNNING`.
        stopped: AtomicU64,
    },
    /// A function of the instructions executed, so that the same input gives the same trace.
    Deterministic {
        instructions_per_microsecond: u64,
        instructions: AtomicU64,
        /// Nanoseconds slept through (HLT).
        skipped: AtomicU64,
    },
}

impl Clock {
    /// Follows the host's monotonic clock.
    pub fn host() -> Self {
        Self::counter(monotonic, GIGAHERTZ)
    }

    /// Follows a counter of `hertz` from now on.
    pub fn counter(read: fn() -> u64, hertz: u64) -> Self {
        Self(Arc::new(Source::Counter {
            read,
            hertz: hertz.max(1).into(),
            start: read().into(),
            stopped: RUNNING.into(),
        }))
    }

    /// Advances with the instructions executed; 0 is taken as 1.
    pub fn deterministic(instructions_per_microsecond: u64) -> Self {
        Self(Arc::new(Source::Deterministic {
            instructions_per_microsecond: instructions_per_microsecond.max(1),
            instructions: 0.into(),
            skipped: 0.into(),
        }))
    }

    pub fn is_deterministic(&self) -> bool {
        matches!(*self.0, Source::Deterministic { .. })
    }

    /// Nanoseconds since the start.
    pub fn now(&self) -> u64 {
        match &*self.0 {
            Source::Counter { .. } => match self.hertz() {
                GIGAHERTZ => self.ticks(),
                hertz => scale(self.ticks(), GIGAHERTZ, hertz),
            },
            Source::Deterministic {
                instructions_per_microsecond,
                instructions,
                skipped,
            } => {
                let nanoseconds = u128::from(instructions.load(Relaxed)) * 1000
                    / u128::from(*instructions_per_microsecond);
                skipped
                    .load(Relaxed)
                    .saturating_add(u64::try_from(nanoseconds).unwrap_or(u64::MAX))
            }
        }
    }

    /// The time-stamp counter, counted from the start.
    pub fn ticks(&self) -> u64 {
        match &*self.0 {
            Source::Counter {
                read,
                start,
                stopped,
                ..
            } => match stopped.load(Relaxed) {
                // Two of the host's processors may be a few ticks apart: it is never before 0.
                RUNNING => {
                    u64::try_from(read().wrapping_sub(start.load(Relaxed)) as i64).unwrap_or(0)
                }
                ticks => ticks,
            },
            Source::Deterministic { .. } => self.now(),
        }
    }

    /// Frequency of the time-stamp counter.
    pub fn hertz(&self) -> u64 {
        match &*self.0 {
            Source::Counter { hertz, .. } => hertz.load(Relaxed),
            Source::Deterministic { .. } => GIGAHERTZ,
        }
    }

    /// What is to be added to the host's counter (modulo 2^64) for the guest to see ours.
    pub fn offset(&self) -> u64 {
        match &*self.0 {
            Source::Counter { start, .. } => start.load(Relaxed).wrapping_neg(),
            Source::Deterministic { .. } => 0,
        }
    }

    /// The first nanosecond at which [`Clock::ticks`] has reached `ticks`.
    pub fn nanoseconds_at(&self, ticks: u64) -> u64 {
        let product = u128::from(ticks) * u128::from(GIGAHERTZ);
        let nanoseconds = product.div_ceil(u128::from(self.hertz()));
        u64::try_from(nanoseconds).unwrap_or(u64::MAX)
    }

    /// Stops the time. The deterministic clock stands anyway when no instruction runs.
    pub fn pause(&self) {
        if let Source::Counter { stopped, .. } = &*self.0 {
            stopped.store(self.ticks(), Relaxed);
        }
    }

    /// Lets the time go on from where it was stopped.
    pub fn resume(&self) {
        if let Source::Counter {
            read,
            start,
            stopped,
            ..
        } = &*self.0
        {
            let ticks = self.ticks();
            start.store(read().wrapping_sub(ticks), Relaxed);
            stopped.store(RUNNING, Relaxed);
        }
    }

    /// Saves the time; or restores it, and stops it there.
    pub fn state(&self, record: &mut Record) -> Result<(), Malformed> {
        let (mut rate, mut time) = match &*self.0 {
            Source::Counter { hertz, .. } => (hertz.load(Relaxed), [self.ticks(), 0]),
            Source::Deterministic {
                instructions_per_microsecond,
                instructions,
                skipped,
            } => (
                *instructions_per_microsecond,
                [instructions.load(Relaxed), skipped.load(Relaxed)],
            ),
        };
        let (mut deterministic, ours) = (self.is_deterministic(), rate);
        record.field(&mut deterministic)?;
        check(
            deterministic == self.is_deterministic(),
            "a clock of another kind",
        )?;
        record.field(&mut rate)?;
        let tolerated = if deterministic { 0 } else { ours / TOLERANCE };
        check(rate.abs_diff(ours) <= tolerated, "a clock of another pace")?;
        record.field(&mut time)?;
        // Half a lifetime: no deadline computed from it comes near the end of the numbers.
        check(time[0] < 1 << 62 && time[1] < 1 << 62, "the time")?;
        if record.is_restoring() {
            match &*self.0 {
                Source::Counter { hertz, stopped, .. } => {
                    hertz.store(rate, Relaxed);
                    stopped.store(time[0], Relaxed);
                }
                Source::Deterministic {
                    instructions,
                    skipped,
                    ..
                } => {
                    instructions.store(time[0], Relaxed);
                    skipped.store(time[1], Relaxed);
                }
            }
        }
        Ok(())
    }

    /// Lets the time jump to `deadline` (nanoseconds since the start) when the guest sleeps. Does
    /// nothing on the host clock, nor when that time has passed.
    pub fn advance_to(&self, deadline: u64) {
        if let Source::Deterministic { skipped, .. } = &*self.0 {
            let ahead = deadline.saturating_sub(self.now());
            skipped.store(skipped.load(Relaxed).saturating_add(ahead), Relaxed);
        }
    }

    /// How many instructions have been executed in all; 0 on the host's clock.
    pub fn instructions(&self) -> u64 {
        match &*self.0 {
            Source::Counter { .. } => 0,
            Source::Deterministic { instructions, .. } => instructions.load(Relaxed),
        }
    }

    /// The processor's report of how many instructions it has executed in all.
    pub fn set_instructions(&self, count: u64) {
        if let Source::Deterministic { instructions, .. } = &*self.0 {
            instructions.store(count, Relaxed);
        }
    }

    /// How many instructions may run until `deadline`; `None` on the host clock.
    pub fn instructions_until(&self, deadline: u64) -> Option<u64> {
        match &*self.0 {
            Source::Counter { .. } => None,
            Source::Deterministic {
                instructions_per_microsecond,
                ..
            } => {
                let nanoseconds = u128::from(deadline.saturating_sub(self.now()));
                let count =
                    (nanoseconds * u128::from(*instructions_per_microsecond)).div_ceil(1000);
                Some(u64::try_from(count).unwrap_or(u64::MAX))
            }
        }
    }
}

/// Nanoseconds of the host's monotonic clock.
fn monotonic() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    now.tv_sec as u64 * GIGAHERTZ + now.tv_nsec as u64
}

fn scale(value: u64, to: u64, from: u64) -> u64 {
    let scaled = u128::from(value) * u128::from(to) / u128::from(from);
    u64::try_from(scaled).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_counter_keeps_its_own_frequency() {
        let clock = Clock::counter(|| 10_000_000_000, 3_000_000_000);
        assert_eq!((clock.ticks(), clock.now()), (0, 0));
        assert_eq!(clock.offset(), 10_000_000_000u64.wrapping_neg());
        assert_eq!(clock.nanoseconds_at(9_000_000_000), 3_000_000_000);
        assert_eq!(clock.nanoseconds_at(9_000_000_001), 3_000_000_001);
        assert_eq!(clock.instructions_until(u64::MAX), None);
        assert_eq!(Clock::host().hertz(), 1_000_000_000);
    }

    #[test]
    fn a_restored_counter_goes_on_from_where_it_stopped() {
        let saved = |hertz| {
            let clock = Clock::counter(monotonic, hertz);
            let mut record = Record::saving(0);
            std::thread::sleep(std::time::Duration::from_millis(2));
            clock.pause();
            clock.state(&mut record).unwrap();
            (clock.ticks(), record.finish())
        };
        // The host's counter has not come so far yet.
        let clock = Clock::counter(|| 5, 3_000_000_000);
        let restore = |bytes: &[u8]| clock.state(&mut Record::restoring(bytes, 0).unwrap());
        let (ticks, state) = saved(3_000_100_000);
        assert_eq!(restore(&state), Ok(()));
        assert_eq!((clock.ticks(), clock.hertz()), (ticks, 3_000_100_000));
        clock.resume();
        assert_eq!((clock.ticks(), clock.offset()), (ticks, ticks - 5));
        let (_, state) = saved(2_900_000_000);
        let error = Malformed::Value("a clock of another pace");
        assert_eq!(restore(&state), Err(error));
        let mut record = Record::saving(0);
        Clock::deterministic(3_000_000_000)
            .state(&mut record)
            .unwrap();
        let error = Malformed::Value("a clock of another kind");
        assert_eq!(restore(&record.finish()), Err(error));
    }

    #[test]
    fn deterministic_time_follows_instructions_and_sleep() {
        let clock = Clock::deterministic(100);
        assert_eq!(clock.now(), 0);
        clock.set_instructions(1000);
        assert_eq!(clock.now(), 10_000);
        assert_eq!(clock.instructions_until(20_000), Some(1000));
        clock.advance_to(50_000);
        assert_eq!(clock.now(), 50_000);
        clock.advance_to(40_000);
        assert_eq!(clock.now(), 50_000);
    }

    #[test]
    fn the_hosts_time_stands_still_while_it_is_stopped() {
        let clock = Clock::host();
        clock.pause();
        let stopped = clock.now();
        std::thread::sleep(std::time::Duration::from_millis(2));
        assert_eq!(clock.now(), stopped);
        clock.resume();
        clock.resume();
        std::thread::sleep(std::time::Duration::from_millis(2));
        assert!(clock.now() >= stopped + 2_000_000);
    }

    #[test]
    fn clones_share_the_clock() {
        let clock = Clock::deterministic(1);
        let other = clock.clone();
        clock.advance_to(7);
        assert_eq!(other.now(), 7);
    }
}
