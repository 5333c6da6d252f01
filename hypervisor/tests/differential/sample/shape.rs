//! What particular instructions need so that their interesting cases happen.

use super::{Builder, NOT_CANONICAL, RAX, RBP, RCX, RDI, RDX, RSI, RSP, operand_size};
use crate::layout::{FxImage, TAKEN};
use iced_x86::{Mnemonic, OpKind, Register};

impl Builder<'_> {
    /// What particular instructions need so that the interesting cases happen.
    pub(super) fn shape(&mut self, target: Option<u64>) {
        let stack = self.registers.gpr[RSP];
        match self.form.code.mnemonic() {
            Mnemonic::Bt | Mnemonic::Bts | Mnemonic::Btr | Mnemonic::Btc
                if self.is_bit_string() && target.is_some() =>
            {
                let register = self.instruction.op_register(1);
                let bit = self.random.below(1024).wrapping_sub(512);
                let dirty = match register.size() {
                    2 => (bit & 0xFFFF) | (self.random.u64() << 16),
                    4 => (bit & 0xFFFF_FFFF) | (self.random.u64() << 32),
                    _ => bit,
                };
                self.set(register.full_register().number(), dirty);
            }
            Mnemonic::Div | Mnemonic::Idiv => {
                let low = self.registers.gpr[RAX];
                match self.random.below(4) {
                    0 => self.set(RDX, 0),
                    1 => self.set(RDX, ((low as i64) >> 63) as u64),
                    2 => {
                        let value = self.random.below(1 << 10);
                        self.set(RDX, value);
                    }
                    _ => {}
                }
                if self.random.chance(30) {
                    self.set(RAX, low & 0xFF);
                }
            }
            Mnemonic::Cmpxchg if self.random.chance(50) => {
                let value = match target {
                    Some(target) => self.read(target),
                    None => self.register_value(0),
                };
                self.set(RAX, value);
            }
            Mnemonic::Cmpxchg8b | Mnemonic::Cmpxchg16b => {
                let half = operand_size(&self.instruction) / 2;
                if let Some(target) = target.filter(|_| self.random.chance(50)) {
                    let (low, high) = (self.read(target), self.read(target.wrapping_add(half)));
                    self.set(RAX, low);
                    self.set(RDX, high);
                }
            }
            Mnemonic::Enter | Mnemonic::Leave => {
                let frame = self.place(64, 8);
                self.set(RBP, frame);
            }
            Mnemonic::Popf | Mnemonic::Popfd | Mnemonic::Popfq => {
                // Neither single-stepping nor alignment checks for the test itself.
                let value = self.read(stack) & !0x4_0100;
                self.write(stack, &value.to_le_bytes());
            }
            Mnemonic::Ret => {
                let target = self.branch_target();
                self.write(stack, &target.to_le_bytes());
            }
            Mnemonic::Jmp | Mnemonic::Call => {
                let branch = self.branch_target();
                match (target, self.instruction.op_kind(0)) {
                    (Some(target), _) => self.write(target, &branch.to_le_bytes()),
                    (None, OpKind::Register) => {
                        let register = self.instruction.op_register(0).full_register().number();
                        self.registers.gpr[register] = branch;
                    }
                    _ => {}
                }
            }
            Mnemonic::Loop
            | Mnemonic::Loope
            | Mnemonic::Loopne
            | Mnemonic::Jrcxz
            | Mnemonic::Jecxz => {
                let dirty = self.random.u64() << 32;
                let count = self.random.pick(&[0, 1, 2, dirty, dirty | 1]);
                self.set(RCX, count);
            }
            Mnemonic::Ldmxcsr => {
                if let Some(target) = target {
                    // Bit 17 exists on AMD only.
                    let mask = if self.random.chance(80) {
                        0xFFFF
                    } else {
                        !(1 << 17)
                    };
                    let value = self.read(target) & mask;
                    self.write(target, &value.to_le_bytes()[..4]);
                }
            }
            Mnemonic::Maskmovdqu | Mnemonic::Maskmovq => {
                let place = self.place(16, 16);
                self.set(RDI, place);
            }
            Mnemonic::Fxrstor | Mnemonic::Fxrstor64 => {
                if let Some(target) = target {
                    let image = FxImage(self.registers.fx.0);
                    self.write(target, &image.0);
                }
            }
            _ if self.form.code.is_string_instruction() => self.shape_string(),
            _ => {}
        }
    }

    fn shape_string(&mut self) {
        let high = if self.narrow {
            self.random.u64() << 32
        } else {
            0
        };
        let source = self.place(64, 8) | high;
        let near = source.wrapping_add(self.random.below(40)).wrapping_sub(20);
        let far = self.place(64, 8) | high;
        let destination = if self.random.chance(40) { near } else { far };
        let count = match self.random.below(4) {
            0 => self.random.below(4),
            1 => self.random.below(600),
            _ => self.random.below(64),
        };
        self.set(RSI, source);
        self.set(RDI, destination);
        self.set(RCX, count | high);
        if self.random.chance(60) {
            // Equal runs for the comparing instructions.
            let byte = self.random.u64() as u8;
            let length = self.random.below(200) as usize;
            self.set(RAX, u64::from(byte).wrapping_mul(0x0101_0101_0101_0101));
            let run = vec![byte; length];
            for start in [source, destination] {
                let back = self.random.below(length as u64 + 1);
                self.write((start & 0xFFFF_FFFF).wrapping_sub(back), &run);
            }
        }
    }

    /// Where an indirect branch goes: almost always back to the test.
    fn branch_target(&mut self) -> u64 {
        if self.is_long() && self.random.chance(5) {
            NOT_CANONICAL | self.random.u64() >> 2
        } else {
            TAKEN
        }
    }

    fn register_value(&self, operand: u32) -> u64 {
        let register = self.instruction.op_register(operand);
        let value = self.registers.gpr[register.full_register().number()];
        let high = matches!(
            register,
            Register::AH | Register::CH | Register::DH | Register::BH
        );
        if high { value >> 8 } else { value }
    }
}
