//! Numbers taken apart, and the encodings they come from and go to.

use super::Format;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    Zero,
    Finite,
    Infinity,
    Quiet,
    Signaling,
    /// An x87 encoding with a wrong integer bit.
    Unsupported,
}

/// A number taken apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Number {
    pub class: Class,
    pub negative: bool,
    /// The value of a finite number is `significand * 2^(exponent - 63)`.
    pub exponent: i32,
    /// Bit 63 is set in finite numbers and NaNs; bit 62 of a NaN says quiet, below is its payload.
    pub significand: u64,
    /// It was encoded as a denormal (or x87 pseudo-denormal).
    pub denormal: bool,
}

impl Number {
    /// The default NaN.
    pub const INDEFINITE: Self = Self {
        class: Class::Quiet,
        negative: true,
        exponent: 0,
        significand: 3 << 62,
        denormal: false,
    };

    pub const fn zero(negative: bool) -> Self {
        Self {
            class: Class::Zero,
            negative,
            exponent: 0,
            significand: 0,
            denormal: false,
        }
    }

    pub const fn infinity(negative: bool) -> Self {
        Self {
            class: Class::Infinity,
            ..Self::zero(negative)
        }
    }

    /// `significand` has bit 63 set.
    pub const fn finite(negative: bool, exponent: i32, significand: u64) -> Self {
        Self {
            class: Class::Finite,
            negative,
            exponent,
            significand,
            denormal: false,
        }
    }

    pub fn is_nan(self) -> bool {
        matches!(self.class, Class::Quiet | Class::Signaling)
    }

    pub fn quieted(self) -> Self {
        Self {
            class: Class::Quiet,
            significand: self.significand | 1 << 62,
            ..self
        }
    }

    pub fn negated(self) -> Self {
        Self {
            negative: !self.negative,
            ..self
        }
    }
}

/// An encoding of numbers in bits.
pub trait Encoding: Copy {
    const FORMAT: Format;
    fn unpack(self) -> Number;
    /// `number` must have been rounded to [`Encoding::FORMAT`].
    fn pack(number: Number) -> Self;
}

macro_rules! interchange {
    ($float:ty, $bits:ty, $format:expr) => {
        impl Encoding for $float {
            const FORMAT: Format = $format;

            fn unpack(self) -> Number {
                let bits = u64::from(self.to_bits());
                let fraction_bits = Self::FORMAT.precision - 1;
                let all_ones = (2 * Self::FORMAT.max_exponent + 1) as u64;
                let negative = bits >> (<$bits>::BITS - 1) != 0;
                let biased = bits >> fraction_bits & all_ones;
                let fraction = bits & ((1 << fraction_bits) - 1);
                let aligned = fraction << (63 - fraction_bits);
                if biased == all_ones {
                    if fraction == 0 {
                        return Number::infinity(negative);
                    }
                    let class = if aligned >> 62 != 0 {
                        Class::Quiet
                    } else {
                        Class::Signaling
                    };
                    let significand = aligned | 1 << 63;
                    return Number {
                        class,
                        ..Number::finite(negative, 0, significand)
                    };
                }
                if biased != 0 {
                    let exponent = biased as i32 - Self::FORMAT.max_exponent;
                    return Number::finite(negative, exponent, aligned | 1 << 63);
                }
                if fraction == 0 {
                    return Number::zero(negative);
                }
                let shift = aligned.leading_zeros();
                let exponent = Self::FORMAT.min_exponent() - shift as i32;
                Number {
                    denormal: true,
                    ..Number::finite(negative, exponent, aligned << shift)
                }
            }

            fn pack(number: Number) -> Self {
                let fraction_bits = Self::FORMAT.precision - 1;
                let all_ones = (2 * Self::FORMAT.max_exponent + 1) as u64;
                let fraction = (number.significand & !(1 << 63)) >> (63 - fraction_bits);
                let below = Self::FORMAT.min_exponent().wrapping_sub(number.exponent);
                let magnitude = match number.class {
                    Class::Zero => 0,
                    Class::Finite if below > 0 => {
                        let shift = below as u32 + 63 - fraction_bits;
                        number.significand.checked_shr(shift).unwrap_or(0)
                    }
                    Class::Finite => {
                        let biased = number.exponent.wrapping_add(Self::FORMAT.max_exponent) as u64;
                        (biased & all_ones) << fraction_bits | fraction
                    }
                    Class::Infinity => all_ones << fraction_bits,
                    _ => all_ones << fraction_bits | fraction,
                };
                let sign = u64::from(number.negative) << (<$bits>::BITS - 1);
                Self::from_bits((sign | magnitude) as $bits)
            }
        }
    };
}
interchange!(f32, u32, Format::SINGLE);
interchange!(f64, u64, Format::DOUBLE);

/// An 80-bit x87 register as it lies in memory. The integer bit is explicit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Extended {
    pub significand: u64,
    /// Sign in bit 15, biased exponent below.
    pub sign_exponent: u16,
}

impl Extended {
    pub fn from_bytes(bytes: [u8; 10]) -> Self {
        let [a, b, c, d, e, f, g, h, i, j] = bytes;
        Self {
            significand: u64::from_le_bytes([a, b, c, d, e, f, g, h]),
            sign_exponent: u16::from_le_bytes([i, j]),
        }
    }

    pub fn to_bytes(self) -> [u8; 10] {
        let [a, b, c, d, e, f, g, h] = self.significand.to_le_bytes();
        let [i, j] = self.sign_exponent.to_le_bytes();
        [a, b, c, d, e, f, g, h, i, j]
    }
}

const EXTENDED_BIAS: i32 = Format::EXTENDED.max_exponent;

impl Encoding for Extended {
    const FORMAT: Format = Format::EXTENDED;

    fn unpack(self) -> Number {
        let negative = self.sign_exponent >> 15 != 0;
        let biased = self.sign_exponent & 0x7FFF;
        let significand = self.significand;
        let integer = significand >> 63 != 0;
        match (biased, integer) {
            (0, false) if significand == 0 => Number::zero(negative),
            (0, _) => {
                let shift = significand.leading_zeros();
                let exponent = Format::EXTENDED.min_exponent() - shift as i32;
                Number {
                    denormal: true,
                    ..Number::finite(negative, exponent, significand << shift)
                }
            }
            (_, false) => Number {
                class: Class::Unsupported,
                ..Number::zero(negative)
            },
            (0x7FFF, _) if significand == 1 << 63 => Number::infinity(negative),
            (0x7FFF, _) => {
                let quiet = significand & 1 << 62 != 0;
                let class = if quiet {
                    Class::Quiet
                } else {
                    Class::Signaling
                };
                Number {
                    class,
                    ..Number::finite(negative, 0, significand)
                }
            }
            _ => Number::finite(negative, i32::from(biased) - EXTENDED_BIAS, significand),
        }
    }

    fn pack(number: Number) -> Self {
        let below = Format::EXTENDED
            .min_exponent()
            .wrapping_sub(number.exponent);
        let (biased, significand) = match number.class {
            Class::Zero => (0, 0),
            Class::Finite if below > 0 => {
                (0, number.significand.checked_shr(below as u32).unwrap_or(0))
            }
            Class::Finite => (
                number.exponent.wrapping_add(EXTENDED_BIAS) as u16,
                number.significand,
            ),
            Class::Infinity => (0x7FFF, 1 << 63),
            _ => (0x7FFF, number.significand),
        };
        Self {
            significand,
            sign_exponent: u16::from(number.negative) << 15 | biased & 0x7FFF,
        }
    }
}
