//! The MSRs that KVM itself answers. Every other one comes to the partition, which answers or
//! refuses it as on the software processor.
//!
//! The local APIC's registers (0x800 to 0x8FF) cannot be filtered: the in-kernel APIC has them.

use kvm_ioctls::{MsrFilterRange, MsrFilterRangeFlags};

const READ: MsrFilterRangeFlags = MsrFilterRangeFlags::READ;
const WRITE: MsrFilterRangeFlags = MsrFilterRangeFlags::WRITE;
const BOTH: MsrFilterRangeFlags = READ.union(WRITE);
const ALLOWED: [u8; 8] = [0xFF; 8];

/// First register, how many, what the guest may do to them.
const RANGES: [(u32, u32, MsrFilterRangeFlags); 14] = [
    (0x10, 1, READ),        // time-stamp counter
    (0x1B, 1, READ),        // APIC base: it stays in x2APIC mode
    (0x48, 2, BOTH),        // SPEC_CTRL, PRED_CMD
    (0xFE, 1, READ),        // MTRR capabilities
    (0x10A, 1, READ),       // ARCH_CAPABILITIES
    (0x174, 3, BOTH),       // SYSENTER
    (0x1A0, 1, BOTH),       // MISC_ENABLE
    (0x200, 16, BOTH),      // MTRRs: variable, fixed, default type
    (0x250, 32, BOTH),      //
    (0x277, 1, BOTH),       // PAT
    (0x2FF, 1, BOTH),       //
    (0xC000_0080, 5, BOTH), // EFER, STAR, LSTAR, CSTAR, SFMASK
    (0xC000_0100, 4, BOTH), // FS, GS and kernel GS base, TSC_AUX
    (0xC001_011F, 1, BOTH), // VIRT_SPEC_CTRL
];

/// The filter's ranges; what is in none of them is denied, that is, handed to us.
pub fn ranges() -> [MsrFilterRange<'static>; RANGES.len()] {
    RANGES.map(|(base, msr_count, flags)| MsrFilterRange {
        flags,
        base,
        msr_count,
        bitmap: &ALLOWED,
    })
}

/// Registers that KVM starts with another value than firmware leaves: MTRRs on, all write-back.
pub const INITIAL: [(u32, u64); 1] = [(0x2FF, 0xC06)];

/// Registers with a value of the guest's own, besides those that have requests of their own.
const SAVED: [(u32, u32); 12] = [
    (0x48, 1),
    (0x174, 3),
    (0x1A0, 1),
    (0x200, 16),
    (0x250, 1),
    (0x258, 2),
    (0x268, 8),
    (0x277, 1),
    (0x2FF, 1),
    (0xC000_0081, 4),
    (0xC000_0102, 2),
    (0xC001_011F, 1),
];

/// What a saved machine carries, as far as a host has it.
pub fn saved() -> impl Iterator<Item = u32> {
    SAVED
        .into_iter()
        .flat_map(|(first, count)| first..first + count)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_of_the_partition_is_left_to_kvm() {
        for range in ranges() {
            let end = range.base + range.msr_count;
            assert!(end <= 0x4000_0000 || range.base >= 0x4000_1000);
            assert!(range.msr_count <= 8 * ALLOWED.len() as u32);
            // KVM's own registers, of both generations.
            assert!(!(range.base..end).contains(&0x11) && !(range.base..end).contains(&0x12));
            assert!(end <= 0x4b56_4d00 || range.base >= 0x4b56_4e00);
        }
    }

    #[test]
    fn whatever_a_guest_can_set_is_saved() {
        // EFER and the bases of FS and GS are registers of another request; of the fixed MTRRs
        // there are 11 in the range.
        let elsewhere = [0x49, 0xC000_0080, 0xC000_0100, 0xC000_0101];
        let missing = ranges()
            .into_iter()
            .filter(|range| range.flags.contains(WRITE))
            .flat_map(|range| range.base..range.base + range.msr_count)
            .filter(|msr| !elsewhere.contains(msr) && !saved().any(|saved| saved == *msr));
        let fixed = (0x251..0x258).chain(0x25A..0x268);
        assert!(missing.eq(fixed));
    }
}
