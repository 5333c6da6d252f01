//! The agent's loop: one thread, one `poll`, all sessions.

use std::{
    io::{self, Read},
    ops::Range,
    os::{
        fd::{AsFd, OwnedFd},
        unix::net::UnixStream,
    },
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::wait::{Id, WaitPidFlag, WaitStatus, waitid, waitpid},
    unistd::Pid,
};
use signal_hook::{consts::SIGCHLD, flag, low_level::pipe};

use crate::{
    log, network, power,
    session::{Next, Session},
    system,
};

/// Where connections of the host come from.
pub trait Listener: AsFd {
    fn accept(&self) -> io::Result<OwnedFd>;
}

/// Serves one host. The first session is the greeting: when it ends, the host is gone.
pub struct Agent<L> {
    listener: L,
    /// Becomes readable when a signal has come: a child process has ended, or power-off is asked.
    signalled: UnixStream,
    notify: UnixStream,
    power: Vec<(Arc<AtomicBool>, power::Kind)>,
    sessions: Vec<Session>,
    /// Something to do once, later.
    chore: Option<(Instant, Box<dyn FnOnce() + Send>)>,
    /// A network that waits for its adapter, and all new connections with it. One that the host tells us
    /// of later takes its place: the machine goes on as a copy, whose adapter is another one.
    network: Option<network::Pending>,
}

impl<L: Listener> Agent<L> {
    pub fn new(listener: L, greeting: OwnedFd) -> io::Result<Self> {
        let (signalled, notify) = UnixStream::pair()?;
        signalled.set_nonblocking(true)?;
        pipe::register(SIGCHLD, notify.try_clone()?)?;
        Ok(Self {
            listener,
            signalled,
            notify,
            power: Vec::new(),
            sessions: vec![Session::greeting(greeting)],
            chore: None,
            network: None,
        })
    }

    /// Obeys the signals by which an init process is told to switch off.
    pub fn obeying_signals(mut self) -> io::Result<Self> {
        for (signal, kind) in power::SIGNALS {
            let asked = Arc::new(AtomicBool::new(false));
            flag::register(signal as i32, Arc::clone(&asked))?;
            pipe::register(signal as i32, self.notify.try_clone()?)?;
            self.power.push((asked, kind));
        }
        Ok(self)
    }

    /// Does `chore` after `delay`, between other things.
    pub fn after(mut self, delay: Duration, chore: impl FnOnce() + Send + 'static) -> Self {
        self.chore = Some((Instant::now() + delay, Box::new(chore)));
        self
    }

    /// Serves until somebody asks for power-off, or the host is gone. Programs still run then, and
    /// are killed when the agent is dropped.
    pub fn run(&mut self) -> power::Kind {
        loop {
            match self.step() {
                Ok(None) => {}
                Ok(Some(kind)) => return kind,
                Err(error) => {
                    log::line(&format!("cannot go on: {error}"));
                    return power::Kind::Off;
                }
            }
        }
    }

    /// Waits for something to happen and does what follows from it.
    fn step(&mut self) -> io::Result<Option<power::Kind>> {
        let accepting = match self.network {
            None => PollFlags::POLLIN,
            Some(_) => PollFlags::empty(),
        };
        let mut fds = vec![
            PollFd::new(self.listener.as_fd(), accepting),
            PollFd::new(self.signalled.as_fd(), PollFlags::POLLIN),
        ];
        let mut ranges = Vec::with_capacity(self.sessions.len());
        for (index, session) in self.sessions.iter().enumerate() {
            let start = fds.len();
            session.interests(&mut fds, index > 0 && self.network.is_some());
            ranges.push(start..fds.len());
        }
        let chore = self.chore.as_ref();
        let wait = chore
            .map(|(due, _)| due.saturating_duration_since(Instant::now()))
            .into_iter()
            .chain(self.network.as_ref().map(|_| network::POLL))
            .min();
        let timeout = wait.map_or(PollTimeout::NONE, |wait| {
            wait.try_into().unwrap_or(PollTimeout::MAX)
        });
        match poll(&mut fds, timeout) {
            Ok(_) => {}
            Err(Errno::EINTR) => return Ok(None),
            Err(error) => return Err(error.into()),
        }
        let ready: Vec<_> = fds
            .iter()
            .map(|fd| fd.revents().unwrap_or(PollFlags::empty()))
            .collect();
        drop(fds);

        let children_ended = !ready[1].is_empty();
        if children_ended {
            self.reap();
            if let Some((_, kind)) = self
                .power
                .iter()
                .find(|(flag, _)| flag.load(Ordering::SeqCst))
            {
                return Ok(Some(*kind));
            }
        }
        if let Some((_, chore)) = self.chore.take_if(|(due, _)| *due <= Instant::now()) {
            chore();
        }
        // The greeting first, whatever `poll` saw of it: there the host says what this machine has
        // become, and it said so before it asked for anything.
        let asked = |(range, session): (&Range<usize>, &Session)| {
            session.is_idle() && readable(&ready[range.clone()])
        };
        let asked = ranges.iter().zip(&self.sessions).any(asked);
        if self.sessions[0].advance(asked) == Next::Close {
            return Ok(Some(power::Kind::Off));
        }
        self.network = self.sessions[0].network.take().or(self.network.take());
        self.network.take_if(|network| system::bring_up(network));
        // Back to front: a session that closes does not move those not yet served.
        for (index, range) in ranges.into_iter().enumerate().skip(1).rev() {
            let (events, session) = (&ready[range], &mut self.sessions[index]);
            let held = self.network.is_some() && session.is_idle();
            let happened = children_ended || events.iter().any(|events| !events.is_empty());
            if happened && !held && session.advance(readable(events)) == Next::Close {
                self.sessions.remove(index);
            }
        }
        if self.network.is_none() && !ready[0].is_empty() {
            match self.listener.accept() {
                Ok(stream) => self.sessions.push(Session::new(stream)),
                Err(error) => log::line(&format!("a connection failed: {error}")),
            }
        }
        Ok(None)
    }

    /// Collects every process that has ended: the sessions' own, and orphans, which fall to PID 1.
    fn reap(&mut self) {
        let mut notes = [0; 64];
        while matches!(self.signalled.read(&mut notes), Ok(count) if count > 0) {}
        for session in &mut self.sessions {
            session.collect();
        }
        if Pid::this().as_raw() != 1 {
            return; // elsewhere the children of others are not ours to collect
        }
        let peek = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
        while let Ok(status) = waitid(Id::All, peek) {
            let Some(pid) = status.pid().filter(|_| status != WaitStatus::StillAlive) else {
                return;
            };
            match self.sessions.iter_mut().find(|session| session.owns(pid)) {
                Some(session) => session.collect(),
                None => _ = waitpid(pid, Some(WaitPidFlag::WNOHANG)),
            }
        }
    }
}

/// Whether a session with these events, those of its stream first, has something to read.
fn readable(events: &[PollFlags]) -> bool {
    let news = PollFlags::POLLIN | PollFlags::POLLHUP | PollFlags::POLLERR;
    events.first().is_some_and(|stream| stream.intersects(news))
}
