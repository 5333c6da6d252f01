//! What the processor's innermost parts count for the register of flows: in private, so that a
//! count costs an addition, and handed over from time to time.

use crate::{counters::Count, flows::Flow};

/// The flows that the processor deals with by itself, without an intercept.
const FLOWS: [Flow; 8] = [
    Flow::InstructionDecode,
    Flow::InstructionCodeWrite,
    Flow::PageTableWalk,
    Flow::MemoryHole,
    Flow::MemoryDescriptor,
    Flow::InterruptDeliver,
    Flow::MsrProcessor,
    Flow::MsrApic,
];

#[derive(Clone, Copy, Debug, Default)]
pub struct Tally([Count; FLOWS.len()]);

impl Tally {
    fn of(&mut self, flow: Flow) -> Option<&mut Count> {
        let index = FLOWS.iter().position(|&other| other == flow)?;
        self.0.get_mut(index)
    }

    /// Counts one accepted item of `bytes`.
    #[inline]
    pub fn accept(&mut self, flow: Flow, bytes: u64) {
        if let Some(count) = self.of(flow) {
            count.count = count.count.wrapping_add(1);
            count.bytes = count.bytes.wrapping_add(bytes);
        }
    }

    /// Counts one refused item.
    #[inline]
    pub fn reject(&mut self, flow: Flow) {
        if let Some(count) = self.of(flow) {
            count.rejected = count.rejected.wrapping_add(1);
            #[cfg(debug_assertions)]
            crate::evidence::refused(flow);
        }
    }

    /// Everything counted since the last call.
    pub fn take(&mut self) -> impl Iterator<Item = (Flow, Count)> + use<> {
        FLOWS.into_iter().zip(std::mem::take(self).0)
    }
}
