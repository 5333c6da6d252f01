//! Assembles tiny guest programs. A program writes what it finds to a table of 64-bit results.

use crate::guest::Kind;
use iced_x86::code_asm::{registers::*, *};

/// Where things lie in guest memory; everything is mapped one to one.
pub const TABLES: u64 = 0x1000;
pub const GDT: u64 = 0x5000;
pub const IDT: u64 = 0x6000;
/// What LIDT loads: limit and base of the IDT.
pub const IDT_POINTER: u64 = 0x7000;
pub const CODE: u64 = 0x10_0000;
pub const STACK: u64 = 0x2_0000;
pub const RESULTS: u64 = 0x3_0000;
/// How often each vector came: 256 × u64.
pub const INTERRUPTS: u64 = 0x3_8000;
pub const HYPERCALL_PAGE: u64 = 0x4_0000;
pub const MESSAGES: u64 = 0x4_1000;
pub const EVENTS: u64 = 0x4_2000;
pub const TSC_PAGE: u64 = 0x4_3000;
pub const INPUT: u64 = 0x4_4000;

/// Where the second processor has all but the tables and the hypercall page: so much further up.
pub const SECOND: u64 = 0x20_0000;
/// Where it starts, in real mode: a page below 1 MiB, whose number is the vector of the SIPI.
pub const TRAMPOLINE: u64 = 0x8000;

/// What a faulting instruction leaves as its result: this plus the vector.
pub const FAULT: u64 = 0xDEAD_0000;
pub const GP: u64 = FAULT + 13;
pub const UD: u64 = FAULT + 6;

/// A guest program under construction. R15 points at the next result, R14 at where to go on after
/// a fault; both belong to this builder.
pub struct Program {
    pub asm: CodeAssembler,
    /// Vectors whose handler counts them and ends the interrupt.
    counted: Vec<u8>,
    /// What is added to the addresses of its own things.
    pub base: u64,
}

impl Program {
    pub fn new() -> Self {
        Self::at(0)
    }

    /// The program of the second processor, which comes from [`trampoline`].
    pub fn second() -> Self {
        let mut program = Self::at(SECOND);
        program.asm.mov(rsp, STACK + SECOND).unwrap();
        program
    }

    fn at(base: u64) -> Self {
        let mut asm = CodeAssembler::new(64).unwrap();
        asm.lidt(ptr(base + IDT_POINTER)).unwrap();
        asm.mov(r15, base + RESULTS).unwrap();
        Self {
            asm,
            counted: vec![],
            base,
        }
    }

    /// INIT and SIPI to the second processor.
    pub fn start_second(&mut self) -> &mut Self {
        self.wrmsr(0x830, 1 << 32 | 0xC500)
            .wrmsr(0x830, 1 << 32 | 0x4600 | TRAMPOLINE >> 12)
    }

    /// Spins until another processor has stored `value`, or more.
    pub fn wait_for(&mut self, address: u64, value: u32) -> &mut Self {
        let mut again = self.asm.create_label();
        self.asm.mov(rbx, address).unwrap();
        self.asm.set_label(&mut again).unwrap();
        self.asm.cmp(dword_ptr(rbx), value).unwrap();
        self.asm.jb(again).unwrap();
        self
    }

    /// Counts at an address for ever.
    pub fn count(&mut self, address: u64) -> &mut Self {
        let mut again = self.asm.create_label();
        self.asm.mov(rbx, address).unwrap();
        self.asm.set_label(&mut again).unwrap();
        self.asm.inc(qword_ptr(rbx)).unwrap();
        self.asm.jmp(again).unwrap();
        self
    }

    /// Reports the time-stamp counter.
    pub fn rdtsc(&mut self) -> &mut Self {
        self.asm.rdtsc().unwrap();
        self.asm.shl(rdx, 32).unwrap();
        self.asm.or(rax, rdx).unwrap();
        self.report()
    }

    /// Emits one instruction that may fault; RAX is the result then.
    fn guarded(&mut self, emit: impl FnOnce(&mut CodeAssembler)) -> &mut Self {
        let mut after = self.asm.create_label();
        self.asm.lea(r14, ptr(after)).unwrap();
        emit(&mut self.asm);
        self.asm.set_label(&mut after).unwrap();
        self
    }

    /// Writes RAX to the table.
    pub fn report(&mut self) -> &mut Self {
        self.asm.mov(qword_ptr(r15), rax).unwrap();
        self.asm.add(r15, 8).unwrap();
        self
    }

    /// Reports the value of an MSR, or the fault.
    pub fn rdmsr(&mut self, msr: u32) -> &mut Self {
        self.asm.mov(ecx, msr).unwrap();
        self.guarded(|asm| {
            asm.rdmsr().unwrap();
            asm.shl(rdx, 32).unwrap();
            asm.or(rax, rdx).unwrap();
        });
        self.report()
    }

    /// Writes an MSR; reports 0, or the fault.
    pub fn wrmsr(&mut self, msr: u32, value: u64) -> &mut Self {
        self.asm.mov(ecx, msr).unwrap();
        self.asm.mov(eax, value as u32).unwrap();
        self.asm.mov(edx, (value >> 32) as u32).unwrap();
        self.guarded(|asm| {
            asm.wrmsr().unwrap();
            asm.xor(eax, eax).unwrap();
        });
        self.report()
    }

    /// Reports EAX, EBX, ECX, EDX.
    pub fn cpuid(&mut self, leaf: u32, subleaf: u32) -> &mut Self {
        self.asm.mov(eax, leaf).unwrap();
        self.asm.mov(ecx, subleaf).unwrap();
        self.asm.cpuid().unwrap();
        for (offset, register) in [rax, rbx, rcx, rdx].into_iter().enumerate() {
            let slot = qword_ptr(r15 + 8 * offset as i32);
            self.asm.mov(slot, register).unwrap();
        }
        self.asm.add(r15, 32).unwrap();
        self
    }

    /// Reports the result of a hypercall through the processor's own instruction for it, or the
    /// fault.
    pub fn hypercall_instruction(&mut self, control: u64, input: u64) -> &mut Self {
        self.asm.mov(rcx, control).unwrap();
        self.asm.mov(rdx, input).unwrap();
        self.asm.xor(r8d, r8d).unwrap();
        self.guarded(|asm| match Kind::chosen() {
            Kind::Soft => asm.vmmcall().unwrap(),
            Kind::Kvm => asm.out(0xB8u32, al).unwrap(),
        });
        self.report()
    }

    /// As `hypercall_instruction`, through the hypercall page.
    pub fn hypercall(&mut self, control: u64, input: u64) -> &mut Self {
        self.asm.mov(rcx, control).unwrap();
        self.asm.mov(rdx, input).unwrap();
        self.asm.xor(r8d, r8d).unwrap();
        self.asm.mov(rax, HYPERCALL_PAGE).unwrap();
        self.asm.call(rax).unwrap();
        self.report()
    }

    /// Identifies the guest and places the hypercall page.
    pub fn enable_hypercalls(&mut self) -> &mut Self {
        self.wrmsr(0x4000_0000, 0x8100_0000_0000_0000)
            .wrmsr(0x4000_0001, HYPERCALL_PAGE | 1)
    }

    /// Reports the value of a port.
    pub fn in8(&mut self, port: u16) -> &mut Self {
        self.asm.xor(eax, eax).unwrap();
        self.asm.mov(edx, u32::from(port)).unwrap();
        self.asm.in_(al, dx).unwrap();
        self.report()
    }

    pub fn out8(&mut self, port: u16, value: u8) -> &mut Self {
        self.asm.mov(eax, u32::from(value)).unwrap();
        self.asm.mov(edx, u32::from(port)).unwrap();
        self.asm.out(dx, al).unwrap();
        self
    }

    pub fn store(&mut self, address: u64, value: u64) -> &mut Self {
        self.asm.mov(rbx, address).unwrap();
        self.asm.mov(rax, value).unwrap();
        self.asm.mov(qword_ptr(rbx), rax).unwrap();
        self
    }

    /// Reports a word of memory.
    pub fn load(&mut self, address: u64) -> &mut Self {
        self.asm.mov(rbx, address).unwrap();
        self.asm.mov(rax, qword_ptr(rbx)).unwrap();
        self.report()
    }

    /// Interrupts of `vector` are counted and ended at the APIC, which is switched on.
    pub fn count_interrupts(&mut self, vector: u8) -> &mut Self {
        self.counted.push(vector);
        self.wrmsr(0x80F, 0x1FF)
    }

    /// The SynIC as hv_vmbus sets it up, with `sint2` for SINT 2.
    pub fn enable_synic(&mut self, sint2: u64) -> &mut Self {
        let base = self.base;
        self.wrmsr(0x4000_0083, (base + MESSAGES) | 1)
            .wrmsr(0x4000_0082, (base + EVENTS) | 1)
            .wrmsr(0x4000_0092, sint2)
            .wrmsr(0x4000_0080, 1)
    }

    pub fn halt(&mut self) -> &mut Self {
        self.asm.sti().unwrap();
        self.asm.hlt().unwrap();
        self.asm.cli().unwrap();
        self
    }

    /// The end: HLT with interrupts disabled, then the handlers. The code, and the address of
    /// each vector's handler.
    pub fn finish(mut self) -> (Vec<u8>, Vec<(u8, u64)>) {
        self.asm.cli().unwrap();
        self.asm.hlt().unwrap();
        let mut handlers = vec![];
        for vector in [6u8, 13] {
            let mut label = self.asm.create_label();
            self.asm.set_label(&mut label).unwrap();
            if vector == 13 {
                self.asm.add(rsp, 8).unwrap(); // error code
            }
            self.asm.mov(qword_ptr(rsp), r14).unwrap();
            self.asm
                .mov(eax, (FAULT + u64::from(vector)) as u32)
                .unwrap();
            self.asm.iretq().unwrap();
            handlers.push((vector, label));
        }
        for &vector in &self.counted {
            let mut label = self.asm.create_label();
            self.asm.set_label(&mut label).unwrap();
            for register in [rax, rcx, rdx] {
                self.asm.push(register).unwrap();
            }
            self.asm
                .mov(rax, self.base + INTERRUPTS + 8 * u64::from(vector))
                .unwrap();
            self.asm.inc(qword_ptr(rax)).unwrap();
            self.asm.mov(ecx, 0x80Bu32).unwrap();
            self.asm.xor(eax, eax).unwrap();
            self.asm.xor(edx, edx).unwrap();
            self.asm.wrmsr().unwrap();
            for register in [rdx, rcx, rax] {
                self.asm.pop(register).unwrap();
            }
            self.asm.iretq().unwrap();
            handlers.push((vector, label));
        }
        let options = iced_x86::BlockEncoderOptions::RETURN_NEW_INSTRUCTION_OFFSETS;
        let result = self
            .asm
            .assemble_options(self.base + CODE, options)
            .unwrap();
        let handlers = handlers
            .into_iter()
            .map(|(vector, label)| (vector, result.label_ip(&label).unwrap()))
            .collect();
        (result.inner.code_buffer, handlers)
    }
}

/// From real mode to long mode, and to the second processor's program.
pub fn trampoline() -> Vec<u8> {
    let mut code = vec![0xFA]; // cli
    let pointer = 0x80u16;
    code.extend([0x2E, 0x66, 0x0F, 0x01, 0x16]); // lgdt cs:[pointer]
    code.extend(pointer.to_le_bytes());
    code.extend([0x66, 0xB8, 0x20, 6, 0, 0, 0x0F, 0x22, 0xE0]); // mov cr4, PAE and SSE
    code.extend([0x66, 0xB8]); // mov cr3, TABLES
    code.extend((TABLES as u32).to_le_bytes());
    code.extend([0x0F, 0x22, 0xD8]);
    code.extend([0x66, 0xB9, 0x80, 0, 0, 0xC0]); // EFER: LME
    code.extend([0x66, 0xB8, 0, 1, 0, 0, 0x66, 0x31, 0xD2, 0x0F, 0x30]);
    code.extend([0x66, 0xB8, 0x33, 0, 5, 0x80, 0x0F, 0x22, 0xC0]); // mov cr0, PG and PE
    code.extend([0x66, 0xEA]); // jmp far
    code.extend(((CODE + SECOND) as u32).to_le_bytes());
    code.extend([0x10, 0]);
    code.resize(pointer.into(), 0xCC);
    code.extend(31u16.to_le_bytes());
    code.extend((GDT as u32).to_le_bytes());
    code
}
