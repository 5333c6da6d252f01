//! String instructions, with and without repetition.
//!
//! Repetition keeps its progress in RCX, RSI and RDI after every step, so that a fault restarts
//! where it happened. One execution does a bounded amount of work; then it branches to itself, so
//! that interrupts are taken in between, as on a real processor.

use super::{
    super::{
        cpu::{Cpu, Exit, segment},
        flags::{self, Flags, W8, W16, W32, W64},
        op::{Handler, Op},
    },
    operand::Size,
};
use iced_x86::{Code, Instruction};

/// Bytes that one execution of a repeated instruction copies or fills at most.
const BULK_LIMIT: u64 = 64 << 10;
/// Elements that one execution handles one by one at most.
const STEP_LIMIT: u32 = 1024;
/// Bytes in bulk that count as one instruction more: a long repetition uses up the time slice, so
/// that timers and the worker do not wait for it.
const BULK_PER_INSTRUCTION: u64 = 64;

pub fn select(instruction: &Instruction) -> Option<Handler> {
    let repeats = instruction.has_rep_prefix() || instruction.has_repne_prefix();
    let until_equal = instruction.has_repne_prefix();
    macro_rules! plain {
        ($bulk:ident, $step:ident, $width:ty) => {
            if repeats {
                $bulk::<$width> as Handler
            } else {
                once::<$step, $width>
            }
        };
    }
    macro_rules! simple {
        ($step:ident, $width:ty) => {
            if repeats {
                repeat::<$step, $width> as Handler
            } else {
                once::<$step, $width>
            }
        };
    }
    macro_rules! comparing {
        ($step:ident, $width:ty) => {
            match (repeats, until_equal) {
                (false, _) => once::<$step, $width> as Handler,
                (true, false) => repeat_while::<$step, $width, true>,
                (true, true) => repeat_while::<$step, $width, false>,
            }
        };
    }
    Some(match instruction.code() {
        Code::Movsb_m8_m8 => plain!(repeat_move, Move, W8),
        Code::Movsw_m16_m16 => plain!(repeat_move, Move, W16),
        Code::Movsd_m32_m32 => plain!(repeat_move, Move, W32),
        Code::Movsq_m64_m64 => plain!(repeat_move, Move, W64),
        Code::Stosb_m8_AL => plain!(repeat_store, Store, W8),
        Code::Stosw_m16_AX => plain!(repeat_store, Store, W16),
        Code::Stosd_m32_EAX => plain!(repeat_store, Store, W32),
        Code::Stosq_m64_RAX => plain!(repeat_store, Store, W64),
        Code::Lodsb_AL_m8 => simple!(Load, W8),
        Code::Lodsw_AX_m16 => simple!(Load, W16),
        Code::Lodsd_EAX_m32 => simple!(Load, W32),
        Code::Lodsq_RAX_m64 => simple!(Load, W64),
        Code::Scasb_AL_m8 => comparing!(Scan, W8),
        Code::Scasw_AX_m16 => comparing!(Scan, W16),
        Code::Scasd_EAX_m32 => comparing!(Scan, W32),
        Code::Scasq_RAX_m64 => comparing!(Scan, W64),
        Code::Cmpsb_m8_m8 => comparing!(Compare, W8),
        Code::Cmpsw_m16_m16 => comparing!(Compare, W16),
        Code::Cmpsd_m32_m32 => comparing!(Compare, W32),
        Code::Cmpsq_m64_m64 => comparing!(Compare, W64),
        _ => return None,
    })
}

/// Reads RCX, RSI or RDI in the instruction's address size.
#[inline(always)]
fn address_register(cpu: &Cpu, op: &Op, register: u8) -> u64 {
    let value = cpu.reg(register);
    if op.length_and_flags & Op::ADDRESS32 != 0 {
        value & 0xFFFF_FFFF
    } else {
        value
    }
}

/// Writes RCX, RSI or RDI in the instruction's address size.
#[inline(always)]
fn set_address_register(cpu: &mut Cpu, op: &Op, register: u8, value: u64) {
    let narrow = op.length_and_flags & Op::ADDRESS32 != 0;
    cpu.set_reg(register, if narrow { value & 0xFFFF_FFFF } else { value });
}

#[inline(always)]
fn source(cpu: &Cpu, op: &Op) -> u64 {
    let base = cpu.segment_base[usize::from(op.segment & 7)];
    base.wrapping_add(address_register(cpu, op, Cpu::RSI))
}

#[inline(always)]
fn destination(cpu: &Cpu, op: &Op) -> u64 {
    cpu.segment_base[segment::ES].wrapping_add(address_register(cpu, op, Cpu::RDI))
}

/// Moves RSI or RDI by `bytes` in the direction that DF says.
#[inline(always)]
fn advance(cpu: &mut Cpu, op: &Op, register: u8, bytes: u64) {
    let backward = cpu.system_flags & flags::DF != 0;
    let distance = if backward {
        bytes.wrapping_neg()
    } else {
        bytes
    };
    let value = cpu.reg(register).wrapping_add(distance);
    set_address_register(cpu, op, register, value);
}

/// One element of a string instruction.
trait Step {
    fn step<W: Size>(cpu: &mut Cpu, op: &Op) -> Result<(), Exit>;
}

struct Move;
impl Step for Move {
    #[inline(always)]
    fn step<W: Size>(cpu: &mut Cpu, op: &Op) -> Result<(), Exit> {
        let value = W::load(cpu, source(cpu, op))?;
        W::store(cpu, destination(cpu, op), value)?;
        advance(cpu, op, Cpu::RSI, W::BYTES);
        advance(cpu, op, Cpu::RDI, W::BYTES);
        Ok(())
    }
}

struct Store;
impl Step for Store {
    #[inline(always)]
    fn step<W: Size>(cpu: &mut Cpu, op: &Op) -> Result<(), Exit> {
        W::store(cpu, destination(cpu, op), cpu.reg(Cpu::RAX))?;
        advance(cpu, op, Cpu::RDI, W::BYTES);
        Ok(())
    }
}

struct Load;
impl Step for Load {
    #[inline(always)]
    fn step<W: Size>(cpu: &mut Cpu, op: &Op) -> Result<(), Exit> {
        let value = W::load(cpu, source(cpu, op))?;
        W::set(cpu, Cpu::RAX, value);
        advance(cpu, op, Cpu::RSI, W::BYTES);
        Ok(())
    }
}

struct Scan;
impl Step for Scan {
    #[inline(always)]
    fn step<W: Size>(cpu: &mut Cpu, op: &Op) -> Result<(), Exit> {
        let a = cpu.reg(Cpu::RAX);
        let b = W::load(cpu, destination(cpu, op))?;
        cpu.flags = Flags::sub::<W>(a, b, a.wrapping_sub(b));
        advance(cpu, op, Cpu::RDI, W::BYTES);
        Ok(())
    }
}

struct Compare;
impl Step for Compare {
    #[inline(always)]
    fn step<W: Size>(cpu: &mut Cpu, op: &Op) -> Result<(), Exit> {
        let a = W::load(cpu, source(cpu, op))?;
        let b = W::load(cpu, destination(cpu, op))?;
        cpu.flags = Flags::sub::<W>(a, b, a.wrapping_sub(b));
        advance(cpu, op, Cpu::RSI, W::BYTES);
        advance(cpu, op, Cpu::RDI, W::BYTES);
        Ok(())
    }
}

fn once<S: Step, W: Size>(cpu: &mut Cpu, op: &Op) -> Result<(), Exit> {
    S::step::<W>(cpu, op)
}

/// Goes on with the same instruction after interrupts had their chance.
#[cold]
fn again(cpu: &mut Cpu, op: &Op) -> Result<(), Exit> {
    cpu.rip = cpu.reg(Cpu::RIP).wrapping_add(u64::from(op.offset));
    Err(Exit::Branch)
}

/// One element of a repetition, counted when it is done. Whether any remain.
#[inline(always)]
fn counted<S: Step, W: Size>(cpu: &mut Cpu, op: &Op) -> Result<bool, Exit> {
    S::step::<W>(cpu, op)?;
    let count = address_register(cpu, op, Cpu::RCX).wrapping_sub(1);
    set_address_register(cpu, op, Cpu::RCX, count);
    Ok(count != 0)
}

fn repeat<S: Step, W: Size>(cpu: &mut Cpu, op: &Op) -> Result<(), Exit> {
    if address_register(cpu, op, Cpu::RCX) == 0 {
        return Ok(());
    }
    for _ in 0..STEP_LIMIT {
        if !counted::<S, W>(cpu, op)? {
            return Ok(());
        }
    }
    cpu.executed = cpu.executed.wrapping_add(STEP_LIMIT.into());
    again(cpu, op)
}

/// REPE (`WHILE` true) and REPNE: as long as ZF is `WHILE`.
fn repeat_while<S: Step, W: Size, const WHILE: bool>(cpu: &mut Cpu, op: &Op) -> Result<(), Exit> {
    if address_register(cpu, op, Cpu::RCX) == 0 {
        return Ok(());
    }
    for _ in 0..STEP_LIMIT {
        let more = counted::<S, W>(cpu, op)?;
        if !more || cpu.flags.zero() != WHILE {
            return Ok(());
        }
    }
    cpu.executed = cpu.executed.wrapping_add(STEP_LIMIT.into());
    again(cpu, op)
}

/// Elements of a repetition that may be done in bulk: forward, and within the limit.
#[inline(always)]
fn bulk_count<W: Size>(cpu: &Cpu, op: &Op, bytes: u64) -> u64 {
    if cpu.system_flags & flags::DF != 0 {
        return 0;
    }
    let count = address_register(cpu, op, Cpu::RCX);
    count.min(bytes.min(BULK_LIMIT) / W::BYTES)
}

/// Accounts for `count` elements done in bulk. Whether any remain.
fn finish_bulk<W: Size>(cpu: &mut Cpu, op: &Op, count: u64, moves: bool) -> bool {
    let bytes = count.wrapping_mul(W::BYTES);
    cpu.executed = cpu.executed.wrapping_add(bytes / BULK_PER_INSTRUCTION);
    if moves {
        advance(cpu, op, Cpu::RSI, bytes);
    }
    advance(cpu, op, Cpu::RDI, bytes);
    let left = address_register(cpu, op, Cpu::RCX).wrapping_sub(count);
    set_address_register(cpu, op, Cpu::RCX, left);
    left != 0
}

fn repeat_move<W: Size>(cpu: &mut Cpu, op: &Op) -> Result<(), Exit> {
    if address_register(cpu, op, Cpu::RCX) == 0 {
        return Ok(());
    }
    let mut done = 0u64;
    while done < BULK_LIMIT {
        let mut count = 0;
        // The source faults first, also in the second half of an element across pages.
        if let Some((from, readable)) = cpu.page_span(source(cpu, op), false)?
            && readable >= W::BYTES
            && let Some((to, writable)) = cpu.page_span(destination(cpu, op), true)?
        {
            count = bulk_count::<W>(cpu, op, readable.min(writable));
            let bytes = count.wrapping_mul(W::BYTES);
            if !copy_forward(cpu, from, to, bytes, W::BYTES) {
                count = 0;
            }
        }
        // An element across a page boundary, backward, in a hole, in code: one by one.
        let more = if count == 0 {
            counted::<Move, W>(cpu, op)?
        } else {
            finish_bulk::<W>(cpu, op, count, true)
        };
        if !more {
            return Ok(());
        }
        done = done.wrapping_add(count.wrapping_mul(W::BYTES).max(64));
    }
    again(cpu, op)
}

/// Copies as the processor does, element after element: what was written may be read again when
/// the ranges overlap, which repeats a pattern. False when that needs single steps.
fn copy_forward(cpu: &Cpu, from: u64, to: u64, bytes: u64, element: u64) -> bool {
    let distance = to.wrapping_sub(from);
    if distance >= bytes {
        // No overlap, or the destination lies below: like memmove.
        return cpu.memory.copy_within(from, to, bytes).is_some();
    }
    if distance < element {
        return false;
    }
    let mut done = 0u64;
    while done < bytes {
        // The source is periodic over all that was written so far.
        let chunk = distance.wrapping_add(done).min(bytes.wrapping_sub(done));
        if cpu
            .memory
            .copy_within(from, to.wrapping_add(done), chunk)
            .is_none()
        {
            return false;
        }
        done = done.wrapping_add(chunk);
    }
    true
}

fn repeat_store<W: Size>(cpu: &mut Cpu, op: &Op) -> Result<(), Exit> {
    if address_register(cpu, op, Cpu::RCX) == 0 {
        return Ok(());
    }
    let mut done = 0u64;
    while done < BULK_LIMIT {
        let mut count = 0;
        if let Some((to, writable)) = cpu.page_span(destination(cpu, op), true)? {
            count = bulk_count::<W>(cpu, op, writable);
            if !fill::<W>(cpu, to, count) {
                count = 0;
            }
        }
        let more = if count == 0 {
            counted::<Store, W>(cpu, op)?
        } else {
            finish_bulk::<W>(cpu, op, count, false)
        };
        if !more {
            return Ok(());
        }
        done = done.wrapping_add(count.wrapping_mul(W::BYTES).max(64));
    }
    again(cpu, op)
}

/// Fills guest memory at offset `to` with `count` copies of the accumulator.
fn fill<W: Size>(cpu: &Cpu, to: u64, count: u64) -> bool {
    let value = W::truncate(cpu.reg(Cpu::RAX));
    let bytes = count.wrapping_mul(W::BYTES);
    let byte = value & 0xFF;
    if value == W::truncate(byte.wrapping_mul(0x0101_0101_0101_0101)) {
        return cpu.memory.fill(to, bytes, byte as u8).is_some();
    }
    count != 0
        && cpu.memory.write(to, W::narrow(value)).is_some()
        && copy_forward(
            cpu,
            to,
            to.wrapping_add(W::BYTES),
            bytes - W::BYTES,
            W::BYTES,
        )
}
