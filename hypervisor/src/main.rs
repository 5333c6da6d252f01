//! The hypervisor program: one virtual machine's processor and partition.
//!
//! Read `run` from top to bottom to see what this process holds when the guest's first
//! instruction runs: guest RAM, a socket and two eventfds to the VM's worker, two shared pages, and
//! on the host's processor the virtual machine that `/dev/kvm` made, with a thread for each of its
//! virtual processors; the software processor is one, and has one. A machine that is recorded has
//! a pipe beside; `replay` has no worker, only a recording and two pipes for what comes of it.

use std::{
    convert::Infallible,
    env,
    fs::File,
    hint::black_box,
    io::{self, Read},
    os::fd::{OwnedFd, RawFd},
    process::{self, ExitCode},
    thread,
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
        kvm::{self, Idle},
    },
    record,
    template::Template,
};
#[cfg(feature = "soft")]
use {
    std::{io::BufReader, os::fd::AsRawFd},
    teuthis_hypervisor::{
        clock::Clock,
        lockstep::Lockstep,
        processor::soft::SoftProcessor,
        recording::{Entries, Player, Recorder},
    },
};

/// What the guest's battery-backed clock shows at the start of a deterministic run: 2025-01-01.
const DETERMINISTIC_WALL_CLOCK: u64 = 1_735_689_600;

/// Bytes of a thread's stack.
const STACK: usize = 256 << 10;

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
    #[error("could not start a thread: {0}")]
    Thread(io::Error),
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
    let mut saved = saved.into_iter();
    let state = saved.next().map(read).transpose().map_err(Error::State)?;
    if let (Some(template), Some(pages)) = (saved.next(), saved.next()) {
        memory = memory.with_template(Template::map(template, pages, arguments.memory_size)?);
    }
    let counters = Counters::map(counters)?;
    let connection = connect(given, arguments, &counters)?;
    let mut jail = walls(arguments, &memory, Some(&connection), &[], &[]);

    let boot = match arguments.start {
        Start::Boot(boot) => boot,
        Start::Restore { .. } => BootState::default(),
    };
    let (first, others, clock): (Box<dyn Processor>, Vec<Idle>, _) = match device {
        #[cfg(feature = "soft")]
        None => {
            let clock = clock(arguments);
            let processor = SoftProcessor::new(memory, boot, clock.clone());
            let processor = processor.with_seed(arguments.seed);
            (Box::new(processor), vec![], clock)
        }
        #[cfg(not(feature = "soft"))]
        None => return Err(arguments::Error::Processor.into()),
        Some(device) => {
            let mut others = kvm::create(device, memory, boot, arguments.processors)?;
            jail.kvm = Some(kvm::Descriptors::of(&others, state.is_some()));
            let first = others.remove(0).start()?;
            for each in [
                connection.link.descriptor(),
                connection.doorbells.descriptor(),
            ] {
                first.watch(&each).map_err(Error::Watch)?;
            }
            let clock = first.clock().clone();
            (Box::new(first), others, clock)
        }
    };
    let (count, wall_clock) = (arguments.processors, wall_clock(arguments));
    let guest = Guest::new(first.hypercall_code(), count, clock, wall_clock, counters);
    // Never given back: threads use it to the end of the process.
    let machine = Box::leak(Box::new(Machine::new(guest, connection)));
    machine.seat(0, first);

    // The door is locked: from here on no file, no network, no other process, 12 system calls (15
    // with KVM, 16 with several processors). Threads are made behind all walls but the last two,
    // which stop them at once.
    let (before, after) = jail::split(&jail::WALLS);
    jail::enter(&jail, before)?;
    start_threads(machine, others)?;
    jail::enter(&jail, after)?;

    // Only now is anything judged that a guest may have made.
    machine.run(state.as_deref());
    jail::leave(0)
}

/// Makes a thread for each of `processors`, the machine's second and following, and waits until all
/// are seated.
fn start_threads(machine: &'static Machine, processors: Vec<Idle>) -> Result<(), Error> {
    if !processors.is_empty() {
        jail::share_heap();
    }
    for (vp, idle) in (1..).zip(processors) {
        let run = move || {
            match idle.start() {
                Ok(processor) => machine.seat(vp, Box::new(processor)),
                Err(error) => {
                    eprintln!("teuthis-hypervisor: {}", Error::from(error));
                    process::exit(1);
                }
            }
            machine.run_processor(vp);
            jail::leave(0)
        };
        let thread = thread::Builder::new().stack_size(STACK);
        thread.spawn(run).map_err(Error::Thread)?;
    }
    machine.wait_until_seated();
    Ok(())
}

/// As `run`, in turns with the worker; what comes in goes into a recording.
#[cfg(feature = "soft")]
fn record(arguments: &Arguments) -> Result<Infallible, Error> {
    let Other::Worker { record, .. } = arguments.other else {
        return Err(arguments::Error::Lockstep.into());
    };
    let (given, recording, _) = jail::adopt(arguments.with_worker()?, record, vec![])?;
    let [memory, counters, given @ ..] = given;
    let recording = recording.ok_or(arguments::Error::Lockstep)?;
    let counters = Counters::map(counters)?;
    let connection = connect(given, arguments, &counters)?;
    let (processor, guest) = software(arguments, memory, counters.clone())?;
    let recorder = Recorder::new(connection, recording.into(), counters);
    let mut machine = Lockstep::new(processor, guest, recorder, u64::MAX);

    let recorder = machine.partner();
    let (connection, recording) = (
        Some(recorder.connection()),
        recorder.recording().as_raw_fd(),
    );
    let jail = walls(arguments, machine.memory(), connection, &[], &[recording]);
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
    let (given, ..) = jail::adopt(given, None, vec![])?;
    let [memory, counters, recording, console, report] = given;
    let counters = Counters::map(counters)?;
    let (processor, guest) = software(arguments, memory, counters.clone())?;
    let (recording, console, report) = (
        File::from(recording),
        File::from(console),
        File::from(report),
    );

    let (reads, writes) = (
        [recording.as_raw_fd()],
        [console.as_raw_fd(), report.as_raw_fd()],
    );
    let jail = walls(arguments, processor.memory(), None, &reads, &writes);
    jail::enter(&jail, &jail::WALLS)?;

    let entries = Entries::new(BufReader::new(&recording), arguments.memory_size);
    let player = Player::new(entries, &console, &report, trace, counters);
    let stop = Lockstep::new(processor, guest, player, until).replay();
    jail::leave(stop.exit_status())
}

fn connect(
    given: [OwnedFd; 4],
    arguments: &Arguments,
    counters: &Counters,
) -> Result<Connection, Error> {
    let [link, doorbells, to_worker, to_hypervisor] = given;
    Ok(Connection {
        doorbells: Doorbells::map(doorbells, to_worker, to_hypervisor, counters.clone())?,
        link: Link::new(link, arguments.processors, counters.clone()),
    })
}

/// A guest on the software processor.
#[cfg(feature = "soft")]
fn software(
    arguments: &Arguments,
    memory: OwnedFd,
    counters: Counters,
) -> Result<(Box<dyn Processor>, Guest), Error> {
    let memory = GuestMemory::map(memory, arguments.memory_size)?;
    let clock = clock(arguments);
    let boot = match arguments.start {
        Start::Boot(boot) => boot,
        Start::Restore { .. } => BootState::default(),
    };
    let processor = SoftProcessor::new(memory, boot, clock.clone()).with_seed(arguments.seed);
    let wall_clock = wall_clock(arguments);
    let guest = Guest::new(processor.hypercall_code(), 1, clock, wall_clock, counters);
    Ok((Box::new(processor), guest))
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
    memory: &GuestMemory,
    connection: Option<&Connection>,
    reads: &[RawFd],
    writes: &[RawFd],
) -> Jail<'a> {
    let mut jail = Jail {
        link: None,
        reads: reads.to_vec(),
        writes: writes.to_vec(),
        kvm: None,
        memory: memory.mapped(),
        uid: arguments.uid,
        allow_missing: &arguments.allow_missing_walls,
    };
    if let Some(connection) = connection {
        let [link, to_worker, to_hypervisor] = connection.descriptors();
        jail.link = Some(link);
        jail.reads.push(to_hypervisor);
        jail.writes.push(to_worker);
    }
    jail
}

/// Says whether the `/dev/kvm` at hand can run a guest, for the root side.
fn probe(device: RawFd) -> ExitCode {
    let answer = match jail::adopt([device], None, vec![]) {
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
