//! Control and status words, initialisation, and waiting.

use super::state::{X87, status};
use crate::processor::soft::{
    cpu::{Cpu, Exit},
    op::{Handler, Op},
};
use iced_x86::{Instruction, Mnemonic as M, OpKind};

pub fn select(instruction: &Instruction) -> Option<Handler> {
    let memory = instruction.op0_kind() == OpKind::Memory;
    Some(match instruction.mnemonic() {
        M::Wait => |cpu, _| cpu.require_wait(),
        M::Fninit => fninit,
        M::Fnclex => fnclex,
        M::Fnop => |cpu, _| cpu.require_x87(),
        M::Fneni | M::Fndisi | M::Fnsetpm => |cpu, _| cpu.require_x87_control(),
        M::Fnstcw => fnstcw,
        M::Fldcw => fldcw,
        M::Fnstsw if memory => fnstsw_memory,
        M::Fnstsw => fnstsw_ax,
        M::Emms => emms,
        _ => return None,
    })
}

fn fninit(cpu: &mut Cpu, _: &Op) -> Result<(), Exit> {
    cpu.require_x87_control()?;
    // The data registers keep their contents; all are empty.
    cpu.x87 = X87 {
        registers: cpu.x87.registers,
        ..X87::default()
    };
    cpu.update_fpu_access();
    Ok(())
}

fn fnclex(cpu: &mut Cpu, _: &Op) -> Result<(), Exit> {
    cpu.require_x87_control()?;
    cpu.x87.status &= !(status::EXCEPTIONS | status::STACK_FAULT);
    cpu.update_fpu_access();
    Ok(())
}

fn fnstcw(cpu: &mut Cpu, op: &Op) -> Result<(), Exit> {
    cpu.require_x87_control()?;
    cpu.store(cpu.effective_address(op), cpu.x87.control)
}

fn fldcw(cpu: &mut Cpu, op: &Op) -> Result<(), Exit> {
    cpu.require_x87()?;
    let word = cpu.load(cpu.effective_address(op))?;
    cpu.set_x87_control(word);
    Ok(())
}

fn fnstsw_memory(cpu: &mut Cpu, op: &Op) -> Result<(), Exit> {
    cpu.require_x87_control()?;
    cpu.store(cpu.effective_address(op), cpu.x87.status_word())
}

fn fnstsw_ax(cpu: &mut Cpu, _: &Op) -> Result<(), Exit> {
    cpu.require_x87_control()?;
    let rax = cpu.reg(Cpu::RAX) & !0xFFFF | u64::from(cpu.x87.status_word());
    cpu.set_reg(Cpu::RAX, rax);
    Ok(())
}

fn emms(cpu: &mut Cpu, _: &Op) -> Result<(), Exit> {
    cpu.require_mmx()?;
    cpu.x87.top = 0;
    cpu.x87.valid = 0;
    Ok(())
}
