"""The worker as a process of its own: sessions from end to end, and every way it ends."""

import errno
import fcntl
import hashlib
import os
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from teuthis.protocol import (
    Ended,
    Exec,
    ReadFile,
    Signal,
    Status,
    StatusKind,
    Stop,
    WriteFile,
)

from .agent_guest import (
    DONE,
    ENTROPY,
    ERROR,
    EXEC,
    EXIT,
    INITIAL_CREDIT,
    READ_FILE,
    STARTED,
    STDERR,
    STDOUT,
    WRITE_FILE,
    AgentGuest,
    Task,
    frame,
    parse_exec,
    u32,
)
from .process import Process


@pytest.fixture
def process() -> Iterator[Process]:
    process = Process()
    yield process
    process.close()


@pytest.fixture
def agent(process: Process) -> AgentGuest:
    assert process.guest.connect()
    agent = AgentGuest(process.guest)
    greeting = agent.hello()
    agent.until(lambda: process.status(StatusKind.READY))
    agent.until(lambda: len(greeting.received) >= 72)
    assert greeting.received[0] == ENTROPY
    return agent


class Reader(threading.Thread):
    """Reads a pipe to its end."""

    def __init__(self, descriptor: int) -> None:
        super().__init__(daemon=True)
        self.descriptor = descriptor
        self.data = b""
        self.start()

    def run(self) -> None:
        pieces = []
        while piece := os.read(self.descriptor, 1 << 20):
            pieces.append(piece)
        self.data = b"".join(pieces)


def run(
    process: Process, agent: AgentGuest, number: int = 7, stdin: bytes = b""
) -> tuple[Task, Reader, Reader]:
    stdin_read, stdin_write = os.pipe()
    out_read, out_write = os.pipe()
    err_read, err_write = os.pipe()
    request = Exec(id=number, argv=["prog", "x y"], env={"A": "1=2"}, cwd="/tmp", user="app:ü")
    process.ask(request, stdin_read, out_write, err_write)
    for descriptor in (stdin_read, out_write, err_write):
        os.close(descriptor)

    def feed() -> None:
        try:
            os.write(stdin_write, stdin)
        finally:
            os.close(stdin_write)

    threading.Thread(target=feed, daemon=True).start()
    before = len(agent.tasks)
    agent.until(lambda: len(agent.tasks) > before and agent.tasks[-1].request is not None)
    return agent.tasks[-1], Reader(out_read), Reader(err_read)


# ---- sessions ------------------------------------------------------------------------------------


def test_program_with_streams_and_exit_code(process: Process, agent: AgentGuest) -> None:
    task, out, err = run(process, agent, stdin=b"some input")
    assert task.request is not None
    assert task.request[0] == EXEC
    words, variables = [b"prog", b"x y"], [b"A=1=2"]
    assert parse_exec(task.request[1]) == (words, variables, b"/tmp", "app:ü".encode())
    task.say(STARTED, u32(42))
    agent.until(lambda: task.input_ended)
    assert task.input == b"some input"
    task.write(STDOUT, b"to stdout")
    task.write(STDERR, b"to stderr")
    task.exit(3)
    agent.until(lambda: process.status(StatusKind.EXITED) == Status(StatusKind.EXITED, 7, 3))
    assert process.status(StatusKind.STARTED) == Status(StatusKind.STARTED, 7, 42)
    out.join()
    err.join()
    assert (out.data, err.data) == (b"to stdout", b"to stderr")


def exited(process: Process, agent: AgentGuest) -> Status:
    found: list[Status] = []

    def look() -> bool:
        status = process.status(StatusKind.EXITED)
        found.extend([status] if status else [])
        return bool(found)

    agent.until(look)
    return found[0]


def end(process: Process, agent: AgentGuest, task: Task) -> None:
    task.say(STARTED, u32(9))
    task.exit(0)
    exited(process, agent)


def whole_input(agent: AgentGuest, task: Task) -> bytes:
    agent.until(lambda: task.input_ended)
    return bytes(task.input)


def test_a_connection_serves_one_program_after_the_other(
    process: Process, agent: AgentGuest
) -> None:
    for number in range(1, 4):
        text = b"for %d" % number
        task, out, _ = run(process, agent, number, stdin=text)
        task.say(STARTED, u32(9))
        task.write(STDOUT, bytes(INITIAL_CREDIT))  # its credit is its own
        assert whole_input(agent, task) == text
        task.exit(number)
        assert exited(process, agent) == Status(StatusKind.EXITED, number, number)
        out.join()
        assert len(out.data) == INITIAL_CREDIT
    assert len(agent.tasks) == 3
    assert len({task.channel.relid for task in agent.tasks}) == 1


def test_of_the_connections_that_are_over_one_is_kept(process: Process, agent: AgentGuest) -> None:
    one, _, _ = run(process, agent, 1)
    two, _, _ = run(process, agent, 2)
    end(process, agent, one)
    end(process, agent, two)
    agent.until(lambda: two.channel.ended)
    two.channel.finish()
    agent.until(lambda: two.channel.gone)
    assert not one.channel.gone


@pytest.mark.parametrize("late", [frame(STDOUT, b"late"), frame(EXIT, u32(0, 0)), b"\x82"])
def test_what_nobody_asked_for_ends_the_connection(
    process: Process, agent: AgentGuest, late: bytes
) -> None:
    task, _, _ = run(process, agent)
    end(process, agent, task)
    task.channel.send(late)
    agent.until(lambda: task.channel.gone)
    assert process.counters.snapshot()["agent.unknown"].kinds == {"unasked": 1}
    end(process, agent, run(process, agent, 8)[0])


def test_a_last_frame_with_more_behind_it_ends_the_connection(
    process: Process, agent: AgentGuest
) -> None:
    task, _, _ = run(process, agent)
    task.say(STARTED, u32(9))
    task.channel.send(frame(EXIT, u32(0, 3)) + frame(STDOUT, b"late"))
    agent.until(lambda: process.status(StatusKind.EXITED) == Status(StatusKind.EXITED, 7, 3))
    agent.until(lambda: task.channel.gone)
    end(process, agent, run(process, agent, 8)[0])


def test_a_kept_connection_that_the_guest_ends_is_not_used(
    process: Process, agent: AgentGuest
) -> None:
    task, _, _ = run(process, agent)
    end(process, agent, task)
    task.channel.finish()
    agent.until(lambda: task.channel.gone)
    end(process, agent, run(process, agent, 8)[0])


def test_program_killed_by_a_signal(process: Process, agent: AgentGuest) -> None:
    task, _, _ = run(process, agent)
    task.say(STARTED, u32(42))
    process.ask(Signal(id=7, signal=15))
    agent.until(lambda: task.signals == [15])
    task.exit(15, killed=True)
    agent.until(lambda: process.status(StatusKind.EXITED) == Status(StatusKind.EXITED, 7, 0, 15))


def test_large_streams_both_ways_at_once(process: Process, agent: AgentGuest) -> None:
    data = os.urandom(1 << 20) * 3
    task, out, err = run(process, agent, stdin=data)
    task.say(STARTED, u32(42))
    sent = {STDOUT: 0, STDERR: 0}

    def step() -> bool:
        for stream, at in sent.items():
            sent[stream] += task.write(stream, data[at : at + 30_000])
        return task.input_ended and all(at == len(data) for at in sent.values())

    agent.until(step)
    assert task.input == data
    task.exit(0)
    agent.until(lambda: process.status(StatusKind.EXITED))
    out.join()
    err.join()
    assert out.data == data
    assert err.data == data


def test_two_programs_at_once(process: Process, agent: AgentGuest) -> None:
    one, out_one, _ = run(process, agent, 1)
    two, out_two, _ = run(process, agent, 2)
    for task, text in ((two, b"two"), (one, b"one")):
        task.say(STARTED, u32(9))
        task.write(STDOUT, text)
        task.exit(0)
    found: set[int] = set()

    def both() -> bool:
        status = process.status(StatusKind.EXITED)
        if status is not None:
            found.add(status.id)
        return found == {1, 2}

    agent.until(both)
    out_one.join()
    out_two.join()
    assert (out_one.data, out_two.data) == (b"one", b"two")


def test_slow_reader_stops_the_guest_not_the_worker(process: Process, agent: AgentGuest) -> None:
    stdin_read, stdin_write = os.pipe()
    out_read, out_write = os.pipe()
    process.ask(Exec(id=1, argv=["yes"], env={}, cwd="/"), stdin_read, out_write, out_write)
    os.close(out_write)
    agent.until(lambda: agent.tasks and agent.tasks[-1].request)
    task = agent.tasks[-1]
    task.say(STARTED, u32(9))
    limit = fcntl.fcntl(out_read, fcntl.F_GETPIPE_SZ) + INITIAL_CREDIT
    written = 0

    def fill() -> bool:
        nonlocal written
        written += task.write(STDOUT, bytes(65536))
        return written >= limit

    agent.until(fill)
    for _ in range(30):
        agent.step()
        assert not fill() or written == limit
    other, out, _ = run(process, agent, 2)
    other.say(STARTED, u32(10))
    other.exit(0)
    agent.until(lambda: process.status(StatusKind.EXITED))
    out.join()
    task.exit(0)
    for _ in range(20):
        agent.step()
    assert process.status(StatusKind.EXITED) is None, "reported before its output was read"
    reader = Reader(out_read)
    agent.until(lambda: process.status(StatusKind.EXITED))
    reader.join()
    assert len(reader.data) == written
    os.close(stdin_read)
    os.close(stdin_write)


def test_nobody_reads_output_any_more(process: Process, agent: AgentGuest) -> None:
    stdin_read, stdin_write = os.pipe()
    out_read, out_write = os.pipe()
    process.ask(Exec(id=1, argv=["yes"], env={}, cwd="/"), stdin_read, out_write, out_write)
    for descriptor in (out_read, out_write, stdin_read, stdin_write):
        os.close(descriptor)
    agent.until(lambda: agent.tasks and agent.tasks[-1].request)
    task = agent.tasks[-1]
    task.say(STARTED, u32(9))
    task.write(STDOUT, b"y\n")
    agent.until(lambda: task.signals == [13])
    task.exit(13, killed=True)
    agent.until(lambda: process.status(StatusKind.EXITED))


def test_write_file(process: Process, agent: AgentGuest, tmp_path: Path) -> None:
    data = os.urandom(300_000)
    source = tmp_path / "source"
    source.write_bytes(data)
    with source.open("rb") as file:
        process.ask(WriteFile(id=3, path="/etc/x", mode=0o640), file.fileno())
    agent.until(lambda: agent.tasks and agent.tasks[-1].input_ended)
    task = agent.tasks[-1]
    assert task.request == (WRITE_FILE, u32(0o640) + b"/etc/x")
    assert task.input == data
    task.say(DONE, struct.pack("<Q", len(data)))
    agent.until(lambda: process.status(StatusKind.DONE) == Status(StatusKind.DONE, 3, len(data)))


def test_read_file(process: Process, agent: AgentGuest) -> None:
    data = os.urandom(300_000)
    source, sink = os.pipe()
    process.ask(ReadFile(id=3, path="/etc/x"), sink)
    os.close(sink)
    reader = Reader(source)
    agent.until(lambda: agent.tasks and agent.tasks[-1].request)
    task = agent.tasks[-1]
    assert task.request == (READ_FILE, b"/etc/x")
    at = 0

    def step() -> bool:
        nonlocal at
        at += task.write(STDOUT, data[at:])
        return at == len(data)

    agent.until(step)
    task.say(DONE, struct.pack("<Q", len(data)))
    agent.until(lambda: process.status(StatusKind.DONE) == Status(StatusKind.DONE, 3, len(data)))
    reader.join()
    assert hashlib.sha256(reader.data).digest() == hashlib.sha256(data).digest()


def test_agent_error_fails_the_request(process: Process, agent: AgentGuest) -> None:
    task, out, _ = run(process, agent)
    task.say(ERROR, u32(errno.ENOENT) + b"prog: not found")
    expected = Status(StatusKind.FAILED, 7, errno.ENOENT)
    agent.until(lambda: process.status(StatusKind.FAILED) == expected)
    out.join()
    assert b"prog: not found" in process.console_text()


def test_vanished_agent_connection_fails_the_request(process: Process, agent: AgentGuest) -> None:
    task, _, _ = run(process, agent)
    task.channel.finish()
    expected = Status(StatusKind.FAILED, 7, errno.ECONNRESET)
    agent.until(lambda: process.status(StatusKind.FAILED) == expected)


@pytest.mark.parametrize(
    "hostile",
    [
        frame(STDOUT, b"before the start"),
        frame(STARTED, u32(1)) * 2,
        frame(0x99),
        frame(DONE, bytes(8)),
        b"\x82\x01\0\0\0\0\0\0",
    ],
)
def test_broken_agent_protocol_ends_the_session_only(
    process: Process, agent: AgentGuest, hostile: bytes
) -> None:
    task, _, _ = run(process, agent)
    task.channel.send(hostile)
    expected = Status(StatusKind.FAILED, 7, errno.EPROTO)
    agent.until(lambda: process.status(StatusKind.FAILED) == expected)
    agent.until(lambda: task.channel.gone)
    other, _, _ = run(process, agent, 8)
    other.say(STARTED, u32(9))
    other.exit(0)
    agent.until(lambda: process.status(StatusKind.EXITED))


def test_request_before_the_agent_is_ready_fails(process: Process) -> None:
    with Path(os.devnull).open("rb+") as null:
        process.ask(ReadFile(id=3, path="/"), null.fileno())
        assert process.wait_for(StatusKind.FAILED).value == errno.ENOTCONN


def test_request_that_is_too_large_for_a_frame_fails(process: Process, agent: AgentGuest) -> None:
    with Path(os.devnull).open("rb+") as null:
        request = Exec(id=3, argv=["x" * 70_000], env={}, cwd="/")
        process.ask(request, null.fileno(), null.fileno(), null.fileno())
        assert process.wait_for(StatusKind.FAILED).value == errno.E2BIG


# ---- endings -------------------------------------------------------------------------------------


def ended(process: Process) -> Ended:
    reason = Ended(process.wait_for(StatusKind.ENDED).value)
    assert process.child.wait(100) == 0
    return reason


@pytest.mark.parametrize("reason", [1, 2, 3, 5, 6, 7])
def test_end_of_the_hypervisor_is_passed_on(process: Process, reason: int) -> None:
    process.raw(3, reason)
    assert ended(process) == reason


def test_crash_comes_with_the_last_words(process: Process) -> None:
    process.memory.bytes[0x5000:0x5010] = b"Kernel panic!\n\0\0"
    process.raw(3, 4, struct.pack("<6Q", 0, 0, 0, 0x5000, 16, 3 << 62))
    assert ended(process) is Ended.GUEST_CRASH
    assert process.console_text().endswith(b"its last words:\nKernel panic!\n")


@pytest.mark.parametrize(
    ("address", "length"),
    [(1 << 40, 16), (8 << 20, 1), (0x5000, 4097), (2**64 - 1, 16), (0x5000, 2**64 - 1)],
)
def test_crash_with_a_wild_text_address(process: Process, address: int, length: int) -> None:
    process.raw(3, 4, struct.pack("<6Q", 0, 0, 0, address, length, 3 << 62))
    assert ended(process) is Ended.GUEST_CRASH
    assert process.console_text().endswith(b"its last words:\n")


def test_crash_is_the_answer_although_the_connections_go_first(
    process: Process, agent: AgentGuest
) -> None:
    task, _, _ = run(process, agent)
    task.say(STARTED, u32(42))
    agent.until(lambda: process.status(StatusKind.STARTED))
    process.guest.channels.clear()
    process.guest.post(16)
    process.guest.expect(17)
    process.raw(3, 4, bytes(48))
    assert ended(process) is Ended.GUEST_CRASH
    assert process.take_statuses() == []


def test_output_before_the_end_is_handed_out(process: Process, agent: AgentGuest) -> None:
    task, out, _ = run(process, agent)
    task.say(STARTED, u32(42))
    process.page[:2048] = bytes(2048)
    ports, process.ports = process.ports, set()  # the doorbell is rung, but not heard yet
    task.write(STDOUT, b"last output")
    process.ports = ports
    process.page[task.channel.relid] = 1
    process.raw(3, 1)
    assert ended(process) is Ended.POWER_OFF
    out.join()
    assert out.data == b"last output"


@pytest.mark.parametrize(
    "packet",
    [
        b"x",
        bytes(272),
        bytes(273),
        struct.pack("<HHIQ256s", 2, 2, 0, 0, b""),
        struct.pack("<HHIQ256s", 1, 5, 0, 0, b""),
        struct.pack("<HHIQ256s", 1, 16, 0, 0, b""),
        struct.pack("<HHIQ256s", 1, 1, 241, 1, b"x" * 241),
        struct.pack("<HHIQ256s", 1, 1, 1, 2, b"x"),
        struct.pack("<HHIQ256s", 1, 2, 0, 0, b"x"),
        struct.pack("<HHIQ256s", 1, 2, 257, 0, b"x"),
        struct.pack("<HHIQ256s", 1, 2, 1, 9, b"x"),
        struct.pack("<HHIQ256s", 1, 3, 0, 9, b""),
        struct.pack("<HHIQ256s", 1, 6, 1, 0, b"x"),
        struct.pack("<HHIQ256s", 1, 7, 0, 0, b""),
        struct.pack("<HHIQ256s", 1, 3, 0, 32, b""),
        struct.pack("<HHIQ256s", 1, 3, 0, 4, b""),
        struct.pack("<HHIQ256s", 1, 3, 48, 1, b"x" * 48),
        struct.pack("<HHIQ256s", 1, 4, 1, 0, b"\xff"),
    ],
)
def test_hostile_hypervisor_ends_the_vm(process: Process, packet: bytes) -> None:
    process.link.send(packet)
    assert ended(process) is Ended.LINK_VIOLATION


def test_dead_hypervisor_ends_the_vm(process: Process) -> None:
    process.link.close()
    assert ended(process) is Ended.HYPERVISOR_DIED


def test_guest_that_takes_no_messages_ends(process: Process) -> None:
    process.guest.initiate()
    process.link.settimeout(1)
    while process.child.poll() is None:
        try:
            process.post(1, struct.pack("<IIII", 22, 0, 1, 0))
        except TimeoutError:
            continue  # it may be slow, or end just now
        except OSError:
            break
    assert ended(process) is Ended.MESSAGES_NOT_TAKEN


def test_dead_client_ends_the_worker(process: Process) -> None:
    process.control.close()
    assert process.child.wait(100) == 0
    assert process.link.recv(300)[2] == 16
    assert process.link.recv(300) == b""


def test_malformed_request_ends_the_worker(process: Process) -> None:
    process.control.send(b"\xc0")
    assert process.child.wait(100) == 0


def test_stop_is_passed_on(process: Process) -> None:
    process.ask(Stop())
    while not process.stopped:
        process.settle()
        process.messages()
    process.raw(3, 7)
    assert ended(process) is Ended.STOPPED


def test_stop_without_an_answer_still_stops(process: Process) -> None:
    process.ask(Stop())
    assert ended(process) is Ended.STOPPED


@pytest.mark.parametrize(
    "greeting", [frame(0x80, u32(2)), frame(0x82, b"x"), b"GET / HTTP/1.0\r\n"]
)
def test_broken_greeting_ends_the_vm(process: Process, greeting: bytes) -> None:
    assert process.guest.connect()
    process.guest.dial(0x7E07).send(greeting)
    process.guest.pump()
    assert ended(process) is Ended.AGENT_VIOLATION
    assert b"[teuthis] the guest agent broke its protocol" in process.console_text()


def test_second_greeting_connection_is_refused(process: Process, agent: AgentGuest) -> None:
    process.guest.post(
        21,
        b"".join(
            struct.pack("<I", p) + bytes.fromhex("cbfae611bd5864006a7986d3") for p in (5, 0x7E07)
        ),
    )
    process.guest.expect(23)


def test_console_and_notes_arrive(process: Process) -> None:
    process.raw(2, 0, b"Linux version 6\n")
    process.raw(4, 0, b"no such instruction")
    process.raw(3, 1)
    assert ended(process) is Ended.POWER_OFF
    assert process.console_text() == b"Linux version 6\n[teuthis] no such instruction\n"


def test_console_that_nobody_reads_drops_the_oldest(process: Process) -> None:
    for number in range(2000):
        process.raw(2, 0, f"{number:0255}\n".encode())
    time.sleep(0.2)
    text = process.console_text()
    while b"were not read in time" not in text or not text.endswith(b"1999\n"):
        time.sleep(0.01)
        text += process.console_text()
    assert len(text) < 200_000
