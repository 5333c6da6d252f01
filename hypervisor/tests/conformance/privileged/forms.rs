//! The cases: each form of a privileged instruction, with random state around it.

use super::layout::*;
use iced_x86::code_asm::*;
use std::fmt;

const CR0: u64 = 0x8005_0033; // PG AM WP NE ET MP PE
const CR4: u64 = 0x620; // PAE OSFXSR OSXMMEXCPT
const EFER: u64 = 0xD01; // SCE LME LMA NXE
/// QEMU's emulator takes bases that are not canonical.
const CANONICAL: u64 = 0x7FFF_FFFF_FFFF;
const AC: u64 = 1 << 18;
/// What both processors offer: TSD DE PSE PAE PGE PCE OSFXSR OSXMMEXCPT FSGSBASE SMEP SMAP.
const CR4_BITS: u64 = 0x31_07BC;

/// What a case starts from.
#[derive(Clone)]
pub struct State {
    pub gpr: [u64; 15],
    pub rflags: u64,
    pub rsp: u64,
    pub cr0: u64,
    pub cr4: u64,
    pub msrs: [u64; MSRS.len()],
    pub pages: [u64; PAGE_COUNT],
    pub scratch: [u64; SCRATCH_WORDS],
}

#[derive(Clone)]
pub struct Case {
    pub name: &'static str,
    pub user: bool,
    pub code: Vec<u8>,
    pub state: State,
}

impl Case {
    /// Of its code.
    pub fn address(&self, number: usize) -> u64 {
        let first = if self.user { USER_CODE } else { KERNEL_CODE };
        first + CODE_SLOT * number as u64
    }

    pub fn record(&self, number: usize) -> [u64; RECORD_WORDS] {
        let mut words = [0; RECORD_WORDS];
        let state = &self.state;
        words[..15].copy_from_slice(&state.gpr);
        let (code, stack) = match self.user {
            true => (selector::USER_CODE, selector::USER_DATA),
            false => (selector::CODE, selector::DATA),
        };
        let address = self.address(number);
        let frame = [address, code.into(), state.rflags, state.rsp, stack.into()];
        words[FRAME_AT..CR0_AT].copy_from_slice(&frame);
        (words[CR0_AT], words[CR4_AT]) = (state.cr0, state.cr4);
        words[MSRS_AT..PAGES_AT].copy_from_slice(&state.msrs);
        words[PAGES_AT..SCRATCH_AT].copy_from_slice(&state.pages);
        words[SCRATCH_AT..].copy_from_slice(&state.scratch);
        words
    }
}

impl fmt::Debug for Case {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let Self {
            name,
            user,
            code,
            state,
        } = self;
        let code: String = code.iter().map(|byte| format!("{byte:02x} ")).collect();
        let who = if *user { "user" } else { "kernel" };
        write!(f, "{name} ({who}): {code}")?;
        for (name, value) in GPRS.iter().zip(state.gpr) {
            write!(f, "{name}={value:#x} ")?;
        }
        write!(f, "rflags={:#x} rsp={:#x} ", state.rflags, state.rsp)?;
        write!(f, "cr0={:#x} cr4={:#x} ", state.cr0, state.cr4)?;
        let State {
            msrs,
            pages,
            scratch,
            ..
        } = state;
        write!(f, "msrs={msrs:x?} pages={pages:x?} data={scratch:x?}")
    }
}

/// A case in the making.
struct Maker {
    random: u64,
    user: bool,
    state: State,
    asm: CodeAssembler,
}

impl Maker {
    fn number(&mut self) -> u64 {
        // Marsaglia's xorshift64*.
        self.random ^= self.random >> 12;
        self.random ^= self.random << 25;
        self.random ^= self.random >> 27;
        self.random.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    fn below(&mut self, count: u64) -> u64 {
        (self.number() >> 32) % count
    }

    fn chance(&mut self, one_in: u64) -> bool {
        self.below(one_in) == 0
    }

    fn one_of<T: Copy>(&mut self, all: &[T]) -> T {
        all[self.below(all.len() as u64) as usize]
    }

    /// Any number, those at edges more often.
    fn value(&mut self) -> u64 {
        match self.below(8) {
            0 => self.below(16),
            1 => self.below(16).wrapping_neg(),
            2 => 1 << self.below(64),
            3 => self.number() & 0xFFFF_FFFF,
            4 => self.one_of(&[1 << 47, (1 << 47) - 1, (1u64 << 47).wrapping_neg(), 1 << 63]),
            _ => self.number(),
        }
    }

    /// `base` with a few of `bits` turned over.
    fn turned(&mut self, base: u64, bits: u64) -> u64 {
        let mut value = base;
        for _ in 0..self.below(4) {
            let bit = 1 << self.below(64);
            if bits & bit != 0 {
                value ^= bit;
            } else {
                let shift = self.below(bits.count_ones().into());
                let nth = (0..64)
                    .filter(|bit| bits >> bit & 1 != 0)
                    .nth(shift as usize);
                value ^= 1 << nth.unwrap_or(0);
            }
        }
        value
    }

    fn selector(&mut self) -> u16 {
        let index = self.below(0x20 + 2) as u16;
        let rpl = self.below(4) as u16;
        let local = if self.chance(6) { 4 } else { 0 };
        index << 3 | local | rpl
    }

    fn data(&self) -> u64 {
        if self.user { USER_SCRATCH } else { SCRATCH }
    }

    /// Where code may go on that ends the case.
    fn landing(&mut self) -> u64 {
        match self.below(8) {
            0 => self.value(),
            1 => KERNEL_LANDING,
            2 => USER_LANDING,
            _ if self.user => USER_LANDING,
            _ => KERNEL_LANDING,
        }
    }
}

type Make = fn(&mut Maker) -> Result<(), IcedError>;

#[derive(Clone, Copy, PartialEq)]
enum Who {
    User,
    Both,
}
use Who::{Both, User};

macro_rules! set {
    ($maker:ident, $register:ident, $value:expr) => {
        let value = $value;
        $maker.state.gpr[GPRS
            .iter()
            .position(|name| *name == stringify!($register))
            .unwrap()] = value;
    };
}

const FORMS: &[(&str, Who, Make)] = &[
    ("mov cr0, rax", Both, |m| {
        let value = m.turned(CR0, 0xFFFF_FFFF);
        set!(m, rax, value);
        m.asm.mov(cr0, rax)
    }),
    ("mov rax, cr0", Both, |m| m.asm.mov(rax, cr0)),
    ("mov cr2, rax", Both, |m| m.asm.mov(cr2, rax)),
    ("mov cr3, rax", Both, |m| {
        let value = m.turned(TABLES, 0x18);
        set!(m, rax, value);
        m.asm.mov(cr3, rax)
    }),
    ("mov rax, cr3", Both, |m| m.asm.mov(rax, cr3)),
    ("mov cr4, rax", Both, |m| {
        let value = m.turned(CR4, CR4_BITS | 1 << 15 | 1 << 29);
        set!(m, rax, value);
        m.asm.mov(cr4, rax)
    }),
    ("mov rax, cr4", Both, |m| m.asm.mov(rax, cr4)),
    ("mov cr8, rax", Both, |m| {
        // QEMU's emulator takes what is reserved.
        set!(m, rax, m.below(16));
        m.asm.mov(cr8, rax)
    }),
    ("mov crN, rax; mov rax, crN", Both, |m| {
        // For user code #GP or #UD: implementations differ.
        m.user = false;
        m.state.rsp = STACK;
        let number = m.one_of(&[1, 5, 6, 7, 9, 15]) as u8;
        let opcode = m.one_of(&[0x20, 0x22]);
        let rex = if number >= 8 { 0x4C } else { 0x48 };
        m.asm.db(&[rex, 0x0F, opcode, 0xC0 | (number & 7) << 3])
    }),
    ("clts", Both, |m| {
        m.state.cr0 = m.turned(CR0, 0xE);
        m.asm.clts()
    }),
    ("lmsw ax", Both, |m| {
        m.state.cr0 = m.turned(CR0, 0xE);
        m.asm.lmsw(ax)
    }),
    ("lmsw [rdi]", Both, |m| {
        set!(m, rdi, m.data());
        m.asm.lmsw(word_ptr(rdi))
    }),
    ("smsw", Both, |m| {
        set!(m, rdi, m.data());
        match m.below(4) {
            0 => m.asm.smsw(ax),
            1 => m.asm.smsw(eax),
            2 => m.asm.smsw(rax),
            _ => m.asm.smsw(word_ptr(rdi)),
        }
    }),
    ("sgdt, sidt, sldt, str", Both, |m| {
        set!(m, rdi, m.data());
        match m.below(6) {
            0 => m.asm.sgdt(ptr(rdi)),
            1 => m.asm.sidt(ptr(rdi)),
            2 => m.asm.sldt(word_ptr(rdi)),
            3 => m.asm.sldt(rax),
            4 => m.asm.str(word_ptr(rdi)),
            _ => m.asm.str(eax),
        }
    }),
    ("lgdt [rdi]", Both, |m| {
        set!(m, rdi, m.data());
        // QEMU's emulator takes a base that is not canonical.
        let base: u64 = if m.user { m.value() } else { GDT };
        m.state.scratch[0] = u64::from(GDT_LIMIT) | base << 16;
        m.state.scratch[1] = base >> 48;
        m.asm.lgdt(ptr(rdi))
    }),
    ("lidt [rdi]", Both, |m| {
        set!(m, rdi, m.data());
        // QEMU's emulator takes a base that is not canonical.
        let base: u64 = if m.user { m.value() } else { IDT };
        let limit = 0x420 + m.below(0x1000);
        m.state.scratch[0] = limit | base << 16;
        m.state.scratch[1] = base >> 48;
        m.asm.lidt(ptr(rdi))
    }),
    ("mov ds, ax", Both, |m| {
        set!(m, rax, m.selector().into());
        m.asm.mov(ds, eax)
    }),
    ("mov fs, ax", Both, |m| {
        set!(m, rax, m.selector().into());
        m.asm.mov(fs, eax)
    }),
    ("mov gs, [rdi]", Both, |m| {
        set!(m, rdi, m.data());
        m.state.scratch[0] = m.selector().into();
        m.asm.mov(gs, word_ptr(rdi))
    }),
    ("mov ss, ax", Both, |m| {
        // … and a null selector of another privilege, or the 64-bit offset of a far pointer.
        set!(m, rax, m.selector().max(8).into());
        m.asm.mov(ss, eax)
    }),
    ("pop fs", Both, |m| {
        let selector = m.selector();
        m.asm.push(i32::from(selector))?;
        m.asm.pop(fs)
    }),
    ("lss eax, [rdi]", Both, |m| {
        set!(m, rdi, m.data());
        m.state.scratch[0] = u64::from(m.selector().max(8)) << 32 | m.below(1 << 32);
        m.asm.lss(eax, ptr(rdi))
    }),
    ("lfs eax, [rdi]", Both, |m| {
        set!(m, rdi, m.data());
        m.state.scratch[0] = u64::from(m.selector()) << 32 | 7;
        m.asm.lfs(eax, ptr(rdi))
    }),
    ("lldt ax, then a segment of it", Both, |m| {
        let loaded = if m.chance(2) { 0x80 } else { m.selector() };
        set!(m, rax, loaded.into());
        set!(m, rcx, m.below(5) << 3 | 4 | m.below(4));
        m.asm.lldt(ax)?;
        m.asm.mov(es, ecx)
    }),
    ("ltr ax", Both, |m| {
        // QEMU's emulator takes a null selector, and dies of it.
        set!(m, rax, m.selector().max(8).into());
        m.asm.ltr(ax)
    }),
    ("lar, lsl, verr, verw", Both, |m| {
        set!(m, rcx, m.selector().into());
        match m.below(4) {
            0 => {
                // Bits 16 to 19 are undefined.
                m.asm.lar(eax, ecx)?;
                m.asm.mov(edx, 0xF0_FF00)?;
                m.asm.and(eax, edx)
            }
            1 => m.asm.lsl(eax, ecx),
            2 => m.asm.verr(cx),
            _ => m.asm.verw(cx),
        }
    }),
    ("call far [rdi]", Both, |m| far(m, 0x18)),
    ("jmp far [rdi]", Both, |m| far(m, 0x28)),
    ("retf", Both, |m| {
        m.state.rsp = frame(m);
        match m.below(3) {
            0 => m.asm.retf(),
            1 => m.asm.db(&[0x48, 0xCB]),
            _ => m.asm.db(&[0x48, 0xCA, 8, 0]),
        }
    }),
    ("iretq", Both, |m| {
        m.state.rsp = frame(m);
        m.state.rflags = m.turned(2, 1 << 14);
        m.asm.iretq()
    }),
    ("iretd", Both, |m| {
        set!(m, rdi, m.data());
        let words = [KERNEL_LANDING | 0x10 << 32, 2 | STACK << 32, 0x18];
        m.state.scratch[..3].copy_from_slice(&words);
        if m.chance(2) {
            let flags = m.turned(2, 0x24_7FD7);
            m.state.scratch[1] = flags & 0xFFFF_FFFF | STACK << 32;
        }
        m.asm.mov(rsp, rdi)?;
        m.asm.iretd()
    }),
    ("syscall", Both, |m| {
        m.state.msrs[0] = m.turned(EFER, 1);
        m.state.msrs[2] = m.landing() & 0x7FFF_FFFF_FFFF;
        // QEMU's emulator clears the arithmetic flags, whatever the mask.
        m.state.msrs[4] = m.turned(0x4_7700, 0x27_7FD7) & 0xFFFF_FFFF | 0x8D5;
        m.state.rflags = m.turned(2, 0x8D5);
        m.asm.syscall()
    }),
    ("sysret", Both, |m| {
        m.state.msrs[0] = m.turned(EFER, 1);
        set!(m, rcx, USER_LANDING);
        let flags = m.turned(2, 0x24_7CD5 | 0x2A);
        set!(m, r11, flags);
        m.asm.sysretq()
    }),
    ("swapgs", Both, |m| {
        m.state.msrs[6] = m.value() & CANONICAL;
        m.state.msrs[7] = m.value() & CANONICAL;
        m.asm.swapgs()
    }),
    ("rdfsbase and the like", Both, |m| {
        m.state.cr4 = m.turned(CR4, 1 << 16);
        m.state.msrs[5] = m.value() & CANONICAL;
        set!(m, rax, m.value() & CANONICAL);
        match m.below(6) {
            0 => m.asm.rdfsbase(rcx),
            1 => m.asm.rdfsbase(ecx),
            2 => m.asm.rdgsbase(rcx),
            3 => m.asm.wrfsbase(rax),
            4 => m.asm.wrgsbase(rax),
            _ => m.asm.wrgsbase(eax),
        }
    }),
    ("rdmsr", Both, |m| {
        let msr = msr(m);
        set!(m, rcx, msr);
        m.asm.rdmsr()
    }),
    ("wrmsr", Both, |m| {
        let msr = msr(m);
        set!(m, rcx, msr);
        let value = if msr == 0xC000_0080 {
            m.turned(EFER, 0xFFFF_BD01)
        } else if matches!(msr, 0x175 | 0x176 | 0xC000_0100..=0xC000_0102) {
            m.value() & CANONICAL
        } else {
            m.value()
        };
        set!(m, rax, value & 0xFFFF_FFFF);
        set!(m, rdx, value >> 32);
        m.asm.wrmsr()
    }),
    ("mov drN, rax", Both, |m| {
        m.state.cr4 = m.turned(CR4, 1 << 3);
        match m.below(4) {
            0 => m.asm.mov(dr0, rax),
            1 => m.asm.mov(dr3, rax),
            2 => {
                set!(m, rax, m.turned(0xFFFF_0FF0, 0x1_FFFF_FFFF));
                let register = m.one_of(&[dr4, dr6]);
                m.asm.mov(register, rax)
            }
            // No breakpoints and no general detection.
            _ => {
                set!(m, rax, m.turned(0x400, 0x1_FFFF_0F00));
                let register = m.one_of(&[dr5, dr7]);
                m.asm.mov(register, rax)
            }
        }
    }),
    ("mov rax, drN", Both, |m| {
        m.state.cr4 = m.turned(CR4, 1 << 3);
        let register = m.one_of(&[dr0, dr1, dr2, dr3, dr4, dr5, dr6, dr7]);
        m.asm.mov(rax, register)
    }),
    ("invlpg", Both, |m| m.asm.invlpg(byte_ptr(rdi))),
    ("wbinvd, invd", Both, |m| {
        if m.chance(2) {
            m.asm.wbinvd()
        } else {
            m.asm.invd()
        }
    }),
    ("load", Both, |m| {
        page(m);
        m.asm.mov(rax, qword_ptr(rdi))
    }),
    ("store", Both, |m| {
        page(m);
        m.asm.mov(qword_ptr(rdi), rax)
    }),
    ("read, modify, write", Both, |m| {
        page(m);
        // Where writing is forbidden, QEMU's emulator reports the read.
        for entry in &mut m.state.pages {
            *entry |= 7;
        }
        m.state.cr4 = CR4;
        set!(m, rdi, PAGES + (m.below(PAGE_COUNT as u64) << 12) + 0x800);
        match m.below(3) {
            0 => m.asm.add(qword_ptr(rdi), rax),
            1 => m.asm.lock().cmpxchg(qword_ptr(rdi), rcx),
            _ => m.asm.xchg(qword_ptr(rdi), rcx),
        }
    }),
    ("jmp", Both, |m| {
        page(m);
        set!(
            m,
            rdi,
            PAGES + (m.below(PAGE_COUNT as u64) << 12) + 2 * m.below(0x700)
        );
        m.asm.jmp(rdi)
    }),
    ("call", Both, |m| {
        page(m);
        m.asm.mov(rsp, rdi)?;
        m.asm.call(rdi)
    }),
    ("rep movsb over pages", Both, |m| {
        page(m);
        set!(m, rsi, m.data());
        set!(m, rcx, m.below(40));
        m.asm.rep().movsb()
    }),
    ("fxsave, movaps over pages", Both, |m| {
        page(m);
        // Not both: with EM it is #UD, before TS; not for QEMU's emulator.
        m.state.cr0 = CR0 | m.one_of(&[0, 4, 8]);
        if m.chance(2) {
            m.asm.fxsave(ptr(rdi))
        } else {
            m.asm.movaps(xmm0, xmmword_ptr(rdi))
        }
    }),
    ("an address that is not canonical", Both, |m| {
        set!(m, rdi, m.value() | 1 << 62);
        set!(m, rbp, m.value() | 1 << 62);
        match m.below(3) {
            0 => m.asm.mov(rax, qword_ptr(rdi)),
            1 => m.asm.mov(qword_ptr(rbp), rax),
            _ => m.asm.fxsave(ptr(rdi)),
        }
    }),
    ("clac, stac", Both, |m| {
        m.state.cr4 = m.turned(CR4, 1 << 21);
        if m.chance(2) {
            m.asm.clac()
        } else {
            m.asm.stac()
        }
    }),
    ("cli, sti", Both, |m| {
        m.state.rflags = m.turned(2, 0x3000);
        if m.chance(2) {
            m.asm.cli()
        } else {
            m.asm.sti()
        }
    }),
    ("popf, pushf", Both, |m| {
        m.state.rflags = m.turned(2, 0x3000);
        let flags = m.turned(2, 0x3F_FED5);
        set!(m, rax, flags);
        m.asm.push(rax)?;
        match m.below(3) {
            0 => m.asm.popfq()?,
            1 => m.asm.popf()?,
            _ => {
                m.asm.popfq()?;
                m.asm.pushfq()?;
            }
        }
        m.asm.nop()
    }),
    ("int, int3, ud2, into", Both, |m| match m.below(5) {
        0 => m.asm.int3(),
        1 => m.asm.ud2(),
        2 => m.asm.db(&[0xCE]),
        3 => m.asm.int(i32::from(END_ON_RSP0)),
        _ => {
            // Gates that may be called: of the others QEMU's emulator reports wrong error codes.
            let all = [3, 0, 1, 6, 14, 0x1F];
            let vector = if m.user { 3 } else { m.one_of(&all) };
            m.asm.int(vector)
        }
    }),
    ("rdtsc, rdpmc, where they are forbidden", User, |m| {
        m.state.cr4 = CR4 | 1 << 2;
        if m.chance(2) {
            m.asm.rdtsc()
        } else {
            m.asm.rdpmc()
        }
    }),
    ("in, out", Both, |m| {
        m.state.rflags = m.turned(2, 0x3000);
        set!(m, rdx, 0x80);
        match m.below(4) {
            0 => m.asm.in_(al, dx),
            1 => m.asm.in_(eax, dx),
            2 => m.asm.out(dx, ax),
            _ => m.asm.in_(ax, 0x80),
        }
    }),
    ("hlt for user code", User, |m| m.asm.hlt()),
    ("xgetbv, xsetbv without XSAVE", Both, |m| {
        // For user code the emulator refuses XSETBV by its privilege first.
        if m.user || m.chance(2) {
            m.asm.xgetbv()
        } else {
            m.asm.xsetbv()
        }
    }),
    ("monitor, mwait, and what is not offered", Both, |m| {
        // MONITOR and MWAIT look at these first.
        set!(m, rcx, 0);
        let codes: [&[u8]; 6] = [
            &[0x0F, 0x01, 0xC8],             // monitor
            &[0x0F, 0x01, 0xC9],             // mwait
            &[0x0F, 0x01, 0xC2],             // vmlaunch
            &[0x66, 0x0F, 0x38, 0x80, 0x07], // invept
            &[0x0F, 0xAA],                   // rsm
            &[0x0F, 0x37],                   // getsec
        ];
        let code = m.one_of(&codes);
        m.asm.db(code)
    }),
    ("fninit, movups with CR0 as it may be", Both, |m| {
        m.state.cr0 = m.turned(CR0, 2) | m.one_of(&[0, 4, 8]);
        m.state.cr4 = m.turned(CR4, 1 << 9);
        match m.below(3) {
            0 => m.asm.fld1(),
            1 => m.asm.wait(),
            _ => m.asm.xorps(xmm1, xmm1),
        }
    }),
    ("unaligned, with AC", Both, |m| {
        m.state.rflags = 2 | AC;
        m.state.cr0 = m.turned(CR0, 1 << 18);
        set!(m, rdi, m.data() + m.below(8));
        match m.below(4) {
            0 => m.asm.mov(rax, qword_ptr(rdi)),
            1 => m.asm.mov(word_ptr(rdi), ax),
            2 => m.asm.movups(xmm0, xmmword_ptr(rdi)),
            _ => m.asm.movaps(xmm0, xmmword_ptr(rdi)),
        }
    }),
    ("too long, or cut short", Both, |m| {
        let prefixes = m.below(20) as usize;
        m.asm.db(&vec![0x66; prefixes])?;
        m.asm.nop()
    }),
    ("cpuid of the partition", Both, |m| {
        set!(m, rax, 0x4000_0000 + m.below(6));
        m.asm.cpuid()
    }),
    ("div", Both, |m| {
        set!(m, rdx, m.below(3));
        set!(m, rcx, m.below(3));
        m.asm.div(rcx)
    }),
    ("lock on what takes none", Both, |m| {
        let codes: [&[u8]; 2] = [
            &[0xF0, 0x90],       // nop
            &[0xF0, 0x01, 0xC0], // add eax, eax
        ];
        let code = m.one_of(&codes);
        m.asm.db(code)
    }),
];

fn msr(m: &mut Maker) -> u64 {
    match m.below(4) {
        0 => m.one_of(&[0x1B, 0x174, 0x175, 0x176, 0x277, 0xFE, 0x2FF]),
        1 => m.one_of(&[
            0x3A,
            0x8B,
            0x1D9,
            0xC000_0103,
            0xC001_0015,
            0x4000_0200,
            0x4B56_4D00,
        ]),
        _ => 0xC000_0080 + m.below(5) + if m.chance(2) { 0x80 } else { 0 },
    }
}

/// A far transfer through memory, of 16, 32 or 64 bits of offset.
fn far(m: &mut Maker, reg: u8) -> Result<(), IcedError> {
    set!(m, rdi, m.data());
    // Call gates are not followed by the software processor; QEMU's emulator takes code that is of
    // both modes.
    let selector = match m.selector() {
        gate if matches!(gate >> 3, 0x14 | 0x0E | 0x16) => 0x38,
        selector => u64::from(selector),
    };
    let target = m.landing();
    if m.chance(3) {
        m.state.scratch[0] = target & 0xFFFF_FFFF | selector << 32;
        m.asm.db(&[0xFF, 0x07 | reg])
    } else {
        m.state.scratch[0] = target & 0xFFFF_FFFF | selector << 32;
        m.state.scratch[1] = selector;
        if m.chance(2) {
            m.state.scratch[0] = target;
        }
        m.asm.db(&[0x48, 0xFF, 0x07 | reg])
    }
}

/// A frame for a return in the data, mostly a good one; where it lies.
fn frame(m: &mut Maker) -> u64 {
    let data = m.data();
    let code = m.one_of(&[0x10, 0x33, 0x33, 0x38, 0x63, 0xEB]);
    let stack = m.one_of(&[0x18, 0x2B, 0x2B, 0xAB, 0]);
    let target = m.one_of(&[KERNEL_LANDING, USER_LANDING]);
    let mut words = [target, code, 2, 0, stack];
    words[2] = m.turned(2, 0x27_7ED7);
    words[3] = if code & 3 == 3 { USER_STACK } else { STACK };
    if m.chance(2) {
        let at = m.below(5) as usize;
        // Not the target: QEMU's emulator goes there before it finds that it is not canonical.
        match at {
            0 | 2 => {}
            1 | 4 => words[at] = m.selector().into(),
            _ => words[at] = m.value(),
        }
    }
    m.state.scratch[..5].copy_from_slice(&words);
    data
}

/// Random entries for the pages of the case, random rules, and RDI near one of them.
fn page(m: &mut Maker) {
    // No reserved ones: QEMU's emulator reports them without the bit of what is present.
    const BITS: u64 = 0x167 | 1 << 63;
    for number in 0..PAGE_COUNT {
        let address = PAGES + 0x1000 * number as u64;
        let bits = m.turned(7, BITS);
        m.state.pages[number] = address | bits;
    }
    m.state.cr0 = m.turned(CR0, 1 << 16);
    m.state.cr4 = m.turned(CR4, 1 << 7 | 1 << 20 | 1 << 21);
    m.state.rflags = m.turned(2, AC);
    let page = m.below(PAGE_COUNT as u64);
    let offset = m.one_of(&[0, 8, 0x800, 0xFF8, 0xFFC, 0xFFF]);
    set!(m, rdi, PAGES + page * 0x1000 + offset);
}

/// `rounds` cases of each form; always the same ones.
pub fn cases(rounds: usize) -> Vec<Case> {
    let mut all = vec![];
    for (number, &(name, who, make)) in FORMS.iter().enumerate() {
        for round in 0..rounds {
            let seed = 0x9E37_79B9_7F4A_7C15u64.wrapping_mul((number << 16 | round) as u64 + 1);
            all.push(case(
                name,
                who == User || who == Both && round % 3 == 0,
                make,
                seed,
            ));
        }
    }
    all
}

fn case(name: &'static str, user: bool, make: Make, seed: u64) -> Case {
    let mut maker = Maker {
        random: seed,
        user,
        state: State {
            gpr: [0; 15],
            rflags: 2,
            rsp: if user { USER_STACK } else { STACK },
            cr0: CR0,
            cr4: CR4,
            msrs: [
                EFER,
                (0x20 | 3) << 48 | 0x10 << 32,
                KERNEL_LANDING,
                KERNEL_LANDING,
                0,
                0,
                0,
                0,
            ],
            pages: std::array::from_fn(|i| (PAGES + 0x1000 * i as u64) | 7),
            scratch: [0; SCRATCH_WORDS],
        },
        asm: CodeAssembler::new(64).unwrap(),
    };
    for _ in 0..4 {
        maker.number();
    }
    maker.state.gpr = std::array::from_fn(|_| maker.value());
    maker.state.scratch = std::array::from_fn(|_| maker.number());
    make(&mut maker).unwrap();
    maker.asm.int(i32::from(END)).unwrap();
    let code = maker.asm.assemble(0).unwrap();
    assert!(code.len() as u64 <= CODE_SLOT, "{name}");
    Case {
        name,
        user: maker.user,
        code,
        state: maker.state,
    }
}
