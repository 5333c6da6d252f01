//! Standing still: at the start, and when the worker asks for it; saving and restoring.

use super::{common::Common, worker::take_doorbells};
use crate::{
    flows::{Flow, values},
    link::{End, FromWorker, ToWorker},
    record::{Malformed, Record},
};

/// Bytes of the saved state in one message.
const STATE_PIECE: usize = values::LINK_STATE_PIECE as usize;
impl Common {
    /// Waits for the worker's START. A saved machine begins standing still: the worker hears that
    /// its state is good, and says when to go on.
    pub fn begin(&mut self, saved: Option<&[u8]>) -> Result<(), End> {
        match self.connection.link.wait()? {
            FromWorker::Start => {}
            FromWorker::Stop => return Err(End::Stopped),
            message => return Err(self.guest.violation(message)),
        }
        if let Some(state) = saved {
            if let Err(error) = self.restore(state) {
                self.guest.counters.reject(error.kind());
                let note = error.to_string();
                self.connection.link.send_last(&ToWorker::Note(&note));
                return Err(End::StateRefused);
            }
            self.pause()?;
            self.announce_generation();
            return Ok(());
        }
        self.standing = None;
        Ok(())
    }

    /// The guest that goes on now is another one than the one that was saved.
    fn announce_generation(&mut self) {
        if let Some(seat) = self.bench.iter().flatten().next() {
            let memory = seat.processor.memory();
            self.guest.partition.announce_generation(memory);
        }
    }

    /// Stands still, the guest's time with it, until the worker says to go on.
    pub fn pause(&mut self) -> Result<(), End> {
        if self.ended {
            return Ok(());
        }
        self.guest.clock.pause();
        self.flush_console();
        self.merge_counts();
        self.connection.link.send_last(&ToWorker::Paused);
        loop {
            match self.connection.link.wait()? {
                FromWorker::Resume => break,
                FromWorker::Save => self.save(),
                // Of those that came too late for the pause. A worker has no more than a few.
                message @ FromWorker::DeliverMessage { .. }
                    if !self.guest.partition.takes_messages() =>
                {
                    return Err(self.guest.violation(message));
                }
                message => {
                    let seat = self.bench.first().and_then(Option::as_ref);
                    let Some(memory) = seat.map(|seat| seat.processor.memory()) else {
                        return Err(self.guest.violation(message));
                    };
                    self.guest.take_message(message, memory)?;
                }
            }
        }
        self.guest.clock.resume();
        for seat in self.bench.iter_mut().flatten() {
            seat.processor.set_clock();
        }
        self.standing = None;
        Ok(())
    }

    /// Sends the state of processors and partition to the worker.
    fn save(&mut self) {
        for seat in self.bench.iter().flatten().take(1) {
            take_doorbells(
                &mut self.guest.partition,
                &self.connection,
                seat.processor.memory(),
            );
        }
        let state = self.saved().unwrap_or_else(|error| {
            let note = error.to_string();
            self.connection.link.send_last(&ToWorker::Note(&note));
            Vec::new()
        });
        let mut left = state.len();
        let empty = state.is_empty().then_some(&[][..]);
        for piece in state.chunks(STATE_PIECE).chain(empty) {
            left -= piece.len();
            let left = left as u64;
            self.connection
                .link
                .send_last(&ToWorker::State { piece, left });
        }
    }

    fn saved(&mut self) -> Result<Vec<u8>, Malformed> {
        let mut record = Record::saving(self.memory_size());
        self.state(&mut record)?;
        Ok(record.finish())
    }

    /// Replaces the state of a machine that has not run yet by a saved one.
    fn restore(&mut self, state: &[u8]) -> Result<(), Malformed> {
        let mut record = Record::restoring(state, self.memory_size())?;
        self.state(&mut record)?;
        record.end()?;
        self.guest
            .counters
            .accept(Flow::StateHypervisor, state.len() as u64);
        Ok(())
    }

    fn state(&mut self, record: &mut Record) -> Result<(), Malformed> {
        let seats = self.bench.iter_mut().flatten();
        let processors = seats.map(|seat| &mut seat.processor);
        self.guest.state(record, processors)
    }

    fn memory_size(&self) -> u64 {
        let first = self.bench.first().and_then(Option::as_ref);
        first.map_or(0, |seat| seat.processor.memory().size())
    }
}
