//! What a recording is made of, and its two ends: [`Recorder`] writes one while a worker serves the
//! guest, [`Player`] is the worker's stand-in when it is replayed.
//!
//! A recording is a sequence of entries, each `u8 kind, u32 length` and so many bytes, little-endian
//! (`recording.entry` in the register). First the guest's RAM at the start, written by the root
//! side; then turn after turn: TURN with the point at which the guest stood still, the inputs, OVER.
//! END is the last, unless something broke: then the recording ends where it was cut.

mod entry;
mod player;
mod recorder;

pub use entry::{Entries, Entry, Malformed};
pub use player::Player;
pub use recorder::Recorder;

use crate::{
    link::{End, FromWorker},
    processor::Intercept,
    record::checksum,
    tlfs::Outcome,
};
use std::hash::{Hash, Hasher};

/// Something that the worker wants of the guest.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(clippy::large_enum_variant)] // A message is the most frequent one.
pub enum Input {
    /// The worker rang for a channel.
    Doorbell(u16),
    Message(FromWorker),
}

/// What came in while the guest stood still, beside what was written into its RAM.
#[derive(Clone, Debug, Default)]
pub struct Turn {
    pub inputs: Vec<Input>,
    /// A sum over what was written, and where.
    pub written: Digest,
    /// How long the guest slept, in nanoseconds.
    pub slept: u64,
}

/// Where a run is: instructions executed, and a sum over all it has done so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Point {
    pub instructions: u64,
    pub digest: u64,
}

/// Why a run in lockstep stopped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stop {
    /// The virtual machine ended; in a replay as recorded.
    End(End),
    /// As many instructions as were asked for.
    Until,
    /// The replay did something else than the recorded run.
    Parted(String),
    /// The recording ends here, although the recorded run did not.
    Cut,
    Malformed(Malformed),
}

impl From<End> for Stop {
    fn from(end: End) -> Self {
        Stop::End(end)
    }
}

impl Stop {
    /// How a replaying process ends: the root side knows the outcome by this status.
    pub fn exit_status(&self) -> u8 {
        use crate::flows::values::*;
        let status = match self {
            Stop::End(_) => REPLAY_REPORT_EQUAL,
            Stop::Until => REPLAY_REPORT_UNTIL,
            Stop::Parted(_) => REPLAY_REPORT_PARTED,
            Stop::Cut => REPLAY_REPORT_CUT,
            Stop::Malformed(_) => REPLAY_REPORT_MALFORMED,
        };
        u8::try_from(status).unwrap_or(u8::MAX)
    }
}

/// A running sum (FNV-1a): finds out where two runs part. It guards against nobody.
#[derive(Clone, Copy, Debug)]
pub struct Digest(u64);

impl Default for Digest {
    fn default() -> Self {
        Self(checksum(&[]))
    }
}

impl Digest {
    pub fn add(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.0 = (self.0 ^ u64::from(byte)).wrapping_mul(0x100_0000_01B3);
        }
    }

    /// What was written into the guest's RAM.
    pub fn add_memory(&mut self, offset: u64, bytes: &[u8]) {
        self.add(&offset.to_le_bytes());
        self.add(bytes);
    }

    /// What came in.
    pub fn add_turn(&mut self, turn: &Turn) {
        self.add(&turn.written.sum().to_le_bytes());
        self.add(&turn.slept.to_le_bytes());
        for input in &turn.inputs {
            match input {
                Input::Doorbell(channel) => self.add(&channel.to_le_bytes()),
                Input::Message(message) => self.add(&message.encode()),
            }
        }
    }

    /// What the guest ran into, and what came of it.
    pub fn add_seen(&mut self, instructions: u64, intercept: &Intercept, outcome: &Outcome) {
        (instructions, intercept, outcome).hash(self);
    }

    pub fn sum(&self) -> u64 {
        self.0
    }
}

impl Hasher for Digest {
    fn write(&mut self, bytes: &[u8]) {
        self.add(bytes);
    }

    fn finish(&self) -> u64 {
        self.0
    }
}
