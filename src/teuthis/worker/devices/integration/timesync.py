"""The time service: sets the guest's clock when it starts, and when the host's clock has jumped.

The guest's clock runs on the VM's reference time, which goes on at the host's pace, so it stays
right by itself, also while the VM is stopped. What it cannot notice is a jump between the host's
time of day and its monotonic clock: the host slept, or somebody set its clock. Everything else is a
sample that a time daemon in the guest may use (`/dev/ptp_hyperv`).
"""

import math
import struct
from collections.abc import Callable
from typing import Final

from teuthis.flows import Counters
from teuthis.worker.devices.integration.pipe import Answer, Clock, Malformed, Service
from teuthis.worker.vmbus.messages import guid
from teuthis.worker.vmbus.server import Server

_BODY: Final = struct.Struct("<QQQB")
"""The host's time, twice nothing, a flag."""
_SYNC, _SAMPLE = 1, 2
_UNITS: Final = 10_000_000
_EPOCH: Final = 11_644_473_600 * _UNITS
"""1970-01-01 in units of 100 ns since 1601."""
SAMPLE_SECONDS: Final = 60.0
"""Between samples; a guest takes them as stale after 600."""
JUMP_SECONDS: Final = 0.5
"""What the host's time of day may move against its monotonic clock before the guest is told."""
LATE_SECONDS: Final = 0.1
"""A guest that has not answered by then may have heard the time too late, on a busy host."""


class TimeSync(Service):
    """Tells the guest the time of day."""

    flow = "integration.timesync"
    versions = ((3, 0), (1, 0))
    interface = guid("9527e630-d0ae-497b-adce-e80ab0175caf")
    instance = guid("2dd1ce17-079e-403c-b352-a1921ee207ee")

    def __init__(
        self, server: Server, counters: Counters, clock: Clock, time_of_day: Callable[[], float]
    ) -> None:
        """`time_of_day`: seconds since 1970, UTC."""
        super().__init__(server, counters, clock)
        self._time_of_day = time_of_day
        self._offset = 0.0
        """Time of day minus monotonic clock, when the guest's clock was set last."""
        self._next: float | None = None
        self._late = math.inf
        """From when on it is too late to hear that the clock is to be set."""

    def negotiated(self) -> None:
        """Sets the clock: until now the guest knows whole seconds at best."""
        self._tell(_SYNC)

    def answered(self, answer: Answer) -> None:
        """The guest has nothing to say but that it heard: too late, and it is told anew."""
        if len(answer.body) < _BODY.size:
            raise Malformed("short", "less than was sent")
        if self._clock() > self._late:
            self.resumed()

    def resumed(self) -> None:
        """Its clock has stood still too: to be set as soon as it can be told."""
        self._offset = -math.inf
        self._next = self._clock()

    def lost(self) -> None:
        """No clock to set any more."""
        self._next = None

    def deadline(self) -> float | None:
        """When the next sample is due."""
        return self._next if self.idle else None

    def expire(self) -> None:
        """Sets the clock after a jump, gives a sample now and then."""
        if self._next is None or not self.idle:
            return
        now = self._clock()
        if abs(self._time_of_day() - now - self._offset) > JUMP_SECONDS:
            self._tell(_SYNC)
        elif self._next <= now:
            self._tell(_SAMPLE)

    def _tell(self, flag: int) -> None:
        now, time_of_day = self._clock(), self._time_of_day()
        self._next = now + SAMPLE_SECONDS
        self._late = math.inf
        if flag == _SYNC:
            self._late = now + LATE_SECONDS
            self._offset = time_of_day - now
        self.ask(_BODY.pack(_EPOCH + int(time_of_day * _UNITS), 0, 0, flag))
