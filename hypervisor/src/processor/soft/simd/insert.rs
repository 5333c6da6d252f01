//! Single lanes: inserting into and extracting from a register.

use super::{operands::*, vector::Vector};
use crate::processor::soft::{
    cpu::{Cpu, Exit},
    op::{Handler, Op},
};
use iced_x86::{Instruction, Mnemonic as M};

pub fn select(i: &Instruction) -> Option<Handler> {
    let memory = in_memory(i);
    Some(match i.mnemonic() {
        M::Pinsrb if memory => insert_memory::<u8>,
        M::Pinsrb => insert_register::<u8>,
        M::Pinsrw if is_mmx(i) && memory => insert_memory_mmx,
        M::Pinsrw if is_mmx(i) => insert_register_mmx,
        M::Pinsrw if memory => insert_memory::<u16>,
        M::Pinsrw => insert_register::<u16>,
        M::Pinsrd if memory => insert_memory::<u32>,
        M::Pinsrd => insert_register::<u32>,
        M::Pinsrq if memory => insert_memory::<u64>,
        M::Pinsrq => insert_register::<u64>,
        M::Pextrb if memory => extract_memory::<u8>,
        M::Pextrb => extract_register::<u8>,
        M::Pextrw if is_mmx(i) => extract_register_mmx,
        M::Pextrw if memory => extract_memory::<u16>,
        M::Pextrw => extract_register::<u16>,
        M::Pextrd | M::Extractps if memory => extract_memory::<u32>,
        M::Pextrd | M::Extractps => extract_register::<u32>,
        M::Pextrq if memory => extract_memory::<u64>,
        M::Pextrq => extract_register::<u64>,
        M::Insertps if memory => |cpu, op| {
            // The memory form has no source lane to choose.
            xmm_narrow::<u32>(cpu, op, |a, b, control| insert_single(a, b, control & 0x3F))
        },
        M::Insertps => |cpu, op| xmm_xmm(cpu, op, insert_single),
        _ => return None,
    })
}

/// A lane as wide as `T`, numbered by the low bits of an immediate.
trait Lane: Narrow {
    fn low(value: u64) -> Self;

    #[inline(always)]
    fn shift(op: &Op) -> u32 {
        let bytes = size_of::<Self>() as u32;
        8 * bytes * (op.immediate as u32 & (16 / bytes - 1))
    }

    #[inline(always)]
    fn insert(into: Vector, op: &Op, value: u64) -> Vector {
        let mask = u128::from(u64::MAX >> (64 - 8 * size_of::<Self>()));
        let shift = Self::shift(op);
        (u128::from(into) & !(mask << shift) | (u128::from(value) & mask) << shift).into()
    }

    #[inline(always)]
    fn extract(from: Vector, op: &Op) -> Self {
        Self::low((u128::from(from) >> Self::shift(op)) as u64)
    }
}

macro_rules! lane {
    ($($lane:ty)*) => {
        $(impl Lane for $lane {
            #[inline(always)]
            fn low(value: u64) -> Self {
                value as $lane
            }
        })*
    };
}
lane! { u8 u16 u32 u64 }

fn insert_register<T: Lane>(cpu: &mut Cpu, op: &Op) -> Result<(), Exit> {
    cpu.require_sse()?;
    cpu.xmm[dst(op)] = T::insert(cpu.xmm[dst(op)], op, cpu.reg(op.src));
    Ok(())
}

fn insert_memory<T: Lane>(cpu: &mut Cpu, op: &Op) -> Result<(), Exit> {
    cpu.require_sse()?;
    let value: T = cpu.load(cpu.effective_address(op))?;
    cpu.xmm[dst(op)] = T::insert(cpu.xmm[dst(op)], op, value.into());
    Ok(())
}

fn extract_register<T: Lane>(cpu: &mut Cpu, op: &Op) -> Result<(), Exit> {
    cpu.require_sse()?;
    let value = T::extract(cpu.xmm[src(op)], op);
    cpu.set_reg(op.dst, value.into());
    Ok(())
}

fn extract_memory<T: Lane>(cpu: &mut Cpu, op: &Op) -> Result<(), Exit> {
    cpu.require_sse()?;
    let value = T::extract(cpu.xmm[src(op)], op);
    cpu.store(cpu.effective_address(op), value)
}

#[inline(always)]
fn insert_mmx(cpu: &mut Cpu, op: &Op, value: u16) {
    let shift = 16 * (op.immediate & 3);
    let rest = cpu.x87.mmx(op.dst) & !(0xFFFF << shift);
    cpu.x87.enter_mmx();
    cpu.x87.set_mmx(op.dst, rest | u64::from(value) << shift);
}

fn insert_register_mmx(cpu: &mut Cpu, op: &Op) -> Result<(), Exit> {
    cpu.require_mmx()?;
    insert_mmx(cpu, op, cpu.reg(op.src) as u16);
    Ok(())
}

fn insert_memory_mmx(cpu: &mut Cpu, op: &Op) -> Result<(), Exit> {
    cpu.require_mmx()?;
    let value = cpu.load(cpu.effective_address(op))?;
    insert_mmx(cpu, op, value);
    Ok(())
}

fn extract_register_mmx(cpu: &mut Cpu, op: &Op) -> Result<(), Exit> {
    cpu.require_mmx()?;
    cpu.x87.enter_mmx();
    let value = cpu.x87.mmx(op.src) >> (16 * (op.immediate & 3));
    cpu.set_reg(op.dst, value & 0xFFFF);
    Ok(())
}

/// INSERTPS: source lane in bits 6-7, destination lane in bits 4-5, lanes to clear in bits 0-3.
#[inline(always)]
fn insert_single(a: Vector, b: Vector, control: u8) -> Vector {
    let mut lanes = a.u32s();
    lanes[usize::from(control >> 4 & 3)] = b.u32s()[usize::from(control >> 6)];
    for (i, lane) in lanes.iter_mut().enumerate() {
        if control >> i & 1 != 0 {
            *lane = 0;
        }
    }
    lanes.into()
}
