//! Synthetic timer 0 in direct mode: it raises an interrupt at a reference time (TLFS 12.5).

use crate::record::{Malformed, Record, check};

/// CONFIG: enable, periodic, lazy, auto-enable, vector in bits 4-11, direct mode, SINT in 16-19.
const ENABLE: u64 = 1;
const PERIODIC: u64 = 1 << 1;
const AUTO_ENABLE: u64 = 1 << 3;
const DIRECT: u64 = 1 << 12;
const KNOWN: u64 = 0xF_1FFF;

const fn vector(config: u64) -> u8 {
    (config >> 4) as u8
}

/// No reserved bits; when it can run, direct mode and no exception's vector.
const fn is_known(config: u64) -> bool {
    let enabled = config & (ENABLE | AUTO_ENABLE) != 0;
    config & !KNOWN == 0 && !(enabled && (config & DIRECT == 0 || vector(config) < 16))
}

#[derive(Default)]
pub struct SyntheticTimer {
    config: u64,
    count: u64,
    /// Reference time at which it fires next, while it runs.
    deadline: Option<u64>,
}

impl SyntheticTimer {
    /// Saves or restores both registers and the time that is waited for.
    pub fn state(&mut self, record: &mut Record) -> Result<(), Malformed> {
        record.fields([&mut self.config, &mut self.count])?;
        record.field(&mut self.deadline)?;
        check(is_known(self.config), "a timer that is not offered")
    }

    pub fn config(&self) -> u64 {
        self.config
    }

    pub fn count(&self) -> u64 {
        self.count
    }

    /// `None`: reserved bits, message mode (not offered), or an exception's vector.
    pub fn set_config(&mut self, value: u64, now: u64) -> Option<()> {
        if !is_known(value) {
            return None;
        }
        self.config = value;
        self.start(now);
        Some(())
    }

    /// A count of 0 stops the timer.
    pub fn set_count(&mut self, value: u64, now: u64) {
        self.count = value;
        if value == 0 {
            self.config &= !ENABLE;
        } else if self.config & AUTO_ENABLE != 0 {
            self.config |= ENABLE;
        }
        self.start(now);
    }

    fn start(&mut self, now: u64) {
        let runs = self.config & ENABLE != 0 && self.count != 0;
        self.deadline = runs.then(|| {
            if self.config & PERIODIC != 0 {
                now.saturating_add(self.count)
            } else {
                self.count
            }
        });
    }

    /// Reference time of the next expiration.
    pub fn deadline(&self) -> Option<u64> {
        self.deadline
    }

    /// The vector to raise if the timer has expired. However late it is asked, a periodic timer
    /// fires once and goes on at the next multiple of its period: no storm to catch up.
    pub fn expire(&mut self, now: u64) -> Option<u8> {
        let deadline = self.deadline.filter(|&deadline| deadline <= now)?;
        if self.config & PERIODIC != 0 {
            let late = (now - deadline) % self.count.max(1);
            self.deadline = Some(now.saturating_add(self.count - late));
        } else {
            self.config &= !ENABLE;
            self.deadline = None;
        }
        Some(vector(self.config))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What Linux writes: auto-enable, direct mode, vector 0xED.
    const LINUX: u64 = 0x1ED8;

    #[test]
    fn one_shot_fires_once_and_disables_itself() {
        let mut timer = SyntheticTimer::default();
        timer.set_config(LINUX | ENABLE, 0).unwrap();
        assert_eq!(timer.deadline(), None);
        timer.set_count(1000, 0);
        assert_eq!(timer.expire(999), None);
        assert_eq!(timer.expire(1000), Some(0xED));
        assert_eq!(timer.expire(2000), None);
        assert_eq!(timer.config(), LINUX);
        timer.set_count(500, 2000);
        assert_eq!(timer.config(), LINUX | ENABLE);
        assert_eq!(
            timer.expire(2000),
            Some(0xED),
            "a past deadline fires at once"
        );
    }

    #[test]
    fn count_zero_and_config_zero_stop_it() {
        let mut timer = SyntheticTimer::default();
        timer.set_config(LINUX, 0).unwrap();
        timer.set_count(1000, 0);
        timer.set_count(0, 10);
        assert_eq!((timer.deadline(), timer.config()), (None, LINUX));
        timer.set_count(1000, 10);
        timer.set_config(0, 20).unwrap();
        assert_eq!(timer.expire(u64::MAX), None);
        timer.set_count(1000, 30);
        assert_eq!(
            timer.deadline(),
            None,
            "without auto-enable a count starts nothing"
        );
    }

    #[test]
    fn periodic_keeps_its_beat_and_does_not_catch_up() {
        let mut timer = SyntheticTimer::default();
        timer.set_config(LINUX | PERIODIC, 0).unwrap();
        timer.set_count(100, 1000);
        assert_eq!(timer.expire(1100), Some(0xED));
        assert_eq!(timer.expire(1100), None);
        assert_eq!(timer.expire(1455), Some(0xED));
        assert_eq!(timer.deadline(), Some(1500));
        timer.set_count(u64::MAX, u64::MAX);
        assert_eq!(timer.expire(u64::MAX), Some(0xED));
        assert_eq!(timer.deadline(), Some(u64::MAX));
    }

    #[test]
    fn what_is_not_offered_is_refused() {
        let mut timer = SyntheticTimer::default();
        let refused = [
            0x20009,                // message mode
            LINUX | 1 << 13,        // reserved
            LINUX | 1 << 63,        // reserved
            DIRECT | ENABLE,        // vector 0
            DIRECT | ENABLE | 0xF0, // vector 15
        ];
        for value in refused {
            assert_eq!(timer.set_config(value, 0), None);
            assert_eq!(timer.config(), 0);
        }
        timer.set_config(KNOWN & !AUTO_ENABLE & !ENABLE, 0).unwrap();
    }
}
