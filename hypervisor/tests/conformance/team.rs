//! A whole machine with two processors, each in a thread of its own, and a played worker at the other
//! end of its link. Only on KVM.

use crate::{
    guest::{MEMORY, load},
    program::{INTERRUPTS, Program, RESULTS, TRAMPOLINE, trampoline},
};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fs::{MemfdFlags, ftruncate, memfd_create},
    net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socketpair},
};
use std::{
    fs::File,
    io::pipe,
    os::fd::{OwnedFd, RawFd},
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering},
        mpsc,
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};
use teuthis_hypervisor::{
    counters::Counters,
    doorbells::Doorbells,
    guest::Guest,
    link::{Link, MESSAGE_BYTES, frame},
    machine::{Connection, Machine},
    memory::GuestMemory,
    processor::{
        BootState,
        kvm::{self, Idle},
    },
    shared::Shared,
};

const START: u16 = 16;
/// Nothing takes longer, on a slow host either.
const LONG: Duration = Duration::from_secs(300);

pub struct Team {
    memory: GuestMemory,
    link: OwnedFd,
    doorbells: Shared<AtomicU8>,
    ring: OwnedFd,
    threads: Vec<JoinHandle<()>>,
}

fn file(size: u64) -> OwnedFd {
    let fd = memfd_create("team", MemfdFlags::CLOEXEC).unwrap();
    ftruncate(&fd, size).unwrap();
    fd
}

impl Team {
    pub fn boot(first: Program, second: Program) -> Self {
        let ram = file(MEMORY);
        let memory = GuestMemory::map(&ram, MEMORY).unwrap();
        memory.write_bytes(TRAMPOLINE, &trampoline()).unwrap();
        load(&memory, second);
        let boot = load(&memory, first);
        Self::of(memory, &ram, boot, None)
    }

    /// Goes on from a saved one; ready to be resumed.
    pub fn restore(state: &[u8], bytes: &[u8]) -> Self {
        let ram = file(MEMORY);
        let memory = GuestMemory::map(&ram, MEMORY).unwrap();
        memory.write_bytes(0, bytes).unwrap();
        Self::of(memory, &ram, BootState::default(), Some(state.to_vec()))
    }

    fn of(memory: GuestMemory, ram: &OwnedFd, boot: BootState, state: Option<Vec<u8>>) -> Self {
        let device = File::options().read(true).write(true).open("/dev/kvm");
        let theirs = GuestMemory::map(ram, MEMORY).unwrap();
        let processors = kvm::create(device.unwrap().into(), theirs, boot, 2).unwrap();
        let clock = processors[0].clock().clone();
        let counters = Counters::anonymous().unwrap();
        let kind = SocketType::SEQPACKET;
        let (link, theirs) =
            socketpair(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None).unwrap();
        let page = file(4096);
        let (_, to_worker) = pipe().unwrap();
        let (to_hypervisor, ring) = pipe().unwrap();
        let connection = Connection {
            doorbells: Doorbells::map(
                &page,
                to_worker.into(),
                to_hypervisor.into(),
                counters.clone(),
            )
            .unwrap(),
            link: Link::new(theirs, 2, counters.clone()),
        };
        let descriptors = connection.descriptors();
        let guest = Guest::new(&[0xE6, 0xB8, 0xC3], 2, clock, 0, counters);
        let machine = Arc::new(Machine::new(guest, connection));
        let mut threads = vec![];
        let (seat, seated) = mpsc::channel();
        for (vp, idle) in processors.into_iter().enumerate().rev() {
            let (machine, seat, state) = (machine.clone(), seat.clone(), state.clone());
            threads.push(thread::spawn(move || {
                run(
                    &machine,
                    vp,
                    idle,
                    descriptors,
                    || seat.send(()).unwrap(),
                    state.as_deref(),
                );
            }));
            seated.recv().unwrap();
        }
        let this = Self {
            memory,
            link,
            doorbells: Shared::map(&page, 4096).unwrap(),
            ring: ring.into(),
            threads,
        };
        this.send(START, 0, &[]);
        this
    }

    pub fn send(&self, kind: u16, value: u64, payload: &[u8]) {
        let message = frame(kind.into(), value, payload);
        send(&self.link, &message, SendFlags::NOSIGNAL).unwrap();
        self.attend();
    }

    /// Rings for `channel` on processor `vp`.
    pub fn ring(&self, channel: u16, vp: u8) {
        self.doorbells[2048 + usize::from(channel)].store(vp + 1, Ordering::Release);
        self.attend();
    }

    fn attend(&self) {
        self.doorbells[2048].store(1, Ordering::Release);
        rustix::io::write(&self.ring, &1u64.to_ne_bytes()).unwrap();
    }

    /// Type, value and payload of the next message.
    pub fn receive(&self) -> (u16, u64, Vec<u8>) {
        let timeout = Timespec {
            tv_sec: LONG.as_secs() as i64,
            tv_nsec: 0,
        };
        let mut fds = [PollFd::new(&self.link, PollFlags::IN)];
        assert_eq!(poll(&mut fds, Some(&timeout)), Ok(1), "no message came");
        let mut message = [0; MESSAGE_BYTES];
        recv(&self.link, &mut message[..], RecvFlags::empty()).unwrap();
        let field = |at: usize| u32::from_le_bytes(*message[at..].first_chunk().unwrap());
        let value = u64::from(field(8)) | u64::from(field(12)) << 32;
        let end = 16 + field(4) as usize;
        (
            field(0).to_le_bytes()[2].into(),
            value,
            message[16..end].to_vec(),
        )
    }

    /// Waits for the end; its reason and what comes with it.
    pub fn end(mut self) -> (u64, Vec<u8>, GuestMemory) {
        const END: u16 = 3;
        let (reason, payload) = loop {
            let (kind, value, payload) = self.receive();
            if kind == END {
                break (value, payload);
            }
        };
        for thread in self.threads.drain(..) {
            thread.join().unwrap();
        }
        (reason, payload, self.memory)
    }

    pub fn read(&self, address: u64) -> u64 {
        self.memory.read(address).unwrap()
    }

    pub fn write(&self, address: u64, value: u64) {
        self.memory.write(address, value).unwrap();
    }

    pub fn copy(&self) -> Vec<u8> {
        let mut bytes = vec![0; MEMORY as usize];
        self.memory.read_bytes(0, &mut bytes).unwrap();
        bytes
    }

    /// Waits until the guest has stored something else than `before`; what it stored.
    pub fn wait_for_change(&self, address: u64, before: u64) -> u64 {
        let start = Instant::now();
        loop {
            let now = self.read(address);
            if now != before {
                return now;
            }
            assert!(start.elapsed() < LONG, "{address:#x} stays {before:#x}");
            thread::sleep(Duration::from_millis(1));
        }
    }
}

fn run(
    machine: &Machine,
    vp: usize,
    idle: Idle,
    [link, _, doorbells]: [RawFd; 3],
    seated: impl FnOnce(),
    state: Option<&[u8]>,
) {
    let processor = idle.start().unwrap();
    if vp == 0 {
        processor.watch(&link).unwrap();
        processor.watch(&doorbells).unwrap();
    }
    machine.seat(vp, Box::new(processor));
    seated();
    match vp {
        0 => machine.run(state),
        _ => machine.run_processor(vp),
    }
}

/// Results of a program, by the base of its things.
pub fn results<const N: usize>(memory: &GuestMemory, base: u64) -> [u64; N] {
    std::array::from_fn(|i| memory.read(base + RESULTS + 8 * i as u64).unwrap())
}

pub fn interrupts(memory: &GuestMemory, base: u64, vector: u8) -> u64 {
    let at = base + INTERRUPTS + 8 * u64::from(vector);
    memory.read(at).unwrap()
}
