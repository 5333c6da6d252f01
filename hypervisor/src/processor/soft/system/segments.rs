//! Descriptor-table registers, segment registers and the instructions that look at descriptors.

use super::descriptor::Descriptor;
use crate::processor::soft::{
    cpu::{Cpu, Exception, Exit, Table, segment},
    flags,
    op::{Handler, Op},
    paging::is_canonical,
};
use iced_x86::{Instruction, OpKind};

impl Cpu {
    /// The 16-bit source operand: memory, or the register `number`.
    pub fn load_operand16(&mut self, op: &Op, number: u8) -> Result<u16, Exit> {
        if op.has_memory() {
            let address = self.effective_address(op);
            return self.load(address);
        }
        Ok(self.reg(number) as u16)
    }

    /// The destination operand 0: 16 bits of memory, or a register of `BITS` bits.
    pub fn store_operand<const BITS: u32>(&mut self, op: &Op, value: u64) -> Result<(), Exit> {
        if op.has_memory() {
            let address = self.effective_address(op);
            return self.store(address, value as u16);
        }
        let value = match BITS {
            16 => self.reg(op.dst) & !0xFFFF | value & 0xFFFF,
            32 => value & 0xFFFF_FFFF,
            _ => value,
        };
        self.set_reg(op.dst, value);
        Ok(())
    }
}

pub fn store_table<const BITS: u32, const IDT: bool>(cpu: &mut Cpu, op: &Op) -> Result<(), Exit> {
    cpu.require_not_umip()?;
    let table = if IDT { cpu.idtr } else { cpu.gdtr };
    let mut image = [0u8; 10];
    image[..2].copy_from_slice(&(table.limit as u16).to_le_bytes());
    image[2..].copy_from_slice(&table.base.to_le_bytes());
    let address = cpu.effective_address(op);
    cpu.store_bytes(address, if BITS == 64 { &image } else { &image[..6] })
}

pub fn load_table<const BITS: u32, const IDT: bool>(cpu: &mut Cpu, op: &Op) -> Result<(), Exit> {
    cpu.require_kernel()?;
    let address = cpu.effective_address(op);
    let limit = cpu.load::<u16>(address)?;
    let base = if BITS == 64 {
        cpu.load::<u64>(address.wrapping_add(2))?
    } else {
        u64::from(cpu.load::<u32>(address.wrapping_add(2))?)
    };
    if !is_canonical(base) {
        return cpu.raise(Exception::general_protection(0));
    }
    let table = if IDT { &mut cpu.idtr } else { &mut cpu.gdtr };
    table.base = base;
    table.limit = limit.into();
    Ok(())
}

/// Reads the 16-byte descriptor of an LDT or TSS.
fn system_descriptor(cpu: &mut Cpu, selector: u16) -> Result<(Descriptor, Table), Exit> {
    let error = u32::from(selector & !3);
    let address = cpu
        .descriptor_address(selector, 16)
        .filter(|_| selector & 4 == 0);
    let Some(address) = address else {
        return cpu.raise(Exception::general_protection(error));
    };
    let raw = cpu.as_system(|cpu| cpu.load::<u128>(address))?;
    let descriptor = Descriptor(raw as u64);
    let table = Table {
        base: u64::from(descriptor.base()) | ((raw >> 64) as u64) << 32,
        limit: descriptor.limit(),
        selector,
        attributes: descriptor.attributes(),
    };
    if descriptor.is_segment() || !is_canonical(table.base) {
        return cpu.raise(Exception::general_protection(error));
    }
    Ok((descriptor, table))
}

pub fn lldt(cpu: &mut Cpu, op: &Op) -> Result<(), Exit> {
    cpu.require_kernel()?;
    let selector = cpu.load_operand16(op, op.dst)?;
    if selector & !3 == 0 {
        cpu.ldtr = Table {
            selector,
            ..Table::default()
        };
        return Ok(());
    }
    let error = u32::from(selector & !3);
    let (descriptor, table) = system_descriptor(cpu, selector)?;
    if descriptor.kind() != 2 {
        return cpu.raise(Exception::general_protection(error));
    }
    if !descriptor.is_present() {
        return cpu.raise(Exception::not_present(error));
    }
    cpu.ldtr = table;
    Ok(())
}

pub fn ltr(cpu: &mut Cpu, op: &Op) -> Result<(), Exit> {
    cpu.require_kernel()?;
    let selector = cpu.load_operand16(op, op.dst)?;
    let error = u32::from(selector & !3);
    if selector & !3 == 0 {
        return cpu.raise(Exception::general_protection(0));
    }
    let (descriptor, table) = system_descriptor(cpu, selector)?;
    // An available 64-bit task state segment.
    if descriptor.kind() != 9 {
        return cpu.raise(Exception::general_protection(error));
    }
    if !descriptor.is_present() {
        return cpu.raise(Exception::not_present(error));
    }
    if let Some(address) = cpu.descriptor_address(selector, 16) {
        let busy = (descriptor.0 >> 40) as u8 | 2;
        cpu.as_system(|cpu| cpu.store::<u8>(address.wrapping_add(5), busy))?;
    }
    cpu.tr = table;
    cpu.tr.attributes |= 2;
    Ok(())
}

pub fn store_selector<const BITS: u32, const TASK: bool>(
    cpu: &mut Cpu,
    op: &Op,
) -> Result<(), Exit> {
    cpu.require_not_umip()?;
    let selector = if TASK {
        cpu.tr.selector
    } else {
        cpu.ldtr.selector
    };
    cpu.store_operand::<BITS>(op, selector.into())
}

/// MOV to a segment register; CS is no destination.
pub fn load(instruction: &Instruction) -> Handler {
    if instruction.op0_kind() == OpKind::Register && instruction.op0_register().number() == 1 {
        return super::control::undefined;
    }
    |cpu, op| {
        let selector = cpu.load_operand16(op, op.src)?;
        load_and_leave(cpu, op.dst, selector)
    }
}

fn load_and_leave(cpu: &mut Cpu, register: u8, selector: u16) -> Result<(), Exit> {
    cpu.load_segment(register.into(), selector)?;
    if usize::from(register) == segment::SS {
        cpu.interrupt_shadow = true;
        return Err(Exit::Resync);
    }
    Ok(())
}

/// LSS, LFS, LGS: an offset into the register, and the selector behind it.
pub fn load_pointer<const BITS: u32, const SEGMENT: usize>(
    cpu: &mut Cpu,
    op: &Op,
) -> Result<(), Exit> {
    let address = cpu.effective_address(op);
    let offset = match BITS {
        16 => cpu.reg(op.dst) & !0xFFFF | u64::from(cpu.load::<u16>(address)?),
        32 => u64::from(cpu.load::<u32>(address)?),
        _ => cpu.load::<u64>(address)?,
    };
    let selector = cpu.load::<u16>(address.wrapping_add(u64::from(BITS / 8)))?;
    let done = load_and_leave(cpu, SEGMENT as u8, selector);
    if done != Err(Exit::Exception) {
        cpu.set_reg(op.dst, offset);
    }
    done
}

pub fn store<const BITS: u32>(_instruction: &Instruction) -> Handler {
    |cpu, op| {
        let selector = cpu
            .segments
            .get(usize::from(op.src))
            .map_or(0, |s| s.selector);
        cpu.store_operand::<BITS>(op, selector.into())
    }
}

pub fn push<const BITS: u32>(cpu: &mut Cpu, op: &Op) -> Result<(), Exit> {
    let selector = cpu
        .segments
        .get(usize::from(op.dst))
        .map_or(0, |s| s.selector);
    let stack = cpu.reg(Cpu::RSP);
    if BITS == 64 {
        let top = stack.wrapping_sub(8);
        cpu.store(top, u64::from(selector))?;
        cpu.set_reg(Cpu::RSP, top);
    } else {
        let top = stack.wrapping_sub(4) & 0xFFFF_FFFF;
        cpu.store(
            cpu.segment_base[segment::SS].wrapping_add(top),
            u32::from(selector),
        )?;
        cpu.set_reg(Cpu::RSP, top);
    }
    Ok(())
}

pub fn pop<const BITS: u32>(cpu: &mut Cpu, op: &Op) -> Result<(), Exit> {
    let stack = cpu.reg(Cpu::RSP);
    let (selector, top) = if BITS == 64 {
        (cpu.load::<u64>(stack)? as u16, stack.wrapping_add(8))
    } else {
        let place = cpu.segment_base[segment::SS].wrapping_add(stack);
        (
            cpu.load::<u32>(place)? as u16,
            stack.wrapping_add(4) & 0xFFFF_FFFF,
        )
    };
    cpu.load_segment(op.dst.into(), selector)?;
    cpu.set_reg(Cpu::RSP, top);
    if usize::from(op.dst) == segment::SS {
        cpu.interrupt_shadow = true;
        return Err(Exit::Resync);
    }
    Ok(())
}

/// The descriptor of `selector`, if the program may look at it.
fn visible(cpu: &mut Cpu, selector: u16) -> Result<Option<Descriptor>, Exit> {
    let descriptor = cpu.descriptor(selector)?;
    Ok(descriptor.filter(|descriptor| {
        descriptor.is_conforming()
            || (descriptor.privilege() >= cpu.cpl && descriptor.privilege() >= (selector & 3) as u8)
    }))
}

/// Writes the result of LAR or LSL, and ZF whether there is one.
fn report<const BITS: u32>(cpu: &mut Cpu, op: &Op, value: Option<u64>) {
    if let Some(value) = value {
        let value = if BITS == 16 {
            cpu.reg(op.dst) & !0xFFFF | value & 0xFFFF
        } else {
            value
        };
        cpu.set_reg(op.dst, value);
    }
    set_zero(cpu, value.is_some());
}

fn set_zero(cpu: &mut Cpu, zero: bool) {
    let others = cpu.flags.bits() & !flags::ZF;
    cpu.flags = flags::Flags::from_bits(others | (u64::from(zero) * flags::ZF));
}

pub fn lar<const BITS: u32>(cpu: &mut Cpu, op: &Op) -> Result<(), Exit> {
    let selector = cpu.load_operand16(op, op.src)?;
    let value = visible(cpu, selector)?
        // LDT, available and busy TSS, call gate.
        .filter(|d| d.is_segment() || matches!(d.kind(), 2 | 9 | 11 | 12))
        .map(|d| d.0 >> 32 & 0x00FF_FF00);
    report::<BITS>(cpu, op, value);
    Ok(())
}

pub fn lsl<const BITS: u32>(cpu: &mut Cpu, op: &Op) -> Result<(), Exit> {
    let selector = cpu.load_operand16(op, op.src)?;
    let value = visible(cpu, selector)?
        .filter(|d| d.is_segment() || matches!(d.kind(), 2 | 9 | 11))
        .map(|d| u64::from(d.limit()));
    report::<BITS>(cpu, op, value);
    Ok(())
}

pub fn verify<const WRITE: bool>(cpu: &mut Cpu, op: &Op) -> Result<(), Exit> {
    let selector = cpu.load_operand16(op, op.dst)?;
    let descriptor = visible(cpu, selector)?;
    let usable = descriptor.is_some_and(|d| {
        if WRITE {
            d.is_writable()
        } else {
            d.is_readable()
        }
    });
    set_zero(cpu, usable);
    Ok(())
}
