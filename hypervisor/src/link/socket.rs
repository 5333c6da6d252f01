//! The socket under the messages.

use super::{End, FromWorker, MESSAGE_BYTES, ToWorker};
use crate::counters::Counters;
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
    net::{RecvFlags, SendFlags, recv, send},
};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// This end of it. Never blocks, but for [`Link::send_last`] and [`Link::wait`].
pub struct Link {
    socket: OwnedFd,
    processors: usize,
    counters: Counters,
}

impl Link {
    /// Of a machine with so many processors.
    pub fn new(socket: OwnedFd, processors: usize, counters: Counters) -> Self {
        Self {
            socket,
            processors,
            counters,
        }
    }

    /// Sends a message; `false` when the link is full or closed, and nothing was sent.
    pub fn send(&self, message: &ToWorker) -> bool {
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        retry(|| send(&self.socket, &message.encode(), flags)).is_ok()
    }

    /// Sends a message that must not get lost, waiting up to a second for room.
    pub fn send_last(&self, message: &ToWorker) {
        for _ in 0..50 {
            if self.send(message) {
                return;
            }
            let mut fds = [PollFd::new(&self.socket, PollFlags::OUT)];
            let _ = poll(&mut fds, Some(&milliseconds(20)));
            if fds[0].revents().intersects(PollFlags::HUP | PollFlags::ERR) {
                return;
            }
        }
    }

    /// The next message, if there is one; an end of the VM when the worker is gone or hostile.
    pub fn receive(&self) -> Result<Option<FromWorker>, End> {
        // One byte more than a message, so that a longer one is seen to be longer.
        let mut buffer = [0; MESSAGE_BYTES + 1];
        let received = retry(|| recv(&self.socket, &mut buffer[..], RecvFlags::DONTWAIT));
        let length = match received {
            Ok((0, _)) => return Err(End::WorkerGone),
            Ok((length, _)) => length,
            Err(Errno::AGAIN) => return Ok(None),
            Err(_) => return Err(End::WorkerGone),
        };
        let packet = buffer.get(..length).unwrap_or(&[]);
        let message = FromWorker::counted(packet, self.processors, &self.counters);
        message.map(Some).map_err(|_| End::WorkerViolation)
    }

    /// Blocks until the worker's first message.
    pub fn wait(&self) -> Result<FromWorker, End> {
        loop {
            if let Some(message) = self.receive()? {
                return Ok(message);
            }
            let _ = poll(&mut [PollFd::new(&self.socket, PollFlags::IN)], None);
        }
    }

    /// Whether the worker has closed its end, seen without reading what it sent before.
    pub fn is_closed(&self) -> bool {
        let mut fds = [PollFd::new(&self.socket, PollFlags::RDHUP)];
        let _ = poll(&mut fds, Some(&milliseconds(0)));
        !fds[0].revents().is_empty()
    }

    /// Readable when the worker sent something: what a halted processor sleeps on.
    pub fn descriptor(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

const fn milliseconds(count: i64) -> Timespec {
    Timespec {
        tv_sec: count / 1000,
        tv_nsec: count % 1000 * 1_000_000,
    }
}

fn retry<T>(mut call: impl FnMut() -> rustix::io::Result<T>) -> rustix::io::Result<T> {
    loop {
        match call() {
            Err(Errno::INTR) => {}
            result => return result,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::link::frame;
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

    #[test]
    fn a_full_link_refuses_and_a_closed_one_ends() {
        let (ours, worker) = socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )
        .unwrap();
        let link = Link::new(ours, 2, Counters::anonymous().unwrap());
        let mut sent = 0;
        while link.send(&ToWorker::Console(b"x")) {
            sent += 1;
            assert!(sent < 100_000, "the link takes messages without end");
        }
        assert!(!link.is_closed());
        assert_eq!(link.receive(), Ok(None));
        send(&worker, &frame(17, 0, &[]), SendFlags::empty()).unwrap();
        assert_eq!(link.receive(), Ok(Some(FromWorker::Stop)));
        send(&worker, &[0; 1000], SendFlags::empty()).unwrap();
        assert_eq!(link.receive(), Err(End::WorkerViolation));
        drop(worker);
        assert!(link.is_closed());
        assert_eq!(link.receive(), Err(End::WorkerGone));
    }
}
