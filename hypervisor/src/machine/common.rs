//! What the processors of one machine have in common: the partition, both ways to the worker, the
//! time. One thread at a time has it.

use super::{Connection, Seat};
use crate::{
    guest::Guest,
    link::End,
    processor::{Intercept, Kicker, Processor},
    tlfs::Outcome,
};
use std::time::{Duration, Instant};

/// How often to look whether the worker is still there, and to pass on what the guest left
/// unfinished on its serial port.
const HOUSEKEEPING: Duration = Duration::from_millis(20);
pub struct Common {
    pub(super) guest: Guest,
    pub(super) connection: Connection,
    /// The worker may have sent messages that were left on the link.
    pub(super) backlog: bool,
    /// The processors that stand still, each at its number.
    pub(super) bench: Vec<Option<Seat>>,
    /// What makes each of them come back from the guest.
    pub(super) kickers: Vec<Kicker>,
    /// All are to stand still; the number of the one that took the worker's PAUSE.
    pub(super) standing: Option<usize>,
    pub(super) ended: bool,
}

impl Common {
    /// A machine that stands still, with nobody on the bench yet.
    pub fn new(guest: Guest, connection: Connection) -> Self {
        let processors = guest.partition.processors();
        Self {
            guest,
            connection,
            backlog: false,
            bench: (0..processors).map(|_| None).collect(),
            kickers: (0..processors).map(|_| Kicker::default()).collect(),
            standing: Some(0),
            ended: false,
        }
    }

    // ---- standing still -------------------------------------------------------------------------

    pub fn seat(&mut self, vp: usize, processor: Box<dyn Processor>) {
        if let Some(kicker) = self.kickers.get_mut(vp) {
            *kicker = processor.kicker();
        }
        self.sit_down(Seat::new(vp, processor));
    }

    pub fn sit_down(&mut self, seat: Seat) {
        if let Some(place) = self.bench.get_mut(seat.vp) {
            *place = Some(seat);
        }
    }

    /// `None`: the machine has ended.
    pub fn leave_bench(&mut self, vp: usize) -> Option<Seat> {
        let place = self.bench.get_mut(vp).filter(|_| !self.ended)?;
        let mut seat = place.take()?;
        seat.cleaned = Instant::now();
        Some(seat)
    }

    pub fn stands_still(&self) -> bool {
        self.standing.is_some()
    }

    pub fn has_several(&self) -> bool {
        self.kickers.len() > 1
    }

    pub fn all_sit(&self) -> bool {
        self.bench.iter().all(Option::is_some)
    }

    /// Whether `vp` has to speak with the worker while all stand still.
    pub fn is_pausing(&self, vp: usize) -> bool {
        self.standing == Some(vp)
    }

    pub fn has_ended(&self) -> bool {
        self.ended
    }

    // ---- a processor's turn ---------------------------------------------------------------------

    /// Readies a processor for its next slice of so many instructions. `None`: it is to stand still.
    pub fn prepare(&mut self, seat: &mut Seat) -> Result<Option<u32>, End> {
        loop {
            if self.ended {
                return Ok(None);
            }
            if self.stands_still() {
                if seat.processor.is_between_instructions() {
                    return Ok(None);
                }
            } else if self.has_input(seat) {
                self.take_input(seat)?;
                if self.stands_still() {
                    continue;
                }
            }
            self.guest.raise_interrupts(seat.vp, &mut *seat.processor);
            if !seat.asleep || seat.processor.has_deliverable_interrupt() {
                break;
            }
            let start = Instant::now();
            self.sleep(seat)?;
            seat.slept += start.elapsed();
            seat.kicked = true;
        }
        seat.asleep = false;
        seat.processor.wake_at(self.wake_up(seat.vp));
        Ok(Some(self.guest.slice(seat.vp)))
    }

    /// Answers what a processor has run into.
    pub fn answer(&mut self, seat: &mut Seat, intercept: Intercept) -> Result<(), End> {
        if self.ended {
            return Ok(());
        }
        seat.kicked = intercept == Intercept::Kicked;
        let memory = seat.processor.memory();
        let connection = &mut self.connection;
        match self
            .guest
            .partition
            .handle(seat.vp, intercept, memory, connection)
        {
            Outcome::Complete(completion) => seat.processor.complete(completion),
            Outcome::Continue => {}
            Outcome::Sleep => {
                seat.asleep = true;
                self.keep_house(seat);
                self.rest(seat);
            }
            Outcome::End(end) => return Err(end),
        }
        if self.guest.partition.ports.serial.is_due() {
            self.flush_console();
        }
        if seat.cleaned.elapsed() >= HOUSEKEEPING {
            seat.cleaned = Instant::now();
            self.keep_house(seat);
            if self.connection.link.is_closed() {
                return Err(End::WorkerGone);
            }
        }
        Ok(())
    }

    /// When a processor that does not run in slices must come back by itself.
    fn wake_up(&self, vp: usize) -> Option<u64> {
        let console = &self.guest.partition.ports.serial;
        let flush = (!console.output().is_empty())
            .then(|| self.guest.clock.now() + HOUSEKEEPING.as_nanos() as u64);
        self.guest
            .partition
            .next_event(vp)
            .into_iter()
            .chain(flush)
            .min()
    }
}
