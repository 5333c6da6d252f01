//! The partition link: the one connection to this VM's worker. Every message is 272 bytes,
//! little-endian: `u16 version, u16 type, u32 length, u64 value, u8 payload[256]`, zero beyond
//! `length`. Anything else comes from a hostile peer and ends the VM.

mod socket;

use crate::{
    counters::Counters,
    flows::{Flow, Reject, values},
};

pub use socket::Link;

const VERSION: u16 = values::LINK_POST_MESSAGE_VERSION as u16;
pub const MESSAGE_BYTES: usize = values::LINK_POST_MESSAGE_MESSAGE_BYTES as usize;
const PAYLOAD_BYTES: usize = values::LINK_POST_MESSAGE_PAYLOAD_BYTES as usize;
const HEADER_BYTES: usize = MESSAGE_BYTES - PAYLOAD_BYTES;
/// Largest payload of a SynIC message.
pub const SYNIC_PAYLOAD: usize = values::HYPERCALL_POST_MESSAGE_PAYLOAD_MAX as usize;

/// Connection id of VMBus channel 0; the channel's number is in the low bits.
const CHANNEL_CONNECTION: u64 = values::HYPERCALL_SIGNAL_EVENT_FIRST_CONNECTION;
const CHANNEL_MASK: u64 = values::DOORBELL_TO_WORKER_CHANNELS - 1;

/// The channel behind a connection id; `None` for an id that is no channel's.
pub fn channel_of(connection: u64) -> Option<u16> {
    let channel = connection & CHANNEL_MASK;
    if connection & !CHANNEL_MASK == CHANNEL_CONNECTION && channel != 0 {
        u16::try_from(channel).ok()
    } else {
        None
    }
}

/// Why a virtual machine ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum End {
    PowerOff,
    Reset,
    TripleFault,
    /// The guest's crash MSRs: P0 to P4 and the control register.
    GuestCrash([u64; 6]),
    /// HLT with interrupts disabled: nothing could ever wake the processor.
    Halted,
    WorkerViolation,
    Stopped,
    /// The saved state that it was to go on from is none.
    StateRefused,
    /// The worker is gone: there is nobody to tell.
    WorkerGone,
}

impl End {
    /// As the worker and a recording know it.
    pub fn reason(self) -> u64 {
        match self {
            End::PowerOff => values::LINK_END_POWER_OFF,
            End::Reset => values::LINK_END_RESET,
            End::TripleFault => values::LINK_END_TRIPLE_FAULT,
            End::GuestCrash(_) => values::LINK_END_GUEST_CRASH,
            End::Halted => values::LINK_END_HALTED,
            End::WorkerViolation => values::LINK_END_WORKER_VIOLATION,
            End::StateRefused => values::LINK_END_STATE_REFUSED,
            End::Stopped | End::WorkerGone => values::LINK_END_STOPPED,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ToWorker<'a> {
    PostMessage {
        connection: u32,
        kind: u32,
        payload: &'a [u8],
    },
    Console(&'a [u8]),
    End(End),
    Note(&'a str),
    Paused,
    /// In lockstep: the worker's turn, which may last `wait` nanoseconds while nothing happens.
    Turn {
        wait: u64,
    },
    /// A piece of the saved state, and how many bytes follow after it.
    State {
        piece: &'a [u8],
        left: u64,
    },
}

impl ToWorker<'_> {
    /// The message on the wire. A payload that is too long is cut.
    pub fn encode(&self) -> [u8; MESSAGE_BYTES] {
        let mut crash = [0; 48];
        let (kind, value, payload): (u32, u64, &[u8]) = match *self {
            ToWorker::PostMessage {
                connection,
                kind,
                payload,
            } => {
                let value = u64::from(connection) | u64::from(kind) << 32;
                (values::LINK_POST_MESSAGE, value, payload)
            }
            ToWorker::Console(bytes) => (values::LINK_CONSOLE, 0, bytes),
            ToWorker::End(End::GuestCrash(registers)) => {
                for (bytes, register) in crash.chunks_exact_mut(8).zip(registers) {
                    bytes.copy_from_slice(&register.to_le_bytes());
                }
                (values::LINK_END, values::LINK_END_GUEST_CRASH, &crash)
            }
            ToWorker::End(end) => (values::LINK_END, end.reason(), &[]),
            ToWorker::Note(text) => (values::LINK_NOTE, 0, cut(text).as_bytes()),
            ToWorker::Paused => (values::LINK_PAUSED, 0, &[]),
            ToWorker::Turn { wait } => (values::LINK_TURN, wait, &[]),
            ToWorker::State { piece, left } => (values::LINK_STATE, left, piece),
        };
        frame(kind, value, payload)
    }
}

/// A message on the wire.
pub fn frame(kind: u32, value: u64, payload: &[u8]) -> [u8; MESSAGE_BYTES] {
    let length = payload.len().min(PAYLOAD_BYTES);
    let mut message = [0; MESSAGE_BYTES];
    message[0..2].copy_from_slice(&VERSION.to_le_bytes());
    message[2..4].copy_from_slice(&(kind as u16).to_le_bytes());
    message[4..8].copy_from_slice(&(length as u32).to_le_bytes());
    message[8..16].copy_from_slice(&value.to_le_bytes());
    message[HEADER_BYTES..HEADER_BYTES + length].copy_from_slice(&payload[..length]);
    message
}

/// As much of `text` as fits into a payload, in whole characters.
fn cut(text: &str) -> &str {
    let fits = |end: &usize| text.is_char_boundary(*end);
    let end = (0..=text.len().min(PAYLOAD_BYTES)).rev().find(fits);
    text.get(..end.unwrap_or(0)).unwrap_or("")
}

/// At most 240 bytes of a SynIC message.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Payload {
    bytes: [u8; SYNIC_PAYLOAD],
    length: u8,
}

impl Payload {
    /// `None` when `from` is too long.
    pub fn new(from: &[u8]) -> Option<Self> {
        let mut bytes = [0; SYNIC_PAYLOAD];
        bytes.get_mut(..from.len())?.copy_from_slice(from);
        let length = u8::try_from(from.len()).ok()?;
        Some(Self { bytes, length })
    }

    pub fn as_slice(&self) -> &[u8] {
        self.bytes.get(..self.length.into()).unwrap_or(&[])
    }
}

impl std::fmt::Debug for Payload {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Payload({} bytes)", self.length)
    }
}

/// Where the worker wrote guest RAM: offset and length, a few at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ranges {
    pairs: [[u64; 2]; MOST_RANGES],
    count: u8,
}

const RANGE_BYTES: usize = 16;
const MOST_RANGES: usize = PAYLOAD_BYTES / RANGE_BYTES;

impl Ranges {
    /// `None` when that is not one range at least, each of them whole.
    fn decode(payload: &[u8]) -> Option<Self> {
        let number = |bytes: &[u8]| Some(u64::from_le_bytes(bytes.try_into().ok()?));
        let mut pairs = [[0; 2]; MOST_RANGES];
        let count = payload.len() / RANGE_BYTES;
        if count == 0 || !payload.len().is_multiple_of(RANGE_BYTES) {
            return None;
        }
        for (pair, bytes) in pairs.iter_mut().zip(payload.chunks_exact(RANGE_BYTES)) {
            let (offset, length) = bytes.split_at(RANGE_BYTES / 2);
            *pair = [number(offset)?, number(length)?];
        }
        let count = u8::try_from(count).ok()?;
        Some(Self { pairs, count })
    }

    pub fn iter(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        let pairs = self.pairs.iter().take(self.count.into());
        pairs.map(|&[offset, length]| (offset, length))
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(clippy::large_enum_variant)] // One at a time on the stack; a box would only cost.
pub enum FromWorker {
    Start,
    Stop,
    DeliverMessage {
        vp: u8,
        sint: u8,
        kind: u32,
        payload: Payload,
    },
    OpenPort {
        channel: u16,
    },
    ClosePort {
        channel: u16,
    },
    Pause,
    Resume,
    Save,
    /// In lockstep: what the worker has written in its turn.
    Wrote(Ranges),
    /// In lockstep: the worker's turn is over, in which so many nanoseconds were slept.
    TurnOver {
        slept: u64,
    },
}

impl FromWorker {
    /// Whether the guest is to get it, when it has room.
    pub fn is_for_guest(&self) -> bool {
        use FromWorker::*;
        matches!(
            self,
            DeliverMessage { .. } | OpenPort { .. } | ClosePort { .. }
        )
    }

    /// The message on the wire, as the worker sent it, of those that a recording holds.
    pub fn encode(&self) -> [u8; MESSAGE_BYTES] {
        let connection = |channel: u16| CHANNEL_CONNECTION | u64::from(channel);
        match self {
            FromWorker::DeliverMessage {
                vp,
                sint,
                kind,
                payload,
            } => {
                let value = u64::from(*sint) | u64::from(*vp) << 8 | u64::from(*kind) << 32;
                frame(values::LINK_DELIVER_MESSAGE, value, payload.as_slice())
            }
            FromWorker::OpenPort { channel } => {
                frame(values::LINK_OPEN_PORT, connection(*channel), &[])
            }
            FromWorker::ClosePort { channel } => {
                frame(values::LINK_CLOSE_PORT, connection(*channel), &[])
            }
            _ => frame(values::LINK_STOP, 0, &[]),
        }
    }

    /// Parses one message to a machine with so many processors.
    pub fn decode(message: &[u8], processors: usize) -> Result<Self, Reject> {
        let unknown = Reject::LinkUnknownMessage;
        let message: &[u8; MESSAGE_BYTES] = message.try_into().map_err(|_| unknown)?;
        let (header, body) = message.split_at(HEADER_BYTES);
        let field = |at: usize, size: usize| {
            let bytes = header.iter().skip(at).take(size).rev();
            bytes.fold(0u64, |value, &byte| value << 8 | u64::from(byte))
        };
        let (version, kind, length, value) = (field(0, 2), field(2, 2), field(4, 4), field(8, 8));
        let (flow, malformed) = match kind as u32 {
            _ if version != u64::from(VERSION) => return Err(unknown),
            values::LINK_START => (Flow::LinkStart, Reject::LinkStartMalformed),
            values::LINK_STOP => (Flow::LinkStop, Reject::LinkStopMalformed),
            values::LINK_DELIVER_MESSAGE => (
                Flow::LinkDeliverMessage,
                Reject::LinkDeliverMessageMalformed,
            ),
            values::LINK_OPEN_PORT => (Flow::LinkOpenPort, Reject::LinkOpenPortMalformed),
            values::LINK_CLOSE_PORT => (Flow::LinkClosePort, Reject::LinkClosePortMalformed),
            values::LINK_PAUSE => (Flow::LinkPause, Reject::LinkPauseMalformed),
            values::LINK_RESUME => (Flow::LinkResume, Reject::LinkResumeMalformed),
            values::LINK_SAVE => (Flow::LinkSave, Reject::LinkSaveMalformed),
            values::LINK_WROTE => (Flow::LinkWrote, Reject::LinkWroteMalformed),
            values::LINK_TURN_OVER => (Flow::LinkTurnOver, Reject::LinkTurnOverMalformed),
            _ => return Err(unknown),
        };
        let length = usize::try_from(length).map_err(|_| malformed)?;
        let (payload, rest) = body.split_at_checked(length).ok_or(malformed)?;
        if rest.iter().any(|&byte| byte != 0) {
            return Err(malformed);
        }
        let empty = payload.is_empty();
        match flow {
            Flow::LinkStart if empty && value == 0 => Ok(FromWorker::Start),
            Flow::LinkStop if empty && value == 0 => Ok(FromWorker::Stop),
            Flow::LinkPause if empty && value == 0 => Ok(FromWorker::Pause),
            Flow::LinkResume if empty && value == 0 => Ok(FromWorker::Resume),
            Flow::LinkSave if empty && value == 0 => Ok(FromWorker::Save),
            Flow::LinkWrote if value == 0 => {
                Ok(FromWorker::Wrote(Ranges::decode(payload).ok_or(malformed)?))
            }
            Flow::LinkTurnOver if empty => Ok(FromWorker::TurnOver { slept: value }),
            // value = SINT | VP << 8 | message type << 32.
            Flow::LinkDeliverMessage if value & 0xFFFF_00F0 == 0 && value >> 32 != 0 => {
                let vp = (value >> 8) as u8;
                Ok(FromWorker::DeliverMessage {
                    vp: Some(vp)
                        .filter(|&vp| usize::from(vp) < processors)
                        .ok_or(malformed)?,
                    sint: (value & 0xF) as u8,
                    kind: (value >> 32) as u32,
                    payload: Payload::new(payload).ok_or(malformed)?,
                })
            }
            Flow::LinkOpenPort if empty => {
                let channel = channel_of(value).ok_or(malformed)?;
                Ok(FromWorker::OpenPort { channel })
            }
            Flow::LinkClosePort if empty => {
                let channel = channel_of(value).ok_or(malformed)?;
                Ok(FromWorker::ClosePort { channel })
            }
            _ => Err(malformed),
        }
    }

    /// Parses one message, and counts it or its refusal.
    pub fn counted(message: &[u8], processors: usize, counters: &Counters) -> Result<Self, Reject> {
        let decoded = Self::decode(message, processors);
        match &decoded {
            Ok(message) => counters.accept(message.flow(), message.bytes()),
            Err(kind) => counters.reject(*kind),
        }
        decoded
    }

    fn flow(&self) -> Flow {
        match self {
            FromWorker::Start => Flow::LinkStart,
            FromWorker::Stop => Flow::LinkStop,
            FromWorker::DeliverMessage { .. } => Flow::LinkDeliverMessage,
            FromWorker::OpenPort { .. } => Flow::LinkOpenPort,
            FromWorker::ClosePort { .. } => Flow::LinkClosePort,
            FromWorker::Pause => Flow::LinkPause,
            FromWorker::Resume => Flow::LinkResume,
            FromWorker::Save => Flow::LinkSave,
            FromWorker::Wrote(_) => Flow::LinkWrote,
            FromWorker::TurnOver { .. } => Flow::LinkTurnOver,
        }
    }

    /// The kind of violation that it is where it may not come.
    pub fn out_of_order(&self) -> Option<Reject> {
        Some(match self {
            FromWorker::Start => Reject::LinkStartOrder,
            FromWorker::Stop => return None, // it may come at any time
            FromWorker::DeliverMessage { .. } => Reject::LinkDeliverMessageOrder,
            FromWorker::OpenPort { .. } => Reject::LinkOpenPortOrder,
            FromWorker::ClosePort { .. } => Reject::LinkClosePortOrder,
            FromWorker::Pause => Reject::LinkPauseOrder,
            FromWorker::Resume => Reject::LinkResumeOrder,
            FromWorker::Save => Reject::LinkSaveOrder,
            FromWorker::Wrote(_) => Reject::LinkWroteOrder,
            FromWorker::TurnOver { .. } => Reject::LinkTurnOverOrder,
        })
    }

    fn bytes(&self) -> u64 {
        match self {
            FromWorker::DeliverMessage { payload, .. } => payload.length.into(),
            FromWorker::Wrote(ranges) => u64::from(ranges.count) * RANGE_BYTES as u64,
            _ => 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(kind: u16, length: u32, value: u64, payload: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0; MESSAGE_BYTES];
        bytes[0..2].copy_from_slice(&1u16.to_le_bytes());
        bytes[2..4].copy_from_slice(&kind.to_le_bytes());
        bytes[4..8].copy_from_slice(&length.to_le_bytes());
        bytes[8..16].copy_from_slice(&value.to_le_bytes());
        bytes[16..16 + payload.len()].copy_from_slice(payload);
        bytes
    }

    #[test]
    fn known_messages_are_understood() {
        use FromWorker::*;
        let decode = |kind, value, payload: &[u8]| {
            FromWorker::decode(&message(kind, payload.len() as u32, value, payload), 2)
        };
        assert_eq!(decode(16, 0, b""), Ok(Start));
        assert_eq!(decode(17, 0, b""), Ok(Stop));
        assert_eq!(decode(21, 0, b""), Ok(Pause));
        assert_eq!(decode(22, 0, b""), Ok(Resume));
        assert_eq!(decode(23, 0, b""), Ok(Save));
        assert_eq!(decode(19, 0x2007, b""), Ok(OpenPort { channel: 7 }));
        assert_eq!(decode(20, 0x27FF, b""), Ok(ClosePort { channel: 2047 }));
        assert_eq!(decode(25, 7, b""), Ok(TurnOver { slept: 7 }));
        let ranges: Vec<u8> = (1..=32u64).flat_map(u64::to_le_bytes).collect();
        let Ok(Wrote(some)) = decode(24, 0, &ranges[..32]) else {
            panic!()
        };
        assert_eq!(some.iter().collect::<Vec<_>>(), [(1, 2), (3, 4)]);
        let Ok(Wrote(most)) = decode(24, 0, &ranges) else {
            panic!()
        };
        assert_eq!(most.iter().count(), 16);
        assert_eq!(most.iter().last(), Some((31, 32)));
        let Ok(DeliverMessage {
            vp: 1,
            sint,
            kind,
            payload,
        }) = decode(18, 2 | 1 << 8 | 1 << 32, b"hello")
        else {
            panic!()
        };
        assert_eq!((sint, kind, payload.as_slice()), (2, 1, &b"hello"[..]));
        assert!(decode(18, 2 | 1 << 32, &[1; 240]).is_ok());
    }

    #[test]
    fn everything_else_is_refused() {
        let refused = |bytes: &[u8]| FromWorker::decode(bytes, 2).unwrap_err().flow();
        assert_eq!(refused(&[]), Flow::LinkUnknown);
        assert_eq!(refused(&message(16, 0, 0, &[])[..271]), Flow::LinkUnknown);
        assert_eq!(refused(&[0; 273]), Flow::LinkUnknown);
        assert_eq!(refused(&message(0, 0, 0, &[])), Flow::LinkUnknown);
        assert_eq!(refused(&message(26, 0, 0, &[])), Flow::LinkUnknown);
        let mut version = message(16, 0, 0, &[]);
        version[0] = 2;
        assert_eq!(refused(&version), Flow::LinkUnknown);
        let cases = [
            (16, 1, 0, &b"x"[..], Flow::LinkStart),
            (16, 0, 1, b"", Flow::LinkStart),
            (17, 0, 0, b"not zero", Flow::LinkStop),
            (21, 0, 1, b"", Flow::LinkPause),
            (22, 1, 0, b"x", Flow::LinkResume),
            (23, 0, 1 << 32, b"", Flow::LinkSave),
            (18, 0, 2, b"", Flow::LinkDeliverMessage), // type 0
            (18, 0, 16 | 1 << 32, b"", Flow::LinkDeliverMessage), // SINT 16
            (18, 0, 2 | 2 << 8 | 1 << 32, b"", Flow::LinkDeliverMessage), // VP 2
            (18, 0, 2 | 1 << 16 | 1 << 32, b"", Flow::LinkDeliverMessage), // reserved
            (18, 241, 2 | 1 << 32, b"", Flow::LinkDeliverMessage),
            (18, 257, 2 | 1 << 32, b"", Flow::LinkDeliverMessage),
            (18, u32::MAX, 2 | 1 << 32, b"", Flow::LinkDeliverMessage),
            (19, 0, 7, b"", Flow::LinkOpenPort),
            (19, 0, 0x2000, b"", Flow::LinkOpenPort),
            (19, 0, 0x1_0000_2007, b"", Flow::LinkOpenPort),
            (20, 0, 0x2800, b"", Flow::LinkClosePort),
            (20, 1, 0x2007, b"x", Flow::LinkClosePort),
            (24, 0, 0, b"", Flow::LinkWrote),
            (24, 15, 0, &[1; 15], Flow::LinkWrote),
            (24, 16, 1, &[1; 16], Flow::LinkWrote),
            (25, 1, 0, b"x", Flow::LinkTurnOver),
        ];
        for (kind, length, value, payload, flow) in cases {
            let packet = message(kind, length, value, payload);
            assert_eq!(refused(&packet), flow);
            let counters = Counters::anonymous().unwrap();
            assert!(FromWorker::counted(&packet, 2, &counters).is_err());
            assert_eq!(counters.get(flow).rejected, 1);
        }
    }

    #[test]
    fn what_we_send_has_the_agreed_layout() {
        let post = ToWorker::PostMessage {
            connection: 4,
            kind: 1,
            payload: b"abc",
        };
        assert_eq!(post.encode()[..], message(1, 3, 4 | 1 << 32, b"abc"));
        let crash = ToWorker::End(End::GuestCrash([1, 2, 3, 4, 5, 6])).encode();
        assert_eq!(crash[2..16], message(3, 48, 4, &[])[2..16]);
        assert_eq!(crash[56..64], 6u64.to_le_bytes());
        let turn = ToWorker::Turn { wait: 5 };
        assert_eq!(turn.encode()[..], message(7, 0, 5, &[]));
        let long = "é".repeat(200);
        let note = ToWorker::Note(&long).encode();
        assert_eq!(note[4..8], 256u32.to_le_bytes());
        assert!(std::str::from_utf8(&note[16..]).is_ok());
    }
}
