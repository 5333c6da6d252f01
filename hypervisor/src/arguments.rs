//! Command line: `--name value` pairs, numbers decimal or 0x hexadecimal, each name once.

use crate::{flows::values::KVM_APIC_PROCESSORS_MAX, memory::PAGE_SIZE, processor::BootState};
use std::{collections::BTreeMap, os::fd::RawFd};

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("`{0}` is not an option followed by a value, or was given twice")]
    Malformed(String),
    #[error("`--{0}` is missing")]
    Missing(&'static str),
    #[error("`--{0}` is not a number in its range")]
    Range(&'static str),
    #[error("`--{0}` is not an option of this program")]
    Unknown(String),
    #[error("`--clock` is neither `host` nor `deterministic:INSTRUCTIONS_PER_MICROSECOND`")]
    Clock,
    #[error("a recording needs the deterministic clock and a guest that boots")]
    Lockstep,
    #[error(
        "`--processor` is neither `kvm` (which needs `--kvm-fd` and the host's clock) nor `soft`, \
         which the program for KVM does not have"
    )]
    Processor,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClockChoice {
    Host,
    Deterministic { instructions_per_microsecond: u64 },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProcessorChoice {
    Soft,
    /// With an open `/dev/kvm`.
    Kvm(RawFd),
}

/// Where the guest begins.
#[derive(Clone, Copy, Debug)]
pub enum Start {
    Boot(BootState),
    /// Where a saved machine stopped: the descriptor of its state.
    Restore {
        state: RawFd,
        template: Option<TemplateChoice>,
    },
}

/// Who serves the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Other {
    Worker {
        link: RawFd,
        doorbells: RawFd,
        to_worker: RawFd,
        to_hypervisor: RawFd,
        /// Where a recording goes; the guest then runs in lockstep with the worker.
        record: Option<RawFd>,
    },
    /// A recording, in the worker's place.
    Recording {
        recording: RawFd,
        console: RawFd,
        report: RawFd,
        /// Stop after so many instructions.
        until: u64,
        /// Report every step.
        trace: bool,
    },
}

/// Where a restored machine's memory comes from, page by page: the descriptors of the saved memory
/// and of the page file. Without one all of it is there.
#[derive(Clone, Copy, Debug)]
pub struct TemplateChoice {
    pub memory: RawFd,
    pub pages: RawFd,
}

#[derive(Debug)]
pub struct Arguments {
    pub memory_size: u64,
    pub memory: RawFd,
    pub counters: RawFd,
    pub other: Other,
    pub start: Start,
    pub clock: ClockChoice,
    /// Seconds since 1970 at the start, where the host's clock is not to say it.
    pub wall_clock: Option<u64>,
    /// What the deterministic random numbers begin with.
    pub seed: u64,
    pub processor: ProcessorChoice,
    /// How many of them.
    pub processors: usize,
    /// This process's own user id, when root starts it.
    pub uid: Option<u32>,
    /// Walls that it may go without, separated by commas.
    pub allow_missing_walls: Vec<String>,
}

impl Arguments {
    pub fn parse(mut words: impl Iterator<Item = String>) -> Result<Self, Error> {
        let mut values = BTreeMap::new();
        while let Some(word) = words.next() {
            let option = word.strip_prefix("--").map(str::to_owned);
            let (Some(option), Some(value)) = (option, words.next()) else {
                return Err(Error::Malformed(word));
            };
            if values.insert(option, value).is_some() {
                return Err(Error::Malformed(word));
            }
        }
        let memory_size: u64 = take(&mut values, "memory-size")?;
        if memory_size == 0 || !memory_size.is_multiple_of(PAGE_SIZE) {
            return Err(Error::Range("memory-size"));
        }
        let clock = clock(values.remove("clock"))?;
        let processor = match values.remove("processor").as_deref() {
            None | Some("soft") if cfg!(feature = "soft") => ProcessorChoice::Soft,
            Some("kvm") if clock == ClockChoice::Host => {
                ProcessorChoice::Kvm(take(&mut values, "kvm-fd")?)
            }
            _ => return Err(Error::Processor),
        };
        let memory = take(&mut values, "memory-fd")?;
        let other = match values.contains_key("replay-fd") {
            true => Other::Recording {
                recording: take(&mut values, "replay-fd")?,
                console: take(&mut values, "console-fd")?,
                report: take(&mut values, "report-fd")?,
                until: optional(&mut values, "until")?.unwrap_or(u64::MAX),
                trace: optional(&mut values, "trace")? == Some(1u8),
            },
            false => Other::Worker {
                link: take(&mut values, "link-fd")?,
                doorbells: take(&mut values, "doorbells-fd")?,
                to_worker: take(&mut values, "to-worker-fd")?,
                to_hypervisor: take(&mut values, "to-hypervisor-fd")?,
                record: optional(&mut values, "record-fd")?,
            },
        };
        let lockstep = !matches!(other, Other::Worker { record: None, .. });
        if lockstep && (clock == ClockChoice::Host || values.contains_key("state-fd")) {
            return Err(Error::Lockstep);
        }
        let processors = optional(&mut values, "processors")?.unwrap_or(1);
        let most = match processor {
            ProcessorChoice::Soft => 1,
            ProcessorChoice::Kvm(_) => KVM_APIC_PROCESSORS_MAX,
        };
        if !(1..=most).contains(&processors) {
            return Err(Error::Range("processors"));
        }
        let arguments = Self {
            memory_size,
            processors: processors as usize,
            memory,
            counters: take(&mut values, "counters-fd")?,
            other,
            start: match values.contains_key("state-fd") {
                true => Start::Restore {
                    state: take(&mut values, "state-fd")?,
                    template: match processor {
                        ProcessorChoice::Soft => Some(TemplateChoice {
                            memory: take(&mut values, "template-fd")?,
                            pages: take(&mut values, "pages-fd")?,
                        }),
                        // Nothing tells us before a guest on hardware touches a page.
                        ProcessorChoice::Kvm(_) => None,
                    },
                },
                false => Start::Boot(BootState {
                    rip: take(&mut values, "rip")?,
                    rsi: take(&mut values, "rsi")?,
                    rsp: take(&mut values, "rsp")?,
                    cr3: take(&mut values, "cr3")?,
                    gdt_base: take(&mut values, "gdt-base")?,
                    gdt_limit: take(&mut values, "gdt-limit")?,
                }),
            },
            clock,
            wall_clock: optional(&mut values, "wall-clock")?,
            seed: optional(&mut values, "seed")?.unwrap_or(0),
            processor,
            uid: optional(&mut values, "uid")?,
            allow_missing_walls: values
                .remove("allow-missing-walls")
                .map_or_else(Vec::new, |names| {
                    names.split(',').map(str::to_owned).collect()
                }),
        };
        match values.pop_first() {
            Some((option, _)) => Err(Error::Unknown(option)),
            None => Ok(arguments),
        }
    }

    /// The descriptors of a virtual machine with a worker: guest RAM, counters, link, doorbells,
    /// and what wakes the worker and us. Each is to be owned once.
    pub fn with_worker(&self) -> Result<[RawFd; 6], Error> {
        match self.other {
            Other::Worker {
                link,
                doorbells,
                to_worker,
                to_hypervisor,
                ..
            } => Ok([
                self.memory,
                self.counters,
                link,
                doorbells,
                to_worker,
                to_hypervisor,
            ]),
            Other::Recording { .. } => Err(Error::Missing("link-fd")),
        }
    }

    /// Those of the saved machine: its state; the template and the page file.
    pub fn saved(&self) -> Vec<RawFd> {
        let Start::Restore { state, template } = self.start else {
            return vec![];
        };
        let template = template.map(|template| [template.memory, template.pages]);
        [state]
            .into_iter()
            .chain(template.into_iter().flatten())
            .collect()
    }
}

/// The descriptor of `--probe-kvm-fd`, when that is all that is asked.
pub fn probed_device(mut words: impl Iterator<Item = String>) -> Option<RawFd> {
    if words.next()? != "--probe-kvm-fd" {
        return None;
    }
    words.next()?.parse().ok()
}

fn optional<T: TryFrom<u64>>(
    values: &mut BTreeMap<String, String>,
    option: &'static str,
) -> Result<Option<T>, Error> {
    match values.contains_key(option) {
        true => take(values, option).map(Some),
        false => Ok(None),
    }
}

fn take<T: TryFrom<u64>>(
    values: &mut BTreeMap<String, String>,
    option: &'static str,
) -> Result<T, Error> {
    let text = values.remove(option).ok_or(Error::Missing(option))?;
    let number = match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16),
        None => text.parse(),
    };
    let number = number.map_err(|_| Error::Range(option))?;
    T::try_from(number).map_err(|_| Error::Range(option))
}

fn clock(text: Option<String>) -> Result<ClockChoice, Error> {
    match text.as_deref() {
        None | Some("host") => Ok(ClockChoice::Host),
        Some(text) => {
            let rate = text.strip_prefix("deterministic:").map(str::parse);
            match rate {
                Some(Ok(instructions_per_microsecond @ 1..)) => Ok(ClockChoice::Deterministic {
                    instructions_per_microsecond,
                }),
                _ => Err(Error::Clock),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "--memory-size 0x10000000 --memory-fd 3 --link-fd 4 --doorbells-fd 5 \
        --to-worker-fd 6 --to-hypervisor-fd 7 --counters-fd 8 --rip 0x1000000 --rsi 4096 --rsp 0 \
        --cr3 0x2000 --gdt-base 0x3000 --gdt-limit 31";

    fn parse(text: &str) -> Result<Arguments, Error> {
        Arguments::parse(text.split_whitespace().map(str::to_owned))
    }

    #[test]
    fn the_root_sides_command_line_is_understood() {
        let arguments = parse(GOOD).unwrap();
        assert_eq!(arguments.memory_size, 256 << 20);
        assert_eq!((arguments.memory, arguments.counters), (3, 8));
        let worker = |record| Other::Worker {
            link: 4,
            doorbells: 5,
            to_worker: 6,
            to_hypervisor: 7,
            record,
        };
        assert_eq!(arguments.other, worker(None));
        assert!(matches!(arguments.start, Start::Boot(boot) if boot.rip == 0x100_0000));
        assert!(arguments.saved().is_empty());
        assert_eq!(arguments.clock, ClockChoice::Host);
        let arguments = parse(&format!("{GOOD} --clock deterministic:100")).unwrap();
        let expected = ClockChoice::Deterministic {
            instructions_per_microsecond: 100,
        };
        assert_eq!(arguments.clock, expected);
        assert_eq!((arguments.uid, arguments.seed), (None, 0));
        let recorded = "--record-fd 9 --clock deterministic:100 --wall-clock 7 --seed 8";
        let arguments = parse(&format!("{GOOD} {recorded}")).unwrap();
        assert_eq!(arguments.other, worker(Some(9)));
        assert_eq!((arguments.wall_clock, arguments.seed), (Some(7), 8));
        assert_eq!(arguments.processor, ProcessorChoice::Soft);
        let arguments = parse(&format!("{GOOD} --processor kvm --kvm-fd 9")).unwrap();
        assert_eq!(arguments.processor, ProcessorChoice::Kvm(9));
        assert_eq!(arguments.processors, 1);
        let text = format!("{GOOD} --processor kvm --kvm-fd 9 --processors 2");
        assert_eq!(parse(&text).unwrap().processors, 2);
        let text = format!("{GOOD} --uid 0x7E070001 --allow-missing-walls landlock,keyring");
        let arguments = parse(&text).unwrap();
        assert_eq!(arguments.uid, Some(0x7E07_0001));
        assert_eq!(arguments.allow_missing_walls, ["landlock", "keyring"]);
    }

    #[test]
    fn a_saved_machine_needs_no_registers() {
        let (common, _) = GOOD.split_once("--rip").unwrap();
        let saved = format!("{common} --state-fd 9 --template-fd 10 --pages-fd 11");
        assert_eq!(parse(&saved).unwrap().saved(), [9, 10, 11]);
        let kvm = format!("{common} --processor kvm --kvm-fd 12 --state-fd 9");
        assert_eq!(parse(&kvm).unwrap().saved(), [9]);
        let message = |text: &str| parse(text).unwrap_err().to_string();
        assert!(message(&saved.replace("--pages-fd 11", "")).contains("pages-fd"));
        assert!(message(&format!("{kvm} --template-fd 10")).contains("template-fd"));
        assert!(message(&format!("{saved} --rip 1")).contains("rip"));
    }

    #[test]
    fn a_replay_has_no_worker() {
        let (start, rest) = GOOD.split_once("--link-fd").unwrap();
        let rest = &rest[rest.find("--counters").unwrap()..];
        let replay = "--replay-fd 4 --console-fd 5 --report-fd 6 --clock deterministic:1 --until 9";
        let arguments = parse(&format!("{start} {rest} {replay} --trace 1")).unwrap();
        let expected = Other::Recording {
            recording: 4,
            console: 5,
            report: 6,
            until: 9,
            trace: true,
        };
        assert_eq!(arguments.other, expected);
        let message = |text: &str| parse(text).unwrap_err().to_string();
        assert!(message(&format!("{GOOD} {replay}")).contains("doorbells-fd"));
        assert!(message(&format!("{GOOD} --record-fd 9")).contains("deterministic"));
    }

    #[test]
    fn anything_else_is_refused_by_name() {
        let message = |text: &str| parse(text).unwrap_err().to_string();
        assert!(message("").contains("memory-size"));
        assert!(message("--memory-size").contains("memory-size"));
        assert!(message("--memory-size 4097").contains("memory-size"));
        assert!(message(&GOOD.replace("--rip 0x1000000", "")).contains("rip"));
        assert!(message(&GOOD.replace("limit 31", "limit 65536")).contains("gdt-limit"));
        assert!(message(&GOOD.replace("fd 3", "fd -3")).contains("memory-fd"));
        assert!(message(&format!("{GOOD} --rip 1")).contains("rip"));
        assert!(message(&format!("{GOOD} --verbose 1")).contains("verbose"));
        assert!(message(&format!("{GOOD} --clock deterministic:0")).contains("clock"));
        assert!(message(&format!("{GOOD} --processors 2")).contains("processors"));
        let kvm = format!("{GOOD} --processor kvm --kvm-fd 9 --processors");
        assert!(message(&format!("{kvm} 0")).contains("processors"));
        assert!(message(&format!("{kvm} 17")).contains("processors"));
        assert!(message(&format!("{GOOD} --processor tcg")).contains("soft"));
        assert!(message(&format!("{GOOD} --processor kvm")).contains("kvm-fd"));
        let text = format!("{GOOD} --processor kvm --kvm-fd 9 --clock deterministic:1");
        assert!(message(&text).contains("kvm"));
    }
}
