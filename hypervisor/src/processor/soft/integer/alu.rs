//! Addition, subtraction, comparison and bitwise logic.

use super::{
    super::{
        cpu::{Cpu, Exit},
        flags::Flags,
        op::{Handler, Op},
    },
    operand::{Destination, Size, Source, fast_or_slow},
    shape::{Kind, kind, locked_operand, locked_operands, one_operand, two_operands},
};
use iced_x86::{Instruction, Mnemonic};

pub fn select(instruction: &Instruction) -> Option<Handler> {
    macro_rules! binary {
        ($operation:ty) => {
            if kind(instruction, 0)? == Kind::Locked {
                locked_operands!(instruction, update, $operation)
            } else {
                two_operands!(instruction, update, $operation)
            }
        };
    }
    macro_rules! unary {
        ($handler:ident $(, $operation:ty)*) => {
            if kind(instruction, 0)? == Kind::Locked {
                locked_operand!(instruction, $handler $(, $operation)*)
            } else {
                one_operand!(instruction, $handler $(, $operation)*)
            }
        };
    }
    Some(match instruction.mnemonic() {
        Mnemonic::Add => binary!(Add),
        Mnemonic::Or => binary!(Or),
        Mnemonic::Adc => binary!(Adc),
        Mnemonic::Sbb => binary!(Sbb),
        Mnemonic::And => binary!(And),
        Mnemonic::Sub => binary!(Sub),
        Mnemonic::Xor => binary!(Xor),
        Mnemonic::Cmp => two_operands!(instruction, compare, Sub),
        Mnemonic::Test => two_operands!(instruction, compare, And),
        Mnemonic::Inc => unary!(step, Add),
        Mnemonic::Dec => unary!(step, Sub),
        Mnemonic::Neg => unary!(negate),
        Mnemonic::Not => unary!(not),
        _ => return None,
    })
}

/// A two-operand operation: its result and the flags after it.
trait Binary {
    fn apply<W: Size>(a: u64, b: u64, flags: Flags) -> (u64, Flags);
}

macro_rules! binary {
    ($name:ident, |$width:ident, $a:ident, $b:ident, $flags:ident| $body:expr) => {
        struct $name;
        impl Binary for $name {
            #[inline(always)]
            fn apply<$width: Size>($a: u64, $b: u64, $flags: Flags) -> (u64, Flags) {
                $body
            }
        }
    };
}
binary!(Add, |W, a, b, _flags| {
    let result = a.wrapping_add(b);
    (result, Flags::add::<W>(a, b, result))
});
binary!(Adc, |W, a, b, flags| {
    let result = a.wrapping_add(b).wrapping_add(u64::from(flags.carry()));
    (result, Flags::add::<W>(a, b, result))
});
binary!(Sub, |W, a, b, _flags| {
    let result = a.wrapping_sub(b);
    (result, Flags::sub::<W>(a, b, result))
});
binary!(Sbb, |W, a, b, flags| {
    let result = a.wrapping_sub(b).wrapping_sub(u64::from(flags.carry()));
    (result, Flags::sub::<W>(a, b, result))
});
binary!(And, |W, a, b, _flags| (a & b, Flags::logic::<W>(a & b)));
binary!(Or, |W, a, b, _flags| (a | b, Flags::logic::<W>(a | b)));
binary!(Xor, |W, a, b, _flags| (a ^ b, Flags::logic::<W>(a ^ b)));

fast_or_slow!(fn update<B: Binary, W: Size, D: Destination<W>, S: Source<W>>, update_fast, update_slow);

#[inline(always)]
fn update_fast<B: Binary, W: Size, D: Destination<W>, S: Source<W>>(
    cpu: &mut Cpu,
    op: &Op,
) -> Option<()> {
    let place = D::locate(cpu, op);
    let b = S::read_fast(cpu, op)?;
    let a = D::load_fast(cpu, place)?;
    let (result, flags) = B::apply::<W>(a, b, cpu.flags);
    D::store_fast(cpu, place, result)?;
    cpu.flags = flags;
    Some(())
}

fn update_slow<B: Binary, W: Size, D: Destination<W>, S: Source<W>>(
    cpu: &mut Cpu,
    op: &Op,
) -> Result<(), Exit> {
    let place = D::locate(cpu, op);
    let b = S::read(cpu, op)?;
    let a = D::load(cpu, place)?;
    let (result, flags) = B::apply::<W>(a, b, cpu.flags);
    D::store(cpu, place, result)?;
    cpu.flags = flags;
    Ok(())
}

fast_or_slow!(fn compare<B: Binary, W: Size, D: Source<W>, S: Source<W>>, compare_fast, compare_slow);

#[inline(always)]
fn compare_fast<B: Binary, W: Size, D: Source<W>, S: Source<W>>(
    cpu: &mut Cpu,
    op: &Op,
) -> Option<()> {
    let a = D::read_fast(cpu, op)?;
    let b = S::read_fast(cpu, op)?;
    (_, cpu.flags) = B::apply::<W>(a, b, cpu.flags);
    Some(())
}

fn compare_slow<B: Binary, W: Size, D: Source<W>, S: Source<W>>(
    cpu: &mut Cpu,
    op: &Op,
) -> Result<(), Exit> {
    let a = D::read(cpu, op)?;
    let b = S::read(cpu, op)?;
    (_, cpu.flags) = B::apply::<W>(a, b, cpu.flags);
    Ok(())
}

/// INC and DEC: by one, CF untouched.
fn step<B: Binary, W: Size, D: Destination<W>>(cpu: &mut Cpu, op: &Op) -> Result<(), Exit> {
    let place = D::locate(cpu, op);
    let a = D::load(cpu, place)?;
    let (result, flags) = B::apply::<W>(a, 1, cpu.flags);
    D::store(cpu, place, result)?;
    cpu.flags = flags.with_carry(cpu.flags.carry());
    Ok(())
}

fn negate<W: Size, D: Destination<W>>(cpu: &mut Cpu, op: &Op) -> Result<(), Exit> {
    let place = D::locate(cpu, op);
    let a = D::load(cpu, place)?;
    let (result, flags) = Sub::apply::<W>(0, a, cpu.flags);
    D::store(cpu, place, result)?;
    cpu.flags = flags;
    Ok(())
}

fn not<W: Size, D: Destination<W>>(cpu: &mut Cpu, op: &Op) -> Result<(), Exit> {
    let place = D::locate(cpu, op);
    let a = D::load(cpu, place)?;
    D::store(cpu, place, !a)
}
