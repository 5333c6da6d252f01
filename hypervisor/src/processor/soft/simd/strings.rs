//! SSE4.2 string comparison: PCMPESTRI, PCMPESTRM, PCMPISTRI, PCMPISTRM.

use super::{operands::*, vector::Vector};
use crate::processor::soft::{
    cpu::{Cpu, Exit},
    flags::{CF, Flags, OF, SF, ZF},
    op::{Handler, Op},
};
use iced_x86::{Code, Instruction};

pub fn select(i: &Instruction) -> Option<Handler> {
    let memory = in_memory(i);
    use Code::*;
    Some(match i.code() {
        Pcmpistri_xmm_xmmm128_imm8 if memory => |cpu, op| index(cpu, op, implicit, true),
        Pcmpistri_xmm_xmmm128_imm8 => |cpu, op| index(cpu, op, implicit, false),
        Pcmpistrm_xmm_xmmm128_imm8 if memory => |cpu, op| mask(cpu, op, implicit, true),
        Pcmpistrm_xmm_xmmm128_imm8 => |cpu, op| mask(cpu, op, implicit, false),
        Pcmpestri_xmm_xmmm128_imm8 if memory => |cpu, op| index(cpu, op, explicit::<false>, true),
        Pcmpestri_xmm_xmmm128_imm8 => |cpu, op| index(cpu, op, explicit::<false>, false),
        Pcmpestri64_xmm_xmmm128_imm8 if memory => |cpu, op| index(cpu, op, explicit::<true>, true),
        Pcmpestri64_xmm_xmmm128_imm8 => |cpu, op| index(cpu, op, explicit::<true>, false),
        Pcmpestrm_xmm_xmmm128_imm8 if memory => |cpu, op| mask(cpu, op, explicit::<false>, true),
        Pcmpestrm_xmm_xmmm128_imm8 => |cpu, op| mask(cpu, op, explicit::<false>, false),
        Pcmpestrm64_xmm_xmmm128_imm8 if memory => |cpu, op| mask(cpu, op, explicit::<true>, true),
        Pcmpestrm64_xmm_xmmm128_imm8 => |cpu, op| mask(cpu, op, explicit::<true>, false),
        _ => return None,
    })
}

/// The control byte: bit 0 words (else bytes), bit 1 signed, bits 2-3 aggregation, bits 4-5
/// polarity, bit 6 most significant index or expanded mask.
#[derive(Clone, Copy)]
struct Control(u8);

impl Control {
    fn words(self) -> bool {
        self.0 & 1 != 0
    }

    fn count(self) -> usize {
        if self.words() { 8 } else { 16 }
    }

    /// Elements widened so that comparisons are right for signed and unsigned ones.
    fn elements(self, vector: Vector) -> [i32; 16] {
        let mut elements = [0; 16];
        match self.0 & 3 {
            0 => fill(&mut elements, &vector.u8s()),
            1 => fill(&mut elements, &vector.u16s()),
            2 => fill(&mut elements, &vector.i8s()),
            _ => fill(&mut elements, &vector.i16s()),
        }
        elements
    }
}

fn fill<T: Copy + Into<i32>>(to: &mut [i32; 16], from: &[T]) {
    for (to, from) in to.iter_mut().zip(from) {
        *to = (*from).into();
    }
}

/// Lengths of both strings, in elements.
type Lengths = fn(&Cpu, Control, &[i32; 16], &[i32; 16]) -> (usize, usize);

/// Up to the first zero element.
fn implicit(_: &Cpu, control: Control, a: &[i32; 16], b: &[i32; 16]) -> (usize, usize) {
    let length = |elements: &[i32; 16]| {
        let valid = elements.iter().take(control.count());
        valid.take_while(|element| **element != 0).count()
    };
    (length(a), length(b))
}

/// Magnitudes of EAX and EDX (or RAX and RDX), saturated.
fn explicit<const WIDE: bool>(
    cpu: &Cpu,
    control: Control,
    _: &[i32; 16],
    _: &[i32; 16],
) -> (usize, usize) {
    let length = |register: u8| {
        let value = cpu.reg(register);
        let magnitude = if WIDE {
            (value as i64).unsigned_abs()
        } else {
            (value as i32).unsigned_abs().into()
        };
        magnitude.min(control.count() as u64) as usize
    };
    (length(Cpu::RAX), length(Cpu::RDX))
}

/// Compares and sets the flags. Returns the result bits.
fn compare(cpu: &mut Cpu, op: &Op, lengths: Lengths, memory: bool) -> Result<u16, Exit> {
    cpu.require_sse()?;
    let source = if memory {
        load_unaligned(cpu, op)?
    } else {
        cpu.xmm[src(op)]
    };
    let control = Control(op.immediate as u8);
    let count = control.count();
    let (a, b) = (control.elements(cpu.xmm[dst(op)]), control.elements(source));
    let (a_length, b_length) = lengths(cpu, control, &a, &b);
    let matches = aggregate(control, &a, a_length, &b, b_length);
    let every = (1_u32 << count) - 1;
    let result = match control.0 >> 4 & 3 {
        1 => !matches & every,
        // Masked negative: only elements inside the second string.
        3 => matches ^ ((1 << b_length) - 1),
        _ => matches,
    };
    let mut flags = 0;
    for (set, flag) in [
        (result != 0, CF),
        (b_length < count, ZF),
        (a_length < count, SF),
        (result & 1 != 0, OF),
    ] {
        if set {
            flags |= flag;
        }
    }
    cpu.flags = Flags::from_bits(flags);
    Ok(result as u16)
}

fn aggregate(
    control: Control,
    a: &[i32; 16],
    a_length: usize,
    b: &[i32; 16],
    b_length: usize,
) -> u32 {
    let a_valid = a.get(..a_length).unwrap_or(a);
    let b_valid = b.get(..b_length).unwrap_or(b);
    let bit = |j: usize, holds: bool| u32::from(holds) << j;
    match control.0 >> 2 & 3 {
        // Equal any: which elements of b are in the set a.
        0 => b_valid
            .iter()
            .enumerate()
            .fold(0, |bits, (j, b)| bits | bit(j, a_valid.contains(b))),
        // Ranges: a holds pairs of bounds.
        1 => b_valid.iter().enumerate().fold(0, |bits, (j, b)| {
            let inside = a_valid
                .chunks_exact(2)
                .any(|bounds| (bounds[0]..=bounds[1]).contains(b));
            bits | bit(j, inside)
        }),
        // Equal each: both ended counts as equal, one ended as different.
        2 => (0..control.count()).fold(0, |bits, j| {
            let equal = match (j < a_length, j < b_length) {
                (true, true) => a[j] == b[j],
                (valid_a, valid_b) => valid_a == valid_b,
            };
            bits | bit(j, equal)
        }),
        // Equal ordered: where a begins in b; what runs past the register may still match.
        _ => (0..control.count()).fold(0, |bits, j| {
            let begins = a_valid
                .iter()
                .take(control.count() - j)
                .enumerate()
                .all(|(i, a)| j + i < b_length && *a == b[j + i]);
            bits | bit(j, begins)
        }),
    }
}

#[inline(always)]
fn index(cpu: &mut Cpu, op: &Op, lengths: Lengths, memory: bool) -> Result<(), Exit> {
    let bits = compare(cpu, op, lengths, memory)?;
    let control = Control(op.immediate as u8);
    let index = if bits == 0 {
        control.count() as u32
    } else if control.0 & 0x40 != 0 {
        15 - bits.leading_zeros()
    } else {
        bits.trailing_zeros()
    };
    cpu.set_reg(Cpu::RCX, index.into());
    Ok(())
}

#[inline(always)]
fn mask(cpu: &mut Cpu, op: &Op, lengths: Lengths, memory: bool) -> Result<(), Exit> {
    let bits = compare(cpu, op, lengths, memory)?;
    let control = Control(op.immediate as u8);
    let selected = |i: usize| bits >> i & 1 != 0;
    cpu.xmm[0] = if control.0 & 0x40 == 0 {
        u128::from(bits).into()
    } else if control.words() {
        std::array::from_fn::<u16, 8, _>(|i| if selected(i) { !0 } else { 0 }).into()
    } else {
        std::array::from_fn::<u8, 16, _>(|i| if selected(i) { !0 } else { 0 }).into()
    };
    Ok(())
}
