"""Console output and last words of the guest, into the client's console pipe; bounded.

The bytes are the guest's and pass as they are: the client makes them harmless before it shows them.
A client that does not read loses the oldest output and is told how much.
"""

import os
from collections import deque
from typing import Final

from teuthis.flows import FLOWS, Counters
from teuthis.worker.loop import WRITE, Loop

LIMIT: Final = FLOWS["console.output"].max_bytes


class Console:
    """The pipe and what it could not take yet."""

    def __init__(self, loop: Loop, descriptor: int, counters: Counters) -> None:
        """Takes over the writing end of the pipe."""
        os.set_blocking(descriptor, False)
        self._loop = loop
        self._descriptor: int | None = descriptor
        self._counters = counters
        self._queue: deque[bytes] = deque()
        self._size = 0
        self._dropped = 0
        self._blocked = False

    @property
    def empty(self) -> bool:
        """Whether everything has been written."""
        return not self._queue

    def write(self, data: bytes) -> None:
        """Takes text of the guest's."""
        if self._descriptor is None or not data:
            return
        data = data[-LIMIT:]
        self._counters.accept("console.output", len(data))
        self._queue.append(data)
        self._size += len(data)
        while self._size > LIMIT:
            oldest = self._queue.popleft()
            self._size -= len(oldest)
            self._dropped += len(oldest)
            self._counters.reject("console.output", "unread")
        if not self._blocked:
            self._flush()

    def note(self, text: str) -> None:
        """Takes a line of our own."""
        self.write(f"[teuthis] {text}\n".encode())

    def _flush(self) -> None:
        while self._queue and self._descriptor is not None:
            if self._dropped:
                lost = (
                    f"\n[teuthis] {self._dropped} bytes of console output were not read in time\n"
                )
                self._queue.appendleft(lost.encode())
                self._size += len(self._queue[0])
                self._dropped = 0
            try:
                written = os.write(self._descriptor, self._queue[0])
            except BlockingIOError:
                self._blocked = self._loop.watch(self._descriptor, WRITE, self._flush)
                return
            except OSError:  # nobody will ever read it
                self._loop.unwatch(self._descriptor)
                self._descriptor = None
                self._queue.clear()
                return
            self._size -= written
            rest = self._queue.popleft()[written:]
            if rest:
                self._queue.appendleft(rest)
        if self._blocked and self._descriptor is not None:
            self._blocked = False
            self._loop.unwatch(self._descriptor)
