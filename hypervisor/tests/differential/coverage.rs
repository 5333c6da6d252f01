//! How much of what a Debian guest executes has been checked.
//!
//! `forms_kernel.txt` and `forms_user.txt` list the forms that a boot and a wide Python workload
//! were seen to execute, as `count mnemonic operands`, in a disassembler's notation.

use super::{
    forms::{Form, Prefix},
    sample::Sample,
    say,
};
use iced_x86::{Instruction, OpKind, Register};
use std::collections::BTreeSet;

const LISTS: [(&str, &str); 2] = [
    ("kernel boot", include_str!("forms_kernel.txt")),
    ("user programs", include_str!("forms_user.txt")),
];

/// Instructions that a user program cannot execute, or whose effect is not its own: the tests of
/// the engine and the boot of a kernel check them.
const NOT_HERE: &[&str] = &[
    "syscall", "sysretq", "cpuid", "rdtsc", "cli", "sti", "in", "out", "hlt", "wrmsr", "rdmsr",
    "invlpg", "iretq", "retfq", "swapgs", "lgdt", "lidt", "lldt", "ltr", "sgdt", "int3",
];

/// The notation of the lists for what was tested.
#[derive(Default)]
pub struct Coverage {
    tested: BTreeSet<String>,
}

impl Coverage {
    pub fn add(&mut self, form: &Form, sample: &Sample) {
        self.tested.insert(key(form, &sample.instruction));
    }

    /// Says how much of each list was tested; the forms that were not.
    pub fn report(&self) -> Vec<String> {
        let mut all_missing = Vec::new();
        for (name, list) in LISTS {
            let mut total = 0;
            let mut elsewhere = 0;
            let mut missing = Vec::new();
            for line in list.lines() {
                let Some((count, form)) = line.trim().split_once(' ') else {
                    continue;
                };
                total += 1;
                let wanted = normalize(form);
                if is_elsewhere(&wanted) {
                    elsewhere += 1;
                } else if !self.tested.contains(&wanted) {
                    missing.push(format!("{} ({count})", form.trim()));
                }
            }
            say(&format!(
                "coverage of {name}: {} of {total} forms; {elsewhere} more are privileged or of \
                 the system (not to be seen in user mode); {} not tested",
                total - elsewhere - missing.len(),
                missing.len()
            ));
            all_missing.append(&mut missing);
        }
        all_missing
    }
}

fn is_elsewhere(form: &str) -> bool {
    let mnemonic = form.split(' ').next().unwrap_or("");
    let operands = form.split_once(' ').map_or("", |f| f.1);
    NOT_HERE.contains(&mnemonic)
        || mnemonic == "mov"
            && (operands.contains("cr") || operands.contains("dr") || operands.starts_with("sreg"))
}

/// One notation for both: sizes of immediates do not matter, nor those of vector memory operands.
fn normalize(form: &str) -> String {
    let form = form.trim();
    let (mut prefix, mut rest) = ("", form);
    for candidate in ["lock ", "rep ", "repz ", "repnz "] {
        if let Some(stripped) = form.strip_prefix(candidate) {
            (prefix, rest) = (candidate, stripped);
        }
    }
    let (mnemonic, operands) = rest.split_once(' ').unwrap_or((rest, ""));
    let mnemonic = match mnemonic {
        "movabs" => "mov",
        "repz ret" | "ret" => "ret",
        other => other,
    };
    // The prefix of REPZ RET, a branch-prediction idiom, means nothing.
    let prefix = if mnemonic == "ret" { "" } else { prefix };
    let compare = [
        "cmpeq", "cmplt", "cmple", "cmpunord", "cmpneq", "cmpnlt", "cmpnle", "cmpord",
    ]
    .iter()
    .rev()
    .find_map(|name| mnemonic.strip_prefix(name))
    .filter(|suffix| matches!(*suffix, "ss" | "sd" | "ps" | "pd"));
    let mnemonic = compare.map_or(mnemonic.to_owned(), |suffix| format!("cmp{suffix}"));
    let first = mnemonic.as_str();
    let vector = operands.contains("xmm") || operands.contains("mm,") || first.starts_with('f');
    let sizeless = vector
        || [
            "nop", "prefetch", "ldmxcsr", "stmxcsr", "lea", "call", "jmp", "movs", "stos", "lods",
            "cmps", "scas",
        ]
        .iter()
        .any(|name| first.starts_with(name));
    let mut parts: Vec<String> = Vec::new();
    for operand in operands.split(',').map(str::trim).filter(|o| !o.is_empty()) {
        let digits = operand.trim_start_matches(|c: char| c.is_ascii_alphabetic());
        parts.push(
            match operand.trim_end_matches(|c: char| c.is_ascii_digit()) {
                "i" => "i".to_owned(),
                "m" if sizeless => "m".to_owned(),
                "st" => "st".to_owned(),
                "sreg" => "sreg".to_owned(),
                kind => format!("{kind}{digits}"),
            },
        );
    }
    let implied = ["cmpsd", "cmpsb"].contains(&first) && compare.is_some();
    if implied && parts.len() > 2 {
        parts.truncate(2);
    }
    // String instructions: the mnemonic says it all. FPU: ST(i) may be left out.
    if [
        "movsb", "movsw", "movsq", "stosb", "stosw", "stosd", "stosq",
    ]
    .contains(&first)
        || first == "movsd" && !vector
    {
        parts.clear();
    }
    if first.starts_with('f') {
        parts.retain(|part| part != "st");
    }
    format!("{prefix}{mnemonic} {}", parts.join(","))
        .trim()
        .to_owned()
}

/// The lists' notation for an instruction.
fn key(form: &Form, instruction: &Instruction) -> String {
    let prefix = match form.prefix {
        Prefix::None => "",
        Prefix::Lock => "lock ",
        Prefix::Rep => "rep ",
        Prefix::Repne => "repnz ",
    };
    let mnemonic = format!("{:?}", instruction.mnemonic()).to_lowercase();
    let mut operands: Vec<String> = (0..instruction.op_count())
        .map(|i| match instruction.op_kind(i) {
            OpKind::Register => register(instruction.op_register(i)),
            OpKind::Immediate8
            | OpKind::Immediate8_2nd
            | OpKind::Immediate16
            | OpKind::Immediate32
            | OpKind::Immediate64
            | OpKind::Immediate8to16
            | OpKind::Immediate8to32
            | OpKind::Immediate8to64
            | OpKind::Immediate32to64
            | OpKind::NearBranch16
            | OpKind::NearBranch32
            | OpKind::NearBranch64 => "i".to_owned(),
            _ => format!("m{}", instruction.memory_size().size() * 8),
        })
        .collect();
    // The lists leave the compare predicate in the mnemonic.
    if mnemonic.starts_with("cmp") && operands.len() == 3 {
        operands.pop();
    }
    normalize(&format!("{prefix}{mnemonic} {}", operands.join(",")))
}

fn register(register: Register) -> String {
    if register.is_gpr() {
        format!("r{}", register.size() * 8)
    } else if register.is_xmm() {
        "xmm".to_owned()
    } else if register.is_mm() {
        "mm".to_owned()
    } else if register.is_segment_register() {
        "sreg".to_owned()
    } else {
        "st".to_owned()
    }
}
