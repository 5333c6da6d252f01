//! The virtual machine's life. Each virtual processor has a thread, which does the same again and
//! again: run a slice, answer what it ran into, see to the worker, sleep when the guest does.
//!
//! Only the guest's instructions run side by side. For all else a thread holds the lock over what
//! the processors have in [`common`]. The software processor has one thread, which never waits.

mod common;
mod standing;
mod worker;

pub use worker::Connection;

use crate::{guest::Guest, link::End, processor::Processor};
use common::Common;
use std::{
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

pub struct Machine {
    common: Mutex<Common>,
    /// A processor has come to stand still, or all may go on, or the machine has ended.
    moved: Condvar,
}

type Held<'a> = MutexGuard<'a, Common>;

/// A virtual processor and what its thread has to remember.
struct Seat {
    vp: usize,
    processor: Box<dyn Processor>,
    /// A signal wanted attention.
    kicked: bool,
    /// The guest has halted (and the processor does not sleep by itself).
    asleep: bool,
    cleaned: Instant,
    /// Since when sleep is counted, and how much it was.
    counted: Instant,
    slept: Duration,
}

impl Machine {
    /// A machine whose processors are still to be seated.
    pub fn new(guest: Guest, connection: Connection) -> Self {
        Self {
            common: Mutex::new(Common::new(guest, connection)),
            moved: Condvar::new(),
        }
    }

    /// Takes in virtual processor `vp`, which the calling thread will run.
    pub fn seat(&self, vp: usize, processor: Box<dyn Processor>) {
        let mut common = self.hold();
        common.seat(vp, processor);
        self.tell_others(&common);
    }

    /// Waits until all virtual processors are taken in.
    pub fn wait_until_seated(&self) {
        drop(self.wait_while(self.hold(), |common| !common.all_sit()));
    }

    /// Waits for the worker's START, then runs virtual processor 0 to the machine's end. The guest
    /// begins where `saved` stopped, if that is given.
    pub fn run(&self, saved: Option<&[u8]>) {
        let mut common = self.hold();
        match common.begin(saved) {
            Ok(()) => {
                self.tell_others(&common);
                drop(common);
                self.run_processor(0);
            }
            Err(end) => common.finish(end),
        }
    }

    /// Runs virtual processor `vp`, from when all may go on, to the machine's end. The thread that
    /// comes to that end tells the worker; when it returns, the process must end, and with it all
    /// others.
    pub fn run_processor(&self, vp: usize) {
        let mut common = self.hold();
        loop {
            common = self.wait_while(common, |common| common.stands_still());
            let Some(seat) = common.leave_bench(vp) else {
                return;
            };
            let (held, seat, done) = self.take_turns(common, seat);
            common = held;
            common.sit_down(seat);
            if let Err(end) = done {
                common.finish(end);
                return;
            }
            if common.is_pausing(vp) {
                common = self.wait_while(common, |common| !common.all_sit());
                if let Err(end) = common.pause() {
                    common.finish(end);
                    return;
                }
            }
            self.tell_others(&common);
        }
    }

    /// Runs a processor until all are to stand still, or the machine ends.
    fn take_turns<'a>(
        &'a self,
        mut common: Held<'a>,
        mut seat: Seat,
    ) -> (Held<'a>, Seat, Result<(), End>) {
        loop {
            let slice = match common.prepare(&mut seat) {
                Ok(Some(slice)) => slice,
                Ok(None) => return (common, seat, Ok(())),
                Err(end) => return (common, seat, Err(end)),
            };
            drop(common);
            let intercept = seat.processor.run(slice);
            common = self.hold();
            if let Err(end) = common.answer(&mut seat, intercept) {
                return (common, seat, Err(end));
            }
        }
    }

    fn hold(&self) -> Held<'_> {
        self.common.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// That something has moved. A single thread makes no system call for this.
    fn tell_others(&self, common: &Common) {
        if common.has_several() {
            self.moved.notify_all();
        }
    }

    fn wait_while<'a>(&self, held: Held<'a>, condition: impl Fn(&Common) -> bool) -> Held<'a> {
        let ended = self
            .moved
            .wait_while(held, |common| condition(common) && !common.has_ended());
        ended.unwrap_or_else(PoisonError::into_inner)
    }
}

impl Seat {
    fn new(vp: usize, processor: Box<dyn Processor>) -> Self {
        Self {
            vp,
            processor,
            kicked: false,
            asleep: false,
            cleaned: Instant::now(),
            counted: Instant::now(),
            slept: Duration::ZERO,
        }
    }
}
