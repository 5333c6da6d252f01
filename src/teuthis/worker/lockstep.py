"""A recorded machine: the worker has its turn while the guest stands still, and never else.

`hypervisor/src/lockstep.rs` is the other half. Between two turns nothing here touches guest RAM;
in a turn the worker does all there is to do, hands out what came of it, names what it wrote, and
says that it is done.
"""

import struct
import time
from collections.abc import Callable
from typing import Final, Protocol

from teuthis.worker import link as partition
from teuthis.worker.control import Control, LifelineCut
from teuthis.worker.link import Incoming, Link
from teuthis.worker.loop import READ, WRITE, Few
from teuthis.worker.memory import GuestMemory

_RANGE: Final = struct.Struct("<QQ")
_RANGES_AT_ONCE: Final = partition.WROTE_BYTES // _RANGE.size
_MOST_ROUNDS: Final = 64
"""Of a turn: a client that never stops asking must not keep the guest from running."""
_LONGEST: Final = 1_000_000_000
"""Nanoseconds that a guest which waits for nothing is left to wait at once."""


class Served(Protocol):
    """What a turn consists of."""

    def handle(self, message: Incoming) -> None:
        """Takes a message of the hypervisor's."""

    def work(self, timeout: float) -> bool:
        """Does what is there to do, waiting for it at most so long; whether there was anything."""

    def hand_out(self) -> bool:
        """Queues what is for the hypervisor; whether there was anything."""


class Lockstep:
    """The turns of one worker."""

    def __init__(
        self,
        link: Link,
        control: Control,
        few: Few,
        memory: GuestMemory,
        flush: Callable[[], None],
    ) -> None:
        """`few` waits for both; `flush` rings the hypervisor's doorbells."""
        self._link = link
        self._control = control
        self._few = few
        self._flush = flush
        self._written: list[tuple[int, int]] = []
        memory.journal = self._written

    def turn(self, served: Served) -> None:
        """Waits for the next turn and takes it. Raises `EndVM`, `LifelineCut`."""
        messages, wait = self._await_turn()
        for message in messages:
            served.handle(message)
        began = time.monotonic_ns()
        limit = min(wait, _LONGEST)
        busy = served.work(0)
        busy |= served.hand_out()
        if limit and not busy and not messages:
            served.work(limit / 1e9)
        for _ in range(_MOST_ROUNDS):
            busy = served.work(0)
            if not served.hand_out() and not busy:
                break
        slept = min(limit, time.monotonic_ns() - began)
        self._flush()
        for packed in pack(self._written):
            self._link.send(partition.wrote(packed))
        self._written.clear()
        self._link.send(partition.turn_over(slept))
        self._send()

    def _await_turn(self) -> tuple[list[Incoming], int]:
        """What the guest has given since the last turn, and how long this one may last."""
        messages: list[Incoming] = []
        while True:
            self._wait(READ)
            for message in self._link.receive(1):
                if isinstance(message, partition.Turn):
                    return messages, message.wait
                messages.append(message)
                if isinstance(message, partition.End):
                    return messages, 0

    def _send(self) -> None:
        self._link.flush()
        while self._link.blocked:
            self._wait(WRITE)
            self._link.flush()

    def _wait(self, events: int) -> None:
        """Waits for the hypervisor; the root side may go meanwhile."""
        control = self._control.fileno()
        if control in self._few.wait({self._link.fileno(): events, control: 0}):
            raise LifelineCut


def pack(written: list[tuple[int, int]]) -> list[bytes]:
    """Ranges of guest RAM, (offset, bytes) each, as the hypervisor is told them."""
    merged: list[tuple[int, int]] = []
    for offset, length in sorted(written):
        if merged and offset <= sum(merged[-1]):
            start, before = merged[-1]
            merged[-1] = (start, max(before, offset + length - start))
        else:
            merged.append((offset, length))
    return [
        b"".join(_RANGE.pack(*each) for each in merged[at : at + _RANGES_AT_ONCE])
        for at in range(0, len(merged), _RANGES_AT_ONCE)
    ]
