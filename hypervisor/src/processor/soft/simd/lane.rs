//! Floating-point lanes: when native arithmetic gives exactly what the guest's processor would,
//! and the way through [`Context`] when it may not.

use super::vector::Vector;
use crate::processor::soft::{
    cpu::{Cpu, Exit},
    float::{Context, Encoding, Number, Rounding, flag},
};

/// MXCSR with rounding to nearest, all exceptions masked, no DAZ, no FTZ and inexactness already
/// noted: what is left to watch for shows in the operands and results.
const QUICK: u32 = 0x1FA0;
const QUICK_MASK: u32 = 0xFFE0;

#[inline(always)]
pub fn quick(cpu: &Cpu) -> bool {
    cpu.mxcsr & QUICK_MASK == QUICK
}

pub trait Lane: Encoding + PartialEq + Default {
    type Lanes: Copy + AsRef<[Self]> + AsMut<[Self]>;
    const ALL_ONES: Self;
    fn lanes(vector: Vector) -> Self::Lanes;
    fn vector(lanes: Self::Lanes) -> Vector;
    /// Lanes made one by one.
    fn each(f: impl FnMut(usize) -> Self) -> Self::Lanes;
    /// `vector` with this lowest lane.
    fn insert(self, vector: Vector) -> Vector;
    /// Zero or normal.
    fn ordinary(self) -> bool;
    /// Normal and above the smallest normal number, which may be the rounding of a tiny result.
    fn surely_normal(self) -> bool;
    fn zero(self) -> bool;
    fn add(self, other: Self) -> Self;
    fn sub(self, other: Self) -> Self;
    fn mul(self, other: Self) -> Self;
    fn div(self, other: Self) -> Self;
    fn sqrt(self) -> Self;
    fn integral(self, rounding: Rounding) -> Self;
    fn less(self, other: Self) -> bool;
    fn positive(self) -> bool;
}

macro_rules! lane {
    ($float:ty, $bits:ty, $count:literal, $lanes:ident, $insert:ident) => {
        impl Lane for $float {
            type Lanes = [$float; $count];
            const ALL_ONES: Self = <$float>::from_bits(<$bits>::MAX);

            #[inline(always)]
            fn lanes(vector: Vector) -> Self::Lanes {
                vector.$lanes()
            }
            #[inline(always)]
            fn vector(lanes: Self::Lanes) -> Vector {
                lanes.into()
            }
            #[inline(always)]
            fn each(f: impl FnMut(usize) -> Self) -> Self::Lanes {
                std::array::from_fn(f)
            }
            #[inline(always)]
            fn insert(self, vector: Vector) -> Vector {
                vector.$insert(self.to_bits())
            }
            #[inline(always)]
            fn ordinary(self) -> bool {
                const SMALLEST: $bits = <$float>::MIN_POSITIVE.to_bits();
                const INFINITY: $bits = <$float>::INFINITY.to_bits();
                let magnitude = self.to_bits() & (<$bits>::MAX >> 1);
                (magnitude.wrapping_sub(SMALLEST) < INFINITY - SMALLEST) | (magnitude == 0)
            }
            #[inline(always)]
            fn surely_normal(self) -> bool {
                const ABOVE: $bits = <$float>::MIN_POSITIVE.to_bits() + 1;
                const INFINITY: $bits = <$float>::INFINITY.to_bits();
                let magnitude = self.to_bits() & (<$bits>::MAX >> 1);
                magnitude.wrapping_sub(ABOVE) < INFINITY - ABOVE
            }
            #[inline(always)]
            fn zero(self) -> bool {
                self == 0.0
            }
            #[inline(always)]
            fn add(self, other: Self) -> Self {
                self + other
            }
            #[inline(always)]
            fn sub(self, other: Self) -> Self {
                self - other
            }
            #[inline(always)]
            fn mul(self, other: Self) -> Self {
                self * other
            }
            #[inline(always)]
            fn div(self, other: Self) -> Self {
                self / other
            }
            #[inline(always)]
            fn sqrt(self) -> Self {
                self.sqrt()
            }
            #[inline(always)]
            fn integral(self, rounding: Rounding) -> Self {
                match rounding {
                    Rounding::Nearest => self.round_ties_even(),
                    Rounding::Down => self.floor(),
                    Rounding::Up => self.ceil(),
                    Rounding::Zero => self.trunc(),
                }
            }
            #[inline(always)]
            fn less(self, other: Self) -> bool {
                self < other
            }
            #[inline(always)]
            fn positive(self) -> bool {
                self > 0.0
            }
        }
    };
}
lane!(f32, u32, 4, f32s, with_low32);
lane!(f64, u64, 2, f64s, with_low64);

/// Arithmetic on lane `i` of two operands.
pub trait Operation {
    /// Whether the quick result is only right under [`quick`].
    const ROUNDS: bool;
    /// The native result, and whether it is the guest's result without new exceptions.
    fn quick<T: Lane>(i: usize, a: T, b: T) -> (T, bool);
    fn exact<T: Lane>(context: &mut Context, i: usize, a: Number, b: Number) -> Number;
}

/// All lanes of `a` and `b`.
#[inline(always)]
pub fn packed<T: Lane, O: Operation>(cpu: &mut Cpu, a: Vector, b: Vector) -> Result<Vector, Exit> {
    let (a, b) = (T::lanes(a), T::lanes(b));
    if !O::ROUNDS || quick(cpu) {
        let mut certain = true;
        let results = T::each(|i| {
            let (value, good) = O::quick(i, a.as_ref()[i], b.as_ref()[i]);
            certain &= good;
            value
        });
        if certain {
            return Ok(T::vector(results));
        }
    }
    packed_exact::<T, O>(cpu, a, b)
}

#[cold]
#[inline(never)]
fn packed_exact<T: Lane, O: Operation>(
    cpu: &mut Cpu,
    a: T::Lanes,
    b: T::Lanes,
) -> Result<Vector, Exit> {
    let mut context = Context::from_mxcsr(cpu.mxcsr);
    let mut results = a;
    let operands = a.as_ref().iter().zip(b.as_ref());
    for (i, (result, (a, b))) in results.as_mut().iter_mut().zip(operands).enumerate() {
        *result = T::pack(O::exact::<T>(&mut context, i, a.unpack(), b.unpack()));
    }
    finish(cpu, &context)?;
    Ok(T::vector(results))
}

/// The lowest lane.
#[inline(always)]
pub fn scalar<T: Lane, O: Operation>(cpu: &mut Cpu, a: T, b: T) -> Result<T, Exit> {
    if !O::ROUNDS || quick(cpu) {
        let (value, certain) = O::quick(0, a, b);
        if certain {
            return Ok(value);
        }
    }
    scalar_exact::<T, O>(cpu, a, b)
}

#[cold]
#[inline(never)]
fn scalar_exact<T: Lane, O: Operation>(cpu: &mut Cpu, a: T, b: T) -> Result<T, Exit> {
    let mut context = Context::from_mxcsr(cpu.mxcsr);
    let result = O::exact::<T>(&mut context, 0, a.unpack(), b.unpack());
    finish(cpu, &context)?;
    Ok(T::pack(result))
}

/// The lowest lane of a register.
#[inline(always)]
pub fn lowest<T: Lane>(vector: Vector) -> T {
    T::lanes(vector)
        .as_ref()
        .first()
        .copied()
        .unwrap_or_default()
}

/// Notes the exceptions of a computation in MXCSR; raises #XM when one is not masked.
pub fn finish(cpu: &mut Cpu, context: &Context) -> Result<(), Exit> {
    if context.faults(flag::BEFORE) {
        cpu.mxcsr |= u32::from(context.flags & flag::BEFORE);
        return cpu.raise_simd();
    }
    cpu.mxcsr |= u32::from(context.flags);
    if context.faults(flag::ALL) {
        return cpu.raise_simd();
    }
    Ok(())
}
