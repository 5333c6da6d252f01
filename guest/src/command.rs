//! A running program: its pipes, its credits, its end.

use std::{
    ffi::OsStr,
    fs::File,
    io::{self, ErrorKind, Read, Write},
    iter,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::Path,
};

use nix::{
    errno::Errno,
    fcntl::{FcntlArg, OFlag, fcntl},
    sys::{
        signal::{Signal, killpg},
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::{Pid, fchown},
};

use crate::{
    frames::{Exec, INITIAL_CREDIT, MAX_DATA_BYTES, Reply, Stream},
    outgoing::Outgoing,
    setting::{Setting, find},
    terminal::{self, Size},
    user, warm,
};

const SHELL: &str = "/bin/sh";
/// Consumed bytes of stdin are reported in portions of at least this size.
const WINDOW_STEP: u32 = INITIAL_CREDIT / 4;
/// ^D: what ends the input of a terminal.
const END_OF_TRANSMISSION: u8 = 4;

pub struct Command {
    pid: Pid,
    input: Input,
    stdout: Output,
    stderr: Output,
    /// Our end of its terminal, if it has one.
    terminal: Option<File>,
    end: Option<WaitStatus>,
}

/// Both ends of what a program reads and writes.
struct Streams {
    program: [OwnedFd; 3],
    stdin: OwnedFd,
    stdout: OwnedFd,
    stderr: Option<OwnedFd>,
    terminal: Option<File>,
}

/// The program's standard input and what waits for it: never more than the credit given.
struct Input {
    pipe: Option<File>,
    waiting: Vec<u8>,
    credit: u32,
    consumed: u32,
    ends: bool,
}

struct Output {
    stream: Stream,
    pipe: Option<File>,
    credit: u32,
    /// After the program's end: how much the pipe can still hold from before it.
    left: Option<usize>,
}

impl Command {
    /// Starts a program in a process group of its own, with a terminal in a session of its own.
    pub fn start(exec: &Exec) -> io::Result<Self> {
        let Some((name, arguments)) = exec.argv.split_first() else {
            return Err(Errno::EINVAL.into());
        };
        let user = user::find(&exec.user)?;
        let streams = match exec.terminal {
            Some(size) => Streams::terminal(size)?,
            None => Streams::pipes()?,
        };
        if let Some(user) = &user {
            // So that it may open its /dev/stdout, or its terminal, once more.
            for stream in &streams.program {
                fchown(stream, Some(user.uid), None)?;
            }
        }
        let setting = Setting::of(exec, &streams.program, user.as_ref())?;
        let pid = match warm::start(&exec.argv, &setting) {
            Some(started) => started?,
            None => {
                let program = find(name, &exec.environment);
                match setting.start(&program, name, arguments) {
                    // A script that names no interpreter is the shell's, as `execvp` has it.
                    Err(error) if error.raw_os_error() == Some(Errno::ENOEXEC as i32) => {
                        let script = iter::once(program.into_os_string());
                        let words: Vec<_> = script.chain(arguments.iter().cloned()).collect();
                        setting.start(Path::new(SHELL), OsStr::new(SHELL), &words)?
                    }
                    spawned => spawned?,
                }
            }
        };
        Ok(Self {
            pid,
            input: Input {
                pipe: Some(non_blocking(streams.stdin)?),
                waiting: Vec::new(),
                credit: INITIAL_CREDIT,
                consumed: 0,
                ends: false,
            },
            stdout: Output::new(Stream::Stdout, Some(streams.stdout))?,
            stderr: Output::new(Stream::Stderr, streams.stderr)?,
            terminal: streams.terminal,
            end: None,
        })
    }

    pub fn pid(&self) -> Pid {
        self.pid
    }

    /// Sends a signal to the program and everything in its process group.
    pub fn signal(&self, number: u32) {
        let signal = i32::try_from(number)
            .ok()
            .and_then(|number| Signal::try_from(number).ok());
        if let Some(signal) = signal
            && self.end.is_none()
        {
            let _ = killpg(self.pid, signal);
        }
    }

    /// Takes bytes for stdin; `false` when the host exceeds its credit.
    #[must_use]
    pub fn push_input(&mut self, bytes: &[u8]) -> bool {
        let Some(credit) = self.input.credit.checked_sub(bytes.len() as u32) else {
            return false;
        };
        self.input.credit = credit;
        self.input.waiting.extend(bytes);
        true
    }

    pub fn end_input(&mut self) {
        if self.terminal.is_some() {
            self.input.waiting.push(END_OF_TRANSMISSION);
        }
        self.input.ends = true;
    }

    /// Changes the size of its terminal.
    pub fn resize(&self, size: Size) {
        if let Some(terminal) = &self.terminal {
            terminal::resize(terminal, size);
        }
    }

    /// Grants credit for output.
    pub fn grant(&mut self, stream: Stream, credit: u32) {
        let output = match stream {
            Stream::Stdout => &mut self.stdout,
            Stream::Stderr => &mut self.stderr,
        };
        output.credit = output.credit.saturating_add(credit);
    }

    /// The pipe to write to, while there is something to write.
    pub fn wants_to_write(&self) -> Option<BorrowedFd<'_>> {
        self.input
            .pipe
            .as_ref()
            .filter(|_| !self.input.waiting.is_empty())
            .map(AsFd::as_fd)
    }

    /// The pipes to read from, while there is credit.
    pub fn wants_to_read(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        [&self.stdout, &self.stderr]
            .into_iter()
            .filter(|output| output.credit > 0)
            .filter_map(|output| output.pipe.as_ref().map(AsFd::as_fd))
    }

    /// Notices the program's end, if it is the one that ended.
    pub fn collect(&mut self) {
        if self.end.is_some() {
            return;
        }
        let status = waitpid(self.pid, Some(WaitPidFlag::WNOHANG));
        if let Ok(status @ (WaitStatus::Exited(..) | WaitStatus::Signaled(..))) = status {
            self.end = Some(status);
            self.input.pipe = None;
            self.stdout.last_call();
            self.stderr.last_call();
        }
    }

    /// Moves bytes between the pipes and the host. True when all is said, the end included.
    pub fn advance(&mut self, outgoing: &mut Outgoing) -> bool {
        self.input.write(outgoing, self.end.is_none());
        self.stdout.read(outgoing);
        self.stderr.read(outgoing);
        if self.stdout.pipe.is_some() || self.stderr.pipe.is_some() {
            return false;
        }
        match self.end {
            Some(WaitStatus::Exited(_, code)) => {
                outgoing.push(&Reply::Exited { code: code as u32 });
                true
            }
            Some(WaitStatus::Signaled(_, signal, _)) => {
                outgoing.push(&Reply::Killed {
                    signal: signal as u32,
                });
                true
            }
            _ => false,
        }
    }
}

impl Streams {
    fn pipes() -> io::Result<Self> {
        let ((input, stdin), (stdout, output), (stderr, errors)) =
            (io::pipe()?, io::pipe()?, io::pipe()?);
        Ok(Self {
            program: [input.into(), output.into(), errors.into()],
            stdin: stdin.into(),
            stdout: stdout.into(),
            stderr: Some(stderr.into()),
            terminal: None,
        })
    }

    fn terminal(size: Size) -> io::Result<Self> {
        let (ours, program) = terminal::open(size)?;
        Ok(Self {
            program: [program.try_clone()?, program.try_clone()?, program],
            stdin: ours.try_clone()?.into(),
            stdout: ours.try_clone()?.into(),
            stderr: None,
            terminal: Some(ours),
        })
    }
}

impl Drop for Command {
    /// The host has gone, or the session is over: a program that still runs is killed.
    fn drop(&mut self) {
        if self.end.is_none() {
            let _ = killpg(self.pid, Signal::SIGKILL);
        }
    }
}

impl Input {
    fn write(&mut self, outgoing: &mut Outgoing, running: bool) {
        let count = match &mut self.pipe {
            None => self.waiting.len(), // the program does not want it
            Some(_) if self.waiting.is_empty() => 0,
            Some(pipe) => match pipe.write(&self.waiting) {
                Ok(count) => count,
                Err(error) if again(&error) => 0,
                Err(_) => {
                    self.pipe = None;
                    self.waiting.len()
                }
            },
        };
        self.waiting.drain(..count);
        self.consumed += count as u32;
        if self.ends && self.waiting.is_empty() {
            self.pipe = None;
        }
        if self.consumed >= WINDOW_STEP && running && !self.ends {
            outgoing.push(&Reply::Window {
                credit: self.consumed,
            });
            self.credit += self.consumed;
            self.consumed = 0;
        }
    }
}

impl Output {
    fn new(stream: Stream, pipe: Option<OwnedFd>) -> io::Result<Self> {
        Ok(Self {
            stream,
            pipe: pipe.map(non_blocking).transpose()?,
            credit: INITIAL_CREDIT,
            left: None,
        })
    }

    /// The program has ended: only what its pipe holds now still counts, so that a process it left
    /// behind does not hold the session open.
    fn last_call(&mut self) {
        if let Some(pipe) = &self.pipe {
            let capacity = fcntl(pipe, FcntlArg::F_GETPIPE_SZ).unwrap_or(1 << 16);
            self.left = Some(capacity as usize);
        }
    }

    fn read(&mut self, outgoing: &mut Outgoing) {
        let mut buffer = [0; MAX_DATA_BYTES];
        while let Some(pipe) = &mut self.pipe
            && self.credit > 0
            && outgoing.has_room()
        {
            let room = buffer
                .len()
                .min(self.credit as usize)
                .min(self.left.unwrap_or(usize::MAX));
            match pipe.read(&mut buffer[..room]) {
                Ok(0) => self.pipe = None,
                Ok(count) => {
                    self.credit -= count as u32;
                    outgoing.push(&Reply::Output(self.stream, &buffer[..count]));
                    if let Some(left) = &mut self.left {
                        *left -= count;
                    }
                }
                Err(error) if again(&error) && self.left.is_none() => return,
                Err(_) => self.pipe = None,
            }
        }
    }
}

fn again(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted)
}

fn non_blocking(pipe: OwnedFd) -> io::Result<File> {
    fcntl(&pipe, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
    Ok(pipe.into())
}
