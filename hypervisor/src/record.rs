//! The saved state of a virtual machine as one binary record.
//!
//! Each part of the machine has one `state` method that names its fields in order; the record
//! either takes their values or gives them, so that what is saved and what is restored cannot
//! differ. Layout, little-endian: `u64 magic, u32 version, u32 zero, u64 bytes of RAM`, the parts,
//! `u64 FNV-1a checksum` of all before it.
//!
//! A record comes back by way of the worker and of a file: it is judged like guest data. A value
//! that this machine could not have is refused before the guest runs; everything else a guest
//! could have brought about by itself.

use crate::flows::{Flow, Reject};

/// "TEUTHIS" and a zero byte.
const MAGIC: u64 = u64::from_le_bytes(*b"TEUTHIS\0");
/// Rises with every change of any part.
pub const VERSION: u32 = 4;
/// Largest record: the parts are small; the queue of messages is the largest.
pub const MAX_BYTES: usize = Flow::StateHypervisor.max_bytes() as usize;
/// Before the first part.
pub const HEADER_BYTES: usize = 24;
const CHECKSUM_BYTES: usize = 8;

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    #[error("this is not the saved state of a virtual machine")]
    Foreign,
    #[error("the saved state has version {0}, this program reads version {VERSION}")]
    Version(u32),
    #[error("the saved state is damaged")]
    Damaged,
    #[error("the saved state belongs to a machine with {0} bytes of memory")]
    Memory(u64),
    #[error("the saved state holds an impossible value: {0}")]
    Value(&'static str),
    #[error("the saved state belongs to another kind of processor")]
    Processor,
    #[error("the saved state belongs to a host whose processor has other features")]
    Host,
}

impl Malformed {
    /// The kind of bad input that it is.
    pub fn kind(&self) -> Reject {
        match self {
            Malformed::Value(_) => Reject::StateHypervisorImpossible,
            _ => Reject::StateHypervisorMalformed,
        }
    }
}

/// What a field may be.
pub trait Field {
    fn save(&self, bytes: &mut Vec<u8>);
    /// `None`: too short, or not a value of this type.
    fn restore(bytes: &mut &[u8]) -> Option<Self>
    where
        Self: Sized;
}

macro_rules! integers {
    ($($integer:ty)*) => {$(
        impl Field for $integer {
            fn save(&self, bytes: &mut Vec<u8>) {
                bytes.extend(self.to_le_bytes());
            }
            fn restore(bytes: &mut &[u8]) -> Option<Self> {
                let (value, rest) = bytes.split_first_chunk()?;
                *bytes = rest;
                Some(Self::from_le_bytes(*value))
            }
        }
    )*};
}
integers!(u8 u16 u32 u64);

impl Field for bool {
    fn save(&self, bytes: &mut Vec<u8>) {
        u8::from(*self).save(bytes);
    }
    fn restore(bytes: &mut &[u8]) -> Option<Self> {
        match u8::restore(bytes)? {
            0 => Some(false),
            1 => Some(true),
            _ => None,
        }
    }
}

impl<T: Field> Field for Option<T> {
    fn save(&self, bytes: &mut Vec<u8>) {
        self.is_some().save(bytes);
        if let Some(value) = self {
            value.save(bytes);
        }
    }
    fn restore(bytes: &mut &[u8]) -> Option<Self> {
        Some(match bool::restore(bytes)? {
            true => Some(T::restore(bytes)?),
            false => None,
        })
    }
}

/// At most 2^16 - 1 items, whose number stands before them.
impl<T: Field> Field for Vec<T> {
    fn save(&self, bytes: &mut Vec<u8>) {
        let count = u16::try_from(self.len()).unwrap_or(u16::MAX);
        count.save(bytes);
        for item in self.iter().take(count.into()) {
            item.save(bytes);
        }
    }
    fn restore(bytes: &mut &[u8]) -> Option<Self> {
        (0..u16::restore(bytes)?)
            .map(|_| T::restore(bytes))
            .collect()
    }
}

impl<T: Field + Copy, const N: usize> Field for [T; N] {
    fn save(&self, bytes: &mut Vec<u8>) {
        self.iter().for_each(|item| item.save(bytes));
    }
    fn restore(bytes: &mut &[u8]) -> Option<Self> {
        let items: Option<Vec<T>> = (0..N).map(|_| T::restore(bytes)).collect();
        items?.try_into().ok()
    }
}

enum Direction {
    Saving(Vec<u8>),
    /// What has not been read yet.
    Restoring(Vec<u8>, usize),
}

pub struct Record(Direction);

impl Record {
    /// An empty record, to be filled.
    pub fn saving(memory_size: u64) -> Self {
        let mut bytes = Vec::new();
        MAGIC.save(&mut bytes);
        VERSION.save(&mut bytes);
        0u32.save(&mut bytes);
        memory_size.save(&mut bytes);
        Self(Direction::Saving(bytes))
    }

    /// A record to be read, for a machine with so much memory.
    pub fn restoring(bytes: &[u8], memory_size: u64) -> Result<Self, Malformed> {
        let mut head = bytes;
        if u64::restore(&mut head) != Some(MAGIC) {
            return Err(Malformed::Foreign);
        }
        match u32::restore(&mut head) {
            Some(VERSION) => {}
            Some(version) => return Err(Malformed::Version(version)),
            None => return Err(Malformed::Damaged),
        }
        let damaged = Malformed::Damaged;
        let (body, mut sum) = bytes
            .split_at_checked(bytes.len().saturating_sub(CHECKSUM_BYTES))
            .ok_or(damaged)?;
        if bytes.len() > MAX_BYTES || u64::restore(&mut sum) != Some(checksum(body)) {
            return Err(damaged);
        }
        if u32::restore(&mut head) != Some(0) {
            return Err(damaged);
        }
        match u64::restore(&mut head) {
            Some(size) if size == memory_size => {}
            Some(size) => return Err(Malformed::Memory(size)),
            None => return Err(damaged),
        }
        let at = bytes.len() - head.len();
        Ok(Self(Direction::Restoring(body.to_vec(), at)))
    }

    pub fn is_restoring(&self) -> bool {
        matches!(self.0, Direction::Restoring(..))
    }

    /// Saves `value`, or replaces it by what was saved.
    pub fn field<T: Field>(&mut self, value: &mut T) -> Result<(), Malformed> {
        match &mut self.0 {
            Direction::Saving(bytes) => value.save(bytes),
            Direction::Restoring(bytes, at) => {
                let mut rest = bytes.get(*at..).unwrap_or_default();
                *value = T::restore(&mut rest).ok_or(Malformed::Damaged)?;
                *at = bytes.len() - rest.len();
            }
        }
        Ok(())
    }

    /// Several fields of one type.
    pub fn fields<T: Field, const N: usize>(
        &mut self,
        values: [&mut T; N],
    ) -> Result<(), Malformed> {
        values.into_iter().try_for_each(|value| self.field(value))
    }

    /// The whole record, after the last part was saved.
    pub fn finish(self) -> Vec<u8> {
        match self.0 {
            Direction::Saving(mut bytes) | Direction::Restoring(mut bytes, _) => {
                checksum(&bytes).save(&mut bytes);
                bytes
            }
        }
    }

    /// Checks that nothing is left, after the last part was restored.
    pub fn end(self) -> Result<(), Malformed> {
        match self.0 {
            Direction::Restoring(bytes, at) if at != bytes.len() => Err(Malformed::Damaged),
            _ => Ok(()),
        }
    }
}

/// Refuses a value that was restored, by name.
pub fn check(condition: bool, name: &'static str) -> Result<(), Malformed> {
    condition.then_some(()).ok_or(Malformed::Value(name))
}

/// FNV-1a: finds what broke by accident. Against forgery nothing here would help, as who forges
/// the record can forge its checksum; the values are judged one by one.
pub fn checksum(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xCBF2_9CE4_8422_2325, |sum, &byte| {
        (sum ^ u64::from(byte)).wrapping_mul(0x100_0000_01B3)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const MEMORY: u64 = 1 << 20;

    #[derive(Clone, Debug, Default, PartialEq)]
    struct Part {
        number: u64,
        list: Vec<u16>,
        maybe: Option<u32>,
        table: [u8; 3],
        flag: bool,
    }

    impl Part {
        fn state(&mut self, record: &mut Record) -> Result<(), Malformed> {
            record.field(&mut self.number)?;
            record.field(&mut self.list)?;
            record.field(&mut self.maybe)?;
            record.field(&mut self.table)?;
            record.field(&mut self.flag)
        }
    }

    fn saved() -> (Part, Vec<u8>) {
        let mut part = Part {
            number: 7,
            list: vec![1, 2, 3],
            maybe: Some(9),
            table: [4, 5, 6],
            flag: true,
        };
        let mut record = Record::saving(MEMORY);
        part.state(&mut record).unwrap();
        (part, record.finish())
    }

    fn restored(bytes: &[u8]) -> Result<Part, Malformed> {
        let mut part = Part::default();
        let mut record = Record::restoring(bytes, MEMORY)?;
        part.state(&mut record)?;
        record.end()?;
        Ok(part)
    }

    /// `bytes` without its checksum, changed, and a checksum that fits.
    fn forged(bytes: &[u8], change: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
        let mut bytes = bytes[..bytes.len() - CHECKSUM_BYTES].to_vec();
        change(&mut bytes);
        let sum = checksum(&bytes);
        sum.save(&mut bytes);
        bytes
    }

    #[test]
    fn what_was_saved_is_restored() {
        let (part, bytes) = saved();
        assert_eq!(restored(&bytes), Ok(part));
    }

    #[test]
    fn each_kind_of_wrong_record_is_refused() {
        let (_, bytes) = saved();
        assert_eq!(restored(&[]), Err(Malformed::Foreign));
        assert_eq!(restored(&[0; 64]), Err(Malformed::Foreign));
        for length in 8..bytes.len() {
            assert!(restored(&bytes[..length]).is_err(), "cut at {length}");
        }
        for at in 16..bytes.len() {
            let mut bytes = bytes.clone();
            bytes[at] ^= 1;
            assert_eq!(restored(&bytes), Err(Malformed::Damaged), "byte {at}");
        }
        let newer = forged(&bytes, |bytes| bytes[8] += 1);
        assert_eq!(restored(&newer), Err(Malformed::Version(VERSION + 1)));
        let other = forged(&bytes, |bytes| bytes[18] ^= 0x20);
        assert_eq!(restored(&other), Err(Malformed::Memory(MEMORY ^ 0x20_0000)));
        let longer = forged(&bytes, |bytes| bytes.push(0));
        assert_eq!(restored(&longer), Err(Malformed::Damaged));
        let flag = forged(&bytes, |bytes| *bytes.last_mut().unwrap() = 2);
        assert_eq!(restored(&flag), Err(Malformed::Damaged));
        let huge = forged(&bytes, |bytes| bytes.resize(MAX_BYTES, 0));
        assert_eq!(restored(&huge), Err(Malformed::Damaged));
    }
}
