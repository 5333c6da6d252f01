//! The register stack, and how an instruction reports what happened.

use super::state::{X87, status};
use crate::processor::soft::{
    cpu::Cpu,
    float::{Class, Context, Encoding, Extended, Format, Number, flag},
};

impl X87 {
    pub fn context(&self) -> Context {
        Context::from_control_word(self.control)
    }

    /// The format that precision control asks of add, subtract, multiply, divide and square root.
    pub fn format(&self) -> Format {
        let precision = match self.control >> 8 & 3 {
            0 => 24,
            2 => 53,
            _ => 64,
        };
        Format {
            precision,
            ..Format::EXTENDED
        }
    }

    pub fn is_empty(&self, i: u8) -> bool {
        self.valid >> (self.top.wrapping_add(i) & 7) & 1 == 0
    }

    pub fn set(&mut self, i: u8, value: Extended) {
        *self.st_mut(i) = value;
        self.valid |= 1 << (self.top.wrapping_add(i) & 7);
    }

    pub fn set_number(&mut self, i: u8, number: Number) {
        self.set(i, Extended::pack(number));
    }

    pub fn free(&mut self, i: u8) {
        self.valid &= !(1 << (self.top.wrapping_add(i) & 7));
    }

    pub fn push(&mut self, value: Extended) {
        self.top = self.top.wrapping_sub(1) & 7;
        self.set(0, value);
    }

    pub fn pop(&mut self) {
        self.free(0);
        self.top = self.top.wrapping_add(1) & 7;
    }

    pub fn pops(&mut self, count: u8) {
        for _ in 0..count {
            self.pop();
        }
    }

    pub fn set_condition(&mut self, mask: u16, value: u16) {
        self.status = self.status & !mask | value & mask;
    }

    pub fn clear_c1(&mut self) {
        self.status &= !status::C1;
    }

    pub fn invalid_masked(&self) -> bool {
        self.control & status::INVALID != 0
    }
}

impl Cpu {
    /// Notes the exceptions of a computation. Returns whether its result is to be delivered: not
    /// when an exception found in the operands is unmasked.
    pub fn note_x87(&mut self, context: &Context) -> bool {
        let stopped = context.faults(flag::BEFORE);
        let flags = if stopped {
            context.flags & flag::BEFORE
        } else {
            context.flags
        };
        let up = context.rounded_up && flags & flag::INEXACT != 0;
        self.x87
            .set_condition(status::C1, if up { status::C1 } else { 0 });
        self.x87.status |= u16::from(flags);
        self.update_fpu_access();
        !stopped
    }

    /// An empty register was read, or (`overflow`) a push found no empty one. Returns whether the
    /// masked response (the indefinite value) is to be delivered.
    pub fn stack_fault(&mut self, overflow: bool) -> bool {
        let c1 = if overflow { status::C1 } else { 0 };
        self.x87.set_condition(status::C1, c1);
        self.x87.status |= status::INVALID | status::STACK_FAULT;
        self.update_fpu_access();
        self.x87.invalid_masked()
    }

    /// Pushes, or responds to a full stack.
    pub fn push_x87(&mut self, value: Extended) {
        if self.x87.is_empty(7) {
            self.x87.push(value);
        } else if self.stack_fault(true) {
            self.x87.push(Extended::pack(Number::INDEFINITE));
        }
    }

    /// Replaces ST(0) by `f` of it.
    pub fn unary_x87(&mut self, f: impl FnOnce(&mut Context, Number) -> Number) {
        if self.x87.is_empty(0) {
            if self.stack_fault(false) {
                self.x87.set_number(0, Number::INDEFINITE);
            }
            return;
        }
        let mut context = self.x87.context();
        let result = f(&mut context, self.x87.st(0).unpack());
        if self.note_x87(&context) {
            self.x87.set_number(0, in_range(&context, result));
        }
    }

    /// Replaces ST(`into`) by `f` of ST(0) and ST(1), then pops `pops` registers.
    pub fn binary_x87(
        &mut self,
        into: u8,
        pops: u8,
        f: impl FnOnce(&mut Context, Number, Number) -> Number,
    ) {
        if self.x87.is_empty(0) || self.x87.is_empty(1) {
            if self.stack_fault(false) {
                self.x87.set_number(into, Number::INDEFINITE);
                self.x87.pops(pops);
            }
            return;
        }
        let mut context = self.x87.context();
        let (a, b) = (self.x87.st(0).unpack(), self.x87.st(1).unpack());
        let result = f(&mut context, a, b);
        if self.note_x87(&context) {
            self.x87.set_number(into, in_range(&context, result));
            self.x87.pops(pops);
        }
    }
}

/// A result whose wrapped exponent (unmasked overflow or underflow) still has no encoding.
pub fn in_range(context: &Context, number: Number) -> Number {
    if number.class != Class::Finite {
        return number;
    }
    if number.exponent > Format::EXTENDED.max_exponent {
        return Number::infinity(number.negative);
    }
    let wrapped = context.flags & flag::UNDERFLOW & !context.masks != 0;
    if wrapped && number.exponent < Format::EXTENDED.min_exponent() {
        return Number::zero(number.negative);
    }
    number
}
