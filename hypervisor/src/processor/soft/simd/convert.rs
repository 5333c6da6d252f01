//! Conversions between floating-point formats and integers, and rounding to integral values.

use super::{lane::*, operands::*, vector::Vector};
use crate::processor::soft::{
    cpu::{Cpu, Exit},
    float::{Class, Context, Encoding, Number, Rounding, flag},
    op::{Handler, Op},
};
use iced_x86::{Code, Instruction};

/// Picks the handler of the memory or the register form.
macro_rules! source {
    ($i:expr, $f:expr, $memory:expr) => {
        if in_memory($i) {
            (|cpu: &mut Cpu, op: &Op| {
                cpu.require_sse()?;
                let source = $memory(cpu, op)?;
                $f(cpu, op, source)
            }) as Handler
        } else {
            |cpu: &mut Cpu, op: &Op| {
                cpu.require_sse()?;
                let source = cpu.xmm[src(op)];
                $f(cpu, op, source)
            }
        }
    };
}

pub fn select(i: &Instruction) -> Option<Handler> {
    use Code::*;
    Some(match i.code() {
        Cvtss2sd_xmm_xmmm32 => source!(i, single_to_double, load_narrow::<u32>),
        Cvtsd2ss_xmm_xmmm64 => source!(i, double_to_single, load_narrow::<u64>),
        Cvtps2pd_xmm_xmmm64 => source!(i, singles_to_doubles, load_narrow::<u64>),
        Cvtpd2ps_xmm_xmmm128 => source!(i, doubles_to_singles, load_aligned),
        Cvtdq2ps_xmm_xmmm128 => source!(i, integers_to_singles, load_aligned),
        Cvtdq2pd_xmm_xmmm64 => source!(i, integers_to_doubles, load_narrow::<u64>),
        Cvtps2dq_xmm_xmmm128 => source!(i, singles_to_integers::<false>, load_aligned),
        Cvttps2dq_xmm_xmmm128 => source!(i, singles_to_integers::<true>, load_aligned),
        Cvtpd2dq_xmm_xmmm128 => source!(i, doubles_to_integers::<false>, load_aligned),
        Cvttpd2dq_xmm_xmmm128 => source!(i, doubles_to_integers::<true>, load_aligned),
        Roundps_xmm_xmmm128_imm8 => source!(i, round_packed::<f32>, load_aligned),
        Roundpd_xmm_xmmm128_imm8 => source!(i, round_packed::<f64>, load_aligned),
        Roundss_xmm_xmmm32_imm8 => source!(i, round_scalar::<f32>, load_narrow::<u32>),
        Roundsd_xmm_xmmm64_imm8 => source!(i, round_scalar::<f64>, load_narrow::<u64>),
        Cvtss2si_r32_xmmm32 => source!(i, to_general::<f32, false, 32>, load_narrow::<u32>),
        Cvtss2si_r64_xmmm32 => source!(i, to_general::<f32, false, 64>, load_narrow::<u32>),
        Cvttss2si_r32_xmmm32 => source!(i, to_general::<f32, true, 32>, load_narrow::<u32>),
        Cvttss2si_r64_xmmm32 => source!(i, to_general::<f32, true, 64>, load_narrow::<u32>),
        Cvtsd2si_r32_xmmm64 => source!(i, to_general::<f64, false, 32>, load_narrow::<u64>),
        Cvtsd2si_r64_xmmm64 => source!(i, to_general::<f64, false, 64>, load_narrow::<u64>),
        Cvttsd2si_r32_xmmm64 => source!(i, to_general::<f64, true, 32>, load_narrow::<u64>),
        Cvttsd2si_r64_xmmm64 => source!(i, to_general::<f64, true, 64>, load_narrow::<u64>),
        Cvtsi2ss_xmm_rm32 if in_memory(i) => from_memory::<f32, u32>,
        Cvtsi2ss_xmm_rm64 if in_memory(i) => from_memory::<f32, u64>,
        Cvtsi2sd_xmm_rm32 if in_memory(i) => from_memory::<f64, u32>,
        Cvtsi2sd_xmm_rm64 if in_memory(i) => from_memory::<f64, u64>,
        Cvtsi2ss_xmm_rm32 => from_general::<f32, u32>,
        Cvtsi2ss_xmm_rm64 => from_general::<f32, u64>,
        Cvtsi2sd_xmm_rm32 => from_general::<f64, u32>,
        Cvtsi2sd_xmm_rm64 => from_general::<f64, u64>,
        _ => return None,
    })
}

/// The context of a conversion; `TRUNCATE` is the CVTT forms.
#[inline(always)]
fn context<const TRUNCATE: bool>(cpu: &Cpu) -> Context {
    let context = Context::from_mxcsr(cpu.mxcsr);
    if TRUNCATE {
        Context {
            rounding: Rounding::Zero,
            ..context
        }
    } else {
        context
    }
}

fn convert<T: Encoding, U: Encoding>(context: &mut Context, value: T) -> U {
    U::pack(context.convert(U::FORMAT, value.unpack()))
}

fn single_to_double(cpu: &mut Cpu, op: &Op, source: Vector) -> Result<(), Exit> {
    let value: f32 = lowest(source);
    let result = if value.ordinary() {
        f64::from(value)
    } else {
        let mut context = Context::from_mxcsr(cpu.mxcsr);
        let result = convert(&mut context, value);
        finish(cpu, &context)?;
        result
    };
    cpu.xmm[dst(op)] = result.insert(cpu.xmm[dst(op)]);
    Ok(())
}

fn double_to_single(cpu: &mut Cpu, op: &Op, source: Vector) -> Result<(), Exit> {
    let value: f64 = lowest(source);
    let native = value as f32;
    let result = if quick(cpu) && (native.surely_normal() || value.zero()) {
        native
    } else {
        let mut context = Context::from_mxcsr(cpu.mxcsr);
        let result = convert(&mut context, value);
        finish(cpu, &context)?;
        result
    };
    cpu.xmm[dst(op)] = result.insert(cpu.xmm[dst(op)]);
    Ok(())
}

fn singles_to_doubles(cpu: &mut Cpu, op: &Op, source: Vector) -> Result<(), Exit> {
    let [a, b, _, _] = source.f32s();
    let results: [f64; 2] = if a.ordinary() && b.ordinary() {
        [a.into(), b.into()]
    } else {
        let mut context = Context::from_mxcsr(cpu.mxcsr);
        let results = [a, b].map(|value| convert(&mut context, value));
        finish(cpu, &context)?;
        results
    };
    cpu.xmm[dst(op)] = results.into();
    Ok(())
}

fn doubles_to_singles(cpu: &mut Cpu, op: &Op, source: Vector) -> Result<(), Exit> {
    let values = source.f64s();
    let native = values.map(|value| value as f32);
    let certain = |i: usize| native[i].surely_normal() || values[i].zero();
    let [a, b]: [f32; 2] = if quick(cpu) && certain(0) && certain(1) {
        native
    } else {
        let mut context = Context::from_mxcsr(cpu.mxcsr);
        let results = values.map(|value| convert(&mut context, value));
        finish(cpu, &context)?;
        results
    };
    cpu.xmm[dst(op)] = [a, b, 0.0, 0.0].into();
    Ok(())
}

fn from_integer<T: Encoding>(context: &mut Context, value: i64) -> T {
    T::pack(context.convert(T::FORMAT, Number::from_i64(value)))
}

fn integers_to_singles(cpu: &mut Cpu, op: &Op, source: Vector) -> Result<(), Exit> {
    let values = source.i32s();
    let results: [f32; 4] = if quick(cpu) {
        values.map(|value| value as f32)
    } else {
        let mut context = Context::from_mxcsr(cpu.mxcsr);
        let results = values.map(|value| from_integer(&mut context, value.into()));
        finish(cpu, &context)?;
        results
    };
    cpu.xmm[dst(op)] = results.into();
    Ok(())
}

fn integers_to_doubles(cpu: &mut Cpu, op: &Op, source: Vector) -> Result<(), Exit> {
    let [a, b, _, _] = source.i32s();
    cpu.xmm[dst(op)] = [f64::from(a), f64::from(b)].into();
    Ok(())
}

/// A 32-bit result; out of range gives the integer indefinite.
pub fn to_i32<T: Encoding>(context: &mut Context, value: T) -> i32 {
    context
        .to_integer(value.unpack(), 32)
        .map_or(i32::MIN, |value| value as i32)
}

/// Values whose integers are in range, under [`quick`].
#[inline(always)]
fn quick_i32<const TRUNCATE: bool, const N: usize>(
    cpu: &Cpu,
    values: [f64; N],
) -> Option<[i32; N]> {
    let in_range = |value: f64| value.abs() < f64::from(i32::MAX);
    if !quick(cpu) || !values.into_iter().all(in_range) {
        return None;
    }
    Some(values.map(|value| {
        let whole = if TRUNCATE {
            value
        } else {
            value.round_ties_even()
        };
        whole as i32
    }))
}

fn singles_to_integers<const TRUNCATE: bool>(
    cpu: &mut Cpu,
    op: &Op,
    source: Vector,
) -> Result<(), Exit> {
    if let Some(results) = quick_i32::<TRUNCATE, 4>(cpu, source.f32s().map(f64::from)) {
        cpu.xmm[dst(op)] = results.into();
        return Ok(());
    }
    let mut context = context::<TRUNCATE>(cpu);
    let results = source.f32s().map(|value| to_i32(&mut context, value));
    finish(cpu, &context)?;
    cpu.xmm[dst(op)] = results.into();
    Ok(())
}

fn doubles_to_integers<const TRUNCATE: bool>(
    cpu: &mut Cpu,
    op: &Op,
    source: Vector,
) -> Result<(), Exit> {
    if let Some([a, b]) = quick_i32::<TRUNCATE, 2>(cpu, source.f64s()) {
        cpu.xmm[dst(op)] = [a, b, 0, 0].into();
        return Ok(());
    }
    let mut context = context::<TRUNCATE>(cpu);
    let [a, b] = source.f64s().map(|value| to_i32(&mut context, value));
    finish(cpu, &context)?;
    cpu.xmm[dst(op)] = [a, b, 0, 0].into();
    Ok(())
}

fn to_general<T: Lane + Into<f64>, const TRUNCATE: bool, const BITS: u32>(
    cpu: &mut Cpu,
    op: &Op,
    source: Vector,
) -> Result<(), Exit> {
    let lane: T = lowest(source);
    let value: f64 = lane.into();
    let native = value as i64;
    // An integral value well inside the range: no rounding, no exception.
    let limit = if BITS == 32 { 2_147_483_648.0 } else { 9e18 };
    let exact = native as f64 == value || (TRUNCATE && quick(cpu));
    let result = if value.abs() < limit && exact {
        native
    } else {
        let mut context = context::<TRUNCATE>(cpu);
        let result = context.to_integer(lane.unpack(), BITS);
        finish(cpu, &context)?;
        result.unwrap_or(i64::MIN >> (64 - BITS))
    };
    let mask = u64::MAX >> (64 - BITS);
    cpu.set_reg(op.dst, result as u64 & mask);
    Ok(())
}

/// An integer source operand, sign-extended.
trait Source: Narrow {
    fn signed(value: u64) -> i64;
}
impl Source for u32 {
    #[inline(always)]
    fn signed(value: u64) -> i64 {
        i64::from(value as i32)
    }
}
impl Source for u64 {
    #[inline(always)]
    fn signed(value: u64) -> i64 {
        value as i64
    }
}

#[inline(always)]
fn insert_integer<T: Lane + FromInteger>(cpu: &mut Cpu, op: &Op, value: i64) -> Result<(), Exit> {
    let (native, exact) = T::from_integer(value);
    let result = if exact || quick(cpu) {
        native
    } else {
        let mut context = Context::from_mxcsr(cpu.mxcsr);
        let result = from_integer(&mut context, value);
        finish(cpu, &context)?;
        result
    };
    cpu.xmm[dst(op)] = result.insert(cpu.xmm[dst(op)]);
    Ok(())
}

trait FromInteger: Sized {
    /// The nearest value, and whether it is exact.
    fn from_integer(value: i64) -> (Self, bool);
}
impl FromInteger for f32 {
    #[inline(always)]
    fn from_integer(value: i64) -> (Self, bool) {
        (value as f32, value.unsigned_abs() < 1 << 24)
    }
}
impl FromInteger for f64 {
    #[inline(always)]
    fn from_integer(value: i64) -> (Self, bool) {
        (value as f64, value.unsigned_abs() < 1 << 53)
    }
}

fn from_general<T: Lane + FromInteger, S: Source>(cpu: &mut Cpu, op: &Op) -> Result<(), Exit> {
    cpu.require_sse()?;
    insert_integer::<T>(cpu, op, S::signed(cpu.reg(op.src)))
}

fn from_memory<T: Lane + FromInteger, S: Source>(cpu: &mut Cpu, op: &Op) -> Result<(), Exit> {
    cpu.require_sse()?;
    let value: S = cpu.load(cpu.effective_address(op))?;
    insert_integer::<T>(cpu, op, S::signed(value.into()))
}

/// ROUNDxx: bits 0-1 of the immediate give the mode unless bit 2 says MXCSR; bit 3 keeps
/// inexactness quiet.
fn round_lane<T: Encoding>(context: &mut Context, value: T, control: u8) -> T {
    let number = value.unpack();
    if number.denormal && context.denormals_are_zero {
        return T::pack(Number::zero(number.negative));
    }
    if let Some(nan) = context.propagate_one(number) {
        return T::pack(nan);
    }
    let before = context.flags;
    let result = if number.class == Class::Finite {
        context.to_integral(number)
    } else {
        number
    };
    if control & 8 != 0 {
        context.flags = before | context.flags & !flag::INEXACT;
    }
    T::pack(result)
}

fn round_context(cpu: &Cpu, control: u8) -> Context {
    let context = Context::from_mxcsr(cpu.mxcsr);
    if control & 4 != 0 {
        context
    } else {
        Context {
            rounding: Rounding::from_bits(control.into()),
            ..context
        }
    }
}

/// The native result where it is certain and has nothing new to report.
#[inline(always)]
fn round_quick<T: Lane>(cpu: &Cpu, value: T, control: u8) -> Option<T> {
    let mode = if control & 4 != 0 {
        cpu.mxcsr >> 13
    } else {
        control.into()
    };
    let result = value.integral(Rounding::from_bits(mode));
    let silent = control & 8 != 0 || result == value || quick(cpu);
    (value.ordinary() && silent).then_some(result)
}

fn round_packed<T: Lane>(cpu: &mut Cpu, op: &Op, source: Vector) -> Result<(), Exit> {
    let control = op.immediate as u8;
    let mut context = round_context(cpu, control);
    let mut lanes = T::lanes(source);
    for lane in lanes.as_mut() {
        *lane = match round_quick(cpu, *lane, control) {
            Some(result) => result,
            None => round_lane(&mut context, *lane, control),
        };
    }
    finish(cpu, &context)?;
    cpu.xmm[dst(op)] = T::vector(lanes);
    Ok(())
}

fn round_scalar<T: Lane>(cpu: &mut Cpu, op: &Op, source: Vector) -> Result<(), Exit> {
    let control = op.immediate as u8;
    let value: T = lowest(source);
    let result = if let Some(result) = round_quick(cpu, value, control) {
        result
    } else {
        let mut context = round_context(cpu, control);
        let result = round_lane(&mut context, value, control);
        finish(cpu, &context)?;
        result
    };
    cpu.xmm[dst(op)] = result.insert(cpu.xmm[dst(op)]);
    Ok(())
}
