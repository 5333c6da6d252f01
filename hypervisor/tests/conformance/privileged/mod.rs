//! Privileged instructions with random operands, from the same state on both processors: registers,
//! control state, tables, memory and exceptions must be the same afterwards.
//!
//! One tiny guest runs thousands of cases without leaving the processor: [`runtime`] sets up the
//! state of a case, enters its code, and writes down what it left; [`forms`] makes the cases.

mod forms;
mod layout;
mod runtime;

use crate::guest::{Guest, Kind, Stop};
use layout::{END, END_ON_RSP0, FIRST_CASE, RESULT_WORDS, RFLAGS, VECTOR, Word, result};
use std::collections::{BTreeMap, BTreeSet};
use teuthis_hypervisor::link::End;

/// Cases of each form.
const ROUNDS: usize = 40;
/// Differences that are printed.
const SHOWN: usize = 40;

type Outcome = Option<[u64; RESULT_WORDS]>;

/// What each case left; `None` for one that shut the processor down.
fn outcomes(kind: Kind, cases: &[forms::Case]) -> Vec<Outcome> {
    let mut found = vec![];
    while found.len() < cases.len() {
        let (memory, boot) = runtime::load(cases, found.len() as u64);
        let mut guest = Guest::of(memory, boot, kind);
        let stop = guest.run();
        let reached = guest.read(FIRST_CASE) as usize;
        for number in found.len()..reached {
            let at = result(number);
            found.push(Some(std::array::from_fn(|i| guest.read(at + 8 * i as u64))));
        }
        match stop {
            Stop::End(End::Halted) => assert_eq!(reached, cases.len()),
            Stop::End(End::TripleFault) => found.push(None),
            other => panic!("case {reached}, {:?}: {other:?}", cases[reached]),
        }
    }
    found
}

#[test]
fn privileged_instructions_do_the_same_on_both_processors() {
    let cases = forms::cases(ROUNDS);
    let soft = outcomes(Kind::Soft, &cases);
    let shut_down = soft.iter().filter(|outcome| outcome.is_none()).count();
    assert!(shut_down * 100 < cases.len(), "{shut_down} cases shut down");
    let vectors: BTreeSet<_> = soft.iter().flatten().map(|words| words[VECTOR]).collect();
    for expected in [0, 3, 6, 7, 11, 13, 14, END.into(), END_ON_RSP0.into()] {
        assert!(vectors.contains(&expected), "{expected} is never met");
    }
    if Kind::chosen() == Kind::Soft {
        return;
    }
    let chosen = outcomes(Kind::chosen(), &cases);
    let mut differing = BTreeMap::<&str, usize>::new();
    for (case, (soft, chosen)) in cases.iter().zip(soft.iter().zip(&chosen)) {
        let words = differences(soft, chosen);
        if words.is_empty() {
            continue;
        }
        let count = differing.entry(case.name).or_default();
        *count += 1;
        if *count <= 3 {
            println!("{case:?}");
            for line in words.iter().take(SHOWN) {
                println!("    {line}");
            }
        }
    }
    assert!(
        differing.is_empty(),
        "{} cases, of which differ: {differing:?}",
        cases.len()
    );
}

/// RFLAGS.RF, which QEMU's emulator does not set where an exception is a fault.
const RESUME: u64 = 1 << 16;

/// The words that are not as on the software processor.
fn differences(soft: &Outcome, chosen: &Outcome) -> Vec<String> {
    let (soft, chosen) = match (soft, chosen) {
        (Some(soft), Some(chosen)) => (soft, chosen),
        (None, None) => return vec![],
        (soft, _) => {
            let which = if soft.is_none() { "software" } else { "other" };
            return vec![format!("the {which} processor alone shut down")];
        }
    };
    let words = soft.iter().zip(chosen).enumerate();
    words
        .filter(|&(i, (soft, chosen))| {
            let known = if i == RFLAGS { RESUME } else { 0 };
            soft | known != chosen | known
        })
        .map(|(i, (soft, chosen))| format!("{}: {soft:#x}, here {chosen:#x}", Word(i)))
        .collect()
}
