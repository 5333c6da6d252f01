//! Live counters of this process: how often each flow ran, its bytes, what was rejected.
//!
//! They live in a shared page, so that the root reads them without asking. This process is the
//! only writer. Layout: for flow i of the register three `u64` at 24·i: count, bytes, rejected.

use crate::{flows::Flow, shared::Shared};
use std::{
    os::fd::AsFd,
    rc::Rc,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
};

const CELLS: usize = Flow::COUNT * 3;

/// A handle to the counters; clones share them.
#[derive(Clone)]
pub struct Counters(Rc<Shared<AtomicU64>>);

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
        Ok(Self(Rc::new(Shared::map(fd, CELLS)?)))
    }

    /// Counters that nobody else sees, for tests and fuzz targets.
    pub fn anonymous() -> rustix::io::Result<Self> {
        Ok(Self(Rc::new(Shared::anonymous(CELLS)?)))
    }

    /// Counts one accepted item of `bytes`.
    pub fn accept(&self, flow: Flow, bytes: u64) {
        self.add(flow, 0, 1);
        self.add(flow, 1, bytes);
    }

    /// Counts one refused item.
    pub fn reject(&self, flow: Flow) {
        self.add(flow, 2, 1);
        #[cfg(debug_assertions)]
        crate::evidence::refused(flow);
    }

    /// Adds what a receiver counted in private (the processor's innermost parts).
    pub fn merge(&self, flow: Flow, more: Count) {
        self.add(flow, 0, more.count);
        self.add(flow, 1, more.bytes);
        self.add(flow, 2, more.rejected);
    }

    pub fn get(&self, flow: Flow) -> Count {
        let read = |field: usize| match self.0.get(flow as usize * 3 + field) {
            Some(cell) => cell.load(Relaxed),
            None => 0,
        };
        Count {
            count: read(0),
            bytes: read(1),
            rejected: read(2),
        }
    }

    fn add(&self, flow: Flow, field: usize, amount: u64) {
        if let Some(cell) = self.0.get(flow as usize * 3 + field) {
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
        counters.reject(Flow::PortUnknown);
        let serial = counters.get(Flow::PortSerial);
        assert_eq!((serial.count, serial.bytes, serial.rejected), (2, 2, 0));
        assert_eq!(counters.get(Flow::PortUnknown).rejected, 1);
    }
}
