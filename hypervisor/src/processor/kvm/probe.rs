//! Whether this host's KVM can run a stock kernel, found out with a tiny guest.
//!
//! A `/dev/kvm` may be there and not be what it seems: one that emulates kernel code runs it a
//! hundred times too slowly and stops at instructions that every kernel uses.

use super::{KvmProcessor, Unusable};
use crate::{
    memory::GuestMemory,
    processor::{BootState, Completion, Intercept, Processor},
};
use std::os::fd::OwnedFd;

const MEMORY: u64 = 1 << 20;
const TABLES: u64 = 0x1000;
const GDT: u64 = 0x4000;
const CODE: u64 = 0x5000;
const DATA: u64 = 0x6000;
/// Two instructions each.
const ROUNDS: u32 = 1_000_000;
/// What these may take: 20 million instructions a second is what a slow emulator below a genuine
/// KVM manages ten times over, and what KVM's own emulator never does.
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
        "it runs kernel code too slowly (more than {} ms for {} instructions): it emulates it",
        LIMIT / 1_000_000,
        2 * ROUNDS
    )]
    Slow,
    #[error("a tiny guest came as far as step {step} of {LAST}, then: {met}")]
    Stuck { step: usize, met: String },
}

/// What the guest must run into, in this order.
const LAST: usize = 4;

/// Runs the tiny guest on `device`, an open `/dev/kvm`. Takes a few milliseconds, and about
/// 100 where the answer is [`Failure::Slow`].
pub fn probe(device: OwnedFd) -> Result<(), Failure> {
    let memory = GuestMemory::anonymous(MEMORY)?;
    let boot = BootState {
        rip: CODE,
        rsi: 0,
        rsp: DATA,
        cr3: TABLES,
        gdt_base: GDT,
        gdt_limit: 31,
    };
    write(&memory);
    let mut processor = KvmProcessor::new(device, memory, boot)?;
    for step in 0..LAST {
        let deadline = processor.clock().now().saturating_add(LIMIT);
        processor.wake_at(Some(deadline));
        let met = loop {
            match processor.run(u32::MAX) {
                Intercept::Kicked if processor.clock().now() < deadline => {}
                met => break met,
            }
        };
        let port = PORT.into();
        match (step, met) {
            (0 | 2, Intercept::PortWrite { port: met, .. }) if met == port => {
                processor.complete(Completion::Done);
            }
            (1, Intercept::MsrRead { msr: MSR }) => processor.complete(Completion::Value(ANSWER)),
            (3, Intercept::PortWrite { value, .. }) if value == ANSWER as u32 & 0xFF => {
                return Ok(());
            }
            (_, Intercept::Kicked) => return Err(Failure::Slow),
            (_, met) => {
                let notes = processor.take_notes().join("; ");
                let met = format!("{met:?} {notes}");
                return Err(Failure::Stuck { step, met });
            }
        }
    }
    Ok(())
}

fn write(memory: &GuestMemory) {
    let mut code = vec![];
    // 0: OUT, from long mode.
    code.extend([0xE6, PORT]);
    // mov ecx, MSR; rdmsr: 1, answered by us.
    code.push(0xB9);
    code.extend(MSR.to_le_bytes());
    code.extend([0x0F, 0x32]);
    // mov r8, rax; mov ecx, ROUNDS; dec ecx; jnz: 2, fast.
    code.extend([0x49, 0x89, 0xC0, 0xB9]);
    code.extend(ROUNDS.to_le_bytes());
    code.extend([0xFF, 0xC9, 0x75, 0xFC]);
    // lock cmpxchg16b [rsp], as every kernel does it.
    code.extend([0xF0, 0x48, 0x0F, 0xC7, 0x0C, 0x24]);
    code.extend([0xE6, PORT]);
    // mov rax, r8: 3, the answer came through.
    code.extend([0x4C, 0x89, 0xC0, 0xE6, PORT]);
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
    let _ = memory.write_bytes(CODE, &code);
}
