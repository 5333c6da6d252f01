//! Hypercalls: the page the guest calls through, the control word, and the two calls there are
//! (TLFS 3 and 11). A slow call's input is copied out of guest RAM once; only the copy is used.

use super::Worker;
use crate::{
    counters::Counters,
    flows::{Flow, Reject, values},
    link::{SYNIC_PAYLOAD, channel_of},
    memory::{GuestMemory, PAGE_SIZE},
    record::{Malformed, Record},
};

const POST_MESSAGE: u32 = values::HYPERCALL_POST_MESSAGE;
const SIGNAL_EVENT: u32 = values::HYPERCALL_SIGNAL_EVENT;
const POST_INPUT: usize = Flow::HypercallPostMessage.max_bytes() as usize;
const CONNECTIONS: [u64; 2] = [
    values::HYPERCALL_POST_MESSAGE_CONNECTION,
    values::HYPERCALL_POST_MESSAGE_INITIATE_CONTACT_CONNECTION,
];

/// Control word: call code in bits 0-15, then what follows.
const FAST: u64 = 1 << 16;
/// Variable header size, repetitions and every reserved bit: 0 in both calls.
const MUST_BE_ZERO: u64 = !0x1_FFFF;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum Status {
    Success = 0,
    InvalidCode = 2,
    InvalidInput = 3,
    InvalidAlignment = 4,
    InvalidParameter = 5,
    InvalidConnection = 18,
    InsufficientBuffers = 19,
}

/// The channels that the worker has opened: which connections the guest may signal.
#[derive(Default)]
pub struct Channels([u64; 32]);

impl Channels {
    pub fn state(&mut self, record: &mut Record) -> Result<(), Malformed> {
        record.field(&mut self.0)
    }

    pub fn set(&mut self, channel: u16, open: bool) {
        if let Some(word) = self.0.get_mut(usize::from(channel / 64)) {
            let bit = 1 << (channel % 64);
            *word = if open { *word | bit } else { *word & !bit };
        }
    }

    fn is_open(&self, channel: u16) -> bool {
        let word = self.0.get(usize::from(channel / 64));
        word.is_some_and(|word| word >> (channel % 64) & 1 != 0)
    }
}

/// Carries out a hypercall; the guest finds the status in RAX.
pub fn call(
    control: u64,
    input: u64,
    memory: &GuestMemory,
    channels: &Channels,
    worker: &mut impl Worker,
    counters: &Counters,
) -> Status {
    let (flow, result) = match control as u16 as u32 {
        POST_MESSAGE => (
            Flow::HypercallPostMessage,
            post_message(control, input, memory, worker),
        ),
        SIGNAL_EVENT => (
            Flow::HypercallSignalEvent,
            signal_event(control, input, channels, worker),
        ),
        _ => (Flow::HypercallUnknown, Err(Reject::HypercallUnknownCode)),
    };
    match result {
        Ok(bytes) => {
            counters.accept(flow, bytes);
            Status::Success
        }
        Err(kind) => {
            counters.reject(kind);
            status(kind)
        }
    }
}

/// How the guest is told of a refusal.
fn status(kind: Reject) -> Status {
    match kind {
        Reject::HypercallPostMessageAlignment => Status::InvalidAlignment,
        Reject::HypercallPostMessageConnection | Reject::HypercallSignalEventConnection => {
            Status::InvalidConnection
        }
        Reject::HypercallPostMessageParameter | Reject::HypercallSignalEventFlag => {
            Status::InvalidParameter
        }
        Reject::HypercallPostMessageFull => Status::InsufficientBuffers,
        Reject::HypercallPostMessageControl | Reject::HypercallSignalEventControl => {
            Status::InvalidInput
        }
        _ => Status::InvalidCode,
    }
}

/// HvPostMessage, slow: u32 connection, u32 reserved, u32 type, u32 size, 240 bytes of payload.
fn post_message(
    control: u64,
    input: u64,
    memory: &GuestMemory,
    worker: &mut impl Worker,
) -> Result<u64, Reject> {
    if control & (MUST_BE_ZERO | FAST) != 0 {
        return Err(Reject::HypercallPostMessageControl);
    }
    if !input.is_multiple_of(8) || input % PAGE_SIZE > PAGE_SIZE - POST_INPUT as u64 {
        return Err(Reject::HypercallPostMessageAlignment);
    }
    let mut copy = [0; POST_INPUT];
    memory
        .offset(input)
        .and_then(|offset| memory.read_bytes(offset, &mut copy))
        .ok_or(Reject::HypercallPostMessageControl)?;
    let (header, payload) = copy.split_at(POST_INPUT - SYNIC_PAYLOAD);
    let word = |index: usize| {
        let bytes = header.get(index * 4..).and_then(|rest| rest.first_chunk());
        bytes.map_or(0, |bytes| u32::from_le_bytes(*bytes))
    };
    let (connection, reserved, kind, size) = (word(0), word(1), word(2), word(3));
    if !CONNECTIONS.contains(&connection.into()) {
        return Err(Reject::HypercallPostMessageConnection);
    }
    let payload = payload.get(..size as usize);
    // Types with the highest bit set are the hypervisor's own.
    let (Some(payload), 0, 1..=0x7FFF_FFFF) = (payload, reserved, kind) else {
        return Err(Reject::HypercallPostMessageParameter);
    };
    if !worker.post_message(connection, kind, payload) {
        return Err(Reject::HypercallPostMessageFull);
    }
    Ok(POST_INPUT as u64)
}

/// HvSignalEvent, fast: connection in the low, flag number in the high half of the parameter.
fn signal_event(
    control: u64,
    input: u64,
    channels: &Channels,
    worker: &mut impl Worker,
) -> Result<u64, Reject> {
    if control & MUST_BE_ZERO != 0 || control & FAST == 0 {
        return Err(Reject::HypercallSignalEventControl);
    }
    let connection = Reject::HypercallSignalEventConnection;
    let channel = channel_of(input & 0xFFFF_FFFF).ok_or(connection)?;
    if !channels.is_open(channel) {
        return Err(connection);
    }
    if input >> 32 != 0 {
        return Err(Reject::HypercallSignalEventFlag);
    }
    worker.signal(channel);
    Ok(8)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tlfs::testing::Recorder;

    const POST: u64 = 0x5C;
    const SIGNAL: u64 = 0x1_005D;

    struct Fixture {
        memory: GuestMemory,
        channels: Channels,
        worker: Recorder,
        counters: Counters,
    }

    impl Fixture {
        fn new() -> Self {
            let mut channels = Channels::default();
            channels.set(7, true);
            channels.set(2047, true);
            Self {
                memory: GuestMemory::anonymous(0x10000).unwrap(),
                channels,
                worker: Recorder::default(),
                counters: Counters::anonymous().unwrap(),
            }
        }

        fn call(&mut self, control: u64, input: u64) -> Status {
            let Self {
                memory,
                channels,
                worker,
                counters,
            } = self;
            call(control, input, memory, channels, worker, counters)
        }

        /// Calls with an input block at `at`.
        fn post(&mut self, at: u64, header: [u32; 4]) -> Status {
            for (i, word) in (0u64..).zip(header) {
                let _ = self.memory.write(at + 4 * i, word);
            }
            self.call(POST, at)
        }
    }

    #[test]
    fn a_message_reaches_the_worker() {
        let mut guest = Fixture::new();
        guest.memory.write_bytes(0x1010, b"hello").unwrap();
        assert_eq!(guest.post(0x1000, [4, 0, 1, 5]), Status::Success);
        assert_eq!(guest.post(0x2F00, [1, 0, 1, 240]), Status::Success);
        assert_eq!(guest.worker.posted[0], (4, 1, b"hello".to_vec()));
        assert_eq!(guest.worker.posted[1], (1, 1, vec![0; 240]));
    }

    #[test]
    fn bad_messages_get_their_status() {
        use Status::*;
        let mut guest = Fixture::new();
        let cases = [
            (0x1004, [1, 0, 1, 0], InvalidAlignment),
            (0x1F08, [1, 0, 1, 0], InvalidAlignment),
            (0x1_0000, [1, 0, 1, 0], InvalidInput),
            (u64::MAX - 0xFFF, [1, 0, 1, 0], InvalidInput),
            (0x1000, [1, 0, 1, 241], InvalidParameter),
            (0x1000, [1, 0, 1, u32::MAX], InvalidParameter),
            (0x1000, [1, 0, 0, 0], InvalidParameter),
            (0x1000, [1, 0, 0x8000_0010, 0], InvalidParameter),
            (0x1000, [1, 1, 1, 0], InvalidParameter),
            (0x1000, [2, 0, 1, 0], InvalidConnection),
            (0x1000, [0, 0, 1, 0], InvalidConnection),
            (0x1000, [0x2007, 0, 1, 0], InvalidConnection),
        ];
        for (at, header, status) in cases {
            assert_eq!(guest.post(at, header), status, "{at:#x} {header:?}");
        }
        assert_eq!(guest.call(POST | FAST, 0x1000), InvalidInput);
        assert_eq!(guest.call(POST | 1 << 17, 0x1000), InvalidInput);
        assert_eq!(guest.call(POST | 1 << 32, 0x1000), InvalidInput);
        assert!(guest.worker.posted.is_empty());
        guest.worker.full = true;
        assert_eq!(guest.post(0x1000, [1, 0, 1, 0]), InsufficientBuffers);
        let count = guest.counters.get(Flow::HypercallPostMessage);
        assert_eq!((count.count, count.rejected), (0, 16));
    }

    #[test]
    fn only_open_channels_can_be_signalled() {
        use Status::*;
        let mut guest = Fixture::new();
        assert_eq!(guest.call(SIGNAL, 0x2007), Success);
        assert_eq!(guest.call(SIGNAL, 0x27FF), Success);
        assert_eq!(guest.worker.signalled, [7, 2047]);
        for input in [0, 7, 0x2000, 0x2008, 0x2807, 0x1_2007, 0xFFFF_FFFF] {
            assert_eq!(guest.call(SIGNAL, input), InvalidConnection);
        }
        assert_eq!(guest.call(SIGNAL, 0x2007 | 1 << 32), InvalidParameter);
        assert_eq!(guest.call(SIGNAL, 0x2007 | 1 << 63), InvalidParameter);
        assert_eq!(guest.call(0x5D, 0x2007), InvalidInput);
        guest.channels.set(7, false);
        assert_eq!(guest.call(SIGNAL, 0x2007), InvalidConnection);
        assert_eq!(guest.worker.signalled.len(), 2);
    }

    #[test]
    fn every_other_call_is_unknown() {
        let mut guest = Fixture::new();
        for code in (0..=0xFFFF).filter(|code| ![0x5C, 0x5D].contains(code)) {
            assert_eq!(guest.call(code, u64::MAX), Status::InvalidCode);
            assert_eq!(guest.call(code | FAST, u64::MAX), Status::InvalidCode);
        }
    }
}
