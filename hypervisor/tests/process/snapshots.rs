//! Saving in one process, restoring in another.

use super::*;
use teuthis_hypervisor::record::{HEADER_BYTES, Malformed, checksum};

const PAUSE: u16 = 21;
const RESUME: u16 = 22;
const SAVE: u16 = 23;

/// Counts in RBX, and says each number on port 0x80 after it was written to RAM at 0x3000:
/// XOR EBX, EBX; loop: INC EBX; MOV [0x3000], EBX; OUT 0x80, AL; JMP loop.
const COUNT: &[u8] = &[
    0x31, 0xDB, 0xFF, 0xC3, 0x89, 0x1C, 0x25, 0x00, 0x30, 0, 0, 0xE6, 0x80, 0xEB, 0xF3,
];

impl Vm {
    /// The saved state, of a machine that then stands still.
    fn save(&self) -> Vec<u8> {
        self.send(PAUSE, 0, &[]);
        assert_eq!(self.receive(), (5, 0, vec![]));
        self.send(SAVE, 0, &[]);
        let mut state = vec![];
        loop {
            let (kind, left, piece) = self.receive();
            assert_eq!(kind, 6);
            state.extend(piece);
            if left == 0 {
                return state;
            }
        }
    }

    fn counter(&self) -> u32 {
        let memory = GuestMemory::map(&self.ram, MEMORY).unwrap();
        memory.read(0x3000).unwrap()
    }
}

fn document(content: &[u8]) -> OwnedFd {
    let fd = file("document", 0);
    rustix::io::write(&fd, content).unwrap();
    rustix::fs::seek(&fd, rustix::fs::SeekFrom::Start(0)).unwrap();
    fd
}

#[test]
fn a_machine_goes_on_in_another_process() {
    let vm = Vm::started(COUNT);
    let start = Instant::now();
    while vm.counter() == 0 {
        assert!(start.elapsed() < LONG, "it does not count");
        sleep(Duration::from_millis(1));
    }
    let state = vm.save();
    let stopped = vm.counter();
    sleep(Duration::from_millis(50));
    assert_eq!(vm.counter(), stopped, "it stands still");

    // The memory of the first is the template of the second, whose own is empty.
    let template = file("template", MEMORY);
    let (from, to) = (
        GuestMemory::map(&vm.ram, MEMORY).unwrap(),
        GuestMemory::map(&template, MEMORY).unwrap(),
    );
    let mut bytes = vec![0; MEMORY as usize];
    from.read_bytes(0, &mut bytes).unwrap();
    to.write_bytes(0, &bytes).unwrap();
    let pages = file("pages", 4096 + MEMORY / 4096);
    let restored = Vm::restored(&document(&state), &template, &pages);
    assert_eq!(restored.counter(), 0);
    restored.send(16, 0, &[]);
    assert_eq!(
        restored.receive(),
        (5, 0, vec![]),
        "it begins standing still"
    );
    assert_eq!(restored.counter(), 0);
    restored.send(RESUME, 0, &[]);
    while restored.counter() <= stopped {
        assert!(start.elapsed() < LONG, "it does not go on");
        sleep(Duration::from_millis(1));
    }
    assert_eq!(vm.counter(), stopped);
    assert_eq!(
        to.read::<u32>(0x3000),
        Some(stopped),
        "the template is as it was"
    );
    let present = Shared::<AtomicU8>::map(&pages, 4096 + 1024).unwrap();
    let present = |page: usize| present[4096 + page].load(Ordering::Relaxed);
    assert_eq!((present(3), present(0x10), present(0x20)), (1, 0, 0));

    vm.send(RESUME, 0, &[]);
    while vm.counter() == stopped {
        assert!(start.elapsed() < LONG, "the first does not go on");
        sleep(Duration::from_millis(1));
    }
}

#[test]
fn a_sleeping_machine_is_saved_too_and_stopped_while_it_stands() {
    let mut vm = Vm::started(IDLE);
    vm.wait_for(Flow::InterceptHalt);
    let first = vm.save();
    vm.send(RESUME, 0, &[]);
    let second = vm.save();
    assert_eq!(first.len(), second.len());
    vm.send(17, 0, &[]);
    assert_eq!(vm.reason(), 7);
    assert_eq!(vm.wait().code(), Some(0));
}

#[test]
fn messages_out_of_order_end_the_vm() {
    for order in [&[RESUME][..], &[SAVE], &[PAUSE, PAUSE], &[PAUSE, 16]] {
        let vm = Vm::started(SPIN);
        for &kind in order {
            vm.send(kind, 0, &[]);
        }
        assert_eq!(vm.reason(), 6, "{order:?}");
    }
}

#[test]
fn a_state_that_is_none_is_refused_by_name() {
    let mut newer = vec![];
    newer.extend(b"TEUTHIS\0");
    newer.extend(99u32.to_le_bytes());
    let saved = Vm::started(SPIN).save();
    let changed = |at: usize| {
        let mut state = saved.clone();
        let end = state.len() - 8;
        state[HEADER_BYTES + at] = 0xFF;
        let sum = checksum(&state[..end]);
        state[end..].copy_from_slice(&sum.to_le_bytes());
        state
    };
    for (state, reason) in [
        (vec![], Malformed::Foreign),
        (vec![7; 5000], Malformed::Foreign),
        (newer, Malformed::Version(99)),
        (changed(0), Malformed::Value("another number of processors")),
        (changed(8), Malformed::Processor),
        (changed(9), Malformed::Value("the processor's state")),
    ] {
        let template = file("template", MEMORY);
        let pages = file("pages", 4096 + MEMORY / 4096);
        let mut vm = Vm::restored(&document(&state), &template, &pages);
        vm.send(16, 0, &[]);
        let (kind, _, text) = vm.receive();
        assert_eq!(
            (kind, String::from_utf8(text).unwrap()),
            (4, reason.to_string())
        );
        assert_eq!(vm.reason(), 8);
        assert_eq!(vm.wait().code(), Some(0));
    }
}

#[test]
fn files_that_are_too_short_are_refused() {
    for (template, pages) in [(MEMORY - 1, 4096 + 1024), (MEMORY, 4096 + 1023)] {
        let (template, pages) = (file("template", template), file("pages", pages));
        let mut vm = Vm::restored(&document(&[]), &template, &pages);
        assert_eq!(vm.wait().code(), Some(1));
    }
}
