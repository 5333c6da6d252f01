//! MXCSR, and stores of selected bytes.

use super::operands::*;
use crate::processor::soft::{
    cpu::{Cpu, Exception, Exit},
    op::{Handler, Op},
    x87::MXCSR_MASK,
};
use iced_x86::{Instruction, Mnemonic as M, Register};

pub fn select(i: &Instruction) -> Option<Handler> {
    Some(match i.mnemonic() {
        M::Ldmxcsr => ldmxcsr,
        M::Stmxcsr => stmxcsr,
        M::Maskmovdqu => MASKMOVDQU[number(i.op2_register(), Register::XMM0)?],
        M::Maskmovq => MASKMOVQ[number(i.op2_register(), Register::MM0)?],
        _ => return None,
    })
}

fn ldmxcsr(cpu: &mut Cpu, op: &Op) -> Result<(), Exit> {
    cpu.require_sse()?;
    let value: u32 = cpu.load(cpu.effective_address(op))?;
    if value & !MXCSR_MASK != 0 {
        return cpu.raise(Exception::general_protection(0));
    }
    cpu.mxcsr = value;
    Ok(())
}

fn stmxcsr(cpu: &mut Cpu, op: &Op) -> Result<(), Exit> {
    cpu.require_sse()?;
    cpu.store(cpu.effective_address(op), cpu.mxcsr)
}

fn number(register: Register, first: Register) -> Option<usize> {
    let number = (register as usize).checked_sub(first as usize)?;
    (number < 16).then_some(number)
}

/// The mask register is a third register operand, which `Op` has no place for: a handler each.
macro_rules! by_mask {
    ($f:ident, $($mask:literal)*) => { [$($f::<$mask>),*] };
}
const MASKMOVDQU: [Handler; 16] = by_mask!(maskmovdqu, 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15);
const MASKMOVQ: [Handler; 16] = by_mask!(maskmovq, 0 1 2 3 4 5 6 7 0 1 2 3 4 5 6 7);

fn maskmovdqu<const MASK: usize>(cpu: &mut Cpu, op: &Op) -> Result<(), Exit> {
    cpu.require_sse()?;
    store_selected(cpu, op, cpu.xmm[src(op)].0, cpu.xmm[MASK & 15].0)
}

fn maskmovq<const MASK: u8>(cpu: &mut Cpu, op: &Op) -> Result<(), Exit> {
    cpu.require_mmx()?;
    let data = cpu.x87.mmx(op.src).to_le_bytes();
    store_selected(cpu, op, data, cpu.x87.mmx(MASK).to_le_bytes())?;
    cpu.x87.enter_mmx();
    Ok(())
}

fn store_selected<const N: usize>(
    cpu: &mut Cpu,
    op: &Op,
    data: [u8; N],
    mask: [u8; N],
) -> Result<(), Exit> {
    let wide = if op.length_and_flags & Op::ADDRESS32 != 0 {
        0xFFFF_FFFF
    } else {
        u64::MAX
    };
    let base = cpu.segment_base[usize::from(op.segment & 7)];
    let address = base.wrapping_add(cpu.reg(Cpu::RDI) & wide);
    let selected = || {
        (0..N as u64)
            .zip(data)
            .zip(mask)
            .filter(|(_, m)| m & 0x80 != 0)
    };
    for ((i, _), _) in selected() {
        cpu.check_store(address.wrapping_add(i), 1)?;
    }
    for ((i, byte), _) in selected() {
        cpu.store(address.wrapping_add(i), byte)?;
    }
    Ok(())
}
