//! Runs one instruction on the host's processor.
//!
//! The instruction stands alone on an executable page, followed by jumps to where the registers are
//! saved. `teuthis_native_enter` loads every register from `AREA` and jumps to it. A signal handler
//! on its own stack turns what the kernel made of an exception back into vector, error code and
//! address, and resumes in `teuthis_native_leave`.
#![allow(unsafe_code)]

use super::forms::Mode;
use super::layout::{
    CODE, CODE_PAGE, Fault, FxImage, GS_BASE, HOLE, Outcome, PAGE, READ_ONLY, Registers, SCRATCH,
    SCRATCH_SIZE, TAKEN,
};
use std::{
    arch::{asm, global_asm},
    mem::{MaybeUninit, offset_of},
    ptr::{addr_of, addr_of_mut},
};

/// What the assembly and the signal handler share with the rest. Used by one thread at a time: the
/// only `Native` is alive.
#[repr(C, align(64))]
struct Area {
    input: Registers,
    output: Registers,
    host_stack: u64,
    taken: u64,
    active: u64,
    vector: u64,
    error: u64,
    address: u64,
    faulted: u64,
    mxcsr: u64,
    /// Far pointer to the instruction as 32-bit code: offset, selector.
    far: [u32; 2],
}

#[unsafe(no_mangle)]
static mut TEUTHIS_AREA: MaybeUninit<Area> = MaybeUninit::zeroed();

unsafe extern "C" {
    fn teuthis_native_enter();
    fn teuthis_native_far();
    fn teuthis_native_next();
    fn teuthis_native_taken();
    fn teuthis_native_leave();
}

global_asm!(
    ".global teuthis_native_enter",
    "teuthis_native_enter:",
    "push rbx", "push rbp", "push r12", "push r13", "push r14", "push r15",
    "mov [rip + TEUTHIS_AREA + {host}], rsp",
    "fxrstor64 [rip + TEUTHIS_AREA + {in_fx}]",
    "push qword ptr [rip + TEUTHIS_AREA + {in_flags}]",
    "popfq",
    "mov rax, [rip + TEUTHIS_AREA + {in_gpr} + 0]",
    "mov rcx, [rip + TEUTHIS_AREA + {in_gpr} + 8]",
    "mov rdx, [rip + TEUTHIS_AREA + {in_gpr} + 16]",
    "mov rbx, [rip + TEUTHIS_AREA + {in_gpr} + 24]",
    "mov rsp, [rip + TEUTHIS_AREA + {in_gpr} + 32]",
    "mov rbp, [rip + TEUTHIS_AREA + {in_gpr} + 40]",
    "mov rsi, [rip + TEUTHIS_AREA + {in_gpr} + 48]",
    "mov rdi, [rip + TEUTHIS_AREA + {in_gpr} + 56]",
    "mov r8, [rip + TEUTHIS_AREA + {in_gpr} + 64]",
    "mov r9, [rip + TEUTHIS_AREA + {in_gpr} + 72]",
    "mov r10, [rip + TEUTHIS_AREA + {in_gpr} + 80]",
    "mov r11, [rip + TEUTHIS_AREA + {in_gpr} + 88]",
    "mov r12, [rip + TEUTHIS_AREA + {in_gpr} + 96]",
    "mov r13, [rip + TEUTHIS_AREA + {in_gpr} + 104]",
    "mov r14, [rip + TEUTHIS_AREA + {in_gpr} + 112]",
    "mov r15, [rip + TEUTHIS_AREA + {in_gpr} + 120]",
    "jmp qword ptr [rip + TEUTHIS_AREA + {in_rip}]",
    ".global teuthis_native_far",
    "teuthis_native_far:",
    "jmp fword ptr [rip + TEUTHIS_AREA + {far}]",
    ".global teuthis_native_taken",
    "teuthis_native_taken:",
    "mov qword ptr [rip + TEUTHIS_AREA + {taken}], 1",
    ".global teuthis_native_next",
    "teuthis_native_next:",
    "mov [rip + TEUTHIS_AREA + {out_gpr} + 0], rax",
    "mov [rip + TEUTHIS_AREA + {out_gpr} + 8], rcx",
    "mov [rip + TEUTHIS_AREA + {out_gpr} + 16], rdx",
    "mov [rip + TEUTHIS_AREA + {out_gpr} + 24], rbx",
    "mov [rip + TEUTHIS_AREA + {out_gpr} + 32], rsp",
    "mov [rip + TEUTHIS_AREA + {out_gpr} + 40], rbp",
    "mov [rip + TEUTHIS_AREA + {out_gpr} + 48], rsi",
    "mov [rip + TEUTHIS_AREA + {out_gpr} + 56], rdi",
    "mov [rip + TEUTHIS_AREA + {out_gpr} + 64], r8",
    "mov [rip + TEUTHIS_AREA + {out_gpr} + 72], r9",
    "mov [rip + TEUTHIS_AREA + {out_gpr} + 80], r10",
    "mov [rip + TEUTHIS_AREA + {out_gpr} + 88], r11",
    "mov [rip + TEUTHIS_AREA + {out_gpr} + 96], r12",
    "mov [rip + TEUTHIS_AREA + {out_gpr} + 104], r13",
    "mov [rip + TEUTHIS_AREA + {out_gpr} + 112], r14",
    "mov [rip + TEUTHIS_AREA + {out_gpr} + 120], r15",
    "mov rsp, [rip + TEUTHIS_AREA + {host}]",
    "pushfq",
    "pop qword ptr [rip + TEUTHIS_AREA + {out_flags}]",
    "fxsave64 [rip + TEUTHIS_AREA + {out_fx}]",
    ".global teuthis_native_leave",
    "teuthis_native_leave:",
    "push 2",
    "popfq",
    "fninit",
    "ldmxcsr [rip + TEUTHIS_AREA + {mxcsr}]",
    "pop r15", "pop r14", "pop r13", "pop r12", "pop rbp", "pop rbx",
    "ret",
    host = const offset_of!(Area, host_stack),
    in_fx = const offset_of!(Area, input) + offset_of!(Registers, fx),
    in_flags = const offset_of!(Area, input) + offset_of!(Registers, flags),
    in_gpr = const offset_of!(Area, input) + offset_of!(Registers, gpr),
    in_rip = const offset_of!(Area, input) + offset_of!(Registers, rip),
    out_fx = const offset_of!(Area, output) + offset_of!(Registers, fx),
    out_flags = const offset_of!(Area, output) + offset_of!(Registers, flags),
    out_gpr = const offset_of!(Area, output) + offset_of!(Registers, gpr),
    taken = const offset_of!(Area, taken),
    mxcsr = const offset_of!(Area, mxcsr),
    far = const offset_of!(Area, far),
);

fn area() -> *mut Area {
    addr_of_mut!(TEUTHIS_AREA).cast()
}

/// Indices into `gregs` of registers 0 to 15.
const GREGS: [libc::c_int; 16] = [
    libc::REG_RAX,
    libc::REG_RCX,
    libc::REG_RDX,
    libc::REG_RBX,
    libc::REG_RSP,
    libc::REG_RBP,
    libc::REG_RSI,
    libc::REG_RDI,
    libc::REG_R8,
    libc::REG_R9,
    libc::REG_R10,
    libc::REG_R11,
    libc::REG_R12,
    libc::REG_R13,
    libc::REG_R14,
    libc::REG_R15,
];

extern "C" fn on_signal(
    signal: libc::c_int,
    _info: *mut libc::siginfo_t,
    context: *mut libc::c_void,
) {
    // SAFETY: the kernel passes a valid context; the area is only used by this thread, which is
    // suspended in the instruction under test when `active` is set.
    unsafe {
        let area = &mut *area();
        if area.active == 0 {
            // Not ours: let it kill the process when the instruction restarts.
            libc::signal(signal, libc::SIG_DFL);
            return;
        }
        let context = &mut (*context.cast::<libc::ucontext_t>()).uc_mcontext;
        for (register, index) in area.output.gpr.iter_mut().zip(GREGS) {
            *register = context.gregs[index as usize] as u64;
        }
        area.output.flags = context.gregs[libc::REG_EFL as usize] as u64;
        area.output.rip = context.gregs[libc::REG_RIP as usize] as u64;
        std::ptr::copy_nonoverlapping(
            context.fpregs.cast::<u8>(),
            area.output.fx.0.as_mut_ptr(),
            512,
        );
        area.vector = context.gregs[libc::REG_TRAPNO as usize] as u64;
        area.error = context.gregs[libc::REG_ERR as usize] as u64;
        area.address = context.gregs[libc::REG_CR2 as usize] as u64;
        area.faulted = 1;
        context.gregs[libc::REG_RIP as usize] = teuthis_native_leave as *const () as i64;
        context.gregs[libc::REG_RSP as usize] = area.host_stack as i64;
        context.gregs[libc::REG_EFL as usize] = 2;
        // The selectors of CS, GS, FS and SS, from the lowest bits on.
        let selectors = &mut context.gregs[libc::REG_CSGSFS as usize];
        *selectors = (*selectors & !0xFFFF) | i64::from(LONG_CODE);
    }
}

/// The host's processor, with the test's pages mapped.
pub struct Native {
    scratch: *mut u8,
    code: *mut u8,
    /// Keeps the handler's stack alive.
    _stack: Vec<u8>,
}

impl Native {
    /// Maps the pages and installs the signal handlers. Only one may exist at a time.
    pub fn new() -> Self {
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let scratch = map(SCRATCH, SCRATCH_SIZE, protection);
        let read_only = map(READ_ONLY, PAGE as usize, protection);
        let code = map(CODE_PAGE, PAGE as usize, protection | libc::PROT_EXEC);
        let mut stack = vec![0u8; 1 << 16];
        // SAFETY: the pages were just mapped; the handler has the signature of SA_SIGINFO; the
        // stack lives as long as `Self`.
        unsafe {
            read_only.write_bytes(READ_ONLY_BYTE, PAGE as usize);
            libc::mprotect(read_only.cast(), PAGE as usize, libc::PROT_READ);
            let alternate = libc::stack_t {
                ss_sp: stack.as_mut_ptr().cast(),
                ss_flags: 0,
                ss_size: stack.len(),
            };
            libc::sigaltstack(&alternate, std::ptr::null_mut());
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = on_signal as *const () as usize;
            action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_NODEFER;
            for signal in [
                libc::SIGSEGV,
                libc::SIGBUS,
                libc::SIGFPE,
                libc::SIGILL,
                libc::SIGTRAP,
            ] {
                libc::sigaction(signal, &action, std::ptr::null_mut());
            }
            const ARCH_SET_GS: libc::c_int = 0x1001;
            libc::syscall(libc::SYS_arch_prctl, ARCH_SET_GS, GS_BASE);
            (*area()).mxcsr = 0x1F80;
            (*area()).far = [CODE as u32, COMPATIBLE_CODE.into()];
            // 32-bit code cannot use the null selectors that 64-bit programs have here.
            asm!("mov ds, {0:e}", "mov es, {0:e}", in(reg) u32::from(DATA));
        }
        let mut native = Self {
            scratch,
            code,
            _stack: stack,
        };
        native.write_jump(LONG_NEXT, teuthis_native_next as *const () as u64);
        native.write_jump(LONG_TAKEN, teuthis_native_taken as *const () as u64);
        native
    }

    /// Writes the way out of `mode` at `address`.
    fn write_exit(&mut self, mode: Mode, address: u64, taken: bool) {
        match (mode, taken) {
            (Mode::Long, false) => {
                self.write_jump(address, teuthis_native_next as *const () as u64);
            }
            (Mode::Long, true) => {
                self.write_jump(address, teuthis_native_taken as *const () as u64);
            }
            (Mode::Compatible, _) => {
                // jmp LONG_CODE:target
                let target = if taken { LONG_TAKEN } else { LONG_NEXT };
                let mut bytes = [0xEA, 0, 0, 0, 0, 0, 0];
                bytes[1..5].copy_from_slice(&(target as u32).to_le_bytes());
                bytes[5..].copy_from_slice(&LONG_CODE.to_le_bytes());
                self.write_code(address, &bytes);
            }
        }
    }

    /// `jmp [rip]; .quad target` at `address`: changes neither registers nor flags.
    fn write_jump(&mut self, address: u64, target: u64) {
        let mut bytes = [0xFF, 0x25, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        bytes[6..].copy_from_slice(&target.to_le_bytes());
        self.write_code(address, &bytes);
    }

    fn write_code(&mut self, address: u64, bytes: &[u8]) {
        let offset = (address - CODE_PAGE) as usize;
        assert!(offset + bytes.len() <= PAGE as usize);
        // SAFETY: inside the code page, which is writable and not executing now.
        unsafe {
            std::ptr::copy_nonoverlapping(bytes.as_ptr(), self.code.add(offset), bytes.len())
        };
    }

    /// Runs `instruction` with `registers` and `memory`.
    pub fn run(
        &mut self,
        mode: Mode,
        instruction: &[u8],
        registers: &Registers,
        memory: &[u8; SCRATCH_SIZE],
    ) -> Outcome {
        let next = CODE + instruction.len() as u64;
        self.write_code(CODE, instruction);
        self.write_exit(mode, next, false);
        self.write_exit(mode, TAKEN, true);
        let mut after = Box::new([0; SCRATCH_SIZE]);
        // SAFETY: the area belongs to this thread; the assembly preserves what the ABI says; the
        // instruction can only write to the scratch pages (it was generated so), or faults.
        unsafe {
            std::ptr::copy_nonoverlapping(memory.as_ptr(), self.scratch, SCRATCH_SIZE);
            let area = &mut *area();
            area.input = *registers;
            if mode == Mode::Compatible {
                area.input.rip = teuthis_native_far as *const () as u64;
            }
            area.taken = 0;
            area.faulted = 0;
            area.active = 1;
            teuthis_native_enter();
            area.active = 0;
            std::ptr::copy_nonoverlapping(self.scratch, after.as_mut_ptr(), SCRATCH_SIZE);
        }
        // SAFETY: as above; read through a pointer since assembly and handler wrote it.
        let area = unsafe { std::ptr::read_volatile(addr_of!(*area())) };
        let mut output = area.output;
        if area.faulted == 0 {
            output.rip = if area.taken != 0 { TAKEN } else { next };
        }
        // A fetch fault elsewhere is the next instruction's: this one went there.
        let fetch = area.vector == 14 && area.error & FETCH != 0 && output.rip != CODE;
        let fault = (area.faulted != 0 && !fetch).then(|| {
            let vector = area.vector as u8;
            Fault {
                vector,
                error: if matches!(vector, 8 | 10..=14 | 17) {
                    area.error as u32
                } else {
                    0
                },
                address: if vector == 14 { area.address } else { 0 },
            }
        });
        Outcome {
            registers: output,
            memory: after,
            fault,
        }
    }
}

/// Bit of a page fault's error code.
const FETCH: u64 = 1 << 4;
/// The selectors that Linux gives to user programs.
pub const LONG_CODE: u16 = 0x33;
pub const COMPATIBLE_CODE: u16 = 0x23;
const DATA: u16 = 0x2B;
/// 64-bit code on the same page, for 32-bit code to leave by.
const LONG_NEXT: u64 = CODE_PAGE + 0x800;
const LONG_TAKEN: u64 = CODE_PAGE + 0x840;

/// What the read-only page is full of; as flags, neither TF nor AC.
pub const READ_ONLY_BYTE: u8 = 0x2A;

fn map(address: u64, size: usize, protection: libc::c_int) -> *mut u8 {
    // SAFETY: the kernel refuses when something is mapped there already.
    let pointer = unsafe {
        libc::mmap(
            address as *mut _,
            size,
            protection,
            libc::MAP_PRIVATE
                | libc::MAP_ANONYMOUS
                | libc::MAP_FIXED_NOREPLACE
                | libc::MAP_POPULATE,
            -1,
            0,
        )
    };
    assert_eq!(
        pointer as u64,
        address,
        "cannot map test page: {}",
        std::io::Error::last_os_error()
    );
    assert!(address + size as u64 <= HOLE || address >= CODE_PAGE);
    pointer.cast()
}

/// The selectors of CS, DS, ES, FS, GS, SS, indexed as instructions encode them.
pub fn selectors() -> [u16; 6] {
    let (es, cs, ss, ds, fs, gs): (u16, u16, u16, u16, u16, u16);
    // SAFETY: reading selectors has no effect.
    unsafe {
        asm!("mov {0:x}, es", out(reg) es);
        asm!("mov {0:x}, cs", out(reg) cs);
        asm!("mov {0:x}, ss", out(reg) ss);
        asm!("mov {0:x}, ds", out(reg) ds);
        asm!("mov {0:x}, fs", out(reg) fs);
        asm!("mov {0:x}, gs", out(reg) gs);
    }
    [es, cs, ss, ds, fs, gs]
}

const _: () = assert!(size_of::<FxImage>() == 512);
