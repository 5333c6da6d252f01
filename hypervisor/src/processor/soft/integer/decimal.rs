//! Decimal adjustment: compatibility mode only.

use super::super::{
    cpu::{Cpu, Exception, Exit},
    flags::{Flags, W8},
    op::{Handler, Op},
};
use iced_x86::{Instruction, Mnemonic};

pub fn select(instruction: &Instruction) -> Option<Handler> {
    Some(match instruction.mnemonic() {
        Mnemonic::Aaa => |cpu, _| ascii_adjust(cpu, 0x106),
        Mnemonic::Aas => |cpu, _| ascii_adjust(cpu, 0x106u64.wrapping_neg()),
        Mnemonic::Aam => ascii_after_multiply,
        Mnemonic::Aad => ascii_before_divide,
        Mnemonic::Daa => |cpu, _| decimal_adjust(cpu, u64::wrapping_add),
        Mnemonic::Das => |cpu, _| decimal_adjust(cpu, u64::wrapping_sub),
        _ => return None,
    })
}

fn set_ax(cpu: &mut Cpu, value: u64) {
    let merged = (cpu.reg(Cpu::RAX) & !0xFFFF) | (value & 0xFFFF);
    cpu.set_reg(Cpu::RAX, merged);
}

/// AAA, AAS: `step` is added to AX when the low digit overflowed.
fn ascii_adjust(cpu: &mut Cpu, step: u64) -> Result<(), Exit> {
    let ax = cpu.reg(Cpu::RAX);
    let adjust = ax & 0xF > 9 || cpu.flags.auxiliary();
    let ax = if adjust { ax.wrapping_add(step) } else { ax };
    set_ax(cpu, ax & 0xFF0F);
    cpu.flags = Flags::explicit::<W8>(ax & 0x0F, adjust, false, adjust);
    Ok(())
}

fn ascii_after_multiply(cpu: &mut Cpu, op: &Op) -> Result<(), Exit> {
    let al = cpu.reg(Cpu::RAX) & 0xFF;
    let base = op.immediate as u64 & 0xFF;
    let (Some(high), Some(low)) = (al.checked_div(base), al.checked_rem(base)) else {
        return cpu.raise(Exception::DIVIDE);
    };
    set_ax(cpu, (high << 8) | low);
    cpu.flags = Flags::logic::<W8>(low);
    Ok(())
}

fn ascii_before_divide(cpu: &mut Cpu, op: &Op) -> Result<(), Exit> {
    let ax = cpu.reg(Cpu::RAX);
    let base = op.immediate as u64 & 0xFF;
    let low = (ax & 0xFF).wrapping_add(((ax >> 8) & 0xFF).wrapping_mul(base)) & 0xFF;
    set_ax(cpu, low);
    cpu.flags = Flags::logic::<W8>(low);
    Ok(())
}

/// DAA, DAS.
fn decimal_adjust(cpu: &mut Cpu, step: fn(u64, u64) -> u64) -> Result<(), Exit> {
    let old = cpu.reg(Cpu::RAX) & 0xFF;
    let low = old & 0xF > 9 || cpu.flags.auxiliary();
    let high = old > 0x99 || cpu.flags.carry();
    let al = if low { step(old, 6) } else { old };
    // A borrow out of the first step of DAS is a carry too; a carry out of DAA's implies `high`.
    let carry = high || al > 0xFF;
    let al = if high { step(al, 0x60) } else { al } & 0xFF;
    let merged = (cpu.reg(Cpu::RAX) & !0xFF) | al;
    cpu.set_reg(Cpu::RAX, merged);
    cpu.flags = Flags::explicit::<W8>(al, carry, false, low);
    Ok(())
}
