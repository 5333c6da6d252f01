//! A virtual machine without its processors and its worker: what the two loops that drive one have in
//! common ([`machine`](crate::machine) in real time, `lockstep` step by step).

use crate::{
    clock::Clock,
    counters::Counters,
    flows::Flow,
    link::{End, FromWorker},
    memory::GuestMemory,
    processor::Processor,
    record::{Malformed, Record, check},
    tlfs::{Message, Partition},
};

/// Instructions until the next look at timers and doorbells: 100 to 200 µs.
const SLICE: u32 = 20_000;

pub struct Guest {
    pub partition: Partition,
    pub clock: Clock,
    pub counters: Counters,
}

impl Guest {
    /// Of so many `processors`, which want `code` in the hypercall page. `wall_clock`: seconds since
    /// 1970 (UTC) at time 0 of `clock`.
    pub fn new(
        code: &'static [u8],
        processors: usize,
        clock: Clock,
        wall_clock: u64,
        counters: Counters,
    ) -> Self {
        let partition = Partition::new(
            clock.clone(),
            wall_clock,
            processors,
            code,
            counters.clone(),
        );
        Self {
            partition,
            clock,
            counters,
        }
    }

    /// Instructions to run now: on the deterministic clock not past the next timer.
    pub fn slice(&self, vp: usize) -> u32 {
        let until = |deadline| self.clock.instructions_until(deadline);
        let instructions = self.partition.next_event(vp).and_then(until);
        let instructions = instructions.and_then(|count| u32::try_from(count).ok());
        instructions.unwrap_or(SLICE).clamp(1, SLICE)
    }

    /// Raises what the partition has for any processor, by way of `processor`, whose number is `vp`.
    pub fn raise_interrupts(&mut self, vp: usize, processor: &mut dyn Processor) {
        for (vp, vector) in self.partition.take_interrupts(vp) {
            self.counters.accept(Flow::InterruptDeliver, 1);
            processor.assert_interrupt(vp, vector);
        }
    }

    /// Takes in a message of the worker's that may come at any time.
    pub fn take_message(&mut self, message: FromWorker, memory: &GuestMemory) -> Result<(), End> {
        match message {
            FromWorker::DeliverMessage {
                vp,
                sint,
                kind,
                payload,
            } => {
                let message = Message {
                    sint,
                    kind,
                    payload,
                };
                self.partition.deliver_message(vp.into(), message, memory);
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

    /// Saves or restores all processors and the partition.
    pub fn state<'a>(
        &mut self,
        record: &mut Record,
        processors: impl Iterator<Item = &'a mut Box<dyn Processor>>,
    ) -> Result<(), Malformed> {
        let mut count = self.partition.processors() as u64;
        record.field(&mut count)?;
        let expected = self.partition.processors() as u64;
        check(count == expected, "another number of processors")?;
        let mut last = None;
        for processor in processors {
            processor.state(record)?;
            last = Some(processor);
        }
        match last {
            Some(processor) => self.partition.state(record, processor.memory()),
            None => Err(Malformed::Processor),
        }
    }

    /// Texts for the log about what was refused.
    pub fn take_notes(&mut self, processor: &mut dyn Processor) -> Vec<String> {
        let mut notes = self.partition.take_notes();
        notes.append(&mut processor.take_notes());
        notes
    }
}
