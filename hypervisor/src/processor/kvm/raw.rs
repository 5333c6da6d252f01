//! The few things of KVM that `kvm-ioctls` has no safe function for.
#![allow(unsafe_code)]

use crate::memory::{GuestMemory, HIGH_BASE, LOW_LIMIT};
use kvm_bindings::{
    KVM_EXIT_IO_IN, kvm_device_attr, kvm_run, kvm_userspace_memory_region, kvm_xsave,
};
use kvm_ioctls::{Kvm, VcpuFd, VmFd};
use std::{
    io,
    os::fd::{AsRawFd, FromRawFd, IntoRawFd, OwnedFd},
};

/// `_IOW(0xAE, 0x8B, struct kvm_signal_mask)` and `_IOW(0xAE, 0xE1, struct kvm_device_attr)`.
const KVM_SET_SIGNAL_MASK: libc::c_ulong = 0x4004_AE8B;
const KVM_SET_DEVICE_ATTR: libc::c_ulong = 0x4018_AEE1;

/// Takes possession of an open `/dev/kvm`.
pub fn adopt(descriptor: OwnedFd) -> Kvm {
    // SAFETY: the descriptor is ours and nobody else's any more.
    unsafe { Kvm::from_raw_fd(descriptor.into_raw_fd()) }
}

/// The host's time-stamp counter, from which a guest's differs by a constant.
pub fn time_stamp() -> u64 {
    // SAFETY: every x86-64 processor has the instruction.
    unsafe { core::arch::x86_64::_rdtsc() }
}

/// Gives the guest its RAM: one slot, or two around the hole below 4 GiB.
pub fn map_memory(vm: &VmFd, memory: &GuestMemory) -> io::Result<()> {
    let (size, address) = (memory.size(), memory.host_address());
    let low = (0, 0, size.min(LOW_LIMIT));
    let high = (HIGH_BASE, LOW_LIMIT, size.saturating_sub(LOW_LIMIT));
    for (slot, (guest, offset, length)) in (0..).zip([low, high]) {
        if length == 0 {
            continue;
        }
        let region = kvm_userspace_memory_region {
            slot,
            flags: 0,
            guest_phys_addr: guest,
            memory_size: length,
            userspace_addr: address + offset,
        };
        // SAFETY: the range lies inside the mapping of guest RAM, which outlives the virtual
        // machine (`KvmProcessor` drops it last) and into which no reference ever points.
        unsafe { vm.set_user_memory_region(region) }?;
    }
    Ok(())
}

/// The signals that are blocked while the guest runs, and only then: bit n - 1 is signal n.
pub fn set_signal_mask(vcpu: &VcpuFd, blocked: u64) -> io::Result<()> {
    #[repr(C, packed)]
    struct SignalMask(u32, u64);
    let mask = SignalMask(size_of::<u64>() as u32, blocked);
    // SAFETY: the kernel reads a length and as many bytes behind it.
    check(unsafe { libc::ioctl(vcpu.as_raw_fd(), KVM_SET_SIGNAL_MASK, &raw const mask) })
}

/// What the guest's time-stamp counter adds to the host's.
pub fn set_tsc_offset(vcpu: &VcpuFd, offset: u64) -> io::Result<()> {
    let attribute = kvm_device_attr {
        flags: 0,
        group: kvm_bindings::KVM_VCPU_TSC_CTRL,
        attr: kvm_bindings::KVM_VCPU_TSC_OFFSET.into(),
        addr: (&raw const offset) as u64,
    };
    // SAFETY: the kernel reads the attribute, and 8 bytes at the address in it.
    check(unsafe { libc::ioctl(vcpu.as_raw_fd(), KVM_SET_DEVICE_ATTR, &raw const attribute) })
}

fn check(result: libc::c_int) -> io::Result<()> {
    match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Sets the x87, SSE and AVX registers.
pub fn set_xsave(vcpu: &VcpuFd, state: &kvm_xsave) -> Result<(), kvm_ioctls::Error> {
    // SAFETY: the kernel reads no more than the structure unless features were enabled by
    // `arch_prctl`, which nothing here does.
    unsafe { vcpu.set_xsave(state) }
}

/// An intercepted port instruction: `count` elements (string instructions) of `size` bytes.
#[derive(Clone, Copy)]
pub struct PortAccess {
    pub port: u16,
    pub size: u8,
    pub count: u32,
    pub is_read: bool,
}

/// What the last exit was about, which must have been a port's.
pub fn port_access(run: &kvm_run) -> PortAccess {
    // SAFETY: plain numbers, whatever the union holds.
    let io = unsafe { run.__bindgen_anon_1.io };
    PortAccess {
        port: io.port,
        size: io.size,
        count: io.count,
        is_read: u32::from(io.direction) == KVM_EXIT_IO_IN,
    }
}

/// The bytes that the port's instruction carries; the last exit must have been a port's.
pub fn port_data(run: &mut kvm_run) -> &mut [u8] {
    // SAFETY: as in `port_access`.
    let io = unsafe { run.__bindgen_anon_1.io };
    let length = usize::from(io.size) * io.count as usize;
    let start = (&raw mut *run).cast::<u8>();
    // SAFETY: the kernel, which alone writes these numbers, puts the data inside the mapping that
    // `run` is the start of; nothing else refers to it while `run` is borrowed.
    unsafe { std::slice::from_raw_parts_mut(start.add(io.data_offset as usize), length) }
}

/// Completes an access to an MSR; the last exit must have been one. `None`: #GP.
pub fn complete_msr(run: &mut kvm_run, value: Option<u64>) {
    // SAFETY: plain numbers, whatever the union holds.
    let msr = unsafe { &mut run.__bindgen_anon_1.msr };
    msr.error = value.is_none().into();
    msr.data = value.unwrap_or(0);
}
