"""The heartbeat service: a guest whose kernel does not answer for a while is hung."""

import struct
from collections.abc import Callable
from typing import Final

from teuthis.flows import FLOWS, Counters
from teuthis.protocol import Health
from teuthis.worker.devices.integration.pipe import Answer, Clock, Malformed, Service
from teuthis.worker.vmbus.messages import guid
from teuthis.worker.vmbus.server import Server

_BODY: Final = struct.Struct("<Q32x")
PERIOD: Final = 10.0
"""Seconds from an answer to the next beat: each wakes an idle guest and its two processes."""
PATIENCE: Final = 2.0
"""Seconds without an answer that count as a miss."""
MISSED_MAX: Final = FLOWS["integration.heartbeat"].values["missed_max"]
"""Misses one after the other that make a guest hung. They are counted, not timed: when this process
was stopped together with the guest, the guest has missed once at most."""


class Heartbeat(Service):
    """Asks for a sign of life every `PERIOD`, one question at a time; waits for it less long."""

    flow = "integration.heartbeat"
    versions = ((3, 0), (1, 0))
    interface = guid("57164f39-9115-4e78-ab55-382f3bd5422d")
    instance = guid("fd149e91-82e0-4a7d-afa6-2a4166cbd7c0")

    def __init__(
        self,
        server: Server,
        counters: Counters,
        clock: Clock,
        report: Callable[[Health], None],
    ) -> None:
        """`report` takes each change of health."""
        super().__init__(server, counters, clock)
        self._report = report
        self._health = Health.UNKNOWN
        self._missed = 0
        self._next: float | None = None
        """When the next beat is due, or the answer to the last one late; None before the first."""

    def negotiated(self) -> None:
        """The first beat."""
        self._beat()

    def answered(self, answer: Answer) -> None:
        """The guest adds one to the number it was sent."""
        if len(answer.body) < _BODY.size:
            raise Malformed("number", "a beat without a number")
        if answer.status or _BODY.unpack_from(answer.body)[0] != self.sequence + 1:
            raise Malformed("number", "another beat's number")
        self._missed = 0
        self._next = self._clock() + PERIOD
        self._change(Health.ALIVE)

    def resumed(self) -> None:
        """The beats begin anew, soon."""
        self._missed = 0
        self._next = self._clock() + PATIENCE

    def deadline(self) -> float | None:
        """When there is something to do: a beat, or a miss."""
        return self._next

    def expire(self) -> None:
        """Beats, or counts what the guest has missed: it is silent, or its channel gone."""
        if self._next is None or self._next > self._clock():
            return
        if self.idle:
            self._beat()
            return
        self._next = self._clock() + PATIENCE
        self._missed += 1
        if self._missed >= MISSED_MAX:
            self._change(Health.HUNG)

    def _beat(self) -> None:
        self._next = self._clock() + PATIENCE
        self.sequence += 1
        self.ask(_BODY.pack(self.sequence))

    def _change(self, health: Health) -> None:
        if health is not self._health:
            self._health = health
            self._report(health)
