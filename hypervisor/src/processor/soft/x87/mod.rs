//! Instruction group: x87 (80-bit floating point) and its state.

mod arithmetic;
mod compare;
mod control;
mod functions;
mod image;
mod load_store;
mod stack;
pub mod state;
#[cfg(test)]
mod tests;
mod transcendental;

use super::op::Handler;
use iced_x86::Instruction;
pub use image::MXCSR_MASK;
pub use state::X87;

/// The handler of `instruction`, or `None` when it is not of this group or not implemented.
pub fn select(instruction: &Instruction) -> Option<Handler> {
    [
        control::select,
        image::select,
        load_store::select,
        arithmetic::select,
        compare::select,
        transcendental::select,
    ]
    .into_iter()
    .find_map(|select| select(instruction))
}
