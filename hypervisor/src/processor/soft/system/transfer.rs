//! Far transfers: IRET, far jumps, calls and returns, and software interrupts.

use super::descriptor::Descriptor;
use crate::processor::soft::{
    cpu::{Cpu, Exception, Exit, segment},
    exception::Origin,
    flags,
    op::Op,
    paging::is_canonical,
};

/// What IRET may change in RFLAGS at any privilege. RF is dropped: without instruction breakpoints it
/// has no effect.
const IRET_FLAGS: u64 =
    flags::ARITHMETIC | flags::TF | flags::DF | flags::NT | flags::AC | flags::ID;

impl Cpu {
    /// Checks CS for a return to `selector`'s privilege.
    fn return_descriptor(&mut self, selector: u16) -> Result<Descriptor, Exit> {
        let fault = Exception::general_protection(u32::from(selector & !3));
        let requested = (selector & 3) as u8;
        let Some(descriptor) = self.descriptor(selector)? else {
            return self.raise(fault);
        };
        let privilege_fits = if descriptor.is_conforming() {
            descriptor.privilege() <= requested
        } else {
            descriptor.privilege() == requested
        };
        let one_mode = !(descriptor.is_long() && descriptor.is_32bit());
        if !descriptor.is_code() || requested < self.cpl || !privilege_fits || !one_mode {
            return self.raise(fault);
        }
        if !descriptor.is_present() {
            return self.raise(Exception::not_present(u32::from(selector & !3)));
        }
        Ok(descriptor)
    }

    /// Checks CS for a jump or call that keeps the privilege. Gates are not followed: Linux has
    /// none, and a guest that makes one gets #GP.
    fn target_descriptor(&mut self, selector: u16) -> Result<Descriptor, Exit> {
        let fault = Exception::general_protection(u32::from(selector & !3));
        let requested = (selector & 3) as u8;
        let Some(descriptor) = self.descriptor(selector)? else {
            return self.raise(fault);
        };
        let privilege_fits = if descriptor.is_conforming() {
            descriptor.privilege() <= self.cpl
        } else {
            requested <= self.cpl && descriptor.privilege() == self.cpl
        };
        let one_mode = !(descriptor.is_long() && descriptor.is_32bit());
        if !descriptor.is_code() || !privilege_fits || !one_mode {
            return self.raise(fault);
        }
        if !descriptor.is_present() {
            return self.raise(Exception::not_present(u32::from(selector & !3)));
        }
        Ok(descriptor)
    }

    /// The target of a transfer into `descriptor`: 32 bits wide in compatibility mode.
    fn check_target(&mut self, descriptor: Descriptor, target: u64) -> Result<u64, Exit> {
        if !descriptor.is_long() {
            return Ok(target & 0xFFFF_FFFF);
        }
        if !is_canonical(target) {
            return self.raise(Exception::general_protection(0));
        }
        Ok(target)
    }

    /// Linear address `offset` bytes above the stack pointer.
    fn stack_address(&self, offset: u64) -> u64 {
        let address = self.reg(Self::RSP).wrapping_add(offset);
        if self.long_code {
            address
        } else {
            self.segment_base[segment::SS].wrapping_add(address & 0xFFFF_FFFF)
        }
    }

    /// The stack slot `index`, of `BITS` bits.
    fn stack_slot<const BITS: u32>(&mut self, index: u64) -> Result<u64, Exit> {
        let address = self.stack_address(index * u64::from(BITS / 8));
        if BITS == 64 {
            self.load::<u64>(address)
        } else {
            Ok(u64::from(self.load::<u32>(address)?))
        }
    }

    /// Checks SS for a return to privilege `requested` of CS.
    fn return_stack(
        &mut self,
        selector: u16,
        code: Descriptor,
        requested: u8,
    ) -> Result<Option<Descriptor>, Exit> {
        let fault = Exception::general_protection(u32::from(selector & !3));
        if selector & !3 == 0 {
            if code.is_long() && requested != 3 && (selector & 3) as u8 == requested {
                return Ok(None);
            }
            return self.raise(Exception::general_protection(0));
        }
        let Some(descriptor) = self.descriptor(selector)? else {
            return self.raise(fault);
        };
        if (selector & 3) as u8 != requested
            || !descriptor.is_writable()
            || descriptor.privilege() != requested
        {
            return self.raise(fault);
        }
        if !descriptor.is_present() {
            return self.raise(Exception::stack(u32::from(selector & !3)));
        }
        Ok(Some(descriptor))
    }

    fn set_stack_segment(&mut self, selector: u16, descriptor: Option<Descriptor>, privilege: u8) {
        self.load_flat_stack_segment(selector, privilege);
        if let Some(descriptor) = descriptor {
            let stack = &mut self.segments[segment::SS];
            stack.attributes = descriptor.attributes();
            stack.limit = descriptor.limit();
            stack.base = descriptor.base();
            if !self.long_code {
                self.segment_base[segment::SS] = u64::from(stack.base);
            }
        }
    }

    /// Continues at `target` in `selector` with its privilege.
    fn go(&mut self, selector: u16, descriptor: Descriptor, target: u64) {
        let outward = (selector & 3) as u8 > self.cpl;
        self.cpl = (selector & 3) as u8;
        self.set_code_segment(selector, descriptor);
        if outward {
            self.drop_privileged_segments();
        }
        self.rip = target;
        self.attention = true;
        self.update_domain();
    }
}

pub fn iret<const BITS: u32>(cpu: &mut Cpu, _op: &Op) -> Result<(), Exit> {
    if cpu.system_flags & flags::NT != 0 {
        return cpu.raise(Exception::general_protection(0));
    }
    let target = cpu.stack_slot::<BITS>(0)?;
    let selector = cpu.stack_slot::<BITS>(1)? as u16;
    let image = cpu.stack_slot::<BITS>(2)?;
    let descriptor = cpu.return_descriptor(selector)?;
    let target = cpu.check_target(descriptor, target)?;
    let requested = (selector & 3) as u8;

    let mut allowed = IRET_FLAGS;
    if u64::from(cpu.cpl) <= cpu.system_flags >> flags::IOPL.trailing_zeros() & 3 {
        allowed |= flags::IF;
    }
    if cpu.cpl == 0 {
        allowed |= flags::IOPL | flags::VIF | flags::VIP;
    }

    // 64-bit code always pops the stack pointer, compatibility mode only on a change.
    if cpu.long_code || requested != cpu.cpl {
        let stack = cpu.stack_slot::<BITS>(3)?;
        let stack_selector = cpu.stack_slot::<BITS>(4)? as u16;
        let stack_descriptor = cpu.return_stack(stack_selector, descriptor, requested)?;
        cpu.set_stack_segment(stack_selector, stack_descriptor, requested);
        cpu.set_reg(Cpu::RSP, stack);
    } else {
        let stack = cpu.reg(Cpu::RSP).wrapping_add(3 * u64::from(BITS / 8));
        cpu.set_reg(Cpu::RSP, stack & 0xFFFF_FFFF);
    }
    let kept = cpu.rflags() & !allowed;
    cpu.set_rflags(kept | image & allowed);
    cpu.go(selector, descriptor, target);
    Err(Exit::Branch)
}

pub fn far_return<const BITS: u32>(cpu: &mut Cpu, op: &Op) -> Result<(), Exit> {
    let target = cpu.stack_slot::<BITS>(0)?;
    let selector = cpu.stack_slot::<BITS>(1)? as u16;
    let descriptor = cpu.return_descriptor(selector)?;
    let target = cpu.check_target(descriptor, target)?;
    let requested = (selector & 3) as u8;
    let released = op.immediate as u64 & 0xFFFF;
    let popped = released.wrapping_add(2 * u64::from(BITS / 8));
    if requested > cpu.cpl {
        let place = cpu.stack_address(popped);
        let (stack, stack_selector) = if BITS == 64 {
            let stack = cpu.load::<u64>(place)?;
            (stack, cpu.load::<u64>(place.wrapping_add(8))? as u16)
        } else {
            let stack = u64::from(cpu.load::<u32>(place)?);
            (stack, cpu.load::<u32>(place.wrapping_add(4))? as u16)
        };
        let stack_descriptor = cpu.return_stack(stack_selector, descriptor, requested)?;
        cpu.set_stack_segment(stack_selector, stack_descriptor, requested);
        cpu.set_reg(Cpu::RSP, stack.wrapping_add(released));
    } else {
        let stack = cpu.reg(Cpu::RSP).wrapping_add(popped);
        let mask = if cpu.long_code { u64::MAX } else { 0xFFFF_FFFF };
        cpu.set_reg(Cpu::RSP, stack & mask);
    }
    cpu.go(selector, descriptor, target);
    Err(Exit::Branch)
}

/// Selector and offset of a far pointer: in memory, or (`BITS` 0) immediate.
fn far_pointer<const BITS: u32>(cpu: &mut Cpu, op: &Op) -> Result<(u16, u64), Exit> {
    if BITS == 0 {
        let pointer = op.immediate as u64;
        return Ok(((pointer >> 32) as u16, pointer & 0xFFFF_FFFF));
    }
    let address = cpu.effective_address(op);
    let offset = if BITS == 64 {
        cpu.load::<u64>(address)?
    } else {
        u64::from(cpu.load::<u32>(address)?)
    };
    let selector = cpu.load::<u16>(address.wrapping_add(u64::from(BITS / 8)))?;
    Ok((selector, offset))
}

/// Same privilege, whatever RPL the pointer carried.
fn with_current_privilege(cpu: &Cpu, selector: u16) -> u16 {
    selector & !3 | u16::from(cpu.cpl)
}

pub fn far_jump<const BITS: u32>(cpu: &mut Cpu, op: &Op) -> Result<(), Exit> {
    let (selector, target) = far_pointer::<BITS>(cpu, op)?;
    let descriptor = cpu.target_descriptor(selector)?;
    let target = cpu.check_target(descriptor, target)?;
    let selector = with_current_privilege(cpu, selector);
    cpu.go(selector, descriptor, target);
    Err(Exit::Branch)
}

pub fn far_call<const BITS: u32>(cpu: &mut Cpu, op: &Op) -> Result<(), Exit> {
    let (selector, target) = far_pointer::<BITS>(cpu, op)?;
    let descriptor = cpu.target_descriptor(selector)?;
    let target = cpu.check_target(descriptor, target)?;
    let here = cpu.segments[segment::CS].selector;
    let next = cpu.next_rip(op);
    if BITS == 64 {
        let top = cpu.reg(Cpu::RSP).wrapping_sub(16);
        let frame = u128::from(here) << 64 | u128::from(next);
        cpu.store(top, frame)?;
        cpu.set_reg(Cpu::RSP, top);
    } else {
        let place = cpu.stack_address(8u64.wrapping_neg());
        let frame = u64::from(here) << 32 | next & 0xFFFF_FFFF;
        cpu.store(place, frame)?;
        let mask = if cpu.long_code { u64::MAX } else { 0xFFFF_FFFF };
        cpu.set_reg(Cpu::RSP, cpu.reg(Cpu::RSP).wrapping_sub(8) & mask);
    }
    let selector = with_current_privilege(cpu, selector);
    cpu.go(selector, descriptor, target);
    Err(Exit::Branch)
}

/// A software interrupt returns to the next instruction; a fault on its way is the instruction's.
fn software(cpu: &mut Cpu, op: &Op, vector: u8) -> Result<(), Exit> {
    cpu.rip = cpu.next_rip(op);
    let event = Exception {
        vector,
        ..Exception::BREAKPOINT
    };
    cpu.enter(event, Origin::Software)?;
    Err(Exit::Entered)
}

pub fn int(cpu: &mut Cpu, op: &Op) -> Result<(), Exit> {
    software(cpu, op, op.immediate as u8)
}

pub fn int3(cpu: &mut Cpu, op: &Op) -> Result<(), Exit> {
    software(cpu, op, 3)
}

pub fn into(cpu: &mut Cpu, op: &Op) -> Result<(), Exit> {
    if cpu.flags.overflow() {
        return software(cpu, op, 4);
    }
    Ok(())
}

/// ICEBP: a debug trap, whatever the gate's privilege.
pub fn int1(cpu: &mut Cpu, op: &Op) -> Result<(), Exit> {
    cpu.rip = cpu.next_rip(op);
    cpu.enter(Exception::DEBUG, Origin::Processor)?;
    Err(Exit::Branch)
}
