//! The hypervisor program: one virtual machine's processor and partition.
//!
//! Read `run` from top to bottom to see what this process holds when the guest's first
//! instruction runs: guest RAM, a socket and two eventfds to the VM's worker, two shared pages, and
//! on the host's processor the virtual machine that `/dev/kvm` made. A machine that is recorded has
//! a pipe beside; `replay` has no worker, only a recording and two pipes for what comes of it.

use std::{
    convert::Infallible,
    env,
    fs::File,
    hint::black_box,
    io::{self, Read},
    os::fd::{BorrowedFd, OwnedFd, RawFd},
    process::ExitCode,
    time::SystemTime,
};
use teuthis_hypervisor::{
    arguments::{self, Arguments, ClockChoice, Other, ProcessorChoice, Start},
    counters::Counters,
    doorbells::Doorbells,
    flows,
    guest::Guest,
    jail::{self, Jail},
    link::Link,
    machine::{Connection, Machine},
    memory::{self, GuestMemory},
    processor::{
        BootState, Processor,
        kvm::{self, KvmProcessor},
    },
    record,
    template::Template,
};
#[cfg(feature = "soft")]
use {
    std::{io::BufReader, os::fd::AsFd},
    teuthis_hypervisor::{
        clock::Clock,
        lockstep::Lockstep,
        processor::soft::SoftProcessor,
        recording::{Entries, Player, Recorder},
    },
};

/// What the guest's battery-backed clock shows at the start of a deterministic run: 2025-01-01.
const DETERMINISTIC_WALL_CLOCK: u64 = 1_735_689_600;

#[derive(Debug, thiserror::Error)]
enum Error {
    #[error(transparent)]
    Arguments(#[from] arguments::Error),
    #[error(transparent)]
    Descriptors(#[from] jail::NotGiven),
    #[error(transparent)]
    Wall(#[from] jail::MissingWall),
    #[error("could not map the memory it was given: {0}")]
    Map(#[from] rustix::io::Errno),
    #[error("cannot use /dev/kvm: {0}")]
    Kvm(#[from] kvm::Unusable),
    #[error("the worker cannot interrupt the guest: {0}")]
    Watch(io::Error),
    #[error("could not read the saved state: {0}")]
    State(io::Error),
}

fn main() -> ExitCode {
    black_box(&flows::FINGERPRINT);
    if let Some(device) = arguments::probed_device(env::args().skip(1)) {
        return probe(device);
    }
    let Err(error) = start();
    eprintln!("teuthis-hypervisor: {error}");
    match error {
        Error::Wall(missing) => ExitCode::from(missing.exit_status()),
        _ => ExitCode::FAILURE,
    }
}

fn start() -> Result<Infallible, Error> {
    memory::give_back();
    let arguments = Arguments::parse(env::args().skip(1))?;
    match arguments.other {
        Other::Worker { record: None, .. } => run(&arguments),
        #[cfg(feature = "soft")]
        Other::Worker { .. } => record(&arguments),
        #[cfg(feature = "soft")]
        Other::Recording { .. } => replay(&arguments),
        #[cfg(not(feature = "soft"))]
        _ => Err(arguments::Error::Processor.into()),
    }
}

fn run(arguments: &Arguments) -> Result<Infallible, Error> {
    // What the root side gave us, and nothing else.
    let device = match arguments.processor {
        ProcessorChoice::Soft => None,
        ProcessorChoice::Kvm(device) => Some(device),
    };
    let (given, device, saved) = jail::adopt(arguments.with_worker()?, device, arguments.saved())?;
    let [memory, counters, given @ ..] = given;

    let mut memory = GuestMemory::map(memory, arguments.memory_size)?;
    let mut state = None;
    if let Some([record, template, pages]) = saved {
        memory = memory.with_template(Template::map(template, pages, arguments.memory_size)?);
        state = Some(read(record).map_err(Error::State)?);
    }
    let counters = Counters::map(counters)?;
    let connection = connect(given, &counters)?;

    let boot = match arguments.start {
        Start::Boot(boot) => boot,
        Start::Restore { .. } => BootState::default(),
    };
    let (processor, clock, kvm): (Box<dyn Processor>, _, _) = match device {
        #[cfg(feature = "soft")]
        None => {
            let clock = clock(arguments);
            let processor = SoftProcessor::new(memory, boot, clock.clone());
            (Box::new(processor.with_seed(arguments.seed)), clock, None)
        }
        #[cfg(not(feature = "soft"))]
        None => return Err(arguments::Error::Processor.into()),
        Some(device) => {
            let processor = KvmProcessor::new(device, memory, boot)?;
            for each in [
                connection.link.descriptor(),
                connection.doorbells.descriptor(),
            ] {
                processor.watch(&each).map_err(Error::Watch)?;
            }
            let (clock, kvm) = (processor.clock().clone(), processor.descriptors());
            (Box::new(processor), clock, Some(kvm))
        }
    };
    let guest = Guest::new(processor, clock, wall_clock(arguments), counters);
    let mut machine = Machine::new(guest, connection);

    // The door is locked: from here on no file, no network, no other process, 12 system calls (15
    // with KVM).
    let (guest, connection) = (machine.guest(), machine.connection());
    let jail = Jail {
        kvm,
        ..walls(arguments, guest, Some(connection), &[], &[])
    };
    jail::enter(&jail, &jail::WALLS)?;

    // Only now is anything judged that a guest may have made.
    machine.run(state.as_deref());
    jail::leave(0)
}

/// As `run`, in turns with the worker; what comes in goes into a recording.
#[cfg(feature = "soft")]
fn record(arguments: &Arguments) -> Result<Infallible, Error> {
    let Other::Worker { record, .. } = arguments.other else {
        return Err(arguments::Error::Lockstep.into());
    };
    let (given, recording, _) = jail::adopt(arguments.with_worker()?, record, None)?;
    let [memory, counters, given @ ..] = given;
    let recording = recording.ok_or(arguments::Error::Lockstep)?;
    let counters = Counters::map(counters)?;
    let connection = connect(given, &counters)?;
    let guest = software(arguments, memory, counters.clone())?;
    let recorder = Recorder::new(connection, recording.into(), counters);
    let mut machine = Lockstep::new(guest, recorder, u64::MAX);

    let recorder = machine.partner();
    let (connection, recording) = (Some(recorder.connection()), recorder.recording().as_fd());
    let jail = walls(arguments, machine.guest(), connection, &[], &[recording]);
    jail::enter(&jail, &jail::WALLS)?;

    if machine.partner().is_started() {
        machine.run();
    }
    jail::leave(0)
}

/// Plays a recording, which somebody may have made up, and says what comes of it.
#[cfg(feature = "soft")]
fn replay(arguments: &Arguments) -> Result<Infallible, Error> {
    let Other::Recording {
        recording,
        console,
        report,
        until,
        trace,
    } = arguments.other
    else {
        return Err(arguments::Error::Lockstep.into());
    };
    let given = [
        arguments.memory,
        arguments.counters,
        recording,
        console,
        report,
    ];
    let (given, ..) = jail::adopt(given, None, None)?;
    let [memory, counters, recording, console, report] = given;
    let counters = Counters::map(counters)?;
    let guest = software(arguments, memory, counters.clone())?;
    let (recording, console, report) = (
        File::from(recording),
        File::from(console),
        File::from(report),
    );

    let (reads, writes) = ([recording.as_fd()], [console.as_fd(), report.as_fd()]);
    let jail = walls(arguments, &guest, None, &reads, &writes);
    jail::enter(&jail, &jail::WALLS)?;

    let entries = Entries::new(BufReader::new(&recording), arguments.memory_size);
    let player = Player::new(entries, &console, &report, trace, counters);
    let stop = Lockstep::new(guest, player, until).replay();
    jail::leave(stop.exit_status())
}

fn connect(given: [OwnedFd; 4], counters: &Counters) -> Result<Connection, Error> {
    let [link, doorbells, to_worker, to_hypervisor] = given;
    Ok(Connection {
        doorbells: Doorbells::map(doorbells, to_worker, to_hypervisor, counters.clone())?,
        link: Link::new(link, counters.clone()),
    })
}

/// A guest on the software processor.
#[cfg(feature = "soft")]
fn software(arguments: &Arguments, memory: OwnedFd, counters: Counters) -> Result<Guest, Error> {
    let memory = GuestMemory::map(memory, arguments.memory_size)?;
    let clock = clock(arguments);
    let boot = match arguments.start {
        Start::Boot(boot) => boot,
        Start::Restore { .. } => BootState::default(),
    };
    let processor = SoftProcessor::new(memory, boot, clock.clone()).with_seed(arguments.seed);
    let wall_clock = wall_clock(arguments);
    Ok(Guest::new(Box::new(processor), clock, wall_clock, counters))
}

#[cfg(feature = "soft")]
fn clock(arguments: &Arguments) -> Clock {
    match arguments.clock {
        ClockChoice::Host => Clock::host(),
        ClockChoice::Deterministic {
            instructions_per_microsecond,
        } => Clock::deterministic(instructions_per_microsecond),
    }
}

/// What the process keeps while the guest runs.
fn walls<'a>(
    arguments: &'a Arguments,
    guest: &Guest,
    connection: Option<&'a Connection>,
    reads: &[BorrowedFd<'a>],
    writes: &[BorrowedFd<'a>],
) -> Jail<'a> {
    let doorbells = connection.map(|connection| &connection.doorbells);
    let (reads, writes) = (reads.iter().copied(), writes.iter().copied());
    Jail {
        link: connection.map(|connection| connection.link.descriptor()),
        reads: reads.chain(doorbells.map(Doorbells::descriptor)).collect(),
        writes: writes.chain(doorbells.map(Doorbells::to_worker)).collect(),
        kvm: None,
        memory: guest.processor.memory().mapped(),
        uid: arguments.uid,
        allow_missing: &arguments.allow_missing_walls,
    }
}

/// Says whether the `/dev/kvm` at hand can run a guest, for the root side.
fn probe(device: RawFd) -> ExitCode {
    let answer = match jail::adopt([device], None, None) {
        Ok(([device], ..)) => kvm::probe::probe(device).map_err(|failure| failure.to_string()),
        Err(error) => Err(error.to_string()),
    };
    match answer {
        Ok(()) => ExitCode::SUCCESS,
        Err(reason) => {
            println!("{reason}");
            ExitCode::FAILURE
        }
    }
}

/// What a descriptor gives, up to a little more than a saved state can be.
fn read(fd: OwnedFd) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::from(fd)
        .take(record::MAX_BYTES as u64 + 1)
        .read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// What the guest's battery-backed clock shows at the start: seconds since 1970.
fn wall_clock(arguments: &Arguments) -> u64 {
    arguments.wall_clock.unwrap_or(match arguments.clock {
        ClockChoice::Deterministic { .. } => DETERMINISTIC_WALL_CLOCK,
        ClockChoice::Host => {
            let elapsed = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
            elapsed.map_or(0, |elapsed| elapsed.as_secs())
        }
    })
}
