//! Short texts for the log about what was refused: each thing once, and only so many in all, so
//! that a guest cannot flood the log.

use crate::flows::Flow;
use std::collections::BTreeSet;

const MAX: usize = 32;

#[derive(Default)]
pub struct Notes {
    seen: BTreeSet<(Flow, u64)>,
    waiting: Vec<String>,
}

impl Notes {
    pub fn add(&mut self, flow: Flow, number: u64, what: &str) {
        if self.seen.len() < MAX && self.seen.insert((flow, number)) {
            self.waiting.push(format!("{what} {number:#x}"));
        }
    }

    /// The texts that nobody has taken yet.
    pub fn take(&mut self) -> Vec<String> {
        std::mem::take(&mut self.waiting)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_thing_is_noted_once_and_not_without_end() {
        let mut notes = Notes::default();
        notes.add(Flow::MsrUnknown, 0x8B, "refused MSR");
        notes.add(Flow::MsrUnknown, 0x8B, "refused MSR");
        assert_eq!(notes.take(), ["refused MSR 0x8b"]);
        for number in 0..1000 {
            notes.add(Flow::MsrUnknown, number, "refused MSR");
        }
        assert_eq!(notes.take().len(), MAX - 1);
        assert_eq!(notes.take().len(), 0);
    }
}
