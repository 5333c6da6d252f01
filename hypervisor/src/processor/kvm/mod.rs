//! The kvm processor: the host's own, through `/dev/kvm`.
//!
//! KVM runs the guest's instructions, translates its memory, and answers for itself what the
//! register lists with the receiver `host-kernel`: CPUID from our table, the local APIC, HLT, some
//! MSRs. Everything else of the partition (Hyper-V's MSRs, hypercalls, the SynIC, timers, ports) is
//! intercepted and answered by the same code as on the software processor.
//!
//! [`create`] makes the virtual machine, from [`cpuid`]'s and [`msr`]'s lists; [`kick`] is how a
//! running guest is interrupted; [`state`] saves and restores it; [`raw`] holds the unsafe rest. [`probe`] tells whether this host's
//! KVM can do all this.

mod cpuid;
mod create;
mod kick;
mod msr;
pub mod probe;
mod raw;
mod state;

use super::{BootState, Completion, Intercept, Kicker, Processor};
use crate::{
    clock::Clock,
    counters::Counters,
    flows::{Flow, Reject, values},
    ioapic::IoApic,
    memory::GuestMemory,
    record::{Malformed, Record},
};
use create::{Parts, attempt};
use kick::Kick;
use kvm_bindings::{
    KVM_MP_STATE_HALTED, KVM_MP_STATE_INIT_RECEIVED, KVM_MP_STATE_UNINITIALIZED, kvm_msi,
};
use kvm_ioctls::{SyncReg, VcpuExit, VcpuFd, VmFd};
use raw::PortAccess;
use std::{
    os::fd::{AsRawFd, OwnedFd, RawFd},
    sync::Arc,
};

pub use create::Unusable;
pub use state::{RESTORE_CALLS, SAVE_CALLS};

/// OUT to this port is the hypercall instruction. No device of a PC has it.
const HYPERCALL_PORT: u8 = values::KVM_HYPERCALL_EXIT_PORT as u8;
/// OUT imm8, AL; RET.
const HYPERCALL_CODE: [u8; 3] = [0xE6, HYPERCALL_PORT, 0xC3];
const HYPERCALL_LENGTH: u64 = 2;
/// How long the guest may halt with interrupts disabled until we look: KVM does not tell.
const PATIENCE: u64 = 200_000_000;
/// RFLAGS.
const INTERRUPTS_ENABLED: u64 = 1 << 9;
const INVALID_OPCODE: u8 = 6;
/// Local APIC 0 as the destination of a message-signalled interrupt, and where another's id stands.
const MSI_ADDRESS: u32 = 0xFEE0_0000;
const MSI_DESTINATION: u32 = 12;

/// The requests made once the door is locked. Of the virtual machine: KVM_SIGNAL_MSI.
pub const VM_CALLS: [u64; 1] = [0x4020_AEA5];
/// Of a processor: KVM_RUN; KVM_GET_MP_STATE; KVM_GET_SREGS; KVM_GET and KVM_SET_VCPU_EVENTS;
/// KVM_SET_DEVICE_ATTR, for the time-stamp counter.
pub const VCPU_CALLS: [u64; 6] = [
    0xAE80,
    0x8004_AE98,
    0x8138_AE83,
    0x8040_AE9F,
    0x4040_AEA0,
    0x4018_AEE1,
];

/// The intercepted instruction that waits for its completion.
enum Pending {
    Nothing,
    /// Element `index` of a port instruction.
    Port {
        access: PortAccess,
        index: u32,
    },
    MsrRead,
    MsrWrite,
    Hypercall,
}

/// A processor of a virtual machine, on KVM.
pub struct KvmProcessor {
    number: usize,
    /// A digest of what CPUID tells.
    features: u64,
    vm: Arc<VmFd>,
    vcpu: VcpuFd,
    kick: Kick,
    clock: Clock,
    pending: Pending,
    /// The rest of a string instruction.
    next: Option<(PortAccess, u32)>,
    /// Accesses to holes, hypercalls, and those that no kernel made, since the last handing over.
    holes: u64,
    hypercalls: u64,
    unprivileged: u64,
    notes: Vec<String>,
    // Last, so that it is unmapped when nothing runs in it any more.
    memory: Arc<GuestMemory>,
}

/// A processor that has no thread yet.
pub struct Idle {
    number: usize,
    features: u64,
    vm: Arc<VmFd>,
    vcpu: VcpuFd,
    clock: Clock,
    memory: Arc<GuestMemory>,
}

/// The processors of a new virtual machine, the first about to execute its first instruction as
/// `boot` says. `device` is an open `/dev/kvm`, which is closed afterwards.
pub fn create(
    device: OwnedFd,
    memory: GuestMemory,
    boot: BootState,
    processors: usize,
) -> Result<Vec<Idle>, Unusable> {
    let Parts {
        vm,
        vcpus,
        features,
        clock,
    } = create::create(device, &memory, boot, processors)?;
    let (vm, memory) = (Arc::new(vm), Arc::new(memory));
    let idle = |(number, vcpu)| Idle {
        number,
        features,
        vm: vm.clone(),
        vcpu,
        clock: clock.clone(),
        memory: memory.clone(),
    };
    Ok(vcpus.into_iter().enumerate().map(idle).collect())
}

/// What `/dev/kvm` made and the jail must leave open.
#[derive(Clone, Debug)]
pub struct Descriptors {
    pub vm: RawFd,
    pub vcpus: Vec<RawFd>,
    /// The guest goes on where a saved one stopped.
    pub restores: bool,
}

impl Descriptors {
    pub fn of(processors: &[Idle], restores: bool) -> Self {
        let vcpus = processors.iter().map(|each| each.vcpu.as_raw_fd());
        Self {
            vm: processors.first().map_or(-1, |first| first.vm.as_raw_fd()),
            vcpus: vcpus.collect(),
            restores,
        }
    }
}

impl Idle {
    /// Only the calling thread may run the guest on it. All that the kernel does on a first run
    /// happens here: from now on its system calls can be filtered.
    pub fn start(self) -> Result<KvmProcessor, Unusable> {
        let Self {
            number,
            features,
            vm,
            mut vcpu,
            clock,
            memory,
        } = self;
        let (kick, blocked) = attempt("make a timer", Kick::new())?;
        attempt("take a signal mask", raw::set_signal_mask(&vcpu, blocked))?;
        vcpu.set_sync_valid_reg(SyncReg::Register);
        vcpu.set_kvm_immediate_exit(1);
        if let Err(error) = vcpu.run().map(drop)
            && error.errno() != libc::EINTR
        {
            return attempt("run", Err(error));
        }
        vcpu.set_kvm_immediate_exit(0);
        Ok(KvmProcessor {
            number,
            features,
            vm,
            vcpu,
            kick,
            clock,
            pending: Pending::Nothing,
            next: None,
            holes: 0,
            hypercalls: 0,
            unprivileged: 0,
            notes: vec![],
            memory,
        })
    }

    /// The clock that the time-stamp counters of all processors follow.
    pub fn clock(&self) -> &Clock {
        &self.clock
    }
}

impl KvmProcessor {
    /// The only processor of a new virtual machine; see [`create`].
    pub fn new(device: OwnedFd, memory: GuestMemory, boot: BootState) -> Result<Self, Unusable> {
        let mut processors = create(device, memory, boot, 1)?;
        let only = processors.pop().ok_or(std::io::ErrorKind::NotFound);
        attempt("make a processor", only)?.start()
    }

    /// The clock that this processor's time-stamp counter follows.
    pub fn clock(&self) -> &Clock {
        &self.clock
    }

    /// From now on the guest on the calling thread's processor is interrupted when `descriptor`
    /// becomes readable.
    pub fn watch(&self, descriptor: &impl AsRawFd) -> std::io::Result<()> {
        Kick::watch(descriptor)
    }

    /// After a kick: whether the guest can never run again, or what else there is to do.
    fn kicked(&mut self) -> Intercept {
        self.kick.take();
        let halted = Intercept::Halt {
            interruptible: false,
        };
        match self.vcpu.get_mp_state().map(|state| state.mp_state) {
            Ok(KVM_MP_STATE_HALTED) if !self.has_interrupts_enabled() => halted,
            Ok(KVM_MP_STATE_UNINITIALIZED | KVM_MP_STATE_INIT_RECEIVED) => halted,
            _ => Intercept::Kicked,
        }
    }

    fn has_interrupts_enabled(&self) -> bool {
        self.vcpu.sync_regs().regs.rflags & INTERRUPTS_ENABLED != 0
    }

    /// The intercept of element `index` of a port instruction; `None` when that was a hypercall,
    /// which is the kernel's (TLFS 3.7), and another program made it.
    fn port(&mut self, access: PortAccess, index: u32) -> Option<Intercept> {
        let PortAccess { port, size, .. } = access;
        if !access.is_read && port == HYPERCALL_PORT.into() && size == 1 {
            if !self.is_in_kernel() {
                self.unprivileged += 1;
                self.refuse_hypercall();
                return None;
            }
            self.hypercalls += 1;
            self.pending = Pending::Hypercall;
            let registers = self.vcpu.sync_regs().regs;
            return Some(Intercept::Hypercall {
                control: registers.rcx,
                input: registers.rdx,
                output: registers.r8,
            });
        }
        self.pending = Pending::Port { access, index };
        if access.is_read {
            return Some(Intercept::PortRead { port, size });
        }
        let bytes = self.element(access, index).iter().rev();
        let value = bytes.fold(0, |value, &byte| value << 8 | u32::from(byte));
        Some(Intercept::PortWrite { port, size, value })
    }

    fn element(&mut self, access: PortAccess, index: u32) -> &mut [u8] {
        let size = usize::from(access.size);
        let mut elements = raw::port_data(self.vcpu.get_kvm_run()).chunks_exact_mut(size.max(1));
        elements.nth(index as usize).unwrap_or_default()
    }

    /// #UD at the hypercall instruction, which is retired first and then taken back.
    fn refuse_hypercall(&mut self) {
        self.settle();
        let registers = &mut self.vcpu.sync_regs_mut().regs;
        registers.rip = registers.rip.wrapping_sub(HYPERCALL_LENGTH);
        self.vcpu.set_sync_dirty_reg(SyncReg::Register);
        if let Ok(mut events) = self.vcpu.get_vcpu_events() {
            events.exception.injected = 1;
            events.exception.nr = INVALID_OPCODE;
            events.exception.has_error_code = 0;
            let _ = self.vcpu.set_vcpu_events(&events);
        }
    }

    /// Lets the kernel complete the last instruction.
    fn settle(&mut self) {
        self.vcpu.set_kvm_immediate_exit(1);
        let _ = self.vcpu.run();
        self.vcpu.set_kvm_immediate_exit(0);
    }

    fn is_in_kernel(&self) -> bool {
        let state = self.vcpu.get_sregs();
        state.is_ok_and(|state| state.cs.dpl == 0 && state.cs.l == 1)
    }

    /// KVM cannot go on, and so the guest cannot.
    fn stuck(&mut self, why: String) -> Intercept {
        self.notes.push(why);
        Intercept::Shutdown
    }
}

impl Processor for KvmProcessor {
    fn run(&mut self, _slice: u32) -> Intercept {
        loop {
            if let Some((access, index)) = self.next.take() {
                match self.port(access, index) {
                    Some(intercept) => return intercept,
                    None => continue,
                }
            }
            match self.vcpu.run() {
                Ok(VcpuExit::IoIn(..) | VcpuExit::IoOut(..)) => {
                    self.next = Some((raw::port_access(self.vcpu.get_kvm_run()), 0));
                }
                Ok(VcpuExit::X86Rdmsr(exit)) => {
                    let msr = exit.index;
                    self.pending = Pending::MsrRead;
                    return Intercept::MsrRead { msr };
                }
                Ok(VcpuExit::X86Wrmsr(exit)) => {
                    let (msr, value) = (exit.index, exit.data);
                    self.pending = Pending::MsrWrite;
                    return Intercept::MsrWrite { msr, value };
                }
                Ok(VcpuExit::MmioRead(gpa, data)) if IoApic::is_at(gpa) => {
                    let value = self.memory.ioapic().load(gpa, data.len());
                    for (to, from) in data.iter_mut().zip(value.to_le_bytes()) {
                        *to = from;
                    }
                }
                Ok(VcpuExit::MmioWrite(gpa, data)) if IoApic::is_at(gpa) => {
                    let bytes = data.iter().rev();
                    let value = bytes.fold(0, |value, &byte| value << 8 | u128::from(byte));
                    self.memory.ioapic().store(gpa, data.len(), value);
                }
                // Any other hole reads as all ones and swallows writes.
                Ok(VcpuExit::MmioRead(_, data)) => {
                    data.fill(0xFF);
                    self.holes += 1;
                }
                Ok(VcpuExit::MmioWrite(..)) => self.holes += 1,
                Ok(VcpuExit::Intr) => return self.kicked(),
                Ok(VcpuExit::Shutdown) => return Intercept::Shutdown,
                Ok(other) => {
                    let why = format!("KVM cannot run this guest any further: {other:?}");
                    return self.stuck(why);
                }
                Err(error) if error.errno() == libc::EINTR => return self.kicked(),
                // It has got INIT or SIPI from another one.
                Err(error) if error.errno() == libc::EAGAIN => {}
                Err(error) => return self.stuck(format!("KVM_RUN failed: {error}")),
            }
        }
    }

    fn wake_at(&mut self, deadline: Option<u64>) {
        let now = self.clock.now();
        let patience = now.saturating_add(PATIENCE);
        let deadline = deadline.map_or(patience, |deadline| deadline.min(patience));
        self.kick.arm(deadline, now);
    }

    fn is_between_instructions(&self) -> bool {
        self.next.is_none()
    }

    fn kicker(&self) -> Kicker {
        self.kick.kicker()
    }

    fn set_clock(&mut self) {
        // It cannot be refused: it was not when this processor was made.
        let _ = raw::set_tsc_offset(&self.vcpu, self.clock.offset());
    }

    fn hypercall_code(&self) -> &'static [u8] {
        &HYPERCALL_CODE
    }

    fn complete(&mut self, completion: Completion) {
        let value = match completion {
            Completion::Done => Some(0),
            Completion::Value(value) => Some(value),
            Completion::Cpuid(_) | Completion::GeneralProtection | Completion::InvalidOpcode => {
                None
            }
        };
        match std::mem::replace(&mut self.pending, Pending::Nothing) {
            Pending::Nothing => {}
            Pending::Port { access, index } => {
                if access.is_read {
                    let bytes = value.unwrap_or(u64::MAX).to_le_bytes();
                    for (to, from) in self.element(access, index).iter_mut().zip(bytes) {
                        *to = from;
                    }
                }
                self.next = (index + 1 < access.count).then_some((access, index + 1));
            }
            Pending::MsrRead | Pending::MsrWrite => {
                raw::complete_msr(self.vcpu.get_kvm_run(), value);
            }
            Pending::Hypercall => match value {
                Some(status) => {
                    self.vcpu.sync_regs_mut().regs.rax = status;
                    self.vcpu.set_sync_dirty_reg(SyncReg::Register);
                }
                None => self.refuse_hypercall(),
            },
        }
    }

    fn assert_interrupt(&mut self, vp: usize, vector: u8) {
        // Refused only when the guest has switched its APIC off: then nothing is to arrive.
        let _ = self.vm.signal_msi(kvm_msi {
            address_lo: MSI_ADDRESS | (vp as u32) << MSI_DESTINATION,
            data: vector.into(),
            ..Default::default()
        });
    }

    /// A halted guest sleeps inside `run`, where an interrupt wakes it: one that has not halted is
    /// to run on.
    fn has_deliverable_interrupt(&self) -> bool {
        let state = self.vcpu.get_mp_state();
        state.is_ok_and(|state| state.mp_state != KVM_MP_STATE_HALTED)
    }

    fn next_event(&self) -> Option<u64> {
        None
    }

    fn memory(&self) -> &GuestMemory {
        &self.memory
    }

    fn merge_counts(&mut self, counters: &Counters) {
        self.memory.ioapic().merge_counts(counters);
        let hypercalls = std::mem::take(&mut self.hypercalls);
        let flow = Flow::KvmHypercallExit;
        counters.merge(flow, hypercalls, hypercalls * flow.max_bytes());
        for (kind, count) in [
            (Reject::MemoryHoleAccess, &mut self.holes),
            (Reject::KvmHypercallExitPrivilege, &mut self.unprivileged),
        ] {
            counters.merge_rejected(kind, std::mem::take(count));
        }
    }

    fn state(&mut self, record: &mut Record) -> Result<(), Malformed> {
        self.whole_state(record)
    }

    fn take_notes(&mut self) -> Vec<String> {
        std::mem::take(&mut self.notes)
    }
}
