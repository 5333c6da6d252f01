"""Pipes between us and the worker, and moving bytes through them."""

import io
import math
import os
import selectors
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from typing import Final, Self, cast

from teuthis.flows import FLOWS

MAX_OUTPUT: Final = 64 << 20
"""How many bytes a call collects in memory unless told otherwise."""

_CHUNK: Final = FLOWS["client.output"].max_bytes


class Pipes:
    """Makes pipes with one end to give to the worker; as a context it closes what is left.

    Attributes:
        given: the ends to give, in the order they were made.
    """

    def __init__(self) -> None:
        self.given: list[int] = []
        self._theirs = ExitStack()
        self._ours = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        with self._ours:
            self.sent()

    def writer(self) -> io.BufferedWriter:
        """Our end of a pipe that the worker reads."""
        theirs, ours = os.pipe2(os.O_CLOEXEC)
        self.give(theirs)
        return self._ours.enter_context(os.fdopen(ours, "wb"))

    def reader(self) -> io.BufferedReader:
        """Our end of a pipe that the worker writes."""
        ours, theirs = os.pipe2(os.O_CLOEXEC)
        self.give(theirs)
        return self._ours.enter_context(os.fdopen(ours, "rb"))

    def give(self, descriptor: int) -> None:
        """Takes over `descriptor`, to be given too."""
        self._theirs.callback(os.close, descriptor)
        self.given.append(descriptor)

    def sent(self) -> None:
        """Closes the given ends: the worker has its own copies now."""
        self._theirs.close()

    def keep(self) -> None:
        """Our ends stay open from now on: somebody else closes them."""
        self._ours.pop_all()


class Exchange:
    """Writes `data` to one pipe and collects what comes out of others, until all are closed.

    Never holds more than `limit` bytes of output plus one chunk: what comes after is discarded.
    """

    def __init__(
        self,
        data: bytes,
        writer: io.BufferedWriter | None,
        readers: Sequence[io.BufferedReader],
        limit: int,
    ) -> None:
        self._data = memoryview(data)
        self._room = limit
        self._chunks: dict[io.BufferedReader, list[bytes]] = {reader: [] for reader in readers}
        self._selector = selectors.DefaultSelector()
        for reader in readers:
            self._selector.register(reader, selectors.EVENT_READ)
        if writer is not None:
            os.set_blocking(writer.fileno(), False)
            self._selector.register(writer, selectors.EVENT_WRITE)

    @property
    def too_large(self) -> bool:
        """Whether there was more output than the limit."""
        return self._room < 0

    def output(self, reader: io.BufferedReader) -> bytes:
        """What came from `reader`."""
        return b"".join(self._chunks[reader])

    def run(self, deadline: float = math.inf) -> bool:
        """Goes on until all pipes are closed: True.

        False at `deadline` (of the monotonic clock), and as soon as there is too much output; it
        may then be called again to drain the rest.
        """
        went_over = self.too_large
        while self._selector.get_map():
            rest = deadline - time.monotonic()
            if rest <= 0 or self.too_large > went_over:
                return False
            for key, _ in self._selector.select(None if rest == math.inf else rest):
                if key.events == selectors.EVENT_WRITE:
                    self._write(cast(io.BufferedWriter, key.fileobj))
                else:
                    self._read(cast(io.BufferedReader, key.fileobj))
        self._selector.close()
        return True

    def _write(self, writer: io.BufferedWriter) -> None:
        try:
            self._data = self._data[os.write(writer.fileno(), self._data[:_CHUNK]) :]
        except BlockingIOError:
            return
        except BrokenPipeError:
            self._data = self._data[:0]
        if not self._data:
            self._close(writer)

    def _read(self, reader: io.BufferedReader) -> None:
        data = os.read(reader.fileno(), _CHUNK)
        self._room -= len(data)
        if not data:
            self._close(reader)
        elif not self.too_large:
            self._chunks[reader].append(data)

    def _close(self, stream: io.BufferedIOBase) -> None:
        self._selector.unregister(stream)
        with suppress(BrokenPipeError):
            stream.close()
