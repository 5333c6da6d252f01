//! Instruction group: simd.

pub mod vector;

use super::op::Handler;
use iced_x86::Instruction;

/// The handler of `instruction`, or `None` when it is not of this group or not implemented.
pub fn select(_instruction: &Instruction) -> Option<Handler> {
    None
}
