//! Any change to a saved machine whose checksum fits again, and a while of life after it.
//!
//! On the software processor; with `TEUTHIS_TEST_PROCESSOR=kvm` on the host's, whose state the
//! kernel judges too.

use std::{env, fs::File};

use super::bytes::Bytes;
use teuthis_hypervisor::{
    clock::Clock,
    counters::Counters,
    flows::Flow,
    memory::GuestMemory,
    processor::{BootState, Processor, kvm::KvmProcessor, soft::SoftProcessor},
    record::{HEADER_BYTES, Malformed, Record, checksum},
    tlfs::Partition,
};

const MEMORY: u64 = 0x1_0000;

struct Machine {
    processor: Box<dyn Processor>,
    partition: Partition,
}

fn is_on_kvm() -> bool {
    env::var("TEUTHIS_TEST_PROCESSOR").is_ok_and(|kind| kind == "kvm")
}

impl Machine {
    fn new() -> Self {
        let memory = GuestMemory::anonymous(MEMORY).unwrap();
        let boot = BootState::default();
        let (processor, clock): (Box<dyn Processor>, _) = if is_on_kvm() {
            let device = File::options().read(true).write(true).open("/dev/kvm");
            let processor = KvmProcessor::new(device.unwrap().into(), memory, boot).unwrap();
            let clock = processor.clock().clone();
            (Box::new(processor), clock)
        } else {
            let clock = Clock::deterministic(1);
            let processor = SoftProcessor::new(memory, boot, clock.clone());
            (Box::new(processor), clock)
        };
        let counters = Counters::anonymous().unwrap();
        let partition = Partition::new(clock, 0, 1, processor.hypercall_code(), counters);
        Self {
            processor,
            partition,
        }
    }

    fn state(&mut self, record: &mut Record) -> Result<(), Malformed> {
        self.processor.state(record)?;
        self.partition.state(record, self.processor.memory())
    }

    fn save(&mut self) -> Vec<u8> {
        let mut record = Record::saving(MEMORY);
        self.state(&mut record).unwrap();
        record.finish()
    }
}

pub fn run(data: &[u8]) {
    let mut bytes = Bytes(data);
    let mut saved = Machine::new().save();
    let end = saved.len() - 8;
    for _ in 0..bytes.below(16) {
        let at = HEADER_BYTES + bytes.below((end - HEADER_BYTES) as u64) as usize;
        let value = bytes.value().to_le_bytes();
        let size = (end - at).min(8);
        saved[at..at + size].copy_from_slice(&value[..size]);
    }
    match bytes.byte() % 8 {
        7 => saved = bytes.0.to_vec(),
        6 => saved[bytes.below(HEADER_BYTES as u64) as usize] ^= 1 << (bytes.byte() % 8),
        5 => saved.truncate(bytes.below(end as u64) as usize),
        _ => {}
    }
    if let Some(end) = saved.len().checked_sub(8)
        && bytes.byte() % 8 != 7
    {
        let sum = checksum(&saved[..end]);
        saved[end..].copy_from_slice(&sum.to_le_bytes());
    }
    let mut machine = Machine::new();
    let restored = Record::restoring(&saved, MEMORY).and_then(|mut record| {
        machine.state(&mut record)?;
        record.end()
    });
    let counters = Counters::anonymous().unwrap();
    match restored {
        Ok(()) => counters.accept(Flow::StateHypervisor, saved.len() as u64),
        Err(error) => counters.reject(error.kind()),
    }
    if restored.is_ok() {
        let again = machine.save();
        // The kernel keeps some registers in a form of its own.
        let differs = (0..saved.len()).find(|&at| again.get(at) != saved.get(at));
        assert!(
            is_on_kvm() || differs.is_none(),
            "other than taken, at {differs:?}"
        );
        for _ in 0..3 {
            machine.processor.wake_at(None);
            machine.processor.run(50);
            machine.partition.take_interrupts(0).for_each(drop);
        }
    }
}
