//! What runs the guest's instructions. Two implementations stand behind one trait: the software
//! processor (`soft`) and, on hosts that have it, hardware virtualization ([`kvm`]). The program for
//! KVM is built without the first.

pub mod kvm;
#[cfg(feature = "soft")]
pub mod soft;

use crate::{
    counters::Counters,
    memory::GuestMemory,
    record::{Malformed, Record},
};

/// IA32_APIC_BASE from the start: enabled, x2APIC, bootstrap processor.
pub const APIC_BASE: u64 = 0xFEE0_0000 | 1 << 11 | 1 << 10 | APIC_BASE_BOOTSTRAP;
pub const APIC_BASE_BOOTSTRAP: u64 = 1 << 8;

/// Why a virtual processor stopped running guest instructions.
///
/// Every way out of the guest is one of these; each has an entry in `flows.toml`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Intercept {
    Cpuid {
        leaf: u32,
        subleaf: u32,
    },
    MsrRead {
        msr: u32,
    },
    MsrWrite {
        msr: u32,
        value: u64,
    },
    /// `size` is 1, 2 or 4 bytes.
    PortRead {
        port: u16,
        size: u8,
    },
    PortWrite {
        port: u16,
        size: u8,
        value: u32,
    },
    /// The hypercall instruction at CPL 0, TLFS 3.7: RCX, RDX, R8.
    Hypercall {
        control: u64,
        input: u64,
        output: u64,
    },
    /// HLT. Without `interruptible` (IF clear) nothing will ever wake this processor.
    Halt {
        interruptible: bool,
    },
    /// Triple fault: architecturally a reset.
    Shutdown,
    /// The time slice is used up.
    SliceEnd,
    /// A signal wants attention: the worker sent something, or the time of `wake_at` has come.
    Kicked,
}

/// How an intercepted instruction is completed. The instruction has not retired before this.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Completion {
    /// Retires with no result (MSR write, port write).
    Done,
    /// Result of an MSR read (64 bits), a port read (low `size` bytes) or a hypercall (RAX).
    Value(u64),
    /// EAX, EBX, ECX, EDX.
    Cpuid([u32; 4]),
    /// #GP(0) at the instruction: how an unknown MSR is refused.
    GeneralProtection,
    /// #UD at the instruction: how a hypercall outside CPL 0 or before GUEST_OS_ID is refused.
    InvalidOpcode,
}

/// Register state at the first instruction: 64-bit long mode with paging on, interrupts off,
/// as the Linux 64-bit boot protocol wants it. All addresses are guest physical.
#[derive(Clone, Copy, Debug, Default)]
pub struct BootState {
    pub rip: u64,
    pub rsi: u64,
    pub rsp: u64,
    pub cr3: u64,
    pub gdt_base: u64,
    pub gdt_limit: u16,
}

/// Where a virtual processor is, for diagnosis.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Registers {
    pub rip: u64,
    pub rflags: u64,
    pub cpl: u8,
    /// CR0, CR2, CR3, CR4.
    pub control: [u64; 4],
    /// RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R8 to R15.
    pub general: [u64; 16],
}

impl std::fmt::Display for Registers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        const NAMES: [&str; 16] = [
            "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11",
            "r12", "r13", "r14", "r15",
        ];
        let (rip, rflags, cpl) = (self.rip, self.rflags, self.cpl);
        let [cr0, cr2, cr3, cr4] = self.control;
        write!(f, "rip {rip:#x} rflags {rflags:#x} cpl {cpl} ")?;
        write!(f, "cr0 {cr0:#x} cr2 {cr2:#x} cr3 {cr3:#x} cr4 {cr4:#x}")?;
        for (name, value) in NAMES.iter().zip(self.general) {
            write!(f, " {name} {value:#x}")?;
        }
        Ok(())
    }
}

/// Makes [`Processor::run`] come back, from another thread; now or the next time it is called.
pub struct Kicker(Box<dyn Fn() + Send>);

impl Kicker {
    pub fn kick(&self) {
        (self.0)();
    }
}

impl Default for Kicker {
    /// For a processor that comes back by itself.
    fn default() -> Self {
        Self(Box::new(|| {}))
    }
}

/// Whose the saved state of a processor is.
#[derive(Clone, Copy)]
pub enum Kind {
    Soft = 1,
    Kvm = 2,
}

impl Kind {
    /// The first field of a processor's state.
    pub fn state(self, record: &mut Record) -> Result<(), Malformed> {
        let mut found = self as u8;
        record.field(&mut found)?;
        if found == self as u8 {
            Ok(())
        } else {
            Err(Malformed::Processor)
        }
    }
}

/// A virtual processor. Its thread alone runs it; everything else may be asked from any thread that
/// has it.
pub trait Processor: Send {
    /// Runs guest instructions until an intercept, for at most about `slice` instructions.
    fn run(&mut self, slice: u32) -> Intercept;

    /// Asks the next `run` to stop at `deadline`, in nanoseconds of the clock; to be called before
    /// each. Only for processors that do not count instructions: the others run for a slice.
    fn wake_at(&mut self, _deadline: Option<u64>) {}

    /// The code of the hypercall page: the instruction that this processor intercepts as a
    /// hypercall, and RET.
    fn hypercall_code(&self) -> &'static [u8];

    /// Completes the instruction that caused the last intercept. `Halt`, `Shutdown`,
    /// `SliceEnd` and `Kicked` take no completion.
    fn complete(&mut self, completion: Completion);

    /// Whether the last intercept was all there is to be answered: of a string instruction on a
    /// port each element is one.
    fn is_between_instructions(&self) -> bool {
        true
    }

    /// Makes this processor come back from the guest.
    fn kicker(&self) -> Kicker {
        Kicker::default()
    }

    /// The clock was set going again: the guest's own counter must follow it.
    fn set_clock(&mut self) {}

    /// Raises an edge-triggered interrupt on the local APIC of processor `vp` of this machine.
    /// Delivered by a later `run` when the guest can take it; wakes a halted processor.
    fn assert_interrupt(&mut self, vp: usize, vector: u8);

    /// Whether an interrupt is pending that the guest could take now (so a halted VP must run).
    /// A local timer whose time has come counts as pending.
    fn has_deliverable_interrupt(&self) -> bool;

    /// When the processor next interrupts itself (local APIC timer), in nanoseconds of its clock;
    /// `None` when nothing is armed. A halted VP sleeps no longer than that.
    fn next_event(&self) -> Option<u64>;

    /// Its registers between two calls of `run`, where they can be had.
    fn registers(&self) -> Option<Registers> {
        None
    }

    /// Guest RAM, for the partition interface.
    fn memory(&self) -> &GuestMemory;

    /// Hands over what it dealt with by itself since the last call.
    fn merge_counts(&mut self, counters: &Counters);

    /// The guest has had next to nothing to do for a while: gives back memory whose content can be
    /// made again when there is something to do.
    fn rest(&mut self) {}

    /// Saves all that the guest could ever see of this processor, between two calls of `run`; or
    /// restores it, before the first one. Interrupts that were raised are part of it.
    fn state(&mut self, record: &mut Record) -> Result<(), Malformed>;

    /// Short texts for the log since the last call, bounded in number: what it did not know.
    fn take_notes(&mut self) -> Vec<String>;
}
