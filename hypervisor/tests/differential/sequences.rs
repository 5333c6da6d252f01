//! Sequences of register instructions: flags that one instruction left (the software processor
//! keeps them in a form of its own) are what the next one finds.

use super::{
    compare::{self, COMPARED},
    forms::{self, Form, Mode, Prefix},
    layout::Registers,
    native::Native,
    random::Random,
    sample,
    soft::Soft,
};
use iced_x86::{FlowControl, Instruction, Mnemonic, OpKind};

/// Instructions in one sequence.
const LENGTH: usize = 6;
/// Bytes that fit between the instruction's place and that of the taken branch.
const ROOM: usize = 44;

/// Integer instructions on registers that leave nothing but flags undefined.
pub fn candidates() -> Vec<Form> {
    let forms = forms::all(Mode::Long).into_iter();
    forms
        .filter(|form| !form.memory && form.prefix == Prefix::None && is_candidate(form))
        .collect()
}

fn is_candidate(form: &Form) -> bool {
    let info = form.code.op_code();
    let code = form.code;
    let vector = code.cpuid_features().iter().any(|feature| {
        let name = format!("{feature:?}");
        name.contains("SSE")
            || [
                "FPU",
                "FPU287",
                "FPU387",
                "MMX",
                "AES",
                "SHA",
                "FXSR",
                "PCLMULQDQ",
            ]
            .contains(&name.as_str())
    });
    let sixteen_bits = format!("{code:?}").contains("_r16_");
    let undefined_result = match code.mnemonic() {
        Mnemonic::Shld | Mnemonic::Shrd => sixteen_bits,
        Mnemonic::Bswap => format!("{code:?}") == "Bswap_r16",
        // Others on the host.
        Mnemonic::Tzcnt | Mnemonic::Lzcnt => true,
        _ => false,
    };
    let uses_memory = code.is_string_instruction()
        || matches!(
            code.mnemonic(),
            Mnemonic::Xlatb
                | Mnemonic::Enter
                | Mnemonic::Leave
                | Mnemonic::Ud0
                | Mnemonic::Ud1
                | Mnemonic::Ud2
        );
    code.flow_control() == FlowControl::Next
        && !code.is_stack_instruction()
        && !vector
        && !undefined_result
        && !uses_memory
        && !info.is_privileged()
        && !info.must_be_cpl0()
        && !info.is_input_output()
}

/// Flags that are undefined after `instruction` when `before` were undefined; `None` when it reads
/// one of those.
fn undefined_after(instruction: &Instruction, before: u64) -> Option<u64> {
    if compare::from_iced(instruction.rflags_read()) & before != 0 {
        return None;
    }
    let last = instruction.op_count().checked_sub(1);
    let shifts = matches!(
        instruction.mnemonic(),
        Mnemonic::Shl
            | Mnemonic::Sal
            | Mnemonic::Shr
            | Mnemonic::Sar
            | Mnemonic::Rol
            | Mnemonic::Ror
            | Mnemonic::Rcl
            | Mnemonic::Rcr
            | Mnemonic::Shld
            | Mnemonic::Shrd
    );
    let wide = instruction.op_register(0).size() >= 4;
    let by_register = last.is_some_and(|i| instruction.op_kind(i) == OpKind::Register);
    if shifts && (by_register || !wide) {
        // The count may be 0, 1, more, or more than there are bits.
        return Some(before | compare::SHIFT_UNDEFINED);
    }
    let undefined = compare::from_iced(instruction.rflags_undefined());
    let defined = compare::from_iced(
        instruction.rflags_written() | instruction.rflags_cleared() | instruction.rflags_set(),
    );
    Some((before & !defined) | undefined)
}

/// Runs one random sequence on both processors. What differs, or `None` when nothing does.
pub fn run(
    native: &mut Native,
    soft: &mut Soft,
    candidates: &[Form],
    random: &mut Random,
) -> Option<String> {
    let mut bytes = Vec::new();
    let mut text = Vec::new();
    // For each instruction, the flags that are undefined before it; then those at the end.
    let mut undefined = vec![0];
    let mut registers = Registers::initial();
    let mut memory = None;
    while text.len() < LENGTH {
        let form = random.pick(candidates);
        let Some(sample) = sample::make(&form, random) else {
            continue;
        };
        let before = undefined.last().copied().unwrap_or(0);
        let Some(after) = undefined_after(&sample.instruction, before) else {
            continue;
        };
        if bytes.len() + sample.bytes.len() > ROOM {
            break;
        }
        bytes.extend(&sample.bytes);
        text.push(format!("{:?}", sample.instruction.code()));
        undefined.push(after);
        registers = sample.registers;
        memory = Some(sample.memory);
    }
    let memory = memory?;
    let host = native.run(Mode::Long, &bytes, &registers, &memory);
    let (ours, executed) = soft.run_block(&bytes, &registers, &memory)?;
    let open = undefined.get(executed).copied().unwrap_or(0);
    let same = host.fault == ours.fault
        && host.registers.rip == ours.registers.rip
        && host.registers.gpr == ours.registers.gpr
        && (host.registers.flags ^ ours.registers.flags) & COMPARED & !open == 0;
    (!same).then(|| {
        format!(
            "{}  ({bytes:02x?})\n  in:   gpr {:x?} flags {:#x}\n  host: gpr {:x?} flags {:#x} rip {:#x} {:?}\n  soft: gpr {:x?} flags {:#x} rip {:#x} {:?}\n  undefined flags {open:#x}",
            text.join("; "),
            registers.gpr, registers.flags,
            host.registers.gpr, host.registers.flags & COMPARED, host.registers.rip, host.fault,
            ours.registers.gpr, ours.registers.flags & COMPARED, ours.registers.rip, ours.fault,
        )
    })
}
