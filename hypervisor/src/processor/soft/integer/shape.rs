//! From a decoded instruction's operands to the handler made for their shapes.

use iced_x86::{CodeSize, Instruction, MemorySize, OpKind, Register};

/// What an operand of a decoded instruction is.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Register,
    High,
    Immediate,
    /// Memory, base and displacement only.
    Base,
    /// Memory, the general case.
    Full,
    /// Memory under LOCK.
    Locked,
}

/// The size in bits of a general register, `None` for other registers.
pub fn register_bits(register: Register) -> Option<u32> {
    let within =
        |first: Register, last: Register| (first as u32..=last as u32).contains(&(register as u32));
    if within(Register::AL, Register::R15L) {
        Some(8)
    } else if within(Register::AX, Register::R15W) {
        Some(16)
    } else if within(Register::EAX, Register::R15D) {
        Some(32)
    } else if within(Register::RAX, Register::R15) {
        Some(64)
    } else {
        None
    }
}

/// The size in bits of an integer operand in memory.
fn memory_bits(size: MemorySize) -> Option<u32> {
    use MemorySize::{
        DwordOffset, Int8, Int16, Int32, Int64, QwordOffset, UInt8, UInt16, UInt32, UInt64,
        WordOffset,
    };
    match size {
        UInt8 | Int8 => Some(8),
        UInt16 | Int16 | WordOffset => Some(16),
        UInt32 | Int32 | DwordOffset => Some(32),
        UInt64 | Int64 | QwordOffset => Some(64),
        _ => None,
    }
}

fn has_operand(instruction: &Instruction, operand: u32) -> bool {
    operand < instruction.op_count()
}

/// What operand `operand` is; `None` when it is absent or not of this group.
pub fn kind(instruction: &Instruction, operand: u32) -> Option<Kind> {
    if !has_operand(instruction, operand) {
        return None;
    }
    match instruction.op_kind(operand) {
        OpKind::Register => {
            let register = instruction.op_register(operand);
            register_bits(register)?;
            let high = (Register::AH as u32..=Register::BH as u32).contains(&(register as u32));
            Some(if high { Kind::High } else { Kind::Register })
        }
        OpKind::Memory if instruction.has_lock_prefix() => Some(Kind::Locked),
        OpKind::Memory => Some(address_kind(instruction)),
        kind if is_immediate(kind) => Some(Kind::Immediate),
        _ => None,
    }
}

/// Whether an operand is an immediate, other than the second of two.
pub fn is_immediate(kind: OpKind) -> bool {
    matches!(
        kind,
        OpKind::Immediate8
            | OpKind::Immediate16
            | OpKind::Immediate32
            | OpKind::Immediate64
            | OpKind::Immediate8to16
            | OpKind::Immediate8to32
            | OpKind::Immediate8to64
            | OpKind::Immediate32to64
    )
}

fn address_kind(instruction: &Instruction) -> Kind {
    let flat = instruction.code_size() == CodeSize::Code64
        && !matches!(instruction.memory_segment(), Register::FS | Register::GS);
    let base = instruction.memory_base();
    let wide = matches!(base, Register::RIP | Register::None) || register_bits(base) == Some(64);
    // Without a base, the size of the displacement tells a 32-bit address.
    let wide = wide && (base != Register::None || instruction.memory_displ_size() == 8);
    if flat && wide && instruction.memory_index() == Register::None {
        Kind::Base
    } else {
        Kind::Full
    }
}

/// The size in bits of operand `operand`, a general register or memory.
pub fn bits(instruction: &Instruction, operand: u32) -> Option<u32> {
    if !has_operand(instruction, operand) {
        return None;
    }
    match instruction.op_kind(operand) {
        OpKind::Register => register_bits(instruction.op_register(operand)),
        _ => memory_bits(instruction.memory_size()),
    }
}

/// Whether the instruction runs in 64-bit code rather than in compatibility mode.
pub fn is_long(instruction: &Instruction) -> bool {
    instruction.code_size() == CodeSize::Code64
}

/// The handler `$handler::<$first…, W, D, S>` for the operand shapes that read a destination and a
/// source: register or memory, and register, memory or immediate. An arm per shape.
macro_rules! two_operands {
    ($instruction:expr, $handler:ident $(, $first:ty)*) => {{
        use $crate::processor::soft::integer::operand::{Base, Dst, DstHigh, Full, Immediate, Memory, Src, SrcHigh};
        use $crate::processor::soft::integer::shape::{Kind, bits, kind};
        use $crate::processor::soft::{flags::{W8, W16, W32, W64}, op::Handler};
        let instruction = $instruction;
        let shape = (kind(instruction, 0)?, kind(instruction, 1)?);
        macro_rules! wide {
            ($width:ty) => {
                match shape {
                    (Kind::Register, Kind::Register) => $handler::<$($first,)* $width, Dst, Src> as Handler,
                    (Kind::Register, Kind::Immediate) => $handler::<$($first,)* $width, Dst, Immediate>,
                    (Kind::Register, Kind::Base) => $handler::<$($first,)* $width, Dst, Memory<Base>>,
                    (Kind::Register, Kind::Full) => $handler::<$($first,)* $width, Dst, Memory<Full>>,
                    (Kind::Base, Kind::Register) => $handler::<$($first,)* $width, Memory<Base>, Src>,
                    (Kind::Full, Kind::Register) => $handler::<$($first,)* $width, Memory<Full>, Src>,
                    (Kind::Base, Kind::Immediate) => $handler::<$($first,)* $width, Memory<Base>, Immediate>,
                    (Kind::Full, Kind::Immediate) => $handler::<$($first,)* $width, Memory<Full>, Immediate>,
                    _ => return None,
                }
            };
        }
        match bits(instruction, 0)? {
            8 => match shape {
                (Kind::High, Kind::High) => $handler::<$($first,)* W8, DstHigh, SrcHigh> as Handler,
                (Kind::High, Kind::Register) => $handler::<$($first,)* W8, DstHigh, Src>,
                (Kind::High, Kind::Immediate) => $handler::<$($first,)* W8, DstHigh, Immediate>,
                (Kind::High, Kind::Base | Kind::Full) => $handler::<$($first,)* W8, DstHigh, Memory<Full>>,
                (Kind::Register, Kind::High) => $handler::<$($first,)* W8, Dst, SrcHigh>,
                (Kind::Base | Kind::Full, Kind::High) => $handler::<$($first,)* W8, Memory<Full>, SrcHigh>,
                _ => wide!(W8),
            },
            16 => wide!(W16),
            32 => wide!(W32),
            64 => wide!(W64),
            _ => return None,
        }
    }};
}

/// As `two_operands`, for a memory destination under LOCK.
macro_rules! locked_operands {
    ($instruction:expr, $handler:ident $(, $first:ty)*) => {{
        use $crate::processor::soft::integer::operand::{Immediate, Locked, Src, SrcHigh};
        use $crate::processor::soft::integer::shape::{Kind, bits, kind};
        use $crate::processor::soft::{flags::{W8, W16, W32, W64}, op::Handler};
        let instruction = $instruction;
        match (bits(instruction, 0)?, kind(instruction, 1)?) {
            (8, Kind::Register) => $handler::<$($first,)* W8, Locked, Src> as Handler,
            (8, Kind::High) => $handler::<$($first,)* W8, Locked, SrcHigh>,
            (8, Kind::Immediate) => $handler::<$($first,)* W8, Locked, Immediate>,
            (16, Kind::Register) => $handler::<$($first,)* W16, Locked, Src>,
            (16, Kind::Immediate) => $handler::<$($first,)* W16, Locked, Immediate>,
            (32, Kind::Register) => $handler::<$($first,)* W32, Locked, Src>,
            (32, Kind::Immediate) => $handler::<$($first,)* W32, Locked, Immediate>,
            (64, Kind::Register) => $handler::<$($first,)* W64, Locked, Src>,
            (64, Kind::Immediate) => $handler::<$($first,)* W64, Locked, Immediate>,
            _ => return None,
        }
    }};
}

/// The handler `$handler::<$first…, W, D>` for a register or memory operand alone.
macro_rules! one_operand {
    ($instruction:expr, $handler:ident $(, $first:ty)*) => {{
        use $crate::processor::soft::integer::operand::{Base, Dst, DstHigh, Full, Memory};
        use $crate::processor::soft::integer::shape::{Kind, bits, kind};
        use $crate::processor::soft::{flags::{W8, W16, W32, W64}, op::Handler};
        let instruction = $instruction;
        let shape = kind(instruction, 0)?;
        macro_rules! wide {
            ($width:ty) => {
                match shape {
                    Kind::Register => $handler::<$($first,)* $width, Dst> as Handler,
                    Kind::Base => $handler::<$($first,)* $width, Memory<Base>>,
                    Kind::Full => $handler::<$($first,)* $width, Memory<Full>>,
                    _ => return None,
                }
            };
        }
        match bits(instruction, 0)? {
            8 if shape == Kind::High => $handler::<$($first,)* W8, DstHigh> as Handler,
            8 => wide!(W8),
            16 => wide!(W16),
            32 => wide!(W32),
            64 => wide!(W64),
            _ => return None,
        }
    }};
}

/// As `one_operand`, for memory under LOCK.
macro_rules! locked_operand {
    ($instruction:expr, $handler:ident $(, $first:ty)*) => {{
        use $crate::processor::soft::integer::operand::{Locked};
        use $crate::processor::soft::integer::shape::{bits};
        use $crate::processor::soft::{flags::{W8, W16, W32, W64}, op::Handler};
        match bits($instruction, 0)? {
            8 => $handler::<$($first,)* W8, Locked> as Handler,
            16 => $handler::<$($first,)* W16, Locked>,
            32 => $handler::<$($first,)* W32, Locked>,
            64 => $handler::<$($first,)* W64, Locked>,
            _ => return None,
        }
    }};
}

/// The handler `$handler::<$first…, W, S>` for an instruction whose destination is a register of 16
/// bits or more and whose source (operand 1) is a register or memory.
macro_rules! register_from {
    ($instruction:expr, $handler:ident $(, $first:ty)*) => {{
        use $crate::processor::soft::integer::operand::{Base, Full, Memory, Src};
        use $crate::processor::soft::integer::shape::{Kind, bits, kind};
        use $crate::processor::soft::{flags::{W16, W32, W64}, op::Handler};
        let instruction = $instruction;
        match (bits(instruction, 0)?, kind(instruction, 1)?) {
            (16, Kind::Register) => $handler::<$($first,)* W16, Src> as Handler,
            (16, Kind::Base) => $handler::<$($first,)* W16, Memory<Base>>,
            (16, Kind::Full) => $handler::<$($first,)* W16, Memory<Full>>,
            (32, Kind::Register) => $handler::<$($first,)* W32, Src>,
            (32, Kind::Base) => $handler::<$($first,)* W32, Memory<Base>>,
            (32, Kind::Full) => $handler::<$($first,)* W32, Memory<Full>>,
            (64, Kind::Register) => $handler::<$($first,)* W64, Src>,
            (64, Kind::Base) => $handler::<$($first,)* W64, Memory<Base>>,
            (64, Kind::Full) => $handler::<$($first,)* W64, Memory<Full>>,
            _ => return None,
        }
    }};
}

pub(super) use {locked_operand, locked_operands, one_operand, register_from, two_operands};
