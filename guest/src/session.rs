//! One connection from the host: a command, a file, or the greeting.

use std::{
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags},
    sys::socket::{MsgFlags, recv},
    unistd::Pid,
};

use crate::{
    clock,
    command::Command,
    entropy,
    file::{Receiving, Sending},
    frames::{Decoder, Malformed, Reply, Request},
    log, network,
    outgoing::Outgoing,
    system, user,
};

pub struct Session {
    stream: OwnedFd,
    decoder: Decoder,
    outgoing: Outgoing,
    work: Work,
    /// A network that the host has told us of, and nobody has taken yet.
    pub network: Option<network::Pending>,
}

enum Work {
    /// Nothing asked for yet.
    Waiting,
    Command(Command),
    Sending(Sending),
    Receiving(Receiving),
    /// All is said. The host may ask for something else; what it sent before it knew is of no use.
    Over,
}

/// What becomes of a session after a step.
#[derive(Debug, PartialEq, Eq)]
pub enum Next {
    Continue,
    Close,
}

impl Session {
    pub fn new(stream: OwnedFd) -> Self {
        Self {
            stream,
            decoder: Decoder::default(),
            outgoing: Outgoing::default(),
            work: Work::Waiting,
            network: None,
        }
    }

    /// The session that stays open as long as the host is there.
    pub fn greeting(stream: OwnedFd) -> Self {
        let mut session = Self::new(stream);
        session.outgoing.push(&Reply::Hello);
        session
    }

    /// Whether the next thing that the host asks for here is a new one.
    pub fn is_idle(&self) -> bool {
        matches!(self.work, Work::Waiting | Work::Over)
    }

    /// Adds what this session waits for; when it is `held`, nothing new that the host asks for.
    pub fn interests<'a>(&'a self, fds: &mut Vec<PollFd<'a>>, held: bool) {
        let mut events = PollFlags::empty();
        events.set(PollFlags::POLLIN, !(held && self.is_idle()));
        // More file content can follow as soon as the stream takes bytes.
        let more = matches!(&self.work, Work::Sending(file) if file.can_read());
        events.set(PollFlags::POLLOUT, more || !self.outgoing.is_empty());
        fds.push(PollFd::new(self.stream.as_fd(), events));
        if let Work::Command(command) = &self.work {
            let mut want = |fd, events| fds.push(PollFd::new(fd, events));
            if let Some(stdin) = command.wants_to_write() {
                want(stdin, PollFlags::POLLOUT);
            }
            if self.outgoing.has_room() {
                command
                    .wants_to_read()
                    .for_each(|pipe| want(pipe, PollFlags::POLLIN));
            }
        }
    }

    /// Notices the end of this session's program.
    pub fn collect(&mut self) {
        if let Work::Command(command) = &mut self.work {
            command.collect();
        }
    }

    pub fn owns(&self, pid: Pid) -> bool {
        matches!(&self.work, Work::Command(command) if command.pid() == pid)
    }

    /// Does all that can be done now; `readable` says that the stream has something to read.
    pub fn advance(&mut self, readable: bool) -> Next {
        if readable {
            match self.receive() {
                Ok(Next::Continue) => {}
                Ok(next) => return next,
                Err(Malformed) => {
                    log::line("the host sent a malformed frame");
                    return Next::Close;
                }
            }
        }
        let over = match &mut self.work {
            Work::Command(command) => command.advance(&mut self.outgoing),
            Work::Sending(file) => match file.advance(&mut self.outgoing) {
                Ok(over) => over,
                Err(error) => self.fail("read", &error),
            },
            Work::Waiting | Work::Receiving(_) | Work::Over => false,
        };
        if over {
            self.work = Work::Over;
        }
        if self.outgoing.flush(self.stream.as_fd()).is_err() {
            return Next::Close;
        }
        Next::Continue
    }

    fn receive(&mut self) -> Result<Next, Malformed> {
        let mut buffer = [0; 1 << 14];
        match receive_now(self.stream.as_fd(), &mut buffer) {
            Ok(0) => return Ok(Next::Close),
            Ok(count) => self.decoder.push(&buffer[..count]),
            Err(Errno::EAGAIN | Errno::EINTR) => {}
            Err(_) => return Ok(Next::Close),
        }
        while let Some(request) = self.decoder.next_request()? {
            let next = self.handle(request)?;
            if next != Next::Continue {
                return Ok(next);
            }
        }
        Ok(Next::Continue)
    }

    fn handle(&mut self, request: Request) -> Result<Next, Malformed> {
        match (&mut self.work, request) {
            (_, Request::Entropy(bytes)) => {
                if let Err(error) = entropy::add(&bytes) {
                    log::line(&format!("entropy from the host: {error}"));
                }
            }
            (
                _,
                Request::Resumed {
                    entropy,
                    time,
                    news,
                },
            ) => {
                if let Err(error) = entropy::add(&entropy).and_then(|()| entropy::reseed()) {
                    log::line(&format!("entropy from the host: {error}"));
                }
                if let Err(error) = clock::set(time) {
                    log::line(&format!("time from the host: {error}"));
                }
                self.network = system::changed(&news).or(self.network.take());
            }
            (Work::Waiting | Work::Over, Request::Exec(exec)) => match Command::start(&exec) {
                Ok(command) => {
                    self.outgoing.push(&Reply::Started {
                        pid: command.pid().as_raw() as u32,
                    });
                    self.work = Work::Command(command);
                }
                Err(error) => {
                    let program = exec
                        .argv
                        .first()
                        .map(|name| name.to_string_lossy().into_owned());
                    let what = match error.raw_os_error() {
                        Some(code) if code == Errno::ENOTDIR as i32 => {
                            exec.directory.display().to_string()
                        }
                        Some(code) if user::describe(code).is_some() => {
                            exec.user.display().to_string()
                        }
                        _ => program.unwrap_or_default(),
                    };
                    self.fail(&what, &error);
                }
            },
            (Work::Waiting | Work::Over, Request::ReadFile(path)) => match Sending::open(&path) {
                Ok(file) => self.work = Work::Sending(file),
                Err(error) => _ = self.fail(&path.to_string_lossy(), &error),
            },
            (Work::Waiting | Work::Over, Request::WriteFile { mode, path }) => {
                match Receiving::create(&path, mode) {
                    Ok(file) => self.work = Work::Receiving(file),
                    Err(error) => _ = self.fail(&path.to_string_lossy(), &error),
                }
            }
            (Work::Command(command), Request::Stdin(bytes)) => {
                if !command.push_input(&bytes) {
                    return Err(Malformed);
                }
            }
            (Work::Command(command), Request::StdinEof) => command.end_input(),
            (Work::Command(command), Request::Signal(number)) => command.signal(number),
            (Work::Command(command), Request::Resize(size)) => command.resize(size),
            (Work::Command(command), Request::Window { stream, credit }) => {
                command.grant(stream, credit);
            }
            (Work::Sending(file), Request::Window { credit, .. }) => file.grant(credit),
            (Work::Receiving(file), Request::Stdin(bytes)) => {
                if let Err(error) = file.write(&bytes, &mut self.outgoing) {
                    self.fail("write", &error);
                }
            }
            (Work::Receiving(file), Request::StdinEof) => {
                file.finish(&mut self.outgoing);
                self.work = Work::Over;
            }
            (Work::Over, _) => {}
            _ => return Err(Malformed),
        }
        Ok(Next::Continue)
    }

    /// Tells the host what went wrong and ends the work. Returns that it is over.
    fn fail(&mut self, what: &str, error: &io::Error) -> bool {
        let errno = error.raw_os_error().unwrap_or(Errno::EINVAL as i32);
        let why = user::describe(errno).unwrap_or_else(|| Errno::from_raw(errno).desc());
        let text = format!("{what}: {why}");
        self.outgoing.push(&Reply::Error {
            errno: errno as u32,
            text: &text,
        });
        self.work = Work::Over;
        true
    }
}

fn receive_now(stream: BorrowedFd, buffer: &mut [u8]) -> nix::Result<usize> {
    recv(stream.as_raw_fd(), buffer, MsgFlags::MSG_DONTWAIT)
}
