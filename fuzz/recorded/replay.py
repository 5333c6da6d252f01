"""A recorded machine runs once more, with this process as its worker, so that its RAM can be seen.

`teuthis replay` plays a recording to the hypervisor program alone. Here the same program runs as
when it was recorded, in turns, and is given in each turn what the recorded worker gave it. While it
stands still its RAM holds what that worker found there: rings, page lists, data. At the end its own
recording of this run must be the one that was played, bit for bit, or what was seen is worthless.
"""

import hashlib
import os
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Final

from teuthis import programs
from teuthis.errors import RecordingError
from teuthis.flows import FLOWS, Counters, counters_size
from teuthis.jail import host, identity
from teuthis.root.descriptors import Descriptors
from teuthis.root.recording import Recording, Start
from teuthis.root.spawn import Child
from teuthis.worker import link
from teuthis.worker.doorbells import PAGE_BYTES, Doorbells

_HEADER: Final = struct.Struct("<BI")
_OFFSET: Final = struct.Struct("<Q")
_DOORBELL: Final = struct.Struct("<H")
_RANGE: Final = struct.Struct("<QQ")
_KIND: Final = FLOWS["recording.entry"].values
_TURN: Final = FLOWS["link.turn"].number
_END: Final = FLOWS["link.end"].number


@dataclass
class Turn:
    """One turn of the recorded worker."""

    given: list[bytes] = field(default_factory=list)
    """Packets of the link that the hypervisor sent since the turn before."""
    rung: list[int] = field(default_factory=list)
    """Channels that the guest signalled."""
    written: list[tuple[int, bytes]] = field(default_factory=list)
    """What the worker writes into guest RAM, by file offset."""
    doorbells: list[int] = field(default_factory=list)
    """Channels whose interrupt it raises."""
    sent: list[bytes] = field(default_factory=list)
    """Packets of the link that it sends: where it has written, messages, that the turn is over."""
    entries: list[bytes] = field(default_factory=list)
    """The same, as the recording holds it."""


class Entries:
    """The entries of a recording, one after the other.

    `sum` is over all that came after the RAM at the start: what the hypervisor program wrote.
    """

    def __init__(self, recording: Recording) -> None:
        self._chunks = recording.entries()
        self._buffer = b""
        self.sum = hashlib.sha256()

    def _take(self, size: int) -> bytes:
        while len(self._buffer) < size:
            chunk = next(self._chunks, b"")
            if not chunk:
                raise RecordingError("the recording is cut off: its machine was interrupted")
            self._buffer += chunk
        taken, self._buffer = self._buffer[:size], self._buffer[size:]
        return taken

    def start(self) -> Iterator[tuple[int, bytes]]:
        """The guest's RAM before its first instruction: (file offset, bytes)."""
        while True:
            head = self._take(_HEADER.size)
            kind, size = _HEADER.unpack(head)
            if kind != _KIND["memory"]:
                self._buffer = head + self._buffer
                return
            body = self._take(size)
            yield _OFFSET.unpack_from(body)[0], body[_OFFSET.size :]

    def next(self) -> tuple[int, bytes, bytes]:
        """Kind and body of the next entry, and all of it."""
        head = self._take(_HEADER.size)
        kind, size = _HEADER.unpack(head)
        body = self._take(size)
        self.sum.update(head + body)
        return kind, body, head + body


class Replay:
    """One run of a recorded machine."""

    def __init__(self, recording: Recording) -> None:
        """Loads the guest's RAM; does not start yet."""
        self.start: Start = recording.start
        self.memory_size = self.start.memory_size
        self._held = Descriptors()
        self.memory = self._held.memory_file("ram", self.memory_size)
        """A memory file; only to be read."""
        self._entries = Entries(recording)
        for offset, data in self._entries.start():
            os.pwrite(self.memory, data, offset)

    def close(self) -> None:
        """Gives everything back."""
        self._held.close()

    def turns(self) -> Iterator[Turn]:
        """Runs the machine, and lets it stand still where the recorded worker had its turn.

        That worker has not written anything yet when a turn is handed out.

        Raises:
            RecordingError: the machine did something else than the recorded one, or broke.
        """
        with ExitStack() as running, Descriptors() as given:
            page = given.memory_file("doorbells", PAGE_BYTES)
            to_worker, (read, write) = given.eventfd(), given.pipe()
            counters = given.memory_file("counters", counters_size())
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            running.enter_context(ours)
            written, record = os.pipe2(os.O_CLOEXEC)
            doorbells = Doorbells(page, os.dup(to_worker), os.dup(write), Counters())
            descriptors = {
                "--memory-fd": self.memory,
                "--link-fd": given.own(theirs.detach()),
                "--doorbells-fd": page,
                "--to-worker-fd": to_worker,
                "--to-hypervisor-fd": read,
                "--counters-fd": counters,
                "--record-fd": given.own(record),
            }
            own = running.enter_context(identity.lease())
            numbers = {
                **descriptors,
                "--memory-size": self.memory_size,
                **({} if own.hypervisor is None else {"--uid": own.hypervisor}),
            }
            command = [str(programs.find(programs.HYPERVISOR)), "--processor", "soft"]
            command += self.start.options()
            for option, number in numbers.items():
                command += option, f"{number:#x}"
            child = Child.start(command, descriptors.values())
            running.callback(child.end)
            given.close()
            again = _Sum(written)
            ours.send(link.encode(link.START))
            yield from self._turns(ours, doorbells, child)
            child.wait(None)
            if again.finish() != self._entries.sum.digest():
                raise RecordingError("the machine did not do as it did when it was recorded")

    def _turns(self, ours: socket.socket, bells: Doorbells, child: Child) -> Iterator[Turn]:
        while True:
            turn = Turn()
            last = _await(ours, turn.given, child)
            turn.rung = bells.take()
            self._read(turn)
            yield turn
            if last == _END:
                return
            for offset, data in turn.written:
                os.pwrite(self.memory, data, offset)
            for channel in turn.doorbells:
                bells.ring(channel, 0)
            bells.flush()
            for packet in turn.sent:
                ours.send(packet)

    def _read(self, turn: Turn) -> None:
        """What the recorded worker did in this turn."""
        messages: list[bytes] = []
        kind, body = 0, b""
        while kind not in (_KIND["over"], _KIND["end"]):
            kind, body, entry = self._entries.next()
            turn.entries.append(entry)
            if kind == _KIND["memory"]:
                turn.written.append((_OFFSET.unpack_from(body)[0], body[_OFFSET.size :]))
            elif kind == _KIND["doorbell"]:
                turn.doorbells.append(_DOORBELL.unpack(body)[0])
            elif kind == _KIND["message"]:
                messages.append(body)
        if kind == _KIND["end"]:
            return
        ranges = [_RANGE.pack(offset, len(data)) for offset, data in turn.written]
        at_once = link.WROTE_BYTES // _RANGE.size
        for at in range(0, len(ranges), at_once):
            turn.sent.append(link.encode(link.wrote(b"".join(ranges[at : at + at_once]))))
        turn.sent += messages
        turn.sent.append(link.encode(link.turn_over(_OFFSET.unpack(body)[0])))


def _await(ours: socket.socket, given: list[bytes], child: Child) -> int:
    """Takes what the hypervisor sends up to the worker's next turn, or to its end: which of both.

    Raises:
        RecordingError: it broke.
    """
    while True:
        packet = ours.recv(link.MESSAGE_BYTES)
        if not packet:
            child.wait(None)
            if (missing := host.missing_wall(child.status)) is not None:
                raise missing
            raise RecordingError(f"the replaying process broke ({child.fate})")
        given.append(packet)
        if (number := packet[2]) in (_TURN, _END):
            return number


class _Sum(threading.Thread):
    """A sum over all that comes out of a pipe."""

    def __init__(self, pipe: int) -> None:
        super().__init__(name="teuthis-sum", daemon=True)
        self._pipe = pipe
        self._sum = hashlib.sha256()
        self.start()

    def run(self) -> None:
        """Reads to the end."""
        with os.fdopen(self._pipe, "rb", buffering=0) as pipe:
            while data := pipe.read(1 << 20):
                self._sum.update(data)

    def finish(self) -> bytes:
        """The sum over everything."""
        self.join()
        return self._sum.digest()
