//! The virtual machine's life: run a slice, answer what it ran into, see to the worker, sleep when
//! the guest does. A single thread does all of it.

use crate::{
    doorbells::Doorbells,
    flows::values,
    guest::Guest,
    link::{End, FromWorker, Link, ToWorker},
    processor::Intercept,
    record::Record,
    tlfs::{Outcome, Worker},
};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::time::{Duration, Instant};

/// How often to look whether the worker is still there, and to pass on what the guest left
/// unfinished on its serial port.
const HOUSEKEEPING: Duration = Duration::from_millis(20);
/// A guest rests that slept all but one part in `AWAKE` of the last `REST` or more.
const REST: Duration = Duration::from_secs(4);
const AWAKE: u32 = 64;
/// Most messages of the worker taken at once, so that it cannot keep the guest from running.
const MESSAGES_AT_ONCE: usize = 64;
/// Bytes of the saved state in one message.
const STATE_PIECE: usize = values::LINK_STATE_PIECE as usize;
/// On the deterministic clock a sleep takes no time; but the worker gets this long to answer.
const DETERMINISTIC_SLEEP: u64 = 1_000_000;

/// Both ways to the worker.
pub struct Connection {
    pub link: Link,
    pub doorbells: Doorbells,
}

impl Worker for Connection {
    fn post_message(&mut self, connection: u32, kind: u32, payload: &[u8]) -> bool {
        self.link.send(&ToWorker::PostMessage {
            connection,
            kind,
            payload,
        })
    }

    fn signal(&mut self, channel: u16) {
        self.doorbells.ring(channel);
    }
}

pub struct Machine {
    guest: Guest,
    connection: Connection,
    /// The worker may have sent messages that were left on the link.
    backlog: bool,
    /// Since when sleep is counted, and how much it was.
    counted: Instant,
    slept: Duration,
}

impl Machine {
    pub fn new(guest: Guest, connection: Connection) -> Self {
        Self {
            guest,
            connection,
            backlog: false,
            counted: Instant::now(),
            slept: Duration::ZERO,
        }
    }

    pub fn guest(&self) -> &Guest {
        &self.guest
    }

    pub fn connection(&self) -> &Connection {
        &self.connection
    }

    /// Waits for the worker's START, runs the guest to its end and tells the worker. The guest
    /// begins where `saved` stopped, if that is given.
    pub fn run(&mut self, saved: Option<&[u8]>) {
        let end = match self.connection.link.wait() {
            Ok(FromWorker::Start) => match saved {
                None => self.run_guest(),
                Some(state) => self.run_saved(state),
            },
            Ok(FromWorker::Stop) => End::Stopped,
            Ok(message) => self.guest.violation(message),
            Err(end) => end,
        };
        self.guest.merge_counts();
        if end != End::WorkerGone {
            self.send_notes();
            let output = self.guest.partition.ports.serial.output();
            if !output.is_empty() {
                self.connection.link.send_last(&ToWorker::Console(output));
            }
            self.connection.link.send_last(&ToWorker::End(end));
        }
    }

    /// A saved machine begins standing still: the worker hears that its state is good, and says
    /// when to go on.
    fn run_saved(&mut self, state: &[u8]) -> End {
        if let Err(error) = self.guest.restore(state) {
            self.guest.counters.reject(error.kind());
            let note = error.to_string();
            self.connection.link.send_last(&ToWorker::Note(&note));
            return End::StateRefused;
        }
        match self.pause() {
            Ok(()) => self.run_guest(),
            Err(end) => end,
        }
    }

    fn run_guest(&mut self) -> End {
        let mut cleaned = Instant::now();
        let mut kicked = false;
        loop {
            let waiting = self.backlog && self.guest.partition.takes_messages();
            if (waiting || kicked || self.connection.doorbells.attention())
                && let Err(end) = self.take_input()
            {
                return end;
            }
            self.guest.raise_interrupts();
            self.guest.processor.wake_at(self.wake_up());
            let intercept = self.guest.processor.run(self.guest.slice());
            kicked = intercept == Intercept::Kicked;
            if let Err(end) = self.handle(intercept) {
                return end;
            }
            if self.guest.partition.ports.serial.is_due() {
                self.flush_console();
            }
            if cleaned.elapsed() >= HOUSEKEEPING {
                cleaned = Instant::now();
                self.flush_console();
                self.send_notes();
                self.guest.merge_counts();
                if self.connection.link.is_closed() {
                    return End::WorkerGone;
                }
            }
        }
    }

    fn handle(&mut self, intercept: Intercept) -> Result<(), End> {
        let memory = self.guest.processor.memory();
        match self
            .guest
            .partition
            .handle(intercept, memory, &mut self.connection)
        {
            Outcome::Complete(completion) => self.guest.processor.complete(completion),
            Outcome::Continue => {}
            Outcome::Sleep => self.sleep()?,
            Outcome::End(end) => return Err(end),
        }
        Ok(())
    }

    /// When a processor that does not run in slices must come back by itself.
    fn wake_up(&self) -> Option<u64> {
        let console = &self.guest.partition.ports.serial;
        let flush = (!console.output().is_empty())
            .then(|| self.guest.clock.now() + HOUSEKEEPING.as_nanos() as u64);
        self.guest
            .partition
            .next_event()
            .into_iter()
            .chain(flush)
            .min()
    }

    /// Takes in what the worker rang and sent.
    fn take_input(&mut self) -> Result<(), End> {
        self.take_doorbells();
        self.backlog = true;
        for _ in 0..MESSAGES_AT_ONCE {
            // A guest that does not take its messages holds the worker back, not our memory.
            if !self.guest.partition.takes_messages() {
                break;
            }
            match self.connection.link.receive()? {
                Some(FromWorker::Pause) => self.pause()?,
                Some(message) => self.guest.take_message(message)?,
                None => {
                    self.backlog = false;
                    break;
                }
            }
        }
        Ok(())
    }

    /// Stands still, the guest's time with it, until the worker says to go on.
    fn pause(&mut self) -> Result<(), End> {
        self.guest.clock.pause();
        self.flush_console();
        self.guest.merge_counts();
        self.connection.link.send_last(&ToWorker::Paused);
        loop {
            match self.connection.link.wait()? {
                FromWorker::Resume => break,
                FromWorker::Save => self.save()?,
                // Of those that came too late for the pause. A worker has no more than a few.
                message @ FromWorker::DeliverMessage { .. }
                    if !self.guest.partition.takes_messages() =>
                {
                    return Err(self.guest.violation(message));
                }
                message => self.guest.take_message(message)?,
            }
        }
        self.guest.clock.resume();
        Ok(())
    }

    /// Sends the state of processor and partition to the worker.
    fn save(&mut self) -> Result<(), End> {
        self.take_doorbells();
        let mut record = Record::saving(self.guest.processor.memory().size());
        let state = match self.guest.state(&mut record) {
            Ok(()) => record.finish(),
            Err(error) => {
                self.connection
                    .link
                    .send_last(&ToWorker::Note(&error.to_string()));
                Vec::new()
            }
        };
        let mut left = state.len();
        for piece in state.chunks(STATE_PIECE) {
            left -= piece.len();
            let left = left as u64;
            self.connection
                .link
                .send_last(&ToWorker::State { piece, left });
        }
        if state.is_empty() {
            let (piece, left) = (&[][..], 0);
            self.connection
                .link
                .send_last(&ToWorker::State { piece, left });
        }
        Ok(())
    }

    fn take_doorbells(&mut self) {
        let memory = self.guest.processor.memory();
        let doorbells = &self.connection.doorbells;
        doorbells.take(|channel| self.guest.partition.signal_event(channel, memory));
    }

    /// The guest has halted: sleeps until an interrupt is deliverable.
    fn sleep(&mut self) -> Result<(), End> {
        self.flush_console();
        self.send_notes();
        self.guest.merge_counts();
        self.guest.raise_interrupts();
        self.rest();
        while !self.guest.processor.has_deliverable_interrupt() {
            let events = [
                self.guest.processor.next_event(),
                self.guest.partition.next_event(),
            ];
            let start = Instant::now();
            self.wait(events.into_iter().flatten().min())?;
            self.slept += start.elapsed();
            self.take_input()?;
            self.guest.raise_interrupts();
        }
        Ok(())
    }

    /// Lets the processor give memory back when the guest has done next to nothing for a while.
    fn rest(&mut self) {
        let time = self.counted.elapsed();
        if time < REST || self.guest.clock.is_deterministic() {
            return;
        }
        if time.saturating_sub(self.slept) < time / AWAKE {
            self.guest.processor.rest();
        }
        self.counted = Instant::now();
        self.slept = Duration::ZERO;
    }

    /// Sleeps until the worker wants something or the clock reaches `deadline`.
    fn wait(&self, deadline: Option<u64>) -> Result<(), End> {
        let Connection { link, doorbells } = &self.connection;
        if doorbells.attention() {
            return Ok(());
        }
        let timeout = deadline.map(|deadline| {
            let left = deadline.saturating_sub(self.guest.clock.now());
            if self.guest.clock.is_deterministic() {
                left.min(DETERMINISTIC_SLEEP)
            } else {
                left
            }
        });
        let takes_messages = self.guest.partition.takes_messages();
        let wanted = if takes_messages {
            PollFlags::IN | PollFlags::RDHUP
        } else {
            PollFlags::RDHUP
        };
        let (link, bells) = (link.descriptor(), doorbells.descriptor());
        let mut fds = [
            PollFd::from_borrowed_fd(link, wanted),
            PollFd::from_borrowed_fd(bells, PollFlags::IN),
        ];
        let ready = poll(&mut fds, timeout.map(timespec).as_ref());
        if !takes_messages && !fds[0].revents().is_empty() {
            return Err(End::WorkerGone);
        }
        if let (Ok(0), Some(deadline)) = (ready, deadline) {
            self.guest.clock.advance_to(deadline);
        }
        Ok(())
    }

    fn flush_console(&mut self) {
        let serial = &mut self.guest.partition.ports.serial;
        let output = serial.output();
        if !output.is_empty() && self.connection.link.send(&ToWorker::Console(output)) {
            serial.clear();
        }
    }

    fn send_notes(&mut self) {
        for note in self.guest.take_notes() {
            // A full link loses notes: they are a help, not a record.
            self.connection.link.send(&ToWorker::Note(&note));
        }
    }
}

fn timespec(nanoseconds: u64) -> Timespec {
    Timespec {
        tv_sec: i64::try_from(nanoseconds / 1_000_000_000).unwrap_or(i64::MAX),
        tv_nsec: (nanoseconds % 1_000_000_000) as i64,
    }
}
