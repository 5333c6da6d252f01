//! Moves of MMX registers.

use super::{movement::byte_signs, operands::*, vector::Vector};
use crate::processor::soft::{
    cpu::{Cpu, Exit},
    op::{Handler, Op},
};
use iced_x86::{Code, Instruction};

pub fn select(i: &Instruction) -> Option<Handler> {
    let memory = in_memory(i);
    use Code::*;
    Some(match i.code() {
        Movd_mm_rm32 if memory => |cpu, op| mm_narrow::<u32>(cpu, op, |_, b, _| b),
        Movq_mm_rm64 | Movq_mm_mmm64 if memory => |cpu, op| mm_narrow::<u64>(cpu, op, |_, b, _| b),
        Movd_mm_rm32 => from_general::<0xFFFF_FFFF>,
        Movq_mm_rm64 => from_general::<{ u64::MAX }>,
        Movq_mm_mmm64 => |cpu, op| mm_mm(cpu, op, |_, b, _| b),
        Movd_rm32_mm if memory => store_low32,
        Movq_rm64_mm | Movq_mmm64_mm | Movntq_m64_mm if memory => store,
        Movd_rm32_mm => |cpu, op| to_general(cpu, op, |mm| mm & 0xFFFF_FFFF),
        Movq_rm64_mm => |cpu, op| to_general(cpu, op, |mm| mm),
        Movq_mmm64_mm => |cpu, op| mm_mm(cpu, op, |_, b, _| b),
        Pmovmskb_r32_mm | Pmovmskb_r64_mm => |cpu, op| to_general(cpu, op, byte_signs),
        Movq2dq_xmm_mm => mm_to_xmm,
        Movdq2q_mm_xmm => xmm_to_mm,
        _ => return None,
    })
}

fn from_general<const MASK: u64>(cpu: &mut Cpu, op: &Op) -> Result<(), Exit> {
    cpu.require_mmx()?;
    cpu.x87.enter_mmx();
    cpu.x87.set_mmx(op.dst, cpu.reg(op.src) & MASK);
    Ok(())
}

#[inline(always)]
fn to_general(cpu: &mut Cpu, op: &Op, f: impl Fn(u64) -> u64) -> Result<(), Exit> {
    cpu.require_mmx()?;
    cpu.x87.enter_mmx();
    cpu.set_reg(op.dst, f(cpu.x87.mmx(op.src)));
    Ok(())
}

fn store_low32(cpu: &mut Cpu, op: &Op) -> Result<(), Exit> {
    cpu.require_mmx()?;
    cpu.store(cpu.effective_address(op), cpu.x87.mmx(op.src) as u32)?;
    cpu.x87.enter_mmx();
    Ok(())
}

fn store(cpu: &mut Cpu, op: &Op) -> Result<(), Exit> {
    cpu.require_mmx()?;
    cpu.store(cpu.effective_address(op), cpu.x87.mmx(op.src))?;
    cpu.x87.enter_mmx();
    Ok(())
}

fn mm_to_xmm(cpu: &mut Cpu, op: &Op) -> Result<(), Exit> {
    cpu.require_sse()?;
    cpu.require_mmx()?;
    cpu.x87.enter_mmx();
    cpu.xmm[dst(op)] = Vector::from([cpu.x87.mmx(op.src), 0]);
    Ok(())
}

fn xmm_to_mm(cpu: &mut Cpu, op: &Op) -> Result<(), Exit> {
    cpu.require_sse()?;
    cpu.require_mmx()?;
    cpu.x87.enter_mmx();
    let low = cpu.xmm[src(op)].low64();
    cpu.x87.set_mmx(op.dst, low);
    Ok(())
}
