//! Data movement: MOV and its extending, exchanging and conditional relatives, LEA, SETcc.

use super::{
    super::{
        cpu::{Cpu, Exit},
        flags::{W8, W16, W32, W64},
        op::{Handler, Op},
    },
    by_condition,
    condition::{Group, condition},
    operand::{
        Address, Base, Destination, Dst, Full, Locked, Memory, Size, Source, Src, SrcHigh,
        fast_or_slow,
    },
    shape::{Kind, bits, kind, register_from, two_operands},
};
use iced_x86::{Instruction, Mnemonic};

pub fn select(instruction: &Instruction) -> Option<Handler> {
    if let Some((group, code)) = condition(instruction.mnemonic()) {
        return match group {
            Group::Move => Some(by_condition!(code, |C| register_from!(
                instruction,
                conditional_move,
                C
            ))),
            Group::Set => Some(by_condition!(code, |C| match kind(instruction, 0)? {
                Kind::Register => set_condition::<C, Dst> as Handler,
                Kind::High => set_condition::<C, super::operand::DstHigh>,
                _ => set_condition::<C, Memory<Full>>,
            })),
            Group::Jump => None,
        };
    }
    Some(match instruction.mnemonic() {
        Mnemonic::Mov => two_operands!(instruction, mov),
        Mnemonic::Movzx => return extending::<Zero>(instruction),
        Mnemonic::Movsx | Mnemonic::Movsxd => return extending::<Sign>(instruction),
        Mnemonic::Lea => match (bits(instruction, 0)?, kind(instruction, 1)?) {
            (64, Kind::Base) => lea::<W64, Base>,
            (32, Kind::Base) => lea::<W32, Base>,
            (64, _) => lea::<W64, Full>,
            (32, _) => lea::<W32, Full>,
            _ => lea::<W16, Full>,
        },
        Mnemonic::Xchg => return exchange_shapes(instruction),
        Mnemonic::Bswap => match bits(instruction, 0)? {
            16 => byte_swap::<W16>,
            32 => byte_swap::<W32>,
            _ => byte_swap::<W64>,
        },
        Mnemonic::Movbe => match (bits(instruction, 0)?, kind(instruction, 0)?) {
            (16, Kind::Register) => load_swapped::<W16>,
            (32, Kind::Register) => load_swapped::<W32>,
            (64, Kind::Register) => load_swapped::<W64>,
            (16, _) => store_swapped::<W16>,
            (32, _) => store_swapped::<W32>,
            _ => store_swapped::<W64>,
        },
        Mnemonic::Cbw => widen_accumulator::<W8, W16>,
        Mnemonic::Cwde => widen_accumulator::<W16, W32>,
        Mnemonic::Cdqe => widen_accumulator::<W32, W64>,
        Mnemonic::Cwd => sign_into_rdx::<W16>,
        Mnemonic::Cdq => sign_into_rdx::<W32>,
        Mnemonic::Cqo => sign_into_rdx::<W64>,
        Mnemonic::Xlatb => translate,
        _ => return None,
    })
}

fast_or_slow!(fn mov<W: Size, D: Destination<W>, S: Source<W>>, mov_fast, mov_slow);

#[inline(always)]
fn mov_fast<W: Size, D: Destination<W>, S: Source<W>>(cpu: &mut Cpu, op: &Op) -> Option<()> {
    let value = S::read_fast(cpu, op)?;
    let place = D::locate(cpu, op);
    D::store_fast(cpu, place, value)
}

fn mov_slow<W: Size, D: Destination<W>, S: Source<W>>(cpu: &mut Cpu, op: &Op) -> Result<(), Exit> {
    let value = S::read(cpu, op)?;
    let place = D::locate(cpu, op);
    D::store(cpu, place, value)
}

/// How a narrow value fills a wider one.
trait Extension {
    fn extend<W: Size>(value: u64) -> u64;
}
struct Zero;
struct Sign;
impl Extension for Zero {
    #[inline(always)]
    fn extend<W: Size>(value: u64) -> u64 {
        W::truncate(value)
    }
}
impl Extension for Sign {
    #[inline(always)]
    fn extend<W: Size>(value: u64) -> u64 {
        W::extend(value)
    }
}

fn extending<E: Extension>(instruction: &Instruction) -> Option<Handler> {
    macro_rules! from {
        ($narrow:ty) => {
            match (bits(instruction, 0)?, kind(instruction, 1)?) {
                (16, Kind::Register) => extend::<E, $narrow, W16, Src> as Handler,
                (16, _) => extend::<E, $narrow, W16, Memory<Full>>,
                (32, Kind::Register) => extend::<E, $narrow, W32, Src>,
                (32, Kind::Base) => extend::<E, $narrow, W32, Memory<Base>>,
                (32, _) => extend::<E, $narrow, W32, Memory<Full>>,
                (_, Kind::Register) => extend::<E, $narrow, W64, Src>,
                (_, Kind::Base) => extend::<E, $narrow, W64, Memory<Base>>,
                (_, _) => extend::<E, $narrow, W64, Memory<Full>>,
            }
        };
    }
    Some(match bits(instruction, 1)? {
        8 if kind(instruction, 1)? == Kind::High => match bits(instruction, 0)? {
            16 => extend::<E, W8, W16, SrcHigh>,
            32 => extend::<E, W8, W32, SrcHigh>,
            _ => extend::<E, W8, W64, SrcHigh>,
        },
        8 => from!(W8),
        16 => from!(W16),
        _ => from!(W32),
    })
}

fast_or_slow!(fn extend<E: Extension, N: Size, W: Size, S: Source<N>>, extend_fast, extend_slow);

#[inline(always)]
fn extend_fast<E: Extension, N: Size, W: Size, S: Source<N>>(cpu: &mut Cpu, op: &Op) -> Option<()> {
    let value = S::read_fast(cpu, op)?;
    W::set(cpu, op.dst, E::extend::<N>(value));
    Some(())
}

fn extend_slow<E: Extension, N: Size, W: Size, S: Source<N>>(
    cpu: &mut Cpu,
    op: &Op,
) -> Result<(), Exit> {
    let value = S::read(cpu, op)?;
    W::set(cpu, op.dst, E::extend::<N>(value));
    Ok(())
}

/// LEA takes the offset: a segment override changes nothing, the address size does.
fn lea<W: Size, A: Address>(cpu: &mut Cpu, op: &Op) -> Result<(), Exit> {
    let offset = A::offset(cpu, op);
    W::set(cpu, op.dst, offset);
    Ok(())
}

fn conditional_move<C: super::condition::Condition, W: Size, S: Source<W>>(
    cpu: &mut Cpu,
    op: &Op,
) -> Result<(), Exit> {
    // The source is read in any case, and so can fault; a 32-bit destination is always extended.
    let value = S::read(cpu, op)?;
    let value = if C::holds(cpu) {
        value
    } else {
        cpu.reg(op.dst)
    };
    W::set(cpu, op.dst, value);
    Ok(())
}

fn set_condition<C: super::condition::Condition, D: Destination<W8>>(
    cpu: &mut Cpu,
    op: &Op,
) -> Result<(), Exit> {
    let value = u64::from(C::holds(cpu));
    let place = D::locate(cpu, op);
    D::store(cpu, place, value)
}

fn exchange_shapes(instruction: &Instruction) -> Option<Handler> {
    macro_rules! with {
        ($width:ty, $source:ty) => {
            match kind(instruction, 0)? {
                Kind::Register => exchange::<$width, Dst, $source> as Handler,
                Kind::High => return None,
                _ => exchange::<$width, Locked, $source>,
            }
        };
    }
    Some(
        match (
            bits(instruction, 0)?,
            kind(instruction, 0)?,
            kind(instruction, 1)?,
        ) {
            (8, Kind::High, Kind::High) => exchange::<W8, super::operand::DstHigh, SrcHigh>,
            (8, Kind::High, _) => exchange::<W8, super::operand::DstHigh, Src>,
            (8, _, Kind::High) => with!(W8, SrcHigh),
            (8, _, _) => with!(W8, Src),
            (16, _, _) => with!(W16, Src),
            (32, _, _) => with!(W32, Src),
            _ => with!(W64, Src),
        },
    )
}

fn exchange<W: Size, D: Destination<W>, S: Destination<W>>(
    cpu: &mut Cpu,
    op: &Op,
) -> Result<(), Exit> {
    let (left, right) = (D::locate(cpu, op), S::locate(cpu, op));
    let a = D::load(cpu, left)?;
    let b = S::load(cpu, right)?;
    D::store(cpu, left, b)?;
    S::store(cpu, right, a)
}

/// `value` with its bytes in the opposite order.
#[inline(always)]
fn swapped<W: Size>(value: u64) -> u64 {
    value.swap_bytes() >> (64 - W::BITS)
}

fn byte_swap<W: Size>(cpu: &mut Cpu, op: &Op) -> Result<(), Exit> {
    // With a 16-bit operand the result is undefined; processors clear the register.
    let value = if W::BITS == 16 {
        0
    } else {
        swapped::<W>(cpu.reg(op.dst))
    };
    W::set(cpu, op.dst, value);
    Ok(())
}

fn load_swapped<W: Size>(cpu: &mut Cpu, op: &Op) -> Result<(), Exit> {
    let value = W::load(cpu, cpu.effective_address(op))?;
    W::set(cpu, op.dst, swapped::<W>(value));
    Ok(())
}

fn store_swapped<W: Size>(cpu: &mut Cpu, op: &Op) -> Result<(), Exit> {
    let value = swapped::<W>(cpu.reg(op.src));
    W::store(cpu, cpu.effective_address(op), value)
}

fn widen_accumulator<N: Size, W: Size>(cpu: &mut Cpu, _op: &Op) -> Result<(), Exit> {
    let value = N::extend(cpu.reg(Cpu::RAX));
    W::set(cpu, Cpu::RAX, value);
    Ok(())
}

fn sign_into_rdx<W: Size>(cpu: &mut Cpu, _op: &Op) -> Result<(), Exit> {
    let sign = W::signed(cpu.reg(Cpu::RAX)) >> 63;
    W::set(cpu, Cpu::RDX, sign as u64);
    Ok(())
}

/// XLAT: its index is AL, not the index register of an ordinary operand.
fn translate(cpu: &mut Cpu, op: &Op) -> Result<(), Exit> {
    let offset = cpu.reg(op.base).wrapping_add(cpu.reg(Cpu::RAX) & 0xFF);
    let offset = if op.length_and_flags & Op::ADDRESS32 != 0 {
        offset & 0xFFFF_FFFF
    } else {
        offset
    };
    let base = cpu.segment_base[usize::from(op.segment & 7)];
    let value = W8::load(cpu, base.wrapping_add(offset))?;
    W8::set(cpu, Cpu::RAX, value);
    Ok(())
}
