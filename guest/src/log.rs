//! The agent's own messages go to the kernel's log: PID 1 has no terminal.

use std::{fs::OpenOptions, io::Write};

pub fn line(text: &str) {
    if let Ok(mut log) = OpenOptions::new().write(true).open("/dev/kmsg") {
        let _ = writeln!(log, "<4>teuthis-guest: {text}");
    }
}
