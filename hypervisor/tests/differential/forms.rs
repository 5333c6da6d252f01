//! Instruction forms: which there are, in what shapes, and how a sample of one is made.

use iced_x86::{Code, CpuidFeature, EncodingKind, Mnemonic, OpCodeInfo, OpCodeOperandKind as Kind};

/// What stands before the opcode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Prefix {
    None,
    Lock,
    Rep,
    Repne,
}

/// The two kinds of code that a 64-bit kernel runs for user programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    Long,
    /// 32-bit code: compatibility mode.
    Compatible,
}

impl Mode {
    pub fn bitness(self) -> u32 {
        match self {
            Self::Long => 64,
            Self::Compatible => 32,
        }
    }
}

/// One instruction in one shape.
#[derive(Clone, Copy)]
pub struct Form {
    pub mode: Mode,
    pub code: Code,
    /// The operand that may be a register or memory is memory.
    pub memory: bool,
    pub prefix: Prefix,
}

impl Form {
    /// A name that selects the form: `TEUTHIS_DIFFERENTIAL_ONLY`.
    pub fn name(&self) -> String {
        let prefix = match self.prefix {
            Prefix::None => "",
            Prefix::Lock => "lock ",
            Prefix::Rep => "rep ",
            Prefix::Repne => "repne ",
        };
        let shape = if self.memory { " [memory]" } else { "" };
        let mode = match self.mode {
            Mode::Long => "",
            Mode::Compatible => " in 32-bit code",
        };
        format!("{prefix}{:?}{shape}{mode}", self.code)
    }
}

/// All forms that a user program can run and whose effect depends on nothing but its own state;
/// those that need privilege too, since they must raise #GP.
pub fn all(mode: Mode) -> Vec<Form> {
    let mut forms = Vec::new();
    for code in Code::values() {
        let info = code.op_code();
        if !is_candidate(mode, code, info) {
            continue;
        }
        let kinds = info.op_kinds();
        let only_memory = kinds
            .iter()
            .any(|kind| matches!(kind, Kind::mem | Kind::mem_offs));
        let either = kinds.iter().any(|kind| may_be_memory(*kind));
        let shapes: &[bool] = match (only_memory, either) {
            (true, _) => &[true],
            (false, true) => &[false, true],
            (false, false) => &[false],
        };
        for &memory in shapes {
            let form = |prefix| Form {
                mode,
                code,
                memory,
                prefix,
            };
            forms.push(form(Prefix::None));
            if memory && info.can_use_lock_prefix() {
                forms.push(form(Prefix::Lock));
            }
            if code.is_string_instruction() {
                forms.push(form(Prefix::Rep));
                if matches!(
                    code.mnemonic(),
                    Mnemonic::Cmpsb
                        | Mnemonic::Cmpsw
                        | Mnemonic::Cmpsd
                        | Mnemonic::Cmpsq
                        | Mnemonic::Scasb
                        | Mnemonic::Scasw
                        | Mnemonic::Scasd
                        | Mnemonic::Scasq
                ) {
                    forms.push(form(Prefix::Repne));
                }
            }
        }
    }
    forms
}

pub fn may_be_memory(kind: Kind) -> bool {
    matches!(
        kind,
        Kind::r8_or_mem
            | Kind::r16_or_mem
            | Kind::r32_or_mem
            | Kind::r64_or_mem
            | Kind::mm_or_mem
            | Kind::xmm_or_mem
    )
}

fn is_candidate(mode: Mode, code: Code, info: &OpCodeInfo) -> bool {
    let exists = match mode {
        Mode::Long => info.mode64(),
        Mode::Compatible => info.mode32(),
    };
    info.is_instruction()
        && exists
        && info.encoding() == EncodingKind::Legacy
        && code
            .cpuid_features()
            .iter()
            .all(|feature| is_reported(code, *feature))
        && !is_excluded(code)
}

/// Features that the software processor reports (x86-64-v2 and a little more) and that the host
/// has too. `main` prints what the host lacks.
pub fn is_reported(code: Code, feature: CpuidFeature) -> bool {
    use CpuidFeature::*;
    match feature {
        INTEL8086 | INTEL186 | INTEL286 | INTEL386 | INTEL486 | X64 | CMOV | CX8 | CLFSH | FPU
        | FPU287 | FPU387 | FXSR | MULTIBYTENOP | PAUSE | SSE | SSE2 | MMX => true,
        // Not reported, so that these encodings are BSF and BSR: see `Sample::native`.
        BMI1 => matches!(code.mnemonic(), Mnemonic::Tzcnt),
        LZCNT => matches!(code.mnemonic(), Mnemonic::Lzcnt),
        CET_IBT => matches!(code, Code::Endbr64 | Code::Endbr32),
        _ => HOST_FEATURES
            .iter()
            .any(|(known, _, has)| *known == feature && has()),
    }
}

/// A feature, its name, and whether the host has it.
type HostFeature = (CpuidFeature, &'static str, fn() -> bool);

/// Features beyond the x86-64 baseline: how they are called, and whether the host has them.
pub const HOST_FEATURES: [HostFeature; 11] = [
    (CpuidFeature::CMPXCHG16B, "CMPXCHG16B", || {
        is_x86_feature_detected!("cmpxchg16b")
    }),
    (CpuidFeature::SSE3, "SSE3", || {
        is_x86_feature_detected!("sse3")
    }),
    (CpuidFeature::SSSE3, "SSSE3", || {
        is_x86_feature_detected!("ssse3")
    }),
    (CpuidFeature::SSE4_1, "SSE4.1", || {
        is_x86_feature_detected!("sse4.1")
    }),
    (CpuidFeature::SSE4_2, "SSE4.2", || {
        is_x86_feature_detected!("sse4.2")
    }),
    (CpuidFeature::POPCNT, "POPCNT", || {
        is_x86_feature_detected!("popcnt")
    }),
    (CpuidFeature::MOVBE, "MOVBE", || {
        is_x86_feature_detected!("movbe")
    }),
    (CpuidFeature::AES, "AES", || is_x86_feature_detected!("aes")),
    (CpuidFeature::PCLMULQDQ, "PCLMULQDQ", || {
        is_x86_feature_detected!("pclmulqdq")
    }),
    (CpuidFeature::SHA, "SHA", || is_x86_feature_detected!("sha")),
    (CpuidFeature::PREFETCHW, "PREFETCHW", || {
        is_x86_feature_detected!("sse4.2")
    }),
];

/// Forms whose effect depends on the operating system, on time, or on descriptor tables.
fn is_excluded(code: Code) -> bool {
    use Mnemonic::*;
    let name = format!("{code:?}");
    // 66-prefixed near branches: Intel ignores the prefix, AMD truncates the target.
    let word_branch = name.ends_with("_rel16")
        || name.ends_with("_rel8_16")
        || name.contains("_rel8_16_")
        || name.ends_with("_CX")
        || matches!(
            code,
            Code::Retnw | Code::Retnw_imm16 | Code::Jmp_rm16 | Code::Call_rm16
        );
    // PREFETCHW of a register: Intel does nothing, AMD raises #UD. MOVSXD to 16 bits: AMD reads 32.
    // FSTPNCE and the aliases of FSTP are in no manual.
    let vendor_specific = name.starts_with("Reservednop") && name.ends_with("_0F0D")
        || matches!(
            code,
            Code::Movsxd_r16_rm16 | Code::Fstpnce_sti | Code::Fstp_sti_DFD0 | Code::Fstp_sti_DFD8
        );
    let loads_segment =
        name.starts_with("Mov_Sreg") || name.starts_with("Pop") && name.ends_with("S");
    let far = name.starts_with("Call_ptr") || name.starts_with("Jmp_ptr");
    word_branch
        || vendor_specific
        || loads_segment
        || far
        || matches!(
            code.mnemonic(),
            Int | Int1
                | Int3
                | Into
                | Syscall
                | Sysenter
                | Sysret
                | Sysretq
                | Sysexit
                | Sysexitq
                | Iret
                | Iretd
                | Iretq
                | Retf
                | Cpuid
                | Rdtsc
                | Rdpmc
                | Sgdt
                | Sidt
                | Sldt
                | Str
                | Smsw
                | Lar
                | Lsl
                | Verr
                | Verw
                | Lfs
                | Lgs
                | Lds
                | Les
                | Arpl
                | Lss
                | Xbegin
                | Xabort
                | Xend
        )
        || matches!(
            code,
            Code::Call_m1616
                | Code::Call_m1632
                | Code::Call_m1664
                | Code::Jmp_m1616
                | Code::Jmp_m1632
                | Code::Jmp_m1664
        )
}
