//! What was refused during which test: the register names tests for each flow's kinds of bad input,
//! and `python -m tests.register.evidence` demands that one of them really raises each kind's counter.
//!
//! Only builds with debug assertions have this, and only the tests set `TEUTHIS_EVIDENCE`.

use crate::flows::Reject;
use std::{cell::RefCell, collections::HashSet, fs::OpenOptions, io::Write, thread};

thread_local! {
    static REFUSED: RefCell<HashSet<Reject>> = RefCell::default();
}

/// Notes a refusal in the test that is named like this thread.
pub fn refused(kind: Reject) {
    let first = REFUSED.with_borrow_mut(|refused| refused.insert(kind));
    let (true, Some(path)) = (first, std::env::var_os("TEUTHIS_EVIDENCE")) else {
        return;
    };
    let line = format!(
        "{} {} {}\n",
        thread::current().name().unwrap_or("?"),
        kind.flow().id(),
        kind.kind()
    );
    let file = OpenOptions::new().append(true).create(true).open(path);
    // One write each: tests run side by side.
    if let Err(error) = file.and_then(|mut file| file.write_all(line.as_bytes())) {
        panic!("TEUTHIS_EVIDENCE cannot be written: {error}");
    }
}
