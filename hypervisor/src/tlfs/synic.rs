//! Synthetic interrupt controller of one virtual processor: messages and event flags from the worker
//! to the guest (TLFS 11). The guest may run while we write to its pages.

use super::{Vectors, page::PageRegister};
use crate::{
    flows::{Reject, values},
    link::{Payload, SYNIC_PAYLOAD},
    memory::GuestMemory,
    record::{Malformed, Record, check},
};
use std::{
    collections::VecDeque,
    sync::atomic::{Ordering, fence},
};

const SCONTROL: u32 = values::MSR_SYNIC_SCONTROL as u32;
const SVERSION: u32 = values::MSR_SYNIC_SVERSION as u32;
const SIEFP: u32 = values::MSR_SYNIC_SIEFP as u32;
const SIMP: u32 = values::MSR_SYNIC_SIMP as u32;
const EOM: u32 = values::MSR_SYNIC_EOM as u32;
const SINT0: u32 = values::MSR_SYNIC_SINT0 as u32;
const SINT15: u32 = values::MSR_SYNIC_SINT15 as u32;

/// The interrupt source that VMBus uses, for messages and for channel events.
const VMBUS_SINT: usize = values::SYNIC_MESSAGE_SINT as usize;
const QUEUE_MAX: usize = values::SYNIC_MESSAGE_QUEUE_MAX as usize;

const ENABLE: u64 = 1;
const VERSION: u64 = 1;

/// SINT: vector in bits 0-7.
const MASKED: u64 = 1 << 16;
const AUTO_EOI: u64 = 1 << 17;
const POLLING: u64 = 1 << 18;

/// A slot of the message page and of the event page has 256 bytes. Of a message: u32 type, u8
/// size, u8 flags, u16 reserved, u64 origin, payload.
const SLOT: u64 = 256;
const MESSAGE_SIZE: u64 = 4;
const MESSAGE_FLAGS: u64 = 5;
const MESSAGE_PAYLOAD: u64 = 16;
/// Another message waits: the guest writes EOM when it has emptied the slot.
const MESSAGE_PENDING: u8 = 1;

#[derive(Clone, Copy, Debug)]
pub struct Message {
    /// 0 to 15.
    pub sint: u8,
    /// Never 0, which marks an empty slot.
    pub kind: u32,
    pub payload: Payload,
}

pub struct Synic {
    control: u64,
    siefp: PageRegister,
    simp: PageRegister,
    sints: [u64; 16],
    queue: VecDeque<Message>,
}

impl Default for Synic {
    fn default() -> Self {
        Self {
            control: 0,
            siefp: PageRegister::default(),
            simp: PageRegister::default(),
            sints: [MASKED; 16],
            queue: VecDeque::with_capacity(QUEUE_MAX),
        }
    }
}

impl Message {
    /// As it stands in a saved machine: SINT, type, payload.
    fn saved(&self) -> (u8, u32, Vec<u8>) {
        (self.sint, self.kind, self.payload.as_slice().to_vec())
    }

    fn restored(sint: u8, kind: u32, payload: &[u8]) -> Option<Self> {
        let payload = Payload::new(payload)?;
        (sint < 16 && kind != 0).then_some(Self {
            sint,
            kind,
            payload,
        })
    }
}

/// Which bits of a SINT register a guest may set together.
fn is_sint(value: u64) -> bool {
    // AutoEOI is deprecated by our hints and not offered; exceptions have vectors below 16.
    let raises = value & (MASKED | POLLING) == 0;
    !(value & MASKED == 0 && value & AUTO_EOI != 0 || raises && value as u8 <= 15)
}

impl Synic {
    /// Saves or restores the registers and the messages that wait.
    pub fn state(&mut self, record: &mut Record, memory: &GuestMemory) -> Result<(), Malformed> {
        record.field(&mut self.control)?;
        self.siefp.state(record, memory)?;
        self.simp.state(record, memory)?;
        record.field(&mut self.sints)?;
        check(self.sints.into_iter().all(is_sint), "a SINT register")?;
        let mut waiting = self.queue.len() as u16;
        record.field(&mut waiting)?;
        check(usize::from(waiting) <= QUEUE_MAX, "too many messages")?;
        let mut queue = std::mem::take(&mut self.queue).into_iter();
        for _ in 0..waiting {
            let message = queue.next().map(|message| message.saved());
            let (mut sint, mut kind, mut payload) = message.unwrap_or_default();
            record.field(&mut sint)?;
            record.field(&mut kind)?;
            record.field(&mut payload)?;
            let message = Message::restored(sint, kind, &payload);
            self.queue
                .push_back(message.ok_or(Malformed::Value("a message"))?);
        }
        Ok(())
    }

    pub fn read(&self, msr: u32) -> Option<u64> {
        Some(match msr {
            SCONTROL => self.control,
            SVERSION => VERSION,
            SIEFP => self.siefp.value(),
            SIMP => self.simp.value(),
            EOM => 0,
            SINT0..=SINT15 => *self.sints.get((msr - SINT0) as usize)?,
            _ => return None,
        })
    }

    /// An error is #GP. Every write may let queued messages through.
    pub fn write(
        &mut self,
        msr: u32,
        value: u64,
        memory: &GuestMemory,
        vectors: &mut Vectors,
    ) -> Result<(), Reject> {
        let page = || PageRegister::checked(value, memory).ok_or(Reject::MsrSynicPage);
        match msr {
            SCONTROL => self.control = value,
            SIEFP => self.siefp = page()?,
            SIMP => self.simp = page()?,
            EOM => {}
            SINT0..=SINT15 => {
                if !is_sint(value) {
                    return Err(Reject::MsrSynicValue);
                }
                if let Some(sint) = self.sints.get_mut((msr - SINT0) as usize) {
                    *sint = value;
                }
            }
            _ => return Err(Reject::MsrSynicReadOnly),
        }
        self.deliver(memory, vectors);
        Ok(())
    }

    /// Whether another message may be queued.
    pub fn has_room(&self) -> bool {
        self.queue.len() < QUEUE_MAX
    }

    /// Queues a message, which reaches the guest as soon as its slot is free. Callers ask
    /// [`Synic::has_room`] first; without room the message is dropped and `false` returned.
    pub fn post(&mut self, message: Message, memory: &GuestMemory, vectors: &mut Vectors) -> bool {
        if !self.has_room() {
            return false;
        }
        self.queue.push_back(message);
        self.deliver(memory, vectors);
        true
    }

    /// Sets the event flag of a VMBus channel. `false`: the guest has not enabled its events.
    pub fn signal(&self, channel: u16, memory: &GuestMemory, vectors: &mut Vectors) -> bool {
        let sint = self.sints.get(VMBUS_SINT).copied().unwrap_or(MASKED);
        let Some(page) = self.siefp.page(memory) else {
            return false;
        };
        if self.control & ENABLE == 0 || sint & MASKED != 0 || u64::from(channel) >= SLOT * 8 {
            return false;
        }
        let byte = page + VMBUS_SINT as u64 * SLOT + u64::from(channel / 8);
        let flag = 1 << (channel % 8);
        let Some(flags) = memory.fetch_or(byte, flag) else {
            return false;
        };
        if flags & flag == 0 {
            raise(sint, vectors);
        }
        true
    }

    /// Moves queued messages into free slots, in order for each SINT.
    fn deliver(&mut self, memory: &GuestMemory, vectors: &mut Vectors) {
        if self.queue.is_empty() || self.control & ENABLE == 0 {
            return;
        }
        let Some(page) = self.simp.page(memory) else {
            return;
        };
        let Self { sints, queue, .. } = self;
        let mut blocked = 0u16;
        queue.retain(|message| {
            let sint = sints.get(usize::from(message.sint)).copied();
            let sint = sint.unwrap_or(MASKED);
            let own = 1u16.checked_shl(message.sint.into()).unwrap_or(0);
            if sint & MASKED != 0 || blocked & own != 0 {
                return true;
            }
            let slot = page + u64::from(message.sint) * SLOT;
            if memory.read::<u32>(slot) != Some(0) {
                let _ = memory.fetch_or(slot + MESSAGE_FLAGS, MESSAGE_PENDING);
                // A guest that emptied the slot before it could see the flag writes no EOM.
                if memory.read::<u32>(slot) != Some(0) {
                    blocked |= own;
                    return true;
                }
            }
            if write_message(message, slot, memory).is_some() {
                raise(sint, vectors);
            }
            false
        });
    }
}

fn write_message(message: &Message, slot: u64, memory: &GuestMemory) -> Option<()> {
    let payload = message.payload.as_slice();
    memory.fill(slot, SLOT, 0)?;
    memory.write_bytes(slot + MESSAGE_PAYLOAD, payload)?;
    memory.write(slot + MESSAGE_SIZE, payload.len() as u8)?;
    // The type last: it is what makes the slot a message.
    fence(Ordering::Release);
    memory.write(slot, message.kind)
}

/// A polling SINT gets its message without an interrupt.
fn raise(sint: u64, vectors: &mut Vectors) {
    if sint & POLLING == 0 {
        vectors.insert(sint as u8);
    }
}

const _: () = assert!(MESSAGE_PAYLOAD as usize + SYNIC_PAYLOAD == SLOT as usize);

#[cfg(test)]
mod tests {
    use super::*;

    const SINT2: u32 = SINT0 + 2;
    const VECTOR: u64 = 0xF3;
    const MESSAGES: u64 = 0x4000;
    const EVENTS: u64 = 0x5000;
    const SLOT2: u64 = MESSAGES + 2 * SLOT;

    struct Fixture {
        synic: Synic,
        memory: GuestMemory,
        vectors: Vectors,
    }

    impl Fixture {
        fn new() -> Self {
            Self {
                synic: Synic::default(),
                memory: GuestMemory::anonymous(0x10000).unwrap(),
                vectors: Vectors::default(),
            }
        }

        /// As hv_vmbus does it.
        fn enabled() -> Self {
            let mut this = Self::new();
            this.write(SIMP, MESSAGES | 1).unwrap();
            this.write(SIEFP, EVENTS | 1).unwrap();
            this.write(SINT2, VECTOR).unwrap();
            this.write(SCONTROL, 1).unwrap();
            this
        }

        fn write(&mut self, msr: u32, value: u64) -> Result<(), Reject> {
            self.synic
                .write(msr, value, &self.memory, &mut self.vectors)
        }

        fn post(&mut self, sint: u8, text: &str) -> bool {
            let payload = Payload::new(text.as_bytes()).unwrap();
            let message = Message {
                sint,
                kind: 1,
                payload,
            };
            self.synic.post(message, &self.memory, &mut self.vectors)
        }

        fn signal(&mut self, channel: u16) -> bool {
            self.synic.signal(channel, &self.memory, &mut self.vectors)
        }

        /// What the guest finds in the slot, which it empties.
        fn take(&mut self) -> Option<(String, bool)> {
            let kind = self.memory.read::<u32>(SLOT2).unwrap();
            let size = self.memory.read::<u8>(SLOT2 + 4).unwrap();
            let flags = self.memory.read::<u8>(SLOT2 + 5).unwrap();
            let mut text = vec![0; size.into()];
            self.memory.read_bytes(SLOT2 + 16, &mut text).unwrap();
            self.memory.write(SLOT2, 0u32).unwrap();
            (kind != 0).then(|| (String::from_utf8(text).unwrap(), flags & 1 != 0))
        }

        fn raised(&mut self) -> Vec<u8> {
            self.vectors.take().collect()
        }
    }

    #[test]
    fn messages_come_one_by_one_with_eom() {
        let mut guest = Fixture::enabled();
        for text in ["one", "two", "three"] {
            assert!(guest.post(2, text));
        }
        assert_eq!(guest.raised(), [0xF3]);
        assert_eq!(guest.take(), Some(("one".into(), true)));
        assert_eq!(guest.raised(), []);
        guest.write(EOM, 0).unwrap();
        assert_eq!(guest.raised(), [0xF3]);
        assert_eq!(guest.take(), Some(("two".into(), true)));
        guest.write(EOM, 123).unwrap();
        assert_eq!(guest.take(), Some(("three".into(), false)));
        guest.write(EOM, 0).unwrap();
        assert_eq!(guest.take(), None);
    }

    #[test]
    fn messages_wait_until_the_guest_is_ready() {
        let mut guest = Fixture::new();
        assert!(guest.post(2, "early"));
        guest.write(SIMP, MESSAGES | 1).unwrap();
        guest.write(SCONTROL, 1).unwrap();
        assert_eq!(guest.take(), None);
        guest.write(SINT2, VECTOR).unwrap();
        assert_eq!(guest.take(), Some(("early".into(), false)));
        guest.write(SINT2, VECTOR | MASKED).unwrap();
        guest.post(2, "masked");
        assert_eq!(guest.take(), None);
    }

    #[test]
    fn a_blocked_slot_does_not_block_others() {
        let mut guest = Fixture::enabled();
        guest.write(SINT0 + 3, 0x40).unwrap();
        guest.post(2, "one");
        guest.post(2, "two");
        guest.post(3, "other");
        assert_eq!(guest.raised(), [0x40, 0xF3]);
        assert_eq!(guest.memory.read::<u32>(SLOT2 + SLOT), Some(1));
    }

    #[test]
    fn the_queue_is_bounded() {
        let mut guest = Fixture::enabled();
        // One in the slot, 64 in the queue.
        for _ in 0..=QUEUE_MAX {
            assert!(guest.post(2, "x"));
        }
        assert!(!guest.synic.has_room());
        assert!(!guest.post(2, "too many"));
    }

    #[test]
    fn a_flag_raises_the_vector_once() {
        let mut guest = Fixture::enabled();
        assert!(guest.signal(9));
        assert!(guest.signal(9));
        assert_eq!(guest.raised(), [0xF3]);
        assert_eq!(guest.memory.read::<u8>(EVENTS + 0x201), Some(2));
        assert!(guest.signal(9));
        assert_eq!(guest.raised(), []);
        assert!(guest.signal(2047));
        assert!(!guest.signal(2048));
        guest.write(SIEFP, 0).unwrap();
        assert!(!guest.signal(9));
    }

    #[test]
    fn polling_gives_no_interrupt() {
        let mut guest = Fixture::enabled();
        guest.write(SINT2, POLLING).unwrap();
        guest.post(2, "quiet");
        assert_eq!(guest.raised(), []);
        assert_eq!(guest.take(), Some(("quiet".into(), false)));
    }

    #[test]
    fn registers_refuse_what_they_must() {
        let mut guest = Fixture::new();
        assert_eq!(guest.synic.read(SINT2), Some(MASKED));
        assert_eq!(guest.synic.read(SVERSION), Some(1));
        assert_eq!(guest.synic.read(EOM + 1), None);
        assert_eq!(guest.write(SVERSION, 1), Err(Reject::MsrSynicReadOnly));
        assert_eq!(guest.write(SIMP, 0x10_0000 | 1), Err(Reject::MsrSynicPage));
        assert_eq!(guest.write(SIEFP, u64::MAX), Err(Reject::MsrSynicPage));
        assert_eq!(guest.write(SINT2, 15), Err(Reject::MsrSynicValue));
        assert_eq!(
            guest.write(SINT2, VECTOR | AUTO_EOI),
            Err(Reject::MsrSynicValue)
        );
        assert_eq!(
            guest.write(SINT15 + 1, VECTOR),
            Err(Reject::MsrSynicReadOnly)
        );
        assert_eq!(guest.synic.read(SINT2), Some(MASKED));
        guest.write(SINT2, 15 | MASKED).unwrap();
    }
}
