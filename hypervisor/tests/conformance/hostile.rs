//! A guest that tries everything: each access is answered, refused or counted, nothing panics, and
//! the machine still works afterwards.

use crate::{
    guest::{Guest, Recorder, Stop},
    program::Program,
};
use iced_x86::code_asm::registers::*;
use teuthis_hypervisor::{
    counters::Counters,
    flows::Flow,
    link::{End, Payload},
    memory::GuestMemory,
    processor::{Intercept, soft::clock::Clock},
    tlfs::{Message, Outcome, Partition},
};

/// A small generator (xorshift64*): the same sequence on every run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    /// Interesting more often than chance would have it.
    fn value(&mut self) -> u64 {
        match self.below(6) {
            0 => self.below(32),
            1 => u64::MAX - self.below(32),
            2 => 1 << self.below(64),
            3 => self.below(0x20) << 12 | self.below(8),
            4 => u64::from(self.next() as u32),
            _ => self.next(),
        }
    }
}

fn intercept(random: &mut Random) -> Intercept {
    let msr = match random.below(4) {
        0 => 0x4000_0000 + random.below(0x200) as u32,
        1 => 0x4000_0080 + random.below(0x40) as u32,
        2 => 0xC001_0000 + random.below(0x2000) as u32,
        _ => random.value() as u32,
    };
    let port = match random.below(3) {
        0 => 0x3F8 + random.below(8) as u16,
        1 => 0x70 + random.below(2) as u16,
        _ => random.next() as u16,
    };
    let size = [1, 2, 4][random.below(3) as usize];
    match random.below(8) {
        0 => Intercept::Cpuid {
            leaf: random.value() as u32,
            subleaf: random.value() as u32,
        },
        1 => Intercept::MsrRead { msr },
        2..=4 => Intercept::MsrWrite {
            msr,
            value: random.value(),
        },
        5 => Intercept::PortRead { port, size },
        6 => Intercept::PortWrite {
            port,
            size,
            value: random.value() as u32,
        },
        _ => Intercept::Hypercall {
            control: match random.below(3) {
                0 => 0x5C,
                1 => 0x1_005D,
                _ => random.value(),
            },
            input: random.value(),
            output: random.value(),
        },
    }
}

#[test]
fn no_sequence_of_intercepts_panics() {
    for seed in 1..=20 {
        let mut random = Random(seed);
        let memory = GuestMemory::anonymous(0x10_0000).unwrap();
        let clock = Clock::deterministic(1);
        let counters = Counters::anonymous().unwrap();
        let mut partition = Partition::new(clock.clone(), random.next(), counters.clone());
        let mut worker = Recorder::default();
        let mut answers = 0;
        for _ in 0..20_000 {
            let intercept = intercept(&mut random);
            match partition.handle(intercept, &memory, &mut worker) {
                Outcome::Complete(_) => answers += 1,
                Outcome::End(End::GuestCrash(_) | End::PowerOff | End::Reset) => {}
                outcome => panic!("{intercept:?} led to {outcome:?}"),
            }
            let payload = Payload::new(&[0xAA; 240][..random.below(241) as usize]).unwrap();
            let message = Message {
                sint: random.below(16) as u8,
                kind: 1,
                payload,
            };
            match random.below(20) {
                0 => partition.deliver_message(message, &memory),
                1 => partition.signal_event(random.next() as u16, &memory),
                2 => partition.set_channel_open(random.next() as u16, true),
                3 => clock.advance_to(clock.now().saturating_add(random.value())),
                _ => {}
            }
            partition.next_event();
            partition.take_interrupts().for_each(drop);
            partition.ports.serial.clear();
        }
        let completed = counters.get(Flow::CompletionInstruction).count;
        assert_eq!(completed, answers, "every answer is counted");
        assert!(partition.take_notes().len() <= 32);
    }
}

#[test]
fn a_guest_that_writes_noise_everywhere_harms_only_itself() {
    let mut program = Program::new();
    program.enable_hypercalls();
    // Every register of the partition but the crash control, with noise from the counter.
    for msr in (0x4000_0000..0x4000_0200).filter(|msr| ![0x4000_0000, 0x4000_0105].contains(msr)) {
        program.asm.mov(r15d, 0x3_0000).unwrap(); // all results go to the same place
        program
            .rdmsr(msr)
            .wrmsr(msr, u64::from(msr).wrapping_mul(0x9E37_79B9_7F4A_7C15));
    }
    for code in 0..300 {
        program.asm.mov(r15d, 0x3_0000).unwrap();
        program.vmmcall(code | (code & 1) << 16, code << 8);
    }
    for port in (0..0x1000).filter(|port| !(0x600..0x603).contains(port)) {
        program.asm.mov(edx, port as u32).unwrap();
        program.asm.in_(eax, dx).unwrap();
        program.asm.out(dx, eax).unwrap();
        program.asm.out(dx, al).unwrap();
    }
    program.asm.mov(r15d, 0x3_0000).unwrap();
    program.rdmsr(0x4000_0002).cpuid(0x4000_0000, 0);
    let mut guest = Guest::new(program);
    assert_eq!(guest.run(), Stop::End(End::Halted));
    assert_eq!(guest.results::<2>(), [0, 0x4000_0005], "it still works");
    for flow in [
        Flow::MsrUnknown,
        Flow::MsrSynic,
        Flow::HypercallUnknown,
        Flow::PortUnknown,
    ] {
        assert!(guest.count(flow).rejected > 0, "{flow:?}");
    }
}
