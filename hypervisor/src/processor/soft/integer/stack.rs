//! The stack: PUSH, POP and their relatives for all registers, flags and frames.

use super::{
    super::{
        cpu::{Cpu, Exception, Exit, segment},
        flags::{self, W16, W32, W64},
        op::{Handler, Op},
    },
    operand::{Dst, Full, Immediate, Memory, Size, Source, fast_or_slow},
    shape::{Kind, bits, is_long, kind},
};
use iced_x86::{Code, Instruction, Mnemonic};

pub fn select(instruction: &Instruction) -> Option<Handler> {
    /// `$handler::<mode, width, …>` for the three operand sizes that a mode has.
    macro_rules! sized {
        ($size:expr, $handler:ident $(, $rest:ty)*) => {
            match (is_long(instruction), $size) {
                (true, 16) => $handler::<Long, W16 $(, $rest)*> as Handler,
                (true, 64) => $handler::<Long, W64 $(, $rest)*>,
                (false, 16) => $handler::<Compatible, W16 $(, $rest)*>,
                (false, 32) => $handler::<Compatible, W32 $(, $rest)*>,
                _ => return None,
            }
        };
    }
    let size = size_of_code(instruction);
    Some(match instruction.mnemonic() {
        Mnemonic::Push => match (kind(instruction, 0), size) {
            (None, _) => sized!(size?, push_segment),
            (Some(Kind::Immediate), _) => sized!(size?, push, Immediate),
            (Some(Kind::Register), _) => sized!(bits(instruction, 0)?, push, Dst),
            (Some(_), _) => sized!(bits(instruction, 0)?, push, Memory<Full>),
        },
        Mnemonic::Pop => match kind(instruction, 0)? {
            Kind::Register => sized!(bits(instruction, 0)?, pop),
            _ => sized!(bits(instruction, 0)?, pop_memory),
        },
        Mnemonic::Pushf | Mnemonic::Pushfd | Mnemonic::Pushfq => sized!(size?, push_flags),
        Mnemonic::Popf | Mnemonic::Popfd | Mnemonic::Popfq => sized!(size?, pop_flags),
        Mnemonic::Enter => sized!(size?, enter),
        Mnemonic::Leave => sized!(size?, leave),
        Mnemonic::Pusha | Mnemonic::Pushad => match size? {
            16 => push_all::<W16>,
            _ => push_all::<W32>,
        },
        Mnemonic::Popa | Mnemonic::Popad => match size? {
            16 => pop_all::<W16>,
            _ => pop_all::<W32>,
        },
        _ => return None,
    })
}

/// The operand size of the forms that name it in their code alone.
fn size_of_code(instruction: &Instruction) -> Option<u32> {
    Some(match instruction.code() {
        Code::Pushw_ES
        | Code::Pushw_CS
        | Code::Pushw_SS
        | Code::Pushw_DS
        | Code::Pushw_FS
        | Code::Pushw_GS
        | Code::Push_imm16
        | Code::Pushw_imm8
        | Code::Pushfw
        | Code::Popfw
        | Code::Enterw_imm16_imm8
        | Code::Leavew
        | Code::Pushaw
        | Code::Popaw => 16,
        Code::Pushd_ES
        | Code::Pushd_CS
        | Code::Pushd_SS
        | Code::Pushd_DS
        | Code::Pushd_FS
        | Code::Pushd_GS
        | Code::Pushd_imm32
        | Code::Pushd_imm8
        | Code::Pushfd
        | Code::Popfd
        | Code::Enterd_imm16_imm8
        | Code::Leaved
        | Code::Pushad
        | Code::Popad => 32,
        Code::Pushq_FS
        | Code::Pushq_GS
        | Code::Pushq_imm32
        | Code::Pushq_imm8
        | Code::Pushfq
        | Code::Popfq
        | Code::Enterq_imm16_imm8
        | Code::Leaveq => 64,
        _ => return None,
    })
}

/// How a mode addresses its stack.
pub trait Stack {
    /// Reduces a stack pointer to the mode's size.
    fn wrap(pointer: u64) -> u64;
    fn linear(cpu: &Cpu, pointer: u64) -> u64;

    /// Pushes `value` below `pointer`; the new pointer.
    #[inline(always)]
    fn push_at<W: Size>(cpu: &mut Cpu, pointer: u64, value: u64) -> Result<u64, Exit> {
        let pointer = Self::wrap(pointer.wrapping_sub(W::BYTES));
        match W::store(cpu, Self::linear(cpu, pointer), value) {
            Ok(()) => Ok(pointer),
            Err(exit) => Err(stack_fault(cpu, exit)),
        }
    }
    /// Pops from `pointer`; the value and the new pointer.
    #[inline(always)]
    fn pop_at<W: Size>(cpu: &mut Cpu, pointer: u64) -> Result<(u64, u64), Exit> {
        match W::load(cpu, Self::linear(cpu, Self::wrap(pointer))) {
            Ok(value) => Ok((value, Self::wrap(pointer.wrapping_add(W::BYTES)))),
            Err(exit) => Err(stack_fault(cpu, exit)),
        }
    }
    /// As `push`, when the stack is at hand: see [`Cpu::load_fast`].
    #[inline(always)]
    fn push_fast<W: Size>(cpu: &mut Cpu, value: u64) -> Option<()> {
        let pointer = Self::wrap(cpu.reg(Cpu::RSP).wrapping_sub(W::BYTES));
        W::store_fast(cpu, Self::linear(cpu, pointer), value)?;
        cpu.set_reg(Cpu::RSP, pointer);
        Some(())
    }
    /// As `pop_at`, likewise.
    #[inline(always)]
    fn pop_at_fast<W: Size>(cpu: &Cpu, pointer: u64) -> Option<(u64, u64)> {
        let value = W::load_fast(cpu, Self::linear(cpu, Self::wrap(pointer)))?;
        Some((value, Self::wrap(pointer.wrapping_add(W::BYTES))))
    }
    #[inline(always)]
    fn push<W: Size>(cpu: &mut Cpu, value: u64) -> Result<(), Exit> {
        let pointer = Self::push_at::<W>(cpu, cpu.reg(Cpu::RSP), value)?;
        cpu.set_reg(Cpu::RSP, pointer);
        Ok(())
    }
}

/// A stack address that is not canonical raises #SS where others raise #GP.
#[cold]
pub fn stack_fault(cpu: &mut Cpu, exit: Exit) -> Exit {
    if exit == Exit::Exception && cpu.exception == Exception::general_protection(0) {
        cpu.exception = Exception::stack(0);
    }
    exit
}

/// 64-bit mode: all of RSP, no base.
pub struct Long;
/// Compatibility mode with a 32-bit stack segment.
pub struct Compatible;

impl Stack for Long {
    #[inline(always)]
    fn wrap(pointer: u64) -> u64 {
        pointer
    }
    #[inline(always)]
    fn linear(_cpu: &Cpu, pointer: u64) -> u64 {
        pointer
    }
}
impl Stack for Compatible {
    #[inline(always)]
    fn wrap(pointer: u64) -> u64 {
        pointer & 0xFFFF_FFFF
    }
    #[inline(always)]
    fn linear(cpu: &Cpu, pointer: u64) -> u64 {
        cpu.segment_base[segment::SS].wrapping_add(pointer) & 0xFFFF_FFFF
    }
}

fast_or_slow!(fn push<K: Stack, W: Size, S: Source<W>>, push_fast, push_slow);

#[inline(always)]
fn push_fast<K: Stack, W: Size, S: Source<W>>(cpu: &mut Cpu, op: &Op) -> Option<()> {
    let value = S::read_fast(cpu, op)?;
    K::push_fast::<W>(cpu, value)
}

fn push_slow<K: Stack, W: Size, S: Source<W>>(cpu: &mut Cpu, op: &Op) -> Result<(), Exit> {
    let value = S::read(cpu, op)?;
    K::push::<W>(cpu, value)
}

fn push_segment<K: Stack, W: Size>(cpu: &mut Cpu, op: &Op) -> Result<(), Exit> {
    let selector = cpu
        .segments
        .get(usize::from(op.dst))
        .map_or(0, |s| s.selector);
    K::push::<W>(cpu, selector.into())
}

fast_or_slow!(fn pop<K: Stack, W: Size>, pop_fast, pop_slow);

#[inline(always)]
fn pop_fast<K: Stack, W: Size>(cpu: &mut Cpu, op: &Op) -> Option<()> {
    let (value, pointer) = K::pop_at_fast::<W>(cpu, cpu.reg(Cpu::RSP))?;
    // In this order POP RSP leaves the value that was popped.
    cpu.set_reg(Cpu::RSP, pointer);
    W::set(cpu, op.dst, value);
    Some(())
}

fn pop_slow<K: Stack, W: Size>(cpu: &mut Cpu, op: &Op) -> Result<(), Exit> {
    let (value, pointer) = K::pop_at::<W>(cpu, cpu.reg(Cpu::RSP))?;
    cpu.set_reg(Cpu::RSP, pointer);
    W::set(cpu, op.dst, value);
    Ok(())
}

fn pop_memory<K: Stack, W: Size>(cpu: &mut Cpu, op: &Op) -> Result<(), Exit> {
    let before = cpu.reg(Cpu::RSP);
    let (value, pointer) = K::pop_at::<W>(cpu, before)?;
    // An address relative to RSP is relative to the incremented RSP.
    cpu.set_reg(Cpu::RSP, pointer);
    let stored = W::store(cpu, cpu.effective_address(op), value);
    if stored.is_err() {
        cpu.set_reg(Cpu::RSP, before);
    }
    stored
}

fn push_flags<K: Stack, W: Size>(cpu: &mut Cpu, _op: &Op) -> Result<(), Exit> {
    let value = cpu.rflags() & !(flags::VM | flags::RF);
    K::push::<W>(cpu, value)
}

fn pop_flags<K: Stack, W: Size>(cpu: &mut Cpu, _op: &Op) -> Result<(), Exit> {
    let (value, pointer) = K::pop_at::<W>(cpu, cpu.reg(Cpu::RSP))?;
    let before = cpu.rflags();
    let privilege_needed = ((before & flags::IOPL) >> 12) as u8;
    let mut writable =
        flags::ARITHMETIC | flags::TF | flags::DF | flags::NT | flags::AC | flags::ID;
    if cpu.cpl == 0 {
        writable |= flags::IOPL;
    }
    if cpu.cpl <= privilege_needed {
        writable |= flags::IF;
    }
    let writable = W::truncate(writable);
    let after = ((before & !writable) | (value & writable)) & !flags::RF;
    cpu.set_reg(Cpu::RSP, pointer);
    cpu.set_rflags(after);
    // AC opens user pages to the kernel (SMAP).
    cpu.update_domain();
    if (before ^ after) & (flags::IF | flags::TF | flags::AC) != 0 {
        return Err(Exit::Resync);
    }
    Ok(())
}

/// ENTER: `immediate` holds the frame's size (bits 0-15) and its nesting level (bits 16-20).
fn enter<K: Stack, W: Size>(cpu: &mut Cpu, op: &Op) -> Result<(), Exit> {
    let size = op.immediate as u64 & 0xFFFF;
    let level = (op.immediate as u64 >> 16) & 31;
    let mut link = cpu.reg(Cpu::RBP);
    let mut pointer = K::push_at::<W>(cpu, cpu.reg(Cpu::RSP), link)?;
    let frame = pointer;
    for _ in 1..level {
        link = K::wrap(link.wrapping_sub(W::BYTES));
        let value = W::load(cpu, K::linear(cpu, link))?;
        pointer = K::push_at::<W>(cpu, pointer, value)?;
    }
    if level > 0 {
        pointer = K::push_at::<W>(cpu, pointer, frame)?;
    }
    pointer = K::wrap(pointer.wrapping_sub(size));
    // The processor makes sure that the new top of the stack can be written.
    cpu.check_store(K::linear(cpu, pointer), W::BYTES)?;
    W::set(cpu, Cpu::RBP, frame);
    cpu.set_reg(Cpu::RSP, pointer);
    Ok(())
}

fn leave<K: Stack, W: Size>(cpu: &mut Cpu, _op: &Op) -> Result<(), Exit> {
    let (value, pointer) = K::pop_at::<W>(cpu, cpu.reg(Cpu::RBP))?;
    cpu.set_reg(Cpu::RSP, pointer);
    W::set(cpu, Cpu::RBP, value);
    Ok(())
}

fn push_all<W: Size>(cpu: &mut Cpu, _op: &Op) -> Result<(), Exit> {
    let mut pointer = cpu.reg(Cpu::RSP);
    for register in Cpu::RAX..=Cpu::RDI {
        pointer = Compatible::push_at::<W>(cpu, pointer, cpu.reg(register))?;
    }
    cpu.set_reg(Cpu::RSP, pointer);
    Ok(())
}

fn pop_all<W: Size>(cpu: &mut Cpu, _op: &Op) -> Result<(), Exit> {
    let mut values = [0; 8];
    let mut pointer = cpu.reg(Cpu::RSP);
    for value in values.iter_mut().rev() {
        (*value, pointer) = Compatible::pop_at::<W>(cpu, pointer)?;
    }
    for (register, value) in (Cpu::RAX..).zip(values) {
        if register != Cpu::RSP {
            W::set(cpu, register, value);
        }
    }
    cpu.set_reg(Cpu::RSP, pointer);
    Ok(())
}
