//! What a real Debian gave to the hypervisor (`fuzz/seeds`): each input is taken, none refused.

use std::{fs, path::Path};
use teuthis_hypervisor::{
    clock::Clock,
    counters::Counters,
    flows::{Flow, values},
    link::{FromWorker, MESSAGE_BYTES},
    memory::GuestMemory,
    processor::{BootState, Completion, Intercept, Processor, soft::SoftProcessor},
    recording::Entry,
    tlfs::{Outcome, Partition, Worker},
};

const MEMORY: u64 = 1 << 20;
const INPUT: u64 = 0x2000;
/// RAM of the machine that was recorded.
const RECORDED_MEMORY: u64 = 256 << 20;

/// The seeds of a flow.
fn seeds(flow: &str) -> Vec<Vec<u8>> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/seeds");
    let mut paths: Vec<_> = fs::read_dir(directory.join(flow))
        .unwrap_or_else(|_| panic!("{flow} has no seeds"))
        .map(|entry| entry.unwrap().path())
        .collect();
    paths.sort();
    assert!(!paths.is_empty(), "{flow} has no seeds");
    paths.iter().map(|path| fs::read(path).unwrap()).collect()
}

fn number<const SIZE: usize>(seed: &[u8], at: usize) -> [u8; SIZE] {
    seed[at..at + SIZE].try_into().unwrap()
}

/// As `fuzz/recorded/intercepts.py` writes it.
fn intercept(seed: &[u8]) -> Intercept {
    let size = seed[1];
    let register = u32::from_le_bytes(number(seed, 2));
    let value = u64::from_le_bytes(number(seed, 6));
    let (msr, port) = (register, register as u16);
    match seed[0] {
        0 => Intercept::Cpuid {
            leaf: register,
            subleaf: value as u32,
        },
        1 => Intercept::MsrRead { msr },
        2 => Intercept::MsrWrite { msr, value },
        3 => Intercept::PortRead { port, size },
        4 => Intercept::PortWrite {
            port,
            size,
            value: value as u32,
        },
        _ => Intercept::Halt {
            interruptible: true,
        },
    }
}

struct Sink;

impl Worker for Sink {
    fn post_message(&mut self, _: u32, _: u32, _: &[u8]) -> bool {
        true
    }

    fn signal(&mut self, _: u16) {}
}

/// A partition whose guest has said who it is and has its hypercall page.
struct Host {
    partition: Partition,
    memory: GuestMemory,
    counters: Counters,
}

impl Host {
    fn new() -> Self {
        let counters = Counters::anonymous().unwrap();
        let clock = Clock::deterministic(100);
        let partition = Partition::new(clock, 0, 1, &[0xC3], counters.clone());
        let memory = GuestMemory::anonymous(RECORDED_MEMORY).unwrap();
        let mut host = Self {
            partition,
            memory,
            counters,
        };
        for (msr, value) in [
            (values::MSR_PARTITION_GUEST_OS_ID, 1),
            (values::MSR_PARTITION_HYPERCALL, 0x5001),
        ] {
            let msr = msr as u32;
            host.handle(Intercept::MsrWrite { msr, value });
        }
        host
    }

    fn handle(&mut self, intercept: Intercept) -> Outcome {
        self.partition.handle(0, intercept, &self.memory, &mut Sink)
    }

    fn refused(&self, flow: Flow) -> u64 {
        self.counters.get(flow).rejected
    }
}

#[test]
fn what_a_guest_runs_into_is_answered() {
    for flow in [
        Flow::InterceptCpuid,
        Flow::InterceptHalt,
        Flow::PortCmos,
        Flow::PortSerial,
        Flow::PortPower,
        Flow::MsrPartition,
        Flow::MsrTime,
        Flow::MsrSynic,
        Flow::MsrStimer,
        Flow::MsrCrash,
    ] {
        for seed in seeds(flow.id()) {
            let mut host = Host::new();
            let found = intercept(&seed);
            let outcome = host.handle(found);
            let refusal = Outcome::Complete(Completion::GeneralProtection);
            assert_ne!(outcome, refusal, "{found:x?}");
            assert_eq!(host.refused(flow), 0, "{found:x?}");
        }
    }
}

#[test]
fn hypercalls_are_taken() {
    for seed in seeds("hypercall.post-message") {
        let mut host = Host::new();
        host.memory.write_bytes(INPUT, &seed).unwrap();
        let outcome = host.handle(Intercept::Hypercall {
            control: 0x5C,
            input: INPUT,
            output: 0,
        });
        assert_eq!(outcome, Outcome::Complete(Completion::Value(0)));
    }
    for seed in seeds("hypercall.signal-event") {
        let mut host = Host::new();
        let input = u64::from_le_bytes(number(&seed, 0));
        let channel = input - values::HYPERCALL_SIGNAL_EVENT_FIRST_CONNECTION;
        host.partition.set_channel_open(channel as u16, true);
        let outcome = host.handle(Intercept::Hypercall {
            control: 0x1_005D,
            input,
            output: 0,
        });
        assert_eq!(outcome, Outcome::Complete(Completion::Value(0)));
    }
}

#[test]
fn what_a_worker_sends_is_taken() {
    for flow in [
        "link.start",
        "link.deliver-message",
        "link.open-port",
        "link.close-port",
        "link.wrote",
        "link.turn-over",
    ] {
        for mut seed in seeds(flow) {
            seed.resize(MESSAGE_BYTES, 0);
            let counters = Counters::anonymous().unwrap();
            assert!(FromWorker::counted(&seed, 1, &counters).is_ok(), "{flow}");
        }
    }
}

#[test]
fn entries_of_a_recording_are_taken() {
    for seed in seeds("recording.entry") {
        assert!(Entry::decode(seed[0], &seed[5..], RECORDED_MEMORY).is_ok());
    }
}

#[test]
fn code_is_executed() {
    for seed in seeds("instruction.decode") {
        let memory = GuestMemory::anonymous(MEMORY).unwrap();
        let put = |place, value: u64| memory.write(place, value).unwrap();
        put(0x1000, 0x2003); // page map
        put(0x2000, 0x83); // one 1 GiB page at 0
        put(0x5010, 0x00AF_9B00_0000_FFFF);
        memory.write_bytes(0x1_0000, &seed).unwrap();
        let boot = BootState {
            rip: 0x1_0000,
            rsi: 0,
            rsp: 0x2_0000,
            cr3: 0x1000,
            gdt_base: 0x5000,
            gdt_limit: 31,
        };
        let mut processor = SoftProcessor::new(memory, boot, Clock::deterministic(100));
        assert_eq!(processor.run(5), Intercept::SliceEnd);
        assert!(processor.unimplemented().is_empty());
    }
}
