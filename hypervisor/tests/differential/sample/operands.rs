//! Operands: registers, immediates, and memory operands whose address registers lead to where the
//! sample wants them.

use super::Builder;
use super::{RAX, RBX, RSP, operand_size};
use crate::{
    forms::may_be_memory,
    layout::{GS_BASE, TAKEN},
};
use iced_x86::{
    Code, CpuidFeature, MemorySize, Mnemonic, OpCodeOperandKind as Kind, OpKind, Register,
};

impl Builder<'_> {
    /// The number of a register of a class that has 16 in 64-bit code.
    fn number(&mut self) -> u32 {
        self.random.below(if self.is_long() { 16 } else { 8 }) as u32
    }

    fn general(&mut self, size: u32) -> Register {
        let number = self.number();
        match size {
            8 if !self.is_long() => Register::AL + number,
            8 => {
                let names = [
                    Register::AL,
                    Register::CL,
                    Register::DL,
                    Register::BL,
                    Register::AH,
                    Register::CH,
                    Register::DH,
                    Register::BH,
                    Register::SPL,
                    Register::BPL,
                    Register::SIL,
                    Register::DIL,
                    Register::R8L,
                    Register::R11L,
                    Register::R13L,
                    Register::R15L,
                ];
                self.random.pick(&names)
            }
            16 => Register::AX + number,
            32 => Register::EAX + number,
            _ => Register::RAX + number,
        }
    }

    pub(super) fn choose_operands(&mut self) {
        let kinds = self.form.code.op_code().op_kinds().to_vec();
        for (i, kind) in kinds.into_iter().enumerate() {
            let i = i as u32;
            if may_be_memory(kind) && self.form.memory {
                self.instruction.set_op_kind(i, OpKind::Memory);
                continue;
            }
            let register = match kind {
                Kind::mem | Kind::mem_offs => {
                    self.instruction.set_op_kind(i, OpKind::Memory);
                    continue;
                }
                Kind::r8_or_mem | Kind::r8_reg | Kind::r8_opcode => self.general(8),
                Kind::r16_or_mem
                | Kind::r16_reg
                | Kind::r16_reg_mem
                | Kind::r16_rm
                | Kind::r16_opcode => self.general(16),
                Kind::r32_or_mem
                | Kind::r32_reg
                | Kind::r32_reg_mem
                | Kind::r32_rm
                | Kind::r32_opcode => self.general(32),
                Kind::r64_or_mem
                | Kind::r64_reg
                | Kind::r64_reg_mem
                | Kind::r64_rm
                | Kind::r64_opcode => self.general(64),
                Kind::mm_or_mem | Kind::mm_reg | Kind::mm_rm => {
                    Register::MM0 + self.random.below(8) as u32
                }
                Kind::xmm_or_mem | Kind::xmm_reg | Kind::xmm_rm => Register::XMM0 + self.number(),
                Kind::sti_opcode => Register::ST0 + self.random.below(8) as u32,
                Kind::seg_reg => {
                    let names = [
                        Register::ES,
                        Register::CS,
                        Register::SS,
                        Register::DS,
                        Register::FS,
                        Register::GS,
                    ];
                    self.random.pick(&names)
                }
                Kind::cr_reg => {
                    let names = [Register::CR0, Register::CR2, Register::CR3, Register::CR4];
                    self.random.pick(&names)
                }
                Kind::dr_reg => Register::DR0 + self.random.below(4) as u32,
                Kind::es => Register::ES,
                Kind::cs => Register::CS,
                Kind::ss => Register::SS,
                Kind::ds => Register::DS,
                Kind::fs => Register::FS,
                Kind::gs => Register::GS,
                Kind::al => Register::AL,
                Kind::cl => Register::CL,
                Kind::ax => Register::AX,
                Kind::dx => Register::DX,
                Kind::eax => Register::EAX,
                Kind::rax => Register::RAX,
                Kind::st0 => Register::ST0,
                _ => {
                    self.choose_other(i, kind);
                    continue;
                }
            };
            self.instruction.set_op_kind(i, OpKind::Register);
            self.instruction.set_op_register(i, register);
        }
    }

    /// Immediates, branch targets, implied memory.
    fn choose_other(&mut self, i: u32, kind: Kind) {
        let value = self.random.integer();
        let small = if self.random.chance(50) {
            value as u8
        } else {
            self.random.below(70) as u8
        };
        let narrow = self.narrow;
        let pick = |wide, short| if narrow { short } else { wide };
        let kind = match kind {
            Kind::imm8 if i > 0 && self.instruction.op_kind(i - 1) == OpKind::Immediate16 => {
                self.instruction
                    .set_immediate8_2nd(self.random.below(4) as u8);
                OpKind::Immediate8_2nd
            }
            Kind::imm8 => {
                self.instruction.set_immediate8(small);
                OpKind::Immediate8
            }
            Kind::imm8_const_1 => {
                self.instruction.set_immediate8(1);
                OpKind::Immediate8
            }
            Kind::imm8sex16 => {
                self.instruction.set_immediate8to16(i16::from(value as i8));
                OpKind::Immediate8to16
            }
            Kind::imm8sex32 => {
                self.instruction.set_immediate8to32(i32::from(value as i8));
                OpKind::Immediate8to32
            }
            Kind::imm8sex64 => {
                self.instruction.set_immediate8to64(i64::from(value as i8));
                OpKind::Immediate8to64
            }
            Kind::imm16 => {
                let enter = self.form.code.mnemonic() == Mnemonic::Enter;
                let value = if enter || self.random.chance(80) {
                    value % 100
                } else {
                    value
                };
                let plain = !matches!(self.form.code.mnemonic(), Mnemonic::Enter | Mnemonic::Ret);
                let value = if plain { self.random.integer() } else { value };
                self.instruction.set_immediate16(value as u16);
                OpKind::Immediate16
            }
            Kind::imm32 => {
                self.instruction.set_immediate32(value as u32);
                OpKind::Immediate32
            }
            Kind::imm32sex64 => {
                self.instruction
                    .set_immediate32to64(i64::from(value as i32));
                OpKind::Immediate32to64
            }
            Kind::imm64 => {
                self.instruction.set_immediate64(value);
                OpKind::Immediate64
            }
            Kind::br32_1 | Kind::br32_4 => {
                self.instruction.set_near_branch32(TAKEN as u32);
                OpKind::NearBranch32
            }
            Kind::br64_1 | Kind::br64_4 => {
                self.instruction.set_near_branch64(TAKEN);
                OpKind::NearBranch64
            }
            Kind::seg_rSI => pick(OpKind::MemorySegRSI, OpKind::MemorySegESI),
            Kind::es_rDI => pick(OpKind::MemoryESRDI, OpKind::MemoryESEDI),
            Kind::seg_rDI => OpKind::MemorySegRDI,
            Kind::seg_rBX_al => {
                let base = if self.is_long() {
                    Register::RBX
                } else {
                    Register::EBX
                };
                self.instruction.set_memory_base(base);
                self.instruction.set_memory_index(Register::AL);
                OpKind::Memory
            }
            _ => return,
        };
        self.instruction.set_op_kind(i, kind);
    }

    /// Chooses an address for the memory operand and registers that lead there; fills the operand.
    pub(super) fn place_operand(&mut self) -> Option<u64> {
        let size = operand_size(&self.instruction);
        if size == 0 {
            return None;
        }
        let mut target = self.place(size, if size > 16 { 16 } else { size });
        if self.form.code.cpuid_features().contains(&CpuidFeature::SHA) {
            // The manuals demand alignment; not every processor does.
            target &= !15;
        }
        if self.form.code == Code::Xlat_m8 {
            let index = self.registers.gpr[RAX] & 0xFF;
            self.registers.gpr[RBX] = target.wrapping_sub(index);
            return Some(target);
        }
        if self
            .form
            .code
            .op_code()
            .op_kinds()
            .contains(&Kind::mem_offs)
        {
            let size = if self.is_long() { 8 } else { 4 };
            self.instruction.set_memory_displ_size(size);
            self.instruction.set_memory_displacement64(target);
            return Some(target);
        }
        let mut taken: u16 = self.reserved;
        for i in 0..self.instruction.op_count() {
            if self.instruction.op_kind(i) == OpKind::Register {
                let register = self.instruction.op_register(i);
                if register.is_gpr() {
                    taken |= 1 << register.full_register().number();
                }
            }
        }
        // Now and then the address shares a register with an operand.
        let share = self.random.chance(10) && !self.is_bit_string() && self.reserved == 0;
        let register = |this: &mut Self, index: bool, taken: u16| loop {
            let number = this.number() as usize;
            let free = share || taken & (1 << number) == 0;
            if free && !(index && number == RSP) {
                return number;
            }
        };
        let displacement = if self.random.chance(50) {
            i64::from(self.random.u64() as i8)
        } else {
            i64::from(self.random.u64() as i32)
        };
        let base = register(self, false, taken);
        let index = register(self, true, taken | 1 << base);
        let set = |this: &mut Self, number: usize, value: u64| {
            this.registers.gpr[number] = value;
            this.reserved |= 1 << number;
        };
        self.instruction.set_memory_displ_size(8);
        self.instruction
            .set_memory_displacement64(displacement as u64);
        let shape = if self.is_long() {
            self.random.below(20)
        } else {
            16 + self.random.below(6)
        };
        match shape {
            0..10 => {
                self.instruction
                    .set_memory_base(Register::RAX + base as u32);
                set(self, base, target.wrapping_sub(displacement as u64));
            }
            10..14 if index != base => {
                let scale = self.random.below(4) as u32;
                let value = self.random.integer();
                self.instruction
                    .set_memory_base(Register::RAX + base as u32);
                self.instruction
                    .set_memory_index(Register::RAX + index as u32);
                self.instruction.set_memory_index_scale(1 << scale);
                set(self, index, value);
                let rest = target.wrapping_sub(value << scale);
                set(self, base, rest.wrapping_sub(displacement as u64));
            }
            14 | 15 => {
                self.instruction.set_memory_base(Register::RIP);
                self.instruction.set_memory_displacement64(target);
            }
            16 => {
                let size = if self.is_long() { 8 } else { 4 };
                self.instruction.set_memory_displ_size(size);
                self.instruction.set_memory_displacement64(target);
                self.instruction.set_memory_index_scale(1);
            }
            17 if self.is_long() => {
                self.instruction.set_segment_prefix(Register::GS);
                self.instruction
                    .set_memory_base(Register::RAX + base as u32);
                let offset = target.wrapping_sub(GS_BASE);
                set(self, base, offset.wrapping_sub(displacement as u64));
            }
            18 | 20 if index != base => {
                // 32-bit address: what is above in the registers does not count.
                let value = self.random.integer();
                let high = self.random.u64() << 32;
                self.instruction.set_memory_displ_size(4);
                self.instruction
                    .set_memory_base(Register::EAX + base as u32);
                self.instruction
                    .set_memory_index(Register::EAX + index as u32);
                self.instruction.set_memory_index_scale(4);
                self.instruction
                    .set_memory_displacement64(u64::from(displacement as u32));
                set(self, index, value);
                let rest = target
                    .wrapping_sub(value << 2)
                    .wrapping_sub(displacement as u64);
                set(self, base, (rest & 0xFFFF_FFFF) | high);
            }
            _ => {
                self.instruction.set_memory_displ_size(4);
                self.instruction
                    .set_memory_base(Register::EAX + base as u32);
                self.instruction
                    .set_memory_displacement64(u64::from(displacement as u32));
                let rest = target.wrapping_sub(displacement as u64) & 0xFFFF_FFFF;
                let high = self.random.u64() << 32;
                set(self, base, rest | high);
            }
        }
        self.fill_operand(target);
        Some(target)
    }

    /// A bit number in a register reaches beyond the memory operand.
    pub(super) fn is_bit_string(&self) -> bool {
        matches!(
            self.form.code.mnemonic(),
            Mnemonic::Bt | Mnemonic::Bts | Mnemonic::Btr | Mnemonic::Btc
        ) && self.instruction.op_kind(1) == OpKind::Register
    }

    fn fill_operand(&mut self, target: u64) {
        match self.instruction.memory_size() {
            MemorySize::Float32 => {
                let value = self.random.f32();
                self.write(target, &value.to_le_bytes());
            }
            MemorySize::Float64 => {
                let value = self.random.f64();
                self.write(target, &value.to_le_bytes());
            }
            MemorySize::Float80 => {
                let value = self.random.f80();
                self.write(target, &value);
            }
            size if size.size() >= 16 => {
                let value = self.random.vector();
                self.write(target, &value.to_le_bytes());
            }
            _ => {
                let value = self.random.integer();
                self.write(target, &value.to_le_bytes());
            }
        }
    }
}
