//! Single flags, and instructions that do nothing visible.

use super::{
    super::{
        cpu::{Cpu, Exception, Exit},
        flags::{self, Flags, W8, W16, W32},
        op::{Handler, Op},
    },
    operand::Size,
    shape::is_long,
};
use iced_x86::{Instruction, Mnemonic};
use std::sync::atomic;

pub fn select(instruction: &Instruction) -> Option<Handler> {
    Some(match instruction.mnemonic() {
        Mnemonic::Clc => |cpu, _| carry(cpu, false),
        Mnemonic::Stc => |cpu, _| carry(cpu, true),
        Mnemonic::Cmc => |cpu, _| carry(cpu, !cpu.flags.carry()),
        Mnemonic::Cld => |cpu, _| {
            cpu.system_flags &= !flags::DF;
            Ok(())
        },
        Mnemonic::Std => |cpu, _| {
            cpu.system_flags |= flags::DF;
            Ok(())
        },
        Mnemonic::Lahf => load_flags,
        Mnemonic::Sahf => store_flags,
        Mnemonic::Nop
        | Mnemonic::Reservednop
        | Mnemonic::Endbr32
        | Mnemonic::Endbr64
        | Mnemonic::Pause
        | Mnemonic::Prefetch
        | Mnemonic::Prefetchw
        | Mnemonic::Prefetchwt1
        | Mnemonic::Prefetchnta
        | Mnemonic::Prefetcht0
        | Mnemonic::Prefetcht1
        | Mnemonic::Prefetcht2
        | Mnemonic::Cldemote
        | Mnemonic::Lfence => |_, _| Ok(()),
        Mnemonic::Mfence | Mnemonic::Sfence => |_, _| {
            atomic::fence(atomic::Ordering::SeqCst);
            Ok(())
        },
        // No cache to flush, but the address is checked as for a load.
        Mnemonic::Clflush => |cpu, op| W8::load(cpu, cpu.effective_address(op)).map(drop),
        Mnemonic::Ud0 | Mnemonic::Ud1 | Mnemonic::Ud2 => {
            |cpu, _| cpu.raise(Exception::INVALID_OPCODE)
        }
        Mnemonic::Salc if !is_long(instruction) => |cpu, _| {
            let value = if cpu.flags.carry() { 0xFF } else { 0 };
            W8::set(cpu, Cpu::RAX, value);
            Ok(())
        },
        Mnemonic::Bound => match instruction.code() {
            iced_x86::Code::Bound_r16_m1616 => bound::<W16>,
            _ => bound::<W32>,
        },
        _ => return None,
    })
}

fn carry(cpu: &mut Cpu, value: bool) -> Result<(), Exit> {
    cpu.flags = cpu.flags.with_carry(value);
    Ok(())
}

/// LAHF.
fn load_flags(cpu: &mut Cpu, _op: &Op) -> Result<(), Exit> {
    let low = (cpu.flags.bits() & 0xFF) | 2;
    let merged = (cpu.reg(Cpu::RAX) & !0xFF00) | (low << 8);
    cpu.set_reg(Cpu::RAX, merged);
    Ok(())
}

/// SAHF: all but OF.
fn store_flags(cpu: &mut Cpu, _op: &Op) -> Result<(), Exit> {
    let low = (cpu.reg(Cpu::RAX) >> 8) & 0xFF;
    let overflow = cpu.flags.bits() & flags::OF;
    cpu.flags = Flags::from_bits(low | overflow);
    Ok(())
}

/// BOUND: #BR unless lower <= index <= upper.
fn bound<W: Size>(cpu: &mut Cpu, op: &Op) -> Result<(), Exit> {
    let linear = cpu.effective_address(op);
    let lower = W::load(cpu, linear)?;
    let upper = W::load(cpu, linear.wrapping_add(W::BYTES))?;
    let index = W::signed(cpu.reg(op.dst));
    if index < W::signed(lower) || index > W::signed(upper) {
        return cpu.raise(Exception::BOUND);
    }
    Ok(())
}
