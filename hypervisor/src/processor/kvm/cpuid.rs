//! What CPUID tells a guest on hardware: the intersection of what KVM supports here with what is
//! listed below. KVM answers the instruction itself, from this table.
//!
//! Not listed, hence never seen: nested virtualization (VMX, SVM), KVM's own leaves, performance
//! counters, machine checks, AVX-512 and every feature whose state or registers are not allowed
//! in [`super::msr`].

use crate::{
    record::checksum,
    tlfs::cpuid::{HYPERVISOR, LIMITS, MAX_HYPERVISOR, bits, brand, leaf},
};
use kvm_bindings::{CpuId, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, kvm_cpuid_entry2};

const ALL: u32 = u32::MAX;
const MAX_BASIC: u32 = 0xD;
const MAX_EXTENDED: u32 = 0x8000_0008;
/// CLFLUSH works on 8 * 8 bytes; each package has one processor. The APIC id stands above.
const ONE_PROCESSOR: u32 = 8 << 8 | 1 << 16;
const APIC_ID: u32 = 24;
const HYPERVISOR_PRESENT: u32 = 1 << 31;
/// The local APIC timer never stops.
const ARAT: u32 = 1 << 2;

/// FPU DE PSE TSC MSR PAE CX8 APIC, MTRR PGE CMOV PAT, PSE36, MMX FXSR.
const COMMON_EDX: u32 = bits(&[0, 2, 3, 4, 5, 6, 8, 9, 12, 13, 15, 16, 17, 23, 24]);
/// SEP, CLFLUSH, SSE, SSE2.
const LEAF1_EDX: u32 = COMMON_EDX | bits(&[11, 19, 25, 26]);
/// SSE3 PCLMULQDQ SSSE3 FMA CX16 PCID SSE4.1 SSE4.2 x2APIC MOVBE POPCNT AES XSAVE AVX F16C RDRAND.
const LEAF1_ECX: u32 = bits(&[0, 1, 9, 12, 13, 17, 19, 20, 21, 22, 23, 25, 26, 28, 29, 30]);
/// FSGSBASE BMI1 AVX2 SMEP BMI2 ERMS INVPCID RDSEED ADX SMAP CLFLUSHOPT CLWB SHA.
const LEAF7_EBX: u32 = bits(&[0, 3, 5, 7, 8, 9, 10, 18, 19, 20, 23, 24, 29]);
/// UMIP GFNI VAES VPCLMULQDQ RDPID.
const LEAF7_ECX: u32 = bits(&[2, 8, 9, 10, 22]);
/// FSRM, and what guards the guest's kernel from its programs: MD_CLEAR, IBRS and IBPB, STIBP,
/// ARCH_CAPABILITIES, SSBD.
const LEAF7_EDX: u32 = bits(&[4, 10, 26, 27, 29, 31]);
/// x87, SSE and AVX state.
const XCR0: u32 = 0b111;
/// XSAVEOPT XSAVEC XGETBV(1).
const XSAVE_FEATURES: u32 = 0b111;
/// LAHF, CR8 in 32-bit mode, ABM, SSE4A, misaligned SSE, PREFETCHW.
const EXTENDED_ECX: u32 = bits(&[0, 4, 5, 6, 7, 8]);
/// SYSCALL, NX, MMXEXT, fast FXSAVE, 1 GiB pages, RDTSCP, long mode.
const EXTENDED_EDX: u32 = COMMON_EDX | bits(&[11, 20, 22, 25, 26, 27, 29]);
const INVARIANT_TSC: u32 = 1 << 8;
const NAME: &[u8] = b"Teuthis on the host's processor";
/// Widths of physical and linear addresses.
const WIDTHS: u32 = 0xFFFF;
/// CLZERO, FXSAVE's error pointers, IBPB, IBRS, STIBP, STIBP always, SSBD, VIRT_SSBD, SSB_NO.
const EXTENDED8_EBX: u32 = bits(&[0, 2, 12, 14, 15, 17, 24, 25, 26]);

/// EAX, EBX, ECX, EDX of a leaf: what KVM supports, cut to `mask`, with `fixed` added.
struct Row {
    leaf: u32,
    subleaf: Option<u32>,
    mask: [u32; 4],
    fixed: [u32; 4],
}

const fn row(leaf: u32, mask: [u32; 4], fixed: [u32; 4]) -> Row {
    Row {
        leaf,
        subleaf: None,
        mask,
        fixed,
    }
}

const fn subleaf(leaf: u32, subleaf: u32, mask: [u32; 4]) -> Row {
    Row {
        leaf,
        subleaf: Some(subleaf),
        mask,
        fixed: [0; 4],
    }
}

const VENDOR: [u32; 4] = [0, ALL, ALL, ALL];
const ROWS: [Row; 13] = [
    row(0, VENDOR, [MAX_BASIC, 0, 0, 0]),
    row(
        1,
        [ALL, 0, LEAF1_ECX, LEAF1_EDX],
        [0, ONE_PROCESSOR, HYPERVISOR_PRESENT, 0],
    ),
    row(6, [0; 4], [ARAT, 0, 0, 0]),
    subleaf(7, 0, [0, LEAF7_EBX, LEAF7_ECX, LEAF7_EDX]),
    // The size of the saved state is KVM's to tell: it depends on what the guest has enabled.
    subleaf(0xD, 0, [XCR0, ALL, 0, 0]),
    subleaf(0xD, 1, [XSAVE_FEATURES, 0, 0, 0]),
    subleaf(0xD, 2, [ALL, ALL, 0, 0]),
    row(0x8000_0000, VENDOR, [MAX_EXTENDED, 0, 0, 0]),
    row(0x8000_0001, [ALL, 0, EXTENDED_ECX, EXTENDED_EDX], [0; 4]),
    row(0x8000_0005, [ALL; 4], [0; 4]),
    row(0x8000_0006, [ALL; 4], [0; 4]),
    row(0x8000_0007, [0, 0, 0, INVARIANT_TSC], [0; 4]),
    row(0x8000_0008, [WIDTHS, EXTENDED8_EBX, 0, 0], [0; 4]),
];

/// The table of processor `vp` of a machine with so many; never too long for KVM. `supported`: what
/// KVM and this host support.
pub fn table(supported: &[kvm_cpuid_entry2], vp: u8, processors: usize) -> Option<CpuId> {
    let known = |row: &Row| {
        let index = row.subleaf.unwrap_or(0);
        let same = |entry: &&kvm_cpuid_entry2| entry.function == row.leaf && entry.index == index;
        let entry = supported.iter().find(same);
        entry.map_or([0; 4], |e| [e.eax, e.ebx, e.ecx, e.edx])
    };
    let mut entries: Vec<_> = ROWS
        .iter()
        .map(|row| {
            let found = known(row);
            let value = |i: usize| found[i] & row.mask[i] | row.fixed[i];
            entry(row.leaf, row.subleaf, std::array::from_fn(value))
        })
        .collect();
    for part in &mut entries {
        match (part.function, part.index) {
            (1, _) => part.ebx |= u32::from(vp) << APIC_ID,
            // The largest state that the guest may save: what is in XCR0 as cut down above.
            (0xD, 0) => part.ecx = if part.eax & 1 << 2 != 0 { 0x340 } else { 0x240 },
            _ => {}
        }
    }
    for part in 0..3 {
        entries.push(entry(0x8000_0002 + part, None, brand(NAME, part)));
    }
    for number in HYPERVISOR..=MAX_HYPERVISOR {
        let mut values = leaf(number, 0).unwrap_or_default();
        if number == LIMITS {
            let processors = u32::try_from(processors).unwrap_or(u32::MAX);
            (values[0], values[1]) = (processors, processors);
        }
        entries.push(entry(number, None, values));
    }
    CpuId::from_entries(&entries).ok()
}

/// A number that differs where tables do.
pub fn digest(table: &CpuId) -> u64 {
    let words = table.as_slice().iter().flat_map(|entry| {
        let kvm_cpuid_entry2 {
            function,
            index,
            eax,
            ebx,
            ecx,
            edx,
            ..
        } = *entry;
        [function, index, eax, ebx, ecx, edx]
    });
    let bytes: Vec<u8> = words.flat_map(u32::to_le_bytes).collect();
    checksum(&bytes)
}

fn entry(function: u32, subleaf: Option<u32>, [eax, ebx, ecx, edx]: [u32; 4]) -> kvm_cpuid_entry2 {
    kvm_cpuid_entry2 {
        function,
        index: subleaf.unwrap_or(0),
        flags: subleaf.map_or(0, |_| KVM_CPUID_FLAG_SIGNIFCANT_INDEX),
        eax,
        ebx,
        ecx,
        edx,
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A host that supports everything.
    fn of_everything() -> CpuId {
        let all: Vec<_> = ROWS
            .iter()
            .map(|row| entry(row.leaf, row.subleaf, [ALL; 4]))
            .chain([
                entry(0x4000_0100, None, [ALL; 4]),
                entry(0xA, None, [ALL; 4]),
            ])
            .collect();
        table(&all, 3, 4).unwrap()
    }

    fn find(table: &CpuId, leaf: u32, index: u32) -> [u32; 4] {
        let same = |e: &&kvm_cpuid_entry2| (e.function, e.index) == (leaf, index);
        let entry = table.as_slice().iter().find(same).unwrap();
        [entry.eax, entry.ebx, entry.ecx, entry.edx]
    }

    #[test]
    fn what_is_not_listed_is_not_offered() {
        let table = of_everything();
        let [_, b, c, d] = find(&table, 1, 0);
        assert_eq!(b, 3 << APIC_ID | ONE_PROCESSOR);
        // MONITOR, VMX, PDCM, TSC deadline; VME, MCE, MCA, hyper-threading.
        assert_eq!(c & bits(&[3, 5, 15, 24]), 0);
        assert_eq!(d & bits(&[1, 7, 14, 28]), 0);
        // HLE, RTM, MPX, AVX-512; PKU; AMX, architectural LBR.
        let [_, b, c, d] = find(&table, 7, 0);
        assert_eq!(
            (
                b & bits(&[4, 11, 14, 16, 17]),
                c & 8,
                d & bits(&[19, 22, 24])
            ),
            (0, 0, 0)
        );
        // SVM, performance counters.
        assert_eq!(find(&table, 0x8000_0001, 0)[2] & bits(&[2, 23, 24, 28]), 0);
        assert_eq!(find(&table, 0xD, 0)[0], 0b111);
        let leaves = table.as_slice().iter().map(|entry| entry.function);
        assert!(
            leaves
                .clone()
                .all(|leaf| !(0x4000_0006..0x8000_0000).contains(&leaf))
        );
        assert!(leaves.clone().all(|leaf| leaf != 0xA));
    }

    #[test]
    fn the_partitions_leaves_are_ours() {
        let table = of_everything();
        for number in HYPERVISOR..=MAX_HYPERVISOR {
            let expected = match number {
                LIMITS => [4, 4, 0, 0],
                _ => leaf(number, 0).unwrap(),
            };
            assert_eq!(find(&table, number, 0), expected);
        }
    }

    #[test]
    fn what_the_host_lacks_is_not_invented() {
        let table = table(&[], 0, 1).unwrap();
        assert_eq!(
            find(&table, 1, 0),
            [0, ONE_PROCESSOR, HYPERVISOR_PRESENT, 0]
        );
        assert_eq!(find(&table, 7, 0), [0; 4]);
        assert_eq!(find(&table, 0xD, 0), [0, 0, 0x240, 0]);
    }
}
