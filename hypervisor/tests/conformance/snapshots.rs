//! A guest that is saved and restored at any point goes on exactly as if nothing had happened; on
//! the host's processor, where time is real, as far as that does not show.

use crate::{
    guest::{Guest, Kind, Stop},
    program::{Program, RESULTS},
};
use iced_x86::code_asm::{registers::*, *};
use teuthis_hypervisor::{
    link::End,
    record::{HEADER_BYTES, Malformed, checksum},
};

const ROUNDS: usize = 28;

/// A program that keeps state in every corner: flags, vectors, x87, model-specific registers, both
/// timers, the SynIC, and code that it changes while it runs.
fn program(kind: Kind) -> Program {
    let mut program = Program::new();
    program
        .count_interrupts(0xED)
        .count_interrupts(0x41)
        .count_interrupts(0xF3)
        .enable_hypercalls()
        .enable_synic(0xF3);
    program.wrmsr(0x4000_00B0, 0x1EDA); // periodic, auto-enable
    program.wrmsr(0x4000_00B1, kind.time(400));
    program
        .wrmsr(0x83E, 0xB)
        .wrmsr(0x832, 0x41 | 1 << 17)
        .wrmsr(0x838, kind.time(70_000));
    program.wrmsr(0xC000_0102, 0x1234).wrmsr(0x10, 99);
    let asm = &mut program.asm;
    asm.mov(rax, cr4).unwrap();
    asm.or(rax, 0x600).unwrap();
    asm.mov(cr4, rax).unwrap();
    asm.fninit().unwrap();
    asm.fldpi().unwrap();
    asm.mov(eax, 7).unwrap();
    asm.cvtsi2sd(xmm3, eax).unwrap();
    for round in 0..ROUNDS as u32 {
        let asm = &mut program.asm;
        asm.fsqrt().unwrap();
        asm.fld1().unwrap();
        asm.faddp(st1, st0).unwrap();
        asm.sqrtsd(xmm3, xmm3).unwrap();
        asm.mulsd(xmm3, xmm3).unwrap();
        asm.fst(qword_ptr(RESULTS + 0x800)).unwrap();
        asm.mov(rax, qword_ptr(RESULTS + 0x800)).unwrap();
        program.report();
        program.asm.movq(rax, xmm3).unwrap();
        program.report();
        // A loop long enough for several slices, with the carry kept over it.
        let asm = &mut program.asm;
        asm.mov(ecx, 900 + round).unwrap();
        asm.xor(eax, eax).unwrap();
        asm.sti().unwrap();
        let mut again = asm.create_label();
        asm.set_label(&mut again).unwrap();
        asm.adc(rax, rcx).unwrap();
        asm.rol(rax, 3).unwrap();
        asm.dec(ecx).unwrap();
        asm.jnz(again).unwrap();
        asm.cli().unwrap();
        program.report();
        program.rdmsr(0x4000_0020).halt();
        program.rdmsr(0x839).hypercall(0x5C, 0x4_4000);
        program.asm.rdtsc().unwrap();
        program.report();
        program.rdmsr(0xC000_0102);
    }
    program
}

/// Steps as often as it goes, delivers a message now and then, and stops after `steps`.
fn advance(guest: &mut Guest, done: &mut usize, steps: usize) -> Option<Stop> {
    while *done < steps {
        if *done % 37 == 5 {
            guest.deliver(format!("message {done}").as_bytes());
        }
        *done += 1;
        if let Some(stop) = guest.step() {
            return Some(stop);
        }
    }
    None
}

/// What the program has reported, its beginning and each round, without the time in different forms.
fn steady(guest: &Guest) -> (Vec<u64>, Vec<[u64; 5]>) {
    const BEGINNING: usize = 16;
    let results: [u64; 8 * ROUNDS] = guest.results();
    let (beginning, rest) = results.split_at(BEGINNING);
    let (rounds, _) = rest.as_chunks::<8>();
    let timeless = |&[x87, vector, sum, _, _, hypercall, _, base]: &[u64; 8]| {
        [x87, vector, sum, hypercall, base]
    };
    (beginning.to_vec(), rounds.iter().map(timeless).collect())
}

#[test]
fn a_guest_on_the_chosen_processor_is_saved_and_goes_on() {
    let kind = Kind::chosen();
    let mut whole = Guest::on(Kind::Soft, program(Kind::Soft));
    assert_eq!(whole.run(), Stop::End(End::Halted));
    for point in [1, 7, 25, 50] {
        let mut saved = Guest::on(kind, program(kind));
        assert_eq!(saved.run_for(point), None);
        let (state, memory) = saved.save();
        let mut restored = Guest::restore(kind, &state, &memory).unwrap();
        for guest in [&mut saved, &mut restored] {
            assert_eq!(guest.run(), Stop::End(End::Halted), "saved at {point}");
            assert_eq!(steady(guest), steady(&whole), "saved at {point}");
            for vector in [0xED, 0x41] {
                assert!(
                    guest.interrupts(vector) > 0,
                    "{vector:#x}, saved at {point}"
                );
            }
        }
    }
}

#[test]
fn a_restored_guest_goes_on_as_if_nothing_had_happened() {
    let mut whole = Guest::on(Kind::Soft, program(Kind::Soft));
    let mut steps = 0;
    assert_eq!(
        advance(&mut whole, &mut steps, usize::MAX),
        Some(Stop::End(End::Halted))
    );
    assert!(steps > 150, "{steps} points to save at");
    let results: [u64; 250] = whole.results();
    let counts = [0xED, 0x41, 0xF3].map(|vector| whole.interrupts(vector));
    assert!(counts.iter().all(|&count| count > 0), "{counts:?}");

    let mut saved = Guest::on(Kind::Soft, program(Kind::Soft));
    let mut at = 0;
    for point in 1..steps {
        advance(&mut saved, &mut at, point);
        if point % 17 != 0 && point > 10 {
            continue;
        }
        let (state, memory) = saved.save();
        let mut restored = Guest::restore(Kind::Soft, &state, &memory).unwrap();
        assert!(restored.save().0 == state, "saved again at {point}");
        let before = saved.trace.len();
        let mut done = point;
        let stop = advance(&mut restored, &mut done, usize::MAX);
        assert_eq!((stop, done), (Some(Stop::End(End::Halted)), steps));
        assert_eq!(restored.trace, whole.trace[before..], "saved at {point}");
        assert_eq!(restored.results(), results, "saved at {point}");
    }
}

#[test]
fn a_sleeping_guest_is_saved_asleep() {
    let mut program = Program::new();
    program.count_interrupts(0xF3).enable_synic(0xF3).halt();
    let mut guest = Guest::new(program);
    assert_eq!(guest.run(), Stop::Asleep);
    let (state, memory) = guest.save();
    let mut restored = Guest::restore(guest.kind(), &state, &memory).unwrap();
    assert_eq!(restored.run(), Stop::Asleep);
    restored.deliver(b"wake up");
    assert_eq!(restored.run(), Stop::End(End::Halted));
    assert_eq!(restored.interrupts(0xF3), 1);
}

#[test]
fn states_that_no_guest_can_have_are_refused() {
    let kind = Kind::chosen();
    // In real time each attempt costs some milliseconds, and a guest may do anything but come back.
    let (step, steps) = match kind {
        Kind::Soft => (5, 20),
        Kind::Kvm => (41, 3),
    };
    let (state, memory) = Guest::on(kind, Program::new()).save();
    let refused = |state: &[u8]| Guest::restore(kind, state, &memory).err();
    assert_eq!(refused(&state), None);
    assert_eq!(refused(&state[1..]), Some(Malformed::Foreign));
    assert_eq!(refused(&state[..100]), Some(Malformed::Damaged));
    // Any single byte: refused, or a state that can be run and saved again.
    let mut values = 0;
    for at in (HEADER_BYTES..state.len() - 8).step_by(step) {
        let mut changed = state.clone();
        changed[at] = !changed[at];
        assert_eq!(refused(&changed), Some(Malformed::Damaged));
        let end = changed.len() - 8;
        let sum = checksum(&changed[..end]);
        changed[end..].copy_from_slice(&sum.to_le_bytes());
        match Guest::restore(kind, &changed, &memory) {
            Ok(mut guest) => {
                if guest.run_for(steps).is_none() {
                    guest.save();
                }
            }
            Err(error) => values += usize::from(matches!(error, Malformed::Value(_))),
        }
    }
    assert!(values > 5, "{values} bytes whose change was found out");
}
