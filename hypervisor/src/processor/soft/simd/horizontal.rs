//! Integer arithmetic across lanes: sums of products, differences, and horizontal operations.

use super::{operands::*, vector::*};
use crate::processor::soft::{
    cpu::Cpu,
    op::{Handler, Op},
};
use iced_x86::{Instruction, Mnemonic as M};
use std::array::from_fn;

pub fn select(i: &Instruction) -> Option<Handler> {
    Some(match i.mnemonic() {
        M::Pmaddwd => both!(i, multiply_add_words),
        M::Pmaddubsw => both!(i, multiply_add_bytes),
        M::Psadbw => both!(i, sum_of_differences),
        M::Mpsadbw => xmm_immediate!(i, sliding_differences),
        M::Phminposuw => xmm!(i, minimum_position),
        M::Phaddw if is_mmx(i) => mmx!(i, joined(pairs_i16(i16::wrapping_add))),
        M::Phaddw => xmm!(i, pairs_i16(i16::wrapping_add)),
        M::Phaddsw if is_mmx(i) => mmx!(i, joined(pairs_i16(i16::saturating_add))),
        M::Phaddsw => xmm!(i, pairs_i16(i16::saturating_add)),
        M::Phsubw if is_mmx(i) => mmx!(i, joined(pairs_i16(i16::wrapping_sub))),
        M::Phsubw => xmm!(i, pairs_i16(i16::wrapping_sub)),
        M::Phsubsw if is_mmx(i) => mmx!(i, joined(pairs_i16(i16::saturating_sub))),
        M::Phsubsw => xmm!(i, pairs_i16(i16::saturating_sub)),
        M::Phaddd if is_mmx(i) => mmx!(i, joined(pairs_i32(i32::wrapping_add))),
        M::Phaddd => xmm!(i, pairs_i32(i32::wrapping_add)),
        M::Phsubd if is_mmx(i) => mmx!(i, joined(pairs_i32(i32::wrapping_sub))),
        M::Phsubd => xmm!(i, pairs_i32(i32::wrapping_sub)),
        _ => return None,
    })
}

#[inline(always)]
fn multiply_add_words(a: Vector, b: Vector) -> Vector {
    let (a, b) = (a.i16s(), b.i16s());
    let product = |i: usize| i32::from(a[i]) * i32::from(b[i]);
    from_fn::<_, 4, _>(|i| product(2 * i).wrapping_add(product(2 * i + 1))).into()
}

/// Unsigned bytes of `a` times signed bytes of `b`.
#[inline(always)]
fn multiply_add_bytes(a: Vector, b: Vector) -> Vector {
    let (a, b) = (a.u8s(), b.i8s());
    let product = |i: usize| i16::from(a[i]) * i16::from(b[i]);
    from_fn::<_, 8, _>(|i| product(2 * i).saturating_add(product(2 * i + 1))).into()
}

#[inline(always)]
fn sum_of_differences(a: Vector, b: Vector) -> Vector {
    let differences = zip(a.u8s(), b.u8s(), u8::abs_diff);
    from_fn::<u64, 2, _>(|half| (0..8).map(|i| u64::from(differences[8 * half + i])).sum()).into()
}

fn sliding_differences(a: Vector, b: Vector, immediate: u8) -> Vector {
    let first = usize::from(immediate >> 2 & 1) * 4;
    let block = usize::from(immediate & 3) * 4;
    let (a, b) = (a.u8s(), b.u8s());
    from_fn::<u16, 8, _>(|i| {
        (0..4)
            .map(|j| u16::from(a[first + i + j].abs_diff(b[block + j])))
            .sum()
    })
    .into()
}

fn minimum_position(_: Vector, b: Vector) -> Vector {
    let mut minimum = (u16::MAX, 7);
    for (i, lane) in b.u16s().into_iter().enumerate().rev() {
        if lane <= minimum.0 {
            minimum = (lane, i as u16);
        }
    }
    [minimum.0, minimum.1, 0, 0, 0, 0, 0, 0].into()
}

#[inline(always)]
fn pairs_i16(f: impl Fn(i16, i16) -> i16) -> impl Fn(Vector, Vector) -> Vector {
    move |a, b| {
        let (a, b) = (a.i16s(), b.i16s());
        let pair = |from: [i16; 8], i: usize| f(from[2 * i], from[2 * i + 1]);
        from_fn::<_, 8, _>(|i| if i < 4 { pair(a, i) } else { pair(b, i - 4) }).into()
    }
}

#[inline(always)]
fn pairs_i32(f: impl Fn(i32, i32) -> i32) -> impl Fn(Vector, Vector) -> Vector {
    move |a, b| {
        let (a, b) = (a.i32s(), b.i32s());
        [f(a[0], a[1]), f(a[2], a[3]), f(b[0], b[1]), f(b[2], b[3])].into()
    }
}

/// The MMX form of an operation whose result takes its lower half from the first operand: both
/// 64-bit operands make up the first one.
#[inline(always)]
fn joined(f: impl Fn(Vector, Vector) -> Vector) -> impl Fn(Vector, Vector) -> Vector {
    move |a, b| f([a.low64(), b.low64()].into(), Vector::default())
}
