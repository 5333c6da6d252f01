//! Instruction group: x87 (80-bit floating point, by `rustc_apfloat`) and its state.

use super::op::Handler;
use iced_x86::Instruction;

/// The x87 unit's registers.
#[derive(Clone, Debug, Default)]
pub struct X87 {}

/// The handler of `instruction`, or `None` when it is not of this group or not implemented.
pub fn select(_instruction: &Instruction) -> Option<Handler> {
    None
}
