//! Doorbells between hypervisor and worker: one byte per channel in a shared page, and an eventfd
//! in each direction. A storm of signals costs the receiver no more than one.
//!
//! Bytes 0..2048 ring the worker, 2048..4096 the hypervisor, both indexed by channel (relid).
//! Byte 2048, whose channel does not exist, says that the worker wants attention at all.

use crate::{
    counters::Counters,
    flows::{Flow, Reject, values},
    shared::Shared,
};
use std::{
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::atomic::{AtomicU8, Ordering},
};

const CHANNELS: usize = values::DOORBELL_TO_WORKER_CHANNELS as usize;
const PAGE: usize = values::DOORBELL_TO_WORKER_PAGE_BYTES as usize;
const ATTENTION: usize = CHANNELS;

pub struct Doorbells {
    page: Shared<AtomicU8>,
    to_worker: OwnedFd,
    to_hypervisor: OwnedFd,
    counters: Counters,
}

impl Doorbells {
    /// Maps the page behind `fd`; the eventfds become non-blocking.
    pub fn map(
        fd: impl AsFd,
        to_worker: OwnedFd,
        to_hypervisor: OwnedFd,
        counters: Counters,
    ) -> rustix::io::Result<Self> {
        rustix::io::ioctl_fionbio(&to_worker, true)?;
        rustix::io::ioctl_fionbio(&to_hypervisor, true)?;
        Ok(Self {
            page: Shared::map(fd, PAGE)?,
            to_worker,
            to_hypervisor,
            counters,
        })
    }

    /// Rings the worker for `channel`.
    pub fn ring(&self, channel: u16) {
        let bells = self.page.get(..CHANNELS).unwrap_or(&[]);
        let Some(bell) = bells.get(usize::from(channel)) else {
            return;
        };
        // AcqRel orders the guest's ring writes before the bell. A bell that still rings has its
        // eventfd write behind it, and the worker looks at the ring after it clears the bell.
        if bell.swap(1, Ordering::AcqRel) == 0 {
            // Fails only when the eventfd is at its maximum: then it is readable anyway.
            let _ = rustix::io::write(&self.to_worker, &1u64.to_ne_bytes());
        }
    }

    /// Whether the worker wants attention: one load, for the processor's loop.
    pub fn attention(&self) -> bool {
        self.page
            .get(ATTENTION)
            .is_some_and(|cell| cell.load(Ordering::Relaxed) != 0)
    }

    /// Takes back the call for attention and calls `each` for every channel that rings and the
    /// virtual processor, one of `processors`, that it rings on: the bell holds its number plus 1.
    pub fn take(&self, processors: usize, mut each: impl FnMut(u16, usize)) {
        // The eventfd first, then the flag, then the bells: what rings later wakes us again.
        let _ = rustix::io::read(&self.to_hypervisor, &mut [0; 8]);
        if let Some(cell) = self.page.get(ATTENTION) {
            cell.swap(0, Ordering::AcqRel);
        }
        let bells = self.page.get(ATTENTION..).unwrap_or(&[]);
        for (channel, bell) in (0u16..).zip(bells).skip(1) {
            if bell.load(Ordering::Relaxed) == 0 {
                continue;
            }
            let vp = usize::from(bell.swap(0, Ordering::AcqRel)).checked_sub(1);
            match vp.filter(|&vp| vp < processors) {
                Some(vp) => {
                    self.counters.accept(Flow::DoorbellToHypervisor, 1);
                    each(channel, vp);
                }
                None => self.counters.reject(Reject::DoorbellToHypervisorVp),
            }
        }
    }

    /// Readable when the worker rang: what a halted processor sleeps on.
    pub fn descriptor(&self) -> BorrowedFd<'_> {
        self.to_hypervisor.as_fd()
    }

    /// What wakes the worker.
    pub fn to_worker(&self) -> BorrowedFd<'_> {
        self.to_worker.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::event::{EventfdFlags, eventfd};
    use rustix::fs::{MemfdFlags, ftruncate, memfd_create};

    /// The doorbells, and the worker's view of the page and of its eventfd.
    fn pair() -> (Doorbells, Shared<AtomicU8>, OwnedFd) {
        let page = memfd_create("doorbells", MemfdFlags::CLOEXEC).unwrap();
        ftruncate(&page, PAGE as u64).unwrap();
        let event = || eventfd(0, EventfdFlags::CLOEXEC).unwrap();
        let to_worker = event();
        let workers = to_worker.try_clone().unwrap();
        let counters = Counters::anonymous().unwrap();
        let doorbells = Doorbells::map(&page, to_worker, event(), counters).unwrap();
        (doorbells, Shared::map(&page, PAGE).unwrap(), workers)
    }

    #[test]
    fn a_storm_towards_the_worker_is_one_wake_up() {
        let (doorbells, page, event) = pair();
        for _ in 0..1000 {
            doorbells.ring(7);
        }
        assert_eq!(page[7].load(Ordering::Relaxed), 1);
        let mut count = [0; 8];
        rustix::io::read(&event, &mut count).unwrap();
        assert_eq!(u64::from_ne_bytes(count), 1);
        doorbells.ring(2048);
        doorbells.ring(u16::MAX);
        assert!(!doorbells.attention());
    }

    #[test]
    fn only_known_values_ring_the_hypervisor_and_once() {
        let (doorbells, page, _event) = pair();
        assert!(!doorbells.attention());
        page[ATTENTION + 1].store(1, Ordering::Release);
        page[ATTENTION + 2047].store(1, Ordering::Release);
        page[ATTENTION + 5].store(3, Ordering::Release);
        page[ATTENTION + 6].store(255, Ordering::Release);
        page[ATTENTION + 7].store(2, Ordering::Release);
        page[ATTENTION].store(1, Ordering::Release);
        assert!(doorbells.attention());
        let mut rang = Vec::new();
        doorbells.take(2, |channel, vp| rang.push((channel, vp)));
        assert_eq!(rang, [(1, 0), (7, 1), (2047, 0)]);
        assert!(!doorbells.attention());
        doorbells.take(2, |_, _| panic!("rang twice"));
        let rejected = doorbells.counters.get(Flow::DoorbellToHypervisor).rejected;
        assert_eq!(rejected, 2);
    }
}
