//! Against an independent implementation (LLVM's, as `rustc_apfloat`) and the host's own numbers.

use super::*;
use rustc_apfloat::{
    Float, FloatConvert, Round, Status, StatusAnd,
    ieee::{Double, Single, X87DoubleExtended},
};

/// xorshift64*: any full-period generator will do.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    /// Few bits, many bits, corners.
    fn significand(&mut self) -> u64 {
        match self.next() % 4 {
            0 => self.next(),
            1 => self.next() << (self.next() % 64),
            2 => u64::MAX << (self.next() % 64),
            _ => 1 << (self.next() % 64),
        }
    }

    /// Exponents near each other, near the ends, anywhere.
    fn exponent(&mut self, all_ones: u64) -> u64 {
        let near = self.next() % 70;
        let exponent = match self.next() % 4 {
            0 => near,
            1 => all_ones - near,
            2 => all_ones / 2 + near - 35,
            _ => self.next(),
        };
        exponent & all_ones
    }

    fn single(&mut self) -> f32 {
        let fraction = (self.significand() >> 41) as u32;
        let exponent = self.exponent(0xFF) as u32;
        f32::from_bits((self.next() as u32) << 31 | exponent << 23 | fraction)
    }

    fn double(&mut self) -> f64 {
        let fraction = self.significand() >> 12;
        f64::from_bits(self.next() << 63 | self.exponent(0x7FF) << 52 | fraction)
    }

    /// No unsupported encodings: the other implementation has its own view of them.
    fn extended(&mut self) -> Extended {
        let exponent = self.exponent(0x7FFF) as u16;
        let integer = u64::from(exponent != 0) << 63;
        Extended {
            significand: self.significand() & !(1 << 63) | integer,
            sign_exponent: (self.next() as u16) << 15 | exponent,
        }
    }
}

const MODES: [(Rounding, Round); 4] = [
    (Rounding::Nearest, Round::NearestTiesToEven),
    (Rounding::Down, Round::TowardNegative),
    (Rounding::Up, Round::TowardPositive),
    (Rounding::Zero, Round::TowardZero),
];

fn context(rounding: Rounding) -> Context {
    Context {
        rounding,
        ..Context::from_mxcsr(0x1F80)
    }
}

/// Compares exceptions but `open` ones.
fn same_flags(ours: u8, theirs: Status, open: u8) -> bool {
    [
        (flag::INVALID, Status::INVALID_OP),
        (flag::DIVIDE, Status::DIV_BY_ZERO),
        (flag::OVERFLOW, Status::OVERFLOW),
        (flag::UNDERFLOW, Status::UNDERFLOW),
        (flag::INEXACT, Status::INEXACT),
    ]
    .into_iter()
    .filter(|(our, _)| open & our == 0)
    .all(|(our, their)| (ours & our != 0) == theirs.contains(their))
}

/// Checks one result: bits (but of NaNs, whose payloads have rules of their own) and exceptions.
fn check<E: Encoding, F: Float>(
    what: &str,
    bits: fn(E) -> u128,
    ours: Number,
    flags: u8,
    theirs: StatusAnd<F>,
) {
    if theirs.value.is_nan() {
        assert!(ours.is_nan(), "{what}: {ours:?}");
    } else {
        let packed = bits(E::pack(ours));
        assert_eq!(packed, theirs.value.to_bits(), "{what}: {ours:?}");
    }
    // The other side reports no overflow to the largest number, and no underflow of what becomes the
    // smallest normal number on the denormal grid.
    let open = if theirs.value.is_largest() {
        flag::OVERFLOW
    } else if theirs.value.is_smallest_normalized() {
        flag::UNDERFLOW
    } else {
        0
    };
    assert!(
        same_flags(flags, theirs.status, open),
        "{what}: flags {flags:#x}, {:?}",
        theirs.status
    );
}

fn arithmetic_agrees<E: Encoding + std::fmt::Debug, F: Float>(
    bits: fn(E) -> u128,
    mut operand: impl FnMut() -> E,
) {
    for i in 0..100_000 {
        let (rounding, round) = MODES[i % 4];
        let (a, b) = (operand(), operand());
        let (x, y) = (F::from_bits(bits(a)), F::from_bits(bits(b)));
        let (p, q) = (a.unpack(), b.unpack());
        let run = |name: &str, f: fn(&mut Context, Format, Number, Number) -> Number, theirs| {
            let mut context = context(rounding);
            let ours = f(&mut context, E::FORMAT, p, q);
            let what = format!("{a:?} {name} {b:?} {rounding:?}");
            check::<E, F>(&what, bits, ours, context.flags, theirs);
        };
        run("+", Context::add, x.add_r(y, round));
        run("-", Context::subtract, x.sub_r(y, round));
        run("*", Context::multiply, x.mul_r(y, round));
        run("/", Context::divide, x.div_r(y, round));
    }
}

#[test]
fn single_arithmetic() {
    let mut random = Random(1);
    arithmetic_agrees::<f32, Single>(|x| x.to_bits().into(), || random.single());
}

#[test]
fn double_arithmetic() {
    let mut random = Random(2);
    arithmetic_agrees::<f64, Double>(|x| x.to_bits().into(), || random.double());
}

#[test]
fn extended_arithmetic() {
    let mut random = Random(3);
    let bits = |x: Extended| u128::from(x.sign_exponent) << 64 | u128::from(x.significand);
    arithmetic_agrees::<Extended, X87DoubleExtended>(bits, || random.extended());
}

#[test]
fn conversions_between_formats() {
    let mut random = Random(4);
    for i in 0..100_000 {
        let (rounding, round) = MODES[i % 4];
        let value = random.double();
        let mut context = context(rounding);
        let ours = context.convert(Format::SINGLE, value.unpack());
        let theirs: StatusAnd<Single> =
            Double::from_bits(value.to_bits().into()).convert_r(round, &mut false);
        let bits = |x: f32| x.to_bits().into();
        check(&format!("{value:?}"), bits, ours, context.flags, theirs);
    }
}

#[test]
fn conversions_to_integers() {
    let mut random = Random(5);
    for i in 0..100_000 {
        let (rounding, round) = MODES[i % 4];
        let value = random.double();
        for bits in [16, 32, 64] {
            let mut context = context(rounding);
            let ours = context.to_integer(value.unpack(), bits);
            let theirs = Double::from_bits(value.to_bits().into()).to_i128_r(
                bits as usize,
                round,
                &mut false,
            );
            if theirs.status == Status::INVALID_OP {
                assert_eq!((ours, context.flags), (None, flag::INVALID), "{value:?}");
            } else {
                assert_eq!(ours.map(i128::from), Some(theirs.value), "{value:?}");
                assert!(same_flags(context.flags, theirs.status, 0), "{value:?}");
            }
        }
    }
}

/// The host rounds square roots correctly, to nearest.
#[test]
fn square_roots() {
    let mut random = Random(6);
    for _ in 0..100_000 {
        let (single, double) = (random.single().abs(), random.double().abs());
        let root = |format, number| context(Rounding::Nearest).square_root(format, number);
        if !single.is_nan() {
            assert_eq!(
                f32::pack(root(Format::SINGLE, single.unpack())),
                single.sqrt()
            );
        }
        if !double.is_nan() {
            assert_eq!(
                f64::pack(root(Format::DOUBLE, double.unpack())),
                double.sqrt()
            );
        }
    }
}

/// Tiny after rounding with unbounded exponent, though the denormal grid rounds it to the smallest
/// normal number.
#[test]
fn underflow_is_detected_after_rounding() {
    let below_one = f32::from_bits(0x3F7F_FFFF);
    let mut context = context(Rounding::Nearest);
    let product = context.multiply(
        Format::SINGLE,
        f32::MIN_POSITIVE.unpack(),
        below_one.unpack(),
    );
    assert_eq!(f32::pack(product), f32::MIN_POSITIVE);
    assert_eq!(context.flags, flag::UNDERFLOW | flag::INEXACT);
}

#[test]
fn flushing_to_zero() {
    let mut context = Context::from_mxcsr(0x9FC0);
    let tiny = context.multiply(
        Format::DOUBLE,
        f64::MIN_POSITIVE.unpack(),
        (-0.5_f64).unpack(),
    );
    assert_eq!(f64::pack(tiny).to_bits(), (-0.0_f64).to_bits());
    assert_eq!(context.flags, flag::UNDERFLOW | flag::INEXACT);
    context.flags = 0;
    let denormal = f64::from_bits(1).unpack();
    let sum = context.add(Format::DOUBLE, denormal, denormal);
    assert_eq!((sum, context.flags), (Number::zero(false), 0));
}
