"""Doorbells: one shared byte per channel and direction, and an eventfd each way.

Bytes 0 to 2047 are rung by the guest (index = relid), 2048 to 4095 by the worker (value = VP + 1).
Byte 2048 belongs to no channel: it is the flag that tells a running hypervisor to look at its
descriptors. The page is shared with a process that may be hostile: values are judged as copies,
and the worst it can do is ring without reason.
"""

import mmap
import os
from contextlib import suppress
from typing import Final

from teuthis.flows import Counters
from teuthis.worker.barrier import full_barrier

CHANNELS: Final = 2048
PAGE_BYTES: Final = 2 * CHANNELS
_RUNG = 1
_RELID_OF_ATTENTION = 0


class Doorbells:
    """Both directions of one VM's doorbells."""

    def __init__(self, page: int, to_worker: int, to_hypervisor: int, counters: Counters) -> None:
        """Takes the descriptors of the page and of the two eventfds."""
        self._page = mmap.mmap(page, PAGE_BYTES)
        # The other side shares the counters of these and could make a blocking write wait.
        os.set_blocking(to_worker, False)
        os.set_blocking(to_hypervisor, False)
        self._to_worker = to_worker
        self._to_hypervisor = to_hypervisor
        self._counters = counters
        self._pending = False

    def fileno(self) -> int:
        """Descriptor to wait on."""
        return self._to_worker

    def take(self) -> list[int]:
        """The relids rung since the last call. Their rings must be read after this returns."""
        with suppress(BlockingIOError):
            os.eventfd_read(self._to_worker)
        relids = []
        rest = self._page[:CHANNELS].lstrip(b"\0")
        while rest:
            relid = CHANNELS - len(rest)
            self._page[relid] = 0
            if rest[0] == _RUNG and relid != 0:
                self._counters.accept("doorbell.to-worker")
                relids.append(relid)
            else:
                self._counters.reject("doorbell.to-worker", "value")
            rest = rest[1:].lstrip(b"\0")
        full_barrier()  # the bytes are cleared before the rings are read
        return relids

    def attend(self) -> None:
        """Raises the attention flag: the hypervisor looks at its link and eventfd."""
        self._page[CHANNELS + _RELID_OF_ATTENTION] = 1

    def ring(self, relid: int, vp: int) -> None:
        """Marks the guest's interrupt for `relid` on `vp`; `flush` sends all that are marked."""
        self._page[CHANNELS + relid] = vp + 1
        self._pending = True

    def flush(self) -> None:
        """Wakes the hypervisor if `ring` was called since the last time."""
        if not self._pending:
            return
        self._pending = False
        self.attend()
        # Full, hence already signalled; or the hypervisor is gone, as reading the link will tell.
        with suppress(BlockingIOError, BrokenPipeError):
            os.eventfd_write(self._to_hypervisor, 1)
