//! The x87 unit's registers.

use crate::{
    processor::soft::{cpu::Cpu, float::Extended},
    record::{Malformed, Record, check},
};

/// Bits of the status word. Exception flags have the positions of their masks in the control word.
pub mod status {
    pub const INVALID: u16 = 1 << 0;
    pub const EXCEPTIONS: u16 = 0x3F;
    pub const STACK_FAULT: u16 = 1 << 6;
    pub const SUMMARY: u16 = 1 << 7;
    pub const C0: u16 = 1 << 8;
    pub const C1: u16 = 1 << 9;
    pub const C2: u16 = 1 << 10;
    pub const C3: u16 = 1 << 14;
    pub const BUSY: u16 = 1 << 15;
}

/// The x87 unit's registers; the low 64 bits of `registers` are the MMX registers.
#[derive(Clone, Debug)]
pub struct X87 {
    /// By physical number: ST(i) is `(top + i) & 7`.
    pub registers: [Extended; 8],
    pub top: u8,
    /// Bit per physical register: not empty.
    pub valid: u8,
    pub control: u16,
    /// Status word without TOP, SUMMARY and BUSY, which follow from the rest.
    pub status: u16,
    /// Of the last instruction that raised an exception, as far as it is kept.
    pub opcode: u16,
    pub instruction_pointer: u64,
    pub data_pointer: u64,
}

impl Default for X87 {
    /// As FNINIT leaves it.
    fn default() -> Self {
        Self {
            registers: [Extended::default(); 8],
            top: 0,
            valid: 0,
            control: 0x37F,
            status: 0,
            opcode: 0,
            instruction_pointer: 0,
            data_pointer: 0,
        }
    }
}

impl X87 {
    /// Saves or restores every register.
    pub fn state(&mut self, record: &mut Record) -> Result<(), Malformed> {
        for register in &mut self.registers {
            record.field(&mut register.significand)?;
            record.field(&mut register.sign_exponent)?;
        }
        record.fields([&mut self.top, &mut self.valid])?;
        record.fields([&mut self.control, &mut self.status, &mut self.opcode])?;
        record.fields([&mut self.instruction_pointer, &mut self.data_pointer])?;
        let (control, status, top) = (self.control, self.status, self.top);
        self.set_control_word(control);
        self.set_status_word(status | u16::from(top & 7) << 11);
        check(
            self.top == top && self.control == control && self.status == status,
            "an x87 register",
        )
    }

    pub fn exception_pending(&self) -> bool {
        self.status & !self.control & status::EXCEPTIONS != 0
    }

    pub fn status_word(&self) -> u16 {
        let pending = if self.exception_pending() {
            status::SUMMARY | status::BUSY
        } else {
            0
        };
        self.status | u16::from(self.top & 7) << 11 | pending
    }

    pub fn set_status_word(&mut self, word: u16) {
        self.top = (word >> 11) as u8 & 7;
        self.status = word & !(7 << 11 | status::SUMMARY | status::BUSY);
    }

    /// Bit 6 always reads 1; bits 7 and 13-15 are reserved.
    pub fn set_control_word(&mut self, word: u16) {
        self.control = word & 0x1F3F | 0x40;
    }

    /// Two bits for each physical register: 0 valid, 1 zero, 2 special, 3 empty.
    pub fn full_tags(&self) -> u16 {
        let mut tags = 0;
        for (i, register) in self.registers.iter().enumerate() {
            let tag = if self.valid >> i & 1 == 0 {
                3
            } else {
                match (register.sign_exponent & 0x7FFF, register.significand) {
                    (0, 0) => 1,
                    (0 | 0x7FFF, _) => 2,
                    (_, significand) if significand >> 63 == 0 => 2,
                    _ => 0,
                }
            };
            tags |= tag << (2 * i);
        }
        tags
    }

    pub fn set_full_tags(&mut self, tags: u16) {
        self.valid = 0;
        for i in 0..8 {
            if tags >> (2 * i) & 3 != 3 {
                self.valid |= 1 << i;
            }
        }
    }

    #[inline(always)]
    fn physical(&self, i: u8) -> usize {
        usize::from(self.top.wrapping_add(i) & 7)
    }

    /// ST(i), whatever its tag.
    #[inline(always)]
    pub fn st(&self, i: u8) -> Extended {
        self.registers[self.physical(i)]
    }

    #[inline(always)]
    pub fn st_mut(&mut self, i: u8) -> &mut Extended {
        &mut self.registers[self.physical(i)]
    }

    /// Every MMX instruction but EMMS leaves all registers valid and TOP 0.
    #[inline(always)]
    pub fn enter_mmx(&mut self) {
        self.top = 0;
        self.valid = 0xFF;
    }

    #[inline(always)]
    pub fn mmx(&self, index: u8) -> u64 {
        self.registers[usize::from(index & 7)].significand
    }

    #[inline(always)]
    pub fn set_mmx(&mut self, index: u8, value: u64) {
        self.registers[usize::from(index & 7)] = Extended {
            significand: value,
            sign_exponent: 0xFFFF,
        };
    }
}

impl Cpu {
    /// Sets the control word, which may make an exception pending.
    pub fn set_x87_control(&mut self, word: u16) {
        self.x87.set_control_word(word);
        self.update_fpu_access();
    }
}
