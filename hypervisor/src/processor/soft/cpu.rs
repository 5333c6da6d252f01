//! Architectural state of the software processor, and the vocabulary its handlers share.

use super::{
    apic::Apic,
    flags::{self, Flags, W64},
    jumps::JumpCache,
    op::Op,
    random::Random,
    simd::vector::Vector,
    system::msr::Msrs,
    tally::Tally,
    tlb::Tlb,
    watch::CodeWatch,
    x87::X87,
};
use crate::{
    clock::Clock,
    memory::GuestMemory,
    processor::Intercept,
    record::{Malformed, Record, check},
};

/// Why a handler leaves its block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// `Cpu::rip` was set by a branch: go on there.
    Branch,
    /// As `Branch`, into the handler of a software interrupt, which no single-step trap precedes.
    Entered,
    /// The instruction retired, but what follows in the block may be stale (code was written,
    /// paging or mode changed, an interrupt may be deliverable): go on at the next instruction.
    Resync,
    /// `Cpu::exception` holds an exception of this instruction, which did not retire.
    Exception,
    /// `Cpu::intercept` holds an intercept of this instruction, which waits for its completion.
    Intercept,
    /// The block was dropped since the jump cache learned of it: nothing was executed.
    Stale,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exception {
    pub vector: u8,
    pub error: Option<u32>,
    /// CR2 for a page fault, DR6 bits for a debug exception, otherwise 0.
    pub address: u64,
}

impl Exception {
    const fn plain(vector: u8) -> Self {
        Self {
            vector,
            error: None,
            address: 0,
        }
    }
    pub const DIVIDE: Self = Self::plain(0);
    pub const DEBUG: Self = Self::plain(1);
    pub const BREAKPOINT: Self = Self::plain(3);
    pub const OVERFLOW: Self = Self::plain(4);
    pub const BOUND: Self = Self::plain(5);
    pub const INVALID_OPCODE: Self = Self::plain(6);
    pub const DEVICE_NOT_AVAILABLE: Self = Self::plain(7);
    pub const X87: Self = Self::plain(16);
    pub const SIMD: Self = Self::plain(19);
    pub const fn general_protection(error: u32) -> Self {
        Self {
            vector: 13,
            error: Some(error),
            address: 0,
        }
    }
    pub const fn invalid_task(error: u32) -> Self {
        Self {
            vector: 10,
            error: Some(error),
            address: 0,
        }
    }
    pub const fn not_present(error: u32) -> Self {
        Self {
            vector: 11,
            error: Some(error),
            address: 0,
        }
    }
    pub const fn stack(error: u32) -> Self {
        Self {
            vector: 12,
            error: Some(error),
            address: 0,
        }
    }
    pub const fn page_fault(address: u64, error: u32) -> Self {
        Self {
            vector: 14,
            error: Some(error),
            address,
        }
    }
    pub const fn alignment() -> Self {
        Self {
            vector: 17,
            error: Some(0),
            address: 0,
        }
    }
}

/// A segment register with its hidden part. Limits are not checked, as in 64-bit mode.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Segment {
    pub selector: u16,
    /// Descriptor bytes 5 and 6: type, S, DPL, P in bits 0-7; AVL, L, D/B, G in bits 12-15.
    pub attributes: u16,
    pub limit: u32,
    /// What compatibility mode adds to addresses; FS and GS have theirs in `segment_base` alone.
    pub base: u32,
}

/// A table register: GDTR, IDTR, and the hidden parts of TR and LDTR.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Table {
    pub base: u64,
    pub limit: u32,
    pub selector: u16,
    pub attributes: u16,
}

/// Indices of segment registers, as instructions encode them.
pub mod segment {
    pub const ES: usize = 0;
    pub const CS: usize = 1;
    pub const SS: usize = 2;
    pub const DS: usize = 3;
    pub const FS: usize = 4;
    pub const GS: usize = 5;
}

pub struct Cpu {
    /// General registers 0-15 (RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R8-R15), then
    /// [`Cpu::ZERO`] and [`Cpu::RIP`]; 32 long so that a masked index needs no bounds check.
    pub gpr: [u64; 32],
    /// Address of the instruction to run next; inside a block, see `gpr[Cpu::RIP]`.
    pub rip: u64,
    pub flags: Flags,
    /// RFLAGS without the arithmetic flags: TF, IF, DF, IOPL, NT, RF, AC, ID.
    pub system_flags: u64,
    /// Bases by segment index; 0 in 64-bit mode for all but FS and GS.
    pub segment_base: [u64; 8],
    pub segments: [Segment; 6],
    pub gdtr: Table,
    pub idtr: Table,
    pub ldtr: Table,
    pub tr: Table,
    pub cr0: u64,
    pub cr2: u64,
    pub cr3: u64,
    pub cr4: u64,
    pub efer: u64,
    pub dr: [u64; 8],
    /// 0 or 3 in practice; 1 and 2 are carried correctly.
    pub cpl: u8,
    /// Executing 64-bit code (EFER.LMA and CS.L), else compatibility mode.
    pub long_code: bool,
    pub xmm: [Vector; 16],
    pub mxcsr: u32,
    pub x87: X87,
    /// What [`Cpu::update_fpu_access`] derived from CR0, CR4 and the x87 state.
    pub fpu_refused: u8,
    pub exception: Exception,
    pub intercept: Intercept,
    pub tlb: Tlb,
    pub memory: GuestMemory,
    pub tally: Tally,
    pub code: CodeWatch,
    pub jumps: JumpCache,
    pub msrs: Msrs,
    pub apic: Apic,
    pub clock: Clock,
    pub random: Random,
    /// Something may have to be done before the next block: an interrupt, a trap.
    pub attention: bool,
    /// After STI or a load of SS: no interrupt before the next instruction has retired.
    pub interrupt_shadow: bool,
    /// The #UD being raised is for an instruction that exists but is not implemented.
    pub unimplemented: bool,
    /// Instructions executed before the current block; long repetitions count for their length.
    pub executed: u64,
}

impl Cpu {
    /// A processor in 64-bit mode at CPL 0 with interrupts off, SSE on and paging still off: linear
    /// addresses are physical (a state no guest can reach; tests use it).
    pub fn new(memory: GuestMemory) -> Self {
        Self::with_clock(memory, Clock::deterministic(1000))
    }

    /// As [`Cpu::new`], with the time of `clock`.
    pub fn with_clock(memory: GuestMemory, clock: Clock) -> Self {
        let code = Segment {
            selector: 0x10,
            attributes: 0xA09B,
            limit: u32::MAX,
            base: 0,
        };
        let data = Segment {
            selector: 0x18,
            attributes: 0xC093,
            limit: u32::MAX,
            base: 0,
        };
        Self {
            gpr: [0; 32],
            rip: 0,
            flags: Flags::from_bits(0),
            system_flags: 0,
            segment_base: [0; 8],
            segments: [data, code, data, data, data, data],
            gdtr: Table::default(),
            idtr: Table::default(),
            ldtr: Table::default(),
            tr: Table {
                attributes: 0x8B,
                limit: 0x67,
                ..Table::default()
            },
            cr0: 0x33, // PE MP ET NE
            cr2: 0,
            cr3: 0,
            cr4: 0x620,  // PAE OSFXSR OSXMMEXCPT
            efer: 0x501, // SCE LME LMA
            dr: [0, 0, 0, 0, 0, 0, 0xFFFF_0FF0, 0x400],
            cpl: 0,
            long_code: true,
            xmm: [Vector::default(); 16],
            mxcsr: 0x1F80,
            x87: X87::default(),
            fpu_refused: 0,
            exception: Exception::DEBUG,
            intercept: Intercept::SliceEnd,
            tlb: Tlb::new(),
            code: CodeWatch::new(memory.size()),
            memory,
            tally: Tally::default(),
            jumps: JumpCache::default(),
            msrs: Msrs::default(),
            apic: Apic::new(clock.clone()),
            random: Random::new(clock.is_deterministic()),
            clock,
            attention: false,
            interrupt_shadow: false,
            unimplemented: false,
            executed: 0,
        }
    }

    /// Index in `gpr` of a register that always reads 0.
    pub const ZERO: u8 = 16;
    /// Index in `gpr` of the address of the current block's first instruction.
    pub const RIP: u8 = 17;

    pub const RAX: u8 = 0;
    pub const RCX: u8 = 1;
    pub const RDX: u8 = 2;
    pub const RBX: u8 = 3;
    pub const RSP: u8 = 4;
    pub const RBP: u8 = 5;
    pub const RSI: u8 = 6;
    pub const RDI: u8 = 7;

    #[inline(always)]
    pub fn reg(&self, index: u8) -> u64 {
        self.gpr[usize::from(index & 31)]
    }

    /// Writes all 64 bits. 32-bit handlers pass a zero-extended value.
    #[inline(always)]
    pub fn set_reg(&mut self, index: u8, value: u64) {
        self.gpr[usize::from(index & 31)] = value;
    }

    /// Linear address of `op`'s memory operand.
    #[inline(always)]
    pub fn effective_address(&self, op: &Op) -> u64 {
        self.segment_base[usize::from(op.segment & 7)].wrapping_add(self.effective_offset(op))
    }

    /// The memory operand's offset, without the segment base (LEA, string instructions).
    #[inline(always)]
    pub fn effective_offset(&self, op: &Op) -> u64 {
        let offset = self
            .reg(op.base)
            .wrapping_add(self.reg(op.index) << (op.scale & 3))
            .wrapping_add(op.displacement as u64);
        if op.length_and_flags & Op::ADDRESS32 != 0 {
            offset & 0xFFFF_FFFF
        } else {
            offset
        }
    }

    /// Address of the instruction after `op`.
    #[inline(always)]
    pub fn next_rip(&self, op: &Op) -> u64 {
        self.reg(Self::RIP).wrapping_add(op.next_offset())
    }

    /// What distinguishes blocks and translations at `rip` in the jump cache; never 0.
    #[inline(always)]
    pub fn jump_tag(&self, rip: u64) -> u32 {
        (self.tlb.generation[(rip >> 63) as usize & 1] as u32) << 2
            | u32::from(self.cpl == 3) << 1
            | u32::from(self.long_code)
    }

    /// Nanoseconds of the virtual machine's clock, also in the middle of a slice.
    pub fn now(&self) -> u64 {
        self.clock.set_instructions(self.executed);
        self.clock.now()
    }

    /// Raises `exception` for the current instruction: `return cpu.raise(…)`.
    #[cold]
    pub fn raise<T>(&mut self, exception: Exception) -> Result<T, Exit> {
        self.exception = exception;
        Err(Exit::Exception)
    }

    pub fn rflags(&self) -> u64 {
        self.flags.bits() | self.system_flags | 2
    }

    /// Sets RFLAGS without any permission check (see `system` for POPF and IRET).
    pub fn set_rflags(&mut self, value: u64) {
        self.flags = Flags::from_bits(value);
        self.system_flags = value & !flags::ARITHMETIC & !2;
    }
}

/// State that a saved machine carries; what is derived from it (translations, decoded code) is
/// found anew.
impl Cpu {
    pub fn state(&mut self, record: &mut Record) -> Result<(), Malformed> {
        self.clock.state(record)?;
        self.gpr
            .iter_mut()
            .take(16)
            .try_for_each(|register| record.field(register))?;
        let mut rflags = self.rflags();
        record.fields([
            &mut self.rip,
            &mut rflags,
            &mut self.cr0,
            &mut self.cr2,
            &mut self.cr3,
            &mut self.cr4,
            &mut self.efer,
            &mut self.executed,
        ])?;
        self.set_rflags(rflags);
        check(self.rflags() == rflags, "RFLAGS")?;
        record.fields([&mut self.segment_base, &mut self.dr])?;
        for segment in &mut self.segments {
            record.fields([&mut segment.selector, &mut segment.attributes])?;
            record.fields([&mut segment.limit, &mut segment.base])?;
        }
        for table in [&mut self.gdtr, &mut self.idtr, &mut self.ldtr, &mut self.tr] {
            record.field(&mut table.base)?;
            record.field(&mut table.limit)?;
            record.fields([&mut table.selector, &mut table.attributes])?;
        }
        record.field(&mut self.cpl)?;
        record.fields([&mut self.long_code, &mut self.interrupt_shadow])?;
        self.xmm
            .iter_mut()
            .try_for_each(|vector| record.field(&mut vector.0))?;
        record.field(&mut self.mxcsr)?;
        self.x87.state(record)?;
        self.msrs.state(record)?;
        self.apic.state(record)?;
        self.random.state(record)?;
        check(self.cpl <= 3, "the privilege level")?;
        check(self.executed < 1 << 62, "the count of instructions")?;
        check(self.mxcsr >> 16 == 0, "MXCSR")?;
        // Long mode, protected, with paging: nothing of this machine can leave it.
        check(self.cr0 & 0x8000_0001 == 0x8000_0001, "CR0")?;
        check(self.cr4 & 0x20 != 0, "CR4")?;
        check(self.efer & 0x500 == 0x500, "EFER")?;
        if record.is_restoring() {
            self.flush_translations();
            self.update_domain();
            self.update_fpu_access();
        }
        Ok(())
    }
}

// Keeps the generic width in scope for doc links.
const _: fn(u64) -> Flags = Flags::logic::<W64>;
