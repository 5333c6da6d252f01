//! Narrowing with saturation and widening.

use super::{operands::*, vector::*};
use crate::processor::soft::{
    cpu::Cpu,
    op::{Handler, Op},
};
use iced_x86::{Instruction, Mnemonic as M};
use std::array::from_fn;

pub fn select(i: &Instruction) -> Option<Handler> {
    Some(match i.mnemonic() {
        M::Packsswb if is_mmx(i) => mmx!(i, joined(pack_i8)),
        M::Packsswb => xmm!(i, pack_i8),
        M::Packuswb if is_mmx(i) => mmx!(i, joined(pack_u8)),
        M::Packuswb => xmm!(i, pack_u8),
        M::Packssdw if is_mmx(i) => mmx!(i, joined(pack_i16)),
        M::Packssdw => xmm!(i, pack_i16),
        M::Packusdw => xmm!(i, pack_u16),
        M::Pmovsxbw => xmm!(i, i8_to_i16, u64),
        M::Pmovsxbd => xmm!(i, i8_to_i32, u32),
        M::Pmovsxbq => xmm!(i, i8_to_i64, u16),
        M::Pmovsxwd => xmm!(i, i16_to_i32, u64),
        M::Pmovsxwq => xmm!(i, i16_to_i64, u32),
        M::Pmovsxdq => xmm!(i, i32_to_i64, u64),
        M::Pmovzxbw => xmm!(i, u8_to_u16, u64),
        M::Pmovzxbd => xmm!(i, u8_to_u32, u32),
        M::Pmovzxbq => xmm!(i, u8_to_u64, u16),
        M::Pmovzxwd => xmm!(i, u16_to_u32, u64),
        M::Pmovzxwq => xmm!(i, u16_to_u64, u32),
        M::Pmovzxdq => xmm!(i, u32_to_u64, u64),
        _ => return None,
    })
}

macro_rules! pack {
    ($($name:ident, $from:ident, $wide:ty, $to:ty, $count:literal;)*) => {
        $(
            #[inline(always)]
            fn $name(a: Vector, b: Vector) -> Vector {
                const HALF: usize = $count / 2;
                let (a, b) = (a.$from(), b.$from());
                let narrow = |lane: $wide| lane.clamp(<$to>::MIN.into(), <$to>::MAX.into()) as $to;
                from_fn::<$to, $count, _>(|i| narrow(if i < HALF { a[i] } else { b[i - HALF] }))
                    .into()
            }
        )*
    };
}
pack! {
    pack_i8, i16s, i16, i8, 16;
    pack_u8, i16s, i16, u8, 16;
    pack_i16, i32s, i32, i16, 8;
    pack_u16, i32s, i32, u16, 8;
}

/// The MMX form of a pack: both 64-bit operands make up the first one.
#[inline(always)]
fn joined(f: impl Fn(Vector, Vector) -> Vector) -> impl Fn(Vector, Vector) -> Vector {
    move |a, b| f([a.low64(), b.low64()].into(), Vector::default())
}

macro_rules! widen {
    ($($name:ident, $from:ident, $to:ty, $count:literal;)*) => {
        $(
            #[inline(always)]
            fn $name(_: Vector, b: Vector) -> Vector {
                let b = b.$from();
                from_fn::<$to, $count, _>(|i| b[i].into()).into()
            }
        )*
    };
}
widen! {
    i8_to_i16, i8s, i16, 8;
    i8_to_i32, i8s, i32, 4;
    i8_to_i64, i8s, i64, 2;
    i16_to_i32, i16s, i32, 4;
    i16_to_i64, i16s, i64, 2;
    i32_to_i64, i32s, i64, 2;
    u8_to_u16, u8s, u16, 8;
    u8_to_u32, u8s, u32, 4;
    u8_to_u64, u8s, u64, 2;
    u16_to_u32, u16s, u32, 4;
    u16_to_u64, u16s, u64, 2;
    u32_to_u64, u32s, u64, 2;
}
