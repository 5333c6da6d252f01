//! The agent's sessions, run on this machine over socket pairs instead of vsock.

use std::{
    fs::{self, Permissions},
    io,
    io::{Read, Write},
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::{
            fs::PermissionsExt,
            net::{UnixListener, UnixStream},
        },
    },
    path::PathBuf,
    sync::atomic::{AtomicU32, Ordering},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{SigHandler, Signal, kill, raise, signal},
    unistd::{Pid, geteuid},
};
use teuthis_guest::{
    agent::{Agent, Listener},
    power,
};

const EXEC: u8 = 0x01;
const STDIN: u8 = 0x02;
const STDIN_EOF: u8 = 0x03;
const SIGNAL: u8 = 0x04;
const WINDOW: u8 = 0x06;
const READ_FILE: u8 = 0x07;
const WRITE_FILE: u8 = 0x08;
const EXEC_TERMINAL: u8 = 0x0B;
const RESIZE: u8 = 0x0C;
const HELLO: u8 = 0x80;
const STARTED: u8 = 0x81;
const STDOUT: u8 = 0x82;
const STDERR: u8 = 0x83;
const EXIT: u8 = 0x84;
const ERROR: u8 = 0x85;
const GRANT: u8 = 0x86;
const DONE: u8 = 0x87;
/// Nothing takes longer, on a busy host either.
const LONG: Duration = Duration::from_secs(100);

struct LocalListener(UnixListener);

impl AsFd for LocalListener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Listener for LocalListener {
    fn accept(&self) -> io::Result<OwnedFd> {
        self.0.accept().map(|(stream, _)| stream.into())
    }
}

/// A running agent and the host's end of its greeting.
struct Host {
    directory: PathBuf,
    greeting: Connection,
    agent: Option<JoinHandle<power::Kind>>,
}

/// The host's end of a connection.
struct Connection(UnixStream);

#[derive(Debug, Default, PartialEq)]
struct Outcome {
    stdout: Vec<u8>,
    stderr: Vec<u8>,
    /// Kind and code of the EXIT frame.
    exit: (u32, u32),
}

impl Host {
    fn new() -> Self {
        // Whoever runs the tests may ignore ^C, which programs inherit; a guest's init does not.
        // SAFETY: the default disposition runs no code of ours.
        unsafe { signal(Signal::SIGINT, SigHandler::SigDfl) }.unwrap();
        Self::made(|agent| agent)
    }

    fn made(with: impl FnOnce(Agent<LocalListener>) -> Agent<LocalListener>) -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let directory =
            std::env::temp_dir().join(format!("teuthis-agent-{}-{number}", std::process::id()));
        fs::create_dir_all(&directory).unwrap();
        let listener = LocalListener(UnixListener::bind(directory.join("socket")).unwrap());
        let (ours, theirs) = UnixStream::pair().unwrap();
        let mut agent = with(Agent::new(listener, theirs.into()).unwrap());
        let agent = thread::spawn(move || agent.run());
        let mut greeting = Connection(ours);
        assert_eq!(greeting.receive(), Some((HELLO, vec![1, 0, 0, 0])));
        Self {
            directory,
            greeting,
            agent: Some(agent),
        }
    }

    fn connect(&self) -> Connection {
        Connection(UnixStream::connect(self.directory.join("socket")).unwrap())
    }

    fn exec(&self, argv: &[&str]) -> Connection {
        self.exec_in(argv, &[], "")
    }

    fn exec_in(&self, argv: &[&str], environment: &[&str], directory: &str) -> Connection {
        self.request(EXEC, Vec::new(), argv, environment, directory, "")
    }

    fn exec_as(&self, user: &str, script: &str) -> Connection {
        self.request(EXEC, Vec::new(), &["sh", "-c", script], &[], "", user)
    }

    fn exec_on_a_terminal(&self, argv: &[&str], size: [u16; 2]) -> Connection {
        let size = size.map(u16::to_le_bytes).concat();
        self.request(EXEC_TERMINAL, size, argv, &[], "", "")
    }

    fn request(
        &self,
        number: u8,
        payload: Vec<u8>,
        argv: &[&str],
        environment: &[&str],
        directory: &str,
        user: &str,
    ) -> Connection {
        let mut connection = self.connect();
        connection.request(number, payload, argv, environment, directory, user);
        connection
    }

    /// Waits for the agent to end and says how it did.
    fn end(mut self) -> power::Kind {
        self.agent.take().unwrap().join().unwrap()
    }

    fn shell(&self, script: &str) -> Connection {
        self.exec(&["sh", "-c", script])
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.directory);
    }
}

fn push(payload: &mut Vec<u8>, text: &str) {
    payload.extend((text.len() as u32).to_le_bytes());
    payload.extend(text.as_bytes());
}

impl Connection {
    fn send(&mut self, number: u8, payload: &[u8]) {
        self.try_send(number, payload).unwrap();
    }

    fn request(
        &mut self,
        number: u8,
        mut payload: Vec<u8>,
        argv: &[&str],
        environment: &[&str],
        directory: &str,
        user: &str,
    ) {
        for list in [argv, environment] {
            payload.extend((list.len() as u32).to_le_bytes());
            list.iter().for_each(|text| push(&mut payload, text));
        }
        push(&mut payload, directory);
        push(&mut payload, user);
        self.send(number, &payload);
    }

    fn exec(&mut self, argv: &[&str]) {
        self.request(EXEC, Vec::new(), argv, &[], "", "");
    }

    fn try_send(&mut self, number: u8, payload: &[u8]) -> io::Result<()> {
        let mut frame = vec![number, 0, 0, 0];
        frame.extend((payload.len() as u32).to_le_bytes());
        frame.extend(payload);
        self.0.write_all(&frame)
    }

    /// Grants credit; the agent may be gone by now, and what it had to say on its way.
    fn grant(&mut self, stream: u32, bytes: usize) {
        let credit = (bytes as u32).to_le_bytes();
        let _ = self.try_send(WINDOW, &[stream.to_le_bytes(), credit].concat());
    }

    /// The next frame, or `None` when the agent has closed the connection.
    fn receive(&mut self) -> Option<(u8, Vec<u8>)> {
        self.0.set_read_timeout(Some(LONG)).unwrap();
        let mut header = [0; 8];
        match self.0.read_exact(&mut header) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return None,
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return None,
            Err(error) => panic!("no frame: {error}"),
        }
        let length = u32::from_le_bytes(header[4..].try_into().unwrap());
        let mut payload = vec![0; length as usize];
        self.0.read_exact(&mut payload).unwrap();
        Some((header[0], payload))
    }

    fn expect(&mut self, number: u8) -> Vec<u8> {
        let (found, payload) = self.receive().expect("the agent closed the connection");
        assert_eq!(found, number, "payload {payload:?}");
        payload
    }

    fn pid(&mut self) -> u32 {
        u32::from_le_bytes(self.expect(STARTED).try_into().unwrap())
    }

    /// Reads until the program has ended, granting all the credit that output uses.
    fn finish(&mut self) -> Outcome {
        let mut outcome = Outcome::default();
        loop {
            let (number, payload) = self.receive().expect("the agent closed the connection");
            let stream: u32 = match number {
                STDOUT => 1,
                STDERR => 2,
                EXIT => {
                    let word = |at| u32::from_le_bytes(payload[at..at + 4].try_into().unwrap());
                    outcome.exit = (word(0), word(4));
                    return outcome;
                }
                STARTED | GRANT => continue,
                _ => panic!("frame {number:#x}"),
            };
            assert!(payload.len() <= 16384);
            self.grant(stream, payload.len());
            if stream == 1 {
                &mut outcome.stdout
            } else {
                &mut outcome.stderr
            }
            .extend(payload);
        }
    }

    fn error(&mut self) -> (u32, String) {
        let payload = self.expect(ERROR);
        let errno = u32::from_le_bytes(payload[..4].try_into().unwrap());
        (errno, String::from_utf8(payload[4..].to_vec()).unwrap())
    }
}

fn alive(pid: u32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
}

fn comes_true(what: impl Fn() -> bool) -> bool {
    let start = Instant::now();
    while start.elapsed() < LONG {
        if what() {
            return true;
        }
        thread::sleep(Duration::from_millis(10));
    }
    false
}

#[test]
fn output_error_output_and_exit_code() {
    let host = Host::new();
    let outcome = host.shell("echo out; echo err >&2; exit 7").finish();
    assert_eq!(
        outcome,
        Outcome {
            stdout: b"out\n".into(),
            stderr: b"err\n".into(),
            exit: (0, 7)
        }
    );
}

#[test]
fn environment_and_directory() {
    let host = Host::new();
    let script = "echo $A $HOME $PATH $PWD; env | wc -l";
    let environment = ["A=b=c", "HOME=/here", "PATH=/usr/bin:/bin"];
    let outcome = host
        .exec_in(&["sh", "-c", script], &environment, "/tmp")
        .finish();
    let text = String::from_utf8(outcome.stdout).unwrap();
    assert!(text.starts_with("b=c /here /usr/bin:/bin /tmp\n"), "{text}");
}

#[test]
fn a_signal_ends_the_whole_group() {
    let host = Host::new();
    let mut connection = host.shell("sleep 60 & sleep 61");
    connection.pid();
    thread::sleep(Duration::from_millis(100));
    connection.send(SIGNAL, &15u32.to_le_bytes());
    assert_eq!(connection.finish().exit, (1, 15));
}

#[test]
fn input_is_passed_unharmed_within_its_credit() {
    let host = Host::new();
    let mut connection = host.exec(&["cat"]);
    connection.pid();
    let data: Vec<u8> = (0..1_000_000u32)
        .map(|number| ((number * 7) >> 3) as u8)
        .collect();
    let (mut sent, mut credit, mut echoed) = (0, 65536, Vec::new());
    while echoed.len() < data.len() {
        while sent < data.len() && credit > 0 {
            let end = data.len().min(sent + credit.min(16384));
            connection.send(STDIN, &data[sent..end]);
            credit -= end - sent;
            sent = end;
        }
        match connection.receive().unwrap() {
            (STDOUT, bytes) => {
                connection.grant(1, bytes.len());
                echoed.extend(bytes);
            }
            (GRANT, bytes) => credit += u32::from_le_bytes(bytes.try_into().unwrap()) as usize,
            other => panic!("{other:?}"),
        }
    }
    connection.send(STDIN_EOF, &[]);
    assert_eq!(connection.finish().exit, (0, 0));
    assert!(echoed == data);
}

#[test]
fn input_that_nobody_reads_is_dropped() {
    let host = Host::new();
    let mut connection = host.shell("exec <&-; sleep 1; echo done");
    connection.pid();
    let mut credit = 65536;
    for _ in 0..20 {
        while credit < 16384 {
            credit += u32::from_le_bytes(connection.expect(GRANT).try_into().unwrap());
        }
        connection.send(STDIN, &[0; 16384]);
        credit -= 16384;
    }
    assert_eq!(connection.finish().stdout, b"done\n");
}

#[test]
fn output_never_exceeds_its_credit() {
    let host = Host::new();
    let mut connection = host.shell("yes 2>/dev/null");
    connection.pid();
    let mut received = 0;
    while received < 65536 {
        received += connection.expect(STDOUT).len();
    }
    assert_eq!(received, 65536);
    connection
        .0
        .set_read_timeout(Some(Duration::from_millis(200)))
        .unwrap();
    assert!(connection.0.read(&mut [0]).is_err());
    connection.grant(1, 100);
    assert_eq!(connection.expect(STDOUT).len(), 100);
}

#[test]
fn more_input_than_the_credit_ends_the_session() {
    let host = Host::new();
    let mut connection = host.exec(&["sleep", "60"]);
    let pid = connection.pid();
    for _ in 0..9 {
        // It may be gone before all of it is sent.
        let _ = connection.try_send(STDIN, &[0; 16384]);
    }
    while connection.receive().is_some() {}
    assert!(comes_true(|| !alive(pid)));
}

#[test]
fn a_closed_connection_kills_the_group() {
    let host = Host::new();
    let mut connection = host.shell("sleep 60 & echo $!; wait");
    let pid = connection.pid();
    let child: u32 = String::from_utf8(connection.expect(STDOUT))
        .unwrap()
        .trim()
        .parse()
        .unwrap();
    assert!(alive(pid) && alive(child));
    drop(connection);
    assert!(comes_true(|| !alive(pid) && !alive(child)));
}

#[test]
fn a_background_process_does_not_hold_the_session_open() {
    let host = Host::new();
    let outcome = host.shell("sleep 1000 & echo $!").finish();
    assert_eq!(outcome.exit, (0, 0));
    let text = String::from_utf8(outcome.stdout).unwrap();
    let background = text.trim().parse().unwrap();
    assert!(alive(background), "it was waited for, or ended");
    kill(Pid::from_raw(background as i32), Signal::SIGKILL).unwrap();
}

#[test]
fn all_output_arrives_before_the_exit() {
    let host = Host::new();
    let outcome = host
        .shell("head -c 300000 /dev/zero; head -c 1000 /dev/zero >&2")
        .finish();
    assert_eq!(
        (outcome.stdout.len(), outcome.stderr.len()),
        (300_000, 1000)
    );
}

#[test]
fn programs_are_found_by_their_path() {
    let host = Host::new();
    let ours = std::env::current_dir().unwrap();
    let [first, second] = ["first", "second"].map(|name| host.directory.join(name));
    for (place, script, mode) in [(&first, "exit 1", 0o644), (&second, "echo $0 $1", 0o755)] {
        fs::create_dir(place).unwrap();
        // Without a header: for the shell, as everywhere.
        fs::write(place.join("script"), script).unwrap();
        fs::set_permissions(place.join("script"), Permissions::from_mode(mode)).unwrap();
    }
    fs::create_dir(first.join("sh")).unwrap();
    let path = format!(
        "PATH=/nowhere:{}:{}:/bin",
        first.display(),
        second.display()
    );
    let expected = format!("{}/script word\n", second.display());
    for directory in [ours.to_str().unwrap(), "/"] {
        let mut outcome = host.exec_in(&["script", "word"], &["PATH=/bin", &path], directory);
        let text = String::from_utf8(outcome.finish().stdout).unwrap();
        assert_eq!(text, expected, "in {directory}");
        let mut outcome = host.exec_in(&["sh", "-c", "pwd; echo $0"], &[&path], directory);
        let text = String::from_utf8(outcome.finish().stdout).unwrap();
        assert_eq!(text, format!("{directory}\nsh\n"));
    }
}

#[test]
fn no_signal_is_ignored_or_blocked() {
    let host = Host::new();
    // Elsewhere it is started in another way, and inherits what whoever runs the tests ignores.
    let ours = std::env::current_dir().unwrap();
    let program = ["grep", "-E", "^Sig(Ign|Blk)", "/proc/self/status"];
    let mut connection = host.exec_in(&program, &[], ours.to_str().unwrap());
    let text = String::from_utf8(connection.finish().stdout).unwrap();
    let expected = "SigBlk:\t0000000000000000\nSigIgn:\t0000000000000000\n";
    assert_eq!(text, expected);
}

#[test]
fn programs_that_cannot_be_started() {
    let host = Host::new();
    let (errno, text) = host.exec(&["no-such-program"]).error();
    assert_eq!(errno, 2);
    assert!(text.contains("no-such-program"), "{text}");
    assert_eq!(host.exec(&["/etc/passwd"]).error().0, 13);
    assert_eq!(host.exec(&[]).error().0, 22);
    assert_eq!(host.exec(&["a\0b"]).error().0, 22);
    assert_eq!(
        host.exec_in(&["true"], &["no equals sign"], "").error().0,
        22
    );
    let (errno, text) = host.exec_in(&["true"], &[], "/no/such/directory").error();
    assert_eq!(errno, 20);
    assert!(text.contains("/no/such/directory"), "{text}");
}

#[test]
fn a_user_that_is_not_there() {
    let host = Host::new();
    let (errno, text) = host.exec_as("no-such-user", "true").error();
    assert_eq!((errno, &*text), (1001, "no-such-user: no such user"));
    let (errno, text) = host.exec_as("root:no-such-group", "true").error();
    assert_eq!((errno, &*text), (1002, "root:no-such-group: no such group"));
    assert_eq!(host.exec_as(&"x".repeat(257), "true").receive(), None);
    assert_eq!(host.exec_as("", "true").finish().exit, (0, 0));
}

#[test]
fn a_program_of_another_user_has_given_up_all_rights() {
    if !geteuid().is_root() {
        // Nobody else can become another user: there is no such program then.
        assert_eq!(Host::new().exec_as("65534:65533", "true").error().0, 1);
        return;
    }
    let host = Host::new();
    let script = "grep -E '^(Uid|Gid|Groups|CapPrm|CapEff|CapAmb):' /proc/self/status;
        (echo gone >/proc/1/oom_score_adj) 2>/dev/null; echo again >/dev/stdout; echo $HOME";
    let outcome = host.exec_as("65532:65533", script).finish();
    let text = String::from_utf8(outcome.stdout).unwrap();
    let words: Vec<_> = text.split_whitespace().collect();
    let expected = "Uid: 65532 65532 65532 65532 Gid: 65533 65533 65533 65533 Groups: 65533
        CapPrm: 0000000000000000 CapEff: 0000000000000000 CapAmb: 0000000000000000 again /";
    assert_eq!(words, expected.split_whitespace().collect::<Vec<_>>());
    assert_eq!(outcome.exit, (0, 0));
}

#[test]
fn a_connection_serves_one_request_after_the_other() {
    let host = Host::new();
    let mut connection = host.exec(&["echo", "first"]);
    assert_eq!(connection.finish().stdout, b"first\n");
    // What was sent before the end was known is nobody's.
    connection.send(STDIN, b"too late\n");
    connection.send(SIGNAL, &9u32.to_le_bytes());
    connection.grant(1, 16384);
    connection.send(STDIN_EOF, &[]);
    connection.exec(&["no-such-program"]);
    assert_eq!(connection.error().0, 2);
    connection.exec(&["cat"]);
    connection.send(STDIN, b"second\n");
    connection.send(STDIN_EOF, &[]);
    assert_eq!(connection.finish().stdout, b"second\n");
    connection.exec(&["head", "-c", "65537", "/dev/zero"]);
    connection.pid();
    // Its credit is its own: 65536 bytes, until there is more.
    let mut size = 0;
    while size < 65536 {
        size += connection.expect(STDOUT).len();
    }
    connection.grant(1, 1);
    assert_eq!(connection.finish().stdout, b"\0");
}

#[test]
fn sessions_run_at_the_same_time() {
    let host = Host::new();
    let mut connections: Vec<_> = (0..8).map(|_| host.exec(&["cat"])).collect();
    for (number, connection) in connections.iter_mut().enumerate().rev() {
        connection.send(STDIN, format!("{number}").as_bytes());
        connection.send(STDIN_EOF, &[]);
    }
    for (number, connection) in connections.iter_mut().enumerate() {
        assert_eq!(connection.finish().stdout, format!("{number}").as_bytes());
    }
}

#[test]
fn a_file_goes_in_and_comes_out() {
    let host = Host::new();
    let path = host.directory.join("file");
    let content: Vec<u8> = (0..200_000u32).map(|number| (number >> 2) as u8).collect();

    let mut connection = host.connect();
    let name = path.to_str().unwrap().as_bytes();
    connection.send(WRITE_FILE, &[&0o750u32.to_le_bytes(), name].concat());
    let mut credit = 65536;
    for piece in content.chunks(16384) {
        while credit < piece.len() {
            credit += u32::from_le_bytes(connection.expect(GRANT).try_into().unwrap()) as usize;
        }
        connection.send(STDIN, piece);
        credit -= piece.len();
    }
    connection.send(STDIN_EOF, &[]);
    let done = loop {
        match connection.receive().unwrap() {
            (GRANT, _) => {}
            (number, payload) => break (number, payload),
        }
    };
    assert_eq!(done, (DONE, 200_000u64.to_le_bytes().to_vec()));
    assert!(fs::read(&path).unwrap() == content);
    assert_eq!(
        fs::metadata(&path).unwrap().permissions().mode() & 0o7777,
        0o750
    );

    connection.send(READ_FILE, name);
    let mut received = Vec::new();
    loop {
        match connection.receive().unwrap() {
            (STDOUT, bytes) => {
                connection.grant(1, bytes.len());
                received.extend(bytes);
            }
            (DONE, bytes) => break assert_eq!(bytes, 200_000u64.to_le_bytes()),
            other => panic!("{other:?}"),
        }
    }
    assert!(received == content);
}

#[test]
fn files_that_cannot_be_opened() {
    let host = Host::new();
    let read = |path: &[u8]| {
        let mut connection = host.connect();
        connection.send(READ_FILE, path);
        connection.error()
    };
    assert_eq!(read(b"/no/such/file").0, 2);
    assert_eq!(read(b"/tmp").0, 21);
    assert_eq!(read(b"a\0b").0, 22);
    let mut connection = host.connect();
    connection.send(WRITE_FILE, b"\0\0\0\0/no/such/directory/file");
    assert_eq!(connection.error().0, 2);
}

#[test]
fn a_malformed_frame_ends_only_its_session() {
    let host = Host::new();
    for bytes in [&[0xFF; 64][..], &[0x02, 0, 0, 0, 1, 0, 0, 0, 0][..]] {
        let mut connection = host.connect();
        connection.0.write_all(bytes).unwrap();
        assert_eq!(connection.receive(), None);
    }
    assert_eq!(host.exec(&["true"]).finish().exit, (0, 0));
}

#[test]
fn a_signal_and_a_lost_host_end_the_agent() {
    let host = Host::made(|agent| agent.obeying_signals().unwrap());
    raise(Signal::SIGUSR2).unwrap();
    assert_eq!(host.end(), power::Kind::Off);
    let mut host = Host::new();
    host.greeting = Connection(UnixStream::pair().unwrap().0);
    assert_eq!(host.end(), power::Kind::Off);
}

#[test]
fn a_chore_is_done_later_and_once() {
    static DONE: AtomicU32 = AtomicU32::new(0);
    let chore = || _ = DONE.fetch_add(1, Ordering::SeqCst);
    let host = Host::made(|agent| agent.after(Duration::from_millis(20), chore));
    while DONE.load(Ordering::SeqCst) == 0 {
        thread::sleep(Duration::from_millis(5));
    }
    assert_eq!(host.exec(&["sleep", "0.1"]).finish().exit, (0, 0));
    assert_eq!(DONE.load(Ordering::SeqCst), 1);
}

#[test]
fn a_program_on_a_terminal() {
    let host = Host::new();
    let script = "test -t 2 && stty size && ps -o tpgid= -o pgid= -p $$; read x; stty size; echo $x >&2; exit 3";
    let mut connection = host.exec_on_a_terminal(&["sh", "-c", script], [33, 132]);
    assert!(matches!(connection.receive(), Some((STARTED, _))));
    let mut shown = String::new();
    let mut until = |connection: &mut Connection, text: &str| {
        while !shown.contains(text) {
            let (kind, bytes) = connection.receive().unwrap();
            assert_eq!(kind, STDOUT);
            shown.push_str(std::str::from_utf8(&bytes).unwrap());
        }
        std::mem::take(&mut shown)
    };
    until(&mut connection, "33 132\r\n");
    let groups = until(&mut connection, "\r\n");
    let mut groups = groups.split_whitespace();
    assert_eq!(groups.next(), groups.next(), "the terminal is not its own");
    connection.send(RESIZE, &[50, 0, 200, 0]);
    connection.send(STDIN, b"words\n");
    until(&mut connection, "50 200\r\nwords\r\n");
    let outcome = connection.finish();
    assert_eq!(outcome.exit, (0, 3));
}

#[test]
fn control_c_and_the_end_of_input_on_a_terminal() {
    let host = Host::new();
    let mut connection = host.exec_on_a_terminal(&["sleep", "1000"], [24, 80]);
    assert!(matches!(connection.receive(), Some((STARTED, _))));
    connection.send(STDIN, b"\x03");
    assert_eq!(connection.finish().exit, (1, 2));
    let mut connection = host.exec_on_a_terminal(&["cat"], [24, 80]);
    assert!(matches!(connection.receive(), Some((STARTED, _))));
    connection.send(STDIN_EOF, b"");
    assert_eq!(connection.finish().exit, (0, 0));
}

#[test]
fn a_program_that_cannot_run_has_no_terminal() {
    let host = Host::new();
    let mut connection = host.exec_on_a_terminal(&["/no/such/program"], [24, 80]);
    let (kind, payload) = connection.receive().unwrap();
    assert_eq!((kind, payload[0]), (ERROR, 2));
}
