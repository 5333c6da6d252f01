//! One sample of a form: the instruction with random operands, the registers and the memory.

mod operands;
mod shape;
mod vectors;

use super::{
    forms::{Form, Mode, Prefix},
    layout::{CODE, GS_BASE, HOLE, PAGE, READ_ONLY, Registers, SCRATCH, SCRATCH_SIZE},
    random::Random,
};
use iced_x86::{Decoder, DecoderOptions, Encoder, Instruction, Mnemonic, OpKind, Register};

const RAX: usize = 0;
const RCX: usize = 1;
const RDX: usize = 2;
const RBX: usize = 3;
const RSP: usize = 4;
const RBP: usize = 5;
const RSI: usize = 6;
const RDI: usize = 7;

const NOT_CANONICAL: u64 = 1 << 63;

pub struct Sample {
    pub instruction: Instruction,
    pub bytes: Vec<u8>,
    /// What the host runs instead, where it has an extension that the software processor does not
    /// report: TZCNT and LZCNT without their prefix.
    pub native: Vec<u8>,
    pub registers: Registers,
    pub memory: Box<[u8; SCRATCH_SIZE]>,
}

/// Makes the sample that `random` leads to. `None` when no encodable instruction was found.
pub fn make(form: &Form, random: &mut Random) -> Option<Sample> {
    (0..20).find_map(|_| Builder::new(form, random).build())
}

struct Builder<'a> {
    form: &'a Form,
    random: &'a mut Random,
    instruction: Instruction,
    registers: Registers,
    memory: Box<[u8; SCRATCH_SIZE]>,
    /// General registers that the address of the memory operand fixes.
    reserved: u16,
    /// String instructions address with 32 bits.
    narrow: bool,
}

impl<'a> Builder<'a> {
    fn new(form: &'a Form, random: &'a mut Random) -> Self {
        let narrow = form.mode == Mode::Compatible || random.chance(15);
        Self {
            form,
            narrow,
            random,
            instruction: Instruction::new(),
            registers: Registers::initial(),
            memory: Box::new([0; SCRATCH_SIZE]),
            reserved: 0,
        }
    }

    fn is_long(&self) -> bool {
        self.form.mode == Mode::Long
    }

    fn build(mut self) -> Option<Sample> {
        self.instruction.set_code(self.form.code);
        match self.form.prefix {
            Prefix::None => {}
            Prefix::Lock => self.instruction.set_has_lock_prefix(true),
            Prefix::Rep => self.instruction.set_has_rep_prefix(true),
            Prefix::Repne => self.instruction.set_has_repne_prefix(true),
        }
        for register in &mut self.registers.gpr {
            *register = self.random.integer();
        }
        self.fill_memory();
        if self.is_vector() {
            self.fill_vectors();
        }
        self.set_flags();
        if !self.is_long() {
            self.registers.gpr[8..].fill(0);
        }
        self.choose_operands();
        let stack = self.instruction.is_stack_instruction()
            || matches!(self.form.code.mnemonic(), Mnemonic::Enter | Mnemonic::Leave);
        if stack && self.reserved & (1 << RSP) == 0 {
            self.registers.gpr[RSP] = self.place(8, 8);
            self.reserved |= 1 << RSP;
        }
        let target = self.place_operand();
        self.shape(target);
        if !self.is_long() {
            for register in &mut self.registers.gpr {
                *register &= 0xFFFF_FFFF;
            }
        }
        let bitness = self.form.mode.bitness();
        let mut encoder = Encoder::new(bitness);
        encoder.encode(&self.instruction, CODE).ok()?;
        let bytes = encoder.take_buffer();
        // FSTCW and its like are two instructions, WAIT and the other.
        if bytes.len() > 1 && bytes[0] == 0x9B {
            return None;
        }
        let decoded = Decoder::with_ip(bitness, &bytes, CODE, DecoderOptions::NONE).decode();
        (decoded.code() == self.form.code && decoded.len() == bytes.len()).then_some(Sample {
            instruction: decoded,
            native: native_bytes(&decoded, &bytes),
            bytes,
            registers: self.registers,
            memory: self.memory,
        })
    }

    fn fill_memory(&mut self) {
        for bytes in self.memory.chunks_exact_mut(64) {
            // Corners in one word of eight are plenty: the operand itself is written later.
            for (i, word) in bytes.chunks_exact_mut(8).enumerate() {
                let value = if i == 0 {
                    self.random.integer()
                } else {
                    self.random.u64()
                };
                word.copy_from_slice(&value.to_le_bytes());
            }
        }
    }

    fn set_flags(&mut self) {
        let arithmetic = 0x8D5;
        let direction = if self.random.chance(30) { 0x400 } else { 0 };
        self.registers.flags = 0x202 | (self.random.u64() & arithmetic) | direction;
    }

    /// Sets a general register unless the memory operand depends on it.
    fn set(&mut self, register: usize, value: u64) {
        if self.reserved & (1 << register) == 0 {
            self.registers.gpr[register] = value;
        }
    }

    /// An address for `size` bytes: mostly fine, sometimes misaligned, across a page boundary, not
    /// writable, not there, not canonical.
    fn place(&mut self, size: u64, alignment: u64) -> u64 {
        let size = size.max(1);
        match self.random.below(100) {
            0..70 => {
                let room = SCRATCH_SIZE as u64 - 2 * 256 - size;
                let address = SCRATCH + 256 + self.random.below(room);
                (address & !(alignment.max(1) - 1)).max(SCRATCH + 128)
            }
            70..85 => SCRATCH + 256 + self.random.below(SCRATCH_SIZE as u64 - 512 - size),
            85..90 => SCRATCH + PAGE - self.random.below(size + 1),
            90..92 => READ_ONLY - self.random.below(size + 1),
            92..95 => READ_ONLY + self.random.below(PAGE - size),
            95..97 => HOLE - self.random.below(size + 1),
            97..98 => SCRATCH - self.random.below(size + 1),
            98..99 if self.is_long() => NOT_CANONICAL | self.random.u64() >> 8,
            _ => HOLE + self.random.below(PAGE),
        }
    }

    /// Writes into scratch memory what lies inside of it.
    fn write(&mut self, address: u64, bytes: &[u8]) {
        for (i, byte) in bytes.iter().enumerate() {
            let offset = address.wrapping_add(i as u64).wrapping_sub(SCRATCH) as usize;
            if let Some(place) = self.memory.get_mut(offset) {
                *place = *byte;
            }
        }
    }

    fn read(&self, address: u64) -> u64 {
        let mut bytes = [0; 8];
        for (i, byte) in bytes.iter_mut().enumerate() {
            let offset = address.wrapping_add(i as u64).wrapping_sub(SCRATCH) as usize;
            *byte = self.memory.get(offset).copied().unwrap_or(0);
        }
        u64::from_le_bytes(bytes)
    }
}

fn native_bytes(instruction: &Instruction, bytes: &[u8]) -> Vec<u8> {
    /// A CS override, which 64-bit mode ignores: keeps the length.
    const NULL_PREFIX: u8 = 0x2E;
    let mut native = bytes.to_vec();
    if matches!(instruction.mnemonic(), Mnemonic::Tzcnt | Mnemonic::Lzcnt)
        && let Some(prefix) = native.iter_mut().find(|byte| **byte == 0xF3)
    {
        *prefix = NULL_PREFIX;
    }
    native
}

/// Linear address of the memory operand, as the sample's registers make it.
pub fn operand_address(sample: &Sample) -> Option<u64> {
    let instruction = &sample.instruction;
    let operand =
        (0..instruction.op_count()).find(|i| instruction.op_kind(*i) == OpKind::Memory)?;
    instruction.virtual_address(operand, 0, |register, _, _| {
        Some(match register {
            Register::GS => GS_BASE,
            _ if register.is_segment_register() => 0,
            Register::AL => sample.registers.gpr[RAX] & 0xFF,
            _ => {
                let value = sample.registers.gpr[register.full_register().number()];
                if register.is_gpr32() {
                    value & 0xFFFF_FFFF
                } else {
                    value
                }
            }
        })
    })
}

/// Bytes of the memory operand, 0 when there is none.
pub fn operand_size(instruction: &Instruction) -> u64 {
    if (0..instruction.op_count()).all(|i| instruction.op_kind(i) != OpKind::Memory) {
        return 0;
    }
    match instruction.mnemonic() {
        Mnemonic::Fxsave | Mnemonic::Fxrstor | Mnemonic::Fxsave64 | Mnemonic::Fxrstor64 => 512,
        Mnemonic::Fnsave | Mnemonic::Frstor => 108,
        Mnemonic::Fnstenv | Mnemonic::Fldenv => 28,
        _ => (instruction.memory_size().size() as u64).max(1),
    }
}
