//! Rounding a result to its format, with everything that can happen at the ends of the range.

use super::{Context, Format, Number, Rounding, flag};

/// Added to or taken from the exponent of an x87 result whose underflow or overflow is unmasked.
const WRAP: i32 = 24576;

/// `value >> count`, with the lowest bit set when a set bit was lost.
pub fn shift_right_sticky(value: u128, count: u32) -> u128 {
    match count {
        0 => value,
        1..128 => value >> count | u128::from(value << (128 - count) != 0),
        _ => u128::from(value != 0),
    }
}

/// A significand cut off after some bits.
struct Cut {
    /// May have one bit more after a carry.
    kept: u128,
    inexact: bool,
    up: bool,
}

impl Context {
    /// Whether the magnitude grows when `rest` (of a unit of 2^128) is rounded away.
    fn increments(&self, negative: bool, odd: bool, rest: u128) -> bool {
        const HALF: u128 = 1 << 127;
        match self.rounding {
            Rounding::Nearest => rest > HALF || (rest == HALF && odd),
            Rounding::Down => negative && rest != 0,
            Rounding::Up => !negative && rest != 0,
            Rounding::Zero => false,
        }
    }

    /// Keeps the top `precision` bits (1 to 64 of them).
    fn cut(&self, negative: bool, significand: u128, precision: u32) -> Cut {
        let kept = significand >> (128 - precision);
        let rest = significand << precision;
        let up = self.increments(negative, kept & 1 != 0, rest);
        Cut {
            kept: kept + u128::from(up),
            inexact: rest != 0,
            up,
        }
    }

    /// Rounds a fixed-point number with 64 fraction bits to an integer. Notes inexactness.
    pub(super) fn cut_fraction(&mut self, negative: bool, fixed: u128) -> u128 {
        let (whole, rest) = (fixed >> 64, fixed << 64);
        self.rounded_up = self.increments(negative, whole & 1 != 0, rest);
        if rest != 0 {
            self.raise(flag::INEXACT);
        }
        whole + u128::from(self.rounded_up)
    }

    /// Rounds `significand * 2^(exponent - 127)` to `format`. Bit 127 of `significand` is set; its
    /// lowest bit stands for everything that was lost below.
    pub fn round(
        &mut self,
        format: Format,
        negative: bool,
        exponent: i32,
        significand: u128,
    ) -> Number {
        let cut = self.cut(negative, significand, format.precision);
        let carried = cut.kept >> format.precision != 0;
        let rounded = exponent + i32::from(carried);
        let aligned = if carried {
            1 << 63
        } else {
            (cut.kept as u64) << (64 - format.precision)
        };
        if rounded < format.min_exponent() && self.masks & flag::UNDERFLOW != 0 {
            return self.denormalize(format, negative, exponent, significand);
        }
        if rounded > format.max_exponent && self.masks & flag::OVERFLOW != 0 {
            return self.overflow(format, negative);
        }
        self.rounded_up = cut.up;
        if cut.inexact {
            self.raise(flag::INEXACT);
        }
        let exponent = if rounded < format.min_exponent() {
            self.raise(flag::UNDERFLOW);
            rounded + WRAP
        } else if rounded > format.max_exponent {
            self.raise(flag::OVERFLOW);
            rounded - WRAP
        } else {
            rounded
        };
        Number::finite(negative, exponent, aligned)
    }

    /// Rounds a finite number to `format`.
    pub fn round_number(&mut self, format: Format, number: Number) -> Number {
        let significand = u128::from(number.significand) << 64;
        self.round(format, number.negative, number.exponent, significand)
    }

    fn overflow(&mut self, format: Format, negative: bool) -> Number {
        self.raise(flag::OVERFLOW | flag::INEXACT);
        self.rounded_up = match self.rounding {
            Rounding::Nearest => true,
            Rounding::Down => negative,
            Rounding::Up => !negative,
            Rounding::Zero => false,
        };
        if self.rounded_up {
            return Number::infinity(negative);
        }
        let largest = u64::MAX << (64 - format.precision);
        Number::finite(negative, format.max_exponent, largest)
    }

    fn denormalize(
        &mut self,
        format: Format,
        negative: bool,
        exponent: i32,
        significand: u128,
    ) -> Number {
        if self.flush_to_zero {
            self.raise(flag::UNDERFLOW | flag::INEXACT);
            self.rounded_up = false;
            return Number::zero(negative);
        }
        let shift = format.min_exponent() - exponent;
        let shifted = shift_right_sticky(significand, shift as u32);
        let cut = self.cut(negative, shifted, format.precision);
        self.rounded_up = cut.up;
        if cut.inexact {
            self.raise(flag::UNDERFLOW | flag::INEXACT);
        }
        let aligned = (cut.kept as u64) << (64 - format.precision);
        if aligned == 0 {
            return Number::zero(negative);
        }
        let shift = aligned.leading_zeros();
        Number::finite(
            negative,
            format.min_exponent() - shift as i32,
            aligned << shift,
        )
    }
}
