//! The walls around this process, one by one, and the one call that raises them all. The worker
//! raises the same walls, by the same names, in the same order: `src/teuthis/jail/walls.py`.

mod descriptors;
mod filter;
mod namespaces;
mod privileges;

use crate::processor::kvm;
use rustix::{
    process::{Resource, Rlimit, getrlimit, setrlimit},
    thread::Uid,
};
use std::{io, os::fd::RawFd};

pub use descriptors::{NotGiven, adopt};
pub use privileges::share_heap;

/// What this process keeps.
pub struct Jail<'a> {
    /// The socket to the worker, if there is one.
    pub link: Option<RawFd>,
    /// What it reads from: the worker's doorbells, or a recording.
    pub reads: Vec<RawFd>,
    /// What it writes to: our doorbells for the worker, a recording, the report of a replay.
    pub writes: Vec<RawFd>,
    /// What `/dev/kvm` made, when the guest runs on the host's processor.
    pub kvm: Option<kvm::Descriptors>,
    /// Bytes of guest RAM, and of the template behind it, that it maps.
    pub memory: u64,
    /// Its user id, when root starts it.
    pub uid: Option<u32>,
    /// Names of walls that it may go without.
    pub allow_missing: &'a [String],
}

/// One wall: what it is called, how it is raised.
#[derive(Clone, Copy)]
pub struct Wall {
    pub name: &'static str,
    pub build: fn(&Jail) -> io::Result<()>,
}

/// In the order in which they must be raised.
pub const WALLS: [Wall; 16] = [
    wall("descriptors", descriptors::close_others),
    wall("identity", |jail| {
        privileges::assume(jail.uid.map(Uid::from_raw))
    }),
    wall("user-namespace", |_| namespaces::user()),
    wall("network-namespace", |_| namespaces::network()),
    wall("ipc-namespace", |_| namespaces::ipc()),
    wall("uts-namespace", |_| namespaces::host_name()),
    wall("cgroup-namespace", |_| namespaces::cgroup()),
    wall("empty-root", |_| namespaces::empty_root()),
    wall("keyring", |_| privileges::own_keyring()),
    wall("undumpable", |_| privileges::undumpable()),
    wall("capabilities", |_| privileges::drop_capabilities()),
    wall("no-new-privileges", |_| privileges::no_new_privileges()),
    wall("parent-death", |_| privileges::die_with_parent()),
    wall("landlock", |_| filter::landlock()),
    wall("limits", lower_limits),
    wall("system-calls", filter::system_calls),
];

const fn wall(name: &'static str, build: fn(&Jail) -> io::Result<()>) -> Wall {
    Wall { name, build }
}

/// This host does not give one of the walls.
#[derive(Debug, thiserror::Error)]
#[error("this host does not give the wall {name:?}: {reason}")]
pub struct MissingWall {
    pub name: &'static str,
    pub reason: io::Error,
}

impl MissingWall {
    /// How the process ends that misses it: the root side knows the wall by this status.
    pub fn exit_status(&self) -> u8 {
        const FIRST: u8 = 100;
        let position = WALLS.iter().position(|wall| wall.name == self.name);
        let position = position.and_then(|at| u8::try_from(at).ok());
        FIRST.saturating_add(position.unwrap_or(0))
    }
}

/// Those of `walls` that are raised around a single thread, from which others inherit them; and the
/// last ones, which close in all threads that there are, and let no more come.
pub fn split(walls: &[Wall]) -> (&[Wall], &[Wall]) {
    let last = |wall: &Wall| ["limits", "system-calls"].contains(&wall.name);
    walls.split_at(walls.iter().position(last).unwrap_or(walls.len()))
}

/// Raises walls around this process, for good.
pub fn enter(jail: &Jail, walls: &[Wall]) -> Result<(), MissingWall> {
    for &Wall { name, build } in walls {
        match build(jail) {
            Err(_) if jail.allow_missing.iter().any(|allowed| allowed == name) => {}
            result => result.map_err(|reason| MissingWall { name, reason })?,
        }
    }
    Ok(())
}

/// Ends the process. The host takes everything back; the walls leave no way to do it piece by
/// piece.
pub fn leave(status: u8) -> ! {
    privileges::exit(status)
}

/// Address space beyond guest RAM: the program, its stack, decoded code.
const OWN_MEMORY: u64 = 1 << 30;

fn lower_limits(jail: &Jail) -> io::Result<()> {
    let limits = [
        // No new descriptor gets a number below 2; poll(2) accepts as many entries as that.
        (Resource::Nofile, 2),
        (Resource::Core, 0), // a core file would carry the guest's memory out
        (Resource::Nproc, 0),
        (Resource::Fsize, 0),
        (Resource::Memlock, 0),
        (Resource::Msgqueue, 0),
        (Resource::Nice, 0),
        (Resource::Rtprio, 0),
        (Resource::Sigpending, 0),
        (Resource::As, jail.memory.saturating_add(OWN_MEMORY)),
    ];
    for (resource, wanted) in limits {
        let hard = getrlimit(resource).maximum;
        let value = Some(hard.map_or(wanted, |hard| hard.min(wanted)));
        let limit = Rlimit {
            current: value,
            maximum: value,
        };
        setrlimit(resource, limit)?;
    }
    Ok(())
}
