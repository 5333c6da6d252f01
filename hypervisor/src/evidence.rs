//! Which flows were refused during which test: the register names a test for each kind of bad
//! input, and `python -m tests.register.evidence` demands that it really raises the flow's counter.
//!
//! Only builds with debug assertions have this, and only the tests set `TEUTHIS_EVIDENCE`.

use crate::flows::Flow;
use std::{cell::RefCell, collections::HashSet, fs::OpenOptions, io::Write, thread};

thread_local! {
    static REFUSED: RefCell<HashSet<Flow>> = RefCell::default();
}

/// Notes that `flow` refused something in the test that is named like this thread.
pub fn refused(flow: Flow) {
    let first = REFUSED.with_borrow_mut(|refused| refused.insert(flow));
    let (true, Some(path)) = (first, std::env::var_os("TEUTHIS_EVIDENCE")) else {
        return;
    };
    let line = format!(
        "{} {}\n",
        thread::current().name().unwrap_or("?"),
        flow.id()
    );
    let file = OpenOptions::new().append(true).create(true).open(path);
    // One write each: tests run side by side.
    if let Err(error) = file.and_then(|mut file| file.write_all(line.as_bytes())) {
        panic!("TEUTHIS_EVIDENCE cannot be written: {error}");
    }
}
