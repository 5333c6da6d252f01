//! Binary floating point in software: exact IEEE 754 arithmetic for SSE (binary32, binary64) and
//! x87 (80 bits with precision control), with the exception flags of x86.
//!
//! A general library does not do here: x87 rounds to 24 or 53 bits with a 15-bit exponent, reports
//! the direction of rounding in C1, and delivers results with a wrapped exponent when overflow or
//! underflow is unmasked; x86 detects tininess after rounding with unbounded exponent.

mod arithmetic;
mod integer;
mod number;
mod round;
#[cfg(test)]
mod tests;
mod wide;

pub use number::{Class, Encoding, Extended, Number};
pub use wide::Wide;

/// Exception flags, at their positions in MXCSR and in the x87 status word.
pub mod flag {
    pub const INVALID: u8 = 1 << 0;
    pub const DENORMAL: u8 = 1 << 1;
    pub const DIVIDE: u8 = 1 << 2;
    pub const OVERFLOW: u8 = 1 << 3;
    pub const UNDERFLOW: u8 = 1 << 4;
    pub const INEXACT: u8 = 1 << 5;
    /// Detected from the operands alone: unmasked, they keep the operation from happening.
    pub const BEFORE: u8 = INVALID | DENORMAL | DIVIDE;
    pub const ALL: u8 = 0x3F;
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rounding {
    Nearest,
    Down,
    Up,
    Zero,
}

impl Rounding {
    /// As two bits of a control register encode it.
    #[inline(always)]
    pub fn from_bits(bits: u32) -> Self {
        match bits & 3 {
            0 => Self::Nearest,
            1 => Self::Down,
            2 => Self::Up,
            _ => Self::Zero,
        }
    }
}

/// The format that a result is rounded to.
#[derive(Clone, Copy, Debug)]
pub struct Format {
    /// Bits of the significand, with the integer bit.
    pub precision: u32,
    pub max_exponent: i32,
}

impl Format {
    pub const SINGLE: Self = Self {
        precision: 24,
        max_exponent: 127,
    };
    pub const DOUBLE: Self = Self {
        precision: 53,
        max_exponent: 1023,
    };
    pub const EXTENDED: Self = Self {
        precision: 64,
        max_exponent: 16383,
    };

    /// Exponent of the smallest normal number.
    pub const fn min_exponent(self) -> i32 {
        1 - self.max_exponent
    }
}

/// Which of two NaN operands becomes the result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NanRule {
    /// SSE: the first operand.
    First,
    /// x87: a quiet one before a signaling one, then the larger significand.
    Larger,
}

/// What a computation is told, and what it reports.
#[derive(Clone, Copy, Debug)]
pub struct Context {
    pub rounding: Rounding,
    /// Set bits are masked exceptions.
    pub masks: u8,
    pub flush_to_zero: bool,
    pub denormals_are_zero: bool,
    pub nan_rule: NanRule,
    /// Reported: the exceptions that occurred.
    pub flags: u8,
    /// Reported: the last rounding increased the magnitude.
    pub rounded_up: bool,
}

impl Context {
    /// For SSE, as MXCSR says.
    pub fn from_mxcsr(mxcsr: u32) -> Self {
        Self {
            rounding: Rounding::from_bits(mxcsr >> 13),
            masks: (mxcsr >> 7) as u8 & flag::ALL,
            flush_to_zero: mxcsr & 1 << 15 != 0,
            denormals_are_zero: mxcsr & 1 << 6 != 0,
            nan_rule: NanRule::First,
            flags: 0,
            rounded_up: false,
        }
    }

    /// For x87, as its control word says.
    pub fn from_control_word(word: u16) -> Self {
        Self {
            rounding: Rounding::from_bits(u32::from(word) >> 10),
            masks: word as u8 & flag::ALL,
            flush_to_zero: false,
            denormals_are_zero: false,
            nan_rule: NanRule::Larger,
            flags: 0,
            rounded_up: false,
        }
    }

    pub fn raise(&mut self, flags: u8) {
        self.flags |= flags;
    }

    /// Whether an exception occurred that is not masked, among `flags`.
    pub fn faults(&self, flags: u8) -> bool {
        self.flags & flags & !self.masks != 0
    }

    /// The result of an operation without a result.
    pub fn invalid(&mut self) -> Number {
        self.raise(flag::INVALID);
        Number::INDEFINITE
    }

    /// The operand that SSE's DAZ sees, with the denormal flag noted by the operation otherwise.
    fn operand(&self, number: Number) -> Number {
        if self.denormals_are_zero && number.denormal {
            Number::zero(number.negative)
        } else {
            number
        }
    }

    fn note_denormals(&mut self, operands: &[Number]) {
        if operands.iter().any(|number| number.denormal) {
            self.raise(flag::DENORMAL);
        }
    }

    /// The result when an operand is a NaN or an unsupported encoding.
    pub fn propagate(&mut self, a: Number, b: Number) -> Option<Number> {
        if a.class == Class::Unsupported || b.class == Class::Unsupported {
            return Some(self.invalid());
        }
        if !a.is_nan() && !b.is_nan() {
            return None;
        }
        if a.class == Class::Signaling || b.class == Class::Signaling {
            self.raise(flag::INVALID);
        }
        let first = match (a.is_nan(), b.is_nan()) {
            (true, false) => true,
            (false, _) => false,
            _ => match self.nan_rule {
                NanRule::First => true,
                NanRule::Larger if a.class != b.class => a.class == Class::Quiet,
                NanRule::Larger if a.significand != b.significand => a.significand > b.significand,
                NanRule::Larger => !a.negative,
            },
        };
        Some(if first { a } else { b }.quieted())
    }

    /// As [`Context::propagate`], for one operand.
    pub fn propagate_one(&mut self, a: Number) -> Option<Number> {
        self.propagate(a, a)
    }
}
