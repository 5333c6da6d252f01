//! A 128-bit register and its lanes.

use std::array::from_fn;

/// Bytes in memory order. Kept as bytes, not as `u128`: lane code on byte arrays is what the
/// compiler turns into vector instructions.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
#[repr(C, align(16))]
pub struct Vector(pub [u8; 16]);

impl std::fmt::Debug for Vector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:032x}", u128::from(*self))
    }
}

macro_rules! lanes {
    ($($lane:ty, $count:literal, $name:ident;)*) => {
        impl Vector {
            $(
                #[inline(always)]
                pub fn $name(self) -> [$lane; $count] {
                    const SIZE: usize = size_of::<$lane>();
                    from_fn(|i| <$lane>::from_le_bytes(from_fn(|j| self.0[i * SIZE + j])))
                }
            )*
        }
        $(
            impl From<[$lane; $count]> for Vector {
                #[inline(always)]
                fn from(lanes: [$lane; $count]) -> Self {
                    const SIZE: usize = size_of::<$lane>();
                    Self(from_fn(|i| lanes[i / SIZE].to_le_bytes()[i % SIZE]))
                }
            }
        )*
    };
}
lanes! {
    u16, 8, u16s;
    i16, 8, i16s;
    u32, 4, u32s;
    i32, 4, i32s;
    u64, 2, u64s;
    i64, 2, i64s;
    f32, 4, f32s;
    f64, 2, f64s;
}

impl Vector {
    #[inline(always)]
    pub fn u8s(self) -> [u8; 16] {
        self.0
    }

    #[inline(always)]
    pub fn i8s(self) -> [i8; 16] {
        self.0.map(|byte| byte as i8)
    }

    #[inline(always)]
    pub fn low64(self) -> u64 {
        self.u64s()[0]
    }

    #[inline(always)]
    pub fn high64(self) -> u64 {
        self.u64s()[1]
    }

    #[inline(always)]
    pub fn low32(self) -> u32 {
        self.u32s()[0]
    }

    /// The same register with another low half.
    #[inline(always)]
    pub fn with_low64(self, low: u64) -> Self {
        [low, self.high64()].into()
    }

    /// The same register with another lowest doubleword.
    #[inline(always)]
    pub fn with_low32(self, low: u32) -> Self {
        let [_, b, c, d] = self.u32s();
        [low, b, c, d].into()
    }
}

impl From<[u8; 16]> for Vector {
    #[inline(always)]
    fn from(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }
}

impl From<[i8; 16]> for Vector {
    #[inline(always)]
    fn from(lanes: [i8; 16]) -> Self {
        Self(lanes.map(|lane| lane as u8))
    }
}

impl From<u128> for Vector {
    #[inline(always)]
    fn from(value: u128) -> Self {
        Self(value.to_le_bytes())
    }
}

impl From<Vector> for u128 {
    #[inline(always)]
    fn from(vector: Vector) -> Self {
        Self::from_le_bytes(vector.0)
    }
}

/// `function` on each pair of lanes.
#[inline(always)]
pub fn zip<T: Copy, R, const N: usize>(
    a: [T; N],
    b: [T; N],
    function: impl Fn(T, T) -> R,
) -> [R; N] {
    from_fn(|i| function(a[i], b[i]))
}
