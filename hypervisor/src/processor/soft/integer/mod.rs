//! The integer instructions that programs run: everything that needs no privilege and touches
//! neither vector nor x87 registers.
//!
//! Each instruction has one handler per operand size and shape, made from one generic function:
//! see [`operand`] for the types that a handler is put together from.

mod alu;
mod atomic;
mod bits;
mod branch;
mod condition;
mod control;
mod data;
mod decimal;
mod multiply;
mod operand;
pub mod shape;
mod shift;
mod stack;
mod string;

use super::op::Handler;
use condition::by_condition;
use iced_x86::Instruction;

/// The handler of `instruction`, or `None` when it is not of this group or not implemented.
pub fn select(instruction: &Instruction) -> Option<Handler> {
    data::select(instruction)
        .or_else(|| alu::select(instruction))
        .or_else(|| branch::select(instruction))
        .or_else(|| stack::select(instruction))
        .or_else(|| shift::select(instruction))
        .or_else(|| multiply::select(instruction))
        .or_else(|| bits::select(instruction))
        .or_else(|| control::select(instruction))
        .or_else(|| string::select(instruction))
        .or_else(|| atomic::select(instruction))
        .or_else(|| decimal::select(instruction))
}
