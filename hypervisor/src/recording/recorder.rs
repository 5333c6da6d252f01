//! Writes a recording while the worker serves the guest.

use super::{Digest, Entry, Input, Point, Stop, Turn, entry::MEMORY_PIECE};
use crate::{
    counters::Counters,
    flows::Reject,
    link::{End, FromWorker, ToWorker},
    lockstep::Partner,
    machine::Connection,
    memory::GuestMemory,
};
use std::{fs::File, io::Write};

/// Written in one go: no more than a turn of an honest worker with much to do.
const BUFFER: usize = 1 << 20;

/// The worker, whose input is recorded.
pub struct Recorder {
    connection: Connection,
    recording: File,
    buffer: Vec<u8>,
    counters: Counters,
}

impl Recorder {
    /// `recording` is a pipe to the root side, which takes all and looks at nothing.
    pub fn new(connection: Connection, recording: File, counters: Counters) -> Self {
        let buffer = Vec::new();
        Self {
            connection,
            recording,
            buffer,
            counters,
        }
    }

    /// Waits for the worker's START; false when the guest is not to run at all.
    pub fn is_started(&self) -> bool {
        let end = match self.connection.link.wait() {
            Ok(FromWorker::Start) => return true,
            Ok(FromWorker::Stop) => End::Stopped,
            Ok(_) => End::WorkerViolation,
            Err(end) => end,
        };
        self.connection.link.send_last(&ToWorker::End(end));
        false
    }

    pub fn connection(&self) -> &Connection {
        &self.connection
    }

    pub fn recording(&self) -> &File {
        &self.recording
    }

    fn write(&mut self, entry: &Entry) -> Result<(), End> {
        entry.encode(&mut self.buffer);
        if self.buffer.len() >= BUFFER {
            self.flush()?;
        }
        Ok(())
    }

    /// Nobody who takes the recording: nobody who wants this machine.
    fn flush(&mut self) -> Result<(), End> {
        let written = self.recording.write_all(&self.buffer);
        self.buffer.clear();
        written.map_err(|_| End::Stopped)
    }

    /// What the worker wrote into guest RAM.
    fn copy(
        &mut self,
        (offset, length): (u64, u64),
        memory: &GuestMemory,
        written: &mut Digest,
    ) -> Result<(), End> {
        let end = offset.checked_add(length);
        let end = end.filter(|&end| end <= memory.size());
        let end = end.ok_or_else(|| {
            self.counters.reject(Reject::LinkWroteOutside);
            End::WorkerViolation
        })?;
        let mut at = offset;
        while at < end {
            let size = (end - at).min(MEMORY_PIECE as u64);
            let mut bytes = vec![0; size as usize];
            memory
                .read_bytes(at, &mut bytes)
                .ok_or(End::WorkerViolation)?;
            written.add_memory(at, &bytes);
            self.write(&Entry::Memory { offset: at, bytes })?;
            at += size;
        }
        Ok(())
    }
}

impl Partner for Recorder {
    fn give(&mut self, message: &ToWorker) {
        self.connection.link.send_last(message);
    }

    fn ring(&mut self, channel: u16) {
        self.connection.doorbells.ring(channel);
    }

    fn turn(&mut self, point: Point, wait: u64, memory: &GuestMemory) -> Result<Turn, Stop> {
        self.write(&Entry::Turn(point))?;
        self.connection.link.send_last(&ToWorker::Turn { wait });
        let mut messages = Vec::new();
        let mut written = Digest::default();
        let slept = loop {
            match self.connection.link.wait()? {
                FromWorker::TurnOver { slept } => break slept,
                FromWorker::Wrote(ranges) => {
                    for range in ranges.iter() {
                        self.copy(range, memory, &mut written)?;
                    }
                }
                message => messages.push(Input::Message(message)),
            }
        };
        let mut inputs = Vec::new();
        self.connection
            .doorbells
            .take(1, |channel, _| inputs.push(Input::Doorbell(channel)));
        inputs.append(&mut messages);
        for input in &inputs {
            self.write(&Entry::Input(input.clone()))?;
        }
        self.write(&Entry::Over { slept })?;
        self.flush()?;
        Ok(Turn {
            inputs,
            written,
            slept,
        })
    }

    fn end(&mut self, point: Point, end: End) -> Stop {
        // A worker that died amid its turn may have written RAM, and did not say where.
        if end != End::WorkerGone {
            let reason = end.reason();
            let _ = self.write(&Entry::End { point, reason });
            let _ = self.flush();
            self.connection.link.send_last(&ToWorker::End(end));
        }
        end.into()
    }
}
