//! The sixteen conditions of Jcc, SETcc and CMOVcc, each a type.

use super::super::cpu::Cpu;
use iced_x86::Mnemonic;

/// A condition known when the handler is chosen.
pub trait Condition {
    fn holds(cpu: &Cpu) -> bool;
}

/// Condition `CODE`: the low four bits of the opcode.
pub struct Is<const CODE: u8>;

impl<const CODE: u8> Condition for Is<CODE> {
    #[inline(always)]
    fn holds(cpu: &Cpu) -> bool {
        cpu.flags.condition(CODE)
    }
}

/// What an instruction does with its condition.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Group {
    Jump,
    Set,
    Move,
}

/// The condition of a conditional instruction: its group and its code.
pub fn condition(mnemonic: Mnemonic) -> Option<(Group, u8)> {
    macro_rules! conditions {
        ($($code:literal $jump:ident $set:ident $move:ident,)*) => {
            match mnemonic {
                $(Mnemonic::$jump => Some((Group::Jump, $code)),
                Mnemonic::$set => Some((Group::Set, $code)),
                Mnemonic::$move => Some((Group::Move, $code)),)*
                _ => None,
            }
        };
    }
    conditions! {
        0 Jo Seto Cmovo,
        1 Jno Setno Cmovno,
        2 Jb Setb Cmovb,
        3 Jae Setae Cmovae,
        4 Je Sete Cmove,
        5 Jne Setne Cmovne,
        6 Jbe Setbe Cmovbe,
        7 Ja Seta Cmova,
        8 Js Sets Cmovs,
        9 Jns Setns Cmovns,
        10 Jp Setp Cmovp,
        11 Jnp Setnp Cmovnp,
        12 Jl Setl Cmovl,
        13 Jge Setge Cmovge,
        14 Jle Setle Cmovle,
        15 Jg Setg Cmovg,
    }
}

/// `$body` with `$condition` naming the condition type of `$code`.
macro_rules! by_condition {
    ($code:expr, |$condition:ident| $body:expr) => {
        by_condition!(@ $code, $condition, $body,
            0 1 2 3 4 5 6 7 8 9 10 11 12 13 14)
    };
    (@ $code:expr, $condition:ident, $body:expr, $($value:literal)*) => {
        match $code {
            $($value => {
                type $condition = $crate::processor::soft::integer::condition::Is<$value>;
                $body
            })*
            _ => {
                type $condition = $crate::processor::soft::integer::condition::Is<15>;
                $body
            }
        }
    };
}
pub(super) use by_condition;
