//! What the processor's innermost parts count for the register of flows: in private, so that a
//! count costs an addition, and handed over from time to time.

use crate::{
    counters::Counters,
    flows::{Flow, Reject},
};

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
/// What it refuses of them.
const REJECTS: [Reject; 9] = [
    Reject::InstructionDecodeUndefined,
    Reject::PageTableWalkAbsent,
    Reject::PageTableWalkForbidden,
    Reject::PageTableWalkReserved,
    Reject::MemoryHoleAccess,
    Reject::MemoryDescriptorBeyond,
    Reject::InterruptDeliverFault,
    Reject::MsrProcessorValue,
    Reject::MsrApicValue,
];

#[derive(Clone, Copy, Debug, Default)]
pub struct Tally {
    /// Number and bytes.
    accepted: [(u64, u64); FLOWS.len()],
    rejected: [u64; REJECTS.len()],
}

impl Tally {
    /// Counts one accepted item of `bytes`.
    #[inline]
    pub fn accept(&mut self, flow: Flow, bytes: u64) {
        let index = FLOWS.iter().position(|&other| other == flow);
        if let Some((count, sum)) = index.and_then(|index| self.accepted.get_mut(index)) {
            *count = count.wrapping_add(1);
            *sum = sum.wrapping_add(bytes);
        }
    }

    /// Counts one refused item.
    #[inline]
    pub fn reject(&mut self, kind: Reject) {
        let index = REJECTS.iter().position(|&other| other == kind);
        if let Some(count) = index.and_then(|index| self.rejected.get_mut(index)) {
            *count = count.wrapping_add(1);
            #[cfg(debug_assertions)]
            crate::evidence::refused(kind);
        }
    }

    /// Hands over what was counted since the last call.
    pub fn merge_into(&mut self, counters: &Counters) {
        let counted = std::mem::take(self);
        for (flow, (count, bytes)) in FLOWS.into_iter().zip(counted.accepted) {
            counters.merge(flow, count, bytes);
        }
        for (kind, count) in REJECTS.into_iter().zip(counted.rejected) {
            counters.merge_rejected(kind, count);
        }
    }
}
