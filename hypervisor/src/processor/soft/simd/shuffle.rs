//! Rearranging lanes: shuffles, interleaves, blends and concatenation.

use super::{operands::*, vector::*};
use crate::processor::soft::{
    cpu::{Cpu, Exit},
    op::{Handler, Op},
};
use iced_x86::{Instruction, Mnemonic as M};
use std::array::from_fn;

pub fn select(i: &Instruction) -> Option<Handler> {
    Some(match i.mnemonic() {
        M::Pshufd => xmm_immediate!(i, shuffle32),
        M::Pshuflw => xmm_immediate!(i, shuffle_low16),
        M::Pshufhw => xmm_immediate!(i, shuffle_high16),
        M::Pshufw => mmx_immediate!(i, shuffle_low16),
        M::Shufps => xmm_immediate!(i, shuffle_single),
        M::Shufpd => xmm_immediate!(i, shuffle_double),
        M::Pshufb if is_mmx(i) => mmx!(i, shuffle_bytes_mmx),
        M::Pshufb => xmm!(i, shuffle_bytes),
        M::Punpcklbw if is_mmx(i) => mmx!(i, interleave_low8, u32),
        M::Punpcklwd if is_mmx(i) => mmx!(i, interleave_low16, u32),
        M::Punpckldq if is_mmx(i) => mmx!(i, interleave_low32, u32),
        M::Punpcklbw => xmm!(i, interleave_low8),
        M::Punpcklwd => xmm!(i, interleave_low16),
        M::Punpckldq | M::Unpcklps => xmm!(i, interleave_low32),
        M::Punpcklqdq | M::Unpcklpd => xmm!(i, interleave_low64),
        M::Punpckhbw if is_mmx(i) => mmx!(i, upper(interleave_low8)),
        M::Punpckhwd if is_mmx(i) => mmx!(i, upper(interleave_low16)),
        M::Punpckhdq if is_mmx(i) => mmx!(i, upper(interleave_low32)),
        M::Punpckhbw => xmm!(i, interleave_high8),
        M::Punpckhwd => xmm!(i, interleave_high16),
        M::Punpckhdq | M::Unpckhps => xmm!(i, interleave_high32),
        M::Punpckhqdq | M::Unpckhpd => xmm!(i, interleave_high64),
        M::Movddup => xmm!(i, |_, b: Vector| Vector::from([b.low64(); 2]), u64),
        M::Movsldup => xmm!(i, duplicate_even),
        M::Movshdup => xmm!(i, duplicate_odd),
        M::Palignr if is_mmx(i) => mmx_immediate!(i, align_mmx),
        M::Palignr => xmm_immediate!(i, align),
        M::Blendps => xmm_immediate!(i, blend32),
        M::Blendpd => xmm_immediate!(i, blend64),
        M::Pblendw => xmm_immediate!(i, blend16),
        M::Pblendvb if in_memory(i) => |cpu, op| blend_by_xmm0::<true>(cpu, op, blend_variable8),
        M::Pblendvb => |cpu, op| blend_by_xmm0::<false>(cpu, op, blend_variable8),
        M::Blendvps if in_memory(i) => |cpu, op| blend_by_xmm0::<true>(cpu, op, blend_variable32),
        M::Blendvps => |cpu, op| blend_by_xmm0::<false>(cpu, op, blend_variable32),
        M::Blendvpd if in_memory(i) => |cpu, op| blend_by_xmm0::<true>(cpu, op, blend_variable64),
        M::Blendvpd => |cpu, op| blend_by_xmm0::<false>(cpu, op, blend_variable64),
        _ => return None,
    })
}

/// Lane number `position` that `selector`, two bits for each, names.
#[inline(always)]
fn selected(selector: u8, position: usize) -> usize {
    usize::from(selector >> (2 * position) & 3)
}

#[inline(always)]
fn shuffle32(_: Vector, b: Vector, selector: u8) -> Vector {
    let b = b.u32s();
    from_fn::<_, 4, _>(|i| b[selected(selector, i)]).into()
}

#[inline(always)]
fn shuffle_low16(_: Vector, b: Vector, selector: u8) -> Vector {
    let b = b.u16s();
    from_fn::<_, 8, _>(|i| b[if i < 4 { selected(selector, i) } else { i }]).into()
}

#[inline(always)]
fn shuffle_high16(_: Vector, b: Vector, selector: u8) -> Vector {
    let b = b.u16s();
    from_fn::<_, 8, _>(|i| {
        b[if i < 4 {
            i
        } else {
            4 + selected(selector, i - 4)
        }]
    })
    .into()
}

#[inline(always)]
fn shuffle_single(a: Vector, b: Vector, selector: u8) -> Vector {
    let (a, b) = (a.u32s(), b.u32s());
    let pick = |from: [u32; 4], i| from[selected(selector, i)];
    [pick(a, 0), pick(a, 1), pick(b, 2), pick(b, 3)].into()
}

#[inline(always)]
fn shuffle_double(a: Vector, b: Vector, selector: u8) -> Vector {
    let low = a.u64s()[usize::from(selector & 1)];
    let high = b.u64s()[usize::from(selector >> 1 & 1)];
    [low, high].into()
}

#[inline(always)]
fn shuffle_bytes(a: Vector, b: Vector) -> Vector {
    let (a, b) = (a.u8s(), b.u8s());
    let pick = |selector: u8| {
        if selector & 0x80 != 0 {
            0
        } else {
            a[usize::from(selector & 15)]
        }
    };
    b.map(pick).into()
}

#[inline(always)]
fn shuffle_bytes_mmx(a: Vector, b: Vector) -> Vector {
    shuffle_bytes(a, b.u8s().map(|selector| selector & 0x87).into())
}

macro_rules! interleave {
    ($($low:ident, $high:ident, $lanes:ident, $count:literal;)*) => {
        $(
            #[inline(always)]
            fn $low(a: Vector, b: Vector) -> Vector {
                let (a, b) = (a.$lanes(), b.$lanes());
                from_fn::<_, $count, _>(|i| if i % 2 == 0 { a[i / 2] } else { b[i / 2] }).into()
            }

            #[inline(always)]
            fn $high(a: Vector, b: Vector) -> Vector {
                let (a, b) = (a.$lanes(), b.$lanes());
                let lane = |i| $count / 2 + i / 2;
                from_fn::<_, $count, _>(|i| if i % 2 == 0 { a[lane(i)] } else { b[lane(i)] }).into()
            }
        )*
    };
}
interleave! {
    interleave_low8, interleave_high8, u8s, 16;
    interleave_low16, interleave_high16, u16s, 8;
    interleave_low32, interleave_high32, u32s, 4;
    interleave_low64, interleave_high64, u64s, 2;
}

/// The MMX form of a high interleave: the upper half of the low one.
#[inline(always)]
fn upper(f: impl Fn(Vector, Vector) -> Vector) -> impl Fn(Vector, Vector) -> Vector {
    move |a, b| [f(a, b).high64(), 0].into()
}

#[inline(always)]
fn duplicate_even(_: Vector, b: Vector) -> Vector {
    let [a, _, c, _] = b.u32s();
    [a, a, c, c].into()
}

#[inline(always)]
fn duplicate_odd(_: Vector, b: Vector) -> Vector {
    let [_, b, _, d] = b.u32s();
    [b, b, d, d].into()
}

/// Bytes `count` to `count + 15` of `a:b`.
#[inline(always)]
fn align(a: Vector, b: Vector, count: u8) -> Vector {
    let (a, b) = (u128::from(a), u128::from(b));
    let bits = 8 * u32::from(count);
    let result = match bits {
        0 => b,
        1..128 => b >> bits | a << (128 - bits),
        _ => a.checked_shr(bits - 128).unwrap_or(0),
    };
    result.into()
}

#[inline(always)]
fn align_mmx(a: Vector, b: Vector, count: u8) -> Vector {
    let joined = u128::from(a) << 64 | u128::from(b);
    joined.checked_shr(8 * u32::from(count)).unwrap_or(0).into()
}

#[inline(always)]
fn blend16(a: Vector, b: Vector, mask: u8) -> Vector {
    let (a, b) = (a.u16s(), b.u16s());
    from_fn::<_, 8, _>(|i| if mask >> i & 1 != 0 { b[i] } else { a[i] }).into()
}

#[inline(always)]
fn blend32(a: Vector, b: Vector, mask: u8) -> Vector {
    let (a, b) = (a.u32s(), b.u32s());
    from_fn::<_, 4, _>(|i| if mask >> i & 1 != 0 { b[i] } else { a[i] }).into()
}

#[inline(always)]
fn blend64(a: Vector, b: Vector, mask: u8) -> Vector {
    let (a, b) = (a.u64s(), b.u64s());
    from_fn::<_, 2, _>(|i| if mask >> i & 1 != 0 { b[i] } else { a[i] }).into()
}

/// The blends whose mask is in XMM0.
#[inline(always)]
fn blend_by_xmm0<const MEMORY: bool>(
    cpu: &mut Cpu,
    op: &Op,
    f: impl Fn(Vector, Vector, Vector) -> Vector,
) -> Result<(), Exit> {
    cpu.require_sse()?;
    let source = if MEMORY {
        load_aligned(cpu, op)?
    } else {
        cpu.xmm[src(op)]
    };
    cpu.xmm[dst(op)] = f(cpu.xmm[dst(op)], source, cpu.xmm[0]);
    Ok(())
}

macro_rules! blend_variable {
    ($($name:ident, $lanes:ident, $lane:ty, $count:literal;)*) => {
        $(
            #[inline(always)]
            fn $name(a: Vector, b: Vector, mask: Vector) -> Vector {
                let (a, b, mask) = (a.$lanes(), b.$lanes(), mask.$lanes());
                from_fn::<$lane, $count, _>(|i| if mask[i] < 0 { b[i] } else { a[i] }).into()
            }
        )*
    };
}
blend_variable! {
    blend_variable8, i8s, i8, 16;
    blend_variable32, i32s, i32, 4;
    blend_variable64, i64s, i64, 2;
}
