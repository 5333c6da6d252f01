//! A virtual machine without its worker: what the two loops that drive one have in common
//! ([`machine`](crate::machine) in real time, [`lockstep`](crate::lockstep) step by step).

use crate::{
    clock::Clock,
    counters::Counters,
    flows::Flow,
    link::{End, FromWorker},
    processor::Processor,
    record::{Malformed, Record},
    tlfs::{Message, Partition},
};

/// Instructions until the next look at timers and doorbells: 100 to 200 µs.
const SLICE: u32 = 20_000;

pub struct Guest {
    pub processor: Box<dyn Processor>,
    pub partition: Partition,
    pub clock: Clock,
    pub counters: Counters,
}

impl Guest {
    /// `wall_clock`: seconds since 1970 (UTC) at time 0 of `clock`.
    pub fn new(
        processor: Box<dyn Processor>,
        clock: Clock,
        wall_clock: u64,
        counters: Counters,
    ) -> Self {
        let code = processor.hypercall_code();
        Self {
            processor,
            partition: Partition::new(clock.clone(), wall_clock, code, counters.clone()),
            clock,
            counters,
        }
    }

    /// Instructions to run now: on the deterministic clock not past the next timer.
    pub fn slice(&self) -> u32 {
        let until = |deadline| self.clock.instructions_until(deadline);
        let instructions = self.partition.next_event().and_then(until);
        let instructions = instructions.and_then(|count| u32::try_from(count).ok());
        instructions.unwrap_or(SLICE).clamp(1, SLICE)
    }

    pub fn raise_interrupts(&mut self) {
        for vector in self.partition.take_interrupts() {
            self.counters.accept(Flow::InterruptDeliver, 1);
            self.processor.assert_interrupt(vector);
        }
    }

    /// Takes in a message of the worker's that may come at any time.
    pub fn take_message(&mut self, message: FromWorker) -> Result<(), End> {
        match message {
            FromWorker::DeliverMessage {
                sint,
                kind,
                payload,
            } => {
                let message = Message {
                    sint,
                    kind,
                    payload,
                };
                let memory = self.processor.memory();
                self.partition.deliver_message(message, memory);
            }
            FromWorker::OpenPort { channel } => self.partition.set_channel_open(channel, true),
            FromWorker::ClosePort { channel } => self.partition.set_channel_open(channel, false),
            FromWorker::Stop => return Err(End::Stopped),
            _ => return Err(self.violation(message)),
        }
        Ok(())
    }

    /// The worker sent what it may not send now.
    pub fn violation(&self, message: FromWorker) -> End {
        if let Some(kind) = message.out_of_order() {
            self.counters.reject(kind);
        }
        End::WorkerViolation
    }

    /// The worker rang for `channel`.
    pub fn signal(&mut self, channel: u16) {
        self.partition
            .signal_event(channel, self.processor.memory());
    }

    /// Saves or restores processor and partition.
    pub fn state(&mut self, record: &mut Record) -> Result<(), Malformed> {
        self.processor.state(record)?;
        self.partition.state(record, self.processor.memory())
    }

    /// Replaces the state of a machine that has not run yet by a saved one.
    pub fn restore(&mut self, state: &[u8]) -> Result<(), Malformed> {
        let mut record = Record::restoring(state, self.processor.memory().size())?;
        self.state(&mut record)?;
        record.end()?;
        self.counters
            .accept(Flow::StateHypervisor, state.len() as u64);
        Ok(())
    }

    /// Hands what the processor counted in private to everybody.
    pub fn merge_counts(&mut self) {
        self.processor.merge_counts(&self.counters);
    }

    /// Texts for the log about what was refused.
    pub fn take_notes(&mut self) -> Vec<String> {
        let mut notes = self.partition.take_notes();
        notes.append(&mut self.processor.take_notes());
        notes
    }
}
