//! Memory images of the unit's state: FXSAVE, and the older FNSAVE and FNSTENV.

use super::state::X87;
use crate::processor::soft::{
    cpu::{Cpu, Exception, Exit, segment},
    float::Extended,
    op::{Handler, Op},
};
use iced_x86::{Code, Instruction};

/// Bits of MXCSR that this processor has (DAZ included).
pub const MXCSR_MASK: u32 = 0xFFFF;

pub fn select(instruction: &Instruction) -> Option<Handler> {
    Some(match instruction.code() {
        Code::Fxsave_m512byte => fxsave::<false>,
        Code::Fxsave64_m512byte => fxsave::<true>,
        Code::Fxrstor_m512byte => fxrstor::<false>,
        Code::Fxrstor64_m512byte => fxrstor::<true>,
        Code::Fnstenv_m14byte => fnstenv::<14>,
        Code::Fnstenv_m28byte => fnstenv::<28>,
        Code::Fldenv_m14byte => fldenv::<14>,
        Code::Fldenv_m28byte => fldenv::<28>,
        Code::Fnsave_m94byte => fnsave::<14>,
        Code::Fnsave_m108byte => fnsave::<28>,
        Code::Frstor_m94byte => frstor::<14>,
        Code::Frstor_m108byte => frstor::<28>,
        _ => return None,
    })
}

/// Little-endian fields at fixed offsets of an image. Offsets are constants of the layouts below.
struct Image<const N: usize>([u8; N]);

impl<const N: usize> Image<N> {
    fn put<const L: usize>(&mut self, offset: usize, bytes: [u8; L]) {
        if let Some(field) = self.0.get_mut(offset..offset + L) {
            field.copy_from_slice(&bytes);
        }
    }

    fn get<const L: usize>(&self, offset: usize) -> [u8; L] {
        let mut bytes = [0; L];
        if let Some(field) = self.0.get(offset..offset + L) {
            bytes.copy_from_slice(field);
        }
        bytes
    }
}

/// Everything up to the last XMM register; the 96 bytes after it are left alone.
const FXSAVE_SIZE: usize = 416;
/// What must be accessible.
const FXSAVE_AREA: usize = 512;
const FXSAVE_REGISTERS: usize = 32;
const FXSAVE_XMM: usize = 160;

fn fxsave_address(cpu: &mut Cpu, op: &Op) -> Result<u64, Exit> {
    cpu.require_x87_control()?;
    let address = cpu.effective_address(op);
    if address & 15 != 0 {
        return cpu.raise(Exception::general_protection(0));
    }
    Ok(address)
}

fn fxsave<const WIDE: bool>(cpu: &mut Cpu, op: &Op) -> Result<(), Exit> {
    let address = fxsave_address(cpu, op)?;
    // What is left alone must be writable all the same.
    cpu.check_store(address, FXSAVE_AREA as u64)?;
    let x87 = &cpu.x87;
    let mut image = Image([0; FXSAVE_SIZE]);
    image.put(0, x87.control.to_le_bytes());
    image.put(2, x87.status_word().to_le_bytes());
    image.put(4, [x87.valid]);
    image.put(6, x87.opcode.to_le_bytes());
    if WIDE {
        image.put(8, x87.instruction_pointer.to_le_bytes());
        image.put(16, x87.data_pointer.to_le_bytes());
    } else {
        image.put(8, (x87.instruction_pointer as u32).to_le_bytes());
        image.put(16, (x87.data_pointer as u32).to_le_bytes());
    }
    image.put(24, cpu.mxcsr.to_le_bytes());
    image.put(28, MXCSR_MASK.to_le_bytes());
    for i in 0..8 {
        let register = x87.st(i as u8).to_bytes();
        image.put(FXSAVE_REGISTERS + 16 * i, register);
    }
    let count = if cpu.long_code { 16 } else { 8 };
    for (i, xmm) in cpu.xmm.iter().take(count).enumerate() {
        image.put(FXSAVE_XMM + 16 * i, xmm.0);
    }
    cpu.store_bytes(address, &image.0[..FXSAVE_XMM + 16 * count])
}

fn fxrstor<const WIDE: bool>(cpu: &mut Cpu, op: &Op) -> Result<(), Exit> {
    let address = fxsave_address(cpu, op)?;
    let mut image = Image([0; FXSAVE_AREA]);
    cpu.load_bytes(address, &mut image.0)?;
    let mxcsr = u32::from_le_bytes(image.get(24));
    if mxcsr & !MXCSR_MASK != 0 {
        return cpu.raise(Exception::general_protection(0));
    }
    cpu.mxcsr = mxcsr;
    let x87 = &mut cpu.x87;
    x87.set_control_word(u16::from_le_bytes(image.get(0)));
    x87.set_status_word(u16::from_le_bytes(image.get(2)));
    [x87.valid] = image.get(4);
    x87.opcode = u16::from_le_bytes(image.get(6)) & 0x7FF;
    if WIDE {
        x87.instruction_pointer = u64::from_le_bytes(image.get(8));
        x87.data_pointer = u64::from_le_bytes(image.get(16));
    } else {
        x87.instruction_pointer = u32::from_le_bytes(image.get(8)).into();
        x87.data_pointer = u32::from_le_bytes(image.get(16)).into();
    }
    for i in 0..8 {
        let register = Extended::from_bytes(image.get(FXSAVE_REGISTERS + 16 * i));
        *x87.st_mut(i as u8) = register;
    }
    let count = if cpu.long_code { 16 } else { 8 };
    for (i, xmm) in cpu.xmm.iter_mut().take(count).enumerate() {
        xmm.0 = image.get(FXSAVE_XMM + 16 * i);
    }
    cpu.update_fpu_access();
    Ok(())
}

/// The environment in its protected-mode layouts: `N` is 14 or 28 bytes.
fn environment<const N: usize>(cpu: &Cpu) -> Image<N> {
    let x87 = &cpu.x87;
    let selector = cpu.segments[segment::CS].selector;
    let mut image = Image([0; N]);
    if N == 28 {
        // The upper halves of the first three doublewords read as ones.
        for (i, word) in [x87.control, x87.status_word(), x87.full_tags()]
            .into_iter()
            .enumerate()
        {
            image.put(4 * i, (u32::from(word) | 0xFFFF_0000).to_le_bytes());
        }
        image.put(12, (x87.instruction_pointer as u32).to_le_bytes());
        let code = u32::from(selector) | u32::from(x87.opcode) << 16;
        image.put(16, code.to_le_bytes());
        image.put(20, (x87.data_pointer as u32).to_le_bytes());
        image.put(24, 0xFFFF_0000_u32.to_le_bytes());
    } else {
        let words = [
            x87.control,
            x87.status_word(),
            x87.full_tags(),
            x87.instruction_pointer as u16,
            selector,
            x87.data_pointer as u16,
            0,
        ];
        for (i, word) in words.into_iter().enumerate() {
            image.put(2 * i, word.to_le_bytes());
        }
    }
    image
}

fn set_environment<const N: usize>(x87: &mut X87, image: &Image<N>) {
    let step = if N == 28 { 4 } else { 2 };
    x87.set_control_word(u16::from_le_bytes(image.get(0)));
    x87.set_status_word(u16::from_le_bytes(image.get(step)));
    x87.set_full_tags(u16::from_le_bytes(image.get(2 * step)));
    if N == 28 {
        x87.instruction_pointer = u32::from_le_bytes(image.get(12)).into();
        x87.opcode = u16::from_le_bytes(image.get(18)) & 0x7FF;
        x87.data_pointer = u32::from_le_bytes(image.get(20)).into();
    } else {
        x87.instruction_pointer = u16::from_le_bytes(image.get(6)).into();
        x87.data_pointer = u16::from_le_bytes(image.get(10)).into();
    }
}

fn fnstenv<const N: usize>(cpu: &mut Cpu, op: &Op) -> Result<(), Exit> {
    cpu.require_x87_control()?;
    let image = environment::<N>(cpu);
    cpu.store_bytes(cpu.effective_address(op), &image.0)?;
    // All exceptions are masked after the environment was stored.
    cpu.set_x87_control(cpu.x87.control | 0x3F);
    Ok(())
}

fn fldenv<const N: usize>(cpu: &mut Cpu, op: &Op) -> Result<(), Exit> {
    cpu.require_x87()?;
    let mut image = Image([0; N]);
    cpu.load_bytes(cpu.effective_address(op), &mut image.0)?;
    set_environment(&mut cpu.x87, &image);
    cpu.update_fpu_access();
    Ok(())
}

const FNSAVE_REGISTERS: usize = 80;

fn fnsave<const N: usize>(cpu: &mut Cpu, op: &Op) -> Result<(), Exit> {
    cpu.require_x87_control()?;
    let environment = environment::<N>(cpu);
    let mut image = Image([0; 28 + FNSAVE_REGISTERS]);
    image.put(0, environment.0);
    for i in 0..8 {
        image.put(N + 10 * i, cpu.x87.st(i as u8).to_bytes());
    }
    cpu.store_bytes(cpu.effective_address(op), &image.0[..N + FNSAVE_REGISTERS])?;
    cpu.x87 = X87 {
        registers: cpu.x87.registers,
        ..X87::default()
    };
    cpu.update_fpu_access();
    Ok(())
}

fn frstor<const N: usize>(cpu: &mut Cpu, op: &Op) -> Result<(), Exit> {
    cpu.require_x87()?;
    let mut image = Image([0; 28 + FNSAVE_REGISTERS]);
    let address = cpu.effective_address(op);
    cpu.load_bytes(address, &mut image.0[..N + FNSAVE_REGISTERS])?;
    set_environment(&mut cpu.x87, &Image(image.get::<N>(0)));
    for i in 0..8 {
        *cpu.x87.st_mut(i as u8) = Extended::from_bytes(image.get(N + 10 * i));
    }
    cpu.update_fpu_access();
    Ok(())
}
