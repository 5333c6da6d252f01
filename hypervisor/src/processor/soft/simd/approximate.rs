//! RCP and RSQRT: the architecture asks for a relative error below 1.5 * 2^-12 and each processor
//! has its own approximation; ours is the correctly rounded value. No exceptions, no MXCSR.

use super::{operands::*, vector::Vector};
use crate::processor::soft::{
    cpu::Cpu,
    op::{Handler, Op},
};
use iced_x86::{Instruction, Mnemonic as M};

pub fn select(i: &Instruction) -> Option<Handler> {
    Some(match i.mnemonic() {
        M::Rcpps => xmm!(i, |_, b: Vector| Vector::from(b.f32s().map(reciprocal))),
        M::Rsqrtps => xmm!(i, |_, b: Vector| Vector::from(
            b.f32s().map(reciprocal_root)
        )),
        M::Rcpss => xmm!(i, |a, b| low(a, b, reciprocal), u32),
        M::Rsqrtss => xmm!(i, |a, b| low(a, b, reciprocal_root), u32),
        _ => return None,
    })
}

#[inline(always)]
fn low(a: Vector, b: Vector, f: impl Fn(f32) -> f32) -> Vector {
    let [lane, ..] = b.f32s();
    a.with_low32(f(lane).to_bits())
}

/// Denormals count as zero, on the way in and out.
fn flush(value: f32) -> f32 {
    if value.is_subnormal() {
        0.0_f32.copysign(value)
    } else {
        value
    }
}

fn quiet(nan: f32) -> f32 {
    f32::from_bits(nan.to_bits() | 1 << 22)
}

fn reciprocal(value: f32) -> f32 {
    if value.is_nan() {
        return quiet(value);
    }
    flush(1.0 / flush(value))
}

fn reciprocal_root(value: f32) -> f32 {
    let value = flush(value);
    if value.is_nan() {
        quiet(value)
    } else if value == 0.0 {
        1.0 / value
    } else if value < 0.0 {
        f32::from_bits(0xFFC0_0000)
    } else {
        (1.0 / f64::from(value).sqrt()) as f32
    }
}
