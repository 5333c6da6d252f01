//! Loads, stores, constants, exchanges and conditional moves.

use super::arithmetic::{Source, load};
use crate::memory::Plain;
use crate::processor::soft::{
    cpu::{Cpu, Exit},
    float::{Context, Encoding, Extended, Format, Number, Rounding, flag},
    op::{Handler, Op},
};
use iced_x86::{Code, Instruction};

pub fn select(i: &Instruction) -> Option<Handler> {
    use Code::*;
    Some(match i.code() {
        Fld_m32fp => fld_memory::<f32>,
        Fld_m64fp => fld_memory::<f64>,
        Fld_m80fp => fld_m80,
        Fld_sti => fld_register,
        Fild_m16int => fild::<i16>,
        Fild_m32int => fild::<i32>,
        Fild_m64int => fild::<i64>,
        Fbld_m80bcd => fbld,
        Fst_m32fp => |cpu, op| fst::<f32, u32>(cpu, op, f32::to_bits, 0),
        Fstp_m32fp => |cpu, op| fst::<f32, u32>(cpu, op, f32::to_bits, 1),
        Fst_m64fp => |cpu, op| fst::<f64, u64>(cpu, op, f64::to_bits, 0),
        Fstp_m64fp => |cpu, op| fst::<f64, u64>(cpu, op, f64::to_bits, 1),
        Fstp_m80fp => fstp_m80,
        Fst_sti => |cpu, op| fst_register(cpu, op, 0),
        Fstp_sti | Fstp_sti_DFD0 | Fstp_sti_DFD8 => |cpu, op| fst_register(cpu, op, 1),
        Fstpnce_sti => fstpnce,
        Fist_m16int => |cpu, op| fist(cpu, op, false, |v| v as u16, 0),
        Fistp_m16int => |cpu, op| fist(cpu, op, false, |v| v as u16, 1),
        Fisttp_m16int => |cpu, op| fist(cpu, op, true, |v| v as u16, 1),
        Fist_m32int => |cpu, op| fist(cpu, op, false, |v| v as u32, 0),
        Fistp_m32int => |cpu, op| fist(cpu, op, false, |v| v as u32, 1),
        Fisttp_m32int => |cpu, op| fist(cpu, op, true, |v| v as u32, 1),
        Fistp_m64int => |cpu, op| fist(cpu, op, false, |v| v as u64, 1),
        Fisttp_m64int => |cpu, op| fist(cpu, op, true, |v| v as u64, 1),
        Fbstp_m80bcd => fbstp,
        Fxch_st0_sti | Fxch_st0_sti_DDC8 | Fxch_st0_sti_DFC8 => fxch,
        Ffree_sti => |cpu, op| ffree(cpu, op, false),
        Ffreep_sti => |cpu, op| ffree(cpu, op, true),
        Fincstp => |cpu, _| rotate(cpu, 1),
        Fdecstp => |cpu, _| rotate(cpu, 7),
        Fld1 => |cpu, _| constant(cpu, 0, 1 << 127),
        Fldl2t => |cpu, _| constant(cpu, 1, 0xD49A_784B_CD1B_8AFE_492B_F6FF_4DAF_DB4C),
        Fldl2e => |cpu, _| constant(cpu, 0, 0xB8AA_3B29_5C17_F0BB_BE87_FED0_691D_3E88),
        Fldpi => |cpu, _| constant(cpu, 1, 0xC90F_DAA2_2168_C234_C4C6_628B_80DC_1CD1),
        Fldlg2 => |cpu, _| constant(cpu, -2, 0x9A20_9A84_FBCF_F798_8F89_59AC_0B7C_9178),
        Fldln2 => |cpu, _| constant(cpu, -1, 0xB172_17F7_D1CF_79AB_C9E3_B398_03F2_F6AF),
        Fldz => fldz,
        Fcmovb_st0_sti => |cpu, op| fcmov(cpu, op, 2),
        Fcmovnb_st0_sti => |cpu, op| fcmov(cpu, op, 3),
        Fcmove_st0_sti => |cpu, op| fcmov(cpu, op, 4),
        Fcmovne_st0_sti => |cpu, op| fcmov(cpu, op, 5),
        Fcmovbe_st0_sti => |cpu, op| fcmov(cpu, op, 6),
        Fcmovnbe_st0_sti => |cpu, op| fcmov(cpu, op, 7),
        Fcmovu_st0_sti => |cpu, op| fcmov(cpu, op, 10),
        Fcmovnu_st0_sti => |cpu, op| fcmov(cpu, op, 11),
        _ => return None,
    })
}

fn fld_memory<T: Source>(cpu: &mut Cpu, op: &Op) -> Result<(), Exit> {
    cpu.require_x87()?;
    let source = load::<T>(cpu, op)?;
    if !cpu.x87.is_empty(7) {
        if cpu.stack_fault(true) {
            cpu.x87.push(Extended::pack(Number::INDEFINITE));
        }
        return Ok(());
    }
    let mut context = cpu.x87.context();
    let number = context.convert(Format::EXTENDED, source);
    if cpu.note_x87(&context) {
        cpu.x87.push(Extended::pack(number));
    }
    Ok(())
}

fn load_extended(cpu: &mut Cpu, op: &Op) -> Result<Extended, Exit> {
    let mut bytes = [0; 10];
    cpu.load_bytes(cpu.effective_address(op), &mut bytes)?;
    Ok(Extended::from_bytes(bytes))
}

fn fld_m80(cpu: &mut Cpu, op: &Op) -> Result<(), Exit> {
    cpu.require_x87()?;
    let value = load_extended(cpu, op)?;
    cpu.x87.clear_c1();
    cpu.push_x87(value);
    Ok(())
}

fn fld_register(cpu: &mut Cpu, op: &Op) -> Result<(), Exit> {
    cpu.require_x87()?;
    cpu.x87.clear_c1();
    if !cpu.x87.is_empty(op.dst) {
        cpu.push_x87(cpu.x87.st(op.dst));
    } else if cpu.stack_fault(false) {
        cpu.x87.push(Extended::pack(Number::INDEFINITE));
    }
    Ok(())
}

fn fild<T: Source>(cpu: &mut Cpu, op: &Op) -> Result<(), Exit> {
    cpu.require_x87()?;
    let source = load::<T>(cpu, op)?;
    cpu.x87.clear_c1();
    cpu.push_x87(Extended::pack(source));
    Ok(())
}

/// Whether an unmasked exception keeps a result from being written to memory.
fn withheld(context: &Context) -> bool {
    context.faults(flag::BEFORE | flag::OVERFLOW | flag::UNDERFLOW)
}

/// Stores ST(0) as `f` gives it, or `indefinite` for an empty register; pops.
fn store<B: Plain>(
    cpu: &mut Cpu,
    op: &Op,
    pops: u8,
    indefinite: B,
    f: impl FnOnce(&mut Context, Number) -> B,
) -> Result<(), Exit> {
    cpu.require_x87()?;
    let address = cpu.effective_address(op);
    if cpu.x87.is_empty(0) {
        cpu.check_store(address, size_of::<B>() as u64)?;
        if cpu.x87.invalid_masked() {
            cpu.store(address, indefinite)?;
        }
        if cpu.stack_fault(false) {
            cpu.x87.pops(pops);
        }
        return Ok(());
    }
    let mut context = cpu.x87.context();
    let value = f(&mut context, cpu.x87.st(0).unpack());
    if withheld(&context) {
        cpu.check_store(address, size_of::<B>() as u64)?;
        context.flags &= !flag::INEXACT;
        cpu.note_x87(&context);
        return Ok(());
    }
    cpu.store(address, value)?;
    cpu.note_x87(&context);
    cpu.x87.pops(pops);
    Ok(())
}

fn fst<T: Encoding, B: Plain>(
    cpu: &mut Cpu,
    op: &Op,
    bits: fn(T) -> B,
    pops: u8,
) -> Result<(), Exit> {
    store(
        cpu,
        op,
        pops,
        bits(T::pack(Number::INDEFINITE)),
        |context, number| {
            // A store does not report a denormal operand.
            let number = Number {
                denormal: false,
                ..number
            };
            bits(T::pack(context.convert(T::FORMAT, number)))
        },
    )
}

fn fist<B: Plain>(
    cpu: &mut Cpu,
    op: &Op,
    truncate: bool,
    bits: fn(i64) -> B,
    pops: u8,
) -> Result<(), Exit> {
    let width = 8 * size_of::<B>() as u32;
    let indefinite = i64::MIN >> (64 - width);
    store(cpu, op, pops, bits(indefinite), |context, number| {
        if truncate {
            context.rounding = Rounding::Zero;
        }
        bits(context.to_integer(number, width).unwrap_or(indefinite))
    })
}

/// Ten bytes to memory: like `store`, for the formats that are no plain integer.
fn store_ten(
    cpu: &mut Cpu,
    op: &Op,
    indefinite: [u8; 10],
    f: impl FnOnce(&mut Context, Extended) -> [u8; 10],
) -> Result<(), Exit> {
    cpu.require_x87()?;
    let address = cpu.effective_address(op);
    let mut context = cpu.x87.context();
    cpu.check_store(address, 10)?;
    if cpu.x87.is_empty(0) {
        if cpu.x87.invalid_masked() {
            cpu.store_bytes(address, &indefinite)?;
        }
        if cpu.stack_fault(false) {
            cpu.x87.pop();
        }
        return Ok(());
    }
    let value = f(&mut context, cpu.x87.st(0));
    if !withheld(&context) {
        cpu.store_bytes(address, &value)?;
    }
    if cpu.note_x87(&context) {
        cpu.x87.pop();
    }
    Ok(())
}

fn fstp_m80(cpu: &mut Cpu, op: &Op) -> Result<(), Exit> {
    let indefinite = Extended::pack(Number::INDEFINITE).to_bytes();
    store_ten(cpu, op, indefinite, |_, value| value.to_bytes())
}

const DECIMAL_INDEFINITE: [u8; 10] = [0, 0, 0, 0, 0, 0, 0, 0xC0, 0xFF, 0xFF];

/// FBSTP: 18 decimal digits and a sign.
fn fbstp(cpu: &mut Cpu, op: &Op) -> Result<(), Exit> {
    store_ten(cpu, op, DECIMAL_INDEFINITE, |context, value| {
        let before = context.flags;
        let number = value.unpack();
        let Some(integer) = context.to_integer(number, 64) else {
            return DECIMAL_INDEFINITE;
        };
        let mut magnitude = integer.unsigned_abs();
        if magnitude >= 10_u64.pow(18) {
            context.flags = before | flag::INVALID;
            return DECIMAL_INDEFINITE;
        }
        let mut bytes = [0; 10];
        for byte in bytes.iter_mut().take(9) {
            *byte = (magnitude % 10) as u8 | ((magnitude / 10 % 10) as u8) << 4;
            magnitude /= 100;
        }
        bytes[9] = u8::from(number.negative) << 7;
        bytes
    })
}

fn fbld(cpu: &mut Cpu, op: &Op) -> Result<(), Exit> {
    cpu.require_x87()?;
    let mut bytes = [0; 10];
    cpu.load_bytes(cpu.effective_address(op), &mut bytes)?;
    let [digits @ .., sign] = bytes;
    // Digits above 9 are undefined; they count as what they are here.
    let magnitude = digits.iter().rev().fold(0_i64, |sum, byte| {
        let pair = i64::from(byte >> 4) * 10 + i64::from(byte & 15);
        sum * 100 + pair
    });
    let number = Number {
        negative: sign & 0x80 != 0,
        ..Number::from_i64(magnitude)
    };
    cpu.x87.clear_c1();
    cpu.push_x87(Extended::pack(number));
    Ok(())
}

fn fst_register(cpu: &mut Cpu, op: &Op, pops: u8) -> Result<(), Exit> {
    cpu.require_x87()?;
    if cpu.x87.is_empty(0) {
        if cpu.stack_fault(false) {
            cpu.x87.set_number(op.dst, Number::INDEFINITE);
            cpu.x87.pops(pops);
        }
        return Ok(());
    }
    cpu.x87.clear_c1();
    let value = cpu.x87.st(0);
    cpu.x87.set(op.dst, value);
    cpu.x87.pops(pops);
    Ok(())
}

/// FSTPNCE: "no check for empty".
fn fstpnce(cpu: &mut Cpu, op: &Op) -> Result<(), Exit> {
    cpu.require_x87()?;
    if cpu.x87.is_empty(0) {
        cpu.x87.clear_c1();
        cpu.x87.pop();
        return Ok(());
    }
    fst_register(cpu, op, 1)
}

fn fxch(cpu: &mut Cpu, op: &Op) -> Result<(), Exit> {
    cpu.require_x87()?;
    let other = op.src;
    if cpu.x87.is_empty(0) || cpu.x87.is_empty(other) {
        if !cpu.stack_fault(false) {
            return Ok(());
        }
        for i in [0, other] {
            if cpu.x87.is_empty(i) {
                cpu.x87.set_number(i, Number::INDEFINITE);
            }
        }
    } else {
        cpu.x87.clear_c1();
    }
    let (a, b) = (cpu.x87.st(0), cpu.x87.st(other));
    cpu.x87.set(0, b);
    cpu.x87.set(other, a);
    Ok(())
}

fn ffree(cpu: &mut Cpu, op: &Op, pop: bool) -> Result<(), Exit> {
    cpu.require_x87()?;
    cpu.x87.free(op.dst);
    if pop {
        cpu.x87.clear_c1();
        cpu.x87.pop();
    }
    Ok(())
}

fn rotate(cpu: &mut Cpu, by: u8) -> Result<(), Exit> {
    cpu.require_x87()?;
    cpu.x87.clear_c1();
    cpu.x87.top = cpu.x87.top.wrapping_add(by) & 7;
    Ok(())
}

/// A constant, rounded as the control word says but without reporting that.
fn constant(cpu: &mut Cpu, exponent: i32, significand: u128) -> Result<(), Exit> {
    cpu.require_x87()?;
    cpu.x87.clear_c1();
    let mut context = cpu.x87.context();
    let number = context.round(Format::EXTENDED, false, exponent, significand);
    cpu.push_x87(Extended::pack(number));
    Ok(())
}

fn fldz(cpu: &mut Cpu, _: &Op) -> Result<(), Exit> {
    cpu.require_x87()?;
    cpu.x87.clear_c1();
    cpu.push_x87(Extended::default());
    Ok(())
}

/// `condition` is that of the flags, as Jcc encodes it.
fn fcmov(cpu: &mut Cpu, op: &Op, condition: u8) -> Result<(), Exit> {
    cpu.require_x87()?;
    if cpu.x87.is_empty(0) || cpu.x87.is_empty(op.src) {
        if cpu.stack_fault(false) {
            cpu.x87.set_number(0, Number::INDEFINITE);
        }
    } else if cpu.flags.condition(condition) {
        let value = cpu.x87.st(op.src);
        cpu.x87.set(0, value);
    }
    Ok(())
}
