//! FSIN, FCOS, FSINCOS, FPTAN, FPATAN, F2XM1, FYL2X, FYL2XP1.

use super::{
    functions::{arc_tangent, logarithm, logarithm_of_one_plus, power_minus_one, sine_cosine},
    state::status,
};
use crate::processor::soft::{
    cpu::{Cpu, Exit},
    float::{Class, Context, Encoding, Extended, Format, Number, Wide, flag},
    op::{Handler, Op},
};
use iced_x86::{Code, Instruction};

pub fn select(i: &Instruction) -> Option<Handler> {
    Some(match i.code() {
        Code::Fsin => |cpu, _| trigonometric(cpu, sine, None),
        Code::Fcos => |cpu, _| trigonometric(cpu, cosine, None),
        Code::Fsincos => |cpu, _| trigonometric(cpu, sine, Some(cosine)),
        Code::Fptan => |cpu, _| trigonometric(cpu, tangent, Some(|_, _| Number::from_i64(1))),
        Code::Fpatan => |cpu, op| two_operands(cpu, op, fpatan),
        Code::F2xm1 => f2xm1,
        Code::Fyl2x => |cpu, op| two_operands(cpu, op, fyl2x),
        Code::Fyl2xp1 => |cpu, op| two_operands(cpu, op, fyl2xp1),
        _ => return None,
    })
}

type Function = fn(&mut Context, Number) -> Number;

fn sine(context: &mut Context, x: Number) -> Number {
    if x.class == Class::Zero {
        return x;
    }
    sine_cosine(x).0.round(context)
}

fn cosine(context: &mut Context, x: Number) -> Number {
    if x.class == Class::Zero {
        return Number::from_i64(1);
    }
    sine_cosine(x).1.round(context)
}

fn tangent(context: &mut Context, x: Number) -> Number {
    if x.class == Class::Zero {
        return x;
    }
    let (sine, cosine) = sine_cosine(x);
    sine.divide(cosine).round(context)
}

/// Replaces ST(0) by `first` of it and pushes `second` of it.
fn trigonometric(cpu: &mut Cpu, first: Function, second: Option<Function>) -> Result<(), Exit> {
    cpu.require_x87()?;
    cpu.x87.set_condition(status::C2, 0);
    let underflow = cpu.x87.is_empty(0);
    if underflow || (second.is_some() && !cpu.x87.is_empty(7)) {
        if cpu.stack_fault(!underflow) {
            let indefinite = Extended::pack(Number::INDEFINITE);
            cpu.x87.set(0, indefinite);
            if second.is_some() {
                cpu.x87.push(indefinite);
            }
        }
        return Ok(());
    }
    let x = cpu.x87.st(0).unpack();
    if x.class == Class::Finite && x.exponent >= 63 {
        // Out of range: nothing happens, and C2 says so.
        cpu.x87.set_condition(status::C1 | status::C2, status::C2);
        return Ok(());
    }
    let mut context = cpu.x87.context();
    let special = context.propagate_one(x).or_else(|| {
        if x.denormal {
            context.raise(flag::DENORMAL);
        }
        (x.class == Class::Infinity).then(|| context.invalid())
    });
    let result = special.unwrap_or_else(|| first(&mut context, x));
    let pushed = second.map(|second| special.unwrap_or_else(|| second(&mut context, x)));
    if cpu.note_x87(&context) {
        cpu.x87.set_number(0, result);
        if let Some(pushed) = pushed {
            cpu.x87.push(Extended::pack(pushed));
        }
    }
    Ok(())
}

/// ST(1) ← f(ST(0), ST(1)), then pops.
fn two_operands(
    cpu: &mut Cpu,
    _: &Op,
    f: fn(&mut Context, Number, Number) -> Number,
) -> Result<(), Exit> {
    cpu.require_x87()?;
    cpu.binary_x87(1, 1, |context, x, y| {
        context.propagate(x, y).unwrap_or_else(|| f(context, x, y))
    });
    Ok(())
}

fn note_denormals(context: &mut Context, x: Number, y: Number) {
    if x.denormal || y.denormal {
        context.raise(flag::DENORMAL);
    }
}

fn fpatan(context: &mut Context, x: Number, y: Number) -> Number {
    note_denormals(context, x, y);
    let unit = |number: Number| Wide {
        negative: number.negative,
        ..Wide::ONE
    };
    let (wide_x, wide_y) = match (x.class, y.class) {
        (Class::Infinity, Class::Infinity) => (unit(x), unit(y)),
        (Class::Infinity, _) | (Class::Zero, Class::Zero) => {
            if !x.negative {
                return Number::zero(y.negative);
            }
            let straight = Wide {
                negative: y.negative,
                ..Wide::PI
            };
            return straight.round(context);
        }
        (_, Class::Infinity) => (Wide::ZERO, unit(y)),
        (_, Class::Zero) if !x.negative => return y,
        _ => {
            let mut wide_y = Wide::from_number(y);
            wide_y.negative = y.negative;
            (Wide::from_number(x), wide_y)
        }
    };
    arc_tangent(wide_y, wide_x).round(context)
}

fn f2xm1(cpu: &mut Cpu, _: &Op) -> Result<(), Exit> {
    cpu.require_x87()?;
    cpu.unary_x87(|context, x| {
        if let Some(nan) = context.propagate_one(x) {
            return nan;
        }
        if x.denormal {
            context.raise(flag::DENORMAL);
        }
        match x.class {
            Class::Infinity if x.negative => Number::finite(true, 0, 1 << 63),
            Class::Zero | Class::Infinity => x,
            // From -1 and 1 on: the result is exact there, and the operand stays beyond, but AMD's
            // processors report inexactness all the same.
            _ if x.exponent >= 0 => {
                context.raise(flag::INEXACT);
                let minus_one = x.exponent == 0 && x.significand == 1 << 63 && x.negative;
                Number {
                    exponent: if minus_one { -1 } else { x.exponent },
                    ..x
                }
            }
            _ => power_minus_one(Wide::from_number(x)).round(context),
        }
    });
    Ok(())
}

/// The result of `y * log` when one of them is zero or infinite; `log` may be either.
fn special_product(context: &mut Context, y: Number, log: Number) -> Number {
    let negative = y.negative != log.negative;
    match (y.class, log.class) {
        (Class::Infinity, Class::Zero) | (Class::Zero, Class::Infinity) => context.invalid(),
        (Class::Infinity, _) | (_, Class::Infinity) => Number::infinity(negative),
        _ => Number::zero(negative),
    }
}

fn fyl2x(context: &mut Context, x: Number, y: Number) -> Number {
    if x.negative && x.class != Class::Zero {
        return context.invalid();
    }
    if x.class == Class::Zero && y.class == Class::Finite {
        context.raise(flag::DIVIDE);
        return Number::infinity(!y.negative);
    }
    note_denormals(context, x, y);
    let power_of_two = x.class == Class::Finite && x.significand == 1 << 63;
    let log = match x.class {
        Class::Zero => Number::infinity(true),
        Class::Infinity => x,
        _ if power_of_two => Number::from_i64(x.exponent.into()),
        _ => Number::finite(x.exponent < 0, 0, 1 << 63),
    };
    if y.class != Class::Finite || log.class != Class::Finite {
        return special_product(context, y, log);
    }
    if power_of_two {
        let y = Number {
            denormal: false,
            ..y
        };
        return context.multiply(Format::EXTENDED, y, log);
    }
    logarithm(x).multiply(Wide::from_number(y)).round(context)
}

fn fyl2xp1(context: &mut Context, x: Number, y: Number) -> Number {
    note_denormals(context, x, y);
    if x.class != Class::Finite || y.class != Class::Finite {
        return special_product(context, y, x);
    }
    let wide = Wide::from_number(x);
    // The architecture defines this for -(1 - sqrt(1/2)) <= x <= sqrt(2) - 1.
    let logarithm = if x.exponent < -1 {
        logarithm_of_one_plus(wide)
    } else {
        let sum = Wide::ONE.plus(wide);
        if sum.negative || sum.is_zero() {
            // Far outside; the operand stays.
            context.raise(flag::INEXACT);
            return x;
        }
        let significand = (sum.significand >> 64) as u64;
        logarithm(Number::finite(false, sum.exponent, significand))
    };
    logarithm.multiply(Wide::from_number(y)).round(context)
}
