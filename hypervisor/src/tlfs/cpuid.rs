//! What CPUID tells the guest: the software processor's features (x86-64-v2 and a little more) and
//! the Hyper-V leaves. A leaf that is not here reads zeros, as on AMD processors.
//!
//! The vendor is AMD's because its kernels need no page-table isolation and probe few MSRs; the
//! family and model (Zen 2) are ones whose start-up code, seeing a hypervisor, leaves MSRs alone.

/// Width of a guest physical address on the software processor.
pub const PHYSICAL_BITS: u32 = 40;

/// A set of bits, written as their numbers.
pub const fn bits(numbers: &[u32]) -> u32 {
    let mut set = 0;
    let mut i = 0;
    while i < numbers.len() {
        set |= 1 << numbers[i];
        i += 1;
    }
    set
}

const fn text(bytes: &[u8; 4]) -> u32 {
    u32::from_le_bytes(*bytes)
}

const MAX_BASIC: u32 = 7;
/// The first of the leaves that are the same on every processor, and their last.
pub const HYPERVISOR: u32 = 0x4000_0000;
pub const MAX_HYPERVISOR: u32 = 0x4000_0005;
/// The leaf that says how many processors there are at most.
pub const LIMITS: u32 = 0x4000_0005;
const MAX_EXTENDED: u32 = 0x8000_0008;

/// Family 0x17, model 0x31, stepping 0.
const SIGNATURE: u32 = 0x0083_0F10;

/// FPU DE PSE TSC MSR PAE CX8 APIC, MTRR PGE CMOV PAT, MMX FXSR.
const COMMON_EDX: u32 = bits(&[0, 2, 3, 4, 5, 6, 8, 9, 12, 13, 15, 16, 23, 24]);
/// SEP, CLFLUSH, SSE, SSE2.
const LEAF1_EDX: u32 = COMMON_EDX | bits(&[11, 19, 25, 26]);
/// SSE3 PCLMULQDQ SSSE3 CX16 SSE4.1 SSE4.2 x2APIC POPCNT AES RDRAND, hypervisor present.
const LEAF1_ECX: u32 = bits(&[0, 1, 9, 13, 19, 20, 21, 23, 25, 30, 31]);
/// FSGSBASE SMEP ERMS RDSEED SMAP.
const LEAF7_EBX: u32 = bits(&[0, 7, 9, 18, 20]);
const LEAF7_ECX_UMIP: u32 = bits(&[2]);
const LEAF7_EDX_FSRM: u32 = bits(&[4]);
/// SYSCALL, NX, 1 GiB pages, RDTSCP, long mode.
const EXTENDED_EDX: u32 = COMMON_EDX | bits(&[11, 20, 26, 27, 29]);
const EXTENDED_ECX_LAHF: u32 = bits(&[0]);
/// FXSAVE and FXRSTOR always carry the x87 error pointers: nothing leaks between tasks.
const EXTENDED8_EBX_ERROR_POINTERS: u32 = bits(&[2]);

/// Access to: reference counter, SynIC, synthetic timers, hypercall MSRs, VP index, TSC page,
/// frequencies. Never: partition ids (EBX 1), CPU management (EBX 12), isolation (EBX 22), which
/// would make Linux believe that it is the root or a confidential partition.
const PRIVILEGES_LOW: u32 = bits(&[1, 2, 3, 5, 6, 9, 11]);
/// PostMessages, SignalEvents.
const PRIVILEGES_HIGH: u32 = bits(&[4, 5]);
/// Frequency MSRs, crash MSRs, timers in direct mode.
const FEATURES: u32 = bits(&[8, 10, 19]);
/// AutoEOI is deprecated: the guest ends its interrupts at its own local APIC. No other hint: each
/// would make the guest use another hypercall.
const HINTS: u32 = bits(&[9]);
const NEVER_NOTIFY_SPINNING: u32 = u32::MAX;

/// EAX, EBX, ECX, EDX; `None` for a leaf that does not exist.
pub fn leaf(leaf: u32, subleaf: u32) -> Option<[u32; 4]> {
    Some(match (leaf, subleaf) {
        (0, _) => [MAX_BASIC, text(b"Auth"), text(b"cAMD"), text(b"enti")],
        // CLFLUSH works on 8 * 8 bytes; one logical processor, whose APIC id is 0.
        (1, _) => [SIGNATURE, 8 << 8 | 1 << 16, LEAF1_ECX, LEAF1_EDX],
        // The local APIC timer never stops.
        (6, _) => [bits(&[2]), 0, 0, 0],
        (7, 0) => [0, LEAF7_EBX, LEAF7_ECX_UMIP, LEAF7_EDX_FSRM],

        (0x4000_0000, _) => [MAX_HYPERVISOR, text(b"Micr"), text(b"osof"), text(b"t Hv")],
        (0x4000_0001, _) => [text(b"Hv#1"), 0, 0, 0],
        (0x4000_0002, _) => [0; 4],
        (0x4000_0003, _) => [PRIVILEGES_LOW, PRIVILEGES_HIGH, 0, FEATURES],
        (0x4000_0004, _) => [HINTS, NEVER_NOTIFY_SPINNING, 0, 0],
        // One virtual, one logical processor.
        (LIMITS, _) => [1, 1, 0, 0],

        (0x8000_0000, _) => [MAX_EXTENDED, text(b"Auth"), text(b"cAMD"), text(b"enti")],
        (0x8000_0001, _) => [SIGNATURE, 0, EXTENDED_ECX_LAHF, EXTENDED_EDX],
        (0x8000_0002..=0x8000_0004, _) => brand(NAME, leaf - 0x8000_0002),
        // L1: 32 KiB each, 8 ways, 64-byte lines. The C library derives from the cache sizes when
        // to copy with REP MOVSB, which is fast here: hence the large L2 and L3.
        (0x8000_0005, _) => [0, 0, 0x2008_0140, 0x2008_0140],
        // L2: 4 MiB, 8 ways; L3: 32 MiB (in units of 512 KiB), 16 ways.
        (0x8000_0006, _) => [0, 0, 0x1000_6140, 64 << 18 | 0x8140],
        // The time-stamp counter is invariant.
        (0x8000_0007, _) => [0, 0, 0, bits(&[8])],
        (0x8000_0008, _) => [PHYSICAL_BITS | 48 << 8, EXTENDED8_EBX_ERROR_POINTERS, 0, 0],
        _ => return None,
    })
}

const NAME: &[u8] = b"Teuthis software processor";

/// Part 0 to 2 of a processor's name of less than 48 characters: 16 bytes, filled up with zeros.
pub fn brand(name: &[u8], part: u32) -> [u32; 4] {
    let start = part as usize * 16;
    std::array::from_fn(|i| {
        let byte = |at: usize| name.get(start + i * 4 + at).copied().unwrap_or(0);
        u32::from_le_bytes(std::array::from_fn(byte))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn linux_finds_a_hypervisor_it_accepts() {
        let [max, b, c, d] = leaf(0x4000_0000, 0).unwrap();
        assert!((0x4000_0005..=0x4000_FFFF).contains(&max));
        let name = [b, c, d].map(u32::to_le_bytes).concat();
        assert_eq!(name, b"Microsoft Hv");
        let [low, high, _, features] = leaf(0x4000_0003, 0).unwrap();
        assert_eq!((low, high), (0xA6E, 0x30));
        assert_eq!(features, 1 << 8 | 1 << 10 | 1 << 19);
        assert_eq!(leaf(0x4000_0004, 0).unwrap()[0], 1 << 9);
    }

    #[test]
    fn nothing_is_offered_that_the_processor_lacks() {
        let [_, _, c, d] = leaf(1, 0).unwrap();
        // MONITOR, VMX, FMA, PCID, MOVBE, TSC deadline, XSAVE, OSXSAVE, AVX, F16C.
        assert_eq!(c & bits(&[3, 5, 12, 17, 22, 24, 26, 27, 28, 29]), 0);
        // VME, MCE, MCA, hyper-threading.
        assert_eq!(d & bits(&[1, 7, 14, 28]), 0);
        // BMI1, HLE, AVX2, BMI2, INVPCID, AVX-512.
        assert_eq!(LEAF7_EBX & bits(&[3, 4, 5, 8, 10, 16]), 0);
        // SVM.
        assert_eq!(leaf(0x8000_0001, 0).unwrap()[2] & bits(&[2]), 0);
    }

    #[test]
    fn unknown_leaves_do_not_exist() {
        for (number, subleaf) in [
            (2, 0),
            (7, 1),
            (8, 0),
            (0xD, 0),
            (0x4000_0006, 0),
            (0x4000_0100, 0),
            (0x8000_0009, 0),
            (0x8FFF_FFFF, 0),
            (u32::MAX, u32::MAX),
        ] {
            assert_eq!(leaf(number, subleaf), None);
        }
    }

    #[test]
    fn the_name_is_readable() {
        let words = (0..3).flat_map(|part| leaf(0x8000_0002 + part, 0).unwrap());
        let name: Vec<u8> = words.flat_map(u32::to_le_bytes).collect();
        assert!(name.starts_with(b"Teuthis software processor\0"));
        assert_eq!(name.len(), 48);
    }
}
