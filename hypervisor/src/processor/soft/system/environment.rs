//! The world outside the processor: identification, time, random numbers, ports, hypercalls.

use crate::processor::{
    Intercept,
    soft::{
        cpu::{Cpu, Exception, Exit},
        flags::{self, Flags},
        op::Op,
    },
};

const CR4_TSD: u64 = 1 << 2;

pub fn cpuid(cpu: &mut Cpu, _op: &Op) -> Result<(), Exit> {
    let leaf = cpu.reg(Cpu::RAX) as u32;
    let subleaf = cpu.reg(Cpu::RCX) as u32;
    cpu.intercept(Intercept::Cpuid { leaf, subleaf })
}

pub fn rdtsc(cpu: &mut Cpu, _op: &Op) -> Result<(), Exit> {
    if cpu.cr4 & CR4_TSD != 0 && cpu.cpl != 0 {
        return cpu.raise(Exception::general_protection(0));
    }
    let time = cpu.time_stamp();
    cpu.set_pair(time);
    Ok(())
}

/// No counter is offered: every number is refused.
pub fn rdpmc(cpu: &mut Cpu, _op: &Op) -> Result<(), Exit> {
    cpu.raise(Exception::general_protection(0))
}

pub fn rdtscp(cpu: &mut Cpu, op: &Op) -> Result<(), Exit> {
    rdtsc(cpu, op)?;
    cpu.set_reg(Cpu::RCX, cpu.msrs.tsc_aux);
    Ok(())
}

/// RDRAND and RDSEED: CF says whether there is a number; the other flags are cleared.
pub fn random<const BITS: u32>(cpu: &mut Cpu, op: &Op) -> Result<(), Exit> {
    let number = cpu.random.draw();
    let value = number.unwrap_or(0);
    let value = match BITS {
        16 => cpu.reg(op.dst) & !0xFFFF | value & 0xFFFF,
        32 => value & 0xFFFF_FFFF,
        _ => value,
    };
    cpu.set_reg(op.dst, value);
    cpu.flags = Flags::from_bits(u64::from(number.is_some()) * flags::CF);
    Ok(())
}

/// VMCALL and VMMCALL: hypercalls are the kernel's (TLFS 3.7).
pub fn hypercall(cpu: &mut Cpu, _op: &Op) -> Result<(), Exit> {
    if cpu.cpl != 0 || !cpu.long_code {
        return cpu.raise(Exception::INVALID_OPCODE);
    }
    let (control, input, output) = (cpu.reg(Cpu::RCX), cpu.reg(Cpu::RDX), cpu.reg(8));
    cpu.intercept(Intercept::Hypercall {
        control,
        input,
        output,
    })
}

/// The port of an instruction, if the program may use `size` ports from there.
fn port<const BITS: u32, const IN_DX: bool>(cpu: &mut Cpu, op: &Op) -> Result<u16, Exit> {
    let port = if IN_DX {
        cpu.reg(Cpu::RDX) as u16
    } else {
        op.immediate as u16 & 0xFF
    };
    if u64::from(cpu.cpl) > cpu.system_flags >> flags::IOPL.trailing_zeros() & 3 {
        // The permission bitmap in the task state segment.
        let (base, limit) = (cpu.tr.base, cpu.tr.limit);
        let refused = Exception::general_protection(0);
        if limit < 0x67 {
            return cpu.raise(refused);
        }
        let map = cpu.as_system(|cpu| cpu.load::<u16>(base.wrapping_add(0x66)))?;
        let position = u32::from(map) + u32::from(port / 8);
        if position + 1 > limit {
            return cpu.raise(refused);
        }
        let place = base.wrapping_add(u64::from(position));
        let bits = cpu.as_system(|cpu| cpu.load::<u16>(place))?;
        let wanted = (1u32 << (BITS / 8)) - 1;
        if u32::from(bits) >> (port % 8) & wanted != 0 {
            return cpu.raise(refused);
        }
    }
    Ok(port)
}

pub fn port_in<const BITS: u32, const IN_DX: bool>(cpu: &mut Cpu, op: &Op) -> Result<(), Exit> {
    let port = port::<BITS, IN_DX>(cpu, op)?;
    let size = (BITS / 8) as u8;
    cpu.intercept(Intercept::PortRead { port, size })
}

pub fn port_out<const BITS: u32, const IN_DX: bool>(cpu: &mut Cpu, op: &Op) -> Result<(), Exit> {
    let port = port::<BITS, IN_DX>(cpu, op)?;
    let value = (cpu.reg(Cpu::RAX) & (u64::MAX >> (64 - BITS))) as u32;
    cpu.intercept(Intercept::PortWrite {
        port,
        size: (BITS / 8) as u8,
        value,
    })
}
