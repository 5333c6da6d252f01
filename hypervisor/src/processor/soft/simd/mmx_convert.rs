//! Conversions between packed floating point and MMX integers.

use super::{convert::to_i32, lane::finish, operands::*, vector::Vector};
use crate::processor::soft::{
    cpu::{Cpu, Exit},
    float::{Context, Encoding, Number, Rounding},
    op::{Handler, Op},
};
use iced_x86::{Instruction, Mnemonic as M};

pub fn select(i: &Instruction) -> Option<Handler> {
    Some(match (i.mnemonic(), in_memory(i)) {
        (M::Cvtpi2ps, true) => |cpu, op| from_memory(cpu, op, to_singles),
        (M::Cvtpi2ps, false) => |cpu, op| from_mmx(cpu, op, to_singles),
        (M::Cvtpi2pd, true) => |cpu, op| from_memory(cpu, op, to_doubles),
        (M::Cvtpi2pd, false) => |cpu, op| from_mmx(cpu, op, to_doubles),
        (M::Cvtps2pi, true) => |cpu, op| to_mmx::<false>(cpu, op, load_narrow::<u64>, singles),
        (M::Cvtps2pi, false) => |cpu, op| to_mmx::<false>(cpu, op, register, singles),
        (M::Cvttps2pi, true) => |cpu, op| to_mmx::<true>(cpu, op, load_narrow::<u64>, singles),
        (M::Cvttps2pi, false) => |cpu, op| to_mmx::<true>(cpu, op, register, singles),
        (M::Cvtpd2pi, true) => |cpu, op| to_mmx::<false>(cpu, op, load_aligned, doubles),
        (M::Cvtpd2pi, false) => |cpu, op| to_mmx::<false>(cpu, op, register, doubles),
        (M::Cvttpd2pi, true) => |cpu, op| to_mmx::<true>(cpu, op, load_aligned, doubles),
        (M::Cvttpd2pi, false) => |cpu, op| to_mmx::<true>(cpu, op, register, doubles),
        _ => return None,
    })
}

type Widen = fn(&mut Context, Vector, [i32; 2]) -> Vector;

fn to_singles(context: &mut Context, old: Vector, source: [i32; 2]) -> Vector {
    let [a, b] = source.map(|value| {
        f32::pack(context.convert(f32::FORMAT, Number::from_i64(value.into()))).to_bits()
    });
    old.with_low64(u64::from(a) | u64::from(b) << 32)
}

fn to_doubles(_: &mut Context, _: Vector, source: [i32; 2]) -> Vector {
    source.map(f64::from).into()
}

fn convert(cpu: &mut Cpu, op: &Op, source: u64, f: Widen) -> Result<(), Exit> {
    let mut context = Context::from_mxcsr(cpu.mxcsr);
    let lanes = [source as i32, (source >> 32) as i32];
    let result = f(&mut context, cpu.xmm[dst(op)], lanes);
    finish(cpu, &context)?;
    cpu.xmm[dst(op)] = result;
    Ok(())
}

fn from_memory(cpu: &mut Cpu, op: &Op, f: Widen) -> Result<(), Exit> {
    cpu.require_sse()?;
    let source = cpu.load(cpu.effective_address(op))?;
    convert(cpu, op, source, f)
}

fn from_mmx(cpu: &mut Cpu, op: &Op, f: Widen) -> Result<(), Exit> {
    cpu.require_sse()?;
    cpu.require_mmx()?;
    cpu.x87.enter_mmx();
    convert(cpu, op, cpu.x87.mmx(op.src), f)
}

fn register(cpu: &mut Cpu, op: &Op) -> Result<Vector, Exit> {
    Ok(cpu.xmm[src(op)])
}

fn singles(context: &mut Context, source: Vector) -> [i32; 2] {
    let [a, b, _, _] = source.f32s();
    [a, b].map(|value| to_i32(context, value))
}

fn doubles(context: &mut Context, source: Vector) -> [i32; 2] {
    source.f64s().map(|value| to_i32(context, value))
}

#[inline(always)]
fn to_mmx<const TRUNCATE: bool>(
    cpu: &mut Cpu,
    op: &Op,
    source: impl Fn(&mut Cpu, &Op) -> Result<Vector, Exit>,
    f: fn(&mut Context, Vector) -> [i32; 2],
) -> Result<(), Exit> {
    cpu.require_sse()?;
    cpu.require_mmx()?;
    let source = source(cpu, op)?;
    let mut context = Context::from_mxcsr(cpu.mxcsr);
    if TRUNCATE {
        context.rounding = Rounding::Zero;
    }
    let [a, b] = f(&mut context, source).map(|lane| u64::from(lane as u32));
    cpu.x87.enter_mmx();
    finish(cpu, &context)?;
    cpu.x87.set_mmx(op.dst, a | b << 32);
    Ok(())
}
