//! Any sequence of intercepts, and of what the worker does in between, against the partition:
//! registers, hypercalls, ports, SynIC, timers, the I/O APIC.

use super::bytes::Bytes;
use teuthis_hypervisor::{
    clock::Clock,
    counters::Counters,
    flows::{Flow, values},
    link::{End, Payload},
    memory::GuestMemory,
    processor::Intercept,
    tlfs::{Message, Outcome, Partition, Worker},
};

const MOST_STEPS: usize = 2000;
const KNOWN: [u64; 17] = [
    values::MSR_PARTITION_GUEST_OS_ID,
    values::MSR_PARTITION_HYPERCALL,
    values::MSR_PARTITION_VP_INDEX,
    values::MSR_PARTITION_VP_ASSIST_PAGE,
    values::MSR_TIME_TIME_REF_COUNT,
    values::MSR_TIME_REFERENCE_TSC,
    values::MSR_TIME_TSC_FREQUENCY,
    values::MSR_TIME_APIC_FREQUENCY,
    values::MSR_SYNIC_SCONTROL,
    values::MSR_SYNIC_SIEFP,
    values::MSR_SYNIC_SIMP,
    values::MSR_SYNIC_EOM,
    values::MSR_SYNIC_SINT0 + values::SYNIC_MESSAGE_SINT,
    values::MSR_STIMER_CONFIG,
    values::MSR_STIMER_COUNT,
    values::MSR_CRASH_P0,
    values::MSR_CRASH_CONTROL,
];
/// Registers of the clock; also, on the serial port, the divisor's access, and loopback.
const CLOCK: [u32; 14] = [0, 2, 4, 6, 7, 8, 9, 0x32, 0xA, 0xB, 0xD, 0x80, 0x10, 0xC0];
/// As Linux sets its synthetic interrupt controller up.
const SYNIC: [(u64, u64); 4] = [
    (values::MSR_SYNIC_SIMP, 0x6001),
    (values::MSR_SYNIC_SIEFP, 0x7001),
    (values::MSR_SYNIC_SINT0 + values::SYNIC_MESSAGE_SINT, 0xF3),
    (values::MSR_SYNIC_SCONTROL, 1),
];

/// Takes everything until it is full for once.
struct Sink {
    full: bool,
}

impl Worker for Sink {
    fn post_message(&mut self, connection: u32, _kind: u32, payload: &[u8]) -> bool {
        assert!(connection == 1 || connection == 4);
        assert!(payload.len() <= 240);
        !self.full
    }

    fn signal(&mut self, channel: u16) {
        assert!((1..2048).contains(&channel));
    }
}

pub fn run(data: &[u8]) {
    let mut bytes = Bytes(data);
    let memory = GuestMemory::anonymous(0x10_0000).unwrap();
    let clock = Clock::deterministic(1);
    let counters = Counters::anonymous().unwrap();
    let (wall_clock, processors) = (bytes.value(), 1 + bytes.below(3) as usize);
    let code = &[0xC3];
    let mut partition = Partition::new(
        clock.clone(),
        wall_clock,
        processors,
        code,
        counters.clone(),
    );
    let mut worker = Sink { full: false };
    let mut answers = 0;
    if bytes.byte() % 2 == 1 {
        // A guest that knows where it is: without that, no hypercall is one.
        for (msr, value) in [
            (values::MSR_PARTITION_GUEST_OS_ID, 1),
            (values::MSR_PARTITION_HYPERCALL, 0x5001),
        ] {
            let msr = msr as u32;
            partition.handle(0, Intercept::MsrWrite { msr, value }, &memory, &mut worker);
            answers += 1;
        }
        for channel in 1..4 {
            partition.set_channel_open(channel, true);
        }
        if bytes.byte() % 2 == 1 {
            for (msr, value) in SYNIC {
                let msr = msr as u32;
                partition.handle(0, Intercept::MsrWrite { msr, value }, &memory, &mut worker);
                answers += 1;
            }
        }
    }
    for _ in 0..MOST_STEPS {
        if bytes.0.is_empty() {
            break;
        }
        let vp = bytes.below(processors as u64) as usize;
        match bytes.byte() % 16 {
            0 => {
                let payload = Payload::new(bytes.take(240)).unwrap();
                let (sint, kind) = (bytes.byte() % 16, bytes.number(4) as u32);
                // The worker's virtual processor, which may not be there.
                let vp = bytes.below(4) as usize;
                partition.deliver_message(
                    vp,
                    Message {
                        sint,
                        kind,
                        payload,
                    },
                    &memory,
                );
            }
            1 => partition.signal_event(bytes.below(4) as usize, bytes.number(2) as u16, &memory),
            2 => partition.set_channel_open(bytes.number(2) as u16, bytes.byte() % 2 == 0),
            3 => clock.advance_to(clock.now().saturating_add(bytes.value())),
            4 => worker.full = !worker.full,
            5 => {
                // A page of input for the hypercalls, which the guest may change at any time.
                let (at, content) = (bytes.below(0x10_0000) & !7, bytes.take(256));
                let _ = memory.write_bytes(at, content);
            }
            15 => {
                access_ioapic(&mut bytes, &memory);
                memory.ioapic().merge_counts(&counters);
                partition.announce_generation(&memory);
            }
            action => {
                let intercept = match action {
                    6 if bytes.byte().is_multiple_of(4) => signal(&mut bytes),
                    6 => post(&mut bytes, &memory),
                    _ => intercept(&mut bytes),
                };
                match partition.handle(vp, intercept, &memory, &mut worker) {
                    Outcome::Complete(_) => answers += 1,
                    // One that halts for ever; another one may run.
                    Outcome::Continue => assert!(processors > 1),
                    Outcome::Sleep => assert!(matches!(intercept, Intercept::Halt { .. })),
                    Outcome::End(End::Halted | End::TripleFault) => {}
                    Outcome::End(End::GuestCrash(_) | End::PowerOff | End::Reset) => {}
                    outcome => panic!("{intercept:?} led to {outcome:?}"),
                }
            }
        }
        partition.next_event(vp);
        for (vp, _) in partition.take_interrupts(vp) {
            assert!(vp < processors);
        }
        partition.ports.serial.clear();
    }
    let completed = counters.get(Flow::CompletionInstruction).count;
    assert_eq!(completed, answers, "every answer is counted");
    assert!(partition.take_notes().len() <= 32, "notes are bounded");
}

/// An access to the I/O APIC's page: mostly to its entry, mostly of the right size.
fn access_ioapic(bytes: &mut Bytes, memory: &GuestMemory) {
    let (base, ioapic) = (values::MEMORY_IOAPIC_BASE, memory.ioapic());
    match bytes.byte() % 4 {
        0 => {
            let place = base + bytes.below(0x1000);
            ioapic.load(place, bytes.below(17) as usize);
            ioapic.store(place, bytes.below(17) as usize, bytes.value().into());
        }
        _ => {
            ioapic.store(base, 4, (0x10 + bytes.below(2)).into());
            let value = match bytes.byte() % 4 {
                0 => bytes.value(),
                1 => bytes.below(4) << 24,
                _ => bytes.number(1),
            };
            ioapic.store(base + 0x10, 4, value.into());
            assert!(ioapic.load(base + 0x10, 4) <= u32::MAX.into());
        }
    }
}

/// A message that is posted; some fields are wrong.
fn post(bytes: &mut Bytes, memory: &GuestMemory) -> Intercept {
    let at = 0x2000 + bytes.below(512) * 8;
    let connection = [1, 1, 4, 7][bytes.below(4) as usize];
    let reserved = u32::from(bytes.byte() == 255);
    let kind = [1, 1, 0, 1 << 31][bytes.below(4) as usize];
    let size = bytes.below(256) as u32;
    for (place, word) in (at..).step_by(4).zip([connection, reserved, kind, size]) {
        memory.write(place, word).unwrap();
    }
    Intercept::Hypercall {
        control: match bytes.byte() % 16 {
            15 => 0x5C | 1 << bytes.below(64),
            _ => 0x5C,
        },
        input: match bytes.byte() % 16 {
            15 => at + bytes.number(1),
            14 => bytes.value(),
            _ => at,
        },
        output: 0,
    }
}

/// A signal, of a channel that may be open; some fields are wrong.
fn signal(bytes: &mut Bytes) -> Intercept {
    let channel = bytes.below(5);
    let input = values::HYPERCALL_SIGNAL_EVENT_FIRST_CONNECTION | channel;
    Intercept::Hypercall {
        control: match bytes.byte() % 16 {
            15 => 0x1_005D ^ 1 << bytes.below(64),
            _ => 0x1_005D,
        },
        input: match bytes.byte() % 16 {
            15 => input | 1 << bytes.below(64),
            _ => input,
        },
        output: 0,
    }
}

fn intercept(bytes: &mut Bytes) -> Intercept {
    let size = [1, 2, 4, 1][bytes.below(4) as usize];
    match bytes.byte() % 10 {
        8 => Intercept::Halt {
            interruptible: bytes.byte().is_multiple_of(2),
        },
        9 => Intercept::Shutdown,
        0 => Intercept::Cpuid {
            leaf: bytes.value() as u32,
            subleaf: bytes.value() as u32,
        },
        1 => Intercept::MsrRead { msr: msr(bytes) },
        2..=4 => Intercept::MsrWrite {
            msr: msr(bytes),
            value: bytes.value(),
        },
        5 => Intercept::PortRead {
            port: port(bytes),
            size,
        },
        6 => Intercept::PortWrite {
            port: port(bytes),
            size,
            value: match bytes.byte() % 2 {
                0 => CLOCK[bytes.below(CLOCK.len() as u64) as usize],
                _ => bytes.value() as u32,
            },
        },
        _ => Intercept::Hypercall {
            control: match bytes.byte() % 3 {
                0 => 0x5C,
                1 => 0x1_005D,
                _ => bytes.value(),
            },
            input: match bytes.byte() % 4 {
                0 => 0x2000 | bytes.number(1),
                1 => bytes.below(0x10_0000) & !7,
                _ => bytes.value(),
            },
            output: bytes.value(),
        },
    }
}

fn msr(bytes: &mut Bytes) -> u32 {
    match bytes.byte() % 8 {
        4.. => KNOWN[bytes.below(KNOWN.len() as u64) as usize] as u32,
        0 => 0x4000_0000 + bytes.below(0x200) as u32,
        1 => 0x4000_0080 + bytes.below(0x40) as u32,
        2 => 0xC001_0000 + bytes.below(0x2000) as u32,
        _ => bytes.value() as u32,
    }
}

fn port(bytes: &mut Bytes) -> u16 {
    match bytes.byte() % 3 {
        0 => 0x3F8 + bytes.below(8) as u16,
        1 => [0x70, 0x71, 0x600, 0x601, 0x602][bytes.below(5) as usize],
        _ => bytes.number(2) as u16,
    }
}
