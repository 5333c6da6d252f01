//! What a program finds when it begins, and how it is started.
#![allow(unsafe_code)]

use std::{
    collections::BTreeMap,
    env,
    ffi::{CString, NulError, OsStr, OsString},
    io, iter, mem,
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::{ffi::OsStrExt, process::CommandExt},
    },
    path::{Path, PathBuf},
    process,
};

use nix::{
    errno::Errno,
    libc::sigset_t,
    spawn::{PosixSpawnAttr, PosixSpawnFileActions, PosixSpawnFlags, posix_spawn},
    sys::signal::SigSet,
    unistd::{AccessFlags, Pid, access},
};

use crate::{frames::Exec, terminal, user::User};

const DEFAULT_PATH: &str = "/bin:/sbin:/usr/bin:/usr/sbin";
/// What a program finds in its environment unless the host says otherwise.
const DEFAULT_ENVIRONMENT: [(&str, &str); 2] = [("PATH", DEFAULT_PATH), ("HOME", "/root")];

/// No text in it holds a zero.
pub struct Setting<'a> {
    pub environment: BTreeMap<&'a OsStr, &'a OsStr>,
    pub directory: &'a Path,
    pub streams: &'a [OwnedFd; 3],
    /// They are one terminal.
    pub has_terminal: bool,
    /// Who it runs as, unless that is root.
    pub user: Option<&'a User>,
}

impl<'a> Setting<'a> {
    pub fn of(
        exec: &'a Exec,
        streams: &'a [OwnedFd; 3],
        user: Option<&'a User>,
    ) -> io::Result<Self> {
        let directory = match exec.directory.as_path() {
            path if path.as_os_str().is_empty() => Path::new("/"),
            path => path,
        };
        // A missing directory must not look like a missing program.
        if !directory.is_dir() {
            return Err(Errno::ENOTDIR.into());
        }
        let mut texts = exec.argv.iter().chain(&exec.environment);
        if texts.any(|text| text.as_bytes().contains(&0)) {
            return Err(Errno::EINVAL.into());
        }
        let mut environment: BTreeMap<_, _> = DEFAULT_ENVIRONMENT
            .map(|(key, value)| (OsStr::new(key), OsStr::new(value)))
            .into();
        if let Some(user) = user {
            environment.insert(OsStr::new("HOME"), &user.home);
        }
        for variable in &exec.environment {
            let bytes = variable.as_bytes();
            let Some(split) = bytes.iter().position(|&byte| byte == b'=') else {
                return Err(Errno::EINVAL.into());
            };
            let (key, value) = (&bytes[..split], &bytes[split + 1..]);
            environment.insert(OsStr::from_bytes(key), OsStr::from_bytes(value));
        }
        Ok(Self {
            environment,
            directory,
            streams,
            has_terminal: exec.terminal.is_some(),
            user,
        })
    }

    /// Starts `program`, which calls itself `name`, in a process group of its own.
    pub fn start(&self, program: &Path, name: &OsStr, arguments: &[OsString]) -> io::Result<Pid> {
        let needs_nothing_first = env::current_dir().is_ok_and(|ours| ours == self.directory);
        if needs_nothing_first && !self.has_terminal && self.user.is_none() {
            self.spawn(program, name, arguments)
        } else {
            self.fork(program, name, arguments)
        }
    }

    /// Its process is born without a copy of our memory, which would be a third of what it costs to
    /// run a short program.
    fn spawn(&self, program: &Path, name: &OsStr, arguments: &[OsString]) -> io::Result<Pid> {
        let words = iter::once(name).chain(arguments.iter().map(OsString::as_os_str));
        let words: Result<Vec<_>, NulError> =
            words.map(|word| CString::new(word.as_bytes())).collect();
        let variables = self.environment.iter();
        let variables: Result<Vec<_>, NulError> = variables
            .map(|(key, value)| CString::new([key.as_bytes(), b"=", value.as_bytes()].concat()))
            .collect();
        let mut actions = PosixSpawnFileActions::init()?;
        for (stream, number) in self.streams.iter().zip(0..) {
            actions.add_dup2(stream.as_raw_fd(), number)?;
        }
        let mut attributes = PosixSpawnAttr::init()?;
        attributes.set_flags(
            PosixSpawnFlags::POSIX_SPAWN_SETPGROUP
                | PosixSpawnFlags::POSIX_SPAWN_SETSIGMASK
                | PosixSpawnFlags::POSIX_SPAWN_SETSIGDEF,
        )?;
        attributes.set_pgroup(Pid::from_raw(0))?;
        attributes.set_sigmask(&SigSet::empty())?;
        attributes.set_sigdefault(&every_signal())?;
        Ok(posix_spawn(
            program,
            &actions,
            &attributes,
            &words?,
            &variables?,
        )?)
    }

    /// For what must be done in the new process before the program begins.
    fn fork(&self, program: &Path, name: &OsStr, arguments: &[OsString]) -> io::Result<Pid> {
        let mut command = process::Command::new(program);
        command
            .arg0(name)
            .args(arguments)
            .current_dir(self.directory);
        command.env_clear().envs(&self.environment);
        if self.has_terminal {
            terminal::lead(&mut command);
        } else {
            command.process_group(0);
        }
        if let Some(user) = self.user {
            let user = user.clone();
            // SAFETY: between fork and exec, `assume` makes three system calls and allocates nothing.
            unsafe { command.pre_exec(move || Ok(user.assume()?)) };
        }
        let [stdin, stdout, stderr] = self.streams;
        command
            .stdin(stdin.try_clone()?)
            .stdout(stdout.try_clone()?)
            .stderr(stderr.try_clone()?);
        Ok(Pid::from_raw(command.spawn()?.id() as i32))
    }
}

/// Those that the C library keeps for itself too (32 and 33): unless told to make them as they are
/// at first, its `posix_spawn` has every program ignore them, and its `sigfillset` leaves them out.
fn every_signal() -> SigSet {
    const SIZE: usize = mem::size_of::<sigset_t>();
    // SAFETY: a `sigset_t` is an array of bits, one per signal.
    unsafe { SigSet::from_sigset_t_unchecked(mem::transmute::<[u8; SIZE], sigset_t>([0xFF; SIZE])) }
}

/// Where `program` is, as its environment's PATH says; as it was named if nowhere.
pub fn find(program: &OsStr, environment: &[OsString]) -> PathBuf {
    let named = PathBuf::from(program);
    if program.as_bytes().contains(&b'/') {
        return named;
    }
    let mut given = environment.iter().rev().map(|variable| variable.as_bytes());
    let path = given.find_map(|variable| variable.strip_prefix(b"PATH="));
    path.unwrap_or(DEFAULT_PATH.as_bytes())
        .split(|&byte| byte == b':')
        .map(|place| Path::new(OsStr::from_bytes(place)).join(program))
        .take_while(|place| place.is_absolute())
        .find(|place| place.is_file() && access(place, AccessFlags::X_OK).is_ok())
        .unwrap_or(named)
}
