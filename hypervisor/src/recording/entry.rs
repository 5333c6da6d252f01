//! One entry of a recording, and a strict reader of them: whoever hands a recording around may have
//! made it up. What passes here could have come from a worker.

use super::{Input, Point};
use crate::{
    flows::{Flow, Reject, values},
    link::{FromWorker, MESSAGE_BYTES},
};
use std::io::{self, Read};

const HEADER_BYTES: usize = 5;
/// Most bytes of guest RAM in one entry.
pub const MEMORY_PIECE: usize = values::RECORDING_ENTRY_MEMORY_PIECE as usize;
const MAX_BYTES: usize = Flow::RecordingEntry.max_bytes() as usize;
const CHANNELS: u16 = values::DOORBELL_TO_WORKER_CHANNELS as u16;

const MEMORY: u8 = values::RECORDING_ENTRY_MEMORY as u8;
const TURN: u8 = values::RECORDING_ENTRY_TURN as u8;
const DOORBELL: u8 = values::RECORDING_ENTRY_DOORBELL as u8;
const MESSAGE: u8 = values::RECORDING_ENTRY_MESSAGE as u8;
const OVER: u8 = values::RECORDING_ENTRY_OVER as u8;
const END: u8 = values::RECORDING_ENTRY_END as u8;

#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(clippy::large_enum_variant)] // One at a time.
pub enum Entry {
    /// The guest stands still.
    Turn(Point),
    /// The worker wrote guest RAM.
    Memory {
        offset: u64,
        bytes: Vec<u8>,
    },
    Input(Input),
    /// The turn is over, and the guest slept for so many nanoseconds.
    Over {
        slept: u64,
    },
    /// The machine ended, for this reason.
    End {
        point: Point,
        reason: u64,
    },
}

/// A recording that no program of ours wrote.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    #[error("an entry of unknown kind {0}")]
    Kind(u8),
    #[error("an entry of kind {0} with {1} bytes")]
    Length(u8, usize),
    #[error("an entry that writes outside of the guest's memory")]
    Memory,
    #[error("an entry with a channel that does not exist")]
    Channel,
    #[error("an entry with a message that no worker could send")]
    Message,
    #[error("an entry that does not belong where it is")]
    Order,
}

impl Malformed {
    /// The kind of bad input that it is.
    pub fn reject(self) -> Reject {
        match self {
            Malformed::Memory => Reject::RecordingEntryOutside,
            Malformed::Order => Reject::RecordingEntryOrder,
            _ => Reject::RecordingEntryMalformed,
        }
    }
}

impl Entry {
    /// Parses the body of an entry, for a guest with so many bytes of RAM.
    pub fn decode(kind: u8, body: &[u8], memory: u64) -> Result<Self, Malformed> {
        let wrong = Malformed::Length(kind, body.len());
        let numbers = |count: usize| -> Result<[u64; 3], Malformed> {
            if body.len() != count * 8 {
                return Err(wrong);
            }
            let mut numbers = [0; 3];
            for (number, bytes) in numbers.iter_mut().zip(body.chunks_exact(8)) {
                *number = u64::from_le_bytes(bytes.try_into().map_err(|_| wrong)?);
            }
            Ok(numbers)
        };
        match kind {
            MEMORY => {
                let (offset, bytes) = body.split_first_chunk().ok_or(wrong)?;
                let offset = u64::from_le_bytes(*offset);
                if bytes.is_empty() || bytes.len() > MEMORY_PIECE {
                    return Err(wrong);
                }
                match offset.checked_add(bytes.len() as u64) {
                    Some(end) if end <= memory => {}
                    _ => return Err(Malformed::Memory),
                }
                let bytes = bytes.to_vec();
                Ok(Entry::Memory { offset, bytes })
            }
            TURN => {
                let [instructions, digest, _] = numbers(2)?;
                Ok(Entry::Turn(Point {
                    instructions,
                    digest,
                }))
            }
            DOORBELL => {
                let channel = u16::from_le_bytes(body.try_into().map_err(|_| wrong)?);
                if channel == 0 || channel >= CHANNELS {
                    return Err(Malformed::Channel);
                }
                Ok(Entry::Input(Input::Doorbell(channel)))
            }
            MESSAGE => {
                if body.len() != MESSAGE_BYTES {
                    return Err(wrong);
                }
                let message = FromWorker::decode(body, 1).map_err(|_| Malformed::Message)?;
                if !message.is_for_guest() && message != FromWorker::Stop {
                    return Err(Malformed::Message);
                }
                Ok(Entry::Input(Input::Message(message)))
            }
            OVER => Ok(Entry::Over {
                slept: numbers(1)?[0],
            }),
            END => {
                let [instructions, digest, reason] = numbers(3)?;
                let point = Point {
                    instructions,
                    digest,
                };
                Ok(Entry::End { point, reason })
            }
            _ => Err(Malformed::Kind(kind)),
        }
    }

    /// Appends the entry to a recording.
    pub fn encode(&self, recording: &mut Vec<u8>) {
        let start = recording.len();
        recording.extend([0; HEADER_BYTES]);
        let mut put = |numbers: &[u64]| {
            for number in numbers {
                recording.extend(number.to_le_bytes());
            }
        };
        let kind = match self {
            Entry::Turn(point) => {
                put(&[point.instructions, point.digest]);
                TURN
            }
            Entry::Over { slept } => {
                put(&[*slept]);
                OVER
            }
            Entry::End { point, reason } => {
                put(&[point.instructions, point.digest, *reason]);
                END
            }
            Entry::Memory { offset, bytes } => {
                put(&[*offset]);
                recording.extend(bytes);
                MEMORY
            }
            Entry::Input(Input::Doorbell(channel)) => {
                recording.extend(channel.to_le_bytes());
                DOORBELL
            }
            Entry::Input(Input::Message(message)) => {
                recording.extend(message.encode());
                MESSAGE
            }
        };
        let length = (recording.len() - start - HEADER_BYTES) as u32;
        if let Some((first, rest)) = recording
            .get_mut(start..start + HEADER_BYTES)
            .and_then(|header| header.split_first_mut())
        {
            *first = kind;
            rest.copy_from_slice(&length.to_le_bytes());
        }
    }
}

/// The entries of a recording, one after the other.
pub struct Entries<R> {
    source: R,
    memory: u64,
    body: Vec<u8>,
}

impl<R: Read> Entries<R> {
    /// Reads entries for a guest with so many bytes of RAM.
    pub fn new(source: R, memory: u64) -> Self {
        let body = Vec::new();
        Self {
            source,
            memory,
            body,
        }
    }

    /// The next entry; `None` at the end, be it amid an entry.
    pub fn read(&mut self) -> Result<Option<Entry>, Malformed> {
        let mut header = [0; HEADER_BYTES];
        if !self.fill(&mut header) {
            return Ok(None);
        }
        let [kind, length @ ..] = header;
        let length = u32::from_le_bytes(length) as usize;
        if length > MAX_BYTES {
            return Err(Malformed::Length(kind, length));
        }
        let mut body = std::mem::take(&mut self.body);
        body.resize(length, 0);
        let whole = self.fill(&mut body);
        let entry = whole.then(|| Entry::decode(kind, &body, self.memory));
        self.body = body;
        entry.transpose()
    }

    fn fill(&mut self, buffer: &mut [u8]) -> bool {
        let read: io::Result<()> = self.source.read_exact(buffer);
        read.is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::link::Payload;

    const RAM: u64 = 1 << 20;

    fn all() -> Vec<Entry> {
        let point = Point {
            instructions: 7,
            digest: u64::MAX,
        };
        let payload = Payload::new(b"offer").unwrap();
        let (sint, kind) = (2, 1);
        let deliver = FromWorker::DeliverMessage {
            vp: 0,
            sint,
            kind,
            payload,
        };
        let bytes = vec![9; MEMORY_PIECE];
        let messages = [
            deliver,
            FromWorker::OpenPort { channel: 7 },
            FromWorker::ClosePort { channel: 2047 },
            FromWorker::Stop,
        ];
        let mut all = vec![
            Entry::Memory {
                offset: RAM - MEMORY_PIECE as u64,
                bytes,
            },
            Entry::Turn(point),
            Entry::Input(Input::Doorbell(2047)),
            Entry::Over { slept: 3 },
            Entry::End { point, reason: 7 },
        ];
        all.extend(messages.map(|message| Entry::Input(Input::Message(message))));
        all
    }

    fn read(bytes: &[u8]) -> Result<Vec<Entry>, Malformed> {
        let mut entries = Entries::new(bytes, RAM);
        let mut found = Vec::new();
        while let Some(entry) = entries.read()? {
            found.push(entry);
        }
        Ok(found)
    }

    fn raw(kind: u8, body: &[u8]) -> Vec<u8> {
        let mut bytes = vec![kind];
        bytes.extend((body.len() as u32).to_le_bytes());
        bytes.extend(body);
        bytes
    }

    #[test]
    fn what_is_written_is_read() {
        let mut bytes = Vec::new();
        all().iter().for_each(|entry| entry.encode(&mut bytes));
        assert_eq!(read(&bytes), Ok(all()));
        // A recording that was cut ends with its last whole entry.
        let last = MESSAGE_BYTES + HEADER_BYTES;
        for cut in 1..=last {
            let expected = &all()[..all().len() - 1];
            assert_eq!(read(&bytes[..bytes.len() - cut]).as_deref(), Ok(expected));
        }
    }

    #[test]
    fn everything_else_is_refused() {
        let start = FromWorker::OpenPort { channel: 7 }.encode();
        let mut other = start;
        other[2] = 16;
        let cases = [
            (raw(0, &[]), Malformed::Kind(0)),
            (raw(7, &[]), Malformed::Kind(7)),
            (raw(MEMORY, &[0; 8]), Malformed::Length(MEMORY, 8)),
            (raw(MEMORY, &[0; 7]), Malformed::Length(MEMORY, 7)),
            (raw(MEMORY, &[0xFF; 9]), Malformed::Memory),
            (
                raw(MEMORY, &[&RAM.to_le_bytes()[..], &[1]].concat()),
                Malformed::Memory,
            ),
            (raw(TURN, &[0; 15]), Malformed::Length(TURN, 15)),
            (raw(DOORBELL, &[0, 0]), Malformed::Channel),
            (raw(DOORBELL, &[0, 8]), Malformed::Channel),
            (raw(DOORBELL, &[1]), Malformed::Length(DOORBELL, 1)),
            (raw(MESSAGE, &start[..271]), Malformed::Length(MESSAGE, 271)),
            (raw(MESSAGE, &[0; MESSAGE_BYTES]), Malformed::Message),
            // START, and all that has no place in a turn.
            (raw(MESSAGE, &other), Malformed::Message),
            (raw(OVER, &[0; 16]), Malformed::Length(OVER, 16)),
            (raw(END, &[0; 16]), Malformed::Length(END, 16)),
            (
                vec![MEMORY, 0, 0, 0, 0x80],
                Malformed::Length(MEMORY, 1 << 31),
            ),
        ];
        for (bytes, malformed) in cases {
            assert_eq!(read(&bytes), Err(malformed));
        }
    }
}
