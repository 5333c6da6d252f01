//! Segment descriptors and the loads of segment registers (Intel SDM volume 3, chapters 3 and 5).

use crate::{
    flows::{Flow, Reject},
    processor::soft::cpu::{Cpu, Exception, Exit, Segment, segment},
};

/// The first eight bytes of a descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Descriptor(pub u64);

impl Descriptor {
    /// Type, S, DPL and P in bits 0-7; AVL, L, D/B and G in bits 12-15.
    pub fn attributes(self) -> u16 {
        (self.0 >> 40) as u16 & 0xF0FF
    }
    pub fn base(self) -> u32 {
        ((self.0 >> 16) as u32 & 0x00FF_FFFF) | ((self.0 >> 32) as u32 & 0xFF00_0000)
    }
    pub fn limit(self) -> u32 {
        let limit = (self.0 as u32 & 0xFFFF) | ((self.0 >> 32) as u32 & 0x000F_0000);
        if self.0 & 1 << 55 != 0 {
            limit << 12 | 0xFFF
        } else {
            limit
        }
    }
    pub fn kind(self) -> u8 {
        (self.0 >> 40) as u8 & 0xF
    }
    pub fn privilege(self) -> u8 {
        (self.0 >> 45) as u8 & 3
    }
    pub fn is_present(self) -> bool {
        self.0 & 1 << 47 != 0
    }
    /// Code or data, not a system descriptor.
    pub fn is_segment(self) -> bool {
        self.0 & 1 << 44 != 0
    }
    pub fn is_code(self) -> bool {
        self.is_segment() && self.kind() & 8 != 0
    }
    pub fn is_conforming(self) -> bool {
        self.is_code() && self.kind() & 4 != 0
    }
    pub fn is_readable(self) -> bool {
        self.is_segment() && (self.kind() & 8 == 0 || self.kind() & 2 != 0)
    }
    pub fn is_writable(self) -> bool {
        self.is_segment() && self.kind() & 0xA == 2
    }
    pub fn is_long(self) -> bool {
        self.0 & 1 << 53 != 0
    }
    pub fn is_32bit(self) -> bool {
        self.0 & 1 << 54 != 0
    }

    fn segment(self, selector: u16) -> Segment {
        Segment {
            selector,
            attributes: self.attributes(),
            limit: self.limit(),
            base: self.base(),
        }
    }
}

impl Cpu {
    /// Linear address of the descriptor that `selector` names, `None` when null or beyond the
    /// table. `bytes` is 8, or 16 for system descriptors.
    pub fn descriptor_address(&self, selector: u16, bytes: u32) -> Option<u64> {
        let index = u32::from(selector & !7);
        let table = if selector & 4 != 0 {
            if self.ldtr.selector & !3 == 0 {
                return None;
            }
            self.ldtr
        } else if index == 0 {
            return None;
        } else {
            self.gdtr
        };
        (index + bytes - 1 <= table.limit).then(|| table.base.wrapping_add(u64::from(index)))
    }

    /// Reads the descriptor that `selector` names. `None` when null or beyond the table.
    pub fn descriptor(&mut self, selector: u16) -> Result<Option<Descriptor>, Exit> {
        let Some(address) = self.descriptor_address(selector, 8) else {
            self.tally.reject(Reject::MemoryDescriptorBeyond);
            return Ok(None);
        };
        self.tally.accept(Flow::MemoryDescriptor, 8);
        let raw = self.as_system(|cpu| cpu.load::<u64>(address))?;
        Ok(Some(Descriptor(raw)))
    }

    /// Sets the accessed bit of a code or data descriptor in its table.
    pub fn mark_accessed(&mut self, selector: u16, descriptor: Descriptor) -> Result<(), Exit> {
        if descriptor.0 & 1 << 40 != 0 {
            return Ok(());
        }
        match self.descriptor_address(selector, 8) {
            Some(address) => {
                let byte = (descriptor.0 >> 40) as u8 | 1;
                self.as_system(|cpu| cpu.store::<u8>(address.wrapping_add(5), byte))
            }
            None => Ok(()),
        }
    }

    /// MOV, POP, LFS and so on to ES, SS, DS, FS or GS.
    pub fn load_segment(&mut self, register: usize, selector: u16) -> Result<(), Exit> {
        let fault = Exception::general_protection(u32::from(selector & !3));
        let requested = (selector & 3) as u8;
        if selector & !3 == 0 {
            if register == segment::SS
                && (!self.long_code || self.cpl == 3 || requested != self.cpl)
            {
                return self.raise(Exception::general_protection(0));
            }
            if register == segment::SS {
                self.load_null_stack_segment(self.cpl);
            } else {
                self.put_segment(
                    register,
                    Segment {
                        selector,
                        ..Segment::default()
                    },
                );
            }
            return Ok(());
        }
        let Some(descriptor) = self.descriptor(selector)? else {
            return self.raise(fault);
        };
        let privilege = descriptor.privilege();
        let allowed = if register == segment::SS {
            descriptor.is_writable() && requested == self.cpl && privilege == self.cpl
        } else {
            descriptor.is_readable()
                && (descriptor.is_conforming() || (requested <= privilege && self.cpl <= privilege))
        };
        if !allowed {
            return self.raise(fault);
        }
        if !descriptor.is_present() {
            let error = u32::from(selector & !3);
            return self.raise(if register == segment::SS {
                Exception::stack(error)
            } else {
                Exception::not_present(error)
            });
        }
        self.mark_accessed(selector, descriptor)?;
        self.put_segment(register, descriptor.segment(selector));
        Ok(())
    }

    fn put_segment(&mut self, register: usize, value: Segment) {
        if let Some(place) = self.segments.get_mut(register) {
            *place = value;
        }
        if register == segment::FS || register == segment::GS || !self.long_code {
            self.segment_base[register & 7] = u64::from(value.base);
        }
    }

    /// SS after a change of privilege in 64-bit mode.
    pub fn load_null_stack_segment(&mut self, privilege: u8) {
        let value = Segment {
            selector: u16::from(privilege),
            attributes: 0xC093 | u16::from(privilege) << 5,
            limit: u32::MAX,
            base: 0,
        };
        self.put_segment(segment::SS, value);
    }

    /// SS with the fixed descriptor that SYSCALL and SYSRET load.
    pub fn load_flat_stack_segment(&mut self, selector: u16, privilege: u8) {
        self.load_null_stack_segment(privilege);
        self.segments[segment::SS].selector = selector;
    }

    /// CS from a checked descriptor: switches between 64-bit and compatibility mode.
    pub fn set_code_segment(&mut self, selector: u16, descriptor: Descriptor) {
        let was = self.segment_base[segment::CS];
        self.segments[segment::CS] = descriptor.segment(selector);
        let long_code = descriptor.is_long();
        if long_code && self.long_code {
            return;
        }
        self.long_code = long_code;
        for register in [segment::ES, segment::CS, segment::SS, segment::DS] {
            self.segment_base[register] = if long_code {
                0
            } else {
                u64::from(self.segments[register].base)
            };
        }
        if self.segment_base[segment::CS] != was {
            // Remembered branch targets are offsets in the segment.
            self.jumps.forget_all();
        }
    }

    /// A return to less privileged code must not leave it segments it could not have loaded.
    pub fn drop_privileged_segments(&mut self) {
        for register in [segment::ES, segment::DS, segment::FS, segment::GS] {
            let value = self.segments[register];
            let privilege = (value.attributes >> 5 & 3) as u8;
            let conforming = value.attributes & 0xC == 0xC;
            if value.selector & !3 != 0 && privilege < self.cpl && !conforming {
                self.put_segment(register, Segment::default());
            }
        }
    }
}
