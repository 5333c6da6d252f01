//! Addition, multiplication, division, square root, comparison, conversion between formats.

use super::{Class, Context, Format, Number, Rounding, flag, round::shift_right_sticky};
use std::cmp::Ordering;

impl Context {
    pub fn add(&mut self, format: Format, a: Number, b: Number) -> Number {
        let (a, b) = (self.operand(a), self.operand(b));
        if let Some(nan) = self.propagate(a, b) {
            return nan;
        }
        if a.class == Class::Infinity && b.class == Class::Infinity && a.negative != b.negative {
            return self.invalid();
        }
        self.note_denormals(&[a, b]);
        match (a.class, b.class) {
            (Class::Infinity, _) => a,
            (_, Class::Infinity) => b,
            (Class::Zero, Class::Zero) if a.negative == b.negative => a,
            (Class::Zero, Class::Zero) => Number::zero(self.rounding == Rounding::Down),
            (Class::Zero, _) => self.round_number(format, b),
            (_, Class::Zero) => self.round_number(format, a),
            _ => self.add_finite(format, a, b),
        }
    }

    fn add_finite(&mut self, format: Format, a: Number, b: Number) -> Number {
        let (a, b) = match magnitude(a).cmp(&magnitude(b)) {
            Ordering::Equal if a.negative != b.negative => {
                return Number::zero(self.rounding == Rounding::Down);
            }
            Ordering::Less => (b, a),
            _ => (a, b),
        };
        // One bit of headroom for the carry; 63 bits below the significand for alignment.
        let distance = (a.exponent - b.exponent) as u32;
        let large = u128::from(a.significand) << 63;
        let small = shift_right_sticky(u128::from(b.significand) << 63, distance);
        let sum = if a.negative == b.negative {
            large + small
        } else {
            large - small
        };
        let shift = sum.leading_zeros();
        self.round(
            format,
            a.negative,
            a.exponent + 1 - shift as i32,
            sum << shift,
        )
    }

    pub fn subtract(&mut self, format: Format, a: Number, b: Number) -> Number {
        // A NaN goes through with its own sign.
        self.add(format, a, if b.is_nan() { b } else { b.negated() })
    }

    pub fn multiply(&mut self, format: Format, a: Number, b: Number) -> Number {
        let (a, b) = (self.operand(a), self.operand(b));
        if let Some(nan) = self.propagate(a, b) {
            return nan;
        }
        let negative = a.negative != b.negative;
        match (a.class, b.class) {
            (Class::Infinity, Class::Zero) | (Class::Zero, Class::Infinity) => {
                return self.invalid();
            }
            _ => self.note_denormals(&[a, b]),
        }
        match (a.class, b.class) {
            (Class::Infinity, _) | (_, Class::Infinity) => Number::infinity(negative),
            (Class::Zero, _) | (_, Class::Zero) => Number::zero(negative),
            _ => {
                let product = u128::from(a.significand) * u128::from(b.significand);
                let shift = product.leading_zeros();
                let exponent = a.exponent + b.exponent + 1 - shift as i32;
                self.round(format, negative, exponent, product << shift)
            }
        }
    }

    pub fn divide(&mut self, format: Format, a: Number, b: Number) -> Number {
        let (a, b) = (self.operand(a), self.operand(b));
        if let Some(nan) = self.propagate(a, b) {
            return nan;
        }
        let negative = a.negative != b.negative;
        match (a.class, b.class) {
            (Class::Infinity, Class::Infinity) | (Class::Zero, Class::Zero) => self.invalid(),
            (Class::Finite, Class::Zero) => {
                self.raise(flag::DIVIDE);
                Number::infinity(negative)
            }
            (Class::Infinity, _) => {
                self.note_denormals(&[b]);
                Number::infinity(negative)
            }
            (Class::Zero, _) | (_, Class::Infinity) => {
                self.note_denormals(&[a, b]);
                Number::zero(negative)
            }
            _ => {
                self.note_denormals(&[a, b]);
                let (exponent, quotient) = quotient(a, b);
                self.round(format, negative, exponent, quotient)
            }
        }
    }

    pub fn square_root(&mut self, format: Format, a: Number) -> Number {
        let a = self.operand(a);
        if let Some(nan) = self.propagate_one(a) {
            return nan;
        }
        match a.class {
            Class::Zero => return a,
            _ if a.negative => return self.invalid(),
            Class::Infinity => return a,
            _ => self.note_denormals(&[a]),
        }
        // The root of a 128-bit integer has 64 bits; the remainder says which side of the middle
        // between two roots the exact one lies on (it is never in the middle).
        let odd = a.exponent & 1;
        let radicand = u128::from(a.significand) << (63 + odd);
        let root = radicand.isqrt();
        let remainder = radicand - root * root;
        let significand =
            root << 64 | u128::from(remainder > root) << 63 | u128::from(remainder != 0);
        self.round(format, false, (a.exponent - odd) / 2, significand)
    }

    /// `None` when unordered. `quiet` comparisons (UCOMIS, FUCOM) accept quiet NaNs.
    pub fn compare(&mut self, a: Number, b: Number, quiet: bool) -> Option<Ordering> {
        let (a, b) = (self.operand(a), self.operand(b));
        if self.propagate(a, b).is_some() {
            if !quiet {
                self.raise(flag::INVALID);
            }
            return None;
        }
        self.note_denormals(&[a, b]);
        if a.class == Class::Zero && b.class == Class::Zero {
            return Some(Ordering::Equal);
        }
        let order = match (a.negative, b.negative) {
            (false, true) => Ordering::Greater,
            (true, false) => Ordering::Less,
            (false, false) => magnitude(a).cmp(&magnitude(b)),
            (true, true) => magnitude(b).cmp(&magnitude(a)),
        };
        Some(order)
    }

    /// `number` in another format.
    pub fn convert(&mut self, format: Format, number: Number) -> Number {
        let number = self.operand(number);
        if let Some(nan) = self.propagate_one(number) {
            return nan;
        }
        self.note_denormals(&[number]);
        match number.class {
            Class::Finite => self.round_number(format, number),
            _ => number,
        }
    }
}

/// A key that orders magnitudes of numbers that are not NaN.
fn magnitude(number: Number) -> (u8, i32, u64) {
    match number.class {
        Class::Zero => (0, 0, 0),
        Class::Finite => (1, number.exponent, number.significand),
        _ => (2, 0, 0),
    }
}

/// Exponent and 128-bit significand of `a / b`, the lowest bit sticky.
pub fn quotient(a: Number, b: Number) -> (i32, u128) {
    let divisor = u128::from(b.significand);
    let smaller = i32::from(a.significand < b.significand);
    let dividend = u128::from(a.significand) << (63 + smaller);
    let (high, rest) = (dividend / divisor, (dividend % divisor) << 64);
    let (low, rest) = (rest / divisor, rest % divisor);
    let quotient = high << 64 | low | u128::from(rest != 0);
    (a.exponent - b.exponent - smaller, quotient)
}
