//! A worker for unit tests: remembers what it was told.

use super::Worker;

#[derive(Default)]
pub struct Recorder {
    pub posted: Vec<(u32, u32, Vec<u8>)>,
    pub signalled: Vec<u16>,
    pub full: bool,
}

impl Worker for Recorder {
    fn post_message(&mut self, connection: u32, kind: u32, payload: &[u8]) -> bool {
        if !self.full {
            self.posted.push((connection, kind, payload.to_vec()));
        }
        !self.full
    }

    fn signal(&mut self, channel: u16) {
        self.signalled.push(channel);
    }
}
