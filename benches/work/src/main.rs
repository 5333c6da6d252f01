//! Workloads of the benchmark: the same static program runs natively, in Teuthis and in QEMU.
//!
//! `bench-work NAME` prints one line: `NAME ITEMS NANOSECONDS`, where an item is an instruction
//! (`integer`), a byte (`copy`, `hash`, `disk-read`, `disk-write`, `net-send`, `net-receive`), a
//! process (`spawn`), a system call (`syscall`) or a request (`disk-random`). Disks are read and
//! written past the guest's cache; `disk-… DEVICE`, `net-… ADDRESS:PORT`.

use std::{
    env, fs,
    hint::black_box,
    io::{Read, Write},
    net::{Shutdown, TcpStream},
    os::unix::fs::{FileExt, OpenOptionsExt},
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

const DIRECT: i32 = 0o40000; // O_DIRECT
const SPAN: u64 = 128 << 20;

/// What direct input and output take: memory aligned to pages.
#[derive(Clone)]
#[repr(align(4096))]
struct Page([u8; 4096]);

fn disk(name: &str, write: bool) -> Result<fs::File, Box<dyn std::error::Error>> {
    let mut options = fs::OpenOptions::new();
    Ok(options
        .read(true)
        .write(write)
        .custom_flags(DIRECT)
        .open(name)?)
}

/// 128 MiB from the start of a disk, 256 KiB at a time.
fn disk_sequential(name: &str, write: bool) -> Result<u64, Box<dyn std::error::Error>> {
    const PIECE: u64 = 256 << 10;
    let disk = disk(name, write)?;
    let mut pages = vec![Page([0x5A; 4096]); PIECE as usize / 4096];
    // SAFETY: pages are plain bytes without padding, and `pages` outlives the slice.
    let buffer =
        unsafe { std::slice::from_raw_parts_mut(pages.as_mut_ptr().cast::<u8>(), PIECE as usize) };
    for at in (0..SPAN).step_by(PIECE as usize) {
        if write {
            disk.write_all_at(buffer, at)?;
        } else {
            disk.read_exact_at(buffer, at)?;
        }
    }
    if write {
        disk.sync_all()?;
    }
    Ok(SPAN)
}

/// 4 KiB reads all over the same 128 MiB, one at a time.
fn disk_random(name: &str) -> Result<u64, Box<dyn std::error::Error>> {
    const REQUESTS: u64 = 4000;
    let disk = disk(name, false)?;
    let mut page = Page([0; 4096]);
    let mut state = 1u64;
    for _ in 0..REQUESTS {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        disk.read_exact_at(&mut page.0, (state >> 33) % (SPAN / 4096) * 4096)?;
    }
    Ok(REQUESTS)
}

/// Sends 64 MiB and waits until the other side has them all.
fn net_send(to: &str) -> Result<u64, Box<dyn std::error::Error>> {
    const BYTES: usize = 64 << 20;
    let mut stream = TcpStream::connect(to)?;
    let data = vec![0x5Au8; 64 << 10];
    for _ in 0..BYTES / data.len() {
        stream.write_all(&data)?;
    }
    stream.shutdown(Shutdown::Write)?;
    stream.read_exact(&mut [0])?;
    Ok(BYTES as u64)
}

/// Takes all that the other side sends.
fn net_receive(from: &str) -> Result<u64, Box<dyn std::error::Error>> {
    let mut stream = TcpStream::connect(from)?;
    let mut data = vec![0; 256 << 10];
    let mut total = 0;
    loop {
        match stream.read(&mut data)? {
            0 => return Ok(total),
            count => total += count as u64,
        }
    }
}

fn run(name: &str, place: &str) -> Result<u64, Box<dyn std::error::Error>> {
    Ok(match name {
        "integer" => integer(),
        "copy" => copy(),
        "hash" => hash(),
        "spawn" => spawn()?,
        "syscall" => syscall()?,
        "disk-read" => disk_sequential(place, false)?,
        "disk-write" => disk_sequential(place, true)?,
        "disk-random" => disk_random(place)?,
        "net-send" => net_send(place)?,
        "net-receive" => net_receive(place)?,
        "nothing" => 0,
        other => return Err(format!("unknown workload {other}").into()),
    })
}

fn main() -> ExitCode {
    let name = env::args().nth(1).unwrap_or_default();
    let place = env::args().nth(2).unwrap_or_default();
    let start = Instant::now();
    match run(&name, &place) {
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
