//! Operands as types: what the handlers of this group are generic over.
//!
//! A handler names its operand size and the places of its operands, so that each shape of an
//! instruction gets machine code of its own. Values travel as `u64` of which only the low
//! `Width::BITS` bits count; whatever writes one truncates it.

use super::super::{
    cpu::{Cpu, Exit},
    flags::{W8, W16, W32, W64, Width},
    op::Op,
};
use crate::memory::Plain;
use iced_x86::{CodeSize, Instruction, MemorySize, OpKind, Register};
use std::{marker::PhantomData, sync::atomic};

/// An operand size with its representation in memory and in registers.
pub trait Size: Width {
    type Value: Plain + Into<u64>;
    const BYTES: u64 = Self::BITS as u64 / 8;
    fn narrow(value: u64) -> Self::Value;
    /// What a register that holds `old` holds after `value` was written to it in this size.
    fn merge(old: u64, value: u64) -> u64;

    #[inline(always)]
    fn signed(value: u64) -> i64 {
        Self::extend(value) as i64
    }
    #[inline(always)]
    fn set(cpu: &mut Cpu, register: u8, value: u64) {
        let merged = Self::merge(cpu.reg(register), value);
        cpu.set_reg(register, merged);
    }
    #[inline(always)]
    fn load(cpu: &mut Cpu, linear: u64) -> Result<u64, Exit> {
        Ok(cpu.load::<Self::Value>(linear)?.into())
    }
    #[inline(always)]
    fn load_fast(cpu: &Cpu, linear: u64) -> Option<u64> {
        Some(cpu.load_fast::<Self::Value>(linear)?.into())
    }
    #[inline(always)]
    fn load_for_update_fast(cpu: &Cpu, linear: u64) -> Option<u64> {
        Some(cpu.load_for_update_fast::<Self::Value>(linear)?.into())
    }
    #[inline(always)]
    fn store_fast(cpu: &Cpu, linear: u64, value: u64) -> Option<()> {
        cpu.store_fast(linear, Self::narrow(value))
    }
    #[inline(always)]
    fn load_for_update(cpu: &mut Cpu, linear: u64) -> Result<u64, Exit> {
        Ok(cpu.load_for_update::<Self::Value>(linear)?.into())
    }
    #[inline(always)]
    fn store(cpu: &mut Cpu, linear: u64, value: u64) -> Result<(), Exit> {
        cpu.store(linear, Self::narrow(value))
    }
}

macro_rules! size {
    ($width:ty, $value:ty, |$old:ident, $new:ident| $merge:expr) => {
        impl Size for $width {
            type Value = $value;
            #[inline(always)]
            fn narrow(value: u64) -> $value {
                value as $value
            }
            #[inline(always)]
            fn merge($old: u64, $new: u64) -> u64 {
                $merge
            }
        }
    };
}
size!(W8, u8, |old, new| (old & !0xFF) | (new & 0xFF));
size!(W16, u16, |old, new| (old & !0xFFFF) | (new & 0xFFFF));
size!(W32, u32, |_old, new| new & 0xFFFF_FFFF);
size!(W64, u64, |_old, new| new);

/// An operand that is read.
pub trait Source<W: Size> {
    fn read(cpu: &mut Cpu, op: &Op) -> Result<u64, Exit>;
    /// The value, when it is at hand: see [`Cpu::load_fast`].
    fn read_fast(cpu: &Cpu, op: &Op) -> Option<u64>;
}

/// An operand that is written, perhaps after it was read. The place is found once.
pub trait Destination<W: Size> {
    type Place: Copy;
    /// Whether a store can fault.
    const IN_MEMORY: bool;
    fn locate(cpu: &Cpu, op: &Op) -> Self::Place;
    /// Loads what will not be stored back (BT, alone among its relatives).
    fn peek(cpu: &mut Cpu, place: Self::Place) -> Result<u64, Exit>;
    /// Loads what will be stored back.
    fn load(cpu: &mut Cpu, place: Self::Place) -> Result<u64, Exit>;
    fn store(cpu: &mut Cpu, place: Self::Place, value: u64) -> Result<(), Exit>;
    fn load_fast(cpu: &Cpu, place: Self::Place) -> Option<u64>;
    fn store_fast(cpu: &mut Cpu, place: Self::Place, value: u64) -> Option<()>;
}

/// The register `Op::dst`.
pub struct Dst;
/// The register `Op::src`.
pub struct Src;
/// AH, CH, DH or BH in `Op::dst`.
pub struct DstHigh;
/// AH, CH, DH or BH in `Op::src`.
pub struct SrcHigh;
/// `Op::immediate`.
pub struct Immediate;
/// The memory operand, addressed as `A` says.
pub struct Memory<A>(PhantomData<A>);
/// The memory operand of an instruction with a LOCK prefix, or of XCHG.
pub struct Locked;

/// How a memory operand finds its linear address.
pub trait Address {
    fn linear(cpu: &Cpu, op: &Op) -> u64;
    /// Without the segment base.
    fn offset(cpu: &Cpu, op: &Op) -> u64;
}
/// Base and displacement only: three of four operands in 64-bit code.
pub struct Base;
/// Everything an operand can have.
pub struct Full;

impl Address for Base {
    #[inline(always)]
    fn linear(cpu: &Cpu, op: &Op) -> u64 {
        cpu.reg(op.base).wrapping_add(op.displacement as u64)
    }
    #[inline(always)]
    fn offset(cpu: &Cpu, op: &Op) -> u64 {
        Self::linear(cpu, op)
    }
}
impl Address for Full {
    #[inline(always)]
    fn linear(cpu: &Cpu, op: &Op) -> u64 {
        cpu.effective_address(op)
    }
    #[inline(always)]
    fn offset(cpu: &Cpu, op: &Op) -> u64 {
        cpu.effective_offset(op)
    }
}

macro_rules! register {
    ($place:ty, $field:ident) => {
        impl<W: Size> Source<W> for $place {
            #[inline(always)]
            fn read(cpu: &mut Cpu, op: &Op) -> Result<u64, Exit> {
                Ok(cpu.reg(op.$field))
            }
            #[inline(always)]
            fn read_fast(cpu: &Cpu, op: &Op) -> Option<u64> {
                Some(cpu.reg(op.$field))
            }
        }
        impl<W: Size> Destination<W> for $place {
            type Place = u8;
            const IN_MEMORY: bool = false;
            #[inline(always)]
            fn locate(_cpu: &Cpu, op: &Op) -> u8 {
                op.$field
            }
            #[inline(always)]
            fn peek(cpu: &mut Cpu, place: u8) -> Result<u64, Exit> {
                Ok(cpu.reg(place))
            }
            #[inline(always)]
            fn load(cpu: &mut Cpu, place: u8) -> Result<u64, Exit> {
                Ok(cpu.reg(place))
            }
            #[inline(always)]
            fn store(cpu: &mut Cpu, place: u8, value: u64) -> Result<(), Exit> {
                W::set(cpu, place, value);
                Ok(())
            }
            #[inline(always)]
            fn load_fast(cpu: &Cpu, place: u8) -> Option<u64> {
                Some(cpu.reg(place))
            }
            #[inline(always)]
            fn store_fast(cpu: &mut Cpu, place: u8, value: u64) -> Option<()> {
                W::set(cpu, place, value);
                Some(())
            }
        }
    };
}
register!(Dst, dst);
register!(Src, src);

macro_rules! high_register {
    ($place:ty, $field:ident) => {
        impl Source<W8> for $place {
            #[inline(always)]
            fn read(cpu: &mut Cpu, op: &Op) -> Result<u64, Exit> {
                Ok(cpu.reg(op.$field & 3) >> 8)
            }
            #[inline(always)]
            fn read_fast(cpu: &Cpu, op: &Op) -> Option<u64> {
                Some(cpu.reg(op.$field & 3) >> 8)
            }
        }
        impl Destination<W8> for $place {
            type Place = u8;
            const IN_MEMORY: bool = false;
            #[inline(always)]
            fn locate(_cpu: &Cpu, op: &Op) -> u8 {
                op.$field & 3
            }
            #[inline(always)]
            fn peek(cpu: &mut Cpu, place: u8) -> Result<u64, Exit> {
                Ok(cpu.reg(place) >> 8)
            }
            #[inline(always)]
            fn load(cpu: &mut Cpu, place: u8) -> Result<u64, Exit> {
                Ok(cpu.reg(place) >> 8)
            }
            #[inline(always)]
            fn store(cpu: &mut Cpu, place: u8, value: u64) -> Result<(), Exit> {
                let merged = (cpu.reg(place) & !0xFF00) | ((value & 0xFF) << 8);
                cpu.set_reg(place, merged);
                Ok(())
            }
            #[inline(always)]
            fn load_fast(cpu: &Cpu, place: u8) -> Option<u64> {
                Some(cpu.reg(place) >> 8)
            }
            #[inline(always)]
            fn store_fast(cpu: &mut Cpu, place: u8, value: u64) -> Option<()> {
                let merged = (cpu.reg(place) & !0xFF00) | ((value & 0xFF) << 8);
                cpu.set_reg(place, merged);
                Some(())
            }
        }
    };
}
high_register!(DstHigh, dst);
high_register!(SrcHigh, src);

impl<W: Size> Source<W> for Immediate {
    #[inline(always)]
    fn read(_cpu: &mut Cpu, op: &Op) -> Result<u64, Exit> {
        Ok(op.immediate as u64)
    }
    #[inline(always)]
    fn read_fast(_cpu: &Cpu, op: &Op) -> Option<u64> {
        Some(op.immediate as u64)
    }
}

impl<W: Size, A: Address> Source<W> for Memory<A> {
    #[inline(always)]
    fn read(cpu: &mut Cpu, op: &Op) -> Result<u64, Exit> {
        let linear = A::linear(cpu, op);
        W::load(cpu, linear)
    }
    #[inline(always)]
    fn read_fast(cpu: &Cpu, op: &Op) -> Option<u64> {
        W::load_fast(cpu, A::linear(cpu, op))
    }
}

impl<W: Size, A: Address> Destination<W> for Memory<A> {
    type Place = u64;
    const IN_MEMORY: bool = true;
    #[inline(always)]
    fn locate(cpu: &Cpu, op: &Op) -> u64 {
        A::linear(cpu, op)
    }
    #[inline(always)]
    fn peek(cpu: &mut Cpu, place: u64) -> Result<u64, Exit> {
        W::load(cpu, place)
    }
    #[inline(always)]
    fn load(cpu: &mut Cpu, place: u64) -> Result<u64, Exit> {
        W::load_for_update(cpu, place)
    }
    #[inline(always)]
    fn store(cpu: &mut Cpu, place: u64, value: u64) -> Result<(), Exit> {
        W::store(cpu, place, value)
    }
    #[inline(always)]
    fn load_fast(cpu: &Cpu, place: u64) -> Option<u64> {
        W::load_for_update_fast(cpu, place)
    }
    #[inline(always)]
    fn store_fast(cpu: &mut Cpu, place: u64, value: u64) -> Option<()> {
        W::store_fast(cpu, place, value)
    }
}

impl<W: Size> Destination<W> for Locked {
    type Place = u64;
    const IN_MEMORY: bool = true;
    #[inline(always)]
    fn locate(cpu: &Cpu, op: &Op) -> u64 {
        Full::linear(cpu, op)
    }
    #[inline(always)]
    fn peek(cpu: &mut Cpu, place: u64) -> Result<u64, Exit> {
        W::load(cpu, place)
    }
    #[inline(always)]
    fn load(cpu: &mut Cpu, place: u64) -> Result<u64, Exit> {
        W::load_for_update(cpu, place)
    }
    #[inline(always)]
    fn store(cpu: &mut Cpu, place: u64, value: u64) -> Result<(), Exit> {
        W::store(cpu, place, value)?;
        // One processor needs no atomicity, but the worker reads the same memory: order it.
        atomic::fence(atomic::Ordering::SeqCst);
        Ok(())
    }
    #[inline(always)]
    fn load_fast(cpu: &Cpu, place: u64) -> Option<u64> {
        W::load_for_update_fast(cpu, place)
    }
    #[inline(always)]
    fn store_fast(cpu: &mut Cpu, place: u64, value: u64) -> Option<()> {
        W::store_fast(cpu, place, value)?;
        atomic::fence(atomic::Ordering::SeqCst);
        Some(())
    }
}

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
        OpKind::Immediate8
        | OpKind::Immediate16
        | OpKind::Immediate32
        | OpKind::Immediate64
        | OpKind::Immediate8to16
        | OpKind::Immediate8to32
        | OpKind::Immediate8to64
        | OpKind::Immediate32to64 => Some(Kind::Immediate),
        _ => None,
    }
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
        use $crate::processor::soft::integer::operand::{
            Base, Dst, DstHigh, Full, Immediate, Kind, Memory, Src, SrcHigh, bits, kind,
        };
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
        use $crate::processor::soft::integer::operand::{Immediate, Kind, Locked, Src, SrcHigh, bits, kind};
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
        use $crate::processor::soft::integer::operand::{Base, Dst, DstHigh, Full, Kind, Memory, bits, kind};
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
        use $crate::processor::soft::integer::operand::{Locked, bits};
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
        use $crate::processor::soft::integer::operand::{Base, Full, Kind, Memory, Src, bits, kind};
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

/// The handler `$name`: `$fast`, and `$slow` from the start when that finds something not at hand.
macro_rules! fast_or_slow {
    ($(#[$doc:meta])* fn $name:ident<$($parameter:ident: $bound:path),*>, $fast:ident, $slow:ident) => {
        $(#[$doc])*
        fn $name<$($parameter: $bound),*>(cpu: &mut Cpu, op: &Op) -> Result<(), Exit> {
            #[cold]
            #[inline(never)]
            fn start_over<$($parameter: $bound),*>(cpu: &mut Cpu, op: &Op) -> Result<(), Exit> {
                $slow::<$($parameter),*>(cpu, op)
            }
            match $fast::<$($parameter),*>(cpu, op) {
                Some(()) => Ok(()),
                None => start_over::<$($parameter),*>(cpu, op),
            }
        }
    };
}

pub(super) use {
    fast_or_slow, locked_operand, locked_operands, one_operand, register_from, two_operands,
};
