//! Where things lie in the guest's memory, all of it mapped one to one, and what a case's record
//! and result are made of.

use std::fmt;

pub const MEMORY: u64 = 16 << 20;
pub const TABLES: u64 = 0x1000;
pub const LAST_TABLE: u64 = 0x4000;
/// The GDT, 64 words, and as it is at the start of each case.
pub const GDT: u64 = 0x5000;
pub const GDT_LIMIT: u16 = 0xF7;
pub const GDT_WORDS: usize = 32;
pub const FRESH_GDT: u64 = 0x6000;
pub const IDT: u64 = 0x7000;
pub const TSS: u64 = 0x8000;
/// A local descriptor table, whose descriptor is in the GDT.
pub const LDT: u64 = 0x9000;
/// What LGDT and LIDT load.
pub const GDT_POINTER: u64 = 0xA000;
pub const IDT_POINTER: u64 = 0xA010;
/// The next case, and how many there are.
pub const FIRST_CASE: u64 = 0xA020;
pub const COUNT: u64 = 0xA028;
/// Stacks of the handlers: of the interrupt stack table, and for arrivals from user code.
pub const IST: u64 = 0x1_8000;
pub const RSP0: u64 = 0x1_C000;
pub const RUNTIME: u64 = 0x2_0000;
/// The kernel's and the user's stack and data.
pub const STACK: u64 = 0x4_4000;
pub const SCRATCH: u64 = 0x4_8000;
pub const USER_STACK: u64 = 0x6_4000;
pub const USER_SCRATCH: u64 = 0x6_8000;
pub const SCRATCH_WORDS: usize = 8;
pub const STACK_WORDS: usize = 8;
/// Pages whose entries each case chooses.
pub const PAGES: u64 = 0x8_0000;
pub const PAGE_COUNT: usize = 4;
/// The same memory, for the runtime.
pub const PAGES_ALIAS: u64 = 0x9_0000;
/// Where code goes that leaves its case by a transfer: INT [`END`].
pub const KERNEL_LANDING: u64 = 0x1_F000;
pub const USER_LANDING: u64 = 0x6_F000;
pub const LANDING: [u8; 2] = [0xCD, END];
/// Code of the cases, the kernel's and the user's.
pub const KERNEL_CODE: u64 = 0x10_0000;
pub const USER_CODE: u64 = 0x18_0000;
pub const CODE_SLOT: u64 = 64;
pub const MOST_CASES: usize = 0x2000;

const RECORDS: u64 = 2 << 20;
const RECORD_SIZE: u64 = 512;
const RESULTS: u64 = 8 << 20;
const RESULT_SIZE: u64 = 1024;

pub fn record(case: usize) -> u64 {
    RECORDS + RECORD_SIZE * case as u64
}

pub fn result(case: usize) -> u64 {
    RESULTS + RESULT_SIZE * case as u64
}

/// Selectors of the GDT.
pub mod selector {
    pub const CODE: u16 = 0x10;
    pub const DATA: u16 = 0x18;
    pub const USER_DATA: u16 = 0x28 | 3;
    pub const USER_CODE: u16 = 0x30 | 3;
    pub const TSS: u16 = 0x40;
}

/// The vector that ends a case, and one that ends it on the stack of the TSS.
pub const END: u8 = 0x40;
pub const END_ON_RSP0: u8 = 0x41;

/// Model-specific registers that a record sets and a result tells.
pub const MSRS: [(u32, &str); 8] = [
    (0xC000_0080, "EFER"),
    (0xC000_0081, "STAR"),
    (0xC000_0082, "LSTAR"),
    (0xC000_0083, "CSTAR"),
    (0xC000_0084, "SFMASK"),
    (0xC000_0100, "FS base"),
    (0xC000_0101, "GS base"),
    (0xC000_0102, "kernel GS base"),
];

/// Registers in the order in which they stand in memory: pushed in the opposite one.
pub const GPRS: [&str; 15] = [
    "rax", "rcx", "rdx", "rbx", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13", "r14",
    "r15",
];
/// RIP, CS, RFLAGS, RSP, SS, as IRETQ takes them.
pub const FRAME_AT: usize = 15;
pub const CR0_AT: usize = 20;
pub const CR4_AT: usize = 21;
pub const MSRS_AT: usize = 22;
pub const PAGES_AT: usize = MSRS_AT + MSRS.len();
pub const SCRATCH_AT: usize = PAGES_AT + PAGE_COUNT;
pub const RECORD_WORDS: usize = SCRATCH_AT + SCRATCH_WORDS;

const FIRST_NAMES: [&str; 39] = [
    "rax", "rcx", "rdx", "rbx", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13", "r14",
    "r15", "vector", "error", "rip", "cs", "rflags", "rsp", "ss", "cr0", "cr2", "cr3", "cr4",
    "cr8", "ds", "es", "fs", "gs", "tr", "ldtr", "dr0", "dr1", "dr2", "dr3", "dr6", "dr7",
];
/// Among the words of a result.
pub const VECTOR: usize = 15;
pub const RFLAGS: usize = 19;
/// GPRs, vector, error code, frame: what the handler has on its stack.
pub const PUSHED_WORDS: usize = 22;
const TABLE_NAMES: [&str; 4] = ["gdt limit", "gdt base", "idt limit", "idt base"];
pub const RESULT_WORDS: usize = FIRST_NAMES.len()
    + MSRS.len()
    + TABLE_NAMES.len()
    + PAGE_COUNT
    + GDT_WORDS
    + 2 * SCRATCH_WORDS
    + 2 * STACK_WORDS;
const _: () = assert!(8 * RESULT_WORDS as u64 <= RESULT_SIZE);
const _: () = assert!(8 * RECORD_WORDS as u64 <= RECORD_SIZE);

/// A word of a result, by its number.
pub struct Word(pub usize);

impl fmt::Display for Word {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let mut at = self.0;
        let mut take = |count: usize| match at.checked_sub(count) {
            None => Some(at),
            Some(rest) => {
                at = rest;
                None
            }
        };
        if let Some(i) = take(FIRST_NAMES.len()) {
            write!(f, "{}", FIRST_NAMES[i])
        } else if let Some(i) = take(MSRS.len()) {
            write!(f, "{}", MSRS[i].1)
        } else if let Some(i) = take(TABLE_NAMES.len()) {
            write!(f, "{}", TABLE_NAMES[i])
        } else if let Some(i) = take(PAGE_COUNT) {
            write!(f, "entry of page {i}")
        } else if let Some(i) = take(GDT_WORDS) {
            write!(f, "descriptor {:#x}", 8 * i)
        } else if let Some(i) = take(SCRATCH_WORDS) {
            write!(f, "data word {i}")
        } else if let Some(i) = take(STACK_WORDS) {
            write!(f, "stack word -{}", STACK_WORDS - i)
        } else if let Some(i) = take(SCRATCH_WORDS) {
            write!(f, "user data word {i}")
        } else {
            write!(f, "user stack word -{}", STACK_WORDS - at)
        }
    }
}
