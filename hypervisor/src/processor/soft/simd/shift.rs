//! Shifts of lanes by one common count, and of the whole register by bytes.

use super::{operands::*, vector::*};
use crate::processor::soft::{
    cpu::Cpu,
    op::{Handler, Op},
};
use iced_x86::{Instruction, Mnemonic as M, OpKind};

/// Handlers of the three forms: by register or memory (the low 64 bits count), by immediate.
macro_rules! shift {
    ($i:expr, $f:expr) => {
        if $i.op1_kind() != OpKind::Immediate8 {
            both!($i, |a: Vector, b: Vector| $f(a, b.low64()))
        } else if is_mmx($i) {
            |cpu: &mut Cpu, op: &Op| mm_mm(cpu, op, |a, _, count| $f(a, count.into()))
        } else {
            |cpu: &mut Cpu, op: &Op| xmm_xmm(cpu, op, |a, _, count| $f(a, count.into()))
        }
    };
}

pub fn select(i: &Instruction) -> Option<Handler> {
    Some(match i.mnemonic() {
        M::Psllw => shift!(i, left16),
        M::Pslld => shift!(i, left32),
        M::Psllq => shift!(i, left64),
        M::Psrlw => shift!(i, right16),
        M::Psrld => shift!(i, right32),
        M::Psrlq => shift!(i, right64),
        M::Psraw => shift!(i, arithmetic16),
        M::Psrad => shift!(i, arithmetic32),
        M::Pslldq => |cpu, op| xmm_xmm(cpu, op, left_bytes),
        M::Psrldq => |cpu, op| xmm_xmm(cpu, op, right_bytes),
        _ => return None,
    })
}

macro_rules! logical {
    ($($name:ident, $lanes:ident, $lane:ty, $shift:ident;)*) => {
        $(
            #[inline(always)]
            fn $name(a: Vector, count: u64) -> Vector {
                if count >= u64::from(<$lane>::BITS) {
                    return Vector::default();
                }
                a.$lanes().map(|lane| lane.$shift(count as u32)).into()
            }
        )*
    };
}
logical! {
    left16, u16s, u16, wrapping_shl;
    left32, u32s, u32, wrapping_shl;
    left64, u64s, u64, wrapping_shl;
    right16, u16s, u16, wrapping_shr;
    right32, u32s, u32, wrapping_shr;
    right64, u64s, u64, wrapping_shr;
}

#[inline(always)]
fn arithmetic16(a: Vector, count: u64) -> Vector {
    let count = count.min(15) as u32;
    a.i16s().map(|lane| lane.wrapping_shr(count)).into()
}

#[inline(always)]
fn arithmetic32(a: Vector, count: u64) -> Vector {
    let count = count.min(31) as u32;
    a.i32s().map(|lane| lane.wrapping_shr(count)).into()
}

#[inline(always)]
fn left_bytes(a: Vector, _: Vector, count: u8) -> Vector {
    let value = u128::from(a);
    value.checked_shl(8 * u32::from(count)).unwrap_or(0).into()
}

#[inline(always)]
fn right_bytes(a: Vector, _: Vector, count: u8) -> Vector {
    let value = u128::from(a);
    value.checked_shr(8 * u32::from(count)).unwrap_or(0).into()
}
