//! The virtual machine step by step, for recording and replaying: guest and worker run in turns,
//! so that everything the guest's course depends on comes in at points that can be found again.
//!
//! The guest runs alone, on the deterministic clock, until it gives the worker something, sleeps or
//! has run for a while. Then it stands still between two instructions, and the [`Partner`] has its
//! turn: it alone touches guest RAM, and hands over what is to be taken in. Whether it is a worker
//! whose input is recorded or a recording that is played makes no difference to this loop.

use crate::{
    guest::Guest,
    link::{End, FromWorker, ToWorker},
    memory::GuestMemory,
    processor::{Intercept, Processor, Registers},
    record::{Record, checksum},
    recording::{Digest, Input, Point, Stop, Turn},
    tlfs::{Outcome, Worker},
};
use std::collections::VecDeque;

/// Instructions until the worker has its turn although the guest asks for nothing: 1 to 2 ms.
const QUANTUM: u64 = 200_000;
/// While so many messages wait for a guest that takes none, it cannot post any either.
const MAX_PENDING: usize = 64;
/// A worker that has sent so many more is none.
const MOST_PENDING: usize = 4096;

/// Who has its turn while the guest stands still.
pub trait Partner {
    /// The guest sends this.
    fn give(&mut self, message: &ToWorker);
    /// The guest signals a channel.
    fn ring(&mut self, channel: u16);
    /// The guest stands still at `point` and would sleep for `wait` nanoseconds, if any.
    fn turn(&mut self, point: Point, wait: u64, memory: &GuestMemory) -> Result<Turn, Stop>;
    /// The guest's run has ended, at `point`; the END that the worker is told is part of it.
    fn end(&mut self, point: Point, end: End) -> Stop;
    /// What the guest ran into and what it was answered, for whoever wants to see.
    fn saw(&mut self, _instructions: u64, _at: Option<Registers>, _what: Intercept, _: Outcome) {}
}

/// The partner, and what has been given to it since the last turn.
struct Side<P> {
    partner: P,
    digest: Digest,
    waits: bool,
    takes: bool,
}

impl<P: Partner> Side<P> {
    fn give(&mut self, message: &ToWorker) {
        self.digest.add(&message.encode());
        self.partner.give(message);
    }
}

impl<P: Partner> Worker for Side<P> {
    fn post_message(&mut self, connection: u32, kind: u32, payload: &[u8]) -> bool {
        if self.takes {
            self.waits = true;
            self.give(&ToWorker::PostMessage {
                connection,
                kind,
                payload,
            });
        }
        self.takes
    }

    fn signal(&mut self, channel: u16) {
        self.waits = true;
        self.digest.add(&channel.to_le_bytes());
        self.partner.ring(channel);
    }
}

pub struct Lockstep<P> {
    processor: Box<dyn Processor>,
    guest: Guest,
    side: Side<P>,
    /// Messages of the worker's that the guest has no room for yet.
    pending: VecDeque<FromWorker>,
    next_turn: u64,
    /// The run stops after so many instructions.
    until: u64,
}

impl<P: Partner> Lockstep<P> {
    /// Of a guest with one processor.
    pub fn new(processor: Box<dyn Processor>, guest: Guest, partner: P, until: u64) -> Self {
        let side = Side {
            partner,
            digest: Digest::default(),
            waits: false,
            takes: true,
        };
        Self {
            processor,
            guest,
            side,
            pending: VecDeque::new(),
            next_turn: 0,
            until,
        }
    }

    pub fn registers(&self) -> Option<Registers> {
        self.processor.registers()
    }

    /// How many instructions have been executed.
    pub fn instructions(&self) -> u64 {
        self.guest.clock.instructions()
    }

    pub fn memory(&self) -> &GuestMemory {
        self.processor.memory()
    }

    pub fn partner(&self) -> &P {
        &self.side.partner
    }

    pub fn partner_and_memory(&mut self) -> (&mut P, &GuestMemory) {
        (&mut self.side.partner, self.processor.memory())
    }

    /// Runs the guest to its end.
    pub fn run(&mut self) -> Stop {
        loop {
            match self.step() {
                Ok(()) => {}
                Err(Stop::End(end)) => {
                    self.pass_on();
                    self.side.digest.add(&ToWorker::End(end).encode());
                    let point = self.point();
                    return self.side.partner.end(point, end);
                }
                Err(stop) => return stop,
            }
        }
    }

    fn step(&mut self) -> Result<(), Stop> {
        let instructions = self.guest.clock.instructions();
        if self.side.waits || instructions >= self.next_turn {
            self.turn(0)?;
        }
        self.deliver()?;
        self.guest.raise_interrupts(0, &mut *self.processor);
        let left = self.until.saturating_sub(instructions);
        if left == 0 {
            return Err(Stop::Until);
        }
        let slice = u64::from(self.guest.slice(0)).min(left);
        let intercept = self.processor.run(slice as u32);
        let outcome =
            self.guest
                .partition
                .handle(0, intercept, self.processor.memory(), &mut self.side);
        if intercept != Intercept::SliceEnd {
            let instructions = self.guest.clock.instructions();
            let at = self.processor.registers();
            self.side
                .digest
                .add_seen(instructions, &intercept, &outcome);
            self.side.partner.saw(instructions, at, intercept, outcome);
        }
        match outcome {
            Outcome::Complete(completion) => self.processor.complete(completion),
            Outcome::Continue => {}
            Outcome::Sleep => self.sleep()?,
            Outcome::End(end) => return Err(end.into()),
        }
        if self.guest.partition.ports.serial.is_due() {
            self.flush_console();
        }
        Ok(())
    }

    /// The guest has halted: turn after turn, until an interrupt is deliverable.
    fn sleep(&mut self) -> Result<(), Stop> {
        loop {
            self.deliver()?;
            self.guest.raise_interrupts(0, &mut *self.processor);
            if self.processor.has_deliverable_interrupt() {
                return Ok(());
            }
            let now = self.guest.clock.now();
            let (ours, theirs) = (&self.processor, &self.guest.partition);
            let events = [ours.next_event(), theirs.next_event(0)].into_iter();
            let next = events.flatten().filter(|&event| event > now).min();
            self.turn(next.map_or(u64::MAX, |next| next - now))?;
        }
    }

    /// The partner's turn, at the latest `wait` nanoseconds from now of the guest's time.
    fn turn(&mut self, wait: u64) -> Result<(), Stop> {
        self.pass_on();
        self.side.waits = false;
        self.next_turn = self.guest.clock.instructions() + QUANTUM;
        let point = self.point();
        let memory = self.processor.memory();
        let turn = self.side.partner.turn(point, wait, memory)?;
        self.side.digest.add_turn(&turn);
        for input in turn.inputs {
            match input {
                Input::Doorbell(channel) => {
                    let memory = self.processor.memory();
                    self.guest.partition.signal_event(0, channel, memory);
                }
                Input::Message(FromWorker::Stop) => return Err(End::Stopped.into()),
                Input::Message(message) if self.pending.len() < MOST_PENDING => {
                    self.pending.push_back(message);
                }
                Input::Message(_) => return Err(End::WorkerViolation.into()),
            }
        }
        let clock = &self.guest.clock;
        clock.advance_to(clock.now().saturating_add(turn.slept.min(wait)));
        Ok(())
    }

    /// Gives the guest what it has room for.
    fn deliver(&mut self) -> Result<(), End> {
        while self.guest.partition.takes_messages()
            && let Some(message) = self.pending.pop_front()
        {
            self.guest.take_message(message, self.processor.memory())?;
        }
        self.side.takes = self.pending.len() < MAX_PENDING;
        Ok(())
    }

    /// Console output, notes and counts go out: at points that are the same in every run.
    fn pass_on(&mut self) {
        self.flush_console();
        for note in self.guest.take_notes(&mut *self.processor) {
            self.side.give(&ToWorker::Note(&note));
        }
        self.processor.merge_counts(&self.guest.counters);
    }

    fn flush_console(&mut self) {
        let serial = &mut self.guest.partition.ports.serial;
        if !serial.output().is_empty() {
            self.side.give(&ToWorker::Console(serial.output()));
            serial.clear();
        }
    }

    /// Where the run is, and a sum over all of it: what came in, what the guest ran into, what it
    /// was answered, what it gave; and over all that processor and partition are now.
    fn point(&mut self) -> Point {
        let mut record = Record::saving(self.processor.memory().size());
        let processors = std::iter::once(&mut self.processor);
        let state = self.guest.state(&mut record, processors);
        self.side.digest.add(&[u8::from(state.is_ok())]);
        self.side
            .digest
            .add(&checksum(&record.finish()).to_le_bytes());
        Point {
            instructions: self.guest.clock.instructions(),
            digest: self.side.digest.sum(),
        }
    }
}
