//! What each virtual processor has of its own; everything else belongs to the whole partition.

use super::{Vectors, page::PageRegister, stimer::SyntheticTimer, synic::Synic};
use crate::{
    memory::GuestMemory,
    record::{Malformed, Record},
};

#[derive(Default)]
pub struct VirtualProcessor {
    pub assist: PageRegister,
    pub synic: Synic,
    pub timer: SyntheticTimer,
    /// Interrupts to raise.
    pub vectors: Vectors,
    /// How often in a row it was found halted with interrupts disabled.
    pub stopped: u32,
}

impl VirtualProcessor {
    pub fn state(&mut self, record: &mut Record, memory: &GuestMemory) -> Result<(), Malformed> {
        self.assist.state(record, memory)?;
        self.synic.state(record, memory)?;
        self.timer.state(record)?;
        record.field(&mut self.vectors.0)
    }
}
