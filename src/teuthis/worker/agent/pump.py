"""Between the client's descriptors and a session: reads within credit, writes without waiting."""

import os
from collections import deque
from collections.abc import Callable
from typing import Final

from teuthis.flows import FLOWS
from teuthis.worker.loop import READ, WRITE, Loop

_CHUNK: Final = FLOWS["client.input"].max_bytes
_MAX_VECTOR = 64


def _nothing(*_: object) -> None: ...


class Source:
    """Reads a descriptor of the client's as far as the guest has given credit."""

    def __init__(self, loop: Loop, descriptor: int) -> None:
        """Takes the descriptor over; reading starts with `allow`."""
        os.set_blocking(descriptor, False)
        self._loop = loop
        self._descriptor: int | None = descriptor
        self._credit = 0
        self._reading = False
        self.on_data: Callable[[bytes], None] = _nothing
        self.on_end: Callable[[], None] = _nothing

    def allow(self, size: int) -> None:
        """Lets `size` more bytes be read."""
        self._credit += size
        self._resume()

    def close(self) -> None:
        """Stops, without `on_end`."""
        if self._descriptor is not None:
            self._loop.unwatch(self._descriptor)
            os.close(self._descriptor)
            self._descriptor = None

    def _resume(self) -> None:
        if self._reading or not self._credit or self._descriptor is None:
            return
        self._reading = True
        if not self._loop.watch(self._descriptor, READ, self._read):
            self._loop.soon(self._continue)

    def _continue(self) -> None:
        """Reading of a regular file, which cannot be waited for."""
        if self._reading:
            self._reading = False
            self._read()
            self._resume()

    def _read(self) -> None:
        if self._descriptor is None:
            return
        try:
            data = os.read(self._descriptor, min(self._credit, _CHUNK))
        except BlockingIOError:
            return
        except OSError:
            data = b""  # a terminal that is gone, a directory: nothing more will come
        if not data:
            self.close()
            self.on_end()
            return
        self._credit -= len(data)
        if not self._credit:
            self._reading = False
            self._loop.unwatch(self._descriptor)
        self.on_data(data)


class Sink:
    """Writes to a descriptor of the client's; the session's credit bounds what waits here."""

    def __init__(self, loop: Loop, descriptor: int) -> None:
        """Takes the descriptor over."""
        os.set_blocking(descriptor, False)
        self._loop = loop
        self._descriptor: int | None = descriptor
        self._queue: deque[bytes | memoryview] = deque()
        self._finishing = False
        self.on_written: Callable[[int], None] = _nothing
        """Called with the number of bytes that left (or were dropped, when nobody reads)."""
        self.on_broken: Callable[[], None] = _nothing
        self.on_finished: Callable[[], None] = _nothing

    def write(self, data: bytes) -> None:
        """Writes `data` now or as soon as the reader takes it."""
        if self._descriptor is None:
            self.on_written(len(data))
            return
        self._queue.append(data)
        if len(self._queue) == 1:
            self._write()

    def finish(self) -> None:
        """Closes once all is written, then calls `on_finished`."""
        self._finishing = True
        self._finish_if_empty()

    def _finish_if_empty(self) -> None:
        if self._finishing and not self._queue:
            self._finishing = False
            self._close()
            self.on_finished()

    def _write(self) -> None:
        queue = self._queue
        written = 0
        broken = False
        while queue and self._descriptor is not None:
            try:
                count = os.writev(
                    self._descriptor, [queue[i] for i in range(min(len(queue), _MAX_VECTOR))]
                )
            except BlockingIOError:
                self._loop.watch(self._descriptor, WRITE, self._write)
                break
            except OSError:
                broken = True
                written += sum(map(len, queue))
                queue.clear()
                self._close()
                break
            written += count
            while count:
                head = queue.popleft()
                if count < len(head):
                    queue.appendleft(memoryview(head)[count:])
                    break
                count -= len(head)
        if not queue and self._descriptor is not None:
            self._loop.unwatch(self._descriptor)
        if written:
            self.on_written(written)
        if broken:
            self.on_broken()
        self._finish_if_empty()

    def _close(self) -> None:
        if self._descriptor is not None:
            self._loop.unwatch(self._descriptor)
            os.close(self._descriptor)
            self._descriptor = None
