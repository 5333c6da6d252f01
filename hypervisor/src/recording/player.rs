//! Plays a recording to a guest, and compares what the guest does with what was recorded.

use super::{Entries, Entry, Input, Malformed, Point, Stop, Turn};
use crate::{
    counters::Counters,
    flows::Flow,
    link::{End, FromWorker, ToWorker},
    lockstep::{Lockstep, Partner},
    memory::GuestMemory,
    processor::{Intercept, Registers},
    tlfs::Outcome,
};
use std::io::{Read, Write};

/// The recording, in the worker's place.
pub struct Player<R, W> {
    entries: Entries<R>,
    /// Read ahead: what stands between inputs.
    next: Option<Entry>,
    /// The last point at which both runs were the same.
    last: Point,
    turns: u64,
    /// Takes what the guest writes to its serial port.
    console: W,
    /// Takes lines of text.
    report: W,
    trace: bool,
    counters: Counters,
}

impl<R: Read, W: Write> Player<R, W> {
    /// With `trace`, each step of the guest is reported.
    pub fn new(
        entries: Entries<R>,
        console: W,
        report: W,
        trace: bool,
        counters: Counters,
    ) -> Self {
        let last = Point {
            instructions: 0,
            digest: 0,
        };
        Self {
            entries,
            next: None,
            last,
            turns: 0,
            console,
            report,
            trace,
            counters,
        }
    }

    /// Fills the guest's RAM with what it held at the start.
    pub fn load(&mut self, memory: &GuestMemory) -> Result<(), Stop> {
        loop {
            match self.read()? {
                Some(Entry::Memory { offset, bytes }) => {
                    memory
                        .write_bytes(offset, &bytes)
                        .ok_or_else(|| self.refuse(Malformed::Memory))?;
                }
                None => return Err(Stop::Cut),
                Some(entry @ Entry::Turn(_)) => {
                    self.next = Some(entry);
                    return Ok(());
                }
                _ => return Err(self.refuse(Malformed::Order)),
            }
        }
    }

    /// Reports a line. A reader that has gone misses something.
    pub fn say(&mut self, text: &str) {
        let _ = writeln!(self.report, "{text}");
    }

    fn read(&mut self) -> Result<Option<Entry>, Stop> {
        if let Some(entry) = self.next.take() {
            return Ok(Some(entry));
        }
        match self.entries.read() {
            Ok(entry) => {
                self.counters.accept(Flow::RecordingEntry, 1);
                Ok(entry)
            }
            Err(malformed) => Err(self.refuse(malformed)),
        }
    }

    fn refuse(&self, malformed: Malformed) -> Stop {
        self.counters.reject(malformed.reject());
        Stop::Malformed(malformed)
    }

    fn parted(&self, recorded: &str, here: Point) -> Stop {
        Stop::Parted(format!(
            "the runs are the same up to instruction {} (turn {}) and part before instruction {}: {recorded}",
            self.last.instructions, self.turns, here.instructions,
        ))
    }

    fn compare(&mut self, recorded: Point, here: Point) -> Result<(), Stop> {
        if recorded == here {
            self.last = here;
            return Ok(());
        }
        Err(if recorded.instructions == here.instructions {
            let text = "what came in, what the guest did, or its state then is not as recorded";
            self.parted(text, here)
        } else {
            let text = format!(
                "the recorded guest stood still at instruction {}",
                recorded.instructions
            );
            self.parted(&text, here)
        })
    }
}

impl<R: Read, W: Write> Partner for Player<R, W> {
    fn give(&mut self, message: &ToWorker) {
        match *message {
            ToWorker::Console(text) => {
                let _ = self.console.write_all(text);
            }
            ToWorker::PostMessage {
                connection,
                kind,
                payload,
            } if self.trace => {
                let (length, first) = (payload.len(), Bytes(payload));
                self.say(&format!(
                    "  posts {length} bytes, type {kind}, to connection {connection}: {first}"
                ));
            }
            ToWorker::Note(text) => self.say(&format!("  note: {text}")),
            _ => {}
        }
    }

    fn ring(&mut self, channel: u16) {
        if self.trace {
            self.say(&format!("  signals channel {channel}"));
        }
    }

    fn turn(&mut self, point: Point, _: u64, memory: &GuestMemory) -> Result<Turn, Stop> {
        match self.read()? {
            Some(Entry::Turn(recorded)) => {
                self.compare(recorded, point)?;
                self.turns += 1;
            }
            Some(Entry::End { .. }) => {
                return Err(self.parted("the recorded machine ended", point));
            }
            Some(_) => return Err(self.refuse(Malformed::Order)),
            None => return Err(Stop::Cut),
        }
        let mut turn = Turn::default();
        loop {
            match self.read()? {
                Some(Entry::Memory { offset, bytes }) => {
                    if self.trace {
                        let (length, first) = (bytes.len(), Bytes(&bytes));
                        self.say(&format!(
                            "  < {length} bytes into RAM at {offset:#x}: {first}"
                        ));
                    }
                    turn.written.add_memory(offset, &bytes);
                    memory
                        .write_bytes(offset, &bytes)
                        .ok_or_else(|| self.refuse(Malformed::Memory))?;
                }
                Some(Entry::Input(input)) => {
                    if self.trace {
                        self.say(&format!("  < {}", describe(&input)));
                    }
                    turn.inputs.push(input);
                }
                Some(Entry::Over { slept }) => {
                    if self.trace && slept > 0 {
                        self.say(&format!("  < slept for {slept} ns"));
                    }
                    turn.slept = slept;
                    return Ok(turn);
                }
                Some(_) => return Err(self.refuse(Malformed::Order)),
                None => return Err(Stop::Cut),
            }
        }
    }

    fn end(&mut self, point: Point, end: End) -> Stop {
        match self.read() {
            Ok(Some(Entry::End {
                point: recorded,
                reason,
            })) => match self.compare(recorded, point) {
                Ok(()) if reason == end.reason() => end.into(),
                Ok(()) => self.parted("the recorded machine ended for another reason", point),
                Err(stop) => stop,
            },
            Ok(Some(_)) => self.parted("the recorded machine went on", point),
            Ok(None) => Stop::Cut,
            Err(stop) => stop,
        }
    }

    fn saw(&mut self, instructions: u64, at: Option<Registers>, what: Intercept, came: Outcome) {
        if self.trace {
            let rip = at.map_or(0, |registers| registers.rip);
            self.say(&format!(
                "{instructions} {rip:#018x} {what:x?} -> {came:x?}"
            ));
        }
    }
}

impl<R: Read, W: Write> Lockstep<Player<R, W>> {
    /// Replays the recording from its first entry to its last and reports how that ended.
    pub fn replay(mut self) -> Stop {
        let (player, memory) = self.partner_and_memory();
        let stop = match player.load(memory) {
            Ok(()) => self.run(),
            Err(stop) => stop,
        };
        let instructions = self.instructions();
        let registers = self.registers();
        let (player, _) = self.partner_and_memory();
        let turns = player.turns;
        if player.trace || stop == Stop::Until {
            registers
                .into_iter()
                .for_each(|at| player.say(&format!("{at}")));
        }
        player.say(&match &stop {
            Stop::End(end) => {
                format!(
                    "the same to the end, {instructions} instructions and {turns} turns: {end:?}"
                )
            }
            Stop::Until => format!("the same up to instruction {instructions}"),
            Stop::Parted(how) => how.clone(),
            Stop::Cut => {
                format!("the same up to instruction {instructions}, where the recording was cut")
            }
            Stop::Malformed(why) => {
                format!("this recording was not made by a machine of ours: {why}")
            }
        });
        stop
    }
}

fn describe(input: &Input) -> String {
    match input {
        Input::Doorbell(channel) => format!("doorbell of channel {channel}"),
        Input::Message(FromWorker::DeliverMessage {
            vp: 0,
            sint,
            kind,
            payload,
        }) => {
            let bytes = Bytes(payload.as_slice());
            format!("message for SINT {sint}, type {kind}: {bytes}")
        }
        other => format!("{other:?}"),
    }
}

/// The first bytes of something, for a line of text.
struct Bytes<'a>(&'a [u8]);

impl std::fmt::Display for Bytes<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        const SHOWN: usize = 32;
        for byte in self.0.iter().take(SHOWN) {
            write!(f, "{byte:02x}")?;
        }
        if self.0.len() > SHOWN {
            write!(f, "…")?;
        }
        Ok(())
    }
}
