//! AES rounds (FIPS 197) and carry-less multiplication.
//!
//! Table look-ups by secret bytes leave cache footprints; who can observe them shares the host's
//! core with this one virtual machine's process, which the design rules out as a neighbour.

use super::{operands::*, vector::*};
use crate::processor::soft::{
    cpu::Cpu,
    op::{Handler, Op},
};
use iced_x86::{Instruction, Mnemonic as M};
use std::array::from_fn;

pub fn select(i: &Instruction) -> Option<Handler> {
    Some(match i.mnemonic() {
        M::Aesenc => xmm!(i, encrypt),
        M::Aesenclast => xmm!(i, encrypt_last),
        M::Aesdec => xmm!(i, decrypt),
        M::Aesdeclast => xmm!(i, decrypt_last),
        M::Aesimc => xmm!(i, invert_mix),
        M::Aeskeygenassist => xmm_immediate!(i, assist_key),
        M::Pclmulqdq => xmm_immediate!(i, carryless_multiply),
        _ => return None,
    })
}

/// Multiplication in GF(2^8) modulo x^8 + x^4 + x^3 + x + 1.
const fn multiply(mut a: u8, mut b: u8) -> u8 {
    let mut product = 0;
    while b != 0 {
        if b & 1 != 0 {
            product ^= a;
        }
        a = (a << 1) ^ if a & 0x80 != 0 { 0x1B } else { 0 };
        b >>= 1;
    }
    product
}

/// The substitution box: the inverse in the field (x^254), then an affine map.
static SUBSTITUTE: [u8; 256] = {
    let mut table = [0; 256];
    let mut i = 0;
    while i < 256 {
        let x = i as u8;
        let mut inverse = 1;
        let mut n = 0;
        while n < 254 {
            inverse = multiply(inverse, x);
            n += 1;
        }
        table[i] = inverse
            ^ inverse.rotate_left(1)
            ^ inverse.rotate_left(2)
            ^ inverse.rotate_left(3)
            ^ inverse.rotate_left(4)
            ^ 0x63;
        i += 1;
    }
    table
};

static UNSUBSTITUTE: [u8; 256] = {
    let mut table = [0; 256];
    let mut i = 0;
    while i < 256 {
        table[SUBSTITUTE[i] as usize] = i as u8;
        i += 1;
    }
    table
};

/// Column that byte 0 of a state column contributes to the mixed one, by the substituted byte; the
/// other bytes contribute the same rotated. The matrix is circulant with first column `column`.
const fn mixing_table(substitute: &[u8; 256], column: [u8; 4]) -> [u32; 256] {
    let mut table = [0; 256];
    let mut i = 0;
    while i < 256 {
        let byte = substitute[i];
        table[i] = u32::from_le_bytes([
            multiply(byte, column[0]),
            multiply(byte, column[1]),
            multiply(byte, column[2]),
            multiply(byte, column[3]),
        ]);
        i += 1;
    }
    table
}

const MIX: [u8; 4] = [2, 1, 1, 3];
const UNMIX: [u8; 4] = [14, 9, 13, 11];
static IDENTITY: [u8; 256] = {
    let mut table = [0; 256];
    let mut i = 0;
    while i < 256 {
        table[i] = i as u8;
        i += 1;
    }
    table
};

static ENCRYPT: [u32; 256] = mixing_table(&SUBSTITUTE, MIX);
static DECRYPT: [u32; 256] = mixing_table(&UNSUBSTITUTE, UNMIX);
static INVERT_MIX: [u32; 256] = mixing_table(&IDENTITY, UNMIX);

/// The byte of row `i % 4` and column `i / 4` after each row moved left by `step` columns more than
/// the one above.
#[inline(always)]
fn shifted(state: [u8; 16], step: usize, i: usize) -> usize {
    usize::from(state[(i + step * 4 * (i % 4)) % 16])
}

/// Shifts the rows, then substitutes and mixes by `table`.
#[inline(always)]
fn round(state: Vector, table: &[u32; 256], step: usize) -> Vector {
    let state = state.u8s();
    let part = |column: usize, row: usize| {
        table[shifted(state, step, 4 * column + row)].rotate_left(8 * row as u32)
    };
    let column = |c: usize| part(c, 0) ^ part(c, 1) ^ part(c, 2) ^ part(c, 3);
    [column(0), column(1), column(2), column(3)].into()
}

/// Shifts the rows and substitutes.
#[inline(always)]
fn last_round(state: Vector, table: &[u8; 256], step: usize) -> Vector {
    let state = state.u8s();
    from_fn::<u8, 16, _>(|i| table[shifted(state, step, i)]).into()
}

/// Three columns left are one column right.
const RIGHT: usize = 3;
const LEFT: usize = 1;

fn invert_mix(_: Vector, state: Vector) -> Vector {
    round(state, &INVERT_MIX, 0)
}

#[inline(always)]
fn add(state: Vector, key: Vector) -> Vector {
    (u128::from(state) ^ u128::from(key)).into()
}

fn encrypt(state: Vector, key: Vector) -> Vector {
    add(round(state, &ENCRYPT, LEFT), key)
}

fn encrypt_last(state: Vector, key: Vector) -> Vector {
    add(last_round(state, &SUBSTITUTE, LEFT), key)
}

fn decrypt(state: Vector, key: Vector) -> Vector {
    add(round(state, &DECRYPT, RIGHT), key)
}

fn decrypt_last(state: Vector, key: Vector) -> Vector {
    add(last_round(state, &UNSUBSTITUTE, RIGHT), key)
}

fn assist_key(_: Vector, source: Vector, constant: u8) -> Vector {
    let word = |word: u32| {
        let bytes = word.to_le_bytes();
        u32::from_le_bytes(bytes.map(|byte| SUBSTITUTE[usize::from(byte)]))
    };
    let [_, b, _, d] = source.u32s();
    let (b, d) = (word(b), word(d));
    let rotated = |word: u32| word.rotate_right(8) ^ u32::from(constant);
    [b, rotated(b), d, rotated(d)].into()
}

/// Immediate bits 0 and 4 choose the halves.
fn carryless_multiply(a: Vector, b: Vector, halves: u8) -> Vector {
    let a = a.u64s()[usize::from(halves & 1)];
    let b = b.u64s()[usize::from(halves >> 4 & 1)];
    // Ordinary multiplication of operands with every fifth bit: at most 13 products meet in one
    // place, so their count stays within the five bits, and its lowest bit is their sum without
    // carries.
    const FIFTHS: u128 = {
        let mut mask = 0;
        let mut bit = 0;
        while bit < 128 {
            mask |= 1 << bit;
            bit += 5;
        }
        mask
    };
    let parts = |x: u64| from_fn::<u64, 5, _>(|i| x & ((FIFTHS as u64) << i));
    let (a, b) = (parts(a), parts(b));
    let product = |i: usize, j: usize| u128::from(a[i]) * u128::from(b[j]);
    (0..5)
        .fold(0, |result, place| {
            let sum = (0..5).fold(0, |sum, i| sum ^ product(i, (5 + place - i) % 5));
            result | sum & (FIFTHS << place)
        })
        .into()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// FIPS 197, appendix B: first round of the example.
    #[test]
    fn first_round_of_the_standard_example() {
        let state = Vector(0x193d_e3be_a0f4_e22b_9ac6_8d2a_e9f8_4808_u128.to_be_bytes());
        let key = Vector(0xa0fa_fe17_8854_2cb1_23a3_3939_2a6c_7605_u128.to_be_bytes());
        let next = Vector(0xa49c_7ff2_689f_352b_6b5b_ea43_026a_5049_u128.to_be_bytes());
        assert_eq!(encrypt(state, key), next);
    }

    #[test]
    fn decryption_undoes_encryption() {
        let state = Vector::from(0x0123_4567_89ab_cdef_0f1e_2d3c_4b5a_6978_u128);
        let zero = Vector::default();
        assert_eq!(decrypt_last(encrypt_last(state, zero), zero), state);
        let whole = encrypt(state, zero);
        assert_eq!(decrypt_last(invert_mix(zero, whole), zero), state);
    }

    #[test]
    fn carryless_product() {
        let a = Vector::from([0x6374_6f72_5d53_475d_u64, 0x7b5b_5465_7374_5665]);
        let b = Vector::from([0x5b47_7565_726f_6e5d_u64, 0x4869_2853_6861_7929]);
        let product = carryless_multiply(a, b, 0);
        assert_eq!(
            u128::from(product),
            0x1d4d_84c8_5c34_40c0_9296_33d5_d36f_0451_u128
        );
    }
}
