//! The layout that all MSRs which place a page in guest memory share.

use crate::{
    memory::{GuestMemory, PAGE_SIZE},
    record::{Malformed, Record, check},
};

/// Bit 0 enables the page, bits 12 and up are its number; the rest is kept as written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PageRegister(u64);

impl PageRegister {
    pub const ENABLE: u64 = 1;

    /// `None` when the page would be enabled outside RAM.
    pub fn checked(value: u64, memory: &GuestMemory) -> Option<Self> {
        let register = Self(value);
        (!register.is_enabled() || register.page(memory).is_some()).then_some(register)
    }

    /// Saves or restores the register; the page's content is guest memory.
    pub fn state(&mut self, record: &mut Record, memory: &GuestMemory) -> Result<(), Malformed> {
        record.field(&mut self.0)?;
        check(
            Self::checked(self.0, memory).is_some(),
            "a page outside RAM",
        )
    }

    pub fn value(self) -> u64 {
        self.0
    }

    pub fn is_enabled(self) -> bool {
        self.0 & Self::ENABLE != 0
    }

    /// Offset in guest memory of the page, ready to be read and written, when it is enabled and
    /// RAM.
    pub fn page(self, memory: &GuestMemory) -> Option<u64> {
        if !self.is_enabled() {
            return None;
        }
        // RAM consists of whole pages: the first byte's place decides for all.
        let offset = memory.offset(self.0 & !(PAGE_SIZE - 1))?;
        memory.touch(offset);
        Some(offset)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_enabled_page_lies_in_ram() {
        let memory = GuestMemory::anonymous(0x10000).unwrap();
        let page = |value| PageRegister::checked(value, &memory);
        assert_eq!(page(0xF001).unwrap().page(&memory), Some(0xF000));
        assert_eq!(page(0xF000).unwrap().page(&memory), None);
        assert_eq!(page(0x1_0000).unwrap().value(), 0x1_0000);
        assert!(page(0x1_0001).is_none());
        assert!(page(u64::MAX).is_none());
    }
}
