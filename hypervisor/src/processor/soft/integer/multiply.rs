//! Multiplication and division.

use super::{
    super::{
        cpu::{Cpu, Exception, Exit},
        flags::{Flags, W8},
        op::{Handler, Op},
    },
    operand::{Size, Source},
    shape::{one_operand, register_from},
};
use iced_x86::{Instruction, Mnemonic};

pub fn select(instruction: &Instruction) -> Option<Handler> {
    Some(match (instruction.mnemonic(), instruction.op_count()) {
        (Mnemonic::Mul, _) => one_operand!(instruction, multiply, Unsigned),
        (Mnemonic::Imul, 1) => one_operand!(instruction, multiply, Signed),
        (Mnemonic::Imul, 2) => register_from!(instruction, multiply_register, Two),
        (Mnemonic::Imul, _) => register_from!(instruction, multiply_register, Three),
        (Mnemonic::Div, _) => one_operand!(instruction, divide, Unsigned),
        (Mnemonic::Idiv, _) => one_operand!(instruction, divide, Signed),
        _ => return None,
    })
}

/// Signedness: products and quotients of values of `W::BITS` bits.
trait Arithmetic {
    /// The product as (low, high, whether the high half says more than the low half).
    fn product<W: Size>(a: u64, b: u64) -> (u64, u64, bool);
    /// Quotient and remainder of `high:low / divisor`, `None` where the processor raises #DE.
    fn quotient<W: Size>(high: u64, low: u64, divisor: u64) -> Option<(u64, u64)>;
}
struct Unsigned;
struct Signed;

impl Arithmetic for Unsigned {
    #[inline(always)]
    fn product<W: Size>(a: u64, b: u64) -> (u64, u64, bool) {
        let product = u128::from(W::truncate(a)) * u128::from(W::truncate(b));
        let high = (product >> W::BITS) as u64;
        (product as u64, high, high != 0)
    }

    #[inline(always)]
    fn quotient<W: Size>(high: u64, low: u64, divisor: u64) -> Option<(u64, u64)> {
        let (high, low) = (W::truncate(high), W::truncate(low));
        let divisor = W::truncate(divisor);
        if high >= divisor {
            return None; // division by zero, or a quotient that does not fit
        }
        if W::BITS < 64 || high == 0 {
            let dividend = if W::BITS < 64 {
                (high << W::BITS) | low
            } else {
                low
            };
            return Some((dividend / divisor, dividend % divisor));
        }
        let dividend = (u128::from(high) << 64) | u128::from(low);
        let divisor = u128::from(divisor);
        Some(((dividend / divisor) as u64, (dividend % divisor) as u64))
    }
}

impl Arithmetic for Signed {
    #[inline(always)]
    fn product<W: Size>(a: u64, b: u64) -> (u64, u64, bool) {
        let product = i128::from(W::signed(a)).wrapping_mul(i128::from(W::signed(b)));
        let low = product as u64;
        let fits = i128::from(W::signed(low)) == product;
        (low, (product >> W::BITS) as u64, !fits)
    }

    #[inline(always)]
    fn quotient<W: Size>(high: u64, low: u64, divisor: u64) -> Option<(u64, u64)> {
        let dividend = (i128::from(W::signed(high)) << W::BITS) | i128::from(W::truncate(low));
        let divisor = i128::from(W::signed(divisor));
        let small = i64::try_from(dividend)
            .ok()
            .zip(i64::try_from(divisor).ok());
        let (quotient, remainder) = match small {
            Some((a, b)) if b != 0 && b != -1 => (i128::from(a / b), i128::from(a % b)),
            _ => (
                dividend.checked_div(divisor)?,
                dividend.checked_rem(divisor)?,
            ),
        };
        let fits = i128::from(W::signed(quotient as u64)) == quotient;
        fits.then_some((quotient as u64, remainder as u64))
    }
}

fn multiply<A: Arithmetic, W: Size, S: Source<W>>(cpu: &mut Cpu, op: &Op) -> Result<(), Exit> {
    let b = S::read(cpu, op)?;
    let (low, high, large) = A::product::<W>(cpu.reg(Cpu::RAX), b);
    if W::BITS == 8 {
        let merged = (cpu.reg(Cpu::RAX) & !0xFFFF) | ((high & 0xFF) << 8) | (low & 0xFF);
        cpu.set_reg(Cpu::RAX, merged);
    } else {
        W::set(cpu, Cpu::RAX, low);
        W::set(cpu, Cpu::RDX, high);
    }
    cpu.flags = Flags::explicit::<W>(low, large, large, false);
    Ok(())
}

/// The two- and three-operand forms of IMUL differ in where the second factor is.
trait Factor {
    const IMMEDIATE: bool;
}
struct Two;
struct Three;
impl Factor for Two {
    const IMMEDIATE: bool = false;
}
impl Factor for Three {
    const IMMEDIATE: bool = true;
}

fn multiply_register<F: Factor, W: Size, S: Source<W>>(cpu: &mut Cpu, op: &Op) -> Result<(), Exit> {
    let b = S::read(cpu, op)?;
    let a = if F::IMMEDIATE {
        op.immediate as u64
    } else {
        cpu.reg(op.dst)
    };
    let (low, _, large) = Signed::product::<W>(a, b);
    W::set(cpu, op.dst, low);
    cpu.flags = Flags::explicit::<W>(low, large, large, false);
    Ok(())
}

fn divide<A: Arithmetic, W: Size, S: Source<W>>(cpu: &mut Cpu, op: &Op) -> Result<(), Exit> {
    let divisor = S::read(cpu, op)?;
    let low = cpu.reg(Cpu::RAX);
    let high = if W::BITS == 8 {
        low >> 8
    } else {
        cpu.reg(Cpu::RDX)
    };
    let Some((quotient, remainder)) = A::quotient::<W>(high, low, divisor) else {
        return cpu.raise(Exception::DIVIDE);
    };
    if W::BITS == 8 {
        W8::set(cpu, Cpu::RAX, quotient);
        let merged = (cpu.reg(Cpu::RAX) & !0xFF00) | ((remainder & 0xFF) << 8);
        cpu.set_reg(Cpu::RAX, merged);
    } else {
        W::set(cpu, Cpu::RAX, quotient);
        W::set(cpu, Cpu::RDX, remainder);
    }
    Ok(())
}
