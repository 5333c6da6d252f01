//! Delivery of exceptions and interrupts through the 64-bit IDT (Intel SDM volume 3, 6.14), with
//! interrupt stacks, and what becomes of faults during delivery: double fault, then shutdown.

use super::{
    cpu::{Cpu, Exception, Exit, segment},
    flags,
    paging::is_canonical,
};
use crate::flows::Reject;

const DOUBLE_FAULT: u8 = 8;
const PAGE_FAULT: u8 = 14;

/// Error code bits: the event was external to the program; the index is into the IDT.
const EXTERNAL: u32 = 1;
const IN_IDT: u32 = 2;

/// Where an event comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Detected by the processor: the return address is the instruction itself or, for traps, the
    /// next (`Cpu::rip` says which).
    Processor,
    /// INT n, INT3, INTO: subject to the gate's privilege level.
    Software,
    /// An interrupt.
    External,
}

/// Nothing more can be delivered: a triple fault.
#[derive(Debug, PartialEq, Eq)]
pub struct TripleFault;

fn is_contributory(vector: u8) -> bool {
    matches!(vector, 0 | 10..=13)
}

/// Faults (unlike traps) save RF set, so that the instruction's breakpoint does not fire again.
fn is_fault(vector: u8) -> bool {
    !matches!(vector, 1 | 3 | 4 | 8 | 18)
}

impl Cpu {
    /// Delivers an event at `Cpu::rip`; a fault during that is delivered instead, as the
    /// architecture combines them.
    pub fn deliver(&mut self, event: Exception, origin: Origin) -> Result<(), TripleFault> {
        let mut event = event;
        let mut origin = origin;
        loop {
            let Err(_) = self.enter(event, origin) else {
                return Ok(());
            };
            self.tally.reject(Reject::InterruptDeliverFault);
            let nested = self.exception;
            let second_counts = is_contributory(nested.vector) || nested.vector == PAGE_FAULT;
            let first = event.vector;
            let from_processor = origin == Origin::Processor;
            if from_processor && first == DOUBLE_FAULT {
                return Err(TripleFault);
            }
            let doubles = from_processor
                && ((is_contributory(first) && is_contributory(nested.vector))
                    || (first == PAGE_FAULT && second_counts));
            event = if doubles {
                Exception {
                    vector: DOUBLE_FAULT,
                    error: Some(0),
                    address: 0,
                }
            } else {
                nested
            };
            origin = Origin::Processor;
        }
    }

    /// One attempt. Changes nothing when it fails.
    pub fn enter(&mut self, event: Exception, origin: Origin) -> Result<(), Exit> {
        let vector = event.vector;
        if origin == Origin::Processor && vector == PAGE_FAULT {
            self.cr2 = event.address;
        }
        let external = if origin == Origin::Software {
            0
        } else {
            EXTERNAL
        };
        let in_idt = u32::from(vector) * 8 + IN_IDT + external;

        let position = u64::from(vector) * 16;
        if position + 15 > u64::from(self.idtr.limit) {
            return self.raise(Exception::general_protection(in_idt));
        }
        let place = self.idtr.base.wrapping_add(position);
        let gate = self.as_system(|cpu| cpu.load::<u128>(place))?;
        let attributes = (gate >> 40) as u8;
        let kind = attributes & 0x1F;
        if kind != 0x0E && kind != 0x0F {
            return self.raise(Exception::general_protection(in_idt));
        }
        if origin == Origin::Software && (attributes >> 5) & 3 < self.cpl {
            return self.raise(Exception::general_protection(in_idt));
        }
        if attributes & 0x80 == 0 {
            return self.raise(Exception::not_present(in_idt));
        }
        let selector = (gate >> 16) as u16;
        let target = (gate & 0xFFFF) as u64
            | ((gate >> 32) as u64 & 0xFFFF_0000)
            | ((gate >> 64) as u64) << 32;
        let stack_index = (gate >> 32) as u8 & 7;

        // The code segment: 64-bit, and not less privileged than what it interrupts.
        let wrong = Exception::general_protection(u32::from(selector & !3) | external);
        let Some(descriptor) = self.descriptor(selector)? else {
            return self.raise(wrong);
        };
        if !descriptor.is_code()
            || !descriptor.is_long()
            || descriptor.is_32bit()
            || descriptor.privilege() > self.cpl
        {
            return self.raise(wrong);
        }
        if !descriptor.is_present() {
            return self.raise(Exception::not_present(u32::from(selector & !3) | external));
        }
        if !is_canonical(target) {
            return self.raise(Exception::general_protection(external));
        }
        let privilege = if descriptor.is_conforming() {
            self.cpl
        } else {
            descriptor.privilege()
        };

        let old_stack = self.reg(Self::RSP);
        let stack = if stack_index != 0 {
            self.task_state(0x24 + 8 * (u32::from(stack_index) - 1), external)?
        } else if privilege < self.cpl {
            self.task_state(4 + 8 * u32::from(privilege), external)?
        } else {
            old_stack
        };
        if !is_canonical(stack) {
            return self.raise(Exception::stack(external));
        }

        let mut image = self.rflags();
        if origin == Origin::Processor && is_fault(vector) {
            image |= flags::RF;
        }
        let words = [
            u64::from(event.error.unwrap_or(0)),
            self.rip,
            u64::from(self.segments[segment::CS].selector),
            image,
            old_stack,
            u64::from(self.segments[segment::SS].selector),
        ];
        let skipped = usize::from(event.error.is_none());
        let mut frame = [0u8; 48];
        for (bytes, word) in frame.chunks_exact_mut(8).zip(words) {
            bytes.copy_from_slice(&word.to_le_bytes());
        }
        let frame = frame.get(skipped * 8..).unwrap_or(&[]);
        let top = (stack & !15).wrapping_sub(frame.len() as u64);
        self.as_system(|cpu| cpu.store_bytes(top, frame))?;

        // From here on nothing fails.
        if vector == 1 && origin == Origin::Processor {
            self.dr[6] |= event.address;
            self.dr[7] &= !(1 << 13);
        }
        self.set_reg(Self::RSP, top);
        if privilege != self.cpl {
            self.load_null_stack_segment(privilege);
        }
        self.cpl = privilege;
        self.set_code_segment(selector & !3 | u16::from(privilege), descriptor);
        self.rip = target;
        let mut cleared = flags::TF | flags::NT | flags::RF | flags::VM;
        if kind == 0x0E {
            cleared |= flags::IF;
        }
        self.system_flags &= !cleared;
        self.interrupt_shadow = false;
        self.attention = true;
        self.update_domain();
        Ok(())
    }

    /// A stack pointer from the task state segment.
    fn task_state(&mut self, position: u32, external: u32) -> Result<u64, Exit> {
        if position + 7 > self.tr.limit {
            let error = u32::from(self.tr.selector & !3) | external;
            return self.raise(Exception::invalid_task(error));
        }
        let place = self.tr.base.wrapping_add(u64::from(position));
        self.as_system(|cpu| cpu.load::<u64>(place))
    }
}
