"""The agent as the worker sees it: its greeting, and the client's requests made into sessions."""

import errno
import os
import struct
import time
from collections import deque
from collections.abc import Callable
from typing import Final

import msgspec

from teuthis import protocol
from teuthis.flows import FLOWS, Counters
from teuthis.protocol import Ended, Status, StatusKind
from teuthis.worker.agent import frames
from teuthis.worker.agent.frames import STDERR, STDOUT, FrameDecoder, FrameError
from teuthis.worker.agent.pump import Sink, Source
from teuthis.worker.agent.session import ExecSession, ReadSession, Session, WriteSession
from teuthis.worker.devices.hvsock import Connection, Handler, HvSock
from teuthis.worker.ending import EndVM
from teuthis.worker.loop import Loop

PORT: Final = FLOWS["agent.hello"].values["port"]
_VERSION = FLOWS["agent.hello"].values["version"]
_ENTROPY_BYTES = 64
MAX_SESSIONS: Final = FLOWS["control.request"].values["sessions_max"]
_TIME = struct.Struct("<QI")
LOST_SECONDS: Final = 3.0
"""How long the loss of a connection is kept to ourselves: a panicking guest drops its connections
before it reports the crash, and the crash is the better answer."""


class AgentState(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The agent in a saved machine."""

    greeting: int | None
    """The channel of its greeting connection."""
    ready: bool
    idle: int | None
    """The channel of the connection that is kept for the next request."""


class Greeting:
    """The connection that the agent opens at boot and keeps: HELLO and nothing else."""

    def __init__(
        self,
        agent: "Agent",
        connection: Connection,
        counters: Counters,
        *,
        greeted: bool = False,
    ) -> None:
        self.connection = connection
        self._agent = agent
        self._counters = counters
        self._decoder = FrameDecoder(counters)
        self._greeted = greeted

    def opened(self) -> None:
        """Nothing to say before the agent has."""

    def received(self, data: bytes) -> None:
        """HELLO, once. Raises `EndVM` for anything else."""
        try:
            for frame in self._decoder.feed(data):
                if not isinstance(frame, frames.Hello):
                    raise FrameError("agent.unknown", "frame", "not a greeting")
                if self._greeted:
                    raise FrameError("agent.hello", "state", "a second greeting")
                if frame.version != _VERSION:
                    raise FrameError("agent.hello", "version", "another version")
                self._greeted = True
                self._agent.greeted()
        except FrameError as error:
            self._counters.reject(error.flow, error.kind)
            raise EndVM(
                Ended.AGENT_VIOLATION, f"the guest agent broke its protocol: {error}"
            ) from error

    def closed(self) -> None:
        """The agent is gone, or the VMBus connection was reset."""
        self._agent.lost()


class Idle:
    """A connection whose operation is over, kept for the next one.

    To open one and end it costs a guest half of what a small program does.
    """

    def __init__(self, agent: "Agent", connection: Connection, counters: Counters) -> None:
        self.connection = connection
        self._agent = agent
        self._counters = counters

    def opened(self) -> None:
        """Never called: it is open."""

    def received(self, data: bytes) -> None:
        """Takes the connection away: nobody asked for anything, so whose answer would it be."""
        self._counters.reject("agent.unknown", "unasked")
        self.connection.abort()

    def closed(self) -> None:
        """The guest does not want it any more."""
        self._agent.forget(self)


class Agent:
    """Greeting and sessions of one VM."""

    def __init__(
        self,
        loop: Loop,
        sockets: HvSock,
        counters: Counters,
        report: Callable[[Status], None],
        console: Callable[[str], None],
        news: str = "",
    ) -> None:
        """`report` takes statuses for the root; `console` takes the agent's error texts.

        `news`: what a restored guest is told about its machine when it goes on.
        """
        self._loop = loop
        self._sockets = sockets
        self._counters = counters
        self._report = report
        self._console = console
        self._greeting: Greeting | None = None
        self._news = news
        self._idle: Idle | None = None
        self._ready = False
        self._abandoned = False
        self._sessions: dict[int, Session] = {}
        self._lost: deque[tuple[float, Status]] = deque()

    def listen(self) -> None:
        """Lets the agent greet us; until then there is none, whoever in the guest says so."""
        self._sockets.listen(PORT, self._accept)

    @property
    def busy(self) -> bool:
        """Whether a session has not reported its result yet."""
        return bool(self._sessions)

    def _accept(self, connection: Connection) -> Handler | None:
        """Only one greeting connection at a time: any program in the guest may try."""
        if self._greeting is not None:
            return None
        self._greeting = Greeting(self, connection, self._counters)
        return self._greeting

    # ---- saved machines --------------------------------------------------------------------------

    def save(self) -> AgentState:
        """The state from which another worker goes on; programs and files are not part of it."""
        greeting, idle = self._greeting, self._idle
        return AgentState(
            None if greeting is None else self._sockets.relid(greeting.connection),
            self._ready,
            # Whoever goes on does not have what is still unsent.
            self._sockets.relid(idle.connection) if idle and idle.connection.settled else None,
        )

    def restore(self, state: AgentState, connection: Connection) -> Handler:
        """Goes on with the greeting connection of a saved machine."""
        self._greeting = Greeting(self, connection, self._counters, greeted=state.ready)
        return self._greeting

    def restore_idle(self, connection: Connection) -> Handler:
        """Goes on with the idle connection of a saved machine."""
        self._idle = Idle(self, connection, self._counters)
        return self._idle

    def resumed(self) -> None:
        """Gives a guest that stood still the time of day, and random numbers.

        It may be one of many copies, none of which may repeat another's.
        """
        if self._ready:
            seconds, nanoseconds = divmod(time.time_ns(), 1_000_000_000)
            now = os.urandom(_ENTROPY_BYTES) + _TIME.pack(seconds, nanoseconds)
            self._say("agent.resumed", now + self._news.encode())
            self._news = ""

    def was_ready(self, ready: bool) -> None:
        """Whether the saved machine's agent had greeted."""
        self._ready = ready

    def report_ready(self) -> None:
        """Tells the root side that a restored agent is there, if it was."""
        if self._ready:
            self._report(Status(StatusKind.READY))

    # ---- greeting --------------------------------------------------------------------------------

    def greeted(self) -> None:
        """The agent said HELLO."""
        self._say("agent.entropy", os.urandom(_ENTROPY_BYTES))
        if not self._ready:
            self._ready = True
            self._report(Status(StatusKind.READY))

    def lost(self) -> None:
        """The greeting connection is over; the agent may come again."""
        self._greeting = None

    def _say(self, flow: str, payload: bytes) -> None:
        """Sends a frame that belongs to no session, on the greeting connection."""
        if self._greeting is not None:
            self._counters.accept(flow, len(payload))
            self._greeting.connection.send(frames.encode(flow, payload))

    # ---- requests --------------------------------------------------------------------------------

    def handle(self, request: protocol.Request, descriptors: list[int]) -> None:
        """Carries out a request of the client's; takes the descriptors over."""
        match request:
            case protocol.Signal() | protocol.Resize():
                session = self._sessions.get(request.id)
                if isinstance(session, ExecSession):
                    _tell(session, request)
            case protocol.Exec() | protocol.ReadFile() | protocol.WriteFile():
                self._start(request, descriptors)

    def _start(
        self,
        request: protocol.Exec | protocol.ReadFile | protocol.WriteFile,
        descriptors: list[int],
    ) -> None:
        problem = self._problem(request.id)
        try:
            frame = _request_frame(request)
        except ValueError:
            problem = problem or errno.E2BIG
        if problem:
            for descriptor in descriptors:
                os.close(descriptor)
            self._report(Status(StatusKind.FAILED, request.id, problem))
            return
        session = self._session(request, frame, descriptors)
        session.on_text = self._console
        self._sessions[request.id] = session

        def accept(connection: Connection) -> Handler:
            session.connection = connection
            session.on_over = lambda _: self._keep(connection)
            return session

        if self._idle is not None:
            connection, self._idle = self._idle.connection, None
            connection.handler = accept(connection)
            session.opened()
        elif not self._sockets.connect(PORT, accept):
            session.connection = None
            session.fail(errno.ENOTCONN)

    def _keep(self, connection: Connection) -> None:
        """Keeps one connection for the next request."""
        if self._idle is None:
            connection.handler = self._idle = Idle(self, connection, self._counters)
        else:
            connection.close()

    def forget(self, idle: Idle) -> None:
        """Called by an idle connection that is over."""
        if self._idle is idle:
            self._idle = None

    def _problem(self, request_id: int) -> int:
        if not self._ready:
            return errno.ENOTCONN
        if request_id in self._sessions:
            return errno.EEXIST
        return errno.EAGAIN if len(self._sessions) >= MAX_SESSIONS else 0

    def _session(
        self,
        request: protocol.Exec | protocol.ReadFile | protocol.WriteFile,
        frame: bytes,
        descriptors: list[int],
    ) -> Session:
        common = (request.id, frame, self._counters, self._session_report)
        match request:
            case protocol.Exec():
                stdin, stdout, stderr = descriptors
                sinks = {STDOUT: Sink(self._loop, stdout), STDERR: Sink(self._loop, stderr)}
                return ExecSession(*common, Source(self._loop, stdin), {**sinks})
            case protocol.ReadFile():
                return ReadSession(*common, None, {STDOUT: Sink(self._loop, descriptors[0])})
            case protocol.WriteFile():
                return WriteSession(*common, Source(self._loop, descriptors[0]))

    def _session_report(self, status: Status) -> None:
        if status.kind is StatusKind.STARTED:
            self._report(status)
            return
        self._sessions.pop(status.id, None)
        if status.kind is not StatusKind.FAILED:
            self._report(status)
        elif self._abandoned:
            return
        elif status.value == errno.ECONNRESET:
            self._lost.append((self._sockets.clock() + LOST_SECONDS, status))
        else:
            self._report(status)

    def deadline(self) -> float | None:
        """When `expire` has something to do next."""
        return self._lost[0][0] if self._lost else None

    def expire(self) -> None:
        """Reports the connections that were lost a while ago, as the VM still lives."""
        while self._lost and self._lost[0][0] <= self._sockets.clock():
            self._report(self._lost.popleft()[1])

    def abandon(self) -> None:
        """The VM has ended: sessions hand out what they hold; what they miss goes unreported."""
        self._abandoned = True
        for session in list(self._sessions.values()):
            session.fail(errno.ESHUTDOWN)


def _tell(session: ExecSession, request: protocol.Signal | protocol.Resize) -> None:
    match request:
        case protocol.Signal():
            session.signal(request.signal)
        case protocol.Resize():
            session.resize(request.rows, request.columns)


def _request_frame(request: protocol.Exec | protocol.ReadFile | protocol.WriteFile) -> bytes:
    """The agent's frame for a request. Raises `ValueError` when it is too large."""
    match request:
        case protocol.Exec():
            return frames.encode_exec(
                [argument.encode() for argument in request.argv],
                [f"{name}={value}".encode() for name, value in request.env.items()],
                request.cwd.encode(),
                request.user.encode(),
                request.tty,
            )
        case protocol.ReadFile():
            return frames.encode("agent.read-file", request.path.encode())
        case protocol.WriteFile():
            return frames.encode_write_file(request.mode, request.path.encode())
