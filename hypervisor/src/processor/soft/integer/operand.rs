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

pub(super) use fast_or_slow;
