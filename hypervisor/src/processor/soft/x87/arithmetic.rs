//! Arithmetic: add, subtract, multiply, divide with every kind of operand, square root, sign,
//! rounding, remainder, scaling, taking apart.

use super::{stack::in_range, state::status};
use crate::memory::Plain;
use crate::processor::soft::{
    cpu::{Cpu, Exit},
    float::{Class, Context, Encoding, Extended, Format, Number, flag},
    op::{Handler, Op},
};
use iced_x86::{Code, Instruction};

type Binary = fn(&mut Context, Format, Number, Number) -> Number;

const ADD: Binary = Context::add;
const MULTIPLY: Binary = Context::multiply;
const SUBTRACT: Binary = Context::subtract;
const REVERSE_SUBTRACT: Binary = |context, format, a, b| context.subtract(format, b, a);
const DIVIDE: Binary = Context::divide;
const REVERSE_DIVIDE: Binary = |context, format, a, b| context.divide(format, b, a);

/// Every form of one operation: destination op source.
macro_rules! forms {
    ($code:expr, $f:expr; $m32:ident $m64:ident $i32:ident $i16:ident $st0:ident
     $sti:ident $stip:ident) => {
        match $code {
            Code::$m32 => return Some(|cpu, op| memory::<f32>(cpu, op, $f)),
            Code::$m64 => return Some(|cpu, op| memory::<f64>(cpu, op, $f)),
            Code::$i32 => return Some(|cpu, op| memory::<i32>(cpu, op, $f)),
            Code::$i16 => return Some(|cpu, op| memory::<i16>(cpu, op, $f)),
            Code::$st0 => return Some(|cpu, op| registers(cpu, op, 0, $f)),
            Code::$sti => return Some(|cpu, op| registers(cpu, op, 0, $f)),
            Code::$stip => return Some(|cpu, op| registers(cpu, op, 1, $f)),
            _ => {}
        }
    };
}

pub fn select(i: &Instruction) -> Option<Handler> {
    let code = i.code();
    forms!(code, ADD; Fadd_m32fp Fadd_m64fp Fiadd_m32int Fiadd_m16int Fadd_st0_sti Fadd_sti_st0 Faddp_sti_st0);
    forms!(code, MULTIPLY; Fmul_m32fp Fmul_m64fp Fimul_m32int Fimul_m16int Fmul_st0_sti Fmul_sti_st0 Fmulp_sti_st0);
    forms!(code, SUBTRACT; Fsub_m32fp Fsub_m64fp Fisub_m32int Fisub_m16int Fsub_st0_sti Fsub_sti_st0 Fsubp_sti_st0);
    forms!(code, REVERSE_SUBTRACT; Fsubr_m32fp Fsubr_m64fp Fisubr_m32int Fisubr_m16int Fsubr_st0_sti Fsubr_sti_st0 Fsubrp_sti_st0);
    forms!(code, DIVIDE; Fdiv_m32fp Fdiv_m64fp Fidiv_m32int Fidiv_m16int Fdiv_st0_sti Fdiv_sti_st0 Fdivp_sti_st0);
    forms!(code, REVERSE_DIVIDE; Fdivr_m32fp Fdivr_m64fp Fidivr_m32int Fidivr_m16int Fdivr_st0_sti Fdivr_sti_st0 Fdivrp_sti_st0);
    Some(match code {
        Code::Fsqrt => fsqrt,
        Code::Fabs => |cpu, _| sign(cpu, |bits| bits & 0x7FFF),
        Code::Fchs => |cpu, _| sign(cpu, |bits| bits ^ 0x8000),
        Code::Frndint => frndint,
        Code::Fscale => fscale,
        Code::Fxtract => fxtract,
        Code::Fprem => |cpu, _| remainder::<false>(cpu),
        Code::Fprem1 => |cpu, _| remainder::<true>(cpu),
        _ => return None,
    })
}

/// A source operand in memory.
pub trait Source: Sized {
    type Bits: Plain;
    fn number(bits: Self::Bits) -> Number;
}
impl Source for f32 {
    type Bits = u32;
    fn number(bits: u32) -> Number {
        Self::from_bits(bits).unpack()
    }
}
impl Source for f64 {
    type Bits = u64;
    fn number(bits: u64) -> Number {
        Self::from_bits(bits).unpack()
    }
}
impl Source for i16 {
    type Bits = u16;
    fn number(bits: u16) -> Number {
        Number::from_i64((bits as i16).into())
    }
}
impl Source for i32 {
    type Bits = u32;
    fn number(bits: u32) -> Number {
        Number::from_i64((bits as i32).into())
    }
}
impl Source for i64 {
    type Bits = u64;
    fn number(bits: u64) -> Number {
        Number::from_i64(bits as i64)
    }
}

pub fn load<T: Source>(cpu: &mut Cpu, op: &Op) -> Result<Number, Exit> {
    Ok(T::number(cpu.load(cpu.effective_address(op))?))
}

/// ST(0) ← ST(0) op memory
fn memory<T: Source>(cpu: &mut Cpu, op: &Op, f: Binary) -> Result<(), Exit> {
    cpu.require_x87()?;
    let source = load::<T>(cpu, op)?;
    let format = cpu.x87.format();
    cpu.unary_x87(|context, a| f(context, format, a, source));
    Ok(())
}

/// Destination ← destination op source, then pops.
fn registers(cpu: &mut Cpu, op: &Op, pops: u8, f: Binary) -> Result<(), Exit> {
    cpu.require_x87()?;
    let (into, from) = (op.dst, op.src);
    if cpu.x87.is_empty(into) || cpu.x87.is_empty(from) {
        if cpu.stack_fault(false) {
            cpu.x87.set_number(into, Number::INDEFINITE);
            cpu.x87.pops(pops);
        }
        return Ok(());
    }
    let mut context = cpu.x87.context();
    let (x, y) = (cpu.x87.st(into).unpack(), cpu.x87.st(from).unpack());
    let result = f(&mut context, cpu.x87.format(), x, y);
    if cpu.note_x87(&context) {
        cpu.x87.set_number(into, result);
        cpu.x87.pops(pops);
    }
    Ok(())
}

fn fsqrt(cpu: &mut Cpu, _: &Op) -> Result<(), Exit> {
    cpu.require_x87()?;
    let format = cpu.x87.format();
    cpu.unary_x87(|context, a| context.square_root(format, a));
    Ok(())
}

/// FABS and FCHS act on the encoding, whatever it is.
fn sign(cpu: &mut Cpu, f: impl Fn(u16) -> u16) -> Result<(), Exit> {
    cpu.require_x87()?;
    if cpu.x87.is_empty(0) {
        if cpu.stack_fault(false) {
            cpu.x87.set_number(0, Number::INDEFINITE);
        }
        return Ok(());
    }
    cpu.x87.clear_c1();
    let register = cpu.x87.st_mut(0);
    register.sign_exponent = f(register.sign_exponent);
    Ok(())
}

fn frndint(cpu: &mut Cpu, _: &Op) -> Result<(), Exit> {
    cpu.require_x87()?;
    cpu.unary_x87(|context, a| {
        if let Some(nan) = context.propagate_one(a) {
            return nan;
        }
        if a.denormal {
            context.raise(flag::DENORMAL);
        }
        context.to_integral(a)
    });
    Ok(())
}

fn fscale(cpu: &mut Cpu, _: &Op) -> Result<(), Exit> {
    cpu.require_x87()?;
    cpu.binary_x87(0, 0, |context, a, b| {
        if let Some(nan) = context.propagate(a, b) {
            return nan;
        }
        match (a.class, b.class) {
            (Class::Zero, Class::Infinity) if !b.negative => return context.invalid(),
            (Class::Infinity, Class::Infinity) if b.negative => return context.invalid(),
            _ => {}
        }
        if a.denormal || b.denormal {
            context.raise(flag::DENORMAL);
        }
        match (a.class, b.class) {
            (Class::Zero | Class::Infinity, _) => a,
            (_, Class::Infinity) if b.negative => Number::zero(a.negative),
            (_, Class::Infinity) => Number::infinity(a.negative),
            (_, Class::Zero) => context.round_number(Format::EXTENDED, a),
            _ => {
                // Far enough to overflow or vanish from anywhere in the range.
                const FAR: i32 = 0x1_0000;
                let whole = match b.exponent {
                    ..0 => 0,
                    0..16 => (b.significand >> (63 - b.exponent)) as i32,
                    _ => FAR,
                };
                let distance = if b.negative { -whole } else { whole };
                let scaled = Number {
                    exponent: a.exponent + distance,
                    ..a
                };
                let rounded = context.round_number(Format::EXTENDED, scaled);
                let result = in_range(context, rounded);
                if result != rounded {
                    context.raise(flag::INEXACT);
                    context.rounded_up = result.class == Class::Infinity;
                }
                result
            }
        }
    });
    Ok(())
}

/// FXTRACT: ST(0) becomes its exponent, then its significand is pushed.
fn fxtract(cpu: &mut Cpu, _: &Op) -> Result<(), Exit> {
    cpu.require_x87()?;
    let underflow = cpu.x87.is_empty(0);
    if underflow || !cpu.x87.is_empty(7) {
        if cpu.stack_fault(!underflow) {
            let indefinite = Extended::pack(Number::INDEFINITE);
            cpu.x87.set(0, indefinite);
            cpu.x87.push(indefinite);
        }
        return Ok(());
    }
    let mut context = cpu.x87.context();
    let a = cpu.x87.st(0).unpack();
    let (exponent, significand) = if let Some(nan) = context.propagate_one(a) {
        (nan, nan)
    } else {
        if a.denormal {
            context.raise(flag::DENORMAL);
        }
        match a.class {
            Class::Infinity => (Number::infinity(false), a),
            Class::Finite => (
                Number::from_i64(a.exponent.into()),
                Number { exponent: 0, ..a },
            ),
            _ => {
                context.raise(flag::DIVIDE);
                (Number::infinity(true), a)
            }
        }
    };
    if cpu.note_x87(&context) {
        cpu.x87.set_number(0, exponent);
        cpu.x87.push(Encoding::pack(significand));
    }
    Ok(())
}

/// A remainder step: the result, the low bits of the quotient, and whether it is complete.
struct Reduced {
    result: Number,
    quotient: u64,
    complete: bool,
}

fn remainder<const NEAREST: bool>(cpu: &mut Cpu) -> Result<(), Exit> {
    cpu.require_x87()?;
    let mut condition = None;
    cpu.binary_x87(0, 0, |context, a, b| {
        if let Some(nan) = context.propagate(a, b) {
            return nan;
        }
        if a.class == Class::Infinity || b.class == Class::Zero {
            return context.invalid();
        }
        if a.denormal || b.denormal {
            context.raise(flag::DENORMAL);
        }
        let reduced = if a.class == Class::Zero || b.class == Class::Infinity {
            Reduced {
                result: a,
                quotient: 0,
                complete: true,
            }
        } else {
            reduce(a, b, NEAREST)
        };
        let bit = |position: u32, flag: u16| {
            if reduced.quotient >> position & 1 != 0 {
                flag
            } else {
                0
            }
        };
        condition = Some(if reduced.complete {
            bit(0, status::C1) | bit(1, status::C3) | bit(2, status::C0)
        } else {
            status::C2
        });
        match reduced.result.class {
            Class::Finite => context.round_number(Format::EXTENDED, reduced.result),
            _ => reduced.result,
        }
    });
    let mask = status::C0 | status::C1 | status::C2 | status::C3;
    match condition {
        Some(condition) => cpu.x87.set_condition(mask, condition),
        None => cpu.x87.set_condition(status::C2, 0),
    }
    Ok(())
}

/// Exact `a - q b`. Exponents less than 64 apart finish in one step; further apart, `a` is brought
/// 32 to 63 bits closer.
fn reduce(a: Number, b: Number, nearest: bool) -> Reduced {
    let distance = a.exponent - b.exponent;
    if distance < -1 || (distance == -1 && !nearest) {
        return Reduced {
            result: a,
            quotient: 0,
            complete: true,
        };
    }
    let (dividend, divisor) = (u128::from(a.significand), u128::from(b.significand));
    let complete = distance < 64;
    let bits = if complete {
        distance
    } else {
        32 + distance % 32
    };
    let (dividend, divisor, unit) = if bits < 0 {
        (dividend, divisor << 1, a.exponent)
    } else {
        (dividend << bits, divisor, a.exponent - bits)
    };
    let (mut quotient, mut rest) = (dividend / divisor, dividend % divisor);
    let mut negative = a.negative;
    if nearest && complete && (2 * rest > divisor || (2 * rest == divisor && quotient & 1 != 0)) {
        quotient += 1;
        rest = divisor - rest;
        negative = !negative;
    }
    let result = if rest == 0 {
        Number::zero(a.negative)
    } else {
        let rest = rest as u64;
        let shift = rest.leading_zeros();
        Number::finite(negative, unit - shift as i32, rest << shift)
    };
    Reduced {
        result,
        quotient: quotient as u64,
        complete,
    }
}
