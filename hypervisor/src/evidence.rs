//! What was refused during which test: the register names tests for each flow's kinds of bad input,
//! and `python -m tests.register.evidence` demands that one of them really raises each kind's counter.
//!
//! Only builds with debug assertions have this, and only the tests set `TEUTHIS_EVIDENCE`.

use crate::flows::{Flow, Reject};
use std::{cell::RefCell, collections::HashSet, fs::OpenOptions, io::Write, thread};

thread_local! {
    static REFUSED: RefCell<HashSet<Reject>> = RefCell::default();
    static REACHED: RefCell<HashSet<Flow>> = RefCell::default();
    static FUZZES: bool = thread::current().name().is_some_and(|name| name.starts_with(FUZZ));
}

/// Threads that run a fuzz target are named like it, after this.
pub const FUZZ: &str = "fuzz::";

/// Notes that a fuzz target has reached the handler of `flow`, which counts it.
pub fn reached(flow: Flow) {
    if FUZZES.with(|fuzzes| *fuzzes) && REACHED.with_borrow_mut(|reached| reached.insert(flow)) {
        write(flow.id());
    }
}

/// Notes a refusal in the test that is named like this thread.
pub fn refused(kind: Reject) {
    let first = REFUSED.with_borrow_mut(|refused| refused.insert(kind));
    if first {
        write(&format!("{} {}", kind.flow().id(), kind.kind()));
    }
}

fn write(what: &str) {
    let Some(path) = std::env::var_os("TEUTHIS_EVIDENCE") else {
        return;
    };
    let line = format!("{} {what}\n", thread::current().name().unwrap_or("?"));
    let file = OpenOptions::new().append(true).create(true).open(path);
    // One write each: tests run side by side.
    if let Err(error) = file.and_then(|mut file| file.write_all(line.as_bytes())) {
        panic!("TEUTHIS_EVIDENCE cannot be written: {error}");
    }
}
