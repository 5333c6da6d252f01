"""Replays a recording: the hypervisor program alone, in its jail, without a worker.

Nobody vouches for a recording. This side reads its frame, hands the entries on, and shows what
comes out; whatever else is in it meets what a hostile guest would.
"""

import enum
import os
import threading
from collections.abc import Collection, Iterator
from contextlib import suppress
from typing import Final

from teuthis import programs
from teuthis.errors import RecordingError
from teuthis.flows import FLOWS, Counters, counters_size
from teuthis.jail import host, identity
from teuthis.root import cgroup
from teuthis.root.console import Console, Sink
from teuthis.root.descriptors import Descriptors
from teuthis.root.recording import Recording, memory_digest
from teuthis.root.spawn import Child

_OUTCOMES: Final = FLOWS["replay.report"].values
_PATIENCE: Final = 1.0


class Outcome(enum.IntEnum):
    """How a replay ended."""

    EQUAL = _OUTCOMES["equal"]
    """As the recorded run, to the last register and byte of memory."""
    PARTED = _OUTCOMES["parted"]
    UNTIL = _OUTCOMES["until"]
    """After as many instructions as were asked for; the same so far."""
    CUT = _OUTCOMES["cut"]
    """The same up to where the recorded machine was interrupted."""


class Replay:
    """One replay of a recording."""

    def __init__(
        self,
        recording: Recording,
        console: Sink | None = None,
        report: Sink | None = None,
        *,
        until: int | None = None,
        trace: bool = False,
        allow_missing_walls: Collection[str] = (),
    ) -> None:
        """`console` and `report` take what the replaying process says: somebody else's bytes.

        With `trace`, each step of the guest is reported; `until` ends it after so many
        instructions.
        """
        self._recording = recording
        self._sinks = console, report
        self._until = until
        self._trace = trace
        self._allowed = host.check_names(allow_missing_walls)
        self.counters = Counters()
        """What this side has counted."""

    def run(self) -> Outcome:
        """Replays it from its first entry on.

        Raises:
            RecordingError: nothing of ours made it; or the replaying process broke.
            HostError, OSError: something that a VM needs cannot be had here.
        """
        start = self._recording.start
        with Descriptors() as given, Descriptors() as held:
            memory = held.memory_file("ram", start.memory_size)
            pages = given.memory_file("counters", counters_size())
            entries, feed = os.pipe2(os.O_CLOEXEC)
            outputs = [os.pipe2(os.O_CLOEXEC) for _ in self._sinks]
            readers = [
                _Counting(read, sink, self.counters, flow)
                for (read, _), sink, flow in zip(
                    outputs, self._sinks, ("replay.console", "replay.report"), strict=True
                )
            ]
            descriptors = {
                "--memory-fd": memory,
                "--counters-fd": pages,
                "--replay-fd": given.own(entries),
                "--console-fd": given.own(outputs[0][1]),
                "--report-fd": given.own(outputs[1][1]),
            }
            own = held.enter_context(identity.lease())
            group = held.enter_context(cgroup.lease(start.memory_size, 1, cgroup.place()))
            numbers = {
                "--memory-size": start.memory_size,
                "--trace": int(self._trace),
                **({} if self._until is None else {"--until": self._until}),
                **({} if own.hypervisor is None else {"--uid": own.hypervisor}),
            }
            command = [str(programs.find(programs.HYPERVISOR)), *start.options()]
            for option, number in {**descriptors, **numbers}.items():
                command += option, f"{number:#x}"
            if self._allowed:
                command += "--allow-missing-walls", ",".join(sorted(self._allowed))
            feeder = _Feeder(feed, self._recording.entries())
            child = Child.start(command, descriptors.values())
            try:
                group.take(child.pid)
                given.close()
                feeder.start()
                while not child.wait(60.0):
                    pass
            finally:
                child.end()
                for reader in readers:
                    reader.finish(_PATIENCE)
            feeder.join()
            return self._outcome(child, feeder.error, readers[1].tail(), memory)

    def _outcome(
        self, child: Child, error: RecordingError | None, report: bytes, memory: int
    ) -> Outcome:
        if (missing := host.missing_wall(child.status)) is not None:
            raise missing
        if error is not None:
            raise error
        self.counters.accept("control.exit-status", 4)
        try:
            outcome = Outcome(child.status)
        except ValueError:
            how = report.decode(errors="replace").rstrip().rpartition("\n")[2]
            if child.status == _OUTCOMES["malformed"]:
                raise RecordingError(how) from None
            raise RecordingError(f"the replaying process broke ({child.fate}): {how}") from None
        expected = self._recording.memory
        if outcome is Outcome.EQUAL and expected is not None:
            size = self._recording.start.memory_size
            if memory_digest(memory, size) != expected:
                if self._sinks[1] is not None:
                    self._sinks[1].write(b"but the memory at the end is not as recorded\n")
                return Outcome.PARTED
        return outcome


class _Counting(Console):
    """Reads one of the pipes to its end."""

    def __init__(self, descriptor: int, sink: Sink | None, counters: Counters, flow: str) -> None:
        def write(data: bytes) -> None:
            counters.accept(flow, len(data))
            if sink is not None:
                sink.write(data)

        self.write = write
        super().__init__(descriptor, self)


class _Feeder(threading.Thread):
    """Writes the entries into the pipe, as fast as they are read."""

    def __init__(self, target: int, entries: Iterator[bytes]) -> None:
        super().__init__(name="teuthis-replay", daemon=True)
        self._target = target
        self._entries = entries
        self.error: RecordingError | None = None

    def run(self) -> None:
        """Ends with the entries, or with their reader."""
        with os.fdopen(self._target, "wb", buffering=0) as pipe, suppress(BrokenPipeError):
            try:
                for data in self._entries:
                    view = memoryview(data)
                    while view:
                        view = view[pipe.write(view) :]
            except RecordingError as error:
                self.error = error
