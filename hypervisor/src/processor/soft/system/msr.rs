//! RDMSR and WRMSR. The registers that are the processor's own live here; every other one is an
//! intercept, which the partition answers or refuses.

use crate::{
    flows::{
        Flow, Reject,
        values::{MSR_APIC_FIRST, MSR_APIC_LAST},
    },
    processor::{
        APIC_BASE, Intercept,
        soft::{
            apic,
            cpu::{Cpu, Exception, Exit, segment},
            op::Op,
            paging::{EFER_NXE, is_canonical},
        },
    },
    record::{Malformed, Record, check},
};

pub const EFER_SCE: u64 = 1 << 0;
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;

const MTRR_FIXED: [u32; 11] = [
    0x250, 0x258, 0x259, 0x268, 0x269, 0x26A, 0x26B, 0x26C, 0x26D, 0x26E, 0x26F,
];

/// Model-specific registers that need no more than their value.
pub struct Msrs {
    pub star: u64,
    pub lstar: u64,
    pub cstar: u64,
    pub sfmask: u64,
    pub kernel_gs_base: u64,
    pub sysenter_cs: u64,
    pub sysenter_esp: u64,
    pub sysenter_eip: u64,
    pub tsc_aux: u64,
    pat: u64,
    misc_enable: u64,
    mtrr_default: u64,
    mtrr_fixed: [u64; 11],
    mtrr_variable: [u64; 16],
}

impl Default for Msrs {
    fn default() -> Self {
        Self {
            star: 0,
            lstar: 0,
            cstar: 0,
            sfmask: 0,
            kernel_gs_base: 0,
            sysenter_cs: 0,
            sysenter_esp: 0,
            sysenter_eip: 0,
            tsc_aux: 0,
            pat: 0x0007_0406_0007_0406,
            misc_enable: 1,
            mtrr_default: 0xC06,
            mtrr_fixed: [0x0606_0606_0606_0606; 11],
            mtrr_variable: [0; 16],
        }
    }
}

impl Msrs {
    /// Saves or restores every register.
    pub fn state(&mut self, record: &mut Record) -> Result<(), Malformed> {
        record.fields([
            &mut self.star,
            &mut self.lstar,
            &mut self.cstar,
            &mut self.sfmask,
            &mut self.kernel_gs_base,
            &mut self.sysenter_cs,
            &mut self.sysenter_esp,
            &mut self.sysenter_eip,
            &mut self.tsc_aux,
            &mut self.pat,
            &mut self.misc_enable,
            &mut self.mtrr_default,
        ])?;
        record.field(&mut self.mtrr_fixed)?;
        record.field(&mut self.mtrr_variable)?;
        let bases = [
            self.lstar,
            self.cstar,
            self.kernel_gs_base,
            self.sysenter_esp,
            self.sysenter_eip,
        ];
        let canonical = bases.into_iter().all(is_canonical);
        check(canonical, "an address in a model-specific register")
    }
}

/// The answer to an access that the processor itself knows.
enum Known<T> {
    Done(T),
    Refused,
    Elsewhere,
}

fn is_memory_type(value: u8) -> bool {
    matches!(value, 0 | 1 | 4 | 5 | 6)
}

impl Cpu {
    /// The time-stamp counter: nanoseconds, so 1 GHz.
    pub fn time_stamp(&self) -> u64 {
        self.now()
    }

    fn read_msr(&mut self, msr: u32) -> Known<u64> {
        let msrs = &self.msrs;
        Known::Done(match msr {
            0x10 => self.time_stamp(),
            0x1B => APIC_BASE,
            0xFE => 0x508, // 8 variable ranges, fixed ranges, write combining
            0x174 => msrs.sysenter_cs,
            0x175 => msrs.sysenter_esp,
            0x176 => msrs.sysenter_eip,
            0x1A0 => msrs.misc_enable,
            0x200..=0x20F => msrs.mtrr_variable[(msr & 15) as usize],
            0x277 => msrs.pat,
            0x2FF => msrs.mtrr_default,
            0x800..=0x8FF => {
                // The timer's current count needs the present.
                self.now();
                return match self.apic.read(msr) {
                    Ok(value) => Known::Done(value),
                    Err(apic::Refused) => Known::Refused,
                };
            }
            0xC000_0080 => self.efer,
            0xC000_0081 => msrs.star,
            0xC000_0082 => msrs.lstar,
            0xC000_0083 => msrs.cstar,
            0xC000_0084 => msrs.sfmask,
            0xC000_0100 => self.segment_base[segment::FS],
            0xC000_0101 => self.segment_base[segment::GS],
            0xC000_0102 => msrs.kernel_gs_base,
            0xC000_0103 => msrs.tsc_aux,
            _ => {
                let fixed = MTRR_FIXED.iter().position(|&fixed| fixed == msr);
                return match fixed.and_then(|i| msrs.mtrr_fixed.get(i)) {
                    Some(&value) => Known::Done(value),
                    None => Known::Elsewhere,
                };
            }
        })
    }

    fn write_msr(&mut self, msr: u32, value: u64) -> Known<()> {
        let valid = match msr {
            0x1B => value == APIC_BASE,
            0x175 | 0x176 | 0xC000_0082 | 0xC000_0083 | 0xC000_0100..=0xC000_0102 => {
                is_canonical(value)
            }
            0x277 => value
                .to_le_bytes()
                .into_iter()
                .all(|kind| is_memory_type(kind) || kind == 7),
            0x2FF => value & !0xCFF == 0 && is_memory_type(value as u8),
            0x250..=0x26F => value.to_le_bytes().into_iter().all(is_memory_type),
            0xC000_0080 => {
                let fixed = EFER_LME | EFER_LMA;
                value & !(EFER_SCE | EFER_NXE | fixed) == 0 && (value ^ self.efer) & EFER_LME == 0
            }
            0xFE => false,
            _ => true,
        };
        if !valid {
            return Known::Refused;
        }
        let msrs = &mut self.msrs;
        match msr {
            // The partition refuses it, as on KVM: the reference time is read off this counter.
            0x10 => return Known::Elsewhere,
            0x1B => {}
            0x174 => msrs.sysenter_cs = value,
            0x175 => msrs.sysenter_esp = value,
            0x176 => msrs.sysenter_eip = value,
            0x1A0 => msrs.misc_enable = value,
            0x200..=0x20F => msrs.mtrr_variable[(msr & 15) as usize] = value,
            0x277 => msrs.pat = value,
            0x2FF => msrs.mtrr_default = value,
            0x800..=0x8FF => {
                return match self.apic.write(msr, value) {
                    Ok(()) => Known::Done(()),
                    Err(apic::Refused) => Known::Refused,
                };
            }
            0xC000_0080 => {
                self.efer = value | EFER_LMA;
                self.flush_translations();
            }
            0xC000_0081 => msrs.star = value,
            0xC000_0082 => msrs.lstar = value,
            0xC000_0083 => msrs.cstar = value,
            0xC000_0084 => msrs.sfmask = value & 0xFFFF_FFFF,
            0xC000_0100 => self.segment_base[segment::FS] = value,
            0xC000_0101 => self.segment_base[segment::GS] = value,
            0xC000_0102 => msrs.kernel_gs_base = value,
            // AMD's processors ignore the upper half.
            0xC000_0103 => msrs.tsc_aux = value & 0xFFFF_FFFF,
            _ => {
                let fixed = MTRR_FIXED.iter().position(|&fixed| fixed == msr);
                match fixed.and_then(|i| msrs.mtrr_fixed.get_mut(i)) {
                    Some(place) => *place = value,
                    None => return Known::Elsewhere,
                }
            }
        }
        Known::Done(())
    }

    /// Counts an access to a register of the processor's own.
    fn count_msr<T>(&mut self, msr: u32, known: &Known<T>) {
        let apic = MSR_APIC_FIRST..=MSR_APIC_LAST;
        let (flow, kind) = if apic.contains(&msr.into()) {
            (Flow::MsrApic, Reject::MsrApicValue)
        } else {
            (Flow::MsrProcessor, Reject::MsrProcessorValue)
        };
        match known {
            Known::Done(_) => self.tally.accept(flow, 8),
            Known::Refused => self.tally.reject(kind),
            Known::Elsewhere => {}
        }
    }
}

pub fn rdmsr(cpu: &mut Cpu, _op: &Op) -> Result<(), Exit> {
    cpu.require_kernel()?;
    let msr = cpu.reg(Cpu::RCX) as u32;
    let known = cpu.read_msr(msr);
    cpu.count_msr(msr, &known);
    match known {
        Known::Done(value) => {
            cpu.set_pair(value);
            Ok(())
        }
        Known::Refused => cpu.raise(Exception::general_protection(0)),
        Known::Elsewhere => cpu.intercept(Intercept::MsrRead { msr }),
    }
}

pub fn wrmsr(cpu: &mut Cpu, _op: &Op) -> Result<(), Exit> {
    cpu.require_kernel()?;
    let msr = cpu.reg(Cpu::RCX) as u32;
    let value = cpu.reg(Cpu::RDX) << 32 | cpu.reg(Cpu::RAX) & 0xFFFF_FFFF;
    let known = cpu.write_msr(msr, value);
    cpu.count_msr(msr, &known);
    match known {
        Known::Done(()) => Err(Exit::Resync),
        Known::Refused => cpu.raise(Exception::general_protection(0)),
        Known::Elsewhere => cpu.intercept(Intercept::MsrWrite { msr, value }),
    }
}
