//! Control and debug registers, interrupt flag, TLB maintenance, HLT.

use crate::{
    processor::{
        Intercept,
        soft::{
            cpu::{Cpu, Exception, Exit},
            flags,
            op::Op,
            paging::{CR0_PG, CR0_WP, CR4_PGE, CR4_SMAP, CR4_SMEP},
        },
    },
    tlfs::cpuid::PHYSICAL_BITS,
};

const CR0_PE: u64 = 1 << 0;
const CR0_MP: u64 = 1 << 1;
const CR0_EM: u64 = 1 << 2;
const CR0_TS: u64 = 1 << 3;
const CR0_ET: u64 = 1 << 4;
const CR0_NE: u64 = 1 << 5;
const CR0_AM: u64 = 1 << 18;
const CR0_NW: u64 = 1 << 29;
const CR0_CD: u64 = 1 << 30;
const CR0_ALL: u64 = CR0_PE
    | CR0_MP
    | CR0_EM
    | CR0_TS
    | CR0_ET
    | CR0_NE
    | CR0_WP
    | CR0_AM
    | CR0_NW
    | CR0_CD
    | CR0_PG;

const CR4_PAE: u64 = 1 << 5;
const CR4_UMIP: u64 = 1 << 11;
/// VME PVI TSD DE PSE PAE MCE PGE PCE OSFXSR OSXMMEXCPT UMIP FSGSBASE SMEP SMAP.
const CR4_ALL: u64 = 0x7FF | CR4_UMIP | 1 << 16 | CR4_SMEP | CR4_SMAP;

impl Cpu {
    /// SGDT, SIDT, SLDT, STR and SMSW give kernel addresses away; UMIP forbids them to users.
    pub fn require_not_umip(&mut self) -> Result<(), Exit> {
        if self.cr4 & CR4_UMIP == 0 || self.cpl == 0 {
            return Ok(());
        }
        self.raise(Exception::general_protection(0))
    }

    fn set_cr0(&mut self, value: u64) -> Result<(), Exit> {
        // Long mode cannot be left: there is no other mode here.
        let keeps_paging = value & (CR0_PE | CR0_PG) == CR0_PE | CR0_PG;
        if value >> 32 != 0 || !keeps_paging || (value & CR0_NW != 0 && value & CR0_CD == 0) {
            return self.raise(Exception::general_protection(0));
        }
        let value = value & CR0_ALL | CR0_ET;
        if (value ^ self.cr0) & (CR0_WP | CR0_PG) != 0 {
            self.flush_translations();
        }
        self.cr0 = value;
        self.update_fpu_access();
        Ok(())
    }

    fn set_cr4(&mut self, value: u64) -> Result<(), Exit> {
        if value & !CR4_ALL != 0 || value & CR4_PAE == 0 {
            return self.raise(Exception::general_protection(0));
        }
        if (value ^ self.cr4) & (CR4_PGE | CR4_SMEP | CR4_SMAP) != 0 {
            self.flush_translations();
        }
        self.cr4 = value;
        self.update_fpu_access();
        self.update_domain();
        Ok(())
    }
}

pub fn read_control(cpu: &mut Cpu, op: &Op) -> Result<(), Exit> {
    cpu.require_kernel()?;
    let value = match op.src {
        0 => cpu.cr0,
        2 => cpu.cr2,
        3 => cpu.cr3,
        4 => cpu.cr4,
        8 => cpu.apic.cr8(),
        _ => return cpu.raise(Exception::INVALID_OPCODE),
    };
    cpu.set_reg(op.dst, value);
    Ok(())
}

pub fn write_control(cpu: &mut Cpu, op: &Op) -> Result<(), Exit> {
    cpu.require_kernel()?;
    let value = cpu.reg(op.src);
    match op.dst {
        0 => cpu.set_cr0(value)?,
        2 => cpu.cr2 = value,
        3 => {
            if value >> PHYSICAL_BITS != 0 {
                return cpu.raise(Exception::general_protection(0));
            }
            cpu.cr3 = value;
            cpu.flush_address_space();
        }
        4 => cpu.set_cr4(value)?,
        8 => {
            if value > 15 {
                return cpu.raise(Exception::general_protection(0));
            }
            cpu.apic.set_cr8(value);
        }
        _ => return cpu.raise(Exception::INVALID_OPCODE),
    }
    Err(Exit::Resync)
}

/// DR4 and DR5 are DR6 and DR7, unless CR4.DE forbids them.
fn debug_register(cpu: &mut Cpu, number: u8) -> Result<usize, Exit> {
    cpu.require_kernel()?;
    match number {
        4 | 5 if cpu.cr4 & 1 << 3 != 0 => cpu.raise(Exception::INVALID_OPCODE),
        4 | 5 => Ok(usize::from(number) + 2),
        0..=7 => Ok(usize::from(number)),
        _ => cpu.raise(Exception::INVALID_OPCODE),
    }
}

pub fn read_debug(cpu: &mut Cpu, op: &Op) -> Result<(), Exit> {
    let number = debug_register(cpu, op.src)?;
    cpu.set_reg(op.dst, cpu.dr[number & 7]);
    Ok(())
}

pub fn write_debug(cpu: &mut Cpu, op: &Op) -> Result<(), Exit> {
    let number = debug_register(cpu, op.dst)?;
    let value = cpu.reg(op.src);
    if number >= 6 && value >> 32 != 0 {
        return cpu.raise(Exception::general_protection(0));
    }
    cpu.dr[number & 7] = match number {
        6 => value & 0xE00F | 0xFFFF_0FF0,
        7 => value & !0xD000 | 0x400,
        _ => value,
    };
    Err(Exit::Resync)
}

pub fn clts(cpu: &mut Cpu, _op: &Op) -> Result<(), Exit> {
    cpu.require_kernel()?;
    cpu.cr0 &= !CR0_TS;
    cpu.update_fpu_access();
    Err(Exit::Resync)
}

pub fn lmsw(cpu: &mut Cpu, op: &Op) -> Result<(), Exit> {
    cpu.require_kernel()?;
    let value = u64::from(cpu.load_operand16(op, op.dst)?);
    // PE can be set but not cleared.
    let changed = CR0_MP | CR0_EM | CR0_TS;
    cpu.cr0 = cpu.cr0 & !changed | value & changed;
    cpu.update_fpu_access();
    Err(Exit::Resync)
}

pub fn smsw<const BITS: u32>(cpu: &mut Cpu, op: &Op) -> Result<(), Exit> {
    cpu.require_not_umip()?;
    cpu.store_operand::<BITS>(op, cpu.cr0)
}

pub fn invlpg(cpu: &mut Cpu, op: &Op) -> Result<(), Exit> {
    cpu.require_kernel()?;
    let address = cpu.effective_address(op);
    cpu.flush_page(address);
    Err(Exit::Resync)
}

/// Cache maintenance, where there is no cache.
pub fn privileged_nop(cpu: &mut Cpu, _op: &Op) -> Result<(), Exit> {
    cpu.require_kernel()
}

pub fn cli(cpu: &mut Cpu, _op: &Op) -> Result<(), Exit> {
    cpu.require_io_privilege()?;
    cpu.system_flags &= !flags::IF;
    Ok(())
}

pub fn sti(cpu: &mut Cpu, _op: &Op) -> Result<(), Exit> {
    cpu.require_io_privilege()?;
    if cpu.system_flags & flags::IF == 0 {
        cpu.system_flags |= flags::IF;
        cpu.interrupt_shadow = true;
    }
    Err(Exit::Resync)
}

fn set_alignment_check(cpu: &mut Cpu, set: bool) -> Result<(), Exit> {
    if cpu.cpl != 0 {
        return cpu.raise(Exception::INVALID_OPCODE);
    }
    if set {
        cpu.system_flags |= flags::AC;
    } else {
        cpu.system_flags &= !flags::AC;
    }
    cpu.update_domain();
    Ok(())
}

pub fn clac(cpu: &mut Cpu, _op: &Op) -> Result<(), Exit> {
    set_alignment_check(cpu, false)
}

pub fn stac(cpu: &mut Cpu, _op: &Op) -> Result<(), Exit> {
    set_alignment_check(cpu, true)
}

pub fn hlt(cpu: &mut Cpu, _op: &Op) -> Result<(), Exit> {
    cpu.require_kernel()?;
    let interruptible = cpu.system_flags & flags::IF != 0;
    cpu.intercept(Intercept::Halt { interruptible })
}

pub fn undefined(cpu: &mut Cpu, _op: &Op) -> Result<(), Exit> {
    cpu.raise(Exception::INVALID_OPCODE)
}
