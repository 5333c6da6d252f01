//! Moves between vector registers, general registers and memory.

use super::{operands::*, vector::Vector};
use crate::processor::soft::{
    cpu::{Cpu, Exception, Exit},
    op::{Handler, Op},
};
use iced_x86::{Code, Instruction};

pub fn select(i: &Instruction) -> Option<Handler> {
    let memory = in_memory(i);
    use Code::*;
    Some(match i.code() {
        Movaps_xmm_xmmm128 | Movapd_xmm_xmmm128 | Movdqa_xmm_xmmm128 | Movntdqa_xmm_m128
            if memory =>
        {
            |cpu, op| load(cpu, op, load_aligned)
        }
        Movups_xmm_xmmm128 | Movupd_xmm_xmmm128 | Movdqu_xmm_xmmm128 | Lddqu_xmm_m128 if memory => {
            |cpu, op| load(cpu, op, load_unaligned)
        }
        Movaps_xmm_xmmm128 | Movapd_xmm_xmmm128 | Movdqa_xmm_xmmm128 | Movups_xmm_xmmm128
        | Movupd_xmm_xmmm128 | Movdqu_xmm_xmmm128 => copy::<false>,
        Movaps_xmmm128_xmm | Movapd_xmmm128_xmm | Movdqa_xmmm128_xmm | Movntps_m128_xmm
        | Movntpd_m128_xmm | Movntdq_m128_xmm
            if memory =>
        {
            store_aligned
        }
        Movups_xmmm128_xmm | Movupd_xmmm128_xmm | Movdqu_xmmm128_xmm if memory => store_unaligned,
        Movaps_xmmm128_xmm | Movapd_xmmm128_xmm | Movdqa_xmmm128_xmm | Movups_xmmm128_xmm
        | Movupd_xmmm128_xmm | Movdqu_xmmm128_xmm => copy::<false>,

        Movq_xmm_xmmm64 if memory => |cpu, op| load(cpu, op, load_narrow::<u64>),
        Movq_xmm_xmmm64 | Movq_xmmm64_xmm if !memory => copy::<true>,
        Movq_xmmm64_xmm | Movlps_m64_xmm | Movlpd_m64_xmm => store_low64,
        Movhps_m64_xmm | Movhpd_m64_xmm => store_high64,
        Movlps_xmm_m64 | Movlpd_xmm_m64 => {
            |cpu, op| xmm_narrow::<u64>(cpu, op, |a, b, _| a.with_low64(b.low64()))
        }
        Movhps_xmm_m64 | Movhpd_xmm_m64 => {
            |cpu, op| xmm_narrow::<u64>(cpu, op, |a, b, _| [a.low64(), b.low64()].into())
        }
        Movhlps_xmm_xmm => |cpu, op| xmm_xmm(cpu, op, |a, b, _| a.with_low64(b.high64())),
        Movlhps_xmm_xmm => |cpu, op| xmm_xmm(cpu, op, |a, b, _| [a.low64(), b.low64()].into()),
        Movss_xmm_xmmm32 if memory => |cpu, op| load(cpu, op, load_narrow::<u32>),
        Movsd_xmm_xmmm64 if memory => |cpu, op| load(cpu, op, load_narrow::<u64>),
        Movss_xmmm32_xmm if memory => store_low32,
        Movsd_xmmm64_xmm if memory => store_low64,
        Movss_xmm_xmmm32 | Movss_xmmm32_xmm => {
            |cpu, op| xmm_xmm(cpu, op, |a, b, _| a.with_low32(b.low32()))
        }
        Movsd_xmm_xmmm64 | Movsd_xmmm64_xmm => {
            |cpu, op| xmm_xmm(cpu, op, |a, b, _| a.with_low64(b.low64()))
        }

        Movd_xmm_rm32 if memory => |cpu, op| load(cpu, op, load_narrow::<u32>),
        Movq_xmm_rm64 if memory => |cpu, op| load(cpu, op, load_narrow::<u64>),
        Movd_xmm_rm32 => from_general::<0xFFFF_FFFF>,
        Movq_xmm_rm64 => from_general::<{ u64::MAX }>,
        Movd_rm32_xmm if memory => store_low32,
        Movq_rm64_xmm if memory => store_low64,
        Movd_rm32_xmm => |cpu, op| to_general(cpu, op, |xmm| xmm.low32().into()),
        Movq_rm64_xmm => |cpu, op| to_general(cpu, op, Vector::low64),

        Movnti_m32_r32 => |cpu, op| cpu.store(cpu.effective_address(op), cpu.reg(op.src) as u32),
        Movnti_m64_r64 => |cpu, op| cpu.store(cpu.effective_address(op), cpu.reg(op.src)),

        Pmovmskb_r32_xmm | Pmovmskb_r64_xmm => |cpu, op| to_general(cpu, op, signs8),
        Movmskps_r32_xmm | Movmskps_r64_xmm => |cpu, op| to_general(cpu, op, signs32),
        Movmskpd_r32_xmm | Movmskpd_r64_xmm => |cpu, op| to_general(cpu, op, signs64),
        _ => return None,
    })
}

/// `ZERO_UPPER` is MOVQ between registers.
fn copy<const ZERO_UPPER: bool>(cpu: &mut Cpu, op: &Op) -> Result<(), Exit> {
    cpu.require_sse()?;
    let source = cpu.xmm[src(op)];
    cpu.xmm[dst(op)] = if ZERO_UPPER {
        [source.low64(), 0].into()
    } else {
        source
    };
    Ok(())
}

#[inline(always)]
fn load(
    cpu: &mut Cpu,
    op: &Op,
    source: impl Fn(&mut Cpu, &Op) -> Result<Vector, Exit>,
) -> Result<(), Exit> {
    cpu.require_sse()?;
    cpu.xmm[dst(op)] = source(cpu, op)?;
    Ok(())
}

fn store_aligned(cpu: &mut Cpu, op: &Op) -> Result<(), Exit> {
    cpu.require_sse()?;
    let address = cpu.effective_address(op);
    if address & 15 != 0 {
        return cpu.raise(Exception::general_protection(0));
    }
    cpu.store(address, u128::from(cpu.xmm[src(op)]))
}

fn store_unaligned(cpu: &mut Cpu, op: &Op) -> Result<(), Exit> {
    cpu.require_sse()?;
    cpu.store(cpu.effective_address(op), u128::from(cpu.xmm[src(op)]))
}

fn store_low32(cpu: &mut Cpu, op: &Op) -> Result<(), Exit> {
    cpu.require_sse()?;
    cpu.store(cpu.effective_address(op), cpu.xmm[src(op)].low32())
}

fn store_low64(cpu: &mut Cpu, op: &Op) -> Result<(), Exit> {
    cpu.require_sse()?;
    cpu.store(cpu.effective_address(op), cpu.xmm[src(op)].low64())
}

fn store_high64(cpu: &mut Cpu, op: &Op) -> Result<(), Exit> {
    cpu.require_sse()?;
    cpu.store(cpu.effective_address(op), cpu.xmm[src(op)].high64())
}

fn from_general<const MASK: u64>(cpu: &mut Cpu, op: &Op) -> Result<(), Exit> {
    cpu.require_sse()?;
    cpu.xmm[dst(op)] = [cpu.reg(op.src) & MASK, 0].into();
    Ok(())
}

#[inline(always)]
fn to_general(cpu: &mut Cpu, op: &Op, f: impl Fn(Vector) -> u64) -> Result<(), Exit> {
    cpu.require_sse()?;
    cpu.set_reg(op.dst, f(cpu.xmm[src(op)]));
    Ok(())
}

/// The top bits of the eight bytes of `bytes`, gathered: the multiplication moves the bit of byte
/// `i` from position `8 i` to `56 + i` without carries.
#[inline(always)]
pub fn byte_signs(bytes: u64) -> u64 {
    ((bytes >> 7) & 0x0101_0101_0101_0101).wrapping_mul(0x0102_0408_1020_4080) >> 56
}

#[inline(always)]
fn signs8(xmm: Vector) -> u64 {
    byte_signs(xmm.low64()) | byte_signs(xmm.high64()) << 8
}

#[inline(always)]
fn signs32(xmm: Vector) -> u64 {
    let [a, b, c, d] = xmm.u32s().map(|lane| u64::from(lane >> 31));
    a | b << 1 | c << 2 | d << 3
}

#[inline(always)]
fn signs64(xmm: Vector) -> u64 {
    xmm.low64() >> 63 | xmm.high64() >> 63 << 1
}
