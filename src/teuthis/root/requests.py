"""Outstanding requests of one VM, and what the worker's statuses mean for them. Does no I/O.

The worker may have been taken over by the guest. All it can say here are 32 fixed bytes, decoded
by `teuthis.protocol`; this module refuses what does not fit what was asked.
"""

import threading
import time
from collections.abc import Callable
from typing import Final

from teuthis.errors import TeuthisError, VMError
from teuthis.flows import FLOWS
from teuthis.protocol import (
    Ended,
    Exec,
    Health,
    KeeperRequest,
    Pause,
    ProtocolError,
    Resume,
    Status,
    StatusKind,
)
from teuthis.root.promise import Promise

MAX_OUTSTANDING: Final = FLOWS["control.request"].values["outstanding_max"]
_HEALTH_BURST: Final = 16
"""Changes of health beyond one a second that are believed."""

_EXEC_ENDS: Final = frozenset({StatusKind.EXITED, StatusKind.FAILED})
_OTHER_ENDS: Final = frozenset({StatusKind.DONE, StatusKind.FAILED})


class Answer:
    """What the worker says about one request.

    Attributes:
        id: the request's number.
        request: what was asked for.
        started: process id in the guest, for an `Exec`; 0 when it finished without one.
        finished: EXITED, DONE or FAILED; or the error that ended the VM.
    """

    def __init__(self, request: KeeperRequest, number: int) -> None:
        self.id = number
        self.request = request
        self.started: Promise[int] = Promise()
        self.finished: Promise[Status] = Promise()
        self.ends = _EXEC_ENDS if isinstance(request, Exec) else _OTHER_ENDS

    def fail(self, error: TeuthisError) -> None:
        """Ends the waiting: the VM is no more."""
        for promise in (self.started, self.finished):
            if not promise.done():
                promise.set_exception(error)


class Requests:
    """The requests that wait for an answer. May be used from any thread."""

    def __init__(self) -> None:
        self.ready: Promise[None] = Promise()
        self.health = Health.UNKNOWN
        self.standing = False
        """Whether the guest stands still, as was asked."""
        self.on_health: Callable[[], None] = lambda: None
        """Called after each change of `health`."""
        self._health_changes = 0
        self._began = time.monotonic()
        self._lock = threading.Lock()
        self._outstanding: dict[int, Answer] = {}
        self._number = 0
        self._error: Callable[[], TeuthisError] | None = None

    def open(self, make: Callable[[int], KeeperRequest]) -> tuple[Answer, KeeperRequest]:
        """Numbers the request that `make(number)` gives, and awaits its answer.

        Raises:
            VMError: the VM is no more, or this many requests are too many.
        """
        with self._lock:
            if self._error is not None:
                raise self._error()
            if len(self._outstanding) >= MAX_OUTSTANDING:
                raise VMError(f"{MAX_OUTSTANDING} requests are under way in this VM: wait for some")
            self._number += 1
            request = make(self._number)
            answer = Answer(request, self._number)
            self._outstanding[answer.id] = answer
            return answer, request

    def withdraw(self, answer: Answer) -> None:
        """Forgets a request that could not be sent."""
        with self._lock:
            self._outstanding.pop(answer.id, None)

    def take(self, packet: bytes) -> Ended | None:
        """Handles one packet of the worker; returns the reason when the VM has ended.

        Raises:
            ProtocolError: it is not a status, or does not fit what was asked.
        """
        status = Status.decode(packet)
        if status.kind is StatusKind.ENDED:
            return Ended(status.value)
        if status.kind is StatusKind.READY:
            if self.ready.done():
                raise ProtocolError("ready twice")
            self.ready.set_result(None)
            return None
        if status.kind is StatusKind.HEALTH:
            self._take_health(Health(status.value))
            return None
        with self._lock:
            answer = self._outstanding.get(status.id)
            if answer is None:
                raise ProtocolError(f"{status.kind.name} for a request that is not under way")
            if status.kind in answer.ends:
                del self._outstanding[status.id]
            elif status.kind is not StatusKind.STARTED or answer.ends is not _EXEC_ENDS:
                raise ProtocolError(f"{status.kind.name} for a request of another kind")
            elif answer.started.done():
                raise ProtocolError("started twice")
        if status.kind is StatusKind.STARTED:
            answer.started.set_result(status.value)
        else:
            if status.kind is StatusKind.DONE and isinstance(answer.request, Pause | Resume):
                self.standing = isinstance(answer.request, Pause)
            answer.finished.set_result(status)
            if not answer.started.done():
                answer.started.set_result(0)
        return None

    def _take_health(self, health: Health) -> None:
        self._health_changes += 1
        allowed = _HEALTH_BURST + time.monotonic() - self._began
        if health is self.health or self._health_changes > allowed:
            raise ProtocolError("health that changes as no guest's can")
        self.health = health
        self.on_health()

    def raise_error(self) -> None:
        """Raises the error that `fail` was given, if it has been called."""
        with self._lock:
            if self._error is not None:
                raise self._error()

    def fail(self, error: Callable[[], TeuthisError]) -> None:
        """Fails all that waits, and all that is asked from now on, with errors from `error`."""
        with self._lock:
            self._error = error
            outstanding = list(self._outstanding.values())
            self._outstanding.clear()
        if not self.ready.done():
            self.ready.set_exception(error())
        for answer in outstanding:
            answer.fail(error())
