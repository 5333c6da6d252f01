//! One decoded instruction: a handler and its operands, 32 bytes.

use super::cpu::{Cpu, Exit};

/// Executes one instruction. `Err` leaves the block; see [`Exit`] for what each reason means.
///
/// Rules for handlers: a handler that can fault faults before it changes any register (so that the
/// instruction can be restarted), except where the architecture says otherwise (string
/// instructions keep their progress). A handler never panics, whatever the guest does.
pub type Handler = fn(&mut Cpu, &Op) -> Result<(), Exit>;

/// Operands of an instruction. What `dst` and `src` index depends on the handler: general
/// registers (0-15; 8-bit handlers for AH..BH are separate), XMM registers, segment registers.
///
/// The memory operand, where there is one, is `segment_base[segment] + gpr[base] +
/// (gpr[index] << scale) + displacement`. An absent base or index is [`Cpu::ZERO`]; a RIP-relative
/// operand has base [`Cpu::RIP`] and the instruction's own offset in the block folded into
/// `displacement`.
#[derive(Clone, Copy)]
#[repr(align(32))] // two in a cache line
pub struct Op {
    pub run: Handler,
    pub displacement: i64,
    /// Immediate operand, sign-extended as the instruction wants it; for relative branches, the
    /// target relative to the start of the block.
    pub immediate: i64,
    pub dst: u8,
    pub src: u8,
    pub base: u8,
    pub index: u8,
    pub scale: u8,
    /// Index into [`Cpu::segment_base`]: only FS and GS have a base in 64-bit mode.
    pub segment: u8,
    /// Offset of this instruction from the start of its block.
    pub offset: u8,
    /// Bits 0-3: length in bytes. Bit 6: there is an explicit memory operand. Bit 7: the effective
    /// address is truncated to 32 bits.
    pub length_and_flags: u8,
}

impl Op {
    pub const ADDRESS32: u8 = 0x80;
    pub const MEMORY: u8 = 0x40;

    /// An op without operands.
    pub fn bare(run: Handler) -> Self {
        Self {
            run,
            displacement: 0,
            immediate: 0,
            dst: 0,
            src: 0,
            base: Cpu::ZERO,
            index: Cpu::ZERO,
            scale: 0,
            segment: 0,
            offset: 0,
            length_and_flags: 0,
        }
    }

    /// For handlers that serve both kinds of operand.
    pub fn has_memory(&self) -> bool {
        self.length_and_flags & Self::MEMORY != 0
    }

    #[inline(always)]
    pub fn length(&self) -> u8 {
        self.length_and_flags & 0x0F
    }

    /// Offset of the next instruction from the start of the block.
    #[inline(always)]
    pub fn next_offset(&self) -> u64 {
        u64::from(self.offset).wrapping_add(u64::from(self.length()))
    }
}
