//! Exchange-and-add and compare-and-exchange.

use super::{
    super::{
        cpu::{Cpu, Exception, Exit},
        flags::{Flags, W8, W16, W32, W64, ZF},
        op::{Handler, Op},
    },
    operand::{Destination, Dst, DstHigh, Full, Locked, Memory, Size, Src, SrcHigh},
    shape::{Kind, bits, kind},
};
use iced_x86::{Instruction, Mnemonic};
use std::sync::atomic;

pub fn select(instruction: &Instruction) -> Option<Handler> {
    macro_rules! shapes {
        ($handler:ident) => {{
            macro_rules! wide {
                ($width:ty, $source:ty) => {
                    match kind(instruction, 0)? {
                        Kind::Register => $handler::<$width, Dst, $source> as Handler,
                        Kind::Locked => $handler::<$width, Locked, $source>,
                        _ => $handler::<$width, Memory<Full>, $source>,
                    }
                };
            }
            match (
                bits(instruction, 0)?,
                kind(instruction, 0)?,
                kind(instruction, 1)?,
            ) {
                (8, Kind::High, Kind::High) => $handler::<W8, DstHigh, SrcHigh> as Handler,
                (8, Kind::High, _) => $handler::<W8, DstHigh, Src>,
                (8, _, Kind::High) => wide!(W8, SrcHigh),
                (8, _, _) => wide!(W8, Src),
                (16, _, _) => wide!(W16, Src),
                (32, _, _) => wide!(W32, Src),
                (_, _, _) => wide!(W64, Src),
            }
        }};
    }
    Some(match instruction.mnemonic() {
        Mnemonic::Xadd => shapes!(exchange_add),
        Mnemonic::Cmpxchg => shapes!(compare_exchange),
        Mnemonic::Cmpxchg8b => compare_exchange_8,
        Mnemonic::Cmpxchg16b => compare_exchange_16,
        _ => return None,
    })
}

fn exchange_add<W: Size, D: Destination<W>, S: Destination<W>>(
    cpu: &mut Cpu,
    op: &Op,
) -> Result<(), Exit> {
    let (left, right) = (D::locate(cpu, op), S::locate(cpu, op));
    let a = D::load(cpu, left)?;
    let b = S::load(cpu, right)?;
    let sum = a.wrapping_add(b);
    // The source takes the old value first: when both are one register, the sum stays in it. A
    // store to memory that faults must come before any register changes, so it goes first there.
    if D::IN_MEMORY {
        D::store(cpu, left, sum)?;
        S::store(cpu, right, a)?;
    } else {
        S::store(cpu, right, a)?;
        D::store(cpu, left, sum)?;
    }
    cpu.flags = Flags::add::<W>(a, b, sum);
    Ok(())
}

fn compare_exchange<W: Size, D: Destination<W>, S: Destination<W>>(
    cpu: &mut Cpu,
    op: &Op,
) -> Result<(), Exit> {
    let (left, right) = (D::locate(cpu, op), S::locate(cpu, op));
    let a = cpu.reg(Cpu::RAX);
    let value = D::load(cpu, left)?;
    let source = S::load(cpu, right)?;
    let equal = W::truncate(a) == W::truncate(value);
    // Memory is written either way, with its old value when the comparison fails. A register is
    // not: its upper half stays.
    if equal || D::IN_MEMORY {
        D::store(cpu, left, if equal { source } else { value })?;
    }
    if !equal {
        W::set(cpu, Cpu::RAX, value);
    }
    cpu.flags = Flags::sub::<W>(a, value, a.wrapping_sub(value));
    Ok(())
}

fn compare_exchange_8(cpu: &mut Cpu, op: &Op) -> Result<(), Exit> {
    let linear = cpu.effective_address(op);
    let pair = |high: u64, low: u64| (high << 32) | (low & 0xFFFF_FFFF);
    let expected = pair(cpu.reg(Cpu::RDX), cpu.reg(Cpu::RAX));
    let replacement = pair(cpu.reg(Cpu::RCX), cpu.reg(Cpu::RBX));
    let value: u64 = cpu.load_for_update(linear)?;
    let equal = value == expected;
    cpu.store(linear, if equal { replacement } else { value })?;
    atomic::fence(atomic::Ordering::SeqCst);
    if !equal {
        W32::set(cpu, Cpu::RAX, value);
        W32::set(cpu, Cpu::RDX, value >> 32);
    }
    set_zero(cpu, equal);
    Ok(())
}

fn compare_exchange_16(cpu: &mut Cpu, op: &Op) -> Result<(), Exit> {
    let linear = cpu.effective_address(op);
    if linear & 15 != 0 {
        return cpu.raise(Exception::general_protection(0));
    }
    let pair = |high: u64, low: u64| (u128::from(high) << 64) | u128::from(low);
    let expected = pair(cpu.reg(Cpu::RDX), cpu.reg(Cpu::RAX));
    let replacement = pair(cpu.reg(Cpu::RCX), cpu.reg(Cpu::RBX));
    let value: u128 = cpu.load_for_update(linear)?;
    let equal = value == expected;
    cpu.store(linear, if equal { replacement } else { value })?;
    atomic::fence(atomic::Ordering::SeqCst);
    if !equal {
        cpu.set_reg(Cpu::RAX, value as u64);
        cpu.set_reg(Cpu::RDX, (value >> 64) as u64);
    }
    set_zero(cpu, equal);
    Ok(())
}

/// ZF tells the outcome; the other flags stay.
fn set_zero(cpu: &mut Cpu, zero: bool) {
    let others = cpu.flags.bits() & !ZF;
    cpu.flags = Flags::from_bits(others | (u64::from(zero) * ZF));
}
