//! An attacker inside this process's jail, for `tests/isolation/`: never part of a package.
//!
//! `prisoner [--as UID] [--uid UID] [--kvm /dev/kvm [--processors N]] [--replays yes] [--without WALL]…`
//! reads attacks from its standard input, one per line, and forks for each: the child locks itself up as the
//! hypervisor does, then makes the system calls of the line, with several processors in the thread
//! of the last. The answers, one per line: `errno N` of the call that
//! failed, `done N` with the last result, or `killed SIGNAL`.
//!
//! A line is `NUMBER ARGUMENT…`, or several of them with ` ; ` between. Arguments are numbers,
//! `s:TEXT` (pointer to a string), `x:HEX` (pointer to these bytes), `buffer` (pointer to a scratch
//! page), `parent` (process id of the prisoner's parent), `rN` (the result of call N), and with
//! `--kvm` the descriptors `vm` and `vcpu`.
//! `wait` locks up, says `locked PID`, and sleeps until the standard input ends.

use rustix::thread::{Gid, Uid, set_thread_groups, set_thread_res_gid, set_thread_res_uid};
use std::{
    env,
    ffi::CString,
    fs::File,
    io::{self, BufRead, Read, Write},
    os::{
        fd::AsRawFd,
        unix::net::{UnixDatagram, UnixStream},
    },
    sync::mpsc,
    thread,
};
use teuthis_hypervisor::{
    jail::{Jail, WALLS, Wall, enter, share_heap, split},
    memory::GuestMemory,
    processor::{
        BootState,
        kvm::{self, Descriptors, Idle},
    },
};

const GUEST_MEMORY: u64 = 256 << 20;

fn main() -> io::Result<()> {
    let mut uid = None;
    let mut kvm = None;
    let mut processors = 1;
    let mut replays = false;
    let mut walls = Vec::from(WALLS);
    let mut words = env::args().skip(1);
    while let (Some(option), Some(value)) = (words.next(), words.next()) {
        let number = || value.parse::<u32>().map_err(io::Error::other);
        match option.as_str() {
            "--as" => become_user(number()?)?,
            "--uid" => uid = Some(number()?),
            "--kvm" => kvm = Some(value),
            "--processors" => processors = number()?,
            "--replays" => replays = value == "yes",
            "--without" => walls.retain(|wall| wall.name != value),
            _ => return Err(io::Error::other("unknown option")),
        }
    }
    for line in io::stdin().lock().lines() {
        let kvm = kvm.as_deref().map(|device| (device, processors as usize));
        println!("{}", attempt(&line?, uid, kvm, replays, &walls)?);
    }
    Ok(())
}

fn become_user(uid: u32) -> io::Result<()> {
    let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(uid));
    set_thread_groups(&[])?;
    set_thread_res_gid(gid, gid, gid)?;
    Ok(set_thread_res_uid(uid, uid, uid)?)
}

fn attempt(
    line: &str,
    uid: Option<u32>,
    kvm: Option<(&str, usize)>,
    replays: bool,
    walls: &[Wall],
) -> io::Result<String> {
    let calls = parse(line);
    let (mut answers, answer) = UnixStream::pair()?;
    // SAFETY: this process has one thread.
    let child = unsafe { libc::fork() };
    if child == 0 {
        drop(answers);
        let text = attack(line, &calls, &answer, uid, kvm, replays, walls);
        say(&answer, &text);
        // SAFETY: ends the child, running nothing of the parent's.
        unsafe { libc::_exit(0) };
    }
    drop(answer);
    let mut text = String::new();
    if line == "wait" {
        // Whoever asked wants to look at the prisoner while it lives.
        io::BufReader::new(&answers).read_line(&mut text)?;
        print!("{text}");
        io::stdout().flush()?;
    }
    text.clear();
    answers.read_to_string(&mut text)?;
    let mut status = 0;
    // SAFETY: `status` is ours.
    unsafe { libc::waitpid(child, &mut status, 0) };
    if libc::WIFSIGNALED(status) {
        return Ok(format!("killed {}", libc::WTERMSIG(status)));
    }
    Ok(text)
}

fn attack(
    line: &str,
    calls: &[Call],
    answer: &UnixStream,
    uid: Option<u32>,
    kvm: Option<(&str, usize)>,
    replays: bool,
    walls: &[Wall],
) -> String {
    let mut idle = kvm.map_or_else(Vec::new, |(device, count)| processors(device, count));
    let kvm = (!idle.is_empty()).then(|| Descriptors::of(&idle, false));
    // SAFETY: asks for a number.
    let pid = unsafe { libc::getpid() };
    let (link, worker) = UnixDatagram::pair().expect("a socket pair");
    // Behind the walls nothing can be closed.
    let (link, _) = (Box::leak(Box::new(link)), Box::leak(Box::new(worker)));
    let input = io::stdin();
    let jail = Jail {
        // A recording is replayed without a worker.
        link: (!replays).then_some(link.as_raw_fd()),
        reads: vec![input.as_raw_fd()],
        writes: vec![answer.as_raw_fd()],
        kvm: kvm.clone(),
        memory: GUEST_MEMORY,
        uid,
        allow_missing: &[],
    };
    let (before, after) = split(walls);
    if let Err(missing) = enter(&jail, before) {
        return missing.to_string();
    }
    let attacks = move || {
        if line == "wait" {
            say(answer, &format!("locked {pid}\n"));
            // SAFETY: reads one byte into a buffer of one.
            while unsafe { libc::read(0, [0u8; 1].as_mut_ptr().cast(), 1) } == 1 {}
            return String::new();
        }
        carry_out(calls, kvm.as_ref())
    };
    if idle.len() < 2 {
        idle.into_iter().for_each(sit);
        return match enter(&jail, after) {
            Ok(()) => attacks(),
            Err(missing) => missing.to_string(),
        };
    }
    let (last, others) = (idle.pop(), idle);
    others.into_iter().for_each(sit);
    share_heap();
    thread::scope(|scope| {
        let (seated, wait) = mpsc::channel();
        let (lock, locked) = mpsc::channel();
        let attacker = scope.spawn(move || {
            last.into_iter().for_each(sit);
            seated.send(()).expect("somebody waits");
            locked.recv().expect("the walls stand");
            // It cannot end behind the walls.
            say(answer, &attacks());
            // SAFETY: ends the child, running nothing of the parent's.
            unsafe { libc::_exit(0) };
        });
        wait.recv().expect("it sits");
        match enter(&jail, after) {
            Ok(()) => lock.send(()).expect("somebody waits"),
            Err(missing) => return missing.to_string(),
        }
        attacker.join().expect("it does not end")
    })
}

fn carry_out(calls: &[Call], kvm: Option<&Descriptors>) -> String {
    let mut results = vec![];
    for call in calls {
        let value = |argument: &Argument| match argument {
            Argument::Number(number) => *number,
            Argument::Bytes(bytes) => bytes.as_ptr() as i64,
            Argument::Result(at) => results[*at],
            Argument::Vm => kvm.map_or(-1, |kvm| kvm.vm.into()),
            Argument::Vcpu => kvm.map_or(-1, |kvm| kvm.vcpus[0].into()),
        };
        let mut words = [0; 6];
        for (word, argument) in words.iter_mut().zip(&call.arguments) {
            *word = value(argument);
        }
        let [a, b, c, d, e, f] = words;
        // SAFETY: none. This is the attack.
        let result = unsafe { libc::syscall(call.number, a, b, c, d, e, f) };
        if result == -1 {
            let number = io::Error::last_os_error().raw_os_error().unwrap_or(0);
            return format!("errno {number}");
        }
        results.push(result);
    }
    format!("done {}", results.last().copied().unwrap_or(0))
}

/// The processors of a guest about to run, as the hypervisor has them when it locks its door.
fn processors(device: &str, count: usize) -> Vec<Idle> {
    let device = File::options().read(true).write(true).open(device);
    let memory = GuestMemory::anonymous(2 << 20).expect("memory");
    let device = device.expect("a KVM").into();
    kvm::create(device, memory, BootState::default(), count).expect("processors")
}

/// Never dropped: behind the walls its descriptors cannot be closed.
fn sit(idle: Idle) {
    Box::leak(Box::new(idle.start().expect("a processor")));
}

fn say(answer: &UnixStream, text: &str) {
    // SAFETY: the bytes are there. An answer that was cut is not one that the test expects.
    unsafe { libc::write(answer.as_raw_fd(), text.as_ptr().cast(), text.len()) };
}

struct Call {
    number: i64,
    arguments: Vec<Argument>,
}

enum Argument {
    Number(i64),
    Bytes(Vec<u8>),
    Result(usize),
    Vm,
    Vcpu,
}

fn parse(line: &str) -> Vec<Call> {
    if line == "wait" {
        return vec![];
    }
    let call = |text: &str| {
        let mut words = text.split(' ');
        let number = words
            .next()
            .and_then(|word| word.parse().ok())
            .expect("a number");
        Call {
            number,
            arguments: words.map(argument).collect(),
        }
    };
    line.split(" ; ").map(call).collect()
}

fn argument(word: &str) -> Argument {
    if let Some(text) = word.strip_prefix("s:") {
        Argument::Bytes(CString::new(text).expect("no zero").into_bytes_with_nul())
    } else if let Some(hex) = word.strip_prefix("x:") {
        let digits = |at| u8::from_str_radix(&hex[at..at + 2], 16).expect("hex");
        Argument::Bytes((0..hex.len()).step_by(2).map(digits).collect())
    } else if let Some(at) = word.strip_prefix('r') {
        Argument::Result(at.parse().expect("a number"))
    } else if word == "buffer" {
        Argument::Bytes(vec![0; 4096])
    } else if word == "vm" {
        Argument::Vm
    } else if word == "vcpu" {
        Argument::Vcpu
    } else if word == "parent" {
        // SAFETY: asks for a number.
        Argument::Number(unsafe { libc::getppid() }.into())
    } else {
        Argument::Number(word.parse().expect("a number"))
    }
}
