"""Integration services: what a stock kernel offers its host (Linux: the module `hv_utils`).

Shutdown, heartbeat, time and key-value pairs. None of them needs software of ours in the guest.
"""

import struct
import time
from collections.abc import Callable
from typing import Final

from teuthis import protocol
from teuthis.flows import Counters
from teuthis.protocol import Health, Status, StatusKind
from teuthis.worker.agent.pump import Sink
from teuthis.worker.devices.integration.heartbeat import Heartbeat
from teuthis.worker.devices.integration.kvp import Fact, KeyValuePairs
from teuthis.worker.devices.integration.pipe import Clock
from teuthis.worker.devices.integration.shutdown import Shutdown
from teuthis.worker.devices.integration.timesync import TimeSync
from teuthis.worker.loop import Loop
from teuthis.worker.vmbus.server import Server

_SIZES: Final = struct.Struct("<HH")


class Integration:
    """All services of one VM, and the requests of the client's that they serve."""

    def __init__(
        self,
        loop: Loop,
        server: Server,
        counters: Counters,
        clock: Clock,
        report: Callable[[Status], None],
        *,
        heartbeat_is_ready: bool = False,
    ) -> None:
        """`report` takes statuses for the root.

        `heartbeat_is_ready`: the VM is ready as soon as its heart beats; it has no agent.
        """
        self._loop = loop
        self._counters = counters
        self._report = report
        self._heartbeat_is_ready = heartbeat_is_ready
        self._shutdown = Shutdown(server, counters, clock)
        self._kvp = KeyValuePairs(server, counters, clock)
        self.services = (
            self._shutdown,
            self._kvp,
            Heartbeat(server, counters, clock, self._health),
            TimeSync(server, counters, clock, time.time),
        )

    def handle(self, request: protocol.Shutdown | protocol.Facts, descriptors: list[int]) -> None:
        """Carries out a request of the client's; takes the descriptors over."""
        match request:
            case protocol.Shutdown():
                self._shutdown.power_off(lambda number: self._done(request.id, number))
            case protocol.Facts():
                sink = Sink(self._loop, descriptors[0])
                self._kvp.tell(lambda facts: self._facts(request.id, sink, facts))

    def resumed(self) -> None:
        """The guest goes on after it stood still."""
        for service in self.services:
            service.go_on()

    def deadline(self) -> float | None:
        """When `expire` has something to do next."""
        deadlines = (service.deadline() for service in self.services)
        return min((each for each in deadlines if each is not None), default=None)

    def expire(self) -> None:
        """Does what is due by now."""
        for service in self.services:
            service.expire()

    def _health(self, health: Health) -> None:
        self._report(Status(StatusKind.HEALTH, value=health))
        if self._heartbeat_is_ready and health is Health.ALIVE:
            self._heartbeat_is_ready = False
            self._report(Status(StatusKind.READY))

    def _done(self, request_id: int, number: int, size: int = 0) -> None:
        if number:
            self._report(Status(StatusKind.FAILED, request_id, number))
        else:
            self._report(Status(StatusKind.DONE, request_id, size))

    def _facts(self, request_id: int, sink: Sink, facts: list[Fact] | int) -> None:
        """Writes {u16 size of the key, u16 size of the value, key, value} for each fact."""
        if isinstance(facts, int):
            sink.on_finished = lambda: self._done(request_id, facts)
            sink.finish()
            return
        data = b"".join(
            _SIZES.pack(len(fact.key), len(fact.value)) + fact.key + fact.value for fact in facts
        )
        self._counters.accept("client.facts", len(data))
        sink.on_broken = lambda: None
        sink.on_finished = lambda: self._done(request_id, 0, len(data))
        if data:
            sink.write(data)
        sink.finish()
