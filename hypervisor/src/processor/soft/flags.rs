//! Arithmetic flags, computed lazily and without a switch on the kind of instruction.
//!
//! An arithmetic instruction stores two words. `result` is its result, sign-extended from the
//! operand size: ZF is `result == 0`, SF its top bit, PF the parity of its low byte. `carries`
//! holds the carry out of the top bit (CF) in bit 63, the carry out of the bit below in bit 62
//! (OF is the exclusive or of both) and the carry out of bit 3 (AF) in bit 3. Three more bits
//! serve combinations that no result has (POPF, SAHF): bit 0 inverts SF, bit 1 inverts PF.
//! DF, IF and the system flags live in `Cpu::system_flags`.

pub const CF: u64 = 1 << 0;
pub const PF: u64 = 1 << 2;
pub const AF: u64 = 1 << 4;
pub const ZF: u64 = 1 << 6;
pub const SF: u64 = 1 << 7;
pub const TF: u64 = 1 << 8;
pub const IF: u64 = 1 << 9;
pub const DF: u64 = 1 << 10;
pub const OF: u64 = 1 << 11;
pub const IOPL: u64 = 3 << 12;
pub const NT: u64 = 1 << 14;
pub const RF: u64 = 1 << 16;
pub const VM: u64 = 1 << 17;
pub const AC: u64 = 1 << 18;
pub const VIF: u64 = 1 << 19;
pub const VIP: u64 = 1 << 20;
pub const ID: u64 = 1 << 21;
/// The six flags this module holds.
pub const ARITHMETIC: u64 = CF | PF | AF | ZF | SF | OF;

const TOP: u64 = 1 << 63;
const BELOW: u64 = 1 << 62;
const AUXILIARY: u64 = 1 << 3;
const FLIP_SIGN: u64 = 1 << 0;
const FLIP_PARITY: u64 = 1 << 1;

/// An operand size: what arithmetic handlers are generic over.
pub trait Width: Copy {
    const BITS: u32;
    /// Sign-extends the low `BITS` bits.
    fn extend(value: u64) -> u64;
    /// Keeps the low `BITS` bits.
    fn truncate(value: u64) -> u64;
}

macro_rules! width {
    ($name:ident, $unsigned:ty, $signed:ty) => {
        #[derive(Clone, Copy)]
        pub struct $name;
        impl Width for $name {
            const BITS: u32 = <$unsigned>::BITS;
            #[inline(always)]
            fn extend(value: u64) -> u64 {
                value as $signed as i64 as u64
            }
            #[inline(always)]
            fn truncate(value: u64) -> u64 {
                u64::from(value as $unsigned)
            }
        }
    };
}
width!(W8, u8, i8);
width!(W16, u16, i16);
width!(W32, u32, i32);
width!(W64, u64, i64);

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flags {
    result: u64,
    carries: u64,
}

impl Flags {
    #[inline(always)]
    fn place<W: Width>(carries: u64) -> u64 {
        ((carries << (64 - W::BITS)) & (TOP | BELOW)) | (carries & AUXILIARY)
    }

    /// After `result = a + b (+ carry)`.
    #[inline(always)]
    pub fn add<W: Width>(a: u64, b: u64, result: u64) -> Self {
        let carries = (a & b) | ((a | b) & !result);
        Self {
            result: W::extend(result),
            carries: Self::place::<W>(carries),
        }
    }

    /// After `result = a - b (- borrow)`.
    #[inline(always)]
    pub fn sub<W: Width>(a: u64, b: u64, result: u64) -> Self {
        let borrows = (!a & b) | ((!a | b) & result);
        Self {
            result: W::extend(result),
            carries: Self::place::<W>(borrows),
        }
    }

    /// After AND, OR, XOR, TEST: CF and OF clear (AF is undefined; clear here).
    #[inline(always)]
    pub fn logic<W: Width>(result: u64) -> Self {
        Self {
            result: W::extend(result),
            carries: 0,
        }
    }

    /// ZF, SF, PF from `result`; CF, OF and AF as given.
    #[inline(always)]
    pub fn explicit<W: Width>(result: u64, carry: bool, overflow: bool, auxiliary: bool) -> Self {
        let carries = (u64::from(carry) << 63)
            | (u64::from(carry ^ overflow) << 62)
            | (u64::from(auxiliary) << 3);
        Self {
            result: W::extend(result),
            carries,
        }
    }

    /// The same flags with another CF (INC, DEC, BT, CLC, STC, CMC).
    #[inline(always)]
    pub fn with_carry(self, carry: bool) -> Self {
        // Bit 62 must follow bit 63, so that OF stays what it was.
        let change = u64::from(carry ^ self.carry());
        Self {
            carries: self.carries ^ (change * (TOP | BELOW)),
            ..self
        }
    }

    /// The same flags with another OF (rotates).
    #[inline(always)]
    pub fn with_overflow(self, overflow: bool) -> Self {
        let change = u64::from(overflow ^ self.overflow());
        Self {
            carries: self.carries ^ (change * BELOW),
            ..self
        }
    }

    #[inline(always)]
    pub fn carry(self) -> bool {
        self.carries & TOP != 0
    }
    #[inline(always)]
    pub fn zero(self) -> bool {
        self.result == 0
    }
    #[inline(always)]
    pub fn sign(self) -> bool {
        ((self.result >> 63) ^ (self.carries & FLIP_SIGN)) != 0
    }
    #[inline(always)]
    pub fn overflow(self) -> bool {
        ((self.carries >> 63) ^ (self.carries >> 62)) & 1 != 0
    }
    #[inline(always)]
    pub fn parity(self) -> bool {
        ((self.result as u8).count_ones() & 1 == 0) ^ (self.carries & FLIP_PARITY != 0)
    }
    #[inline(always)]
    pub fn auxiliary(self) -> bool {
        self.carries & AUXILIARY != 0
    }

    /// The condition of Jcc, SETcc and CMOVcc: `code` is the low four bits of the opcode.
    #[inline(always)]
    pub fn condition(self, code: u8) -> bool {
        let value = match (code >> 1) & 7 {
            0 => self.overflow(),
            1 => self.carry(),
            2 => self.zero(),
            3 => self.carry() | self.zero(),
            4 => self.sign(),
            5 => self.parity(),
            6 => self.sign() ^ self.overflow(),
            _ => (self.sign() ^ self.overflow()) | self.zero(),
        };
        value ^ (code & 1 != 0)
    }

    /// The six bits at their places in RFLAGS.
    pub fn bits(self) -> u64 {
        (u64::from(self.carry()) * CF)
            | (u64::from(self.parity()) * PF)
            | (u64::from(self.auxiliary()) * AF)
            | (u64::from(self.zero()) * ZF)
            | (u64::from(self.sign()) * SF)
            | (u64::from(self.overflow()) * OF)
    }

    /// Any combination of the six bits.
    pub fn from_bits(bits: u64) -> Self {
        let zero = bits & ZF != 0;
        let (carry, overflow) = (bits & CF != 0, bits & OF != 0);
        // A result with the wanted ZF has SF clear and PF set (0) or clear (1).
        let result = u64::from(!zero);
        let carries = (u64::from(carry) << 63)
            | (u64::from(carry ^ overflow) << 62)
            | (u64::from(bits & AF != 0) << 3)
            | (u64::from(bits & SF != 0) * FLIP_SIGN)
            | (u64::from((bits & PF != 0) != zero) * FLIP_PARITY);
        Self { result, carries }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_combination_survives() {
        for pattern in 0..64u64 {
            let mut bits = 0;
            for (i, flag) in [CF, PF, AF, ZF, SF, OF].into_iter().enumerate() {
                bits |= ((pattern >> i) & 1) * flag;
            }
            let flags = Flags::from_bits(bits);
            assert_eq!(flags.bits(), bits);
            assert_eq!(flags.with_carry(true).bits(), bits | CF);
            assert_eq!(flags.with_carry(false).bits(), bits & !CF);
            assert_eq!(flags.with_overflow(true).bits(), bits | OF);
            assert_eq!(flags.with_overflow(false).bits(), bits & !OF);
        }
    }

    #[test]
    fn eight_bit_arithmetic_is_exact() {
        for a in 0..=255u8 {
            for b in 0..=255u8 {
                let sum = Flags::add::<W8>(a.into(), b.into(), u64::from(a) + u64::from(b));
                assert_eq!(sum.carry(), a.checked_add(b).is_none());
                assert_eq!(sum.overflow(), (a as i8).checked_add(b as i8).is_none());
                assert_eq!(sum.zero(), a.wrapping_add(b) == 0);
                assert_eq!(sum.sign(), (a.wrapping_add(b) as i8) < 0);
                assert_eq!(sum.auxiliary(), (a & 15) + (b & 15) > 15);
                let difference =
                    Flags::sub::<W8>(a.into(), b.into(), u64::from(a).wrapping_sub(b.into()));
                assert_eq!(difference.carry(), a < b);
                assert_eq!(
                    difference.overflow(),
                    (a as i8).checked_sub(b as i8).is_none()
                );
                assert_eq!(difference.auxiliary(), (a & 15) < (b & 15));
                assert_eq!(difference.parity(), a.wrapping_sub(b).count_ones() % 2 == 0);
            }
        }
    }
}
