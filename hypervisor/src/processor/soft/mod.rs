//! The software processor: x86-64 long mode, interpreted, in safe Rust.
//!
//! How it runs: [`fetch`] and [`decode`] turn the bytes at a guest address into a block of [`op::Op`]s, each
//! with a handler function chosen once; [`code`] keeps the blocks per guest physical page and
//! drops them when the page is written; [`run`] calls handler after handler. Handlers reach guest
//! memory only through [`access`] (a software TLB in front of [`paging`]).
//!
//! Instruction groups, each with a `select` that names the handler of an instruction:
//! [`integer`], [`system`] (privileged and control state), [`simd`], [`x87`].
#![forbid(unsafe_code)]

pub mod access;
pub mod apic;
pub mod availability;
pub mod code;
pub mod cpu;
pub mod decode;
pub mod exception;
mod fetch;
pub mod flags;
pub mod float;
pub mod forms;
pub mod integer;
pub mod jumps;
pub mod op;
pub mod paging;
pub mod random;
mod run;
pub mod simd;
pub mod system;
pub mod tally;
#[cfg(test)]
mod tests;
pub mod tlb;
pub mod watch;
pub mod x87;

pub use run::SoftProcessor;
