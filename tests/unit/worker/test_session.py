"""Sessions without any I/O: what each frame does, and each frame out of place."""

import errno
import struct
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from teuthis.flows import Counters
from teuthis.protocol import Status, StatusKind
from teuthis.worker.agent.session import ExecSession, ReadSession, Session, WriteSession

from .agent_guest import (
    DONE,
    ERROR,
    EXIT,
    GRANT,
    HELLO,
    STARTED,
    STDERR,
    STDOUT,
    frame,
    u32,
)
from .test_frames import BAD


class FakeStream:
    def __init__(self) -> None:
        self.sent: list[bytes] = []
        self.state = "open"

    def send(self, data: bytes) -> None:
        self.sent.append(data)

    def close(self) -> None:
        self.state = "closed"

    def abort(self) -> None:
        self.state = "aborted"


class FakeSource:
    on_data: Callable[[bytes], None]
    on_end: Callable[[], None]

    def __init__(self) -> None:
        self.credit = 0
        self.closed = False

    def allow(self, size: int) -> None:
        self.credit += size

    def close(self) -> None:
        self.closed = True


class FakeSink:
    """Keeps what it is given until it is drained."""

    on_written: Callable[[int], None]
    on_broken: Callable[[], None]
    on_finished: Callable[[], None]

    def __init__(self) -> None:
        self.held = b""
        self.finishing = False

    def write(self, data: bytes) -> None:
        self.held += data

    def drain(self) -> None:
        size, self.held = len(self.held), b""
        self.on_written(size)
        self.finish_if_asked()

    def finish(self) -> None:
        self.finishing = True
        self.finish_if_asked()

    def finish_if_asked(self) -> None:
        if self.finishing and not self.held:
            self.on_finished()


class Bench:
    """A session with everything around it faked."""

    def __init__(self, kind: type[Session] = ExecSession) -> None:
        self.statuses: list[Status] = []
        self.stream, self.source = FakeStream(), FakeSource()
        self.out, self.err = FakeSink(), FakeSink()
        self.counters = Counters()
        sinks = {1: self.out, 2: self.err} if kind is ExecSession else {1: self.out}
        self.session = kind(
            5,
            b"request!",
            self.counters,
            self.statuses.append,
            None if kind is ReadSession else self.source,
            None if kind is WriteSession else {**sinks},
        )
        self.session.connection = self.stream
        self.session._request = frame(1)
        self.session.opened()

    def feed(self, *raw: bytes) -> None:
        for data in raw:
            self.session.received(data)

    def failed(self, number: int) -> bool:
        return self.statuses[-1:] == [Status(StatusKind.FAILED, 5, number)]


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_start_sends_the_request_and_opens_the_input(bench: Bench) -> None:
    assert bench.stream.sent == [frame(1)]
    assert bench.source.credit == 65536


def test_exit_is_reported_once_all_output_is_written(bench: Bench) -> None:
    bench.feed(frame(STARTED, u32(9)), frame(STDOUT, b"text"), frame(EXIT, u32(0, 4)))
    assert bench.statuses == [Status(StatusKind.STARTED, 5, 9)]
    assert bench.stream.state == "closed"
    assert bench.source.closed
    bench.out.drain()
    assert bench.statuses[1:] == [Status(StatusKind.EXITED, 5, 4)]
    bench.session.closed()
    assert len(bench.statuses) == 2


@pytest.mark.parametrize(
    ("after", "state"),
    [
        (b"", "kept"),
        (frame(STDOUT, b"x"), "aborted"),
        (frame(0x99), "aborted"),
        (frame(STDOUT, b"x")[:-1], "aborted"),
        (b"\x82", "aborted"),
    ],
)
def test_a_connection_is_given_back_when_nothing_follows(
    bench: Bench, after: bytes, state: str
) -> None:
    kept: list[object] = []
    bench.session.on_over = kept.append
    bench.feed(frame(STARTED, u32(9)), *[frame(STDOUT, bytes(16384))] * 2)
    bench.feed(frame(EXIT, u32(0, 4)) + after)
    if kept:
        bench.stream.state = "kept"
    assert (kept, bench.stream.state) == ([bench.stream] * (state == "kept"), state)
    sent = len(bench.stream.sent)
    bench.out.drain()
    bench.session.closed()
    assert len(bench.stream.sent) == sent, "credit for whoever has the connection now"
    assert bench.statuses[1:] == [Status(StatusKind.EXITED, 5, 4)]


def test_a_connection_is_not_given_back_by_one_side_alone(bench: Bench) -> None:
    kept: list[object] = []
    bench.session.on_over = kept.append
    bench.session.fail(errno.ESHUTDOWN)
    assert (kept, bench.stream.state) == ([], "closed")


def test_frames_after_the_result_are_ignored(bench: Bench) -> None:
    bench.feed(frame(STARTED, u32(9)), frame(EXIT, u32(1, 9)) + frame(0x99), b"garbage")
    assert bench.statuses[1:] == [Status(StatusKind.EXITED, 5, 0, 9)]


def test_credit_is_given_back_in_portions(bench: Bench) -> None:
    bench.feed(frame(STARTED, u32(9)), frame(STDOUT, bytes(16384)))
    bench.out.drain()
    assert len(bench.stream.sent) == 1
    bench.feed(frame(STDOUT, bytes(16384)))
    bench.out.drain()
    assert bench.stream.sent[1:] == [frame(6, u32(1, 32768))]


def test_output_beyond_the_credit_ends_the_session(bench: Bench) -> None:
    bench.feed(frame(STARTED, u32(9)), *[frame(STDERR, bytes(16384))] * 4)
    assert len(bench.statuses) == 1
    bench.feed(frame(STDERR, b"x"))
    bench.err.drain()
    assert bench.failed(errno.EPROTO)
    assert bench.stream.state == "aborted"
    assert bench.counters.snapshot()["agent.stderr"].rejected == 1


@pytest.mark.parametrize("stream", [STDOUT, STDERR])
def test_output_of_nothing_ends_the_session(bench: Bench, stream: int) -> None:
    """It takes no credit, so there would be no end of it."""
    bench.feed(frame(STARTED, u32(9)), frame(stream, b""))
    assert bench.failed(errno.EPROTO)


def test_input_is_framed_and_counted_against_the_credit(bench: Bench) -> None:
    bench.source.on_data(b"input")
    bench.source.on_end()
    assert bench.stream.sent[1:] == [frame(2, b"input"), frame(3)]
    bench.feed(frame(GRANT, u32(5)))
    assert bench.source.credit == 65541


@pytest.mark.parametrize("credit", [1 << 20, 2**32 - 1])
def test_too_much_credit_ends_the_session(bench: Bench, credit: int) -> None:
    bench.feed(frame(GRANT, u32(credit)))
    assert bench.failed(errno.EPROTO)


@pytest.mark.parametrize(
    "raw",
    [
        frame(STDOUT, b"x"),
        frame(STDERR, b"x"),
        frame(EXIT, u32(0, 0)),
        frame(HELLO, u32(1)),
        frame(DONE, bytes(8)),
        frame(STARTED, u32(9)) * 2,
        frame(0x50),
    ],
)
def test_program_frames_out_of_place_end_the_session(bench: Bench, raw: bytes) -> None:
    bench.feed(raw)
    assert bench.failed(errno.EPROTO)


@pytest.mark.parametrize("raw", BAD, ids=bytes.hex)
def test_bad_frames_end_the_session(bench: Bench, raw: bytes) -> None:
    bench.feed(frame(STARTED, u32(9)), raw)
    assert bench.failed(errno.EPROTO)


@pytest.mark.parametrize("stream", [STDOUT, STDERR])
def test_neither_stream_may_exceed_its_credit(bench: Bench, stream: int) -> None:
    bench.feed(frame(STARTED, u32(9)), *[frame(stream, bytes(16384))] * 5)
    flow = "agent.stdout" if stream == STDOUT else "agent.stderr"
    assert bench.counters.snapshot()[flow].kinds == {"credit": 1}


def test_reader_that_went_away_is_told_to_the_program(bench: Bench) -> None:
    bench.feed(frame(STARTED, u32(9)))
    bench.out.on_broken()
    assert bench.stream.sent[1:] == [frame(4, u32(13))]


def test_lost_connection_fails_the_session(bench: Bench) -> None:
    bench.feed(frame(STARTED, u32(9)))
    bench.session.closed()
    assert bench.failed(errno.ECONNRESET)


def test_read_session() -> None:
    bench = Bench(ReadSession)
    bench.feed(frame(STDOUT, b"abc"), frame(DONE, struct.pack("<Q", 3)))
    bench.out.drain()
    assert bench.statuses == [Status(StatusKind.DONE, 5, 3)]


@pytest.mark.parametrize(
    "raw",
    [
        frame(DONE, struct.pack("<Q", 1)),
        frame(STDERR, b"x"),
        frame(GRANT, u32(1)),
        frame(STARTED, u32(1)),
        frame(EXIT, u32(0, 0)),
    ],
)
def test_read_frames_out_of_place_end_the_session(raw: bytes) -> None:
    bench = Bench(ReadSession)
    bench.feed(raw)
    assert bench.failed(errno.EPROTO)


def test_reading_into_a_closed_pipe_fails() -> None:
    bench = Bench(ReadSession)
    bench.out.on_broken()
    assert bench.failed(errno.EPIPE)


def test_write_session() -> None:
    bench = Bench(WriteSession)
    bench.source.on_data(b"abc")
    bench.source.on_end()
    bench.feed(frame(DONE, struct.pack("<Q", 3)))
    assert bench.statuses == [Status(StatusKind.DONE, 5, 3)]


@pytest.mark.parametrize(
    "raw",
    [frame(DONE, bytes(8)), frame(STDOUT, b"x"), frame(EXIT, u32(0, 0)), frame(ERROR, b"no")],
)
def test_write_frames_out_of_place_end_the_session(raw: bytes) -> None:
    bench = Bench(WriteSession)
    bench.source.on_data(b"abc")
    bench.feed(raw)
    assert bench.failed(errno.EPROTO)


def test_write_error_is_passed_on() -> None:
    bench = Bench(WriteSession)
    bench.feed(frame(ERROR, u32(errno.EACCES) + b"no"))
    assert bench.failed(errno.EACCES)


RAW = st.sampled_from(
    [
        frame(HELLO, u32(1)),
        frame(STARTED, u32(4)),
        frame(STDOUT, bytes(9000)),
        frame(STDERR, b"err"),
        frame(EXIT, u32(0, 1)),
        frame(ERROR, u32(2) + b"text"),
        frame(GRANT, u32(70_000)),
        frame(DONE, struct.pack("<Q", 9000)),
        b"\x82",
    ]
)


@given(
    st.sampled_from([ExecSession, ReadSession, WriteSession]),
    st.lists(RAW | st.sampled_from(["drain", "input", "end", "broken", "closed"]), max_size=30),
)
def test_any_series_of_events_gives_one_result_at_most(
    kind: type[Session], events: list[bytes | str]
) -> None:
    bench = Bench(kind)
    ended = False
    for event in events:
        if isinstance(event, bytes):
            bench.feed(event)
        elif event == "drain" and kind is not WriteSession:
            bench.out.drain()
            assert bench.out.held == b""
        elif event == "input" and kind is not ReadSession and not bench.source.closed and not ended:
            size = min(bench.source.credit, 16384)
            if size:
                bench.source.credit -= size
                bench.source.on_data(bytes(size))
        elif event == "end" and kind is not ReadSession and not bench.source.closed and not ended:
            ended = True
            bench.source.on_end()
        elif event == "broken" and kind is not WriteSession:
            bench.out.on_broken()
        elif event == "closed":
            bench.session.closed()
        assert len(bench.out.held) <= 65536
        assert len(bench.err.held) <= 65536
    results = [status for status in bench.statuses if status.kind is not StatusKind.STARTED]
    assert len(results) <= 1
