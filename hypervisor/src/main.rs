//! The hypervisor program: one virtual machine's processor and partition.
//!
//! Read `run` from top to bottom to see what this process holds when the guest's first
//! instruction runs: guest RAM, a socket and two eventfds to the VM's worker, two shared pages, and
//! on the host's processor the virtual machine that `/dev/kvm` made.

use std::{
    convert::Infallible,
    env,
    fs::File,
    hint::black_box,
    io::{self, Read},
    os::fd::{OwnedFd, RawFd},
    process::ExitCode,
    time::SystemTime,
};
use teuthis_hypervisor::{
    arguments::{self, Arguments, ClockChoice, ProcessorChoice, Start},
    counters::Counters,
    doorbells::Doorbells,
    flows, jail,
    link::Link,
    machine::{Connection, Machine},
    memory::{self, GuestMemory},
    processor::{
        BootState, Processor,
        kvm::{self, KvmProcessor},
    },
    record,
    template::Template,
    tlfs::Partition,
};
#[cfg(feature = "soft")]
use teuthis_hypervisor::{clock::Clock, processor::soft::SoftProcessor};

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
    let Err(error) = run();
    eprintln!("teuthis-hypervisor: {error}");
    match error {
        Error::Wall(missing) => ExitCode::from(missing.exit_status()),
        _ => ExitCode::FAILURE,
    }
}

fn run() -> Result<Infallible, Error> {
    memory::give_back();
    // What the root side gave us, and nothing else.
    let arguments = Arguments::parse(env::args().skip(1))?;
    let device = match arguments.processor {
        ProcessorChoice::Soft => None,
        ProcessorChoice::Kvm(device) => Some(device),
    };
    let (given, device, saved) = jail::adopt(arguments.descriptors(), device, arguments.saved())?;
    let [memory, link, doorbells, to_worker, to_hypervisor, counters] = given;

    let mut memory = GuestMemory::map(memory, arguments.memory_size)?;
    let mut state = None;
    if let Some([record, template, pages]) = saved {
        memory = memory.with_template(Template::map(template, pages, arguments.memory_size)?);
        state = Some(read(record).map_err(Error::State)?);
    }
    let counters = Counters::map(counters)?;
    let connection = Connection {
        doorbells: Doorbells::map(doorbells, to_worker, to_hypervisor, counters.clone())?,
        link: Link::new(link, counters.clone()),
    };

    let wall_clock = match arguments.clock {
        ClockChoice::Host => wall_clock(),
        ClockChoice::Deterministic { .. } => DETERMINISTIC_WALL_CLOCK,
    };
    let boot = match arguments.start {
        Start::Boot(boot) => boot,
        Start::Restore { .. } => BootState::default(),
    };
    let (processor, clock, kvm): (Box<dyn Processor>, _, _) = match device {
        #[cfg(feature = "soft")]
        None => {
            let clock = match arguments.clock {
                ClockChoice::Host => Clock::host(),
                ClockChoice::Deterministic {
                    instructions_per_microsecond,
                } => Clock::deterministic(instructions_per_microsecond),
            };
            let processor = SoftProcessor::new(memory, boot, clock.clone());
            (Box::new(processor), clock, None)
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
    let code = processor.hypercall_code();
    let partition = Partition::new(clock.clone(), wall_clock, code, counters.clone());
    let mut machine = Machine::new(processor, partition, connection, clock, counters);

    // The door is locked: from here on no file, no network, no other process, 12 system calls (15
    // with KVM).
    let jail = machine.jail(kvm, arguments.uid, &arguments.allow_missing_walls);
    jail::enter(&jail, &jail::WALLS)?;

    // Only now is anything judged that a guest may have made.
    machine.run(state.as_deref());
    jail::leave()
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

/// Seconds since 1970.
fn wall_clock() -> u64 {
    let elapsed = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    elapsed.map_or(0, |elapsed| elapsed.as_secs())
}
