//! Known values, state images, and exceptions that wait for the next instruction.

use super::state::status;
use crate::{
    memory::GuestMemory,
    processor::soft::{
        cpu::{Cpu, Exception, Exit},
        decode::decode,
        float::{Encoding, Extended},
        forms::Forms,
    },
};

const DATA: u64 = 0x1000;

fn cpu() -> Cpu {
    let mut cpu = Cpu::new(GuestMemory::anonymous(1 << 16).expect("memory"));
    cpu.set_reg(Cpu::RBX, DATA);
    cpu
}

/// Runs `code` to its end or to an exception.
fn run(cpu: &mut Cpu, code: &[u8]) -> Result<(), Exception> {
    let mut ops = Vec::new();
    decode(code, true, 64, &mut ops, &mut Forms::default()).expect("cut off");
    for op in ops {
        match (op.run)(cpu, &op) {
            Ok(()) => {}
            Err(Exit::Exception) => return Err(cpu.exception),
            // The end of the block.
            Err(Exit::Branch) => break,
            Err(exit) => panic!("{exit:?}"),
        }
    }
    Ok(())
}

fn extended(value: f64) -> Extended {
    Extended::pack(value.unpack())
}

const FSIN: [u8; 2] = [0xD9, 0xFE];
const FCOS: [u8; 2] = [0xD9, 0xFF];
const FPTAN: [u8; 2] = [0xD9, 0xF2];
const F2XM1: [u8; 2] = [0xD9, 0xF0];
const FYL2X: [u8; 2] = [0xD9, 0xF1];
const FYL2XP1: [u8; 2] = [0xD9, 0xF9];
const FPATAN: [u8; 2] = [0xD9, 0xF3];

/// Instruction, ST(0), ST(1), exponent and significand of the correctly rounded result; trigonometry
/// with pi to 66 bits. Computed with 300 bits by mpmath.
const KNOWN: &[([u8; 2], f64, f64, u16, u64)] = &[
    (FSIN, 1.0, 0.0, 0x3FFE, 0xD76A_A478_4867_7021),
    (FSIN, 0.001, 0.0, 0x3FF5, 0x8312_6D29_0C53_1036),
    (FSIN, -2.5, 0.0, 0xBFFE, 0x9935_786E_7E55_8405),
    (FSIN, 100.0, 0.0, 0xBFFE, 0x81A1_2DBC_626D_C036),
    (FSIN, 1e+18, 0.0, 0xBFFE, 0xFE29_3239_D98B_5DC4),
    (FCOS, 1.0, 0.0, 0x3FFE, 0x8A51_407D_A834_5C92),
    (FCOS, 1e-05, 0.0, 0x3FFE, 0xFFFF_FFFF_C906_404C),
    (FCOS, 3.0, 0.0, 0xBFFE, 0xFD70_25F4_2F2E_9308),
    (FCOS, -10000000000.0, 0.0, 0x3FFE, 0xDF84_C480_EB7F_65B5),
    (FPTAN, 1.0, 0.0, 0x3FFF, 0xC759_22E5_F71D_2DC5),
    (FPTAN, -0.3, 0.0, 0xBFFD, 0x9E61_5227_14CC_BC0A),
    (FPTAN, 1000000.0, 0.0, 0xBFFD, 0xBF4B_B455_B9A5_2D14),
    (F2XM1, 0.5, 0.0, 0x3FFD, 0xD413_CCCF_E779_9211),
    (F2XM1, -0.5, 0.0, 0xBFFD, 0x95F6_1998_0C43_36F7),
    (F2XM1, 1e-10, 0.0, 0x3FDD, 0x986C_B7A1_2110_932D),
    (F2XM1, 0.999, 0.0, 0x3FFE, 0xFFA5_2DE6_1C11_F23F),
    (F2XM1, -0.9, 0.0, 0xBFFD, 0xEDA0_411D_AF99_BECE),
    (FYL2X, 3.0, 1.0, 0x3FFF, 0xCAE0_0D1C_FDEB_43D0),
    (FYL2X, 0.1, 7.0, 0xC003, 0xBA07_2942_5378_185B),
    (FYL2X, 1.0000001, 2.0, 0x3FE9, 0x9AE8_7F52_FE65_BA16),
    (FYL2X, 1e+300, -3.0, 0xC00A, 0xBADB_C3BA_9F45_352B),
    (FYL2XP1, 1e-15, 1.0, 0x3FCD, 0xCFEA_0D69_8573_F4CE),
    (FYL2XP1, 0.25, 3.0, 0x3FFE, 0xF73D_A38D_9D4A_83EB),
    (FYL2XP1, -0.2, 1.5, 0xBFFD, 0xF73D_A38D_9D4A_883F),
    (FPATAN, 1.0, 1.0, 0x3FFE, 0xC90F_DAA2_2168_C235),
    (FPATAN, 3.0, 1.0, 0x3FFD, 0xA4BC_7D19_34F7_0924),
    (FPATAN, -1.0, 1e-05, 0x4000, 0xC90F_B0B0_B657_0164),
    (FPATAN, 1e-05, -7.0, 0xBFFF, 0xC90F_CEA6_4BF5_F726),
    (FPATAN, -2.0, -3.0, 0xC000, 0x8A29_C2FD_1D7B_8BF5),
    (FPATAN, 10.0, 9.999, 0x3FFE, 0xC90C_93BB_0726_55E9),
];

#[test]
fn transcendental_functions_round_correctly() {
    for (code, x, y, sign_exponent, significand) in KNOWN.iter().copied() {
        let mut cpu = cpu();
        cpu.x87.push(extended(y));
        cpu.x87.push(extended(x));
        assert_eq!(run(&mut cpu, &code), Ok(()));
        let result = cpu.x87.st(if code == FPTAN { 1 } else { 0 });
        let expected = Extended {
            significand,
            sign_exponent,
        };
        assert_eq!(result, expected, "{code:x?} {x} {y}");
    }
}

#[test]
fn an_unmasked_exception_waits_for_the_next_instruction() {
    let mut cpu = cpu();
    cpu.memory.write(DATA, 0x37B_u16); // division by zero unmasked
    // fldcw [rbx]; fld1; fldz; fdivp
    let divide = [0xD9, 0x2B, 0xD9, 0xE8, 0xD9, 0xEE, 0xDE, 0xF9];
    assert_eq!(run(&mut cpu, &divide), Ok(()));
    // FNSTSW does not wait, FWAIT and FLD1 do.
    assert_eq!(run(&mut cpu, &[0xDF, 0xE0]), Ok(()));
    assert_eq!(
        cpu.reg(Cpu::RAX) as u16 & (status::SUMMARY | 4),
        status::SUMMARY | 4
    );
    assert_eq!(run(&mut cpu, &[0x9B]), Err(Exception::X87));
    assert_eq!(run(&mut cpu, &[0xD9, 0xE8]), Err(Exception::X87));
    assert_eq!(run(&mut cpu, &[0x0F, 0x77]), Err(Exception::X87));
    assert_eq!(run(&mut cpu, &[0xDB, 0xE2, 0x9B]), Ok(()));
}

#[test]
fn saving_and_restoring_is_exact() {
    let mut cpu = cpu();
    for i in 0..5 {
        cpu.x87.push(extended(f64::from(i) - 1.5));
    }
    cpu.xmm[15] = 0x0123_4567_89AB_CDEF_0011_2233_4455_6677_u128.into();
    cpu.mxcsr = 0x9FC0;
    // fxsave64 [rbx]; fninit; fxrstor64 [rbx]
    let save = [0x48, 0x0F, 0xAE, 0x03];
    let restore = [0x48, 0x0F, 0xAE, 0x0B];
    assert_eq!(run(&mut cpu, &save), Ok(()));
    assert_eq!(cpu.memory.read(DATA), Some(0x037F_u16));
    assert_eq!(cpu.memory.read(DATA + 2), Some(3_u16 << 11));
    assert_eq!(cpu.memory.read(DATA + 4), Some(0b1111_1000_u8));
    assert_eq!(cpu.memory.read(DATA + 24), Some(0x9FC0_u32));
    assert_eq!(cpu.memory.read(DATA + 28), Some(super::MXCSR_MASK));
    assert_eq!(
        cpu.memory.read(DATA + 160 + 240),
        Some(u128::from(cpu.xmm[15]))
    );
    let (x87, xmm) = (cpu.x87.clone(), cpu.xmm);
    assert_eq!(run(&mut cpu, &[0xDB, 0xE3]), Ok(()));
    cpu.xmm = Default::default();
    cpu.mxcsr = 0x1F80;
    assert_eq!(run(&mut cpu, &restore), Ok(()));
    assert_eq!(
        (cpu.x87.registers, cpu.x87.top, cpu.x87.valid),
        (x87.registers, x87.top, x87.valid)
    );
    assert_eq!((cpu.xmm, cpu.mxcsr), (xmm, 0x9FC0));
    // A reserved bit of MXCSR refuses the image and changes nothing.
    cpu.memory.write(DATA + 24, 0x0001_0000_u32);
    assert_eq!(
        run(&mut cpu, &restore),
        Err(Exception::general_protection(0))
    );
    assert_eq!(cpu.mxcsr, 0x9FC0);
    // So does a misaligned address.
    cpu.set_reg(Cpu::RBX, DATA + 8);
    assert_eq!(run(&mut cpu, &save), Err(Exception::general_protection(0)));
}

#[test]
fn mmx_registers_are_the_low_bits_of_x87_registers() {
    let mut cpu = cpu();
    cpu.set_reg(Cpu::RAX, 0x1122_3344_5566_7788);
    // fld1; movq mm3, rax
    assert_eq!(run(&mut cpu, &[0xD9, 0xE8, 0x48, 0x0F, 0x6E, 0xD8]), Ok(()));
    assert_eq!((cpu.x87.top, cpu.x87.valid), (0, 0xFF));
    let expected = Extended {
        significand: 0x1122_3344_5566_7788,
        sign_exponent: 0xFFFF,
    };
    assert_eq!(cpu.x87.st(3), expected);
    assert_eq!(cpu.x87.st(7), extended(1.0));
    // emms
    assert_eq!(run(&mut cpu, &[0x0F, 0x77]), Ok(()));
    assert_eq!(cpu.x87.valid, 0);
}
