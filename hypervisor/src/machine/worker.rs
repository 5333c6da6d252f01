//! The one connection to the worker: what it wants is taken in, what has gathered for it passed on.

use super::{Seat, common::Common};
use crate::{
    doorbells::Doorbells,
    link::{End, FromWorker, Link, ToWorker},
    memory::GuestMemory,
    tlfs::{Partition, Worker},
};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::{
    os::fd::{AsRawFd, RawFd},
    time::{Duration, Instant},
};

/// A guest rests that slept all but one part in `AWAKE` of the last `REST` or more.
const REST: Duration = Duration::from_secs(4);
const AWAKE: u32 = 64;
/// Most messages of the worker taken at once, so that it cannot keep the guest from running.
const MESSAGES_AT_ONCE: usize = 64;
/// On the deterministic clock a sleep takes no time; but the worker gets this long to answer.
const DETERMINISTIC_SLEEP: u64 = 1_000_000;

/// Both ways to the worker.
pub struct Connection {
    pub link: Link,
    pub doorbells: Doorbells,
}

impl Connection {
    /// The link, the doorbells to the worker, those from it.
    pub fn descriptors(&self) -> [RawFd; 3] {
        [
            self.link.descriptor(),
            self.doorbells.to_worker(),
            self.doorbells.descriptor(),
        ]
        .map(|descriptor| descriptor.as_raw_fd())
    }
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

impl Common {
    /// Whether the worker may want something. Signals of its descriptors go to processor 0.
    pub(super) fn has_input(&self, seat: &Seat) -> bool {
        let waiting = self.backlog && self.guest.partition.takes_messages();
        waiting || (seat.kicked && seat.vp == 0) || self.connection.doorbells.attention()
    }

    /// Takes in what the worker rang and sent.
    pub(super) fn take_input(&mut self, seat: &Seat) -> Result<(), End> {
        let memory = seat.processor.memory();
        take_doorbells(&mut self.guest.partition, &self.connection, memory);
        self.backlog = true;
        for _ in 0..MESSAGES_AT_ONCE {
            // A guest that does not take its messages holds the worker back, not our memory.
            if !self.guest.partition.takes_messages() {
                break;
            }
            match self.connection.link.receive()? {
                Some(FromWorker::Pause) => {
                    self.standing = Some(seat.vp);
                    let others = self.kickers.iter().enumerate();
                    others
                        .filter(|&(vp, _)| vp != seat.vp)
                        .for_each(|(_, kicker)| kicker.kick());
                    break;
                }
                Some(message) => {
                    self.guest.take_message(message, memory)?;
                }
                None => {
                    self.backlog = false;
                    break;
                }
            }
        }
        Ok(())
    }

    /// The guest has halted on the software processor, and nothing is to be delivered: sleeps until
    /// the worker wants something or a timer's time comes.
    pub(super) fn sleep(&self, seat: &Seat) -> Result<(), End> {
        let Connection { link, doorbells } = &self.connection;
        if doorbells.attention() {
            return Ok(());
        }
        let events = [
            seat.processor.next_event(),
            self.guest.partition.next_event(seat.vp),
        ];
        let deadline = events.into_iter().flatten().min();
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

    /// Lets the processor give memory back when the guest has done next to nothing for a while.
    pub(super) fn rest(&mut self, seat: &mut Seat) {
        let time = seat.counted.elapsed();
        if time < REST || self.guest.clock.is_deterministic() {
            return;
        }
        if time.saturating_sub(seat.slept) < time / AWAKE {
            seat.processor.rest();
        }
        seat.counted = Instant::now();
        seat.slept = Duration::ZERO;
    }

    /// Passes on what has gathered.
    pub(super) fn keep_house(&mut self, seat: &mut Seat) {
        self.flush_console();
        self.send_notes(seat);
        seat.processor.merge_counts(&self.guest.counters);
    }

    pub(super) fn flush_console(&mut self) {
        let serial = &mut self.guest.partition.ports.serial;
        let output = serial.output();
        if !output.is_empty() && self.connection.link.send(&ToWorker::Console(output)) {
            serial.clear();
        }
    }

    pub(super) fn merge_counts(&mut self) {
        for seat in self.bench.iter_mut().flatten() {
            seat.processor.merge_counts(&self.guest.counters);
        }
    }

    pub(super) fn send_notes(&mut self, seat: &mut Seat) {
        let notes = self.guest.take_notes(&mut *seat.processor);
        for note in notes {
            // A full link loses notes: they are a help, not a record.
            self.connection.link.send(&ToWorker::Note(&note));
        }
    }

    /// Tells the worker how the machine has ended. Nobody does anything with it any more.
    pub fn finish(&mut self, end: End) {
        self.ended = true;
        self.merge_counts();
        if end == End::WorkerGone {
            return;
        }
        let mut bench = std::mem::take(&mut self.bench);
        for seat in bench.iter_mut().flatten() {
            self.send_notes(seat);
        }
        self.bench = bench; // what a processor holds cannot be given back behind the walls
        let output = self.guest.partition.ports.serial.output();
        if !output.is_empty() {
            self.connection.link.send_last(&ToWorker::Console(output));
        }
        self.connection.link.send_last(&ToWorker::End(end));
    }
}

pub(super) fn take_doorbells(
    partition: &mut Partition,
    connection: &Connection,
    memory: &GuestMemory,
) {
    let processors = partition.processors();
    connection.doorbells.take(processors, |channel, vp| {
        partition.signal_event(vp, channel, memory);
    });
}

fn timespec(nanoseconds: u64) -> Timespec {
    Timespec {
        tv_sec: i64::try_from(nanoseconds / 1_000_000_000).unwrap_or(i64::MAX),
        tv_nsec: (nanoseconds % 1_000_000_000) as i64,
    }
}
