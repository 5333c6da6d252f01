"""A running VM as its owner holds it: requests go in, answers come out, and it always ends.

One small thread per VM starts both processes, reads the worker's statuses and watches them by
pidfd. Whichever ends first (the guest, a process, the owner), the thread sees both processes gone
within a bounded time and tells everybody who waits why. If the owner itself dies, `kill -9`
included, the control socket closes with it and the worker ends, and the hypervisor with the
worker; a process that is stuck or taken over the kernel kills, as its parent thread is gone.
"""

import os
import select
import socket
import threading
import time
import weakref
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import Future
from contextlib import suppress
from typing import Final

from teuthis.errors import ConfigurationError, HostError, TeuthisError, VMClosed, VMError
from teuthis.flows import Count, Counters
from teuthis.jail import host
from teuthis.protocol import STATUS_SIZE, Ended, ProtocolError, Request, Stop, encode_request
from teuthis.root.console import Console, Sink
from teuthis.root.ending import ending
from teuthis.root.launch import Load, launch
from teuthis.root.requests import Answer, Requests

_PATIENCE: Final = 0.5
"""Seconds that both processes have to end by themselves before they are killed."""
_SEND_TIMEOUT: Final = 5.0
"""Seconds that a worker may leave requests unread."""


class Machine:
    """The two processes of one VM. Methods may be called from any thread."""

    def __init__(
        self,
        memory_size: int,
        load: Load,
        sink: Sink | None,
        allow_missing_walls: Collection[str] = (),
    ) -> None:
        """Starts a VM; `ready` says when its agent answers.

        Raises:
            HostError, KernelError: see `launch`.
        """
        self._counters = Counters()
        self._final: dict[str, Count] | None = None
        self._requests = Requests()
        self.ready = self._requests.ready
        self._lock = threading.Lock()
        self._closing = False
        self._owner = os.getpid()
        self._wake = os.eventfd(0, os.EFD_CLOEXEC)

        def run() -> None:
            # When a thread ends, the kernel kills the processes that it started: so they are
            # started by the thread that sees them end.
            try:
                self._processes = launch(memory_size, load, sink, allow_missing_walls)
                self._control = self._processes.control
                self._control.setblocking(False)
            except OSError as error:
                launched.set_exception(HostError(f"could not start a VM: {error}"))
            except BaseException as error:
                launched.set_exception(error)
            else:
                launched.set_result(self._processes.console)
                self._manage()

        launched: Future[Console] = Future()
        self._thread = threading.Thread(target=run, name="teuthis-vm", daemon=True)
        self._thread.start()
        try:
            self.console = launched.result()
        except BaseException:
            if launched.done() and launched.exception() is not None:
                os.close(self._wake)
            else:
                os.eventfd_write(self._wake, 1)  # it ends as soon as it has begun
            raise
        _machines.add(self)

    # ---- asking --------------------------------------------------------------------------------

    def submit(self, make: Callable[[int], Request], descriptors: Sequence[int] = ()) -> Answer:
        """Sends the request that `make(number)` gives, with descriptors; answers come by futures.

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

    def _send(self, request: Request, descriptors: Sequence[int]) -> None:
        try:
            packet = encode_request(request)
        except ProtocolError as error:
            raise ConfigurationError(str(error)) from error
        deadline = time.monotonic() + _SEND_TIMEOUT
        while True:
            try:
                with self._lock:
                    if self._final is not None:
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

    # ---- reading counters ----------------------------------------------------------------------

    def flows(self) -> dict[str, Count]:
        """Counters of both processes and of ours, by flow; the last ones once the VM has ended."""
        with self._lock:
            return self._final if self._final is not None else self._snapshot()

    def _snapshot(self) -> dict[str, Count]:
        pages = (self._counters, *self._processes.counters)
        snapshots = [page.snapshot() for page in pages]
        return {
            flow: sum((snapshot[flow] for snapshot in snapshots), start=Count(0, 0, 0))
            for flow in snapshots[0]
        }

    # ---- ending --------------------------------------------------------------------------------

    @property
    def ended(self) -> bool:
        """Whether the VM is no more."""
        return self._final is not None or os.getpid() != self._owner

    def raise_end(self, timeout: float) -> None:
        """Raises why the VM ended, if it ends within `timeout` seconds."""
        self._thread.join(timeout)
        if not self._thread.is_alive():
            self._requests.raise_error()

    def close(self) -> None:
        """Ends the VM and waits until both processes are gone; does nothing a second time."""
        if os.getpid() != self._owner:
            return
        with self._lock:
            if self._final is None:
                self._closing = True
                os.eventfd_write(self._wake, 1)
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def abandon(self) -> None:
        """In a fork of the owner: lets go of the control socket, so that it ends with the owner."""
        self._control.close()

    def _manage(self) -> None:
        reason: Ended | None = None
        try:
            reason = self._watch()
        except ProtocolError:
            self._counters.reject("control.status")
            reason = Ended.WORKER_VIOLATION
        finally:
            deadline = time.monotonic() + _PATIENCE
            for child in (self._processes.worker, self._processes.hypervisor):
                child.wait(max(0.0, deadline - time.monotonic()))
            self._processes.console.finish(_PATIENCE)
            with self._lock:
                self._final = self._snapshot()
                self._processes.held.close()
                os.close(self._wake)
            if self._closing and reason is Ended.STOPPED:
                self._requests.fail(lambda: VMClosed("this VM is closed: start a new one"))
            else:
                self._requests.fail(lambda: self._error(reason))

    def _error(self, reason: Ended | None) -> TeuthisError:
        for child in (self._processes.worker, self._processes.hypervisor):
            if (missing := host.missing_wall(child.status)) is not None:
                return missing
        return ending(
            reason,
            self.console.last_words(),
            worker=self._processes.worker.fate,
            hypervisor=self._processes.hypervisor.fate,
        )

    def _watch(self) -> Ended | None:
        """Handles statuses until the VM ends; None when the worker died without a reason."""
        worker, hypervisor = self._processes.worker.pidfd, self._processes.hypervisor.pidfd
        poll = select.poll()
        for descriptor in (self._control.fileno(), worker, hypervisor, self._wake):
            poll.register(descriptor, select.POLLIN)
        timeout: float | None = None
        while True:
            events = {descriptor for descriptor, _ in poll.poll(timeout)}
            if self._control.fileno() in events:
                try:
                    packet = self._control.recv(2 * STATUS_SIZE)
                except ConnectionResetError:
                    continue  # it ended with requests unread; its statuses can still be read
                if not packet:
                    return Ended.STOPPED if self._closing else None
                reason = self._requests.take(packet)
                self._counters.accept("control.status", len(packet))
                if reason is not None:
                    return reason
            elif self._wake in events:
                with suppress(OSError):
                    self._control.send(encode_request(Stop()))
                return Ended.STOPPED
            elif worker in events:
                return None
            elif hypervisor in events:
                poll.unregister(hypervisor)
                timeout = 1000.0  # for the worker to notice and say why
            elif timeout is not None:
                return Ended.HYPERVISOR_DIED


_machines: weakref.WeakSet[Machine] = weakref.WeakSet()


def _abandon_all() -> None:
    for machine in _machines:
        machine.abandon()


os.register_at_fork(after_in_child=_abandon_all)
