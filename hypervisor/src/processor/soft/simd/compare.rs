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
    ($($name:ident, $lanes:ident, $lane:ty, $test:expr;)*) => {
        $(
            #[inline(always)]
            fn $name(a: Vector, b: Vector) -> Vector {
                let test: fn(&$lane, &$lane) -> bool = $test;
                zip(a.$lanes(), b.$lanes(), |a, b| if test(&a, &b) { !0 } else { 0 as $lane }).into()
            }
        )*
    };
}
comparison! {
    equal8, i8s, i8, i8::eq;
    equal16, i16s, i16, i16::eq;
    equal32, i32s, i32, i32::eq;
    equal64, i64s, i64, i64::eq;
    greater8, i8s, i8, i8::gt;
    greater16, i16s, i16, i16::gt;
    greater32, i32s, i32, i32::gt;
    greater64, i64s, i64, i64::gt;
}
