//! Floating point with 128-bit significands, truncating: the workbench of the transcendental
//! functions, precise enough that rounding its results to 64 bits is right but for rare ties.

use super::{Class, Context, Format, Number};

/// `significand * 2^(exponent - 127)`; bit 127 of the significand is set unless it is zero.
#[derive(Clone, Copy, Debug)]
pub struct Wide {
    pub negative: bool,
    pub exponent: i32,
    pub significand: u128,
}

impl Wide {
    pub const ZERO: Self = Self::constant(0, 0);
    pub const ONE: Self = Self::constant(0, 1 << 127);
    pub const LN_2: Self = Self::constant(-1, 0xB172_17F7_D1CF_79AB_C9E3_B398_03F2_F6AF);
    pub const LOG2_E: Self = Self::constant(0, 0xB8AA_3B29_5C17_F0BB_BE87_FED0_691D_3E88);
    pub const PI: Self = Self::constant(1, 0xC90F_DAA2_2168_C234_C4C6_628B_80DC_1CD1);

    pub const fn constant(exponent: i32, significand: u128) -> Self {
        Self {
            negative: false,
            exponent,
            significand,
        }
    }

    /// Infinities and NaNs have no place here; they become zero.
    pub fn from_number(number: Number) -> Self {
        match number.class {
            Class::Finite => Self {
                negative: number.negative,
                exponent: number.exponent,
                significand: u128::from(number.significand) << 64,
            },
            _ => Self::ZERO,
        }
    }

    /// `integer * 2^(unit)`
    pub fn from_integer(integer: i128, unit: i32) -> Self {
        let magnitude = integer.unsigned_abs();
        if magnitude == 0 {
            return Self::ZERO;
        }
        let shift = magnitude.leading_zeros();
        Self {
            negative: integer < 0,
            exponent: unit + 127 - shift as i32,
            significand: magnitude << shift,
        }
    }

    fn normalized(negative: bool, exponent: i32, significand: u128) -> Self {
        if significand == 0 {
            return Self::ZERO;
        }
        let shift = significand.leading_zeros();
        Self {
            negative,
            exponent: exponent - shift as i32,
            significand: significand << shift,
        }
    }

    pub fn is_zero(self) -> bool {
        self.significand == 0
    }

    pub fn negated(self) -> Self {
        Self {
            negative: !self.negative,
            ..self
        }
    }

    pub fn absolute(self) -> Self {
        Self {
            negative: false,
            ..self
        }
    }

    pub fn scaled(self, by: i32) -> Self {
        Self {
            exponent: self.exponent + by,
            ..self
        }
    }

    pub fn plus(self, other: Self) -> Self {
        if self.is_zero() {
            return other;
        }
        if other.is_zero() {
            return self;
        }
        let key = |wide: Self| (wide.exponent, wide.significand);
        let (large, small) = if key(self) >= key(other) {
            (self, other)
        } else {
            (other, self)
        };
        let distance = (large.exponent - small.exponent) as u32;
        let a = large.significand >> 1;
        // However small, it must show in a difference.
        let b = (small.significand >> 1)
            .checked_shr(distance)
            .unwrap_or(0)
            .max(1);
        let sum = if large.negative == small.negative {
            a + b
        } else {
            a - b
        };
        Self::normalized(large.negative, large.exponent + 1, sum)
    }

    pub fn minus(self, other: Self) -> Self {
        self.plus(other.negated())
    }

    pub fn multiply(self, other: Self) -> Self {
        let high = multiply_high(self.significand, other.significand);
        let negative = self.negative != other.negative;
        Self::normalized(negative, self.exponent + other.exponent + 1, high)
    }

    /// Division by a small number; zero by zero.
    pub fn divide_small(self, divisor: u16) -> Self {
        let divisor = u128::from(divisor).max(1);
        let (quotient, rest) = (self.significand / divisor, self.significand % divisor);
        if quotient == 0 {
            return Self::ZERO;
        }
        let shift = quotient.leading_zeros();
        Self {
            exponent: self.exponent - shift as i32,
            significand: (quotient << shift) | ((rest << shift) / divisor),
            ..self
        }
    }

    /// Division; by zero gives zero.
    pub fn divide(self, other: Self) -> Self {
        if self.is_zero() || other.is_zero() {
            return Self::ZERO;
        }
        let divisor = other.significand;
        let mut rest = self.significand;
        let mut quotient = 0;
        let mut carry = false;
        for _ in 0..128 {
            quotient <<= 1;
            // The rest is below twice the divisor; `carry` is its bit 128.
            if carry || rest >= divisor {
                rest = rest.wrapping_sub(divisor);
                quotient |= 1;
            }
            carry = rest >> 127 != 0;
            rest <<= 1;
        }
        let negative = self.negative != other.negative;
        Self::normalized(negative, self.exponent - other.exponent, quotient)
    }

    /// The nearest number of the extended format, always reported as inexact.
    pub fn round(self, context: &mut Context) -> Number {
        if self.is_zero() {
            return Number::zero(self.negative);
        }
        context.round(
            Format::EXTENDED,
            self.negative,
            self.exponent,
            self.significand | 1,
        )
    }
}

/// The upper half of the 256-bit product.
fn multiply_high(a: u128, b: u128) -> u128 {
    const LOW: u128 = u64::MAX as u128;
    let (a1, a0, b1, b0) = (a >> 64, a & LOW, b >> 64, b & LOW);
    let (low, cross1, cross2) = (a0 * b0, a1 * b0, a0 * b1);
    let middle = (low >> 64) + (cross1 & LOW) + (cross2 & LOW);
    a1 * b1 + (cross1 >> 64) + (cross2 >> 64) + (middle >> 64)
}
