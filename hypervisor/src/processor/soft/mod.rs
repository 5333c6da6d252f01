//! The software processor: x86-64 long mode, interpreted, in safe Rust.
//!
//! How it runs: [`decode`] turns the bytes at a guest address into a block of [`op::Op`]s, each
//! with a handler function chosen once; [`code`] keeps the blocks per guest physical page and
//! drops them when the page is written; the loop calls handler after handler. Handlers reach guest
//! memory only through [`access`] (a software TLB in front of [`paging`]).
//!
//! Instruction groups, each with a `select` that names the handler of an instruction:
//! [`integer`], [`system`] (privileged and control state), [`simd`], [`x87`].
#![forbid(unsafe_code)]

pub mod access;
pub mod availability;
pub mod clock;
pub mod cpu;
pub mod flags;
pub mod float;
pub mod integer;
pub mod op;
pub mod simd;
pub mod system;
pub mod x87;

use super::{BootState, Completion, Intercept, Processor};
use crate::memory::GuestMemory;
use clock::Clock;
use cpu::Cpu;
use std::collections::BTreeMap;

/// The software processor of one virtual machine.
pub struct SoftProcessor {
    cpu: Cpu,
    clock: Clock,
    unimplemented: BTreeMap<String, u64>,
}

impl SoftProcessor {
    /// A processor about to execute its first instruction as `boot` says.
    pub fn new(memory: GuestMemory, boot: BootState, clock: Clock) -> Self {
        let mut cpu = Cpu::new(memory);
        cpu.rip = boot.rip;
        Self {
            cpu,
            clock,
            unimplemented: BTreeMap::new(),
        }
    }

    /// The clock that this processor's TSC and timers follow.
    pub fn clock(&self) -> &Clock {
        &self.clock
    }

    /// Instructions that the guest used and this processor does not have, with their counts.
    pub fn unimplemented(&self) -> &BTreeMap<String, u64> {
        &self.unimplemented
    }
}

impl Processor for SoftProcessor {
    fn run(&mut self, _slice: u32) -> Intercept {
        todo!("engine")
    }

    fn complete(&mut self, _completion: Completion) {
        todo!("engine")
    }

    fn assert_interrupt(&mut self, _vector: u8) {
        todo!("engine")
    }

    fn has_deliverable_interrupt(&self) -> bool {
        todo!("engine")
    }

    fn next_event(&self) -> Option<u64> {
        todo!("engine")
    }

    fn memory(&self) -> &GuestMemory {
        &self.cpu.memory
    }
}
