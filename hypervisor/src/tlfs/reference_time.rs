//! Reference time: 100 ns units since the VM was made, by MSR and by the page that lets the guest
//! compute it from its time-stamp counter (TLFS 12.3, 12.4, 12.7).

use super::page::PageRegister;
use crate::memory::{GuestMemory, PAGE_SIZE};

/// The guest's time-stamp counter and its APIC timer run at 1 GHz.
pub const TSC_HZ: u64 = 1_000_000_000;
pub const APIC_HZ: u64 = 1_000_000_000;
/// Reference time = TSC · scale >> 64.
const SCALE: u64 = ((10_000_000u128 << 64) / TSC_HZ as u128) as u64;

/// Reference time at `tsc`, rounded exactly as the guest does it with the page.
pub fn reference_time(tsc: u64) -> u64 {
    ((u128::from(tsc) * u128::from(SCALE)) >> 64) as u64
}

/// The first `tsc` (that is, nanosecond) at which `reference_time` reaches `time`.
pub fn tsc_at(time: u64) -> u64 {
    let tsc = (u128::from(time) << 64).div_ceil(u128::from(SCALE));
    u64::try_from(tsc).unwrap_or(u64::MAX)
}

/// The reference TSC page.
#[derive(Default)]
pub struct ReferenceTsc(PageRegister);

impl ReferenceTsc {
    pub fn read(&self) -> u64 {
        self.0.value()
    }

    /// `None`: the page lies outside RAM.
    pub fn write(&mut self, value: u64, memory: &GuestMemory) -> Option<()> {
        self.0 = PageRegister::checked(value, memory)?;
        if let Some(page) = self.0.page(memory) {
            // u32 sequence (0 would mean: do not use), u32 reserved, u64 scale, i64 offset.
            memory.fill(page, PAGE_SIZE, 0)?;
            memory.write(page + 8, SCALE)?;
            memory.write(page, 1u32)?;
        }
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deadlines_are_met_and_not_early() {
        for time in [0, 1, 2, 99, 12_345_678, u64::MAX / 100 - 1] {
            let tsc = tsc_at(time);
            assert!(reference_time(tsc) >= time);
            assert!(time == 0 || reference_time(tsc - 1) < time);
        }
        assert_eq!(tsc_at(u64::MAX), u64::MAX);
    }

    #[test]
    fn the_page_holds_the_scale_the_msr_uses() {
        let memory = GuestMemory::anonymous(0x10000).unwrap();
        let mut page = ReferenceTsc::default();
        page.write(0x3001, &memory).unwrap();
        assert_eq!(memory.read::<u32>(0x3000), Some(1));
        let scale = memory.read::<u64>(0x3008).unwrap();
        let tsc = 123_456_789_012u64;
        let by_page = ((u128::from(tsc) * u128::from(scale)) >> 64) as u64;
        assert_eq!(by_page, reference_time(tsc));
        assert_eq!(memory.read::<u64>(0x3010), Some(0));
        assert_eq!(page.read(), 0x3001);
        assert!(page.write(0x1_0001, &memory).is_none());
        assert_eq!(page.read(), 0x3001);
    }
}
