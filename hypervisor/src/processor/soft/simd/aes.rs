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
        M::Aesimc => xmm!(i, |_, b: Vector| mix(b, [14, 11, 13, 9])),
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
const SUBSTITUTE: [u8; 256] = {
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

const UNSUBSTITUTE: [u8; 256] = {
    let mut table = [0; 256];
    let mut i = 0;
    while i < 256 {
        table[SUBSTITUTE[i] as usize] = i as u8;
        i += 1;
    }
    table
};

/// Row `r` of column `c` is byte `4 c + r`; row `r` moves left by `r` columns.
#[inline(always)]
fn substitute_shifted(state: Vector, table: &[u8; 256], step: usize) -> Vector {
    let state = state.u8s();
    from_fn::<u8, 16, _>(|i| table[usize::from(state[(i + step * 4 * (i % 4)) % 16])]).into()
}

fn shifted(state: Vector) -> Vector {
    substitute_shifted(state, &SUBSTITUTE, 1)
}

fn unshifted(state: Vector) -> Vector {
    // Three columns left are one column right.
    substitute_shifted(state, &UNSUBSTITUTE, 3)
}

/// Doubles each byte in the field, eight at a time.
#[inline(always)]
fn double(bytes: u128) -> u128 {
    const LOW_BITS: u128 = 0x0101_0101_0101_0101_0101_0101_0101_0101;
    let high = bytes >> 7 & LOW_BITS;
    ((bytes & (0x7F * LOW_BITS)) << 1) ^ (high * 0x1B)
}

/// Multiplies each column by the circulant matrix with this first row.
#[inline(always)]
fn mix(state: Vector, row: [u8; 4]) -> Vector {
    // Rotating columns by rows: byte `r` of each column takes byte `r + n`.
    let rotated = |n: u32| u128::from(Vector::from(state.u32s().map(|c| c.rotate_right(8 * n))));
    let mut sum = 0;
    for (n, factor) in row.into_iter().enumerate() {
        let mut power = rotated(n as u32);
        for bit in 0..4 {
            if factor >> bit & 1 != 0 {
                sum ^= power;
            }
            power = double(power);
        }
    }
    sum.into()
}

#[inline(always)]
fn add(state: Vector, key: Vector) -> Vector {
    (u128::from(state) ^ u128::from(key)).into()
}

fn encrypt(state: Vector, key: Vector) -> Vector {
    add(mix(shifted(state), [2, 3, 1, 1]), key)
}

fn encrypt_last(state: Vector, key: Vector) -> Vector {
    add(shifted(state), key)
}

fn decrypt(state: Vector, key: Vector) -> Vector {
    add(mix(unshifted(state), [14, 11, 13, 9]), key)
}

fn decrypt_last(state: Vector, key: Vector) -> Vector {
    add(unshifted(state), key)
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
    // Four bits of `b` at a time: `table[n]` is `a` times the polynomial `n`.
    let a = u128::from(a);
    let mut table = [0; 16];
    for n in 1..16 {
        table[n] = if n % 2 == 0 {
            table[n / 2] << 1
        } else {
            table[n - 1] ^ a
        };
    }
    let mut product = 0;
    for digit in (0..16).rev() {
        product = product << 4 ^ table[(b >> (4 * digit) & 15) as usize];
    }
    product.into()
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
        let mixed = mix(state, [2, 3, 1, 1]);
        assert_eq!(mix(mixed, [14, 11, 13, 9]), state);
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
