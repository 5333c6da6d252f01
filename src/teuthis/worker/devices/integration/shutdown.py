"""The shutdown service: asks the guest's kernel to switch the machine off in order."""

import errno
import struct
from collections.abc import Callable
from typing import Final

from teuthis.flows import FLOWS, Counters
from teuthis.worker.devices.integration.pipe import Answer, Clock, Service
from teuthis.worker.vmbus.messages import guid
from teuthis.worker.vmbus.server import Server

_BODY: Final = struct.Struct("<III2048s")
"""Reason, seconds until then, flags (0: power off), a text to show."""

WISHES_MAX: Final = FLOWS["control.request"].values["sessions_max"]
"""Wishes that a guest may leave unanswered, as many as programs may run in it."""

Answered = Callable[[int], None]
"""Takes 0 when the guest agreed, or an error number."""


class Shutdown(Service):
    """Passes on wishes to power off; those that come before the guest is ready for them wait."""

    flow = "integration.shutdown"
    versions = ((3, 2), (3, 1), (3, 0))
    interface = guid("0e0b6031-5213-4934-818b-38d90ced39db")
    instance = guid("b6650ff7-33bc-4840-8048-e0676786f393")

    def __init__(self, server: Server, counters: Counters, clock: Clock) -> None:
        super().__init__(server, counters, clock)
        self._wishes: list[Answered] = []

    def power_off(self, answered: Answered) -> None:
        """Asks for power-off, now or as soon as the guest offers the service.

        EAGAIN: too many wait for the guest's answer as it is.
        """
        if len(self._wishes) >= WISHES_MAX:
            answered(errno.EAGAIN)
            return
        self._wishes.append(answered)
        self._go_on()

    def negotiated(self) -> None:
        """Passes on what was wished for before."""
        self._go_on()

    def answered(self, answer: Answer) -> None:
        """Agreed, or not."""
        self._finish(errno.EPERM if answer.status else 0)

    def lost(self) -> None:
        """A guest that powers off may close its channels first: the wishes wait for its end."""

    def _go_on(self) -> None:
        if self._wishes and self.idle:
            self.ask(_BODY.pack(0, 0, 0, b""))

    def _finish(self, result: int) -> None:
        wishes, self._wishes = self._wishes, []
        for answered in wishes:
            answered(result)
