//! Integer comparisons: each lane becomes all ones or all zeros.

use super::{operands::*, vector::*};
use crate::processor::soft::{
    cpu::Cpu,
    op::{Handler, Op},
};
use iced_x86::{Instruction, Mnemonic as M};

pub fn select(i: &Instruction) -> Option<Handler> {
    Some(match i.mnemonic() {
        M::Pcmpeqb => both!(i, equal8),
        M::Pcmpeqw => both!(i, equal16),
        M::Pcmpeqd => both!(i, equal32),
        M::Pcmpeqq => xmm!(i, equal64),
        M::Pcmpgtb => both!(i, greater8),
        M::Pcmpgtw => both!(i, greater16),
        M::Pcmpgtd => both!(i, greater32),
        M::Pcmpgtq => xmm!(i, greater64),
        _ => return None,
    })
}

macro_rules! comparison {
    ($($name:ident, $lanes:ident, $lane:ty, $operator:tt;)*) => {
        $(
            #[inline(always)]
            fn $name(a: Vector, b: Vector) -> Vector {
                zip(a.$lanes(), b.$lanes(), |a, b| if a $operator b { !0 } else { 0 as $lane })
                    .into()
            }
        )*
    };
}
comparison! {
    equal8, i8s, i8, ==;
    equal16, i16s, i16, ==;
    equal32, i32s, i32, ==;
    equal64, i64s, i64, ==;
    greater8, i8s, i8, >;
    greater16, i16s, i16, >;
    greater32, i32s, i32, >;
    greater64, i64s, i64, >;
}
