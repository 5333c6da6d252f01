"""Asking for things over a control socket: requests go out, answers come back by futures.

The socket is a worker's own, or a keeper's that passes requests on (`keeper`): both speak
`teuthis.protocol`. A thread of the subclass reads the statuses until the VM has ended.
"""

import errno
import os
import socket
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Final

from teuthis.errors import (
    ConfigurationError,
    HostError,
    SnapshotError,
    TeuthisError,
    VMClosed,
    VMError,
)
from teuthis.flows import Count, Counters
from teuthis.protocol import (
    Health,
    KeeperRequest,
    Pause,
    ProtocolError,
    Request,
    Resume,
    StatusKind,
    encode_request,
)
from teuthis.root.requests import Answer, Requests

_STANDSTILL_TIMEOUT: Final = 30.0
"""Seconds that a guest may take to come to rest."""
_SEND_TIMEOUT: Final = 5.0
"""Seconds that the other side may leave requests unread."""


class Caller:
    """One VM that can be asked. Methods may be called from any thread."""

    _control: socket.socket
    _counters: Counters
    """What this side counts."""
    _thread: threading.Thread
    """Reads the statuses; at the VM's end it fails all requests and is over."""

    def __init__(self) -> None:
        self._requests = Requests()
        self._lock = threading.Lock()
        self._over = False
        self._closing = False
        self._owner = os.getpid()

    def _talk_over(self, control: socket.socket) -> None:
        control.setblocking(False)
        self._control = control
        _callers.add(self)

    def submit(
        self, make: Callable[[int], KeeperRequest], descriptors: Sequence[int] = ()
    ) -> Answer:
        """Sends the request that `make(number)` gives, with descriptors; answers come by promises.

        Raises:
            VMError: the VM is no more.
            ConfigurationError: the request is too large.
        """
        self._check_owner()
        answer, request = self._requests.open(make)
        try:
            self._send(request, descriptors)
        except BaseException:
            self._requests.withdraw(answer)
            raise
        return answer

    def tell(self, request: Request) -> None:
        """Sends a request that has no answer of its own; if the VM is no more, nothing happens."""
        with suppress(TeuthisError):
            self._check_owner()
            self._send(request, ())

    def pause(self) -> None:
        """Lets the guest stand still, its time with it.

        Raises:
            SnapshotError: it does already, or does not come to rest.
            VMError: the VM is no more.
        """
        done(self.submit(lambda number: Pause(number)), "paused")

    def resume(self) -> None:
        """Lets a guest that stands still go on.

        Raises:
            SnapshotError: it does not stand still.
            VMError: the VM is no more.
        """
        done(self.submit(lambda number: Resume(number)), "resumed")

    def _send(self, request: KeeperRequest, descriptors: Sequence[int]) -> None:
        try:
            packet = encode_request(request)
        except ProtocolError as error:
            raise ConfigurationError(str(error)) from error
        deadline = time.monotonic() + _SEND_TIMEOUT
        while True:
            try:
                with self._lock:
                    if self._over:
                        break
                    socket.send_fds(self._control, [packet], descriptors)
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise VMError("the worker process takes no requests: close this VM") from None
                time.sleep(0.01)
            except (BrokenPipeError, ConnectionResetError):
                break
            except OSError as error:
                raise HostError(f"could not send a request: {error.strerror}") from error
            else:
                return
        self._thread.join()
        self._requests.raise_error()

    def _check_owner(self) -> None:
        if os.getpid() != self._owner:
            raise VMClosed("this VM belongs to the process that started it, not to a fork of it")

    def count(self, flow: str, size: int = 0, *, rejected: str | None = None) -> None:
        """Counts an item that this side of the VM took, or refused: the kind of bad input."""
        with self._lock:
            if self._over:
                return
            if rejected is None:
                self._counters.accept(flow, size)
            else:
                self._counters.reject(flow, rejected)

    def close(self) -> None:
        """Lets go of the VM, and returns when that is done; does nothing a second time."""
        if os.getpid() != self._owner:
            return
        with self._lock:
            if not self._over:
                self._closing = True
                self._let_go()
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _let_go(self) -> None:
        """Has the thread come to its end."""
        raise NotImplementedError

    def flows(self) -> dict[str, Count]:
        """Counters of all the VM's processes, by flow; the last ones once it has ended."""
        raise NotImplementedError

    @property
    def ended(self) -> bool:
        """Whether the VM is no more."""
        return self._over or os.getpid() != self._owner

    @property
    def standing(self) -> bool:
        """Whether the guest stands still, as its user asked."""
        return self._requests.standing

    @property
    def health(self) -> Health:
        """Whether the guest's kernel answers heartbeats."""
        return self._requests.health

    def watch_health(self, changed: Callable[[], None]) -> None:
        """Calls `changed` after each change of `health`, in the thread that reads statuses."""
        self._requests.on_health = changed

    def raise_end(self, timeout: float | None) -> None:
        """Raises why the VM ended, if it ends within `timeout` seconds; None: whenever it does."""
        self._thread.join(timeout)
        if not self._thread.is_alive():
            self._requests.raise_error()

    def abandon(self) -> None:
        """In a fork of the owner: lets go of the control socket, so that it ends with the owner."""
        self._control.close()


def done(answer: Answer, what: str) -> None:
    """Waits until a machine is `what` it was asked to be. Raises `SnapshotError`, `VMError`."""
    try:
        status = answer.finished.result(_STANDSTILL_TIMEOUT)
    except TimeoutError:
        raise SnapshotError(f"the machine could not be {what} in time") from None
    if status.kind is StatusKind.DONE:
        return
    if status.value == errno.EBUSY:
        why = "it is paused already, or not paused at all"
    elif status.value == errno.ENOTSUP:
        why = "it has a device or a processor that cannot be saved"
    else:
        why = os.strerror(status.value)
    raise SnapshotError(f"the machine could not be {what}: {why}")


_callers: weakref.WeakSet[Caller] = weakref.WeakSet()


def _abandon_all() -> None:
    for caller in _callers:
        caller.abandon()


os.register_at_fork(after_in_child=_abandon_all)
