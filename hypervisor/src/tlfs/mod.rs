//! The partition interface: what a guest finds around its processor, following the public
//! Hyper-V Top Level Functional Specification as far as a stock Linux kernel uses it. Everything
//! here is a function of the intercepts, guest RAM, the clock and the worker's messages: no I/O.

pub mod cpuid;
mod crash;
mod hypercall;
mod msr;
mod notes;
mod page;
mod reference_time;
mod stimer;
mod synic;
#[cfg(test)]
pub(crate) mod testing;
mod virtual_processor;

pub use synic::Message;

use crate::{
    clock::Clock,
    counters::Counters,
    flows::{Flow, Reject},
    link::End,
    memory::GuestMemory,
    ports::Ports,
    processor::{Completion, Intercept},
    record::{Malformed, Record},
};
use crash::Crash;
use hypercall::Channels;
use notes::Notes;
use page::PageRegister;
use reference_time::ReferenceTime;
use virtual_processor::VirtualProcessor;

/// What the guest's hypercalls ask of the VM's worker.
pub trait Worker {
    /// `false`: no room, the guest tries again later.
    fn post_message(&mut self, connection: u32, kind: u32, payload: &[u8]) -> bool;
    fn signal(&mut self, channel: u16);
}

/// What becomes of the virtual processor after an intercept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Outcome {
    Complete(Completion),
    Continue,
    /// Halted until an interrupt is deliverable.
    Sleep,
    End(End),
}

/// How often in a row all virtual processors must be found halted with interrupts disabled: one may
/// have woken another in between.
const SURELY_STOPPED: u32 = 3;

/// Interrupt vectors to raise: a set, since each is an edge.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Vectors([u64; 4]);

impl Vectors {
    fn insert(&mut self, vector: u8) {
        if let Some(word) = self.0.get_mut(usize::from(vector / 64)) {
            *word |= 1 << (vector % 64);
        }
    }

    /// Empties the set, lowest vector first.
    pub fn take(&mut self) -> impl Iterator<Item = u8> + use<> {
        let words = std::mem::take(&mut self.0);
        (0..=u8::MAX).filter(move |&vector| {
            let word = words.get(usize::from(vector / 64));
            word.is_some_and(|word| word >> (vector % 64) & 1 != 0)
        })
    }

    pub fn is_empty(&self) -> bool {
        self.0 == [0; 4]
    }
}

/// One virtual machine's partition: everything between its processors and its worker. Virtual
/// processors have numbers (VP_INDEX), which are their local APICs' ids too.
pub struct Partition {
    pub ports: Ports,
    clock: Clock,
    counters: Counters,
    notes: Notes,
    guest_os_id: u64,
    hypercall_code: &'static [u8],
    hypercall: PageRegister,
    reference: ReferenceTime,
    crash: Crash,
    channels: Channels,
    processors: Vec<VirtualProcessor>,
}

impl Partition {
    /// `wall_clock`: seconds since 1970 (UTC) at time 0 of `clock`. `hypercall_code`: what the
    /// guest calls, see [`Processor::hypercall_code`](crate::processor::Processor::hypercall_code).
    pub fn new(
        clock: Clock,
        wall_clock: u64,
        processors: usize,
        hypercall_code: &'static [u8],
        counters: Counters,
    ) -> Self {
        let reference = ReferenceTime::new(clock.hertz());
        Self {
            hypercall_code,
            ports: Ports::new(wall_clock, counters.clone()),
            clock,
            counters,
            notes: Notes::default(),
            guest_os_id: 0,
            hypercall: PageRegister::default(),
            reference,
            crash: Crash::default(),
            channels: Channels::default(),
            processors: (0..processors)
                .map(|_| VirtualProcessor::default())
                .collect(),
        }
    }

    /// Saves or restores all that the guest or the worker could see, after the processors, whose
    /// state has the clock. `memory` is the guest's RAM, in which the pages of the registers lie.
    pub fn state(&mut self, record: &mut Record, memory: &GuestMemory) -> Result<(), Malformed> {
        self.reference.set_pace(self.clock.hertz());
        self.ports.state(record, &self.clock)?;
        memory.ioapic().state(record)?;
        record.field(&mut self.guest_os_id)?;
        self.hypercall.state(record, memory)?;
        self.reference.state(record, memory)?;
        self.crash.state(record)?;
        self.channels.state(record)?;
        for processor in &mut self.processors {
            processor.state(record, memory)?;
        }
        Ok(())
    }

    /// Answers one intercept of virtual processor `vp`.
    pub fn handle(
        &mut self,
        vp: usize,
        intercept: Intercept,
        memory: &GuestMemory,
        worker: &mut impl Worker,
    ) -> Outcome {
        let halted = Intercept::Halt {
            interruptible: false,
        };
        if let Some(processor) = self.processors.get_mut(vp) {
            let times = if intercept == halted {
                processor.stopped.saturating_add(1)
            } else {
                0
            };
            processor.stopped = times;
        }
        let completion = match intercept {
            Intercept::SliceEnd | Intercept::Kicked => return Outcome::Continue,
            Intercept::Cpuid { leaf, subleaf } => self.cpuid(leaf, subleaf),
            Intercept::MsrRead { msr } => match self.read_msr(vp, msr) {
                Ok(value) => Completion::Value(value),
                Err(_) => Completion::GeneralProtection,
            },
            Intercept::MsrWrite { msr, value } => match self.write_msr(vp, msr, value, memory) {
                Ok(None) => Completion::Done,
                Ok(Some(end)) => return Outcome::End(end),
                Err(_) => Completion::GeneralProtection,
            },
            Intercept::PortRead { port, size } => {
                Completion::Value(self.ports.read(port, size, self.clock.now()).into())
            }
            Intercept::PortWrite { port, size, value } => {
                match self.ports.write(port, size, value) {
                    Some(end) => return Outcome::End(end),
                    None => Completion::Done,
                }
            }
            Intercept::Hypercall { control, input, .. } => {
                self.hypercall(control, input, memory, worker)
            }
            Intercept::Halt {
                interruptible: true,
            } => {
                self.counters.accept(Flow::InterceptHalt, 0);
                return Outcome::Sleep;
            }
            Intercept::Halt {
                interruptible: false,
            } => {
                if !self.has_stopped() {
                    return Outcome::Continue;
                }
                self.counters.reject(Reject::InterceptHaltUninterruptible);
                return Outcome::End(End::Halted);
            }
            Intercept::Shutdown => {
                self.counters.accept(Flow::InterceptShutdown, 0);
                return Outcome::End(End::TripleFault);
            }
        };
        self.counters.accept(Flow::CompletionInstruction, 8);
        Outcome::Complete(completion)
    }

    /// Whether no virtual processor can ever run again: nothing but another one could wake it.
    fn has_stopped(&self) -> bool {
        let enough = match self.processors.len() {
            1 => 1,
            _ => SURELY_STOPPED,
        };
        self.processors.iter().all(|each| each.stopped >= enough)
    }

    /// Queues a message from the worker for `vp`; ask [`Partition::takes_messages`] first.
    pub fn deliver_message(&mut self, vp: usize, message: Message, memory: &GuestMemory) {
        let bytes = message.payload.as_slice().len() as u64;
        let taken = self.processors.get_mut(vp).is_some_and(|processor| {
            let VirtualProcessor { synic, vectors, .. } = processor;
            synic.post(message, memory, vectors)
        });
        if taken {
            self.counters.accept(Flow::SynicMessage, bytes);
        } else {
            self.counters.reject(Reject::SynicMessageFull);
        }
    }

    /// Whether there is room for another message, whichever virtual processor it is for.
    pub fn takes_messages(&self) -> bool {
        self.processors.iter().all(|each| each.synic.has_room())
    }

    /// The worker rang for `channel` on `vp`.
    pub fn signal_event(&mut self, vp: usize, channel: u16, memory: &GuestMemory) {
        let taken = self.processors.get_mut(vp).is_some_and(|processor| {
            let VirtualProcessor { synic, vectors, .. } = processor;
            synic.signal(channel, memory, vectors)
        });
        if taken {
            self.counters.accept(Flow::SynicEvent, 1);
        } else {
            self.counters.reject(Reject::SynicEventDisabled);
        }
    }

    /// The guest goes on as another machine than the one that was saved: raises the I/O APIC's pin,
    /// on which ACPI has the kernel look at its generation id.
    pub fn announce_generation(&mut self, memory: &GuestMemory) {
        let route = memory.ioapic().route();
        let processor = route.and_then(|(vp, vector)| Some((self.processors.get_mut(vp)?, vector)));
        if let Some((processor, vector)) = processor {
            processor.vectors.insert(vector);
            let flow = Flow::InterruptGeneration;
            self.counters.accept(flow, flow.max_bytes());
        } else {
            self.counters.reject(Reject::InterruptGenerationNowhere);
        }
    }

    /// Whether the guest may signal `channel` from now on.
    pub fn set_channel_open(&mut self, channel: u16, open: bool) {
        self.channels.set(channel, open);
    }

    /// How many virtual processors it has.
    pub fn processors(&self) -> usize {
        self.processors.len()
    }

    /// When the partition next has something to do by itself for `vp`, in nanoseconds of the clock.
    pub fn next_event(&self, vp: usize) -> Option<u64> {
        let deadline = self.processors.get(vp)?.timer.deadline()?;
        Some(self.clock.nanoseconds_at(self.reference.tsc_at(deadline)))
    }

    /// Interrupts to raise now, on which virtual processor; those of expired timers of `vp` among
    /// them.
    pub fn take_interrupts(&mut self, vp: usize) -> impl Iterator<Item = (usize, u8)> {
        let now = self.now();
        if let Some(VirtualProcessor { timer, vectors, .. }) = self.processors.get_mut(vp)
            && let Some(vector) = timer.expire(now)
        {
            vectors.insert(vector);
        }
        let waiting = self.processors.iter_mut().enumerate();
        waiting
            .filter(|(_, processor)| !processor.vectors.is_empty())
            .flat_map(|(vp, processor)| processor.vectors.take().map(move |vector| (vp, vector)))
    }

    /// Texts for the log about what was refused.
    pub fn take_notes(&mut self) -> Vec<String> {
        self.notes.take()
    }

    /// Reference time, in 100 ns.
    fn now(&self) -> u64 {
        self.reference.at(self.clock.ticks())
    }

    fn cpuid(&self, leaf: u32, subleaf: u32) -> Completion {
        match cpuid::leaf(leaf, subleaf) {
            Some(registers) => {
                self.counters.accept(Flow::InterceptCpuid, 8);
                Completion::Cpuid(registers)
            }
            None => {
                self.counters.reject(Reject::InterceptCpuidLeaf);
                Completion::Cpuid([0; 4])
            }
        }
    }

    fn hypercall(
        &mut self,
        control: u64,
        input: u64,
        memory: &GuestMemory,
        worker: &mut impl Worker,
    ) -> Completion {
        if !self.hypercall.is_enabled() {
            self.counters.reject(Reject::HypercallUnknownDisabled);
            return Completion::InvalidOpcode;
        }
        let (channels, counters) = (&self.channels, &self.counters);
        let status = hypercall::call(control, input, memory, channels, worker, counters);
        if status == hypercall::Status::InvalidCode {
            let code = control & 0xFFFF;
            self.notes
                .add(Flow::HypercallUnknown, code, "refused hypercall");
        }
        Completion::Value(status as u64)
    }
}
