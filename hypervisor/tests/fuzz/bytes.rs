//! Choices out of a fuzzer's bytes; when they are used up, every choice is the first one.

pub struct Bytes<'a>(pub &'a [u8]);

impl<'a> Bytes<'a> {
    pub fn take(&mut self, count: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(count.min(self.0.len()));
        self.0 = rest;
        taken
    }

    pub fn byte(&mut self) -> u8 {
        self.take(1).first().copied().unwrap_or(0)
    }

    pub fn below(&mut self, limit: u64) -> u64 {
        self.number(if limit <= 256 { 1 } else { 4 }) % limit
    }

    /// A number of `size` bytes.
    pub fn number(&mut self, size: usize) -> u64 {
        let bytes = self.take(size).iter().rev();
        bytes.fold(0, |value, &byte| value << 8 | u64::from(byte))
    }

    /// A number that matters more often than chance would have it.
    pub fn value(&mut self) -> u64 {
        match self.byte() % 7 {
            0 => self.number(1),
            1 => u64::MAX - self.number(1),
            2 => 1 << (self.byte() % 64),
            3 => self.number(1) << 12 | self.number(1),
            4 => self.number(4),
            5 => 0x0000_7FFF_FFFF_FFF8 + self.number(1) % 16,
            _ => self.number(8),
        }
    }
}
