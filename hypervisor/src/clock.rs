//! The time a guest sees: nanoseconds since the virtual machine was made, and the time-stamp counter
//! that goes with them.
//!
//! One [`Clock`] is shared by everything that tells or waits for time (time-stamp counter, local
//! APIC timer, the partition's timers), so that they can never disagree.

use crate::record::{Malformed, Record, check};
use std::{cell::Cell, rc::Rc, time::Instant};

/// A handle to a virtual machine's clock; clones share it.
#[derive(Clone)]
pub struct Clock(Rc<Source>);

/// Nanoseconds in a second, and the time-stamp counter's frequency where it is ours to choose.
const GIGAHERTZ: u64 = 1_000_000_000;

enum Source {
    /// Nanoseconds that passed until it was last set going, and when that was; `None`: it stands.
    Host {
        passed: Cell<u64>,
        since: Cell<Option<Instant>>,
    },
    /// The host's counter, which a guest on hardware reads too.
    Counter {
        read: fn() -> u64,
        start: u64,
        hertz: u64,
    },
    /// A function of the instructions executed, so that the same input gives the same trace.
    Deterministic {
        instructions_per_microsecond: u64,
        instructions: Cell<u64>,
        /// Nanoseconds slept through (HLT).
        skipped: Cell<u64>,
    },
}

impl Clock {
    /// Follows the host's monotonic clock.
    pub fn host() -> Self {
        Self(Rc::new(Source::Host {
            passed: Cell::new(0),
            since: Cell::new(Some(Instant::now())),
        }))
    }

    /// Follows a counter of `hertz` that was at `start` when the virtual machine was made.
    pub fn counter(read: fn() -> u64, start: u64, hertz: u64) -> Self {
        let hertz = hertz.max(1);
        Self(Rc::new(Source::Counter { read, start, hertz }))
    }

    /// Advances with the instructions executed; 0 is taken as 1.
    pub fn deterministic(instructions_per_microsecond: u64) -> Self {
        Self(Rc::new(Source::Deterministic {
            instructions_per_microsecond: instructions_per_microsecond.max(1),
            instructions: Cell::new(0),
            skipped: Cell::new(0),
        }))
    }

    pub fn is_deterministic(&self) -> bool {
        matches!(*self.0, Source::Deterministic { .. })
    }

    /// Nanoseconds since the start.
    pub fn now(&self) -> u64 {
        match &*self.0 {
            Source::Host { passed, since } => {
                let running = since.get().map_or(0, |since| since.elapsed().as_nanos());
                passed
                    .get()
                    .saturating_add(u64::try_from(running).unwrap_or(u64::MAX))
            }
            Source::Counter { hertz, .. } => scale(self.ticks(), GIGAHERTZ, *hertz),
            Source::Deterministic {
                instructions_per_microsecond,
                instructions,
                skipped,
            } => {
                let nanoseconds = u128::from(instructions.get()) * 1000
                    / u128::from(*instructions_per_microsecond);
                skipped
                    .get()
                    .saturating_add(u64::try_from(nanoseconds).unwrap_or(u64::MAX))
            }
        }
    }

    /// The time-stamp counter, counted from the start.
    pub fn ticks(&self) -> u64 {
        match &*self.0 {
            Source::Counter { read, start, .. } => read().saturating_sub(*start),
            _ => self.now(),
        }
    }

    /// Frequency of the time-stamp counter.
    pub fn hertz(&self) -> u64 {
        match &*self.0 {
            Source::Counter { hertz, .. } => *hertz,
            _ => GIGAHERTZ,
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
        let now = self.now();
        if let Source::Host { passed, since } = &*self.0 {
            passed.set(now);
            since.set(None);
        }
    }

    /// Lets the time go on from where it was stopped.
    pub fn resume(&self) {
        if let Source::Host { since, .. } = &*self.0 {
            since.set(since.get().or_else(|| Some(Instant::now())));
        }
    }

    /// Saves the time; or restores it, and stops it there.
    pub fn state(&self, record: &mut Record) -> Result<(), Malformed> {
        let mut rate = 0;
        if let Source::Deterministic {
            instructions_per_microsecond,
            ..
        } = &*self.0
        {
            rate = *instructions_per_microsecond;
        }
        let mut saved = rate;
        record.field(&mut saved)?;
        check(saved == rate, "a clock of another kind")?;
        let mut time = match &*self.0 {
            Source::Counter { .. } => return Err(Malformed::Unsupported),
            Source::Host { .. } => [self.now(), 0],
            Source::Deterministic {
                instructions,
                skipped,
                ..
            } => [instructions.get(), skipped.get()],
        };
        record.field(&mut time)?;
        // A hundred years: no deadline computed from it comes near the end of the numbers.
        check(time[0] < 1 << 62 && time[1] < 1 << 62, "the time")?;
        if record.is_restoring() {
            match &*self.0 {
                Source::Counter { .. } => {}
                Source::Host { passed, since } => {
                    passed.set(time[0]);
                    since.set(None);
                }
                Source::Deterministic {
                    instructions,
                    skipped,
                    ..
                } => {
                    instructions.set(time[0]);
                    skipped.set(time[1]);
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
            skipped.set(skipped.get().saturating_add(ahead));
        }
    }

    /// How many instructions have been executed in all; 0 on the host's clock.
    pub fn instructions(&self) -> u64 {
        match &*self.0 {
            Source::Host { .. } | Source::Counter { .. } => 0,
            Source::Deterministic { instructions, .. } => instructions.get(),
        }
    }

    /// The processor's report of how many instructions it has executed in all.
    pub fn set_instructions(&self, count: u64) {
        if let Source::Deterministic { instructions, .. } = &*self.0 {
            instructions.set(count);
        }
    }

    /// How many instructions may run until `deadline`; `None` on the host clock.
    pub fn instructions_until(&self, deadline: u64) -> Option<u64> {
        match &*self.0 {
            Source::Host { .. } | Source::Counter { .. } => None,
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

fn scale(value: u64, to: u64, from: u64) -> u64 {
    let scaled = u128::from(value) * u128::from(to) / u128::from(from);
    u64::try_from(scaled).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_counter_keeps_its_own_frequency() {
        let clock = Clock::counter(|| 10_000_000_000, 1_000_000_000, 3_000_000_000);
        assert_eq!((clock.ticks(), clock.now()), (9_000_000_000, 3_000_000_000));
        assert_eq!(clock.nanoseconds_at(9_000_000_000), 3_000_000_000);
        assert_eq!(clock.nanoseconds_at(9_000_000_001), 3_000_000_001);
        assert_eq!(clock.instructions_until(u64::MAX), None);
        assert_eq!(Clock::host().hertz(), 1_000_000_000);
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
