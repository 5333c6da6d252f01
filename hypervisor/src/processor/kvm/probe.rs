//! Whether this host's KVM can run a stock kernel, found out with a tiny guest.
//!
//! A `/dev/kvm` may be there and not be what it seems: one that emulates kernel code runs it a
//! hundred times too slowly and stops at instructions that every kernel uses.

use super::{KvmProcessor, Unusable};
use crate::{
    clock::Clock,
    memory::GuestMemory,
    processor::{BootState, Completion, Intercept, Processor},
};
use std::os::fd::OwnedFd;

const MEMORY: u64 = 1 << 20;
const TABLES: u64 = 0x1000;
const GDT: u64 = 0x4000;
const CODE: u64 = 0x5000;
const DATA: u64 = 0x6000;
/// How often the loop is run, so that a host that was busy elsewhere is not taken for a slow one.
const LOOPS: u64 = 3;
/// Of a loop, with two instructions each.
const ROUNDS: u32 = 250_000;
/// What one loop may take: 5 million instructions a second. A slow emulator below a genuine KVM
/// manages forty times as many, KVM's own emulator a fifth.
const LIMIT: u64 = 100_000_000;
const PORT: u8 = 0x80;
const MSR: u32 = 0x4000_0020;
const ANSWER: u64 = 0x1234_5678_9ABC_DEF0;

#[derive(Debug, thiserror::Error)]
pub enum Failure {
    #[error("{0}")]
    Unusable(#[from] Unusable),
    #[error("no memory for a tiny guest: {0}")]
    Memory(#[from] rustix::io::Errno),
    #[error(
        "it emulates kernel code in place of running it: {} instructions took more than {} ms",
        2 * ROUNDS,
        LIMIT / 1_000_000
    )]
    Slow,
    #[error("it cannot run kernel code: a tiny guest that was to {0} met this: {1}")]
    Stuck(&'static str, String),
}

/// Runs the tiny guest on `device`, an open `/dev/kvm`. Takes a few milliseconds, and 300 where
/// the answer is [`Failure::Slow`].
pub fn probe(device: OwnedFd) -> Result<(), Failure> {
    let memory = GuestMemory::anonymous(MEMORY)?;
    write(&memory, &code());
    let mut processor = KvmProcessor::new(device, memory, BOOT)?;
    let clock = processor.clock().clone();
    watch(&mut processor, &clock)
}

/// Runs the guest step by step.
fn watch(processor: &mut dyn Processor, clock: &Clock) -> Result<(), Failure> {
    let left = |met| matches!(met, Intercept::PortWrite { port, .. } if port == PORT.into());
    let mut met = advance(processor, clock, "leave 64-bit mode through a port", left)?;
    processor.complete(Completion::Done);
    let asked = |met| met == Intercept::MsrRead { msr: MSR };
    advance(processor, clock, "read an MSR that is ours", asked)?;
    processor.complete(Completion::Value(ANSWER));
    advance(processor, clock, "execute LOCK CMPXCHG16B", left)?;
    processor.complete(Completion::Done);
    let mut best = u64::MAX;
    for _ in 0..LOOPS {
        let start = clock.now();
        met = advance(processor, clock, "run a loop", left)?;
        processor.complete(Completion::Done);
        best = best.min(clock.now().saturating_sub(start));
    }
    if best > LIMIT {
        return Err(Failure::Slow);
    }
    let expected = (ANSWER & 0xFF) as u32;
    match met {
        Intercept::PortWrite { value, .. } if value == expected => Ok(()),
        _ => Err(stuck(processor, "see our answer", met)),
    }
}

/// Runs the guest to its next intercept, which must be as `expected`.
fn advance(
    processor: &mut dyn Processor,
    clock: &Clock,
    step: &'static str,
    expected: impl Fn(Intercept) -> bool,
) -> Result<Intercept, Failure> {
    let deadline = clock.now().saturating_add(LOOPS * LIMIT);
    loop {
        processor.wake_at(Some(deadline));
        match processor.run(ROUNDS) {
            Intercept::Kicked | Intercept::SliceEnd if clock.now() >= deadline => {
                return Err(Failure::Slow);
            }
            Intercept::Kicked | Intercept::SliceEnd => {}
            met if expected(met) => return Ok(met),
            met => return Err(stuck(processor, step, met)),
        }
    }
}

fn stuck(processor: &mut dyn Processor, step: &'static str, met: Intercept) -> Failure {
    let met = std::iter::once(format!("{met:?}")).chain(processor.take_notes());
    Failure::Stuck(step, met.collect::<Vec<_>>().join("; "))
}

const BOOT: BootState = BootState {
    rip: CODE,
    rsi: 0,
    rsp: DATA,
    cr3: TABLES,
    gdt_base: GDT,
    gdt_limit: 31,
};
/// LOCK CMPXCHG16B [RSP], as every kernel does it.
const EXCHANGE: [u8; 6] = [0xF0, 0x48, 0x0F, 0xC7, 0x0C, 0x24];

/// The guest's program: what [`watch`] expects.
fn code() -> Vec<u8> {
    let mut code = vec![];
    code.extend([0xE6, PORT]); // out PORT, al
    code.push(0xB9); // mov ecx, MSR; rdmsr
    code.extend(MSR.to_le_bytes());
    code.extend([0x0F, 0x32]);
    code.extend([0x49, 0x89, 0xC0]); // mov r8, rax
    code.extend(EXCHANGE);
    code.extend([0xE6, PORT]); // out PORT, al
    code.extend([0x4C, 0x89, 0xC0]); // mov rax, r8
    for _ in 0..LOOPS {
        code.push(0xB9); // mov ecx, ROUNDS; l: dec ecx; jnz l
        code.extend(ROUNDS.to_le_bytes());
        code.extend([0xFF, 0xC9, 0x75, 0xFC]);
        code.extend([0xE6, PORT]); // out PORT, al
    }
    code
}

fn write(memory: &GuestMemory, code: &[u8]) {
    // Page map, then one 1 GiB page at 0; 64-bit code and data segments.
    let words = [
        (TABLES, (TABLES + 0x1000) | 3),
        (TABLES + 0x1000, 0x83),
        (GDT + 0x10, 0x00AF_9B00_0000_FFFF),
        (GDT + 0x18, 0x00CF_9300_0000_FFFF),
    ];
    for (address, word) in words {
        let _ = memory.write(address, word);
    }
    let _ = memory.write_bytes(CODE, code);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::processor::soft::SoftProcessor;

    /// What the probe says of a processor that executes so many instructions in a microsecond.
    fn verdict(code: &[u8], instructions_per_microsecond: u64) -> Result<(), Failure> {
        let memory = GuestMemory::anonymous(MEMORY).unwrap();
        write(&memory, code);
        let clock = Clock::deterministic(instructions_per_microsecond);
        watch(&mut SoftProcessor::new(memory, BOOT, clock.clone()), &clock)
    }

    #[test]
    fn a_processor_that_runs_kernel_code_is_good() {
        verdict(&code(), 10).unwrap();
    }

    #[test]
    fn one_that_is_as_slow_as_an_emulator_in_the_kernel_is_not() {
        let failure = verdict(&code(), 1).unwrap_err();
        assert!(matches!(failure, Failure::Slow), "{failure}");
        let text = "it emulates kernel code in place of running it: 500000 instructions took more than 100 ms";
        assert_eq!(failure.to_string(), text);
    }

    #[test]
    fn one_without_an_instruction_that_every_kernel_uses_is_not() {
        let mut code = code();
        let at = code.windows(6).position(|bytes| bytes == EXCHANGE).unwrap();
        code[at..at + 2].copy_from_slice(&[0x0F, 0x0B]); // ud2
        let failure = verdict(&code, 10).unwrap_err().to_string();
        assert!(failure.contains("LOCK CMPXCHG16B"), "{failure}");
    }

    #[test]
    fn one_that_loses_our_answers_is_not() {
        let mut code = code();
        let moved = [0x4C, 0x89, 0xC0];
        let at = code.windows(3).position(|bytes| bytes == moved).unwrap();
        code[at..at + 3].copy_from_slice(&[0x48, 0x31, 0xC0]); // xor rax, rax
        let failure = verdict(&code, 10).unwrap_err().to_string();
        assert!(failure.contains("see our answer"), "{failure}");
    }
}
