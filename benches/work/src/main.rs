//! Workloads of the benchmark: the same static program runs natively, in Teuthis and in QEMU.
//!
//! `bench-work NAME` prints one line: `NAME ITEMS NANOSECONDS`, where an item is an instruction
//! (`integer`), a byte (`copy`, `hash`), a process (`spawn`) or a system call (`syscall`).

use std::{
    env, fs,
    hint::black_box,
    io::{Read, Write},
    process::{Command, ExitCode, Stdio},
    time::Instant,
};

/// Instructions in one turn of the loop in [`integer`].
const LOOP_INSTRUCTIONS: u64 = 8;

/// A loop of simple integer instructions, written out so that their number is known.
fn integer() -> u64 {
    const TURNS: u64 = 25_000_000;
    let (mut a, mut b) = (1u64, 2u64);
    // SAFETY: the block only changes the registers it names; it touches no memory.
    unsafe {
        std::arch::asm!(
            "2:",
            "add {a}, {b}",
            "xor {b}, {a}",
            "lea {a}, [{a} + {b} * 2 + 1]",
            "shr {b}, 3",
            "and {b}, {mask}",
            "or {a}, 5",
            "sub {turns}, 1",
            "jnz 2b",
            a = inout(reg) a,
            b = inout(reg) b,
            mask = in(reg) 0xFFFF_FFFFu64,
            turns = inout(reg) TURNS => _,
        );
    }
    black_box((a, b));
    TURNS * LOOP_INSTRUCTIONS
}

/// Copies a megabyte back and forth.
fn copy() -> u64 {
    const SIZE: usize = 1 << 20;
    const TURNS: usize = 500;
    let from = vec![7u8; SIZE];
    let mut to = vec![0u8; SIZE];
    for _ in 0..TURNS {
        to.copy_from_slice(black_box(&from));
        black_box(&mut to);
    }
    (SIZE * TURNS) as u64
}

/// A multiply-and-rotate hash over memory, a byte at a time: loads, dependent arithmetic.
fn hash() -> u64 {
    const SIZE: usize = 16 << 20;
    let data = vec![3u8; SIZE];
    let mut state = 0xCBF2_9CE4_8422_2325u64;
    for byte in black_box(&data) {
        state = (state ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01B3);
    }
    black_box(state);
    SIZE as u64
}

/// Starts this program 200 times and waits for each: fork, exec, page faults, exit.
fn spawn() -> Result<u64, Box<dyn std::error::Error>> {
    const TURNS: u64 = 200;
    let program = env::args().next().ok_or("no program name")?;
    for _ in 0..TURNS {
        Command::new(&program)
            .arg("nothing")
            .stdin(Stdio::null())
            .status()?;
    }
    Ok(TURNS)
}

/// Copies single bytes from /dev/zero to /dev/null: two system calls a byte.
fn syscall() -> Result<u64, Box<dyn std::error::Error>> {
    const TURNS: u64 = 100_000;
    let mut from = fs::File::open("/dev/zero")?;
    let mut to = fs::OpenOptions::new().write(true).open("/dev/null")?;
    let mut byte = [0u8];
    for _ in 0..TURNS {
        from.read_exact(&mut byte)?;
        to.write_all(&byte)?;
    }
    Ok(TURNS * 2)
}

fn run(name: &str) -> Result<u64, Box<dyn std::error::Error>> {
    Ok(match name {
        "integer" => integer(),
        "copy" => copy(),
        "hash" => hash(),
        "spawn" => spawn()?,
        "syscall" => syscall()?,
        "nothing" => 0,
        other => return Err(format!("unknown workload {other}").into()),
    })
}

fn main() -> ExitCode {
    let name = env::args().nth(1).unwrap_or_default();
    let start = Instant::now();
    match run(&name) {
        Ok(0) => ExitCode::SUCCESS,
        Ok(items) => {
            println!("{name} {items} {}", start.elapsed().as_nanos());
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("bench-work: {error}");
            ExitCode::FAILURE
        }
    }
}
