//! Instruction group: x87 (80-bit floating point) and its state.

mod control;
mod image;
pub mod state;

use super::op::Handler;
use iced_x86::Instruction;
pub use image::MXCSR_MASK;
pub use state::X87;

/// The handler of `instruction`, or `None` when it is not of this group or not implemented.
pub fn select(instruction: &Instruction) -> Option<Handler> {
    control::select(instruction).or_else(|| image::select(instruction))
}
