//! Which register an MSR number belongs to. What nobody owns is refused with #GP and counted.

use super::{
    Partition, VirtualProcessor, crash::Crash, page::PageRegister, reference_time::APIC_HZ,
};
use crate::{
    flows::{Flow, Reject, values},
    link::End,
    memory::{GuestMemory, PAGE_SIZE},
};

const GUEST_OS_ID: u32 = values::MSR_PARTITION_GUEST_OS_ID as u32;
const HYPERCALL: u32 = values::MSR_PARTITION_HYPERCALL as u32;
const VP_INDEX: u32 = values::MSR_PARTITION_VP_INDEX as u32;
const VP_ASSIST_PAGE: u32 = values::MSR_PARTITION_VP_ASSIST_PAGE as u32;
const TIME_REF_COUNT: u32 = values::MSR_TIME_TIME_REF_COUNT as u32;
const REFERENCE_TSC: u32 = values::MSR_TIME_REFERENCE_TSC as u32;
const TSC_FREQUENCY: u32 = values::MSR_TIME_TSC_FREQUENCY as u32;
const APIC_FREQUENCY: u32 = values::MSR_TIME_APIC_FREQUENCY as u32;
const SCONTROL: u32 = values::MSR_SYNIC_SCONTROL as u32;
const EOM: u32 = values::MSR_SYNIC_EOM as u32;
const SINT0: u32 = values::MSR_SYNIC_SINT0 as u32;
const SINT15: u32 = values::MSR_SYNIC_SINT15 as u32;
const TIMER_CONFIG: u32 = values::MSR_STIMER_CONFIG as u32;
const TIMER_COUNT: u32 = values::MSR_STIMER_COUNT as u32;
const CRASH_P0: u32 = values::MSR_CRASH_P0 as u32;
const CRASH_P4: u32 = values::MSR_CRASH_P4 as u32;
const CRASH_CONTROL: u32 = values::MSR_CRASH_CONTROL as u32;

/// HYPERCALL: once set, the register cannot be changed any more.
const LOCKED: u64 = 1 << 1;

/// AMD registers that Linux reads without expecting a fault, at their only value.
const SYSTEM_CONFIGURATION: u32 = 0xC001_0010;
const HARDWARE_CONFIGURATION: u32 = 0xC001_0015;
const NORTHBRIDGE_CONFIGURATION: u32 = 0xC001_001F;
const DECODE_CONFIGURATION: u32 = 0xC001_1029;
/// The TSC counts at the P0 frequency.
const TSC_FREQUENCY_SELECT: u64 = 1 << 24;
/// PCI extended configuration space is on: nothing for the guest to switch on.
const EXTENDED_CONFIGURATION: u64 = 1 << 46;
/// LFENCE is serializing.
const LFENCE_SERIALIZE: u64 = 1 << 1;

fn owner(msr: u32) -> Flow {
    match msr {
        GUEST_OS_ID | HYPERCALL | VP_INDEX | VP_ASSIST_PAGE => Flow::MsrPartition,
        TIME_REF_COUNT | REFERENCE_TSC | TSC_FREQUENCY | APIC_FREQUENCY => Flow::MsrTime,
        SCONTROL..=EOM | SINT0..=SINT15 => Flow::MsrSynic,
        TIMER_CONFIG | TIMER_COUNT => Flow::MsrStimer,
        CRASH_P0..=CRASH_P4 | CRASH_CONTROL => Flow::MsrCrash,
        SYSTEM_CONFIGURATION
        | HARDWARE_CONFIGURATION
        | NORTHBRIDGE_CONFIGURATION
        | DECODE_CONFIGURATION => Flow::MsrProcessor,
        _ => Flow::MsrUnknown,
    }
}

/// Why a register without a handler cannot be written.
fn read_only(msr: u32) -> Reject {
    match owner(msr) {
        Flow::MsrPartition => Reject::MsrPartitionReadOnly,
        Flow::MsrTime => Reject::MsrTimeReadOnly,
        Flow::MsrProcessor => Reject::MsrProcessorValue,
        _ => Reject::MsrUnknownAccess,
    }
}

impl Partition {
    /// An error is #GP.
    pub(super) fn read_msr(&mut self, vp: usize, msr: u32) -> Result<u64, Reject> {
        let value = self.msr_value(vp, msr).ok_or(Reject::MsrUnknownAccess);
        self.count_msr(msr, value.as_ref().err());
        value
    }

    /// `None`: there is no such register.
    fn msr_value(&self, vp: usize, msr: u32) -> Option<u64> {
        let processor = self.processors.get(vp)?;
        Some(match msr {
            GUEST_OS_ID => self.guest_os_id,
            HYPERCALL => self.hypercall.value(),
            VP_INDEX => vp as u64,
            VP_ASSIST_PAGE => processor.assist.value(),
            TIME_REF_COUNT => self.now(),
            REFERENCE_TSC => self.reference.read(),
            TSC_FREQUENCY => self.clock.hertz(),
            APIC_FREQUENCY => APIC_HZ,
            SCONTROL..=EOM | SINT0..=SINT15 => return processor.synic.read(msr),
            TIMER_CONFIG => processor.timer.config(),
            TIMER_COUNT => processor.timer.count(),
            CRASH_P0..=CRASH_P4 => return self.crash.parameter((msr - CRASH_P0) as usize),
            CRASH_CONTROL => self.crash.control(),
            SYSTEM_CONFIGURATION => 0,
            HARDWARE_CONFIGURATION => TSC_FREQUENCY_SELECT,
            NORTHBRIDGE_CONFIGURATION => EXTENDED_CONFIGURATION,
            DECODE_CONFIGURATION => LFENCE_SERIALIZE,
            _ => return None,
        })
    }

    /// An error is #GP; with an end the write ends the virtual machine.
    pub(super) fn write_msr(
        &mut self,
        vp: usize,
        msr: u32,
        value: u64,
        memory: &GuestMemory,
    ) -> Result<Option<End>, Reject> {
        let result = if msr == CRASH_CONTROL {
            if Crash::has_unknown_bits(value) {
                self.counters.reject(Reject::MsrCrashBits);
            }
            Ok(self.crash.set_control(value))
        } else {
            self.set_msr(vp, msr, value, memory).map(|()| None)
        };
        self.count_msr(msr, result.as_ref().err());
        result
    }

    fn set_msr(
        &mut self,
        vp: usize,
        msr: u32,
        value: u64,
        memory: &GuestMemory,
    ) -> Result<(), Reject> {
        let now = self.now();
        let VirtualProcessor {
            assist,
            synic,
            timer,
            vectors,
            ..
        } = self
            .processors
            .get_mut(vp)
            .ok_or(Reject::MsrUnknownAccess)?;
        match msr {
            GUEST_OS_ID => {
                self.guest_os_id = value;
                if value == 0 {
                    self.hypercall = PageRegister::default();
                }
            }
            HYPERCALL => self.set_hypercall(value, memory)?,
            VP_ASSIST_PAGE => {
                let register = PageRegister::checked(value, memory);
                *assist = register.ok_or(Reject::MsrPartitionPage)?;
            }
            REFERENCE_TSC => {
                let written = self.reference.write(value, memory);
                written.ok_or(Reject::MsrTimePage)?;
            }
            SCONTROL..=EOM | SINT0..=SINT15 => {
                synic.write(msr, value, memory, vectors)?;
            }
            TIMER_CONFIG => {
                let set = timer.set_config(value, now);
                set.ok_or(Reject::MsrStimerValue)?;
            }
            TIMER_COUNT => timer.set_count(value, now),
            CRASH_P0..=CRASH_P4 => self.crash.set_parameter((msr - CRASH_P0) as usize, value),
            _ => return Err(read_only(msr)),
        }
        Ok(())
    }

    /// Places the hypercall page. Without a guest identity it stays disabled (TLFS 3.13).
    fn set_hypercall(&mut self, value: u64, memory: &GuestMemory) -> Result<(), Reject> {
        if self.hypercall.value() & LOCKED != 0 {
            return Err(Reject::MsrPartitionReadOnly);
        }
        let value = if self.guest_os_id == 0 {
            value & !PageRegister::ENABLE
        } else {
            value
        };
        let outside = Reject::MsrPartitionPage;
        let register = PageRegister::checked(value, memory).ok_or(outside)?;
        if let Some(page) = register.page(memory) {
            // INT3 around the code: nothing else in the page is meant to run.
            memory.fill(page, PAGE_SIZE, 0xCC).ok_or(outside)?;
            let written = memory.write_bytes(page, self.hypercall_code);
            written.ok_or(outside)?;
        }
        self.hypercall = register;
        Ok(())
    }

    fn count_msr(&mut self, msr: u32, refused: Option<&Reject>) {
        match refused {
            None => self.counters.accept(owner(msr), 8),
            Some(&kind) => {
                self.counters.reject(kind);
                self.notes.add(kind.flow(), msr.into(), "refused MSR");
            }
        }
    }
}
