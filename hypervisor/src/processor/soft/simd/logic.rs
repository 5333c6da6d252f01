//! Bitwise logic. The float forms (ANDPS, XORPD …) are the same operations.

use super::{operands::*, vector::*};
use crate::processor::soft::{
    cpu::{Cpu, Exit},
    flags::{CF, Flags, ZF},
    op::{Handler, Op},
};
use iced_x86::{Instruction, Mnemonic as M};

pub fn select(i: &Instruction) -> Option<Handler> {
    Some(match i.mnemonic() {
        M::Pand => both!(i, and),
        M::Andps | M::Andpd => xmm!(i, and),
        M::Pandn => both!(i, and_not),
        M::Andnps | M::Andnpd => xmm!(i, and_not),
        M::Por => both!(i, or),
        M::Orps | M::Orpd => xmm!(i, or),
        M::Pxor => both!(i, xor),
        M::Xorps | M::Xorpd => xmm!(i, xor),
        M::Ptest if in_memory(i) => ptest_m128,
        M::Ptest => ptest_xmm,
        _ => return None,
    })
}

#[inline(always)]
fn and(a: Vector, b: Vector) -> Vector {
    zip(a.u64s(), b.u64s(), |a, b| a & b).into()
}

#[inline(always)]
fn and_not(a: Vector, b: Vector) -> Vector {
    zip(a.u64s(), b.u64s(), |a, b| !a & b).into()
}

#[inline(always)]
fn or(a: Vector, b: Vector) -> Vector {
    zip(a.u64s(), b.u64s(), |a, b| a | b).into()
}

#[inline(always)]
fn xor(a: Vector, b: Vector) -> Vector {
    zip(a.u64s(), b.u64s(), |a, b| a ^ b).into()
}

fn ptest(cpu: &mut Cpu, a: Vector, b: Vector) -> Result<(), Exit> {
    let (a, b) = (u128::from(a), u128::from(b));
    let mut flags = 0;
    if a & b == 0 {
        flags |= ZF;
    }
    if !a & b == 0 {
        flags |= CF;
    }
    cpu.flags = Flags::from_bits(flags);
    Ok(())
}

fn ptest_xmm(cpu: &mut Cpu, op: &Op) -> Result<(), Exit> {
    cpu.require_sse()?;
    ptest(cpu, cpu.xmm[dst(op)], cpu.xmm[src(op)])
}

fn ptest_m128(cpu: &mut Cpu, op: &Op) -> Result<(), Exit> {
    cpu.require_sse()?;
    let source = load_aligned(cpu, op)?;
    ptest(cpu, cpu.xmm[dst(op)], source)
}
