//! Shifts and rotates.
//!
//! The count is taken modulo 32 (64 for 64-bit operands); with a count of 0 no flag changes. OF is
//! defined for a count of 1 only; for others it is what the same formula gives, as processors do.

use super::{
    super::{
        cpu::{Cpu, Exit},
        flags::{Flags, W16, W32, W64},
        op::{Handler, Op},
    },
    operand::{Destination, Dst, Full, Memory, Size},
    shape::{Kind, bits, kind, one_operand},
};
use iced_x86::{Instruction, Mnemonic, OpKind};

pub fn select(instruction: &Instruction) -> Option<Handler> {
    macro_rules! shape {
        ($operation:ty) => {
            match instruction.op_kind(1) {
                OpKind::Register => one_operand!(instruction, shift, $operation, ByCl),
                _ => one_operand!(instruction, shift, $operation, ByImmediate),
            }
        };
    }
    macro_rules! double {
        ($operation:ty) => {
            match instruction.op_kind(2) {
                OpKind::Register => double_shape::<$operation, ByCl>(instruction)?,
                _ => double_shape::<$operation, ByImmediate>(instruction)?,
            }
        };
    }
    Some(match instruction.mnemonic() {
        Mnemonic::Shl | Mnemonic::Sal => shape!(Left),
        Mnemonic::Shr => shape!(Right),
        Mnemonic::Sar => shape!(Arithmetic),
        Mnemonic::Rol => shape!(RotateLeft),
        Mnemonic::Ror => shape!(RotateRight),
        Mnemonic::Rcl => shape!(RotateLeftCarry),
        Mnemonic::Rcr => shape!(RotateRightCarry),
        Mnemonic::Shld => double!(DoubleLeft),
        Mnemonic::Shrd => double!(DoubleRight),
        _ => return None,
    })
}

trait Count {
    fn get(cpu: &Cpu, op: &Op) -> u32;
}
struct ByCl;
struct ByImmediate;
impl Count for ByCl {
    #[inline(always)]
    fn get(cpu: &Cpu, _op: &Op) -> u32 {
        cpu.reg(Cpu::RCX) as u32
    }
}
impl Count for ByImmediate {
    #[inline(always)]
    fn get(_cpu: &Cpu, op: &Op) -> u32 {
        op.immediate as u32
    }
}

#[inline(always)]
fn masked<W: Size>(count: u32) -> u32 {
    count & if W::BITS == 64 { 63 } else { 31 }
}

/// A shift or rotate by `count`, 1 to 31 or 63.
trait Shift {
    fn apply<W: Size>(a: u64, count: u32, flags: Flags) -> (u64, Flags);
}

struct Left;
impl Shift for Left {
    #[inline(always)]
    fn apply<W: Size>(a: u64, count: u32, _flags: Flags) -> (u64, Flags) {
        let result = a << count;
        // Counts beyond 8 and 16 bits shift in zeros only; `a` may be dirty above its size.
        let carry = if W::BITS == 64 {
            (a >> (64 - count)) & 1
        } else {
            (W::truncate(a) << count >> W::BITS) & 1
        };
        let overflow = (W::extend(result) >> 63) ^ carry;
        (
            result,
            Flags::explicit::<W>(result, carry != 0, overflow != 0, false),
        )
    }
}

struct Right;
impl Shift for Right {
    #[inline(always)]
    fn apply<W: Size>(a: u64, count: u32, _flags: Flags) -> (u64, Flags) {
        let a = W::truncate(a);
        let carry = (a >> (count - 1)) & 1 != 0;
        let overflow = W::extend(a) >> 63 != 0;
        let result = a >> count;
        (result, Flags::explicit::<W>(result, carry, overflow, false))
    }
}

struct Arithmetic;
impl Shift for Arithmetic {
    #[inline(always)]
    fn apply<W: Size>(a: u64, count: u32, _flags: Flags) -> (u64, Flags) {
        let a = W::signed(a);
        let carry = (a >> (count - 1)) & 1 != 0;
        let result = (a >> count) as u64;
        (result, Flags::explicit::<W>(result, carry, false, false))
    }
}

/// Flags of a rotate: CF and OF; the others stay.
#[inline(always)]
fn rotated(flags: Flags, carry: bool, overflow: bool) -> Flags {
    flags.with_carry(carry).with_overflow(overflow)
}

/// Rotates the low `W::BITS` bits left by `count` modulo their number.
#[inline(always)]
fn rotate_left<W: Size>(a: u64, count: u32) -> u64 {
    let count = count & (W::BITS - 1);
    let a = W::truncate(a);
    if W::BITS == 64 {
        a.rotate_left(count)
    } else {
        (a << count) | (a >> (W::BITS - count))
    }
}

struct RotateLeft;
impl Shift for RotateLeft {
    #[inline(always)]
    fn apply<W: Size>(a: u64, count: u32, flags: Flags) -> (u64, Flags) {
        let result = rotate_left::<W>(a, count);
        let carry = result & 1 != 0;
        let top = W::extend(result) >> 63 != 0;
        (result, rotated(flags, carry, top ^ carry))
    }
}

struct RotateRight;
impl Shift for RotateRight {
    #[inline(always)]
    fn apply<W: Size>(a: u64, count: u32, flags: Flags) -> (u64, Flags) {
        let result = rotate_left::<W>(a, W::BITS.wrapping_sub(count));
        let carry = W::extend(result) >> 63 != 0;
        let below = (result >> (W::BITS - 2)) & 1 != 0;
        (result, rotated(flags, carry, carry ^ below))
    }
}

struct RotateLeftCarry;
impl Shift for RotateLeftCarry {
    #[inline(always)]
    fn apply<W: Size>(a: u64, count: u32, flags: Flags) -> (u64, Flags) {
        let (result, carry) = through_carry::<W>(a, count % (W::BITS + 1), flags.carry());
        let top = W::extend(result) >> 63 != 0;
        (result, rotated(flags, carry, top ^ carry))
    }
}

struct RotateRightCarry;
impl Shift for RotateRightCarry {
    #[inline(always)]
    fn apply<W: Size>(a: u64, count: u32, flags: Flags) -> (u64, Flags) {
        let left = (W::BITS + 1 - count % (W::BITS + 1)) % (W::BITS + 1);
        let (result, carry) = through_carry::<W>(a, left, flags.carry());
        let top = W::extend(result) >> 63 != 0;
        let below = (result >> (W::BITS - 2)) & 1 != 0;
        (result, rotated(flags, carry, top ^ below))
    }
}

/// Rotates the `W::BITS + 1` bits of carry and `a` left by `count`, 0 to `W::BITS`.
#[inline(always)]
fn through_carry<W: Size>(a: u64, count: u32, carry: bool) -> (u64, bool) {
    let all = u128::from(W::truncate(a)) | (u128::from(carry) << W::BITS);
    let rotated = (all << count) | (all >> (W::BITS + 1 - count));
    (W::truncate(rotated as u64), (rotated >> W::BITS) & 1 != 0)
}

fn shift<S: Shift, C: Count, W: Size, D: Destination<W>>(
    cpu: &mut Cpu,
    op: &Op,
) -> Result<(), Exit> {
    let place = D::locate(cpu, op);
    let count = masked::<W>(C::get(cpu, op));
    let a = D::load(cpu, place)?;
    if count == 0 {
        // Still a write: a 32-bit register loses its upper half.
        return D::store(cpu, place, a);
    }
    let (result, flags) = S::apply::<W>(a, count, cpu.flags);
    D::store(cpu, place, result)?;
    cpu.flags = flags;
    Ok(())
}

/// SHLD and SHRD: `b` supplies the bits shifted in. Counts above the size (16 bits) are undefined;
/// what is done here is what processors do: the operands rotate as `b:a:b`.
trait DoubleShift {
    fn apply<W: Size>(a: u64, b: u64, count: u32) -> (u64, bool);
}

struct DoubleLeft;
impl DoubleShift for DoubleLeft {
    #[inline(always)]
    fn apply<W: Size>(a: u64, b: u64, count: u32) -> (u64, bool) {
        let (a, b) = (u128::from(W::truncate(a)), u128::from(W::truncate(b)));
        // From the top: a, b, a.
        let all = if W::BITS == 16 {
            (a << 32) | (b << 16) | a
        } else {
            (a << W::BITS) | b
        };
        let top = if W::BITS == 16 { 32 } else { W::BITS };
        let carry = (all >> (top + W::BITS - count)) & 1 != 0;
        let result = (all << count) >> top;
        (W::truncate(result as u64), carry)
    }
}

struct DoubleRight;
impl DoubleShift for DoubleRight {
    #[inline(always)]
    fn apply<W: Size>(a: u64, b: u64, count: u32) -> (u64, bool) {
        let (a, b) = (u128::from(W::truncate(a)), u128::from(W::truncate(b)));
        let all = if W::BITS == 16 {
            (a << 32) | (b << 16) | a
        } else {
            (b << W::BITS) | a
        };
        let carry = (all >> (count - 1)) & 1 != 0;
        (W::truncate((all >> count) as u64), carry)
    }
}

fn double_shape<S: DoubleShift, C: Count>(instruction: &Instruction) -> Option<Handler> {
    Some(match (bits(instruction, 0)?, kind(instruction, 0)?) {
        (16, Kind::Register) => double_shift::<S, C, W16, Dst>,
        (16, _) => double_shift::<S, C, W16, Memory<Full>>,
        (32, Kind::Register) => double_shift::<S, C, W32, Dst>,
        (32, _) => double_shift::<S, C, W32, Memory<Full>>,
        (_, Kind::Register) => double_shift::<S, C, W64, Dst>,
        (_, _) => double_shift::<S, C, W64, Memory<Full>>,
    })
}

fn double_shift<S: DoubleShift, C: Count, W: Size, D: Destination<W>>(
    cpu: &mut Cpu,
    op: &Op,
) -> Result<(), Exit> {
    let place = D::locate(cpu, op);
    let count = masked::<W>(C::get(cpu, op));
    let a = D::load(cpu, place)?;
    if count == 0 {
        return D::store(cpu, place, a);
    }
    let (result, carry) = S::apply::<W>(a, cpu.reg(op.src), count);
    D::store(cpu, place, result)?;
    let overflow = W::extend(a ^ result) >> 63 != 0;
    cpu.flags = Flags::explicit::<W>(result, carry, overflow, false);
    Ok(())
}
