//! Makes a virtual machine and its processors, before the process locks its door: what KVM shall
//! answer itself, what it shall hand to us, and the state at the first instruction.

use super::{cpuid, msr, raw};
use crate::{
    clock::Clock,
    memory::GuestMemory,
    processor::{APIC_BASE, APIC_BASE_BOOTSTRAP, BootState},
};
use kvm_bindings::{
    CpuId, KVM_API_VERSION, KVM_CAP_DISABLE_QUIRKS2, KVM_CAP_ENFORCE_PV_FEATURE_CPUID,
    KVM_CAP_PMU_CAPABILITY, KVM_CAP_SPLIT_IRQCHIP, KVM_CAP_X86_USER_SPACE_MSR,
    KVM_MAX_CPUID_ENTRIES, KVM_MSR_EXIT_REASON_FILTER, KVM_MSR_EXIT_REASON_INVAL,
    KVM_MSR_EXIT_REASON_UNKNOWN, KVM_PMU_CAP_DISABLE, KVM_X86_QUIRK_FIX_HYPERCALL_INSN,
    KVM_X86_QUIRK_LINT0_REENABLED, KVM_X86_QUIRK_MWAIT_NEVER_UD_FAULTS,
    KVM_X86_QUIRK_OUT_7E_INC_RIP, Msrs, kvm_enable_cap, kvm_msr_entry, kvm_regs, kvm_segment,
    kvm_sregs,
};
use kvm_ioctls::{Cap, Kvm, MsrFilterDefaultAction, VcpuFd, VmFd};
use std::{io, os::fd::OwnedFd};

/// Why this host's `/dev/kvm` cannot run a guest.
#[derive(Debug, thiserror::Error)]
pub enum Unusable {
    #[error("it speaks version {0} of its interface, not {KVM_API_VERSION}")]
    Version(i32),
    #[error("it lacks {0:?}; Linux 5.16 or newer has all that is needed")]
    Lacks(Cap),
    #[error("it refuses to {0}: {1}")]
    Refuses(&'static str, io::Error),
}

/// Each is in the register, with what it opens. All are part of Linux 5.16.
const NEEDED: [Cap; 9] = [
    Cap::UserMemory,
    Cap::SplitIrqchip,
    Cap::SignalMsi,
    Cap::X86UserSpaceMsr,
    Cap::X86MsrFilter,
    Cap::SyncRegs,
    Cap::ImmediateExit,
    Cap::MpState,
    Cap::GetTscKhz,
];
/// Each makes KVM's surface smaller; used where the host has it.
const WELCOME: [(u32, u64); 3] = [
    // No rewriting of the guest's VMCALL into VMMCALL, no special port, #UD for MWAIT, and a local
    // interrupt line that starts masked.
    (
        KVM_CAP_DISABLE_QUIRKS2,
        (KVM_X86_QUIRK_FIX_HYPERCALL_INSN
            | KVM_X86_QUIRK_OUT_7E_INC_RIP
            | KVM_X86_QUIRK_MWAIT_NEVER_UD_FAULTS
            | KVM_X86_QUIRK_LINT0_REENABLED) as u64,
    ),
    // No performance counters of the host's.
    (KVM_CAP_PMU_CAPABILITY, KVM_PMU_CAP_DISABLE as u64),
    // No hypercalls of KVM's own but those that it never hides.
    (KVM_CAP_ENFORCE_PV_FEATURE_CPUID, 1),
];

pub struct Parts {
    pub vm: VmFd,
    /// Each at its number, which is its local APIC's id.
    pub vcpus: Vec<VcpuFd>,
    /// A digest of what CPUID tells the guest, to know hosts that are alike.
    pub features: u64,
    pub clock: Clock,
}

/// A virtual machine and `processors` of them, the first about to execute its first instruction as
/// `boot` says, the others waiting for it to start them. `/dev/kvm` is closed afterwards.
pub fn create(
    device: OwnedFd,
    memory: &GuestMemory,
    boot: BootState,
    processors: usize,
) -> Result<Parts, Unusable> {
    let kvm = raw::adopt(device);
    let version = kvm.get_api_version();
    if version != KVM_API_VERSION as i32 {
        return Err(Unusable::Version(version));
    }
    for needed in NEEDED {
        if !kvm.check_extension(needed) {
            return Err(Unusable::Lacks(needed));
        }
    }
    let vm = attempt("make a virtual machine", kvm.create_vm())?;
    configure(&vm)?;
    attempt("map guest RAM", raw::map_memory(&vm, memory))?;
    let supported = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES);
    let supported = attempt("tell what it supports", supported)?;
    let table = |vp| {
        let table = cpuid::table(supported.as_slice(), vp, processors);
        let table = table.ok_or(io::Error::from_raw_os_error(libc::E2BIG));
        attempt("take a CPUID table", table)
    };
    let features = cpuid::digest(&table(0)?);
    let mut vcpus = Vec::new();
    for vp in (0..=u8::MAX).take(processors) {
        let vcpu = attempt("make a processor", vm.create_vcpu(vp.into()))?;
        describe(&kvm, &vcpu, &table(vp)?)?;
        let state = attempt(REGISTERS, vcpu.get_sregs())?;
        if vp == 0 {
            set_first(&vcpu, state, boot)?;
        } else {
            set_other(&vcpu, state)?;
        }
        set_msrs(&vcpu)?;
        vcpus.push(vcpu);
    }
    let clock = start_clock(&vcpus)?;
    Ok(Parts {
        vm,
        vcpus,
        features,
        clock,
    })
}

/// What [`Unusable::Refuses`] when one of them is not taken.
const REGISTERS: &str = "set the processor's registers";

pub fn attempt<T, E: Into<io::Error>>(
    what: &'static str,
    done: Result<T, E>,
) -> Result<T, Unusable> {
    done.map_err(|error| Unusable::Refuses(what, error.into()))
}

fn capability(number: u32, argument: u64) -> kvm_enable_cap {
    kvm_enable_cap {
        cap: number,
        args: [argument, 0, 0, 0],
        ..Default::default()
    }
}

/// What concerns the whole machine, before it has a processor.
fn configure(vm: &VmFd) -> Result<(), Unusable> {
    for (number, wanted) in WELCOME {
        let offered = vm.check_extension_raw(number.into());
        let argument = match number {
            KVM_CAP_DISABLE_QUIRKS2 => wanted & u64::try_from(offered).unwrap_or(0),
            KVM_CAP_ENFORCE_PV_FEATURE_CPUID => continue, // the processor's
            _ => wanted,
        };
        if offered > 0 {
            let done = vm.enable_cap(&capability(number, argument));
            attempt("make its surface smaller", done)?;
        }
    }
    // The local APIC is the kernel's; there is no PIC, no PIT, no I/O APIC and none of its pins.
    let split = vm.enable_cap(&capability(KVM_CAP_SPLIT_IRQCHIP, 0));
    attempt("emulate the local APIC alone", split)?;
    let reasons =
        KVM_MSR_EXIT_REASON_FILTER | KVM_MSR_EXIT_REASON_UNKNOWN | KVM_MSR_EXIT_REASON_INVAL;
    let exits = vm.enable_cap(&capability(KVM_CAP_X86_USER_SPACE_MSR, reasons.into()));
    attempt("hand MSR accesses over", exits)?;
    let filter = vm.set_msr_filter(MsrFilterDefaultAction::DENY, &msr::ranges());
    attempt("filter MSRs", filter)
}

/// What a processor tells the guest about itself.
fn describe(kvm: &Kvm, vcpu: &VcpuFd, table: &CpuId) -> Result<(), Unusable> {
    if kvm.check_extension_raw(KVM_CAP_ENFORCE_PV_FEATURE_CPUID.into()) > 0 {
        let done = vcpu.enable_cap(&capability(KVM_CAP_ENFORCE_PV_FEATURE_CPUID, 1));
        attempt("hide its hypercalls", done)?;
    }
    attempt("take a CPUID table", vcpu.set_cpuid2(table))
}

/// The state that the software processor starts with, too.
fn set_first(vcpu: &VcpuFd, mut state: kvm_sregs, boot: BootState) -> Result<(), Unusable> {
    let flat = |selector, type_, long: bool| kvm_segment {
        base: 0,
        limit: u32::MAX,
        selector,
        type_,
        present: 1,
        db: (!long).into(),
        s: 1,
        l: long.into(),
        g: 1,
        ..Default::default()
    };
    state.cs = flat(0x10, 0xB, true);
    let data = flat(0x18, 0x3, false);
    (state.ds, state.es, state.fs) = (data, data, data);
    (state.gs, state.ss) = (data, data);
    state.tr = kvm_segment {
        limit: 0x67,
        type_: 0xB,
        present: 1,
        ..Default::default()
    };
    state.ldt = kvm_segment {
        unusable: 1,
        ..Default::default()
    };
    state.gdt.base = boot.gdt_base;
    state.gdt.limit = boot.gdt_limit;
    (state.idt.base, state.idt.limit) = (0, 0);
    state.cr0 = 0x8005_0033; // PG AM WP NE ET MP PE
    state.cr3 = boot.cr3;
    state.cr4 = 0x20; // PAE
    state.efer = 0x500; // LMA LME
    state.apic_base = APIC_BASE;
    attempt(REGISTERS, vcpu.set_sregs(&state))?;
    let registers = kvm_regs {
        rip: boot.rip,
        rsi: boot.rsi,
        rsp: boot.rsp,
        rflags: 2,
        ..Default::default()
    };
    attempt(REGISTERS, vcpu.set_regs(&registers))
}

/// As after a reset, until the guest sends INIT and SIPI; but its local APIC is in x2APIC mode, which
/// it can no more leave than the first one's.
fn set_other(vcpu: &VcpuFd, mut state: kvm_sregs) -> Result<(), Unusable> {
    state.apic_base = APIC_BASE & !APIC_BASE_BOOTSTRAP;
    attempt(REGISTERS, vcpu.set_sregs(&state))
}

fn set_msrs(vcpu: &VcpuFd) -> Result<(), Unusable> {
    let initial = msr::INITIAL.map(|(index, data)| kvm_msr_entry {
        index,
        data,
        ..Default::default()
    });
    let initial =
        Msrs::from_entries(&initial).map_err(|_| io::Error::from_raw_os_error(libc::E2BIG));
    match attempt(REGISTERS, vcpu.set_msrs(&attempt(REGISTERS, initial)?))? {
        all if all == msr::INITIAL.len() => Ok(()),
        _ => attempt(REGISTERS, Err(io::Error::from_raw_os_error(libc::EINVAL))),
    }
}

/// Lets the guest's time-stamp counter start at 0 now, at the host's frequency, on all processors.
fn start_clock(vcpus: &[VcpuFd]) -> Result<Clock, Unusable> {
    let mut kilohertz = 0;
    for vcpu in vcpus {
        let what = "tell the time-stamp counter's frequency";
        kilohertz = attempt(what, vcpu.get_tsc_khz())?;
    }
    let clock = Clock::counter(raw::time_stamp, u64::from(kilohertz) * 1000);
    for vcpu in vcpus {
        let set = raw::set_tsc_offset(vcpu, clock.offset());
        attempt("start the time-stamp counter", set)?;
    }
    Ok(clock)
}
