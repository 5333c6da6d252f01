//! The fast system-call instructions, SWAPGS, and the FS and GS bases.

use super::{descriptor::Descriptor, msr::EFER_SCE};
use crate::processor::soft::{
    cpu::{Cpu, Exception, Exit, segment},
    flags,
    op::Op,
    paging::is_canonical,
};

const CR4_FSGSBASE: u64 = 1 << 16;
/// Flat code segments as these instructions load them, DPL 0: 64-bit, and 32-bit.
const FLAT_LONG: u64 = 0x00AF_9B00_0000_FFFF;
const FLAT_32: u64 = 0x00CF_9B00_0000_FFFF;

impl Cpu {
    fn enter_flat(&mut self, selector: u16, privilege: u8, long: bool, target: u64) {
        let base = if long { FLAT_LONG } else { FLAT_32 };
        self.cpl = privilege;
        self.load_flat_stack_segment(selector.wrapping_add(8), privilege);
        self.set_code_segment(selector, Descriptor(base | u64::from(privilege) << 45));
        self.rip = target;
        self.attention = true;
        self.update_domain();
    }
}

pub fn syscall(cpu: &mut Cpu, op: &Op) -> Result<(), Exit> {
    if cpu.efer & EFER_SCE == 0 {
        return cpu.raise(Exception::INVALID_OPCODE);
    }
    let next = cpu.next_rip(op);
    let image = cpu.rflags() & !flags::RF;
    let target = if cpu.long_code {
        cpu.msrs.lstar
    } else {
        cpu.msrs.cstar
    };
    cpu.set_reg(Cpu::RCX, next);
    cpu.set_reg(11, image);
    cpu.set_rflags(image & !cpu.msrs.sfmask);
    let selector = (cpu.msrs.star >> 32) as u16 & !3;
    cpu.enter_flat(selector, 0, true, target);
    // What the mask cleared can only hold interrupts back; nothing new to deliver.
    cpu.attention = cpu.system_flags & (flags::IF | flags::TF) != 0;
    Err(Exit::Branch)
}

pub fn sysret<const BITS: u32>(cpu: &mut Cpu, _op: &Op) -> Result<(), Exit> {
    if cpu.efer & EFER_SCE == 0 || !cpu.long_code {
        return cpu.raise(Exception::INVALID_OPCODE);
    }
    cpu.require_kernel()?;
    let target = cpu.reg(Cpu::RCX);
    if BITS == 64 && !is_canonical(target) {
        return cpu.raise(Exception::general_protection(0));
    }
    let base = (cpu.msrs.star >> 48) as u16;
    cpu.set_rflags(cpu.reg(11) & 0x3C_7FD7);
    if BITS == 64 {
        cpu.enter_flat(base.wrapping_add(16) | 3, 3, true, target);
    } else {
        cpu.enter_flat(base | 3, 3, false, target & 0xFFFF_FFFF);
    }
    // SS is the same for both widths.
    cpu.segments[segment::SS].selector = base.wrapping_add(8) | 3;
    Err(Exit::Branch)
}

pub fn sysenter(cpu: &mut Cpu, _op: &Op) -> Result<(), Exit> {
    let selector = cpu.msrs.sysenter_cs as u16 & !3;
    if selector == 0 {
        return cpu.raise(Exception::general_protection(0));
    }
    cpu.system_flags &= !(flags::IF | flags::VM | flags::RF);
    cpu.set_reg(Cpu::RSP, cpu.msrs.sysenter_esp);
    let target = cpu.msrs.sysenter_eip;
    cpu.enter_flat(selector, 0, true, target);
    Err(Exit::Branch)
}

pub fn sysexit<const BITS: u32>(cpu: &mut Cpu, _op: &Op) -> Result<(), Exit> {
    let base = cpu.msrs.sysenter_cs as u16 & !3;
    if base == 0 || cpu.cpl != 0 {
        return cpu.raise(Exception::general_protection(0));
    }
    let (target, stack) = (cpu.reg(Cpu::RDX), cpu.reg(Cpu::RCX));
    if BITS == 64 {
        if !is_canonical(target) || !is_canonical(stack) {
            return cpu.raise(Exception::general_protection(0));
        }
        cpu.set_reg(Cpu::RSP, stack);
        cpu.enter_flat(base.wrapping_add(32) | 3, 3, true, target);
    } else {
        cpu.set_reg(Cpu::RSP, stack & 0xFFFF_FFFF);
        cpu.enter_flat(base.wrapping_add(16) | 3, 3, false, target & 0xFFFF_FFFF);
    }
    Err(Exit::Branch)
}

pub fn swapgs(cpu: &mut Cpu, _op: &Op) -> Result<(), Exit> {
    if !cpu.long_code {
        return cpu.raise(Exception::INVALID_OPCODE);
    }
    cpu.require_kernel()?;
    std::mem::swap(
        &mut cpu.segment_base[segment::GS],
        &mut cpu.msrs.kernel_gs_base,
    );
    Ok(())
}

fn require_base_access(cpu: &mut Cpu) -> Result<(), Exit> {
    if cpu.cr4 & CR4_FSGSBASE == 0 || !cpu.long_code {
        return cpu.raise(Exception::INVALID_OPCODE);
    }
    Ok(())
}

pub fn read_base<const BITS: u32, const SEGMENT: usize>(
    cpu: &mut Cpu,
    op: &Op,
) -> Result<(), Exit> {
    require_base_access(cpu)?;
    let value = cpu.segment_base[SEGMENT & 7];
    cpu.set_reg(
        op.dst,
        if BITS == 64 {
            value
        } else {
            value & 0xFFFF_FFFF
        },
    );
    Ok(())
}

pub fn write_base<const BITS: u32, const SEGMENT: usize>(
    cpu: &mut Cpu,
    op: &Op,
) -> Result<(), Exit> {
    require_base_access(cpu)?;
    let value = cpu.reg(op.dst);
    let value = if BITS == 64 {
        value
    } else {
        value & 0xFFFF_FFFF
    };
    if !is_canonical(value) {
        return cpu.raise(Exception::general_protection(0));
    }
    cpu.segment_base[SEGMENT & 7] = value;
    Ok(())
}
