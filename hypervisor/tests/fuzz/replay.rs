//! Any recording, played to a guest: what a hostile guest and a hostile worker could do together.

use super::bytes::Bytes;
use std::io;
use teuthis_hypervisor::{
    clock::Clock,
    counters::Counters,
    guest::Guest,
    link::{FromWorker, Payload},
    lockstep::Lockstep,
    memory::GuestMemory,
    processor::{BootState, Processor, soft::SoftProcessor},
    recording::{Entries, Entry, Input, Malformed, Player, Point, Stop},
};

const MEMORY: u64 = 1 << 20;
const CODE: u64 = 0x1_0000;
/// A guest on its own tables runs no longer.
const MOST_INSTRUCTIONS: u64 = 300_000;

pub fn run(data: &[u8]) {
    let mut bytes = Bytes(data);
    let recording = match bytes.byte() % 4 {
        0 => bytes.0.to_vec(),
        _ => recording(&mut bytes),
    };
    let counters = Counters::anonymous().unwrap();
    let memory = GuestMemory::anonymous(MEMORY).unwrap();
    let put = |place, value: u64| memory.write(place, value).unwrap();
    put(0x1000, 0x2003); // page map
    put(0x2000, 0x83); // one 1 GiB page at 0
    put(0x5010, 0x00AF_9B00_0000_FFFF);
    let boot = BootState {
        rip: CODE,
        rsi: 0,
        rsp: 0x2_0000,
        cr3: 0x1000,
        gdt_base: 0x5000,
        gdt_limit: 31,
    };
    let clock = Clock::deterministic(1);
    let processor = SoftProcessor::new(memory, boot, clock.clone());
    let guest = Guest::new(processor.hypercall_code(), 1, clock, 0, counters.clone());
    let entries = Entries::new(&recording[..], MEMORY);
    let player = Player::new(entries, io::sink(), io::sink(), true, counters);
    let stop = Lockstep::new(Box::new(processor), guest, player, MOST_INSTRUCTIONS).replay();
    match stop {
        Stop::Malformed(Malformed::Kind(kind)) => assert!(!(1..=6).contains(&kind)),
        Stop::End(_) | Stop::Until | Stop::Parted(_) | Stop::Cut | Stop::Malformed(_) => {}
    }
}

/// One whose entries are well formed: guest code, then turns whose points may be anything.
fn recording(bytes: &mut Bytes) -> Vec<u8> {
    let mut recording = Vec::new();
    let count = bytes.below(512) as usize;
    let code = bytes.take(count).to_vec();
    let memory = |offset, bytes: Vec<u8>| Entry::Memory { offset, bytes };
    if !code.is_empty() {
        memory(CODE, code).encode(&mut recording);
    }
    while !bytes.0.is_empty() {
        let point = Point {
            instructions: bytes.value(),
            digest: bytes.value(),
        };
        let channel = bytes.number(2) as u16 % 2048;
        let entry = match bytes.byte() % 8 {
            0 => Entry::Turn(point),
            1 => Entry::Input(Input::Doorbell(channel)),
            2 => {
                let count = bytes.below(241) as usize;
                let payload = Payload::new(bytes.take(count)).unwrap();
                Entry::Input(Input::Message(FromWorker::DeliverMessage {
                    vp: 0,
                    sint: bytes.byte() % 16,
                    kind: bytes.number(4) as u32,
                    payload,
                }))
            }
            3 => Entry::Input(Input::Message(FromWorker::OpenPort { channel })),
            4 => Entry::Input(Input::Message(FromWorker::Stop)),
            5 => Entry::Over {
                slept: bytes.value(),
            },
            6 => Entry::End {
                point,
                reason: bytes.number(1),
            },
            _ => {
                let count = 1 + bytes.below(64) as usize;
                memory(bytes.below(MEMORY), bytes.take(count).to_vec())
            }
        };
        entry.encode(&mut recording);
    }
    recording
}
