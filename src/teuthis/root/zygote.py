"""The owner's side of the zygote: one small process that has loaded all that a worker is made of.

It is started once, in parallel with whatever else the first VM needs, and asked for a worker
whenever a VM starts (`teuthis.worker.zygote` is the other side). A worker is born as a child of
this process, not of the zygote: it is waited for, watched and killed with its owner as if it had
been started here. The zygote has seen neither a guest's data nor this process's memory.
"""

from __future__ import annotations

import errno
import os
import signal
import socket
import threading
from collections.abc import Sequence
from contextlib import suppress
from typing import Final

from teuthis.errors import HostError
from teuthis.root import hatch
from teuthis.root.hatch import PROGRAM
from teuthis.root.promise import Promise
from teuthis.root.spawn import Child

_ANSWER_BYTES: Final = 4
_PATIENCE: Final = 60.0
"""Seconds that a birth may take: milliseconds; the first one, until all modules are loaded."""


class Zygote:
    """One such process, from its start to its end."""

    def __init__(self, program: Sequence[str], hatched: tuple[int, int] | None = None) -> None:
        """Starts it, or takes over what `hatch` has started; does not wait for it."""
        self._fate: Promise[str] = Promise()
        if hatched is None:
            self._requests, given = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        else:
            self._requests = socket.socket(fileno=hatched[1])

        def live() -> None:
            # Zygote and workers are children of this thread, and the kernel kills them when it
            # ends: so it lasts as long as this process does. (Where `hatch` was first they are
            # children of the main thread, which does too.)
            try:
                if hatched is None:
                    with given:
                        command = [*program, "--requests-fd", str(given.fileno())]
                        child = Child.start(command, [given.fileno()])
                else:
                    child = Child(hatched[0], os.pidfd_open(hatched[0]))
            except BaseException as error:
                self._fate.set_result(str(error))
                return
            child.wait(None)
            child.end()
            self._fate.set_result(child.fate)
            threading.Event().wait()

        threading.Thread(target=live, name="teuthis-zygote", daemon=True).start()

    @property
    def ended(self) -> bool:
        """Whether it is no more."""
        return self._fate.done()

    def ask(self, birth: bytes) -> Birth:
        """Asks for a worker.

        Raises:
            OSError: it is no more, or it cannot be asked.
        """
        near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with far:
            try:
                socket.send_fds(self._requests, [birth], [far.fileno()])
            except BaseException:
                near.close()
                raise
        return Birth(self, near)

    def fate(self) -> str:
        """How it ended, when it has."""
        with suppress(TimeoutError):
            return self._fate.result(1.0)
        return "still there"

    def close(self) -> None:
        """Lets go of it."""
        self._requests.close()


class Birth:
    """A worker that has been asked for. It raises its first walls, then waits for its VM."""

    def __init__(self, zygote: Zygote, worker: socket.socket) -> None:
        self._zygote = zygote
        self._worker = worker
        self._child: Child | None = None

    def give(self, config: bytes, descriptors: Sequence[int]) -> None:
        """Gives it its VM: a configuration, and copies of these descriptors."""
        with suppress(BrokenPipeError, ConnectionResetError):  # `child`, or its end, will say why
            socket.send_fds(self._worker, [config], descriptors)

    def child(self) -> Child:
        """The worker, once it is there. It can be given nothing after that.

        Raises:
            HostError: it could not be started.
        """
        if self._child is None:
            with self._worker as worker:
                worker.settimeout(_PATIENCE)
                try:
                    data, descriptors = _receive(worker)
                except OSError as error:
                    raise HostError(f"no worker was started in time: {error}") from error
            if not data:
                raise HostError(
                    f"the process that starts workers died ({self._zygote.fate()}); "
                    "with TEUTHIS_DEBUG=1 it says why"
                )
            number = int.from_bytes(data, "little", signed=True)
            if number < 0:
                raise HostError(f"could not start a worker: {os.strerror(-number)}")
            if not descriptors:
                os.kill(number, signal.SIGKILL)  # it is ours and nobody has waited for it yet
                os.waitpid(number, 0)
                raise HostError(f"could not start a worker: {os.strerror(errno.EMFILE)}")
            os.set_inheritable(descriptors[0], False)
            self._child = Child(number, descriptors[0])
        return self._child

    def end(self) -> None:
        """Kills the worker, if there is one, and forgets it."""
        if self._child is not None or self._worker.fileno() >= 0:
            with suppress(HostError):
                self.child().end()


def _receive(worker: socket.socket) -> tuple[bytes, list[int]]:
    """The zygote's answer. Raises `OSError`."""
    try:
        data, descriptors, _, _ = socket.recv_fds(worker, _ANSWER_BYTES, 1)
    except ConnectionResetError:  # told once, when what we gave is not read by anybody
        data, descriptors, _, _ = socket.recv_fds(worker, _ANSWER_BYTES, 1)
    return data, descriptors


_lock = threading.Lock()
_current: Zygote | None = None


def warm() -> Zygote:
    """The zygote, started if there is none that lives; need not be ready yet."""
    global _current
    with _lock:
        if _current is not None and _current.ended:
            _current.close()
            _current = None
        if _current is None:
            _current = Zygote(PROGRAM, hatch.take())
        return _current


def ask(birth: bytes) -> Birth:
    """Asks the zygote for a worker: see `Zygote.ask`."""
    zygote = warm()
    try:
        return zygote.ask(birth)
    except (BrokenPipeError, ConnectionResetError):
        zygote.fate()  # it has just been killed: there will be another one
        return warm().ask(birth)


def _abandon() -> None:
    """In a fork of this process: its workers are to come from a zygote of its own."""
    global _current
    _lock.release()
    if _current is not None:
        _current.close()
        _current = None


os.register_at_fork(before=_lock.acquire, after_in_parent=_lock.release, after_in_child=_abandon)
