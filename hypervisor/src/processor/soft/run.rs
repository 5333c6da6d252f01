//! The loop: finds or decodes the next block, runs its handlers, and deals with what made them
//! stop. Interrupts and traps are taken between blocks.

use super::{
    code::Blocks,
    cpu::{Cpu, Exception, Exit},
    decode::{self, MAX_INSTRUCTION},
    exception::{Origin, TripleFault},
    fetch::{Code, page_after},
    flags,
    forms::Forms,
    op::Op,
};
use crate::{
    clock::Clock,
    counters::Counters,
    flows::{Flow, Reject},
    memory::{GuestMemory, PAGE_SIZE},
    processor::{BootState, Completion, Intercept, Kind, Processor, Registers},
    record::{Malformed, Record, check},
};
use std::collections::BTreeMap;

/// How many names of unimplemented instructions are kept.
const MAX_NAMES: usize = 64;
/// DR6: single step.
const SINGLE_STEP: u64 = 1 << 14;

/// What the guest must be given before it goes on.
enum State {
    Running,
    /// An intercepted instruction waits for its completion; the next one is at this address.
    Intercepted {
        next: u64,
    },
    /// HLT, until an interrupt comes.
    Halted,
    /// A triple fault: for ever.
    Shutdown,
}

/// [`State`] in a saved machine.
const RUNNING: u8 = 0;
const HALTED: u8 = 1;
const SHUTDOWN: u8 = 2;

/// Decoded instructions, 32 bytes each, that are not worth being dropped by a resting processor.
const KEPT_AT_REST: usize = 1 << 13;

/// The software processor of one virtual machine.
pub struct SoftProcessor {
    cpu: Cpu,
    blocks: Blocks,
    forms: Forms,
    state: State,
    /// What was decoded has been dropped at the last rest.
    rested: bool,
    /// Instructions that were decoded again after a rest: what a guest runs that only answers
    /// heartbeats. They are not dropped over and over. 0: there was no rest yet, at which the huge pages
    /// of the start go whatever is in them.
    idle_code: usize,
    unimplemented: BTreeMap<String, u64>,
    /// Names that nobody has been told yet.
    notes: Vec<String>,
}

impl SoftProcessor {
    /// A processor about to execute its first instruction as `boot` says.
    pub fn new(memory: GuestMemory, boot: BootState, clock: Clock) -> Self {
        let blocks = Blocks::new(memory.size()).in_huge_pages();
        let mut cpu = Cpu::with_clock(memory, clock);
        cpu.rip = boot.rip;
        cpu.set_reg(Cpu::RSI, boot.rsi);
        cpu.set_reg(Cpu::RSP, boot.rsp);
        cpu.cr0 = 0x8005_0033; // PG AM WP NE ET MP PE
        cpu.cr3 = boot.cr3;
        cpu.cr4 = 0x20; // PAE
        cpu.efer = 0x500; // LMA LME
        cpu.gdtr.base = boot.gdt_base;
        cpu.gdtr.limit = boot.gdt_limit.into();
        cpu.update_domain();
        cpu.update_fpu_access();
        Self {
            cpu,
            blocks,
            forms: Forms::default(),
            state: State::Running,
            rested: false,
            idle_code: 0,
            unimplemented: BTreeMap::new(),
            notes: Vec::new(),
        }
    }

    /// Lets RDRAND and RDSEED return another sequence, on the deterministic clock.
    pub fn with_seed(mut self, seed: u64) -> Self {
        self.cpu.random.set_seed(seed);
        self
    }

    /// The clock that this processor's TSC and timers follow.
    pub fn clock(&self) -> &Clock {
        &self.cpu.clock
    }

    /// Instructions executed since the start.
    pub fn instructions(&self) -> u64 {
        self.cpu.executed
    }

    /// Instructions that the guest used and this processor does not have, with their counts.
    pub fn unimplemented(&self) -> &BTreeMap<String, u64> {
        &self.unimplemented
    }

    /// Registers, for diagnosis and tests.
    pub fn cpu(&self) -> &Cpu {
        &self.cpu
    }

    /// As [`SoftProcessor::cpu`], to set a scene.
    pub fn cpu_mut(&mut self) -> &mut Cpu {
        &mut self.cpu
    }

    /// Runs until an intercept or until about `limit` instructions have been executed in all.
    fn run_until(&mut self, limit: u64) -> Intercept {
        self.cpu.attention = true;
        loop {
            if self.cpu.attention
                && let Some(intercept) = self.attend()
            {
                return intercept;
            }
            if self.cpu.executed >= limit {
                return Intercept::SliceEnd;
            }
            let rip = self.cpu.rip;
            let known = self.cpu.jumps.get(rip, self.cpu.jump_tag(rip));
            let first = match known.map_or_else(|| self.find(), Ok) {
                Ok(first) => first,
                Err(exit) => {
                    // Counted as an instruction, so that a guest which faults for ever, fetch
                    // after fetch, uses up its slice like any other.
                    self.cpu.executed += 1;
                    match self.leave(exit, rip, rip) {
                        None => continue,
                        Some(intercept) => return intercept,
                    }
                }
            };
            if let Some(intercept) = self.run_block(first, limit) {
                return intercept;
            }
        }
    }

    /// Runs the block whose ops begin at `first`, again and again as long as it branches to itself.
    #[inline(always)]
    fn run_block(&mut self, first: u32, limit: u64) -> Option<Intercept> {
        let cpu = &mut self.cpu;
        let ops = self.blocks.ops(first);
        let start = cpu.rip;
        let (index, exit) = loop {
            cpu.gpr[usize::from(Cpu::RIP)] = start;
            let (index, exit) = execute(cpu, ops);
            cpu.executed = cpu.executed.wrapping_add(index as u64 + 1);
            if exit != Exit::Branch {
                break (index, exit);
            }
            if cpu.rip != start || cpu.attention || cpu.executed >= limit {
                return None;
            }
        };
        let op = ops.get(index)?;
        let here = next_address(cpu, start, u64::from(op.offset));
        let next = next_address(cpu, start, op.next_offset());
        self.leave(exit, here, next)
    }

    /// Deals with an instruction at `here`, followed by `next`, that left its block.
    #[cold]
    #[inline(never)]
    fn leave(&mut self, exit: Exit, here: u64, next: u64) -> Option<Intercept> {
        match exit {
            Exit::Branch | Exit::Entered => None,
            Exit::Stale => {
                self.cpu.jumps.forget(here);
                None
            }
            Exit::Resync => {
                self.cpu.rip = next;
                self.cpu.update_domain();
                self.cpu.attention = true;
                None
            }
            Exit::Exception => {
                self.cpu.rip = here;
                if std::mem::take(&mut self.cpu.unimplemented) {
                    self.count_unimplemented();
                }
                self.raise(self.cpu.exception)
            }
            Exit::Intercept => {
                self.cpu.rip = here;
                let intercept = self.cpu.intercept;
                if let Intercept::Halt { .. } = intercept {
                    self.cpu.rip = next;
                    self.cpu.interrupt_shadow = false;
                    self.state = State::Halted;
                } else {
                    self.state = State::Intercepted { next };
                }
                Some(intercept)
            }
        }
    }

    fn raise(&mut self, exception: Exception) -> Option<Intercept> {
        let Err(TripleFault) = self.cpu.deliver(exception, Origin::Processor) else {
            return None;
        };
        self.state = State::Shutdown;
        Some(Intercept::Shutdown)
    }

    /// What must be seen to between blocks: stores into code, traps, interrupts.
    #[cold]
    #[inline(never)]
    fn attend(&mut self) -> Option<Intercept> {
        loop {
            self.cpu.attention = false;
            if self.cpu.code.dirty {
                self.cpu.settle_code(&mut self.blocks);
            }
            let steps = self.cpu.system_flags & flags::TF != 0;
            let interrupt = if self.cpu.system_flags & flags::IF != 0 {
                self.cpu.apic.deliverable()
            } else {
                None
            };
            if steps || (self.cpu.interrupt_shadow && interrupt.is_some()) {
                // One instruction by itself.
                if let Some(stop) = self.step(steps) {
                    return Some(stop);
                }
                continue;
            }
            self.cpu.interrupt_shadow = false;
            let vector = interrupt?;
            self.cpu.apic.acknowledge(vector);
            let event = Exception {
                vector,
                error: None,
                address: 0,
            };
            if let Err(TripleFault) = self.cpu.deliver(event, Origin::External) {
                self.state = State::Shutdown;
                return Some(Intercept::Shutdown);
            }
        }
    }

    /// Executes exactly one instruction, then the single-step trap if `traps`.
    fn step(&mut self, traps: bool) -> Option<Intercept> {
        // The shadow ends with this instruction, unless it casts a new one.
        self.cpu.interrupt_shadow = false;
        let start = self.cpu.rip;
        let mut ops = Vec::new();
        let mut code = Code::default();
        if let Err(exit) = code.decode(&mut self.cpu, 1, &mut ops, &mut self.forms) {
            return self.leave(exit, start, start);
        }
        self.cpu.gpr[usize::from(Cpu::RIP)] = start;
        let (index, exit) = execute(&mut self.cpu, &ops);
        self.cpu.executed = self.cpu.executed.wrapping_add(index as u64 + 1);
        let next = next_address(&self.cpu, start, code.bytes().len() as u64);
        let stop = self.leave(exit, start, next);
        if stop.is_some() || matches!(exit, Exit::Exception | Exit::Entered) {
            return stop;
        }
        if traps {
            return self.raise(Exception {
                address: SINGLE_STEP,
                ..Exception::DEBUG
            });
        }
        None
    }

    /// Where the ops of the block at the current address are: from the cache if RAM still holds its
    /// bytes, or decoded.
    #[cold]
    #[inline(never)]
    fn find(&mut self) -> Result<u32, Exit> {
        let cpu = &mut self.cpu;
        if !cpu.long_code {
            cpu.rip &= 0xFFFF_FFFF;
        }
        let rip = cpu.rip;
        let tag = cpu.jump_tag(rip);
        let linear = cpu.code_address(rip);
        let offset = cpu.translate_fetch(linear)?;
        let known = offset.and_then(|offset| self.blocks.find(offset, cpu.long_code));
        if let Some(found) = known {
            let second = match found.source.second_page {
                Some(_) => cpu.translate_fetch(page_after(linear))?,
                None => None,
            };
            let epoch = cpu.tlb.epoch(linear);
            let verified = found.source.verified == epoch;
            if second == found.source.second_page
                && (verified || self.blocks.is_current(&found, &cpu.memory))
            {
                self.blocks.set_verified(&found, epoch);
                cpu.jumps.insert(rip, tag, found.first);
                return Ok(found.first);
            }
            self.blocks.invalidate_page_of(&found, &mut cpu.code);
        }
        if self.blocks.is_full() {
            self.blocks.clear(&mut cpu.code);
            cpu.jumps.forget_all();
        }
        let first = self.blocks.decoded();
        let mut code = Code::default();
        let source = code.decode(cpu, usize::MAX, self.blocks.room(), &mut self.forms)?;
        let bytes = code.bytes();
        cpu.tally
            .accept(Flow::InstructionDecode, bytes.len() as u64);
        let fresh = self.blocks.insert(source, bytes, first, &mut cpu.code);
        for page in fresh.into_iter().flatten() {
            cpu.tlb.forbid_fast_stores(page);
        }
        let first = first as u32;
        cpu.jumps.insert(rip, tag, first);
        Ok(first)
    }

    #[cold]
    fn count_unimplemented(&mut self) {
        let cpu = &mut self.cpu;
        let linear = cpu.code_address(cpu.rip);
        let mut bytes = [0; MAX_INSTRUCTION];
        let in_page = ((PAGE_SIZE - linear % PAGE_SIZE) as usize).min(bytes.len());
        for (part, address) in [
            (0..in_page, linear),
            (in_page..bytes.len(), page_after(linear)),
        ] {
            if let Some(part) = bytes.get_mut(part)
                && let Ok(Some(offset)) = cpu.translate_fetch(address)
            {
                let _ = cpu.memory.read_bytes(offset, part);
            }
        }
        // The translations above may have raised something of their own.
        cpu.exception = Exception::INVALID_OPCODE;
        cpu.tally.reject(Reject::InstructionDecodeUndefined);
        let name = decode::name(&bytes, cpu.long_code);
        if let Some(count) = self.unimplemented.get_mut(&name) {
            *count += 1;
        } else if self.unimplemented.len() < MAX_NAMES {
            self.notes
                .push(format!("not an instruction of this processor: {name}"));
            self.unimplemented.insert(name, 1);
        }
    }

    /// Completes a register of a port or MSR read.
    fn set_result(&mut self, value: u64) {
        let cpu = &mut self.cpu;
        match cpu.intercept {
            Intercept::MsrRead { .. } => {
                cpu.set_reg(Cpu::RAX, value & 0xFFFF_FFFF);
                cpu.set_reg(Cpu::RDX, value >> 32);
            }
            Intercept::PortRead { size: 1, .. } => {
                cpu.set_reg(Cpu::RAX, cpu.reg(Cpu::RAX) & !0xFF | value & 0xFF);
            }
            Intercept::PortRead { size: 2, .. } => {
                cpu.set_reg(Cpu::RAX, cpu.reg(Cpu::RAX) & !0xFFFF | value & 0xFFFF);
            }
            Intercept::PortRead { .. } => cpu.set_reg(Cpu::RAX, value & 0xFFFF_FFFF),
            Intercept::Hypercall { .. } => cpu.set_reg(Cpu::RAX, value),
            _ => {}
        }
    }
}

/// Runs ops until one leaves, as the last of each block always does: its index and why.
#[inline(always)]
fn execute(cpu: &mut Cpu, ops: &[Op]) -> (usize, Exit) {
    for (index, op) in ops.iter().enumerate() {
        if let Err(exit) = (op.run)(cpu, op) {
            if cpu.code.dirty {
                cpu.attention = true;
            }
            return (index, exit);
        }
        if cpu.code.dirty {
            return (index, Exit::Resync);
        }
    }
    (ops.len(), Exit::Resync)
}

fn next_address(cpu: &Cpu, start: u64, offset: u64) -> u64 {
    let address = start.wrapping_add(offset);
    if cpu.long_code {
        address
    } else {
        address & 0xFFFF_FFFF
    }
}

impl Cpu {
    /// Drops the blocks that the guest's stores touched.
    fn settle_code(&mut self, blocks: &mut Blocks) {
        self.tally.accept(Flow::InstructionCodeWrite, 0);
        if self.code.settle(blocks) {
            self.jumps.forget_all();
        }
    }
}

impl Processor for SoftProcessor {
    fn rest(&mut self) {
        self.forms = Forms::at_rest();
        let decoded = self.blocks.decoded();
        if std::mem::take(&mut self.rested) {
            self.idle_code = decoded;
        } else if self.idle_code == 0 || decoded > KEPT_AT_REST.max(2 * self.idle_code) {
            self.blocks.release(&mut self.cpu.code);
            self.cpu.jumps.forget_all();
            self.rested = true;
        }
    }

    fn run(&mut self, slice: u32) -> Intercept {
        self.cpu.now();
        self.cpu.apic.poll();
        match self.state {
            State::Running => {}
            // Nobody completed it: the instruction is executed again.
            State::Intercepted { .. } => self.state = State::Running,
            State::Halted => {
                if !self.has_deliverable_interrupt() {
                    return self.cpu.intercept;
                }
                self.state = State::Running;
            }
            State::Shutdown => return Intercept::Shutdown,
        }
        let mut limit = self.cpu.executed.saturating_add(slice.into());
        if let Some(deadline) = self.cpu.apic.deadline()
            && let Some(count) = self.cpu.clock.instructions_until(deadline)
        {
            limit = limit.min(self.cpu.executed.saturating_add(count));
        }
        let intercept = self.run_until(limit);
        self.cpu.clock.set_instructions(self.cpu.executed);
        intercept
    }

    /// VMMCALL; RET.
    fn hypercall_code(&self) -> &'static [u8] {
        &[0x0F, 0x01, 0xD9, 0xC3]
    }

    fn complete(&mut self, completion: Completion) {
        let State::Intercepted { next } = self.state else {
            return;
        };
        self.state = State::Running;
        match completion {
            Completion::Done => {}
            Completion::Value(value) => self.set_result(value),
            Completion::Cpuid(values) => {
                let registers = [Cpu::RAX, Cpu::RBX, Cpu::RCX, Cpu::RDX];
                for (register, value) in registers.into_iter().zip(values) {
                    self.cpu.set_reg(register, value.into());
                }
            }
            Completion::GeneralProtection => {
                self.raise(Exception::general_protection(0));
                return;
            }
            Completion::InvalidOpcode => {
                self.raise(Exception::INVALID_OPCODE);
                return;
            }
        }
        self.cpu.rip = next;
        self.cpu.interrupt_shadow = false;
        if self.cpu.system_flags & flags::TF != 0 {
            self.raise(Exception {
                address: SINGLE_STEP,
                ..Exception::DEBUG
            });
        }
    }

    fn assert_interrupt(&mut self, _vp: usize, vector: u8) {
        self.cpu.apic.request(vector);
    }

    fn has_deliverable_interrupt(&self) -> bool {
        self.cpu.system_flags & flags::IF != 0 && self.cpu.apic.will_deliver()
    }

    fn next_event(&self) -> Option<u64> {
        self.cpu.apic.deadline()
    }

    fn state(&mut self, record: &mut Record) -> Result<(), Malformed> {
        Kind::Soft.state(record)?;
        // An instruction that waits for its completion is executed again when nobody completes it.
        let mut state = match self.state {
            State::Running | State::Intercepted { .. } => RUNNING,
            State::Halted => HALTED,
            State::Shutdown => SHUTDOWN,
        };
        record.field(&mut state)?;
        self.state = match state {
            RUNNING => State::Running,
            HALTED => State::Halted,
            SHUTDOWN => State::Shutdown,
            _ => return Err(Malformed::Value("the processor's state")),
        };
        self.cpu.state(record)?;
        if state == HALTED {
            check(self.cpu.system_flags & flags::IF != 0, "halted for ever")?;
            self.cpu.intercept = Intercept::Halt {
                interruptible: true,
            };
        }
        Ok(())
    }

    fn registers(&self) -> Option<Registers> {
        let cpu = &self.cpu;
        Some(Registers {
            rip: cpu.rip,
            rflags: cpu.rflags(),
            cpl: cpu.cpl,
            control: [cpu.cr0, cpu.cr2, cpu.cr3, cpu.cr4],
            general: std::array::from_fn(|number| cpu.gpr[number]),
        })
    }

    fn take_notes(&mut self) -> Vec<String> {
        std::mem::take(&mut self.notes)
    }

    fn merge_counts(&mut self, counters: &Counters) {
        self.cpu.tally.merge_into(counters);
        self.cpu.memory.ioapic().merge_counts(counters);
    }

    fn memory(&self) -> &GuestMemory {
        &self.cpu.memory
    }
}
