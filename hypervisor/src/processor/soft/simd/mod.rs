//! Instruction group: vectors. MMX and SSE up to SSE4.2, AES, carry-less multiplication, SHA.
//!
//! Each module holds one subject: pure functions on [`vector::Vector`]s and a `select` that names
//! the handler; [`operands`] brings the operands.

mod aes;
mod approximate;
mod arithmetic;
mod compare;
mod control;
mod convert;
mod float;
mod float_compare;
mod horizontal;
mod insert;
mod lane;
mod logic;
mod mmx;
mod mmx_convert;
mod movement;
mod operands;
mod pack;
mod sha;
mod shift;
mod shuffle;
mod strings;
pub mod vector;

use super::op::Handler;
pub use float_compare::order_flags;
use iced_x86::Instruction;

/// The handler of `instruction`, or `None` when it is not of this group or not implemented.
pub fn select(instruction: &Instruction) -> Option<Handler> {
    [
        movement::select,
        mmx::select,
        insert::select,
        logic::select,
        compare::select,
        arithmetic::select,
        horizontal::select,
        shift::select,
        shuffle::select,
        pack::select,
        float::select,
        float_compare::select,
        convert::select,
        approximate::select,
        mmx_convert::select,
        strings::select,
        aes::select,
        sha::select,
        control::select,
    ]
    .into_iter()
    .find_map(|select| select(instruction))
}
