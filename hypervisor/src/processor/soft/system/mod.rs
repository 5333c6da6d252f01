//! Instruction group: system. Privileged instructions, control and debug registers, descriptor
//! tables, transfers between privilege levels and modes, ports, time, and what is intercepted.

mod control;
pub mod descriptor;
mod environment;
mod gate;
pub mod msr;
mod segments;
mod transfer;

use super::{
    cpu::{Cpu, Exception, Exit, segment},
    flags,
    op::Handler,
};
use crate::processor::Intercept;
use iced_x86::{Code, Instruction};

impl Cpu {
    /// #GP(0) unless CPL is 0.
    #[inline]
    fn require_kernel(&mut self) -> Result<(), Exit> {
        if self.cpl == 0 {
            return Ok(());
        }
        self.raise(Exception::general_protection(0))
    }

    /// #GP(0) when CPL is above IOPL.
    fn require_io_privilege(&mut self) -> Result<(), Exit> {
        if u64::from(self.cpl) <= self.system_flags >> flags::IOPL.trailing_zeros() & 3 {
            return Ok(());
        }
        self.raise(Exception::general_protection(0))
    }

    /// EDX:EAX.
    fn set_pair(&mut self, value: u64) {
        self.set_reg(Self::RAX, value & 0xFFFF_FFFF);
        self.set_reg(Self::RDX, value >> 32);
    }

    /// Leaves the instruction to whoever runs this processor.
    fn intercept<T>(&mut self, intercept: Intercept) -> Result<T, Exit> {
        self.intercept = intercept;
        Err(Exit::Intercept)
    }
}

/// The handler of `instruction`, or `None` when it is not of this group or not implemented.
pub fn select(instruction: &Instruction) -> Option<Handler> {
    let handler: Handler = match instruction.code() {
        Code::Mov_r64_cr | Code::Mov_r32_cr => control::read_control,
        Code::Mov_cr_r64 | Code::Mov_cr_r32 => control::write_control,
        Code::Mov_r64_dr | Code::Mov_r32_dr => control::read_debug,
        Code::Mov_dr_r64 | Code::Mov_dr_r32 => control::write_debug,
        Code::Clts => control::clts,
        Code::Lmsw_rm16 | Code::Lmsw_r32m16 | Code::Lmsw_r64m16 => control::lmsw,
        Code::Smsw_rm16 => control::smsw::<16>,
        Code::Smsw_r32m16 => control::smsw::<32>,
        Code::Smsw_r64m16 => control::smsw::<64>,
        Code::Invlpg_m => control::invlpg,
        Code::Invd | Code::Wbinvd | Code::Wbnoinvd => control::privileged_nop,
        Code::Cli => control::cli,
        Code::Sti => control::sti,
        Code::Clac => control::clac,
        Code::Stac => control::stac,
        Code::Hlt => control::hlt,
        Code::Ud0
        | Code::Ud0_r16_rm16
        | Code::Ud0_r32_rm32
        | Code::Ud0_r64_rm64
        | Code::Ud1_r16_rm16
        | Code::Ud1_r32_rm32
        | Code::Ud1_r64_rm64
        | Code::Ud2 => control::undefined,

        Code::Sgdt_m1632 => segments::store_table::<32, false>,
        Code::Sgdt_m1664 => segments::store_table::<64, false>,
        Code::Sidt_m1632 => segments::store_table::<32, true>,
        Code::Sidt_m1664 => segments::store_table::<64, true>,
        Code::Lgdt_m1632 => segments::load_table::<32, false>,
        Code::Lgdt_m1664 => segments::load_table::<64, false>,
        Code::Lidt_m1632 => segments::load_table::<32, true>,
        Code::Lidt_m1664 => segments::load_table::<64, true>,
        Code::Lldt_rm16 | Code::Lldt_r32m16 | Code::Lldt_r64m16 => segments::lldt,
        Code::Ltr_rm16 | Code::Ltr_r32m16 | Code::Ltr_r64m16 => segments::ltr,
        Code::Sldt_rm16 => segments::store_selector::<16, false>,
        Code::Sldt_r32m16 => segments::store_selector::<32, false>,
        Code::Sldt_r64m16 => segments::store_selector::<64, false>,
        Code::Str_rm16 => segments::store_selector::<16, true>,
        Code::Str_r32m16 => segments::store_selector::<32, true>,
        Code::Str_r64m16 => segments::store_selector::<64, true>,
        Code::Mov_Sreg_rm16 | Code::Mov_Sreg_r32m16 | Code::Mov_Sreg_r64m16 => {
            segments::load(instruction)
        }
        Code::Lss_r16_m1616 => segments::load_pointer::<16, { segment::SS }>,
        Code::Lss_r32_m1632 => segments::load_pointer::<32, { segment::SS }>,
        Code::Lss_r64_m1664 => segments::load_pointer::<64, { segment::SS }>,
        Code::Lfs_r16_m1616 => segments::load_pointer::<16, { segment::FS }>,
        Code::Lfs_r32_m1632 => segments::load_pointer::<32, { segment::FS }>,
        Code::Lfs_r64_m1664 => segments::load_pointer::<64, { segment::FS }>,
        Code::Lgs_r16_m1616 => segments::load_pointer::<16, { segment::GS }>,
        Code::Lgs_r32_m1632 => segments::load_pointer::<32, { segment::GS }>,
        Code::Lgs_r64_m1664 => segments::load_pointer::<64, { segment::GS }>,
        Code::Mov_rm16_Sreg => segments::store::<16>(instruction),
        Code::Mov_r32m16_Sreg => segments::store::<32>(instruction),
        Code::Mov_r64m16_Sreg => segments::store::<64>(instruction),
        Code::Pushq_FS | Code::Pushq_GS => segments::push::<64>,
        Code::Pushd_ES
        | Code::Pushd_CS
        | Code::Pushd_SS
        | Code::Pushd_DS
        | Code::Pushd_FS
        | Code::Pushd_GS => segments::push::<32>,
        Code::Popq_FS | Code::Popq_GS => segments::pop::<64>,
        Code::Popd_ES | Code::Popd_SS | Code::Popd_DS | Code::Popd_FS | Code::Popd_GS => {
            segments::pop::<32>
        }
        Code::Lar_r16_rm16 => segments::lar::<16>,
        Code::Lar_r32_r32m16 => segments::lar::<32>,
        Code::Lar_r64_r64m16 => segments::lar::<64>,
        Code::Lsl_r16_rm16 => segments::lsl::<16>,
        Code::Lsl_r32_r32m16 => segments::lsl::<32>,
        Code::Lsl_r64_r64m16 => segments::lsl::<64>,
        Code::Verr_rm16 | Code::Verr_r32m16 | Code::Verr_r64m16 => segments::verify::<false>,
        Code::Verw_rm16 | Code::Verw_r32m16 | Code::Verw_r64m16 => segments::verify::<true>,

        Code::Syscall => gate::syscall,
        Code::Sysretq => gate::sysret::<64>,
        Code::Sysretd => gate::sysret::<32>,
        Code::Sysenter => gate::sysenter,
        Code::Sysexitq => gate::sysexit::<64>,
        Code::Sysexitd => gate::sysexit::<32>,
        Code::Swapgs => gate::swapgs,
        Code::Rdfsbase_r64 => gate::read_base::<64, 4>,
        Code::Rdfsbase_r32 => gate::read_base::<32, 4>,
        Code::Rdgsbase_r64 => gate::read_base::<64, 5>,
        Code::Rdgsbase_r32 => gate::read_base::<32, 5>,
        Code::Wrfsbase_r64 => gate::write_base::<64, 4>,
        Code::Wrfsbase_r32 => gate::write_base::<32, 4>,
        Code::Wrgsbase_r64 => gate::write_base::<64, 5>,
        Code::Wrgsbase_r32 => gate::write_base::<32, 5>,

        Code::Iretq => transfer::iret::<64>,
        Code::Iretd => transfer::iret::<32>,
        Code::Retfq => transfer::far_return::<64>,
        Code::Retfd => transfer::far_return::<32>,
        Code::Retfq_imm16 => transfer::far_return::<64>,
        Code::Retfd_imm16 => transfer::far_return::<32>,
        Code::Jmp_m1664 => transfer::far_jump::<64>,
        Code::Jmp_m1632 => transfer::far_jump::<32>,
        Code::Jmp_ptr1632 => transfer::far_jump::<0>,
        Code::Call_m1664 => transfer::far_call::<64>,
        Code::Call_m1632 => transfer::far_call::<32>,
        Code::Call_ptr1632 => transfer::far_call::<0>,
        Code::Int_imm8 => transfer::int,
        Code::Int3 => transfer::int3,
        Code::Into => transfer::into,
        Code::Int1 => transfer::int1,

        Code::Rdmsr => msr::rdmsr,
        Code::Wrmsr => msr::wrmsr,
        Code::Cpuid => environment::cpuid,
        Code::Rdtsc => environment::rdtsc,
        Code::Rdpmc => environment::rdpmc,
        Code::Rdtscp => environment::rdtscp,
        Code::Rdrand_r16 | Code::Rdseed_r16 => environment::random::<16>,
        Code::Rdrand_r32 | Code::Rdseed_r32 => environment::random::<32>,
        Code::Rdrand_r64 | Code::Rdseed_r64 => environment::random::<64>,
        Code::Vmcall | Code::Vmmcall => environment::hypercall,
        Code::In_AL_imm8 => environment::port_in::<8, false>,
        Code::In_AX_imm8 => environment::port_in::<16, false>,
        Code::In_EAX_imm8 => environment::port_in::<32, false>,
        Code::In_AL_DX => environment::port_in::<8, true>,
        Code::In_AX_DX => environment::port_in::<16, true>,
        Code::In_EAX_DX => environment::port_in::<32, true>,
        Code::Out_imm8_AL => environment::port_out::<8, false>,
        Code::Out_imm8_AX => environment::port_out::<16, false>,
        Code::Out_imm8_EAX => environment::port_out::<32, false>,
        Code::Out_DX_AL => environment::port_out::<8, true>,
        Code::Out_DX_AX => environment::port_out::<16, true>,
        Code::Out_DX_EAX => environment::port_out::<32, true>,
        _ => return None,
    };
    Some(handler)
}
