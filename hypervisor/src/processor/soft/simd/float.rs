//! Floating-point arithmetic: add, subtract, multiply, divide, square root, minimum, maximum, in
//! scalar, packed, alternating and horizontal forms, and dot products.

use super::{lane::*, operands::*, vector::Vector};
use crate::processor::soft::{
    cpu::{Cpu, Exit},
    float::{Context, Format, Number},
    op::{Handler, Op},
};
use iced_x86::{Instruction, Mnemonic as M};

/// Handlers of the scalar and packed forms of one operation.
macro_rules! scalar {
    ($i:expr, $lane:ty, $bits:ty, $operation:ty) => {
        if in_memory($i) {
            scalar_memory::<$lane, $bits, $operation> as Handler
        } else {
            scalar_register::<$lane, $operation>
        }
    };
}
macro_rules! packed {
    ($i:expr, $lane:ty, $operation:ty) => {
        rearranged!($i, $lane, $operation, |a, b| (a, b))
    };
}
macro_rules! rearranged {
    ($i:expr, $lane:ty, $operation:ty, $arrange:expr) => {
        if in_memory($i) {
            (|cpu: &mut Cpu, op: &Op| packed_memory::<$lane, $operation>(cpu, op, $arrange))
                as Handler
        } else {
            |cpu: &mut Cpu, op: &Op| packed_register::<$lane, $operation>(cpu, op, $arrange)
        }
    };
}

pub fn select(i: &Instruction) -> Option<Handler> {
    Some(match i.mnemonic() {
        M::Addss => scalar!(i, f32, u32, Add),
        M::Addsd => scalar!(i, f64, u64, Add),
        M::Addps => packed!(i, f32, Add),
        M::Addpd => packed!(i, f64, Add),
        M::Subss => scalar!(i, f32, u32, Subtract),
        M::Subsd => scalar!(i, f64, u64, Subtract),
        M::Subps => packed!(i, f32, Subtract),
        M::Subpd => packed!(i, f64, Subtract),
        M::Mulss => scalar!(i, f32, u32, Multiply),
        M::Mulsd => scalar!(i, f64, u64, Multiply),
        M::Mulps => packed!(i, f32, Multiply),
        M::Mulpd => packed!(i, f64, Multiply),
        M::Divss => scalar!(i, f32, u32, Divide),
        M::Divsd => scalar!(i, f64, u64, Divide),
        M::Divps => packed!(i, f32, Divide),
        M::Divpd => packed!(i, f64, Divide),
        M::Sqrtss => scalar!(i, f32, u32, SquareRoot),
        M::Sqrtsd => scalar!(i, f64, u64, SquareRoot),
        M::Sqrtps => packed!(i, f32, SquareRoot),
        M::Sqrtpd => packed!(i, f64, SquareRoot),
        M::Minss => scalar!(i, f32, u32, Minimum),
        M::Minsd => scalar!(i, f64, u64, Minimum),
        M::Minps => packed!(i, f32, Minimum),
        M::Minpd => packed!(i, f64, Minimum),
        M::Maxss => scalar!(i, f32, u32, Maximum),
        M::Maxsd => scalar!(i, f64, u64, Maximum),
        M::Maxps => packed!(i, f32, Maximum),
        M::Maxpd => packed!(i, f64, Maximum),
        M::Addsubps => packed!(i, f32, Alternate),
        M::Addsubpd => packed!(i, f64, Alternate),
        M::Haddps => rearranged!(i, f32, Add, pairs32),
        M::Haddpd => rearranged!(i, f64, Add, pairs64),
        M::Hsubps => rearranged!(i, f32, Subtract, pairs32),
        M::Hsubpd => rearranged!(i, f64, Subtract, pairs64),
        M::Dpps if in_memory(i) => |cpu, op| dot::<f32, true>(cpu, op),
        M::Dpps => |cpu, op| dot::<f32, false>(cpu, op),
        M::Dppd if in_memory(i) => |cpu, op| dot::<f64, true>(cpu, op),
        M::Dppd => |cpu, op| dot::<f64, false>(cpu, op),
        _ => return None,
    })
}

fn scalar_register<T: Lane, O: Operation>(cpu: &mut Cpu, op: &Op) -> Result<(), Exit> {
    cpu.require_sse()?;
    let (a, b) = (lowest::<T>(cpu.xmm[dst(op)]), lowest::<T>(cpu.xmm[src(op)]));
    let result = scalar::<T, O>(cpu, a, b)?;
    cpu.xmm[dst(op)] = result.insert(cpu.xmm[dst(op)]);
    Ok(())
}

fn scalar_memory<T: Lane, B: Narrow, O: Operation>(cpu: &mut Cpu, op: &Op) -> Result<(), Exit> {
    cpu.require_sse()?;
    let b = lowest::<T>(load_narrow::<B>(cpu, op)?);
    let a = lowest::<T>(cpu.xmm[dst(op)]);
    let result = scalar::<T, O>(cpu, a, b)?;
    cpu.xmm[dst(op)] = result.insert(cpu.xmm[dst(op)]);
    Ok(())
}

#[inline(always)]
fn packed_register<T: Lane, O: Operation>(
    cpu: &mut Cpu,
    op: &Op,
    arrange: impl Fn(Vector, Vector) -> (Vector, Vector),
) -> Result<(), Exit> {
    cpu.require_sse()?;
    let (a, b) = arrange(cpu.xmm[dst(op)], cpu.xmm[src(op)]);
    cpu.xmm[dst(op)] = packed::<T, O>(cpu, a, b)?;
    Ok(())
}

#[inline(always)]
fn packed_memory<T: Lane, O: Operation>(
    cpu: &mut Cpu,
    op: &Op,
    arrange: impl Fn(Vector, Vector) -> (Vector, Vector),
) -> Result<(), Exit> {
    cpu.require_sse()?;
    let source = load_aligned(cpu, op)?;
    let (a, b) = arrange(cpu.xmm[dst(op)], source);
    cpu.xmm[dst(op)] = packed::<T, O>(cpu, a, b)?;
    Ok(())
}

/// Even and odd lanes of both operands, one after the other.
#[inline(always)]
fn pairs32(a: Vector, b: Vector) -> (Vector, Vector) {
    let (a, b) = (a.u32s(), b.u32s());
    (
        [a[0], a[2], b[0], b[2]].into(),
        [a[1], a[3], b[1], b[3]].into(),
    )
}

#[inline(always)]
fn pairs64(a: Vector, b: Vector) -> (Vector, Vector) {
    (
        [a.low64(), b.low64()].into(),
        [a.high64(), b.high64()].into(),
    )
}

struct Add;
impl Operation for Add {
    const ROUNDS: bool = true;
    #[inline(always)]
    fn quick<T: Lane>(_: usize, a: T, b: T) -> (T, bool) {
        // A tiny sum is exact, so only overflow needs care.
        let sum = a.add(b);
        (sum, a.ordinary() & b.ordinary() & sum.ordinary())
    }
    fn exact<T: Lane>(context: &mut Context, _: usize, a: Number, b: Number) -> Number {
        context.add(T::FORMAT, a, b)
    }
}

struct Subtract;
impl Operation for Subtract {
    const ROUNDS: bool = true;
    #[inline(always)]
    fn quick<T: Lane>(_: usize, a: T, b: T) -> (T, bool) {
        let difference = a.sub(b);
        (
            difference,
            a.ordinary() & b.ordinary() & difference.ordinary(),
        )
    }
    fn exact<T: Lane>(context: &mut Context, _: usize, a: Number, b: Number) -> Number {
        context.subtract(T::FORMAT, a, b)
    }
}

/// ADDSUB: even lanes subtract, odd lanes add.
struct Alternate;
impl Operation for Alternate {
    const ROUNDS: bool = true;
    #[inline(always)]
    fn quick<T: Lane>(i: usize, a: T, b: T) -> (T, bool) {
        if i.is_multiple_of(2) {
            Subtract::quick(i, a, b)
        } else {
            Add::quick(i, a, b)
        }
    }
    fn exact<T: Lane>(context: &mut Context, i: usize, a: Number, b: Number) -> Number {
        if i.is_multiple_of(2) {
            context.subtract(T::FORMAT, a, b)
        } else {
            context.add(T::FORMAT, a, b)
        }
    }
}

struct Multiply;
impl Operation for Multiply {
    const ROUNDS: bool = true;
    #[inline(always)]
    fn quick<T: Lane>(_: usize, a: T, b: T) -> (T, bool) {
        let product = a.mul(b);
        let exact_zero = a.zero() | b.zero();
        (
            product,
            a.ordinary() & b.ordinary() & (product.surely_normal() | exact_zero),
        )
    }
    fn exact<T: Lane>(context: &mut Context, _: usize, a: Number, b: Number) -> Number {
        context.multiply(T::FORMAT, a, b)
    }
}

struct Divide;
impl Operation for Divide {
    const ROUNDS: bool = true;
    #[inline(always)]
    fn quick<T: Lane>(_: usize, a: T, b: T) -> (T, bool) {
        let quotient = a.div(b);
        let sure = quotient.surely_normal() | (a.zero() & !b.zero());
        (quotient, a.ordinary() & b.ordinary() & sure)
    }
    fn exact<T: Lane>(context: &mut Context, _: usize, a: Number, b: Number) -> Number {
        context.divide(T::FORMAT, a, b)
    }
}

struct SquareRoot;
impl Operation for SquareRoot {
    const ROUNDS: bool = true;
    #[inline(always)]
    fn quick<T: Lane>(_: usize, _: T, b: T) -> (T, bool) {
        (b.sqrt(), b.ordinary() & (b.positive() | b.zero()))
    }
    fn exact<T: Lane>(context: &mut Context, _: usize, _: Number, b: Number) -> Number {
        context.square_root(T::FORMAT, b)
    }
}

/// The smaller operand; the second when they are equal or unordered.
struct Minimum;
impl Operation for Minimum {
    const ROUNDS: bool = false;
    #[inline(always)]
    fn quick<T: Lane>(_: usize, a: T, b: T) -> (T, bool) {
        (if a.less(b) { a } else { b }, a.ordinary() & b.ordinary())
    }
    fn exact<T: Lane>(context: &mut Context, _: usize, a: Number, b: Number) -> Number {
        context.choose(a, b, std::cmp::Ordering::Less)
    }
}

struct Maximum;
impl Operation for Maximum {
    const ROUNDS: bool = false;
    #[inline(always)]
    fn quick<T: Lane>(_: usize, a: T, b: T) -> (T, bool) {
        (if b.less(a) { a } else { b }, a.ordinary() & b.ordinary())
    }
    fn exact<T: Lane>(context: &mut Context, _: usize, a: Number, b: Number) -> Number {
        context.choose(a, b, std::cmp::Ordering::Greater)
    }
}

/// DPPS and DPPD: products of the lanes that bits 4-7 select, summed in pairs, into the lanes that
/// bits 0-3 select. Each stage rounds, and may fault before the next.
fn dot<T: Lane, const MEMORY: bool>(cpu: &mut Cpu, op: &Op) -> Result<(), Exit> {
    cpu.require_sse()?;
    let source = if MEMORY {
        load_aligned(cpu, op)?
    } else {
        cpu.xmm[src(op)]
    };
    let control = op.immediate as u8;
    let format: Format = T::FORMAT;
    let mut context = Context::from_mxcsr(cpu.mxcsr);
    let (a, b) = (T::lanes(cpu.xmm[dst(op)]), T::lanes(source));
    let mut terms = [Number::zero(false); 4];
    for (i, ((term, a), b)) in terms.iter_mut().zip(a.as_ref()).zip(b.as_ref()).enumerate() {
        if control >> (4 + i) & 1 != 0 {
            *term = context.multiply(format, a.unpack(), b.unpack());
        }
    }
    finish(cpu, &context)?;
    let reload = |number: Number| T::pack(number).unpack();
    let [p, q, r, s] = terms.map(reload);
    let mut sum = context.add(format, p, q);
    if size_of::<T>() == 4 {
        let other = context.add(format, r, s);
        finish(cpu, &context)?;
        sum = context.add(format, reload(sum), reload(other));
    }
    finish(cpu, &context)?;
    let mut results = a;
    for (i, result) in results.as_mut().iter_mut().enumerate() {
        *result = if control >> i & 1 != 0 {
            T::pack(sum)
        } else {
            T::default()
        };
    }
    cpu.xmm[dst(op)] = T::vector(results);
    Ok(())
}

impl Context {
    /// MIN and MAX: `a` when it compares as `wanted`, else `b` unchanged, even a signaling NaN.
    fn choose(&mut self, a: Number, b: Number, wanted: std::cmp::Ordering) -> Number {
        let order = self.compare(a, b, false);
        let chosen = if order == Some(wanted) { a } else { b };
        if self.denormals_are_zero && chosen.denormal {
            return Number::zero(chosen.negative);
        }
        chosen
    }
}
