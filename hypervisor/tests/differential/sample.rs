//! One sample of a form: the instruction with random operands, the registers and the memory.

use super::{
    forms::{Form, Prefix, may_be_memory},
    layout::{
        CODE, FxImage, GS_BASE, HOLE, PAGE, READ_ONLY, Registers, SCRATCH, SCRATCH_SIZE, TAKEN, fx,
    },
    random::Random,
};
use iced_x86::{
    Code, CpuidFeature, Decoder, DecoderOptions, Encoder, Instruction, MemorySize, Mnemonic,
    OpCodeOperandKind as Kind, OpKind, Register,
};

const RAX: usize = 0;
const RCX: usize = 1;
const RDX: usize = 2;
const RBX: usize = 3;
const RSP: usize = 4;
const RBP: usize = 5;
const RSI: usize = 6;
const RDI: usize = 7;

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
        let narrow = random.chance(15);
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
        self.choose_operands();
        let stack = self.instruction.is_stack_instruction()
            || matches!(self.form.code.mnemonic(), Mnemonic::Enter | Mnemonic::Leave);
        if stack && self.reserved & (1 << RSP) == 0 {
            self.registers.gpr[RSP] = self.place(8, 8);
            self.reserved |= 1 << RSP;
        }
        let target = self.place_operand();
        self.shape(target);
        let mut encoder = Encoder::new(64);
        encoder.encode(&self.instruction, CODE).ok()?;
        let bytes = encoder.take_buffer();
        // FSTCW and its like are two instructions, WAIT and the other.
        if bytes.len() > 1 && bytes[0] == 0x9B {
            return None;
        }
        let decoded = Decoder::with_ip(64, &bytes, CODE, DecoderOptions::NONE).decode();
        (decoded.code() == self.form.code && decoded.len() == bytes.len()).then_some(Sample {
            instruction: decoded,
            native: native_bytes(&decoded, &bytes),
            bytes,
            registers: self.registers,
            memory: self.memory,
        })
    }

    /// Whether vector or x87 registers matter.
    fn is_vector(&self) -> bool {
        let features = self.form.code.cpuid_features();
        features.iter().any(|feature| {
            use iced_x86::CpuidFeature::*;
            matches!(
                feature,
                MMX | SSE
                    | SSE2
                    | SSE3
                    | SSSE3
                    | SSE4_1
                    | SSE4_2
                    | AES
                    | PCLMULQDQ
                    | SHA
                    | FPU
                    | FPU287
                    | FPU387
                    | FXSR
            )
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

    fn fill_vectors(&mut self) {
        let image = &mut self.registers.fx.0;
        let mut put = |offset: usize, bytes: &[u8]| {
            image[offset..offset + bytes.len()].copy_from_slice(bytes);
        };
        // Vectors of one flavour most of the time, so that operands meet their like.
        let flavour = self.random.below(4);
        for i in 0..16 {
            let value = match flavour {
                0 => (0..4).fold(0, |v, _| v << 32 | u128::from(self.random.f32())),
                1 => u128::from(self.random.f64()) | u128::from(self.random.f64()) << 64,
                2 => u128::from(self.random.integer()) | u128::from(self.random.integer()) << 64,
                _ => self.random.vector(),
            };
            put(fx::XMM + 16 * i, &value.to_le_bytes());
        }
        let mxcsr: u32 = if self.random.chance(70) {
            0x1F80
        } else {
            // Any rounding, DAZ, FTZ, sticky flags; now and then an unmasked exception.
            let unmasked = if self.random.chance(30) {
                1 << (7 + self.random.below(6))
            } else {
                0
            };
            (0x1F80 & !unmasked) | (self.random.u64() as u32 & 0xE07F)
        };
        put(fx::MXCSR, &mxcsr.to_le_bytes());
        let control: u16 = if self.random.chance(60) {
            0x37F
        } else {
            let precision = self.random.pick(&[0u16, 2, 3]) << 8;
            let rounding = (self.random.below(4) as u16) << 10;
            let unmasked = if self.random.chance(30) {
                1u16 << self.random.below(6)
            } else {
                0
            };
            (0x7F & !unmasked) | precision | rounding
        };
        put(fx::FCW, &control.to_le_bytes());
        let top = self.random.below(8) as u16;
        // Condition codes and sticky flags that are not pending.
        let status = (top << 11)
            | (self.random.u64() as u16 & 0x4700)
            | (self.random.u64() as u16 & control & 0x3F);
        put(fx::FSW, &status.to_le_bytes());
        // Mostly full, so that stack faults stay the exception.
        let valid = match self.random.below(4) {
            0 => self.random.u64() as u8,
            1 => self.random.u64() as u8 | self.random.u64() as u8,
            _ => {
                // Full but for ST(7), where a push goes.
                let free = (top as u32 + 7) % 8;
                if self.random.chance(50) {
                    0xFF
                } else {
                    !(1u8 << free)
                }
            }
        };
        put(fx::FTW, &[valid]);
        for i in 0..8 {
            let bytes = if self.random.chance(15) {
                // What MMX leaves behind: exponent all ones.
                let mut bytes = [0xFF; 10];
                bytes[..8].copy_from_slice(&self.random.integer().to_le_bytes());
                bytes[7] |= 0x80;
                bytes
            } else {
                self.random.f80()
            };
            put(fx::ST + 16 * i, &bytes);
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
    /// writable, not there.
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
            _ => HOLE + self.random.below(PAGE),
        }
    }

    fn general(&mut self, size: u32) -> Register {
        let number = self.random.below(16) as u32;
        match size {
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

    fn choose_operands(&mut self) {
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
                Kind::xmm_or_mem | Kind::xmm_reg | Kind::xmm_rm => {
                    Register::XMM0 + self.random.below(16) as u32
                }
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
            Kind::br64_1 | Kind::br64_4 => {
                self.instruction.set_near_branch64(TAKEN);
                OpKind::NearBranch64
            }
            Kind::seg_rSI => pick(OpKind::MemorySegRSI, OpKind::MemorySegESI),
            Kind::es_rDI => pick(OpKind::MemoryESRDI, OpKind::MemoryESEDI),
            Kind::seg_rDI => OpKind::MemorySegRDI,
            Kind::seg_rBX_al => {
                self.instruction.set_memory_base(Register::RBX);
                self.instruction.set_memory_index(Register::AL);
                OpKind::Memory
            }
            _ => return,
        };
        self.instruction.set_op_kind(i, kind);
    }

    /// Chooses an address for the memory operand and registers that lead there; fills the operand.
    fn place_operand(&mut self) -> Option<u64> {
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
            self.instruction.set_memory_displ_size(8);
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
            let number = this.random.below(16) as usize;
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
        match self.random.below(20) {
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
                self.instruction.set_memory_displacement64(target);
                self.instruction.set_memory_index_scale(1);
            }
            17 => {
                self.instruction.set_segment_prefix(Register::GS);
                self.instruction
                    .set_memory_base(Register::RAX + base as u32);
                let offset = target.wrapping_sub(GS_BASE);
                set(self, base, offset.wrapping_sub(displacement as u64));
            }
            18 if index != base => {
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
    fn is_bit_string(&self) -> bool {
        matches!(
            self.form.code.mnemonic(),
            Mnemonic::Bt | Mnemonic::Bts | Mnemonic::Btr | Mnemonic::Btc
        ) && self.instruction.op_kind(1) == OpKind::Register
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

    /// What particular instructions need so that the interesting cases happen.
    fn shape(&mut self, target: Option<u64>) {
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
        if self.random.chance(5) {
            0x8000_0000_0000_0000 | self.random.u64() >> 2
        } else {
            TAKEN
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
