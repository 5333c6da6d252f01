//! Code out of guest memory: copied once, then decoded.

use super::{
    code::Source,
    cpu::{Cpu, Exception, Exit, segment},
    decode::{self, MAX_INSTRUCTION},
    forms::Forms,
    op::Op,
};
use crate::memory::PAGE_SIZE;

/// Bytes that a block is decoded from at most.
const BUFFER: usize = 128;

/// A copy of the bytes that a block is decoded from.
pub struct Code {
    buffer: [u8; BUFFER],
    length: usize,
}

impl Default for Code {
    fn default() -> Self {
        Self {
            buffer: [0; BUFFER],
            length: 0,
        }
    }
}

impl Code {
    /// Those that the decoded instructions cover.
    pub fn bytes(&self) -> &[u8] {
        self.buffer.get(..self.length).unwrap_or(&self.buffer)
    }

    /// Decodes at most `limit` instructions at the current address, to the end of `ops`.
    pub fn decode(
        &mut self,
        cpu: &mut Cpu,
        limit: usize,
        ops: &mut Vec<Op>,
        forms: &mut Forms,
    ) -> Result<Source, Exit> {
        let linear = cpu.code_address(cpu.rip);
        let verified = cpu.tlb.epoch(linear);
        let Some(offset) = cpu.translate_fetch(linear)? else {
            // A hole reads as all ones, which is no instruction.
            return cpu.raise(Exception::INVALID_OPCODE);
        };
        let mut source = Source {
            offset,
            second_page: None,
            long_code: cpu.long_code,
            verified,
        };
        let in_page = ((PAGE_SIZE - offset % PAGE_SIZE) as usize).min(BUFFER);
        let bytes = self.buffer.get_mut(..in_page).unwrap_or_default();
        if cpu.memory.read_bytes(offset, bytes).is_none() {
            return cpu.raise(Exception::INVALID_OPCODE);
        }
        if let Some(length) = decode::decode(bytes, cpu.long_code, limit, ops, forms) {
            self.length = length;
            return Ok(source);
        }

        // One instruction that goes on in the next page.
        source.second_page = cpu.translate_fetch(page_after(linear))?;
        let whole = (in_page + MAX_INSTRUCTION.saturating_sub(in_page)).min(BUFFER);
        let bytes = self.buffer.get_mut(..whole).unwrap_or_default();
        let (_, tail) = bytes.split_at_mut(in_page.min(bytes.len()));
        let second = source.second_page;
        if second
            .and_then(|second| cpu.memory.read_bytes(second, tail))
            .is_none()
        {
            tail.fill(0xFF);
        }
        match decode::decode(bytes, cpu.long_code, 1, ops, forms) {
            Some(length) => {
                self.length = length;
                Ok(source)
            }
            // Longer than an instruction can be.
            None => cpu.raise(Exception::general_protection(0)),
        }
    }
}

pub fn page_after(linear: u64) -> u64 {
    (linear | (PAGE_SIZE - 1)).wrapping_add(1)
}

impl Cpu {
    /// Linear address of an instruction.
    pub(super) fn code_address(&self, rip: u64) -> u64 {
        self.segment_base[segment::CS].wrapping_add(rip)
    }
}
