//! All that a guest can see of a processor on KVM, in a saved machine.
//!
//! The kernel judges most of what comes back, as it judges every value that its requests set; what
//! it would take though no guest of ours can have it is refused here.

use super::{KvmProcessor, msr, raw};
use crate::{
    processor::Kind,
    record::{Malformed, Record, check},
};
use kvm_bindings::{
    KVM_MP_STATE_INIT_RECEIVED, KVM_MP_STATE_SIPI_RECEIVED, KVM_MP_STATE_UNINITIALIZED,
    KVM_VCPUEVENT_VALID_NMI_PENDING, KVM_VCPUEVENT_VALID_SHADOW, KVM_VCPUEVENT_VALID_SIPI_VECTOR,
    Msrs, kvm_debugregs, kvm_dtable, kvm_mp_state, kvm_msr_entry, kvm_regs, kvm_segment, kvm_sregs,
    kvm_vcpu_events,
};
use kvm_ioctls::{SyncReg, VcpuFd};

/// The requests made only to save: KVM_GET_XSAVE, KVM_GET_XCRS, KVM_GET_DEBUGREGS, KVM_GET_MSRS,
/// KVM_GET_LAPIC.
pub const SAVE_CALLS: [u64; 5] = [
    0x9000_AEA4,
    0x8188_AEA6,
    0x8080_AEA1,
    0xC008_AE88,
    0x8400_AE8E,
];
/// Those made only to restore: KVM_SET_SREGS, KVM_SET_XSAVE, KVM_SET_XCRS, KVM_SET_DEBUGREGS,
/// KVM_SET_MSRS, KVM_SET_LAPIC, KVM_SET_MP_STATE.
pub const RESTORE_CALLS: [u64; 7] = [
    0x4138_AE84,
    0x5000_AEA5,
    0x4188_AEA7,
    0x4080_AEA2,
    0x4008_AE89,
    0x4400_AE8F,
    0x4004_AE99,
];

/// Of the local APIC's page: the id.
const APIC_ID: std::ops::Range<usize> = 0x20..0x24;
/// XCR0.
const EXTENDED_STATE: u32 = 0;
const EXCEPTIONS: u8 = 32;

/// What the kernel does not give, or does not take.
fn refused<E>(what: &'static str) -> impl FnOnce(E) -> Malformed {
    move |_| Malformed::Value(what)
}

impl KvmProcessor {
    /// See [`Processor::state`](crate::processor::Processor::state).
    pub(super) fn whole_state(&mut self, record: &mut Record) -> Result<(), Malformed> {
        Kind::Kvm.state(record)?;
        let mut features = self.features;
        record.field(&mut features)?;
        if features != self.features {
            return Err(Malformed::Host);
        }
        if self.number == 0 {
            self.clock.state(record)?;
        }
        // The kernel completes what was answered; the guest does not run.
        self.settle();
        let vcpu = &self.vcpu;
        special(record, vcpu)?;
        extended(record, vcpu)?;
        debug(record, vcpu)?;
        registers(record, vcpu)?;
        local_apic(record, vcpu)?;
        let activity = activity(record, vcpu)?;
        let general = &mut self.vcpu.sync_regs_mut().regs;
        general_registers(record, general)?;
        if record.is_restoring() && has_started(activity) {
            self.vcpu.set_sync_dirty_reg(SyncReg::Register);
        }
        events(record, &self.vcpu)
    }
}

/// INIT will set the registers of a processor that has not.
fn has_started(activity: u32) -> bool {
    ![KVM_MP_STATE_UNINITIALIZED, KVM_MP_STATE_INIT_RECEIVED].contains(&activity)
}

fn general_registers(record: &mut Record, r: &mut kvm_regs) -> Result<(), Malformed> {
    record.fields([
        &mut r.rax,
        &mut r.rbx,
        &mut r.rcx,
        &mut r.rdx,
        &mut r.rsi,
        &mut r.rdi,
        &mut r.rsp,
        &mut r.rbp,
        &mut r.r8,
        &mut r.r9,
        &mut r.r10,
        &mut r.r11,
        &mut r.r12,
        &mut r.r13,
        &mut r.r14,
        &mut r.r15,
        &mut r.rip,
        &mut r.rflags,
    ])
}

/// Segments, descriptor tables, control registers.
fn special(record: &mut Record, vcpu: &VcpuFd) -> Result<(), Malformed> {
    let what = "control registers";
    let mut found = vcpu.get_sregs().map_err(refused(what))?;
    let apic_base = found.apic_base;
    for segment in [
        &mut found.cs,
        &mut found.ds,
        &mut found.es,
        &mut found.fs,
        &mut found.gs,
        &mut found.ss,
        &mut found.tr,
        &mut found.ldt,
    ] {
        segment_state(record, segment)?;
    }
    for table in [&mut found.gdt, &mut found.idt] {
        let kvm_dtable { base, limit, .. } = table;
        record.field(base)?;
        record.field(limit)?;
    }
    let kvm_sregs {
        cr0,
        cr2,
        cr3,
        cr4,
        cr8,
        efer,
        ..
    } = &mut found;
    record.fields([cr0, cr2, cr3, cr4, cr8, efer])?;
    record.field(&mut found.apic_base)?;
    check(found.apic_base == apic_base, "the local APIC's mode")?;
    if record.is_restoring() {
        found.interrupt_bitmap = [0; 4]; // see `events`
        vcpu.set_sregs(&found).map_err(refused(what))?;
    }
    Ok(())
}

fn segment_state(record: &mut Record, segment: &mut kvm_segment) -> Result<(), Malformed> {
    let kvm_segment {
        base,
        limit,
        selector,
        type_,
        present,
        dpl,
        db,
        s,
        l,
        g,
        avl,
        unusable,
        ..
    } = segment;
    record.field(base)?;
    record.field(limit)?;
    record.field(selector)?;
    record.fields([type_, present, dpl, db, s, l, g, avl, unusable])
}

/// x87, SSE and AVX, and which of them the guest has enabled.
fn extended(record: &mut Record, vcpu: &VcpuFd) -> Result<(), Malformed> {
    let what = "x87, SSE and AVX registers";
    let mut enabled = vcpu.get_xcrs().map_err(refused(what))?;
    let first = &mut enabled.xcrs[0];
    record.field(&mut first.value)?;
    let mut state = vcpu.get_xsave().map_err(refused(what))?;
    record.field(&mut state.region)?;
    if record.is_restoring() {
        first.xcr = EXTENDED_STATE;
        (enabled.nr_xcrs, enabled.flags) = (1, 0);
        vcpu.set_xcrs(&enabled).map_err(refused(what))?;
        raw::set_xsave(vcpu, &state).map_err(refused(what))?;
    }
    Ok(())
}

fn debug(record: &mut Record, vcpu: &VcpuFd) -> Result<(), Malformed> {
    let what = "debug registers";
    let mut found = vcpu.get_debug_regs().map_err(refused(what))?;
    let kvm_debugregs { db, dr6, dr7, .. } = &mut found;
    record.field(db)?;
    record.fields([dr6, dr7])?;
    if record.is_restoring() {
        vcpu.set_debug_regs(&found).map_err(refused(what))?;
    }
    Ok(())
}

/// Model-specific registers, as far as this host has them.
fn registers(record: &mut Record, vcpu: &VcpuFd) -> Result<(), Malformed> {
    let what = "model-specific registers";
    let mut entries = Vec::new();
    for index in msr::saved() {
        let entry = |data| kvm_msr_entry {
            index,
            data,
            ..Default::default()
        };
        let mut asked = Msrs::from_entries(&[entry(0)]).map_err(refused(what))?;
        let has = vcpu.get_msrs(&mut asked).map_err(refused(what))? == 1;
        let value = asked.as_slice().first().filter(|_| has);
        let mut value = value.map(|entry| entry.data);
        record.field(&mut value)?;
        check(value.is_some() == has, what)?;
        entries.extend(value.map(entry));
    }
    if record.is_restoring() {
        let all = Msrs::from_entries(&entries).map_err(refused(what))?;
        let taken = vcpu.set_msrs(&all).map_err(refused(what))?;
        check(taken == entries.len(), what)?;
    }
    Ok(())
}

/// With the interrupts that wait in it, and its timer.
fn local_apic(record: &mut Record, vcpu: &VcpuFd) -> Result<(), Malformed> {
    let what = "the local APIC";
    let mut page = vcpu.get_lapic().map_err(refused(what))?;
    let id = page.regs;
    let mut bytes = page.regs.map(|byte| byte as u8);
    record.field(&mut bytes)?;
    page.regs = bytes.map(|byte| byte as _);
    check(page.regs[APIC_ID] == id[APIC_ID], what)?;
    if record.is_restoring() {
        vcpu.set_lapic(&page).map_err(refused(what))?;
    }
    Ok(())
}

/// Whether it runs, has halted, or waits to be started.
fn activity(record: &mut Record, vcpu: &VcpuFd) -> Result<u32, Malformed> {
    let what = "the processor's activity";
    let mut found = vcpu.get_mp_state().map_err(refused(what))?.mp_state;
    record.field(&mut found)?;
    check(found <= KVM_MP_STATE_SIPI_RECEIVED, what)?;
    if record.is_restoring() {
        let state = kvm_mp_state { mp_state: found };
        vcpu.set_mp_state(state).map_err(refused(what))?;
    }
    Ok(found)
}

/// What is on its way into the guest: an exception, an interrupt, an NMI, a SIPI. System management
/// mode there is none.
fn events(record: &mut Record, vcpu: &VcpuFd) -> Result<(), Malformed> {
    let what = "exceptions and interrupts";
    let found = vcpu.get_vcpu_events().map_err(refused(what))?;
    let mut new = kvm_vcpu_events {
        exception: found.exception,
        interrupt: found.interrupt,
        nmi: found.nmi,
        sipi_vector: found.sipi_vector,
        flags: KVM_VCPUEVENT_VALID_NMI_PENDING
            | KVM_VCPUEVENT_VALID_SIPI_VECTOR
            | KVM_VCPUEVENT_VALID_SHADOW,
        ..Default::default()
    };
    let (exception, interrupt) = (&mut new.exception, &mut new.interrupt);
    record.fields([
        &mut exception.injected,
        &mut exception.nr,
        &mut exception.has_error_code,
        &mut interrupt.injected,
        &mut interrupt.nr,
        &mut interrupt.soft,
        &mut interrupt.shadow,
        &mut new.nmi.injected,
        &mut new.nmi.pending,
        &mut new.nmi.masked,
    ])?;
    record.fields([&mut exception.error_code, &mut new.sipi_vector])?;
    new.exception.pending = 0;
    check(new.exception.nr < EXCEPTIONS, what)?;
    check(new.sipi_vector <= u8::MAX.into(), what)?;
    if record.is_restoring() {
        vcpu.set_vcpu_events(&new).map_err(refused(what))?;
    }
    Ok(())
}
