"""Standing still: pause, save and resume, as the root side asks, in step with the hypervisor."""

import errno
import os
from collections.abc import Callable
from typing import Final

from teuthis.flows import FLOWS, Counters
from teuthis.protocol import Ended, Pause, Resume, Save, Status, StatusKind
from teuthis.worker import link
from teuthis.worker.ending import EndVM

_TOTAL_MAX: Final = FLOWS["link.state"].values["total_max"]


class Collector:
    """Puts the hypervisor's state together from its pieces."""

    def __init__(self) -> None:
        self._pieces: list[bytes] = []
        self._left: int | None = None

    def add(self, piece: bytes, left: int) -> bytes | None:
        """Takes a piece; the whole state once nothing is left. Raises `ValueError`."""
        expected = _TOTAL_MAX if self._left is None else self._left - len(piece)
        if left > expected or (self._left is not None and left != expected):
            raise ValueError("pieces that contradict each other")
        if left and not piece:
            raise ValueError("a piece of nothing")
        self._pieces.append(piece)
        self._left = left
        return b"".join(self._pieces) if left == 0 else None


class Saving:
    """Whether the guest stands still, and what is under way."""

    def __init__(
        self,
        send: Callable[[link.Outgoing], None],
        report: Callable[[Status], None],
        state: Callable[[], bytes],
        resumed: Callable[[], None],
        counters: Counters,
        restored: Callable[[], None] | None = None,
    ) -> None:
        """`state` gives the worker's own state; `resumed` is called when the guest goes on.

        A restored guest begins standing still: `restored` is called before it goes on for the first
        time, when the hypervisor has taken its state, as the worker has by then.
        """
        self.standing = False
        self._send = send
        self._report = report
        self._state = state
        self._resumed = resumed
        self._counters = counters
        self._restored = restored
        self._pausing: int | None = None
        self._saving: tuple[Save, list[int], bytes] | None = None
        self._collector = Collector()

    # ---- the root side ---------------------------------------------------------------------------

    def handle(self, request: Pause | Resume | Save, descriptors: list[int]) -> None:
        """Begins what is asked for; takes the descriptors over."""
        match request:
            case Pause() if not self.standing and self._pausing is None:
                self._pausing = request.id
                self._send(link.PAUSE)
            case Resume() if self.standing and self._saving is None:
                self.standing = False
                self._send(link.RESUME)
                self._resumed()
                self._report(Status(StatusKind.DONE, request.id))
            case Save() if self.standing and self._saving is None:
                self._save(request, descriptors)
            case _:
                self._fail(request.id, descriptors, errno.EBUSY)

    def _save(self, request: Save, descriptors: list[int]) -> None:
        try:
            state = self._state()
        except NotImplementedError:
            self._fail(request.id, descriptors, errno.ENOTSUP)
            return
        except OSError as error:  # of a disk's file
            self._fail(request.id, descriptors, error.errno or errno.EIO)
            return
        self._saving = request, descriptors, state
        self._collector = Collector()
        self._send(link.SAVE)

    def _fail(self, number: int, descriptors: list[int], reason: int) -> None:
        for descriptor in descriptors:
            os.close(descriptor)
        self._report(Status(StatusKind.FAILED, number, reason))

    # ---- the hypervisor --------------------------------------------------------------------------

    def paused(self) -> None:
        """The hypervisor stands still. Raises `EndVM` when nobody asked it to."""
        if self._restored is not None:
            restored, self._restored = self._restored, None
            restored()
            self._send(link.RESUME)
            self._resumed()
            return
        if self._pausing is None:
            self._counters.reject("link.paused", "unasked")
            raise EndVM(Ended.LINK_VIOLATION)
        number, self._pausing = self._pausing, None
        self.standing = True
        self._report(Status(StatusKind.DONE, number))

    def piece(self, piece: bytes, left: int) -> None:
        """A piece of its state. Raises `EndVM` when it does not fit what was asked."""
        if self._saving is None:
            self._counters.reject("link.state", "unasked")
            raise EndVM(Ended.LINK_VIOLATION)
        try:
            whole = self._collector.add(piece, left)
        except ValueError as error:
            self._counters.reject("link.state", "pieces")
            raise EndVM(Ended.LINK_VIOLATION) from error
        if whole is None:
            return
        (request, descriptors, state), self._saving = self._saving, None
        if not whole:  # its processor cannot be saved
            self._fail(request.id, descriptors, errno.ENOTSUP)
            return
        try:
            for record in (whole, state):
                _write(descriptors[0], record)
                os.close(descriptors.pop(0))
        except OSError as error:
            self._fail(request.id, descriptors, error.errno or errno.EIO)
            return
        self._report(Status(StatusKind.DONE, request.id, len(whole) + len(state)))


def _write(descriptor: int, data: bytes) -> None:
    """Writes all of it; the root side reads one sink after the other to their ends."""
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]
