//! A memory of instruction forms: most instructions differ from one that was decoded before in
//! displacement and immediate only.
//!
//! The bytes before those two (prefixes, opcode, ModRM, SIB) are an instruction's form. The same form
//! is the same handler with the same registers and flags, so only the two numbers are read anew. What
//! a form is does not rest on the few lines here that find its end: a form is kept only when the
//! decoder says that exactly these bytes come before the numbers. 64-bit code only.

use super::{
    cpu::Cpu,
    op::{Handler, Op},
};
use iced_x86::{ConstantOffsets, Instruction, OpKind};

/// Places by hash, each for one form: as many as the host's second cache holds beside other things.
const SLOTS: usize = 1 << 12;
/// More instructions than a guest is made of that only answers heartbeats: the table is not worth its
/// memory there.
const PASSED_OVER_AT_REST: u32 = 1 << 14;

/// What an instruction can be told from: it has at most 15 bytes.
pub type Window = [u8; 16];

/// A number in an instruction.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
struct Number {
    /// In bytes. 0: there is none.
    size: u8,
    signed: bool,
    /// Counted from the end of the instruction.
    relative: bool,
}

/// What instructions of one form have in common.
#[derive(Clone, Copy)]
#[repr(align(32))]
struct Form {
    run: Handler,
    key: Key,
    dst: u8,
    src: u8,
    base: u8,
    index: u8,
    scale: u8,
    segment: u8,
    length_and_flags: u8,
    /// The immediate, where it is not in the bytes: shifts by one.
    implied: i8,
    displacement: Number,
    immediate: Number,
    ends_block: bool,
}

/// The bytes of a form, at most six (one prefix, REX, two of opcode, ModRM, SIB), and in the last byte
/// how many.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Key(u64);

/// What a byte is at the start of an instruction.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Role {
    Prefix,
    Rex,
    TwoBytes,
    Opcode,
}

const ROLES: [Role; 256] = {
    let mut roles = [Role::Opcode; 256];
    let mut byte = 0;
    while byte < 256 {
        roles[byte] = match byte {
            0x64 | 0x65 | 0x66 | 0xF0 | 0xF2 | 0xF3 => Role::Prefix,
            0x40..=0x4F => Role::Rex,
            0x0F => Role::TwoBytes,
            _ => Role::Opcode,
        };
        byte += 1;
    }
    roles
};

/// Whether an opcode has no ModRM byte behind it: of one byte, of two. Where this is wrong, forms are
/// not kept.
const ALONE: [[bool; 256]; 2] = {
    let mut alone = [[false; 256]; 2];
    let mut byte = 0;
    while byte < 256 {
        alone[0][byte] = match byte {
            // Arithmetic on the accumulator; PUSH, POP; short jumps; XCHG; MOV; RET, CALL, JMP …
            0x00..=0x3F => byte & 7 == 4 || byte & 7 == 5,
            0x50..=0x5F | 0x68 | 0x6A | 0x70..=0x7F | 0x90..=0x99 | 0x9C | 0x9D => true,
            0xA4..=0xBF | 0xC3 | 0xC9 | 0xCC | 0xE8 | 0xE9 | 0xEB | 0xFA | 0xFB => true,
            _ => false,
        };
        // SYSCALL, UD2, RDTSC, CPUID; jumps; BSWAP.
        alone[1][byte] = matches!(byte, 0x05 | 0x0B | 0x31 | 0x80..=0x8F | 0xA2 | 0xC8..=0xCF);
        byte += 1;
    }
    alone
};

impl Key {
    fn of(window: &Window) -> Self {
        // Sums in place of branches, which nobody could predict.
        let word = u128::from_le_bytes(*window) as u64;
        let byte = |at: u32| (word >> (8 * at)) as u8;
        let role = |at| ROLES[usize::from(byte(at))];
        let mut at = u32::from(role(0) == Role::Prefix);
        at += u32::from(role(at) == Role::Rex);
        let two_bytes = u32::from(role(at) == Role::TwoBytes);
        at += two_bytes;
        let alone = ALONE[two_bytes as usize][usize::from(byte(at))];
        let mod_rm = byte(at + 1);
        let sib = (mod_rm < 0xC0) & (mod_rm & 7 == 4) & !alone;
        let length = at + 1 + u32::from(!alone) + u32::from(sib);
        Self(word & ((1 << (8 * length)) - 1) | u64::from(length) << 56)
    }

    fn length(self) -> u8 {
        (self.0 >> 56) as u8
    }

    fn slot(self) -> usize {
        const GOLDEN: u64 = 0x9E37_79B9_7F4A_7C15;
        (self.0.wrapping_mul(GOLDEN) >> (64 - SLOTS.trailing_zeros())) as usize
    }
}

impl Number {
    /// The number that begins at byte `at`, in an instruction that ends at offset `end` of its block.
    #[inline(always)]
    fn read(self, window: &Window, at: u8, end: usize) -> i64 {
        let raw = (u128::from_le_bytes(*window) >> (8 * (at & 15))) as u64;
        let unused = 64_u32.wrapping_sub(8 * u32::from(self.size)) & 63;
        let value = if self.signed {
            (raw << unused) as i64 >> unused
        } else {
            (raw << unused >> unused) as i64
        };
        let origin = if self.relative { end as i64 } else { 0 };
        value.wrapping_add(origin)
    }
}

impl Form {
    /// `None`: the instruction cannot be told by its form.
    fn of(
        window: &Window,
        instruction: &Instruction,
        constants: ConstantOffsets,
        op: &Op,
        ends_block: bool,
    ) -> Option<Self> {
        let key = Key::of(window);
        let length = usize::from(key.length());
        let behind = length + constants.displacement_size();
        if constants.has_displacement() && constants.displacement_offset() != length
            || constants.has_immediate() && constants.immediate_offset() != behind
            || constants.has_immediate2()
            || behind + constants.immediate_size() != usize::from(op.length())
            || op.length_and_flags & Op::ADDRESS32 != 0
        {
            return None;
        }
        let displacement = Number {
            size: constants.displacement_size() as u8,
            signed: true,
            relative: op.base == Cpu::RIP,
        };
        let form = Self {
            run: op.run,
            key,
            dst: op.dst,
            src: op.src,
            base: op.base,
            index: op.index,
            scale: op.scale,
            segment: op.segment,
            length_and_flags: op.length_and_flags,
            implied: op.immediate as i8,
            displacement,
            immediate: immediate(instruction, constants)?,
            ends_block,
        };
        // What would not come out the same is not kept.
        let again = form.instruction(window, usize::from(op.offset));
        let same = again.displacement == op.displacement && again.immediate == op.immediate;
        same.then_some(form)
    }

    /// The instruction of this form that `window` begins with, at `offset` of its block.
    #[inline(always)]
    fn instruction(&self, window: &Window, offset: usize) -> Op {
        let mut op = Op {
            run: self.run,
            displacement: 0,
            immediate: self.implied.into(),
            dst: self.dst,
            src: self.src,
            base: self.base,
            index: self.index,
            scale: self.scale,
            segment: self.segment,
            offset: offset as u8,
            length_and_flags: self.length_and_flags,
        };
        let end = offset + usize::from(op.length());
        let at = self.key.length();
        if self.displacement.size > 0 {
            op.displacement = self.displacement.read(window, at, end);
        }
        if self.immediate.size > 0 {
            let at = at.wrapping_add(self.displacement.size);
            op.immediate = self.immediate.read(window, at, end);
        }
        op
    }
}

/// The forms that were met last. Of two with the same hash the later one stays.
#[derive(Default)]
pub struct Forms {
    /// By hash. Empty until there is one.
    known: Vec<Option<Form>>,
    /// So many more forms are not kept.
    passed_over: u32,
}

impl Forms {
    /// None, and none to be kept for what a guest decodes that goes on resting.
    pub fn at_rest() -> Self {
        Self {
            known: Vec::new(),
            passed_over: PASSED_OVER_AT_REST,
        }
    }

    /// The instruction that `window` begins with, at `offset` of its block, and whether it ends the
    /// block.
    #[inline(always)]
    pub fn get(&self, window: &Window, offset: usize) -> Option<(Op, bool)> {
        let key = Key::of(window);
        let form = self.known.get(key.slot())?.as_ref()?;
        (form.key == key).then(|| (form.instruction(window, offset), form.ends_block))
    }

    /// Keeps the form of an instruction that was decoded to `op`, if it can be told by that.
    pub fn learn(
        &mut self,
        window: &Window,
        instruction: &Instruction,
        constants: ConstantOffsets,
        op: &Op,
        ends_block: bool,
    ) {
        let Some(form) = Form::of(window, instruction, constants, op, ends_block) else {
            return;
        };
        if self.passed_over > 0 {
            self.passed_over -= 1;
            return;
        }
        if self.known.is_empty() {
            self.known = vec![None; SLOTS];
        }
        if let Some(place) = self.known.get_mut(form.key.slot()) {
            *place = Some(form);
        }
    }
}

/// How the immediate or the target of a branch is read; `None` when that is not known here.
fn immediate(instruction: &Instruction, constants: ConstantOffsets) -> Option<Number> {
    if !constants.has_immediate() {
        return Some(Number::default());
    }
    let mut kinds = (0..instruction.op_count()).map(|operand| instruction.op_kind(operand));
    let (signed, relative) = kinds.find_map(|kind| match kind {
        OpKind::Immediate8 | OpKind::Immediate16 | OpKind::Immediate32 | OpKind::Immediate64 => {
            Some((false, false))
        }
        OpKind::Immediate8to16
        | OpKind::Immediate8to32
        | OpKind::Immediate8to64
        | OpKind::Immediate32to64 => Some((true, false)),
        OpKind::NearBranch64 => Some((true, true)),
        _ => None,
    })?;
    Some(Number {
        size: constants.immediate_size() as u8,
        signed,
        relative,
    })
}

// The table is for the host's caches.
const _: () = assert!(size_of::<Option<Form>>() == 32);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::processor::soft::decode::decode;

    /// What the first instruction of `bytes` comes to: its length and its op.
    fn first(bytes: &Window, forms: &mut Forms) -> Option<(usize, String)> {
        let mut ops = Vec::new();
        let length = decode(bytes, true, 1, &mut ops, forms)?;
        let op = ops[0];
        let operands = (op.dst, op.src, op.base, op.index, op.scale, op.segment);
        let place = (op.offset, op.length_and_flags);
        let run = op.run as usize;
        let op = format!(
            "{run:x} {operands:?} {place:?} {:x} {:x}",
            op.displacement, op.immediate
        );
        Some((length, op))
    }

    /// Numbers without end, always the same.
    struct Numbers(u64);

    impl Numbers {
        fn next(&mut self) -> u64 {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
        }

        fn one_of(&mut self, choices: &[u8]) -> u8 {
            choices[(self.next() >> 32) as usize % choices.len()]
        }
    }

    /// An instruction, or something like one: a few forms of each opcode, any numbers.
    fn some_bytes(numbers: &mut Numbers) -> Window {
        let mut bytes = vec![];
        for _ in 0..numbers.one_of(&[0, 0, 0, 0, 1, 1, 2]) {
            bytes.push(numbers.one_of(&[0x2E, 0x64, 0x65, 0x66, 0x67, 0xF0, 0xF2, 0xF3]));
        }
        if numbers.next() >> 63 == 0 {
            bytes.push(numbers.one_of(&[0x41, 0x44, 0x48, 0x4F]));
        }
        bytes.extend(match numbers.next() >> 61 {
            0 => &[0x0F, 0x38][..],
            1 => &[0x0F, 0x3A],
            2..=4 => &[0x0F],
            _ => &[],
        });
        bytes.push((numbers.next() >> 56) as u8);
        // Registers, each way to name memory, SIB without base and without index.
        bytes.push(numbers.one_of(&[
            0x03, 0x04, 0x05, 0x0C, 0x1D, 0x43, 0x4C, 0x83, 0x94, 0xC1, 0xE0, 0xF8,
        ]));
        bytes.push(numbers.one_of(&[0x05, 0x25, 0x64, 0x8B]));
        bytes.extend(numbers.next().to_le_bytes());
        bytes.extend(numbers.next().to_le_bytes());
        *bytes.first_chunk().expect("long enough")
    }

    #[test]
    fn a_form_that_is_known_comes_to_the_same_as_one_that_is_not() {
        let mut numbers = Numbers(1);
        let mut forms = Forms::default();
        let mut told = 0;
        for _ in 0..100_000 {
            let bytes = some_bytes(&mut numbers);
            told += u32::from(forms.get(&bytes, 0).is_some());
            assert_eq!(
                first(&bytes, &mut forms),
                first(&bytes, &mut Forms::default()),
                "{bytes:02x?}"
            );
        }
        assert!(told > 10_000, "{told}");
    }

    #[test]
    fn numbers_are_read_where_they_are_in_a_block() {
        let mut forms = Forms::default();
        // nop; mov [rip+4], dword -5; jne back to the start; shl eax, 1; ret
        let code = [
            0x90, 0xC7, 0x05, 4, 0, 0, 0, 0xFB, 0xFF, 0xFF, 0xFF, 0x75, 0xF3, 0xD1, 0xE0, 0xC3,
        ];
        let long = [&code[..], &[0xCC; 16]].concat();
        let mut numbers = || {
            let mut ops = Vec::new();
            decode(&long, true, 64, &mut ops, &mut forms).expect("whole");
            let numbers = ops.iter().map(|op| (op.displacement, op.immediate));
            numbers.collect::<Vec<_>>()
        };
        let met = numbers();
        assert_eq!(met[1..4], [(15, 0xFFFF_FFFB), (0, 0), (0, 1)]);
        assert_eq!(numbers(), met);
    }
}
