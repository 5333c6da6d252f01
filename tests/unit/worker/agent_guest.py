"""The guest's agent in Python, over the simulator's channels, for tests of whole sessions."""

import os
import struct
import time
from collections.abc import Callable, Iterator

from .simulator import Channel, Guest

PORT = 0x7E07
INITIAL_CREDIT = 65536
EXEC, STDIN, STDIN_EOF, SIGNAL, WINDOW, READ_FILE, WRITE_FILE, ENTROPY, EXEC_TERMINAL, RESIZE = (
    1, 2, 3, 4, 6, 7, 8, 10, 11, 12,
)  # fmt: skip
HELLO, STARTED, STDOUT, STDERR, EXIT, ERROR, GRANT, DONE = range(0x80, 0x88)


def frame(kind: int, payload: bytes = b"") -> bytes:
    return struct.pack("<B3xI", kind, len(payload)) + payload


def u32(*numbers: int) -> bytes:
    return struct.pack(f"<{len(numbers)}I", *numbers)


def parse_exec(payload: bytes) -> tuple[list[bytes], list[bytes], bytes, bytes]:
    at = 0

    def number() -> int:
        nonlocal at
        at += 4
        return int(struct.unpack_from("<I", payload, at - 4)[0])

    def text() -> bytes:
        nonlocal at
        size = number()
        at += size
        return payload[at - size : at]

    argv = [text() for _ in range(number())]
    environment = [text() for _ in range(number())]
    return argv, environment, text(), text()


class Task:
    """One session as the agent sees it."""

    def __init__(self, channel: Channel) -> None:
        self.channel = channel
        self.request: tuple[int, bytes] | None = None
        self.input = bytearray()
        self.input_ended = False
        self.signals: list[int] = []
        self.over = False
        self.credit = {STDOUT: INITIAL_CREDIT, STDERR: INITIAL_CREDIT}

    def frames(self) -> Iterator[tuple[int, bytes]]:
        data = self.channel.received
        while len(data) >= 8:
            kind, length = struct.unpack_from("<B3xI", data)
            if len(data) < 8 + length:
                return
            payload = bytes(data[8 : 8 + length])
            del data[: 8 + length]
            yield kind, payload

    def step(self) -> "Task | None":
        """Takes what the host sent: a task of its own if that is another request."""
        for kind, payload in self.frames():
            if self.over:
                if kind in (EXEC, EXEC_TERMINAL, READ_FILE, WRITE_FILE):
                    another = Task(self.channel)
                    another.request = kind, payload
                    return another
            elif self.request is None:
                self.request = kind, payload
            elif kind == STDIN:
                self.input += payload
                self.say(GRANT, u32(len(payload)))
            elif kind == STDIN_EOF:
                self.input_ended = True
            elif kind == SIGNAL:
                self.signals.append(*struct.unpack("<I", payload))
            else:
                assert kind == WINDOW
                stream, size = struct.unpack("<II", payload)
                self.credit[STDOUT if stream == 1 else STDERR] += size
        return None

    def say(self, kind: int, payload: bytes = b"") -> None:
        self.channel.send(frame(kind, payload))

    def write(self, kind: int, data: bytes) -> int:
        """Sends as much of `data` as there is credit for; how much that was."""
        size = min(self.credit[kind], len(data))
        for at in range(0, size, 16384):
            self.say(kind, data[at : min(at + 16384, size)])
        self.credit[kind] -= size
        return size

    def exit(self, code: int, killed: bool = False) -> None:
        self.say(EXIT, u32(int(killed), code))
        self.over = True


class AgentGuest:
    """Accepts the host's connections; `program` decides what each session does, step by step."""

    def __init__(self, guest: Guest) -> None:
        self.guest = guest
        self.tasks: list[Task] = []
        guest.on_offer = self._accept
        self._new: list[Channel] = []

    def hello(self, version: int = 1) -> Channel:
        greeting = self.guest.dial(PORT, 1024)
        greeting.send(frame(HELLO, u32(version)))
        self.guest.on_offer = self._accept
        return greeting

    def _accept(self, channel: Channel) -> None:
        assert channel.from_host
        self._new.append(channel)

    def step(self) -> None:
        self.guest.pump()
        for channel in self._new:
            channel.do_open(pages_each=20)
            self.tasks.append(Task(channel))
        self._new.clear()
        self.guest.pump()
        for task in self.serving:
            another = task.step()
            if another is not None:
                self.tasks.append(another)

    @property
    def serving(self) -> list[Task]:
        """The last task of each connection."""
        return list({id(task.channel): task for task in self.tasks}.values())

    def until(self, condition: Callable[[], object]) -> None:
        deadline = time.monotonic() + 300
        while time.monotonic() < deadline:
            self.step()
            if condition():
                return
            os.sched_yield()  # to a worker that may have to share a processor with us
        raise AssertionError("it did not happen")
