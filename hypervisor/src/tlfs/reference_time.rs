//! Reference time: 100 ns units since the VM was made, by MSR and by the page that lets the guest
//! compute it from its time-stamp counter (TLFS 12.3, 12.4, 12.7).

use super::page::PageRegister;
use crate::{
    memory::{GuestMemory, PAGE_SIZE},
    record::{Malformed, Record},
};

/// The guest's APIC timer runs at 1 GHz.
pub const APIC_HZ: u64 = 1_000_000_000;
/// Reference time runs at 10 MHz.
const REFERENCE_HZ: u128 = 10_000_000;

/// The reference time, and the page by which the guest computes it: TSC · scale >> 64.
pub struct ReferenceTime {
    scale: u64,
    page: PageRegister,
}

impl ReferenceTime {
    /// For a time-stamp counter of `hertz`, which is faster than the reference time.
    pub fn new(hertz: u64) -> Self {
        Self {
            scale: scale(hertz),
            page: PageRegister::default(),
        }
    }

    /// The time-stamp counter runs at `hertz`, as a restored clock says.
    pub fn set_pace(&mut self, hertz: u64) {
        self.scale = scale(hertz);
    }

    /// Reference time at `tsc`, rounded exactly as the guest does it with the page.
    pub fn at(&self, tsc: u64) -> u64 {
        ((u128::from(tsc) * u128::from(self.scale)) >> 64) as u64
    }

    /// The first `tsc` at which the reference time is `time`.
    pub fn tsc_at(&self, time: u64) -> u64 {
        let tsc = (u128::from(time) << 64).div_ceil(u128::from(self.scale));
        u64::try_from(tsc).unwrap_or(u64::MAX)
    }

    /// Saves or restores where the page lies.
    pub fn state(&mut self, record: &mut Record, memory: &GuestMemory) -> Result<(), Malformed> {
        self.page.state(record, memory)
    }

    pub fn read(&self) -> u64 {
        self.page.value()
    }

    /// `None`: the page lies outside RAM.
    pub fn write(&mut self, value: u64, memory: &GuestMemory) -> Option<()> {
        self.page = PageRegister::checked(value, memory)?;
        if let Some(page) = self.page.page(memory) {
            // u32 sequence (0 would mean: do not use), u32 reserved, u64 scale, i64 offset.
            memory.fill(page, PAGE_SIZE, 0)?;
            memory.write(page + 8, self.scale)?;
            memory.write(page, 1u32)?;
        }
        Some(())
    }
}

fn scale(hertz: u64) -> u64 {
    let scale = (REFERENCE_HZ << 64) / u128::from(hertz).max(REFERENCE_HZ + 1);
    u64::try_from(scale).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deadlines_are_met_and_not_early() {
        for hertz in [1_000_000_000, 2_596_106_000, 5_000_000_001] {
            let reference = ReferenceTime::new(hertz);
            for time in [0, 1, 2, 99, 12_345_678, u64::MAX / 1000 - 1] {
                let tsc = reference.tsc_at(time);
                assert!(reference.at(tsc) >= time);
                assert!(time == 0 || reference.at(tsc - 1) < time);
            }
            assert_eq!(reference.tsc_at(u64::MAX), u64::MAX);
        }
        assert!(
            ReferenceTime::new(0).at(u64::MAX) < u64::MAX,
            "no frequency is no panic"
        );
    }

    #[test]
    fn the_page_holds_the_scale_the_msr_uses() {
        let memory = GuestMemory::anonymous(0x10000).unwrap();
        let mut page = ReferenceTime::new(1_000_000_000);
        page.write(0x3001, &memory).unwrap();
        assert_eq!(memory.read::<u32>(0x3000), Some(1));
        let scale = memory.read::<u64>(0x3008).unwrap();
        let tsc = 123_456_789_012u64;
        let by_page = ((u128::from(tsc) * u128::from(scale)) >> 64) as u64;
        assert_eq!(by_page, page.at(tsc));
        assert_eq!(memory.read::<u64>(0x3010), Some(0));
        assert_eq!(page.read(), 0x3001);
        assert!(page.write(0x1_0001, &memory).is_none());
        assert_eq!(page.read(), 0x3001);
    }
}
