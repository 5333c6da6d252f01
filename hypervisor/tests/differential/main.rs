//! The software processor against the host's: each instruction form that a user program can
//! execute runs with random operands on both, and registers, flags, memory and exceptions must
//! come out the same. What the manual leaves undefined is not compared ([`compare`]).
//!
//! Environment: `TEUTHIS_DIFFERENTIAL_SEED` (a number; printed on failure),
//! `TEUTHIS_DIFFERENTIAL_SAMPLES` (per form), `TEUTHIS_DIFFERENTIAL_ONLY` (part of a form's name, or `sequences`),
//! `TEUTHIS_DIFFERENTIAL_DETAILS` (failures printed per form), `TEUTHIS_DIFFERENTIAL_TRACE` (set:
//! name each form before it runs, for one that ends the process).
#![cfg(all(target_arch = "x86_64", target_os = "linux"))]

mod compare;
mod coverage;
mod forms;
mod layout;
mod native;
mod random;
mod sample;
mod sequences;
mod soft;

use coverage::Coverage;
use forms::{Form, Mode, Prefix};
use iced_x86::{Formatter, NasmFormatter};
use layout::Registers;
use native::Native;
use random::Random;
use sample::Sample;
use soft::Soft;
use std::{
    hash::{DefaultHasher, Hash, Hasher},
    io::Write,
    time::Instant,
};

const DEFAULT_SEED: u64 = 2026;
const DEFAULT_SAMPLES: u64 = 200;
const SEQUENCES_PER_SAMPLE: u64 = 100;
/// Selects the sequences where otherwise a form's name does.
const SEQUENCES: &str = "sequences";

fn number(variable: &str, default: u64) -> u64 {
    match std::env::var(variable) {
        Ok(text) => text
            .parse()
            .unwrap_or_else(|_| panic!("{variable} is not a number: {text}")),
        Err(_) => default,
    }
}

/// Prints a line also when the test passes: the harness keeps what `println` prints to itself then.
pub fn say(line: &str) {
    // Nobody to tell when standard error is gone.
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// What became of one form.
enum Verdict {
    Agrees,
    Differs(u64),
    NotImplemented,
    NotEncodable,
}

struct Bench {
    native: Native,
    soft: Soft,
    coverage: Coverage,
    seed: u64,
    samples: u64,
    details: u64,
}

impl Bench {
    fn random(&self, name: &str, index: u64) -> Random {
        let mut hasher = DefaultHasher::new();
        (self.seed, name, index).hash(&mut hasher);
        Random::new(hasher.finish())
    }

    fn test_sequences(&mut self, count: u64) {
        let candidates = sequences::candidates();
        let mut failures = 0;
        for index in 0..count {
            let mut random = self.random("sequence", index);
            let (native, soft) = (&mut self.native, &mut self.soft);
            if let Some(difference) = sequences::run(native, soft, &candidates, &mut random) {
                failures += 1;
                if failures <= self.details * 5 {
                    println!("sequence {index}: {difference}");
                }
            }
        }
        assert_eq!(
            failures, 0,
            "sequences that differ, of {count} (seed {})",
            self.seed
        );
    }

    /// LOCK before what cannot be locked must be refused alike.
    fn test_lock(&mut self, form: &Form) -> bool {
        let info = form.code.op_code();
        let lockable = form.memory && info.can_use_lock_prefix();
        // AMD's LOCK MOV CR0 is a MOV CR8.
        if form.prefix != Prefix::None || lockable || info.must_be_cpl0() {
            return true;
        }
        let Some(sample) = sample::make(form, &mut self.random(&form.name(), 0)) else {
            return true;
        };
        let mut bytes = vec![0xF0];
        bytes.extend(&sample.bytes);
        let (registers, memory) = (&sample.registers, &sample.memory);
        let host = self.native.run(form.mode, &bytes, registers, memory);
        let soft = self.soft.run(form.mode, &bytes, registers, memory);
        let same = soft.as_ref().is_some_and(|soft| soft.fault == host.fault);
        if !same {
            let soft = soft.map(|soft| soft.fault);
            println!("lock {}: host {:?}, soft {soft:?}", form.name(), host.fault);
        }
        same
    }

    fn test(&mut self, form: &Form) -> Verdict {
        let mut failures = 0;
        let mut ran = 0;
        let samples = match form.mode {
            Mode::Long => self.samples,
            // The handlers are the same for the most part.
            Mode::Compatible => self.samples.div_ceil(4),
        };
        for index in 0..samples {
            let Some(sample) = sample::make(form, &mut self.random(&form.name(), index)) else {
                continue;
            };
            if !Soft::implements(form.mode, &sample.bytes) {
                return Verdict::NotImplemented;
            }
            let Some(soft) =
                self.soft
                    .run(form.mode, &sample.bytes, &sample.registers, &sample.memory)
            else {
                return Verdict::NotImplemented;
            };
            let native =
                self.native
                    .run(form.mode, &sample.native, &sample.registers, &sample.memory);
            ran += 1;
            if form.mode == Mode::Long {
                self.coverage.add(form, &sample);
            }
            let differences = compare::differences(&sample, &native, &soft);
            if !differences.is_empty() {
                failures += 1;
                if failures <= self.details {
                    describe(form, index, &sample, &differences);
                }
            }
        }
        match (ran, failures) {
            (0, _) => Verdict::NotEncodable,
            (_, 0) => Verdict::Agrees,
            _ => Verdict::Differs(failures),
        }
    }
}

fn describe(form: &Form, index: u64, sample: &Sample, differences: &[String]) {
    let mut text = String::new();
    NasmFormatter::new().format(&sample.instruction, &mut text);
    println!(
        "{} sample {index}: {text}  ({:02x?})",
        form.name(),
        sample.bytes
    );
    let Registers { gpr, flags, fx, .. } = &sample.registers;
    println!("  in: gpr {gpr:x?} flags {flags:#x}");
    let vector = format!("{:?}", sample.instruction.code().cpuid_features());
    if vector.contains("SSE") || vector.contains("AES") || vector.contains("SHA") {
        let xmm: Vec<_> = (0..16).map(|i| format!("{i}:{:032x}", fx.xmm(i))).collect();
        println!("  in: mxcsr {:#x} xmm {}", fx.mxcsr(), xmm.join(" "));
    } else if vector.contains("FPU") || vector.contains("MMX") {
        let st: Vec<_> = (0..8).map(|i| format!("{i}:{:02x?}", fx.st(i))).collect();
        println!(
            "  in: fcw {:#x} fsw {:#x} ftw {:#x} st {}",
            fx.u16(layout::fx::FCW),
            fx.u16(layout::fx::FSW),
            fx.u16(layout::fx::FTW),
            st.join(" ")
        );
    }
    if let Some(address) = sample::operand_address(sample) {
        let offset = address.wrapping_sub(layout::SCRATCH) as usize;
        let bytes: Vec<u8> = sample
            .memory
            .iter()
            .skip(offset)
            .take(32)
            .copied()
            .collect();
        println!("  in: operand at {address:#x}: {bytes:02x?}");
    }
    for difference in differences {
        println!("  {difference}");
    }
}

#[test]
fn every_form_does_what_the_host_does() {
    let seed = number("TEUTHIS_DIFFERENTIAL_SEED", DEFAULT_SEED);
    let samples = number("TEUTHIS_DIFFERENTIAL_SAMPLES", DEFAULT_SAMPLES);
    let only = std::env::var("TEUTHIS_DIFFERENTIAL_ONLY").unwrap_or_default();
    for (_, name, has) in forms::HOST_FEATURES {
        if !has() {
            say(&format!(
                "skipped: this processor has no {name}, its instructions are not compared"
            ));
        }
    }
    let started = Instant::now();
    let mut bench = Bench {
        native: Native::new(),
        soft: Soft::new(native::selectors()),
        coverage: Coverage::default(),
        seed,
        samples,
        details: number("TEUTHIS_DIFFERENTIAL_DETAILS", 1),
    };
    let forms: Vec<Form> = [Mode::Long, Mode::Compatible]
        .into_iter()
        .flat_map(forms::all)
        .filter(|f| f.name().contains(&only))
        .collect();
    let sequences = if only.is_empty() || only == SEQUENCES {
        samples * SEQUENCES_PER_SAMPLE
    } else {
        0
    };
    bench.test_sequences(sequences);
    let locks = forms.iter().filter(|form| !bench.test_lock(form)).count();
    assert_eq!(locks, 0, "forms with LOCK that differ");
    let mut agree = 0;
    let mut differ = Vec::new();
    let mut unimplemented = Vec::new();
    let mut unencodable = Vec::new();
    let trace = std::env::var_os("TEUTHIS_DIFFERENTIAL_TRACE").is_some();
    for form in &forms {
        if trace {
            println!("{}", form.name());
        }
        match bench.test(form) {
            Verdict::Agrees => agree += 1,
            Verdict::Differs(count) => differ.push(format!("{} ({count})", form.name())),
            Verdict::NotImplemented => unimplemented.push(form.name()),
            Verdict::NotEncodable => unencodable.push(form.name()),
        }
    }
    say(&format!(
        "{} instruction forms, {samples} samples each, {sequences} sequences, seed {seed}, {:.1} s: \
         {agree} agree, {} differ, {} not implemented, {} without an encoding of their own",
        forms.len(),
        started.elapsed().as_secs_f64(),
        differ.len(),
        unimplemented.len(),
        unencodable.len()
    ));
    println!("not implemented: {}", unimplemented.join(", "));
    println!(
        "without an encoding of their own: {}",
        unencodable.join(", ")
    );
    let missing = if only.is_empty() {
        bench.coverage.report()
    } else {
        Vec::new()
    };
    assert!(
        differ.is_empty(),
        "{} forms differ from the host's processor (TEUTHIS_DIFFERENTIAL_SEED={seed}): {}",
        differ.len(),
        differ.join(", ")
    );
    let complete = forms::HOST_FEATURES.iter().all(|(_, _, has)| has());
    assert!(
        missing.is_empty() || !complete,
        "forms that guests execute were not tested: {}",
        missing.join(", ")
    );
}
