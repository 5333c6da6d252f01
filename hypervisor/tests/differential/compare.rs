//! What must be equal after one instruction, and what the manual leaves undefined.

use super::{
    layout::{Fault, Outcome, SCRATCH, fx},
    sample::Sample,
};
use iced_x86::{Mnemonic, OpKind, RflagsBits};

const CF: u64 = 1 << 0;
const PF: u64 = 1 << 2;
const AF: u64 = 1 << 4;
const ZF: u64 = 1 << 6;
const SF: u64 = 1 << 7;
const DF: u64 = 1 << 10;
const OF: u64 = 1 << 11;
const NT: u64 = 1 << 14;
const AC: u64 = 1 << 18;
const ID: u64 = 1 << 21;
/// Flags that are compared.
pub const COMPARED: u64 = CF | PF | AF | ZF | SF | DF | OF | NT | AC | ID;

/// What a shift or rotate by an unknown count may leave undefined.
pub const SHIFT_UNDEFINED: u64 = OF | AF | CF;

/// What the manual leaves undefined after an instruction.
struct Undefined {
    flags: u64,
    /// The destination, too.
    result: bool,
    /// Bits of the x87 status word.
    status: u16,
}

/// Differences between what the host and what the software processor did; empty when they agree.
pub fn differences(sample: &Sample, native: &Outcome, soft: &Outcome) -> Vec<String> {
    let mut found = Vec::new();
    if is_masked_move(sample) && native.fault.is_some() != soft.fault.is_some() {
        // Whether bytes that are not stored can fault is left to the implementation.
        return found;
    }
    if comparable_fault(sample, native) != comparable_fault(sample, soft) {
        found.push(format!(
            "exception: host {:x?}, soft {:x?}",
            native.fault, soft.fault
        ));
    }
    let undefined = if native.fault.is_some() {
        Undefined {
            flags: 0,
            result: false,
            status: 0,
        }
    } else {
        undefined(sample, native)
    };
    let pops_all = matches!(
        sample.instruction.mnemonic(),
        Mnemonic::Popa | Mnemonic::Popad
    );
    // Registers that were popped before a fault will be popped again.
    if undefined.result || (pops_all && native.fault.is_some()) {
        return found;
    }
    let (n, s) = (&native.registers, &soft.registers);
    if native.fault.is_none() && n.rip != s.rip {
        found.push(format!("RIP: host {:#x}, soft {:#x}", n.rip, s.rip));
    }
    let names = [
        "RAX", "RCX", "RDX", "RBX", "RSP", "RBP", "RSI", "RDI", "R8", "R9", "R10", "R11", "R12",
        "R13", "R14", "R15",
    ];
    for (i, name) in names.into_iter().enumerate() {
        if n.gpr[i] != s.gpr[i] {
            found.push(format!(
                "{name}: host {:#x}, soft {:#x}",
                n.gpr[i], s.gpr[i]
            ));
        }
    }
    let flags = COMPARED & !undefined.flags;
    if (n.flags ^ s.flags) & flags != 0 {
        found.push(format!(
            "flags: host {}, soft {}",
            flag_names(n.flags & flags),
            flag_names(s.flags & flags)
        ));
    }
    compare_memory(sample, native, soft, &mut found);
    compare_fx(sample, native, soft, &undefined, &mut found);
    found
}

/// Instructions that touch memory piece by piece: which byte faults first is not said.
fn comparable_fault(sample: &Sample, outcome: &Outcome) -> Option<Fault> {
    let large = super::sample::operand_size(&sample.instruction) > 16;
    let piecewise =
        outcome.fault.is_some_and(|f| f.vector == 14) && (large || is_masked_move(sample));
    outcome.fault.map(|fault| Fault {
        address: if piecewise { 0 } else { fault.address },
        error: if piecewise { 0 } else { fault.error },
        // Addresses relative to RSP and RBP raise #SS where the software processor raises #GP: a
        // user program gets SIGBUS or SIGSEGV.
        vector: if fault.vector == 12 { 13 } else { fault.vector },
    })
}

fn is_masked_move(sample: &Sample) -> bool {
    matches!(
        sample.instruction.mnemonic(),
        Mnemonic::Maskmovdqu | Mnemonic::Maskmovq
    )
}

fn flag_names(flags: u64) -> String {
    let names = [
        (CF, "CF"),
        (PF, "PF"),
        (AF, "AF"),
        (ZF, "ZF"),
        (SF, "SF"),
        (DF, "DF"),
        (OF, "OF"),
        (NT, "NT"),
        (AC, "AC"),
        (ID, "ID"),
    ];
    let set: Vec<_> = names
        .iter()
        .filter(|(bit, _)| flags & bit != 0)
        .map(|n| n.1)
        .collect();
    format!("[{}]", set.join(" "))
}

/// Which bytes of memory are not compared: what the instruction or the pointers of the x87 unit
/// (whose contents differ by maker and generation) leave open in an image.
fn is_open(sample: &Sample, offset_in_operand: u64) -> bool {
    match sample.instruction.mnemonic() {
        Mnemonic::Fxsave | Mnemonic::Fxsave64 => {
            matches!(offset_in_operand, 6..24 | 28..32 | 416..512)
        }
        Mnemonic::Fnstenv | Mnemonic::Fnsave => offset_in_operand < 28,
        _ => false,
    }
}

fn compare_memory(sample: &Sample, native: &Outcome, soft: &Outcome, found: &mut Vec<String>) {
    if native.memory == soft.memory {
        return;
    }
    let operand = super::sample::operand_address(sample).unwrap_or(0);
    let pairs = native.memory.iter().zip(soft.memory.iter()).enumerate();
    let different: Vec<_> = pairs
        .filter(|(i, (n, s))| {
            let address = SCRATCH + *i as u64;
            n != s && !is_open(sample, address.wrapping_sub(operand))
        })
        .collect();
    if let Some((first, _)) = different.first() {
        let end = (first + 16).min(native.memory.len());
        found.push(format!(
            "memory: {} bytes differ, first at {:#x}: host {:02x?}, soft {:02x?}",
            different.len(),
            SCRATCH + *first as u64,
            &native.memory[*first..end],
            &soft.memory[*first..end],
        ));
    }
}

fn compare_fx(
    sample: &Sample,
    native: &Outcome,
    soft: &Outcome,
    undefined: &Undefined,
    found: &mut Vec<String>,
) {
    let (n, s) = (&native.registers.fx, &soft.registers.fx);
    for i in 0..16 {
        let (a, b) = (n.xmm(i), s.xmm(i));
        if a != b && !(is_approximate(sample) && close_singles(a, b)) {
            found.push(format!("XMM{i}: host {a:#034x}, soft {b:#034x}"));
        }
    }
    if n.mxcsr() != s.mxcsr() {
        found.push(format!(
            "MXCSR: host {:#x}, soft {:#x}",
            n.mxcsr(),
            s.mxcsr()
        ));
    }
    if native.fault.is_some() && uses_mmx(sample) {
        // Whether the unit has switched to MMX before the fault differs by maker.
        return;
    }
    for (name, offset, open) in [
        ("FCW", fx::FCW, 0),
        ("FSW", fx::FSW, undefined.status),
        ("FTW", fx::FTW, 0xFF00),
    ] {
        if (n.u16(offset) ^ s.u16(offset)) & !open != 0 {
            found.push(format!(
                "{name}: host {:#06x}, soft {:#06x}",
                n.u16(offset),
                s.u16(offset)
            ));
        }
    }
    for i in 0..8 {
        let same =
            n.st(i) == s.st(i) || is_transcendental(sample) && close_extended(n.st(i), s.st(i));
        if !same {
            found.push(format!(
                "ST{i}: host {:02x?}, soft {:02x?}",
                n.st(i),
                s.st(i)
            ));
        }
    }
}

fn uses_mmx(sample: &Sample) -> bool {
    let instruction = &sample.instruction;
    (0..instruction.op_count()).any(|i| instruction.op_register(i).is_mm())
}

/// RCP and RSQRT approximate with a relative error of 1.5 * 2^-12; makers differ.
fn is_approximate(sample: &Sample) -> bool {
    matches!(
        sample.instruction.mnemonic(),
        Mnemonic::Rcpps | Mnemonic::Rcpss | Mnemonic::Rsqrtps | Mnemonic::Rsqrtss
    )
}

fn close_singles(a: u128, b: u128) -> bool {
    (0..4).all(|lane| {
        let (a, b) = ((a >> (32 * lane)) as u32, (b >> (32 * lane)) as u32);
        let (x, y) = (f32::from_bits(a), f32::from_bits(b));
        a == b || ((x - y) / x).abs() <= 3.0 * 2f32.powi(-12)
    })
}

/// Sine and its like may err in the last place; makers differ.
fn is_transcendental(sample: &Sample) -> bool {
    matches!(
        sample.instruction.mnemonic(),
        Mnemonic::Fsin
            | Mnemonic::Fcos
            | Mnemonic::Fsincos
            | Mnemonic::Fptan
            | Mnemonic::Fpatan
            | Mnemonic::F2xm1
            | Mnemonic::Fyl2x
            | Mnemonic::Fyl2xp1
    )
}

/// Within some units in the last place of a double: what programs rely on.
fn close_extended(a: &[u8], b: &[u8]) -> bool {
    let position = |bytes| {
        let (exponent, significand) = extended_parts(bytes);
        let binade = u128::from(exponent & 0x7FFF).saturating_sub(1);
        (exponent & 0x8000, (binade << 63) + u128::from(significand))
    };
    let ((sign_a, a), (sign_b, b)) = (position(a), position(b));
    sign_a == sign_b && a.abs_diff(b) <= 1 << 12
}

/// The manual's words on each instruction; iced-x86 carries the table for most.
fn undefined(sample: &Sample, native: &Outcome) -> Undefined {
    let instruction = &sample.instruction;
    let mut undefined = Undefined {
        flags: from_iced(instruction.rflags_undefined()),
        result: false,
        status: undefined_status(instruction.mnemonic(), native.registers.fx.u16(fx::FSW)),
    };
    match instruction.mnemonic() {
        Mnemonic::Shl | Mnemonic::Sal | Mnemonic::Shr | Mnemonic::Sar => {
            let (count, size) = shift_count(sample);
            undefined.flags = match count {
                0 => 0,
                1 => AF,
                _ => AF | OF,
            };
            if count >= size && instruction.mnemonic() != Mnemonic::Sar {
                undefined.flags |= CF;
            }
        }
        Mnemonic::Rol | Mnemonic::Ror | Mnemonic::Rcl | Mnemonic::Rcr => {
            let (count, _) = shift_count(sample);
            undefined.flags = if count > 1 { OF } else { 0 };
        }
        Mnemonic::Shld | Mnemonic::Shrd => {
            let (count, size) = shift_count(sample);
            undefined.flags = match count {
                0 => 0,
                1 => AF,
                _ => AF | OF,
            };
            undefined.result = count > size;
        }
        // They run as BSF and BSR.
        Mnemonic::Tzcnt | Mnemonic::Lzcnt => undefined.flags = CF | OF | SF | AF | PF,
        // Whether flags are set before an unmasked exception differs by maker.
        Mnemonic::Fcomi | Mnemonic::Fcomip | Mnemonic::Fucomi | Mnemonic::Fucomip => {
            if native.registers.fx.u16(fx::FSW) & UNMASKED != 0 {
                undefined.flags = ZF | PF | CF | OF | SF | AF;
            }
        }
        // Likewise whether a denormal is loaded.
        Mnemonic::Fld => undefined.result = native.registers.fx.u16(fx::FSW) & UNMASKED != 0,
        _ => undefined.result = out_of_domain(sample),
    }
    undefined
}

/// The effective count of a shift or rotate and the size of its operand, in bits.
fn shift_count(sample: &Sample) -> (u32, u32) {
    let instruction = &sample.instruction;
    let last = instruction.op_count() - 1;
    let count = match instruction.op_kind(last) {
        OpKind::Register => sample.registers.gpr[1] as u32,
        _ => instruction.immediate(last) as u32,
    };
    let bytes = match instruction.op_kind(0) {
        OpKind::Register => instruction.op_register(0).size(),
        _ => instruction.memory_size().size(),
    };
    let mask = if bytes == 8 { 63 } else { 31 };
    (count & mask, bytes as u32 * 8)
}

/// iced-x86's flag bits as those of RFLAGS.
pub fn from_iced(bits: u32) -> u64 {
    [
        (RflagsBits::OF, OF),
        (RflagsBits::SF, SF),
        (RflagsBits::ZF, ZF),
        (RflagsBits::AF, AF),
        (RflagsBits::CF, CF),
        (RflagsBits::PF, PF),
    ]
    .into_iter()
    .filter(|(theirs, _)| bits & theirs != 0)
    .fold(0, |flags, (_, ours)| flags | ours)
}

const C0: u16 = 1 << 8;
const C1: u16 = 1 << 9;
const C2: u16 = 1 << 10;
const C3: u16 = 1 << 14;
/// Summary: an unmasked exception is pending.
const UNMASKED: u16 = 1 << 7;
const BUSY: u16 = 1 << 15;

/// Bits of the status word that an x87 instruction leaves undefined (manual, volume 1, table 8-1):
/// condition codes, and for approximations whether they were exact.
fn undefined_status(mnemonic: Mnemonic, after: u16) -> u16 {
    use Mnemonic::*;
    const INVALID: u16 = 1;
    const UNDERFLOW: u16 = 1 << 4;
    const INEXACT: u16 = 1 << 5;
    // An approximation may be exact for one maker and not for another.
    const APPROXIMATE: u16 = C0 | C1 | C3 | UNDERFLOW | INEXACT | UNMASKED | BUSY;
    // Whether codes are set before an unmasked exception differs by maker.
    let unmasked = if after & UNMASKED != 0 {
        C0 | C1 | C2 | C3
    } else {
        0
    };
    unmasked
        | match mnemonic {
            // These say something in all four, or touch none.
            Fxam | Fldenv | Frstor | Fxrstor | Fxrstor64 | Fninit | Fxsave | Fxsave64 | Fnsave
            | Fnstenv | Fnstsw | Emms | Fcom | Fcomp | Fcompp | Ficom | Ficomp | Fucom | Fucomp
            | Fucompp | Ftst | Fprem | Fprem1 => 0,
            // C1 speaks of a stack fault only, and stays or is cleared otherwise.
            Fcomi | Fcomip | Fucomi | Fucomip => C1,
            Fcmovb | Fcmove | Fcmovbe | Fcmovu | Fcmovnb | Fcmovne | Fcmovnbe | Fcmovnu => {
                C0 | C1 | C2 | C3
            }
            Fsin | Fcos | Fsincos | Fptan => {
                let reduced = if after & INVALID != 0 { C2 } else { 0 };
                APPROXIMATE | reduced
            }
            F2xm1 | Fyl2x | Fyl2xp1 | Fpatan => APPROXIMATE | C2,
            Fnclex | Fldcw | Fnstcw | Ffree | Ffreep | Fnop | Wait => C0 | C1 | C2 | C3,
            _ => C0 | C2 | C3,
        }
}

/// Whether ST(0) is outside of what an approximation is defined for.
fn out_of_domain(sample: &Sample) -> bool {
    let st0 = to_f64(sample.registers.fx.st(0));
    match sample.instruction.mnemonic() {
        Mnemonic::F2xm1 => st0.abs() > 1.0,
        Mnemonic::Fyl2xp1 => st0.abs() >= 1.0 - std::f64::consts::FRAC_1_SQRT_2,
        _ => false,
    }
}

/// The value of a finite extended number, about.
fn to_f64(bytes: &[u8]) -> f64 {
    let (exponent, significand) = extended_parts(bytes);
    let magnitude = significand as f64 * 2f64.powi(i32::from(exponent & 0x7FFF) - 0x3FFF - 63);
    if exponent & 0x8000 != 0 {
        -magnitude
    } else {
        magnitude
    }
}

/// Sign and exponent, and significand.
fn extended_parts(bytes: &[u8]) -> (u16, u64) {
    let mut significand = [0; 8];
    significand.copy_from_slice(&bytes[..8]);
    (
        u16::from_le_bytes([bytes[8], bytes[9]]),
        u64::from_le_bytes(significand),
    )
}
