//! Near jumps, calls, returns and loops.

use super::{
    super::{
        cpu::{Cpu, Exception, Exit},
        flags::{W16, W32, W64},
        op::{Handler, Op},
    },
    by_condition,
    condition::{Condition, Group, Is, condition},
    operand::{Base, Dst, Full, Memory, Size, Source},
    shape::{Kind, is_long, kind},
    stack::{Compatible, Long, Stack, stack_fault},
};
use iced_x86::{Code, Instruction, OpKind};

pub fn select(instruction: &Instruction) -> Option<Handler> {
    if let Some((Group::Jump, code)) = condition(instruction.mnemonic()) {
        // Branches with a 16-bit instruction pointer: no program has them.
        return match (instruction.op_kind(0), is_long(instruction)) {
            (OpKind::NearBranch16, _) => None,
            (_, true) => Some(by_condition!(code, |C| jump_if::<Long, C>)),
            (_, false) => Some(by_condition!(code, |C| jump_if::<Compatible, C>)),
        };
    }
    macro_rules! operand {
        ($handler:ident, $mode:ty, $width:ty) => {
            match kind(instruction, 0)? {
                Kind::Register => $handler::<$mode, $width, Dst> as Handler,
                Kind::Base => $handler::<$mode, $width, Memory<Base>>,
                _ => $handler::<$mode, $width, Memory<Full>>,
            }
        };
    }
    Some(match instruction.code() {
        Code::Jmp_rel8_64 | Code::Jmp_rel32_64 => jump::<Long>,
        Code::Jmp_rel8_32 | Code::Jmp_rel32_32 => jump::<Compatible>,
        Code::Call_rel32_64 => call::<Long, W64>,
        Code::Call_rel32_32 => call::<Compatible, W32>,
        Code::Jmp_rm64 => operand!(jump_to, Long, W64),
        Code::Jmp_rm32 => operand!(jump_to, Compatible, W32),
        Code::Call_rm64 => operand!(call_to, Long, W64),
        Code::Call_rm32 => operand!(call_to, Compatible, W32),
        Code::Retnq | Code::Retnq_imm16 => ret::<Long, W64>,
        Code::Retnd | Code::Retnd_imm16 => ret::<Compatible, W32>,
        Code::Jrcxz_rel8_64 => jump_if_count_zero::<Long, W64>,
        Code::Jecxz_rel8_64 => jump_if_count_zero::<Long, W32>,
        Code::Jecxz_rel8_32 => jump_if_count_zero::<Compatible, W32>,
        Code::Jcxz_rel8_32 => jump_if_count_zero::<Compatible, W16>,
        Code::Loop_rel8_64_RCX => loop_while::<Long, W64, Always>,
        Code::Loop_rel8_64_ECX => loop_while::<Long, W32, Always>,
        Code::Loop_rel8_32_ECX => loop_while::<Compatible, W32, Always>,
        Code::Loop_rel8_32_CX => loop_while::<Compatible, W16, Always>,
        Code::Loope_rel8_64_RCX => loop_while::<Long, W64, Equal>,
        Code::Loope_rel8_64_ECX => loop_while::<Long, W32, Equal>,
        Code::Loope_rel8_32_ECX => loop_while::<Compatible, W32, Equal>,
        Code::Loope_rel8_32_CX => loop_while::<Compatible, W16, Equal>,
        Code::Loopne_rel8_64_RCX => loop_while::<Long, W64, NotEqual>,
        Code::Loopne_rel8_64_ECX => loop_while::<Long, W32, NotEqual>,
        Code::Loopne_rel8_32_ECX => loop_while::<Compatible, W32, NotEqual>,
        Code::Loopne_rel8_32_CX => loop_while::<Compatible, W16, NotEqual>,
        _ => return None,
    })
}

/// Where a relative branch goes. Its range cannot leave the canonical addresses: what lies past
/// their end faults at the fetch.
#[inline(always)]
fn relative<K: Stack>(cpu: &Cpu, op: &Op) -> u64 {
    K::wrap(cpu.reg(Cpu::RIP).wrapping_add(op.immediate as u64))
}

#[inline(always)]
fn branch(cpu: &mut Cpu, target: u64) -> Result<(), Exit> {
    cpu.rip = target;
    Err(Exit::Branch)
}

#[inline(always)]
fn is_canonical(target: u64) -> bool {
    ((target << 16) as i64 >> 16) as u64 == target
}

/// #GP at the branching instruction when a computed target is not canonical.
#[inline(always)]
fn require_canonical(cpu: &mut Cpu, target: u64) -> Result<(), Exit> {
    if !is_canonical(target) {
        return cpu.raise(Exception::general_protection(0));
    }
    Ok(())
}

fn jump<K: Stack>(cpu: &mut Cpu, op: &Op) -> Result<(), Exit> {
    let target = relative::<K>(cpu, op);
    branch(cpu, target)
}

fn jump_if<K: Stack, C: Condition>(cpu: &mut Cpu, op: &Op) -> Result<(), Exit> {
    if C::holds(cpu) {
        let target = relative::<K>(cpu, op);
        return branch(cpu, target);
    }
    Ok(())
}

fn jump_to<K: Stack, W: Size, S: Source<W>>(cpu: &mut Cpu, op: &Op) -> Result<(), Exit> {
    let target = W::truncate(S::read(cpu, op)?);
    require_canonical(cpu, target)?;
    branch(cpu, target)
}

fn call<K: Stack, W: Size>(cpu: &mut Cpu, op: &Op) -> Result<(), Exit> {
    let (target, link) = (relative::<K>(cpu, op), cpu.next_rip(op));
    match K::push_fast::<W>(cpu, link) {
        Some(()) => branch(cpu, target),
        None => call_slow::<K, W>(cpu, op),
    }
}

#[cold]
#[inline(never)]
fn call_slow<K: Stack, W: Size>(cpu: &mut Cpu, op: &Op) -> Result<(), Exit> {
    let (target, link) = (relative::<K>(cpu, op), cpu.next_rip(op));
    K::push::<W>(cpu, link)?;
    branch(cpu, target)
}

fn call_to<K: Stack, W: Size, S: Source<W>>(cpu: &mut Cpu, op: &Op) -> Result<(), Exit> {
    let target = W::truncate(S::read(cpu, op)?);
    if !is_canonical(target) {
        // The stack comes first.
        let pointer = K::wrap(cpu.reg(Cpu::RSP).wrapping_sub(W::BYTES));
        cpu.check_store(K::linear(cpu, pointer), W::BYTES)
            .map_err(|exit| stack_fault(cpu, exit))?;
        return cpu.raise(Exception::general_protection(0));
    }
    let link = cpu.next_rip(op);
    K::push::<W>(cpu, link)?;
    branch(cpu, target)
}

/// RET; the form without an operand has 0 in `immediate`.
fn ret<K: Stack, W: Size>(cpu: &mut Cpu, op: &Op) -> Result<(), Exit> {
    match K::pop_at_fast::<W>(cpu, cpu.reg(Cpu::RSP)) {
        Some((target, pointer)) if is_canonical(target) => return_to::<K>(cpu, op, target, pointer),
        _ => ret_slow::<K, W>(cpu, op),
    }
}

#[cold]
#[inline(never)]
fn ret_slow<K: Stack, W: Size>(cpu: &mut Cpu, op: &Op) -> Result<(), Exit> {
    let (target, pointer) = K::pop_at::<W>(cpu, cpu.reg(Cpu::RSP))?;
    require_canonical(cpu, target)?;
    return_to::<K>(cpu, op, target, pointer)
}

#[inline(always)]
fn return_to<K: Stack>(cpu: &mut Cpu, op: &Op, target: u64, pointer: u64) -> Result<(), Exit> {
    let released = op.immediate as u64 & 0xFFFF;
    cpu.set_reg(Cpu::RSP, K::wrap(pointer.wrapping_add(released)));
    branch(cpu, target)
}

fn jump_if_count_zero<K: Stack, W: Size>(cpu: &mut Cpu, op: &Op) -> Result<(), Exit> {
    if W::truncate(cpu.reg(Cpu::RCX)) == 0 {
        return jump::<K>(cpu, op);
    }
    Ok(())
}

struct Always;
impl Condition for Always {
    #[inline(always)]
    fn holds(_cpu: &Cpu) -> bool {
        true
    }
}
type Equal = Is<4>;
type NotEqual = Is<5>;

fn loop_while<K: Stack, W: Size, C: Condition>(cpu: &mut Cpu, op: &Op) -> Result<(), Exit> {
    let count = cpu.reg(Cpu::RCX).wrapping_sub(1);
    W::set(cpu, Cpu::RCX, count);
    if W::truncate(count) != 0 && C::holds(cpu) {
        return jump::<K>(cpu, op);
    }
    Ok(())
}
