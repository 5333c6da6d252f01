"""Sessions: one operation of the client's (a program, a file) over one connection to the agent.

Sans-I/O: bytes of the guest come in by `received`, bytes for it go out through the connection; the
client's streams are a `Source` and `Sink`s that the session only talks to. A frame out of place
ends the session, not the VM.
"""

import errno
import signal
from collections.abc import Callable, Iterator
from functools import partial
from typing import Final, Protocol

from teuthis.flows import FLOWS, Counters
from teuthis.protocol import Status, StatusKind
from teuthis.worker.agent import frames
from teuthis.worker.agent.frames import INITIAL_CREDIT, STDOUT, FrameDecoder, FrameError

GRANT_BYTES: Final = INITIAL_CREDIT // 2
"""Credit is given back in portions of at least this size."""


class Stream(Protocol):
    """What a session needs of its connection."""

    def send(self, data: bytes) -> None:
        """Sends bytes."""

    def close(self) -> None:
        """Ends our direction."""

    def abort(self) -> None:
        """Takes the connection away."""


class Source(Protocol):
    """Where the guest's input comes from."""

    on_data: Callable[[bytes], None]
    on_end: Callable[[], None]

    def allow(self, size: int) -> None:
        """Lets `size` more bytes be read."""

    def close(self) -> None:
        """Stops."""


class Sink(Protocol):
    """Where the guest's output goes."""

    on_written: Callable[[int], None]
    on_broken: Callable[[], None]
    on_finished: Callable[[], None]

    def write(self, data: bytes) -> None:
        """Takes bytes."""

    def finish(self) -> None:
        """Writes what is left, then calls `on_finished`."""


class Session:
    """What programs and files have in common; the subclasses say which frames belong."""

    on_text: Callable[[str], None]
    """Takes the guest's own words about an error."""
    on_over: Callable[[Stream], None]
    """Takes the connection when nothing more of this operation can come by it."""

    def __init__(
        self,
        request_id: int,
        request: bytes,
        counters: Counters,
        report: Callable[[Status], None],
        source: Source | None = None,
        sinks: dict[int, Sink] | None = None,
    ) -> None:
        """`request`: the frame that asks for the operation; `report` takes its statuses."""
        self.id = request_id
        self.connection: Stream | None = None
        self.on_text = lambda text: None
        self.on_over = lambda connection: connection.close()
        self._request = request
        self._counters = counters
        self._report = report
        self._source = source
        self._sinks = sinks or {}
        self._decoder = FrameDecoder(counters)
        self._result: Status | None = None
        self._unfinished = len(self._sinks)
        self._credit = dict.fromkeys(self._sinks, INITIAL_CREDIT)
        self._ungranted = dict.fromkeys(self._sinks, 0)
        self._input_credit = INITIAL_CREDIT
        self._received = 0
        self._sent = 0
        if source is not None:
            source.on_data, source.on_end = self._input, self._input_end
        for stream, sink in self._sinks.items():
            sink.on_written = partial(self._written, stream)
            sink.on_broken = self._broken
            sink.on_finished = self._finished

    # ---- the connection --------------------------------------------------------------------------

    def opened(self) -> None:
        """The agent has taken the connection."""
        self._send(self._request)
        if self._source is not None:
            self._source.allow(INITIAL_CREDIT)

    def received(self, data: bytes) -> None:
        """Bytes of the agent's."""
        if self._result is not None:
            return
        arrived = self._decoder.feed(data)
        try:
            for frame in arrived:
                self._frame(frame)
                if self._result is not None:
                    self._leave(arrived)
                    return
        except FrameError as error:
            self._counters.reject(error.flow, error.kind)
            self.fail(errno.EPROTO)
            if self.connection is not None:
                self.connection.abort()

    def closed(self) -> None:
        """The connection is over."""
        self.connection = None
        self.fail(errno.ECONNRESET)

    def fail(self, number: int) -> None:
        """Ends the session as failed, unless it has its result."""
        if self._result is None:
            self._end(Status(StatusKind.FAILED, self.id, number))
            if self.connection is not None:
                self.connection.close()

    def _leave(self, arrived: Iterator[frames.Frame]) -> None:
        """The agent has said its last frame; whatever followed it, nobody was to send."""
        connection, self.connection = self.connection, None
        if connection is None:
            return
        try:
            silent = next(arrived, None) is None and self._decoder.empty
        except FrameError:
            silent = False
        if silent:
            self.on_over(connection)
        else:
            connection.abort()

    # ---- frames ----------------------------------------------------------------------------------

    def _frame(self, frame: frames.Frame) -> None:
        """Handles one frame. Raises `FrameError` when it does not belong here."""
        match frame:
            case frames.Output(stream, data):
                self._output(stream, data)
            case frames.Window(credit):
                self._more_credit(credit)
            case frames.Error(number, text):
                self.on_text(text)
                self._end(Status(StatusKind.FAILED, self.id, number))
            case frames.Done():
                raise FrameError("agent.done", "state", "nothing to be done with here")
            case frames.Hello():
                raise FrameError("agent.hello", "state", "a greeting in a session")
            case frames.Started():
                raise FrameError("agent.started", "state", "there is no program")
            case frames.Exit():
                raise FrameError("agent.exit", "state", "there is no program")

    def _output(self, stream: int, data: bytes) -> None:
        flow = "agent.stdout" if stream == STDOUT else "agent.stderr"
        sink = self._sinks.get(stream)
        if sink is None:
            raise FrameError(flow, "state", "output of a stream that is not there")
        self._credit[stream] -= len(data)
        if self._credit[stream] < 0:
            raise FrameError(flow, "credit", "output beyond the credit")
        self._received += len(data)
        sink.write(data)

    def _more_credit(self, credit: int) -> None:
        self._input_credit += credit
        if self._source is None or self._input_credit > frames.MAX_CREDIT:
            raise FrameError("agent.window", "credit", "more credit than the window can hold")
        self._source.allow(credit)

    # ---- the client's streams --------------------------------------------------------------------

    def _input(self, data: bytes) -> None:
        self._input_credit -= len(data)
        self._sent += len(data)
        self._counters.accept("client.input", len(data))
        self._send(frames.encode("agent.stdin", data))

    def _input_end(self) -> None:
        self._send(frames.encode("agent.stdin-eof"))

    def _written(self, stream: int, size: int) -> None:
        self._ungranted[stream] += size
        self._counters.accept("client.output", size)
        if self._ungranted[stream] >= GRANT_BYTES and self._result is None:
            grant, self._ungranted[stream] = self._ungranted[stream], 0
            self._credit[stream] += grant
            self._send(frames.encode_credit(stream, grant))

    def _broken(self) -> None:
        """The client does not read any more."""
        self.fail(errno.EPIPE)

    def _send(self, frame: bytes) -> None:
        if self.connection is not None:
            self._counters.accept(_FLOW_OF[frame[0]], len(frame) - frames.HEADER.size)
            self.connection.send(frame)

    # ---- the result ------------------------------------------------------------------------------

    def _end(self, result: Status) -> None:
        """Keeps the first result; it is reported when all output has been written."""
        if self._result is not None:
            return
        self._result = result
        if self._source is not None:
            self._source.close()
        if not self._unfinished:
            self._report(result)
        for sink in self._sinks.values():
            sink.finish()

    def _finished(self) -> None:
        self._unfinished -= 1
        if not self._unfinished and self._result is not None:
            self._report(self._result)


class ExecSession(Session):
    """A program: STARTED, then output, then EXIT."""

    _started = False

    def signal(self, number: int) -> None:
        """Sends a signal to the program."""
        self._send(frames.encode_signal(number))

    def resize(self, rows: int, columns: int) -> None:
        """Changes the size of the program's terminal."""
        self._send(frames.encode_resize(rows, columns))

    def _frame(self, frame: frames.Frame) -> None:
        match frame:
            case frames.Started(pid):
                if self._started:
                    raise FrameError("agent.started", "state", "started twice")
                self._started = True
                self._report(Status(StatusKind.STARTED, self.id, pid))
            case frames.Exit(killed, code):
                if not self._started:
                    raise FrameError("agent.exit", "state", "ended before it started")
                value, detail = (0, code) if killed else (code, 0)
                self._end(Status(StatusKind.EXITED, self.id, value, detail))
            case frames.Output(stream, _) if not self._started:
                flow = "agent.stdout" if stream == STDOUT else "agent.stderr"
                raise FrameError(flow, "state", "output before the start")
            case _:
                super()._frame(frame)

    def _broken(self) -> None:
        """As in a shell's pipeline whose reader has gone."""
        self.signal(signal.SIGPIPE)


class ReadSession(Session):
    """A file out of the guest: its bytes, then DONE with their number."""

    def _frame(self, frame: frames.Frame) -> None:
        if isinstance(frame, frames.Done):
            if frame.size != self._received:
                raise FrameError("agent.done", "value", "a count that lies")
            self._end(Status(StatusKind.DONE, self.id, frame.size))
        else:
            super()._frame(frame)


class WriteSession(Session):
    """A file into the guest: DONE when all was written there."""

    _complete = False

    def _input_end(self) -> None:
        self._complete = True
        super()._input_end()

    def _frame(self, frame: frames.Frame) -> None:
        if isinstance(frame, frames.Done):
            if not self._complete or frame.size != self._sent:
                raise FrameError("agent.done", "value", "a count that lies")
            self._end(Status(StatusKind.DONE, self.id, frame.size))
        else:
            super()._frame(frame)


_FLOW_OF = {
    flow.number: flow.id
    for flow in FLOWS.values()
    if flow.id.startswith("agent.") and flow.direction == "host-to-guest"
}
