//! How vector instructions reach their operands: one adapter for each operand shape, generic over
//! the function that computes, so that each instruction becomes one straight-line handler.

use super::vector::Vector;
use crate::processor::soft::{
    cpu::{Cpu, Exception, Exit},
    op::Op,
};
use iced_x86::{Instruction, OpKind, Register};

#[inline(always)]
pub fn dst(op: &Op) -> usize {
    usize::from(op.dst & 15)
}

#[inline(always)]
pub fn src(op: &Op) -> usize {
    usize::from(op.src & 15)
}

/// Whether any operand is in memory.
pub fn in_memory(instruction: &Instruction) -> bool {
    (0..instruction.op_count()).any(|i| instruction.op_kind(i) == OpKind::Memory)
}

/// Whether operand 0 or 1 is an MMX register.
pub fn is_mmx(instruction: &Instruction) -> bool {
    [instruction.op0_register(), instruction.op1_register()]
        .iter()
        .any(|register| (Register::MM0..=Register::MM7).contains(register))
}

/// The operand of most 128-bit instructions: must be aligned.
#[inline(always)]
pub fn load_aligned(cpu: &mut Cpu, op: &Op) -> Result<Vector, Exit> {
    let address = cpu.effective_address(op);
    if address & 15 != 0 {
        return cpu.raise(Exception::general_protection(0));
    }
    cpu.load_vector(address)
}

#[inline(always)]
pub fn load_unaligned(cpu: &mut Cpu, op: &Op) -> Result<Vector, Exit> {
    cpu.load_vector(cpu.effective_address(op))
}

/// Bits of a smaller memory operand, zero-extended.
pub trait Narrow: crate::memory::Plain + Into<u64> {}
impl Narrow for u8 {}
impl Narrow for u16 {}
impl Narrow for u32 {}
impl Narrow for u64 {}

#[inline(always)]
pub fn load_narrow<T: Narrow>(cpu: &mut Cpu, op: &Op) -> Result<Vector, Exit> {
    let value: T = cpu.load(cpu.effective_address(op))?;
    Ok([value.into(), 0].into())
}

/// xmm ← f(xmm, xmm, imm8)
#[inline(always)]
pub fn xmm_xmm(
    cpu: &mut Cpu,
    op: &Op,
    f: impl Fn(Vector, Vector, u8) -> Vector,
) -> Result<(), Exit> {
    cpu.require_sse()?;
    cpu.xmm[dst(op)] = f(cpu.xmm[dst(op)], cpu.xmm[src(op)], op.immediate as u8);
    Ok(())
}

/// xmm ← f(xmm, m128, imm8)
#[inline(always)]
pub fn xmm_m128(
    cpu: &mut Cpu,
    op: &Op,
    f: impl Fn(Vector, Vector, u8) -> Vector,
) -> Result<(), Exit> {
    cpu.require_sse()?;
    let source = load_aligned(cpu, op)?;
    cpu.xmm[dst(op)] = f(cpu.xmm[dst(op)], source, op.immediate as u8);
    Ok(())
}

/// xmm ← f(xmm, m128, imm8), any alignment
#[inline(always)]
pub fn xmm_unaligned(
    cpu: &mut Cpu,
    op: &Op,
    f: impl Fn(Vector, Vector, u8) -> Vector,
) -> Result<(), Exit> {
    cpu.require_sse()?;
    let source = load_unaligned(cpu, op)?;
    cpu.xmm[dst(op)] = f(cpu.xmm[dst(op)], source, op.immediate as u8);
    Ok(())
}

/// xmm ← f(xmm, m16/m32/m64, imm8)
#[inline(always)]
pub fn xmm_narrow<T: Narrow>(
    cpu: &mut Cpu,
    op: &Op,
    f: impl Fn(Vector, Vector, u8) -> Vector,
) -> Result<(), Exit> {
    cpu.require_sse()?;
    let source = load_narrow::<T>(cpu, op)?;
    cpu.xmm[dst(op)] = f(cpu.xmm[dst(op)], source, op.immediate as u8);
    Ok(())
}

/// mm ← low half of f(mm, mm, imm8)
#[inline(always)]
pub fn mm_mm(cpu: &mut Cpu, op: &Op, f: impl Fn(Vector, Vector, u8) -> Vector) -> Result<(), Exit> {
    cpu.require_mmx()?;
    let source = [cpu.x87.mmx(op.src), 0].into();
    let result = f([cpu.x87.mmx(op.dst), 0].into(), source, op.immediate as u8);
    cpu.x87.enter_mmx();
    cpu.x87.set_mmx(op.dst, result.low64());
    Ok(())
}

/// mm ← low half of f(mm, m64, imm8)
#[inline(always)]
pub fn mm_narrow<T: Narrow>(
    cpu: &mut Cpu,
    op: &Op,
    f: impl Fn(Vector, Vector, u8) -> Vector,
) -> Result<(), Exit> {
    cpu.require_mmx()?;
    let source = load_narrow::<T>(cpu, op)?;
    let result = f([cpu.x87.mmx(op.dst), 0].into(), source, op.immediate as u8);
    cpu.x87.enter_mmx();
    cpu.x87.set_mmx(op.dst, result.low64());
    Ok(())
}

/// Handlers of an instruction with an MMX form and an XMM form that compute the same lanes.
macro_rules! both {
    ($instruction:expr, $f:expr) => {
        if is_mmx($instruction) {
            mmx!($instruction, $f)
        } else {
            xmm!($instruction, $f)
        }
    };
}

/// Handlers of `mm, mm/m64`.
macro_rules! mmx {
    ($instruction:expr, $f:expr) => {
        mmx!($instruction, $f, u64)
    };
    ($instruction:expr, $f:expr, $memory:ty) => {
        if in_memory($instruction) {
            (|cpu: &mut Cpu, op: &Op| mm_narrow::<$memory>(cpu, op, |a, b, _| $f(a, b))) as Handler
        } else {
            |cpu: &mut Cpu, op: &Op| mm_mm(cpu, op, |a, b, _| $f(a, b))
        }
    };
}

/// Handlers of `xmm, xmm/m128`; of `xmm, xmm/m64` and so on with a type.
macro_rules! xmm {
    ($instruction:expr, $f:expr) => {
        if in_memory($instruction) {
            (|cpu: &mut Cpu, op: &Op| xmm_m128(cpu, op, |a, b, _| $f(a, b))) as Handler
        } else {
            |cpu: &mut Cpu, op: &Op| xmm_xmm(cpu, op, |a, b, _| $f(a, b))
        }
    };
    ($instruction:expr, $f:expr, $memory:ty) => {
        if in_memory($instruction) {
            (|cpu: &mut Cpu, op: &Op| xmm_narrow::<$memory>(cpu, op, |a, b, _| $f(a, b))) as Handler
        } else {
            |cpu: &mut Cpu, op: &Op| xmm_xmm(cpu, op, |a, b, _| $f(a, b))
        }
    };
}

/// Handlers of `xmm, xmm/m128, imm8`.
macro_rules! xmm_immediate {
    ($instruction:expr, $f:expr) => {
        if in_memory($instruction) {
            (|cpu: &mut Cpu, op: &Op| xmm_m128(cpu, op, $f)) as Handler
        } else {
            |cpu: &mut Cpu, op: &Op| xmm_xmm(cpu, op, $f)
        }
    };
}

/// Handlers of `mm, mm/m64, imm8`.
macro_rules! mmx_immediate {
    ($instruction:expr, $f:expr) => {
        if in_memory($instruction) {
            (|cpu: &mut Cpu, op: &Op| mm_narrow::<u64>(cpu, op, $f)) as Handler
        } else {
            |cpu: &mut Cpu, op: &Op| mm_mm(cpu, op, $f)
        }
    };
}
pub(super) use {both, mmx, mmx_immediate, xmm, xmm_immediate};
