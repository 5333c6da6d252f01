//! Comparisons and classification.

use super::{
    arithmetic::{Source, load},
    state::status,
};
use crate::processor::soft::{
    cpu::{Cpu, Exit},
    float::{Class, Encoding, Number},
    op::{Handler, Op},
    simd::order_flags,
};
use iced_x86::{Code, Instruction};
use std::cmp::Ordering;

pub fn select(i: &Instruction) -> Option<Handler> {
    use Code::*;
    Some(match i.code() {
        Fcom_m32fp => |cpu, op| memory::<f32>(cpu, op, 0),
        Fcomp_m32fp => |cpu, op| memory::<f32>(cpu, op, 1),
        Fcom_m64fp => |cpu, op| memory::<f64>(cpu, op, 0),
        Fcomp_m64fp => |cpu, op| memory::<f64>(cpu, op, 1),
        Ficom_m16int => |cpu, op| memory::<i16>(cpu, op, 0),
        Ficomp_m16int => |cpu, op| memory::<i16>(cpu, op, 1),
        Ficom_m32int => |cpu, op| memory::<i32>(cpu, op, 0),
        Ficomp_m32int => |cpu, op| memory::<i32>(cpu, op, 1),
        Fcom_st0_sti | Fcom_st0_sti_DCD0 => |cpu, op| to_status(cpu, op.src, false, 0),
        Fcomp_st0_sti | Fcomp_st0_sti_DCD8 | Fcomp_st0_sti_DED0 => {
            |cpu, op| to_status(cpu, op.src, false, 1)
        }
        Fcompp => |cpu, _| to_status(cpu, 1, false, 2),
        Fucom_st0_sti => |cpu, op| to_status(cpu, op.src, true, 0),
        Fucomp_st0_sti => |cpu, op| to_status(cpu, op.src, true, 1),
        Fucompp => |cpu, _| to_status(cpu, 1, true, 2),
        Fcomi_st0_sti => |cpu, op| to_flags(cpu, op, false, 0),
        Fcomip_st0_sti => |cpu, op| to_flags(cpu, op, false, 1),
        Fucomi_st0_sti => |cpu, op| to_flags(cpu, op, true, 0),
        Fucomip_st0_sti => |cpu, op| to_flags(cpu, op, true, 1),
        Ftst => ftst,
        Fxam => fxam,
        _ => return None,
    })
}

const CONDITION: u16 = status::C0 | status::C2 | status::C3;

fn condition(order: Option<Ordering>) -> u16 {
    match order {
        Some(Ordering::Greater) => 0,
        Some(Ordering::Less) => status::C0,
        Some(Ordering::Equal) => status::C3,
        None => CONDITION,
    }
}

/// Compares ST(0) with `other` (`None` is an empty register) and pops. The condition codes are set
/// even when an exception is unmasked; then nothing is popped.
fn compare(cpu: &mut Cpu, other: Option<Number>, quiet: bool, pops: u8) {
    let Some(other) = other.filter(|_| !cpu.x87.is_empty(0)) else {
        let masked = cpu.stack_fault(false);
        cpu.x87.set_condition(CONDITION, CONDITION);
        if masked {
            cpu.x87.pops(pops);
        }
        return;
    };
    let mut context = cpu.x87.context();
    let order = context.compare(cpu.x87.st(0).unpack(), other, quiet);
    let delivered = cpu.note_x87(&context);
    cpu.x87.set_condition(CONDITION, condition(order));
    if delivered {
        cpu.x87.pops(pops);
    }
}

fn register(cpu: &Cpu, i: u8) -> Option<Number> {
    (!cpu.x87.is_empty(i)).then(|| cpu.x87.st(i).unpack())
}

fn memory<T: Source>(cpu: &mut Cpu, op: &Op, pops: u8) -> Result<(), Exit> {
    cpu.require_x87()?;
    let source = load::<T>(cpu, op)?;
    compare(cpu, Some(source), false, pops);
    Ok(())
}

fn to_status(cpu: &mut Cpu, i: u8, quiet: bool, pops: u8) -> Result<(), Exit> {
    cpu.require_x87()?;
    compare(cpu, register(cpu, i), quiet, pops);
    Ok(())
}

fn ftst(cpu: &mut Cpu, _: &Op) -> Result<(), Exit> {
    cpu.require_x87()?;
    compare(cpu, Some(Number::zero(false)), false, 0);
    Ok(())
}

fn to_flags(cpu: &mut Cpu, op: &Op, quiet: bool, pops: u8) -> Result<(), Exit> {
    cpu.require_x87()?;
    let Some(other) = register(cpu, op.src).filter(|_| !cpu.x87.is_empty(0)) else {
        if cpu.stack_fault(false) {
            cpu.flags = order_flags(None);
            cpu.x87.pops(pops);
        }
        return Ok(());
    };
    let mut context = cpu.x87.context();
    let order = context.compare(cpu.x87.st(0).unpack(), other, quiet);
    // C1 stays what it was, as AMD has it (Intel clears it).
    let c1 = cpu.x87.status & status::C1;
    let delivered = cpu.note_x87(&context);
    cpu.x87.set_condition(status::C1, c1);
    if delivered {
        cpu.flags = order_flags(order);
        cpu.x87.pops(pops);
    }
    Ok(())
}

fn fxam(cpu: &mut Cpu, _: &Op) -> Result<(), Exit> {
    cpu.require_x87()?;
    let value = cpu.x87.st(0);
    let number = value.unpack();
    let class = match number.class {
        _ if cpu.x87.is_empty(0) => status::C3 | status::C0,
        Class::Unsupported => 0,
        Class::Quiet | Class::Signaling => status::C0,
        Class::Infinity => status::C2 | status::C0,
        Class::Zero => status::C3,
        Class::Finite if number.denormal => status::C3 | status::C2,
        Class::Finite => status::C2,
    };
    let sign = if number.negative { status::C1 } else { 0 };
    cpu.x87.set_condition(CONDITION | status::C1, class | sign);
    Ok(())
}
