//! The program as the root side starts it: a tiny guest inside, a played worker at the other end of
//! its link.

mod recording;
mod snapshots;

use rustix::{
    event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll},
    fs::{MemfdFlags, ftruncate, memfd_create},
    io::{FdFlags, fcntl_setfd},
    net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socketpair},
};
use std::{
    fs,
    os::fd::{AsRawFd, OwnedFd},
    process::{Child, Command, ExitStatus, Stdio},
    sync::atomic::{AtomicU8, Ordering},
    thread::sleep,
    time::{Duration, Instant},
};
use teuthis_hypervisor::{
    counters::Counters,
    flows::{Flow, Reject},
    jail,
    link::{MESSAGE_BYTES, frame},
    memory::GuestMemory,
    shared::Shared,
};

const MEMORY: u64 = 4 << 20;
const CODE: u64 = 0x1_0000;
const SPIN: &[u8] = &[0xEB, 0xFE];
/// STI; HLT; again.
const IDLE: &[u8] = &[0xFB, 0xF4, 0xEB, 0xFD];
/// CLI; HLT.
const HALT: &[u8] = &[0xFA, 0xF4];
/// Nothing is to take longer, on a loaded host either.
const LONG: Duration = Duration::from_secs(100);

struct Vm {
    child: Child,
    ram: OwnedFd,
    link: OwnedFd,
    doorbells: Shared<AtomicU8>,
    counters: Counters,
    to_hypervisor: OwnedFd,
}

fn inherited(fd: &OwnedFd) -> String {
    fcntl_setfd(fd, FdFlags::empty()).unwrap();
    fd.as_raw_fd().to_string()
}

fn file(name: &str, size: u64) -> OwnedFd {
    let fd = memfd_create(name, MemfdFlags::CLOEXEC).unwrap();
    ftruncate(&fd, size).unwrap();
    fd
}

/// RAM with a guest in it, and how the guest starts.
fn guest(code: &[u8]) -> (OwnedFd, [(&'static str, String); 6]) {
    let ram = file("ram", MEMORY);
    let memory = GuestMemory::map(&ram, MEMORY).unwrap();
    memory.write(0x1000, 0x2003u64).unwrap(); // page map
    memory.write(0x2000, 0x83u64).unwrap(); // one 1 GiB page at 0
    memory.write(0x5010, 0x00AF_9B00_0000_FFFFu64).unwrap();
    memory.write(0x5018, 0x00CF_9300_0000_FFFFu64).unwrap();
    memory.write_bytes(CODE, code).unwrap();
    let start = [
        ("rip", CODE.to_string()),
        ("rsi", "0".into()),
        ("rsp", "0x20000".into()),
        ("cr3", "0x1000".into()),
        ("gdt-base", "0x5000".into()),
        ("gdt-limit", "31".into()),
    ];
    (ram, start)
}

impl Vm {
    fn spawn(code: &[u8]) -> Self {
        let (ram, start) = guest(code);
        Self::with(ram, &start)
    }

    /// Where a saved machine stopped; its own RAM is empty.
    fn restored(state: &OwnedFd, template: &OwnedFd, pages: &OwnedFd) -> Self {
        let start = [
            ("state-fd", inherited(state)),
            ("template-fd", inherited(template)),
            ("pages-fd", inherited(pages)),
        ];
        Self::with(file("ram", MEMORY), &start)
    }

    fn with(ram: OwnedFd, start: &[(&str, String)]) -> Self {
        let kind = SocketType::SEQPACKET;
        let (link, theirs) =
            socketpair(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None).unwrap();
        let page = file("doorbells", 4096);
        let counts = file("counters", 1 << 16);
        let event = || eventfd(0, EventfdFlags::CLOEXEC).unwrap();
        let (to_worker, to_hypervisor) = (event(), event());
        let mut command = Command::new(env!("CARGO_BIN_EXE_teuthis-hypervisor"));
        let walls = jail::WALLS.map(|wall| wall.name).join(",");
        let options = [
            ("memory-size", MEMORY.to_string()),
            ("memory-fd", inherited(&ram)),
            ("link-fd", inherited(&theirs)),
            ("doorbells-fd", inherited(&page)),
            ("to-worker-fd", inherited(&to_worker)),
            ("to-hypervisor-fd", inherited(&to_hypervisor)),
            ("counters-fd", inherited(&counts)),
            // Whether the walls stand is another test's question; here none may be in the way.
            ("allow-missing-walls", walls),
        ];
        for (option, value) in options.iter().chain(start) {
            command.arg(format!("--{option}")).arg(value);
        }
        command.env_clear().stdin(Stdio::null());
        let child = command.spawn().unwrap();
        Self {
            child,
            ram,
            link,
            doorbells: Shared::map(&page, 4096).unwrap(),
            counters: Counters::map(&counts).unwrap(),
            to_hypervisor,
        }
    }

    fn started(code: &[u8]) -> Self {
        let vm = Self::spawn(code);
        vm.send(16, 0, &[]);
        vm
    }

    fn send(&self, kind: u16, value: u64, payload: &[u8]) {
        let message = frame(kind.into(), value, payload);
        send(&self.link, &message, SendFlags::NOSIGNAL).unwrap();
        self.doorbells[2048].store(1, Ordering::Release);
    }

    /// Type, value and payload of the next message.
    fn receive(&self) -> (u16, u64, Vec<u8>) {
        let timeout = Timespec {
            tv_sec: LONG.as_secs() as i64,
            tv_nsec: 0,
        };
        let mut fds = [PollFd::new(&self.link, PollFlags::IN)];
        assert_eq!(poll(&mut fds, Some(&timeout)), Ok(1), "no message came");
        let mut message = [0; MESSAGE_BYTES];
        let (length, _) = recv(&self.link, &mut message[..], RecvFlags::empty()).unwrap();
        assert_eq!(length, MESSAGE_BYTES);
        let number = |range: std::ops::Range<usize>| {
            let bytes = message[range].iter().rev();
            bytes.fold(0u64, |value, &byte| value << 8 | u64::from(byte))
        };
        let payload = message[16..16 + number(4..8) as usize].to_vec();
        (number(2..4) as u16, number(8..16), payload)
    }

    /// Waits for END; its reason.
    fn reason(&self) -> u64 {
        loop {
            if let (3, reason, _) = self.receive() {
                return reason;
            }
        }
    }

    fn wait(&mut self) -> ExitStatus {
        let start = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(start.elapsed() < LONG, "it does not end");
            sleep(Duration::from_millis(1));
        }
    }

    fn count(&self, flow: Flow) -> u64 {
        self.counters.get(flow).count
    }

    /// Waits until `flow` has been counted.
    fn wait_for(&self, flow: Flow) {
        let start = Instant::now();
        while self.count(flow) == 0 {
            assert!(start.elapsed() < LONG, "{flow:?} never happened");
            sleep(Duration::from_millis(1));
        }
    }

    /// Processor time used so far, in clock ticks of 10 ms.
    fn ticks(&self) -> u64 {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.child.id())).unwrap();
        let (_, fields) = stat.rsplit_once(") ").unwrap();
        let fields: Vec<&str> = fields.split(' ').collect();
        fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        note_refusals(&self.counters);
    }
}

/// What the process refused, this test made it refuse.
fn note_refusals(counters: &Counters) {
    #[cfg(debug_assertions)]
    for kind in Reject::ALL {
        if counters.rejected(kind) > 0 {
            teuthis_hypervisor::evidence::refused(kind);
        }
    }
}

#[test]
fn nothing_runs_before_start() {
    // OUT 0x80, AL; then halt for ever.
    let mut vm = Vm::spawn(&[&[0xE6, 0x80], HALT].concat());
    sleep(Duration::from_millis(200));
    assert_eq!(vm.count(Flow::InterceptHalt), 0);
    vm.send(16, 0, &[]);
    assert_eq!(vm.reason(), 5);
    assert_eq!(vm.wait().code(), Some(0));
}

#[test]
fn a_spinning_guest_is_stopped() {
    let mut vm = Vm::started(SPIN);
    vm.wait_for(Flow::LinkStart);
    vm.send(17, 0, &[]);
    assert_eq!(vm.reason(), 7);
    assert_eq!(vm.wait().code(), Some(0));
}

#[test]
fn the_workers_death_ends_a_spinning_guest_and_a_sleeping_one() {
    for code in [SPIN, IDLE] {
        let mut vm = Vm::started(code);
        vm.wait_for(Flow::LinkStart);
        let (none, _) = socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )
        .unwrap();
        drop(std::mem::replace(&mut vm.link, none));
        assert_eq!(vm.wait().code(), Some(0));
    }
}

#[test]
fn a_hostile_worker_ends_the_vm() {
    let second_start = (16, 0, &[][..]);
    for (kind, value, payload) in [
        second_start,
        (1, 0, &[]),
        (99, 0, &[]),
        (18, 16 | 1 << 32, &[]),
        (18, 2 | 1 << 32, &[0; 241]),
        (19, 0x1_0000, &[]),
    ] {
        let mut vm = Vm::started(SPIN);
        vm.send(kind, value, payload);
        assert_eq!(vm.reason(), 6, "message {kind}");
        assert_eq!(vm.wait().code(), Some(0));
    }
}

#[test]
fn nothing_but_start_and_stop_may_come_first() {
    let message = (18, 2 | 1 << 32);
    for (kind, value) in [
        message,
        (19, 0x2001),
        (20, 0x2001),
        (21, 0),
        (22, 0),
        (23, 0),
    ] {
        let mut vm = Vm::spawn(SPIN);
        vm.send(kind, value, &[]);
        assert_eq!(vm.reason(), 6, "message {kind}");
        assert_eq!(vm.wait().code(), Some(0));
    }
}

#[test]
fn an_idle_guest_uses_no_processor_time() {
    let vm = Vm::started(IDLE);
    vm.wait_for(Flow::InterceptHalt);
    let before = vm.ticks();
    sleep(Duration::from_millis(500));
    assert!(vm.ticks() - before <= 1, "the process does not sleep");
}

#[test]
fn console_output_arrives_line_by_line_and_at_the_end() {
    // MOV EDX, 3F8; then each byte: MOV AL, byte; OUT DX, AL.
    let mut code = vec![0xBA, 0xF8, 0x03, 0, 0];
    for byte in *b"one\ntwo" {
        code.extend([0xB0, byte, 0xEE]);
    }
    code.extend(HALT);
    let vm = Vm::started(&code);
    assert_eq!(vm.receive(), (2, 0, b"one\n".to_vec()));
    assert_eq!(vm.receive(), (2, 0, b"two".to_vec()));
    assert_eq!(vm.receive(), (3, 5, vec![]));
}

#[test]
fn doorbells_are_taken_from_a_running_guest_and_from_a_sleeping_one() {
    for code in [SPIN, IDLE] {
        let vm = Vm::started(code);
        vm.wait_for(Flow::LinkStart);
        vm.doorbells[2048 + 5].store(1, Ordering::Release);
        vm.doorbells[2048].store(1, Ordering::Release);
        rustix::io::write(&vm.to_hypervisor, &1u64.to_ne_bytes()).unwrap();
        vm.wait_for(Flow::DoorbellToHypervisor);
        assert_eq!(vm.doorbells[2048 + 5].load(Ordering::Relaxed), 0);
    }
}

#[test]
fn an_unknown_instruction_is_named_before_the_end() {
    let vm = Vm::started(&[0xC5, 0xF9, 0xFE, 0xC0]); // VPADDD XMM0, XMM0, XMM0
    let (kind, _, text) = vm.receive();
    let text = String::from_utf8(text).unwrap();
    assert!(
        kind == 4 && text.to_lowercase().contains("vpaddd"),
        "{text}"
    );
    assert_eq!(vm.reason(), 3, "without an IDT, #UD becomes a triple fault");
}
