//! Live counters of this process: how often each flow ran, its bytes, what was rejected and why.
//!
//! They live in a shared page, so that the root reads them without asking. This process is the
//! only writer, and of its threads the one that holds the machine (see `machine`). Layout: for flow
//! i of the register three `u64` at 24·i: count, bytes, rejected; behind them one for each kind of
//! bad input, in the register's order.

use crate::{
    flows::{Flow, Reject},
    shared::Shared,
};
use std::{
    os::fd::AsFd,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

const KINDS: usize = Flow::COUNT * 3;
/// Counters of one page.
pub const CELLS: usize = KINDS + Reject::COUNT;

/// A handle to the counters; clones share them.
#[derive(Clone)]
pub struct Counters(Arc<Shared<AtomicU64>>);

/// Counters of one flow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    pub count: u64,
    pub bytes: u64,
    pub rejected: u64,
}

impl Counters {
    /// Maps the counter page behind `fd`.
    pub fn map(fd: impl AsFd) -> rustix::io::Result<Self> {
        Ok(Self(Arc::new(Shared::map(fd, CELLS)?)))
    }

    /// Counters that nobody else sees, for tests and fuzz targets.
    pub fn anonymous() -> rustix::io::Result<Self> {
        Ok(Self(Arc::new(Shared::anonymous(CELLS)?)))
    }

    /// Counts one accepted item of `bytes`.
    pub fn accept(&self, flow: Flow, bytes: u64) {
        self.merge(flow, 1, bytes);
    }

    /// Counts one refused item.
    pub fn reject(&self, kind: Reject) {
        self.merge_rejected(kind, 1);
        #[cfg(debug_assertions)]
        crate::evidence::refused(kind);
    }

    /// Adds accepted items that a receiver counted in private (the processor's innermost parts).
    pub fn merge(&self, flow: Flow, count: u64, bytes: u64) {
        #[cfg(debug_assertions)]
        if count > 0 {
            crate::evidence::reached(flow);
        }
        self.add(flow as usize * 3, count);
        self.add(flow as usize * 3 + 1, bytes);
    }

    /// Adds refused items that a receiver counted in private.
    pub fn merge_rejected(&self, kind: Reject, count: u64) {
        #[cfg(debug_assertions)]
        if count > 0 {
            crate::evidence::reached(kind.flow());
        }
        self.add(kind.flow() as usize * 3 + 2, count);
        self.add(KINDS + kind as usize, count);
    }

    pub fn get(&self, flow: Flow) -> Count {
        let first = flow as usize * 3;
        Count {
            count: self.read(first),
            bytes: self.read(first + 1),
            rejected: self.read(first + 2),
        }
    }

    /// How often something was refused for that reason.
    pub fn rejected(&self, kind: Reject) -> u64 {
        self.read(KINDS + kind as usize)
    }

    fn read(&self, index: usize) -> u64 {
        self.0.get(index).map_or(0, |cell| cell.load(Relaxed))
    }

    fn add(&self, index: usize, amount: u64) {
        if let Some(cell) = self.0.get(index) {
            // A single writer: no locked addition is needed.
            cell.store(cell.load(Relaxed).wrapping_add(amount), Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_add_up_by_flow() {
        let counters = Counters::anonymous().unwrap();
        counters.accept(Flow::PortSerial, 1);
        counters.clone().accept(Flow::PortSerial, 1);
        counters.reject(Reject::PortUnknownAccess);
        let serial = counters.get(Flow::PortSerial);
        assert_eq!((serial.count, serial.bytes, serial.rejected), (2, 2, 0));
        assert_eq!(counters.get(Flow::PortUnknown).rejected, 1);
        assert_eq!(counters.rejected(Reject::PortUnknownAccess), 1);
        counters.merge_rejected(Reject::PortUnknownAccess, 2);
        assert_eq!(counters.get(Flow::PortUnknown).rejected, 3);
    }
}
