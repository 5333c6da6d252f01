//! Floating-point comparisons: to a mask (CMPxx), to the flags (COMIS, UCOMIS).

use super::{lane::*, operands::*, vector::Vector};
use crate::processor::soft::{
    cpu::{Cpu, Exit},
    flags::{CF, Flags, PF, ZF},
    float::Context,
    op::{Handler, Op},
};
use iced_x86::{Code, Instruction};
use std::cmp::Ordering;

pub fn select(i: &Instruction) -> Option<Handler> {
    let memory = in_memory(i);
    use Code::*;
    Some(match i.code() {
        Cmpps_xmm_xmmm128_imm8 if memory => |cpu, op| packed::<f32>(cpu, op, load_aligned),
        Cmpps_xmm_xmmm128_imm8 => |cpu, op| packed::<f32>(cpu, op, register),
        Cmppd_xmm_xmmm128_imm8 if memory => |cpu, op| packed::<f64>(cpu, op, load_aligned),
        Cmppd_xmm_xmmm128_imm8 => |cpu, op| packed::<f64>(cpu, op, register),
        Cmpss_xmm_xmmm32_imm8 if memory => |cpu, op| single::<f32>(cpu, op, load_narrow::<u32>),
        Cmpss_xmm_xmmm32_imm8 => |cpu, op| single::<f32>(cpu, op, register),
        Cmpsd_xmm_xmmm64_imm8 if memory => |cpu, op| single::<f64>(cpu, op, load_narrow::<u64>),
        Cmpsd_xmm_xmmm64_imm8 => |cpu, op| single::<f64>(cpu, op, register),
        Comiss_xmm_xmmm32 if memory => {
            |cpu, op| to_flags::<f32>(cpu, op, false, load_narrow::<u32>)
        }
        Comiss_xmm_xmmm32 => |cpu, op| to_flags::<f32>(cpu, op, false, register),
        Comisd_xmm_xmmm64 if memory => {
            |cpu, op| to_flags::<f64>(cpu, op, false, load_narrow::<u64>)
        }
        Comisd_xmm_xmmm64 => |cpu, op| to_flags::<f64>(cpu, op, false, register),
        Ucomiss_xmm_xmmm32 if memory => {
            |cpu, op| to_flags::<f32>(cpu, op, true, load_narrow::<u32>)
        }
        Ucomiss_xmm_xmmm32 => |cpu, op| to_flags::<f32>(cpu, op, true, register),
        Ucomisd_xmm_xmmm64 if memory => {
            |cpu, op| to_flags::<f64>(cpu, op, true, load_narrow::<u64>)
        }
        Ucomisd_xmm_xmmm64 => |cpu, op| to_flags::<f64>(cpu, op, true, register),
        _ => return None,
    })
}

#[inline(always)]
fn register(cpu: &mut Cpu, op: &Op) -> Result<Vector, Exit> {
    Ok(cpu.xmm[src(op)])
}

/// Order of two lanes; `None` is unordered.
#[inline(always)]
fn order<T: Lane>(context: &mut Context, a: T, b: T, quiet: bool) -> Option<Ordering> {
    if a.ordinary() && b.ordinary() {
        return Some(if a.less(b) {
            Ordering::Less
        } else if b.less(a) {
            Ordering::Greater
        } else {
            Ordering::Equal
        });
    }
    context.compare(a.unpack(), b.unpack(), quiet)
}

/// Predicates 0-7: EQ, LT, LE, UNORD and their negations. EQ, UNORD accept quiet NaNs.
#[inline(always)]
fn test<T: Lane>(context: &mut Context, a: T, b: T, predicate: u8) -> T {
    let quiet = matches!(predicate & 3, 0 | 3);
    let order = order(context, a, b, quiet);
    let holds = match predicate & 3 {
        0 => order == Some(Ordering::Equal),
        1 => order == Some(Ordering::Less),
        2 => matches!(order, Some(Ordering::Less | Ordering::Equal)),
        _ => order.is_none(),
    };
    if holds != (predicate & 4 != 0) {
        T::ALL_ONES
    } else {
        T::default()
    }
}

#[inline(always)]
fn packed<T: Lane>(
    cpu: &mut Cpu,
    op: &Op,
    source: impl Fn(&mut Cpu, &Op) -> Result<Vector, Exit>,
) -> Result<(), Exit> {
    cpu.require_sse()?;
    let b = T::lanes(source(cpu, op)?);
    let mut context = Context::from_mxcsr(cpu.mxcsr);
    let mut lanes = T::lanes(cpu.xmm[dst(op)]);
    for (lane, b) in lanes.as_mut().iter_mut().zip(b.as_ref()) {
        *lane = test(&mut context, *lane, *b, op.immediate as u8);
    }
    finish(cpu, &context)?;
    cpu.xmm[dst(op)] = T::vector(lanes);
    Ok(())
}

#[inline(always)]
fn single<T: Lane>(
    cpu: &mut Cpu,
    op: &Op,
    source: impl Fn(&mut Cpu, &Op) -> Result<Vector, Exit>,
) -> Result<(), Exit> {
    cpu.require_sse()?;
    let b: T = lowest(source(cpu, op)?);
    let mut context = Context::from_mxcsr(cpu.mxcsr);
    let a = lowest(cpu.xmm[dst(op)]);
    let result = test(&mut context, a, b, op.immediate as u8);
    finish(cpu, &context)?;
    cpu.xmm[dst(op)] = result.insert(cpu.xmm[dst(op)]);
    Ok(())
}

#[inline(always)]
fn to_flags<T: Lane>(
    cpu: &mut Cpu,
    op: &Op,
    quiet: bool,
    source: impl Fn(&mut Cpu, &Op) -> Result<Vector, Exit>,
) -> Result<(), Exit> {
    cpu.require_sse()?;
    let b: T = lowest(source(cpu, op)?);
    let a = lowest(cpu.xmm[dst(op)]);
    let mut context = Context::from_mxcsr(cpu.mxcsr);
    let order = order(&mut context, a, b, quiet);
    finish(cpu, &context)?;
    cpu.flags = order_flags(order);
    Ok(())
}

/// ZF, PF and CF as COMIS and FCOMI set them.
#[inline(always)]
pub fn order_flags(order: Option<Ordering>) -> Flags {
    Flags::from_bits(match order {
        Some(Ordering::Greater) => 0,
        Some(Ordering::Less) => CF,
        Some(Ordering::Equal) => ZF,
        None => ZF | PF | CF,
    })
}
