//! Single bits and bit counts: BT and its relatives, BSF, BSR, POPCNT, CRC32.

use super::{
    super::{
        cpu::{Cpu, Exit},
        flags::{Flags, W8, W16, W32, W64},
        op::{Handler, Op},
    },
    operand::{Destination, Dst, Full, Locked, Memory, Size, Source, Src, SrcHigh},
    shape::{Kind, bits, kind, register_from},
};
use iced_x86::{Instruction, Mnemonic};

pub fn select(instruction: &Instruction) -> Option<Handler> {
    Some(match instruction.mnemonic() {
        Mnemonic::Bt => return bit_shape::<Test>(instruction),
        Mnemonic::Bts => return bit_shape::<Set>(instruction),
        Mnemonic::Btr => return bit_shape::<Reset>(instruction),
        Mnemonic::Btc => return bit_shape::<Complement>(instruction),
        // Without BMI1 and LZCNT, which CPUID does not report, the prefix of TZCNT and LZCNT is
        // ignored: they are BSF and BSR.
        Mnemonic::Bsf | Mnemonic::Tzcnt => register_from!(instruction, scan, Forward),
        Mnemonic::Bsr | Mnemonic::Lzcnt => register_from!(instruction, scan, Reverse),
        Mnemonic::Popcnt => register_from!(instruction, count_ones),
        Mnemonic::Crc32 => match (bits(instruction, 1)?, kind(instruction, 1)?) {
            (8, Kind::Register) => crc32::<W8, Src>,
            (8, Kind::High) => crc32::<W8, SrcHigh>,
            (8, _) => crc32::<W8, Memory<Full>>,
            (16, Kind::Register) => crc32::<W16, Src>,
            (16, _) => crc32::<W16, Memory<Full>>,
            (32, Kind::Register) => crc32::<W32, Src>,
            (32, _) => crc32::<W32, Memory<Full>>,
            (_, Kind::Register) => crc32::<W64, Src>,
            (_, _) => crc32::<W64, Memory<Full>>,
        },
        _ => return None,
    })
}

/// What happens to the bit after CF took its value.
trait BitOperation {
    const WRITES: bool = true;
    fn apply(value: u64, bit: u64) -> u64;
}
struct Test;
struct Set;
struct Reset;
struct Complement;
impl BitOperation for Test {
    const WRITES: bool = false;
    #[inline(always)]
    fn apply(value: u64, _bit: u64) -> u64 {
        value
    }
}
impl BitOperation for Set {
    #[inline(always)]
    fn apply(value: u64, bit: u64) -> u64 {
        value | bit
    }
}
impl BitOperation for Reset {
    #[inline(always)]
    fn apply(value: u64, bit: u64) -> u64 {
        value & !bit
    }
}
impl BitOperation for Complement {
    #[inline(always)]
    fn apply(value: u64, bit: u64) -> u64 {
        value ^ bit
    }
}

fn bit_shape<B: BitOperation>(instruction: &Instruction) -> Option<Handler> {
    macro_rules! wide {
        ($width:ty) => {
            match (kind(instruction, 0)?, kind(instruction, 1)?) {
                (Kind::Register, Kind::Register) => bit::<B, $width, Dst, ByRegister> as Handler,
                (Kind::Register, _) => bit::<B, $width, Dst, ByImmediate>,
                (Kind::Locked, Kind::Register) => bit_in_memory::<B, $width, Locked>,
                (Kind::Locked, _) => bit::<B, $width, Locked, ByImmediate>,
                (_, Kind::Register) => bit_in_memory::<B, $width, Memory<Full>>,
                (_, _) => bit::<B, $width, Memory<Full>, ByImmediate>,
            }
        };
    }
    Some(match bits(instruction, 0)? {
        16 => wide!(W16),
        32 => wide!(W32),
        _ => wide!(W64),
    })
}

/// Where the bit's number comes from.
trait Number {
    fn get(cpu: &Cpu, op: &Op) -> u64;
}
struct ByRegister;
struct ByImmediate;
impl Number for ByRegister {
    #[inline(always)]
    fn get(cpu: &Cpu, op: &Op) -> u64 {
        cpu.reg(op.src)
    }
}
impl Number for ByImmediate {
    #[inline(always)]
    fn get(_cpu: &Cpu, op: &Op) -> u64 {
        op.immediate as u64
    }
}

fn bit<B: BitOperation, W: Size, D: Destination<W>, N: Number>(
    cpu: &mut Cpu,
    op: &Op,
) -> Result<(), Exit> {
    let place = D::locate(cpu, op);
    let number = N::get(cpu, op);
    bit_at::<B, W, D>(cpu, place, number)
}

/// With the number in a register and the bits in memory, the number reaches beyond the operand.
fn bit_in_memory<B: BitOperation, W: Size, D: Destination<W, Place = u64>>(
    cpu: &mut Cpu,
    op: &Op,
) -> Result<(), Exit> {
    let number = cpu.reg(op.src);
    let unit = W::signed(number) >> W::BITS.trailing_zeros();
    let distance = (unit as u64).wrapping_mul(W::BYTES);
    let offset = cpu.effective_offset(op).wrapping_add(distance);
    let offset = if op.length_and_flags & Op::ADDRESS32 != 0 {
        offset & 0xFFFF_FFFF
    } else {
        offset
    };
    let linear = cpu.segment_base[usize::from(op.segment & 7)].wrapping_add(offset);
    bit_at::<B, W, D>(cpu, linear, number)
}

#[inline(always)]
fn bit_at<B: BitOperation, W: Size, D: Destination<W>>(
    cpu: &mut Cpu,
    place: D::Place,
    number: u64,
) -> Result<(), Exit> {
    let bit = 1u64 << (number & u64::from(W::BITS - 1));
    let value = if B::WRITES {
        let value = D::load(cpu, place)?;
        D::store(cpu, place, B::apply(value, bit))?;
        value
    } else {
        D::peek(cpu, place)?
    };
    cpu.flags = cpu.flags.with_carry(value & bit != 0);
    Ok(())
}

trait Direction {
    fn find<W: Size>(value: u64) -> u64;
}
struct Forward;
struct Reverse;
impl Direction for Forward {
    #[inline(always)]
    fn find<W: Size>(value: u64) -> u64 {
        value.trailing_zeros().into()
    }
}
impl Direction for Reverse {
    #[inline(always)]
    fn find<W: Size>(value: u64) -> u64 {
        63u32.wrapping_sub(value.leading_zeros()).into()
    }
}

/// BSF, BSR: a source of 0 leaves the destination as it is (documented by AMD, true for all).
fn scan<D: Direction, W: Size, S: Source<W>>(cpu: &mut Cpu, op: &Op) -> Result<(), Exit> {
    let value = W::truncate(S::read(cpu, op)?);
    if value != 0 {
        W::set(cpu, op.dst, D::find::<W>(value));
    }
    // Only ZF is defined, and it speaks of the source.
    cpu.flags = Flags::logic::<W>(value);
    Ok(())
}

fn count_ones<W: Size, S: Source<W>>(cpu: &mut Cpu, op: &Op) -> Result<(), Exit> {
    let value = W::truncate(S::read(cpu, op)?);
    W::set(cpu, op.dst, value.count_ones().into());
    // ZF speaks of the source, everything else is clear, PF too.
    cpu.flags = Flags::from_bits(u64::from(value == 0) * super::super::flags::ZF);
    Ok(())
}

/// CRC-32C (polynomial 0x11EDC6F41, bits reflected), one table entry per byte value.
const CRC32C: [u32; 256] = {
    let mut table = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        let mut crc = byte as u32;
        let mut bit = 0;
        while bit < 8 {
            crc = (crc >> 1) ^ (0x82F6_3B78 * (crc & 1));
            bit += 1;
        }
        table[byte] = crc;
        byte += 1;
    }
    table
};

fn crc32<W: Size, S: Source<W>>(cpu: &mut Cpu, op: &Op) -> Result<(), Exit> {
    let mut value = S::read(cpu, op)?;
    let mut crc = cpu.reg(op.dst) as u32;
    for _ in 0..W::BYTES {
        crc = (crc >> 8) ^ CRC32C[usize::from((crc ^ value as u32) as u8)];
        value >>= 8;
    }
    cpu.set_reg(op.dst, crc.into());
    Ok(())
}
