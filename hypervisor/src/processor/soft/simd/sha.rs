//! SHA-1 and SHA-256 steps (FIPS 180-4). As on AMD's processors, memory operands need no alignment
//! (Intel's do ask for it).

use super::{operands::*, vector::*};
use crate::processor::soft::{
    cpu::{Cpu, Exit},
    op::{Handler, Op},
};
use iced_x86::{Instruction, Mnemonic as M};

macro_rules! sha {
    ($instruction:expr, $f:expr) => {
        if in_memory($instruction) {
            (|cpu: &mut Cpu, op: &Op| xmm_unaligned(cpu, op, $f)) as Handler
        } else {
            |cpu: &mut Cpu, op: &Op| xmm_xmm(cpu, op, $f)
        }
    };
}

pub fn select(i: &Instruction) -> Option<Handler> {
    Some(match i.mnemonic() {
        M::Sha1rnds4 => sha!(i, sha1_rounds),
        M::Sha1nexte => sha!(i, |a, b, _| sha1_next_e(a, b)),
        M::Sha1msg1 => sha!(i, |a, b, _| sha1_message1(a, b)),
        M::Sha1msg2 => sha!(i, |a, b, _| sha1_message2(a, b)),
        M::Sha256rnds2 if in_memory(i) => sha256_rounds_memory,
        M::Sha256rnds2 => sha256_rounds_register,
        M::Sha256msg1 => sha!(i, |a, b, _| sha256_message1(a, b)),
        M::Sha256msg2 => sha!(i, |a, b, _| sha256_message2(a, b)),
        _ => return None,
    })
}

/// Four rounds. Words stand highest first: A B C D, and W0 + E, W1, W2, W3.
fn sha1_rounds(state: Vector, words: Vector, stage: u8) -> Vector {
    const CONSTANTS: [u32; 4] = [0x5A82_7999, 0x6ED9_EBA1, 0x8F1B_BCDC, 0xCA62_C1D6];
    let stage = usize::from(stage & 3);
    let [mut d, mut c, mut b, mut a] = state.u32s();
    let mut e = 0;
    for word in words.u32s().into_iter().rev() {
        let f = match stage {
            0 => (b & c) ^ (!b & d),
            2 => (b & c) ^ (b & d) ^ (c & d),
            _ => b ^ c ^ d,
        };
        let next = f
            .wrapping_add(a.rotate_left(5))
            .wrapping_add(word)
            .wrapping_add(e)
            .wrapping_add(CONSTANTS[stage]);
        (e, d, c, b, a) = (d, c, b.rotate_left(30), a, next);
    }
    [d, c, b, a].into()
}

fn sha1_next_e(state: Vector, words: Vector) -> Vector {
    let e = state.u32s()[3].rotate_left(30);
    let [a, b, c, d] = words.u32s();
    [a, b, c, d.wrapping_add(e)].into()
}

fn sha1_message1(a: Vector, b: Vector) -> Vector {
    let ([w3, w2, w1, w0], [_, _, w5, w4]) = (a.u32s(), b.u32s());
    [w5 ^ w3, w4 ^ w2, w3 ^ w1, w2 ^ w0].into()
}

fn sha1_message2(a: Vector, b: Vector) -> Vector {
    let ([a3, a2, a1, a0], [w15, w14, w13, _]) = (a.u32s(), b.u32s());
    let w16 = (a0 ^ w13).rotate_left(1);
    let w17 = (a1 ^ w14).rotate_left(1);
    let w18 = (a2 ^ w15).rotate_left(1);
    let w19 = (a3 ^ w16).rotate_left(1);
    [w19, w18, w17, w16].into()
}

/// Two rounds with the words in XMM0. The destination holds C D G H, the source A B E F.
fn sha256_rounds(cdgh: Vector, abef: Vector, words: Vector) -> Vector {
    let ([mut h, mut g, mut d, mut c], [mut f, mut e, mut b, mut a]) = (cdgh.u32s(), abef.u32s());
    for word in words.u32s().into_iter().take(2) {
        let choose = (e & f) ^ (!e & g);
        let majority = (a & b) ^ (a & c) ^ (b & c);
        let sum_e = e.rotate_right(6) ^ e.rotate_right(11) ^ e.rotate_right(25);
        let sum_a = a.rotate_right(2) ^ a.rotate_right(13) ^ a.rotate_right(22);
        let first = choose
            .wrapping_add(sum_e)
            .wrapping_add(word)
            .wrapping_add(h);
        let second = majority.wrapping_add(sum_a);
        (h, g, f, e) = (g, f, e, d.wrapping_add(first));
        (d, c, b, a) = (c, b, a, first.wrapping_add(second));
    }
    let _ = (c, d, g, h);
    [f, e, b, a].into()
}

fn sha256_rounds_register(cpu: &mut Cpu, op: &Op) -> Result<(), Exit> {
    cpu.require_sse()?;
    cpu.xmm[dst(op)] = sha256_rounds(cpu.xmm[dst(op)], cpu.xmm[src(op)], cpu.xmm[0]);
    Ok(())
}

fn sha256_rounds_memory(cpu: &mut Cpu, op: &Op) -> Result<(), Exit> {
    cpu.require_sse()?;
    let source = load_unaligned(cpu, op)?;
    cpu.xmm[dst(op)] = sha256_rounds(cpu.xmm[dst(op)], source, cpu.xmm[0]);
    Ok(())
}

fn sha256_message1(a: Vector, b: Vector) -> Vector {
    let ([w0, w1, w2, w3], [w4, ..]) = (a.u32s(), b.u32s());
    let mix = |w: u32| w.rotate_right(7) ^ w.rotate_right(18) ^ (w >> 3);
    [
        w0.wrapping_add(mix(w1)),
        w1.wrapping_add(mix(w2)),
        w2.wrapping_add(mix(w3)),
        w3.wrapping_add(mix(w4)),
    ]
    .into()
}

fn sha256_message2(a: Vector, b: Vector) -> Vector {
    let ([a0, a1, a2, a3], [_, _, w14, w15]) = (a.u32s(), b.u32s());
    let mix = |w: u32| w.rotate_right(17) ^ w.rotate_right(19) ^ (w >> 10);
    let w16 = a0.wrapping_add(mix(w14));
    let w17 = a1.wrapping_add(mix(w15));
    let w18 = a2.wrapping_add(mix(w16));
    let w19 = a3.wrapping_add(mix(w17));
    [w16, w17, w18, w19].into()
}
