//! The guest's program around the cases: it sets the state of a case from its record, enters its
//! code by IRETQ, and writes down what it left when an exception, or the interrupt at its end,
//! arrives.

use super::{
    forms::Case,
    layout::{self, *},
};
use iced_x86::{BlockEncoderOptions, code_asm::*};
use teuthis_hypervisor::{memory::GuestMemory, processor::BootState};

const VECTORS: [u8; 34] = {
    let mut all = [0; 34];
    let mut i = 0;
    while i < 32 {
        all[i] = i as u8;
        i += 1;
    }
    all[32] = END;
    all[33] = END_ON_RSP0;
    all
};
const WITH_ERROR_CODE: [u8; 9] = [8, 10, 11, 12, 13, 14, 17, 21, 30];
const PRESENT: u64 = 1;
const WRITABLE: u64 = 2;
const USER: u64 = 4;

/// Memory with everything in it, and the state at the start; the first case to run is `first`.
pub fn load(cases: &[Case], first: u64) -> (GuestMemory, BootState) {
    assert!(cases.len() <= MOST_CASES);
    let memory = GuestMemory::anonymous(MEMORY).unwrap();
    let put = |address: u64, word: u64| memory.write(address, word).unwrap();
    map(&memory);
    for (i, &word) in descriptors().iter().enumerate() {
        put(FRESH_GDT + 8 * i as u64, word);
        put(GDT + 8 * i as u64, word);
    }
    for (i, word) in [0, 0x00AF_9B00_0000_FFFF, 0x00CF_F300_0000_FFFF]
        .into_iter()
        .enumerate()
    {
        put(LDT + 8 * i as u64, word);
    }
    memory.write(GDT_POINTER, GDT_LIMIT).unwrap();
    put(GDT_POINTER + 2, GDT);
    memory.write(IDT_POINTER, 0xFFFu16).unwrap();
    put(IDT_POINTER + 2, IDT);
    // The TSS: stacks, and no map of ports.
    memory.write_bytes(TSS + 4, &RSP0.to_le_bytes()).unwrap();
    memory.write_bytes(TSS + 36, &IST.to_le_bytes()).unwrap();
    memory.write(TSS + 102, 0x68u16).unwrap();
    for landing in [KERNEL_LANDING, USER_LANDING] {
        memory.write_bytes(landing, &LANDING).unwrap();
    }
    put(FIRST_CASE, first);
    put(COUNT, cases.len() as u64);

    let (code, handlers) = program();
    memory.write_bytes(RUNTIME, &code).unwrap();
    for (vector, address) in handlers {
        let ist = u64::from(vector != END_ON_RSP0);
        // What user code may call by INT; the rest of the exceptions comes by itself.
        let dpl: u64 = if vector >= END || vector == 3 { 3 } else { 0 };
        let low = address & 0xFFFF
            | u64::from(selector::CODE) << 16
            | ist << 32
            | 0x8E << 40
            | dpl << 45
            | (address >> 16 & 0xFFFF) << 48;
        put(IDT + 16 * u64::from(vector), low);
        put(IDT + 16 * u64::from(vector) + 8, address >> 32);
    }
    for (number, case) in cases.iter().enumerate() {
        memory
            .write_bytes(case.address(number), &case.code)
            .unwrap();
        for (i, word) in case.record(number).into_iter().enumerate() {
            put(layout::record(number) + 8 * i as u64, word);
        }
    }
    let boot = BootState {
        rip: RUNTIME,
        rsi: 0,
        rsp: STACK,
        cr3: TABLES,
        gdt_base: GDT,
        gdt_limit: GDT_LIMIT,
    };
    (memory, boot)
}

/// The first 2 MiB by pages, those of user programs open to them; then the kernel's, by 2 MiB.
fn map(memory: &GuestMemory) {
    let put = |address: u64, word: u64| memory.write(address, word).unwrap();
    put(TABLES, 0x2000 | PRESENT | WRITABLE | USER);
    put(0x2000, 0x3000 | PRESENT | WRITABLE | USER);
    put(0x3000, LAST_TABLE | PRESENT | WRITABLE | USER);
    for large in 1..8 {
        put(0x3000 + 8 * large, large << 21 | 0xE3);
    }
    for page in 0..512u64 {
        let address = page << 12;
        let user = (0x6_0000..0x7_0000).contains(&address) || address >= USER_CODE;
        // Accessed and dirty already: only the pages of the cases tell.
        put(
            LAST_TABLE + 8 * page,
            address | 0x63 | if user { USER } else { 0 },
        );
    }
    for page in 0..PAGE_COUNT as u64 {
        let entry = LAST_TABLE + 8 * ((PAGES_ALIAS >> 12) + page);
        put(entry, (PAGES + 0x1000 * page) | 0x63);
    }
}

/// See [`selector`]; the others are there to be refused, or to be marked as accessed.
fn descriptors() -> [u64; GDT_WORDS] {
    const CODE64: u64 = 0x00AF_9A00_0000_FFFF;
    const DATA: u64 = 0x00CF_9200_0000_FFFF;
    const ACCESSED: u64 = 1 << 40;
    const DPL3: u64 = 3 << 45;
    const ABSENT: u64 = 1 << 47;
    const READABLE_WRITABLE: u64 = 1 << 41;
    const CONFORMING: u64 = 1 << 42;
    const DEFAULT_SIZE: u64 = 1 << 54;
    let system = |kind: u64, base: u64, limit: u64| {
        limit | (base & 0xFF_FFFF) << 16 | kind << 40 | 1 << 47 | (base >> 24 & 0xFF) << 56
    };
    let gate = |code: u64| {
        KERNEL_LANDING & 0xFFFF | code << 16 | 0x8C << 40 | (KERNEL_LANDING >> 16) << 48
    };
    let mut all = [0; GDT_WORDS];
    let mut set = |at: usize, word: u64| all[at / 8] = word;
    set(0x10, CODE64 | ACCESSED);
    set(0x18, DATA | ACCESSED);
    set(0x28, DATA | DPL3 | ACCESSED);
    set(0x30, CODE64 | DPL3 | ACCESSED);
    set(0x38, CODE64 & !READABLE_WRITABLE);
    set(0x40, system(9, TSS, 0x67));
    set(0x50, DATA & !READABLE_WRITABLE);
    set(0x58, DATA & !ABSENT);
    set(0x60, CODE64 | CONFORMING);
    set(0x68, CODE64 & !ABSENT | DPL3);
    set(0x70, gate(0x10));
    set(0x80, system(2, LDT, 23));
    set(0x90, system(11, TSS, 0x67));
    set(0xA0, CODE64 | DEFAULT_SIZE);
    set(0xA8, DATA | DPL3);
    set(0xB0, gate(0x10) | DPL3);
    set(0xC0, system(9, TSS, 0x67) & !ABSENT);
    set(0xD0, gate(0x10) & !ABSENT);
    set(0xE0, DATA | DPL3 | 1 << 42);
    set(0xE8, CODE64 | DPL3);
    all
}

/// The code, and where each vector's handler lies.
fn program() -> (Vec<u8>, Vec<(u8, u64)>) {
    let mut asm = CodeAssembler::new(64).unwrap();
    let mut next = asm.create_label();
    asm.set_label(&mut next).unwrap();
    enter(&mut asm).unwrap();
    let mut common = asm.create_label();
    let mut stubs = vec![];
    for vector in VECTORS {
        let mut stub = asm.create_label();
        asm.set_label(&mut stub).unwrap();
        if !WITH_ERROR_CODE.contains(&vector) {
            asm.push(0).unwrap();
        }
        asm.push(i32::from(vector)).unwrap();
        asm.jmp(common).unwrap();
        stubs.push((vector, stub));
    }
    asm.set_label(&mut common).unwrap();
    leave(&mut asm, next).unwrap();
    let options = BlockEncoderOptions::RETURN_NEW_INSTRUCTION_OFFSETS;
    let result = asm.assemble_options(RUNTIME, options).unwrap();
    let address = |(vector, label)| (vector, result.label_ip(&label).unwrap());
    let handlers = stubs.into_iter().map(address).collect();
    (result.inner.code_buffer, handlers)
}

/// From any state to that of the next case's record, and into its code; HLT after the last.
fn enter(asm: &mut CodeAssembler) -> Result<(), IcedError> {
    asm.cld()?;
    asm.mov(rax, qword_ptr(FIRST_CASE))?;
    let mut go = asm.create_label();
    asm.cmp(rax, qword_ptr(COUNT))?;
    asm.jb(go)?;
    asm.cli()?;
    asm.hlt()?;
    asm.set_label(&mut go)?;
    asm.mov(rbx, rax)?;
    asm.shl(rbx, 9)?;
    asm.add(rbx, layout::record(0) as i32)?;
    let word = |at: usize| qword_ptr(rbx + 8 * at as i32);
    // PAE alone: everything is flushed, global pages as well.
    asm.mov(eax, 0x20)?;
    asm.mov(cr4, rax)?;
    asm.mov(eax, 0x8005_0033u32)?;
    asm.mov(cr0, rax)?;
    asm.xor(eax, eax)?;
    for register in [dr0, dr1, dr2, dr3] {
        asm.mov(register, rax)?;
    }
    asm.mov(cr8, rax)?;
    asm.mov(cr2, rax)?;
    asm.mov(eax, 0xFFFF_0FF0u32)?;
    asm.mov(dr6, rax)?;
    asm.mov(eax, 0x400)?;
    asm.mov(dr7, rax)?;
    // Tables and segments.
    asm.mov(esi, FRESH_GDT as u32)?;
    asm.mov(edi, GDT as u32)?;
    asm.mov(ecx, GDT_WORDS as u32)?;
    asm.rep().movsq()?;
    asm.lgdt(ptr(GDT_POINTER))?;
    asm.lidt(ptr(IDT_POINTER))?;
    asm.mov(eax, u32::from(selector::DATA))?;
    for register in [ss, ds, es] {
        asm.mov(register, eax)?;
    }
    // Not cleared by a return to user code, with or without their bases.
    asm.xor(eax, eax)?;
    asm.mov(fs, eax)?;
    asm.mov(gs, eax)?;
    asm.mov(eax, u32::from(selector::TSS))?;
    asm.ltr(ax)?;
    asm.xor(eax, eax)?;
    asm.lldt(ax)?;
    // Pages and data.
    let blocks = [
        (PAGES_AT, LAST_TABLE + 8 * (PAGES >> 12), PAGE_COUNT),
        (SCRATCH_AT, SCRATCH, SCRATCH_WORDS),
        (SCRATCH_AT, USER_SCRATCH, SCRATCH_WORDS),
    ];
    for (at, to, count) in blocks {
        asm.lea(rsi, word(at))?;
        asm.mov(edi, to as u32)?;
        asm.mov(ecx, count as u32)?;
        asm.rep().movsq()?;
    }
    // Pages that are jumped to lead out of the case.
    asm.mov(eax, u32::from_le_bytes([LANDING[0], END, LANDING[0], END]))?;
    asm.mov(edi, PAGES_ALIAS as u32)?;
    asm.mov(ecx, (PAGE_COUNT << 10) as u32)?;
    asm.rep().stosd()?;
    asm.xor(eax, eax)?;
    for stack in [STACK, USER_STACK] {
        asm.mov(edi, (stack - 8 * STACK_WORDS as u64) as u32)?;
        asm.mov(ecx, STACK_WORDS as u32)?;
        asm.rep().stosq()?;
    }
    asm.mov(eax, TABLES as u32)?;
    asm.mov(cr3, rax)?;
    for (i, (msr, _)) in MSRS.into_iter().enumerate() {
        asm.mov(ecx, msr)?;
        asm.mov(eax, dword_ptr(rbx + 8 * (MSRS_AT + i) as i32))?;
        asm.mov(edx, dword_ptr(rbx + (8 * (MSRS_AT + i) + 4) as i32))?;
        asm.wrmsr()?;
    }
    asm.mov(rax, word(CR4_AT))?;
    asm.mov(cr4, rax)?;
    asm.mov(rax, word(CR0_AT))?;
    asm.mov(cr0, rax)?;
    asm.lea(rsp, word(FRAME_AT))?;
    for (i, register) in registers().into_iter().enumerate() {
        if register != rbx {
            asm.mov(register, word(i))?;
        }
    }
    asm.mov(rbx, word(3))?;
    asm.iretq()
}

/// Writes down what there is, then goes on with the next case.
fn leave(asm: &mut CodeAssembler, next: CodeLabel) -> Result<(), IcedError> {
    for register in registers().into_iter().rev() {
        asm.push(register)?;
    }
    asm.cld()?;
    asm.mov(rdi, qword_ptr(FIRST_CASE))?;
    asm.shl(rdi, 10)?;
    asm.add(rdi, result(0) as i32)?;
    asm.mov(rsi, rsp)?;
    asm.mov(ecx, PUSHED_WORDS as u32)?;
    asm.rep().movsq()?;
    for register in [cr0, cr2, cr3, cr4, cr8] {
        asm.mov(rax, register)?;
        asm.stosq()?;
    }
    for register in [ds, es, fs, gs] {
        asm.xor(eax, eax)?;
        asm.mov(ax, register)?;
        asm.stosq()?;
    }
    asm.xor(eax, eax)?;
    asm.str(ax)?;
    asm.stosq()?;
    asm.xor(eax, eax)?;
    asm.sldt(ax)?;
    asm.stosq()?;
    for register in [dr0, dr1, dr2, dr3, dr6, dr7] {
        asm.mov(rax, register)?;
        asm.stosq()?;
    }
    for (msr, _) in MSRS {
        asm.mov(ecx, msr)?;
        asm.rdmsr()?;
        asm.shl(rdx, 32)?;
        asm.or(rax, rdx)?;
        asm.stosq()?;
    }
    // Limit and base, 16 and 64 bits, of both tables.
    for gdt in [true, false] {
        asm.xor(eax, eax)?;
        asm.stosq()?;
        let pointer = ptr(rdi - 8);
        if gdt {
            asm.sgdt(pointer)?;
        } else {
            asm.sidt(pointer)?;
        }
        asm.mov(rax, qword_ptr(rdi - 6))?;
        asm.movzx(edx, word_ptr(rdi - 8))?;
        asm.mov(qword_ptr(rdi - 8), rdx)?;
        asm.stosq()?;
    }
    let blocks = [
        (LAST_TABLE + 8 * (PAGES >> 12), PAGE_COUNT),
        (GDT, GDT_WORDS),
        (SCRATCH, SCRATCH_WORDS),
        (STACK - 8 * STACK_WORDS as u64, STACK_WORDS),
        (USER_SCRATCH, SCRATCH_WORDS),
        (USER_STACK - 8 * STACK_WORDS as u64, STACK_WORDS),
    ];
    // The user's words are read with AC set, should SMAP be on.
    asm.mov(rax, cr4)?;
    asm.and(rax, !(3 << 20))?;
    asm.mov(cr4, rax)?;
    for (from, count) in blocks {
        asm.mov(esi, from as u32)?;
        asm.mov(ecx, count as u32)?;
        asm.rep().movsq()?;
    }
    asm.inc(qword_ptr(FIRST_CASE))?;
    asm.jmp(next)
}

fn registers() -> [AsmRegister64; 15] {
    [
        rax, rcx, rdx, rbx, rbp, rsi, rdi, r8, r9, r10, r11, r12, r13, r14, r15,
    ]
}
