//! Lane-wise integer arithmetic.

use super::{operands::*, vector::*};
use crate::processor::soft::{
    cpu::Cpu,
    op::{Handler, Op},
};
use iced_x86::{Instruction, Mnemonic as M};

pub fn select(i: &Instruction) -> Option<Handler> {
    Some(match i.mnemonic() {
        M::Paddb => both!(i, add8),
        M::Paddw => both!(i, add16),
        M::Paddd => both!(i, add32),
        M::Paddq => both!(i, add64),
        M::Psubb => both!(i, sub8),
        M::Psubw => both!(i, sub16),
        M::Psubd => both!(i, sub32),
        M::Psubq => both!(i, sub64),
        M::Paddsb => both!(i, add_saturating_i8),
        M::Paddsw => both!(i, add_saturating_i16),
        M::Paddusb => both!(i, add_saturating_u8),
        M::Paddusw => both!(i, add_saturating_u16),
        M::Psubsb => both!(i, sub_saturating_i8),
        M::Psubsw => both!(i, sub_saturating_i16),
        M::Psubusb => both!(i, sub_saturating_u8),
        M::Psubusw => both!(i, sub_saturating_u16),
        M::Pavgb => both!(i, average8),
        M::Pavgw => both!(i, average16),
        M::Pminub => both!(i, min_u8),
        M::Pminuw => xmm!(i, min_u16),
        M::Pminud => xmm!(i, min_u32),
        M::Pminsb => xmm!(i, min_i8),
        M::Pminsw => both!(i, min_i16),
        M::Pminsd => xmm!(i, min_i32),
        M::Pmaxub => both!(i, max_u8),
        M::Pmaxuw => xmm!(i, max_u16),
        M::Pmaxud => xmm!(i, max_u32),
        M::Pmaxsb => xmm!(i, max_i8),
        M::Pmaxsw => both!(i, max_i16),
        M::Pmaxsd => xmm!(i, max_i32),
        M::Pabsb => both!(i, absolute8),
        M::Pabsw => both!(i, absolute16),
        M::Pabsd => both!(i, absolute32),
        M::Psignb => both!(i, sign8),
        M::Psignw => both!(i, sign16),
        M::Psignd => both!(i, sign32),
        M::Pmullw => both!(i, multiply_low16),
        M::Pmulld => xmm!(i, multiply_low32),
        M::Pmulhw => both!(i, multiply_high_i16),
        M::Pmulhuw => both!(i, multiply_high_u16),
        M::Pmulhrsw => both!(i, multiply_round_i16),
        M::Pmuludq => both!(i, multiply_u32),
        M::Pmuldq => xmm!(i, multiply_i32),
        _ => return None,
    })
}

macro_rules! lanewise {
    ($($name:ident, $lanes:ident, $f:expr;)*) => {
        $(
            #[inline(always)]
            fn $name(a: Vector, b: Vector) -> Vector {
                zip(a.$lanes(), b.$lanes(), $f).into()
            }
        )*
    };
}
lanewise! {
    add8, u8s, u8::wrapping_add;
    add16, u16s, u16::wrapping_add;
    add32, u32s, u32::wrapping_add;
    add64, u64s, u64::wrapping_add;
    sub8, u8s, u8::wrapping_sub;
    sub16, u16s, u16::wrapping_sub;
    sub32, u32s, u32::wrapping_sub;
    sub64, u64s, u64::wrapping_sub;
    add_saturating_i8, i8s, i8::saturating_add;
    add_saturating_i16, i16s, i16::saturating_add;
    add_saturating_u8, u8s, u8::saturating_add;
    add_saturating_u16, u16s, u16::saturating_add;
    sub_saturating_i8, i8s, i8::saturating_sub;
    sub_saturating_i16, i16s, i16::saturating_sub;
    sub_saturating_u8, u8s, u8::saturating_sub;
    sub_saturating_u16, u16s, u16::saturating_sub;
    average8, u8s, |a, b| ((u16::from(a) + u16::from(b) + 1) >> 1) as u8;
    average16, u16s, |a, b| ((u32::from(a) + u32::from(b) + 1) >> 1) as u16;
    min_u8, u8s, u8::min;
    min_u16, u16s, u16::min;
    min_u32, u32s, u32::min;
    min_i8, i8s, i8::min;
    min_i16, i16s, i16::min;
    min_i32, i32s, i32::min;
    max_u8, u8s, u8::max;
    max_u16, u16s, u16::max;
    max_u32, u32s, u32::max;
    max_i8, i8s, i8::max;
    max_i16, i16s, i16::max;
    max_i32, i32s, i32::max;
    absolute8, i8s, |_, b: i8| b.wrapping_abs();
    absolute16, i16s, |_, b: i16| b.wrapping_abs();
    absolute32, i32s, |_, b: i32| b.wrapping_abs();
    sign8, i8s, |a: i8, b: i8| a.wrapping_mul(b.signum());
    sign16, i16s, |a: i16, b: i16| a.wrapping_mul(b.signum());
    sign32, i32s, |a: i32, b: i32| a.wrapping_mul(b.signum());
    multiply_low16, i16s, i16::wrapping_mul;
    multiply_low32, i32s, i32::wrapping_mul;
    multiply_high_i16, i16s, |a, b| ((i32::from(a) * i32::from(b)) >> 16) as i16;
    multiply_high_u16, u16s, |a, b| ((u32::from(a) * u32::from(b)) >> 16) as u16;
    multiply_round_i16, i16s, |a, b| ((((i32::from(a) * i32::from(b)) >> 14) + 1) >> 1) as i16;
    multiply_u32, u64s, |a, b| (a & 0xFFFF_FFFF) * (b & 0xFFFF_FFFF);
    multiply_i32, i64s, |a, b| i64::from(a as i32) * i64::from(b as i32);
}
