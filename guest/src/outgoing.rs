//! Frames that wait to be sent, bounded by those who fill it.

use std::{
    io,
    os::fd::{AsRawFd, BorrowedFd},
};

use nix::{
    errno::Errno,
    sys::socket::{MsgFlags, send},
};

use crate::frames::Reply;

/// Above this many waiting bytes nothing more is read from programs and files.
const HIGH_WATER: usize = 64 << 10;

#[derive(Default)]
pub struct Outgoing {
    bytes: Vec<u8>,
    sent: usize,
}

impl Outgoing {
    pub fn push(&mut self, reply: &Reply) {
        reply.encode(&mut self.bytes);
    }

    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    pub fn has_room(&self) -> bool {
        self.bytes.len() - self.sent < HIGH_WATER
    }

    /// Sends what the stream takes now.
    pub fn flush(&mut self, stream: BorrowedFd) -> io::Result<()> {
        while self.sent < self.bytes.len() {
            let flags = MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT;
            match send(stream.as_raw_fd(), &self.bytes[self.sent..], flags) {
                Ok(count) => self.sent += count,
                Err(Errno::EAGAIN) => return Ok(()),
                Err(Errno::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        self.bytes.clear();
        self.sent = 0;
        Ok(())
    }
}
