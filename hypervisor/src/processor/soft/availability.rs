//! Whether floating-point and vector instructions may run: CR0.EM, CR0.TS, CR4.OSFXSR and a
//! pending x87 exception, folded into one byte so that each instruction tests one bit.

use super::cpu::{Cpu, Exception, Exit};

const CR0_MP: u64 = 1 << 1;
const CR0_EM: u64 = 1 << 2;
const CR0_TS: u64 = 1 << 3;
const CR4_OSFXSR: u64 = 1 << 9;
const CR4_OSXMMEXCPT: u64 = 1 << 10;

/// Bits of [`Cpu::fpu_refused`].
const SSE: u8 = 1 << 0;
const MMX: u8 = 1 << 1;
const X87: u8 = 1 << 2;
const X87_CONTROL: u8 = 1 << 3;
const WAIT: u8 = 1 << 4;

impl Cpu {
    /// To be called after every change of CR0, CR4 or the x87 status or control word.
    pub fn update_fpu_access(&mut self) {
        let emulated = self.cr0 & CR0_EM != 0;
        let switched = self.cr0 & CR0_TS != 0;
        let pending = self.x87.exception_pending();
        let bit = |refused: bool, bit: u8| if refused { bit } else { 0 };
        self.fpu_refused = bit(emulated || switched || self.cr4 & CR4_OSFXSR == 0, SSE)
            | bit(emulated || switched || pending, MMX | X87)
            | bit(emulated || switched, X87_CONTROL)
            | bit((switched && self.cr0 & CR0_MP != 0) || pending, WAIT);
    }

    /// For every SSE instruction.
    #[inline(always)]
    pub fn require_sse(&mut self) -> Result<(), Exit> {
        if self.fpu_refused & SSE != 0 {
            return self.refuse_sse();
        }
        Ok(())
    }

    /// For every MMX instruction.
    #[inline(always)]
    pub fn require_mmx(&mut self) -> Result<(), Exit> {
        if self.fpu_refused & MMX != 0 {
            return self.refuse_mmx();
        }
        Ok(())
    }

    /// For x87 instructions that report a pending exception first.
    #[inline(always)]
    pub fn require_x87(&mut self) -> Result<(), Exit> {
        if self.fpu_refused & X87 != 0 {
            return self.refuse_x87();
        }
        Ok(())
    }

    /// For x87 instructions that ignore a pending exception (FNxxx, FXSAVE, FXRSTOR).
    #[inline(always)]
    pub fn require_x87_control(&mut self) -> Result<(), Exit> {
        if self.fpu_refused & X87_CONTROL != 0 {
            return self.raise(Exception::DEVICE_NOT_AVAILABLE);
        }
        Ok(())
    }

    /// For FWAIT.
    #[inline(always)]
    pub fn require_wait(&mut self) -> Result<(), Exit> {
        if self.fpu_refused & WAIT != 0 {
            let switched = self.cr0 & (CR0_TS | CR0_MP) == CR0_TS | CR0_MP;
            return self.raise(if switched {
                Exception::DEVICE_NOT_AVAILABLE
            } else {
                Exception::X87
            });
        }
        Ok(())
    }

    #[cold]
    fn refuse_sse(&mut self) -> Result<(), Exit> {
        let undefined = self.cr0 & CR0_EM != 0 || self.cr4 & CR4_OSFXSR == 0;
        self.raise(if undefined {
            Exception::INVALID_OPCODE
        } else {
            Exception::DEVICE_NOT_AVAILABLE
        })
    }

    #[cold]
    fn refuse_mmx(&mut self) -> Result<(), Exit> {
        if self.cr0 & CR0_EM != 0 {
            return self.raise(Exception::INVALID_OPCODE);
        }
        self.refuse_x87()
    }

    #[cold]
    fn refuse_x87(&mut self) -> Result<(), Exit> {
        self.raise(if self.cr0 & (CR0_EM | CR0_TS) != 0 {
            Exception::DEVICE_NOT_AVAILABLE
        } else {
            Exception::X87
        })
    }

    /// Raises the exception of an unmasked SIMD floating-point fault.
    #[cold]
    pub fn raise_simd<T>(&mut self) -> Result<T, Exit> {
        self.raise(if self.cr4 & CR4_OSXMMEXCPT != 0 {
            Exception::SIMD
        } else {
            Exception::INVALID_OPCODE
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        memory::GuestMemory,
        processor::soft::{decode::decode, forms::Forms},
    };

    fn run(cpu: &mut Cpu, code: &[u8]) -> Option<Exception> {
        let mut ops = Vec::new();
        decode(code, true, 1, &mut ops, &mut Forms::default()).expect("cut off");
        cpu.update_fpu_access();
        ((ops[0].run)(cpu, &ops[0]) == Err(Exit::Exception)).then_some(cpu.exception)
    }

    const XORPS: &[u8] = &[0x0F, 0x57, 0xC0];
    const PXOR_MMX: &[u8] = &[0x0F, 0xEF, 0xC0];
    const FLD1: &[u8] = &[0xD9, 0xE8];
    const FNINIT: &[u8] = &[0xDB, 0xE3];
    const WAIT: &[u8] = &[0x9B];
    const ALL: [&[u8]; 5] = [XORPS, PXOR_MMX, FLD1, FNINIT, WAIT];

    #[test]
    fn control_registers_refuse_as_the_manual_says() {
        const UD: Option<Exception> = Some(Exception::INVALID_OPCODE);
        const NM: Option<Exception> = Some(Exception::DEVICE_NOT_AVAILABLE);
        let enabled = CR4_OSFXSR | CR4_OSXMMEXCPT;
        for (cr0, cr4, expected) in [
            (CR0_MP, enabled, [None, None, None, None, None]),
            (CR0_MP | CR0_TS, enabled, [NM, NM, NM, NM, NM]),
            (CR0_TS, enabled, [NM, NM, NM, NM, None]),
            (CR0_EM, enabled, [UD, UD, NM, NM, None]),
            (CR0_MP, 0, [UD, None, None, None, None]),
        ] {
            let mut cpu = Cpu::new(GuestMemory::anonymous(1 << 16).expect("memory"));
            (cpu.cr0, cpu.cr4) = (cr0, cr4);
            assert_eq!(
                ALL.map(|code| run(&mut cpu, code)),
                expected,
                "CR0 {cr0:#x}"
            );
        }
    }

    #[test]
    fn an_unmasked_simd_exception_needs_the_system_to_know_it() {
        // divsd xmm0, xmm1: 0 / 0
        let divide = [0xF2, 0x0F, 0x5E, 0xC1];
        let mut cpu = Cpu::new(GuestMemory::anonymous(1 << 16).expect("memory"));
        assert_eq!(run(&mut cpu, &divide), None);
        assert_eq!((cpu.mxcsr, cpu.xmm[0].low64()), (0x1F81, 0xFFF8 << 48));
        cpu.mxcsr = 0x1F00;
        cpu.xmm[0] = Default::default();
        assert_eq!(run(&mut cpu, &divide), Some(Exception::SIMD));
        assert_eq!((cpu.mxcsr, cpu.xmm[0].low64()), (0x1F01, 0));
        cpu.cr4 &= !CR4_OSXMMEXCPT;
        assert_eq!(run(&mut cpu, &divide), Some(Exception::INVALID_OPCODE));
    }
}
