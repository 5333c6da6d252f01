//! A read-only battery-backed clock (MC146818) at ports 0x70 and 0x71: without one Linux waits a
//! second for it and starts in 1970.

use crate::{
    clock::Clock,
    record::{Malformed, Record, check},
};

/// Register B: 24-hour mode, values in BCD.
const STATUS_B: u8 = 0x02;
/// Register D: the time is valid.
const STATUS_D: u8 = 0x80;

pub struct Cmos {
    index: u8,
    wall_clock: u64,
}

impl Cmos {
    pub fn new(wall_clock: u64) -> Self {
        Self {
            index: 0,
            wall_clock,
        }
    }

    /// Saves or restores the index and the time; on the host's clock the time is
    /// the host's own again.
    pub fn state(&mut self, record: &mut Record, clock: &Clock) -> Result<(), Malformed> {
        record.field(&mut self.index)?;
        check(self.index < 0x80, "an index of the clock")?;
        let mut wall_clock = self.wall_clock;
        record.field(&mut wall_clock)?;
        if clock.is_deterministic() {
            self.wall_clock = wall_clock;
        } else if record.is_restoring() {
            self.wall_clock = self.wall_clock.saturating_sub(clock.now() / 1_000_000_000);
        }
        Ok(())
    }

    /// Bit 7 of the index port masks NMIs on a PC; here it means nothing.
    pub fn select(&mut self, index: u8) {
        self.index = index & 0x7F;
    }

    /// Reads the index port, or the register it selects.
    pub fn read(&self, data: bool, now: u64) -> u8 {
        if !data {
            return self.index;
        }
        let time = Civil::from_unix(self.wall_clock.saturating_add(now / 1_000_000_000));
        match self.index {
            0x00 => bcd(time.second),
            0x02 => bcd(time.minute),
            0x04 => bcd(time.hour),
            0x06 => bcd(time.weekday),
            0x07 => bcd(time.day),
            0x08 => bcd(time.month),
            0x09 => bcd(time.year % 100),
            0x32 => bcd(time.year / 100),
            0x0B => STATUS_B,
            0x0D => STATUS_D,
            // Register A among them: no update is ever in progress.
            _ => 0,
        }
    }
}

fn bcd(value: u64) -> u8 {
    (((value / 10 % 10) << 4) | (value % 10)) as u8
}

/// A date and time of the Gregorian calendar, UTC. Weekday: 1 is Sunday.
struct Civil {
    year: u64,
    month: u64,
    day: u64,
    hour: u64,
    minute: u64,
    second: u64,
    weekday: u64,
}

impl Civil {
    fn from_unix(seconds: u64) -> Self {
        let days = seconds / 86_400;
        // Years that start in March, so that the leap day is the last one; cycles of 400 years
        // (146 097 days), the first of which starts on 1600-03-01.
        let since_1600 = days.saturating_add(135_080);
        let (cycle, day_of_cycle) = (since_1600 / 146_097, since_1600 % 146_097);
        let leap_days = day_of_cycle / 1460 + day_of_cycle / 146_096;
        let year_of_cycle = (day_of_cycle + day_of_cycle / 36_524 - leap_days) / 365;
        let first = 365 * year_of_cycle + year_of_cycle / 4 - year_of_cycle / 100;
        let day_of_year = day_of_cycle - first;
        // From March on, months of 31, 30, 31, 30, 31 days repeat every 153 days.
        let month = (5 * day_of_year + 2) / 153;
        let january = u64::from(month >= 10);
        Self {
            year: 1600 + 400 * cycle + year_of_cycle + january,
            month: if month < 10 { month + 3 } else { month - 9 },
            day: day_of_year - (153 * month + 2) / 5 + 1,
            hour: seconds / 3600 % 24,
            minute: seconds / 60 % 60,
            second: seconds % 60,
            weekday: (days + 4) % 7 + 1,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(unix: u64, index: u8, now: u64) -> u8 {
        let mut cmos = Cmos::new(unix);
        cmos.select(index | 0x80);
        assert_eq!(cmos.read(false, now), index);
        cmos.read(true, now)
    }

    #[test]
    fn the_time_of_day_is_right() {
        // (seconds since 1970, YYYY-MM-DD hh:mm:ss in BCD, weekday), as `date -u` gives them.
        let cases = [
            (0, [0x19, 0x70, 0x01, 0x01, 0, 0, 0], 5),
            (951_782_399, [0x20, 0x00, 0x02, 0x28, 0x23, 0x59, 0x59], 2),
            (951_782_400, [0x20, 0x00, 0x02, 0x29, 0, 0, 0], 3),
            (951_868_800, [0x20, 0x00, 0x03, 0x01, 0, 0, 0], 4),
            (1_735_689_599, [0x20, 0x24, 0x12, 0x31, 0x23, 0x59, 0x59], 3),
            (4_102_444_800, [0x21, 0x00, 0x01, 0x01, 0, 0, 0], 6),
            (4_107_542_400, [0x21, 0x00, 0x03, 0x01, 0, 0, 0], 2),
        ];
        for (unix, expected, weekday) in cases {
            let registers = [0x32, 0x09, 0x08, 0x07, 0x04, 0x02, 0x00];
            assert_eq!(registers.map(|index| read(unix, index, 0)), expected);
            assert_eq!(read(unix, 6, 0), weekday);
        }
        assert_eq!(read(0, 0, 61_000_000_000), 0x01);
    }

    #[test]
    fn no_register_panics_at_any_time() {
        for unix in [0, u64::MAX / 2, u64::MAX] {
            for index in 0..128 {
                read(unix, index, u64::MAX);
            }
        }
        assert_eq!(read(0, 0x0A, 0), 0);
    }
}
