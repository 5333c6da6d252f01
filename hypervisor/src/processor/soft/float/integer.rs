//! Conversions from and to integers.

use super::{Class, Context, Number, flag, round::shift_right_sticky};

impl Number {
    pub fn from_i64(value: i64) -> Self {
        if value == 0 {
            return Self::zero(false);
        }
        let magnitude = value.unsigned_abs();
        let shift = magnitude.leading_zeros();
        Self::finite(value < 0, 63 - shift as i32, magnitude << shift)
    }
}

impl Context {
    /// Rounds to a signed integer of `bits` bits; `None` (and invalid) when it does not fit.
    pub fn to_integer(&mut self, number: Number, bits: u32) -> Option<i64> {
        let number = self.operand(number);
        let before = self.flags;
        let magnitude = match number.class {
            Class::Zero => 0,
            // Conversions to integers do not report denormal operands.
            Class::Finite if number.exponent < 64 => {
                self.cut_fraction(number.negative, fixed(number))
            }
            _ => u128::MAX,
        };
        let limit = (1 << (bits - 1)) - u128::from(!number.negative);
        if magnitude > limit {
            self.flags = before | flag::INVALID;
            self.rounded_up = false;
            return None;
        }
        let magnitude = magnitude as i64;
        Some(if number.negative {
            magnitude.wrapping_neg()
        } else {
            magnitude
        })
    }

    /// Rounds to an integer in floating point. The caller has dealt with NaNs.
    pub fn to_integral(&mut self, number: Number) -> Number {
        if number.class != Class::Finite || number.exponent >= 63 {
            return number;
        }
        let whole = self.cut_fraction(number.negative, fixed(number)) as u64;
        if whole == 0 {
            return Number::zero(number.negative);
        }
        let shift = whole.leading_zeros();
        Number::finite(number.negative, 63 - shift as i32, whole << shift)
    }
}

/// A finite number below 2^64 with 64 fraction bits, the lowest sticky.
fn fixed(number: Number) -> u128 {
    let significand = u128::from(number.significand) << 64;
    shift_right_sticky(significand, (63 - number.exponent) as u32)
}
