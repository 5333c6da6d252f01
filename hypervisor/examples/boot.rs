//! Development harness: boots a prepared RAM file, console on stdout.
use std::{fs::OpenOptions, io::Write, time::Instant};
use teuthis_hypervisor::{
    counters::Counters,
    memory::GuestMemory,
    processor::{
        BootState, Processor,
        soft::{SoftProcessor, clock::Clock},
    },
    tlfs::{Outcome, Partition, Worker},
};
struct NoWorker;
impl Worker for NoWorker {
    fn post_message(&mut self, _c: u32, _k: u32, _p: &[u8]) -> bool {
        true
    }
    fn signal(&mut self, _c: u16) {}
}
fn main() {
    let path = std::env::args().nth(1).unwrap();
    let clock = match std::env::args().nth(2).as_deref() {
        Some("det") => Clock::deterministic(200),
        _ => Clock::host(),
    };
    let limit: f64 = std::env::args().nth(3).map_or(60.0, |t| t.parse().unwrap());
    let s: Vec<u64> = std::fs::read_to_string(format!("{path}.state"))
        .unwrap()
        .split_whitespace()
        .map(|x| x.parse().unwrap())
        .collect();
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open(&path)
        .unwrap();
    let size = file.metadata().unwrap().len();
    let memory = GuestMemory::map(&file, size).unwrap();
    let boot = BootState {
        rip: s[0],
        rsi: s[1],
        rsp: s[2],
        cr3: s[3],
        gdt_base: s[4],
        gdt_limit: s[5] as u16,
    };
    let mut partition =
        Partition::new(clock.clone(), 1_700_000_000, Counters::anonymous().unwrap());
    let mut p = SoftProcessor::new(memory, boot, clock.clone());
    let start = Instant::now();
    let mut out = std::io::stdout();
    let mut intercepts = 0u64;
    loop {
        for v in partition.take_interrupts() {
            p.assert_interrupt(v);
        }
        let intercept = p.run(20_000);
        intercepts += 1;
        let outcome = partition.handle(intercept, p.memory(), &mut NoWorker);
        for note in partition.take_notes() {
            println!("[note] {note}");
        }
        if partition.ports.serial.is_due() {
            out.write_all(partition.ports.serial.output()).unwrap();
            out.flush().unwrap();
            partition.ports.serial.clear();
        }
        match outcome {
            Outcome::Complete(c) => p.complete(c),
            Outcome::Continue => {}
            Outcome::Sleep => {
                if !p.has_deliverable_interrupt() {
                    let next = [partition.next_event(), p.next_event()]
                        .into_iter()
                        .flatten()
                        .min();
                    match next {
                        None => {
                            println!("[asleep for ever]");
                            break;
                        }
                        Some(t) => {
                            clock.advance_to(t);
                            let now = clock.now();
                            if t > now {
                                std::thread::sleep(std::time::Duration::from_nanos(t - now));
                            }
                        }
                    }
                }
            }
            Outcome::End(end) => {
                println!("[end: {end:?}]");
                break;
            }
        }
        if start.elapsed().as_secs_f64() > limit {
            println!("[time limit]");
            break;
        }
    }
    out.write_all(partition.ports.serial.output()).unwrap();
    let t = start.elapsed().as_secs_f64();
    println!(
        "[{t:.2} s, {} M instructions, {:.1} MIPS, {intercepts} intercepts]",
        p.instructions() / 1_000_000,
        p.instructions() as f64 / t / 1e6
    );
    println!("[unimplemented {:?}]", p.unimplemented());
    let c = p.cpu();
    println!(
        "rip {:x} cr2 {:x} cr3 {:x} cr0 {:x} cr4 {:x} efer {:x} cpl {} rflags {:x}",
        c.rip,
        c.cr2,
        c.cr3,
        c.cr0,
        c.cr4,
        c.efer,
        c.cpl,
        c.rflags()
    );
    println!("gpr {:x?}", &c.gpr[..16]);
    println!("dr {:?}", &c.dr[..2]);
    println!("exception {:?}", c.exception);
}
