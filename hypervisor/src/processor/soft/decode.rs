//! From bytes to blocks: iced-x86 decodes, the instruction groups choose handlers, operands are
//! lowered the same way for all of them. What [`forms`](super::forms) has met before skips that.
//!
//! A block is a trace: it goes on past conditional branches (not taken) and ends where control
//! always leaves, at the end of the page, or when it is full.

use super::{
    cpu::{Cpu, Exception, Exit},
    forms::{Forms, Window},
    integer::{self, shape::is_immediate},
    op::{Handler, Op},
    simd, system, x87,
};
use crate::flows::Flow;
use iced_x86::{
    Code, Decoder, DecoderError, DecoderOptions, FlowControl, Instruction, OpKind, Register,
};

/// An `Op` holds its offset in the block in one byte.
const MAX_BYTES: usize = 255;
const MAX_OPS: usize = 64;
pub const MAX_INSTRUCTION: usize = Flow::InstructionDecode.max_bytes() as usize;

/// Decodes a block of at most `limit` instructions from `bytes`: adds them to `ops`, the end of the
/// block behind them, and answers how many bytes they cover. `None`, and nothing added: the first
/// instruction continues beyond the bytes.
pub fn decode(
    bytes: &[u8],
    long_code: bool,
    limit: usize,
    ops: &mut Vec<Op>,
    forms: &mut Forms,
) -> Option<usize> {
    let bytes = bytes.get(..MAX_BYTES).unwrap_or(bytes);
    let bitness = if long_code { 64 } else { 32 };
    let mut decoder = None;
    let mut length = 0;
    for _ in 0..limit.min(MAX_OPS) {
        let rest = bytes.get(length..).filter(|rest| !rest.is_empty());
        let Some(rest) = rest else {
            break;
        };
        let window = rest.first_chunk::<{ size_of::<Window>() }>();
        let window = window.filter(|_| long_code);
        let known = window.and_then(|window| forms.get(window, length));
        let Some((op, ends)) = known.or_else(|| {
            let decoder =
                decoder.get_or_insert_with(|| Decoder::new(bitness, bytes, DecoderOptions::NONE));
            unknown(decoder, length, window, forms)
        }) else {
            if length == 0 {
                return None;
            }
            break;
        };
        ops.push(op);
        length += usize::from(op.length());
        if ends {
            break;
        }
    }
    ops.push(Op {
        offset: length as u8,
        ..Op::bare(end_of_block)
    });
    Some(length)
}

/// Decodes the instruction at `offset`, whose form is not known; also whether it ends the block.
/// `None`: it goes on beyond the bytes.
#[cold]
#[inline(never)]
fn unknown(
    decoder: &mut Decoder,
    offset: usize,
    window: Option<&Window>,
    forms: &mut Forms,
) -> Option<(Op, bool)> {
    // The offset is its address, so that what is relative to RIP comes out relative to the block.
    decoder.set_position(offset).ok()?;
    decoder.set_ip(offset as u64);
    let instruction = decoder.decode();
    match decoder.last_error() {
        DecoderError::None => {
            let op = lower(&instruction, handler(&instruction));
            let ends = ends_block(&instruction);
            if let Some(window) = window {
                let constants = decoder.get_constant_offsets(&instruction);
                forms.learn(window, &instruction, constants, &op, ends);
            }
            Some((op, ends))
        }
        DecoderError::NoMoreBytes => None,
        _ => {
            let too_long = decoder.position() - offset >= MAX_INSTRUCTION;
            let run = if too_long { beyond_limit } else { undefined };
            Some((lower(&instruction, run), true))
        }
    }
}

/// The name of the instruction at the start of `bytes`.
pub fn name(bytes: &[u8], long_code: bool) -> String {
    let bitness = if long_code { 64 } else { 32 };
    let instruction = Decoder::with_ip(bitness, bytes, 0, DecoderOptions::NONE).decode();
    // Names of all forms would be the largest table of the program, relocated in each process.
    format!("{:?}", instruction.mnemonic())
}

fn handler(instruction: &Instruction) -> Handler {
    system::select(instruction)
        .or_else(|| integer::select(instruction))
        .or_else(|| simd::select(instruction))
        .or_else(|| x87::select(instruction))
        .unwrap_or(unimplemented)
}

/// No such instruction.
fn undefined(cpu: &mut Cpu, _op: &Op) -> Result<(), Exit> {
    cpu.raise(Exception::INVALID_OPCODE)
}

/// More bytes than an instruction may have.
fn beyond_limit(cpu: &mut Cpu, _op: &Op) -> Result<(), Exit> {
    cpu.raise(Exception::general_protection(0))
}

/// An instruction that exists, but not here: the loop counts it by name.
fn unimplemented(cpu: &mut Cpu, _op: &Op) -> Result<(), Exit> {
    cpu.unimplemented = true;
    cpu.raise(Exception::INVALID_OPCODE)
}

/// Behind the last instruction of each block, so that none runs into what lies after it.
fn end_of_block(cpu: &mut Cpu, op: &Op) -> Result<(), Exit> {
    let next = cpu.next_rip(op);
    cpu.rip = if cpu.long_code {
        next
    } else {
        next & 0xFFFF_FFFF
    };
    // The loop counts every op; this one is no instruction.
    cpu.executed = cpu.executed.wrapping_sub(1);
    Err(Exit::Branch)
}

/// Whether control never goes on to the next instruction in the same block.
fn ends_block(instruction: &Instruction) -> bool {
    let falls_through = matches!(
        instruction.flow_control(),
        FlowControl::Next | FlowControl::ConditionalBranch
    );
    // These always leave the block, as intercepts or to look at the new state.
    let leaves = matches!(
        instruction.code(),
        Code::Hlt
            | Code::Cpuid
            | Code::Wrmsr
            | Code::Rdmsr
            | Code::Sti
            | Code::Popfq
            | Code::Popfd
            | Code::In_AL_DX
            | Code::In_EAX_DX
            | Code::Out_DX_AL
            | Code::Out_DX_EAX
            | Code::Mov_cr_r64
    );
    !falls_through || leaves
}

/// Number of a register within its class; AH, CH, DH and BH are 4 to 7.
fn number(register: Register) -> u8 {
    match register {
        Register::AH | Register::CH | Register::DH | Register::BH => {
            4 + (register as u8).wrapping_sub(Register::AH as u8)
        }
        _ if register.is_gpr() => register.full_register().number() as u8,
        _ => register.number() as u8,
    }
}

fn address_register(register: Register) -> u8 {
    match register {
        Register::None => Cpu::ZERO,
        Register::RIP | Register::EIP => Cpu::RIP,
        other => number(other),
    }
}

fn lower(instruction: &Instruction, run: Handler) -> Op {
    let mut op = Op {
        offset: instruction.ip() as u8,
        length_and_flags: instruction.len() as u8,
        ..Op::bare(run)
    };
    let mut has_immediate = false;
    let mut has_memory = false;
    let mut source = None;
    for i in 0..instruction.op_count() {
        match instruction.op_kind(i) {
            OpKind::Register => {
                let register = number(instruction.op_register(i));
                if i == 0 {
                    op.dst = register;
                } else {
                    source.get_or_insert(register);
                }
            }
            OpKind::NearBranch64 => op.immediate = instruction.near_branch64() as i64,
            OpKind::NearBranch32 => {
                op.immediate = i64::from(instruction.near_branch32() as i32);
            }
            OpKind::NearBranch16 => op.immediate = i64::from(instruction.near_branch16()),
            OpKind::FarBranch32 => {
                op.immediate = i64::from(instruction.far_branch_selector()) << 32
                    | i64::from(instruction.far_branch32());
            }
            OpKind::FarBranch16 => {
                op.immediate = i64::from(instruction.far_branch_selector()) << 32
                    | i64::from(instruction.far_branch16());
            }
            OpKind::Immediate8_2nd => {
                op.immediate |= i64::from(instruction.immediate8_2nd()) << 16;
            }
            kind if is_immediate(kind) => {
                if !has_immediate {
                    has_immediate = true;
                    op.immediate |= instruction.immediate(i) as i64;
                }
            }
            OpKind::Memory => {
                has_memory = true;
                lower_memory(instruction, &mut op);
            }
            // String instructions: registers are implied.
            kind => {
                has_memory = true;
                op.segment = number(instruction.memory_segment());
                let narrow = matches!(
                    kind,
                    OpKind::MemorySegESI
                        | OpKind::MemorySegEDI
                        | OpKind::MemoryESEDI
                        | OpKind::MemorySegSI
                        | OpKind::MemorySegDI
                        | OpKind::MemoryESDI
                );
                if narrow {
                    op.length_and_flags |= Op::ADDRESS32;
                }
            }
        }
    }
    if !has_memory {
        op.segment = 0;
    }
    op.src = source.unwrap_or(0);
    op
}

fn lower_memory(instruction: &Instruction, op: &mut Op) {
    let (base, index) = (instruction.memory_base(), instruction.memory_index());
    op.length_and_flags |= Op::MEMORY;
    op.base = address_register(base);
    op.index = address_register(index);
    op.scale = instruction.memory_index_scale().trailing_zeros() as u8;
    op.displacement = instruction.memory_displacement64() as i64;
    op.segment = number(instruction.memory_segment());
    let narrow_register = |register: Register| register.is_gpr32() || register == Register::EIP;
    let absolute32 =
        base == Register::None && index == Register::None && instruction.memory_displ_size() == 4;
    if narrow_register(base) || narrow_register(index) || absolute32 {
        op.length_and_flags |= Op::ADDRESS32;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(bytes: &[u8]) -> (Vec<Op>, usize) {
        let mut ops = Vec::new();
        let length = decode(bytes, true, 64, &mut ops, &mut Forms::default());
        ops.pop();
        (ops, length.unwrap_or(0))
    }

    #[test]
    fn a_trace_goes_on_past_conditional_branches_and_ends_at_calls() {
        // jz +2; nop; call +0; nop
        let (ops, length) = block(&[0x74, 0x02, 0x90, 0xE8, 0, 0, 0, 0, 0x90]);
        assert_eq!((ops.len(), length), (3, 8));
        assert_eq!(ops[0].immediate, 4);
        assert_eq!(ops[2].immediate, 8);
        assert_eq!(ops[2].offset, 3);
    }

    #[test]
    fn rip_relative_operands_are_relative_to_the_block() {
        // nop; mov rax, [rip+0x10]
        let (ops, _) = block(&[0x90, 0x48, 0x8B, 0x05, 0x10, 0, 0, 0]);
        assert_eq!(ops[1].base, Cpu::RIP);
        assert_eq!(ops[1].displacement, 8 + 0x10);
    }

    #[test]
    fn registers_are_numbered_within_their_class() {
        // mov ah, spl is not encodable: mov bh, al; mov sil, r9b
        let (ops, _) = block(&[0x88, 0xC7, 0x44, 0x88, 0xCE]);
        assert_eq!((ops[0].dst, ops[0].src), (7, 0));
        assert_eq!((ops[1].dst, ops[1].src), (6, 9));
        // mov fs:[rax+rcx*8-8], rdx
        let (ops, _) = block(&[0x64, 0x48, 0x89, 0x54, 0xC8, 0xF8]);
        assert_eq!((ops[0].src, ops[0].base, ops[0].index), (2, 0, 1));
        assert_eq!(
            (ops[0].scale, ops[0].segment, ops[0].displacement),
            (3, 4, -8)
        );
    }

    #[test]
    fn an_instruction_cut_off_is_incomplete_only_at_the_start() {
        assert_eq!(
            decode(
                &[0x48, 0x8B],
                true,
                64,
                &mut Vec::new(),
                &mut Forms::default()
            ),
            None
        );
        let (ops, length) = block(&[0x90, 0x48, 0x8B]);
        assert_eq!((ops.len(), length), (1, 1));
    }
}
