//! Any packet of a worker that somebody has taken over.

use super::bytes::Bytes;
use teuthis_hypervisor::{counters::Counters, link::FromWorker};

pub fn run(data: &[u8]) {
    let mut bytes = Bytes(data);
    let counters = Counters::anonymous().unwrap();
    while !bytes.0.is_empty() {
        let mut packet = [0; 272];
        let version = if bytes.byte() % 16 == 15 {
            bytes.byte()
        } else {
            1
        };
        let kind = 12 + bytes.byte() % 16;
        let length = [0, 8, 240, 241, 256, 257, bytes.number(4)][bytes.below(7) as usize];
        packet[0] = version;
        packet[2] = kind;
        packet[4..8].copy_from_slice(&(length as u32).to_le_bytes());
        packet[8..16].copy_from_slice(&value(&mut bytes).to_le_bytes());
        let count = usize::from(bytes.byte());
        let payload = bytes.take(count);
        packet[16..16 + payload.len()].copy_from_slice(payload);
        let size = if bytes.byte() % 32 == 31 {
            bytes.below(272) as usize
        } else {
            272
        };
        match FromWorker::counted(&packet[..size], 2, &counters) {
            Ok(FromWorker::DeliverMessage { payload, .. }) => {
                assert!(payload.as_slice().len() <= 240)
            }
            Ok(_) => {}
            Err(kind) => assert!(kind.flow().id().starts_with("link.")),
        }
    }
}

fn value(bytes: &mut Bytes) -> u64 {
    match bytes.byte() % 4 {
        0 => 0,
        1 => 2 | 1 << 32,
        2 => 0x2000 | bytes.number(2),
        _ => bytes.value(),
    }
}
