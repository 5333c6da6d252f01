//! Runs a tiny guest on a processor and a partition, without a worker process.
//!
//! On the software processor that is on the deterministic clock: the same program always leaves
//! the same trace. With `TEUTHIS_TEST_PROCESSOR=kvm` the host's processor runs the guests, in real
//! time.

use crate::program::*;
use std::{env, fs::File};
use teuthis_hypervisor::{
    clock::Clock,
    counters::{Count, Counters},
    flows::Flow,
    link::{End, Payload},
    memory::GuestMemory,
    processor::{BootState, Intercept, Processor, kvm::KvmProcessor, soft::SoftProcessor},
    record::{Malformed, Record},
    tlfs::{Message, Outcome, Partition, Worker},
};

pub const MEMORY: u64 = 4 << 20;
const INSTRUCTIONS_PER_MICROSECOND: u64 = 100;
const SLICE: u32 = 1000;
/// A tiny guest that runs longer than this hangs.
const MOST_STEPS: usize = 1_000_000;

/// A guest on KVM that came back so often with nothing to do is asleep.
const KICKS_ASLEEP: usize = 3;

/// Which processor runs the guests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Soft,
    Kvm,
}

impl Kind {
    pub fn chosen() -> Self {
        match env::var("TEUTHIS_TEST_PROCESSOR").as_deref() {
            Ok("kvm") => Kind::Kvm,
            Err(_) | Ok("soft") => Kind::Soft,
            Ok(other) => panic!("unknown processor {other}"),
        }
    }

    /// Units of 100 ns, stretched where real time passes and an exit may take half a millisecond.
    pub fn time(self, units: u64) -> u64 {
        match self {
            Kind::Soft => units,
            Kind::Kvm => units * 1000,
        }
    }

    /// Whether `time` is `expected`, or up to `late` later; in real time only not before.
    pub fn is_on_time(self, time: u64, expected: u64, late: u64) -> bool {
        time >= expected && (self == Kind::Kvm || time < expected + late)
    }
}

/// What the guest asked of the worker.
#[derive(Default)]
pub struct Recorder {
    pub posted: Vec<(u32, u32, Vec<u8>)>,
    pub signalled: Vec<u16>,
}

impl Worker for Recorder {
    fn post_message(&mut self, connection: u32, kind: u32, payload: &[u8]) -> bool {
        self.posted.push((connection, kind, payload.to_vec()));
        true
    }

    fn signal(&mut self, channel: u16) {
        self.signalled.push(channel);
    }
}

/// Why a run stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    End(End),
    /// Halted, with no timer to wake it.
    Asleep,
}

pub struct Guest {
    kind: Kind,
    processor: Box<dyn Processor>,
    pub partition: Partition,
    pub worker: Recorder,
    clock: Clock,
    counters: Counters,
    /// Every intercept with the time it came and what became of it.
    pub trace: Vec<(u64, Intercept, Outcome)>,
}

impl Guest {
    pub fn new(program: Program) -> Self {
        Self::on(Kind::chosen(), program)
    }

    pub fn on(kind: Kind, program: Program) -> Self {
        let memory = GuestMemory::anonymous(MEMORY).unwrap();
        let boot = load(&memory, program);
        Self::of(memory, boot, kind)
    }

    pub fn of(memory: GuestMemory, boot: BootState, kind: Kind) -> Self {
        let (processor, clock): (Box<dyn Processor>, _) = match kind {
            Kind::Soft => {
                let clock = Clock::deterministic(INSTRUCTIONS_PER_MICROSECOND);
                let processor = SoftProcessor::new(memory, boot, clock.clone());
                (Box::new(processor), clock)
            }
            Kind::Kvm => {
                let device = File::options().read(true).write(true).open("/dev/kvm");
                let processor = KvmProcessor::new(device.unwrap().into(), memory, boot).unwrap();
                let clock = processor.clock().clone();
                (Box::new(processor), clock)
            }
        };
        let counters = Counters::anonymous().unwrap();
        let code = processor.hypercall_code();
        Self {
            kind,
            processor,
            partition: Partition::new(clock.clone(), 0, 1, code, counters.clone()),
            worker: Recorder::default(),
            clock,
            counters,
            trace: vec![],
        }
    }

    /// Runs until the guest ends or sleeps with nothing to wake it. A sleeping guest may be run
    /// again, after something was delivered to it.
    pub fn run(&mut self) -> Stop {
        self.run_for(MOST_STEPS)
            .expect("the guest does not come to an end")
    }

    /// The same for so many steps at most.
    pub fn run_for(&mut self, steps: usize) -> Option<Stop> {
        let mut kicks = 0;
        for _ in 0..steps {
            let next_event = self.partition.next_event(0);
            self.processor.wake_at(next_event);
            let (intercept, stop) = self.advance();
            if stop.is_some() {
                return stop;
            }
            let halted = !self.processor.has_deliverable_interrupt();
            if intercept == Intercept::Kicked && next_event.is_none() && halted {
                kicks += 1;
                if kicks == KICKS_ASLEEP {
                    return Some(Stop::Asleep);
                }
            } else {
                kicks = 0;
            }
        }
        None
    }

    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// What the guest's time-stamp counter counts in a second.
    pub fn hertz(&self) -> u64 {
        self.clock.hertz()
    }

    /// The first word of the hypercall page.
    pub fn hypercall_code(&self) -> u64 {
        let code = self.processor.hypercall_code();
        let mut word = [0xCC; 8];
        word[..code.len()].copy_from_slice(code);
        u64::from_le_bytes(word)
    }

    /// Runs to the next intercept and answers it; why the run stopped, if it did.
    pub fn step(&mut self) -> Option<Stop> {
        self.advance().1
    }

    fn advance(&mut self) -> (Intercept, Option<Stop>) {
        self.raise_interrupts();
        let intercept = self.processor.run(self.slice());
        let memory = self.processor.memory();
        let outcome = self
            .partition
            .handle(0, intercept, memory, &mut self.worker);
        if !matches!(intercept, Intercept::SliceEnd | Intercept::Kicked) {
            self.trace.push((self.clock.now(), intercept, outcome));
        }
        let stop = match outcome {
            Outcome::Complete(completion) => {
                self.processor.complete(completion);
                None
            }
            Outcome::Continue => None,
            Outcome::End(end) => Some(Stop::End(end)),
            Outcome::Sleep => self.sleep(),
        };
        (intercept, stop)
    }

    fn sleep(&mut self) -> Option<Stop> {
        while !self.processor.has_deliverable_interrupt() {
            let events = [self.processor.next_event(), self.partition.next_event(0)];
            let Some(next) = events.into_iter().flatten().min() else {
                return Some(Stop::Asleep);
            };
            self.clock.advance_to(next);
            self.raise_interrupts();
        }
        None
    }

    /// The state of processor and partition, and a copy of the memory.
    pub fn save(&mut self) -> (Vec<u8>, Vec<u8>) {
        self.clock.pause();
        let mut record = Record::saving(MEMORY);
        self.processor.state(&mut record).unwrap();
        let memory = self.processor.memory();
        self.partition.state(&mut record, memory).unwrap();
        let mut bytes = vec![0; MEMORY as usize];
        memory.read_bytes(0, &mut bytes).unwrap();
        self.let_time_go_on();
        (record.finish(), bytes)
    }

    fn let_time_go_on(&mut self) {
        self.clock.resume();
        self.processor.set_clock();
    }

    /// Another guest with the state of one that was saved.
    pub fn restore(kind: Kind, state: &[u8], bytes: &[u8]) -> Result<Self, Malformed> {
        let mut record = Record::restoring(state, MEMORY)?;
        let memory = GuestMemory::anonymous(MEMORY).unwrap();
        memory.write_bytes(0, bytes).unwrap();
        let mut guest = Self::of(memory, BootState::default(), kind);
        guest.processor.state(&mut record)?;
        let memory = guest.processor.memory();
        guest.partition.state(&mut record, memory)?;
        record.end()?;
        guest.let_time_go_on();
        Ok(guest)
    }

    pub fn deliver(&mut self, text: &[u8]) {
        let message = Message {
            sint: 2,
            kind: 1,
            payload: Payload::new(text).unwrap(),
        };
        self.partition
            .deliver_message(0, message, self.processor.memory());
    }

    pub fn signal(&mut self, channel: u16) {
        self.partition
            .signal_event(0, channel, self.processor.memory());
    }

    /// As when a restored machine goes on.
    pub fn announce_generation(&mut self) {
        let memory = self.processor.memory();
        self.partition.announce_generation(memory);
    }

    pub fn read(&self, address: u64) -> u64 {
        self.processor.memory().read(address).unwrap()
    }

    /// The first results that the program reported.
    pub fn results<const N: usize>(&self) -> [u64; N] {
        std::array::from_fn(|i| self.read(RESULTS + 8 * i as u64))
    }

    pub fn interrupts(&self, vector: u8) -> u64 {
        self.read(INTERRUPTS + 8 * u64::from(vector))
    }

    pub fn count(&self, flow: Flow) -> Count {
        let ioapic = self.processor.memory().ioapic();
        ioapic.merge_counts(&self.counters);
        self.counters.get(flow)
    }

    fn raise_interrupts(&mut self) {
        for (vp, vector) in self.partition.take_interrupts(0) {
            self.processor.assert_interrupt(vp, vector);
        }
    }

    fn slice(&self) -> u32 {
        let next = self.partition.next_event(0);
        let count = next.and_then(|next| self.clock.instructions_until(next));
        count.map_or(SLICE, |count| count.clamp(1, SLICE.into()) as u32)
    }
}

/// Puts a program and what it needs into memory; where it starts.
pub fn load(memory: &GuestMemory, program: Program) -> BootState {
    let base = program.base;
    let (code, handlers) = program.finish();
    memory.write_bytes(base + CODE, &code).unwrap();
    // Page map, then two 1 GiB pages: the first, and the last below 4 GiB, which is a hole.
    memory.write(TABLES, (TABLES + 0x1000) | 3).unwrap();
    memory.write(TABLES + 0x1000, 0x83u64).unwrap();
    memory.write(TABLES + 0x1018, 0xC000_0083u64).unwrap();
    memory.write(GDT + 0x10, 0x00AF_9B00_0000_FFFFu64).unwrap();
    memory.write(GDT + 0x18, 0x00CF_9300_0000_FFFFu64).unwrap();
    memory.write(base + IDT_POINTER, 0xFFFu16).unwrap();
    memory.write(base + IDT_POINTER + 2, base + IDT).unwrap();
    for (vector, address) in handlers {
        // Present, interrupt gate, code segment 0x10.
        let low = address & 0xFFFF | 0x10 << 16 | 0x8E << 40 | (address >> 16 & 0xFFFF) << 48;
        let gate = base + IDT + 16 * u64::from(vector);
        memory.write(gate, low).unwrap();
        memory.write(gate + 8, address >> 32).unwrap();
    }
    BootState {
        rip: base + CODE,
        rsi: 0,
        rsp: base + STACK,
        cr3: TABLES,
        gdt_base: GDT,
        gdt_limit: 31,
    }
}

/// Runs a program to its ordinary end.
pub fn run(program: Program) -> Guest {
    let mut guest = Guest::new(program);
    assert_eq!(guest.run(), Stop::End(End::Halted));
    guest
}
